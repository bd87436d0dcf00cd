"""MODEL.HEAD 'patient': age, sex and view beside the image, from training to other hospitals."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import SWIN, VIT, arguments, finished_run, killed_in_step_7, run_main, run_script

from config import config_from_text, default_config
from data.tables.metadata import columns_of, metadata_features
from data.transforms import EvalTransform
from evaluation.inference import load_classifier
from models.patient_head import PatientHead
from utils import read_checkpoint

pytestmark = pytest.mark.usefixtures('few_cases_select')
LABEL = 'Support Devices'
HEAD = {'HEAD': 'patient'}


@pytest.fixture(scope='module')
def data(phantom: Path, tmp_path_factory) -> Path:
    """The phantom with some unknown ages and sexes."""
    root = tmp_path_factory.mktemp('patients') / phantom.name
    shutil.copytree(phantom, root)
    for split in ('train', 'valid', 'test'):
        table = pd.read_csv(root / f'{split}.csv', dtype=str, keep_default_na=False)
        table.loc[::7, 'Age'], table.loc[::5, 'Sex'] = '', ''
        table.to_csv(root / f'{split}.csv', index=False)
    return root


@pytest.fixture(scope='module')
def probe(data: Path, tmp_path_factory) -> Path:
    options = {'TRAIN_IMAGES': 0, 'UNCERTAIN': 'ones'}
    words = ['--opts', 'EVAL.PREDICT_TRAIN', 'True', 'REPORT.WRITE', 'True', 'EVAL.RESAMPLES', '0']
    sections = {'FINETUNE': {'MODE': 'linear_probe'}, 'DATA': options}
    folder = tmp_path_factory.mktemp('probe')
    return finished_run('finetune', data, folder, *words, model=SWIN | HEAD, **sections)


def numbers_of(data: Path, paths: pd.Series) -> np.ndarray:
    """Age, age unknown, male, female, frontal, lateral, AP, PA, as the table has them."""
    tables = [pd.read_csv(data / f'{split}.csv', dtype=str) for split in ('train', 'valid', 'test')]
    own = pd.concat(tables).set_index('Path').loc[paths].fillna('')
    age = own['Age'].replace('', '0').astype(float)
    marks = [own[column] == name for column, name in (
        ('Frontal/Lateral', 'Frontal'), ('Frontal/Lateral', 'Lateral'), ('AP/PA', 'AP'),
        ('AP/PA', 'PA'), ('Sex', 'Male'), ('Sex', 'Female'))]  # fmt: skip
    return np.stack([*marks, age, age == 0], axis=1).astype(float)


def predicted(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f'predictions_{name}.csv')


def features_of(model: PatientHead, config, data: Path, paths: pd.Series) -> np.ndarray:
    transform = EvalTransform(config)
    images = [transform(Image.open(data.parent / path).convert('L')) for path in paths]
    with torch.no_grad():
        return model.forward_features(torch.stack(images)).double().numpy()


def test_a_probe_is_scikit_learns_regression_on_features_and_numbers(data: Path, probe: Path):
    """Held-out patients neither teach the head nor standardise its numbers."""
    checkpoint = probe / 'ckpt_best.pth'
    config = config_from_text(read_checkpoint(checkpoint)['config'])
    model = load_classifier(config, checkpoint, torch.device('cpu'), logging.getLogger()).eval()
    train, test, held_out = (predicted(probe, name) for name in ('train', 'test', 'holdout'))
    train = train[~train['Path'].isin(held_out['Path'])]
    numbers = [numbers_of(data, own['Path']) for own in (train, test)]
    assert {*numbers[0][:, -1]} == {0, 1}, 'some ages are unknown'
    deviation = numbers[0].std(axis=0)
    np.testing.assert_allclose(model.head.mean, numbers[0].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(model.head.deviation, np.where(deviation, deviation, 1), rtol=1e-5)
    inputs = [
        np.concatenate([features_of(model, config, data, own['Path']), own_numbers], axis=1)
        for own, own_numbers in zip((train, test), numbers, strict=True)
    ]
    table = pd.read_csv(data / 'train.csv', dtype=str).set_index('Path').loc[train['Path']]
    target = table[LABEL].isin(['1.0', '-1.0'])
    chosen = json.loads((probe / 'scores.json').read_text())['test']['selected']['chosen']
    regression = LogisticRegression(C=chosen[LABEL], tol=1e-9, max_iter=10_000)
    want = make_pipeline(StandardScaler(), regression).fit(inputs[0], target)
    assert np.abs(regression.coef_[0, -8:]).max() > 0.01
    found = test[LABEL]
    assert found.std() > 0.01
    np.testing.assert_allclose(found, want.predict_proba(inputs[1])[:, 1], atol=1e-3)


def test_a_constant_number_says_nothing() -> None:
    head, numbers = PatientHead(6, 1, inputs=['sex']), torch.tensor([[1.0, 7.0], [3.0, 7.0]])
    head.standardise(numbers)
    assert head.standard(numbers).tolist() == [[-1, 0], [1, 0]]


def test_every_later_scoring_reads_the_same_numbers(data, probe, tmp_path, capsys) -> None:
    """--eval, predict.py on the table, and a second hospital give the predictions of the run."""
    wanted = predicted(probe, 'test')
    argv = arguments(probe.parents[1] / 'finetune.yaml', data, probe.parents[1], '--eval')
    assert run_main('finetune', argv) == 0
    np.testing.assert_allclose(predicted(probe, 'test_eval')[LABEL], wanted[LABEL], atol=1e-6)
    words = ['--checkpoint', probe / 'ckpt_best.pth', '--num-workers', 0]
    output = tmp_path / 'p.csv'
    assert run_script('predict', data, '--dataset', 'chexpert', '--output', output, *words) == 0
    found = pd.read_csv(output).assign(Path=lambda t: t['Path'].str.replace(f'{data.parent}/', ''))
    found = found.set_index('Path').loc[wanted['Path'], LABEL]
    np.testing.assert_allclose(found, wanted[LABEL], atol=1e-6)
    file = data.parent / wanted['Path'][0]
    capsys.readouterr()
    assert run_script('predict', file, '--output', tmp_path / 'one.csv', *words) == 0
    told = capsys.readouterr().err
    assert abs(pd.read_csv(tmp_path / 'one.csv')[LABEL][0] - wanted[LABEL][0]) > 1e-6
    assert "MODEL.HEAD 'patient': the age of no image is known" in told


def test_what_reads_images_alone_refuses_the_head_in_a_sentence(data, probe, tmp_path, capsys):
    checkpoint = probe / 'ckpt_best.pth'
    words = [checkpoint, '--to', 'torch_export', '--output', tmp_path / 'm.pt2']
    assert run_script('export', *words) == 2
    assert 'an export reads images alone' in capsys.readouterr().err
    words = ['--checkpoint', checkpoint, '--output', tmp_path / 'p.csv', '--maps', LABEL]
    assert run_script('predict', data / 'valid', *words) == 2
    assert 'reads more than the image' in capsys.readouterr().err
    assert 'no saliency maps' in (probe / 'report.html').read_text()
    with pytest.raises(ValueError, match='images alone are given'):
        PatientHead(4, 2, inputs=['age'])(torch.zeros(1, 4))


@pytest.mark.parametrize(
    ('options', 'parts'),
    [
        (['MODEL.PATIENT.INPUTS', "['weight']"], ['MODEL.PATIENT.INPUTS', 'number of the study']),
        (['MODEL.PATIENT.INPUTS', '[]'], ['MODEL.PATIENT.INPUTS']),
        (['MODEL.PATIENT.INPUTS', "['age', 'age']"], ['MODEL.PATIENT.INPUTS']),
        (['AUG.MIXUP', '0.8'], ['AUG.MIXUP', '0 with']),
        (['AUG.CUTMIX', '0.8'], ['AUG.CUTMIX', '0 with']),
        (['FINETUNE.MODE', 'knn'], ['MODEL.HEAD', "'linear' with"]),
    ],
)
def test_wrong_options_are_refused(options, parts, data, probe, tmp_path, refused) -> None:
    argv = arguments(probe.parents[1] / 'finetune.yaml', data, tmp_path, '--opts', *options)
    if options[0].startswith('AUG'):
        argv += ['FINETUNE.MODE', 'full']
    refused('finetune', argv, *parts)


def test_training_reads_the_numbers_and_a_killed_run_resumes_to_the_same_weights(
    data: Path, tmp_path: Path
) -> None:
    whole = finished_run('finetune', data, tmp_path / 'whole', model=VIT | HEAD)
    state = read_checkpoint(whole / 'ckpt_epoch_1.pth')['model']
    assert state['head.mean'].shape == (8,) and state['head.mean'][6] > 20, 'years'
    assert state['head.weight'][:, -8:].abs().sum() > 0
    cfg = tmp_path / 'whole' / 'finetune.yaml'
    argv = arguments(cfg, data, tmp_path / 'again')
    killed_in_step_7('finetune', argv)
    assert run_main('finetune', argv) == 0
    again = read_checkpoint(tmp_path / 'again/tiny_finetune/default/ckpt_epoch_1.pth')['model']
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)


def test_the_inputs_choose_columns_of_the_metadata_baseline() -> None:
    config = default_config()
    assert config.MODEL.PATIENT.INPUTS == ['age', 'sex', 'view']
    assert columns_of(['age', 'sex', 'view']) == [*range(8)] and columns_of(['sex']) == [4, 5]
    table = pd.DataFrame({'view': ['frontal'], 'ap_pa': ['PA'], 'sex': ['Male'], 'age': [30.0]})
    (found,) = metadata_features(table.assign(study='study3'))
    assert found.tolist() == [1, 0, 0, 1, 1, 0, 30, 0, 3, 0]

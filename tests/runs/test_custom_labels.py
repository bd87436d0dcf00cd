"""DATA.LABELS: runs that learn columns of the CSV files in place of the 14 observations."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import LABELS_DECIDE, VIT, arguments, finished_run, run_script, tiny_config
from xray_splits import LOGGER, write_split

from data.packing import Settings, pack, read_source
from data.tables.labels import LABELS, training_targets
from models.weights.export import load_trained_model
from utils import trained_config

pytestmark = pytest.mark.usefixtures('few_cases_select')
FINE = VIT | {'VIT': VIT['VIT'] | {'PATCH_SIZE': 4}}  # 8 x 8 cells, enough for maps
OWN = ['Pneumonia', 'Heart/size', 'No Finding']
OPTS = ['DATA.LABELS', str(OWN), 'DATA.UNCERTAIN_BY_LABEL', "{'Heart/size': 'ones_smooth'}"]


@pytest.fixture(scope='module')
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with three columns of labels, one of which CheXpert does not have."""
    root = tmp_path_factory.mktemp('own')
    for split, patients in (('train', 20), ('valid', 6)):
        write_split(root, split, patients)
        table = pd.read_csv(root / f'{split}.csv').rename(columns={'Cardiomegaly': 'Heart/size'})
        table['No Finding'] = (table.index % 3 == 0).astype(float)
        table[[*table.columns[:5], *OWN]].to_csv(root / f'{split}.csv', index=False)
    return root


@pytest.fixture(scope='module')
def fine_tuned(own_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on a packed store."""
    folder = tmp_path_factory.mktemp('runs')
    pack(read_source(own_data), folder / 'store', Settings(size=32), workers=1)
    return run(folder / 'store', folder, 'full', 'TRAIN.EPOCHS', '1')


def run(data: Path, output: Path, mode: str, *opts: str) -> Path:
    given = {'TRAIN_IMAGES': 0, 'VIEWS': 'all'}
    words = ['--opts', *OPTS, 'FINETUNE.MODE', mode, 'EVAL.RESAMPLES', '0', 'REPORT.MAPS', '1']
    sections = {'DATA': given, 'REPORT': {'WRITE': True}, 'MODEL': LABELS_DECIDE}
    return finished_run('finetune', data, output, *words, *opts, model=FINE, **sections)


def test_a_run_learns_scores_and_reports_these_labels(fine_tuned: Path) -> None:
    config = trained_config(fine_tuned / 'ckpt_best.pth')
    assert (config.DATA.LABELS, config.MODEL.NUM_CLASSES) == (OWN, 3)
    scores = json.loads((fine_tuned / 'scores.json').read_text())['valid']['selected']
    assert list(scores['auroc']) == OWN
    assert 'mean_of_five' not in scores
    assert scores['mean_of_defined'] == pytest.approx(np.mean([*scores['auroc'].values()]))
    report = json.loads((fine_tuned / 'report.json').read_text())
    assert [entry['label'] for entry in report['sets'][0]['labels']] == OWN
    assert [*(fine_tuned / 'maps').glob('heart_size_*.png')]
    assert report['headline']['score']['value'] == pytest.approx(scores['mean_of_defined'])
    assert list(pd.read_csv(fine_tuned / 'predictions_valid.csv')) == ['Path', *OWN]
    metrics = [json.loads(line) for line in (fine_tuned / 'metrics.jsonl').open()]
    assert metrics[-1]['score'] == metrics[-1]['holdout_mean_of_defined']


def test_scripts_take_the_labels_from_the_checkpoint_and_the_predictions(
    fine_tuned: Path, own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkpoint = str(fine_tuned / 'ckpt_best.pth')
    assert load_trained_model(checkpoint, LOGGER).outputs == tuple(OWN)
    words = ['--checkpoint', checkpoint, '--output', tmp_path / 'p.csv', '--num-workers', 0]
    assert run_script('predict', *words, own_data / 'valid') == 0
    assert list(pd.read_csv(tmp_path / 'p.csv')) == ['Path', *OWN]
    scored = fine_tuned / 'predictions_valid.csv'
    words = ['--labels', own_data / 'valid.csv', '--output', tmp_path, '--resamples', 0]
    assert run_script('evaluate', '--predictions', scored, *words) == 0
    wanted = json.loads((fine_tuned / 'report.json').read_text())['headline']['score']['value']
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['headline']['score']['value'] == pytest.approx(wanted)
    # Predictions of another program have no JSON file.
    alone = tmp_path / 'alone.csv'
    alone.write_bytes(scored.read_bytes())
    words += ['--predictions', alone, '--label-names', 'Heart/size']
    assert run_script('evaluate', *words) == 0
    report = json.loads((tmp_path / 'report.json').read_text())
    assert [entry['label'] for entry in report['sets'][0]['labels']] == ['Heart/size']


def test_a_run_is_neither_evaluated_nor_resumed_with_other_labels(
    fine_tuned: Path, own_data: Path, tmp_path: Path, refused
) -> None:
    """Also with more epochs, and from a checkpoint of another folder."""
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', FINE, DATA={'VIEWS': 'all'})
    opts = ['--opts', 'DATA.LABELS', str(OWN[::-1]), 'MODEL.NUM_CLASSES', '3']
    longer = [*opts, 'TRAIN.EPOCHS', '9']
    words = ['--eval', '--resume', str(fine_tuned / 'ckpt_best.pth'), *opts]
    argv = arguments(cfg, own_data, tmp_path / 'scored', *words)
    refused('finetune', argv, 'ckpt_best.pth', 'DATA.LABELS')
    copy = tmp_path / 'out' / fine_tuned.parent.name / fine_tuned.name
    shutil.copytree(fine_tuned, copy)
    before = (copy / 'predictions_valid.csv').read_bytes()
    words = ['--tag', fine_tuned.name, *longer]
    refused('finetune', arguments(cfg, own_data, tmp_path / 'out', *words), 'DATA.LABELS')
    assert (copy / 'predictions_valid.csv').read_bytes() == before
    words = ['--resume', str(next(fine_tuned.glob('ckpt_epoch_*.pth'))), *longer]
    refused('finetune', arguments(cfg, own_data, tmp_path / 'other', *words), 'DATA.LABELS')


def test_pre_training_needs_no_label_columns(own_data: Path, tmp_path: Path) -> None:
    given = {'TRAIN': {'EPOCHS': 1}, 'DATA': {'TRAIN_IMAGES': 0}}
    assert finished_run('simmim', own_data, tmp_path / 'out', model=VIT, **given)


def test_smooth_targets_of_a_label_do_not_depend_on_the_other_labels() -> None:
    def targets(*names: str) -> np.ndarray:
        cells, policies = np.full((5, len(names)), -1.0, np.float32), ['ones_smooth'] * len(names)
        options = {'blank': 'negative', 'rows': np.arange(5), 'seed': 3}
        return training_targets(cells, policies, names=names, **options)

    alone, pair, among_all = targets('Edema'), targets('Heart/size', 'Edema'), targets(*LABELS)
    np.testing.assert_array_equal(alone[:, 0], pair[:, 1])
    np.testing.assert_array_equal(alone[:, 0], among_all[:, 5])
    assert (pair[:, 0] != pair[:, 1]).all()

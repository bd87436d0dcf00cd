"""Runs that learn one class per image, or grades, with their reports, predictions and exports."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import LABELS_DECIDE, VIT, finished_run, run_script
from xray_splits import LOGGER, write_split

from models.weights.export import facts, load_trained_model

pytestmark = pytest.mark.usefixtures('few_cases_select')
NAMES = ('Normal', 'Pneumonia', 'Covid')
STEPS = [f'Oedema from {k}' for k in (1, 2, 3)]
FINE = VIT | {'VIT': VIT['VIT'] | {'PATCH_SIZE': 4}}  # 8 x 8 cells, enough for maps


@pytest.fixture(scope='module')
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('classes')
    for split, patients in (('train', 24), ('valid', 12)):
        write_split(root, split, patients)
        table = pd.read_csv(root / f'{split}.csv')
        patient = table['Path'].str.extract(r'patient(\d+)')[0].astype(int)
        for k, name in enumerate(NAMES):
            table[name] = (patient % 3 == k).astype(int)
        for k in range(len(STEPS) + 1):
            table[f'Oedema {k}'] = (patient % (len(STEPS) + 1) == k).astype(int)
        table.to_csv(root / f'{split}.csv', index=False)
    return root


SINGLE = ['DATA.TASK', 'single_label', 'DATA.LABELS', str([*NAMES])]


def run(data: Path, folder: Path, opts: list[str], mode: str = 'full', *more: str) -> Path:
    words = [*more, '--opts', *opts, 'FINETUNE.MODE', mode, 'EVAL.RESAMPLES', '20']
    words += ['REPORT.MAPS', '1', 'TRAIN.EPOCHS', '1']
    given = {'TRAIN_IMAGES': 0, 'VIEWS': 'all'}
    sections = {'DATA': given, 'REPORT': {'WRITE': True}, 'MODEL': LABELS_DECIDE}
    return finished_run('finetune', data, folder, *words, model=FINE, **sections)


def evaluated(run_folder: Path, data: Path, output: Path, *words: str) -> dict:
    """The report of scripts/evaluate.py on the predictions of a run."""
    files = ['--predictions', run_folder / 'predictions_valid.csv', '--labels', data / 'valid.csv']
    options = ['--output', output, '--level', 'study', '--resamples', '20', *words]
    assert run_script('evaluate', *files, *options) == 0
    return json.loads((output / 'report.json').read_text())


SLOW = [pytest.param(mode, marks=pytest.mark.slow) for mode in ('linear_probe', 'pixels')]


@pytest.mark.parametrize('mode', ['full', 'knn', *SLOW])
def test_a_run_learns_classes(labelled: Path, tmp_path: Path, mode: str, capsys) -> None:
    folder = run(labelled, tmp_path, SINGLE, mode)
    table = pd.read_csv(folder / 'predictions_valid.csv', index_col='Path')
    assert table.columns.tolist() == [*NAMES]
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-6)
    scores = json.loads((folder / 'scores.json').read_text())['valid']
    assert {'accuracy', 'balanced_accuracy', 'macro_f1', 'auroc'} <= {*scores['selected']}
    report = json.loads((folder / 'report.json').read_text())
    classes = report['sets'][-1]['classes']
    assert np.sum(classes['confusion']) == classes['n'] == scores['selected']['rows']
    assert classes['scores']['accuracy']['value'] == scores['selected']['accuracy']
    assert 'Confusion matrix' in (folder / 'report.html').read_text()
    again = evaluated(folder, labelled, tmp_path / 'again', '--task', 'single_label')
    assert again['sets'][0]['classes']['confusion'] == classes['confusion']
    assert 'Balanced accuracy' in capsys.readouterr().out


def test_a_new_task_is_one_file(labelled: Path, tmp_path: Path, add_part, capsys) -> None:
    add_part('DATA.TASK', 'grades', 'grades')  # tests/helpers/grades.py
    folder = run(labelled, tmp_path, ['DATA.TASK', 'grades', 'DATA.LABELS', "['Oedema']"])
    table = pd.read_csv(folder / 'predictions_valid.csv')[STEPS]
    assert (np.diff(table, axis=1) <= 0).all()
    scores = json.loads((folder / 'scores.json').read_text())['valid']
    report = json.loads((folder / 'report.json').read_text())
    assert [part['label'] for part in report['sets'][-1]['labels']] == STEPS
    options = ['--task', 'grades', '--label-names', 'Oedema']
    again = evaluated(folder, labelled, tmp_path / 'again', *options)['sets'][0]
    areas = {part['label']: part['scores']['auroc']['value'] for part in again['labels']}
    assert areas == pytest.approx(scores['selected']['auroc'])
    source = load_trained_model(folder / 'ckpt_best.pth', LOGGER)
    assert source.outputs == tuple(STEPS) and facts(source)['activation'] == 'none'
    words = [labelled / 'valid', '--checkpoint', folder / 'ckpt_best.pth', '--num-workers', 0]
    assert run_script('predict', *words, '--output', tmp_path / 'p.csv') == 0
    assert (np.diff(pd.read_csv(tmp_path / 'p.csv')[STEPS], axis=1) <= 0).all()

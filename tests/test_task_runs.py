"""Runs that learn one class per image, or grades, with their reports, predictions and exports."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from grades import GRADES, STEPS, add
from tiny import LABELS_DECIDE, VIT, arguments, finished_run, run_script, tiny_config
from xray_splits import LOGGER, write_split

from data.tasks import TASKS
from evaluation.families import FAMILIES
from models.export import facts, load_source
from models.outputs import OUTPUTS

pytestmark = pytest.mark.usefixtures('few_cases_select')
NAMES = ('Normal', 'Pneumonia', 'Covid')
FINE = VIT | {'VIT': VIT['VIT'] | {'PATCH_SIZE': 4}}  # 8 x 8 cells, enough for maps


@pytest.fixture(scope='module')
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a class and a grade for each image."""
    root = tmp_path_factory.mktemp('classes')
    for split, patients in (('train', 24), ('valid', 12)):
        write_split(root, split, patients)
        table = pd.read_csv(root / f'{split}.csv')
        patient = table['Path'].str.extract(r'patient(\d+)')[0].astype(int)
        table['Finding'] = [NAMES[i % 3] for i in patient]
        table['Oedema'] = [i % (STEPS + 1) for i in patient]
        table.to_csv(root / f'{split}.csv', index=False)
    return root


SINGLE = ['DATA.TASK', 'single_label', 'DATA.LABELS', str([*NAMES]), 'DATA.LABEL_COLUMN', 'Finding']


def run(data: Path, folder: Path, opts: list[str], mode: str = 'full', *more: str) -> Path:
    words = [*more, '--opts', *opts, 'FINETUNE.MODE', mode, 'EVAL.RESAMPLES', '20']
    words += ['REPORT.MAPS', '1', 'TRAIN.EPOCHS', '1', 'REPORT.PIXEL_FLOOR', 'True']
    given = {'TRAIN_IMAGES': 0, 'VIEWS': 'all'}
    sections = {'DATA': given, 'REPORT': {'WRITE': True}, 'MODEL': LABELS_DECIDE}
    return finished_run('finetune', data, folder, *words, model=FINE, **sections)


def evaluated(run_folder: Path, data: Path, output: Path, *words: str) -> dict:
    """The report of scripts/evaluate.py on the predictions of a run."""
    files = ['--predictions', run_folder / 'predictions_valid.csv', '--labels', data / 'valid.csv']
    options = ['--output', output, '--level', 'study', '--resamples', '20', *words]
    assert run_script('evaluate', *files, *options) == 0
    return json.loads((output / 'report.json').read_text())


@pytest.mark.parametrize('mode', ['full', 'linear_probe', 'knn'])
def test_a_run_learns_classes(labelled: Path, tmp_path: Path, mode: str, capsys) -> None:
    folder = run(labelled, tmp_path, SINGLE, mode)
    table = pd.read_csv(folder / 'predictions_valid.csv', index_col='Path')
    assert table.columns.tolist() == [*NAMES]
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-6)
    scores = json.loads((folder / 'scores.json').read_text())['valid']
    assert {'accuracy', 'balanced_accuracy', 'macro_f1', 'auroc'} <= {*scores['selected']}
    assert {'pixel_floor'} <= {*scores}
    report = json.loads((folder / 'report.json').read_text())
    classes = report['sets'][-1]['classes']
    assert np.sum(classes['confusion']) == classes['n'] == scores['selected']['rows']
    assert classes['scores']['accuracy']['value'] == scores['selected']['accuracy']
    assert 'Confusion matrix' in (folder / 'report.html').read_text()
    options = ['--task', 'single_label', '--label-column', 'Finding']
    again = evaluated(folder, labelled, tmp_path / 'again', *options)
    assert again['sets'][0]['classes']['confusion'] == classes['confusion']
    assert 'Balanced accuracy' in capsys.readouterr().out


def test_each_kind_has_outputs_and_a_family() -> None:
    assert {task.kind for task in TASKS.values()} == {*OUTPUTS} == {*FAMILIES}


@pytest.mark.parametrize('mode', ['full', 'linear_probe'])
def test_a_new_kind_needs_a_task_outputs_and_a_family(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, capsys
) -> None:
    """Runs, probes, the pixel floor, the report, predictions, and exports know it."""
    steps = [f'Oedema from {k}' for k in range(1, STEPS + 1)]
    with monkeypatch.context() as patch:
        add(patch)
        folder = run(labelled, tmp_path, ['DATA.TASK', GRADES, 'DATA.LABELS', "['Oedema']"], mode)
        table = pd.read_csv(folder / 'predictions_valid.csv')[steps]
        assert (np.diff(table, axis=1) <= 0).all()
        scores = json.loads((folder / 'scores.json').read_text())['valid']
        assert {*scores['pixel_floor']['auroc']} == {*steps}
        report = json.loads((folder / 'report.json').read_text())
        assert [part['label'] for part in report['sets'][-1]['labels']] == steps
        if mode == 'linear_probe':
            return
        source = load_source(folder / 'ckpt_best.pth', LOGGER)
        assert facts(source)['activation'] == 'none'
        words = [labelled / 'valid', '--checkpoint', folder / 'ckpt_best.pth', '--num-workers', 0]
        assert run_script('predict', *words, '--output', tmp_path / 'p.csv') == 0
        assert (np.diff(pd.read_csv(tmp_path / 'p.csv')[steps], axis=1) <= 0).all()
    capsys.readouterr()
    allowed = "DATA.TASK must be one of ['observations', 'any_finding', "
    assert run_script('predict', *words, '--output', tmp_path / 'q.csv') == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and allowed in error and f'got {GRADES!r}' in error
    assert 'damaged' not in error and 'ckpt_best.pth' in error


def test_data_with_several_classes_per_image_are_an_error_of_the_check(labelled, tmp_path, refused):
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', FINE, MODEL=LABELS_DECIDE)
    names = ['DATA.TASK', 'single_label', 'DATA.LABELS', "['Edema', 'Pneumonia']"]
    table = pd.read_csv(labelled / 'train.csv').assign(Edema=1.0, Pneumonia=1.0)
    table.to_csv(labelled / 'both.csv', index=False)
    opts = ['--opts', *names, 'DATA.TRAIN_CSV', 'both.csv']
    refused('finetune', arguments(cfg, labelled, tmp_path, *opts), 'both.csv', 'Edema, Pneumonia')


def test_studies_with_several_classes_are_counted(labelled, tmp_path) -> None:
    table = pd.read_csv(labelled / 'valid.csv')
    table['Finding'] = [NAMES[i % 2] for i in range(len(table))]
    table.to_csv(labelled / 'mixed.csv', index=False)
    folder = run(labelled, tmp_path, [*SINGLE, 'DATA.VALID_CSV', 'mixed.csv'])
    log = ' '.join((folder / 'log_rank0.txt').read_text().split())
    assert 'valid: 12 of 12 studies have images of several classes' in log
    report = json.loads((folder / 'report.json').read_text())
    assert report['sets'][-1]['classes']['n'] == 0

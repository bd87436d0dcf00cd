"""Data given as a training and a test file: every command works without valid.csv."""

import json
from pathlib import Path

import pandas as pd
import pytest
from mistakes import linked, results_in
from tiny import VIT, arguments, finished_run, run_script

from engine.run_record import read_record

pytestmark = pytest.mark.usefixtures('few_cases_select')

NAMES = ['DATA.TRAIN_CSV', 'train_split.csv', 'DATA.TEST_CSV', 'test_split.csv']
TRAIN = {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}


@pytest.fixture
def two_splits(phantom: Path, tmp_path: Path) -> Path:
    folder = linked(phantom, tmp_path / phantom.name)
    for split in ('train', 'test'):
        (folder / f'{split}.csv').rename(folder / f'{split}_split.csv')
    (folder / 'valid.csv').unlink()
    return folder


def test_held_out_patients_select_and_the_test_file_is_scored(two_splits, tmp_path, refused):
    options = {'model': VIT, 'TRAIN': TRAIN}
    learned = finished_run('simmim', two_splits, tmp_path / 'out', '--opts', *NAMES, **options)
    options |= {'REPORT': {'WRITE': True, 'MAPS': 0}, 'EVAL': {'RESAMPLES': 20}}
    words = ['--pretrained', str(learned / 'ckpt_epoch_0.pth'), '--opts', *NAMES]
    folder = finished_run('finetune', two_splits, tmp_path / 'out', *words, **options)
    scores = json.loads((folder / 'scores.json').read_text())
    assert {name: set(found) for name, found in scores.items()} == {'test': {'last', 'selected'}}
    assert [part['name'] for part in json.loads((folder / 'report.json').read_text())['sets']] == [
        'test'
    ]
    assert '(DATA.VALID_CSV valid.csv)' in (folder / 'log_rank0.txt').read_text()
    files = read_record(folder)['data']['files']
    assert set(files) == {'train_split.csv', 'test_split.csv'}
    tables = {split: pd.read_csv(two_splits / f'{split}_split.csv') for split in ('train', 'test')}
    frontal = tables['test'][tables['test']['Frontal/Lateral'] == 'Frontal']
    predicted = {
        split: pd.read_csv(folder / f'predictions_{split}.csv')['Path'].tolist()
        for split in ('test', 'holdout')
    }
    assert predicted['test'] == frontal['Path'].tolist()
    assert predicted['holdout'] and set(predicted['holdout']) < set(tables['train']['Path'])
    words = ['--data-path', two_splits, '--output', tmp_path / 'problems.csv', '--workers', '1']
    assert run_script('check_data', *words, '--opts', *NAMES) == 0
    cfg, more = tmp_path / 'out' / 'finetune.yaml', ['EVAL.SELECT_ON', 'valid']
    refused('finetune', arguments(cfg, two_splits, tmp_path, '--opts', *NAMES, *more), 'valid.csv')
    for split in ('valid', 'test'):  # a name that was chosen may be misspelt
        misspelt = [*NAMES, f'DATA.{split.upper()}_CSV', 'other.csv']
        argv = arguments(cfg, two_splits, tmp_path / 'none', '--opts', *misspelt)
        refused('finetune', argv, two_splits / 'other.csv', 'DATA.DATA_PATH', 'DATA.*_CSV')
    (two_splits / 'test_split.csv').unlink()
    argv = arguments(cfg, two_splits, tmp_path / 'none', '--opts', *NAMES[:2])
    refused('finetune', argv, two_splits / 'valid.csv', 'DATA.DATA_PATH', 'DATA.*_CSV')
    assert not results_in(tmp_path / 'none')

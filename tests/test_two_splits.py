"""Data given as a training and a test file: every command works without valid.csv."""

import json
import runpy
from pathlib import Path

import pandas as pd
import pytest
from mistakes import linked
from tiny import ROOT, VIT, arguments, run_folder, run_main, tiny_config

from engine.run_record import read_record

NAMES = ['DATA.TRAIN_CSV', 'train_split.csv', 'DATA.TEST_CSV', 'test_split.csv']
TRAIN = {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}


@pytest.fixture
def two_splits(phantom: Path, tmp_path: Path) -> Path:
    folder = linked(phantom, tmp_path / phantom.name)
    for split in ('train', 'test'):
        (folder / f'{split}.csv').rename(folder / f'{split}_split.csv')
    (folder / 'valid.csv').unlink()
    return folder


def test_held_out_patients_select_and_the_test_file_is_scored(
    two_splits: Path, tmp_path: Path, refused
) -> None:
    words = [tmp_path / 'out', '--opts', *NAMES]
    cfg = tiny_config(tmp_path / 'p.yaml', 'simmim', VIT, TRAIN=TRAIN)
    assert run_main('simmim', arguments(cfg, two_splits, *words)) == 0
    sections = {'TRAIN': TRAIN, 'REPORT': {'WRITE': True, 'MAPS': 0}, 'EVAL': {'RESAMPLES': 20}}
    cfg = tiny_config(tmp_path / 'f.yaml', 'finetune', VIT, **sections)
    pretrained = run_folder(tmp_path / 'out', 'simmim') / 'ckpt_epoch_0.pth'
    more = ['--pretrained', str(pretrained)]
    assert run_main('finetune', arguments(cfg, two_splits, words[0], *more, *words[1:])) == 0
    folder = run_folder(tmp_path / 'out', 'finetune')
    scores = json.loads((folder / 'scores.json').read_text())
    assert {name: set(found) for name, found in scores.items()} == {'test': {'last', 'selected'}}
    assert [part['name'] for part in json.loads((folder / 'report.json').read_text())['sets']] == [
        'test'
    ]
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
    check = runpy.run_path(str(ROOT / 'scripts/check_data.py'))
    words = ['--data-path', two_splits, '--output', tmp_path / 'problems.csv', '--workers', '1']
    assert check['main'](check['parse_args']([*map(str, words), '--opts', *NAMES])) == 0
    more = ['EVAL.SELECT_ON', 'valid']
    refused('finetune', arguments(cfg, two_splits, tmp_path, '--opts', *NAMES, *more), 'valid.csv')
    (two_splits / 'test_split.csv').unlink()
    refused('finetune', arguments(cfg, two_splits, tmp_path, '--opts', *NAMES), 'valid.csv')


def test_the_check_of_a_cross_validation_needs_no_valid_csv(
    two_splits: Path, tmp_path: Path
) -> None:
    words = ['--data-path', two_splits, '--output', tmp_path / 'problems.csv', '--workers', '1']
    check = runpy.run_path(str(ROOT / 'scripts/check_data.py'))
    fold = ['--opts', *NAMES[:2], 'DATA.FOLD', '0/5']
    assert check['main'](check['parse_args']([*map(str, words), *fold])) == 0

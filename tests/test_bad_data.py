"""Data that cannot be used: exit code 2, one clear line, nothing half-written."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mistakes import config_of, edit, linked, results_in
from tiny import arguments

from config import default_config
from models import build_model


def replace(path: Path, contents: bytes) -> None:
    path.unlink()
    path.write_bytes(contents)


@pytest.fixture
def data(eight: Path, tmp_path: Path) -> Path:
    """A copy of the eight images' folder that a test may spoil."""
    return linked(eight, tmp_path / 'data')


def image_of(data: Path, row: int, name: str = 'train.csv') -> Path:
    """The image that this row of the file names."""
    with (data / name).open(newline='') as file:
        return data / list(csv.reader(file))[row - 1][0].partition('/')[2]


# Images


SPOILED = {'cut to a half': lambda image: image[: len(image) // 2], 'empty': lambda image: b''}


@pytest.mark.parametrize('kind', SPOILED)
def test_an_unreadable_training_image(kind, data, tmp_path, refused):
    image = image_of(data, row=6)
    replace(image, SPOILED[kind](image.read_bytes()))
    argv = arguments(config_of(tmp_path, 'simmim'), data, tmp_path / 'out')
    refused('simmim', argv, data / 'train.csv', 'row 6 ', image)
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('workers', [0, 1])
def test_a_missing_training_image(workers, data, tmp_path, refused):
    image = image_of(data, row=4)
    image.unlink()
    cfg = config_of(tmp_path, 'simmim', NUM_WORKERS=workers)
    refused('simmim', arguments(cfg, data, tmp_path / 'out'), data / 'train.csv', 'row 4 ', image)
    assert not results_in(tmp_path / 'out')


def test_an_unreadable_image_of_a_split_that_is_scored(phantom, tmp_path, refused):
    """With --eval nothing is scored in part."""
    data, output = linked(phantom, tmp_path / 'data'), tmp_path / 'out'
    cfg = config_of(tmp_path, 'finetune', NUM_WORKERS=1)
    checkpoint = save_untrained(cfg, tmp_path / 'weights.pth')
    image = image_of(data, row=4, name='valid.csv')
    replace(image, image.read_bytes()[:400])
    argv = arguments(cfg, data, output, '--eval', '--pretrained', str(checkpoint))
    refused('finetune', argv, data / 'valid.csv', 'row 4 ', image)
    assert not results_in(output)


def save_untrained(cfg: Path, path: Path) -> Path:
    config = default_config()
    config.merge_from_file(cfg)
    torch.save({'model': build_model(config, is_pretrain=False).state_dict()}, path)
    return path


# CSV files


def set_cell(row: int, column: str, value: str) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        rows[row - 1][rows[0].index(column)] = value

    return change


ABOVE = 'CheXpert-phantom/train/../../patient00001/study1/view1_frontal.jpg'


def drop_column(name: str) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        position = rows[0].index(name)
        for row in rows:
            del row[position]

    return change


# What is changed, and what the error names.
BAD_ROWS = {
    'label': (set_cell(5, 'Edema', '2.0'), 'row 5 ', "'Edema'", "'2.0'"),
    'no label column': (drop_column('Edema'), 'Edema'),
    'short row': (lambda rows: rows[6].pop(), 'row 7 '),
    'path': (set_cell(6, 'Path', ABOVE), 'row 6 ', ABOVE),
}


@pytest.mark.parametrize('kind', BAD_ROWS)
def test_a_bad_training_csv(kind, data, tmp_path, refused):
    change, *parts = BAD_ROWS[kind]
    edit(data / 'train.csv', change)
    output = tmp_path / 'out'
    argv = arguments(config_of(tmp_path, 'simmim'), data, output)
    refused('simmim', argv, data / 'train.csv', *parts)
    assert not results_in(output)


@pytest.mark.parametrize('kind', ['label'])
def test_a_bad_validation_csv_is_found_before_training(kind, phantom, tmp_path, refused):
    data = linked(phantom, tmp_path / 'data')
    change, *parts = BAD_ROWS[kind]
    edit(data / 'valid.csv', lambda rows: rows.__setitem__(slice(9, None), []))
    edit(data / 'valid.csv', change)
    argv = arguments(config_of(tmp_path, 'finetune'), data, tmp_path / 'out')
    refused('finetune', argv, data / 'valid.csv', *parts)
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('name', ['train.csv', 'valid.csv'])
def test_no_csv(name, phantom, tmp_path, refused):
    data = linked(phantom, tmp_path / 'data')
    (data / name).unlink()
    argv = arguments(config_of(tmp_path, 'finetune'), data, tmp_path / 'out')
    refused('finetune', argv, data / name, 'DATA.DATA_PATH', 'DATA.*_CSV')
    assert not results_in(tmp_path / 'out')


# Splits and folders


EMPTY = {
    'views': (('DATA.VIEWS', 'lateral'), 'lateral', 'DATA.VIEWS'),
    'hold-out': (('DATA.HOLDOUT_FRACTION', '0.99'), 'DATA.HOLDOUT_FRACTION'),
    'batch': (
        ('DATA.BATCH_SIZE', '9'),
        'DATA.BATCH_SIZE',
    ),
}


@pytest.mark.parametrize('kind', EMPTY)
def test_a_training_split_that_is_empty_or_too_small(kind, eight, tmp_path, refused):
    opts, *parts = EMPTY[kind]
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out', '--opts', *opts)
    refused('simmim', argv, *parts)
    assert not results_in(tmp_path / 'out')


def test_a_data_path_that_does_not_exist(tmp_path, refused):
    argv = arguments(config_of(tmp_path, 'simmim'), tmp_path / 'nowhere', tmp_path / 'out')
    refused('simmim', argv, tmp_path / 'nowhere', 'DATA.DATA_PATH')
    assert not results_in(tmp_path / 'out')


def test_no_data_path(eight, tmp_path, refused, monkeypatch):
    """The current folder is not meant: with a folder data set, any image in it would count."""
    monkeypatch.chdir(eight / 'train')
    argv = ['--cfg', str(config_of(tmp_path, 'simmim', DATASET='folder'))]
    refused('simmim', [*argv, '--output', str(tmp_path / 'out')], 'DATA.DATA_PATH')
    assert not results_in(tmp_path / 'out')


def test_a_folder_data_set_without_images(tmp_path, refused):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'notes.txt').write_text('none here')
    cfg = config_of(tmp_path, 'simmim', DATASET='folder')
    argv = arguments(cfg, tmp_path / 'data', tmp_path / 'out')
    refused('simmim', argv, tmp_path / 'data')

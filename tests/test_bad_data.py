"""Data that cannot be used: exit code 2, one clear line, nothing half-written."""

import csv
import os
from pathlib import Path

import pytest
import torch
from mistakes import config_of, edit, linked, results_in
from tiny import arguments

from config import default_config
from data.records import check_dataset
from data.store import STORE_FILE
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


def test_an_unreadable_training_image(data, tmp_path, refused):
    image = image_of(data, row=6)
    replace(image, image.read_bytes()[:300])
    argv = arguments(config_of(tmp_path, 'simmim'), data, tmp_path / 'out')
    refused('simmim', argv, data / 'train.csv', 'row 6 ', image)
    assert not results_in(tmp_path / 'out')


def test_a_pipe_in_place_of_the_first_training_image(data, tmp_path, refused):
    image = image_of(data, row=2)
    image.unlink()
    os.mkfifo(image)
    argv = arguments(config_of(tmp_path, 'simmim'), data, tmp_path / 'out')
    refused('simmim', argv, data / 'train.csv', 'row 2 ', image)


def test_a_missing_training_image(data, tmp_path, refused):
    image = image_of(data, row=4)
    image.unlink()
    cfg = config_of(tmp_path, 'simmim', NUM_WORKERS=1)
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


ABOVE = 'CheXpert-phantom/train/../../patient00001/study1/view1_frontal.jpg'


BAD_CELLS = [('finetune', 5, 'Edema', '2.0'), ('simmim', 6, 'Path', ABOVE)]


@pytest.mark.parametrize('stage, row, column, value', BAD_CELLS)
def test_a_bad_training_csv(stage, row, column, value, data, tmp_path, refused):
    edit(data / 'train.csv', lambda rows: rows[row - 1].__setitem__(rows[0].index(column), value))
    argv = arguments(config_of(tmp_path, stage), data, tmp_path / 'out')
    refused(stage, argv, data / 'train.csv', f'row {row} ', repr(column), repr(value))
    assert not results_in(tmp_path / 'out')


def test_a_missing_validation_csv_is_found_before_training(phantom, tmp_path, refused):
    data = linked(phantom, tmp_path / 'data')
    (data / 'valid.csv').unlink()
    argv = arguments(config_of(tmp_path, 'finetune'), data, tmp_path / 'out')
    refused('finetune', argv, data / 'valid.csv', 'DATA.DATA_PATH', 'DATA.*_CSV')
    assert not results_in(tmp_path / 'out')


# Splits and folders


def test_a_batch_that_is_larger_than_the_training_split(eight, tmp_path, refused):
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    refused('simmim', [*argv, '--opts', 'DATA.BATCH_SIZE', '9'], 'DATA.BATCH_SIZE')
    assert not results_in(tmp_path / 'out')


def test_no_data_path(eight, tmp_path, refused, monkeypatch):
    """The current folder is not meant: with a folder data set, any image in it would count."""
    monkeypatch.chdir(eight / 'train')
    argv = ['--cfg', str(config_of(tmp_path, 'simmim', DATASET='folder'))]
    refused('simmim', [*argv, '--output', str(tmp_path / 'out')], 'DATA.DATA_PATH')
    assert not results_in(tmp_path / 'out')


def test_a_folder_without_a_csv(eight, tmp_path, refused):
    argv = arguments(config_of(tmp_path, 'simmim'), eight / 'train', tmp_path / 'out')
    refused('simmim', argv, eight / 'train', 'DATA.DATASET folder')


def test_an_output_folder_inside_a_folder_of_images(eight, tmp_path, refused, monkeypatch):
    """By default it is `output` in the current folder."""
    (tmp_path / 'link').symlink_to(eight)
    monkeypatch.chdir(tmp_path / 'link')
    argv = [
        '--cfg',
        str(config_of(tmp_path, 'simmim', DATASET='folder')),
        '--data-path',
        str(eight),
    ]
    refused('simmim', argv, 'OUTPUT output', f'DATA.DATA_PATH {eight}')
    assert not (eight / 'output').exists()


def test_an_output_folder_next_to_or_without_images_is_accepted(phantom, tmp_path):
    packed = tmp_path / 'store'
    packed.mkdir()
    (packed / STORE_FILE).write_text('')
    pairs = {
        'folder': (phantom, f'{phantom}-output'),
        'imagenet': (packed, packed / 'output'),
        'chexpert': (phantom, phantom / 'output'),
    }
    for dataset, (data, output) in pairs.items():
        config = default_config()
        options = ['DATA.DATASET', dataset, 'DATA.DATA_PATH', str(data), 'OUTPUT', str(output)]
        config.merge_from_list(options)
        check_dataset(config, 'simmim')


def test_a_folder_data_set_without_images(tmp_path, refused):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'notes.txt').write_text('none here')
    cfg = config_of(tmp_path, 'simmim', DATASET='folder')
    argv = arguments(cfg, tmp_path / 'data', tmp_path / 'out')
    refused('simmim', argv, tmp_path / 'data')

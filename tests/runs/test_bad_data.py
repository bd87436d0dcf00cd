"""Data that cannot be used: exit code 2, one clear line, nothing half-written."""

import csv
from pathlib import Path

import pytest
from mistakes import config_of, edit, linked, results_in
from tiny import arguments


@pytest.fixture
def data(eight: Path, tmp_path: Path) -> Path:
    """A copy of the eight images' folder that a test may spoil."""
    return linked(eight, tmp_path / 'data')


def image_of(data: Path, row: int) -> Path:
    """The image that this row of train.csv names."""
    with (data / 'train.csv').open(newline='') as file:
        return data / list(csv.reader(file))[row - 1][0].partition('/')[2]


@pytest.mark.parametrize('row, workers, kind', [(6, 0, 'cut off'), (4, 1, 'empty')])
def test_an_unusable_training_image(row, workers, kind, data, tmp_path, refused):
    image = image_of(data, row)
    contents = image.read_bytes()[: 300 if kind == 'cut off' else 0]
    image.unlink()
    image.write_bytes(contents)
    cfg = config_of(tmp_path, 'simmim', NUM_WORKERS=workers)
    argv = arguments(cfg, data, tmp_path / 'out')
    refused('simmim', argv, data / 'train.csv', f'row {row} ', image, 'pack.py --skip-bad')
    assert not results_in(tmp_path / 'out')


def test_a_bad_training_csv(data, tmp_path, refused):
    edit(data / 'train.csv', lambda rows: rows[4].__setitem__(rows[0].index('Edema'), '2.0'))
    argv = arguments(config_of(tmp_path, 'finetune'), data, tmp_path / 'out')
    refused('finetune', argv, data / 'train.csv', 'row 5 ', "'Edema'", "'2.0'")
    assert not results_in(tmp_path / 'out')


def test_no_data_path(eight, tmp_path, refused, monkeypatch):
    """The current folder is not meant: with a folder data set, any image in it would count."""
    monkeypatch.chdir(eight / 'train')
    argv = ['--cfg', str(config_of(tmp_path, 'simmim', DATASET='folder'))]
    refused('simmim', [*argv, '--output', str(tmp_path / 'out')], 'DATA.DATA_PATH')
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize(
    'stage, remedy', [('simmim', 'DATA.DATASET folder'), ('finetune', 'DATA.TRAIN_CSV')]
)
def test_a_folder_without_a_csv_leaves_no_run_folder(stage, remedy, eight, tmp_path, refused):
    argv = arguments(config_of(tmp_path, stage), eight / 'train', tmp_path / 'out')
    refused(stage, argv, eight / 'train', remedy)
    assert not [*tmp_path.glob('out/*/*')]


def test_an_output_folder_inside_a_folder_of_images(eight, tmp_path, refused, monkeypatch):
    """By default it is `output` in the current folder."""
    (tmp_path / 'link').symlink_to(eight)
    monkeypatch.chdir(tmp_path / 'link')
    cfg = config_of(tmp_path, 'simmim', DATASET='folder')
    argv = ['--cfg', str(cfg), '--data-path', str(eight)]
    refused('simmim', argv, 'OUTPUT output', f'DATA.DATA_PATH {eight}')
    assert not (eight / 'output').exists()

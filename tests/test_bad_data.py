"""Data that cannot be used: exit code 2, one clear line, nothing half-written."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mistakes import STAGES, config_of, edit, linked, results_in
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


SPOILED = {
    'cut to a half': (lambda image: image[: len(image) // 2], 'truncated'),
    'its header only': (lambda image: image[:300], ''),
    'text': (lambda image: b'not an image\n', 'cannot identify'),
    'nothing': (lambda image: b'', 'cannot identify'),
}


@pytest.mark.parametrize('kind', SPOILED)
def test_an_unreadable_training_image(kind, data, tmp_path, refused):
    spoil, reason = SPOILED[kind]
    image = image_of(data, row=6)
    replace(image, spoil(image.read_bytes()))
    place = f'{data / "train.csv"}, row 6 (the header is row 1): image {image} cannot be read: '
    argv = arguments(config_of(tmp_path, 'simmim'), data, tmp_path / 'out')
    refused('simmim', argv, place, reason)
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('workers', [0, 1])
def test_a_missing_training_image(workers, data, tmp_path, refused):
    image = image_of(data, row=4)
    image.unlink()
    message = f'{data / "train.csv"}, row 4 (the header is row 1): there is no image {image}'
    cfg = config_of(tmp_path, 'simmim', NUM_WORKERS=workers)
    refused('simmim', arguments(cfg, data, tmp_path / 'out'), message)
    assert not results_in(tmp_path / 'out')


def test_a_root_without_its_first_image(data, tmp_path, refused):
    image = image_of(data, row=2)
    image.unlink()
    argv = arguments(config_of(tmp_path, 'simmim'), data, tmp_path / 'out')
    parts = (data / 'train.csv', f'images not found; tried {image}')
    refused('simmim', argv, *parts, 'DATA.DATA_PATH', 'DATA.IMAGE_SUFFIX')
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_image_of_a_split_that_is_scored(workers, phantom, tmp_path, refused):
    """With --eval nothing is scored in part."""
    data, output = linked(phantom, tmp_path / 'data'), tmp_path / 'out'
    cfg = config_of(tmp_path, 'finetune', NUM_WORKERS=workers)
    checkpoint = save_untrained(cfg, tmp_path / 'weights.pth')
    image = image_of(data, row=4, name='valid.csv')
    replace(image, image.read_bytes()[:400])
    message = f'{data / "valid.csv"}, row 4 (the header is row 1): image {image} cannot be read'
    argv = arguments(cfg, data, output, '--eval', '--pretrained', str(checkpoint))
    refused('finetune', argv, message)
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


def drop_column(name: str) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        position = rows[0].index(name)
        for row in rows:
            del row[position]

    return change


LABEL_CELLS = 'is not allowed (allowed: 1.0, 1, 0.0, 0, -1.0, -1, empty)'
OUTSIDE = 'leaves the data root: only relative paths without .. are allowed'
BAD_PATHS = {
    'above': 'CheXpert-phantom/train/../../patient00001/study1/view1_frontal.jpg',
    'first part above': '../train/patient00001/study1/view1_frontal.jpg',
    'absolute': '/train/patient00001/study1/view1_frontal.jpg',
    'doubled slash': 'x//etc/patient00001/study1/view1_frontal.jpg',
}
BAD_ROWS = {
    'label': (set_cell(5, 'Edema', '2.0'), "row 5 ", "column 'Edema': '2.0'", LABEL_CELLS),
    'label word': (set_cell(3, 'Fracture', 'yes'), 'row 3 ', "'Fracture': 'yes'", LABEL_CELLS),
    'label NaN': (set_cell(3, 'Fracture', 'nan'), 'row 3 ', "'Fracture': 'nan'", LABEL_CELLS),
    'view': (
        set_cell(4, 'Frontal/Lateral', 'Oblique'),
        "row 4 (the header is row 1), column 'Frontal/Lateral': 'Oblique' is not allowed "
        '(allowed: Frontal, Lateral)',
    ),
    'sex': (set_cell(2, 'Sex', 'Q'), "column 'Sex': 'Q'", 'Male, Female, Unknown'),
    'age': (set_cell(2, 'Age', '-4'), "column 'Age': '-4'", 'numbers from 0'),
    'projection': (set_cell(2, 'AP/PA', 'XX'), "column 'AP/PA': 'XX'", 'AP, PA, LL, RL, empty'),
    'no label column': (drop_column('Edema'), 'missing column: Edema;', 'found: Path, Sex'),
    'no path column': (drop_column('Path'), 'missing column: Path (or Study);'),
    'no sex column': (drop_column('Sex'), 'missing column: Sex;'),
    'short row': (lambda rows: rows[6].pop(), 'row 7 ', '18 fields, the header has 19'),
    'long row': (lambda rows: rows[6].append('1'), 'not a readable CSV file', 'line 7', '20'),
    'duplicate': (
        lambda rows: rows.append(rows[3][:]),
        'row 10 ',
        "column 'Path': 'CheXpert-phantom/train/",
        'is given in row 4 already',
    ),
    'other form': (
        set_cell(5, 'Path', 'CheXpert-phantom/x.jpg'),
        "row 5 (the header is row 1), column 'Path': 'CheXpert-phantom/x.jpg'",
        'is not of the form FOLDER/.../patient00001/study1/view1_frontal.jpg',
    ),
    'header alone': (lambda rows: rows.__setitem__(slice(1, None), []), 'has no rows'),
} | {
    name: (set_cell(6, 'Path', path), f"row 6 (the header is row 1), column 'Path': {path!r}",
           OUTSIDE)
    for name, path in BAD_PATHS.items()
}  # fmt: skip


@pytest.mark.parametrize('kind', BAD_ROWS)
def test_a_bad_training_csv(kind, data, tmp_path, refused):
    change, *parts = BAD_ROWS[kind]
    edit(data / 'train.csv', change)
    for stage in STAGES:
        output = tmp_path / f'out_{stage}'
        argv = arguments(config_of(tmp_path, stage), data, output)
        refused(stage, argv, data / 'train.csv', *parts)
        assert not results_in(output)


@pytest.mark.parametrize('kind', ['label', 'no label column', 'duplicate', 'above', 'header alone'])
def test_a_bad_validation_csv_is_found_before_training(kind, phantom, tmp_path, refused):
    data = linked(phantom, tmp_path / 'data')
    change, *parts = BAD_ROWS[kind]
    edit(data / 'valid.csv', lambda rows: rows.__setitem__(slice(9, None), []))
    edit(data / 'valid.csv', change)
    parts = [part.replace('/train/', '/valid/') if kind == 'duplicate' else part for part in parts]
    argv = arguments(config_of(tmp_path, 'finetune'), data, tmp_path / 'out')
    refused('finetune', argv, data / 'valid.csv', *parts)
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('contents', [b'', b'\n\n', b'\xff\xfe\x00binary'])
def test_a_csv_that_is_none(contents, data, tmp_path, refused):
    replace(data / 'train.csv', contents)
    argv = arguments(config_of(tmp_path, 'simmim'), data, tmp_path / 'out')
    refused('simmim', argv, data / 'train.csv', 'not a readable CSV file')
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('name', ['train.csv', 'valid.csv'])
def test_no_csv(name, phantom, tmp_path, refused):
    data = linked(phantom, tmp_path / 'data')
    (data / name).unlink()
    for stage in STAGES if name == 'train.csv' else ('finetune',):
        argv = arguments(config_of(tmp_path, stage), data, tmp_path / 'out')
        refused(stage, argv, f'no such CSV file: {data / name}', 'DATA.DATA_PATH', 'DATA.*_CSV')
    assert not results_in(tmp_path / 'out')


# Splits and folders


EMPTY = {
    'views': (('DATA.VIEWS', 'lateral'), 'none of the 8 images is lateral', 'DATA.VIEWS'),
    'hold-out': (('DATA.HOLDOUT_FRACTION', '0.99'), 'DATA.HOLDOUT_FRACTION 0.99 leaves none of'),
    'images': (('DATA.TRAIN_IMAGES', '9'), 'there are 8 images', 'DATA.TRAIN_IMAGES 9'),
    'batch': (
        ('DATA.BATCH_SIZE', '9'),
        '8 training images do not fill one batch of DATA.BATCH_SIZE 9 x 1 processes',
    ),
    'fraction': (('DATA.TRAIN_FRACTION', '0.01'), 'training images do not fill one batch'),
}


@pytest.mark.parametrize('kind', EMPTY)
def test_a_training_split_that_is_empty_or_too_small(kind, eight, tmp_path, refused):
    opts, *parts = EMPTY[kind]
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out', '--opts', *opts)
    refused('simmim', argv, *parts)
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('stage', STAGES)
def test_a_batch_larger_than_the_data_set(stage, phantom, tmp_path, refused):
    argv = arguments(config_of(tmp_path, stage), phantom, tmp_path / 'out', '--batch-size', '999')
    refused(stage, argv, 'training images do not fill one batch of DATA.BATCH_SIZE 999')
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('dataset', ['chexpert', 'folder'])
def test_a_data_path_that_does_not_exist(dataset, tmp_path, refused):
    cfg = config_of(tmp_path, 'simmim', DATASET=dataset)
    for stage in STAGES if dataset == 'chexpert' else ('simmim',):
        cfg = config_of(tmp_path, stage, DATASET=dataset)
        argv = arguments(cfg, tmp_path / 'nowhere', tmp_path / 'out')
        refused(stage, argv, tmp_path / 'nowhere', 'DATA.DATA_PATH')
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('dataset', ['chexpert', 'folder'])
def test_no_data_path(dataset, eight, tmp_path, refused, monkeypatch):
    """The current folder is not meant: with a folder data set, any picture in it would count."""
    monkeypatch.chdir(eight / 'train')
    argv = ['--cfg', str(config_of(tmp_path, 'simmim', DATASET=dataset))]
    refused('simmim', [*argv, '--output', str(tmp_path / 'out')], 'DATA.DATA_PATH')
    assert not results_in(tmp_path / 'out')


def test_a_folder_data_set_that_holds_scored_images(eight, tmp_path, refused):
    cfg = config_of(tmp_path, 'simmim', DATASET='folder')
    parts = ('scored later', 'DATA.DATASET chexpert', 'DATA.ALLOW_ALL_IMAGES')
    refused('simmim', arguments(cfg, eight, tmp_path / 'out'), eight, '.csv is there', *parts)
    assert not results_in(tmp_path / 'out')


def test_a_folder_data_set_without_images(tmp_path, refused):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'notes.txt').write_text('none here')
    cfg = config_of(tmp_path, 'simmim', DATASET='folder')
    argv = arguments(cfg, tmp_path / 'data', tmp_path / 'out')
    refused('simmim', argv, f'no image below {tmp_path / "data"}', '.png, .jpg')

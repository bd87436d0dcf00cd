"""Small CSV files in CheXpert's layout, with empty files for images, and reading them."""

import csv
from pathlib import Path

import pytest

from data.tables.chexpert import read_csv
from data.tables.labels import LABELS
from data.tables.records import Records

HEADER = ['Path', 'Sex', 'Age', 'Frontal/Lateral', 'AP/PA', *LABELS]
PREFIX = 'CheXpert-v1.0-small/train'


def image_path(patient: int, study: int = 1, view: str = 'view1_frontal', folder=PREFIX) -> str:
    return f'{folder}/patient{patient:05d}/study{study}/{view}.jpg'


def row(path: str, **cells: str) -> dict[str, str]:
    view = 'Lateral' if 'lateral' in path else 'Frontal'
    given = {'Path': path, 'Sex': 'Female', 'Age': '50', 'Frontal/Lateral': view, 'AP/PA': 'AP'}
    return {**given, **dict.fromkeys(LABELS, ''), **cells}


def write(file: Path, rows: list[dict[str, str]], header: list[str] = HEADER) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, 'w', newline='') as out:
        writer = csv.DictWriter(out, header, extrasaction='ignore', lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    return file


def touch(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def read(root: Path, rows: list[dict[str, str]], header: list[str] = HEADER, **options) -> Records:
    write(root / 'train.csv', rows, header)
    for cells in rows:
        path = cells['Path']
        if path.startswith('CheXpert') and '..' not in path and '//' not in path:
            touch(root, path.partition('/')[2])
    return read_csv(root, 'train.csv', **options)


def message(root: Path, rows: list[dict[str, str]], header: list[str] = HEADER, **options) -> str:
    with pytest.raises(ValueError) as error:
        read(root, rows, header, **options)
    assert str(root / 'train.csv') in str(error.value)
    return str(error.value).replace(str(root), 'ROOT')

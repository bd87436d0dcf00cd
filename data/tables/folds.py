"""Divide the patients of a data set into folds, which are pairs of CSV files."""

from pathlib import Path

import numpy as np

from config import Config
from data.tables.chexpert import open_data_set
from data.tables.splits import patient_hashes
from data.tables.table_files import csv_text
from system.files import replace_file


def fold_files(folder: str | Path, fold: int) -> tuple[Path, Path]:
    """Return the files (train, valid) of a fold, from 0 on."""
    return Path(folder) / f'train_{fold}.csv', Path(folder) / f'valid_{fold}.csv'


def folds_of(patients: np.ndarray, parts: int) -> np.ndarray:  # [N] int64
    """Return the fold of the patient of each image, from 0 to parts - 1.

    It is a hash of the name modulo the number of folds. It depends neither on the seed nor on the
    other patients, so two files that share some patients assign them to the same folds.
    """
    codes, hashes = patient_hashes(patients, 'fold')
    return np.array([int.from_bytes(h, 'big') % parts for h in hashes], np.int64)[codes]


def write_folds(config: Config, folder: str | Path, parts: int) -> None:
    """Write the training images of a data set as pairs of tables, see `fold_files`.

    The patients of a fold are in its valid file, and all other patients in its train file. The
    files have the rows of the table of the data set. The rows of the other file are empty lines, so
    that every row keeps its number, which determines the random numbers of its image.

    Raises:
        ValueError: If a fold would have no patient, or a file exists with other content.
    """
    root = config.DATA.DATA_PATH
    data_set = open_data_set(config)
    records = data_set.read('train', labels=(), look_up='none')
    table = data_set.table('train')
    fold = folds_of(records.patient, parts)
    sizes = np.bincount(fold, minlength=parts)
    if not sizes.all():
        raise ValueError(
            f'{parts} folds of the {len(set(records.patient))} patients of {root} would have '
            f'{sizes.tolist()} images: each must have some'
        )
    for number in range(parts):
        is_scored = fold == number
        for file, own in zip(fold_files(folder, number), (~is_scored, is_scored), strict=True):
            text = csv_text(table.loc[table.index.isin(records.row[own])])
            if file.is_file() and file.read_bytes() != text.encode():
                raise ValueError(f'{file} belongs to other data or folds: choose another folder')
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, text)

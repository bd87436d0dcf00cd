"""Divide the patients of a data set into folds, which are pairs of CSV files."""

import csv
import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from config import Config, part
from data.reading import read_part
from data.splits import patient_hashes
from data.table import Table
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
    """Write the training images of a data set as pairs of CSV files, see `fold_files`.

    The patients of a fold are in its valid file, and all other patients in its train file. In
    CheXpert's layout the files have the rows of DATA.TRAIN_CSV. The rows of the other file are
    empty lines, so that every row keeps its number, which determines the random numbers of its
    image. For other data sets the files list images (see `data.reading.image_lists`).

    Raises:
        ValueError: If a fold would have no patient, or a file exists with other content.
    """
    records = read_part(config, config.DATA.DATA_PATH, 'train', labels=(), look_up='none')
    cells, row = pd.DataFrame({'Path': records.path}), np.arange(len(records))
    if part(config, 'DATA.DATASET').reads_csv:
        cells, row = Table(records.root / records.csv).cells, records.row
    fold = folds_of(records.patient, parts)
    sizes = np.bincount(fold, minlength=parts)
    if not sizes.all():
        raise ValueError(
            f'{parts} folds of the {len(set(records.patient))} patients of {config.DATA.DATA_PATH} '
            f'would have {sizes.tolist()} images: each must have some'
        )
    for number in range(parts):
        is_scored = fold == number
        for file, own in zip(fold_files(folder, number), (~is_scored, is_scored), strict=True):
            text = _csv_text(cells, set(row[own].tolist()))
            if file.is_file() and file.read_bytes() != text.encode():
                raise ValueError(f'{file} belongs to other data or folds: choose another folder')
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, text)


def _csv_text(cells: pd.DataFrame, rows: Collection[int]) -> str:
    """Return a table as CSV text with empty lines instead of all other rows."""
    file = io.StringIO(newline='')
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(cells.columns)
    known = dict(zip(cells.index.tolist(), cells.to_numpy().tolist(), strict=True))
    writer.writerows(known[row] if row in rows else () for row in range(max(rows) + 1))
    return file.getvalue()

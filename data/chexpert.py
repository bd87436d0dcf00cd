"""Read data sets in CheXpert's layout."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import Config
from data.image_source import IMAGE_SUFFIXES, ImageSource, open_images
from data.labels import CELLS, LABELS, POSITIVE, SIMILAR, similar_warning
from data.records import (
    OLDEST,
    STUDY,
    Records,
    csv_names,
    existing_records,
    register_dataset,
)
from data.table import KEYS, OnFault, Table, refuse
from data.views import views_in_names
from system.files import is_below

DESCRIPTION = ('Sex', 'Age', 'Frontal/Lateral', 'AP/PA')  # optional columns
SEXES = {'Male': 'Male', 'Female': 'Female', 'Unknown': 'Unknown', '': 'Unknown'}
VIEW_CELLS = {'Frontal': 'frontal', 'Lateral': 'lateral', '': ''}
PROJECTIONS = {name: name for name in ('AP', 'PA', 'LL', 'RL', '')}
PATIENT_PART = re.compile(r'(?:\A|/)(patient\d+)/')
PRESENT = [cell for cell, value in CELLS.items() if value == POSITIVE]
SAMPLE_PATHS = 100  # number of paths that decide how paths become files


def read_csv(
    data_path: str | Path,
    csv_name: str,
    *,
    image_suffix: str = '',
    labels: Sequence[str] = LABELS,
    look_up: str = 'first',
    on_fault: OnFault = refuse,
) -> Records:
    """Read and check a CSV file in CheXpert's layout.

    Each row is an image (column `Path`) or a study (column `Study`, a folder with the images of the
    study). The columns of `DESCRIPTION` are optional; a missing view is taken from the name of the
    image.

    Args:
        data_path: Folder of the CSV file and the images, or a packed store of this folder.
        csv_name: Path of the CSV file, relative to `data_path`.
        image_suffix: Suffix that replaces the suffix of the paths, such as '.png'; '' keeps it.
        labels: Names of the labels; may be empty.
        look_up: Images that must exist: 'first', 'all' (always the case in a store), or 'none'.
        on_fault: Function that receives each fault; by default the first fault raises a ValueError.
    """
    root = Path(data_path)
    images = open_images(data_path)
    hint = ' (see DATA.DATA_PATH and DATA.*_CSV)'
    if not any(root.glob('*.csv')):
        hint += '; to pre-train on images without a CSV file, set DATA.DATASET folder'
    batches = _advice_on_batches(root)
    table = Table(root / csv_name, on_fault, hint + batches)
    table.require(KEYS, labels=labels)
    key = table.key
    inside = [is_below(path) for path in table[key]]
    problem = 'must be a relative path without ..'
    table.keep(key, inside, 'path that leaves the folder', problem)
    add_studies(table)
    files = _files_of(table[key], images, image_suffix if key == 'Path' else '')
    table.cells = table.cells.assign(path=table[key], file=files)
    table.keep_first(key, 'duplicate path', table['file'])
    if key == 'Study':
        _add_images(table, images, image_suffix)
    records = records_of(table, labels)
    records = replace(records, root=root, csv=str(csv_name))
    problem = 'has neither a view nor a name like view1_frontal.jpg'
    table.check(key, records.view != '', 'value of the view', problem)
    if key == 'Study':
        records = replace(records, sample=np.arange(len(records)))
    records = existing_records(records, images, look_up, on_fault, batches)
    absent = [name for name in DESCRIPTION if name not in table]
    if absent and len(records):
        detail = f'it has no column {", ".join(absent)}: the values are unknown'
        table.fault('missing description', detail, severity='note')
    return records


@register_dataset('chexpert', labelled=True, splits=None, reads_csv=True)
def _read_chexpert(
    config: Config, root: str | Path, split: str, *, optional: bool = False, **options: Any
) -> Records | None:
    csv_name = csv_names(config)[split]
    if optional and not (Path(root) / csv_name).is_file():
        return None
    return read_csv(root, csv_name, image_suffix=config.DATA.IMAGE_SUFFIX, **options)


def add_studies(table: Table) -> None:
    """Add the columns 'study' and 'patient', which are extracted from the names of the rows."""
    parts = table[table.key].str.extract(STUDY)
    good = parts['image'].str.len() > 1 if table.key == 'Path' else parts['image'] == ''
    image = '/IMAGE.jpg' if table.key == 'Path' else ''
    problem = f'is not of the form FOLDER/patient00001/study1{image}'
    table.cells = table.cells.assign(study=parts['study'], patient=parts['patient'])
    table.keep(table.key, good.to_numpy(bool), 'form of a path', problem)


def labels_of(table: Table, labels: Sequence[str]) -> np.ndarray:
    """Read labels, [N, K] float32: 1, 0, -1 uncertain, NaN blank."""
    columns = [table.map(label, CELLS, 'value of a label') for label in labels]
    stacked = np.array(columns, np.float32).reshape(len(labels), len(table))
    return np.ascontiguousarray(stacked.T)


def records_of(table: Table, labels: Sequence[str]) -> Records:
    """Build the records of a table to which path, file, patient and study have been added."""
    present = {name: int(table[name].isin(PRESENT).sum()) for name in table.cells}
    others = {name: count for name, count in present.items() if count}
    if warning := similar_warning(labels, others):
        table.fault(SIMILAR, f'columns {warning}', severity='warning')
    view = table.map('Frontal/Lateral', VIEW_CELLS, 'value of the view', dtype=object)
    names = ('path', 'file', 'patient', 'study')
    return Records(
        root=table.file.parent,
        csv=table.file.name,
        row=table.row,
        sample=table.row,
        **{name: table[name].to_numpy(object) for name in names},
        view=np.where(view == '', views_in_names(table['path']), view),
        sex=table.map('Sex', SEXES, 'value of the sex', dtype=object),
        age=table.numbers('Age', 'value of the age', most=OLDEST),
        ap_pa=table.map('AP/PA', PROJECTIONS, 'value of the projection', dtype=object),
        labels=labels_of(table, labels),
        label_names=tuple(labels),
    )


def _files_of(paths: pd.Series, images: ImageSource, suffix: str) -> pd.Series:
    """Return the file of each path: the path itself, or without its first folder.

    The first folder, such as CheXpert-v1.0-small, is removed from all paths or from none, depending
    on which of the two finds more of the first files. The folder of a patient is never removed.
    """
    whole = paths.map(lambda path: os.path.splitext(path)[0] + suffix) if suffix else paths
    if whole.str.match(PATIENT_PART).any():
        return whole
    shorter = whole.map(lambda file: file.partition('/')[2])
    num_found = [sum(map(images.exists, files[:SAMPLE_PATHS])) for files in (shorter, whole)]
    return whole if num_found[1] > num_found[0] else shorter


def _advice_on_batches(root: Path) -> str:
    """Return how to join the folders in which the full-size CheXpert comes; '' without them."""
    for place in (root.resolve(), root.resolve().parent):
        if any(place.glob('*batch*(train*)')):
            return (
                f'; the full-size CheXpert is in folders to join by links: mkdir -p DIR/train'
                f' && for part in "{place}"/*batch*"(train"*; do cp -rs "$part"/. DIR/train; done'
                f' && cp -rs "{place}"/*batch*"(valid"*/. DIR, and use DIR'
            )
    return ''


def _add_images(table: Table, images: ImageSource, image_suffix: str) -> None:
    """Replace each row of a study by one row per image with its path and file."""
    found = [
        [file for file in images.below(place) if file.lower().endswith(image_suffix.lower())]
        if images.exists(place)
        else []
        for place in table['file']
    ]
    table.cells = table.cells.assign(image=pd.Series(found, table.cells.index, object))
    suffixes = image_suffix or ', '.join(IMAGE_SUFFIXES)
    problem = f'has no image ({suffixes}) below {images.path}'
    table.keep('Study', [bool(files) for files in found], 'missing image', problem)
    cells = table.cells.explode('image')
    pairs = zip(cells['image'], cells['file'], strict=True)
    below = [image[len(place) :] for image, place in pairs]
    table.cells = cells.assign(path=cells['Study'] + below, file=cells['image'])

"""Read tables in CheXpert's form, which is the form of all tables: one row per image.

The column `Path` names the image (or `Study` the folder of a study), and the labels have columns of
their own. `Patient`, `Study`, `Split` and the columns of DESCRIPTION are optional.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import REGISTRIES, Config, default_config, selected_part
from data.images.image_source import IMAGE_SUFFIXES, ImageSource, open_images
from data.images.store_manifest import is_store
from data.images.views import views_in_names
from data.tables.identity import STUDY
from data.tables.labels import CELLS, LABELS
from data.tables.records import (
    OLDEST,
    OTHER_VIEW,
    Records,
    csv_names,
    existing_records,
)
from data.tables.table import KEYS, OnFault, Table, refuse
from data.tables.table_warnings import NO_LABELS, report_names, report_patients, report_views
from system.files import is_below

DATASETS = REGISTRIES['DATA.DATASET']
DESCRIPTION = ('Sex', 'Age', 'Frontal/Lateral', 'AP/PA')  # optional columns
SPLITS = ('train', 'valid', 'test')
SEXES = {'Male': 'Male', 'Female': 'Female', 'Unknown': 'Unknown', '': 'Unknown'}
VIEW_CELLS = {'Frontal': 'frontal', 'Lateral': 'lateral', OTHER_VIEW: OTHER_VIEW, '': ''}
PROJECTIONS = {name: name for name in ('AP', 'PA', 'LL', 'RL', '')}
SPLIT_CELLS = {name: name for name in (*SPLITS, '')}
PATIENT_PART = re.compile(r'(?:\A|/)(patient\d+)/')
SAMPLE_PATHS = 100  # number of paths that decide how paths become files


@DATASETS.register('chexpert')
class DataSet:
    """A data set that is open: it reads the records of its splits, and keeps what they share.

    Each split has a table in CheXpert's form. For other data sets, write a subclass and register
    it under its name in DATA.DATASET.

    Args:
        config: Run configuration.
        root: Folder of the data set, or a packed store of it.
    """

    labelled = True  # whether images have labels

    def __init__(self, config: Config, root: str | Path) -> None:
        self.config, self.root = config, Path(root)

    def read(
        self,
        split: str,
        *,
        labels: Sequence[str] = (),
        optional: bool = False,
        look_up: str = 'first',
        on_fault: OnFault = refuse,
    ) -> Records | None:
        """Read and check the images of a split.

        Args:
            split: 'train', 'valid' or 'test'.
            labels: Names of the labels; may be empty.
            optional: Whether the split may be absent.
            look_up: Images that must exist, see `data.tables.records.existing_records`.
            on_fault: Function that receives each fault; by default the first one is raised.

        Returns:
            Records in the order of the table; None if an optional split is absent.
        """
        csv_name = self._csv_of(split)
        if optional and not (self.root / csv_name).is_file():
            return None
        table = _open_csv(self.root, csv_name, labels, on_fault)
        # The table of train may have no row of a split, but a table of the split itself must.
        optional = optional and csv_name == csv_names(self.config)['train']
        select_split(table, split, optional)
        if optional and not len(table):
            return None
        options = {'image_suffix': self.config.DATA.IMAGE_SUFFIX}
        options |= {'groups': self.config.EVAL.GROUPS, 'look_up': look_up}
        return _read_images(table, self.root, labels=labels, **options)

    def table(self, split: str) -> pd.DataFrame:
        """Return all cells of the table of a split; the index has the numbers of the rows."""
        table = Table(self.root / self._csv_of(split))
        select_split(table, split)
        return table.cells.drop(columns='Split', errors='ignore')

    def _csv_of(self, split: str) -> str:
        """Return the table of a split, or that of train if it is alone and has a column Split."""
        names, default = csv_names(self.config), csv_names(default_config())
        if names[split] != default[split] or (self.root / names[split]).is_file():
            return names[split]
        train = Table(self.root / names['train'], lambda fault: None, num_rows=0)
        return names['train' if 'Split' in train else split]

    @classmethod
    def check(cls, config: Config, stage: str | None) -> None:
        """Refuse fine-tuning without labels, and an output folder inside the folder of images."""
        root = config.DATA.DATA_PATH
        if stage == 'finetune' and not cls.labelled:
            names = ' or '.join(repr(name) for name, kind in DATASETS.items() if kind.labelled)
            raise ValueError(
                f'DATA.DATASET must be {names} for fine-tuning, got {config.DATA.DATASET!r}'
            )
        is_read = stage and root and not config.DATA.SOURCES
        is_folder = is_read and not cls.labelled and not is_store(root)
        if is_folder and Path(config.OUTPUT).resolve().is_relative_to(Path(root).resolve()):
            raise ValueError(
                f'OUTPUT {config.OUTPUT} must lie outside DATA.DATA_PATH {root}: the next run '
                'would train on the images that this run writes'
            )


def open_data_set(config: Config, root: str | Path = '') -> DataSet:
    """Open the data set of a config in DATA.DATA_PATH, or in another folder or store of it."""
    return selected_part(config, 'DATA.DATASET')(config, root or config.DATA.DATA_PATH)


def read_csv(
    data_path: str | Path,
    csv_name: str,
    *,
    labels: Sequence[str] = LABELS,
    on_fault: OnFault = refuse,
    **options: Any,
) -> Records:
    """Read and check a table file in CheXpert's form.

    Each row is an image (column `Path`) or a study (column `Study`, a folder with the images of the
    study). Without a column `Patient`, the path names patient and study. The columns of
    `DESCRIPTION` are optional; a missing view is taken from the name of the image.

    Args:
        data_path: Folder of the table and the images, or a packed store of this folder.
        csv_name: Path of the table, relative to `data_path` (see
            `data.tables.table_files.read_cells`).
        labels: Names of the labels; may be empty.
        on_fault: Function that receives each fault; by default the first fault raises a ValueError.
        options: Further arguments of `_read_images` and `read_table`.
    """
    table = _open_csv(data_path, csv_name, labels, on_fault)
    return _read_images(table, data_path, labels=labels, **options)


def _open_csv(
    data_path: str | Path, csv_name: str, labels: Sequence[str], on_fault: OnFault
) -> Table:
    root = Path(data_path)
    hint = ' (see DATA.DATA_PATH and DATA.*_CSV)'
    advice = _advice(root, csv_name)
    if not advice and not any(root.glob('*.csv')):
        hint += (
            '; to learn labels, write this table (docs/howto/own_data.md) or name yours with '
            'DATA.TRAIN_CSV or DATA.DATASET'
            if labels
            else '; to pre-train on images without a CSV file, set DATA.DATASET folder'
        )
    table = Table(root / csv_name, on_fault, hint + advice)
    table.csv = str(csv_name)
    return table


def _read_images(
    table: Table, data_path: str | Path, look_up: str = 'first', **options: Any
) -> Records:
    """Read a table with the options of `read_table`, and look its images up.

    `look_up`: images that must exist: 'first', 'all' (always the case in a store), or 'none'.
    """
    images = open_images(data_path)
    records = read_table(table, images, **options)
    advice = _advice(Path(data_path), table.csv)
    return existing_records(records, images, look_up, table.on_fault, advice)


def read_table(
    table: Table,
    images: ImageSource,
    *,
    labels: Sequence[str],
    groups: Sequence[str] = (),
    image_suffix: str = '',
) -> Records:
    """Check the rows of a table, whoever made it, and return the records of its images.

    Args:
        table: Table in CheXpert's form.
        images: Where the images are.
        labels: Names of the labels; may be empty.
        groups: Names of further columns to keep, if they exist.
        image_suffix: Suffix that replaces the suffix of the paths, such as '.png', and that images
            of studies must have; '' keeps the paths, and takes all images.
    """
    table.require(KEYS, labels=labels)
    key = table.key
    # An image of which no label is known is left out; blank labels are something else.
    marks = [(table[label] == NO_LABELS).to_numpy() for label in labels if label in table]
    unlabelled = np.all(marks, axis=0) & bool(marks)
    if unlabelled.any():
        detail = f'{unlabelled.sum():,} of {len(table):,} rows have no labels and are left out'
        detail += f', such as row {int(table.row[unlabelled.argmax()]) + 2}'
        table.fault('rows without labels', detail, severity='warning')
        table.cells = table.cells[~unlabelled]
    add_studies(table)
    files = with_suffix(table[key], image_suffix if key == 'Path' else '')
    table.add(path=table[key], file=_without_prefix(files, images))
    table.keep_first(key, 'duplicate path', table['file'])
    report_patients(table)
    if key == 'Study':
        _add_images(table, images, image_suffix)
    records = replace(records_of(table, labels, groups), root=images.path)
    if key == 'Study':
        records = replace(records, sample=np.arange(len(records)))
    report_views(table, records)
    absent = [name for name in DESCRIPTION if name not in table]
    if absent and len(records):
        detail = f'it has no column {", ".join(absent)}: the values are unknown'
        table.fault('missing description', detail, severity='note')
    return replace(records, view=np.where(records.view == OTHER_VIEW, '', records.view))


def select_split(table: Table, split: str, optional: bool = False) -> None:
    """Keep the rows whose cell in the column Split is this split, if there is such a column."""
    if 'Split' in table:
        splits = table.map('Split', SPLIT_CELLS, 'value of the split', dtype=object)
        table.cells = table.cells[splits == split]
        if not (len(table) or optional):
            table.fault('empty split', f'it has no usable row of the split {split}')


def add_studies(table: Table) -> None:
    """Add the columns 'patient' and 'study', from Patient and Study or from the path.

    Rows whose path leaves the folder, or for which neither names a patient, are dropped.
    """
    key = table.key
    parts = {part for path in table[key] for part in path.split('/')}
    if not is_below('/'.join(parts)):
        inside = [is_below(path) for path in table[key]]
        table.keep(key, inside, 'path that leaves the folder', 'must be a relative path without ..')
    paths = table[key].to_numpy(object)
    # Several images of a study are in one folder, which is looked at once.
    folders = [path.rpartition('/')[0] for path in paths] if key == 'Path' else paths
    codes, folders = pd.factorize(np.array(folders, object))
    studies, patients = np.full((2, len(folders)), None)
    names: dict[str, str] = {}  # one text for each patient
    for number, folder in enumerate(folders):
        match = STUDY.match(folder)
        if match and (key == 'Path' or not match['image']):
            studies[number] = match['study']
            patients[number] = names.setdefault(match['patient'], match['patient'])
    study, patient = studies[codes], patients[codes]
    has_column = 'Patient' in table
    if has_column:
        patient = table['Patient'].to_numpy(object)
        study = np.where(pd.isna(study), paths, study)
    if key == 'Path' and 'Study' in table:
        # A study has a number within its patient; without one, the image is a study of its own.
        cells = zip(table['Study'], patient, paths, strict=True)
        study = [f'{name}/{number}' if number else path for number, name, path in cells]
    table.add(study=study, patient=patient)
    if has_column:
        table.keep('Patient', patient != '', 'missing patient', 'names no patient')
    else:
        image = '/IMAGE.jpg' if key == 'Path' else ''
        problem = f'is not of the form FOLDER/patient00001/study1{image}'
        problem += ', and there is no column Patient' if key == 'Path' else ''
        table.keep(key, pd.notna(patient), 'form of a path', problem)


def records_of(table: Table, labels: Sequence[str], groups: Sequence[str] = ()) -> Records:
    """Build the records of a table to which path, file, patient and study have been added."""
    view = table.map('Frontal/Lateral', VIEW_CELLS, 'value of the view', dtype=object)
    is_blank = view == ''
    if is_blank.any():
        view[is_blank] = views_in_names(table['path'][is_blank])
    # [N, K] 1, 0, -1 uncertain, NaN blank
    values = [table.map(label, CELLS, 'value of a label') for label in labels]
    kept = [name for name in groups if name in table]
    others = {*KEYS, *DESCRIPTION, *labels, 'Patient', 'Split', 'path', 'file', 'patient', 'study'}
    columns = [table[name].to_numpy(object) for name in kept]
    # Copies, because a view of a column may keep the memory of all columns.
    texts = {
        name: table[name].to_numpy(object, copy=True)
        for name in ('path', 'file', 'patient', 'study')
    }
    other_names = [name for name in table.cells if name not in others]
    report_names(table, labels, other_names)
    return Records(
        root=table.file.parent,
        csv=table.csv,
        row=table.row,
        sample=table.row,
        **texts,
        view=view,
        sex=table.map('Sex', SEXES, 'value of the sex', dtype=object),
        age=table.numbers('Age', 'value of the age', most=OLDEST),
        ap_pa=table.map('AP/PA', PROJECTIONS, 'value of the projection', dtype=object),
        labels=np.array(values, np.float32).reshape(len(labels), len(table)).T,
        label_names=tuple(labels),
        groups=np.array(columns, object).reshape(len(kept), len(table)).T,
        group_names=tuple(kept),
        other_names=tuple(other_names),
    )


def _without_prefix(whole: pd.Series, images: ImageSource) -> pd.Series:
    """Return the file of each path: the path itself, or without its first folder.

    The first folder, such as CheXpert-v1.0-small, is removed from all paths or from none, depending
    on which of the two finds more of the first files; if none is there, it is removed above folders
    such as patient00001. The folder of a patient is never removed.
    """
    shorter = pd.Series([file.partition('/')[2] for file in whole], whole.index, object)
    if any(map(PATIENT_PART.match, whole)) or not all(shorter):
        return whole
    num_found = [sum(map(images.exists, files[:SAMPLE_PATHS])) for files in (shorter, whole)]
    has_patients = any(map(PATIENT_PART.search, whole[:SAMPLE_PATHS]))
    return shorter if num_found[0] > num_found[1] - has_patients else whole


def with_suffix(paths: pd.Series, suffix: str) -> pd.Series:
    """Replace the suffix of paths; '' keeps it."""
    if not suffix:
        return paths
    return pd.Series([os.path.splitext(path)[0] + suffix for path in paths], paths.index, object)


def _advice(root: Path, csv_name: str) -> str:
    """Return where a table that is not there may be, or how to join the full-size CheXpert."""
    for place in (root.resolve(), root.resolve().parent):
        if any(place.glob('*batch*(train*)')):
            return (
                f'; the full-size CheXpert is in folders to join by links: mkdir -p DIR/train'
                f' && for part in "{place}"/*batch*"(train"*; do cp -rs "$part"/. DIR/train; done'
                f' && cp -rs "{place}"/*batch*"(valid"*/. DIR, and use DIR'
            )
    if (root / csv_name).is_file() or os.path.isabs(csv_name):
        return ''
    # Archives unpack into a folder in the folder, as CheXpert from Kaggle does.
    inner = [place / csv_name for place in (*root.glob('*/'), *root.glob('*/*/'))]
    inner = [file for file in inner if file.is_file()]
    return f'; it is in {inner[0].parent}: use this folder' if inner else ''


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

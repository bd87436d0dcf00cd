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
from data.tables.identity import STUDY, one_spelling
from data.tables.labels import CELLS, LABELS
from data.tables.records import (
    OLDEST,
    OTHER_VIEW,
    Records,
    csv_names,
    existing_records,
    lacks_images,
    task_of,
)
from data.tables.table import DESCRIPTION, KEYS, READ, Fault, OnFault, Table, refuse
from data.tables.table_warnings import (
    DOUBTS,
    LACKING_PATIENTS,
    NO_LABELS,
    NO_PATIENTS,
    label_warnings,
    report_groups,
    report_names,
    report_patients,
    report_spellings,
    report_views,
)
from data.tables.unknown import NOBODY
from system.files import is_below

DATASETS = REGISTRIES['DATA.DATASET']
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

    All data sets are read alike, from the table of a split in CheXpert's form. For one whose tables
    are elsewhere, register a subclass with `own_table` under its name in DATA.DATASET, or with
    `read` if no table can describe it.

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
        doubts: list[str] = []

        def report(fault: Fault) -> None:
            if fault.kind in DOUBTS:
                doubts.append(fault.detail)
            on_fault(fault)

        table = self.open_table(split, labels=labels, optional=optional, on_fault=report)
        if table is None:
            return None
        images, config = open_images(self.root), self.config
        options = {'groups': config.EVAL.GROUPS, 'image_suffix': config.DATA.IMAGE_SUFFIX}
        records = read_rows(table, images, labels=labels, **options)
        can_be_skipped = optional and table.may_lack_images
        if can_be_skipped and lacks_images(records, images, split, look_up, report):
            return None
        records = existing_records(records, images, look_up, report, table.advice)
        if labels:
            about = records.labels, records.label_names, records.path
            blank = config.DATA.BLANK if task_of(config).has_policies else ''
            for kind, detail in label_warnings(*about, blank=blank):
                report(Fault(kind, detail, str(records.root / records.csv), severity='warning'))
        return replace(records, doubts=tuple(doubts), digest=table.digest)

    def open_table(self, split: str, **options: Any) -> Table | None:
        """Open the table of a split: its own one, or the file by which DATA.*_CSV replaces it."""
        is_replaced = csv_names(self.config)[split] != csv_names(default_config())[split]
        kind = DataSet if self.labelled and is_replaced else type(self)
        return kind.own_table(self, split, **options)

    def own_table(
        self,
        split: str,
        *,
        labels: Sequence[str] = (),
        optional: bool = False,
        on_fault: OnFault = refuse,
    ) -> Table | None:
        """Open the table of a split with the arguments of `read`: a file, with all or its rows."""
        csv_name = self._csv_of(split)
        if optional and not (self.root / csv_name).is_file():
            return None
        table = open_csv(self.root, csv_name, labels, on_fault)
        # The table of train may have no row of a split, but a table of the split itself must.
        optional = optional and csv_name == csv_names(self.config)['train']
        if 'Split' in table:
            splits = table.map('Split', SPLIT_CELLS, 'value of the split', dtype=object)
            for other in sorted({*splits} - {split, ''}):
                if (file := self._csv_of(other)) != csv_name:
                    detail = f'{(splits == other).sum():,} rows are of the split {other}, which is '
                    detail += f'read from {file}: no split reads them'
                    table.fault('rows of another split', detail, severity='warning')
            table.cells = table.cells[splits == split]
            if not (len(table) or optional):
                table.fault('empty split', f'it has no usable row of the split {split}')
        return table if len(table) or not optional else None

    def _csv_of(self, split: str) -> str:
        """Return the file of a split: that of train if there is no other and it has Split."""
        names, default = csv_names(self.config), csv_names(default_config())
        if names[split] != default[split] or (self.root / names[split]).is_file():
            return names[split]
        train = Table(self.root / names['train'], lambda fault: None, num_rows=0)
        return names['train'] if 'Split' in train else names[split]

    def table(self, split: str) -> pd.DataFrame:
        """Return all cells of the table of a split; the index has the numbers of the rows."""
        return self.open_table(split).texts().drop(columns='Split', errors='ignore')

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
    look_up: str = 'first',
    on_fault: OnFault = refuse,
    **options: Any,
) -> Records:
    """Read and check all rows of a table file in CheXpert's form.

    Args:
        data_path: Folder of the table and the images, or a packed store of this folder.
        csv_name: Path of the table, relative to `data_path` (see
            `data.tables.table_files.read_cells`).
        labels: Names of the labels; may be empty.
        look_up: Images that must exist, see `data.tables.records.existing_records`.
        on_fault: Function that receives each fault; by default the first fault raises a ValueError.
        options: Further arguments of `read_rows`.
    """
    table = open_csv(Path(data_path), csv_name, labels, on_fault)
    images = open_images(data_path)
    records = read_rows(table, images, labels=labels, **options)
    return existing_records(records, images, look_up, on_fault, table.advice)


def open_csv(root: Path, csv_name: str, labels: Sequence[str], on_fault: OnFault) -> Table:
    """Open a table file; the message says where it may be if it is not there."""
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
    table.csv, table.advice = str(csv_name), advice
    return table


def read_rows(
    table: Table,
    images: ImageSource,
    *,
    labels: Sequence[str],
    groups: Sequence[str] = (),
    image_suffix: str = '',
) -> Records:
    """Check the rows of a table, whoever made it, and return the records of their images.

    Each row is an image (column `Path`) or a study (column `Study`, a folder with the images of the
    study). Without a column `Patient`, the path names patient and study. The columns of
    `DESCRIPTION` are optional; a missing view is taken from the name of the image.

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
    records = replace(make_records(table, labels, groups), root=images.path)
    if key == 'Study':
        records = replace(records, sample=np.arange(len(records)))
    report_views(table, records)
    absent = [name for name in DESCRIPTION if name not in table]
    if absent and len(records):
        detail = f'it has no column {", ".join(absent)}: the values are unknown'
        table.fault('missing description', detail, severity='note')
    return replace(records, view=np.where(records.view == OTHER_VIEW, '', records.view))


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
    table.empty_unknown('Patient', *(['Study'] if key == 'Path' else []), also=NOBODY)
    if has_column:
        patient = _known_patients(table, np.where(pd.isna(patient), paths, patient))
        study = np.where(pd.isna(study), paths, study)
    if key == 'Path' and 'Study' in table:
        # A study has a number within its patient; without one, the image is a study of its own.
        cells = zip(one_spelling(table['Study']), patient, paths, strict=True)
        study = [f'{name}/{number}' if number else path for number, name, path in cells]
    table.add(study=study, patient=patient)
    if not has_column:
        image = '/IMAGE.jpg' if key == 'Path' else ''
        problem = f'is not of the form FOLDER/patient00001/study1{image}'
        problem += ', and there is no column Patient' if key == 'Path' else ''
        table.keep(key, pd.notna(patient), 'form of a path', problem)
    report_spellings(table)


def _known_patients(table: Table, in_paths: np.ndarray) -> np.ndarray:  # [N]
    """Return the cells of Patient in one spelling and, where they are empty, what the paths say.

    A path that names no patient stands for one. Otherwise all rows without a patient would be one
    person, who is held out and drawn in the bootstrap as a whole.
    """
    cells = table['Patient'].to_numpy(object)
    is_lacking = (cells == '') & (in_paths == table[table.key].to_numpy(object))
    if is_lacking.any():
        detail = (
            f'{is_lacking.sum():,} of {len(table):,} rows name no patient, such as row '
            f'{int(table.row[is_lacking.argmax()]) + 2}: each counts as one, so splits may share '
            'patients, and intervals may be too narrow'
        )
        # A report has a sentence of its own about images that all stand for patients.
        has_none = is_lacking.all() and table.key == 'Path'
        kind = NO_PATIENTS if has_none else LACKING_PATIENTS
        table.fault(kind, detail, severity='warning')
    named = np.where(cells == '', in_paths, cells)
    names = one_spelling(named)
    if (others := names != named).any():
        first = int(others.argmax())
        detail = (
            f'{len({*names[others]})} patient(s) are spelt in several ways, and each counts as '
            f'one: {named[first]!r} in row {int(table.row[first]) + 2} is {names[first]!r}'
        )
        table.fault('several spellings of a patient', detail, severity='note')
    return names


def make_records(table: Table, labels: Sequence[str], groups: Sequence[str] = ()) -> Records:
    """Make the records of a table to which path, file, patient and study have been added."""
    kept = [name for name in groups if name in table]
    report_groups(table, kept)
    table.empty_unknown(*DESCRIPTION, *kept)
    view = table.map('Frontal/Lateral', VIEW_CELLS, 'value of the view', dtype=object)
    is_blank = view == ''
    if is_blank.any():
        view[is_blank] = views_in_names(table['path'][is_blank])
    # [N, K] 1, 0, -1 uncertain, NaN blank
    values = [table.map(label, CELLS, 'value of a label') for label in labels]
    others = {*READ, *labels, 'path', 'file', 'patient', 'study'}
    columns = [table[name].to_numpy(object) for name in kept]
    # Copies, because a view of a column may keep the memory of all columns.
    texts = {
        name: table[name].to_numpy(object, copy=True)
        for name in ('path', 'file', 'patient', 'study')
    }
    other_names = [name for name in table.cells if name not in others and table.has_text(name)]
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

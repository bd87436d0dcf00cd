"""Records: one reader for every CSV file (CheXpert, MIMIC-CXR, predictions, labels), and splits.

All readers take a function `on_fault`. By default the first fault is an error that names file, row
and column; the data check passes a function that collects the faults, and gets the rows that can
be used.
"""

import csv
import gzip
import hashlib
import io
import json
import logging
import math
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import CHOICES, Config, Registry, register_check
from data.images import refuse_link_out
from data.labels import CELLS, LABELS, TASKS, find_task, scored_targets, task_labels
from data.store import (
    BAD_FILE,
    STORE_FILE,
    Store,
    copy_store,
    describe_form,
    file_crc32,
    is_store,
    open_store,
    read_about,
)
from engine.files import replace_file

SHOWN_CHARACTERS = 200  # of a cell in a message

SCORED_FILES = ('train.csv', 'valid.csv')  # a folder with one of them holds images to be scored
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.dcm')

KEYS = ('Path', 'Study')  # columns of names: a row is an image, or a study
NAMES = (*KEYS, 'dicom_id', 'study_id')  # what a row of any table is about
# Columns that describe an image. A CSV file has all of them or none.
DESCRIPTION = ('Sex', 'Age', 'Frontal/Lateral', 'AP/PA')
SEXES = {name: name for name in ('Male', 'Female', 'Unknown')}
VIEW_CELLS = {'Frontal': 'frontal', 'Lateral': 'lateral'}
PROJECTIONS = {name: name for name in ('AP', 'PA', 'LL', 'RL', '')}
AGE = re.compile(r'\d{1,3}(\.\d+)?', re.ASCII)
MAX_AGE = 120  # in years; a greater age is a warning

_PART = r'(?!\.\.?(?:/|\Z))[^/\0-\x1f\x7f]+'
_STUDY_FORM = rf'(?P<study>(?P<prefix>(?:{_PART}/)*?)(?P<patient>patient\d+)/study\d+)'
STUDY_PATH = re.compile(_STUDY_FORM)
IMAGE_PATH = re.compile(rf'{_STUDY_FORM}(?:/{_PART})+')
VIEW_NAME = re.compile(r'_(frontal|lateral)\.[^./]+\Z')
PATIENT_PART = re.compile(r'(?:\A|/)(patient\d+)/')
# A patient's folder and a study's in it: CheXpert's patient00001/study1, MIMIC-CXR's p1.../s5...
STUDY = re.compile(r'(?:\A|(?<=/))(?P<patient>patient\d+|p\d+)/(?:study|s)\d+(?=/|\Z)', re.ASCII)
SUFFIX = re.compile(rf'(?:{"|".join(map(re.escape, IMAGE_SUFFIXES))})\Z', re.IGNORECASE)
PROBABILITY = re.compile(r'(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?', re.ASCII | re.IGNORECASE)

# MIMIC-CXR-JPG: values of its split column, by split; its ViewPosition, by view (others: neither).
MIMIC_SPLITS = {'train': 'train', 'valid': 'validate', 'test': 'test'}
SPLITS = {name: name for name in MIMIC_SPLITS.values()}
LABELLERS = CHOICES['DATA.LABELLER']
POSITIONS = {
    'AP': 'frontal',
    'PA': 'frontal',
    'LATERAL': 'lateral',
    'LL': 'lateral',
    'RL': 'lateral',
    'XTABLE LATERAL': 'lateral',
}
# What the parts of a MIMIC-CXR path may contain.
ID_FORMS = {
    'subject_id': (re.compile(r'\d+', re.ASCII), 'digits'),
    'study_id': (re.compile(r'\d+', re.ASCII), 'digits'),
    'dicom_id': (re.compile(r'[\w-]+', re.ASCII), 'letters, digits, - and _'),
}

PATIENT_COLUMNS = ('PATIENT', 'Patient', 'patient', 'patient_id')
STANDARD_GROUPS = ('Sex', 'Age', 'View')
NO_GROUPS = ('Path', 'Study', *LABELS)
MOST_GROUPS = 50  # of one column

DATASETS = Registry('DATA.DATASET')


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a data set; its text is the message of an error."""

    kind: str
    detail: str
    csv: str = ''  # the CSV file
    row: int | None = None  # of the CSV file, whose header is row 1
    file: str = ''  # the image, study or other file that is concerned
    severity: str = 'error'  # 'error': a score would be wrong; 'warning', 'note': readers go on

    def __str__(self) -> str:
        row = f', row {self.row} (the header is row 1)' if self.row is not None else ''
        return f'{self.csv}{row}: {self.detail}' if self.csv else self.detail


OnFault = Callable[[Fault], None]


def refuse(fault: Fault) -> None:
    """Raise an error for a fault; warnings and notes are ignored."""
    if fault.severity == 'error':
        raise ValueError(str(fault))


class Table:
    """A CSV file (or .csv.gz) as text cells.

    Rows that are blank throughout are ignored. A row of another width than the header is a fault,
    so that the last row of a truncated file does not pass for an image without labels.

    Args:
        file: The CSV file.
        on_fault: Receives what is wrong with the file.
        hint: Added to the message for a missing file.

    Attributes:
        cells: The usable rows, by column; the index is the 0-based row below the header.
    """

    def __init__(self, file: str | Path, on_fault: OnFault = refuse, hint: str = '') -> None:
        self.file = Path(file)
        self.on_fault = on_fault
        self.repeated = set()  # columns that the header names more than once
        self.cells = self._read(hint)

    def __contains__(self, column: str) -> bool:
        return column in self.cells

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, column: str) -> pd.Series:
        return self.cells[column]

    def fault(
        self, kind: str, detail: str, position: int | None = None, severity: str = 'error'
    ) -> None:
        """Report a fault of the file, or of the row at a position."""
        row, file = None, ''
        if position is not None:
            row = int(self.cells.index[position]) + 2
            file = next((self[name].iloc[position] for name in NAMES if name in self), '')
        self.on_fault(Fault(kind, detail, str(self.file), row, file, severity))

    def require(self, columns: Sequence[str], one_of: Sequence[str] = ()) -> None:
        """Report every column that is missing or ambiguous; of `one_of`, one must be there."""
        missing = [name for name in columns if name not in self]
        if one_of and not any(name in self for name in one_of):
            missing = [' or '.join(one_of), *missing]
        found = ', '.join(map(str, self.cells.columns))
        for name in missing:
            self.fault('missing column', f'there is no column {name}; found: {found}')
        for name in self.repeated.intersection([*columns, *one_of]):
            self.fault('missing column', f'column {name} is given twice')

    def check(
        self, column: str, good: np.ndarray, kind: str, problem: str, severity: str = 'error'
    ) -> None:
        """Report every cell of a column that is not good ([N] bool)."""
        for position in np.flatnonzero(~good).tolist():
            value = self[column].iloc[position][:SHOWN_CHARACTERS]
            self.fault(kind, f'column {column!r}: {value!r} {problem}', position, severity)

    def map(
        self,
        column: str,
        meanings: Mapping[str, Any],
        kind: str,
        *,
        allowed: str = '',
        dtype: type = float,
        wrong: Any = np.inf,
    ) -> np.ndarray:  # [N]
        """Replace each cell by its meaning; a cell without one is a fault and becomes `wrong`."""
        if column not in self:
            return np.full(len(self), wrong, dtype)
        allowed = allowed or ', '.join(name or 'empty' for name in meanings)
        codes, values = pd.factorize(self[column].to_numpy(object))
        good = np.array([value in meanings for value in values], bool)[codes]
        self.check(column, good, kind, f'is not allowed (allowed: {allowed})')
        return np.array([meanings.get(value, wrong) for value in values], dtype)[codes]

    def firsts(
        self, column: str, kind: str, values: np.ndarray | None = None
    ) -> np.ndarray:  # [N] bool
        """Which rows are the first with their value; every later one is a fault.

        Args:
            column: The column that messages name.
            kind: Kind of the fault, unless two rows are equal in all cells.
            values: [N] What is compared, by default the cells; None is not compared.
        """
        values = self[column].to_numpy(object) if values is None else values
        later = pd.Series(values).duplicated().to_numpy() & (pd.notna(values))
        first = dict(zip(values[::-1], range(len(values) - 1, -1, -1), strict=True))
        for position in np.flatnonzero(later).tolist():
            earlier = first[values[position]]
            is_same = self.cells.iloc[earlier].equals(self.cells.iloc[position])
            value, row = self[column].iloc[position], int(self.cells.index[earlier]) + 2
            detail = f'column {column!r}: {value!r} already occurs in row {row}'
            self.fault('duplicate row' if is_same else kind, detail, position)
        return ~later

    def _read(self, hint: str) -> pd.DataFrame:
        rows = self._lines(hint)
        if not rows:
            return pd.DataFrame()
        header, kept = rows[0], {}
        for number, row in enumerate(rows[1:]):
            place = {'csv': str(self.file), 'row': number + 2}
            if not any(row):
                continue
            if len(row) != len(header):
                detail = f'{len(row)} fields, but the header has {len(header)}'
                self.on_fault(Fault('row of another width', detail, **place))
            elif not _is_utf8(row):
                self.on_fault(Fault('row not in UTF-8', 'the row is not UTF-8 text', **place))
            else:
                kept[number] = row
        if not kept:
            self.fault('empty CSV', 'there is no usable row below the header')
        table = pd.DataFrame(list(kept.values()), list(kept), header, object)
        self.repeated = set(table.columns[table.columns.duplicated()])
        return table.loc[:, ~table.columns.duplicated()]

    def _lines(self, hint: str) -> list[list[str]]:
        if not self.file.is_file():
            self.fault('missing file', f'there is no such CSV file{hint}')
            return []
        try:
            data = self.file.read_bytes()
            data = gzip.decompress(data) if self.file.suffix == '.gz' else data
            text = io.StringIO(data.decode('utf-8-sig', 'surrogateescape'), newline='')
            rows = list(csv.reader(text))
        except (ValueError, OSError, EOFError, zlib.error, csv.Error) as error:
            self.fault('unreadable CSV', f'it is not a readable CSV file: {error}')
            return []
        if not rows:
            self.fault('empty CSV', 'the CSV file is empty')
        elif not _is_utf8(rows[0]):
            self.fault('unreadable CSV', 'the header of the CSV file is not UTF-8 text')
            return []
        return rows


@dataclass(frozen=True, eq=False)
class Records:
    """One row per image, in a fixed order; the arrays of text are object arrays."""

    root: Path
    csv: str  # name of the CSV file; '' for a folder of images
    row: np.ndarray  # [N] int64, sample id: 0-based row of the CSV (of `Study` files: of the image)
    path: np.ndarray  # [N] as in the CSV
    file: np.ndarray  # [N] relative to root
    patient: np.ndarray  # [N]
    study: np.ndarray  # [N] the part of `path` that names the study
    view: np.ndarray  # [N] 'frontal', 'lateral'; '' where it is neither or unknown
    sex: np.ndarray  # [N] 'Male', 'Female', 'Unknown'
    age: np.ndarray  # [N] float64, NaN where unknown
    ap_pa: np.ndarray  # [N] 'AP', 'PA', 'LL', 'RL', ''
    # [N, K] float32: 1, 0, -1 uncertain, NaN blank; inf for a wrong cell where faults are collected
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.row)

    def select(self, indices: np.ndarray) -> 'Records':
        """The records at these positions (or where this mask is true), in that order."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: v[indices] for name, v in values.items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays)


class Folder:
    """The images below a folder, looked up as in a `Store`."""

    def __init__(self, root: str | Path, on_fault: OnFault = refuse) -> None:
        self.path = Path(root)
        self.on_fault = on_fault

    def exists(self, file: str) -> bool:
        """Whether there is such a file or folder."""
        return os.path.exists(self.path / file)

    def below(self, place: str = '', refused: Sequence[str] = ()) -> list[str]:
        """The images in a folder, sorted, relative to the root.

        Hidden files and folders are ignored, and so are links within the root: their targets are
        listed themselves. A link that leaves the root, an unreadable folder, and a file with one of
        the `refused` names are faults.
        """
        files, places = [], [place]
        while places:
            place = places.pop()
            try:
                with os.scandir(self.path / place) as found:
                    entries = [entry for entry in found if not entry.name.startswith('.')]
            except OSError as error:
                self.on_fault(Fault('unreadable folder', f'{error}', file=place))
                continue
            for entry in entries:
                file = f'{place}/{entry.name}' if place else entry.name
                is_image = entry.name.lower().endswith(IMAGE_SUFFIXES)
                if entry.name in refused:
                    self.on_fault(_scored_fault(self.path, file))
                if entry.is_symlink():
                    if is_image or os.path.isdir(self.path / file):
                        self.check_link(file)
                elif entry.is_dir():
                    places.append(file)
                elif is_image and entry.is_file():
                    files.append(file)
        return sorted(files)

    def check_link(self, file: str, csv: str = '', row: int | None = None) -> bool:
        """Whether a file stays below the root when links are followed; otherwise it is a fault."""
        try:
            refuse_link_out(self.path, self.path / file)
        except ValueError as error:
            self.on_fault(Fault('link that leaves the folder', str(error), csv, row, file))
            return False
        return True


# ---- Data sets


def read_csv(
    data_path: str | Path,
    csv_name: str,
    *,
    image_suffix: str = '',
    logger: logging.Logger | None = None,
    look_up: str = 'first',
    on_fault: OnFault = refuse,
) -> Records:
    """Read and check a CSV file in CheXpert's layout.

    A row is an image (`Path`) or a study (`Study`: its images are those below that folder). In a
    `Study` file, or without the columns of `DESCRIPTION`, views come from the file names, and sex,
    age and projection are unknown. Columns are found by name.

    Args:
        data_path: The folder that holds the CSV file and the images, or a packed store of it.
        csv_name: Name of the CSV file inside `data_path`.
        image_suffix: What replaces the suffix of the paths, such as '.png'; '' keeps it.
        logger: Logs, in one line, how paths become files.
        look_up: Which images must exist: the 'first' of each prefix (what precedes a patient's
            folder), 'all' (as always in a store), or 'none' (`file` is then the path).
        on_fault: Receives what is wrong; by default the first fault is an error.

    Raises:
        ValueError: If anything is wrong, naming file, row and column.
    """
    root = Path(data_path)
    _check_suffix(image_suffix)
    table = Table(root / csv_name, on_fault, _missing_hint(root, csv_name))
    has_path = 'Path' in table
    described = has_path and any(name in table for name in DESCRIPTION)
    if len(table):
        table.require([*(DESCRIPTION if described else ()), *LABELS], KEYS)
    images = open_images(root, on_fault)
    key, form = ('Path', IMAGE_PATH) if has_path else ('Study', STUDY_PATH)
    if key not in table:
        table.cells = pd.DataFrame(columns=[key], dtype=object)
    parts, good = _match_paths(table, key, form)
    rule, first = PathRule(False, image_suffix if has_path else ''), np.array([], int)
    if look_up != 'none' or not has_path:
        rule, first = _choose_rule(table[key][good], parts[good], images, rule.suffix)
    files = np.full(len(table), None, object)
    files[good] = [rule.file(path) for path in table[key][good]]
    good &= table.firsts(key, 'duplicate path', files)
    description = _read_description(table) if described else _unknown(len(table))
    labels = _read_labels(table)
    position = np.flatnonzero(good)
    paths, files = table[key].to_numpy(object)[position], files[position]
    if not has_path:
        position, paths, files = _expand_studies(table, position, files, images, image_suffix)
    if not described:
        description['view'] = _views_of(table, paths, position)
    if logger is not None:
        logger.info(f'{csv_name}: {len(paths)} images; {rule.describe()}')
    records = Records(
        root=root,
        csv=csv_name,
        row=table.cells.index.to_numpy(np.int64)[position] if has_path else np.arange(len(paths)),
        path=paths,
        file=files,
        patient=parts['patient'].to_numpy(object)[position],
        study=parts['study'].to_numpy(object)[position],
        view=description['view'] if not described else description['view'][position],
        **{name: description[name][position] for name in ('sex', 'age', 'ap_pa')},
        labels=labels[position],
    )
    if look_up == 'none' or not has_path and isinstance(images, Folder):
        return records
    which = np.isin(position, first) if look_up == 'first' else np.full(len(records), True)
    return _existing(records, images, which, on_fault, logger)


def read_folder(
    data_path: str | Path,
    *,
    allow_all_images: bool,
    logger: logging.Logger | None = None,
    on_fault: OnFault = refuse,
) -> Records:
    """List every image below a folder or in a packed store, sorted, as records without labels.

    Images that a store was packed without are excluded; for links see `Folder.below`.

    Raises:
        ValueError: If there is no image, if a link leaves the folder, or if the folder holds
            train.csv or valid.csv (so it holds images that are scored later) and not
            `allow_all_images`.
    """
    root, images = Path(data_path), open_images(data_path, on_fault)
    refused = () if allow_all_images else SCORED_FILES
    if isinstance(images, Folder):
        if not root.is_dir():
            raise ValueError(f'DATA.DATA_PATH is not a folder: {root}')
        files = images.below('', refused)
    else:
        files = sorted([*images.files, *images.left_out])
        if refused and images.about['scored']:
            on_fault(_scored_fault(root, STORE_FILE))
    if not files:
        detail = f'there is no image below {root} (looked for {", ".join(IMAGE_SUFFIXES)})'
        on_fault(Fault('missing image', detail))
    paths, size = np.array(files, object), len(files)
    records = Records(
        root=root,
        csv='',
        row=np.arange(size),
        path=paths,
        file=paths,
        patient=np.array([(PATIENT_PART.search(f) or {1: f})[1] for f in files], object),
        study=np.array([(IMAGE_PATH.match(f) or {'study': f})['study'] for f in files], object),
        **_unknown(size),
        labels=None,
    )
    if isinstance(images, Folder):
        return records
    return _existing(records, images, np.full(size, True), on_fault, logger)


def read_mimic(
    data_path: str | Path,
    split: str,
    *,
    labeller: str,
    image_suffix: str = '',
    optional: bool = False,
    logger: logging.Logger | None = None,
    look_up: str = 'first',
    on_fault: OnFault = refuse,
) -> Records | None:
    """Read and check a split of MIMIC-CXR-JPG.

    The folder holds mimic-cxr-*-split.csv, -metadata.csv and -<labeller>.csv, each as it is or as
    .gz, and files/p10/p10000032/s50414267/<dicom_id>.jpg. Views other than frontal and lateral are
    ''. Sex and age are unknown: these files do not contain them. Images of studies that are missing
    from the label file are excluded.

    Args:
        data_path: The folder, or a packed store of it.
        split: 'train', 'validate' or 'test'.
        labeller: Whose labels are used, see DATA.LABELLER.
        image_suffix: What replaces '.jpg', such as '.png'; '' keeps it.
        optional: Whether the images of the split may be absent.
        logger: Logs, in one line, where images and labels come from and what is excluded.
        look_up: Whether the 'first' or 'all' images must exist.
        on_fault: Receives what is wrong; by default the first fault is an error.

    Returns:
        Records in the order of the split file, whose 0-based row is `row`. None for an optional
        split whose first image does not exist.

    Raises:
        ValueError: If anything is wrong, naming file, row and column.
    """
    _check_suffix(image_suffix)
    root, suffix = Path(data_path), image_suffix or '.jpg'
    tables = {kind: _open_mimic(root, kind, on_fault) for kind in ('split', 'metadata', labeller)}
    if any(not len(table) for table in tables.values()):
        return None
    table, metadata, labels = tables.values()
    chosen = _rows_of_split(table, split)
    place = _look_up_rows(table, chosen, metadata, 'dicom_id', ('subject_id', 'study_id'))
    absent = np.isin(np.arange(len(table)), chosen[place < 0])
    table.check('dicom_id', ~absent, 'missing row', f'has no row in {metadata.file.name}')
    chosen, place = chosen[place >= 0], place[place >= 0]
    position = metadata['ViewPosition'].to_numpy(object)[place]
    place = _look_up_rows(table, chosen, labels, 'study_id', ('subject_id',))
    unlabelled = table['study_id'].iloc[chosen[place < 0]]
    for row in chosen[place < 0][~unlabelled.duplicated().to_numpy()].tolist():
        detail = f'the study has no row in {labels.file.name}'
        table.fault('study without labels', detail, row, 'warning')
    if not (place >= 0).any():
        labels.fault('missing row', f'there is no row for any study of the split {split!r}')
        return None
    images = table.cells.iloc[chosen[place >= 0]]
    position = position[place >= 0]
    studies = 'files/p' + images['subject_id'].str[:2] + '/p' + images['subject_id']
    studies += '/s' + images['study_id']
    paths = studies + '/' + images['dicom_id']
    view = np.array([POSITIONS.get(name, '') for name in position], object)
    records = Records(
        root=root,
        csv=table.file.name,
        row=images.index.to_numpy(np.int64),
        path=(paths + '.jpg').to_numpy(object),
        file=(paths + suffix).to_numpy(object),
        patient=('p' + images['subject_id']).to_numpy(object),
        study=studies.to_numpy(object),
        **_unknown(len(images)) | {'view': view},
        labels=_read_labels(labels)[place[place >= 0]],
    )
    records = replace(records, ap_pa=np.where(view == 'frontal', position, '').astype(object))
    source = open_images(root, on_fault)
    if optional and not source.exists(records.file[0]):
        return None
    if logger is not None:
        logger.info(
            f'{table.file.name}, {split}: {len(records)} images; file = DATA_PATH / '
            f'files/pNN/pSUBJECT/sSTUDY/DICOM{suffix}; labels of {labels.file.name}, which has no '
            f'row for {len(unlabelled)} images of {unlabelled.nunique()} studies; '
            f'neither frontal nor lateral: {(view == "").sum()}'
        )
    which = np.arange(len(records)) == 0 if look_up == 'first' else np.full(len(records), True)
    return _existing(records, source, which, on_fault, logger)


def named_images(data_path: str | Path, *, image_suffix: str = '') -> set[str]:
    """The files that `read_mimic` names for all splits and all labellers that are there."""
    root = Path(data_path)
    splits = _open_mimic(root, 'split', refuse)['split'].unique()
    labellers = [name for name in LABELLERS if list(root.glob(f'mimic-cxr-*-{name}.csv*'))]
    named = set()
    for labeller in labellers or LABELLERS:
        for split in splits:
            named.update(read_mimic(root, split, labeller=labeller, image_suffix=image_suffix).file)
    return named


def find_table(root: Path, kind: str) -> Path:
    """The one MIMIC-CXR file of this kind, of any version."""
    if not root.is_dir():
        raise ValueError(f'DATA.DATA_PATH is not a folder: {root}')
    pattern = f'mimic-cxr-*-{kind}.csv'
    found = sorted([*root.glob(pattern), *root.glob(f'{pattern}.gz')])
    if len(found) != 1:
        names = ', '.join(file.name for file in found) or 'none'
        raise ValueError(
            f'{root} must hold exactly one {pattern} or {pattern}.gz, found: {names} '
            '(see DATA.DATA_PATH, DATA.LABELLER)'
        )
    return found[0]


def open_images(root: str | Path, on_fault: OnFault = refuse) -> Store | Folder:
    """The images of a data set, which are looked up in a packed store or in a folder."""
    return open_store(root) if is_store(root) else Folder(root, on_fault)


# ---- Views, hold-out and subsets


def select_views(records: Records, views: str) -> Records:
    """Keep the images of these views: 'frontal', 'lateral' or 'all'."""
    if views == 'all':
        return records
    keep = records.view == views
    if len(records) and not keep.any():
        raise ValueError(
            f'{records.root / records.csv}: none of the {len(records)} images is {views} '
            '(DATA.VIEWS, EVAL.VIEWS)'
        )
    return records.select(keep)


def split_holdout(records: Records, fraction: float) -> tuple[Records, Records]:
    """Split off a fraction of the patients, the same ones for every seed.

    Call it on all records of the CSV file. Views and subsets are chosen afterwards, so that they do
    not change who is held out.

    Returns:
        (train, holdout): holdout has the first `fraction` of all patients, rounded up, in the
        order of a hash of their names.
    """
    rank, num_patients = _patient_order(records.patient, key='holdout')
    num_held_out = _share(fraction, num_patients)
    if num_held_out >= num_patients:
        raise ValueError(
            f'DATA.HOLDOUT_FRACTION {fraction} leaves none of the {num_patients} patients of '
            f'{records.csv} to train on'
        )
    return records.select(rank >= num_held_out), records.select(rank < num_held_out)


def take_subset(records: Records, *, fraction: float, images: int, seed: int) -> Records:
    """Keep a share of the patients or a number of images; a larger subset contains a smaller one.

    Args:
        records: The records to choose from; their order is kept.
        fraction: DATA.TRAIN_FRACTION, share of the patients, rounded up; 1 for all.
        images: DATA.TRAIN_IMAGES, images of the first patients, of the last one in part; 0 for all.
        seed: Draws the order of the patients.
    """
    if images == 0 and fraction == 1:
        return records
    given = f'got DATA.TRAIN_FRACTION {fraction}, DATA.TRAIN_IMAGES {images}'
    if images and fraction != 1:
        raise ValueError(f'give a fraction or a number of images, not both: {given}')
    if not 0 < fraction <= 1:
        raise ValueError(f'the fraction must be above 0 and at most 1: {given}')
    if not 0 <= images <= len(records):
        raise ValueError(f'there are {len(records)} images to choose from: {given}')
    rank, num_patients = _patient_order(records.patient, key=str(seed))
    if images:
        return records.select(np.sort(np.argsort(rank, kind='stable')[:images]))
    return records.select(rank < _share(fraction, num_patients))


def training_records(config: Config, records: Records) -> Records:
    """The images that fine-tuning learns from, given all that are not held out.

    These are the images of DATA.VIEWS, in a binary task only those with a target, and of these the
    subset of DATA.TRAIN_FRACTION or DATA.TRAIN_IMAGES.
    """
    data = config.DATA
    records = select_views(records, data.VIEWS)
    if not find_task(data.TASK).uses_policies:
        targets = scored_targets(records.labels, task=data.TASK, blank=data.BLANK)
        records = records.select(~np.isnan(targets[:, 0]))
    return take_subset(
        records, fraction=data.TRAIN_FRACTION, images=data.TRAIN_IMAGES, seed=config.SEED
    )


def describe_subset(config: Config) -> str:
    """Which part of the training images is used, and by which option; '' for all of them."""
    data = config.DATA
    if data.TRAIN_IMAGES:
        return f'{data.TRAIN_IMAGES} of the images: DATA.TRAIN_IMAGES'
    if data.TRAIN_FRACTION < 1:
        return f'{100 * data.TRAIN_FRACTION:g} % of the patients: DATA.TRAIN_FRACTION'
    return ''


# ---- The data set of a config


@dataclass(frozen=True)
class DataSet:
    """A kind of data set: how its splits are read, and whether its images have labels."""

    # (config, root, split, optional=, logger=, look_up=, on_fault=) -> Records, or None
    read: Callable[..., Records | None]
    labelled: bool


def _register(*names: str, labelled: bool) -> Callable:
    def add(read: Callable) -> Callable:
        for name in names:
            DATASETS.register(name)(DataSet(read, labelled))
        return read

    return add


@_register('chexpert', labelled=True)
def _read_chexpert(
    config: Config, root: str | Path, split: str, *, optional: bool, **options: Any
) -> Records | None:
    data = config.DATA
    csv_name = csv_names(config)[split]
    if optional and not (Path(root) / csv_name).is_file():
        return None
    return read_csv(root, csv_name, image_suffix=data.IMAGE_SUFFIX, **options)


@_register('mimic-cxr', labelled=True)
def _read_mimic_split(
    config: Config, root: str | Path, split: str, **options: Any
) -> Records | None:
    options |= {'labeller': config.DATA.LABELLER, 'image_suffix': config.DATA.IMAGE_SUFFIX}
    return read_mimic(root, MIMIC_SPLITS[split], **options)


@_register('folder', 'imagenet', labelled=False)  # SimMIM's 'imagenet' is a folder, too
def _read_unlabelled(
    config: Config,
    root: str | Path,
    split: str,
    *,
    logger: logging.Logger | None = None,
    on_fault: OnFault = refuse,
    **_: Any,
) -> Records | None:
    if split != 'train':
        return None
    allow = config.DATA.ALLOW_ALL_IMAGES
    return read_folder(root, allow_all_images=allow, logger=logger, on_fault=on_fault)


@register_check
def check_dataset(config: Config, stage: str | None) -> None:
    """Refuse a data set without labels for fine-tuning; called by `check_config`."""
    dataset = config.DATA.DATASET
    if stage == 'finetune' and not DATASETS[dataset].labelled:
        names = ' or '.join(repr(name) for name, entry in DATASETS.items() if entry.labelled)
        raise ValueError(f'DATA.DATASET must be {names} for fine-tuning, got {dataset!r}')


def read_split(
    config: Config, split: str, logger: logging.Logger, *, optional: bool = False
) -> Records | None:
    """All records of 'train', 'valid' or 'test'; None for an optional split that is not there."""
    root, dataset = data_root(config, logger), DATASETS[config.DATA.DATASET]
    return dataset.read(config, root, split, optional=optional, logger=logger)


def csv_names(config: Config) -> dict[str, str]:
    """Split -> name of its CSV file in CheXpert's layout."""
    data = config.DATA
    return {'train': data.TRAIN_CSV, 'valid': data.VALID_CSV, 'test': data.TEST_CSV}


def data_root(config: Config, logger: logging.Logger) -> str:
    """The folder to read: DATA.DATA_PATH, or the copy of that store in DATA.CACHE_DIR.

    The name of a copy contains the checksum of its contents, so that several stores can share
    DATA.CACHE_DIR.

    Raises:
        ValueError: If DATA.CACHE_DIR is set for anything but a store, or cannot hold it.
    """
    data = config.DATA
    if not data.CACHE_DIR:
        return data.DATA_PATH
    source = Path(data.DATA_PATH)
    if not is_store(source):
        raise ValueError(
            f'DATA.CACHE_DIR is for packed stores, but DATA.DATA_PATH {source} is not a store: '
            'pack it with scripts/pack.py, or leave DATA.CACHE_DIR empty'
        )
    target = Path(data.CACHE_DIR) / f'{source.resolve().name}-{file_crc32(source / STORE_FILE):08x}'
    try:
        return str(copy_store(source, target, logger))
    except OSError as error:
        raise ValueError(f'DATA.CACHE_DIR: cannot copy {source} to {target}: {error}') from error


def describe_images(data_path: str | Path) -> str:
    """The form in which the images are read: files, or those of a packed store."""
    if not is_store(data_path):
        return 'files'
    return f'packed {describe_form(read_about(data_path)["settings"])}'


def log_store(config: Config, logger: logging.Logger) -> None:
    """Log the form of the images of a store, and warn if views enlarge them."""
    path = config.DATA.DATA_PATH
    if not is_store(path):
        return
    about = read_about(path)
    logger.info(f'{path}: {about["images"]} images, {describe_images(path)}')
    size, side = config.DATA.IMG_SIZE, about['settings']['size']
    needed = int(256 / 224 * size) if config.TEST.CROP else size
    if side is not None and side < needed:
        logger.warning(
            f'{path}: images of {side} px are enlarged, views of {size} px need {needed} px '
            f'(DATA.IMG_SIZE, TEST.CROP): pack them with scripts/pack.py --size {needed} or more'
        )


# ---- Groups of patients and images


def standard_groups(records: Records, age_bands: Sequence[int]) -> dict[str, np.ndarray]:
    """Sex, age band and view of each image, as text that is '' where unknown.

    Age 0 counts as unknown: CheXpert's patients are adults, and 0 is a missing age there.

    Args:
        records: The images.
        age_bands: Where the bands begin, in years, ascending; the last has no end.

    Returns:
        'Sex'; 'Age' such as '40-59' or '80 and over'; 'View': 'Lateral', or 'Frontal' with its
        projection if it has one ('Frontal AP').
    """
    frontal = np.array([f'Frontal {name}'.strip() for name in records.ap_pa], object)
    frontal = np.where(records.view == 'frontal', frontal, '')
    ends = [f'{start}-{end - 1}' for start, end in zip(age_bands, age_bands[1:], strict=False)]
    names = np.array([f'under {age_bands[0]}', *ends, f'{age_bands[-1]} and over'], object)
    band = names[np.searchsorted(age_bands, np.nan_to_num(records.age), side='right')]
    return {
        'Sex': np.where(records.sex == 'Unknown', '', records.sex),
        'Age': np.where(np.isnan(records.age) | (records.age == 0), '', band),
        'View': np.where(records.view == 'lateral', 'Lateral', frontal),
    }


def group_columns(
    records: Records,
    columns: Sequence[str],
    *,
    demographics: str = '',
    options: tuple[str, str] = ('EVAL.GROUPS', 'DATA.DEMOGRAPHICS'),
) -> dict[str, np.ndarray]:
    """Each image's text in further columns, '' where there is none.

    A column is taken from the records' own CSV file, by row, otherwise from the demographics file,
    by patient; patients that are not in that file have ''.

    Args:
        records: The images.
        columns: Names of columns.
        demographics: A CSV file inside the data folder with one row per patient, such as
            CheXpert's (PATIENT, GENDER, AGE_AT_CXR, PRIMARY_RACE, ETHNICITY) saved as CSV.
        options: The names that errors use for the options of columns and demographics.

    Returns:
        Column -> [N] text, in the given order.

    Raises:
        ValueError: If a column is in neither file or is not a column of groups, or if the
            demographics do not fit.
    """
    for name in columns:
        if name in (*STANDARD_GROUPS, *NO_GROUPS):
            raise ValueError(
                f'{options[0]}: {name!r} is not a further column of groups (a report always has '
                f'{", ".join(STANDARD_GROUPS)})'
            )
    if not columns or not len(records):
        return {name: np.array([], object) for name in columns}
    own, more = _own_cells(records), pd.DataFrame()
    if demographics and not set(columns) <= set(own):
        more = _read_demographics(records, demographics, options[1])
    found = {}
    for name in columns:
        if name in own:
            found[name] = own[name].to_numpy(object)
        elif name in more:
            values = _one_value_each(more, name, records.root / demographics)
            found[name] = values.reindex(records.patient, fill_value='').to_numpy(object)
        else:
            there = ', '.join(map(str, (*own, *more))) or 'none'
            raise ValueError(
                f'{options[0]}: no column {name!r}; found: {there} ({options[1]} may name a CSV '
                'file with more columns)'
            )
        count = len(set(found[name]) - {''})
        if count > MOST_GROUPS:
            raise ValueError(
                f'{options[0]}: {name!r} has {count} different values, at most {MOST_GROUPS} are '
                'allowed'
            )
    return found


def _own_cells(records: Records) -> pd.DataFrame:
    """The records' own CSV file, one row per record; nothing for a folder of images."""
    if not records.csv:
        return pd.DataFrame()
    cells = Table(records.root / records.csv).cells
    if 'Study' in cells and 'Path' not in cells:
        return cells.set_index('Study', drop=False).loc[records.study]
    return cells.loc[records.row]


def _read_demographics(records: Records, name: str, option: str) -> pd.DataFrame:
    """The demographics; the index is the row of the file, the column 'patient' is added."""
    file = records.root / name
    if file.suffix.lower() in ('.xlsx', '.xls'):
        raise ValueError(f'{option}: {file} is a spreadsheet: export it as CSV')
    table = Table(file)
    table.require((), PATIENT_COLUMNS)
    key = next(column for column in PATIENT_COLUMNS if column in table)
    example = records.patient[0]
    form = re.compile(re.escape(example.rstrip('0123456789')) + '[0-9]+')
    good = np.array([form.fullmatch(patient) is not None for patient in table[key]], bool)
    table.check(key, good, 'form of an id', f'is not a name of a patient such as {example}')
    return table.cells.rename(columns={key: 'patient'})


def _one_value_each(table: pd.DataFrame, column: str, file: Path) -> pd.Series:
    """Patient -> value in a column of the demographics."""
    pairs = table.drop_duplicates(['patient', column])
    again = pairs['patient'].duplicated(keep=False)
    if again.any():
        patient = pairs['patient'][again].iloc[0]
        rows = pairs.index[pairs['patient'] == patient][:2] + 2
        raise ValueError(
            f'{file}: {patient} has different values of {column!r} in the rows {rows[0]} and '
            f'{rows[1]} (the header is row 1)'
        )
    return pairs.set_index('patient')[column]


# ---- Predictions and label files


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model predicts for images or studies, one row each."""

    file: Path
    key: str  # 'Path' or 'Study': what a row is
    row: np.ndarray  # [N] 0-based row of the file
    names: np.ndarray  # [N] as in the file
    labels: tuple[str, ...]  # in CheXpert's order, followed by those of the binary tasks
    probabilities: np.ndarray  # [N, K] in [0, 1]; NaN where empty, if that is allowed
    ignored: tuple[str, ...]  # the other columns of the file


@dataclass(frozen=True, eq=False)
class LabelTable:
    """A CSV file of labels."""

    file: Path
    key: str  # 'Path' or 'Study': what a row is
    task: str
    views: str  # views of the images that are scored
    records: Records  # one per row of the file: of an image of these views, or of a study
    labels: tuple[str, ...]
    targets: np.ndarray  # [N, K] 1, 0, or NaN where not scored
    missing: tuple[str, ...]  # observations without a column in the file

    def __len__(self) -> int:
        return len(self.records)


def write_predictions(
    path: str | Path,
    probabilities: np.ndarray,
    *,
    paths: Sequence[str],
    labels: Sequence[str],
    source: dict[str, Any],
) -> None:
    """Write one row per image, and `source` (checkpoint, data, views...) as JSON next to it.

    Each file is written completely or not at all.

    Args:
        path: The CSV file; the JSON file has the same name with `.json`.
        probabilities: [N, K] in [0, 1], written with 9 significant digits; NaN as an empty cell.
        paths: [N] as in the CSV file of the data set.
        labels: [K] names of the columns, in order.
        source: What made the file.
    """
    table = pd.DataFrame(probabilities, columns=list(labels))
    table.insert(0, 'Path', list(paths))
    # The name of a file need not be UTF-8: in that case its bytes are written as they are.
    rows = table.to_csv(index=False, float_format='%.9g').encode('utf-8', 'surrogateescape')
    replace_file(Path(path).with_suffix('.json'), (json.dumps(source, indent=1) + '\n').encode())
    replace_file(Path(path), rows)


def read_predictions(path: str | Path, *, allow_empty: bool = False) -> Predictions:
    """Read and check a CSV file of `Path` or `Study` and labels by name, columns in any order.

    Args:
        path: The CSV file.
        allow_empty: Whether cells may be empty.

    Raises:
        ValueError: Naming file, row and column, if a name occurs twice (see `normalise_name`), a
            cell is not a number from 0 to 1, or the file is not such a table.
    """
    table = Table(path)
    known = dict.fromkeys(label for task in TASKS.values() for label in task.labels)
    labels = tuple(label for label in known if label in table)
    table.require(labels, KEYS)
    if not labels:
        table.require([' or '.join(known)])
    key = next(key for key in KEYS if key in table)
    _unique_rows(table, key)
    columns = [_read_probabilities(table, label, allow_empty) for label in labels]
    return Predictions(
        file=table.file,
        key=key,
        row=table.cells.index.to_numpy(),
        names=table[key].to_numpy(object),
        labels=labels,
        probabilities=np.stack(columns, axis=1),
        ignored=tuple(name for name in table.cells if name != key and name not in labels),
    )


def predictions_for(
    file: str | Path, paths: Sequence[str], labels: Sequence[str] = LABELS
) -> np.ndarray:
    """A file's probabilities for these images; an image has its study's in a file of studies.

    Args:
        file: See `read_predictions`.
        paths: [N] of images; what precedes a patient's folder and the suffix may differ.
        labels: [K] wanted.

    Returns:
        [N, K] float32, NaN where the file has no such row or column.

    Raises:
        ValueError: For a bad file, one of another task (according to the JSON file next to it), or
            if two of the paths are the same to `normalise_name`.
    """
    predictions = read_predictions(file)
    check_task(file, 'observations')
    return look_up(predictions, row_names(predictions, paths), labels).astype(np.float32)


def check_task(file: str | Path, task: str) -> None:
    """Refuse predictions of another DATA.TASK, according to the JSON file next to them."""
    source_file = Path(file).with_suffix('.json')
    if not source_file.is_file():
        return
    try:
        source = json.loads(source_file.read_bytes())
    except (ValueError, OSError) as error:
        raise ValueError(f'{source_file} is not readable JSON: {error}') from error
    found = source.get('task') if isinstance(source, dict) else None
    if found not in (None, task):
        raise ValueError(f'{file}: the predictions are of DATA.TASK {found!r}, not {task!r}')


def row_names(predictions: Predictions, paths: Sequence[str]) -> list[str]:
    """The normalised name of each image's row in the predictions: its own or its study's."""
    names = unique_names(paths, 'the images to look up')
    return [study_name(name) for name in names] if predictions.key == 'Study' else list(names)


def look_up(predictions: Predictions, names: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Probabilities [N, K] of the rows of these normalised names, NaN where there is none."""
    own = pd.Index([normalise_name(name) for name in predictions.names])
    rows = own.get_indexer(pd.Index(names, dtype=object))
    found = np.full((len(names), len(labels)), np.nan)
    for k, label in enumerate(labels):
        if label in predictions.labels:
            column = predictions.probabilities[:, predictions.labels.index(label)]
            found[:, k] = np.where(rows >= 0, column[rows], np.nan)
    return found


def read_label_file(
    path: str | Path, *, task: str = 'observations', blank: str = 'negative', views: str = 'all'
) -> LabelTable:
    """Read and check labels: `Path` or `Study`, then observations by name, in any order.

    Columns Sex, Age, Frontal/Lateral and AP/PA are read if they are there; a view that is not given
    comes from the image's name.

    Args:
        path: The CSV file.
        task: DATA.TASK; the binary ones need all observations.
        blank: DATA.BLANK, the target of a label that is not mentioned.
        views: 'frontal', 'lateral' or 'all': the rows that are kept of a file of images.

    Raises:
        ValueError: If anything is wrong, naming file, row and column.
    """
    table = Table(path)
    missing = tuple(label for label in LABELS if label not in table)
    uses_columns = find_task(task).uses_policies
    needed = [name for name in (*DESCRIPTION, *LABELS) if name in table]
    table.require(needed if uses_columns else [*needed, *missing], KEYS)
    if len(missing) == len(LABELS):
        table.require([' or '.join(LABELS)])
    key = next(key for key in KEYS if key in table)
    records = _read_label_rows(table, key)
    if views != 'all' and key == 'Path':
        table.check(key, records.view != '', 'value of the view', 'names no view')
        records = select_views(records, views)
    kept = [k for k, label in enumerate(LABELS) if label not in missing]
    labels, columns = task_labels(task), slice(None)
    if uses_columns:
        labels, columns = tuple(labels[k] for k in kept), kept
    targets = scored_targets(records.labels, task=task, blank=blank)[:, columns]
    return LabelTable(table.file, key, task, views, records, labels, targets, missing)


def normalise_name(name: str) -> str:
    """A name without what precedes the patient's folder and without an image's suffix.

    'CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg' becomes
    'patient64541/study1/view1_frontal', MIMIC-CXR's 'files/p10/p10000032/s50414267/x.jpg'
    'p10000032/s50414267/x'. A name without a patient's folder keeps all but its suffix.
    """
    match = STUDY.search(name)
    name = name[match.start() :] if match else name
    return SUFFIX.sub('', name.rstrip('/'))


def study_name(name: str) -> str:
    """The normalised name of an image's study; the name itself if it names no study."""
    match = STUDY.search(name)
    return match[0] if match else name


def unique_names(names: Sequence[str], source: str) -> np.ndarray:
    """[N] normalised names; an empty one, or two equal ones, are a ValueError with their rows."""
    normalised = np.array([normalise_name(name) for name in names], object)
    bad = pd.Series(normalised).duplicated().to_numpy() | (normalised == '')
    if bad.any():
        position = int(np.argmax(bad))
        first = int(np.argmax(normalised == normalised[position]))
        reason = f'the name is that of row {first + 2}, too' if first < position else 'no name'
        raise ValueError(f'{source}, row {position + 2} (the header is row 1): {reason}')
    return normalised


def views_in_names(names: Sequence[str]) -> np.ndarray:
    """[N] 'frontal' or 'lateral' as in names such as view1_frontal.jpg, '' for other names."""
    found = [VIEW_NAME.search(name) for name in names]
    return np.array([view[1] if view else '' for view in found], object)


def _unique_rows(table: Table, key: str) -> None:
    normalised = np.array([normalise_name(name) for name in table[key]], object)
    table.check(key, normalised != '', 'form of a path', 'is not a name')
    table.firsts(key, 'duplicate path', normalised)


def _read_probabilities(table: Table, label: str, allow_empty: bool) -> np.ndarray:
    texts = [text for text in table[label].unique() if PROBABILITY.fullmatch(text)]
    allowed = {text: float(text) for text in texts if float(text) <= 1}
    described = 'numbers from 0 to 1'
    if allow_empty:
        allowed[''], described = np.nan, f'{described}, or empty'
    return table.map(label, allowed, 'value of a probability', allowed=described)


def _read_label_rows(table: Table, key: str) -> Records:
    _unique_rows(table, key)
    names = table[key].to_numpy(object)
    matches = [STUDY.search(name) for name in names]
    rests = [name[m.end() :] if m else None for name, m in zip(names, matches, strict=True)]
    good = [rest is not None and (len(rest) > 1 if key == 'Path' else not rest) for rest in rests]
    form = 'FOLDER/patient00001/study1 or FOLDER/p10000032/s50414267'
    form = form if key == 'Study' else form.replace(' or', '/IMAGE.jpg or') + '/IMAGE.jpg'
    table.check(key, np.array(good, bool), 'form of a path', f'is not of the form {form}')
    labels = np.full((len(table), len(LABELS)), np.nan, np.float32)
    for k, label in enumerate(LABELS):
        if label in table:
            labels[:, k] = table.map(label, CELLS, 'value of a label')
    description = _unknown(len(table)) | _read_description(table, optional=True)
    given = description.pop('view')
    return Records(
        root=table.file.parent,
        csv=table.file.name,
        row=table.cells.index.to_numpy(),
        path=names,
        file=names,
        patient=np.array([match['patient'] for match in matches], object),
        study=np.array([match.string[: match.end()] for match in matches], object),
        view=np.where(given == '', views_in_names(names), given),
        **description,
        labels=labels,
    )


# ---- Helpers of the readers


@dataclass(frozen=True)
class PathRule:
    """How a path of the CSV file becomes a file below the root."""

    drop_first_part: bool
    suffix: str

    def file(self, path: str) -> str:
        """The file of a path."""
        file = path.partition('/')[2] if self.drop_first_part else path
        return os.path.splitext(file)[0] + self.suffix if self.suffix else file

    def describe(self) -> str:
        """The rule as one line for the log."""
        kept = 'without its first part' if self.drop_first_part else 'as it is'
        suffix = f', its suffix replaced by {self.suffix}' if self.suffix else ''
        return f'file = DATA_PATH / Path {kept}{suffix}'


def _choose_rule(
    paths: pd.Series, parts: pd.DataFrame, images: Store | Folder, suffix: str
) -> tuple[PathRule, np.ndarray]:
    """The rule under which the first path of each prefix exists, otherwise most paths.

    Returns:
        The rule, and the positions in the table of the first path of each prefix.
    """
    is_first = ~parts['prefix'].duplicated().to_numpy()
    rules = PathRule(True, suffix), PathRule(False, suffix)
    first = parts.index.to_numpy()[is_first]
    for rule in rules:
        if all(images.exists(rule.file(path)) for path in paths[is_first]):
            return rule, first
    sample = paths[:1000]
    found = [sum(images.exists(rule.file(path)) for path in sample) for rule in rules]
    return rules[int(found[1] > found[0])], first


def _match_paths(table: Table, key: str, form: re.Pattern) -> tuple[pd.DataFrame, np.ndarray]:
    """Patient, study and prefix of each row, None for wrong paths, and [N] which are good."""
    paths = table[key]
    matches = [form.fullmatch(path) for path in paths]
    good = np.array([match is not None for match in matches], bool)
    leaves = [path.startswith('/') or '//' in path or '..' in path.split('/') for path in paths]
    leaves = ~good & np.array(leaves, bool)
    problem = 'leaves the data folder: only relative paths without .. are allowed'
    table.check(key, ~leaves, 'path that leaves the folder', problem)
    image = '/view1_frontal.jpg' if form is IMAGE_PATH else ''
    problem = f'is not of the form FOLDER/.../patient00001/study1{image}'
    table.check(key, good | leaves, 'form of a path', problem)
    names = ['patient', 'study', 'prefix']
    groups = [match.group(*names) if match else (None,) * 3 for match in matches]
    return pd.DataFrame(groups, columns=names, dtype=object), good


def _expand_studies(
    table: Table,
    positions: np.ndarray,
    places: np.ndarray,
    images: Store | Folder,
    image_suffix: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images of studies: position of the study in the table, path and file of each image."""
    suffixes = (image_suffix.lower(),) if image_suffix else IMAGE_SUFFIXES
    found = []
    for position, place in zip(positions.tolist(), places, strict=True):
        files = images.below(place) if images.exists(place) else []
        files = [file for file in files if file.lower().endswith(suffixes)]
        if isinstance(images, Folder):
            images.check_link(place)
        if not files:
            detail = f'the study has no image ({", ".join(suffixes)}) below {images.path / place}'
            table.fault('missing image', detail, position)
        study = table['Study'].iloc[position]
        found += [(position, study + file[len(place) :], file) for file in files]
    columns = zip(*found, strict=True) if found else ((), (), ())
    position, paths, files = (list(column) for column in columns)
    return np.array(position, int), np.array(paths, object), np.array(files, object)


def _existing(
    records: Records,
    images: Store | Folder,
    which: np.ndarray,
    on_fault: OnFault,
    logger: logging.Logger | None,
) -> Records:
    """The records whose images exist; each missing one is a fault.

    Args:
        records: The records.
        images: Where the images are.
        which: [N] bool, the files of a folder that are looked up; in a store all are.
        on_fault: Receives the faults.
        logger: Warns of images that a store was packed without.
    """
    hint = '(see DATA.DATA_PATH, and DATA.IMAGE_SUFFIX if the images were converted)'
    csv = str(records.root / records.csv) if records.csv else ''
    keep = np.full(len(records), True)
    if isinstance(images, Store):
        keep = images.position(records.file) >= 0
        checked = np.flatnonzero(~keep)
    else:
        checked = np.flatnonzero(which)
    left_out = 0
    for position in checked.tolist():
        file = records.file[position]
        row = int(records.row[position]) + 2 if csv else None
        if isinstance(images, Store) and file in images.left_out:
            left_out += 1
            reason = images.left_out[file]
            on_fault(Fault('left out of the store', reason, csv, row, file, 'warning'))
        elif isinstance(images, Store) or not os.path.isfile(images.path / file):
            detail = f'there is no image {images.path / file} {hint}'
            on_fault(Fault('missing image', detail, csv, row, file))
            keep[position] = False
        else:
            keep[position] = images.check_link(file, csv, row)
    if left_out and logger is not None:
        logger.warning(
            f'{records.csv or records.root}: {left_out} images could not be read when the store '
            f'was packed and are excluded ({images.path / BAD_FILE})'
        )
    return records if keep.all() else records.select(keep)


def _open_mimic(root: Path, kind: str, on_fault: OnFault) -> Table:
    """The MIMIC-CXR table of this kind; without rows if it cannot be used."""
    columns = {'split': [*ID_FORMS, 'split'], 'metadata': [*ID_FORMS, 'ViewPosition']}
    if kind not in (*columns, *LABELLERS):
        allowed = ', '.join(LABELLERS)
        raise ValueError(f'DATA.LABELLER must be one of {allowed}, got {kind!r}')
    wanted = columns.get(kind, ['subject_id', 'study_id', *LABELS])
    try:
        file = find_table(root, kind)
    except ValueError as error:
        on_fault(Fault('missing file', str(error)))
        return Table(root, lambda fault: None)
    table = Table(file, on_fault)
    if len(table):
        table.require(wanted)
    if any(name not in table for name in wanted if name not in LABELS):
        table.cells = pd.DataFrame()
    return table


def _rows_of_split(table: Table, split: str) -> np.ndarray:
    """Positions of the usable rows of a split of MIMIC-CXR, after a check of all rows."""
    if split not in SPLITS:
        raise ValueError(f'split must be one of {", ".join(SPLITS)}, got {split!r}')
    good = np.full(len(table), True)
    for name, (form, allowed) in ID_FORMS.items():
        has_form = np.array([form.fullmatch(value) is not None for value in table[name]], bool)
        table.check(name, has_form, 'form of an id', f'is not allowed (allowed: {allowed})')
        good &= has_form
    good &= table.firsts('dicom_id', 'duplicate id')
    splits = table.map('split', SPLITS, 'value of the split', dtype=object, wrong='')
    good &= splits != ''
    first = table.cells[good].drop_duplicates('subject_id').set_index('subject_id')['split']
    expected = table['subject_id'].map(first).to_numpy(object)
    same = ~good | (splits == expected)
    table.check('subject_id', same, 'patient in two splits', 'has rows of another split, too')
    chosen = np.flatnonzero(good & (splits == split))
    if not len(chosen):
        table.fault('missing row', f"column 'split': no row is {split!r}")
    return chosen


def _look_up_rows(
    images: Table, chosen: np.ndarray, table: Table, key: str, same: Sequence[str]
) -> np.ndarray:  # [n]
    """Position of the row of each chosen image in a table with one row per key; -1 for none.

    Args:
        images: The split file.
        chosen: [n] positions in it.
        table: Where the rows are looked up.
        key: The column by which they are looked up.
        same: Columns in which the two rows must agree.
    """
    unique = np.flatnonzero(table.firsts(key, 'duplicate id'))
    place = pd.Index(table[key].iloc[unique]).get_indexer(images[key].iloc[chosen])
    place = np.where(place >= 0, unique[place], -1)
    for name in same:
        wanted = images[name].to_numpy(object)[chosen]
        differ = (place >= 0) & (table[name].to_numpy(object)[place] != wanted)
        for i in np.flatnonzero(differ).tolist():
            row = int(images.cells.index[chosen[i]]) + 2
            found = table[name].iloc[place[i]]
            detail = f'column {name!r}: {found!r} is {wanted[i]!r} in row {row} of the split file'
            table.fault('ids that differ', detail, int(place[i]))
    return place


def _read_labels(table: Table) -> np.ndarray:  # [N, K] float32
    labels = np.empty((len(table), len(LABELS)), np.float32)
    for k, label in enumerate(LABELS):
        labels[:, k] = table.map(label, CELLS, 'value of a label')
    return labels


def _read_description(table: Table, *, optional: bool = False) -> dict[str, np.ndarray]:
    """View, sex, age and projection; with `optional`, columns and cells may be empty."""
    ages = {}
    if 'Age' in table:
        ages = {text: float(text) for text in table['Age'].unique() if AGE.fullmatch(text)}
    columns = {
        'view': ('Frontal/Lateral', 'value of the view', VIEW_CELLS, ''),
        'sex': ('Sex', 'value of the sex', SEXES, 'Unknown'),
        'age': ('Age', 'value of the age', ages, np.nan),
        'ap_pa': ('AP/PA', 'value of the projection', PROJECTIONS, ''),
    }
    description = {}
    for name, (column, kind, meanings, unknown) in columns.items():
        if optional:
            meanings = {**meanings, '': unknown}
        description[name] = table.map(
            column,
            meanings,
            kind,
            allowed='numbers from 0' if name == 'age' else '',
            dtype=float if name == 'age' else object,
            wrong=unknown,
        )
    old = np.nan_to_num(description['age']) > MAX_AGE
    if old.any():
        table.check('Age', ~old, 'unlikely age', f'is more than {MAX_AGE} years', 'warning')
    return description


def _views_of(table: Table, paths: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Views from the names of images, which belong to the rows at these positions."""
    views = views_in_names(paths)
    for i in np.flatnonzero(views == '').tolist():
        detail = f'{paths[i]!r} names no view: use names such as view1_frontal.jpg'
        table.fault('value of the view', detail, int(positions[i]))
    return views


def _unknown(size: int) -> dict[str, np.ndarray]:
    return {
        'view': np.full(size, '', object),
        'sex': np.full(size, 'Unknown', object),
        'age': np.full(size, np.nan),
        'ap_pa': np.full(size, '', object),
    }


def _scored_fault(root: Path, file: str) -> Fault:
    part = f'train on {root / "train"} alone, ' if (root / 'train').is_dir() else ''
    detail = (
        f'{root / file} is there, so this folder holds images that are scored later: {part}use '
        'DATA.DATASET chexpert, or set DATA.ALLOW_ALL_IMAGES True'
    )
    return Fault('folder with scores', detail, file=file)


def _missing_hint(root: Path, csv_name: str) -> str:
    below = [folder for folder in sorted(root.glob('*')) if (folder / csv_name).is_file()]
    found = f'; {below[0]} has one' if below else ''
    return f' (see DATA.DATA_PATH and DATA.*_CSV){found}'


def _check_suffix(image_suffix: str) -> None:
    if image_suffix and not re.fullmatch(r'\.\w+', image_suffix):
        raise ValueError(f"DATA.IMAGE_SUFFIX must be like '.png', or empty, got {image_suffix!r}")


def _is_utf8(cells: Sequence[str]) -> bool:
    text = ''.join(cells)
    return text.isascii() or not any('\udc80' <= character <= '\udcff' for character in text)


def _patient_order(patients: np.ndarray, *, key: str) -> tuple[np.ndarray, int]:
    """Rank of each record's patient under a keyed hash of the name, and the number of patients."""
    codes, names = pd.factorize(patients)
    hashes = [hashlib.blake2b(os.fsencode(name), key=key.encode()).digest() for name in names]
    order = sorted(range(len(names)), key=hashes.__getitem__)
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return rank[codes], len(names)


def _share(fraction: float, count: int) -> int:
    """The fraction of the count, rounded up; 0.07 of 100 is 7, not 8 by rounding errors."""
    return math.ceil(fraction * count * (1 - 1e-12))

"""Read every kind of CSV file (CheXpert, MIMIC-CXR, predictions, labels), and split patients.

By default, the first fault in a file raises a ValueError that names the file, the row and the
column. The data check passes a function `on_fault` to the readers instead. It collects all faults,
and the readers return the rows that can be used. To add a data set, write one function with
`@register_dataset`.
"""

import csv
import gzip
import hashlib
import json
import logging
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import (
    LAYOUT_SUFFIX,
    OPTIONS,
    Config,
    Registry,
    check_config,
    default_config,
    enlarged_side,
    put,
    register_check,
)
from data.images import DICOM_SUFFIXES, refuse_link_out
from data.labels import (
    CELLS,
    LABELS,
    TASKS,
    find_task,
    label_columns,
    label_policies,
    scored_targets,
    task_labels,
    training_targets,
)
from data.store import (
    BAD_FILE,
    STORE_FILE,
    Store,
    copy_store,
    file_crc32,
    is_store,
    open_store,
    packed_steps,
    place_of,
    read_about,
)
from system.files import NETWORK_SYSTEMS, file_system, replace_files

SCORED_FILES = ('train.csv', 'valid.csv')  # a folder with one of these holds images to be scored
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', *DICOM_SUFFIXES)

KEYS = ('Path', 'Study')  # column that names the image or the study of a row
IDS = ('dicom_id', 'study_id', 'subject_id')  # columns of MIMIC-CXR
DESCRIPTION = ('Sex', 'Age', 'Frontal/Lateral', 'AP/PA')  # optional columns
SEXES = {'Male': 'Male', 'Female': 'Female', 'Unknown': 'Unknown', '': 'Unknown'}
VIEW_CELLS = {'Frontal': 'frontal', 'Lateral': 'lateral', '': ''}
PROJECTIONS = {name: name for name in ('AP', 'PA', 'LL', 'RL', '')}
NUMBER = re.compile(r'(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?', re.ASCII | re.IGNORECASE)

# Matches a study in a name: CheXpert's patient00001/study1, MIMIC-CXR's p10000032/s50414267.
STUDY = re.compile(
    r'\A(?P<study>(?:.*?/)?(?P<patient>patient\d+|p\d+)/(?:study|s)\d+)(?=/|\Z)(?P<image>.*)'
)
PATIENT_AND_BELOW = re.compile(r'(?:patient|p)\d+/.*|[^/]*\Z')  # or the name of the file
PATIENT_PART = re.compile(r'(?:\A|/)(patient\d+)/')
VIEW_NAME = re.compile(r'_(frontal|lateral)\.[^./]+\Z')
SUFFIX = re.compile(rf'(?:{"|".join(map(re.escape, IMAGE_SUFFIXES))})\Z', re.IGNORECASE)
SHOWN = 100  # number of characters of a cell in a message
SAMPLE_PATHS = 100  # number of paths that decide how paths become files
SCORED_SPLITS = ('internal', 'valid', 'test')  # in the order of reports
TRAINING_LABELS = 'labels of the training CSV (in CheXpert, a labeller made them, not radiologists)'

# MIMIC-CXR-JPG: the values of its split column, and the view of each ViewPosition. Images with any
# other ViewPosition are neither frontal nor lateral.
MIMIC_SPLITS = {'train': 'train', 'valid': 'validate', 'test': 'test'}
LABELLERS = OPTIONS['DATA.LABELLER'].one_of
POSITIONS = {'AP': 'frontal', 'PA': 'frontal'}
POSITIONS |= dict.fromkeys(('LATERAL', 'LL', 'RL', 'XTABLE LATERAL'), 'lateral')

# Exceptions that damaged CSV and Excel files raise; the XML parser raises a SyntaxError.
UNREADABLE = (ValueError, OSError, EOFError, KeyError, SyntaxError)
UNREADABLE += (zipfile.BadZipFile, zlib.error, csv.Error)

PATIENT_COLUMNS = ('PATIENT', 'Patient', 'patient', 'patient_id')
STANDARD_GROUPS = ('Sex', 'Age', 'View')
MOST_GROUPS = 50  # in one column

VIEWS_HINT = "'views: frontal' in the layout, if all images are frontal"


class _DataSets(Registry):
    """Registry of data sets; the path of a YAML file is a valid name, too (see `data.layouts`)."""

    def __missing__(self, name: str) -> 'DataSet':
        if not name.endswith(LAYOUT_SUFFIX):
            raise KeyError(name)
        return self['nih']  # all layouts have the same reader


DATASETS = _DataSets('DATA.DATASET')


@dataclass(frozen=True)
class Fault:
    """A problem of a data set; as text it is the message of an error."""

    kind: str
    detail: str
    csv: str = ''  # path of the CSV file
    row: int | None = None  # row of the CSV file; the header is row 1
    file: str = ''  # image, study or other file
    severity: str = 'error'  # 'error': a score would be wrong; 'warning', 'note': readers continue

    def __str__(self) -> str:
        row = f', row {self.row} (the header is row 1)' if self.row is not None else ''
        return f'{self.csv}{row}: {self.detail}' if self.csv else self.detail


OnFault = Callable[[Fault], None]


def refuse(fault: Fault) -> None:
    """Raise an error for a fault; warnings and notes are ignored."""
    if fault.severity == 'error':
        raise ValueError(str(fault))


class Table:
    """The text cells of a CSV file (.csv, .csv.gz or .xlsx).

    A missing column reads as empty cells, and empty rows are ignored. A row that is wider or
    narrower than the header is a fault, because the last row of a truncated file would otherwise
    look like an image without labels.

    Args:
        file: Path of the file.
        on_fault: Function that receives each fault.
        hint: Text that is added to the message for a missing file.

    Attributes:
        cells: Usable rows by column; the index is the 0-based row below the header.
        titles: What messages say instead of `column 'NAME'`, by column.
    """

    def __init__(self, file: str | Path, on_fault: OnFault = refuse, hint: str = '') -> None:
        self.file = Path(file)
        self.on_fault = on_fault
        self.titles: dict[str, str] = {}
        self.cells = self._read(hint)

    def __contains__(self, column: str) -> bool:
        return column in self.cells

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, column: str) -> pd.Series:
        return self.cells.get(column, pd.Series('', self.cells.index, object))

    @property
    def key(self) -> str:
        """Return 'Path' if each row is an image, and 'Study' if each row is a study."""
        return 'Study' if 'Study' in self and 'Path' not in self else 'Path'

    @property
    def row(self) -> np.ndarray:
        """Return the 0-based rows of the file, [N] int64."""
        return self.cells.index.to_numpy(np.int64)

    def fault(
        self, kind: str, detail: str, position: int | None = None, severity: str = 'error'
    ) -> None:
        """Report a fault in the file, or in the row at a position."""
        row, file = None, ''
        if position is not None:
            row = int(self.row[position]) + 2
            file = next((self[name].iloc[position] for name in (*KEYS, *IDS) if name in self), '')
        self.on_fault(Fault(kind, detail, str(self.file), row, file, severity))

    def require(self, *columns: str | Sequence[str], labels: Sequence[str] = ()) -> None:
        """Report the missing columns.

        A row without the column of a label can be used. If another column is missing, no row can.

        Args:
            columns: Columns that must exist; of a sequence of columns, one is enough.
            labels: Columns of labels.
        """
        if not len(self):
            return
        choices = [(column,) if isinstance(column, str) else column for column in columns]
        missing = [' or '.join(names) for names in choices if not any(n in self for n in names)]
        unlabelled = [name for name in labels if name not in self]
        for names, hint in ((missing, ''), (unlabelled, ' (see DATA.LABELS)')):
            if names:
                found = ', '.join(self.cells)
                detail = f'there is no column {", ".join(names)}{hint}; found: {found}'
                self.fault('missing column', detail)
        if missing:
            self.cells = self.cells[:0]

    def check(
        self, column: str, good: np.ndarray, kind: str, problem: str, severity: str = 'error'
    ) -> None:
        """Report every cell of a column where `good` ([N] bool) is false."""
        for position in np.flatnonzero(~good).tolist():
            self.fault(kind, f'{self._cell(column, position)} {problem}', position, severity)

    def keep(
        self, column: str, good: Sequence[bool], kind: str, problem: str, severity: str = 'error'
    ) -> None:
        """Report and drop every row where `good` ([N] bool) is false."""
        good = np.asarray(good, bool)
        self.check(column, good, kind, problem, severity)
        self.cells = self.cells[good]

    def keep_first(self, column: str, kind: str, values: Sequence[str] | None = None) -> None:
        """Report and drop every row whose cell (or value, [N]) occurs in an earlier row."""
        values = pd.Series(np.asarray(self[column] if values is None else values, object))
        later = values.duplicated().to_numpy()
        first_rows = dict(zip(values[~later], self.row[~later] + 2, strict=True))
        for position in np.flatnonzero(later).tolist():
            problem = f'already occurs in row {first_rows[values[position]]}'
            self.fault(kind, f'{self._cell(column, position)} {problem}', position)
        self.cells = self.cells[~later]

    def map(
        self,
        column: str,
        meanings: Mapping[str, Any],
        kind: str,
        *,
        allowed: str = '',
        dtype: type = float,
    ) -> np.ndarray:  # [N]
        """Return the meaning of each cell; a cell without a meaning is a fault, read as empty."""
        allowed = allowed or ', '.join(name or 'empty' for name in meanings)
        codes, values = pd.factorize(self[column].to_numpy(object))
        good = np.array([value in meanings for value in values], bool)[codes]
        self.check(column, good, kind, f'is not allowed (allowed: {allowed})')
        empty = meanings.get('', np.nan)
        return np.array([meanings.get(value, empty) for value in values], dtype)[codes]

    def numbers(
        self, column: str, kind: str, *, most: float = math.inf, can_be_empty: bool = True
    ) -> np.ndarray:  # [N]
        """Return the cells as numbers from 0 to `most`, and NaN for empty cells."""
        texts = [text for text in self[column].unique() if NUMBER.fullmatch(text)]
        meanings = {text: float(text) for text in texts if float(text) <= most}
        allowed = 'numbers from 0' if most == math.inf else f'numbers from 0 to {most}'
        if can_be_empty:
            meanings[''], allowed = np.nan, f'{allowed}, or empty'
        return self.map(column, meanings, kind, allowed=allowed)

    def _cell(self, column: str, position: int) -> str:
        title, cell = self.titles.get(column, f'column {column!r}'), self[column].iloc[position]
        hint = ' (a quote that is not closed?)' if '\n' in cell else ''
        return f'{title}: {cell!r:.{SHOWN}}{hint}'

    def _read(self, hint: str) -> pd.DataFrame:
        if not self.file.is_file():
            self.fault('missing file', f'the file does not exist{hint}')
            return pd.DataFrame()
        try:
            header, *rows = _read_rows(self.file) or [[]]
        except UNREADABLE as error:
            hint = '; save it as UTF-8' if isinstance(error, UnicodeDecodeError) else ''
            self.fault('unreadable table', f'it cannot be read: {error}{hint}')
            return pd.DataFrame()
        if len(header) == 1 and (separator := re.search('[;\t|]', header[0])):
            detail = f'the columns are separated by {separator[0]!r}: save it with commas instead'
            self.fault('unreadable table', detail)
            return pd.DataFrame()
        for name in {name for name in header if name and header.count(name) > 1}:
            self.fault('repeated column', f'column {name} is given twice')
        kept = {}
        for number, row in enumerate(rows):
            if len(row) == len(header):
                kept[number] = row
            elif any(row):
                detail = f'{len(row)} fields, but the header has {len(header)}'
                place = {'csv': str(self.file), 'row': number + 2}
                self.on_fault(Fault('row of another width', detail, **place))
        table = pd.DataFrame(list(kept.values()), list(kept), header, object)
        table = table.loc[(table != '').any(axis=1), ~table.columns.duplicated()]
        if table.empty:
            self.fault('empty CSV', 'there is no usable row below the header')
        return table


def _read_rows(file: Path) -> list[list[str]]:
    """Read the rows of a CSV file, or of the first sheet of an Excel file."""
    if file.suffix == '.xlsx':
        options = {'header': None, 'dtype': str, 'keep_default_na': False, 'engine': 'openpyxl'}
        try:
            return pd.read_excel(file, **options).to_numpy().tolist()
        except ImportError as error:
            raise ValueError(".xlsx needs openpyxl: pip install 'openpyxl>=3.1'") from error
    opener = gzip.open if file.suffix == '.gz' else open
    with opener(file, 'rt', encoding='utf-8-sig', newline='') as lines:
        return list(csv.reader(lines))


@dataclass(frozen=True, eq=False)
class Records:
    """One row per image, in a fixed order; the arrays of text are object arrays."""

    root: Path
    csv: str  # name of the CSV file; '' for a folder of images
    row: np.ndarray  # [N] int64, sample id: 0-based row of the CSV (`Study` files: number of image)
    path: np.ndarray  # [N] path in the CSV
    file: np.ndarray  # [N] path relative to root
    patient: np.ndarray  # [N]
    study: np.ndarray  # [N] part of `path` that names the study
    view: np.ndarray  # [N] 'frontal', 'lateral', or '' for other and unknown views
    sex: np.ndarray  # [N] 'Male', 'Female', 'Unknown'
    age: np.ndarray  # [N] float64 in years, NaN if unknown
    ap_pa: np.ndarray  # [N] 'AP', 'PA', 'LL', 'RL', ''
    labels: np.ndarray | None  # [N, K] float32: 1, 0, -1 uncertain, NaN blank
    label_names: tuple[str, ...] = LABELS  # [K]

    def __len__(self) -> int:
        return len(self.row)

    def select(self, indices: np.ndarray) -> 'Records':
        """Select records by their positions, in the given order, or by a boolean mask [N]."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: v[indices] for name, v in values.items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays)


class Folder:
    """The image files below a folder, with the methods of a `Store` that look up images."""

    left_out: Mapping[str, str] = {}

    def __init__(self, root: str | Path, on_fault: OnFault = refuse) -> None:
        self.path = Path(root)
        self.on_fault = on_fault

    def exists(self, file: str) -> bool:
        """Return whether a file or folder exists."""
        return os.path.exists(self.path / file)

    def below(self, place: str = '', suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
        """List the files below a folder that have one of the suffixes, sorted, as paths below root.

        Hidden files and folders are ignored. Links within the root are ignored, too, because their
        targets are listed. A link that leaves the root is a fault.
        """
        files, places = [], [place] if self.is_inside(place) else []
        while places:
            place = places.pop()
            with os.scandir(self.path / place) as found:
                entries = [entry for entry in found if not entry.name.startswith('.')]
            for entry in entries:
                file = f'{place}/{entry.name}' if place else entry.name
                is_wanted = entry.name.lower().endswith(suffixes)
                if entry.is_symlink():
                    if is_wanted or os.path.isdir(self.path / file):
                        self.is_inside(file)
                elif entry.is_dir():
                    places.append(file)
                elif is_wanted and entry.is_file():
                    files.append(file)
        return sorted(files)

    def is_inside(self, file: str, csv: str = '', row: int | None = None) -> bool:
        """Return whether a path stays below the root when links are followed; if not, report it."""
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
    labels: Sequence[str] = LABELS,
    logger: logging.Logger | None = None,
    look_up: str = 'first',
    on_fault: OnFault = refuse,
) -> Records:
    """Read and check a CSV file in CheXpert's layout.

    Each row is an image (column `Path`) or a study (column `Study`, a folder with the images of the
    study). The columns of `DESCRIPTION` are optional; a missing view is taken from the name of the
    image.

    Args:
        data_path: Folder of the CSV file and the images, or a packed store of this folder.
        csv_name: Name of the CSV file in `data_path`.
        image_suffix: Suffix that replaces the suffix of the paths, such as '.png'; '' keeps it.
        labels: Columns of the labels; may be empty.
        logger: Logger for the number of images.
        look_up: Images that must exist: 'first', 'all' (always the case in a store), or 'none'.
        on_fault: Function that receives each fault; by default the first fault raises a ValueError.
    """
    root = Path(data_path)
    hint = ' (see DATA.DATA_PATH and DATA.*_CSV)'
    if not any(root.glob('*.csv')):
        hint += '; to pre-train on images without a CSV file, set DATA.DATASET folder'
    table = Table(root / csv_name, on_fault, hint)
    table.require(KEYS, labels=labels)
    key, images = table.key, open_images(root, on_fault)
    inside = [not {'', '.', '..'} & set(path.split('/')) for path in table[key]]
    problem = 'must be a relative path without ..'
    table.keep(key, inside, 'path that leaves the folder', problem)
    _add_studies(table)
    files = _files_of(table[key], images, image_suffix if key == 'Path' else '')
    table.cells = table.cells.assign(path=table[key], file=files)
    table.keep_first(key, 'duplicate path', table['file'])
    if key == 'Study':
        _add_images(table, images, image_suffix)
    records = _records_of(table, labels)
    problem = 'has neither a view nor a name like view1_frontal.jpg'
    table.check(key, records.view != '', 'value of the view', problem)
    if key == 'Study':
        records = replace(records, row=np.arange(len(records)))
    records = existing_records(records, table.row, images, look_up, on_fault, logger)
    if logger is not None:
        logger.info(f'{csv_name}: {len(records)} images')
        if absent := [name for name in DESCRIPTION if name not in table]:
            logger.warning(f'{csv_name} has no column {", ".join(absent)}: the values are unknown')
    return records


def read_folder(
    data_path: str | Path, *, allow_all_images: bool, on_fault: OnFault = refuse
) -> Records:
    """List every image below a folder or in a packed store, sorted, as records without labels.

    Images that were left out when the store was packed are excluded. Unless `allow_all_images` is
    set, a folder with train.csv or valid.csv is a fault, because it holds images that are scored.
    """
    root, images = Path(data_path), open_images(data_path, on_fault)
    if isinstance(images, Folder):
        if not root.is_dir():
            raise ValueError(f'DATA.DATA_PATH is not a folder: {root}')
        files = images.below('', (*IMAGE_SUFFIXES, *SCORED_FILES))
        scored = [file for file in files if os.path.basename(file) in SCORED_FILES]
        files = [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)]
    else:
        files = sorted([*images.files, *images.left_out])
        scored = [STORE_FILE] if images.about['scored'] else []
    for file in () if allow_all_images else scored:
        detail = (
            f'the folder has {root / file}, so some of its images are scored later: train on the '
            'folder of the training images alone, use DATA.DATASET chexpert, or set '
            'DATA.ALLOW_ALL_IMAGES True'
        )
        on_fault(Fault('folder with scores', detail, file=file))
    if not files:
        detail = f'no image was found below {root} (looked for {", ".join(IMAGE_SUFFIXES)})'
        on_fault(Fault('missing image', detail))
    size, paths = len(files), pd.Series(files, dtype=object)
    records = Records(
        root=root,
        csv='',
        row=np.arange(size),
        path=paths.to_numpy(),
        file=paths.to_numpy(),
        patient=paths.str.extract(PATIENT_PART)[0].fillna(paths).to_numpy(object),
        study=paths.str.extract(STUDY)['study'].fillna(paths).to_numpy(object),
        view=np.full(size, '', object),
        sex=np.full(size, 'Unknown', object),
        age=np.full(size, np.nan),
        ap_pa=np.full(size, '', object),
        labels=None,
    )
    if isinstance(images, Folder):
        return records
    return existing_records(records, records.row, images, 'all', on_fault)


def read_mimic(
    config: Config,
    root: str | Path,
    split: str,
    *,
    labels: Sequence[str] = LABELS,
    optional: bool = False,
    logger: logging.Logger | None = None,
    look_up: str = 'first',
    on_fault: OnFault = refuse,
) -> Records | None:
    """Read and check a split of MIMIC-CXR-JPG with the labels of DATA.LABELLER; see `read_csv`.

    The folder holds mimic-cxr-*-split.csv, -metadata.csv and -<labeller>.csv (or .csv.gz), and the
    images files/p10/p10000032/s50414267/<dicom_id>.jpg. Sex and age are unknown, because these
    files do not contain them. Images of studies without a row in the label file are excluded.

    Returns:
        Records in the order of the split file; `row` is the 0-based row of this file. None for an
        optional split whose first image does not exist (unless no image is looked up), or if no row
        can be used.
    """
    split, suffix = MIMIC_SPLITS[split], config.DATA.IMAGE_SUFFIX or '.jpg'
    table, metadata, of_studies = (Table(file, on_fault) for file in _mimic_tables(config, root))
    table.require(*IDS, 'split')
    metadata.require(*IDS, 'ViewPosition')
    of_studies.require('subject_id', 'study_id', labels=labels)
    for name in IDS:
        good = table[name].str.fullmatch(r'[A-Za-z0-9_-]+')
        table.keep(name, good, 'form of an id', 'is not made of letters, digits, - and _')
    table.keep_first('dicom_id', 'duplicate id')
    splits = {name: name for name in MIMIC_SPLITS.values()}
    splits = table.map('split', splits, 'value of the split', dtype=object)
    table.cells = table.cells[splits == split]
    place = _rows_of(table, metadata, IDS)
    table.keep('dicom_id', place >= 0, 'missing row', f'has no row in {metadata.file.name}')
    position = metadata['ViewPosition'].to_numpy(object)[place[place >= 0]]
    place = _rows_of(table, of_studies, ['subject_id', 'study_id'])
    problem = f'has no row in {of_studies.file.name}'
    table.keep('study_id', place >= 0, 'study without labels', problem, 'warning')
    if not len(table):
        detail = f'no image of the split {split!r} has a row in {of_studies.file.name}'
        table.fault('missing row', detail)
        return None
    view = pd.Series(position[place >= 0], table.cells.index).map(POSITIONS).fillna('')
    patient = 'p' + table['subject_id']
    study = 'files/' + patient.str[:3] + '/' + patient + '/s' + table['study_id']
    image = study + '/' + table['dicom_id']
    columns = {'Frontal/Lateral': view.str.capitalize(), 'patient': patient, 'study': study}
    columns['AP/PA'] = np.where(view == 'frontal', position[place >= 0], '')
    table.cells = table.cells.assign(path=image + '.jpg', file=image + suffix, **columns)
    values = _read_labels(of_studies, labels)[place[place >= 0]]
    records = replace(_records_of(table, ()), labels=values, label_names=tuple(labels))
    images = open_images(root, on_fault)
    if optional and look_up != 'none' and not images.exists(records.file[0]):
        return None
    if logger is not None:
        logger.info(
            f'{table.file.name}, {split}: {len(records)} images with labels of '
            f'{of_studies.file.name}; {(place < 0).sum()} images have none, '
            f'{(records.view == "").sum()} are neither frontal nor lateral'
        )
    return existing_records(records, records.row, images, look_up, on_fault, logger)


def named_images(config: Config, root: Path) -> set[str]:
    """Return the image files of all splits of MIMIC-CXR-JPG, for all label files that exist."""
    listed, config = set(Table(_mimic_file(root, 'split'))['split']), config.clone()
    labellers = [name for name in LABELLERS if list(root.glob(f'mimic-cxr-*-{name}.csv*'))]
    named = set()
    for labeller in labellers or LABELLERS:
        config.DATA.LABELLER = labeller
        for split, name in MIMIC_SPLITS.items():
            if name in listed:
                named.update(read_mimic(config, root, split, labels=()).file)
    return named


def find_file(root: Path, *patterns: str, hint: str) -> Path:
    """Find the one file in a folder that matches one of the patterns."""
    found = sorted(file for pattern in patterns for file in root.glob(pattern))
    if len(found) != 1:
        names = ', '.join(file.name for file in found) or 'none'
        wanted = ' or '.join(patterns)
        raise ValueError(f'{root} must have exactly one file {wanted}, found: {names} (see {hint})')
    return found[0]


def _mimic_file(root: str | Path, kind: str) -> Path:
    """Find the MIMIC-CXR file of a kind, such as 'split', of any version."""
    pattern = f'mimic-cxr-*-{kind}.csv'
    return find_file(Path(root), pattern, f'{pattern}.gz', hint='DATA.DATA_PATH, DATA.LABELLER')


def open_images(root: str | Path, on_fault: OnFault = refuse) -> Store | Folder:
    """Return the object that looks up the images of a data set: a packed store or a folder."""
    return open_store(root) if is_store(root) else Folder(root, on_fault)


# ---- Views, hold-out and subsets


def select_views(records: Records, views: str) -> Records:
    """Select the images of the views 'frontal', 'lateral' or 'all'."""
    if views == 'all':
        return records
    keep = records.view == views
    if len(records) and not keep.any():
        hint = '' if records.view.any() else f'; their view is unknown: see {VIEWS_HINT}'
        raise ValueError(
            f'{records.root / records.csv}: none of the {len(records)} images is {views} '
            f'(DATA.VIEWS, EVAL.VIEWS){hint}'
        )
    return records.select(keep)


def split_fold(records: Records, fold: str) -> tuple[Records, Records]:
    """Split off fold k of n of the patients, for a `fold` 'k/n'; return (the others, the fold).

    The fold of a patient is a hash of the name modulo n. It depends neither on the seed nor on the
    other patients, so two files that share some patients assign them to the same folds.
    """
    part, parts = map(int, fold.split('/'))
    codes, hashes = _patient_hashes(records.patient, 'fold')
    is_scored = np.array([int.from_bytes(h, 'big') % parts == part for h in hashes], bool)[codes]
    if is_scored.all() or not is_scored.any():
        raise ValueError(
            f'DATA.FOLD {fold} contains {is_scored.sum()} of the {len(records)} images of '
            f'{records.csv}: it must leave some to train on and some to score'
        )
    return records.select(~is_scored), records.select(is_scored)


def split_holdout(records: Records, fraction: float) -> tuple[Records, Records]:
    """Split off a fraction of the patients, which is the same for every seed.

    Call this on all records of `read_split`, before views and subsets are selected, so that the
    same patients are held out whatever is selected.

    Returns:
        (train, holdout): holdout has the first `fraction` of the patients, rounded up, in the order
        of a hash of their names.
    """
    rank, num_patients = _patient_order(records.patient, key='holdout')
    num_held_out = _share(fraction, num_patients)
    if num_held_out >= num_patients:
        raise ValueError(
            f'DATA.HOLDOUT_FRACTION {fraction} leaves none of the {num_patients} patients of '
            f'{records.csv} to train on'
        )
    return records.select(rank >= num_held_out), records.select(rank < num_held_out)


def split_patients(config: Config, records: Records) -> tuple[Records, Records, Records]:
    """Split the training CSV by patient, in the same way for every seed; see `split_holdout`.

    Returns:
        (train, holdout, internal): holdout chooses the checkpoint and the thresholds; internal, the
        fraction EVAL.INTERNAL_SHARE of the held-out patients, is only scored.
    """
    train, held_out = split_holdout(records, config.DATA.HOLDOUT_FRACTION)
    rank, num_patients = _patient_order(held_out.patient, key='internal')
    share = config.EVAL.INTERNAL_SHARE
    num_internal = _share(share, num_patients)
    if share and not 0 < num_internal < num_patients:
        raise ValueError(
            f'EVAL.INTERNAL_SHARE {share} leaves none of the {num_patients} patients held out by '
            f'DATA.HOLDOUT_FRACTION {config.DATA.HOLDOUT_FRACTION} to choose a checkpoint'
        )
    is_internal = rank < num_internal
    return train, held_out.select(~is_internal), held_out.select(is_internal)


def take_subset(records: Records, *, fraction: float, images: int, seed: int) -> Records:
    """Select a share of the patients or a number of images; larger subsets contain smaller ones.

    Args:
        records: Records to select from; their order is kept.
        fraction: Share of the patients, rounded up; 1 selects all (DATA.TRAIN_FRACTION).
        images: Number of images, patient by patient; 0 selects all (DATA.TRAIN_IMAGES).
        seed: Seed of the order of the patients.
    """
    if images == 0 and fraction == 1:
        return records
    if images > len(records):
        raise ValueError(
            f'DATA.TRAIN_IMAGES must be at most {len(records)}, the number of images, got {images}'
        )
    rank, num_patients = _patient_order(records.patient, key=str(seed))
    if images:
        return records.select(np.sort(np.argsort(rank, kind='stable')[:images]))
    return records.select(rank < _share(fraction, num_patients))


def training_records(config: Config, records: Records) -> Records:
    """Select the images that fine-tuning learns from, out of all that are not held out.

    Images of other views than DATA.VIEWS are dropped. In a binary task, images without a target are
    dropped, too. Then the subset of DATA.TRAIN_FRACTION or DATA.TRAIN_IMAGES is taken.
    """
    data = config.DATA
    records = select_views(records, data.VIEWS)
    if not find_task(data.TASK).uses_policies:
        records = records.select(~np.isnan(learned_targets(config, records)[:, 0]))
    return take_subset(
        records, fraction=data.TRAIN_FRACTION, images=data.TRAIN_IMAGES, seed=config.SEED
    )


def learned_targets(
    config: Config, records: Records, predictions: np.ndarray | None = None
) -> np.ndarray:  # [N, K] float32
    """Return the targets of the training loss, see `training_targets` and `scored_targets`.

    The predictions [N, K] are probabilities for the policies that need them.
    """
    data = config.DATA
    if not find_task(data.TASK).uses_policies:
        return scored_targets(records.labels, task=data.TASK, blank=data.BLANK)
    return training_targets(
        records.labels,
        label_policies(data.UNCERTAIN, data.UNCERTAIN_BY_LABEL, data.LABELS),
        blank=data.BLANK,
        rows=records.row,
        seed=config.SEED,
        predictions=predictions,
        names=records.label_names,
    )


def pretrain_records(config: Config, records: Records) -> tuple[Records, Records]:
    """Split the images of the training CSV into images for pre-training and held-out images."""
    data = config.DATA
    train, holdout = split_holdout(records, data.HOLDOUT_FRACTION)
    if DATASETS[data.DATASET].labelled:
        train = select_views(train, data.VIEWS)
        holdout = select_views(holdout, data.VIEWS) if len(holdout) else holdout
    train = take_subset(
        train, fraction=data.TRAIN_FRACTION, images=data.TRAIN_IMAGES, seed=config.SEED
    )
    return train, holdout


def describe_subset(config: Config) -> str:
    """Describe the part of the training images that is used; '' for all of them."""
    data, parts = config.DATA, []
    if data.FOLD:
        parts.append(f'without part {data.FOLD} of the patients: DATA.FOLD')
    if data.TRAIN_IMAGES:
        parts.append(f'{data.TRAIN_IMAGES} of the images: DATA.TRAIN_IMAGES')
    if data.TRAIN_FRACTION < 1:
        parts.append(f'{100 * data.TRAIN_FRACTION:g} % of the patients: DATA.TRAIN_FRACTION')
    return ', '.join(parts)


# ---- The data set of a config


@dataclass(frozen=True)
class DataSet:
    """An entry of DATASETS."""

    # Reader of a split, with the arguments of `read_mimic`.
    read: Callable[..., Records | None]
    labelled: bool  # whether images have labels
    # (config, root) -> existing files that are read, without the images
    tables: Callable[[Config, Path], list[Path]]
    # config -> splits of a layout; None for train, valid and test
    splits: Callable[[Config], Sequence[str]] | None = None


def register_dataset(*names: str, **facts: Any) -> Callable:
    """Return a decorator that registers a reader of splits with the fields of `DataSet`."""

    def add(read: Callable) -> Callable:
        for name in names:
            DATASETS.register(name)(DataSet(read, **facts))
        return read

    return add


def _chexpert_tables(config: Config, root: Path) -> list[Path]:
    files = [root / name for name in csv_names(config).values()]
    return [file for file in files if file.is_file()]


def _mimic_tables(config: Config, root: str | Path) -> list[Path]:
    return [_mimic_file(root, kind) for kind in ('split', 'metadata', config.DATA.LABELLER)]


register_dataset('mimic-cxr', labelled=True, tables=_mimic_tables)(read_mimic)


@register_dataset('chexpert', labelled=True, tables=_chexpert_tables)
def _read_chexpert(
    config: Config, root: str | Path, split: str, *, optional: bool = False, **options: Any
) -> Records | None:
    csv_name = csv_names(config)[split]
    if optional and not (Path(root) / csv_name).is_file():
        if split == 'valid' and (logger := options.get('logger')):
            logger.warning(f'{csv_name} does not exist, so only test is scored')
        return None
    return read_csv(root, csv_name, image_suffix=config.DATA.IMAGE_SUFFIX, **options)


# 'imagenet' is SimMIM's name for a folder of images.
@register_dataset('folder', 'imagenet', labelled=False, tables=lambda config, root: [])
def _read_unlabelled(
    config: Config, root: str | Path, split: str, *, on_fault: OnFault = refuse, **options: Any
) -> Records | None:
    if split != 'train':
        return None
    return read_folder(root, allow_all_images=config.DATA.ALLOW_ALL_IMAGES, on_fault=on_fault)


@register_check
def check_dataset(config: Config, stage: str | None) -> None:
    """Refuse fine-tuning without labels, and an output folder inside the folder of images."""
    dataset, root = config.DATA.DATASET, config.DATA.DATA_PATH
    if stage == 'finetune' and not DATASETS[dataset].labelled:
        names = ' or '.join(repr(name) for name, entry in DATASETS.items() if entry.labelled)
        raise ValueError(f'DATA.DATASET must be {names} for fine-tuning, got {dataset!r}')
    is_read = stage and root and not config.DATA.SOURCES
    is_folder = is_read and not DATASETS[dataset].labelled and not is_store(root)
    if is_folder and Path(config.OUTPUT).resolve().is_relative_to(Path(root).resolve()):
        raise ValueError(
            f'OUTPUT {config.OUTPUT} must lie outside DATA.DATA_PATH {root}: the next run would '
            'train on the images that this run writes'
        )


def read_split(
    config: Config,
    split: str,
    logger: logging.Logger,
    *,
    optional: bool = False,
    labelled: bool = True,
) -> Records | None:
    """Read all records of 'train', 'valid' or 'test'; return None if an optional split is absent.

    With `labelled=False` no labels are read, and their columns may be missing. With DATA.FOLD,
    valid is this fold of the training patients, and train are the other training patients.
    """
    root, dataset = data_root(config, logger), DATASETS[config.DATA.DATASET]
    labels = label_columns(config.DATA.LABELS) if labelled else ()
    fold = config.DATA.FOLD if split in ('train', 'valid') else ''
    part = 'train' if fold else split
    records = dataset.read(config, root, part, labels=labels, optional=optional, logger=logger)
    if not fold or records is None:
        return records
    return split_fold(records, fold)[split == 'valid']


def read_data_set(dataset: str, root: str, split: str, labels: Sequence[str] = ()) -> Records:
    """Read all records of a split outside a run; all other options have their defaults."""
    config = default_config()
    for name, value in {'DATASET': dataset, 'DATA_PATH': root, 'LABELS': list(labels)}.items():
        put(config, f'DATA.{name}', value, '--dataset')
    check_config(config)
    return read_split(config, split, logging.getLogger(__name__), labelled=bool(labels))


def may_be_absent(config: Config, split: str) -> bool:
    """Return whether a split may be missing.

    The test split may always be missing. The valid split may be missing if there is a test split:
    in a layout, or in a CSV file other than the default that DATA.TEST_CSV names.
    """
    data, splits = config.DATA, DATASETS[config.DATA.DATASET].splits
    is_given = data.TEST_CSV != default_config().DATA.TEST_CSV
    has_test = is_given and (Path(data.DATA_PATH) / data.TEST_CSV).is_file()
    if splits is not None:
        has_test = set(splits(config)) & {'valid', 'test'} == {'test'}
    return split == 'test' or (has_test and config.EVAL.SELECT_ON != 'valid')


def scored_records(
    config: Config, split: str, logger: logging.Logger, *, optional: bool = False
) -> Records | None:
    """Read the records of 'internal' (see `split_patients`), 'valid' or 'test' in EVAL.VIEWS.

    Returns:
        Records. None for an absent optional split, and for internal if EVAL.INTERNAL_SHARE is 0.
    """
    if split == 'internal':
        if not config.EVAL.INTERNAL_SHARE:
            return None
        records = split_patients(config, read_split(config, 'train', logger))[2]
    else:
        records = read_split(config, split, logger, optional=optional)
    return records and select_views(records, config.EVAL.VIEWS or config.DATA.VIEWS)


def detect_dataset(config: Config) -> str:
    """Return DATA.DATASET, or what the files of DATA.DATA_PATH show if it has its default value."""
    root, dataset = Path(config.DATA.DATA_PATH), config.DATA.DATASET
    if dataset != default_config().DATA.DATASET:
        return dataset
    if any(root.glob('mimic-cxr-*-split.csv*')):
        return 'mimic-cxr'
    return 'chexpert' if _chexpert_tables(config, root) else 'folder'


def csv_names(config: Config) -> dict[str, str]:
    """Return the name of the CSV file of each split in CheXpert's layout."""
    data = config.DATA
    return {'train': data.TRAIN_CSV, 'valid': data.VALID_CSV, 'test': data.TEST_CSV}


def data_root(config: Config, logger: logging.Logger) -> str:
    """Return the folder to read: DATA.DATA_PATH, or the copy of this store in DATA.CACHE_DIR.

    The name of a copy contains the checksum of its contents, so several stores can share
    DATA.CACHE_DIR.

    Raises:
        ValueError: If DATA.CACHE_DIR is set but DATA.DATA_PATH is not a store, if the copy fails,
            or if the store was packed with other steps than DATA.PREPROCESS.
    """
    data = config.DATA
    source = Path(data.DATA_PATH)
    packed = packed_steps(read_about(source)) if is_store(source) else []
    if packed and packed != data.PREPROCESS:
        raise ValueError(
            f'DATA.PREPROCESS must be {packed}, with which the store {source} was packed '
            f'(scripts/pack.py --preprocess), got {data.PREPROCESS}'
        )
    if not data.CACHE_DIR:
        return data.DATA_PATH
    if not is_store(source):
        raise ValueError(
            f'DATA.CACHE_DIR is for packed stores, but DATA.DATA_PATH {source} is not a store: '
            'pack it with scripts/pack.py, or leave DATA.CACHE_DIR empty'
        )
    source, part = place_of(source.resolve())
    target = Path(data.CACHE_DIR) / f'{source.name}-{file_crc32(source / STORE_FILE):08x}'
    try:
        return str(copy_store(source, target, logger) / part)
    except OSError as error:
        raise ValueError(f'DATA.CACHE_DIR: cannot copy {source} to {target}: {error}') from error


def describe_images(data_path: str | Path) -> str:
    """Describe the form in which the images are read: as files or from a packed store."""
    if not is_store(data_path):
        return 'files'
    about = read_about(data_path)
    size, steps = about['settings']['size'], packed_steps(about)
    bits = 'more than 8 bits kept' if about['settings']['keep_16bit'] else '8 bits'
    form = f'with a short side of at most {size} px, aspect kept'
    if size is None:
        form = 'at their own sizes'
    elif about['settings']['square']:
        form = f'squeezed to {size} x {size} px'
    return ', '.join([f'packed {form}', bits, *steps])


def log_store(config: Config, logger: logging.Logger) -> None:
    """Log the form of the images of a store, and warn of a network and if views enlarge them."""
    path = config.DATA.DATA_PATH
    if not is_store(path):
        return
    about = read_about(path)
    logger.info(f'{path}: {about["images"]} images, {describe_images(path)}')
    kind = file_system(path)
    if kind in NETWORK_SYSTEMS and not config.DATA.CACHE_DIR:
        logger.warning(
            f'every epoch reads the store {path} from a network file system ({kind}): copy it once '
            'to a folder on the local disk with DATA.CACHE_DIR'
        )
    if about['left_out']:
        count = len(about['left_out'])
        logger.warning(f'{path}: {count} images could not be read when it was packed ({BAD_FILE})')
    size, side = config.DATA.IMG_SIZE, about['settings']['size']
    needed = enlarged_side(size) if config.TEST.CROP else size
    if side is not None and side < needed:
        cut = f', from which views of {size} px are cut (TEST.CROP)' if config.TEST.CROP else ''
        logger.warning(
            f'{path}: its images of {side} px are enlarged to {needed} px{cut}. For sharper images '
            f'pack them with scripts/pack.py --size {needed} or more'
        )


# ---- Groups of patients and images


def standard_groups(records: Records, age_bands: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the sex, age band and view of each image as text, '' if unknown.

    Age 0 counts as unknown, because CheXpert's patients are adults and 0 is a missing age there.

    Args:
        records: Records of N images.
        age_bands: First ages of the bands in years, ascending; the last band has no upper end.

    Returns:
        Arrays [N] by column: 'Sex'; 'Age', such as '40-59' or '80 and over'; and 'View', which is
        'Lateral', 'Frontal', or 'Frontal AP' with a projection.
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
    records: Records, columns: Sequence[str], *, demographics: str = ''
) -> dict[str, np.ndarray]:
    """Return the text of each image in further columns, '' for an empty or missing cell.

    A column is read from the CSV file of the records, by row, or else from the demographics file,
    by patient. Patients who are not in the demographics file have ''.

    Args:
        records: Records of N images.
        columns: Names of columns.
        demographics: CSV or Excel file (.xlsx) in the data folder with one row per patient, such as
            CheXpert's (PATIENT, GENDER, AGE_AT_CXR, PRIMARY_RACE, ETHNICITY).

    Returns:
        Text [N] by column, in the given order.

    Raises:
        ValueError: If a column is in neither file or does not form groups, or if the demographics
            do not fit the records.
    """
    if not columns or not len(records):
        return {name: np.array([], object) for name in columns}
    found, own, more = {}, _own_cells(records), pd.DataFrame()
    if demographics and not set(columns) <= set(own):
        more = _read_demographics(records, records.root / demographics)
    for name in columns:
        if name in (*STANDARD_GROUPS, *KEYS, *records.label_names):
            names = ', '.join(STANDARD_GROUPS)
            raise ValueError(f'EVAL.GROUPS must not contain labels or {names}, got {name!r}')
        if name not in own and name not in more:
            there = ', '.join((*own, *more)) or 'none'
            raise ValueError(
                f'EVAL.GROUPS: there is no column {name!r}; found: {there}. A file of DATA.'
                'DEMOGRAPHICS or --demographics may add columns'
            )
        values = own[name] if name in own else _by_patient(more, name).reindex(records.patient)
        found[name] = values.fillna('').to_numpy(object)
        count = len(set(found[name]) - {''})
        if count > MOST_GROUPS:
            raise ValueError(
                f'EVAL.GROUPS: {name!r} has {count} values, at most {MOST_GROUPS} are allowed'
            )
    return found


def _own_cells(records: Records) -> pd.DataFrame:
    """Return the cells of the CSV file for each record; no column for a folder of images."""
    if not records.csv:
        return pd.DataFrame()
    table = Table(records.root / records.csv)
    if table.key == 'Study':
        return table.cells.set_index('Study', drop=False).loc[records.study]
    return table.cells.loc[records.row]


def _read_demographics(records: Records, file: Path) -> pd.DataFrame:
    """Read the demographics file and name its column of patients 'patient'."""
    table = Table(file)
    table.require(PATIENT_COLUMNS)
    key = next(column for column in PATIENT_COLUMNS if column in table)
    example = records.patient[0]
    if not table[key].str.startswith(example.rstrip('0123456789')).any():
        raise ValueError(f'{file}: no cell of the column {key!r} is a patient such as {example}')
    return table.cells.rename(columns={key: 'patient'})


def _by_patient(table: pd.DataFrame, column: str) -> pd.Series:
    """Return the values of a column of the demographics, indexed by patient."""
    pairs = table.drop_duplicates(['patient', column]).set_index('patient')[column]
    again = pairs.index[pairs.index.duplicated()]
    if len(again):
        raise ValueError(f'DATA.DEMOGRAPHICS: {again[0]} has several values of {column!r}')
    return pairs


# ---- Predictions and label files


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of a model for images or studies, one row each."""

    file: Path
    key: str  # 'Path' if a row is an image, 'Study' if it is a study
    row: np.ndarray  # [N] 0-based row of the file
    names: np.ndarray  # [N] names of images or studies in the file
    labels: tuple[str, ...]  # in CheXpert's order, followed by labels of binary tasks and others
    probabilities: np.ndarray  # [N, K] in [0, 1]; NaN where empty, if that is allowed
    trained_views: str = ''  # DATA.VIEWS of the training, if the JSON file next to it says so


@dataclass(frozen=True, eq=False)
class LabelTable:
    """The labels of a CSV file."""

    file: Path
    key: str  # 'Path' if a row is an image, 'Study' if it is a study
    task: str
    views: str  # views of the images that are scored
    records: Records  # one per row of the file: an image of these views, or a study
    labels: tuple[str, ...]
    targets: np.ndarray  # [N, K] 1, 0, or NaN where not scored
    missing: tuple[str, ...]  # labels without a column in the file

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
    """Write predictions as a CSV file, and their source as a JSON file; either both or none.

    Args:
        path: Path of the CSV file; the JSON file has the same name with the suffix `.json`.
        probabilities: Probabilities [N, K] in [0, 1], written with 9 significant digits; NaN
            becomes an empty cell.
        paths: Paths [N] of the images in the CSV file of the data set.
        labels: Names [K] of the columns.
        source: Checkpoint, data, views and other facts about the predictions.
    """
    table = pd.DataFrame(probabilities, columns=list(labels))
    table.insert(0, 'Path', list(paths))
    source = {'labels': list(labels)} | source
    # The bytes of a file name that is not UTF-8 are written unchanged.
    rows = table.to_csv(index=False, float_format='%.9g').encode('utf-8', 'surrogateescape')
    about = json.dumps(source, indent=1) + '\n'
    replace_files({Path(path): rows, Path(path).with_suffix('.json'): about})


def read_predictions(
    path: str | Path, *, task: str = '', allow_empty: bool = False, labels: Sequence[str] = ()
) -> Predictions:
    """Read and check a CSV file with a column `Path` or `Study` and one column per label.

    A column is a label if a task, the JSON file next to the CSV file or `labels` names it.

    Args:
        path: Path of the CSV file.
        task: DATA.TASK that the JSON file must name, if it names one; '' accepts any task.
        allow_empty: Whether cells may be empty.
        labels: Names of further labels (DATA.LABELS).

    Raises:
        ValueError: If a name occurs twice (see `normalise_name`), if a cell is not a number from 0
            to 1, or if the file has no such columns.
    """
    table = Table(path)
    source = table.file.with_suffix('.json')
    try:
        about = json.loads(source.read_bytes()) if source.is_file() else {}
        found, own = about.get('task'), about.get('labels', [])
        views = str(about.get('trained_views', ''))
        if not (isinstance(own, list) and all(isinstance(label, str) for label in own)):
            raise TypeError(f'labels must be a list of names, got {own!r:.100}')
    except (ValueError, AttributeError, TypeError) as error:
        if task:
            raise ValueError(f'{source} does not describe predictions: {error}') from error
        found, own, views = None, [], ''  # an unrelated file has this name
    if task and found not in (None, task):
        raise ValueError(f'{path}: the predictions are of DATA.TASK {found!r}, not {task!r}')
    known = dict.fromkeys(label for task in TASKS.values() for label in task.labels)
    known |= dict.fromkeys(label for label in (*own, *labels) if label not in KEYS)
    labels = tuple(label for label in known if label in table)
    table.require(KEYS, known)
    _check_names(table)
    options = {'most': 1, 'can_be_empty': allow_empty}
    columns = [table.numbers(label, 'value of a probability', **options) for label in labels]
    return Predictions(
        file=table.file,
        key=table.key,
        row=table.row,
        names=table[table.key].to_numpy(object),
        labels=labels,
        probabilities=np.stack(columns, axis=1),
        trained_views=views,
    )


def look_up(
    predictions: Predictions, paths: Sequence[str], labels: Sequence[str] = LABELS
) -> np.ndarray:
    """Look up the probabilities of images, or of their studies in a file of studies.

    Args:
        predictions: Predictions of a model.
        paths: Paths [N] of images, which are matched by `normalise_name`.
        labels: Names [K] of labels.

    Returns:
        Probabilities [N, K], NaN for a missing row or column.
    """
    rows = row_names(predictions.names).get_indexer(row_names(paths, predictions.key))
    found = np.full((len(paths), len(labels)), np.nan)
    for k, label in enumerate(labels):
        if label in predictions.labels:
            column = predictions.probabilities[:, predictions.labels.index(label)]
            found[:, k] = np.where(rows >= 0, column[rows], np.nan)
    return found


def row_names(names: Sequence[str], key: str = 'Path') -> pd.Index:
    """Return the normalised names by which rows of images (or 'Study': of studies) are matched."""
    normalise = study_name if key == 'Study' else normalise_name
    return pd.Index([normalise(name) for name in names], dtype=object)


def read_label_file(
    path: str | Path,
    *,
    task: str = 'observations',
    blank: str = 'negative',
    views: str = 'all',
    labels: Sequence[str] = (),
) -> LabelTable:
    """Read and check a CSV file with a column `Path` or `Study` and one column per label.

    The columns of `DESCRIPTION` are optional; a missing view is taken from the name of the image.

    Args:
        path: Path of the CSV file.
        task: DATA.TASK; binary tasks need the columns of all observations.
        blank: Target of a label that is not mentioned (DATA.BLANK).
        views: Views of the images that are kept: 'frontal', 'lateral' or 'all'.
        labels: Names of the labels (DATA.LABELS).
    """
    table = Table(path)
    wanted, uses_columns = label_columns(labels), find_task(task).uses_policies
    missing = tuple(label for label in wanted if label not in table)
    table.require(KEYS, *([wanted] if uses_columns else missing))
    _check_names(table)
    _add_studies(table)
    table.cells = table.cells.assign(path=table[table.key], file=table[table.key])
    records = _records_of(table, wanted)
    if views != 'all' and table.key == 'Path':
        table.check('Path', records.view != '', 'value of the view', 'names no view')
        records = select_views(records, views)
    labels, columns = task_labels(task, labels), slice(None)
    if uses_columns:
        columns = [k for k, label in enumerate(labels) if label not in missing]
        labels = tuple(labels[k] for k in columns)
    targets = scored_targets(records.labels, task=task, blank=blank, names=wanted)[:, columns]
    return LabelTable(table.file, table.key, task, views, records, labels, targets, missing)


def normalise_name(name: str) -> str:
    """Remove the folders above the folder of the patient, and the suffix of an image.

    'CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg' becomes
    'patient64541/study1/view1_frontal', and MIMIC-CXR's 'files/p10/p10000032/s50414267/x.jpg'
    becomes 'p10000032/s50414267/x'. A name without a patient's folder only loses its suffix.
    """
    match = STUDY.match(name)
    name = name[match.start('patient') :] if match else name
    return SUFFIX.sub('', name.rstrip('/'))


def study_name(name: str) -> str:
    """Return the normalised name of the study of an image; the name itself if it has no study."""
    match = STUDY.match(name)
    return name[match.start('patient') : match.end('study')] if match else name


def views_in_names(names: Sequence[str]) -> np.ndarray:
    """Return the view [N] in names such as view1_frontal.jpg, and '' for other names."""
    found = [VIEW_NAME.search(name) for name in names]
    return np.array([view[1] if view else '' for view in found], object)


# ---- Helpers of the readers


def _check_names(table: Table) -> None:
    """Report empty names, and names that are equal after normalisation."""
    names = row_names(table[table.key]).to_numpy()
    table.check(table.key, names != '', 'form of a path', 'is not a name')
    table.keep_first(table.key, 'duplicate path', names)


def _add_studies(table: Table) -> None:
    """Add the columns 'study' and 'patient', which are extracted from the names of the rows."""
    parts = table[table.key].str.extract(STUDY)
    good = parts['image'].str.len() > 1 if table.key == 'Path' else parts['image'] == ''
    image = '/IMAGE.jpg' if table.key == 'Path' else ''
    problem = f'is not of the form FOLDER/patient00001/study1{image}'
    table.keep(table.key, good.to_numpy(bool), 'form of a path', problem)
    table.cells = table.cells.assign(study=parts['study'], patient=parts['patient'])


def _files_of(paths: pd.Series, images: Store | Folder, suffix: str) -> pd.Series:
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


def _add_images(table: Table, images: Store | Folder, image_suffix: str) -> None:
    """Replace each row of a study by one row per image with its path and file."""
    suffixes = (image_suffix.lower(),) if image_suffix else IMAGE_SUFFIXES
    found = [
        [file for file in images.below(place) if file.lower().endswith(suffixes)]
        if images.exists(place)
        else []
        for place in table['file']
    ]
    table.cells = table.cells.assign(image=pd.Series(found, table.cells.index, object))
    problem = f'has no image ({", ".join(suffixes)}) below {images.path}'
    table.keep('Study', [bool(files) for files in found], 'missing image', problem)
    cells = table.cells.explode('image')
    pairs = zip(cells['image'], cells['file'], strict=True)
    below = [image[len(place) :] for image, place in pairs]
    table.cells = cells.assign(path=cells['Study'] + below, file=cells['image'])


def existing_records(
    records: Records,
    rows: np.ndarray,
    images: Store | Folder,
    look_up: str,
    on_fault: OnFault,
    logger: logging.Logger | None = None,
) -> Records:
    """Select the records whose images exist, and report each missing image.

    Args:
        records: Records of N images.
        rows: 0-based rows [N] of the CSV file.
        images: Store or folder with the images.
        look_up: 'all', 'none', or 'first': the first image of each folder such as `train/`. In a
            store, all images are looked up.
        on_fault: Function that receives each fault.
        logger: Logger for the number of images that a store lacks.
    """
    if look_up == 'none':
        return records
    hint = '(see DATA.DATA_PATH, and DATA.IMAGE_SUFFIX if the images were converted)'
    csv_file = str(records.root / records.csv) if records.csv else ''
    keep = np.full(len(records), True)
    parts = pd.Series(records.file, dtype=object).str.replace(PATIENT_AND_BELOW, '', regex=True)
    looked_up = np.flatnonzero((look_up == 'all') | ~parts.duplicated())
    if isinstance(images, Store):
        keep = images.position(records.file) >= 0
        looked_up = np.flatnonzero(~keep)
    for position in looked_up.tolist():
        file = records.file[position]
        place = (csv_file, int(rows[position]) + 2 if csv_file else None, file)
        if file in images.left_out:
            on_fault(Fault('left out of the store', images.left_out[file], *place, 'warning'))
        elif isinstance(images, Store) or not images.exists(file):
            detail = f'the image {images.path / file} does not exist {hint}'
            on_fault(Fault('missing image', detail, *place))
            keep[position] = False
        else:
            keep[position] = images.is_inside(file, *place[:2])
    left_out = sum(file in images.left_out for file in records.file) if images.left_out else 0
    if logger is not None and left_out:
        logger.warning(
            f'{records.csv}: {left_out} images could not be read when the store was packed and are '
            f'excluded, see {images.path / BAD_FILE}'
        )
    return records if keep.all() else records.select(keep)


def _rows_of(table: Table, other: Table, columns: Sequence[str]) -> np.ndarray:  # [N]
    """Return the position of each row of a table in another by some columns; -1 if it is absent."""
    if not len(table) or not len(other):
        return np.full(len(table), -1)
    names, wanted = (pd.MultiIndex.from_frame(part.cells[[*columns]]) for part in (other, table))
    first = np.flatnonzero(~names.duplicated())
    place = names[first].get_indexer(wanted)
    return np.where(place >= 0, first[place], -1)


def _read_labels(table: Table, labels: Sequence[str]) -> np.ndarray:  # [N, K] float32
    columns = [table.map(label, CELLS, 'value of a label') for label in labels]
    stacked = np.array(columns, np.float32).reshape(len(labels), len(table))
    return np.ascontiguousarray(stacked.T)


def _records_of(table: Table, labels: Sequence[str]) -> Records:
    """Build the records of a table to which path, file, patient and study have been added."""
    view = table.map('Frontal/Lateral', VIEW_CELLS, 'value of the view', dtype=object)
    names = ('path', 'file', 'patient', 'study')
    return Records(
        root=table.file.parent,
        csv=table.file.name,
        row=table.row,
        **{name: table[name].to_numpy(object) for name in names},
        view=np.where(view == '', views_in_names(table['path']), view),
        sex=table.map('Sex', SEXES, 'value of the sex', dtype=object),
        age=table.numbers('Age', 'value of the age'),
        ap_pa=table.map('AP/PA', PROJECTIONS, 'value of the projection', dtype=object),
        labels=_read_labels(table, labels),
        label_names=tuple(labels),
    )


def _patient_order(patients: np.ndarray, *, key: str) -> tuple[np.ndarray, int]:
    """Rank patients by a keyed hash; return the rank of each record [N] and their number."""
    codes, hashes = _patient_hashes(patients, key)
    order = sorted(range(len(hashes)), key=hashes.__getitem__)
    rank = np.empty(len(hashes), np.int64)
    rank[order] = np.arange(len(hashes))
    return rank[codes], len(hashes)


def _patient_hashes(patients: np.ndarray, key: str) -> tuple[np.ndarray, list[bytes]]:
    """Return the number of the patient of each record [N], and a keyed hash of each patient."""
    codes, names = pd.factorize(patients)
    hashes = (hashlib.blake2b(os.fsencode(name), key=key.encode()) for name in names)
    return codes, [each.digest() for each in hashes]


def _share(fraction: float, count: int) -> int:
    """Return a fraction of a count, rounded up; 0.07 of 100 is 7, without rounding errors."""
    return math.ceil(fraction * count * (1 - 1e-12))

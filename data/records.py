"""Labels from a CSV of images or of studies, without the images; predictions matched to them."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import Config
from data.images import refuse_link_out
from data.labels import (
    CELLS,
    LABELS,
    TASKS,
    UNCERTAIN,
    find_task,
    scored_targets,
    task_labels,
)
from data.store import (
    STORE_FILE,
    Store,
    describe_form,
    file_crc32,
    is_store,
    open_store,
    packed_records,
    read_about,
)
from evaluation.cases import Cases
from evaluation.metrics import study_level

# ==== data.tables: CSV files as tables of text: read whole or refused, the errors that name a cell, safe cells.

# What a file may hold, so that reading it takes 2 GB of memory at most.  CheXpert's train.csv has
# 30 MB and 4 million cells, MIMIC-CXR's metadata have 57 MB and 5 million.
MAX_BYTES = 2**28  # unpacked
MAX_CELLS = 2**24
MAX_LINE_BYTES = 2**20
MAX_COLUMNS = 1000
SHOWN_COLUMNS, SHOWN_CHARACTERS = 40, 60  # in a message
# What a spreadsheet runs as a formula, in half and in full width, after any number of apostrophes.
FORMULA = re.compile("'*[=+\\-@\t\n\uff1d\uff0b\uff0d\uff20]")


def read_table(file: Path) -> pd.DataFrame:
    """Read a CSV (or .csv.gz) as text; the index is the 0-based row below the header.

    Rows that are blank throughout are left out; a row cut short is refused, and so is a file that
    is larger than MAX_... allow.

    Raises:
        ValueError: naming the file and, where there is one, the row.
    """
    try:
        data = read_data(file)
        table = pd.read_csv(
            io.BytesIO(data), dtype=object, keep_default_na=False, skip_blank_lines=False
        )
    except FileNotFoundError:
        raise ValueError(f'no such CSV file: {file}') from None
    except (ValueError, OSError, EOFError, zlib.error, csv.Error) as error:
        reason = ' '.join(str(error).split())
        raise ValueError(f'{file} is not a readable CSV file: {reason}') from error
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f'{file}: the rows have more fields than the header')
    blank = (table == '').all(axis=1)
    table = table[~blank] if blank.any() else table
    if table.empty:
        raise ValueError(f'{file} has no rows')
    # pandas fills a short row with blanks, so a file cut off would pass for unlabelled images.
    if data.count(b',') != (len(table) + 1) * (table.shape[1] - 1):
        _refuse_short_rows(data, file)
    return table


def require_columns(
    table: pd.DataFrame, wanted: Sequence[str], file: Path, *, one_of: Sequence[str] = ()
) -> None:
    """Refuse a table without the wanted columns and one of a few, or with one of them twice."""
    missing = [name for name in wanted if name not in table]
    if one_of and not any(name in table for name in one_of):
        missing = [f'{one_of[0]} (or {", ".join(one_of[1:])})', *missing]
    if missing:
        raise ValueError(
            f'{file}: missing column: {", ".join(missing)}; found: {describe_columns(table)}'
        )
    twice = [name for name in (*one_of, *wanted) if f'{name}.1' in table]
    if twice:
        raise ValueError(f'{file}: column given twice: {", ".join(twice)}')


def describe_columns(names: Sequence[str]) -> str:
    """Names of columns in a line, whatever they are: cut where they are long or many."""
    names = list(names)
    shown = [
        name
        if name.isprintable() and len(name) <= SHOWN_CHARACTERS
        else repr(name[:SHOWN_CHARACTERS]) + '...'
        for name in names[:SHOWN_COLUMNS]
    ]
    return ', '.join(shown) + (', ...' if len(names) > SHOWN_COLUMNS else '')


def refuse_duplicates(column: pd.Series, source: str, values: np.ndarray | None = None) -> None:
    """Refuse a cell whose value (by default its text) an earlier row has."""
    values = column.to_numpy() if values is None else values
    again = pd.Series(values).duplicated().to_numpy()
    if again.any():
        first = np.argmax(values == values[again][0])
        problem = f'is given in row {column.index[first] + 2} already'
        raise cell_error(source, column, int(np.argmax(again)), problem)


def safe_cell(value: object) -> object:
    """The value as a cell of a CSV that we write: a spreadsheet runs no text of it as a formula.

    An apostrophe goes before such text; `plain_cell` gives back exactly what there was.  Only a
    carriage return, which csv and pandas do not always quote, is written as two characters.
    """
    if not isinstance(value, str):
        return value
    value = value.replace('\r', '\\r')
    return f"'{value}" if FORMULA.match(value) else value


def plain_cell(text: str) -> str:
    """What `safe_cell` made this of."""
    return text[1:] if text.startswith("'") and FORMULA.match(text[1:]) else text


def read_data(file: Path) -> bytes:
    """The file unpacked, after a check that it is such as pandas reads with little memory."""
    if file.exists() and not file.is_file():
        raise ValueError('it is no file')  # but a folder, or a pipe that would never end
    with gzip.open(file) if file.suffix == '.gz' else open(file, 'rb') as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f'it has more than {MAX_BYTES:,} bytes')
    if data.count(b',') + data.count(b'\n') > MAX_CELLS:
        raise ValueError(f'it has more than {MAX_CELLS:,} cells')
    if max(map(len, io.BytesIO(data)), default=0) > MAX_LINE_BYTES:
        raise ValueError(f'it has a line of more than {MAX_LINE_BYTES:,} bytes')
    if b'\0' in data:
        raise ValueError('it has a NUL byte: it is no text in UTF-8')
    # From the header and the first row pandas takes how many columns there are.
    for row in islice(_rows(data), 2):
        if len(row) > MAX_COLUMNS:
            raise ValueError(f'it has more than {MAX_COLUMNS:,} columns')
    return data


def _rows(data: bytes) -> Iterator[list[str]]:
    return csv.reader(io.TextIOWrapper(io.BytesIO(data), encoding='utf-8-sig', newline=''))


def _refuse_short_rows(data: bytes, file: Path) -> None:
    rows = _rows(data)
    try:
        width = len(next(rows))
        for line, row in enumerate(rows, start=2):
            if row and len(row) != width:
                raise ValueError(
                    f'{file}, row {line} (the header is row 1): {len(row)} fields, the header has '
                    f'{width}; is the file cut off?'
                )
    except csv.Error as error:  # a cell longer than the csv module takes
        raise ValueError(f'{file} is not a readable CSV file: {error}') from error


def read_labels(table: pd.DataFrame, source: str) -> np.ndarray:
    """Turn the label columns of a CSV, read as text, into numbers.

    Args:
        table: text cells; the index is the 0-based row of the file, its header not counted.
        source: the file, for messages.

    Returns:
        [N, K] float32 in the order of `LABELS`: 1, 0, -1 uncertain, NaN not mentioned.

    Raises:
        ValueError: if a cell holds anything else, naming file, row, column and value.
    """
    labels = np.empty((len(table), len(LABELS)), np.float32)
    for k, label in enumerate(LABELS):
        labels[:, k] = map_cells(table[label], CELLS, source)
    return labels


def map_cells(
    column: pd.Series,
    meanings: Mapping[str, float | str],
    source: str,
    *,
    dtype: type = float,
    allowed: str = '',
) -> np.ndarray:
    """Replace each text cell by its meaning; a cell without one is a ValueError that names it."""
    codes, values = pd.factorize(column.to_numpy())
    for code, value in enumerate(values):
        if value not in meanings:
            allowed = allowed or ', '.join(name or 'empty' for name in meanings)
            problem = f'is not allowed (allowed: {allowed})'
            raise cell_error(source, column, int(np.argmax(codes == code)), problem)
    return np.array([meanings[value] for value in values], dtype)[codes]


def cell_error(source: str, column: pd.Series, position: int, problem: str) -> ValueError:
    """The error for the cell at a position of a column, whose index counts the file's rows."""
    value, row = column.iloc[position], column.index[position] + 2
    shown = value if len(value) <= 200 else f'{value[:200]}...'
    return ValueError(
        f'{source}, row {row} (the header is row 1), column {column.name!r}: {shown!r} {problem}'
    )



# ==== data.chexpert: CheXpert's CSV files and image folders as checked records; views, splits, subsets.

SCORED_FILES = ('train.csv', 'valid.csv')  # a folder with one of them holds images to be scored
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.dcm')

# Columns that describe an image. A label file may lack them, all together.
DESCRIPTION = ('Sex', 'Age', 'Frontal/Lateral', 'AP/PA')
SEXES = {name: name for name in ('Male', 'Female', 'Unknown')}
VIEW_CELLS = {'Frontal': 'frontal', 'Lateral': 'lateral'}
PROJECTIONS = {name: name for name in ('AP', 'PA', 'LL', 'RL', '')}
MAX_PATH = 4096  # characters; longer ones no system opens, and only take time
AGE = re.compile(r'\d{1,3}(\.\d+)?', re.ASCII)

_PART = r'(?!\.\.?(?:/|\Z))[^/\0-\x1f\x7f]+'
_STUDY_FORM = rf'(?P<study>(?P<prefix>(?:{_PART}/)*?)(?P<patient>patient\d+)/study\d+)'
STUDY_PATH = re.compile(_STUDY_FORM)
IMAGE_PATH = re.compile(rf'{_STUDY_FORM}(?:/{_PART})+')
VIEW_NAME = re.compile(r'_(frontal|lateral)\.[^./]+\Z')
PATIENT_PART = re.compile(r'(?:\A|/)(patient\d+)/')


@dataclass(frozen=True, eq=False)
class Records:
    """One row an image, in a fixed order; the arrays of text are object arrays."""

    root: Path
    csv: str  # the file's name; '' for a folder of images
    row: np.ndarray  # [N] int64, sample id: the CSV's 0-based row (of `Study` files: the image's)
    path: np.ndarray  # [N] as in the CSV
    file: np.ndarray  # [N] relative to root
    patient: np.ndarray  # [N]
    study: np.ndarray  # [N] the part of `path` that names the study
    view: np.ndarray  # [N] 'frontal', 'lateral'; '' in a folder of images
    sex: np.ndarray  # [N] 'Male', 'Female', 'Unknown'
    age: np.ndarray  # [N] float64, NaN where unknown
    ap_pa: np.ndarray  # [N] 'AP', 'PA', 'LL', 'RL', ''
    labels: np.ndarray | None  # [N, K] float32: 1, 0, -1 uncertain, NaN blank

    def __len__(self) -> int:
        return len(self.row)

    def select(self, indices: np.ndarray) -> 'Records':
        """The records at these positions (or where this mask is true), in that order."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: v[indices] for name, v in values.items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays)


def read_csv(
    data_path: str | Path,
    csv_name: str,
    *,
    image_suffix: str = '',
    logger: logging.Logger | None = None,
    check_files: bool = True,
) -> Records:
    """Read and check a CSV in CheXpert's layout, beside its images or in a packed store.

    A row is an image (`Path`) or a study (`Study`: its images are those below that folder). In a
    `Study` file, or without the columns of `DESCRIPTION`, views come from file names and the rest
    is unknown. Of each prefix (what precedes a patient's folder) the first image is looked up;
    in a store every image is, and those that it was packed without are left out.

    Args:
        data_path: the folder that holds the CSV and the images, or a store of it.
        csv_name: the CSV's name inside `data_path`.
        image_suffix: what replaces the suffix of the paths, such as '.png'; '' keeps it.
        logger: told, in one line, how paths become files.
        check_files: False looks up none; `file` is then the path as the CSV has it.

    Raises:
        ValueError: if anything is not as it should be, naming file, row and column.
    """
    root, source = Path(data_path), str(Path(data_path) / csv_name)
    if image_suffix and not re.fullmatch(r'\.\w+', image_suffix):
        raise ValueError(f"DATA.IMAGE_SUFFIX must be like '.png', or empty, got {image_suffix!r}")
    if not Path(source).is_file():
        below = [folder for folder in sorted(root.glob('*')) if os.path.isfile(folder / csv_name)]
        hint = f': {below[0]} has one' if below else ''
        raise ValueError(f'no such CSV file: {source} (see DATA.DATA_PATH and DATA.*_CSV){hint}')
    table = read_table(Path(source))
    described = any(name in table for name in DESCRIPTION) and 'Path' in table
    wanted = [*(DESCRIPTION if described else ()), *LABELS]
    require_columns(table, wanted, Path(source), one_of=('Path', 'Study'))
    store = open_store(root) if is_store(root) else None
    by_study = 'Path' not in table
    if by_study:
        table = _expand_studies(table, store or root, source, image_suffix)
    paths = table['Path']
    parts = match_paths(paths, IMAGE_PATH, source)
    suffix = '' if by_study else image_suffix  # a study's images are listed as they are
    rule = PathRule(False, suffix)
    if check_files:
        rule = PathRule.decide(paths, parts['prefix'], store or root, source, suffix)
    files = np.array([rule.file(path) for path in paths], object)
    refuse_duplicates(paths, source, files)
    if logger is not None:
        logger.info(f'{csv_name}: {len(table)} images; {rule.describe()}')
    records = Records(
        root=root,
        csv=csv_name,
        row=np.arange(len(table)) if by_study else table.index.to_numpy(),
        path=paths.to_numpy(),
        file=files,
        patient=parts['patient'].to_numpy(),
        study=parts['study'].to_numpy(),
        **_read_description(table, source),
        labels=read_labels(table, source),
    )
    return packed_records(records, store, logger) if store and check_files else records


def read_folder(
    data_path: str | Path, *, allow_all_images: bool, logger: logging.Logger | None = None
) -> Records:
    """List every image below a folder or in a packed store, sorted, as records without labels.

    Hidden files and folders are passed over; so are links to what the folder holds itself.  What
    a store was packed without is left out.

    Raises:
        ValueError: if there is no image, if a link leaves the folder, or if it holds train.csv or
            valid.csv (then it holds images to be scored later) without `allow_all_images`.
    """
    root = Path(data_path)
    if not root.is_dir():
        raise ValueError(f'DATA.DATA_PATH is no folder: {root}')
    store = open_store(root) if is_store(root) else None
    refused = () if allow_all_images else SCORED_FILES
    if store is None:
        files = sorted(_images_below(root, '', IMAGE_SUFFIXES, refused=refused))
    elif refused and store.about['scored']:
        names = ' or '.join(refused)
        raise _refuse_scored(f'{root} was packed from a folder with {names}, or got labels since')
    else:
        files = sorted([*store.files, *store.left_out])
    if not files:
        raise ValueError(f'no image below {root} (looked for {", ".join(IMAGE_SUFFIXES)})')
    paths, size = np.array(files, object), len(files)
    records = Records(
        root=root,
        csv='',
        row=np.arange(size),
        path=paths,
        file=paths,
        patient=np.array([(PATIENT_PART.search(f) or {1: f})[1] for f in files], object),
        study=np.array([(IMAGE_PATH.match(f) or {'study': f})['study'] for f in files], object),
        view=np.full(size, '', object),
        **_unknown(size),
        labels=None,
    )
    return records if store is None else packed_records(records, store, logger)


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
    """Split off a fraction of the patients, the same ones whatever the seed.

    Call it on all records of the CSV: views and subsets are chosen afterwards, so that they do not
    change who is held out.

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
    """Keep a share of the patients, or a number of images; a smaller subset lies in a larger one.

    Args:
        records: those to choose from; their order is kept.
        fraction: DATA.TRAIN_FRACTION, share of the patients, rounded up; 1 for all.
        images: DATA.TRAIN_IMAGES, images of the first patients, the last one's in part; 0 for all.
        seed: draws the order of the patients.
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


def match_paths(paths: pd.Series, form: re.Pattern, source: str) -> pd.DataFrame:
    """Patient, study and prefix of each path; refuses paths that are not of the form."""
    matches = [form.fullmatch(path) if len(path) <= MAX_PATH else None for path in paths]
    if None in matches:
        position = matches.index(None)
        path = paths.iloc[position]
        if path.startswith('/') or '//' in path or '..' in path.split('/'):
            problem = 'leaves the data root: only relative paths without .. are allowed'
        else:
            image = '' if form is STUDY_PATH else '/view1_frontal.jpg'
            problem = f'is not of the form FOLDER/.../patient00001/study1{image}'
        raise cell_error(source, paths, position, problem)
    names = ['patient', 'study', 'prefix']
    return pd.DataFrame([match.group(*names) for match in matches], columns=names, dtype=object)


@dataclass(frozen=True)
class PathRule:
    """How a path of the CSV becomes a file below the root."""

    drop_first_part: bool
    suffix: str

    @classmethod
    def decide(
        cls, paths: pd.Series, prefixes: pd.Series, root: Path | Store, source: str, suffix: str
    ) -> 'PathRule':
        """Take the rule under which the first path of each prefix is there."""
        first = paths[~prefixes.duplicated().to_numpy()]
        tried = []
        for rule in (cls(True, suffix), cls(False, suffix)):
            files = [rule.file(path) for path in first]
            missing = [file for file in files if not exists(root, file)]
            if not missing:
                if not isinstance(root, Store):
                    for file in files:
                        refuse_link_out(root, root / file)
                return rule
            tried.append(os.path.join(root, missing[0]))
        raise ValueError(
            f'{source}: images not found; tried {" and ".join(tried)} '
            '(see DATA.DATA_PATH, and DATA.IMAGE_SUFFIX if the images were converted)'
        )

    def file(self, path: str) -> str:
        file = path.partition('/')[2] if self.drop_first_part else path
        return os.path.splitext(file)[0] + self.suffix if self.suffix else file

    def describe(self) -> str:
        kept = 'without its first part' if self.drop_first_part else 'as it is'
        suffix = f', its suffix replaced by {self.suffix}' if self.suffix else ''
        return f'file = DATA_PATH / Path {kept}{suffix}'


def _expand_studies(
    table: pd.DataFrame, root: Path | Store, source: str, image_suffix: str
) -> pd.DataFrame:
    """Turn rows of studies into rows of their images; the index stays the study's row."""
    studies = table['Study']
    prefixes = match_paths(studies, STUDY_PATH, source)['prefix']
    rule = PathRule.decide(studies, prefixes, root, source, suffix='')
    refuse_duplicates(studies, source)
    suffixes = (image_suffix.lower(),) if image_suffix else IMAGE_SUFFIXES
    images = []
    for position, study in enumerate(studies):
        place = rule.file(study)
        found = _images_of_study(root, place, suffixes)
        if not found:
            problem = f'has no image ({", ".join(suffixes)}) below {os.path.join(root, place)}'
            raise cell_error(source, studies, position, problem)
        images.append([study + file[len(place) :] for file in found])
    return table[list(LABELS)].assign(Path=images).explode('Path')


def exists(root: Path | Store, file: str) -> bool:
    """Whether a folder, or a store, holds this file."""
    return root.exists(file) if isinstance(root, Store) else os.path.exists(root / file)


def _images_of_study(root: Path | Store, place: str, suffixes: tuple[str, ...]) -> list[str]:
    if isinstance(root, Store):
        return [file for file in root.below(place) if file.lower().endswith(suffixes)]
    if not os.path.isdir(root / place):
        return []
    refuse_link_out(root, root / place)
    return sorted(_images_below(root, place, suffixes))


def _images_below(
    root: Path, place: str, suffixes: tuple[str, ...], refused: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yield the images below `root / place` as paths relative to the root."""
    places = [place]
    while places:
        place = places.pop()
        with os.scandir(root / place) as entries:
            visible = [entry for entry in entries if not entry.name.startswith('.')]
        for entry in visible:
            file = f'{place}/{entry.name}' if place else entry.name
            if entry.name in refused:
                raise _refuse_scored(f'{root / file} is there', root)
            is_image = entry.name.lower().endswith(suffixes)
            if entry.is_symlink():
                if is_image or os.path.isdir(root / file):
                    refuse_link_out(root, root / file)
            elif entry.is_dir():
                places.append(file)
            elif is_image and entry.is_file():
                yield file


def _refuse_scored(reason: str, root: Path | None = None) -> ValueError:
    part = f'--data-path {root / "train"}' if root and (root / 'train').is_dir() else ''
    return ValueError(
        f'{reason}: this folder holds images that are scored later; '
        f'{f"take those to train on alone with {part}, " if part else ""}'
        'use DATA.DATASET chexpert, or set DATA.ALLOW_ALL_IMAGES True'
    )


def _read_description(table: pd.DataFrame, source: str) -> dict[str, np.ndarray]:
    """View, sex, age and projection; from the file's name and unknown where not described."""
    if DESCRIPTION[0] not in table:
        return {'view': views_from_names(table['Path'], source), **_unknown(len(table))}
    ages = {text: float(text) for text in table['Age'].unique() if AGE.fullmatch(text)}
    return {
        'view': map_cells(table['Frontal/Lateral'], VIEW_CELLS, source, dtype=object),
        'sex': map_cells(table['Sex'], SEXES, source, dtype=object),
        'age': map_cells(table['Age'], ages, source, allowed='numbers from 0'),
        'ap_pa': map_cells(table['AP/PA'], PROJECTIONS, source, dtype=object),
    }


def _unknown(size: int) -> dict[str, np.ndarray]:
    return {
        'sex': np.full(size, 'Unknown', object),
        'age': np.full(size, np.nan),
        'ap_pa': np.full(size, '', object),
    }


def views_from_names(paths: pd.Series, source: str) -> np.ndarray:
    views = [VIEW_NAME.search(path) for path in paths]
    if None in views:
        problem = 'names no view: expected a name such as view1_frontal.jpg or view2_lateral.jpg'
        raise cell_error(source, paths, views.index(None), problem)
    return np.array([view[1] for view in views], object)


def _patient_order(patients: np.ndarray, *, key: str) -> tuple[np.ndarray, int]:
    """Rank of each record's patient under a keyed hash of the name, and the number of patients."""
    codes, names = pd.factorize(patients)
    hashes = [hashlib.blake2b(os.fsencode(name), key=key.encode()).digest() for name in names]
    order = sorted(range(len(names)), key=hashes.__getitem__)
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return rank[codes], len(names)


def _share(fraction: float, count: int) -> int:
    """The fraction of the count, rounded up; 0.07 of 100 is 7, though floats give a little more."""
    return math.ceil(fraction * count * (1 - 1e-12))


# ==== data.mimic: MIMIC-CXR-JPG's CSV files and images as the records of data/chexpert.py.

SPLITS = {name: name for name in ('train', 'validate', 'test')}
LABELLERS = ('chexpert', 'negbio')
# ViewPosition -> view; any other, or none, is neither frontal nor lateral.
VIEWS = {
    'AP': 'frontal',
    'PA': 'frontal',
    'LATERAL': 'lateral',
    'LL': 'lateral',
    'RL': 'lateral',
    'XTABLE LATERAL': 'lateral',
}
# What the parts of a path may hold.
NUMBER = re.compile(r'\d+', re.ASCII)
ID_FORMS = {
    'subject_id': (NUMBER, 'digits'),
    'study_id': (NUMBER, 'digits'),
    'dicom_id': (re.compile(r'[\w-]+', re.ASCII), 'letters, digits, - and _'),
}


def read_mimic(
    data_path: str | Path,
    split: str,
    *,
    labeller: str,
    image_suffix: str = '',
    optional: bool = False,
    logger: logging.Logger | None = None,
) -> Records | None:
    """Read and check a split of MIMIC-CXR-JPG.

    The folder holds mimic-cxr-*-split.csv, -metadata.csv and -<labeller>.csv, each as it is or as
    .gz, and files/p10/p10000032/s50414267/<dicom_id>.jpg. Views other than frontal and lateral are
    ''. Sex and age are unknown: these files do not have them. Images of studies that the label
    file lacks are left out. Of the images only the first is looked up on disk.

    Args:
        data_path: the folder, or a packed store of it.
        split: 'train', 'validate' or 'test'.
        labeller: whose labels, 'chexpert' or 'negbio'.
        image_suffix: what replaces '.jpg', such as '.png'; '' keeps it.
        optional: whether the split's images may be absent.
        logger: told, in one line, where images and labels come from and what is left out.

    Returns:
        Records in the order of the split file; `row` is its 0-based row. None for an optional split
        whose first image is not there.

    Raises:
        ValueError: if anything is not as it should be, naming file, row and column.
    """
    _check_names(split, labeller, image_suffix)
    root = Path(data_path)
    split_file, metadata_file, label_file = (
        find_table(root, kind) for kind in ('split', 'metadata', labeller)
    )
    images = _read_split(split_file, split)
    images['ViewPosition'] = _read_positions(images, split_file, metadata_file)
    labelled, labels = _with_labels(images, split_file, label_file)
    left_out = _describe_left_out(images, labelled, label_file)
    images = labelled
    studies = 'files/p' + images['subject_id'].str[:2] + '/p' + images['subject_id']
    studies += '/s' + images['study_id']
    paths = studies + '/' + images['dicom_id']
    files = (paths + (image_suffix or '.jpg')).to_numpy(object)
    store = open_store(root) if is_store(root) else None
    if not exists(store or root, files[0]):
        if optional:
            return None
        raise ValueError(
            f'{split_file}: image not found: {root / files[0]} '
            '(see DATA.DATA_PATH, and DATA.IMAGE_SUFFIX if the images were converted)'
        )
    if store is None:
        refuse_link_out(root, root / files[0])
    view = np.array([VIEWS.get(name, '') for name in images['ViewPosition']], object)
    if logger is not None:
        logger.info(
            f'{split_file.name}, {split}: {len(images)} images; file = DATA_PATH / '
            f'files/pNN/pSUBJECT/sSTUDY/DICOM{image_suffix or ".jpg"}; '
            f'{left_out}; '
            f'{_describe_other_views(images["ViewPosition"][view == ""])}'
        )
    records = Records(
        root=root,
        csv=split_file.name,
        row=images.index.to_numpy(),
        path=(paths + '.jpg').to_numpy(object),
        file=files,
        patient=('p' + images['subject_id']).to_numpy(object),
        study=studies.to_numpy(object),
        view=view,
        sex=np.full(len(images), 'Unknown', object),
        age=np.full(len(images), np.nan),
        ap_pa=np.where(view == 'frontal', images['ViewPosition'], '').astype(object),
        labels=labels,
    )
    return records if store is None else packed_records(records, store, logger)


def named_images(data_path: str | Path, *, image_suffix: str = '') -> set[str]:
    """The files that `read_mimic` gives for all splits, by the labels of all labellers there."""
    root = Path(data_path)
    splits = read_table(find_table(root, 'split'))['split'].unique()
    labellers = [name for name in LABELLERS if list(root.glob(f'mimic-cxr-*-{name}.csv*'))]
    named = set()
    for labeller in labellers or LABELLERS:
        for split in splits:
            options = {'labeller': labeller, 'image_suffix': image_suffix}
            named.update(read_mimic(root, split, **options).file)
    return named


def _check_names(split: str, labeller: str, image_suffix: str) -> None:
    if split not in SPLITS:
        raise ValueError(f'split must be one of {", ".join(SPLITS)}, got {split!r}')
    if labeller not in LABELLERS:
        raise ValueError(f'DATA.LABELLER must be one of {", ".join(LABELLERS)}, got {labeller!r}')
    if image_suffix and not re.fullmatch(r'\.\w+', image_suffix):
        raise ValueError(f"DATA.IMAGE_SUFFIX must be like '.png', or empty, got {image_suffix!r}")


def find_table(root: Path, kind: str) -> Path:
    """The one file of this kind, whatever its version."""
    if not root.is_dir():
        raise ValueError(f'DATA.DATA_PATH is no folder: {root}')
    names = [f'mimic-cxr-*-{kind}.csv', f'mimic-cxr-*-{kind}.csv.gz']
    found = sorted(file for name in names for file in root.glob(name))
    if len(found) != 1:
        keys = 'DATA.DATA_PATH, DATA.LABELLER' if kind in LABELLERS else 'DATA.DATA_PATH'
        raise ValueError(
            f'{root} must hold exactly one {" or ".join(names)}, found: '
            f'{", ".join(file.name for file in found) or "none"} (see {keys})'
        )
    return found[0]


def _read_table(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    table = read_table(file)
    require_columns(table, columns, file)
    return table[list(columns)]


def _read_split(file: Path, split: str) -> pd.DataFrame:
    """The rows of this split, after a check of all; the index counts the file's rows."""
    table, source = _read_table(file, [*ID_FORMS, 'split']), str(file)
    for name, (form, allowed) in ID_FORMS.items():
        bad = [form.fullmatch(value) is None for value in table[name]]
        if any(bad):
            problem = f'is not allowed (allowed: {allowed})'
            raise cell_error(source, table[name], bad.index(True), problem)
    refuse_duplicates(table['dicom_id'], source)
    splits = map_cells(table['split'], SPLITS, source, dtype=object)
    first = table.drop_duplicates('subject_id').set_index('subject_id')['split']
    elsewhere = splits != first.loc[table['subject_id']].to_numpy()
    if elsewhere.any():
        position = int(np.argmax(elsewhere))
        problem = f'is in the split {first[table["subject_id"].iloc[position]]!r}, too'
        raise cell_error(source, table['subject_id'], position, problem)
    if split not in first.to_numpy():
        raise ValueError(f"{file}, column 'split': no row is {split!r}")
    return table[splits == split].copy()


def _read_positions(images: pd.DataFrame, split_file: Path, file: Path) -> np.ndarray:
    """ViewPosition of each image."""
    metadata = _read_table(file, [*ID_FORMS, 'ViewPosition'])
    place = _look_up(images, metadata, file, key='dicom_id', same=('subject_id', 'study_id'))
    if (place < 0).any():
        problem = f'has no row in {file.name}'
        raise cell_error(str(split_file), images['dicom_id'], int(np.argmin(place)), problem)
    return metadata['ViewPosition'].to_numpy()[place]


def _with_labels(
    images: pd.DataFrame, split_file: Path, file: Path
) -> tuple[pd.DataFrame, np.ndarray]:
    """The images whose studies have a row in the label file, and their labels [N, K]."""
    table = _read_table(file, ['subject_id', 'study_id', *LABELS])
    labels = read_labels(table, str(file))
    place = _look_up(images, table, file, key='study_id', same=('subject_id',))
    if (place < 0).all():
        raise ValueError(f'{file} has no row for any study of the split in {split_file.name}')
    return images[place >= 0], labels[place[place >= 0]]


def _look_up(
    images: pd.DataFrame, table: pd.DataFrame, file: Path, *, key: str, same: Sequence[str]
) -> np.ndarray:  # [N]
    """Position of each image's row in a table of one row a key; -1 where there is none.

    Args:
        images: what is looked up.
        table: where.
        file: the table's, for messages.
        key: the column by which.
        same: columns in which the two rows must agree.
    """
    refuse_duplicates(table[key], str(file))
    place = pd.Index(table[key]).get_indexer(images[key])
    for name in same:
        wanted = images[name].to_numpy()
        wrong = (place >= 0) & (table[name].to_numpy()[place] != wanted)
        if wrong.any():
            position = int(np.argmax(wrong))
            problem = (
                f'is {wanted[position]!r} in row {images.index[position] + 2} of the split file'
            )
            raise cell_error(str(file), table[name], int(place[position]), problem)
    return place


def _describe_left_out(images: pd.DataFrame, kept: pd.DataFrame, label_file: Path) -> str:
    num_studies = images['study_id'].nunique() - kept['study_id'].nunique()
    return (
        f'labels of {label_file.name}; without a row in it and left out: '
        f'{len(images) - len(kept)} images of {num_studies} studies'
    )


def _describe_other_views(positions: pd.Series) -> str:
    counts = positions.value_counts().head(5).items()
    named = ', '.join(f'{count} {repr(name) if name else "empty"}' for name, count in counts)
    return f'neither frontal nor lateral: {len(positions)}' + (f' ({named})' if named else '')


# ==== data.splits: Where the data lies, and the records of a split of whichever labelled data set it is.

LABELLED = ('chexpert', 'mimic-cxr')  # values of DATA.DATASET whose images have labels
MIMIC_SPLITS = {'train': 'train', 'valid': 'validate', 'test': 'test'}


def data_root(config: Config, logger: logging.Logger) -> str:
    """The folder to read: DATA.DATA_PATH, or the copy of that store in DATA.CACHE_DIR.

    Copies are told apart by what they hold: stores may share the folder, and one that was added to
    is copied anew, while a run that reads the older copy goes on.

    Raises:
        ValueError: if DATA.CACHE_DIR is for no store, or cannot hold it.
    """
    data = config.DATA
    if not data.CACHE_DIR:
        return data.DATA_PATH
    from data.store import copy_store

    source = Path(data.DATA_PATH)
    if not is_store(source):
        raise ValueError(
            f'DATA.CACHE_DIR is for packed stores, and DATA.DATA_PATH {source} is none: pack it '
            'with scripts/pack.py and name the store, or leave DATA.CACHE_DIR empty'
        )
    target = Path(data.CACHE_DIR) / f'{source.resolve().name}-{file_crc32(source / STORE_FILE):08x}'
    try:
        return str(copy_store(source, target, logger))
    except OSError as error:
        raise ValueError(f'DATA.CACHE_DIR: cannot copy {source} to {target}: {error}') from error


def describe_pictures(data_path: str | Path) -> str:
    """In what form the pictures are read."""
    return (
        f'packed {describe_form(read_about(data_path)["settings"])}'
        if is_store(data_path)
        else 'files'
    )


def log_store(config: Config, logger: logging.Logger) -> None:
    """Say what form the pictures of a store have, and warn where views enlarge them."""
    path = config.DATA.DATA_PATH
    if not is_store(path):
        return
    about = read_about(path)
    logger.info(f'{path}: {about["images"]} pictures, {describe_pictures(path)}')
    size, side = config.DATA.IMG_SIZE, about['settings']['size']
    needed = int(256 / 224 * size) if config.TEST.CROP else size
    if side is not None and side < needed:
        logger.warning(
            f'{path}: pictures of {side} px are enlarged, for views of {size} px need {needed} px '
            f'(DATA.IMG_SIZE, TEST.CROP): pack them with scripts/pack.py --size {needed} or more'
        )


def read_split(
    config: Config, split: str, logger: logging.Logger, *, optional: bool = False
) -> Records | None:
    """All records of 'train', 'valid' or 'test'; None for an optional split that is not there."""
    data, root = config.DATA, data_root(config, logger)
    options = {'image_suffix': data.IMAGE_SUFFIX, 'logger': logger}
    if data.DATASET == 'mimic-cxr':
        pass  # MERGED

        name = MIMIC_SPLITS[split]
        options |= {'labeller': data.LABELLER, 'optional': optional}
        return read_mimic(root, name, **options)
    csv_name = {'train': data.TRAIN_CSV, 'valid': data.VALID_CSV, 'test': data.TEST_CSV}[split]
    if optional and not (Path(root) / csv_name).is_file():
        return None
    return read_csv(root, csv_name, **options)


def describe_subset(config: Config) -> str:
    """What part of the training images is taken, by which option; '' for all of them."""
    data = config.DATA
    if data.TRAIN_IMAGES:
        return f'{data.TRAIN_IMAGES} of the images: DATA.TRAIN_IMAGES'
    if data.TRAIN_FRACTION < 1:
        return f'{100 * data.TRAIN_FRACTION:g} % of the patients: DATA.TRAIN_FRACTION'
    return ''


def training_records(config: Config, records: Records) -> Records:
    """The images that fine-tuning learns from, of those that are not held out.

    Those of DATA.VIEWS; in a binary task those that say something of it; of these the subset.
    """
    data = config.DATA
    records = select_views(records, data.VIEWS)
    if not find_task(data.TASK).uses_policies:
        targets = scored_targets(records.labels, task=data.TASK, blank=data.BLANK)
        records = records.select(~np.isnan(targets[:, 0]))
    return take_subset(
        records, fraction=data.TRAIN_FRACTION, images=data.TRAIN_IMAGES, seed=config.SEED
    )


# ==== data.groups: Groups of patients and images: sex, age bands, views, and any column of a CSV.

PATIENT_COLUMNS = ('PATIENT', 'Patient', 'patient', 'patient_id')
DIGITS = '0123456789'
STANDARD_GROUPS = ('Sex', 'Age', 'View')
NO_GROUPS = ('Path', 'Study', *LABELS)
MOST_GROUPS = 50  # of one column
OPTIONS = ('EVAL.GROUPS', 'DATA.DEMOGRAPHICS')


def standard_groups(records: Records, age_bands: Sequence[int]) -> dict[str, np.ndarray]:
    """Sex, age band and view of each image, as text that is '' where unknown.

    Age 0 counts as unknown: CheXpert's patients are adults, and 0 stands for a missing age there.

    Args:
        records: the images.
        age_bands: where the bands begin, in years, ascending; the last has no end.

    Returns:
        'Sex'; 'Age' such as '40-59' or '80 and over'; 'View': 'Lateral', or 'Frontal' with its
        projection where it has one ('Frontal AP').
    """
    frontal = np.array([f'Frontal {name}'.strip() for name in records.ap_pa], object)
    frontal = np.where(records.view == 'frontal', frontal, '')
    return {
        'Sex': np.where(records.sex == 'Unknown', '', records.sex),
        'Age': _bands(records.age, age_bands),
        'View': np.where(records.view == 'lateral', 'Lateral', frontal),
    }


def group_columns(
    records: Records,
    columns: Sequence[str],
    *,
    demographics: str = '',
    options: tuple[str, str] = OPTIONS,
) -> dict[str, np.ndarray]:
    """Each image's text in further columns, '' where there is none.

    A column is taken from the records' own CSV, by row, or else from the demographics file, by
    patient; patients that are not in that file have ''.

    Args:
        records: the images.
        columns: names of columns.
        demographics: a CSV inside the data's folder with one row a patient, such as CheXpert's
            (PATIENT, GENDER, AGE_AT_CXR, PRIMARY_RACE, ETHNICITY) saved as CSV; '' for none.
        options: what errors call the two options that name columns and demographics.

    Returns:
        Column -> [N] text, in the order asked for.

    Raises:
        ValueError: if a column is in neither file or holds no groups, or if the demographics do not
            fit.
    """
    _refuse_names(columns, options[0])
    if not columns or not len(records):
        return {name: np.array([], object) for name in columns}
    own, more = _own_table(records), None
    found = {}
    for name in columns:
        if name in own:
            found[name] = own[name].to_numpy(object)
        else:
            if demographics and more is None:
                more = _read_demographics(records, demographics, options[1])
            if more is None or name not in more:
                raise ValueError(_describe_missing(name, records, own, demographics, more, options))
            values = _one_value_each(more[name], str(records.root / demographics))
            found[name] = values.reindex(records.patient, fill_value='').to_numpy(object)
        _refuse_many(name, found[name], options[0])
    return found


def _bands(ages: np.ndarray, age_bands: Sequence[int]) -> np.ndarray:
    ends = [f'{start}-{end - 1}' for start, end in zip(age_bands, age_bands[1:], strict=False)]
    names = np.array([f'under {age_bands[0]}', *ends, f'{age_bands[-1]} and over'], object)
    band = names[np.searchsorted(age_bands, np.nan_to_num(ages), side='right')]
    return np.where(np.isnan(ages) | (ages == 0), '', band)


def _refuse_names(columns: Sequence[str], option: str) -> None:
    for name in columns:
        if name in STANDARD_GROUPS:
            raise ValueError(
                f'{option}: {name!r} is always a group; name none of {", ".join(STANDARD_GROUPS)}'
            )
        if name in NO_GROUPS:
            raise ValueError(f'{option}: {name!r} names images or a label, no groups')


def _refuse_many(name: str, values: np.ndarray, option: str) -> None:
    groups = sorted(set(values) - {''})
    if len(groups) > MOST_GROUPS:
        raise ValueError(
            f'{option}: {name!r} has {len(groups)} different values, such as '
            f'{describe_columns(groups[:3])}; allowed are columns of at most {MOST_GROUPS}'
        )


def _own_table(records: Records) -> pd.DataFrame:
    """The records' own CSV, a row a record; nothing for a folder of images."""
    if not records.csv:
        return pd.DataFrame()
    table = read_table(records.root / records.csv)
    if 'Study' in table and 'Path' not in table:
        return table.set_index('Study', drop=False).loc[records.study]
    return table.loc[records.row]


def _read_demographics(records: Records, name: str, option: str) -> pd.DataFrame:
    """The demographics, indexed by (row of the file, patient)."""
    file = records.root / name
    if file.suffix.lower() in ('.xlsx', '.xls'):
        raise ValueError(f'{option}: {file} is a spreadsheet: export it as CSV')
    table = read_table(file)
    keys = [column for column in PATIENT_COLUMNS if column in table]
    if not keys:
        raise ValueError(
            f'{file}: no column of patients ({", ".join(PATIENT_COLUMNS)}); '
            f'found: {describe_columns(table)}'
        )
    patients, example = table[keys[0]], records.patient[0]
    form = re.compile(re.escape(example.rstrip(DIGITS)) + f'[{DIGITS}]+')
    foreign = [form.fullmatch(name) is None for name in patients]
    if any(foreign):
        problem = f'is no name of a patient such as {example}'
        raise cell_error(str(file), patients, foreign.index(True), problem)
    return table.set_index(patients, append=True)


def _one_value_each(column: pd.Series, source: str) -> pd.Series:
    """Patient -> value, of a column that is indexed by (row of the file, patient)."""
    rows, patients = (column.index.get_level_values(level) for level in (0, 1))
    pairs = pd.DataFrame({'row': rows, 'patient': patients, 'value': column.to_numpy()})
    pairs = pairs.drop_duplicates(['patient', 'value'])
    again = pairs['patient'].duplicated()
    if again.any():
        patient = pairs['patient'][again].iloc[0]
        first, second, *_ = pairs[pairs['patient'] == patient].itertuples()
        raise ValueError(
            f'{source}: {patient} has {column.name!r} {first.value!r} in row {first.row + 2} and '
            f'{second.value!r} in row {second.row + 2} (the header is row 1)'
        )
    return pairs.set_index('patient')['value']


def _describe_missing(
    name: str,
    records: Records,
    own: pd.DataFrame,
    demographics: str,
    more: pd.DataFrame | None,
    options: tuple[str, str],
) -> str:
    tables = {records.csv or 'a folder of images': own}
    if more is not None:
        tables[demographics] = more
    there = []
    for source, table in tables.items():
        columns = [column for column in table if column not in (*STANDARD_GROUPS, *NO_GROUPS)]
        there.append(f'{source} has {describe_columns(columns) or "none"}')
    hint = '' if demographics else f'; {options[1]} may name a CSV with more'
    return f'{options[0]}: no column {name!r}; {"; ".join(there)}{hint}'


# ==== data.predictions: Prediction files: `predictions_<split>.csv` with its JSON, and reading anyone's of that form.

KEYS = ('Path', 'Study')  # columns of names: of images, or of studies
KNOWN_LABELS = tuple(dict.fromkeys(label for task in TASKS.values() for label in task.labels))
# A patient's folder and a study's in it: CheXpert's patient00001/study1, MIMIC-CXR's p1.../s5...
STUDY = re.compile(r'(?:\A|(?<=/))(?P<patient>patient\d+|p\d+)/(?:study|s)\d+(?=/|\Z)', re.ASCII)
SUFFIX = re.compile(rf'(?:{"|".join(map(re.escape, IMAGE_SUFFIXES))})\Z', re.IGNORECASE)
NUMBER_predictions = re.compile(r'(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?', re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of images or studies, a row each."""

    file: Path
    key: str  # 'Path' or 'Study': what a row is
    row: np.ndarray  # [N] the file's 0-based row
    names: np.ndarray  # [N] as in the file
    labels: tuple[str, ...]  # in the order of KNOWN_LABELS
    probabilities: np.ndarray  # [N, K] in [0, 1]; NaN where empty, if that is allowed
    ignored: tuple[str, ...]  # the file's other columns


def write_predictions(
    path: str | Path,
    probabilities: np.ndarray,
    *,
    paths: Sequence[str],
    labels: Sequence[str],
    source: dict[str, Any],
) -> None:
    """Write one row an image, and `source` (checkpoint, data, views...) as JSON beside it.

    Either file is written whole or not at all.

    Args:
        path: the CSV; the JSON has the same name with `.json`.
        probabilities: [N, K] in [0, 1], written with 9 significant digits; NaN as an empty cell.
        paths: [N] as in the data set's CSV.
        labels: [K] names of the columns, in order.
        source: what made the file.
    """
    table = pd.DataFrame(probabilities, columns=list(labels))
    table.insert(0, 'Path', [safe_cell(path) for path in paths])
    # A file's name need not be UTF-8: then its bytes are written as they are.
    rows = table.to_csv(index=False, float_format='%.9g').encode('utf-8', 'surrogateescape')
    _replace(Path(path).with_suffix('.json'), (json.dumps(source, indent=1) + '\n').encode())
    _replace(Path(path), rows)


def read_predictions(path: str | Path, *, allow_empty: bool = False) -> Predictions:
    """Read and check a CSV of `Path` or `Study` and labels by name, columns in any order.

    Args:
        path: the CSV.
        allow_empty: whether cells may be empty.

    Raises:
        ValueError: naming file, row and column, if a name comes twice (as `normalise_name` sees
            it), a cell is no number from 0 to 1, or the file is not such a table.
    """
    file, source = Path(path), str(path)
    table = read_table(file)
    labels = tuple(label for label in KNOWN_LABELS if label in table)
    require_columns(table, labels, file, one_of=KEYS)
    if not labels:
        raise ValueError(
            f'{source}: no column of a label ({", ".join(KNOWN_LABELS)}); '
            f'found: {describe_columns(table)}'
        )
    key = next(key for key in KEYS if key in table)
    table[key] = table[key].map(plain_cell)  # as write_predictions was given them
    unique_names(table[key], source)
    columns = [_read_probabilities(table[label], source, allow_empty) for label in labels]
    return Predictions(
        file=file,
        key=key,
        row=table.index.to_numpy(),
        names=table[key].to_numpy(object),
        labels=labels,
        probabilities=np.stack(columns, axis=1),
        ignored=tuple(name for name in table.columns if name != key and name not in labels),
    )


def predictions_for(
    file: str | Path, paths: Sequence[str], labels: Sequence[str] = LABELS
) -> np.ndarray:
    """A file's probabilities for these images, an image its study's where the file is of studies.

    Args:
        file: see `read_predictions`.
        paths: [N] of images; what precedes a patient's folder and the suffix may differ.
        labels: [K] wanted.

    Returns:
        [N, K] float32, NaN where the file has no such row or column.

    Raises:
        ValueError: for a bad file, one of another task (by the JSON beside it), or if two of the
            paths are the same to `normalise_name`.
    """
    predictions = read_predictions(file)
    check_task(file, 'observations')
    return look_up(predictions, row_names(predictions, paths), labels).astype(np.float32)


def check_task(file: str | Path, task: str) -> None:
    """Refuse predictions that are of another DATA.TASK, by the JSON beside them."""
    beside = Path(file).with_suffix('.json')
    found = _read_task(beside) if beside.is_file() else None
    if found not in (None, task):
        raise ValueError(f'{file}: predictions of DATA.TASK {found!r}, needed are {task!r}')


def row_names(predictions: Predictions, paths: Sequence[str]) -> list[str]:
    """The normalised name that each image's row has in the predictions: its own or its study's."""
    names = unique_names(pd.Series(paths, dtype=object, name='Path'), 'the images to look up')
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
    """The normalised name of an image's study; the name itself where it has none."""
    match = STUDY.search(name)
    return match[0] if match else name


def unique_names(names: pd.Series, source: str) -> np.ndarray:
    """[N] normalised; an empty one, or two that are the same, are a ValueError with their rows."""
    normalised = np.array([normalise_name(name) for name in names], object)
    if (normalised == '').any():
        raise cell_error(source, names, int(np.argmax(normalised == '')), 'is no name')
    refuse_duplicates(names, source, normalised)
    return normalised


def _read_probabilities(column: pd.Series, source: str, allow_empty: bool) -> np.ndarray:
    numbers = {text: float(text) for text in column.unique() if NUMBER_predictions.fullmatch(text)}
    allowed = {text: number for text, number in numbers.items() if number <= 1}
    described = 'numbers from 0 to 1'
    if allow_empty:
        allowed[''], described = np.nan, f'{described}, or empty'
    return map_cells(column, allowed, source, allowed=described)


def _read_task(file: Path) -> object:
    """DATA.TASK in the JSON beside predictions; None where it is not said."""
    try:
        source = json.loads(file.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f'{file} is not readable JSON: {error}') from error
    return source.get('task') if isinstance(source, dict) else None


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ==== evaluation.label_files: Labels from a CSV of images or of studies, without the images; predictions matched to them.

SHOWN = 3  # names that a message gives as examples
SUCH_AS = ', such as row '  # ends a note: rows of the file, which name no patient in a log
FORMS = {
    'Path': 'FOLDER/patient00001/study1/view1_frontal.jpg or FOLDER/p10000032/s50414267/IMAGE.jpg',
    'Study': 'FOLDER/patient00001/study1 or FOLDER/p10000032/s50414267',
}


@dataclass(frozen=True, eq=False)
class LabelTable:
    """A CSV of labels."""

    file: Path
    key: str  # 'Path' or 'Study': what a row is
    task: str
    views: str  # of the images that are scored
    records: Records  # a row a row of the file: of an image, of these views
    labels: tuple[str, ...]
    targets: np.ndarray  # [N, K] 1, 0, or NaN where not to be scored
    missing: tuple[str, ...]  # observations that the file has no column of

    def __len__(self) -> int:
        return len(self.records)


def read_label_file(
    path: str | Path, *, task: str = 'observations', blank: str = 'negative', views: str = 'all'
) -> LabelTable:
    """Read and check labels: `Path` or `Study`, then observations by name, in any order.

    Columns Sex, Age, Frontal/Lateral and AP/PA are read where they are there; a view that is not
    given comes from the image's name.

    Args:
        path: the CSV.
        task: DATA.TASK; the binary ones need all observations.
        blank: DATA.BLANK, what a label that is not mentioned counts as.
        views: 'frontal', 'lateral' or 'all': of a file of images, the rows that are kept.

    Raises:
        ValueError: if anything is not as it should be, naming file, row and column.
    """
    file, source = Path(path), str(path)
    table = read_table(file)
    missing = tuple(label for label in LABELS if label not in table)
    known = [name for name in (*DESCRIPTION, *LABELS) if name in table]
    require_columns(table, known, file, one_of=KEYS)
    if len(missing) == len(LABELS) or (missing and task != 'observations'):
        raise ValueError(
            f'{source}: no column of {", ".join(missing)} (task {task}); '
            f'found: {describe_columns(table)}'
        )
    key = next(key for key in KEYS if key in table)
    records = _read_records(table, key, file)
    if views != 'all' and key == 'Path':
        unknown = records.view == ''
        if unknown.any():
            problem = f'names no view, and views {views} are asked for'
            raise cell_error(source, table[key], int(np.argmax(unknown)), problem)
        if not (records.view == views).any():
            raise ValueError(f'{source}: none of the {len(records)} images is {views}')
        records = records.select(records.view == views)
    if task == 'observations':
        columns = [k for k, label in enumerate(LABELS) if label not in missing]
        labels = tuple(LABELS[k] for k in columns)
        targets = scored_targets(records.labels, task=task, blank=blank)[:, columns]
    else:
        labels = task_labels(task)
        targets = scored_targets(records.labels, task=task, blank=blank)
    return LabelTable(file, key, task, views, records, labels, targets, missing)


def match(
    predictions: Predictions,
    table: LabelTable,
    *,
    name: str,
    level: str,
    complete: bool = True,
    groups: Callable[[Records], Mapping[str, np.ndarray]] | None = None,
) -> tuple[Cases, list[str]]:
    """Bring predictions and labels together by the names of their images or studies.

    Where only the labels are of studies, an image gets its study's; where only the predictions
    are, likewise. The cases then are images (`Cases.at_level` makes studies of them), and so a
    study whose images have different labels counts, as everywhere, with the greatest that is known.

    Args:
        predictions: of one model.
        table: the labels.
        name: of the cases.
        level: that they will be scored at; 'image' needs labels and predictions of images.
        complete: whether each labelled row must have a prediction.
        groups: makes the cases' groups of their records.

    Returns:
        The cases, and a line on whatever of the two files is not scored.

    Raises:
        ValueError: if no label or no row is in both files, if labelled rows have no prediction, or
            if the level or the views do not go with these files.
    """
    _check_kinds(predictions, table, level)
    labels = tuple(label for label in table.labels if label in predictions.labels)
    if not labels:
        raise ValueError(
            f'{predictions.file} and {table.file} share no label: predicted are '
            f'{", ".join(predictions.labels)}, labelled for the task {table.task} '
            f'{", ".join(table.labels)}'
        )
    of_predictions, of_table, notes = _pair_rows(predictions, table, complete)
    records = table.records.select(of_table)
    if table.key == 'Study' and predictions.key == 'Path':
        names = predictions.names[of_predictions]
        records = replace(records, path=names, view=_views(names))
    columns = [predictions.labels.index(label) for label in labels]
    kept = [table.labels.index(label) for label in labels]
    uncertain = None
    if table.task == 'observations':
        uncertain = records.labels[:, [LABELS.index(label) for label in labels]] == UNCERTAIN
    cases = Cases(
        name=name,
        labels=labels,
        path=records.path,
        study=records.study,
        patient=records.patient,
        probabilities=predictions.probabilities[of_predictions][:, columns],
        targets=table.targets[of_table][:, kept],
        groups=groups(records) if groups else {},
        uncertain=uncertain,
    )
    notes += _describe_columns(predictions, table)
    if level == 'study':
        notes += _describe_differing(cases, table)
    return cases, notes


def describe_examples(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')


def _such_as(rows: np.ndarray) -> str:
    """The first few of these 0-based rows, as an editor of the file counts them."""
    return SUCH_AS + describe_examples([str(row + 2) for row in rows])


def _read_records(table: pd.DataFrame, key: str, file: Path) -> Records:
    source, names = str(file), table[key]
    unique_names(names, source)
    matches = [_match_name(name, key) for name in names]
    if None in matches:
        problem = f'is not of the form {FORMS[key]}'
        raise cell_error(source, names, matches.index(None), problem)
    ages = {text: float(text) for text in table.get('Age', ()) if AGE.fullmatch(text)}
    view = _read_optional(table, 'Frontal/Lateral', VIEW_CELLS, source, unknown='')
    labels = np.full((len(table), len(LABELS)), np.nan, np.float32)
    for k, label in enumerate(LABELS):
        if label in table:
            labels[:, k] = map_cells(table[label], CELLS, source)
    return Records(
        root=file.parent,
        csv=file.name,
        row=table.index.to_numpy(),
        path=names.to_numpy(object),
        file=names.to_numpy(object),
        patient=np.array([match['patient'] for match in matches], object),
        study=np.array([match.string[: match.end()] for match in matches], object),
        view=np.where(view == '', _views(names), view),
        sex=_read_optional(table, 'Sex', SEXES, source, unknown='Unknown'),
        age=_read_optional(table, 'Age', ages, source, unknown=np.nan).astype(float),
        ap_pa=_read_optional(table, 'AP/PA', PROJECTIONS, source, unknown=''),
        labels=labels,
    )


def _match_name(name: str, key: str) -> re.Match | None:
    """The study in the name of an image or of a study; None where it is no such name."""
    match = STUDY.search(name)
    rest = name[match.end() :] if match else ''
    is_of_kind = len(rest) > 1 if key == 'Path' else not rest
    return match if is_of_kind else None


def _read_optional(
    table: pd.DataFrame,
    column: str,
    meanings: Mapping[str, str | float],
    source: str,
    *,
    unknown: str | float,
) -> np.ndarray:
    """[N] object; unknown where the cell is empty or the column is not there."""
    if column not in table:
        return np.full(len(table), unknown, object)
    allowed = 'empty, numbers from 0' if column == 'Age' else ''
    meanings = {**meanings, '': unknown}
    return map_cells(table[column], meanings, source, dtype=object, allowed=allowed)


def _views(names: Sequence[str]) -> np.ndarray:
    """'frontal' or 'lateral' as the images' names say it, '' where they do not."""
    found = [VIEW_NAME.search(name) for name in names]
    return np.array([view[1] if view else '' for view in found], object)


def _check_kinds(predictions: Predictions, table: LabelTable, level: str) -> None:
    of_studies = [part.file for part in (predictions, table) if part.key == 'Study']
    if level == 'image' and of_studies:
        raise ValueError(f'level image needs rows of images (Path), {of_studies[0]} has studies')
    if table.views != 'all' and predictions.key == 'Study':
        raise ValueError(
            f'views {table.views} can be chosen among images only, {predictions.file} has studies: '
            'its views are those that the model was given'
        )


def _pair_rows(
    predictions: Predictions, table: LabelTable, complete: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows of both that belong together, [M] each, and what is left out of either.

    The key is the name of the study where one of them has studies, else that of the image.
    """
    by_study = 'Study' in (predictions.key, table.key)
    given = _row_keys(predictions.names, by_study and predictions.key == 'Path')
    wanted = _row_keys(table.records.path, by_study and table.key == 'Path')
    if table.key == 'Path':  # a study's prediction may serve several images
        of_table, of_predictions = np.arange(len(wanted)), given.get_indexer(wanted)
    else:
        of_table, of_predictions = wanted.get_indexer(given), np.arange(len(given))
        of_table[(of_table >= 0) & ~_is_of_views(predictions, table, of_table >= 0)] = -1
    paired = (of_predictions >= 0) & (of_table >= 0)
    of_predictions, of_table = of_predictions[paired], of_table[paired]
    if not len(of_table):
        raise ValueError(
            f'{predictions.file} and {table.file} have no row in common: predicted are '
            f'{describe_examples(predictions.names)}; '
            f'labelled are {describe_examples(table.records.path)}'
        )
    notes = []
    unlabelled = np.setdiff1d(np.arange(len(given)), of_predictions)
    if len(unlabelled):
        notes.append(_describe_unlabelled(predictions, table, unlabelled))
    unpredicted = np.setdiff1d(np.arange(len(wanted)), of_table)
    # Studies of which only images of other views are predicted are not asked for.
    other_views = wanted[unpredicted].isin(given)
    if other_views.any():
        notes.append(
            f'{table.file}: {other_views.sum()} of {len(wanted)} studies have no {table.views} '
            'image among the predictions and are left out'
            f'{_such_as(table.records.row[unpredicted[other_views]])}'
        )
    if not other_views.all():
        problem = _describe_unpredicted(predictions, table, unpredicted[~other_views])
        if complete:
            raise ValueError(problem)
        notes.append(problem)
    return of_predictions, of_table, notes


def _row_keys(names: Sequence[str], of_study: bool) -> pd.Index:
    return pd.Index([(study_name if of_study else normalise_name)(name) for name in names])


def _is_of_views(predictions: Predictions, table: LabelTable, labelled: np.ndarray) -> np.ndarray:
    """[N] whether an image is of the views asked for; those that are labelled must name theirs."""
    if table.views == 'all':
        return np.full(len(labelled), True)
    views = _views(predictions.names)
    unknown = labelled & (views == '')
    if unknown.any():
        raise ValueError(
            f'{predictions.file}: {predictions.names[np.argmax(unknown)]!r} names no view, and '
            f'views {table.views} are asked for'
        )
    return views == table.views


def _describe_unlabelled(predictions: Predictions, table: LabelTable, rows: np.ndarray) -> str:
    of_views = '' if table.views == 'all' else f' of {table.views} views'
    return (
        f'{predictions.file}: {len(rows)} of {len(predictions.names)} rows have no labelled row'
        f'{of_views} in {table.file} and are ignored{_such_as(predictions.row[rows])}'
    )


def _describe_unpredicted(predictions: Predictions, table: LabelTable, rows: np.ndarray) -> str:
    records = table.records.select(rows)
    examples = [
        f'{path} (row {row + 2})' for path, row in zip(records.path, records.row, strict=True)
    ]
    views, hint = set(records.view), ''
    others = {'frontal', 'lateral'} - views
    if table.key == 'Path' and len(views) == len(others) == 1:
        hint = f'; all of these are {views.pop()}: views {others.pop()} leave them out'
    return (
        f'{predictions.file} has no prediction for {len(rows)} of the {len(table)} labelled rows '
        f'of {table.file}, such as {describe_examples(examples)}{hint}'
    )


def _describe_columns(predictions: Predictions, table: LabelTable) -> list[str]:
    """What is not scored for want of a column in either file."""
    notes = []
    if table.missing:
        notes.append(f'{table.file}: no column of {", ".join(table.missing)}: not scored')
    unpredicted = [label for label in table.labels if label not in predictions.labels]
    if unpredicted:
        notes.append(f'{predictions.file}: no column of {", ".join(unpredicted)}: not scored')
    if predictions.ignored:
        columns = ', '.join(map(repr, predictions.ignored))
        notes.append(f'{predictions.file}: columns that are no labels and are ignored: {columns}')
    return notes


def _describe_differing(cases: Cases, table: LabelTable) -> list[str]:
    _, greatest, names = study_level(cases.probabilities, cases.targets, cases.study)
    _, least, _ = study_level(cases.probabilities, -cases.targets, cases.study)
    differ = (greatest != -least) & ~np.isnan(greatest)
    if not differ.any():
        return []
    studies = names[differ.any(axis=1)]
    records = table.records
    rows = records.row[np.isin(records.study.astype(str), studies)]
    return [
        f'{table.file}: {len(studies)} studies have images with different labels, and count with '
        f'the greatest{_such_as(rows)}'
    ]

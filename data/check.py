"""Checking a whole data set: everything that is wrong with it, not only the first fault.

What the readers refuse at the first fault is found row by row (`data.check_tables` and the layouts'
`data.check_chexpert`, `data.check_mimic`); every picture that a CSV names is read
(`data.check_pictures`); then splits are compared by patient, by file and by pixels.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
import re
import sys
import time
import warnings
import zlib
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TextIO

import numpy as np
import pandas as pd
from PIL import Image, ImageChops
from tqdm import tqdm

from data.images import FORMATS, full_size, load_image, refuse_link_out
from data.labels import CELLS, LABELS, UNCERTAIN, evaluation_targets
from data.packing import start_worker
from data.records import (
    AGE,
    DESCRIPTION,
    ID_FORMS,
    IMAGE_PATH,
    IMAGE_SUFFIXES,
    PROJECTIONS,
    SCORED_FILES,
    SEXES,
    SPLITS,
    STUDY_PATH,
    VIEW_CELLS,
    VIEW_NAME,
    PathRule,
    find_table,
    map_cells,
    match_paths,
    read_data,
    read_table,
    refuse_duplicates,
    require_columns,
    safe_cell,
    views_from_names,
)
from data.store import STORE_FILE, Store, file_problems, is_store, open_store, read_about

# ==== data.check_findings: What is wrong with a data set: a list that is written while it grows, counts, first examples.

COLUMNS = ('severity', 'kind', 'csv', 'row', 'file', 'detail')
EXAMPLES = 3  # of each kind, in the summary
SHOWN_CHARACTERS = 300

# Error: the readers refuse it, or a score would be wrong.  Warning: it can be used, and is likely a
# mistake.  Note: for information.
SEVERITIES = {
    'error': (
        'missing file',
        'unreadable CSV',
        'empty CSV',
        'row of another width',
        'row not in UTF-8',
        'missing column',
        'value of a label',
        'value of the sex',
        'value of the age',
        'value of the view',
        'value of the projection',
        'value of the split',
        'form of an id',
        'ids that differ',
        'missing row',
        'form of a path',
        'path that leaves the folder',
        'duplicate row',
        'duplicate path',
        'duplicate id',
        'missing picture',
        'unreadable folder',
        'unreadable picture',
        'constant picture',
        'unusable size',
        'damaged store',
        'folder with scores',
        'link that leaves the folder',
        'patient in two splits',
        'picture in two splits',
        'same pixels in two splits',
    ),
    'warning': (
        'unlikely age',
        'view unlike the name',
        'labels of a study differ',
        'study without labels',
        'label without a positive',
        'label without a negative',
        'broken link',
        'left out of the store',
        'small picture',
        'large picture',
        'narrow picture',
        'few grey levels',
        'bit depth',
        'colour',
        'same pixels',
    ),
    'note': ('picture that no CSV names', 'split without pictures'),
}
KINDS = {kind: severity for severity, kinds in SEVERITIES.items() for kind in kinds}


class Findings:
    """Writes each finding as a row of a CSV; keeps the counts and the first few of each kind."""

    def __init__(self, out: TextIO) -> None:
        self._writer = csv.writer(out, lineterminator='\n')
        self._writer.writerow(COLUMNS)
        self.counts = Counter()  # by kind
        self._examples = defaultdict(list)

    def add(
        self, kind: str, detail: str, *, csv: str = '', row: int | None = None, file: str = ''
    ) -> None:
        """Add what was found.

        Args:
            kind: one of KINDS, which gives the severity.
            detail: what is wrong, in words.
            csv: the name of the CSV file that is concerned, if one is.
            row: its row; the header is row 1.
            file: the picture, or what else is concerned.
        """
        cells = [KINDS[kind], kind, csv, '' if row is None else row, file, detail]
        self._writer.writerow([safe_cell(cell) for cell in cells])
        self.counts[kind] += 1
        if len(self._examples[kind]) < EXAMPLES:
            place = f'{csv}, row {row}' if csv and row is not None else csv
            shown = _printable(': '.join(filter(None, (place, file, detail))))
            self._examples[kind].append(shown)

    def number(self, severity: str) -> int:
        """How many findings there are of a severity."""
        return sum(self.counts[kind] for kind in SEVERITIES[severity])

    def describe(self) -> str:
        """Counts by kind, and the first examples of each."""
        lines = []
        for kind, severity in KINDS.items():
            if self.counts[kind]:
                lines.append(f'{severity}: {kind}: {self.counts[kind]:,}')
                lines += [f'    {example}' for example in self._examples[kind]]
        totals = (f'{name}s {self.number(name):,}' for name in SEVERITIES)
        return '\n'.join([*lines, ', '.join(totals)])


@contextmanager
def written(path: Path) -> Iterator[Findings]:
    """Findings whose list gets its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.tmp')
    options = {'newline': '', 'encoding': 'utf-8', 'errors': 'backslashreplace'}
    try:
        with open(temporary, 'w', **options) as out:
            yield Findings(out)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _printable(text: str) -> str:
    """The text for a console: cut, and nothing in it that moves the cursor."""
    shown = text if len(text) <= SHOWN_CHARACTERS else f'{text[:SHOWN_CHARACTERS]}...'
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


# ==== data.check_tables: All that is wrong in CSV files, row by row: the rules are those of the readers.
#
# The readers stop at the first fault.  Here each row, cell or column that may be at fault is handed
# to their own checks alone, and the message becomes a finding.

NAMES = ('Path', 'Study', 'dicom_id', 'study_id')  # what a row is of, by the first that is there
BAD_LABEL = 9.0  # in place of a cell that is wrong
NAMED_ROW = '(the header is row 1), '  # what precedes the problem in a message of the readers


class Folder:
    """The pictures below a folder, listed as `read_folder` does, but for what stops that."""

    def __init__(self, root: Path, findings: Findings) -> None:
        self.path = root
        self.files = []
        self.scored = []  # files for which `read_folder` refuses the folder
        self.links = {}  # those that leave the folder: file -> what is wrong, in words
        self._findings = findings
        self._list()
        self.files.sort()
        self._set = frozenset(self.files)

    def __contains__(self, file: str) -> bool:
        return file in self._set

    def below(self, folder: str) -> list[str]:
        """The pictures in a folder, sorted."""
        start, stop = (bisect_left(self.files, folder + end) for end in '/0')  # 0 follows /
        return self.files[start:stop]

    def _list(self) -> None:
        places = ['']
        while places:
            place = places.pop()
            try:
                with os.scandir(self.path / place) as entries:
                    visible = [entry for entry in entries if not entry.name.startswith('.')]
            except OSError as error:
                self._findings.add('unreadable folder', str(error.strerror), file=place)
                continue
            for entry in visible:
                file = f'{place}/{entry.name}' if place else entry.name
                if entry.is_symlink():
                    self._check_link(file)
                elif entry.is_dir():
                    places.append(file)
                elif entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                    self.files.append(file)
                elif entry.name in SCORED_FILES:
                    self.scored.append(file)

    def _check_link(self, file: str) -> None:
        """Links are passed over, as in `read_folder`; a CSV may name what is behind them."""
        path = self.path / file
        if not (file.lower().endswith(IMAGE_SUFFIXES) or path.is_dir()):
            return
        if text := problem(refuse_link_out, self.path, path):
            self.links[file] = text
        elif not path.exists():
            self._findings.add('broken link', f'it leads to {os.path.realpath(path)}', file=file)


@dataclass(frozen=True)
class Split:
    """The rows of a split that name a picture, whether it is there or not."""

    name: str  # 'train', ...
    csv: str  # the file's name
    row: np.ndarray  # [N] of the file, whose header is row 1
    file: np.ndarray  # [N] relative to the root
    patient: np.ndarray  # [N]

    def select(self, keep: np.ndarray) -> 'Split':
        arrays = (values[keep] for values in (self.row, self.file, self.patient))
        return Split(self.name, self.csv, *arrays)


class TableCheck:
    """Checks one CSV file.

    Args:
        root: its folder.
        name: the file's.
        findings: where all that is wrong goes.
    """

    def __init__(self, root: Path, name: str, findings: Findings) -> None:
        self.file = root / name
        self.name = name
        self.findings = findings
        self.table = self._read()

    def add(self, kind: str, detail: str, position: int | None = None) -> None:
        """Add a finding on the table, or on the row at a position."""
        row, file = None, ''
        if position is not None:
            row = int(self.table.index[position]) + 2
            named = [self.table[name].iloc[position] for name in NAMES if name in self.table]
            file = named[0] if named else ''
        self.findings.add(kind, detail, csv=self.name, row=row, file=file)

    def has(self, *names: str) -> bool:
        """Whether these columns are there."""
        return all(name in self.table for name in names)

    def columns(self, wanted: Sequence[str], *, one_of: Sequence[str] = ()) -> None:
        """Find which of these are missing."""
        groups = [([name], ()) for name in wanted] + ([([], one_of)] if one_of else [])
        problems = [
            problem(require_columns, self.table, names, self.file, one_of=others)
            for names, others in groups
        ]
        for text in filter(None, problems):
            self.add('missing column', text)

    def cells(
        self, name: str, kind: str, meanings: Collection[Any], *, allowed: str = ''
    ) -> np.ndarray:  # [N] bool
        """Which cells of a column have a meaning; each that has none is found."""
        if name not in self.table:
            return np.ones(len(self.table), bool)
        column = self.table[name]
        good = column.isin(list(meanings)).to_numpy(copy=True)
        details = {}
        for position in np.flatnonzero(~good).tolist():
            value = column.iloc[position]
            if value not in details:
                cell = column.iloc[[position]]
                details[value] = problem(map_cells, cell, meanings, self.name, allowed=allowed)
            self.add(kind, details[value], position)
        return good

    def labels(self) -> np.ndarray:  # [N, K] float32
        """What the cells of the labels mean: 1, 0, -1, NaN for a blank; BAD_LABEL where wrong."""
        labels = np.full((len(self.table), len(LABELS)), BAD_LABEL, np.float32)
        for k, label in enumerate(LABELS):
            good = self.cells(label, 'value of a label', CELLS)
            if label in self.table:
                labels[good, k] = map_cells(self.table[label][good], CELLS, self.name)
        return labels

    def classes(self, split: str, labels: np.ndarray, *, blank: str) -> None:
        """Find the labels without a positive, or without a negative, in a split.

        Args:
            split: its name.
            labels: [M, K] of its rows, as `labels` gives them.
            blank: as DATA.BLANK: whether a label that is not mentioned is a negative.
        """
        good = labels != BAD_LABEL
        targets = evaluation_targets(np.where(good, labels, UNCERTAIN), blank=blank)
        for k, label in enumerate(LABELS):
            if not good[:, k].any():
                continue  # that has findings of its own
            for name, value in (('positive', 1), ('negative', 0)):
                if not (targets[:, k] == value).any():
                    detail = f'{label}: no {name} in the {len(labels):,} rows of {split}'
                    self.add(f'label without a {name}', detail)

    def firsts(
        self, name: str, kind: str, values: np.ndarray | None = None
    ) -> np.ndarray:  # [N] bool
        """Which rows are the first of their value in a column; each later one is found.

        Args:
            name: the column.
            kind: of the finding, where the rows are not the same throughout.
            values: [N] what counts, if not its text; None counts as unlike all others.
        """
        column = self.table[name]
        values = column.to_numpy(object) if values is None else values
        codes = pd.factorize(values)[0]  # -1 for None
        firsts = np.unique(codes, return_index=True)[1][int((codes < 0).any()) :]
        later = pd.Series(codes).duplicated().to_numpy() & (codes >= 0)
        for position in np.flatnonzero(later).tolist():
            pair = [int(firsts[codes[position]]), position]
            same = (self.table.iloc[pair[0]] == self.table.iloc[position]).all()
            text = problem(refuse_duplicates, column.iloc[pair], self.name, values[pair])
            self.add('duplicate row' if same else kind, text, position)
        return ~later

    def _read(self) -> pd.DataFrame | None:
        """The table; of one that is refused the rows that can be read; None if there are none."""
        if not self.file.is_file():
            self.findings.add('missing file', f'there is no CSV file {self.file}', csv=self.name)
            return None
        before = self.findings.counts.total()
        try:
            return read_table(self.file)
        except ValueError as error:
            table = self._read_rows()
            if self.findings.counts.total() == before:
                self.findings.add('unreadable CSV', str(error), csv=self.name)
            return table

    def _read_rows(self) -> pd.DataFrame | None:
        """The rows as wide as the header, in UTF-8; each other one is found."""
        try:
            text = read_data(self.file).decode('utf-8-sig', 'surrogateescape')
            header, *rows = csv.reader(io.StringIO(text, newline=''))
        except (ValueError, OSError, EOFError, zlib.error, csv.Error) as error:
            empty = self.file.stat().st_size == 0
            kind = 'empty CSV' if empty else 'unreadable CSV'
            self.findings.add(kind, 'the file is empty' if empty else str(error), csv=self.name)
            return None
        kept = {}
        for number, row in enumerate(rows):
            if not any(row):
                continue
            place = {'csv': self.name, 'row': number + 2}
            if len(row) != len(header):
                detail = f'{len(row)} fields, the header has {len(header)}'
                self.findings.add('row of another width', detail, **place)
            elif any(not cell.isascii() and _has_bytes(cell) for cell in row):
                self.findings.add('row not in UTF-8', f'bytes that are no UTF-8: {row}', **place)
            else:
                kept[number] = row
        if not kept:
            self.findings.add('empty CSV', 'there is no row below the header', csv=self.name)
            return None
        names = [f'{n}.1' if n in header[:i] else n for i, n in enumerate(header)]
        return pd.DataFrame(list(kept.values()), list(kept), names, object)


def problem(check: Callable[..., object], *args: Any, **options: Any) -> str:
    """What a reader's check says against this, without file and row; '' if nothing."""
    try:
        check(*args, **options)
    except ValueError as error:
        text = str(error)
        return text.partition(NAMED_ROW)[2] or text
    return ''


def refused(
    check: Callable[[pd.Series], object], column: pd.Series, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, str]]:
    """The positions in a column that a reader's check refuses, and why; by halving the column."""
    stop = len(column) if stop is None else stop
    text = problem(check, column.iloc[start:stop]) if start < stop else ''
    if text and stop - start == 1:
        yield start, text
    elif text:
        middle = (start + stop) // 2
        yield from refused(check, column, start, middle)
        yield from refused(check, column, middle, stop)


def are_there(pictures: Folder | Store, files: Sequence[str]) -> np.ndarray:  # [N] bool
    """Which of these files are pictures, or lie behind links."""
    if isinstance(pictures, Store):
        return pictures.position(files) >= 0
    return np.array([f in pictures or os.path.isfile(pictures.path / f) for f in files], bool)


def mark_missing(split: Split, pictures: Folder | Store, findings: Findings) -> Split:
    """The rows whose picture is there; each other one is found."""
    there = are_there(pictures, split.file)
    left_out = pictures.left_out if isinstance(pictures, Store) else {}
    for position in np.flatnonzero(~there).tolist():
        file = split.file[position]
        place = {'csv': split.csv, 'row': int(split.row[position]), 'file': file}
        if file in left_out:
            findings.add('left out of the store', left_out[file], **place)
        else:
            tried = os.path.join(pictures.path, file)
            findings.add('missing picture', f'there is no picture; tried {tried}', **place)
    return split.select(there)


def _has_bytes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


# ==== data.check_pictures: Looking at pictures with several processes: what is odd about them, digests of pixels.

DIGEST_BYTES = 16
CHUNK_IMAGES = 32
MIN_SIDE, MAX_SIDE = 64, 10_000  # in pixels
MAX_ASPECT = 3
FEW_LEVELS = 16  # an X-ray has more grey levels
# What the messages of `load_image` have.
LINK, FAULT = ' is a link that leaves the data root ', ' cannot be used: '
COLOUR_MODES = ('P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr')
COLOUR_LEVELS = 8  # between channels; JPEG alone makes a little


class Look(NamedTuple):
    """What was seen of a picture."""

    digest: bytes  # of its pixels; b'' where they cannot be used
    problems: list[tuple[str, str]]  # kind of finding, detail


def look_at_all(root: Path, files: Sequence[str], *, workers: int) -> Iterator[Look]:
    """Look at pictures of a folder or a packed store, in order.

    A picture that ends the process that reads it is unreadable.

    Args:
        root: the folder, or the store.
        files: relative to it.
        workers: processes.
    """
    chunks = (files[i : i + CHUNK_IMAGES] for i in range(0, len(files), CHUNK_IMAGES))
    waiting = deque()
    pool = _pool(workers)
    try:
        while True:
            for chunk in itertools.islice(chunks, 2 * workers - len(waiting)):
                try:
                    waiting.append((chunk, pool.submit(_look_at_chunk, root, chunk)))
                except BrokenProcessPool:
                    pool.shutdown()
                    pool = _pool(workers)
                    waiting.append((chunk, pool.submit(_look_at_chunk, root, chunk)))
            if not waiting:
                return
            yield from _result(root, *waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def look_at(root: Path, file: str) -> Look:
    """Look at one picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of Pillow, on odd metadata
            image, problems = _read(root, file)
            levels = _levels(image)
    except (ValueError, OSError, SyntaxError, MemoryError) as error:
        text = str(error) or repr(error)
        return Look(b'', [(_kind_of(text), text)])
    problems += _size_problems(*full_size(image))
    number = _count_levels(levels)
    if number < FEW_LEVELS:
        problems.append(('few grey levels', f'the picture has only {number} grey levels'))
    if image.mode == 'F' and levels.dtype == np.uint8:
        detail = 'more than 8 bits a pixel hold no more than 8 bits of grey levels'
        problems.append(('bit depth', detail))
    return Look(_digest(levels), problems)


def _read(root: Path, file: str) -> tuple[Image.Image, list[tuple[str, str]]]:
    """A picture, and what is odd about its colours, which of a packed one nobody knows."""
    if not is_store(root):
        return load_image(root / file, root), _colour_problems(root / file)
    store = _store(str(root))
    return store.image(int(store.position([file])[0])), []


def _kind_of(text: str) -> str:
    """Which kind of finding it is that a picture is refused."""
    if LINK in text:
        return 'link that leaves the folder'
    fault = text.partition(FAULT)[2]
    if not fault:
        return 'unreadable picture'
    return 'constant picture' if fault.startswith('all pixels') else 'unusable size'


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, initializer=start_worker)


def _look_at_chunk(root: Path, files: Sequence[str]) -> list[Look]:
    return [look_at(root, file) for file in files]


def _result(root: Path, files: Sequence[str], future: Future) -> Iterator[Look]:
    try:
        looks = future.result()
    except BrokenProcessPool:  # by one of these pictures, or of another chunk under way
        looks = _look_one_by_one(root, files)
    yield from looks


def _look_one_by_one(root: Path, files: Sequence[str]) -> Iterator[Look]:
    pool = _pool(1)
    try:
        for file in files:
            try:
                yield pool.submit(look_at, root, file).result()
            except BrokenProcessPool:
                detail = 'reading it ended the process (memory?)'
                yield Look(b'', [('unreadable picture', detail)])
                pool.shutdown()
                pool = _pool(1)
    finally:
        pool.shutdown()


@lru_cache(1)
def _store(path: str) -> Store:
    return open_store(path)


def _colour_problems(path: Path) -> list[tuple[str, str]]:
    if os.fspath(path).lower().endswith('.dcm'):
        return []
    with Image.open(path, formats=FORMATS) as image:
        if image.mode not in COLOUR_MODES:
            return []
        red, green, blue = image.convert('RGB').split()
    pairs = ((red, green), (green, blue))
    apart = max(ImageChops.difference(*pair).getextrema()[1] for pair in pairs)
    if apart <= COLOUR_LEVELS:
        return []
    return [('colour', f'colour channels differ by up to {apart} levels')]


def _size_problems(height: int, width: int) -> list[tuple[str, str]]:
    problems, size = [], f'{width} x {height} px'
    if min(width, height) < MIN_SIDE:
        problems.append(('small picture', f'{size}: a side is under {MIN_SIDE}'))
    if max(width, height) > MAX_SIDE:
        problems.append(('large picture', f'{size}: a side is over {MAX_SIDE}'))
    if max(width, height) > MAX_ASPECT * min(width, height):
        problems.append(
            ('narrow picture', f'{size}: one side is over {MAX_ASPECT} times the other')
        )
    return problems


def _levels(image: Image.Image) -> np.ndarray:  # [H, W] uint8 or uint16
    """The same levels for the same grey levels, however many bits the file has a pixel."""
    pixels = np.asarray(image)
    if image.mode == 'L':
        return pixels
    levels = np.rint(np.clip(pixels, 0, 255) * np.float32(257)).astype(np.uint16)
    # 257 divides the levels of 8 bits, stretched to 16.
    return levels if (levels % 257).any() else (levels // 257).astype(np.uint8)


def _count_levels(levels: np.ndarray) -> int:
    if levels.dtype == np.uint8:
        return np.count_nonzero(Image.fromarray(levels).histogram())
    there = np.zeros(2**16, bool)
    for row in levels:  # all at once would take four times the picture's memory
        there[row] = True
    return int(there.sum())


def _digest(levels: np.ndarray) -> bytes:
    digest = hashlib.blake2b(np.ascontiguousarray(levels).data, digest_size=DIGEST_BYTES)
    digest.update(repr((levels.shape, levels.dtype.str)).encode())
    return digest.digest()


# ==== data.check_chexpert: All that is wrong in a CSV file in CheXpert's layout.

MAX_AGE = 120  # in years


def check_csv(
    split: str,
    name: str,
    pictures: Folder | Store,
    *,
    image_suffix: str,
    blank: str,
    findings: Findings,
) -> Split | None:
    """Find all that is wrong in a CSV file, but in the pictures themselves.

    Args:
        split: whose file it is, such as 'train'.
        name: the file's.
        pictures: the folder of the file, or the store.
        image_suffix: as DATA.IMAGE_SUFFIX.
        blank: as DATA.BLANK.
        findings: where all that is wrong goes.

    Returns:
        The rows whose pictures are there, each picture once; None where no row is of use.
    """
    check = TableCheck(Path(pictures.path), name, findings)
    table = check.table
    if table is None:
        return None
    described = any(column in table for column in DESCRIPTION) and 'Path' in table
    check.columns([*(DESCRIPTION if described else ()), *LABELS], one_of=('Path', 'Study'))
    if described:
        _check_description(check)
    labels = check.labels()
    check.classes(split, labels, blank=blank)
    if 'Path' in table:
        return _check_images(check, split, pictures, labels=labels, suffix=image_suffix)
    if 'Study' in table:
        return _check_studies(check, split, pictures, suffix=image_suffix)
    return None


def _check_description(check: TableCheck) -> None:
    check.cells('Sex', 'value of the sex', SEXES)
    check.cells('Frontal/Lateral', 'value of the view', VIEW_CELLS)
    check.cells('AP/PA', 'value of the projection', PROJECTIONS)
    if 'Age' not in check.table:
        return
    texts = [text for text in check.table['Age'].unique() if AGE.fullmatch(text)]
    check.cells('Age', 'value of the age', texts, allowed='numbers from 0')
    unlikely = check.table['Age'].isin([text for text in texts if float(text) > MAX_AGE])
    for position in np.flatnonzero(unlikely).tolist():
        age = check.table['Age'].iloc[position]
        check.add('unlikely age', f'{age} years are more than {MAX_AGE}', position)


def _check_images(
    check: TableCheck, split: str, pictures: Folder | Store, *, labels: np.ndarray, suffix: str
) -> Split | None:
    paths = check.table['Path']
    good = _check_paths(check, paths, IMAGE_PATH)
    if not good.any():
        return None
    parts = match_paths(paths[good], IMAGE_PATH, check.name)
    rule = _rule(paths[good], parts['prefix'], pictures, suffix)
    files = np.full(len(paths), None, object)
    files[good] = [rule.file(path) for path in paths[good]]
    good &= check.firsts('Path', 'duplicate path', files)
    _check_views(check, np.flatnonzero(good))
    parts = match_paths(paths[good], IMAGE_PATH, check.name)
    _check_study_labels(check, parts['study'], labels, np.flatnonzero(good))
    rows = paths.index.to_numpy()[good] + 2
    found = Split(split, check.name, rows, files[good], parts['patient'].to_numpy(object))
    return mark_missing(found, pictures, check.findings)


def _check_studies(
    check: TableCheck, split: str, pictures: Folder | Store, *, suffix: str
) -> Split | None:
    """The rows are those of the studies; every picture of a study has its row."""
    studies = check.table['Study']
    good = _check_paths(check, studies, STUDY_PATH)
    good &= check.firsts('Study', 'duplicate path', np.where(good, studies, None))
    if not good.any():
        return None
    parts = match_paths(studies[good], STUDY_PATH, check.name)
    rule = _rule(studies[good], parts['prefix'], pictures, '')
    suffixes = (suffix.lower(),) if suffix else IMAGE_SUFFIXES
    rows, files, patients = [], [], []
    for position, patient in zip(np.flatnonzero(good).tolist(), parts['patient'], strict=True):
        place = rule.file(studies.iloc[position])
        below = [file for file in pictures.below(place) if file.lower().endswith(suffixes)]
        if not below:
            tried = f'{Path(pictures.path) / place}/...{" ".join(suffixes)}'
            check.add('missing picture', f'the study has no picture; tried {tried}', position)
        rows += [int(studies.index[position]) + 2] * len(below)
        files += below
        patients += [patient] * len(below)
        _check_names(check, pd.Series(below, name='Path', dtype=object), [position] * len(below))
    arrays = np.array(rows, np.int64), np.array(files, object), np.array(patients, object)
    return mark_missing(Split(split, check.name, *arrays), pictures, check.findings)


def _check_paths(check: TableCheck, paths: pd.Series, form: re.Pattern) -> np.ndarray:  # [N] bool
    good = np.ones(len(paths), bool)
    for position, text in refused(partial(match_paths, form=form, source=check.name), paths):
        good[position] = False
        leaves = 'leaves the data root' in text
        check.add('path that leaves the folder' if leaves else 'form of a path', text, position)
    return good


def _rule(paths: pd.Series, prefixes: pd.Series, pictures: Folder | Store, suffix: str) -> PathRule:
    """The readers' rule from paths to files; if they have none, that which finds most pictures."""
    root = pictures if isinstance(pictures, Store) else pictures.path
    try:
        return PathRule.decide(paths, prefixes, root, '', suffix)
    except ValueError:
        rules = PathRule(True, suffix), PathRule(False, suffix)
        return max(rules, key=lambda rule: sum(_is_there(rule.file(p), pictures) for p in paths))


def _is_there(file: str, pictures: Folder | Store) -> bool:
    return file in pictures or bool(pictures.below(file))


def _check_views(check: TableCheck, positions: np.ndarray) -> None:
    """Views in names against those in cells; without cells every name must have one."""
    paths = check.table['Path']
    if not any(check.has(name) for name in DESCRIPTION):
        _check_names(check, paths.iloc[positions], positions)
    elif check.has('Frontal/Lateral'):
        cells = check.table['Frontal/Lateral']
        for position in positions.tolist():
            named, view = (
                VIEW_NAME.search(paths.iloc[position]),
                VIEW_CELLS.get(cells.iloc[position]),
            )
            if named and view and named[1] != view:
                detail = f'the view is {view}, the name says {named[1]}'
                check.add('view unlike the name', detail, position)


def _check_names(check: TableCheck, paths: pd.Series, positions: Sequence[int]) -> None:
    """Find which of these names have no view; they belong to the rows at these positions."""
    for place, text in refused(partial(views_from_names, source=check.name), paths):
        check.add('value of the view', text, int(positions[place]))


def _check_study_labels(
    check: TableCheck, studies: pd.Series, labels: np.ndarray, positions: np.ndarray
) -> None:
    """Compare the labels of each image with those of the first of its study.

    Args:
        check: of the table.
        studies: [M] of these rows.
        labels: [N, K] of all rows, BAD_LABEL where a cell is wrong.
        positions: [M] of the rows that count.
    """
    codes = pd.factorize(studies)[0]
    firsts = positions[np.unique(codes, return_index=True)[1]]
    own, first = labels[positions], labels[firsts[codes]]
    same = (own == first) | (np.isnan(own) & np.isnan(first))
    differ = ~same & (own != BAD_LABEL) & (first != BAD_LABEL)
    told = set()
    for place in np.flatnonzero(differ.any(axis=1)).tolist():
        if codes[place] in told:  # one finding a study
            continue
        told.add(codes[place])
        reference = int(firsts[codes[place]])
        names = ', '.join(label for label, d in zip(LABELS, differ[place], strict=True) if d)
        row = int(check.table.index[reference]) + 2
        check.add('labels of a study differ', f'from row {row}: {names}', int(positions[place]))


# ==== data.check_mimic: All that is wrong in the CSV files of MIMIC-CXR-JPG.


def check_mimic(
    pictures: Folder | Store, *, labeller: str, image_suffix: str, blank: str, findings: Findings
) -> list[Split]:
    """Find all that is wrong in the three files, but in the pictures themselves.

    Args:
        pictures: the folder of the files, or the store.
        labeller: whose labels, as DATA.LABELLER.
        image_suffix: as DATA.IMAGE_SUFFIX.
        blank: as DATA.BLANK.
        findings: where all that is wrong goes.

    Returns:
        The rows of each split whose pictures are there, each picture once.
    """
    root = Path(pictures.path)
    images = _open(root, 'split', ['split', *ID_FORMS], findings)
    metadata = _open(root, 'metadata', ['ViewPosition', *ID_FORMS], findings)
    labels = _open(root, labeller, ['subject_id', 'study_id', *LABELS], findings)
    values = None if labels is None else labels.labels()
    if images is None or not images.has('split', *ID_FORMS):
        return []
    good = _check_images_check_mimic(images)
    rows = images.table[good]
    place = np.flatnonzero(good)
    if metadata is not None:
        same = ('subject_id', 'study_id')
        _compare(images, place, metadata, key='dicom_id', same=same, missing='missing row')
    if labels is not None:
        each = place[~rows['study_id'].duplicated().to_numpy()]
        same = ('subject_id',)
        _compare(images, each, labels, key='study_id', same=same, missing='study without labels')
        _check_classes(labels, values, rows, blank=blank)
    return _splits(images.name, rows, pictures, suffix=image_suffix or '.jpg', findings=findings)


def _open(root: Path, kind: str, columns: Sequence[str], findings: Findings) -> TableCheck | None:
    """The file of this kind; None if it cannot be read."""
    try:
        name = find_table(root, kind).name
    except ValueError as error:
        findings.add('missing file', str(error))
        return None
    check = TableCheck(root, name, findings)
    if check.table is None:
        return None
    check.columns(columns)
    return check


def _check_images_check_mimic(images: TableCheck) -> np.ndarray:  # [N] bool
    """Which rows of the split file can be used."""
    good = images.cells('split', 'value of the split', SPLITS)
    for name, (form, allowed) in ID_FORMS.items():
        texts = [text for text in images.table[name].unique() if form.fullmatch(text)]
        good &= images.cells(name, 'form of an id', texts, allowed=allowed)
    return good & images.firsts('dicom_id', 'duplicate id')


def _compare(
    images: TableCheck,
    positions: np.ndarray,
    other: TableCheck,
    *,
    key: str,
    same: Sequence[str],
    missing: str,
) -> None:
    """Look up rows of the split file in another file: a row must be there, and its ids the same."""
    if not other.has(key, *same):
        return
    unique = np.flatnonzero(other.firsts(key, 'duplicate id'))
    rows = images.table.iloc[positions]
    place = pd.Index(other.table[key].iloc[unique]).get_indexer(rows[key])
    for position in positions[place < 0].tolist():
        text = images.table[key].iloc[position]
        images.add(missing, f'{key} {text} has no row in {other.name}', position)
    there = positions[place >= 0]
    for position, found in zip(there.tolist(), unique[place[place >= 0]].tolist(), strict=True):
        for name in same:
            wanted, text = images.table[name].iloc[position], other.table[name].iloc[found]
            if wanted != text:
                row = int(images.table.index[position]) + 2
                detail = f'{name} is {text}, in row {row} of {images.name} {wanted}'
                other.add('ids that differ', detail, found)


def _check_classes(
    labels: TableCheck, values: np.ndarray, rows: pd.DataFrame, *, blank: str
) -> None:
    """Look for labels of one class in each split of the rows, study by study."""
    if not labels.has('study_id'):
        return
    for name in SPLITS:
        studies = rows['study_id'][rows['split'] == name]
        mine = labels.table['study_id'].isin(studies).to_numpy()
        if mine.any():
            labels.classes(name, values[mine], blank=blank)


def _splits(
    csv: str, rows: pd.DataFrame, pictures: Folder | Store, *, suffix: str, findings: Findings
) -> list[Split]:
    folders = 'files/p' + rows['subject_id'].str[:2] + '/p' + rows['subject_id']
    files = folders + '/s' + rows['study_id'] + '/' + rows['dicom_id'] + suffix
    splits = []
    for name in SPLITS:
        mine = (rows['split'] == name).to_numpy()
        row = rows.index.to_numpy()[mine] + 2
        patients = ('p' + rows['subject_id'][mine]).to_numpy(object)
        split = Split(name, csv, row, files[mine].to_numpy(object), patients)
        if name == 'test' and mine.any() and not are_there(pictures, split.file).any():
            findings.add('split without pictures', f'none of the {mine.sum()} of {name}', csv=csv)
        elif mine.any():
            splits.append(mark_missing(split, pictures, findings))
    return splits


# ==== data.check: Checking a whole data set: everything that is wrong with it, not only the first fault.
#
# What the readers refuse at the first fault is found row by row (`data.check_tables` and the layouts'
# `data.check_chexpert`, `data.check_mimic`); every picture that a CSV names is read
# (`data.check_pictures`); then splits are compared by patient, by file and by pixels.


@dataclass(frozen=True)
class Layout:
    """What the data set is, in the terms of the options of DATA."""

    dataset: str  # 'chexpert', 'mimic-cxr', 'folder'
    csv_names: Mapping[str, str]  # split -> its file; of 'chexpert'
    optional: tuple[str, ...] = ()  # of these files, those that may be absent
    image_suffix: str = ''
    labeller: str = 'chexpert'  # of 'mimic-cxr'
    blank: str = 'negative'  # what a label is that is not mentioned
    allow_all_images: bool = False  # of 'folder'


@dataclass(frozen=True)
class Checked:
    """What was gone through."""

    rows: dict[str, int]  # CSV and split -> rows whose picture is there
    pictures: int
    seconds: float  # for the pictures


@dataclass(frozen=True)
class _Named:
    """The pictures of all splits, each file once, in the order of the rows that name it first."""

    files: np.ndarray  # [N]
    split: np.ndarray  # [N] int, of the first row
    row: np.ndarray  # [N] of the first row

    def place(self, position: int, splits: list[Split]) -> dict[str, str | int | None]:
        """Where a picture is named first, as a finding has it."""
        csv = splits[self.split[position]].csv
        row = int(self.row[position]) if csv else None
        return {'csv': csv, 'row': row, 'file': self.files[position]}


def check_data(root: Path, layout: Layout, findings: Findings, *, workers: int) -> Checked:
    """Go through a data set or a packed store of it.

    Args:
        root: the folder, or the store.
        layout: how it is to be read.
        findings: where all that is wrong goes.
        workers: processes that read pictures.

    Raises:
        ValueError: if the store is not finished.
    """
    pictures = _open_check(root, layout, findings)
    if pictures is None:
        return Checked({}, 0, 0.0)
    splits = [split for split in _read_splits(pictures, layout, findings) if len(split.row)]
    if not splits:
        return Checked({}, 0, 0.0)
    _check_patients(splits, findings)
    named = _check_files(splits, findings)
    if layout.dataset != 'folder':
        for file in sorted(set(pictures.files).difference(named.files)):
            findings.add('picture that no CSV names', 'no row of a CSV file names it', file=file)
    if isinstance(pictures, Folder):
        _add_links(pictures.links, named.files, findings)
    start = time.perf_counter()
    digests = _look(root, splits, named, findings, workers=workers)
    seconds = time.perf_counter() - start
    _check_pixels(digests, splits, named, findings)
    rows = {f'{split.csv} {split.name}'.strip(): len(split.row) for split in splits}
    return Checked(rows, len(named.files), seconds)


def _open_check(root: Path, layout: Layout, findings: Findings) -> Folder | Store | None:
    is_folder = layout.dataset == 'folder'
    if not is_store(root):
        pictures = Folder(root, findings)
        scored = pictures.scored
    else:
        try:
            about = read_about(root)
        except ValueError as error:
            findings.add('damaged store', str(error))
            return None
        problems = file_problems(root, about)
        for text in problems:
            findings.add('damaged store', text)
        if problems:
            return None
        pictures = Store(root)
        scored = [STORE_FILE] if about['scored'] else []
    if is_folder and not layout.allow_all_images:
        for file in scored:
            findings.add('folder with scores', 'it holds pictures to be scored later', file=file)
    return pictures


def _read_splits(pictures: Folder | Store, layout: Layout, findings: Findings) -> list[Split]:
    options = {'image_suffix': layout.image_suffix, 'findings': findings}
    if layout.dataset == 'folder':
        return _all_images(pictures, findings)
    options |= {'blank': layout.blank}
    if layout.dataset == 'mimic-cxr':
        return check_mimic(pictures, labeller=layout.labeller, **options)
    splits = []
    for split, name in layout.csv_names.items():
        if split in layout.optional and not (Path(pictures.path) / name).exists():
            continue
        found = check_csv(split, name, pictures, **options)
        splits += [] if found is None else [found]
    return splits


def _all_images(pictures: Folder | Store, findings: Findings) -> list[Split]:
    if isinstance(pictures, Store):
        for file, problem in pictures.left_out.items():
            findings.add('left out of the store', problem, file=file)
    if not pictures.files:
        findings.add('missing picture', f'there is no picture below {pictures.path}')
    files = np.array(pictures.files, object)
    # Every file is a patient of its own: without splits they are not compared.
    return [Split('', '', np.arange(len(files)), files, files)]


def _check_patients(splits: list[Split], findings: Findings) -> None:
    codes, names = pd.factorize(np.concatenate([split.patient for split in splits]))
    owners = np.repeat(np.arange(len(splits)), [len(split.row) for split in splits])
    rows = np.concatenate([split.row for split in splits])
    counts = pd.DataFrame({'patient': codes, 'split': owners, 'row': rows})
    counts = counts.groupby(['patient', 'split'])['row'].agg(['size', 'first']).reset_index()
    for code, group in counts[counts['patient'].duplicated(keep=False)].groupby('patient'):
        places = ', '.join(
            f'{splits[p.split].name} ({p.size} rows of {splits[p.split].csv}, the first {p.first})'
            for p in group.itertuples()
        )
        last = group.iloc[-1]
        csv, row = splits[last['split']].csv, int(last['first'])
        findings.add('patient in two splits', f'{names[code]} is in {places}', csv=csv, row=row)


def _check_files(splits: list[Split], findings: Findings) -> _Named:
    """The pictures, each once; those that a second split names are found."""
    codes, files = pd.factorize(np.concatenate([split.file for split in splits]))
    owners = np.repeat(np.arange(len(splits)), [len(split.row) for split in splits])
    rows = np.concatenate([split.row for split in splits])
    firsts = np.unique(codes, return_index=True)[1]
    named = _Named(files, owners[firsts], rows[firsts])
    for position in np.flatnonzero(owners != named.split[codes]).tolist():
        split, first = splits[owners[position]], named.place(codes[position], splits)
        detail = f'row {first["row"]} of {first["csv"]} names it, too'
        place = {'csv': split.csv, 'row': int(rows[position]), 'file': first['file']}
        findings.add('picture in two splits', detail, **place)
    return named


def _add_links(links: Mapping[str, str], files: np.ndarray, findings: Findings) -> None:
    """The links out of the folder that no picture is read through: those have findings then."""
    if not links:
        return
    read = set(files) | {parent.as_posix() for f in files for parent in PurePosixPath(f).parents}
    for file, text in links.items():
        if file not in read:
            findings.add('link that leaves the folder', text, file=file)


def _look(
    root: Path, splits: list[Split], named: _Named, findings: Findings, *, workers: int
) -> np.ndarray:  # [N] bytes
    digests = np.zeros(len(named.files), f'S{DIGEST_BYTES}')
    looks = look_at_all(root, named.files, workers=workers)
    interval = 0.5 if sys.stderr.isatty() else 30  # a log gets a line now and then
    bar = tqdm(looks, desc='check', total=len(digests), unit='image', mininterval=interval)
    for position, look in enumerate(bar):
        digests[position] = look.digest
        for kind, detail in look.problems:
            findings.add(kind, detail, **named.place(position, splits))
    return digests


def _check_pixels(
    digests: np.ndarray, splits: list[Split], named: _Named, findings: Findings
) -> None:
    """Find pictures with the pixels of an earlier one, if possible of one of another split."""
    order = np.argsort(digests, kind='stable')
    order = order[digests[order] != b'']
    starts = np.flatnonzero(digests[order][1:] != digests[order][:-1]) + 1
    for group in np.split(order, starts):
        firsts = {}  # split -> the first picture of the group in it
        for position in group.tolist():
            own = int(named.split[position])
            others = [first for split, first in firsts.items() if split != own]
            if firsts:
                earlier = named.place(min(others, default=firsts.get(own)), splits)
                row = f' (row {earlier["row"]} of {earlier["csv"]})' if earlier['csv'] else ''
                kind = 'same pixels in two splits' if others else 'same pixels'
                detail = f'the pixels are those of {earlier["file"]}{row}'
                findings.add(kind, detail, **named.place(position, splits))
            firsts.setdefault(own, position)

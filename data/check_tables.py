"""All that is wrong in CSV files, row by row: the rules are those of the readers.

The readers stop at the first fault.  Here each row, cell or column that may be at fault is handed
to their own checks alone, and the message becomes a finding.
"""

import csv
import io
import os
import zlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.check_findings import Findings
from data.chexpert import IMAGE_SUFFIXES, SCORED_FILES
from data.images import refuse_link_out
from data.labels import CELLS, LABELS, UNCERTAIN, evaluation_targets, map_cells
from data.packed import Store
from data.tables import read_data, read_table, refuse_duplicates, require_columns

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

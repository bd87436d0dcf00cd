"""Read the cells of CSV files, and report faults with file, row and column.

By default, the first fault in a file raises a ValueError that names the file, the row and the
column. The data check passes a function `on_fault` to the readers instead. It collects all faults,
and the readers return the rows that can be used.
"""

import csv
import gzip
import io
import itertools
import json
import logging
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

KEYS = ('Path', 'Study')  # column that names the image or the study of a row
IDS = ('dicom_id', 'study_id', 'subject_id')  # columns of MIMIC-CXR
NUMBER = re.compile(r'-?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?', re.ASCII | re.IGNORECASE)
SHOWN = 100  # number of characters of a cell in a message
JSON_LINES = ('.json', '.jsonl')  # suffixes of tables with a JSON object on each line
UNREADABLE = (ValueError, OSError, EOFError, zlib.error)  # what damaged files raise
# A table in a compressed file may be this much larger; real ones are 5 to 30 times as large.
MAX_RATIO, MIN_LIMIT = 100, 2**20  # the second in bytes
MAX_COLUMNS = 100  # that are read of JSON lines or of an Excel file
LOG_LEVELS = {'warning': logging.WARNING, 'note': logging.INFO}  # of faults that are no errors


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


def refuse(fault: Fault, logger: logging.Logger | None = None) -> None:
    """Raise an error for a fault. Warnings and notes are logged if there is a logger."""
    if fault.severity == 'error':
        raise ValueError(str(fault))
    if logger is not None:
        logger.log(LOG_LEVELS[fault.severity], str(fault))


class Table:
    """The text cells of a CSV file (.csv or .csv.gz), or of JSON lines (.json or .jsonl).

    A missing column reads as empty cells, and empty rows are ignored. A row that is wider or
    narrower than the header is a fault, because the last row of a truncated file would otherwise
    look like an image without labels.

    Args:
        file: Path of the file.
        on_fault: Function that receives each fault.
        hint: Text that is added to the message for a missing file.
        cells: Cells of a table without a CSV file, whose rows are the images in the column Path;
            `file` then describes them.

    Attributes:
        cells: Usable rows by column; the index is the 0-based row below the header.
        titles: What messages say instead of `column 'NAME'`, by column.
    """

    def __init__(
        self,
        file: str | Path,
        on_fault: OnFault = refuse,
        hint: str = '',
        *,
        cells: pd.DataFrame | None = None,
    ) -> None:
        self.file = Path(file)
        self.on_fault = on_fault
        self.titles: dict[str, str] = {}
        self.has_rows = cells is None
        self.cells = self._read(hint) if cells is None else cells

    def __contains__(self, column: str) -> bool:
        return column in self.cells

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, column: str) -> pd.Series:
        return self.cells[column] if column in self else pd.Series('', self.cells.index, object)

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
            row = int(self.row[position]) + 2 if self.has_rows else None
            file = next((self[name].iloc[position] for name in (*KEYS, *IDS) if name in self), '')
            detail = detail if self.has_rows else f'{file}: {detail}'
        self.on_fault(Fault(kind, detail, str(self.file), row, file, severity))

    def places(self) -> list[str]:
        """Describe where each row is, [N]."""
        if not self.has_rows:
            return self['Path'].tolist()
        return [f'row {row} of {self.file.name}' for row in (self.row + 2).tolist()]

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

    def check(self, column: str, good: np.ndarray, kind: str, problem: str) -> None:
        """Report every cell of a column where `good` ([N] bool) is false."""
        for position in np.flatnonzero(~good).tolist():
            self.fault(kind, f'{self._cell(column, position)} {problem}', position)

    def keep(self, column: str, good: Sequence[bool], kind: str, problem: str) -> None:
        """Report and drop every row where `good` ([N] bool) is false."""
        good = np.asarray(good, bool)
        self.check(column, good, kind, problem)
        self.cells = self.cells[good]

    def keep_first(
        self, column: str, kind: str, values: Sequence[str] | None = None, remedy: str = ''
    ) -> None:
        """Report and drop every row whose cell (or value, [N]) occurs in an earlier row."""
        values = pd.Series(np.asarray(self[column] if values is None else values, object))
        later = values.duplicated().to_numpy()
        first_rows = dict(zip(values[~later], self.row[~later] + 2, strict=True))
        for position in np.flatnonzero(later).tolist():
            problem = f'already occurs in row {first_rows[values[position]]}{remedy}'
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
        self,
        column: str,
        kind: str,
        *,
        least: float = 0,
        most: float,
        can_be_empty: bool = True,
        hint: str = '',
    ) -> np.ndarray:  # [N]
        """Return the cells as numbers from `least` to `most`, and NaN for empty cells."""
        texts = [text for text in self[column].unique() if NUMBER.fullmatch(text)]
        meanings = {text: float(text) for text in texts if least <= float(text) <= most}
        allowed = f'numbers from {least} to {most}'
        if can_be_empty:
            meanings[''], allowed = np.nan, f'{allowed}, or empty'
        return self.map(column, meanings, kind, allowed=f'{allowed}{hint}')

    def _cell(self, column: str, position: int) -> str:
        title, cell = self.titles.get(column, f'column {column!r}'), self[column].iloc[position]
        hint = ' (a quote that is not closed?)' if '\n' in cell else ''
        return f'{title}: {cell!r:.{SHOWN}}{hint}'

    def _read(self, hint: str) -> pd.DataFrame:
        if not self.file.is_file():
            is_folder = self.file.is_dir()
            problem = (
                'this is a folder: name a file in it' if is_folder else 'the file does not exist'
            )
            self.fault('missing file', f'{problem}{hint}')
            return pd.DataFrame()
        try:
            header, *rows = _read_rows(self.file) or [[]]
            header = [name.strip() for name in header]
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
            if any(row) and len(row) == len(header):
                kept[number] = row
            elif any(row):
                detail = f'{len(row)} fields, but the header has {len(header)}'
                place = {'csv': str(self.file), 'row': number + 2}
                self.on_fault(Fault('row of another width', detail, **place))
        table = pd.DataFrame(list(kept.values()), list(kept), header, object)
        table = table.loc[:, ~table.columns.duplicated()]
        if table.empty:
            self.fault('empty CSV', 'there is no usable row below the header')
        return table


def _read_rows(file: Path) -> list[list[str]]:
    """Read the rows of a CSV file or of JSON lines, with the header in front."""
    if file.suffix == '.xlsx':
        raise ValueError('it is an Excel file; save it as CSV')
    limit = max(MIN_LIMIT, MAX_RATIO * file.stat().st_size)
    with (gzip.open if file.suffix == '.gz' else open)(file, 'rb') as opened:
        data = opened.read(limit + 1)
    refuse_bomb(len(data), limit)
    text = data.decode('utf-8-sig')
    if file.name.endswith(JSON_LINES):
        return _read_json_lines(text)
    reader = csv.reader(io.StringIO(text, newline=''), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        hint = 'a cell may lack its closing quote'
        raise ValueError(f'line {reader.line_num}: {error}; {hint}') from error
    if reader.line_num > len(rows):
        _refuse_swallowed_rows(rows)
    return rows


def _read_json_lines(text: str) -> list[list[str]]:
    """Return the header and the rows of a file with a JSON object, which is a row, on each line."""
    rows = []
    for number, line in enumerate(text.rstrip('\n').split('\n'), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f'line {number} is not JSON: {error}') from error
        if not isinstance(row, dict):
            raise ValueError(f'line {number} is not a JSON object such as {{"file": "1.png"}}')
        rows.append(row)
    header = [*dict.fromkeys(itertools.chain.from_iterable(rows))]
    if len(header) > MAX_COLUMNS:
        raise ValueError(f'it has {len(header):,} different keys, at most {MAX_COLUMNS} are read')
    return [header, *([_json_text(row.get(name)) for name in header] for row in rows)]


def _json_text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ''
    return json.dumps(value)


def _refuse_swallowed_rows(rows: Sequence[Sequence[str]]) -> None:
    """Refuse a cell with a line that looks like a row: an open quote and a later one hide rows.

    Such a line has enough commas, and begins like the rows, for example with a path. Sentences in a
    report do not.
    """
    width = max(len(rows[0]), 2)
    forms = {_form(row[0]) for row in rows[1:] if row}
    for number, row in enumerate(rows, 1):
        for name, cell in zip(rows[0], row, strict=False):
            lines = cell.splitlines()[1:]
            if any(len(line.split(',')) >= width and _form(line) in forms for line in lines):
                raise ValueError(
                    f'row {number}: a line of the cell in column {name!r:.{SHOWN}} looks like a '
                    'row; a cell may lack its closing quote, or write the text on one line'
                )


def _form(line: str) -> str:
    """Return the form of the first cell of a line: a for letters, 0 for digits, and x for both."""
    first = line.partition('\n')[0].partition(',')[0].strip(' "\r')
    kinds = {(True, False): 'a', (False, True): '0'}
    return re.sub(r'\w+', lambda m: kinds.get((m[0].isalpha(), m[0].isdecimal()), 'x'), first)


def refuse_bomb(size: int, limit: int) -> None:
    """Refuse a compressed file with more bytes than a table can have."""
    if size > limit:
        raise ValueError(f'it has more than {limit:,} bytes when it is decompressed')


def rows_of(table: Table, other: Table, columns: Sequence[str]) -> np.ndarray:  # [N]
    """Return the position of each row of a table in another by some columns; -1 if it is absent."""
    if not len(table) or not len(other):
        return np.full(len(table), -1)
    names, wanted = (pd.MultiIndex.from_frame(part.cells[[*columns]]) for part in (other, table))
    first = np.flatnonzero(~names.duplicated())
    place = names[first].get_indexer(wanted)
    return np.where(place >= 0, first[place], -1)


def rows_of_labels(
    table: Table, source: Table, columns: Sequence[str], name: str
) -> np.ndarray:  # [N]
    """Return the row of labels of each row, and drop the rows that have none.

    The column `name` names a dropped row in the warning.
    """
    place = rows_of(table, source, columns)
    has_labels = place >= 0
    if not has_labels.all():
        without = table[name][~has_labels]
        counts = f'{len(without):,} of {len(place):,} rows have no row in {source.file.name}'
        detail = f'{counts} and are left out, such as {without.iloc[0]}'
        table.fault('rows without labels', detail, severity='warning')
    table.cells = table.cells[has_labels]
    return place[has_labels]


def find_file(root: Path, *patterns: str, hint: str) -> Path:
    """Find the one regular file in a folder that matches one of the patterns."""
    matches = (file for pattern in patterns for file in root.glob(pattern))
    found = sorted(file for file in matches if file.is_file())
    if len(found) != 1:
        names = ', '.join(file.name for file in found) or 'none'
        wanted = ' or '.join(patterns)
        raise ValueError(f'{root} must have exactly one file {wanted}, found: {names} (see {hint})')
    return found[0]

"""Tables of text cells, and faults with file, row and column.

By default, the first fault in a file raises a ValueError that names the file, the row and the
column. The data check passes a function `on_fault` to the readers instead. It collects all faults,
and the readers return the rows that can be used.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.tables.table_files import (
    NO_TEXT,
    SHOWN,
    UNREADABLE,
    cell_text,
    read_cells,
    text_cells,
)
from data.tables.unknown import known_cells

KEYS = ('Path', 'Study')  # column that names the image or the study of a row
DESCRIPTION = ('Sex', 'Age', 'Frontal/Lateral', 'AP/PA')  # optional columns
READ = (*KEYS, 'Patient', 'Split', *DESCRIPTION)  # columns that every run reads
NUMBER = re.compile(r'-?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?', re.ASCII | re.IGNORECASE)
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
    """The text cells of a file (`data.tables.table_files`), or of a table in memory.

    A missing column reads as empty cells. Empty rows and columns without a name, such as the row
    numbers that pandas writes, are ignored. A row that is wider or narrower than the header is a
    fault, because the last row of a truncated file would otherwise look like an image without
    labels.

    Args:
        file: Path of the file.
        on_fault: Function that receives each fault.
        hint: Text that is added to the message for a missing file.
        cells: Cells of a table in memory, whose index has the numbers of the rows; `file` then
            describes them.
        num_rows: Number of rows below the header that are read; None reads all.

    Attributes:
        cells: Usable rows by column, as texts in the columns that were asked for; the index is the
            0-based row below the header.
        csv: Name of the file below the data folder whose rows the index numbers; '' for none.
        advice: What may help if an image of the table is missing.
        may_lack_images: Whether an optional split without its images is skipped.
        digest: SHA-256 of a table that a function made.
    """

    def __init__(
        self,
        file: str | Path,
        on_fault: OnFault = refuse,
        hint: str = '',
        *,
        cells: pd.DataFrame | None = None,
        num_rows: int | None = None,
    ) -> None:
        self.file = Path(file)
        self.csv = self.file.name if cells is None else ''
        self.advice, self.may_lack_images, self.digest = '', False, ''
        self.on_fault = on_fault
        cells = self._read(hint, num_rows) if cells is None else cells
        is_named = [isinstance(name, str) and name.strip() != '' for name in cells]
        self.cells = cells.loc[:, is_named]
        self._typed = {*self.cells}  # columns to be converted to text

    def __contains__(self, column: str) -> bool:
        return column in self.cells

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, column: str) -> pd.Series:
        if column not in self:
            return pd.Series('', self.cells.index, object)
        if column in self._typed:
            self.cells = self.cells.assign(**{column: self._texts(column)})
            self._typed.discard(column)
        return self.cells[column]

    def has_text(self, column: str) -> bool:
        """Return whether a column exists and has texts, and not bytes such as those of images."""
        first = self.cells[column].iloc[:1] if column in self else ()
        return column in self and not any(type(cell) is bytes and cell == NO_TEXT for cell in first)

    def texts(self) -> pd.DataFrame:
        """Return all cells as texts, without columns of bytes that no run reads."""
        names = [name for name in self.cells if self.has_text(name) or name in READ]
        return pd.DataFrame({name: self[name] for name in names}, self.cells.index, dtype=object)

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
            file = next((self[name].iloc[position] for name in KEYS if name in self), '')
        self.on_fault(Fault(kind, detail, str(self.file), row, file, severity))

    def add(self, **columns: Sequence[Any]) -> None:
        """Add columns of N values, without the conversion of texts to another type by pandas."""
        index = self.cells.index
        added = {name: pd.Series(values, index, object) for name, values in columns.items()}
        self.cells = self.cells.assign(**added)

    def empty_unknown(self, *columns: str, also: Sequence[str] = ()) -> None:
        """Let cells that say that their value is unknown read as empty (`data.tables.unknown`)."""
        self.add(**{name: known_cells(self[name], also) for name in columns if name in self})

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

    def keep_first(self, column: str, kind: str, values: Sequence[str]) -> None:
        """Report and drop every row whose value ([N], for the cell) occurs in an earlier row."""
        values = np.asarray(values, object)
        later = pd.Series(values, dtype=object).duplicated().to_numpy()
        if not later.any():
            return
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
        known = np.array([value in meanings for value in values], bool)
        self.check(column, known[codes], kind, f'is not allowed (allowed: {allowed})')
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

    def _texts(self, column: str) -> pd.Series:
        """Return the texts of a column; cells that are no text are a fault, read as empty."""
        cells = self.cells[column]
        try:
            return text_cells(cells)
        except ValueError:
            texts = [*map(_text_or_none, cells)]
            detail = (
                f'column {column!r} has bytes that are no text in UTF-8, such as those of an '
                f'image, in {texts.count(None):,} of {len(texts):,} rows'
            )
            row = int(self.row[texts.index(None)]) + 2
            self.on_fault(Fault('unreadable column', detail, str(self.file), row))
            return pd.Series([text or '' for text in texts], cells.index, object)

    def _cell(self, column: str, position: int) -> str:
        cell = self[column].iloc[position]
        hint = ' (a quote that is not closed?)' if '\n' in cell else ''
        return f'column {column!r}: {cell!r:.{SHOWN}}{hint}'

    def _read(self, hint: str, num_rows: int | None) -> pd.DataFrame:
        if not self.file.is_file():
            is_folder = self.file.is_dir()
            problem = (
                'this is a folder: name a file in it' if is_folder else 'the file does not exist'
            )
            self.fault('missing file', f'{problem}{hint}')
            return pd.DataFrame()
        try:
            table, other_widths = read_cells(self.file, num_rows)
        except UNREADABLE as error:
            self.fault('unreadable table', f'it cannot be read: {error}')
            return pd.DataFrame()
        table.columns = header = [name.strip() for name in table]
        for name in dict.fromkeys(name for name in header if name and header.count(name) > 1):
            self.fault('repeated column', f'column {name} is given twice')
        for number, width in other_widths:
            detail = f'{width} fields, but the header has {len(header)}'
            self.on_fault(Fault('row of another width', detail, str(self.file), number + 2))
        table = table.loc[:, ~table.columns.duplicated() | (table.columns == '')]
        if table.empty:
            self.fault('empty CSV', 'there is no usable row below the header')
        return table


def _text_or_none(cell: Any) -> str | None:
    try:
        return cell_text(cell)
    except ValueError:
        return None


def find_file(root: Path, *patterns: str, hint: str) -> Path:
    """Find the one regular file in a folder that matches one of the patterns."""
    matches = (file for pattern in patterns for file in root.glob(pattern))
    found = sorted(file for file in matches if file.is_file())
    if len(found) != 1:
        names = ', '.join(file.name for file in found) or 'none'
        wanted = ' or '.join(patterns)
        raise ValueError(f'{root} must have exactly one file {wanted}, found: {names} (see {hint})')
    return found[0]

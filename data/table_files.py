"""Read tables as text cells with the numbers of their rows: CSV, Excel, JSON lines and Parquet.

Files may be hostile: the memory that a small file can take is limited.
"""

import contextlib
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from array import array
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import load

TYPED = ('.json', '.jsonl', '.xlsx', '.parquet')  # suffixes of tables with typed cells
# What damaged files raise.
UNREADABLE = (ValueError, OSError, EOFError, zlib.error, OverflowError, MemoryError)
# A table in a compressed file may be this much larger; real ones are 5 to 30 times as large.
MAX_RATIO, MIN_LIMIT = 100, 2**20  # the second in bytes
SHOWN = 100  # number of characters of a cell in a message
SEPARATORS = (',', ';', '\t')
EXCEL_SEPARATOR = re.compile(r'sep=(.)\r?\n', re.IGNORECASE)  # Excel's own first line
DECIMAL_COMMA = re.compile(r'-?\d+,\d+', re.ASCII)
UTF_16 = (b'\xff\xfe', b'\xfe\xff')
MOST_CODES = 5_000  # different cells of a column, up to which its rows are kept as codes
CHUNK = 200  # rows that are divided into columns at once
EXACT = 2**53  # from here on, a float does not have all digits of a whole number


class Columns:
    """The columns of a table, which grow by rows.

    A column of few different cells has a code of two bytes in each row, and one text for each code.
    """

    def __init__(self, header: Sequence[str]) -> None:
        self.header = [*header]
        self.numbers: list[int] = []
        self.other_widths: list[tuple[int, int]] = []  # (number, width) of rows that do not fit
        self._cells: list[array | list[str]] = [array('H') for _ in header]
        # Text -> code; None for columns of many different texts, such as paths.
        self._codes: list[dict[str, int] | None] = [
            defaultdict(itertools.count().__next__) for _ in header
        ]

    def add(self, start: int, rows: Sequence[Sequence[str]]) -> None:
        """Add consecutive rows but empty ones and those of another width than the header."""
        width = len(self.header)
        numbers: Sequence[int] = range(start, start + len(rows))
        if {*map(len, rows)} != {width} or not all(map(any, rows)):
            filled = [(number, row) for number, row in zip(numbers, rows, strict=True) if any(row)]
            self.other_widths += [(n, len(row)) for n, row in filled if len(row) != width]
            numbers = [number for number, row in filled if len(row) == width]
            rows = [row for _, row in filled if len(row) == width]
        self.numbers.extend(numbers)
        for place, cells in enumerate(zip(*rows, strict=True)):
            codes = self._codes[place]
            if codes is None:
                self._cells[place].extend(cells)
                continue
            self._cells[place].extend(map(codes.__getitem__, cells))
            if len(codes) > MOST_CODES:
                self._cells[place] = self._texts(place).tolist()
                self._codes[place] = None

    def frame(self) -> pd.DataFrame:
        """Return the cells as texts; the index has the numbers of the rows."""
        columns = {place: self._texts(place) for place in range(len(self.header))}
        frame = pd.DataFrame(columns, self.numbers, dtype=object)
        frame.columns = self.header
        return frame

    def replace_decimal_commas(self) -> None:
        """Write cells such as 0,5 with a point."""
        for place in range(len(self.header)):
            self._cells[place] = [
                cell.replace(',', '.') if DECIMAL_COMMA.fullmatch(cell) else cell
                for cell in self._texts(place)
            ]
            self._codes[place] = None

    def _texts(self, place: int) -> np.ndarray:  # [N] object
        """Return the cells of a column as texts; equal cells of a column with codes are one."""
        cells, codes = self._cells[place], self._codes[place]
        return np.array(cells, object) if codes is None else np.array([*codes], object)[cells]


def read_columns(file: Path, num_rows: int | None = None) -> Columns:
    """Read a table: .csv or .tsv (also .gz), .xlsx, JSON lines (.json, .jsonl) or .parquet.

    A CSV file may be separated by commas, semicolons (then with decimal commas) or tabs.

    Args:
        file: Path of the file.
        num_rows: Number of rows below the header that are read; None reads all.

    Raises:
        One of UNREADABLE: If the file is damaged, too large when it is decompressed, or no table.
    """
    if file.name.lower().removesuffix('.gz').endswith(TYPED):
        return load('data.typed_tables:read_typed')(file, num_rows)
    text = read_text(file)
    first = EXCEL_SEPARATOR.match(text)
    if first:
        text = text[first.end() :]
    separator = first[1] if first else ','
    if not first:  # the one that divides the header into the most columns
        header = text[: text.find('\n') + 1] or text
        with contextlib.suppress(csv.Error):
            rows = [next(csv.reader([header], delimiter=mark), []) for mark in SEPARATORS]
            separator = SEPARATORS[int(np.argmax([*map(len, rows)]))]
    # Not io.StringIO, which needs four bytes for each character.
    lines = io.TextIOWrapper(io.BytesIO(text.encode()), 'utf-8', newline='')
    del text
    reader = csv.reader(lines, strict=True, delimiter=separator)
    try:
        columns, count = Columns(next(reader, [])), 0
        wanted = itertools.islice(reader, num_rows)
        while rows := [*itertools.islice(wanted, CHUNK)]:
            columns.add(count, rows)
            count += len(rows)
    except csv.Error as error:
        hint = 'a cell may lack its closing quote'
        raise ValueError(f'line {reader.line_num}: {error}; {hint}') from error
    if reader.line_num > count + 1:  # a cell has several lines
        lines.seek(0)
        _refuse_swallowed_rows([*csv.reader(lines, delimiter=separator)], separator)
    if separator == ';':  # of a spreadsheet in a language with decimal commas
        columns.replace_decimal_commas()
    return columns


def read_text(file: Path) -> str:
    """Return the text of a file in UTF-8 or, with a byte-order mark, UTF-16, perhaps compressed."""
    if file.name.lower().endswith('.gz'):
        limit = max(MIN_LIMIT, MAX_RATIO * file.stat().st_size)
        with gzip.open(file) as opened:
            data = opened.read(limit + 1)
        refuse_bomb(len(data), limit)
    else:
        data = file.read_bytes()
    return data.decode('utf-16' if data.startswith(UTF_16) else 'utf-8-sig')


def cell_text(value: Any) -> str:
    """Return the text of a cell that may have a type: 1.0 and True become '1', and NaN ''."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        if np.isnan(value):
            return ''
        is_exact = value.is_integer() and abs(value) < EXACT
        return str(int(value)) if is_exact else repr(float(value))
    if isinstance(value, Decimal):
        return '' if value.is_nan() else f'{value.normalize():f}'
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, default=str)
    if isinstance(value, np.ndarray):
        return json.dumps(value.tolist(), default=str)
    return '' if value is None or value is pd.NA or value is pd.NaT else str(value)


def text_cells(column: pd.Series) -> pd.Series:
    """Return the cells of a column as texts (`cell_text`)."""
    if column.dtype == object and pd.api.types.infer_dtype(column, skipna=False) == 'string':
        return column
    if column.dtype == object:
        texts = np.array([*map(cell_text, column)], object)
    else:  # equal values are converted once
        codes, values = pd.factorize(column)  # NaN has the code -1
        texts = np.array([*map(cell_text, values), ''], object)[codes]
    return pd.Series(texts, column.index, object, name=column.name)


def csv_text(table: pd.DataFrame) -> str:
    """Return a table as CSV text in which each row has its number, with empty lines between."""
    file = io.StringIO(newline='')
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(table.columns)
    cells = zip(*(text_cells(table[name]) for name in table), strict=True)
    rows = dict(zip(table.index.tolist(), cells, strict=True))
    writer.writerows(rows.get(number, ()) for number in range(max(rows, default=-1) + 1))
    return file.getvalue()


def _refuse_swallowed_rows(rows: Sequence[Sequence[str]], separator: str) -> None:
    """Refuse a cell with a line that looks like a row: an open quote and a later one hide rows.

    Such a line has enough separators, and begins like the rows, for example with a path. Sentences
    in a report do not.
    """
    width = max(len(rows[0]), 2)
    forms = {_form(row[0], separator) for row in rows[1:] if row}
    for number, row in enumerate(rows, 1):
        for name, cell in zip(rows[0], row, strict=False):
            lines = cell.splitlines()[1:]
            if any(
                len(line.split(separator)) >= width and _form(line, separator) in forms
                for line in lines
            ):
                raise ValueError(
                    f'row {number}: a line of the cell in column {name!r:.{SHOWN}} looks like a '
                    'row; a cell may lack its closing quote, or write the text on one line'
                )


def _form(line: str, separator: str) -> str:
    """Return the form of the first cell of a line: a for letters, 0 for digits, and x for both."""
    first = line.partition('\n')[0].partition(separator)[0].strip(' "\r')
    kinds = {(True, False): 'a', (False, True): '0'}
    return re.sub(r'\w+', lambda m: kinds.get((m[0].isalpha(), m[0].isdecimal()), 'x'), first)


def refuse_bomb(size: int, limit: int) -> None:
    """Refuse a compressed file with more bytes than a table can have."""
    if size > limit:
        raise ValueError(f'it has more than {limit:,} bytes when it is decompressed')

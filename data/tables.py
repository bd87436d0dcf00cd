"""CSV files as tables of text: read whole or refused, the errors that name a cell, safe cells."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from data.labels import cell_error

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

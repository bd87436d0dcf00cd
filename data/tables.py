"""CSV files as tables of text: read whole or refused, and the errors that name a cell."""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data.labels import cell_error


def read_table(file: Path) -> pd.DataFrame:
    """Read a CSV (or .csv.gz) as text; the index is the 0-based row below the header.

    Rows that are blank throughout are left out; a row cut short is refused.

    Raises:
        ValueError: naming the file and, where there is one, the row.
    """
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if file.suffix == '.gz' else data
        table = pd.read_csv(
            io.BytesIO(data), dtype=object, keep_default_na=False, skip_blank_lines=False
        )
    except FileNotFoundError:
        raise ValueError(f'no such CSV file: {file}') from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f'{file} is not a readable CSV file: {error}') from error
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
            f'{file}: missing column: {", ".join(missing)}; found: {", ".join(table.columns)}'
        )
    twice = [name for name in (*one_of, *wanted) if f'{name}.1' in table]
    if twice:
        raise ValueError(f'{file}: column given twice: {", ".join(twice)}')


def refuse_duplicates(column: pd.Series, source: str, values: np.ndarray | None = None) -> None:
    """Refuse a cell whose value (by default its text) an earlier row has."""
    values = column.to_numpy() if values is None else values
    again = pd.Series(values).duplicated().to_numpy()
    if again.any():
        first = np.argmax(values == values[again][0])
        problem = f'is given in row {column.index[first] + 2} already'
        raise cell_error(source, column, int(np.argmax(again)), problem)


def _refuse_short_rows(data: bytes, file: Path) -> None:
    rows = csv.reader(io.StringIO(data.decode('utf-8-sig'), newline=''))
    width = len(next(rows))
    for line, row in enumerate(rows, start=2):
        if row and len(row) != width:
            raise ValueError(
                f'{file}, row {line} (the header is row 1): {len(row)} fields, the header has '
                f'{width}; is the file cut off?'
            )

"""Read tables as text cells with the numbers of their rows: CSV, Excel, JSON lines and Parquet."""

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
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from config import import_by_name

TYPED = ('.json', '.jsonl', '.xlsx', '.xlsm', '.parquet')  # suffixes of tables with typed cells
# What damaged files raise.
UNREADABLE = (ValueError, OSError, EOFError, zlib.error, OverflowError, MemoryError)
SHOWN = 100  # number of characters of a cell in a message
SEPARATORS = (',', ';', '\t')
EXCEL_SEPARATOR = re.compile(r'sep=(.)[\r\n]+', re.IGNORECASE)  # Excel's own first line
DECIMAL_COMMA = re.compile(r'\A(-?\d+),(\d+)\Z', re.ASCII)
ADVICE = 'tables are CSV or TSV in UTF-8 (perhaps .gz), JSON lines, .xlsx, .xlsm and .parquet'
# End of the name of a file -> beginning of what `describe_contents` says of it; TEXT for others.
TEXT = 'text'
CONTENTS = {
    '.xlsx': 'an Office',
    '.xlsm': 'an Office',
    '.parquet': 'a Parquet',
    '.gz': 'a compressed',
}
CONTROL = re.compile(rb'[\0-\x08\x0e-\x1f]')  # no character of a text
# The beginning of most tables: a line with a separator, and no markup.
PLAIN = re.compile(rb'[^<\0-\x1f\x7f-\xff][^\0-\x08\n-\x1f\x7f-\xff]*[,;\t][\t\n\r -\xff]*')
BEGINNING = 1000  # bytes that are looked at
UTF_16 = (b'\xff\xfe', b'\xfe\xff')
NAMES = ('Path', 'Patient', 'Study')  # columns whose cells are no numbers: 1,234 is a patient
CHUNK = 200  # rows that are divided into columns at once
NO_TEXT = b'\xff'  # a cell of a column of bytes that are not read, such as images
EXACT = 2**53  # from here on, a float does not have all digits of a whole number


def read_cells(
    file: Path, num_rows: int | None = None
) -> tuple[pd.DataFrame, list[tuple[int, int]]]:
    """Read a table: .csv or .tsv (also .gz), .xlsx, JSON lines (.json, .jsonl) or .parquet.

    A CSV file may be separated by commas, semicolons (then with decimal commas) or tabs.

    Args:
        file: Path of the file.
        num_rows: Number of rows below the header that are read; None reads all.

    Returns:
        The texts by column, as categories unless the first ones all differ; the index has the
        numbers of the rows. And (number, width) of each row of another width than the header. The
        table has neither these rows nor empty ones.

    Raises:
        One of UNREADABLE: If the file is damaged or no table.
    """
    refuse_other_contents(file)
    is_typed = file.name.lower().removesuffix('.gz').endswith(TYPED)
    read_rows = import_by_name('data.tables.typed_tables:typed_rows') if is_typed else _csv_rows
    rows = read_rows(file)
    _, header = next(rows, (-1, []))
    # The number of each text of a column, which stands for the text in the rows.
    codes = [defaultdict(itertools.count().__next__) for _ in header]
    columns: list[Any] = [array('i') for _ in header]
    numbers: list[int] = []
    other_widths: list[tuple[int, int]] = []
    wanted = itertools.islice(rows, num_rows)
    while chunk := [*itertools.islice(wanted, CHUNK)]:
        whole = []
        for number, row in chunk:
            if len(row) == len(header) and any(row):
                numbers.append(number)
                whole.append(row)
            elif any(row):
                other_widths.append((number, len(row)))
        is_first = len(numbers) == len(whole)
        for place, texts in enumerate(zip(*whole, strict=True)):
            if is_first and len({*texts}) == len(texts):  # such as paths or probabilities
                columns[place] = []
            is_coded = isinstance(columns[place], array)
            columns[place].extend(map(codes[place].__getitem__, texts) if is_coded else texts)
    index, cells = pd.Index(numbers, dtype=np.int64), {}
    for place, numbers_of_texts in enumerate(codes):
        column = columns.pop(0)
        kind = object if isinstance(column, list) else None
        if kind is None:
            texts = pd.Index([*numbers_of_texts], dtype=object)
            column = pd.Categorical.from_codes(np.asarray(column), texts)
        cells[place] = pd.Series(column, index, kind)
    table = pd.DataFrame(cells, index, copy=False)
    return table.set_axis(header, axis=1), other_widths


def _csv_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each row of a CSV file; the header has the number -1."""
    with open_text(file) as lines:
        first = lines.readline()
        stated = EXCEL_SEPARATOR.fullmatch(first)
        header = lines.readline() if stated else first
        separator = stated[1] if stated else _separator_of(header)
        reader = csv.reader(itertools.chain([header], lines), strict=True, delimiter=separator)
        number = -1
        try:
            for number, row in enumerate(reader, -1):
                if number < 0:
                    is_name = [name.strip() in NAMES for name in row]
                elif separator == ';':  # of a language with decimal commas
                    row = _with_points(row, is_name)
                yield number, row
        except csv.Error as error:
            hint = 'a cell may lack its closing quote'
            raise ValueError(f'line {reader.line_num}: {error}; {hint}') from error
        if reader.line_num > number + 2:  # a cell has several lines
            lines.seek(0)
            rows = csv.reader(lines, delimiter=separator)
            _refuse_swallowed_rows([*rows][1 if stated else 0 :], separator)


def _with_points(row: Sequence[str], is_name: Sequence[bool]) -> list[str]:
    """Return cells with decimal points in place of decimal commas, except names."""
    rest = len(row) - len(is_name)  # a row of another width is a fault, but not here
    cells = zip(row, [*is_name, *[False] * rest], strict=False)
    return [cell if is_kept else DECIMAL_COMMA.sub(r'\1.\2', cell) for cell, is_kept in cells]


def _separator_of(header: str) -> str:
    """Return the separator that divides a header into the most columns."""
    with contextlib.suppress(csv.Error):
        rows = [next(csv.reader([header], delimiter=mark), []) for mark in SEPARATORS]
        return SEPARATORS[int(np.argmax([*map(len, rows)]))]
    return SEPARATORS[0]


@contextlib.contextmanager
def open_text(file: Path) -> Iterator[TextIO]:
    """Open a text in UTF-8 or, with a byte-order mark, UTF-16, perhaps compressed."""
    is_compressed = file.name.lower().endswith('.gz')
    opened = gzip.open(file) if is_compressed else open(file, 'rb')
    encoding = 'utf-16' if opened.read(2) in UTF_16 else 'utf-8-sig'
    opened.seek(0)
    with io.TextIOWrapper(opened, encoding, newline='') as lines:
        try:
            yield lines
        except UnicodeDecodeError as error:
            bad = error.object[error.start : error.end]
            raise ValueError(
                f'the bytes {bad!r} are not {error.encoding}: save it as UTF-8; {ADVICE}'
            ) from error


def refuse_other_contents(file: Path) -> None:
    """Refuse a file that is something else than its name says, as far as its beginning shows."""
    with open(file, 'rb') as opened:
        start = opened.read(BEGINNING)
    if PLAIN.fullmatch(start) and not file.name.lower().endswith((*CONTENTS,)):
        return
    known = import_by_name('data.images.contents:describe_contents')(start)
    wanted = next((text for end, text in CONTENTS.items() if file.name.lower().endswith(end)), TEXT)
    if known and not known.startswith((wanted, 'empty')):
        raise ValueError(f'it is {known}; {ADVICE}')
    if not known and wanted == TEXT and CONTROL.search(start) and start[:2] not in UTF_16:
        raise ValueError(f'it is no text; {ADVICE}')


def cell_text(value: Any) -> str:
    """Return the text of a cell that may have a type: 1.0 and True become '1', and NaN ''.

    Raises:
        ValueError: If it has bytes that are no text in UTF-8.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray)):
        return value.decode()
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
        return json.dumps(value, default=cell_text)
    if isinstance(value, np.ndarray):
        return json.dumps(value.tolist(), default=cell_text)
    return '' if value is None or value is pd.NA or value is pd.NaT else str(value)


def text_cells(column: pd.Series) -> pd.Series:
    """Return the cells of a column as texts (`cell_text`)."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
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

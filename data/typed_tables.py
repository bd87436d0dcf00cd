"""Read tables whose cells have types: JSON lines, Excel and Parquet files."""

import itertools
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data.table_files import (
    CHUNK,
    MAX_RATIO,
    MIN_LIMIT,
    Columns,
    cell_text,
    read_text,
    refuse_bomb,
)

MAX_COLUMNS = 500
MAX_ROWS = 2**20  # that are read of an Excel file
MAX_CELLS = 2**27  # of a Parquet file


def read_typed(file: Path) -> Columns:
    """Read a file by its suffix; a Parquet file without its columns of bytes, such as images."""
    name = file.name.lower()
    if name.endswith('.xlsx'):
        return _of_rows(_excel_rows(file))
    if name.endswith('.parquet'):
        return _of_rows(_parquet_rows(file))
    return _of_rows(_json_rows(read_text(file)))


def _of_rows(rows: Iterable[tuple[int, Sequence[Any]]]) -> Columns:
    """Collect (number of the row, typed cells); the first one is the header."""
    rows = iter(rows)
    _, header = next(rows, (0, ()))
    columns = Columns([cell_text(name) for name in header])
    for number, cells in rows:
        columns.add(number, [[*map(cell_text, cells)]])
    return columns


def _json_rows(text: str) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield the header and the rows of text with a JSON object, which is a row, on each line."""
    rows: list[dict[str, Any]] = []
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
    yield 0, header
    yield from ((number, [row.get(name) for name in header]) for number, row in enumerate(rows))


def _excel_rows(file: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield the rows of the first sheet of an Excel file, without those above the header.

    Not by pandas.read_excel, which has no limit of columns: 80 KB can take minutes and all memory.
    """
    limit = max(MIN_LIMIT, MAX_RATIO * file.stat().st_size)
    try:
        from openpyxl import load_workbook

        with zipfile.ZipFile(file) as archive:
            refuse_bomb(sum(entry.file_size for entry in archive.infolist()), limit)
        sheet = load_workbook(file, read_only=True, data_only=True).worksheets[0]
        sheet.reset_dimensions()  # the file states them, and they may be wrong
        width = None
        rows = sheet.iter_rows(max_row=MAX_ROWS, max_col=MAX_COLUMNS, values_only=True)
        for number, row in enumerate(rows, -1):  # the header is in front of row 0
            if row.count(None) == len(row):
                continue
            if width is None:
                width = max(place for place, cell in enumerate(row, 1) if cell is not None)
            yield number, row[:width] + (None,) * (width - len(row))
    except Exception as error:  # a damaged file makes openpyxl raise almost anything
        text = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValueError(f'with openpyxl: {text}') from error


def _parquet_rows(file: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield the rows of a Parquet file, without columns of bytes, such as images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds_of_bytes = (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary)
    limit = max(64 * MIN_LIMIT, MAX_RATIO * file.stat().st_size)
    try:
        table = pq.ParquetFile(file)
        types = {field.name: field.type for field in table.schema_arrow}
        names = [
            name
            for name, kind in types.items()
            if not any(is_bytes(kind) for is_bytes in kinds_of_bytes)
        ]
        if len(names) > MAX_COLUMNS or table.metadata.num_rows * len(names) > MAX_CELLS:
            raise ValueError(f'it has {len(names):,} columns, and more cells than are read')
        yield 0, names
        start, size = 0, 0
        for batch in table.iter_batches(CHUNK, columns=names):
            size += batch.nbytes
            refuse_bomb(size, limit)
            columns = [column.to_pylist() for column in batch.columns]
            yield from enumerate(zip(*columns, strict=True), start)
            start += batch.num_rows
    except pa.ArrowException as error:
        raise ValueError(f'with pyarrow: {" ".join(str(error).split())}') from error

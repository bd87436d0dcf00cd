"""Read tables whose cells have types: JSON lines, Excel and Parquet files."""

import itertools
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.tables.table_files import (
    CHUNK,
    MAX_RATIO,
    MIN_LIMIT,
    cell_text,
    open_text,
    refuse_bomb,
)

FORMULA = re.compile(rb'<f[ />]')  # element of a sheet
MAX_COLUMNS = 500
MAX_ROWS = 2**20  # that are read of an Excel file
MAX_CELLS = 2**27  # of a Parquet file


def typed_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the texts of each row of a file; the header comes first.

    A Parquet file is read without its columns of bytes, such as images.
    """
    for number, cells in READERS.get(file.suffix.lower(), json_rows)(file):
        yield number, [*map(cell_text, cells)]


# ---- readers, which yield (number of the row, typed cells); the first row is the header


def json_rows(file: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield the rows of text, perhaps compressed, with a JSON object on each line."""
    rows: list[dict[str, Any]] = []
    with open_text(file) as lines:
        text = lines.read()
    for number, line in enumerate(text.rstrip('\n').split('\n'), 1):
        try:
            row = json.loads(line, object_pairs_hook=_json_object)
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


def _json_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError('an object has a key twice')
    return found


def excel_rows(file: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield the rows of the first visible sheet of an Excel file, without those above the header.

    A formula whose value the file lacks is an error, because it would read as an empty cell.

    Not by pandas.read_excel, which has no limit of columns: 80 KB can take minutes and all memory.
    """
    limit = max(MIN_LIMIT, MAX_RATIO * file.stat().st_size)
    try:
        with zipfile.ZipFile(file) as archive:
            refuse_bomb(sum(entry.file_size for entry in archive.infolist()), limit)
            sheets = [name for name in archive.namelist() if '/worksheets/' in name]
            has_formulas = any(FORMULA.search(archive.read(name)) for name in sheets)
        rows = _cells_of_sheet(file, data_only=True)
        formulas = _cells_of_sheet(file, data_only=False) if has_formulas else itertools.repeat(())
        width = None
        for number, (row, formula) in enumerate(zip(rows, formulas, strict=False), -1):
            if any(v is None and f is not None for v, f in zip(row, formula, strict=False)):
                raise ValueError(
                    f'row {number + 2} has a formula without its value: open the file in a '
                    'spreadsheet program and save it, or write the values'
                )
            if row.count(None) == len(row):
                continue
            if width is None:  # the header, which is in front of row 0
                width = max(place for place, cell in enumerate(row, 1) if cell is not None)
            yield number, row[:width] + (None,) * (width - len(row))
    except Exception as error:  # a damaged file makes openpyxl raise almost anything
        text = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValueError(f'with openpyxl: {text}') from error


def _cells_of_sheet(file: Path, data_only: bool) -> Iterator[tuple[Any, ...]]:
    """Return the rows of the first visible sheet, with formulas unless `data_only` is set."""
    from openpyxl import load_workbook

    sheets = load_workbook(file, read_only=True, data_only=data_only).worksheets
    sheet = next((sheet for sheet in sheets if sheet.sheet_state == 'visible'), sheets[0])
    sheet.reset_dimensions()  # the file states them, and they may be wrong
    return sheet.iter_rows(max_row=MAX_ROWS, max_col=MAX_COLUMNS, values_only=True)


def parquet_rows(file: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield the rows of a Parquet file, without columns of bytes, such as images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds_of_bytes = (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary)
    limit = max(64 * MIN_LIMIT, MAX_RATIO * file.stat().st_size)
    try:
        table = pq.ParquetFile(file)
        names = [
            field.name
            for field in table.schema_arrow
            if not any(is_bytes(field.type) for is_bytes in kinds_of_bytes)
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


READERS = {'.xlsx': excel_rows, '.parquet': parquet_rows}

"""Read tables whose cells have types: JSON lines, Excel and Parquet files."""

import itertools
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from config import import_by_name
from data.tables.table_files import NO_TEXT, cell_text, open_text

FORMULA, MERGED = re.compile(rb'<f[ />]'), re.compile(rb'<mergeCell[ />]')  # elements of a sheet


def typed_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the texts of each row of a file; the header comes first.

    Bytes remain: `cell_text` reads them, or refuses them, when a run asks for their column.
    """
    for number, cells in READERS.get(file.suffix.lower(), json_rows)(file):
        yield number, [cell if isinstance(cell, bytes) else cell_text(cell) for cell in cells]


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
    yield 0, header
    yield from ((number, [row.get(name) for name in header]) for number, row in enumerate(rows))


def _json_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError('an object has a key twice')
    return found


def excel_rows(file: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield the rows of the first visible sheet of an Excel file, without those above the header.

    A formula whose value the file lacks is an error, because it would read as an empty cell. So are
    merged cells, of which all but the first are empty. pandas.read_excel says nothing of either.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            sheets = [name for name in archive.namelist() if '/worksheets/' in name]
            texts = [archive.read(name) for name in sheets]
        has_formulas = any(map(FORMULA.search, texts))
        merged = _merged_ranges(file) if any(map(MERGED.search, texts)) else []
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
                _refuse_merged([cells for cells in merged if cells.min_col <= width])
            yield number, row[:width] + (None,) * (width - len(row))
    except Exception as error:  # a damaged file makes openpyxl raise almost anything
        text = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValueError(f'with openpyxl: {text}') from error


def _cells_of_sheet(file: Path, data_only: bool) -> Iterator[tuple[Any, ...]]:
    """Return the rows of the sheet that is read, with formulas unless `data_only` is set."""
    sheet = _first_sheet(file, read_only=True, data_only=data_only)
    sheet.reset_dimensions()  # the file states them, and they may be wrong
    return sheet.iter_rows(values_only=True)


def _merged_ranges(file: Path) -> list[Any]:
    """Return the ranges of merged cells of the sheet that is read, if they have a value."""
    sheet = _first_sheet(file)
    ranges = sheet.merged_cells.ranges
    return [cells for cells in ranges if sheet.cell(cells.min_row, cells.min_col).value is not None]


def _first_sheet(file: Path, **options: bool) -> Any:
    """Return the first visible sheet of a workbook."""
    from openpyxl import load_workbook

    sheets = load_workbook(file, **options).worksheets
    return next((sheet for sheet in sheets if sheet.sheet_state == 'visible'), sheets[0])


def _refuse_merged(ranges: Sequence[Any]) -> None:
    """Refuse merged cells: the file has their value in the first one, and the others are empty."""
    if ranges:
        first = min(ranges, key=lambda cells: (cells.min_row, cells.min_col))
        others = f' and {len(ranges) - 1} other ranges' if len(ranges) > 1 else ''
        raise ValueError(
            f'the cells {first.coord}{others} are merged, so that all but the first one are '
            'empty: unmerge them, and write the value into each cell'
        )


def parquet_rows(file: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield the rows of a Parquet file, with NO_TEXT in columns of bytes, such as images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        unread = import_by_name('data.images.hub:columns_of_bytes')(table)
        header = table.schema_arrow.names
        names = [name for name in header if name not in unread]
        yield 0, header
        start = 0
        for batch in table.iter_batches(columns=names):
            texts = iter([column.to_pylist() for column in batch.columns])
            fill = [NO_TEXT] * batch.num_rows
            columns = [fill if name in unread else next(texts) for name in header]
            yield from enumerate(zip(*columns, strict=True), start)
            start += batch.num_rows
    except pa.ArrowException as error:
        raise ValueError(f'with pyarrow: {" ".join(str(error).split())}') from error


READERS = {'.xlsx': excel_rows, '.xlsm': excel_rows, '.parquet': parquet_rows}

"""Read images in the rows of Parquet files, as data sets of Hugging Face's hub have them.

A file has a column of images, each as bytes or as a struct with the fields `bytes` and `path`. An
image is named by its file and row, `data/train-00000-of-00002.parquet/0000017.png`, whatever its
format is. Rows are decoded a few at a time and in their order, so that packing reads each file once
and writes no image files in between.
"""

import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.images.files import BadImageError

COLUMN = 'image'  # the one that is read if several have bytes
IMAGE_NAME = re.compile(r'(.+\.parquet)/(\d{7})\.png', re.IGNORECASE | re.DOTALL)
OPEN_FILES = 8
BATCH_ROWS = 4  # decoded at once; a dictionary can repeat a large image in each of them
# The rows of a group may be this much larger than the file; images are compressed already.
MAX_RATIO, MIN_LIMIT = 100, 2**26  # the second in bytes


class ParquetImages:
    """The images in one Parquet file.

    Attributes:
        column: Name of the column with the images; '' if there is none.
        num_rows: Number of rows.
        metadata: What programs wrote into the file about its columns, None for nothing.
    """

    def __init__(self, path: str) -> None:
        self._file = pq.ParquetFile(path)
        self.metadata = self._file.schema_arrow.metadata
        count = self._file.metadata.num_row_groups
        groups = [self._file.metadata.row_group(group) for group in range(count)]
        limit = max(MIN_LIMIT, MAX_RATIO * os.stat(path).st_size)
        if any(group.total_byte_size > limit for group in groups):
            raise ValueError(f'it has more than {limit:,} bytes when it is decompressed')
        names = columns_of_bytes(self._file)
        fields = [field for field in self._file.schema_arrow if field.name in names]
        columns = [field.name for field in fields if _is_image(field.type)]
        if len(columns) > 1 and COLUMN not in columns:
            raise ValueError(f'of its columns {", ".join(columns)}, one must be called {COLUMN!r}')
        self.column = COLUMN if COLUMN in columns else ''.join(columns)
        self._starts = np.cumsum([0, *(group.num_rows for group in groups)])
        self.num_rows = int(self._starts[-1])
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._first, self._rows = self.num_rows, ()  # the decoded rows

    def read(self, row: int) -> bytes | None:
        """Return the contents of an image, None if the row has none."""
        start = int(self._starts[np.searchsorted(self._starts, row, side='right') - 1])
        if row < self._first or start > self._first:
            group = int(np.searchsorted(self._starts, start, side='right')) - 1
            self._batches = self._file.iter_batches(
                BATCH_ROWS, row_groups=[group], columns=[self.column], use_threads=False
            )
            self._first, self._rows = start, ()
        while row >= self._first + len(self._rows):
            self._first += len(self._rows)
            self._rows = next(self._batches).column(0)
        value = self._rows[row - self._first].as_py()
        return value['bytes'] if isinstance(value, dict) else value


def read_image(root: Path, name: str) -> bytes:
    """Return the contents of an image below a folder, named as in `image_names`.

    Raises:
        BadImageError: If its row has no image.
        ValueError: If the file is no Parquet file with this row.
    """
    if not has_image(root, name):
        raise ValueError(f'there is no image {root / name}')
    file, row = IMAGE_NAME.fullmatch(name).groups()
    try:
        data = _opened(root / file).read(int(row))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f'{root / file} cannot be read: {error!s:.200}') from error
    if not data:
        raise BadImageError(f'image {root / name} cannot be read: its row has no bytes')
    return data


def has_image(root: Path, name: str) -> bool:
    """Return whether an image exists; its row may be empty."""
    found = IMAGE_NAME.fullmatch(name)
    if not found or not (root / found[1]).is_file():
        return False
    images = _opened(root / found[1])
    return bool(images.column) and int(found[2]) < images.num_rows


def image_names(root: Path, file: str) -> list[str]:
    """Return the names of the images in a Parquet file below a folder, in the order of its rows."""
    images = _opened(root / file)
    return [f'{file}/{row:07d}.png' for row in range(images.num_rows)] if images.column else []


def class_names(root: Path, file: str) -> dict[str, list[str]]:
    """Return the names of the classes by column, for columns whose cells are numbers of classes.

    The library `datasets` writes the kinds of the columns into a Parquet file as JSON. Lists of
    classes, of several findings of an image, count as well.
    """
    written = (_opened(root / file).metadata or {}).get(b'huggingface', b'{}')
    try:
        features = json.loads(written).get('info', {}).get('features', {})
        kinds = {name: kind.get('feature', kind) for name, kind in features.items()}
        return {
            name: [*map(str, kind['names'])]
            for name, kind in kinds.items()
            if kind['_type'] == 'ClassLabel'
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f'{root / file}: its classes cannot be read: {error!r:.200}') from error


def columns_of_bytes(file: pq.ParquetFile) -> list[str]:
    """Return the columns of a file whose cells are or contain bytes that are no text.

    Programs also write texts as bytes, so the first cell of a column of bytes decides. Cells that
    contain bytes among other values are no text.
    """
    return [
        field.name
        for field in file.schema_arrow
        if _contains_bytes(field.type) and not _is_text(file, field)
    ]


def _is_text(file: pq.ParquetFile, field: pa.Field) -> bool:
    if not _are_bytes(field.type):
        return False
    for batch in file.iter_batches(BATCH_ROWS, columns=[field.name], use_threads=False):
        for cell in filter(None, batch.column(0).to_pylist()):
            try:
                return '\0' not in cell.decode()  # small images may have no other sign
            except UnicodeDecodeError:
                return False
    return field.name != COLUMN


def _are_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _are_bytes(kind.value_type)
    kinds = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary
    return any(is_kind(kind) for is_kind in kinds)


def _contains_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_map(kind):
        return _contains_bytes(kind.key_type) or _contains_bytes(kind.item_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _contains_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_contains_bytes(field.type) for field in kind)
    return _are_bytes(kind)


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == 'bytes' and _are_bytes(field.type) for field in kind)
    return _are_bytes(kind)


def _opened(path: Path) -> ParquetImages:
    found = os.stat(path)
    return _open_once(str(path), found.st_mtime_ns, found.st_size)


@lru_cache(OPEN_FILES)
def _open_once(path: str, *version: Any) -> ParquetImages:
    try:
        return ParquetImages(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f'{path} cannot be read: {error!s:.200}') from error

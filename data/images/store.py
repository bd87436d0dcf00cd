"""Read packed image stores: all images of a data set in a few Arrow files, with checksums.

A store is a folder that replaces the folder of the data set. It contains unchanged copies of the
tables, and the readers look up images in the store instead of image files.
`data/images/store_manifest.py` lists its files. Each shard is an uncompressed Arrow IPC file with
one record batch, in which a row is an image (SCHEMA).

The tables and all columns but the pixels are checked when a store is opened, and the pixels of an
image when a process reads it for the first time or after its shard was modified. Pixels are read by
position and not memory-mapped, so that a truncated file causes a ValueError instead of a signal
that kills the process.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import ipc

from data.images.files import (
    COLOUR_DIFFERENCE,
    FILE_NAME,
    FULL_SIZE,
    PACKED_STEPS,
    BadImageError,
    read_patiently,
)
from data.images.image_source import ImageSource
from data.images.store_manifest import (
    STORE_FILE,
    checksum,
    file_problems,
    packed_steps,
    read_manifest,
    shard_names,
)
from system.files import is_below

# A row of a shard. Pixels are height * width values from left to right and top to bottom: 8-bit
# grey levels; or, of images with more bits, 16-bit values of which `white` stands for the grey
# level 255, or 32-bit floats of grey levels (little-endian).
SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in {
            'name': pa.string(),  # path of the image file, relative to the folder of the data set
            'height': pa.int32(),
            'width': pa.int32(),
            'full_height': pa.int32(),  # before packing
            'full_width': pa.int32(),
            'white': pa.uint16(),
            'crc32': pa.uint32(),  # of the pixels
            'pixels': pa.binary(),
        }.items()
    ]
)
NUMBERS = SCHEMA.names[1:-1]
PIXEL_TYPES = {1: np.dtype('u1'), 2: np.dtype('<u2'), 4: np.dtype('<f4')}
ENTRY = np.dtype(
    [('shard', '<u4'), ('offset', '<u8'), ('bytes', '<u4')]  # where the pixels are
    + [(name, SCHEMA.field(name).type.to_pandas_dtype()) for name in NUMBERS]
)
MAGIC = b'ARROW1\0\0'  # first bytes of an Arrow IPC file, before its messages
MAX_NAMES_BYTES = 2**30  # of the names of all images, padded to the length of the longest
OPEN_STORES = 16  # number of stores that a process keeps open
OPEN_SHARDS = 512  # number of files that it keeps open for each


class Store(ImageSource):
    """An open store, see `open_store`. It is pickled as a path.

    Attributes:
        path: Folder of the store.
        manifest: Contents of store.json, see `read_manifest`.
        names: Names [N] of the image files as sorted bytes.
        index: Array [N] of ENTRY.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(path)
        if problems := file_problems(self.path, self.manifest):
            raise ValueError(problems[0])
        self._shard_files = [self.path / name for name in shard_names(self.manifest)]
        self.names, self.index = read_rows(self._shard_files)
        if rows_checksum(self.names, self.index) != self.manifest['rows_crc32']:
            raise ValueError(f'{self.path}: the rows of its shards do not fit {STORE_FILE}')
        self._open: dict[int, BinaryIO] = {}  # shards, the oldest first
        # Modification time of the shard when an image was checked, which costs less than a CRC-32.
        self._checked = np.full(len(self.names), -1, np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (str(self.path),)

    @property
    def files(self) -> list[str]:
        """Return the sorted names of the image files, in the order of positions."""
        return [name.decode() for name in self.names.tolist()]

    @property
    def left_out(self) -> dict[str, str]:
        """Return the reason by file, for files that could not be read when the store was packed."""
        return self.manifest['left_out']

    def position(self, files: Sequence[str]) -> np.ndarray:
        """Return the positions [N] of image files, -1 for files that are not in the store."""
        wanted = np.array([os.fsencode(file) for file in files], bytes)
        # Cast to the type of the names, or the search would copy all names.
        place = np.searchsorted(self.names, wanted.astype(self.names.dtype))
        place = np.minimum(place, len(self.names) - 1)
        return np.where(self.names[place] == wanted, place, -1).astype(np.int64)

    def exists(self, file: str) -> bool:
        is_image = file in self.left_out or self.position([file])[0] >= 0
        return bool(is_image or self.below(file))

    def below(self, place: str = '') -> list[str]:
        if not place:
            return sorted([*self.files, *self.left_out])
        ends = [os.fsencode(place) + end for end in (b'/', b'0')]  # 0 is the character after /
        first, last = np.searchsorted(self.names, np.array(ends, self.names.dtype))
        packed = [name.decode() for name in self.names[first:last].tolist()]
        return sorted([*packed, *(f for f in self.left_out if f.startswith(f'{place}/'))])

    def scan(self) -> tuple[list[str], list[str]]:
        return self.below(), [STORE_FILE] if self.manifest['scored'] else []

    def lacking(self, files: Sequence[str], wanted: np.ndarray) -> list[int]:
        return np.flatnonzero(self.position(files) < 0).tolist()

    def reader(self, files: Sequence[str]) -> Callable[[int], Image.Image]:
        return partial(_read_packed, self, self.position(files))

    def image(self, position: int) -> Image.Image:
        """Return an image at its packed size, in the modes of `decode_image`.

        `data.images.files.full_size` returns the size of the image before packing.

        Raises:
            BadImageError: If the checksum of the pixels differs.
            ValueError: If the pixels cannot be read; the `__cause__` is the system error.
        """
        if position < 0:
            raise IndexError(f'{self.path} has no image at position {position}')
        shard, offset, size, height, width, *full, white, crc = self.index[position].item()
        file = self._shard_files[shard]
        try:
            modified, data = read_patiently(partial(self._read_bytes, shard, offset, size))
        except OSError as error:
            raise ValueError(f'{file} cannot be read: {error.strerror}') from error
        name = self.names[position].decode()
        is_checked = self._checked[position] == modified
        if len(data) < size or not is_checked and zlib.crc32(data) != crc:
            raise BadImageError(
                f'{file} is damaged: the checksum of {name} ({size} bytes from byte {offset}) '
                'differs; copy or pack the store again'
            )
        self._checked[position] = modified
        pixels = np.frombuffer(data, PIXEL_TYPES[size // (height * width)]).reshape(height, width)
        if pixels.itemsize > 1:
            pixels = pixels.astype(np.float32)
            if size == 2 * pixels.size:
                pixels *= np.float32(255 / white)
        image = Image.fromarray(pixels)
        image.info = {
            COLOUR_DIFFERENCE: 0,
            FILE_NAME: name,
            FULL_SIZE: tuple(full),
            PACKED_STEPS: packed_steps(self.manifest),
        }
        return image

    def _read_bytes(self, shard: int, offset: int, size: int) -> tuple[int, bytes]:
        """Return the modification time of a shard in ns, and bytes of it."""
        try:
            if shard not in self._open:
                if len(self._open) == OPEN_SHARDS:
                    self._open.pop(next(iter(self._open)))
                self._open[shard] = opened = open(self._shard_files[shard], 'rb', buffering=0)
                if hasattr(os, 'posix_fadvise'):  # without it the system reads ahead
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            descriptor = self._open[shard].fileno()
            return os.fstat(descriptor).st_mtime_ns, os.pread(descriptor, size, offset)
        except OSError:
            self._open.pop(shard, None)  # it may be stale
            raise


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a store, or return the open store of this process if it has not changed since.

    Raises:
        ValueError: If a file is missing or its size or checksum differs.
    """
    folder = Path(path).resolve()
    return _open_once(folder, checksum(read_manifest(folder)))


@lru_cache(maxsize=OPEN_STORES)
def _open_once(folder: Path, contents: int) -> Store:
    return Store(folder)


def read_rows(shards: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read all columns of Arrow files but the pixels.

    Returns:
        Names [N] as sorted bytes, and an array [N] of ENTRY.

    Raises:
        ValueError: If a file is no shard of a store, or if the names are not sorted.
    """
    names: list[bytes] = []
    rows = []
    for number, file in enumerate(shards):
        try:
            own_names, own_rows = _read_shard(file)
        except (pa.ArrowException, ValueError, OSError) as error:
            reason = f'{error!r:.200}; copy or pack the store again'
            raise ValueError(f'{file} is no shard of a store: {reason}') from error
        own_rows['shard'] = number
        names += own_names
        rows.append(own_rows)
    longest = max(map(len, names), default=0)
    if longest * len(names) > MAX_NAMES_BYTES:
        raise ValueError(f'{shards[0].parent}: the names need more than {MAX_NAMES_BYTES:,} bytes')
    sorted_names = np.array(names, bytes)
    if not names or not (sorted_names[1:] > sorted_names[:-1]).all():
        raise ValueError(
            f'{", ".join(map(str, shards[:1]))}: there are no images, or their names are not '
            'sorted; copy or pack the store again'
        )
    return sorted_names, np.concatenate(rows)


def rows_checksum(names: np.ndarray, index: np.ndarray) -> int:
    """Return the checksum of the rows of a store without the pixels."""
    return zlib.crc32(index.tobytes(), zlib.crc32(names.tobytes()))


def _read_shard(file: Path) -> tuple[list[bytes], np.ndarray]:
    """Read the names and the ENTRY of each row of an Arrow file, which may be hostile."""
    with pa.memory_map(str(file)) as mapped:
        content = mapped.read_buffer()
    if content[: len(MAGIC)].to_pybytes() != MAGIC:
        raise ValueError('it is not an Arrow IPC file')
    messages = [*ipc.MessageReader.open_stream(content[len(MAGIC) :])]
    # pyarrow crashes if a message is not what it is read as.
    if [message.type for message in messages] != ['schema', 'record batch']:
        raise ValueError('it must have one record batch')
    schema = ipc.read_schema(messages[0])
    if not schema.equals(SCHEMA):
        raise ValueError(f'the columns must be {", ".join(SCHEMA.names)}')
    _refuse_compressed(content, messages[1].body.address - content.address)
    batch = ipc.read_record_batch(messages[1], schema)
    batch.validate(full=True)
    if any(column.null_count for column in batch.columns) or not len(batch):
        raise ValueError('a value is missing')
    names = batch['name'].to_pylist()
    if not is_below('/'.join(names)):  # of all names at once
        raise ValueError('a name is not a path below its folder')
    rows = np.zeros(len(batch), ENTRY)
    for name in NUMBERS:
        rows[name] = batch[name]
    _, offsets, values = batch['pixels'].buffers()
    ends = np.frombuffer(offsets, '<i4', len(batch) + 1)
    rows['offset'] = values.address - content.address + ends[:-1]
    rows['bytes'] = np.diff(ends)
    pixels = rows['height'].astype(np.int64) * rows['width']
    is_complete = np.any([rows['bytes'] == size * pixels for size in PIXEL_TYPES], axis=0)
    is_positive = np.all([rows[name] > 0 for name in NUMBERS if name != 'crc32'], axis=0)
    if not (is_complete & is_positive).all():
        raise ValueError('a size does not fit the pixels')
    return [name.encode() for name in names], rows


def _refuse_compressed(content: pa.Buffer, start: int) -> None:
    """Refuse a compressed record batch, a few bytes of which could fill the memory.

    pyarrow has no function that tells. It reads the batch of the same file with zeros from the
    first value on: these need no memory, and no format of compression can be zeros.
    """
    zeros = np.zeros(len(content), np.uint8)
    zeros[:start] = np.frombuffer(content, np.uint8, start)
    _, message = ipc.MessageReader.open_stream(pa.py_buffer(zeros)[len(MAGIC) :])
    try:
        ipc.read_record_batch(message, SCHEMA)
    except OSError as error:
        if 'decompress' in str(error):
            raise ValueError('it is compressed') from error
        raise


def _read_packed(store: Store, positions: np.ndarray, position: int) -> Image.Image:
    return store.image(int(positions[position]))

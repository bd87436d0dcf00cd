"""Read packed image stores: all images of a data set in a few files, with checksums.

A store is a folder that replaces the folder of the data set. It contains unchanged copies of the
CSV files, and the readers look up images in the store instead of image files. Its files are listed
in `data/store_about.py`.

The index and the CSV files are checked when a store is opened, and an image when a process reads
it for the first time (15 us for 256 x 256 pixels) or after its shard was modified. Pixels are read
and not memory-mapped, so that a truncated file causes a ValueError instead of a signal that kills
the process.
"""

import os
import weakref
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.image_source import ImageSource
from data.images import (
    FILE_NAME,
    FULL_RANGE_BITS,
    FULL_SIZE,
    PACKED_STEPS,
    BadImageError,
    read_patiently,
)
from data.store_about import STORE_FILE, checksum, file_problems, packed_steps, read_about
from system.files import is_below

NAMES_FILE, INDEX_FILE = 'names_00000.npy', 'places_00000.npy'
OPEN_STORES = 16  # number of stores that a process keeps open

ENTRY = np.dtype(
    [
        ('shard', '<u4'),
        ('offset', '<u8'),  # in bytes
        ('height', '<u4'),
        ('width', '<u4'),
        ('full_height', '<u4'),  # before packing
        ('full_width', '<u4'),
        ('form', 'u1'),
        ('crc32', '<u4'),
    ]
)
# Forms of pixels. Mode 'L': unchanged 8-bit pixels (BYTES), or pixels rounded to 8 bits (ROUNDED).
# Mode 'F': integers 0..2**form - 1 for grey levels 0..255 (LEVEL_FORMS), or float32 grey levels
# (FLOATS).
BYTES, ROUNDED, FLOATS = 0, 1, 32
LEVEL_FORMS = FULL_RANGE_BITS
DTYPES = {BYTES: np.dtype('u1'), ROUNDED: np.dtype('u1'), FLOATS: np.dtype('<f4')}
DTYPES |= dict.fromkeys(LEVEL_FORMS, np.dtype('<u2'))


class Store(ImageSource):
    """An open store, see `open_store`. It is pickled as a path.

    Attributes:
        path: Folder of the store.
        about: Contents of store.json, see `read_about`.
        names: Names [N] of the image files as sorted bytes.
        index: Array [N] of ENTRY.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.about = read_about(path)
        if problems := file_problems(self.path, self.about):
            raise ValueError(problems[0])
        self.names, self.index = _load_index(self.path, self.about)
        self._shards: dict[int, int] = {}  # descriptors of the open shards
        # Modification time of the shard when an image was checked, which costs less than a CRC-32.
        self._checked = np.full(len(self.names), -1, np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (str(self.path),)

    @property
    def files(self) -> list[str]:
        """Return the sorted names of the image files, in the order of positions."""
        return [os.fsdecode(name) for name in self.names.tolist()]

    @property
    def left_out(self) -> dict[str, str]:
        """Return the reason by file, for files that could not be read when the store was packed."""
        return self.about['left_out']

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
        packed = [os.fsdecode(name) for name in self.names[_below(self.names, place)].tolist()]
        return sorted([*packed, *(f for f in self.left_out if f.startswith(f'{place}/'))])

    def scan(self) -> tuple[list[str], list[str]]:
        return self.below(), [STORE_FILE] if self.about['scored'] else []

    def lacking(self, files: Sequence[str], wanted: np.ndarray) -> list[int]:
        return np.flatnonzero(self.position(files) < 0).tolist()

    def reader(self, files: Sequence[str]) -> Callable[[int], Image.Image]:
        return partial(_read_packed, self, self.position(files))

    def colour_difference(self, file: str) -> float:
        return 0.0

    def image(self, position: int) -> Image.Image:
        """Return an image at its packed size, in the modes of `decode_image`.

        `data.images.full_size` returns the size of the image before packing.

        Raises:
            BadImageError: If the checksum of the pixels differs.
            ValueError: If the pixels cannot be read; the `__cause__` is the system error.
        """
        if position < 0:
            raise IndexError(f'{self.path} has no image at position {position}')
        entry = self.index[position].item()
        _, _, _, _, *full, form, _ = entry
        pixels = self._read(position, entry)
        if form in LEVEL_FORMS:
            pixels = pixels.astype(np.float32) * np.float32(255 / (2**form - 1))
        elif form == FLOATS:
            pixels = pixels.astype(np.float32)  # the byte order of this machine
        image = Image.fromarray(pixels)
        image.info[FILE_NAME] = os.fsdecode(self.names[position])
        image.info[FULL_SIZE] = tuple(full)
        image.info[PACKED_STEPS] = packed_steps(self.about)
        return image

    def _read(self, position: int, entry: tuple[int, ...]) -> np.ndarray:  # [H, W]
        """Read the stored pixels; the result is a view of the bytes."""
        shard, offset, height, width, *_, form, crc = entry
        dtype = DTYPES[form]
        size = height * width * dtype.itemsize
        file = self.path / self.about['shards'][shard]

        def read() -> tuple[int, bytes]:
            try:
                descriptor = self._descriptor(shard, file)
                return os.fstat(descriptor).st_mtime_ns, os.pread(descriptor, size, offset)
            except OSError:
                self._shards.pop(shard, None)  # it may be stale
                raise

        try:
            modified, data = read_patiently(read)
        except OSError as error:
            raise ValueError(f'{file} cannot be read: {error.strerror}') from error
        is_checked = self._checked[position] == modified
        if len(data) < size or not is_checked and zlib.crc32(data) != crc:
            name = os.fsdecode(self.names[position])
            raise BadImageError(
                f'{file} is damaged: the checksum of {name} ({size} bytes from byte {offset}) '
                'differs; copy or pack the store again'
            )
        self._checked[position] = modified
        return np.frombuffer(data, dtype).reshape(height, width)

    def _descriptor(self, shard: int, file: Path) -> int:
        if shard not in self._shards:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, descriptor)
            if hasattr(os, 'posix_fadvise'):  # without it the system reads ahead
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            self._shards[shard] = descriptor
        return self._shards[shard]


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a store, or return the open store of this process if it has not changed since.

    Raises:
        ValueError: If a file is missing or its size or checksum differs.
    """
    folder = Path(path).resolve()
    return _open_once(folder, checksum(read_about(folder)))


@lru_cache(maxsize=OPEN_STORES)
def _open_once(folder: Path, contents: int) -> Store:
    return Store(folder)


def _load_index(folder: Path, about: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Read the names [N] and the index [N], or raise a ValueError if they do not fit store.json."""
    # The names come first in all stores; earlier versions have other names for the index.
    files = sorted(name for name in about['files'] if name.endswith('.npy'))
    try:
        names, index = (np.load(folder / file, mmap_mode='r').view(np.ndarray) for file in files)
        fits = (names.dtype.kind, index.dtype, len(names)) == ('S', ENTRY, len(index))
        fits &= bool((names[1:] > names[:-1]).all()) and _entries_fit(index, about)
        fits &= all(is_below(os.fsdecode(name)) for name in names.tolist())
    except Exception as error:  # a damaged file makes NumPy raise almost anything
        raise ValueError(f'{folder}: the index {files} cannot be read: {error!r:.200}') from error
    if not fits:
        raise ValueError(f'{folder}: the index {files} does not fit {STORE_FILE}')
    return names, index


def _entries_fit(index: np.ndarray, about: dict[str, Any]) -> bool:
    """Return whether all images have pixels, and whether these lie within the shards."""
    shards = np.array([about['files'][name][0] for name in about['shards']])
    bytes_of = np.array([dtype.itemsize for dtype in map(DTYPES.get, index['form'].tolist())])
    ends = index['offset'] + bytes_of * index['height'].astype(float) * index['width']
    sides = (index[name].min() for name in ('height', 'width', 'full_height', 'full_width'))
    return all(side > 0 for side in sides) and bool((ends <= shards[index['shard']]).all())


def _below(names: np.ndarray, folder: str) -> slice:
    """Return the slice of the sorted names [N] that lie in a folder."""
    ends = [os.fsencode(folder) + end for end in (b'/', b'0')]  # 0 is the character after /
    return slice(*np.searchsorted(names, np.array(ends, names.dtype)).tolist())


def _read_packed(store: Store, positions: np.ndarray, position: int) -> Image.Image:
    return store.image(int(positions[position]))

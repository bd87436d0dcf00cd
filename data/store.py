"""The files of a packed store: written whole or not at all, locked, and copied to a node."""

import csv
import io
import json
import logging
import os
import re
import shutil
import time
import weakref
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.images import FULL_SIZE
from engine.files import locked, replace_file

LOCK_FILE = 'store.lock'

# ==== data.store_checks: Whether the files of a packed store fit together: checksums say only that nothing was lost.

FILE_NAME = re.compile(r'(?!\.)[^/\\\0]+')  # in the store's own folder
KINDS = {
    'generation': int,
    'files': dict,
    'shards': list,
    'left_out': dict,
    'settings': dict,
    'scored': bool,
}


def about_problem(about: Mapping[str, Any]) -> str:
    """What of store.json is not as a store needs it; '' if nothing."""
    for key, kind in KINDS.items():
        if type(about.get(key)) is not kind:
            return f'{key!r} is missing or no {kind.__name__}'
    files, settings = about['files'], about['settings']
    for name, numbers in files.items():
        if not FILE_NAME.fullmatch(name) or not _are_whole(numbers, 2):
            return f"'files' has {name!r:.100}, which is no file's name with size and checksum"
    if not all(isinstance(name, str) and name in files for name in about['shards']):
        return "'shards' names what 'files' does not"
    if not all(isinstance(problem, str) for problem in about['left_out'].values()):
        return "'left_out' has no texts"
    if not _are_whole([about['generation']], 1):
        return "'generation' is below 0"
    flags = [settings.get(key) for key in ('square', 'keep_16bit')]
    size = settings.get('size')
    is_size = size is None and flags[0] is False or _are_whole([size], 1) and size > 0
    if not is_size or not all(isinstance(flag, bool) for flag in flags):
        return "'settings' are none of this program's"
    return ''


def index_problem(
    names: np.ndarray,
    pictures: np.ndarray,
    about: Mapping[str, Any],
    *,
    picture_type: np.dtype,
    item_bytes: Mapping[int, int],
) -> str:
    """What of the index does not fit; '' if nothing.

    Args:
        names: [N] of the pictures' files.
        pictures: [N] where their pixels are.
        about: of `about_problem`.
        picture_type: of `pictures`.
        item_bytes: form of pixels -> bytes of each.
    """
    if names.dtype.kind != 'S' or pictures.dtype != picture_type:
        return 'it is of another type'
    if not len(names) or names.ndim != 1 or names.shape != pictures.shape:
        return 'names and pictures are not as many'
    if (names[1:] <= names[:-1]).any():
        return 'the names are not sorted, or one is there twice'
    if not np.isin(pictures['form'], list(item_bytes)).all():
        return 'a picture is of an unknown form'
    ends = [about['files'][name][0] for name in about['shards']]
    if pictures['shard'].max() >= len(ends):
        return 'a picture is in no file of pixels'
    sizes = [pictures[field].astype(float) for field in ('offset', 'height', 'width')]
    items = np.array([item_bytes[form] for form in pictures['form'].tolist()])
    if (sizes[0] + sizes[1] * sizes[2] * items > np.array(ends)[pictures['shard']]).any():
        return 'a picture ends beyond its file of pixels'
    if not all(field.all() for field in sizes[1:]):
        return 'a picture has no pixels'
    return (
        _square_problem(pictures, items, about['settings']) if about['settings']['square'] else ''
    )


def _square_problem(pictures: np.ndarray, items: np.ndarray, settings: Mapping[str, Any]) -> str:
    sides = {*np.unique(pictures['height']), *np.unique(pictures['width'])}
    if sides != {settings['size']}:
        return f'the pictures are no squares of {settings["size"]} px'
    if not settings['keep_16bit'] and (items != 1).any():
        return 'a picture has more than 8 bits'
    return ''


def _are_whole(numbers: object, count: int) -> bool:
    is_list = isinstance(numbers, list) and len(numbers) == count
    return is_list and all(type(n) is int and 0 <= n < 2**63 for n in numbers)


# ==== data.packed: The packed image store: all pictures of a data set in a few files.
#
# A store is a folder that stands for the data's own: its CSV files lie in it as they were, and the
# readers of `data.chexpert` and `data.mimic` look up its pictures where they else look up files.
#
#     store.json            version, settings, and size and CRC-32 of every other file
#     names_*.npy           [N] names of the pictures' files, sorted; *: how often it was added to
#     pictures_*.npy        [N] PICTURE: where each one's pixels are, their form, their CRC-32, and
#                           the size of the picture before it was packed
#     pixels_*.bin          the pixels, one picture after another
#     bad_images.csv        what could not be read and was left out, to be looked at
#
# The files of the index and the CSV files are checked when a store is opened, once in a process, a
# picture on its first read there (for 256 x 256 pixels: 15 us, where every read takes 8).  Pixels are
# read, not memory-mapped: a file that is cut short while it is in use is a ValueError so, and no
# signal that ends the process.

VERSION = 2
STORE_FILE = 'store.json'
UNFINISHED_FILE = 'packing.json'
BAD_FILE = 'bad_images.csv'
BLOCK_BYTES = 2**22  # of a file that is read in parts
OPEN_STORES = 2  # that a process keeps open though nobody reads them

PICTURE = np.dtype(
    [
        ('shard', '<u4'),
        ('offset', '<u8'),  # in bytes
        ('height', '<u4'),
        ('width', '<u4'),
        ('full_height', '<u4'),  # before it was packed
        ('full_width', '<u4'),
        ('form', 'u1'),
        ('crc32', '<u4'),
    ]
)
# Forms of pixels.  Mode 'L': as they were, or rounded from more bits.  Mode 'F': 8, 10, 12, 14 or
# 16 for levels 0..2**form - 1 that stand for grey levels 0..255, or grey levels as they are.
BYTES, ROUNDED, FLOATS = 0, 1, 32
LEVEL_FORMS = (8, 10, 12, 14, 16)
DTYPES = {
    BYTES: np.dtype('u1'),
    ROUNDED: np.dtype('u1'),
    FLOATS: np.dtype('<f4'),
    **dict.fromkeys(LEVEL_FORMS, np.dtype('<u2')),
}


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether this folder is a store.

    Raises:
        ValueError: if it will be one, once it is finished.
    """
    if (Path(path) / STORE_FILE).is_file():
        return True
    if (Path(path) / UNFINISHED_FILE).is_file():
        raise ValueError(f'the store {path} is not finished: run scripts/pack.py on it again')
    return False


def open_store(path: str | os.PathLike[str]) -> 'Store':
    """Open a store, or take the one that is open, if it was not changed since; no pixel is read.

    Raises:
        ValueError: naming the file, if one is missing, or is not what was written.
    """
    folder = Path(path).resolve()
    return _open_once(folder, _checksum(read_about(folder)))


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Read all of a store and say what is wrong with it; [] if nothing is."""
    try:
        about = read_about(path)
    except ValueError as error:
        return [str(error)]
    problems = file_problems(Path(path), about)
    if problems:
        return problems
    store, problems = Store(path), []
    places = store.pictures
    order = np.lexsort([places['offset'], places['shard']])
    for position in tqdm(order.tolist(), unit='image', desc='verify', disable=None):
        try:
            store.pixels(position)
        except ValueError as error:
            problems.append(str(error))
    return problems


class Store:
    """An open store, see `open_store`; it is pickled as its path."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.about = read_about(path)
        problems = file_problems(self.path, self.about)
        if problems:
            raise ValueError(problems[0])
        self.names, self.pictures = read_index(self.path, self.about)
        self._shards: dict[int, int] = {}  # descriptors of those that were read from
        self._checked = np.zeros(len(self.names), bool)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (str(self.path), _checksum(self.about))

    def __fspath__(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, file: str) -> bool:
        return bool(self.position([file])[0] >= 0)

    @property
    def files(self) -> list[str]:
        """The names of the pictures' files, sorted; position i is the i-th."""
        return [os.fsdecode(name) for name in self.names.tolist()]

    @property
    def left_out(self) -> dict[str, str]:
        """The files that could not be read when they were packed, and why."""
        return self.about['left_out']

    @property
    def side(self) -> int | None:
        """The side of the pictures, if all are squares of it in 8 bits."""
        settings = self.about['settings']
        return settings['size'] if settings['square'] and not settings['keep_16bit'] else None

    def full_sizes(self, positions: np.ndarray) -> np.ndarray:  # [N, 2] int64
        """Height and width of these pictures before they were packed."""
        fields = self.pictures['full_height'], self.pictures['full_width']
        return np.stack([field[positions] for field in fields], axis=-1).astype(np.int64)

    def position(self, files: Sequence[str]) -> np.ndarray:  # [N] int64
        """Where these files' pictures are; -1 for those that are not here."""
        wanted = np.array([os.fsencode(file) for file in files], bytes)
        # In the names' own type, or the search would copy them all; too long a name is cut here.
        place = np.searchsorted(self.names, wanted.astype(self.names.dtype))
        place = np.minimum(place, len(self.names) - 1)
        return np.where(self.names[place] == wanted, place, -1).astype(np.int64)

    def exists(self, file: str) -> bool:
        """Whether this is a picture, packed or left out, or a folder of some."""
        return file in self or file in self.left_out or bool(self.below(file))

    def below(self, folder: str) -> list[str]:
        """The files of the pictures in a folder, those left out too, sorted."""
        ends = [os.fsencode(folder) + end for end in (b'/', b'0')]  # 0 is what follows /
        start, stop = np.searchsorted(self.names, np.array(ends, self.names.dtype))
        packed = [os.fsdecode(name) for name in self.names[start:stop].tolist()]
        return sorted([*packed, *(f for f in self.left_out if f.startswith(f'{folder}/'))])

    def image(self, position: int) -> Image.Image:
        """A picture as `load_image` gives its file, but for the size that it was packed at.

        What it had before, and with it the aspect, is `data.images.full_size` of it.
        """
        pixels = self.pixels(position)
        form = int(self.pictures['form'][position])
        if form in LEVEL_FORMS:
            pixels = pixels.astype(np.float32) * np.float32(255 / (2**form - 1))
        elif form == FLOATS:
            pixels = pixels.astype(np.float32)  # this machine's byte order, aligned
        image = Image.fromarray(pixels)
        image.info[FULL_SIZE] = tuple(self.full_sizes(position).tolist())
        return image

    def gather(self, positions: np.ndarray) -> np.ndarray:  # [B, S, S] uint8
        """The pixels of these pictures; only of squares (see `side`)."""
        assert self.side is not None
        batch = np.empty((len(positions), self.side, self.side), np.uint8)
        rows = self.pictures[positions].tolist()
        for shard, offset, *_ in rows:  # all at once, before the first is waited for
            _advise(self._descriptor(shard), offset, self.side**2, 'WILLNEED')
        for target, position, row in zip(batch, positions.tolist(), rows, strict=True):
            self._read(position, row, target.reshape(-1))
        return batch

    def pixels(self, position: int) -> np.ndarray:  # [H, W]
        """A picture's pixels as they are stored.

        Raises:
            ValueError: if they are not what was written.
        """
        row = self.pictures[position].item()
        height, width, form = row[2], row[3], row[6]
        pixels = np.empty(height * width, DTYPES[form])
        self._read(position, row, pixels.view(np.uint8))
        return pixels.reshape(height, width)

    def _read(self, position: int, row: tuple[int, ...], pixels: np.ndarray) -> None:
        """Fill these bytes with a picture's."""
        if position < 0:
            raise IndexError(f'{self.path} has no picture at position {position}')
        shard, offset, *_, crc = row
        done = 0
        while done < len(pixels):
            count = self._fill(shard, offset + done, pixels[done:])
            if not count:
                raise ValueError(
                    f'{self._place(shard)} ends at byte {offset + done}, within a picture: it was '
                    'changed while it was in use; copy or pack the store again'
                )
            done += count
        if not self._checked[position]:
            if zlib.crc32(pixels) != crc:
                raise ValueError(
                    f'{self._place(shard)}: the picture of '
                    f'{os.fsdecode(self.names[position])} (at byte {offset}) is not what was '
                    'packed: its checksum differs; remove the store, and copy or pack it again'
                )
            self._checked[position] = True

    def _fill(self, shard: int, offset: int, pixels: np.ndarray) -> int:
        """Read on from there; returns how many bytes came."""
        try:
            return os.preadv(self._descriptor(shard), [pixels], offset)
        except OSError as error:
            raise self._unreadable(shard, error) from error

    def _descriptor(self, shard: int) -> int:
        """Of a file of pixels, opened when the first of them are wanted."""
        if shard not in self._shards:
            try:
                descriptor = os.open(self._place(shard), os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise self._unreadable(shard, error) from error
            weakref.finalize(self, os.close, descriptor)
            _advise(descriptor, 0, 0, 'RANDOM')  # or more is read than what is asked for
            self._shards[shard] = descriptor
        return self._shards[shard]

    def _unreadable(self, shard: int, error: OSError) -> ValueError:
        return ValueError(f'{self._place(shard)} cannot be read: {error.strerror}')

    def _place(self, shard: int) -> Path:
        return self.path / self.about['shards'][shard]


def packed_records(records: Any, store: Store, logger: logging.Logger | None = None) -> Any:
    """The records whose pictures are in the store, without those left out when it was packed.

    Raises:
        ValueError: if a picture is neither.
    """
    place = store.position(records.file)
    left_out = np.array([file in store.left_out for file in records.file[place < 0]], bool)
    if not left_out.all():
        file = records.file[place < 0][~left_out][0]
        row = int(records.row[records.file == file][0])
        raise ValueError(
            f'{records.root / records.csv}, row {row + 2} (the header is row 1): {file} is not '
            'in the store; add what this CSV names with scripts/pack.py --append'
        )
    if len(left_out) and logger is not None:
        logger.warning(
            f'{records.csv or records.root}: {len(left_out)} images could not be read when the '
            f'store was packed and are left out ({store.path / BAD_FILE})'
        )
    return records.select(place >= 0) if len(left_out) else records


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What store.json says.

    Raises:
        ValueError: if it cannot be read, was changed, or is of another version.
    """
    file = Path(path) / STORE_FILE
    try:
        about = json.loads(file.read_bytes())
        version, crc = about['version'], about.pop('crc32')
    except FileNotFoundError:
        raise ValueError(f'{path} is no packed store: it has no {STORE_FILE}') from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f'{file} cannot be read: {error!r}') from error
    if version != VERSION:
        raise ValueError(
            f'{file} is of version {version!r}; this program reads {VERSION}: pack the pictures '
            'again, into a new folder'
        )
    if crc != _checksum(about):
        raise ValueError(f'{file} is not what was written: its checksum differs')
    if problem := about_problem(about):
        raise ValueError(f'{file} cannot be used: {problem}')
    return about


def describe_form(settings: dict[str, Any]) -> str:
    """What pictures that are packed with these settings are, in words."""
    size, bits = settings['size'], 'more than 8 bits kept' if settings['keep_16bit'] else '8 bits'
    if size is None:
        return f'at their own sizes, {bits}'
    if settings['square']:
        return f'squeezed to {size} x {size} px, {bits}'
    return f'of short side {size} px or less, aspect kept, {bits}'


def encode_about(about: dict[str, Any]) -> bytes:
    """The bytes of store.json."""
    return json.dumps({**about, 'crc32': _checksum(about)}, indent=1).encode() + b'\n'


def read_index(path: Path, about: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The names [N] and the PICTURE [N] of a store, memory-mapped."""
    files = [path / f'{kind}_{about["generation"]:05d}.npy' for kind in ('names', 'pictures')]
    try:  # this reads no pickled objects and no zip files, as np.load may
        names, pictures = (np.asarray(np.lib.format.open_memmap(file, 'r')) for file in files)
    except Exception as error:  # a damaged header makes NumPy raise almost anything
        reason = ' '.join(str(error).split())
        raise ValueError(f'{files[0]} or {files[1].name} cannot be read: {reason}') from error
    sizes = {form: dtype.itemsize for form, dtype in DTYPES.items()}
    types = {'picture_type': PICTURE, 'item_bytes': sizes}
    if problem := index_problem(names, pictures, about, **types):
        raise ValueError(f'{files[0]} and {files[1].name} cannot be used: {problem}')
    return names, pictures


def file_problems(path: Path, about: dict[str, Any]) -> list[str]:
    """Files of a store that are missing or not what was written; of the pixels only the sizes."""
    problems = []
    for name, (size, crc) in about['files'].items():
        try:
            found = os.stat(path / name).st_size
        except OSError as error:
            problems.append(f'{path / name} cannot be read: {error.strerror}')
            continue
        if found != size:
            problems.append(f'{path / name} has {found} bytes, not the {size} that were written')
        elif name not in about['shards'] and file_crc32(path / name) != crc:
            problems.append(f'{path / name} is not what was written: its checksum differs')
    return problems


def file_crc32(path: Path) -> int:
    """The CRC-32 of a file, read in blocks."""
    crc = 0
    with open(path, 'rb') as file:
        while block := file.read(BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


def _open_again(path: str, checksum: int) -> Store:
    """The store that another process has open: positions would mean other pictures in a new one."""
    store = open_store(path)
    if _checksum(store.about) != checksum:
        raise ValueError(f'{path} was changed while it was in use: start the run again')
    return store


@lru_cache(maxsize=OPEN_STORES)
def _open_once(folder: Path, checksum: int) -> Store:
    return Store(folder)


def _advise(descriptor: int, offset: int, size: int, advice: str) -> None:
    """Tell the system how bytes will be read, where it can be told."""
    if hasattr(os, 'posix_fadvise'):  # not on macOS
        os.posix_fadvise(descriptor, offset, size, getattr(os, f'POSIX_FADV_{advice}'))


def _checksum(about: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


# ==== data.store_files: The files of a packed store: written whole or not at all, locked, and copied to a node.

COPY_THREADS = 4  # a network drive gives more to several readers


def copy_store(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    logger: logging.Logger | None = None,
) -> Path:
    """Copy a store, such as from a network drive to a node's own disk; returns the target.

    Any number of processes may call it at once: one copies, the others wait.  Every file is
    checked while it is copied, and gets its name when it is whole, `store.json` last.  A copy that
    was broken off goes on, after a check of what is there; one that is complete is left as it is.

    Raises:
        ValueError: if a file of the source is not what was packed, or the disk is too small.
    """
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve():
        return target
    about = read_about(source)
    contents = (source / STORE_FILE).read_bytes()
    if _is_copied(target, about, contents):
        return target
    if logger is not None:
        logger.info(f'copying {source} to {target}, or waiting for another process that does')
    with locked(target / LOCK_FILE, wait=True):
        if _is_copied(target, about, contents):
            return target
        store_file = target / STORE_FILE
        store_file.unlink(missing_ok=True)
        for path in target.glob('*.tmp'):  # of a copy that was broken off
            path.unlink()
        start = time.perf_counter()
        sizes = {
            name: size
            for name, (size, crc) in about['files'].items()
            if not _is_whole(target / name, size, crc)
        }
        check_space(target, sum(sizes.values()))
        with ThreadPoolExecutor(COPY_THREADS) as pool:
            copies = [
                pool.submit(copy_file, source / name, target / name, *about['files'][name])
                for name in sizes
            ]
            try:
                for copy in copies:
                    copy.result()
            finally:
                pool.shutdown(cancel_futures=True)  # after a failure the rest is of no use
        write_bad(target, about)
        replace_file(store_file, contents)
        if logger is not None:
            seconds = time.perf_counter() - start
            logger.info(
                f'copied {sum(sizes.values()) / 1e9:.2f} GB of {source} to {target} '
                f'in {seconds:.1f} s'
            )
    return target


def copy_file(source: Path, target: Path, size: int, crc32: int) -> None:
    """Copy a file that must have this size and checksum; the target is whole or not there."""
    found_size, found_crc = 0, 0
    temporary = target.with_name(f'{target.name}.tmp')
    try:
        with open(source, 'rb') as reader, open(temporary, 'wb') as writer:
            while block := reader.read(BLOCK_BYTES):
                found_size, found_crc = found_size + len(block), zlib.crc32(block, found_crc)
                writer.write(block)
            writer.flush()
            os.fsync(writer.fileno())
    except OSError as error:
        raise ValueError(f'{source} cannot be copied to {target.parent}: {error}') from error
    if (found_size, found_crc) != (size, crc32):
        temporary.unlink()
        raise ValueError(f'{source} is not what it was: its checksum differs')
    os.replace(temporary, target)


def write_bad(folder: Path, about: dict[str, Any]) -> None:
    """Write what store.json says was left out as a table, if anything was."""
    if about['left_out']:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(('file', 'problem'))
        writer.writerows(about['left_out'].items())
        replace_file(folder / BAD_FILE, text.getvalue().encode('utf-8', 'backslashreplace'))


def check_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise ValueError(
            f'{needed_bytes / 1e9:.2f} GB do not fit: {folder} has {free / 1e9:.2f} GB free'
        )


def _is_copied(target: Path, about: dict[str, Any], contents: bytes) -> bool:
    store_file = target / STORE_FILE
    if not store_file.is_file() or store_file.read_bytes() != contents:
        return False
    return not file_problems(target, about)


def _is_whole(path: Path, size: int, crc: int) -> bool:
    return path.is_file() and path.stat().st_size == size and file_crc32(path) == crc

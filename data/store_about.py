"""What a packed store is: store.json, its settings, and the checks of its files.

    store.json         version, settings, and size and CRC-32 of every other file
    names_00000.npy    [N] names of the image files, sorted
    places_00000.npy   [N] ENTRY: position, form and CRC-32 of the pixels of each image, and the
                       size of the image before it was packed
    pixels_*.bin       the pixels, one image after another
    bad_images.csv     the files that could not be read and were left out

`data/store.py` reads the pixels, and `data/store_files.py` writes, copies and verifies stores.
"""

import json
import os
import stat
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from system.files import BLOCK_BYTES, is_below
from system.tool import command_of

VERSION = 2
STORE_FILE = 'store.json'
UNFINISHED_FILE = 'packing.json'
BAD_FILE = 'bad_images.csv'


@dataclass(frozen=True)
class Settings:
    """The settings that determine the bytes of a store.

    Attributes:
        size: Side of square images in pixels. If the aspect is kept, the short side, and smaller
            images are not enlarged. None keeps the sizes of the images.
        square: Whether images are squeezed to squares. Training crops undo the squeeze, because the
            original height and width are stored.
        keep_16bit: Whether to keep more than 8 bits instead of rounding to 8 bits.
        shard_bytes: Largest size of a file of pixels.
        image_suffix: Suffix of the image files (DATA.IMAGE_SUFFIX).
        preprocess: Steps of DATA.PREPROCESS that are applied. The image is resized afterwards,
            unless 'resize' is one of them.
        lung_masks: DATA.LUNG_MASKS.
    """

    size: int | None
    square: bool = True
    keep_16bit: bool = False
    shard_bytes: int = 10**9
    image_suffix: str = ''
    preprocess: list[str] = field(default_factory=list)
    lung_masks: str = ''


def is_store(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder is a packed store.

    Raises:
        ValueError: If the store is not finished.
    """
    if (Path(path) / STORE_FILE).is_file():
        return True
    if (Path(path) / UNFINISHED_FILE).is_file():
        command = command_of('scripts/pack.py')
        raise ValueError(f'the store {path} is not finished: run {command} on it again')
    return False


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read store.json.

    Returns:
        version, settings (of `Settings`) and source (checksums of what was packed), and the numbers
        `images` and `rounded`; left_out: reason by file; scored: whether `read_folder` refuses to
        train on all images; shards: names; files: (size, CRC-32) by name.

    Raises:
        ValueError: If the file cannot be read, was changed, or has another version, or if it names
            files outside its folder.
    """
    file = Path(path) / STORE_FILE
    if not is_store(path):
        raise ValueError(f'{path} is not a packed store: it has no {STORE_FILE}')
    about = read_json(file)
    # A store may come from a stranger, and copying it writes the files that it names.
    for name in (*about['files'], *about['shards']):
        if not is_below(name):
            raise ValueError(f'{file} names {name!r}, which is not a path below its folder')
    return about


def read_json(file: Path) -> dict[str, Any]:
    """Read a file that `write_json` wrote; settings that an older store lacks have their defaults.

    Raises:
        ValueError: If the file cannot be read, was changed, or has another version.
    """
    try:
        content = json.loads(file.read_bytes())
        version, crc = content['version'], content.pop('crc32')
        # A flipped bit in the numbers below would show wrong pixels without any error.
        is_whole = crc == checksum(content)
    except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(f'{file} cannot be read: {error!r:.200}') from error
    if version != VERSION:
        raise ValueError(
            f'{file} has version {version!r:.100}, but this program reads version {VERSION}: pack '
            'the images again, into a new folder'
        )
    if not is_whole:
        raise ValueError(f'{file} was changed: the checksum differs')
    return content | {'settings': asdict(Settings(None)) | content['settings']}


def packed_steps(about: dict[str, Any]) -> list[str]:
    """Return the steps of DATA.PREPROCESS that were applied to the images of a store."""
    return about['settings']['preprocess']


def file_problems(path: Path, about: dict[str, Any]) -> list[str]:
    """List missing and changed files of a store; only the size of shards is checked."""
    found = (
        file_problem(path / name, size, None if name in about['shards'] else crc)
        for name, (size, crc) in about['files'].items()
    )
    return [problem for problem in found if problem]


def file_crc32(path: Path) -> int:
    """Return the CRC-32 of a file."""
    crc = 0
    with open(path, 'rb') as file:
        while block := file.read(BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


def checksum(about: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def file_problem(path: Path, size: int, crc: int | None) -> str:
    """Describe the problem of a file, '' if there is none; `crc` None only checks the size."""
    try:
        found = os.stat(path)
    except OSError as error:
        return f'{path} cannot be read: {error.strerror}'
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        return f'{path} has {found.st_size} bytes, but {size} were written'
    if crc is not None and file_crc32(path) != crc:
        return f'{path} was changed: the checksum differs'
    return ''

"""The manifest of a packed store, store.json: its settings, and the checks of its files.

    store.json          version, settings, and size and CRC-32 of every other file
    images_00000.arrow  the images, in the order of their names over all shards (store.py)
    train.csv, ...      unchanged copies of the tables
    bad_images.csv      the files that could not be read and were left out

`data/images/store.py` reads the images, `data/packing.py` writes them, and
`data/images/store_files.py` copies and verifies stores.
"""

import json
import os
import stat
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from system.files import BLOCK_BYTES, is_below
from system.tool import command_of

VERSION = 3
STORE_FILE = 'store.json'
UNFINISHED_FILE = 'packing.json'
BAD_FILE = 'bad_images.csv'
SHARD_SUFFIX = '.arrow'
MAX_JSON_BYTES = 2**26  # of store.json, which names the shards and the images that were left out


@dataclass(frozen=True)
class Settings:
    """The settings that determine the bytes of a store.

    Attributes:
        size: Side of square images in pixels. If the aspect is kept, the short side, and smaller
            images are not enlarged. None keeps the sizes of the images.
        square: Whether images are squeezed to squares. Training crops undo the squeeze, because the
            original height and width are stored.
        keep_16bit: Whether to keep more than 8 bits instead of rounding to 8 bits.
        shard_bytes: Largest size of the pixels in a file.
        image_suffix: Suffix of the image files (DATA.IMAGE_SUFFIX).
        preprocess: Steps of DATA.PREPROCESS that are applied. The image is resized afterwards,
            unless 'resize' is one of them.
        lung_masks: DATA.LUNG_MASKS.
    """

    size: int | None
    square: bool = True
    keep_16bit: bool = False
    shard_bytes: int = 2**26
    image_suffix: str = ''
    preprocess: list[str] = field(default_factory=list)
    lung_masks: str = ''


# Types of the entries of store.json and packing.json, and of their settings.
ENTRY_TYPES = {'version': int, 'settings': dict, 'source': dict}
ENTRY_TYPES |= {'files': dict, 'left_out': dict, 'rounded': int}
SETTING_TYPES = {name: type(value) for name, value in asdict(Settings(0)).items()}
SETTING_TYPES['size'] = int | None


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


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read store.json.

    Returns:
        version, settings (of `Settings`) and source (checksums of what was packed), and the numbers
        `images` and `rounded`; left_out: reason by file; scored: whether `read_folder` refuses to
        train on all images; rows_crc32: checksum of all columns but the pixels; files: (size,
        CRC-32) by name. See `read_json` for the errors.
    """
    file = Path(path) / STORE_FILE
    if not is_store(path):
        raise ValueError(f'{path} is not a packed store: it has no {STORE_FILE}')
    return read_json(file, {'images': int, 'scored': bool, 'rows_crc32': int})


def read_json(file: Path, types: Mapping[str, type]) -> dict[str, Any]:
    """Read store.json or packing.json; `types` are those of the entries that only this file has.

    Raises:
        ValueError: If the file cannot be read, was changed, or has another version, or if it names
            files outside its folder.
    """
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f'it has more than {MAX_JSON_BYTES:,} bytes')
        manifest = json.loads(file.read_bytes())
        crc, version = manifest.pop('crc32'), manifest['version']
        if version != VERSION:
            raise ValueError(
                f'it has version {version!r}, but this program reads version {VERSION}: pack the '
                f'images again, into a new folder, with the settings in this file: '
                f'{command_of("scripts/pack.py")}'
            )
        # A flipped bit in the numbers would show wrong pixels without any error.
        if crc != checksum(manifest):
            raise ValueError('it was changed: the checksum differs')
        _require_types(manifest, ENTRY_TYPES | types)
        _require_types(manifest['settings'], SETTING_TYPES)
        for text in manifest['left_out'].values():
            _require_types({'reason': text}, {'reason': str})
        for name, (size, crc) in manifest['files'].items():
            _require_types({'size': size, 'crc32': crc}, {'size': int, 'crc32': int})
            if not is_below(name):  # copying a store writes the files that it names
                raise ValueError(f'it names {name!r}, which is not a path below its folder')
    except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(f'{file} cannot be read: {error!s:.600}') from error
    return manifest


def shard_names(manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of the files of images, in the order of the images."""
    return sorted(name for name in manifest['files'] if name.endswith(SHARD_SUFFIX))


def packed_steps(manifest: Mapping[str, Any]) -> list[str]:
    """Return the steps of DATA.PREPROCESS that were applied to the images of a store."""
    return manifest['settings']['preprocess']


def file_problems(
    path: Path, manifest: Mapping[str, Any], *, every_byte: bool = False
) -> list[str]:
    """List missing and changed files of a store; of shards only the size, or `every_byte`."""
    problems = []
    for name, (size, crc) in manifest['files'].items():
        is_read = every_byte or not name.endswith(SHARD_SUFFIX)
        problems.append(file_problem(path / name, size, crc if is_read else None))
    return [problem for problem in problems if problem]


def file_crc32(path: Path) -> int:
    """Return the CRC-32 of a file."""
    crc = 0
    with open(path, 'rb') as file:
        while block := file.read(BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


def checksum(manifest: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


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


def _require_types(values: Mapping[str, Any], types: Mapping[str, type]) -> None:
    """Raise a TypeError unless a mapping has exactly these entries with values of these types."""
    wrong = [name for name in types if not isinstance(values.get(name), types[name])]
    if wrong or len(values) != len(types):
        raise TypeError(f'the entries must be {", ".join(types)}; wrong: {wrong}')

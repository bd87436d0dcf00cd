"""Small data sets to pack, and the bytes of what comes out."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from csv_files import PREFIX, image_path, row, write
from PIL import Image

import data.packing
from data.packing import Settings, pack, read_source

SMALL = Settings(size=16, shard_bytes=1000)  # three images in a shard


class Killed(BaseException):
    """Ends the packing like a signal: nothing catches it."""


@contextmanager
def killed_after(count: int) -> Iterator[None]:
    """End the packing before it encodes one more image."""
    left, encode = [count], data.packing.encode

    def encode_or_die(image: Image.Image, settings: Settings) -> object:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return encode(image, settings)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(data.packing, 'encode', encode_or_die)
        yield


def noise(index: int, highest: int = 255) -> np.ndarray:
    """Noise whose size depends on the index, with the highest level in it."""
    rng = np.random.default_rng(index)
    dtype = np.uint8 if highest == 255 else np.uint16
    pixels = rng.integers(0, highest + 1, (20 + index % 7, 18 + index % 5)).astype(dtype)
    pixels[index % 10, 3] = highest
    return pixels


def make_data(root: Path, count: int = 10, **sixteen_bit: int) -> Path:
    """Train, valid and test CSV; image `p3` is patient 3's, in 8 bits if no highest level is given.

    Every fifth patient is of valid.csv, every seventh of test.csv, and each has one image.
    """
    tables = {'train': [], 'valid': [], 'test': []}
    for number in range(1, count + 1):
        split = 'valid' if number % 5 == 0 else 'test' if number % 7 == 0 else 'train'
        path = image_path(number).replace('.jpg', '.png')
        file = root / path.partition('/')[2]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(number, sixteen_bit.get(f'p{number}', 255))).save(file)
        tables[split].append(row(path, Edema=str(number % 2)))
    for split, rows in tables.items():
        if rows:
            write(root / f'{split}.csv', rows)
    return root


def file_of(number: int) -> str:
    """The file of a patient's image, relative to the root."""
    return image_path(number, folder=PREFIX).partition('/')[2].replace('.jpg', '.png')


def packed(root: Path, store: Path, settings: Settings = SMALL, **options) -> Path:
    names = ('csv_names', 'all_images')
    what = {name: options.pop(name) for name in names if name in options}
    pack(read_source(root, **what), store, settings, **options)
    return store


def contents(store: Path) -> dict[str, bytes]:
    """All files of a store but its lock."""
    files = (path for path in store.iterdir() if path.name != 'store.lock')
    return {path.name: path.read_bytes() for path in files}


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def flip_bit(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)

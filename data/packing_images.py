"""Pictures as a packed store keeps them: read, resized and encoded, by several processes."""

import multiprocessing
import os
import signal
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.images import is_passing, load_image, refuse_link_out
from data.packed import BYTES, FLOATS, LEVEL_FORMS, ROUNDED

RESAMPLE = Image.Resampling.BICUBIC
CHUNK_BYTES = 2**22  # of pixels that a worker hands over at once
CHUNK_IMAGES = 64
WAITING_BYTES = 2**27  # of pixels that may wait to be written
SEE_TO_IT = (
    '(--skip-bad leaves out only damaged pictures: see to it that all files can be read, and give '
    'the same command again)'
)


@dataclass(frozen=True)
class Settings:
    """What the bytes of a store depend on, beside the pictures.

    `size` is the side of square pictures; with the aspect kept, their short side, and no picture
    is enlarged.  Squares are the default: a batch of them is copied at once and finished where the
    model runs.  Their own heights and widths are stored, too, and undo the squeeze.
    """

    size: int | None  # in pixels; None: the pictures' own sizes
    square: bool = True
    keep_16bit: bool = False  # else pictures of more than 8 bits are rounded to 8
    shard_bytes: int = 10**9
    image_suffix: str = ''  # as DATA.IMAGE_SUFFIX

    def __post_init__(self) -> None:
        if self.square and self.size is None:
            raise ValueError('pictures of their own sizes are no squares: give a size')
        if self.size is not None and self.size < 1:
            raise ValueError(f'--size must be a number of pixels or native, got {self.size}')
        if self.shard_bytes < 1:
            raise ValueError(f'--shard-size must be above 0, got {self.shard_bytes}')


class DamagedPicture(ValueError):
    """A file that is no whole picture, and would not be one another time."""


class Encoded(NamedTuple):
    """A picture as it is stored."""

    form: int
    height: int
    width: int
    full_height: int  # of the picture before it was resized
    full_width: int
    crc32: int
    data: bytes


def encode(path: str | os.PathLike[str], settings: Settings) -> Encoded:
    """Read a picture and make of it what is stored.

    Raises:
        DamagedPicture: if the file is there, was read, and is no whole picture.
        ValueError: if it could not be read now; another time it may be.
    """
    try:
        image = load_image(path)
    except ValueError as error:
        if is_passing(error, path):
            raise ValueError(f'{error} {SEE_TO_IT}') from error
        raise DamagedPicture(str(error)) from error
    try:
        return _encode_image(image, settings)
    except MemoryError as error:
        raise ValueError(f'{path}: not enough memory {SEE_TO_IT}') from error


def _encode_image(image: Image.Image, settings: Settings) -> Encoded:
    full_width, full_height = image.size
    image = _resized(image, settings)
    pixels = np.asarray(image)
    if image.mode == 'L':
        form = BYTES
    elif not settings.keep_16bit:
        form, pixels = ROUNDED, np.rint(np.clip(pixels, 0, 255)).astype('u1')
    elif settings.size is None:
        form, pixels = _exact_levels(pixels)
    else:
        form, pixels = 16, np.rint(np.clip(pixels, 0, 255) * np.float32(257)).astype('<u2')
    data = pixels.tobytes()
    return Encoded(form, *pixels.shape, full_height, full_width, zlib.crc32(data), data)


def encode_all(
    root: Path, files: Sequence[str], settings: Settings, *, workers: int, each: float
) -> Iterator[list[Encoded | str]]:
    """What becomes of the files, some at a time, in order; text says how one is damaged.

    Args:
        root: the folder of the files.
        files: relative to it.
        settings: what is stored.
        workers: processes; each has two tasks under way at most.
        each: mean size of an encoded picture, in bytes.

    Raises:
        ValueError: if a worker was killed, or a file could not be read now, see `encode`.
    """
    length = int(np.clip(CHUNK_BYTES // max(each, 1), 1, CHUNK_IMAGES))
    chunks = (files[i : i + length] for i in range(0, len(files), length))
    if workers == 1:
        yield from (_encode_chunk(root, chunk, settings) for chunk in chunks)
        return
    room = WAITING_BYTES // max(length * each, 1)
    most = int(np.clip(room, workers + 1, 2 * workers))
    pool = ProcessPoolExecutor(workers, initializer=start_worker)
    waiting = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_encode_chunk, root, chunk, settings))
            if len(waiting) == most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ValueError(f'a worker was ended from outside (memory?): {error}') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _encode_chunk(root: Path, files: Sequence[str], settings: Settings) -> list[Encoded | str]:
    pictures = []
    for file in files:
        refuse_link_out(root, root / file)
        try:
            pictures.append(encode(root / file, settings))
        except DamagedPicture as error:
            pictures.append(str(error))
    return pictures


def start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however that is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    end = (os.getpid(), signal.SIGTERM)
    threading.Thread(target=lambda: (parent.join(), os.kill(*end)), daemon=True).start()


def _resized(image: Image.Image, settings: Settings) -> Image.Image:
    size, short = settings.size, min(image.size)
    if settings.square:
        return image.resize((size, size), RESAMPLE)
    if size is None or short <= size:
        return image
    return image.resize([round(side * size / short) for side in image.size], RESAMPLE)


def _exact_levels(pixels: np.ndarray) -> tuple[int, np.ndarray]:
    """The whole levels that these grey levels came from, or the grey levels themselves."""
    for bits in LEVEL_FORMS:
        levels = np.empty(pixels.shape, '<u2')
        if all(_to_levels(row, bits, out) for row, out in zip(pixels, levels, strict=True)):
            return bits, levels
    return FLOATS, pixels.astype('<f4')


def _to_levels(pixels: np.ndarray, bits: int, out: np.ndarray) -> bool:
    """Write the nearest levels of so many bits; whether they give the same grey levels again."""
    scale = np.float32(255 / (2**bits - 1))
    np.clip(np.rint(pixels / scale), 0, 2**bits - 1, out=out, casting='unsafe')
    return bool((out * scale == pixels).all())

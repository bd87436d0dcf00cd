"""Looking at pictures with several processes: what is odd about them, digests of pixels."""

import hashlib
import itertools
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops

from data.images import FORMATS, full_size, load_image
from data.packed import Store, is_store, open_store
from data.packing_images import start_worker

DIGEST_BYTES = 16
CHUNK_IMAGES = 32
MIN_SIDE, MAX_SIDE = 64, 10_000  # in pixels
MAX_ASPECT = 3
FEW_LEVELS = 16  # an X-ray has more grey levels
# What the messages of `load_image` have.
LINK, FAULT = ' is a link that leaves the data root ', ' cannot be used: '
COLOUR_MODES = ('P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr')
COLOUR_LEVELS = 8  # between channels; JPEG alone makes a little


class Look(NamedTuple):
    """What was seen of a picture."""

    digest: bytes  # of its pixels; b'' where they cannot be used
    problems: list[tuple[str, str]]  # kind of finding, detail


def look_at_all(root: Path, files: Sequence[str], *, workers: int) -> Iterator[Look]:
    """Look at pictures of a folder or a packed store, in order.

    A picture that ends the process that reads it is unreadable.

    Args:
        root: the folder, or the store.
        files: relative to it.
        workers: processes.
    """
    chunks = (files[i : i + CHUNK_IMAGES] for i in range(0, len(files), CHUNK_IMAGES))
    waiting = deque()
    pool = _pool(workers)
    try:
        while True:
            for chunk in itertools.islice(chunks, 2 * workers - len(waiting)):
                try:
                    waiting.append((chunk, pool.submit(_look_at_chunk, root, chunk)))
                except BrokenProcessPool:
                    pool.shutdown()
                    pool = _pool(workers)
                    waiting.append((chunk, pool.submit(_look_at_chunk, root, chunk)))
            if not waiting:
                return
            yield from _result(root, *waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def look_at(root: Path, file: str) -> Look:
    """Look at one picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of Pillow, on odd metadata
            image, problems = _read(root, file)
            levels = _levels(image)
    except (ValueError, OSError, SyntaxError, MemoryError) as error:
        text = str(error) or repr(error)
        return Look(b'', [(_kind_of(text), text)])
    problems += _size_problems(*full_size(image))
    number = _count_levels(levels)
    if number < FEW_LEVELS:
        problems.append(('few grey levels', f'the picture has only {number} grey levels'))
    if image.mode == 'F' and levels.dtype == np.uint8:
        detail = 'more than 8 bits a pixel hold no more than 8 bits of grey levels'
        problems.append(('bit depth', detail))
    return Look(_digest(levels), problems)


def _read(root: Path, file: str) -> tuple[Image.Image, list[tuple[str, str]]]:
    """A picture, and what is odd about its colours, which of a packed one nobody knows."""
    if not is_store(root):
        return load_image(root / file, root), _colour_problems(root / file)
    store = _store(str(root))
    return store.image(int(store.position([file])[0])), []


def _kind_of(text: str) -> str:
    """Which kind of finding it is that a picture is refused."""
    if LINK in text:
        return 'link that leaves the folder'
    fault = text.partition(FAULT)[2]
    if not fault:
        return 'unreadable picture'
    return 'constant picture' if fault.startswith('all pixels') else 'unusable size'


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, initializer=start_worker)


def _look_at_chunk(root: Path, files: Sequence[str]) -> list[Look]:
    return [look_at(root, file) for file in files]


def _result(root: Path, files: Sequence[str], future: Future) -> Iterator[Look]:
    try:
        looks = future.result()
    except BrokenProcessPool:  # by one of these pictures, or of another chunk under way
        looks = _look_one_by_one(root, files)
    yield from looks


def _look_one_by_one(root: Path, files: Sequence[str]) -> Iterator[Look]:
    pool = _pool(1)
    try:
        for file in files:
            try:
                yield pool.submit(look_at, root, file).result()
            except BrokenProcessPool:
                detail = 'reading it ended the process (memory?)'
                yield Look(b'', [('unreadable picture', detail)])
                pool.shutdown()
                pool = _pool(1)
    finally:
        pool.shutdown()


@lru_cache(1)
def _store(path: str) -> Store:
    return open_store(path)


def _colour_problems(path: Path) -> list[tuple[str, str]]:
    if os.fspath(path).lower().endswith('.dcm'):
        return []
    with Image.open(path, formats=FORMATS) as image:
        if image.mode not in COLOUR_MODES:
            return []
        red, green, blue = image.convert('RGB').split()
    pairs = ((red, green), (green, blue))
    apart = max(ImageChops.difference(*pair).getextrema()[1] for pair in pairs)
    if apart <= COLOUR_LEVELS:
        return []
    return [('colour', f'colour channels differ by up to {apart} levels')]


def _size_problems(height: int, width: int) -> list[tuple[str, str]]:
    problems, size = [], f'{width} x {height} px'
    if min(width, height) < MIN_SIDE:
        problems.append(('small picture', f'{size}: a side is under {MIN_SIDE}'))
    if max(width, height) > MAX_SIDE:
        problems.append(('large picture', f'{size}: a side is over {MAX_SIDE}'))
    if max(width, height) > MAX_ASPECT * min(width, height):
        problems.append(
            ('narrow picture', f'{size}: one side is over {MAX_ASPECT} times the other')
        )
    return problems


def _levels(image: Image.Image) -> np.ndarray:  # [H, W] uint8 or uint16
    """The same levels for the same grey levels, however many bits the file has a pixel."""
    pixels = np.asarray(image)
    if image.mode == 'L':
        return pixels
    levels = np.rint(np.clip(pixels, 0, 255) * np.float32(257)).astype(np.uint16)
    # 257 divides the levels of 8 bits, stretched to 16.
    return levels if (levels % 257).any() else (levels // 257).astype(np.uint8)


def _count_levels(levels: np.ndarray) -> int:
    if levels.dtype == np.uint8:
        return np.count_nonzero(Image.fromarray(levels).histogram())
    there = np.zeros(2**16, bool)
    for row in levels:  # all at once would take four times the picture's memory
        there[row] = True
    return int(there.sum())


def _digest(levels: np.ndarray) -> bytes:
    digest = hashlib.blake2b(np.ascontiguousarray(levels).data, digest_size=DIGEST_BYTES)
    digest.update(repr((levels.shape, levels.dtype.str)).encode())
    return digest.digest()

"""Training images that cannot be used: each is listed once, and another one takes its place.

`bad_images.csv` in the run's folder is the count, too: all workers and ranks add to it, and a run
that goes on finds there what it had met before.
"""

import csv
import fcntl
import io
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from config import Config
from data.packed import BAD_FILE
from checksums import NO_LOCKS
from data.tables import safe_cell

HEADER = ('file', 'row', 'reason')
HINT = (
    'scripts/check_data.py finds all such images; DATA.BAD_IMAGE skip lets others take their '
    'places, in training alone: a score over fewer images is another score'
)


class BadImages:
    """The bad images of a run.

    Args:
        folder: the run's.
        limit: so many different ones are borne.
        logger: told how many there are.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int, logger: logging.Logger) -> None:
        self.path = Path(folder) / BAD_FILE
        self.limit = limit
        self.logger = logger

    def add(self, file: str, row: int | None, reason: str) -> None:
        """List a file, if it is not yet.

        Args:
            file: the image, relative to the data's root.
            row: of the CSV, whose header is row 1.
            reason: why it cannot be used.

        Raises:
            ValueError: if there are now more than the limit, or the list cannot be written.
        """
        cells = [_harmless(file), '' if row is None else str(row), _harmless(reason)]
        try:
            count = len(self._listed_with(cells))
        except OSError as error:
            raise ValueError(f'{self.path} cannot be written: {error.strerror}') from error
        if count > self.limit:
            raise ValueError(
                f'{count} different images cannot be used, more than DATA.BAD_IMAGE_LIMIT '
                f'{self.limit}: see {self.path}; mend them and remove that file, or raise the '
                f'limit. The last: {reason}'
            )

    def warn(self) -> None:
        """Say how many files are listed, if any is."""
        if self.path.exists():
            with _opened(self.path, 'r') as file:
                count = len(_files(file.read()))
            self.logger.warning(
                f'{count} different images could not be used so far, and others took their places '
                f'(at most DATA.BAD_IMAGE_LIMIT {self.limit}): {self.path}'
            )

    def _listed_with(self, cells: list[str]) -> set[str]:
        """The listed files, after these cells were added; one write, under a lock."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(self.path, 'a+') as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX)
            except OSError as error:  # a line in one write is whole without a lock, too
                if error.errno not in NO_LOCKS:
                    raise
            file.seek(0)
            text = file.read()
            listed = _files(text)
            if cells[0] not in listed:
                before = '' if text.endswith('\n') else '\n' if text else _line(HEADER)
                file.write(before + _line(cells))
            return listed | {cells[0]}


def bad_images(config: Config, logger: logging.Logger) -> BadImages | None:
    """Where a run's training images may be bad; None where they may not (DATA.BAD_IMAGE)."""
    if config.DATA.BAD_IMAGE == 'error':
        return None
    folder = Path(config.OUTPUT) / config.MODEL.NAME / config.TAG
    return BadImages(folder, config.DATA.BAD_IMAGE_LIMIT, logger)


def in_place_of(index: int, *, seed: int, epoch: int, row: int, length: int) -> Iterator[int]:
    """A position, and then all others in an order of its own, to be tried one after another.

    Args:
        index: the position.
        seed: SEED of the config.
        epoch: epoch, from 0.
        row: stable number of the image at `index`.
        length: number of images.
    """
    yield index
    bits = np.random.Philox(key=[seed, epoch], counter=[0, row, 4, 0])  # 4: no other stream
    others = np.random.Generator(bits).permutation(length)
    yield from others[others != index].tolist()


def _opened(path: Path, mode: str) -> TextIO:
    return open(path, mode, encoding='utf-8', errors='backslashreplace', newline='')


def _files(text: str) -> set[str]:
    """The files in a list; a line that was cut short does not count."""
    lines = [next(csv.reader([line]), []) for line in text.split('\n')]
    return {cells[0] for cells in lines if len(cells) == len(HEADER)} - {HEADER[0]}


def _line(cells: tuple[str, ...] | list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerow(cells)
    return text.getvalue()


def _harmless(text: str) -> str:
    """Text on one line that no spreadsheet takes for a formula."""
    return safe_cell(re.sub(r'[\x00-\x1f\x7f]+', ' ', text))

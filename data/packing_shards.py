"""The pixel files of a packed store while it is built, with the journal that they resume from."""

import json
import os
import re
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data.packed import DTYPES, PICTURE, UNFINISHED_FILE
from data.packing_images import Encoded

JOURNAL_FILE = f'{UNFINISHED_FILE}l'
SHARD_FILE = re.compile(r'pixels_(\d{5})\.bin')


class ShardWriter:
    """Writes pictures one after another into files of at most so many bytes.

    The journal gets a line for each picture, after its pixels, from which all else follows: where
    a picture lies is where those before it end.  A picture larger than a file may be has its own.

    Attributes:
        pictures: [count] PICTURE, filled up to `done`.
        problems: position -> why a picture could not be read.
        shards: name, size and CRC-32 of each file.
    """

    def __init__(self, folder: Path, count: int, *, first_shard: int, shard_bytes: int) -> None:
        self.folder = folder
        self.first_shard = first_shard
        self.shard_bytes = shard_bytes
        self.pictures = np.zeros(count, PICTURE)
        self.problems: dict[int, str] = {}
        self.shards: list[tuple[str, int, int]] = []
        self.done = 0
        self._pixels: BinaryIO | None = None
        self._resume()
        self._journal = open(folder / JOURNAL_FILE, 'ab')

    @property
    def num_bytes(self) -> int:
        """Of the pixels so far."""
        return sum(size for _, size, _ in self.shards)

    def add(self, picture: Encoded | str) -> None:
        """Write the next picture, or why there is none."""
        if not isinstance(picture, str):
            self._seek(len(picture.data)).write(picture.data)
        self._note(picture)
        entry = picture if isinstance(picture, str) else picture[:-1]
        self._journal.write(json.dumps(entry).encode() + b'\n')

    def flush(self) -> None:
        """Hand what was written to the operating system, so that it outlives this process."""
        if self._pixels is not None:
            self._pixels.flush()
        self._journal.flush()

    def close(self) -> None:
        self._close_pixels()
        self._journal.close()

    def forget_problems(self) -> None:
        """Close, and have the next run go on with the first picture that could not be read."""
        self.close()
        journal = self.folder / JOURNAL_FILE
        lines = journal.read_bytes().splitlines(keepends=True)
        os.truncate(journal, sum(map(len, lines[: min(self.problems)])))

    def _place(self, size: int) -> tuple[int, int]:
        """Shard (counted from this writer's first) and offset of the next picture."""
        if not self.shards:
            return 0, 0
        used = self.shards[-1][1]
        if used and used + size > self.shard_bytes:
            return len(self.shards), 0
        return len(self.shards) - 1, used

    def _seek(self, size: int) -> BinaryIO:
        """The file that the next picture goes into, at its place."""
        shard, offset = self._place(size)
        if offset == 0 or self._pixels is None:
            self._close_pixels()
            path = self.folder / self._name(shard)
            self._pixels = open(path, 'r+b' if path.exists() else 'w+b')
        self._pixels.seek(offset)
        return self._pixels

    def _note(self, picture: Encoded | str) -> None:
        if isinstance(picture, str):
            self.problems[self.done] = picture
        else:
            form, *sizes, crc, data = picture
            shard, offset = self._place(len(data))
            name, size, running = self._name(shard), 0, 0
            if shard < len(self.shards):
                _, size, running = self.shards.pop()
            self.shards.append((name, size + len(data), zlib.crc32(data, running)))
            place = self.first_shard + shard, offset
            self.pictures[self.done] = (*place, *sizes, form, crc)
        self.done += 1

    def _name(self, shard: int) -> str:
        return f'pixels_{self.first_shard + shard:05d}.bin'

    def _close_pixels(self) -> None:
        if self._pixels is not None:
            self._pixels.flush()
            os.fsync(self._pixels.fileno())
            self._pixels.close()
            self._pixels = None

    def _resume(self) -> None:
        """Take over what journal and pixels agree on, and cut off what is behind it."""
        journal, good = self.folder / JOURNAL_FILE, 0
        if journal.exists():
            with open(journal, 'rb') as lines:
                for line in lines:
                    if self.done == len(self.pictures) or not self._replay(line):
                        break
                    good += len(line)
            os.truncate(journal, good)
        self._close_pixels()
        for path in self.folder.iterdir():
            match = SHARD_FILE.fullmatch(path.name)
            if match and int(match[1]) >= self.first_shard + len(self.shards):
                path.unlink()
        if self.shards:
            os.truncate(self.folder / self.shards[-1][0], self.shards[-1][1])

    def _replay(self, line: bytes) -> bool:
        """Take over one picture of the journal; False if it is not what the journal says."""
        try:
            entry = json.loads(line) if line.endswith(b'\n') else None
        except ValueError:
            return False
        if isinstance(entry, str):
            self._note(entry)
            return True
        if entry is None:
            return False
        form, height, width, *_, crc = entry
        size = height * width * DTYPES[form].itemsize
        data = self._seek(size).read(size)
        if len(data) != size or zlib.crc32(data) != crc:
            return False
        self._note(Encoded(*entry, data))
        return True

"""The images of a data set: files in a folder, packed, or in a place of one's own.

To add a place, such as a database, write a subclass of ImageSource and name it in IMAGE_SOURCES in
config.py. Every program can then read and pack its images.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from config import IMAGE_DECODERS, IMAGE_SOURCES, import_by_name
from data.images.files import (
    COLOUR_DIFFERENCE,
    COLOUR_LEVELS,
    FILE_NAME,
    colour_difference,
    decode_image,
    is_image_file,
    read_file,
)

IMAGE_SUFFIXES = (
    '.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.bmp', '.tif', '.tiff', '.webp', *IMAGE_DECODERS
)  # fmt: skip
PARQUET = '.parquet/'  # between the names of a Parquet file and of an image in it
TABLE_SUFFIXES = ('.csv', '.csv.gz', '.tsv', '.txt', '.json', '.jsonl', '.xlsx', '.xlsm')
# Ends of names of copies, and of files that are being written or downloaded.
COPIES = ('~', '.bak', '.old', '.orig', '.tmp', '.temp', '.part', '.partial', '.crdownload', '.swp')
DIRECTORY = 'DICOMDIR'  # a DICOM file without an image, which lists those of a CD


class ImageSource(ABC):
    """Looks up, lists and reads images by their names, which are paths relative to a folder.

    A subclass needs `exists`, `below` and `read`. Worker processes receive it pickled.

    Attributes:
        path: Folder of the data set.
        left_out: File -> reason, for images that could not be read when a store was packed.
    """

    left_out: Mapping[str, str] = {}

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @abstractmethod
    def exists(self, file: str) -> bool:
        """Return whether an image file or a folder exists."""

    @abstractmethod
    def below(self, place: str = '') -> list[str]:
        """List the image files in a folder and below it, sorted, including those left out."""

    def read(self, file: str) -> bytes:
        """Return the contents of an image file; see `read_file` for the errors.

        Only a store, which keeps pixels, overrides `reader` instead.
        """
        raise NotImplementedError

    def scan(self) -> tuple[list[str], list[str]]:
        """List all image files, and tables, which may show that some images are scored.

        A folder also lists all other files, which are not read.
        """
        names = os.listdir(self.path)
        return self.below(), [name for name in names if name.lower().endswith(TABLE_SUFFIXES)]

    def lacking(self, files: Sequence[str], wanted: np.ndarray) -> list[int]:
        """Return the positions of the files that are looked up, `wanted` [N], and cannot be read.

        A store answers for all files at once, so it looks up all of them.
        """
        return [place for place in np.flatnonzero(wanted).tolist() if not self.exists(files[place])]

    def reader(self, files: Sequence[str]) -> Callable[[int], Image.Image]:
        """Return a function that reads one of these files by its position; see `decode_image`.

        Each image knows the name of its file (FILE_NAME).
        """
        longest = max(map(len, map(os.fsencode, files)), default=1)
        # One block of memory, which workers share; they would copy a list of strings.
        names = np.fromiter(map(os.fsencode, files), f'S{longest}', len(files))
        return partial(_read_image, self, names)

    def colour_levels(self, file: str, image: Image.Image) -> float:
        """Return the difference between the channels of an image, 0 if compression explains it."""
        levels = image.info.get(COLOUR_DIFFERENCE)
        levels = colour_difference(self.read(file)) if levels is None else levels
        return levels if levels > COLOUR_LEVELS else 0


class Folder(ImageSource):
    """The image files below a folder, or in Parquet files; links are followed."""

    def exists(self, file: str) -> bool:
        if os.path.exists(self.path / file):
            return True
        return PARQUET in file and import_by_name('data.images.hub:has_image')(self.path, file)

    def below(self, place: str = '') -> list[str]:
        return [file for file in self._files(place) if self._is_image(file)]

    def scan(self) -> tuple[list[str], list[str]]:
        files = self._files()
        images = [file for file in files if self._is_image(file)]
        return images, sorted({*files} - {*images})

    def read(self, file: str) -> bytes:
        if PARQUET in file and not os.path.exists(self.path / file):
            return import_by_name('data.images.hub:read_image')(self.path, file)
        return read_file(self.path / file)

    def _is_image(self, file: str) -> bool:
        """Return whether a file is an image by its suffix, or if that is unknown, by its contents.

        Archives of hospitals export files without a suffix, or with a number as the end: 1.2.17.
        """
        name = file.lower()
        if name.endswith(IMAGE_SUFFIXES):
            return True
        if name.endswith((*TABLE_SUFFIXES, *COPIES)) or os.path.basename(file) == DIRECTORY:
            return False
        return is_image_file(self.path / file)

    def _files(self, place: str = '') -> list[str]:
        """List the regular files below a folder, sorted, as paths below root.

        Hidden files and folders are ignored. So are links to other places below the root, because
        their targets are listed. If several links lead to one folder, it is listed below the first.
        """
        if not self.path.is_dir():
            raise ValueError(f'DATA.DATA_PATH is not a folder: {self.path}')
        root, files, places = Path(os.path.realpath(self.path)), [], [place]
        seen = set()  # links may form a circle
        while places:
            place = places.pop()
            folder = os.stat(self.path / place)
            if (folder.st_dev, folder.st_ino) in seen:
                continue
            seen.add((folder.st_dev, folder.st_ino))
            with os.scandir(self.path / place) as found:
                entries = [entry for entry in found if not entry.name.startswith('.')]
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                file = f'{place}/{entry.name}' if place else entry.name
                is_link = entry.is_symlink()
                if is_link and Path(os.path.realpath(entry)).is_relative_to(root):
                    continue
                if entry.is_dir():
                    places.append(file)
                elif entry.is_file():
                    is_parquet = f'{entry.name}/'.lower().endswith(PARQUET)
                    images = []
                    if is_parquet:
                        images = import_by_name('data.images.hub:image_names')(self.path, file)
                    files += images or [file]  # a Parquet file may be a table
        return sorted(files)


def open_images(root: str | Path) -> ImageSource:
    """Open the images of a data set, whose folder shows what keeps them (IMAGE_SOURCES)."""
    for file, opener in IMAGE_SOURCES.items():
        # The file is named by text, so that a run on plain images loads no code of stores.
        if (Path(root) / file).is_file():
            return import_by_name(opener)(root)
    return Folder(root)


def _read_image(images: ImageSource, files: np.ndarray, position: int) -> Image.Image:
    file = os.fsdecode(files[position])
    image = decode_image(images.read(file), images.path / file)
    image.info[FILE_NAME] = file
    return image

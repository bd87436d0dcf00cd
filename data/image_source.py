"""Where the images of a data set are: a folder of files, or a packed store (`data.store`)."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data.images import colour_difference, load_image, refuse_link_out
from data.names import IMAGE_SUFFIXES
from data.table import Fault, OnFault, refuse

SCORED_FILES = ('train.csv', 'valid.csv')  # a folder with one of these holds images to be scored


class ImageSource(ABC):
    """Looks up, lists and reads image files by their names relative to a root.

    Attributes:
        path: Root.
        left_out: File -> reason, for images that could not be read when a store was packed.
    """

    path: Path
    left_out: Mapping[str, str]

    @abstractmethod
    def exists(self, file: str) -> bool:
        """Return whether an image file or a folder exists."""

    def has_image(self, file: str) -> bool:
        """Return whether an image can be read."""
        return self.exists(file)

    @abstractmethod
    def below(self, place: str = '') -> list[str]:
        """List the image files in a folder and below it, sorted, including those left out."""

    @abstractmethod
    def scan(self) -> tuple[list[str], list[str]]:
        """List all image files, and the files that show that some of the images are scored."""

    @abstractmethod
    def to_look_up(self, files: Sequence[str], wanted: np.ndarray) -> np.ndarray:
        """Return the positions of the files to look up one by one: those that are `wanted` [N].

        A store answers for all files at once, so only those that it lacks remain.
        """

    @abstractmethod
    def is_inside(self, file: str, csv: str = '', row: int | None = None) -> bool:
        """Return whether a path stays below the root when links are followed; if not, report it."""

    @abstractmethod
    def reader(self, files: Sequence[str]) -> Callable[[int], Image.Image]:
        """Return a function that reads one of these files by its position; see `load_image`."""

    @abstractmethod
    def colour_difference(self, file: str) -> float:
        """Return the largest difference between colour channels; 0 for images packed as grey."""


class Folder(ImageSource):
    """The image files below a folder; links that leave it are faults."""

    left_out: Mapping[str, str] = {}

    def __init__(self, root: str | Path, on_fault: OnFault = refuse) -> None:
        self.path = Path(root)
        self.on_fault = on_fault

    def exists(self, file: str) -> bool:
        return os.path.exists(self.path / file)

    def below(self, place: str = '', suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
        """List the files below a folder that have one of the suffixes, sorted, as paths below root.

        Hidden files and folders are ignored. Links within the root are ignored, too, because their
        targets are listed. A link that leaves the root is a fault.
        """
        if not self.path.is_dir():
            raise ValueError(f'DATA.DATA_PATH is not a folder: {self.path}')
        files, places = [], [place] if self.is_inside(place) else []
        while places:
            place = places.pop()
            with os.scandir(self.path / place) as found:
                entries = [entry for entry in found if not entry.name.startswith('.')]
            for entry in entries:
                file = f'{place}/{entry.name}' if place else entry.name
                is_wanted = entry.name.lower().endswith(suffixes)
                if entry.is_symlink():
                    if is_wanted or os.path.isdir(self.path / file):
                        self.is_inside(file)
                elif entry.is_dir():
                    places.append(file)
                elif is_wanted and entry.is_file():
                    files.append(file)
        return sorted(files)

    def scan(self) -> tuple[list[str], list[str]]:
        files = self.below(suffixes=(*IMAGE_SUFFIXES, *SCORED_FILES))
        scored = [file for file in files if os.path.basename(file) in SCORED_FILES]
        return [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)], scored

    def to_look_up(self, files: Sequence[str], wanted: np.ndarray) -> np.ndarray:
        return np.flatnonzero(wanted)

    def is_inside(self, file: str, csv: str = '', row: int | None = None) -> bool:
        try:
            refuse_link_out(self.path, self.path / file)
        except ValueError as error:
            self.on_fault(Fault('link that leaves the folder', str(error), csv, row, file))
            return False
        return True

    def reader(self, files: Sequence[str]) -> Callable[[int], Image.Image]:
        # One block of memory, which workers share; they would copy a list of strings.
        names = np.array([os.fsencode(file) for file in files], bytes)
        return partial(_read_file, self.path, names)

    def colour_difference(self, file: str) -> float:
        return colour_difference(self.path / file)


def _read_file(root: Path, files: np.ndarray, position: int) -> Image.Image:
    return load_image(root / os.fsdecode(files[position]), root)

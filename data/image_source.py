"""What is asked of the images of a data set, whether they are files or packed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


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
    def reader(self, files: Sequence[str]) -> Callable[[int], Image.Image]:
        """Return a function that reads one of these files by its position; see `load_image`."""

    @abstractmethod
    def colour_difference(self, file: str) -> float:
        """Return the largest difference between colour channels; 0 for images packed as grey."""

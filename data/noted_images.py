"""Images for a model with a note about each image that is coloured or cannot be used."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch.utils.data import Dataset

from data.images import COLOUR_LEVELS, BadImageError, colour_difference, load_image
from data.records import Records, images_of

SKIPPED = 'skipped: '  # prefix of the note about a skipped image
COLOURED = 'coloured'  # note about a coloured image that is read as grey
NAMED = 3  # maximum number of coloured images in a message


class NotedImages(Dataset, ABC):
    """Data set of (model input, note about the image, index), one item per image.

    With `skip_bad`, an unusable image is replaced by a grey ramp, and the note has the reason.
    """

    def __init__(self, transform: Callable, *, skip_bad: bool) -> None:
        self.transform = transform
        self.skip_bad = skip_bad

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Read an image; see `load_image` for the errors."""

    @abstractmethod
    def colour_difference(self, index: int) -> float:
        """Return the largest difference between the colour channels of an image."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str, int]:
        note = ''
        try:
            image = self.image(index)
            if self.colour_difference(index) > COLOUR_LEVELS:
                note = COLOURED
        except ValueError as error:
            is_bad = isinstance(error, BadImageError)
            if not self.skip_bad or not (is_bad or isinstance(error.__cause__, FileNotFoundError)):
                raise
            image, note = Image.linear_gradient('L'), f'{SKIPPED}{error}'
        return self.transform(image, None), note, index


class ImageFiles(NotedImages):
    """The images at the given paths."""

    def __init__(self, paths: list[str], transform: Callable, *, skip_bad: bool) -> None:
        super().__init__(transform, skip_bad=skip_bad)
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        return load_image(self.paths[index])

    def colour_difference(self, index: int) -> float:
        return colour_difference(self.paths[index])


class RecordImages(NotedImages):
    """The images of records, which may be files or packed."""

    def __init__(self, records: Records, transform: Callable, *, skip_bad: bool) -> None:
        super().__init__(transform, skip_bad=skip_bad)
        self.records = records
        self.source = images_of(records)
        self.read = self.source.reader(records.file)

    def __len__(self) -> int:
        return len(self.records)

    def image(self, index: int) -> Image.Image:
        return self.read(index)

    def colour_difference(self, index: int) -> float:
        return self.source.colour_difference(self.records.file[index])


def is_skipped(note: str) -> bool:
    """Return whether a note is about an image that was skipped."""
    return note.startswith(SKIPPED)


def describe_notes(notes: Sequence[str], paths: Sequence[str]) -> Iterator[str]:
    """Yield a line for each skipped image, and a warning if there are coloured images."""
    yield from filter(is_skipped, notes)
    coloured = [path for path, note in zip(paths, notes, strict=True) if note == COLOURED]
    if coloured:
        names = ', '.join(coloured[:NAMED]) + (' ...' if len(coloured) > NAMED else '')
        yield f'warning: {len(coloured)} coloured image(s) read as grey: {names}'

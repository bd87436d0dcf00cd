"""Images for a model with a note about each image that may mislead it or cannot be used."""

from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch.utils.data import Dataset

from data.image_source import ImageSource
from data.images import COLOUR_LEVELS, CONTRADICTION, BadImageError

SKIPPED = 'skipped: '  # prefix of the note about a skipped image
COLOURED = 'coloured image(s) read as grey'
NAMED = 3  # maximum number of images with the same note in a message


class NotedImages(Dataset):
    """Data set of (model input, note about the image, index), one item per image.

    Args:
        images: Where the images are.
        files: Names of the images.
        transform: Function that is called with (image, None).
        skip_bad: Whether an unusable image is replaced by a grey ramp, and the note has the reason.
    """

    def __init__(
        self, images: ImageSource, files: Sequence[str], transform: Callable, *, skip_bad: bool
    ) -> None:
        self.images = images
        self.files = files
        self.read = images.reader(files)
        self.transform = transform
        self.skip_bad = skip_bad

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str, int]:
        note = ''
        try:
            image = self.read(index)
            if misfit := image.info.get(CONTRADICTION):
                note = f'image(s) with a contradictory header, {misfit}'
            elif self.images.colour_difference(self.files[index]) > COLOUR_LEVELS:
                note = COLOURED
        except ValueError as error:
            is_bad = isinstance(error, BadImageError)
            if not self.skip_bad or not (is_bad or isinstance(error.__cause__, FileNotFoundError)):
                raise
            image, note = Image.linear_gradient('L'), f'{SKIPPED}{error}'
        return self.transform(image, None), note, index


def is_skipped(note: str) -> bool:
    """Return whether a note is about an image that was skipped."""
    return note.startswith(SKIPPED)


def describe_notes(notes: Sequence[str], paths: Sequence[str]) -> Iterator[str]:
    """Yield a line for each skipped image, and a warning for each other note."""
    yield from filter(is_skipped, notes)
    noted: dict[str, list[str]] = {}
    for path, note in zip(paths, notes, strict=True):
        if note and not is_skipped(note):
            noted.setdefault(note, []).append(path)
    for note, found in noted.items():
        names = ', '.join(found[:NAMED]) + (' ...' if len(found) > NAMED else '')
        yield f'warning: {len(found)} {note}: {names}'

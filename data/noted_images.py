"""Images for a model with a note about each image that is coloured or cannot be used."""

from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch.utils.data import Dataset

from data.image_source import ImageSource
from data.images import COLOUR_LEVELS, BadImageError

SKIPPED = 'skipped: '  # prefix of the note about a skipped image
COLOURED = 'coloured'  # note about a coloured image that is read as grey
NAMED = 3  # maximum number of coloured images in a message


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
            if self.images.colour_difference(self.files[index]) > COLOUR_LEVELS:
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
    """Yield a line for each skipped image, and a warning if there are coloured images."""
    yield from filter(is_skipped, notes)
    coloured = [path for path, note in zip(paths, notes, strict=True) if note == COLOURED]
    if coloured:
        names = ', '.join(coloured[:NAMED]) + (' ...' if len(coloured) > NAMED else '')
        yield f'warning: {len(coloured)} coloured image(s) read as grey: {names}'

"""Images for a model with a note about each image that may mislead it or cannot be used."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from config import Config
from data.images.files import CONTRADICTION, VIEW, BadImageError
from data.images.image_source import ImageSource
from data.images.views import UNSEEN, end_of_warning, views_in_names
from system.files import LOADER_FILES, allow_open_files
from system.tool import usable_cpus

SKIPPED = 'skipped: '  # prefix of the note about a skipped image
COLOURED = 'coloured image(s) read as grey'
MOST_IMAGES = 128  # in a batch, unless the user wants more
NAMED = 3  # maximum number of images with the same note in a message


class NotedImages(Dataset):
    """Data set of (model input, notes about the image, index), one item per image.

    Each line of the notes is one note.

    Args:
        images: Where the images are.
        files: Names of the images.
        transform: Function that is called with (image, None).
        skip_bad: Whether an unusable image is replaced by a grey ramp, and the note has the reason.
        views: View of each image that a table states, '' if it is unknown; () for no table.
        trained: DATA.VIEWS of the training, for a note about other views; 'all' for none.
    """

    def __init__(
        self,
        images: ImageSource,
        files: Sequence[str],
        transform: Callable,
        *,
        skip_bad: bool,
        views: Sequence[str] = (),
        trained: str = 'all',
    ) -> None:
        self.images = images
        self.files = files
        in_names = views_in_names(files)
        stated = np.asarray(views if len(views) else in_names, object)
        self.views = np.where(stated == '', in_names, stated)
        self.trained = trained
        self.read = images.reader(files)
        self.transform = transform
        self.skip_bad = skip_bad

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str, int]:
        try:
            image = self.read(index)
            notes = []
            if misfit := image.info.get(CONTRADICTION):
                notes.append(f'image(s) with a contradictory header, {misfit}')
            elif self.images.colour_levels(self.files[index], image):
                notes.append(COLOURED)
            view = self.views[index] or image.info.get(VIEW, '')
            if view and view == UNSEEN.get(self.trained):
                notes.append(f'{view} image(s), {end_of_warning(self.trained)}')
        except ValueError as error:
            is_bad = isinstance(error, BadImageError)
            if not self.skip_bad or not (is_bad or isinstance(error.__cause__, FileNotFoundError)):
                raise
            ramp = Image.linear_gradient('L')
            return self.transform(ramp, None), f'{SKIPPED}{error}', index
        return self.transform(image, None), '\n'.join(notes), index


class NotedLoader(DataLoader):
    """Loader of `NotedImages` with a progress bar.

    Args:
        images: Images.
        config: Options of the run of the model, for what the user leaves open.
        batch_size: Images per batch, if the user chooses it.
        num_workers: Processes that load images, if the user chooses it.

    Attributes:
        notes: Notes about the images so far, in their order.
    """

    def __init__(
        self, images: NotedImages, config: Config, batch_size: int | None, num_workers: int | None
    ) -> None:
        if num_workers is None:
            # The run may have had more cores, and a foreign file may state any number.
            num_workers = min(config.DATA.NUM_WORKERS, usable_cpus())
        allow_open_files(num_workers, per_worker=LOADER_FILES)
        self.notes: list[str] = []
        size = batch_size or min(config.DATA.BATCH_SIZE, MOST_IMAGES)
        super().__init__(images, size, num_workers=num_workers)

    def __iter__(self) -> Iterator[list]:
        with tqdm(total=len(self.dataset), unit='image', disable=None) as bar:
            for batch in super().__iter__():
                self.notes += batch[1]
                yield batch
                bar.update(len(batch[1]))


def is_skipped(note: str) -> bool:
    """Return whether a note is about an image that was skipped."""
    return note.startswith(SKIPPED)


def describe_notes(notes: Sequence[str], paths: Sequence[str]) -> Iterator[str]:
    """Yield a line for each skipped image, and a warning for each other note."""
    yield from filter(is_skipped, notes)
    noted: dict[str, list[str]] = {}
    for path, lines in zip(paths, notes, strict=True):
        for note in () if is_skipped(lines) else lines.splitlines():
            noted.setdefault(note, []).append(path)
    for note, found in noted.items():
        names = ', '.join(found[:NAMED]) + (' ...' if len(found) > NAMED else '')
        yield f'warning: {len(found)} {note}: {names}'

"""Records to batches: one Dataset, one batch sampler and one DataLoader for both stages.

The batch sampler hands (epoch, index) to the workers, and a sample is a function of (seed, epoch,
row of the CSV) alone: the number of workers and of ranks, and a restart, change no sample.  Where
an epoch may have an image several times, how often it came before is handed over, too, so that it
is drawn anew each time.
"""

import csv
import fcntl
import io
import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from config import Config
from data.images import is_passing, load_image
from data.records import Records
from data.store import BAD_FILE, Store, is_store, open_store
from engine import distributed
from engine.files import NO_LOCKS

# ==== data.sampling: What chance decides: a generator per sample and an order per epoch, each from its key alone.


def sample_rng(seed: int, epoch: int, index: int, occurrence: int = 0) -> np.random.Generator:
    """The generator of one sample: the same whatever worker, rank or restart asks for it.

    Counter-based (Philox): epoch and seed are its key, the sample's index and occurrence lie in
    the counter, so the streams of two samples never overlap.  Draws are made in a fixed order:
    crop, flip, mask, then what fine-tuning adds.

    Args:
        seed: SEED of the config, 0 or greater.
        epoch: epoch, from 0.
        index: stable number of the image (its row in the CSV), 0 or greater.
        occurrence: how often the epoch has had the image before.
    """
    bits = np.random.Philox(key=[seed, epoch], counter=[0, index, 0, occurrence])
    return np.random.Generator(bits)


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order in which an epoch visits its images, a permutation [length] of their positions."""
    bits = np.random.Philox(key=[seed, epoch], counter=[0, 0, 1, 0])  # 1: no sample's stream
    return np.random.Generator(bits).permutation(length)


def weighted_order(seed: int, epoch: int, weights: np.ndarray) -> np.ndarray:
    """An epoch's images drawn with replacement, each in proportion to its weight.

    Args:
        seed: SEED of the config.
        epoch: epoch, from 0.
        weights: [N], 0 or greater.

    Returns:
        [N] positions.
    """
    bits = np.random.Philox(key=[seed, epoch], counter=[0, 0, 2, 0])  # 2: neither of the above
    ends = np.cumsum(weights, dtype=np.float64)
    draws = np.random.Generator(bits).random(len(ends)) * ends[-1]
    return np.searchsorted(ends, draws, side='right')


def occurrences(order: np.ndarray) -> np.ndarray:
    """How often each entry of an order came up before, [N]."""
    by_image = np.argsort(order, kind='stable')
    ordered = order[by_image]
    counts = np.empty_like(order)
    counts[by_image] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return counts


def inverse_frequency_weights(targets: np.ndarray) -> np.ndarray:
    """Weight of each image: how rare its labels are.

    The mean over an image's known labels of 1 / (images with the same value of that label): with
    one label each of its values is drawn equally often.

    Args:
        targets: [N, K], positive from 0.5 on; a third class (2) is a value of its own; NaN where
            unknown.

    Returns:
        [N]; an image of which nothing is known gets the mean weight of the others.
    """
    known = ~np.isnan(targets)
    values = np.where(targets > 1, 2, targets >= 0.5)
    shares = np.zeros(targets.shape)
    for value in range(3):
        same = known & (values == value)
        shares += same / np.maximum(same.sum(axis=0), 1)
    num_known = known.sum(axis=1)
    weights = shares.sum(axis=1) / np.maximum(num_known, 1)
    unknown = num_known == 0
    weights[unknown] = 1.0 if unknown.all() else weights[~unknown].mean()
    return weights


# ==== data.bad_images: Training images that cannot be used: each is listed once, and another one takes its place.
#
# `bad_images.csv` in the run's folder is the count, too: all workers and ranks add to it, and a run
# that goes on finds there what it had met before.

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
    """Text on one line."""
    return re.sub(r'[\x00-\x1f\x7f]+', ' ', text)


# ==== data.loader: Records to batches: one Dataset, one batch sampler and one DataLoader for both stages.
#
# The batch sampler hands (epoch, index) to the workers, and a sample is a function of (seed, epoch,
# row of the CSV) alone: the number of workers and of ranks, and a restart, change no sample.  Where
# an epoch may have an image several times, how often it came before is handed over, too, so that it
# is drawn anew each time.

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
CAN_WAIT = hasattr(signal, 'sigwaitinfo')  # not on macOS


def image_reader(records: 'Records') -> Callable[[int], Image.Image]:
    """What reads the picture of a record by its position: from its file, or from the store.

    It can be pickled, without the records; a store then is as its path.  It raises ValueError
    naming what it read.
    """
    if not is_store(records.root):
        return partial(_read_file, records.root, Names(records.file))
    store = open_store(records.root)
    return partial(_read_packed, store, store.position(records.file))


class Names:
    """Names of files in one piece of memory; each worker would have a list's texts of its own."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.ends = np.cumsum([0, *map(len, encoded)])
        self.text = b''.join(encoded)

    def __getitem__(self, position: int) -> str:
        return os.fsdecode(self.text[self.ends[position] : self.ends[position + 1]])


def _read_file(root: Path, files: Names, position: int) -> Image.Image:
    return load_image(root / files[position], root)


def _read_packed(store: 'Store', places: np.ndarray, position: int) -> Image.Image:
    return store.image(int(places[position]))


class XrayDataset(Dataset):
    """Images of the records, each transformed with its own generator.

    An item is what the transform returns; with targets it is (that, targets of the image, index).
    With `bad_images` another image takes the place of one that cannot be used: it is transformed
    with the generator of the place, and targets and index are its own.

    Args:
        records: what to read.
        transform: called with (image of load_image, generator of the sample).
        seed: with epoch and row the key of a sample's generator.
        targets: [N, K] float32, or None.
        bad_images: where those that cannot be used are listed; None: they are errors.
    """

    def __init__(
        self,
        records: Records,
        transform: Callable[[Image.Image, np.random.Generator], Any],
        *,
        seed: int,
        targets: np.ndarray | None = None,
        bad_images: BadImages | None = None,
    ) -> None:
        self.records = records
        self.image = image_reader(records)
        self.transform = transform
        self.seed = seed
        self.targets = targets
        self.bad_images = bad_images

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is not forked: without the texts of the records that it never needs."""
        return vars(self) | {'records': _without_texts(self.records)}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, ...]) -> Any:
        epoch, index, *occurrence = key
        row = int(self.records.row[index])
        image, index = self._usable(self.image, epoch, index)
        sample = self.transform(image, sample_rng(self.seed, epoch, row, *occurrence))
        return sample if self.targets is None else (sample, self.targets[index], index)

    def _usable(self, read: Callable[[int], Any], epoch: int, index: int) -> tuple[Any, int]:
        """An image and its position: the one at `index`, or the first in its place that is good."""
        row, length = int(self.records.row[index]), len(self)
        for place in in_place_of(index, seed=self.seed, epoch=epoch, row=row, length=length):
            try:
                return read(place), place
            except ValueError as error:
                self._set_aside(place, error)
        raise ValueError(f'{self.records.root}: none of {length} images can be used')

    def _set_aside(self, index: int, error: ValueError) -> None:
        """List an image that cannot be used; raise where none may be bad, or not so many."""
        records, place = self.records, self._place(index)
        if self.bad_images is None:
            raise ValueError(f'{place}: {error} ({HINT})') from error
        path = records.root / records.file[index]
        cause = error.__cause__  # Pillow's own OSErrors have no number
        drive = isinstance(cause, OSError) and cause.errno is not None
        # Of what is packed there is no such path; of a drive that is gone there is no root.
        if drive or not records.root.exists() or (path.exists() and is_passing(error, path)):
            raise ValueError(f'{place}: {error}') from error
        row = int(records.row[index]) + 2 if records.csv else None
        try:
            self.bad_images.add(records.file[index], row, str(error))
        except ValueError as too_many:
            raise ValueError(f'{place}: {too_many}') from error

    def _place(self, index: int) -> str:
        records = self.records
        if not records.csv:
            return str(records.root)
        return f'{records.root / records.csv}, row {records.row[index] + 2} (the header is row 1)'


def build_dataset(
    records: Records,
    transform: Callable[[Image.Image, np.random.Generator], Any],
    *,
    seed: int,
    targets: np.ndarray | None = None,
    bad_images: BadImages | None = None,
) -> XrayDataset:
    """The records' images: by batches from a packed store of squares, else one by one."""
    return XrayDataset(records, transform, seed=seed, targets=targets, bad_images=bad_images)


class EpochSampler(Sampler[list[tuple[int, ...]]]):
    """Batches of (epoch, index) of one rank; weighted: of (epoch, index, occurrence).

    Training (shuffle): the epoch's order is cut into global batches of batch_size x world_size,
    the incomplete last one dropped; rank r takes the r-th part of each, so that the global batches
    are those of one process with the larger batch.  With weights [N] the order is N draws with
    replacement in proportion to them.  Else: rank r takes images r, r + world_size, ... in order,
    nothing is padded or dropped, and the epoch is always 0.

    Raises:
        ValueError: if training images do not fill one global batch.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: np.ndarray | None = None,
    ) -> None:
        if shuffle and num_images < batch_size * world_size:
            raise ValueError(
                f'{num_images} training images do not fill one batch of DATA.BATCH_SIZE '
                f'{batch_size} x {world_size} processes; take a smaller batch or more images'
            )
        assert weights is None or (shuffle and len(weights) == num_images)
        self.num_images = num_images
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.weights = weights
        self.epoch = 0
        self.first_batch = 0

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch that the next pass goes through, from this batch on."""
        self.epoch = epoch
        self.first_batch = first_batch

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever the next pass begins."""
        if self.shuffle:
            return self.num_images // (self.batch_size * self.world_size)
        return -(-len(range(self.rank, self.num_images, self.world_size)) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        epoch, columns = self._epoch_and_columns()
        for batch in range(self.first_batch, len(self)):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            rows = zip(*(column[part].tolist() for column in columns), strict=True)
            yield [(epoch, *row) for row in rows]

    def _epoch_and_columns(self) -> tuple[int, list[np.ndarray]]:
        """The epoch, and this rank's images (with occurrences) in the order of its batches."""
        if not self.shuffle:
            return 0, [np.arange(self.rank, self.num_images, self.world_size)]
        if self.weights is None:
            columns = [epoch_order(self.seed, self.epoch, self.num_images)]
        else:
            order = weighted_order(self.seed, self.epoch, self.weights)
            columns = [order, occurrences(order)]  # counted over all ranks
        return self.epoch, [self._part_of_rank(column) for column in columns]

    def _part_of_rank(self, column: np.ndarray) -> np.ndarray:
        column = column[: len(self) * self.world_size * self.batch_size]
        return column.reshape(-1, self.world_size, self.batch_size)[:, self.rank].ravel()


def loader_options(config: Config) -> dict[str, int | bool]:
    """The arguments of make_loader that all loaders of a run share."""
    return {
        'batch_size': config.DATA.BATCH_SIZE,
        'num_workers': config.DATA.NUM_WORKERS,
        'pin_memory': config.DATA.PIN_MEMORY,
    }


def make_loader(
    dataset: XrayDataset,
    *,
    batch_size: int,
    shuffle: bool,
    num_workers: int,
    pin_memory: bool,
    weights: np.ndarray | None = None,
) -> DataLoader:
    """The batches of this rank; `loader.batch_sampler.set_epoch` chooses the epoch.

    Args:
        dataset: what to load; its seed orders the epochs, too.
        batch_size: images per batch of this rank.
        shuffle: True for training (see EpochSampler), False for evaluation.
        num_workers: processes that load; 0 loads in this one.
        pin_memory: whether batches lie in page-locked memory; only where there is CUDA.
        weights: [N]; training epochs are drawn with replacement in proportion to them.
    """
    sampler = EpochSampler(
        len(dataset),
        batch_size=batch_size,
        shuffle=shuffle,
        seed=dataset.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        weights=weights,
    )
    tells = getattr(dataset, 'bad_images', None) is not None
    return (_TellingLoader if tells else _Loader)(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        worker_init_fn=_leave_signals_to_the_run,
        pin_memory=pin_memory and torch.cuda.is_available(),
        persistent_workers=shuffle and num_workers > 0,  # evaluation is short: no idle processes
        # The loader draws a base seed for each pass; not from the model's random stream.
        generator=torch.Generator().manual_seed(dataset.seed),
    )


class _Loader(DataLoader):
    """Starts workers with signals blocked: none is lost to one that comes before it is ready."""

    def __iter__(self) -> Iterator[Any]:
        if not CAN_WAIT:
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _TellingLoader(_Loader):
    """Says after each pass how many images could not be used."""

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        self.dataset.bad_images.warn()


def _without_texts(records: Records) -> Records:
    """Records with the rows and files alone, these in one piece."""
    texts = {field.name for field in fields(records)} - {'root', 'csv', 'row', 'file'}
    return replace(records, file=Names(records.file), **dict.fromkeys(texts))


def _leave_signals_to_the_run(worker: int) -> None:
    """A signal to all processes, as a cluster sends it, must not end what the last step needs."""
    for number in STOPS[1:]:
        signal.signal(number, signal.SIG_IGN)
    if CAN_WAIT:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_when_the_run_says, daemon=True).start()


def _end_when_the_run_says() -> None:
    """Take SIGTERM from the process that loads, and from no other."""
    run = multiprocessing.parent_process().pid
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != run:
        continue
    os._exit(0)

"""Load batches of records, with one dataset, batch sampler and DataLoader for every stage.

The batch sampler passes (epoch, index) to the workers. A sample depends only on SEED, the epoch and
the number of the image (`Records.sample`, the row of a CSV with a column Path; with DATA.SOURCES
also on the name of the source), so neither the number of workers or ranks nor a restart changes a
sample. If an epoch can contain an image several times, the number of previous occurrences is passed
as well.
"""

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from config import Config
from data.tables.records import Records, images_of
from data.tables.table import Fault
from data.transforms import GreyImages
from system import distributed
from system.files import LOADER_FILES, allow_open_files
from system.tool import command_of, num_workers

HINT = (
    f'{command_of("scripts/check_data.py")} finds all such images; '
    f'{command_of("scripts/pack.py")} --skip-bad makes a store of the others'
)
# The first entries of Philox counters. Streams with different entries never overlap.
SAMPLE, ORDER, WEIGHTED = 0, 1, 2
HOLDOUT_SEED = 0  # not SEED, so that all runs are scored on the same masks and views
# Signals that only the main process receives, which needs its workers until the step and the
# checkpoint are finished. Clusters and terminals send them to the whole process group.
LEFT_TO_MAIN = [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]
if hasattr(signal, 'sigwaitinfo'):  # not on macOS, see `_prepare_worker`
    LEFT_TO_MAIN.append(signal.SIGTERM)
# A run ends if a worker sends no batch for this long: it hangs, or could not send it.
BATCH_SECONDS = 1800


class Loaders(NamedTuple):
    """The loaders of a stage; None for a split that the stage does not have.

    The sources of the images are in `dataset.records` of a loader (with DATA.SOURCES, of each of
    `dataset.parts`), and the targets in `dataset.targets`. Shapes: B images, C channels, side S,
    h x w tokens, K labels. `to_device` normalises images that are sent as `GreyImages`.

    Pre-training:
        train: (images [B, C, S, S], masks [B, h, w] uint8), augmented, with new masks in each
            epoch.
        holdout: (images, masks, scale [B, C], offset [B, C]) of held-out patients, with the mask
            type of the run and the same masks in each epoch. images * scale + offset restores the
            grey levels in [0, 255].
        reference: The same images with masks that do not depend on the run: random, 0.6 hidden,
            units of 32 px, or an eighth of the side for images below 128 px. None if the masks do
            not fit the image or the patches of the model; holdout itself if the masks are equal.

    Contrastive pre-training:
        train: One tensor [B, C, S, S] per view, with new views in each epoch. SwAV's small crops
            come last and may be smaller.
        holdout: (images [B, C, S, S] without augmentation, views ...) of held-out patients, with
            the same views in each epoch and the same number of batches on every rank.

    Fine-tuning:
        train: (images, targets [B, K], index [B]), augmented. NaN targets are ignored.
        holdout, internal, valid, test: The same without augmentation, each image once over all
            ranks. internal has the held-out patients of EVAL.INTERNAL_SHARE. NaN targets are not
            scored. index is the position in dataset.records. Images with test-time views are
            [B, T, C, S, S].
        plain: Training images without augmentation, in order, which replace train with
            FINETUNE.MODE 'linear_probe' and 'knn'.
        whole: All training images, before a subset is taken, without augmentation
            (EVAL.PREDICT_TRAIN).
    """

    train: DataLoader | None = None
    holdout: DataLoader | None = None
    reference: DataLoader | None = None
    valid: DataLoader | None = None
    test: DataLoader | None = None
    plain: DataLoader | None = None
    whole: DataLoader | None = None
    internal: DataLoader | None = None


class XrayDataset(Dataset):
    """Images of the records, each transformed with its own generator.

    An item is the output of the transform; with targets it is (output, targets, index).

    Args:
        records: Records of N images.
        transform: Function that is called with (image, generator of the sample).
        seed: Part of the key of the generators.
        targets: Targets [N, K] float32, or None.
    """

    def __init__(
        self,
        records: Records,
        transform: Callable[[Image.Image, np.random.Generator], Any],
        *,
        seed: int,
        targets: np.ndarray | None = None,
    ) -> None:
        self.records = records
        self.image = images_of(records).reader(records.file)
        self.transform = transform
        self.seed = seed
        self.targets = targets

    @property
    def parts(self) -> dict[str, 'XrayDataset']:
        """Return the dataset of each source by name; without DATA.SOURCES the name is ''."""
        return {'': self}

    def place(self, index: int) -> tuple[str, int]:
        """Return the name of an image's source, and its position in the dataset of that source."""
        return '', index

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, ...]) -> Any:
        epoch, index, *occurrence = key
        number = int(self.records.sample[index])
        try:
            image = self.image(index)
        except ValueError as error:
            raise ValueError(str(self._fault(index, error))) from error
        sample = self.transform(image, sample_rng(self.seed, epoch, number, *occurrence))
        return sample if self.targets is None else (sample, self.targets[index], index)

    def _fault(self, index: int, error: ValueError) -> Fault:
        """Return the place of an image that cannot be used, and what to do."""
        row = int(self.records.row[index]) + 2 if self.records.csv else None
        place = str(self.records.root / self.records.csv), row
        return Fault('unusable image', f'{error} ({HINT})', *place)


class JoinedDataset(Dataset):
    """The images of several sources, one source after another.

    Args:
        parts: Dataset of each source by name.
        seed: Seed of the order of the images in each epoch.
    """

    def __init__(self, parts: dict[str, XrayDataset], *, seed: int) -> None:
        self.parts = {name: part for name, part in parts.items() if len(part)}
        self.seed = seed
        self.ends = np.cumsum([len(part) for part in self.parts.values()])

    def place(self, index: int) -> tuple[str, int]:
        """Return the name of an image's source, and its position in the dataset of that source."""
        number = int(np.searchsorted(self.ends, index, side='right'))
        name, part = list(self.parts.items())[number]
        return name, index - int(self.ends[number]) + len(part)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        name, position = self.place(index)
        return self.parts[name][epoch, position]


def training_dataset(
    records: dict[str, Records], transform: Callable, *, seed: int
) -> XrayDataset | JoinedDataset:
    """Build the training dataset of the records of each source; see `read_sources`."""
    seeds = {name: source_seed(seed, name) for name in records}
    return _join(records, transform, seeds, seed)


def holdout_dataset(
    records: dict[str, Records], transform: Callable
) -> XrayDataset | JoinedDataset:
    """Build the dataset of the held-out records of each source, with fixed random draws."""
    return _join(records, transform, dict.fromkeys(records, HOLDOUT_SEED), HOLDOUT_SEED)


def _join(
    records: dict[str, Records], transform: Callable, seeds: dict[str, int], seed: int
) -> XrayDataset | JoinedDataset:
    """Join the datasets of sources; without DATA.SOURCES there is one, whose name is ''."""
    parts = {name: XrayDataset(part, transform, seed=seeds[name]) for name, part in records.items()}
    return parts[''] if '' in parts else JoinedDataset(parts, seed=seed)


def source_seed(seed: int, source: str) -> int:
    """Return the seed of the samples of a source, which does not depend on other sources."""
    if not source:
        return seed
    # Not Python's hash, which differs from process to process.
    digest = hashlib.blake2b(f'{seed} {source}'.encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'big')


class EpochSampler(Sampler[list[tuple[int, ...]]]):
    """Batches of (epoch, index) of one rank, or of (epoch, index, occurrence) with weights.

    For training (shuffle), the order of the epoch is cut into global batches of batch_size x
    world_size images, and an incomplete last batch is dropped. Rank r takes the r-th part of each
    global batch, so n ranks train on the same global batches as one rank with n times the batch
    size. With weights [N], the order consists of N draws with replacement in proportion to them.

    Otherwise rank r takes images r, r + world_size, ... in order. Nothing is padded or dropped, and
    the epoch is always 0.

    Raises:
        ValueError: If the training images do not fill one global batch.
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
        # An incomplete batch is dropped, so nothing would be left to train on.
        if shuffle and num_images < batch_size * world_size:
            raise ValueError(
                f'{num_images} training images do not fill one batch of DATA.BATCH_SIZE '
                f'{batch_size} x {world_size} processes; use a smaller batch or more images'
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
        """Select the epoch of the next pass, and its first batch."""
        self.epoch = epoch
        self.first_batch = first_batch

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, even if the next pass skips some."""
        if self.shuffle:
            return self.num_images // (self.batch_size * self.world_size)
        return -(-len(range(self.rank, self.num_images, self.world_size)) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        epoch, columns = self._epoch_and_columns()
        for batch in range(self.first_batch, len(self)):
            # The epoch travels with each index: workers that stay alive do not see `set_epoch`.
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            rows = zip(*(column[part].tolist() for column in columns), strict=True)
            yield [(epoch, *row) for row in rows]

    def _epoch_and_columns(self) -> tuple[int, list[np.ndarray]]:
        """Return the epoch, and images (with occurrences) of this rank in the order of batches."""
        if not self.shuffle:
            return 0, [np.arange(self.rank, self.num_images, self.world_size)]
        if self.weights is None:
            columns = [epoch_order(self.seed, self.epoch, self.num_images)]
        else:
            order = weighted_order(self.seed, self.epoch, self.weights)
            columns = [order, occurrences(order)]  # counted over all ranks
        return self.epoch, [self._part_of_rank(column) for column in columns]

    def _part_of_rank(self, column: np.ndarray) -> np.ndarray:
        # [batches, ranks, images]: each global batch is the same for any number of ranks.
        column = column[: len(self) * self.world_size * self.batch_size]
        return column.reshape(-1, self.world_size, self.batch_size)[:, self.rank].ravel()


def sample_rng(seed: int, epoch: int, index: int, occurrence: int = 0) -> np.random.Generator:
    """Return the generator of one sample, which no worker, rank or restart changes.

    The generator is counter-based (Philox). Its key is the seed and the epoch. The number of the
    image (`Records.sample`, the argument `index`) and of its previous occurrences in the epoch are
    part of the counter. The order of draws is fixed: crop, flip, mask, then augmentations of
    fine-tuning.
    """
    return _generator(seed, epoch, SAMPLE, index, occurrence)


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Return the order in which an epoch visits its images, a permutation [length]."""
    return _generator(seed, epoch, ORDER).permutation(length)


def weighted_order(seed: int, epoch: int, weights: np.ndarray) -> np.ndarray:
    """Draw the images [N] of an epoch with replacement, in proportion to their weights [N]."""
    # Inverse of the cumulative distribution, which needs one draw per image.
    ends = np.cumsum(weights, dtype=np.float64)
    draws = _generator(seed, epoch, WEIGHTED).random(len(ends)) * ends[-1]
    return np.searchsorted(ends, draws, side='right')


def occurrences(order: np.ndarray) -> np.ndarray:
    """Return how often each entry of an order [N] came up before, [N]."""
    return pd.Series(order).groupby(order).cumcount().to_numpy()


def make_loader(
    dataset: XrayDataset | JoinedDataset,
    config: Config,
    *,
    shuffle: bool,
    weights: np.ndarray | None = None,
) -> DataLoader:
    """Build the DataLoader of this rank; `loader.batch_sampler.set_epoch` selects the epoch.

    The seed of the dataset determines the order of the images. EpochSampler explains `shuffle` and
    `weights`.
    """
    data, workers = config.DATA, num_workers(config)
    allow_open_files(workers, per_worker=LOADER_FILES)
    sampler = EpochSampler(
        len(dataset),
        batch_size=data.BATCH_SIZE,
        shuffle=shuffle,
        seed=dataset.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        weights=weights,
    )
    return _Loader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_prepare_worker,
        timeout=BATCH_SECONDS if workers else 0,
        pin_memory=data.PIN_MEMORY and torch.cuda.is_available(),
        # Evaluation is short, and its workers would stay idle.
        persistent_workers=shuffle and workers > 0,
        # The loader draws a base seed in each pass; it must not use the model's random stream.
        generator=torch.Generator().manual_seed(dataset.seed),
    )


def collate(samples: Sequence[Any]) -> Any:
    """Join samples to a batch, as PyTorch does, which does not know `GreyImages`."""
    if isinstance(samples[0], tuple):
        return [collate(column) for column in zip(*samples, strict=True)]
    is_grey = [isinstance(sample, GreyImages) for sample in samples]
    if all(is_grey):
        levels = default_collate([sample.levels for sample in samples])
        return GreyImages(levels, default_collate([sample.statistics for sample in samples]))
    if any(is_grey):  # images of 8 bits, and of more
        samples = [sample.to('cpu') for sample in samples]
    return default_collate(samples)


class _Loader(DataLoader):
    """A DataLoader whose workers get no LEFT_TO_MAIN, and that says so when a worker is lost."""

    def __iter__(self) -> Iterator[Any]:
        # Workers inherit the mask, so that no signal reaches them while they start.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_MAIN)
        try:
            batches = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            yield from batches
        except (ConnectionError, EOFError) as error:
            raise RuntimeError('DataLoader worker ended while it sent a batch') from error


def _generator(
    seed: int, epoch: int, kind: int, row: int = 0, occurrence: int = 0
) -> np.random.Generator:
    bits = np.random.Philox(key=[seed, epoch], counter=[0, row, kind, occurrence])
    return np.random.Generator(bits)


def _prepare_worker(worker: int) -> None:
    """Wait for SIGTERM by which the main process ends its workers.

    It waits for them without limit, so the signal must not be ignored.
    """
    sys.excepthook = _ignore_lost_connection
    if signal.SIGTERM in LEFT_TO_MAIN:
        threading.Thread(target=_end_when_main_process_asks, daemon=True).start()


def _ignore_lost_connection(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an error, unless the main process hung up because a signal stopped it.

    Errors of the data set do not come here: the loader raises them in the main process.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _end_when_main_process_asks() -> None:
    """End on SIGTERM from the main process, and from no other."""
    main_process = multiprocessing.parent_process().pid
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != main_process:
        continue
    os._exit(0)

"""Ways to read a data set into pre-training batches, to be measured against each other.

    published         SimMIM's pipeline, rebuilt of torchvision: three equal channels
    published, grey   the same with one channel
    files             this project's, on the same files
    store             this project's, on a packed store, picture by picture
    store, batched    a packed store of squares, gathered and transformed a batch at a time

For the same crop and flip the published pipeline gives the pixels of `files`, three times over, but
for the last bits of float32.  Its crops, flips and masks are drawn elsewhere: from the global
streams of torch and NumPy.
"""

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms

from config import Config, default_config, encoder_node
from data.chexpert import Records
from data.data_simmim import mask_generator
from data.device_loader import DeviceLoader
from data.images import decode
from data.loader import XrayDataset, build_dataset, make_loader
from data.masking import MaskGenerator
from data.packed import is_store, open_store
from data.sampling import sample_rng
from data.transforms import (
    CROP_ASPECT,
    GREY_STATISTICS,
    IMAGENET_STATISTICS,
    PRETRAIN_AREA,
    PretrainTransform,
)

# Where an image's time goes, in this order.  Pillow reads a file while it decodes it; of a batch
# that is drawn at once, 'mask' is all that is drawn.
STAGES = ('open', 'read', 'decode', 'gather', 'augment', 'mask', 'copy')
MIN_EPOCH = 200_000  # images; workers run dry at the end of an epoch, which training sees rarely


class Stopwatch:
    """Adds up the time between laps by their names."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self.start()

    def start(self) -> None:
        self.last = self.clock()

    def lap(self, stage: str) -> None:
        """What passed since the start or the last lap was this stage."""
        now = self.clock()
        self.seconds[stage] += now - self.last
        self.last = now


@dataclass(frozen=True)
class Setting:
    """What all sources of a measurement share."""

    size: int  # side of the crops in pixels
    batch_size: int
    device: torch.device  # where batches end

    @property
    def config(self) -> Config:
        """Pre-training with one channel; the other options are the defaults."""
        config = default_config()
        config.DATA.IMG_SIZE = self.size
        encoder_node(config).IN_CHANS = 1
        return config


class PublishedDataset(Dataset):
    """SimMIM's images and masks: ImageFolder's reading, torchvision's transforms.

    Args:
        records: what to read.
        size: side of the crops in pixels.
        channels: 'RGB' as published, or 'L'.
        masks: drawn from NumPy's global stream.
    """

    def __init__(self, records: Records, size: int, channels: str, masks: MaskGenerator) -> None:
        mean, std = IMAGENET_STATISTICS if channels == 'RGB' else GREY_STATISTICS
        self.records = records
        self.channels = channels
        self.masks = masks
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=PRETRAIN_AREA, ratio=CROP_ASPECT),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, np.ndarray]:
        return self.sample(index, Stopwatch())

    def sample(self, index: int, watch: Stopwatch) -> tuple[torch.Tensor, np.ndarray]:
        watch.start()
        with open(self.records.root / self.records.file[index], 'rb') as file:
            watch.lap('open')
            image = Image.open(file).convert(self.channels)
        watch.lap('decode')
        pixels = self.transform(image)
        watch.lap('augment')
        mask = self.masks()
        watch.lap('mask')
        return pixels, mask


class Source(ABC):
    """One way to get batches of (images [B, C, S, S], masks [B, h, w])."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name = name
        self.setting = setting

    @abstractmethod
    def batches(self, num_workers: int) -> Iterable[Any]:
        """An epoch's, on the device."""

    @abstractmethod
    def sample(self, position: int, watch: Stopwatch) -> tuple[Any, Any]:
        """One image and its mask, made in this process, with a lap after each stage."""

    def trace(self, positions: np.ndarray, watch: Stopwatch) -> Any:
        """A batch, made in this process, with a lap after each stage."""
        samples = [self.sample(position, watch) for position in positions.tolist()]
        watch.start()
        batch = [item.to(self.setting.device) for item in default_collate(samples)]
        watch.lap('copy')
        return batch


class PublishedSource(Source):
    """The published pipeline in so many channels."""

    def __init__(self, name: str, channels: str, records: Records, setting: Setting) -> None:
        super().__init__(name, setting)
        masks = mask_generator(setting.config)
        self.dataset = PublishedDataset(_repeated(records), setting.size, channels, masks)

    def batches(self, num_workers: int) -> Iterable[Any]:
        loader = DataLoader(
            self.dataset,
            batch_size=self.setting.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        return DeviceLoader(loader, self.setting.device)

    def sample(self, position: int, watch: Stopwatch) -> tuple[torch.Tensor, np.ndarray]:
        return self.dataset.sample(position, watch)


class OwnSource(Source):
    """This project's loader on files or on a store.

    Args:
        name: of the source.
        records: what to read.
        setting: shared by all sources.
        build: the data set, from records, transform and seed.
    """

    def __init__(
        self,
        name: str,
        records: Records,
        setting: Setting,
        *,
        build: Callable[..., XrayDataset] = XrayDataset,
    ) -> None:
        super().__init__(name, setting)
        config = setting.config
        self.masks = mask_generator(config)
        transform = PretrainTransform(config, self.masks)
        self.dataset = build(_repeated(records), transform, seed=config.SEED)
        still = np.zeros((1, 1), np.int64)  # the mask is drawn apart, to be timed apart
        self.without_mask = PretrainTransform(config, lambda rng: still)

    def batches(self, num_workers: int) -> Iterable[Any]:
        loader = make_loader(
            self.dataset,
            batch_size=self.setting.batch_size,
            shuffle=True,
            num_workers=num_workers,
            pin_memory=True,
        )
        finish = getattr(self.dataset, 'finish', None)
        return DeviceLoader(loader, self.setting.device, finish)

    def sample(self, position: int, watch: Stopwatch) -> tuple[torch.Tensor, torch.Tensor]:
        watch.start()
        image = self._image(position, watch)
        rng = sample_rng(self.dataset.seed, 0, int(self.dataset.records.row[position]))
        pixels, _ = self.without_mask(image, rng)
        watch.lap('augment')
        mask = torch.from_numpy(self.masks(rng))
        watch.lap('mask')
        return pixels, mask

    def _image(self, position: int, watch: Stopwatch) -> Image.Image:
        records = self.dataset.records
        if is_store(records.root):
            image = self.dataset.image(position)
            watch.lap('gather')
            return image
        with open(records.root / records.file[position], 'rb', buffering=0) as file:
            watch.lap('open')
            data = file.read()
        watch.lap('read')
        image = decode(data)
        watch.lap('decode')
        return image


class SquareSource(OwnSource):
    """A store of squares, a batch at a time."""

    def __init__(self, name: str, records: Records, setting: Setting) -> None:
        super().__init__(name, records, setting, build=build_dataset)

    def trace(self, positions: np.ndarray, watch: Stopwatch) -> Any:
        """What SquareDataset does in a worker, with a lap after each stage, then the rest."""
        dataset, device = self.dataset, self.setting.device
        store, places = dataset.store, dataset.positions[positions]
        watch.start()
        images = torch.from_numpy(store.gather(places))
        watch.lap('gather')
        parameters = dataset.batch_transform.draw(
            dataset.seed,
            0,
            dataset.records.row[positions],
            sizes=store.full_sizes(places),
            side=store.side,
        )
        watch.lap('mask')
        images = images.to(device)
        parameters = {name: item.to(device) for name, item in parameters.items()}
        watch.lap('copy')
        batch = dataset.finish((images, parameters))
        if device.type == 'cuda':
            torch.cuda.synchronize()
        watch.lap('augment')
        return batch


def file_sources(records: Records, setting: Setting) -> list[Source]:
    """The published pipeline with three channels and with one, and this project's, on files."""
    return [
        PublishedSource('published', 'RGB', records, setting),
        PublishedSource('published, grey', 'L', records, setting),
        OwnSource('files', records, setting),
    ]


def store_sources(records: Records, setting: Setting) -> list[Source]:
    """This project's ways on the records of a store: by picture and, if they are squares, batch."""
    sources: list[Source] = [OwnSource('store', records, setting)]
    if open_store(records.root).side is not None:
        sources.append(SquareSource('store, batched', records, setting))
    return sources


def _repeated(records: Records) -> Records:
    """The records, over and over, until they make a long epoch."""
    times = -(-MIN_EPOCH // len(records))
    return records.select(np.tile(np.arange(len(records)), times))

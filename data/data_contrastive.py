"""Data of contrastive pre-training: views of each image, and held-out patients with fixed views.

The images are those that `data.data_simmim` trains on and holds out. A packed store is read as
files are: views are made by the loader's workers, also for a store of squares.
"""

import logging

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch.utils.data import DataLoader

from config import Config
from data import Loaders
from data.data_simmim import HOLDOUT_SEED, evenly_spread, pretrain_records
from data.images import full_size
from data.loader import XrayDataset, bad_images, make_loader
from data.records import Records, describe_subset
from data.transforms import (
    FILTERS,
    PREPROCESS,
    EvalTransform,
    Normalize,
    RandomWarp,
    draw_crop,
    jitter,
    resized_crop,
)
from engine import distributed
from models.contrastive import METHODS

GLOBAL_AREA = (0.3, 1.0)
BLUR_SIGMA = (0.1, 2.0)  # of a view of BLUR_SIZE px; as a share of the side for others
BLUR_SIZE = 224
BLUR_REACH = 3.0  # standard deviations at which the kernel ends


class ViewsTransform:
    """(image, rng) -> views [C, S, S] of it: two, and SwAV's small crops [C, s, s] after them.

    What is random is to leave what an X-ray shows as it is, and to change what a network could
    tell an image by without it:

    - a crop of at least 0.3 of the area (AUG.CROP_AREA). SimCLR's 0.08 is less than a lung: two
      such views often have no anatomy in common, and what they show is not what is wrong;
    - a horizontal flip (AUG.HFLIP; 0 in the configs): it makes sides alike, though a heart on the
      right is a disease of its own (dextrocardia);
    - rotation, shift and the like, off by default (AUG.ROTATION, AUG.TRANSLATE, ...);
    - brightness and contrast by 1 +- AUG.COLOR_JITTER: exposure and windowing differ between
      machines. DATA.NORMALIZE 'image' undoes both, but for what is clipped;
    - Gaussian blur with probability CONTRASTIVE.BLUR, of SimCLR's strengths at 224 px and the same
      share of the side at others: focus, scatter and noise differ, too.

    Hue, saturation and greyscale do nothing to a grey image; solarised, lungs are bright and bones
    dark, which no X-ray that is scored is. MoCo-CXR (Sowrirajan et al. 2021, arXiv:2010.05352)
    leaves out crops, blur and jitter, too, lest they remove a finding, and has flips and rotations
    by up to 10 degrees.

    Each view takes 27 uniforms of the image's generator, whatever is turned off: crop (22), flip,
    brightness, contrast, whether it is blurred, how much; then what RandomWarp takes.
    """

    def __init__(self, config: Config) -> None:
        options, size = config.CONTRASTIVE, config.DATA.IMG_SIZE
        self.preprocess = PREPROCESS[config.DATA.PREPROCESS]
        self.hflip = config.AUG.HFLIP
        self.filter = FILTERS[config.DATA.PRETRAIN_INTERPOLATION][0]
        self.jitter = config.AUG.COLOR_JITTER
        self.blur = options.BLUR
        self.warp = RandomWarp(config)
        self.normalize = Normalize(config)
        num_global, num_local = METHODS[options.METHOD].num_views(config)
        self.views = num_global * [(size, tuple(config.AUG.CROP_AREA) or GLOBAL_AREA)]
        self.views += num_local * [(options.LOCAL_SIZE or size, tuple(options.LOCAL_CROP_AREA))]

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        image = self.preprocess(image)
        views = (self._view(image, rng, size, area) for size, area in self.views)
        return tuple(torch.from_numpy(self.normalize(view)[0]) for view in views)

    def _view(
        self, image: Image.Image, rng: np.random.Generator, size: int, area: tuple[float, float]
    ) -> np.ndarray:  # [size, size]
        box = draw_crop(rng, *full_size(image), area=area)
        flip, brightness, contrast, blur, strength = rng.random(5)
        pixels = resized_crop(image, box, size, self.filter)
        pixels = self.warp(pixels[:, ::-1] if flip < self.hflip else pixels, rng)
        if self.jitter:
            low, high = max(0.0, 1 - self.jitter), 1 + self.jitter
            brightness, contrast = (low + (high - low) * u for u in (brightness, contrast))
            pixels = jitter(pixels, brightness=brightness, contrast=contrast)
        if blur < self.blur:
            low, high = BLUR_SIGMA
            sigma = (low + (high - low) * strength) * size / BLUR_SIZE
            pixels = ndimage.gaussian_filter(pixels, sigma, truncate=BLUR_REACH)  # mirrored edges
        return pixels


class HoldoutViewsTransform:
    """(image, rng) -> (image [C, S, S] without augmentation, views of it drawn from rng ...)."""

    def __init__(self, config: Config) -> None:
        interpolation = config.DATA.PRETRAIN_INTERPOLATION
        self.plain = EvalTransform(config, interpolation, test_time_views=False)
        self.views = ViewsTransform(config)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        return self.plain(image, rng), *self.views(image, rng)


def build_loader_contrastive(config: Config, logger: logging.Logger) -> Loaders:
    """Loaders of contrastive pre-training (see data.Loaders): train, holdout."""
    train, holdout = pretrain_records(config, logger)
    subset = describe_subset(config)
    held_out = whole_batches(evenly_spread(holdout, config.EVAL.HOLDOUT_IMAGES), config)
    logger.info(
        f'views of {len(train)} images of {len(set(train.patient))} patients'
        f'{f" ({subset})" if subset else ""}; {len(held_out)} of {len(holdout)} held-out images '
        'are scored'
    )
    dataset = XrayDataset(
        train, ViewsTransform(config), seed=config.SEED, bad_images=bad_images(config, logger)
    )
    return Loaders(
        train=make_loader(dataset, config, shuffle=True),
        holdout=_holdout_loader(config, held_out),
    )


def whole_batches(records: Records, config: Config) -> Records:
    """As many, evenly spread, as give all processes the same batches.

    The loss compares the images of a batch on all processes: batches of one size can be compared
    with each other, and no process may have one more than another. Where there are not enough for
    one batch each, each has a smaller one.
    """
    processes = distributed.world_size()
    whole = processes * config.DATA.BATCH_SIZE
    unit = whole if len(records) >= whole else processes
    return (
        records.select(np.arange(0))
        if len(records) < unit
        else evenly_spread(records, len(records) // unit * unit)
    )


def _holdout_loader(config: Config, records: Records) -> DataLoader | None:
    if not len(records):
        return None
    dataset = XrayDataset(records, HoldoutViewsTransform(config), seed=HOLDOUT_SEED)
    return make_loader(dataset, config, shuffle=False)

"""Build the data of contrastive pre-training: random views, and fixed views of held-out patients.

Training and held-out images are the same as in `data.data_simmim`.
"""

import logging

import numpy as np
import torch
from PIL import Image

from config import PRETRAIN_FILTER, Config
from data.augmentation import RandomWarp, jitter
from data.images.files import full_size
from data.loader import Loaders, holdout_dataset, make_loader, training_dataset
from data.tables.records import Records
from data.tables.sources import read_sources
from data.transforms import EvalTransform, GreyImages, RandomCrop, View, draw_crop
from system import distributed

GLOBAL_AREA = (0.3, 1.0)
LOCAL_AREA = (0.05, 0.14)  # of SwAV's small crops (Caron et al. 2020, arXiv:2006.09882)
BLUR_SIGMA = (0.1, 2.0)  # for views of BLUR_SIZE px; other sizes have the same share of the side
BLUR_SIZE = 224
BLUR_REACH = 3.0  # standard deviations at which the kernel ends


class ViewsTransform(RandomCrop):
    """Draw two views [C, S, S] of an image, followed by SwAV's small crops [C, s, s].

    The augmentation preserves the anatomy and changes low-level cues by which a network could
    recognise an image: a crop of at least 0.3 of the area (with SimCLR's 0.08, two views may share
    little anatomy), horizontal flip, the warps of AUG, brightness and contrast by 1 +-
    AUG.COLOR_JITTER, and Gaussian blur with probability CONTRASTIVE.BLUR. The blur has SimCLR's
    strength at 224 px and the same share of the side at other sizes. MoCo-CXR (Sowrirajan et al.
    2021, arXiv:2010.05352) uses flips and rotations only.

    CONTRASTIVE.FIRST_CROP_AREA changes the crops of the first view, for example to the whole image.
    With CONTRASTIVE.WEAK_VIEW, the second view is only cropped and flipped. In BYOL, the two views
    differ in the probabilities of blur (1 and 0.1) and of solarisation (0 and 0.2) instead.

    Each view takes 27 uniform draws, even if some augmentations are off: crop (22), flip,
    brightness, contrast, whether to blur, and strength of the blur. The draws of RandomWarp follow,
    except for a weak view.
    """

    def __init__(self, config: Config, num_views: tuple[int, int]) -> None:
        from scipy.ndimage import gaussian_filter  # slow to import, once for all workers

        super().__init__(config, PRETRAIN_FILTER, GLOBAL_AREA)
        options = config.CONTRASTIVE
        self.gaussian_filter = gaussian_filter
        self.jitter, self.jitters_contrast = config.AUG.COLOR_JITTER, config.AUG.JITTER_CONTRAST
        self.blur = options.BLUR
        self.warp = RandomWarp(config)
        num_global, num_local = num_views
        first = tuple(options.FIRST_CROP_AREA) or self.area
        self.views = [(self.size, first), *(num_global - 1) * [(self.size, self.area)]]
        self.views += num_local * [(options.LOCAL_SIZE or self.size, LOCAL_AREA)]
        self.weak = [options.WEAK_VIEW and number == 1 for number in range(len(self.views))]

    def __call__(
        self, image: Image.Image, rng: np.random.Generator
    ) -> tuple[GreyImages | torch.Tensor, ...]:
        image = self.preprocess(image)
        views = []
        for (size, area), is_weak in zip(self.views, self.weak, strict=True):
            box = draw_crop(rng, *full_size(image), area=area)
            flip, brightness, contrast, blur, strength = rng.random(5)
            pixels = View(image, box, flip < self.hflip, size, self.preprocess).cut(image)
            pixels = before = pixels if is_weak else self.warp(pixels, rng)
            if self.jitter and not is_weak:
                low, high = max(0.0, 1 - self.jitter), 1 + self.jitter
                brightness, contrast = (low + (high - low) * u for u in (brightness, contrast))
                contrast = contrast if self.jitters_contrast else 1.0
                pixels = jitter(pixels, brightness=brightness, contrast=contrast)
            if blur < self.blur and not is_weak:
                low, high = BLUR_SIGMA
                sigma = (low + (high - low) * strength) * size / BLUR_SIZE
                pixels = self.gaussian_filter(pixels, sigma, truncate=BLUR_REACH)  # mirrored edges
            views.append(self.normalize.sample(pixels, before))
        return tuple(views)


class HoldoutViewsTransform:
    """Return an image [C, S, S] without augmentation, followed by views drawn from `rng`."""

    def __init__(self, config: Config, num_views: tuple[int, int]) -> None:
        self.plain = EvalTransform(config, PRETRAIN_FILTER, is_scored=False)
        self.views = ViewsTransform(config, num_views)

    def __call__(
        self, image: Image.Image, rng: np.random.Generator
    ) -> tuple[GreyImages | torch.Tensor, ...]:
        return self.plain.sample(image), *self.views(image, rng)


def build_loader_contrastive(
    config: Config, logger: logging.Logger, num_views: tuple[int, int]
) -> Loaders:
    """Build the loaders of contrastive pre-training (see data.Loaders): train and holdout.

    `num_views` are the numbers of global views and of small crops of each image.
    """
    train, holdout = read_sources(config, logger)
    held_out = holdout_dataset(
        whole_batches(holdout, config), HoldoutViewsTransform(config, num_views)
    )
    logger.info(f'{len(held_out)} held-out images are scored')
    dataset = training_dataset(train, ViewsTransform(config, num_views), seed=config.SEED)
    return Loaders(
        train=make_loader(dataset, config, shuffle=True),
        holdout=make_loader(held_out, config, shuffle=False) if len(held_out) else None,
    )


def whole_batches(parts: dict[str, Records], config: Config) -> dict[str, Records]:
    """Select evenly spread records so that all processes have the same number of full batches.

    The loss compares the images of a batch over all processes, so only batches of equal size are
    comparable. If there are too few images for full batches, each process has one smaller batch.
    The records are given and returned by the name of their source.
    """
    processes, total = distributed.world_size(), sum(map(len, parts.values()))
    whole = processes * config.DATA.BATCH_SIZE
    unit = whole if total >= whole else processes
    chosen = np.zeros(total, bool)
    count = total // unit * unit
    chosen[np.arange(count) * total // max(count, 1)] = True
    ends = np.cumsum([len(part) for part in parts.values()])
    masks = np.split(chosen, ends[:-1])
    return {name: parts[name].select(mask) for name, mask in zip(parts, masks, strict=True)}

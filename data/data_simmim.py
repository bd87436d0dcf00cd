"""Build the data of pre-training: masked images, and held-out images with fixed masks."""

import logging

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from config import PRETRAIN_FILTER, Config, encoder_node
from data.loader import Loaders, holdout_dataset, make_loader, training_dataset
from data.masking import MaskGenerator, mask_generator
from data.tables.records import Records
from data.tables.sources import read_sources
from data.transforms import EvalTransform, GreyImages, RandomCrop

# Every run is also scored on these masks, whatever it trains with. In small images, units of 32 px
# would leave one corner visible, so the units are an eighth of the side.
REFERENCE_MASK_PATCH = 32
REFERENCE_SMALL = 128
REFERENCE_MASK_RATIO = 0.6
PRETRAIN_AREA = (0.67, 1.0)


class PretrainTransform(RandomCrop):
    """Return a normalised crop [C, S, S] of an image, and a mask [h, w], for pre-training."""

    def __init__(self, config: Config, mask_generator: MaskGenerator) -> None:
        super().__init__(config, PRETRAIN_FILTER, PRETRAIN_AREA)
        self.mask_generator = mask_generator
        self.noise = config.AUG.NOISE

    def __call__(
        self, image: Image.Image, rng: np.random.Generator
    ) -> tuple[GreyImages | torch.Tensor, torch.Tensor]:
        # The view comes before the mask, because a mask may depend on what the crop shows.
        view = self.draw(image, rng)
        mask = self.mask_generator(rng, view)
        pixels = self.cut(view, rng)
        if self.noise:
            pixels = pixels + self.noise * rng.standard_normal(pixels.shape, np.float32)
        return self.normalize.sample(pixels), mask_bytes(mask)


class HoldoutTransform:
    """Return an image [C, S, S] without augmentation, a mask [h, w], scale [C] and offset [C].

    image * scale + offset restores the grey levels. Only the mask is drawn from `rng`.
    """

    def __init__(self, config: Config, mask_generator: MaskGenerator) -> None:
        self.plain = EvalTransform(config, PRETRAIN_FILTER, is_scored=False)
        self.mask_generator = mask_generator

    def __call__(
        self, image: Image.Image, rng: np.random.Generator
    ) -> tuple[GreyImages | torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        image = self.plain.preprocess(image)
        mask = self.mask_generator(rng, self.plain.view(image))
        # Only the mask is random, and it is fixed, so that errors of all epochs can be compared.
        pixels, normalize = self.plain.square(image), self.plain.normalize
        scale, offset = map(torch.from_numpy, normalize.statistics(pixels))
        return normalize.sample(pixels), mask_bytes(mask), scale, offset


def mask_bytes(mask: np.ndarray) -> torch.Tensor:  # [h, w]
    """Convert a mask to bytes: an eighth of what workers send and the GPU receives."""
    return torch.from_numpy(mask.astype(np.uint8))


def build_loader_simmim(config: Config, logger: logging.Logger) -> Loaders:
    """Build the loaders train, holdout and reference of pre-training (see data.Loaders)."""
    train, holdout = read_sources(config, logger)
    masks = mask_generator(config)
    train = training_dataset(train, PretrainTransform(config, masks), seed=config.SEED)
    reference = reference_mask_generator(config)
    if reference is None:
        unit = reference_mask_patch(config.DATA.IMG_SIZE)
        logger.info(f'no reference score: masks of {unit} px do not fit the image or its patches')
    held_out = _holdout_loader(config, holdout, masks)
    # With the masks of the reference itself, the held-out images need to be read only once.
    is_same = reference is not None and vars(reference) == vars(masks)
    return Loaders(
        train=make_loader(train, config, shuffle=True),
        holdout=held_out,
        reference=held_out if is_same else _holdout_loader(config, holdout, reference),
    )


def reference_mask_generator(config: Config) -> MaskGenerator | None:
    """Build the generator of the reference masks; None if they do not fit the image or patches."""
    size, patch = config.DATA.IMG_SIZE, encoder_node(config).PATCH_SIZE
    unit = reference_mask_patch(size)
    if not unit or size % unit or unit % patch:
        return None
    return MaskGenerator(size, unit, patch, REFERENCE_MASK_RATIO)


def reference_mask_patch(size: int) -> int:
    """Return the side of a unit of the reference masks in pixels, for an image size in pixels."""
    return REFERENCE_MASK_PATCH if size >= REFERENCE_SMALL else size // 8


def _holdout_loader(
    config: Config, records: dict[str, Records], masks: MaskGenerator | None
) -> DataLoader | None:
    """Build the batches of held-out images, with masks that do not depend on other sources."""
    if masks is None or not sum(map(len, records.values())):
        return None
    dataset = holdout_dataset(records, HoldoutTransform(config, masks))
    return make_loader(dataset, config, shuffle=False)

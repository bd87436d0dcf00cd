"""Data of pre-training: images with masks, and held-out patients with fixed masks."""

import logging

import numpy as np
from torch.utils.data import DataLoader

from config import Config, encoder_node
from data import Loaders
from data.loader import XrayDataset, bad_images, make_loader
from data.masking import MaskGenerator, mask_generator
from data.records import (
    Records,
    describe_subset,
    pretrain_records,
    read_split,
)
from data.transforms import HoldoutTransform, PretrainTransform

# Every run is also scored on these masks, whatever it trains with. In small images, units of 32 px
# would leave one corner visible, so the units are an eighth of the side.
REFERENCE_MASK_PATCH = 32
REFERENCE_SMALL = 128
REFERENCE_MASK_RATIO = 0.6
HOLDOUT_SEED = 0  # not SEED, so that all runs are scored on the same masks


def build_loader_simmim(config: Config, logger: logging.Logger) -> Loaders:
    """Build the loaders of pre-training (see data.Loaders): train, holdout, reference."""
    train, holdout = pretrain_records(config, read_split(config, 'train', logger, labelled=False))
    subset = describe_subset(config)
    logger.info(
        f'pre-training on {len(train)} images of {len(set(train.patient))} patients'
        f'{f" ({subset})" if subset else ""}; '
        f'{len(holdout)} images of {len(set(holdout.patient))} patients held out'
    )
    dataset = XrayDataset(
        train,
        PretrainTransform(config, mask_generator(config)),
        seed=config.SEED,
        bad_images=bad_images(config, logger),
    )
    holdout = evenly_spread(holdout, config.EVAL.HOLDOUT_IMAGES)
    reference = reference_mask_generator(config)
    if reference is None:
        unit = reference_mask_patch(config.DATA.IMG_SIZE)
        logger.info(f'no reference score: masks of {unit} px do not fit the image or its patches')
    masks = mask_generator(config)
    held_out = _holdout_loader(config, holdout, masks)
    is_same = reference is not None and vars(reference) == vars(masks)
    return Loaders(
        train=make_loader(dataset, config, shuffle=True),
        holdout=held_out,
        reference=held_out if is_same else _holdout_loader(config, holdout, reference),
    )


def reference_mask_generator(config: Config) -> MaskGenerator | None:
    """Build the masks that runs are compared on; None if they do not fit image or patches."""
    size, patch = config.DATA.IMG_SIZE, encoder_node(config).PATCH_SIZE
    unit = reference_mask_patch(size)
    if not unit or size % unit or unit % patch:
        return None
    return MaskGenerator(size, unit, patch, REFERENCE_MASK_RATIO)


def reference_mask_patch(size: int) -> int:
    """Return the unit, in pixels, of the masks that runs are compared on, for an image size."""
    return REFERENCE_MASK_PATCH if size >= REFERENCE_SMALL else size // 8


def evenly_spread(records: Records, count: int) -> Records:
    """Select this many records, evenly spread over their order; 0 selects all."""
    if count == 0 or count >= len(records):
        return records
    return records.select(np.arange(count) * len(records) // count)


def _holdout_loader(
    config: Config, records: Records, masks: MaskGenerator | None
) -> DataLoader | None:
    if masks is None or not len(records):
        return None
    dataset = XrayDataset(records, HoldoutTransform(config, masks), seed=HOLDOUT_SEED)
    return make_loader(dataset, config, shuffle=False)

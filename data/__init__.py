"""Load chest X-rays, from CSV files or folders to batches.

Importing this package, `data.labels` or `data.records` does not import torch.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, NamedTuple

from config import Config

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class Loaders(NamedTuple):
    """The loaders of a stage; None for a split that the stage does not have.

    The sources of the images are in `dataset.records` of a loader (with DATA.SOURCES, of each of
    `dataset.parts`), and the targets in `dataset.targets`. Shapes: B images, C channels, side S,
    h x w tokens, K labels.

    Pre-training:
        train: (images [B, C, S, S], masks [B, h, w]), augmented, with new masks in each epoch.
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


def build_loader(
    config: Config,
    logger: logging.Logger,
    is_pretrain: bool,
    *,
    num_views: tuple[int, int] | None = None,
) -> Loaders:
    """Build the loaders of pre-training, of contrastive pre-training or of fine-tuning.

    Contrastive pre-training needs the numbers of global views and of small crops of each image.
    """
    if not (config.DATA.DATA_PATH or config.DATA.SOURCES):
        raise ValueError('DATA.DATA_PATH is empty: give the folder of the data with --data-path')
    # Imported here, because these modules import torch.
    from data.data_contrastive import build_loader_contrastive
    from data.data_finetune import build_loader_finetune
    from data.data_simmim import build_loader_simmim
    from data.reading import log_store
    from data.sources import source_configs

    if config.CHECK_MODE:  # its table reports the number of workers
        warnings.filterwarnings('ignore', message='This DataLoader will create')
    for own in source_configs(config).values():
        log_store(own, logger)
    if num_views:
        return build_loader_contrastive(config, logger, num_views)
    if is_pretrain:
        return build_loader_simmim(config, logger)
    return build_loader_finetune(config, logger)

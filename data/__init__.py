"""Chest X-rays: from CSV rows or folders to batches.

Importing this package, `data.labels` or `data.chexpert` does not import torch.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from config import Config


class Loaders(NamedTuple):
    """The batches of a stage; None where a stage has no such split.

    Each loader's `dataset.records` says where an image comes from, and `dataset.targets` what its
    targets are.  B images, C channels, side S, h x w tokens, K labels.

    Pre-training:
        train: (images [B, C, S, S], masks [B, h, w]), augmented, another mask in each epoch.
        holdout: (images, masks, scale [B, C], offset [B, C]) of held-out patients, with the run's
            kind of masks, always the same ones; images * scale + offset are grey levels 0..255.
        reference: the same images with masks that do not depend on the run: random, 0.6 hidden,
            units of 32 px, below 128 px of an eighth of the side (data_simmim.
            reference_mask_patch). None where these do not fit the image or the model's patches.

    Contrastive pre-training:
        train: views of images, as many tensors [B, C, S, S] as there are views; other ones in each
            epoch. SwAV's small crops come last and may be smaller.
        holdout: (images [B, C, S, S] without augmentation, views ...) of held-out patients, always
            the same views; as many batches on every rank.

    Fine-tuning:
        train: (images, targets [B, K], index [B]), augmented; NaN targets are not learned from.
        holdout, valid, test: the same without augmentation; each image once over all ranks, NaN
            targets are not scored.  index is the position in dataset.records.  With test-time
            views the images are [B, T, C, S, S].
        plain: training images without augmentation, in order: those of train (which is None) for
            FINETUNE.MODE 'linear_probe' and 'knn'.
        whole: every training image likewise, before a subset is taken; with EVAL.PREDICT_TRAIN.
    """

    train: DataLoader | None = None
    holdout: DataLoader | None = None
    reference: DataLoader | None = None
    valid: DataLoader | None = None
    test: DataLoader | None = None
    plain: DataLoader | None = None
    whole: DataLoader | None = None


def build_loader(
    config: Config, logger: logging.Logger, is_pretrain: bool, *, contrastive: bool = False
) -> Loaders:
    """The loaders of pre-training, of contrastive pre-training or of fine-tuning."""
    if not config.DATA.DATA_PATH:
        raise ValueError('DATA.DATA_PATH is empty: name the folder of the data with --data-path')
    from data.records import log_store

    if config.CHECK_MODE:  # whose table has a line for the workers
        warnings.filterwarnings('ignore', message='This DataLoader will create')
    log_store(config, logger)
    if contrastive:
        from data.data_contrastive import build_loader_contrastive

        return build_loader_contrastive(config, logger)
    if is_pretrain:
        from data.data_simmim import build_loader_simmim

        return build_loader_simmim(config, logger)
    from data.data_finetune import build_loader_finetune

    return build_loader_finetune(config, logger)

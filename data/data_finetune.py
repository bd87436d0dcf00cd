"""Data of fine-tuning: labelled images; policies for training targets, none for scored ones."""

import logging
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from config import Config
from data import Loaders
from data.chexpert import Records, read_csv, select_views, split_holdout, take_subset
from data.labels import (
    LABELS,
    check_two_classes,
    count_uncertain,
    evaluation_targets,
    training_targets,
)
from data.loader import XrayDataset, loader_options, make_loader
from data.transforms import EvalTransform, TrainTransform


def build_loader_finetune(config: Config, logger: logging.Logger) -> Loaders:
    """Loaders of fine-tuning (see data.Loaders): train, holdout, valid, test.

    With EVAL_MODE there is no train, and no holdout where the training CSV is absent.
    """
    data, root = config.DATA, Path(config.DATA.DATA_PATH)
    train = holdout = test = None
    if not config.EVAL_MODE or (root / data.TRAIN_CSV).is_file():
        train_records, holdout_records = split_holdout(
            _read(config, data.TRAIN_CSV, logger), data.HOLDOUT_FRACTION
        )
        if not config.EVAL_MODE:
            train = _train_loader(config, train_records, logger)
        if len(holdout_records):
            holdout = _eval_loader(config, 'holdout', holdout_records, logger)
    valid = _eval_loader(config, 'valid', _read(config, data.VALID_CSV, logger), logger)
    if (root / data.TEST_CSV).is_file():
        test = _eval_loader(config, 'test', _read(config, data.TEST_CSV, logger), logger)
    return Loaders(train=train, holdout=holdout, valid=valid, test=test)


def _read(config: Config, csv_name: str, logger: logging.Logger) -> Records:
    return read_csv(
        config.DATA.DATA_PATH, csv_name, image_suffix=config.DATA.IMAGE_SUFFIX, logger=logger
    )


def _train_loader(config: Config, records: Records, logger: logging.Logger) -> DataLoader:
    """Training batches; the policies are checked on all images, before a subset is taken."""
    data = config.DATA
    records = select_views(records, data.VIEWS)
    check_two_classes(records.labels, _training_targets(config, records))
    records = take_subset(
        records, fraction=data.TRAIN_FRACTION, images=data.TRAIN_IMAGES, seed=config.SEED
    )
    targets = _training_targets(config, records)
    _log_split(logger, 'train', records, f'{np.isnan(targets).sum()} labels not learned from')
    _warn_of_one_class(logger, 'train', targets, 'nothing to learn')
    dataset = XrayDataset(records, TrainTransform(config), seed=config.SEED, targets=targets)
    return make_loader(dataset, shuffle=True, **loader_options(config))


def _training_targets(config: Config, records: Records) -> np.ndarray:
    data = config.DATA
    return training_targets(
        records.labels,
        uncertain=data.UNCERTAIN,
        by_label=data.UNCERTAIN_BY_LABEL,
        blank=data.BLANK,
    )


def _eval_loader(
    config: Config, split: str, records: Records, logger: logging.Logger
) -> DataLoader:
    records = select_views(records, config.EVAL.VIEWS or config.DATA.VIEWS)
    targets = evaluation_targets(records.labels, blank=config.DATA.BLANK)
    uncertain = count_uncertain(records.labels)
    named = ', '.join(f'{label} {count}' for label, count in uncertain.items()) or 'none'
    _log_split(logger, split, records, f'uncertain and left out: {named}')
    _warn_of_one_class(logger, split, targets, 'not scored')
    dataset = XrayDataset(records, EvalTransform(config), seed=config.SEED, targets=targets)
    return make_loader(dataset, shuffle=False, **loader_options(config))


def _warn_of_one_class(
    logger: logging.Logger, split: str, targets: np.ndarray, consequence: str
) -> None:
    both = (targets == 1).any(axis=0) & (targets == 0).any(axis=0)
    if not both.all():
        names = ', '.join(np.array(LABELS)[~both])
        logger.warning(f'{split}: without both classes, {consequence}: {names}')


def _log_split(logger: logging.Logger, split: str, records: Records, labels: str) -> None:
    views, counts = np.unique(records.view, return_counts=True)
    by_view = ', '.join(f'{count} {view}' for view, count in zip(views, counts, strict=True))
    logger.info(
        f'{split}: {len(records)} images of {len(set(records.patient))} patients ({by_view}); '
        f'{labels}'
    )

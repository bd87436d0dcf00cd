"""Data of fine-tuning: labelled images; policies for training targets, none for scored ones."""

import logging

import numpy as np
from torch.utils.data import DataLoader

from config import Config
from config_checks import PROBES
from data import Loaders
from data.bad_images import bad_images
from data.chexpert import Records, select_views, split_holdout
from data.groups import group_columns
from data.labels import (
    check_two_classes,
    count_uncertain,
    scored_targets,
    task_labels,
    task_targets,
    training_targets,
)
from data.loader import build_dataset, loader_options, make_loader
from data.predictions import predictions_for
from data.pseudo_labels import describe_values, joined, read_pseudo_labels
from data.sampling import inverse_frequency_weights
from data.splits import describe_subset, read_split, training_records
from data.transforms import EvalTransform, TrainTransform


def build_loader_finetune(config: Config, logger: logging.Logger) -> Loaders:
    """Loaders of fine-tuning (see data.Loaders).

    With EVAL_MODE there is no train, and no holdout where the training labels are absent.
    """
    holdout, parts = None, {}
    everything = read_split(config, 'train', logger, optional=config.EVAL_MODE)
    if everything is not None:
        train_records, holdout_records = split_holdout(everything, config.DATA.HOLDOUT_FRACTION)
        if not config.EVAL_MODE:
            parts = _training_loaders(config, train_records, holdout_records, logger)
        if config.EVAL.PREDICT_TRAIN:
            parts['whole'] = _eval_loader(config, 'all training', train_records, logger)
        if len(holdout_records):
            holdout = _eval_loader(config, 'holdout', holdout_records, logger)
    valid, test = (_scored_loader(config, split, logger) for split in ('valid', 'test'))
    return Loaders(holdout=holdout, valid=valid, test=test, **parts)


def _training_loaders(
    config: Config, everything: Records, holdout: Records, logger: logging.Logger
) -> dict[str, DataLoader]:
    """`train` or, for probes, `plain`; policies are checked before a subset is taken."""
    data = config.DATA
    if data.TASK == 'observations':
        viewed = select_views(everything, data.VIEWS)
        unread = data.UNCERTAIN == 'self_train' or 'self_train' in data.UNCERTAIN_BY_LABEL.values()
        policy = 'ignore' if unread else None  # predictions may be of the subset alone
        check_two_classes(viewed.labels, _training_targets(config, viewed, policy))
    records = training_records(config, everything)
    targets = _training_targets(config, records)
    unused = np.isnan(targets).sum()
    remark = f'{unused} labels not learned from' if unused else ''
    _log_split(logger, 'train', records, remark, subset=describe_subset(config))
    if data.PSEUDO_LABELS:
        pseudo_labelled, values = read_pseudo_labels(config, everything, holdout)
        counts = describe_values(values, task_labels(data.TASK))
        remark = f'{data.PSEUDO_LABELS}: positive + negative values: {counts}'
        _log_split(logger, 'pseudo-labelled', pseudo_labelled, remark)
        records = joined(records, pseudo_labelled)
        targets = np.concatenate([targets, values])
    _warn_of_one_class(logger, 'train', targets, task_labels(data.TASK), 'nothing to learn')
    if config.FINETUNE.MODE in PROBES:
        transform = EvalTransform(config, test_time_views=False)
        dataset = build_dataset(records, transform, seed=config.SEED, targets=targets)
        return {'plain': make_loader(dataset, shuffle=False, **loader_options(config))}
    dataset = build_dataset(
        records,
        TrainTransform(config),
        seed=config.SEED,
        targets=targets,
        bad_images=bad_images(config, logger),
    )
    weights = inverse_frequency_weights(targets) if data.SAMPLER == 'weighted' else None
    options = loader_options(config)
    return {'train': make_loader(dataset, shuffle=True, weights=weights, **options)}


def _training_targets(
    config: Config, records: Records, self_train: str | None = None
) -> np.ndarray:  # [N, K]
    """Targets by the policies; `self_train` names a policy to put in its place."""
    data = config.DATA
    if data.TASK != 'observations':
        return task_targets(records.labels, data.TASK)
    policies = {**data.UNCERTAIN_BY_LABEL}
    uncertain, predictions = data.UNCERTAIN, None
    if self_train:
        uncertain = self_train if uncertain == 'self_train' else uncertain
        policies = {k: self_train if v == 'self_train' else v for k, v in policies.items()}
    elif 'self_train' in (uncertain, *policies.values()):
        predictions = predictions_for(data.SELF_TRAIN_PREDICTIONS, records.path)
    return training_targets(
        records.labels,
        uncertain=uncertain,
        by_label=policies,
        blank=data.BLANK,
        rows=records.row,
        seed=config.SEED,
        predictions=predictions,
    )


def _scored_loader(config: Config, split: str, logger: logging.Logger) -> DataLoader | None:
    """Loader of valid, or of test if there is one; columns to group by are looked up at once."""
    records = read_split(config, split, logger, optional=split == 'test')
    if records is None:
        return None
    group_columns(records, config.EVAL.GROUPS, demographics=config.DATA.DEMOGRAPHICS)
    return _eval_loader(config, split, records, logger)


def _eval_loader(
    config: Config, split: str, records: Records, logger: logging.Logger
) -> DataLoader:
    records = select_views(records, config.EVAL.VIEWS or config.DATA.VIEWS)
    task = config.DATA.TASK
    targets = scored_targets(records.labels, task=task, blank=config.DATA.BLANK)
    uncertain = count_uncertain(records.labels) if task == 'observations' else {}
    named = ', '.join(f'{label} {count}' for label, count in uncertain.items())
    _log_split(logger, split, records, f'uncertain and left out: {named}' if named else '')
    _warn_of_one_class(logger, split, targets, task_labels(task), 'not scored')
    dataset = build_dataset(records, EvalTransform(config), seed=config.SEED, targets=targets)
    return make_loader(dataset, shuffle=False, **loader_options(config))


def _warn_of_one_class(
    logger: logging.Logger,
    split: str,
    targets: np.ndarray,
    labels: tuple[str, ...],
    consequence: str,
) -> None:
    both = ((targets >= 0.5) & (targets <= 1)).any(axis=0) & (targets < 0.5).any(axis=0)
    if not both.all():
        names = ', '.join(np.array(labels)[~both])
        logger.warning(f'{split}: without both classes, {consequence}: {names}')


def _log_split(
    logger: logging.Logger, split: str, records: Records, remark: str, *, subset: str = ''
) -> None:
    views, counts = np.unique(records.view, return_counts=True)
    by_view = ', '.join(f'{count} {view}' for view, count in zip(views, counts, strict=True))
    about = f'{subset}; {by_view}' if subset else by_view
    line = f'{split}: {len(records)} images of {len(set(records.patient))} patients ({about})'
    logger.info(f'{line}; {remark}' if remark else line)

"""Data of fine-tuning: labelled images, and pseudo-labels for images without labels.

Training targets follow the policies for uncertain labels; uncertain labels are never scored.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

from config import PROBES, Config
from data import Loaders
from data.labels import (
    LABELS,
    POLICIES,
    check_two_classes,
    count_uncertain,
    find_task,
    label_policies,
    multiclass_labels,
    scored_targets,
    task_labels,
    training_targets,
)
from data.loader import (
    XrayDataset,
    bad_images,
    inverse_frequency_weights,
    make_loader,
)
from data.records import (
    Predictions,
    Records,
    check_task,
    describe_subset,
    group_columns,
    look_up,
    normalise_name,
    predictions_for,
    read_predictions,
    read_split,
    row_names,
    select_views,
    split_holdout,
    training_records,
)
from data.transforms import EvalTransform, TrainTransform


def build_loader_finetune(config: Config, logger: logging.Logger) -> Loaders:
    """Build the loaders of fine-tuning (see data.Loaders).

    With EVAL_MODE there is no train, and no holdout if the training CSV is absent.
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


def unlabelled_records(config: Config, records: Records) -> Records:
    """Select the images of DATA.VIEWS of the patients outside the training subset.

    Args:
        config: DATA.TRAIN_FRACTION or DATA.TRAIN_IMAGES, and SEED, determine the subset.
        records: All training images that are not held out.

    Returns:
        Their records with the labels that were read; training must not use these labels.
    """
    outside = ~_of_subset(config, records)
    return select_views(records.select(outside), config.DATA.VIEWS)


def _training_loaders(
    config: Config, everything: Records, holdout: Records, logger: logging.Logger
) -> dict[str, DataLoader]:
    """Build `train` or, for probes, `plain`; policies are checked before a subset is taken."""
    data = config.DATA
    if data.TASK == 'observations':
        viewed = select_views(everything, data.VIEWS)
        # Predictions may cover only the images of the subset.
        check_two_classes(viewed.labels, _training_targets(config, viewed, read_predicted=False))
    records = training_records(config, everything)
    targets = _training_targets(config, records)
    unused = np.isnan(targets).sum()
    remark = f'{unused} labels are ignored' if unused else ''
    _log_split(logger, 'train', records, remark, subset=describe_subset(config))
    if data.PSEUDO_LABELS:
        pseudo_labelled, values = _read_pseudo_labels(config, everything, holdout)
        counts = _describe_values(values, task_labels(data.TASK))
        remark = f'{data.PSEUDO_LABELS}: positive + negative values: {counts}'
        _log_split(logger, 'pseudo-labelled', pseudo_labelled, remark)
        records = _joined(records, pseudo_labelled)
        targets = np.concatenate([targets, values])
    _warn_of_one_class(logger, 'train', targets, task_labels(data.TASK), 'nothing to learn')
    if config.FINETUNE.MODE in PROBES:
        transform = EvalTransform(config, test_time_views=False)
        dataset = XrayDataset(records, transform, seed=config.SEED, targets=targets)
        return {'plain': make_loader(dataset, config, shuffle=False)}
    dataset = XrayDataset(
        records,
        TrainTransform(config),
        seed=config.SEED,
        targets=targets,
        bad_images=bad_images(config, logger),
    )
    weights = inverse_frequency_weights(targets) if data.SAMPLER == 'weighted' else None
    return {'train': make_loader(dataset, config, shuffle=True, weights=weights)}


def _training_targets(
    config: Config, records: Records, *, read_predicted: bool = True
) -> np.ndarray:  # [N, K]
    """Apply the label policies; without `read_predicted`, labels to be predicted are NaN."""
    data = config.DATA
    if not find_task(data.TASK).uses_policies:
        return scored_targets(records.labels, task=data.TASK, blank=data.BLANK)
    names = label_policies(data.UNCERTAIN, data.UNCERTAIN_BY_LABEL)
    predictions = None
    if not read_predicted:
        names = ['ignore' if POLICIES[name].needs_predictions else name for name in names]
    elif any(POLICIES[name].needs_predictions for name in names):
        predictions = predictions_for(data.SELF_TRAIN_PREDICTIONS, records.path)
    return training_targets(
        records.labels,
        names,
        blank=data.BLANK,
        rows=records.row,
        seed=config.SEED,
        predictions=predictions,
    )


def _scored_loader(config: Config, split: str, logger: logging.Logger) -> DataLoader | None:
    """Build the loader of valid, or of test if present, and check the columns of subgroups."""
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
    dataset = XrayDataset(records, EvalTransform(config), seed=config.SEED, targets=targets)
    return make_loader(dataset, config, shuffle=False)


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


def _read_pseudo_labels(
    config: Config, records: Records, held_out: Records
) -> tuple[Records, np.ndarray]:
    """Read the values in the file DATA.PSEUDO_LABELS and the images they belong to.

    Args:
        config: See `unlabelled_records`; the labels are those of DATA.TASK.
        records: All training images that are not held out.
        held_out: The images that are held out.

    Returns:
        Records without labels (all NaN), and [M, K] float32 in [0, 1], NaN where the file is empty.

    Raises:
        ValueError: Naming the file and the row, if the file is not a predictions file (cells may
            be empty), if an image belongs to a held-out patient, to the subset, to another view or
            to no training image, if a label with a third class has a value between 0 and 1, or if
            there is no value at all.
    """
    file, labels = config.DATA.PSEUDO_LABELS, task_labels(config.DATA.TASK)
    predictions = read_predictions(file, allow_empty=True)
    check_task(file, config.DATA.TASK)
    classes = multiclass_labels(config.DATA.UNCERTAIN, config.DATA.UNCERTAIN_BY_LABEL)
    _refuse_soft(predictions, np.array(LABELS)[classes])
    unlabelled, of_subset = unlabelled_records(config, records), _of_subset(config, records)
    names = row_names(predictions, unlabelled.path)
    others = {
        'of a held-out patient': held_out,
        'of a patient whose real labels are used': records.select(of_subset),
        f'not of DATA.VIEWS {config.DATA.VIEWS!r}': records,
    }
    _refuse_others(predictions, names, others, csv=records.csv)
    values = look_up(predictions, names, labels).astype(np.float32)
    has_value = ~np.isnan(values).all(axis=1)
    if not has_value.any():
        raise ValueError(f'DATA.PSEUDO_LABELS {file} has no value of {", ".join(labels)}')
    kept = unlabelled.select(has_value)
    return replace(kept, labels=np.full_like(kept.labels, np.nan)), values[has_value]


def _joined(first: Records, second: Records) -> Records:
    """Concatenate records of the same CSV."""
    names = [entry.name for entry in fields(Records) if entry.name not in ('root', 'csv')]
    arrays = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names}
    return replace(first, **arrays)


def _describe_values(values: np.ndarray, labels: Sequence[str]) -> str:
    """Describe how many positive (0.5 or more) and negative values [M, K] each label has."""
    positive, negative = (values >= 0.5).sum(axis=0), (values < 0.5).sum(axis=0)
    counts = zip(labels, positive.tolist(), negative.tolist(), strict=True)
    return ', '.join(f'{label} {high} + {low}' for label, high, low in counts)


def _of_subset(config: Config, records: Records) -> np.ndarray:
    """Whether each image [N] belongs to a patient of the subset, whose real labels are used."""
    return pd.Index(records.patient).isin(set(training_records(config, records).patient))


def _refuse_soft(predictions: Predictions, labels: Sequence[str]) -> None:
    """Refuse values between 0 and 1 of these labels, whose loss needs classes."""
    values = predictions.probabilities
    soft = np.isin(predictions.labels, labels) & (values > 0) & (values < 1)  # [N, K]
    if soft.any():
        row, k = np.argwhere(soft)[0]
        raise ValueError(
            f'DATA.PSEUDO_LABELS {predictions.file}, row {predictions.row[row] + 2} (the header is '
            f'row 1), column {predictions.labels[k]!r}: {values[row, k]:g} is not allowed where '
            'uncertain is a third class (allowed: 0, 1, or empty)'
        )


def _refuse_others(
    predictions: Predictions, wanted: Sequence[str], others: Mapping[str, Records], *, csv: str
) -> None:
    """Refuse a row with another name than the wanted ones, and report what it is instead."""
    own = [normalise_name(name) for name in predictions.names]
    stray = ~pd.Index(own).isin(wanted)
    if not stray.any():
        return
    first, reason = int(np.argmax(stray)), f'of no training image in {csv}'
    for what, records in others.items():
        if own[first] in row_names(predictions, records.path):
            reason = what
            break
    raise ValueError(
        f'DATA.PSEUDO_LABELS {predictions.file}, row {predictions.row[first] + 2} (the header is '
        f'row 1): it is {reason}; only training patients whose labels DATA.TRAIN_FRACTION or '
        'DATA.TRAIN_IMAGES leaves out may have pseudo-labels'
    )

"""Pseudo-labels: whom they are for, and a file's of them beside the real labels of a subset."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import pandas as pd

from config import Config
from data.chexpert import Records, select_views
from data.labels import LABELS, multiclass_labels, task_labels
from data.predictions import (
    Predictions,
    check_task,
    look_up,
    normalise_name,
    read_predictions,
    row_names,
)
from data.splits import training_records


def unlabelled_records(config: Config, records: Records) -> Records:
    """The images of DATA.VIEWS of the patients that the subset of training leaves out.

    Args:
        config: whose DATA.TRAIN_FRACTION or DATA.TRAIN_IMAGES, and SEED, draw the subset.
        records: all training images that are not held out.

    Returns:
        Their records, with the labels as they were read: who trains must not look at these.
    """
    outside = ~_of_subset(config, records)
    return select_views(records.select(outside), config.DATA.VIEWS)


def read_pseudo_labels(
    config: Config, records: Records, held_out: Records
) -> tuple[Records, np.ndarray]:
    """The images that the file of DATA.PSEUDO_LABELS has a value of, and its values.

    Args:
        config: see `unlabelled_records`; the labels are those of DATA.TASK.
        records: all training images that are not held out.
        held_out: those that are.

    Returns:
        Records without labels (all NaN), and [M, K] float32 in [0, 1], NaN where the file is empty.

    Raises:
        ValueError: naming the file, and the row where there is one: if it is no predictions file
            (cells may be empty), if an image is of a held-out patient, of one of the subset, of
            another view or not in the training CSV, if a label with the policy 'multiclass' has a
            value between 0 and 1, or if there is no value at all.
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
        'of a patient whose real labels are learned from': records.select(of_subset),
        f'not of DATA.VIEWS {config.DATA.VIEWS!r}': records,
    }
    _refuse_others(predictions, names, others, csv=records.csv)
    values = look_up(predictions, names, labels).astype(np.float32)
    has_value = ~np.isnan(values).all(axis=1)
    if not has_value.any():
        raise ValueError(f'DATA.PSEUDO_LABELS {file} has no value of {", ".join(labels)}')
    kept = unlabelled.select(has_value)
    return replace(kept, labels=np.full_like(kept.labels, np.nan)), values[has_value]


def joined(first: Records, second: Records) -> Records:
    """The records of both, which are of the same CSV."""
    names = [entry.name for entry in fields(Records) if entry.name not in ('root', 'csv')]
    arrays = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names}
    return replace(first, **arrays)


def describe_values(values: np.ndarray, labels: Sequence[str]) -> str:
    """How many positive (from 0.5 on) and negative values each label has, in words.

    Args:
        values: [M, K], NaN where there is none.
        labels: [K] names.
    """
    positive, negative = (values >= 0.5).sum(axis=0), (values < 0.5).sum(axis=0)
    counts = zip(labels, positive.tolist(), negative.tolist(), strict=True)
    return ', '.join(f'{label} {high} + {low}' for label, high, low in counts)


def _of_subset(config: Config, records: Records) -> np.ndarray:
    """[N] whether an image is of a patient of whom real labels are learned from."""
    return pd.Index(records.patient).isin(set(training_records(config, records).patient))


def _refuse_soft(predictions: Predictions, labels: Sequence[str]) -> None:
    """Refuse values between 0 and 1 of these labels, whose loss knows classes alone."""
    values = predictions.probabilities
    soft = np.isin(predictions.labels, labels) & (values > 0) & (values < 1)  # [N, K]
    if soft.any():
        row, k = np.argwhere(soft)[0]
        raise ValueError(
            f'DATA.PSEUDO_LABELS {predictions.file}, row {predictions.row[row] + 2} (the header is '
            f'row 1), column {predictions.labels[k]!r}: {values[row, k]:g} is not allowed with the '
            "policy 'multiclass' (allowed: 0, 1, or empty)"
        )


def _refuse_others(
    predictions: Predictions, wanted: Sequence[str], others: Mapping[str, Records], *, csv: str
) -> None:
    """Refuse a row that is none of the wanted names, saying what it is instead."""
    own = [normalise_name(name) for name in predictions.names]
    stray = ~pd.Index(own).isin(wanted)
    if not stray.any():
        return
    first, reason = int(np.argmax(stray)), f'of no training image of {csv}'
    for what, records in others.items():
        if own[first] in row_names(predictions, records.path):
            reason = what
            break
    raise ValueError(
        f'DATA.PSEUDO_LABELS {predictions.file}, row {predictions.row[first] + 2} (the header is '
        f'row 1): it is {reason}; only training patients whose labels DATA.TRAIN_FRACTION or '
        'DATA.TRAIN_IMAGES leaves out may have pseudo-labels'
    )

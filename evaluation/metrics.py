"""CheXpert's scores, from arrays: AUROC per label, image or study level, and their means."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score


def auroc_per_label(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each label over the entries whose target is known.

    Args:
        probabilities: [N, K], any increasing score will do.
        targets: [N, K], 1, 0, or NaN where the label is not to be scored.

    Returns:
        [K], NaN for a label that has not both classes.
    """
    areas = np.full(targets.shape[1], np.nan)
    for k in range(targets.shape[1]):
        known = ~np.isnan(targets[:, k])
        if np.unique(targets[known, k]).size == 2:
            areas[k] = roc_auc_score(targets[known, k], probabilities[known, k])
    return areas


def study_level(
    probabilities: np.ndarray, targets: np.ndarray, studies: Sequence[str], how: str = 'max'
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row a study: the greatest or mean probability and the target over its images.

    Args:
        probabilities: [N, K].
        targets: [N, K], 1, 0, or NaN.
        studies: [N] names; images with the same name belong together.
        how: 'max' (CheXpert's) or 'mean' of the probabilities.

    Returns:
        probabilities [S, K], targets [S, K] (NaN where no image has one), names [S], sorted.

    Source: Irvin et al. 2019, arXiv:1901.07031, section 4 (maximum over the views of a study).
    """
    names, study = np.unique(np.asarray(studies), return_inverse=True)
    if how == 'mean':
        joined = np.zeros((names.size, probabilities.shape[1]))
        np.add.at(joined, study, probabilities)
        joined /= np.bincount(study)[:, None]
    else:
        joined = np.full((names.size, probabilities.shape[1]), -np.inf)
        np.maximum.at(joined, study, probabilities)
    known = np.full((names.size, targets.shape[1]), -np.inf)
    np.maximum.at(known, study, np.where(np.isnan(targets), -np.inf, targets))
    return joined, np.where(np.isinf(known), np.nan, known), names


def mean_defined(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float('nan')


def mean_of_all(values: np.ndarray) -> float:
    """Mean if every value is defined, else NaN: a mean over fewer labels is another quantity."""
    return float(np.mean(values))


def selection_score(
    areas: np.ndarray, labels: Sequence[str], five: Sequence[str], rule: str
) -> float:
    """The figure by which a checkpoint is selected.

    Args:
        areas: [K] AUROC, NaN where undefined.
        labels: [K] names.
        five: names of the competition tasks.
        rule: 'five' (mean of the five, NaN if one is undefined), 'all' (mean of all defined
            labels), 'auto' (the five where all are defined, else all defined labels).
    """
    of_five = mean_of_all(areas[[list(labels).index(name) for name in five]])
    if rule == 'five' or (rule == 'auto' and not np.isnan(of_five)):
        return of_five
    return mean_defined(areas)


def score_table(
    probabilities: np.ndarray,
    targets: np.ndarray,
    studies: Sequence[str],
    *,
    labels: Sequence[str],
    five: Sequence[str],
    level: str,
) -> dict[str, Any]:
    """Every score of one set of predictions.

    Args:
        probabilities: [N, K], a row an image.
        targets: [N, K], 1, 0, or NaN where the label is not to be scored.
        studies: [N] names of the images' studies.
        labels: [K] names.
        five: names of the competition tasks.
        level: 'study' (maximum over a study's images) or 'image'.

    Returns:
        `auroc` {label: area, NaN where undefined}, `positives` {label: number}, `mean_of_five`
        (NaN if one of them is undefined), `mean_of_defined`, `undefined` [labels], `rows`, `level`.
    """
    if level == 'study':
        probabilities, targets, _ = study_level(probabilities, targets, studies)
    areas = auroc_per_label(probabilities, targets)
    positives = np.nansum(targets, axis=0)
    return {
        'level': level,
        'rows': len(targets),
        'mean_of_five': selection_score(areas, labels, five, 'five'),
        'mean_of_defined': mean_defined(areas),
        'auroc': dict(zip(labels, areas.tolist(), strict=True)),
        'positives': dict(zip(labels, positives.astype(int).tolist(), strict=True)),
        'undefined': [name for name, area in zip(labels, areas, strict=True) if np.isnan(area)],
    }


def describe_scores(scores: dict[str, Any]) -> str:
    """One line of what `score_table` gave (with `views` and `loss` added)."""
    shown = ', '.join(f'{k} {v:.4f}' for k, v in scores['auroc'].items() if not np.isnan(v))
    undefined = ', '.join(scores['undefined'])
    five = scores['mean_of_five']
    return (
        f'AUROC at {scores["level"]} level, {scores["views"]} views, n = {scores["rows"]}: '
        f'mean of five {"n/a" if np.isnan(five) else f"{five:.4f}"}, loss {scores["loss"]:.4f}; '
        f'{shown}' + (f'; n/a for want of both classes: {undefined}' if undefined else '')
    )

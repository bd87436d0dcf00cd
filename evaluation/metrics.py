"""Whether there are cases enough to select a checkpoint by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from evaluation.intervals import interval

# ==== evaluation.protocol: How cases are scored, and the form of a score.

FEW_POSITIVES = 20  # below this a score is marked


@dataclass(frozen=True)
class Protocol:
    """How cases are scored."""

    level: str = 'study'  # or 'image'
    aggregate: str = 'max'  # or 'mean', over a study's images
    views: str = 'all'  # of the images, for display
    threshold: str = 'youden'  # rule of evaluation.thresholds
    sensitivity: float = 0.9  # wanted, where the rule asks for it
    resamples: int = 1000
    seed: int = 0


def as_score(
    point: dict[str, np.ndarray], samples: dict[str, np.ndarray] | None, metric: str
) -> dict[str, float]:
    """{'value', 'low', 'high'}: a point estimate and the percentile interval of its resamples."""
    low, high = interval(samples[metric]) if samples else (np.nan, np.nan)
    return {'value': float(point[metric][0]), 'low': low, 'high': high}


# ==== evaluation.metrics: CheXpert's scores, from arrays: every metric of a label, image or study level, their means.

METRICS = (
    'auroc', 'average_precision', 'f1', 'kappa', 'accuracy', 'precision', 'recall',
    'specificity', 'brier', 'ece',
)  # fmt: skip
CALIBRATION_BINS = 15
CHUNK = 2**15  # weights worked on at a time: what fits in a processor's cache


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


def label_scores(
    probabilities: np.ndarray,
    targets: np.ndarray,
    *,
    threshold: float | None,
    weights: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Every metric of one label, once for each row of weights: as if each case came that often.

    Weights of one give the scores themselves, a resample's multiplicities one bootstrap replicate.

    Args:
        probabilities: [N], positive where >= threshold; equal ones are ties.
        targets: [N], 1, 0, or NaN where the label is not to be scored.
        threshold: None or NaN for none: what needs one is NaN.
        weights: [R, N], 0 or greater; None for a single row of ones.

    Returns:
        [R] for each name of METRICS. NaN where undefined: 'auroc', 'average_precision', 'f1',
        'kappa' and 'precision' want both classes ('precision' also something above the threshold),
        'recall' a positive, 'specificity' a negative, the others a case. 'ece' is over
        CALIBRATION_BINS equal-mass bins of the weighted cases (`equal_mass_bins`). Otherwise
        the values are those of scikit-learn with `sample_weight`.
    """
    weights = np.ones((1, len(targets))) if weights is None else weights
    scores = {name: np.full(len(weights), np.nan) for name in METRICS}
    order = np.argsort(probabilities)
    order = order[~np.isnan(targets[order])]
    values, first = np.unique(probabilities[order].astype(np.float64), return_index=True)
    if np.isnan(values).any():
        return scores
    is_positive = targets[order] == 1
    step = max(1, CHUNK // max(1, len(order)))
    for start in range(0, len(weights), step):
        rows = slice(start, start + step)
        mass = weights[rows].take(order, axis=1).astype(np.float64)
        positive = np.add.reduceat(mass * is_positive, first, axis=1)
        negative = np.add.reduceat(mass * ~is_positive, first, axis=1)
        found = _ranking_scores(positive, negative) | _calibration_scores(
            values, positive, negative
        )
        if threshold is not None and not np.isnan(threshold):
            found |= _decision_scores(positive, negative, np.searchsorted(values, threshold))
        for name, value in found.items():
            scores[name][rows] = value
    return scores


def mean_scores(
    per_label: Mapping[str, Mapping[str, np.ndarray]], labels: Sequence[str]
) -> dict[str, np.ndarray]:
    """Mean over these labels of what `label_scores` gave; NaN in a row where one label's is."""
    names = per_label[labels[0]]
    return {name: np.mean([per_label[label][name] for label in labels], axis=0) for name in names}


def equal_mass_bins(
    probabilities: np.ndarray, bins: int = CALIBRATION_BINS, weights: np.ndarray | None = None
) -> np.ndarray:
    """Bin of each case, cut so that bins hold about equal weight and equal probabilities one bin.

    In ascending order of probability, cases of equal probability span a stretch of the total
    weight; they fall into bin floor(bins * middle of the stretch / total). Few cases or many ties
    leave bins empty.

    Args:
        probabilities: [N].
        bins: number of bins.
        weights: [N], 0 or greater; None for ones.

    Returns:
        [N] int, 0 to bins - 1, never falling as the probability rises.
    """
    _, group = np.unique(probabilities, return_inverse=True)
    return _cut(np.bincount(group, weights)[None], bins)[0][group]


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


def selection_score(scores: dict[str, Any], rule: str) -> float:
    """The figure of a `score_table` by which a checkpoint is selected.

    Args:
        scores: what `score_table` gave.
        rule: 'five' (mean of the five, NaN if one is undefined), 'all' (mean of all defined
            labels), 'auto' (the five where all are defined, else all defined labels).
    """
    of_five = scores['mean_of_five']
    takes_five = rule == 'five' or (rule == 'auto' and not np.isnan(of_five))
    return of_five if takes_five else scores['mean_of_defined']


def score_table(
    probabilities: np.ndarray,
    targets: np.ndarray,
    studies: Sequence[str],
    *,
    labels: Sequence[str],
    five: Sequence[str],
    level: str,
    aggregate: str = 'max',
) -> dict[str, Any]:
    """Every score of one set of predictions.

    Args:
        probabilities: [N, K], a row an image.
        targets: [N, K], 1, 0, or NaN where the label is not to be scored.
        studies: [N] names of the images' studies.
        labels: [K] names.
        five: names of the competition tasks.
        level: 'study' or 'image'.
        aggregate: a study's probability, 'max' or 'mean' of its images'.

    Returns:
        `auroc` {label: area, NaN where undefined}, `positives` {label: number}, `mean_of_five`
        (NaN if one of them is undefined), `mean_of_defined`, `undefined` [labels], `rows`, `level`.
    """
    if level == 'study':
        probabilities, targets, _ = study_level(probabilities, targets, studies, aggregate)
    areas = auroc_per_label(probabilities, targets)
    positives = np.nansum(targets, axis=0)
    area_of = dict(zip(labels, areas.tolist(), strict=True))
    return {
        'level': level,
        'rows': len(targets),
        # All or none: a mean over fewer labels is another quantity.
        'mean_of_five': float(np.mean([area_of.get(name, np.nan) for name in five])),
        'mean_of_defined': mean_defined(areas),
        'auroc': area_of,
        'positives': dict(zip(labels, positives.astype(int).tolist(), strict=True)),
        'undefined': [name for name, area in area_of.items() if np.isnan(area)],
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


# Below, `positive` and `negative` are [R, G]: in each row of weights, the weight of the positive
# and negative cases that have the g-th of the G distinct probabilities, in ascending order.


def _ratio(numerator: np.ndarray, denominator: np.ndarray, defined: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(defined), np.nan), where=defined)


def _ranking_scores(positive: np.ndarray, negative: np.ndarray) -> dict[str, np.ndarray]:
    num_positive, num_negative = positive.sum(axis=1), negative.sum(axis=1)
    both = (num_positive > 0) & (num_negative > 0)
    true = np.cumsum(positive[:, ::-1], axis=1)[:, ::-1]  # found if this probability is enough
    false = np.cumsum(negative[:, ::-1], axis=1)[:, ::-1]
    # A positive loses to the negatives above it and half to those beside it.
    lost = np.einsum('rg,rg->r', positive, false - negative / 2)
    found = true + false
    precision = true / np.where(found > 0, found, 1)
    return {
        'auroc': 1 - _ratio(lost, num_positive * num_negative, both),
        'average_precision': _ratio(np.einsum('rg,rg->r', positive, precision), num_positive, both),
    }


def _decision_scores(
    positive: np.ndarray, negative: np.ndarray, first: int
) -> dict[str, np.ndarray]:
    """Scores of calling positive the probabilities from the `first` on."""
    num_positive, num_negative = positive.sum(axis=1), negative.sum(axis=1)
    true, false = positive[:, first:].sum(axis=1), negative[:, first:].sum(axis=1)
    total, called = num_positive + num_negative, true + false
    wrong = false + num_positive - true
    both = (num_positive > 0) & (num_negative > 0)
    # Cohen's kappa is 1 - wrong / what would be wrong if calls and targets were independent.
    by_chance = called * num_negative + (total - called) * num_positive
    return {
        'f1': _ratio(2 * true, called + num_positive, both),
        'kappa': 1 - _ratio(wrong * total, by_chance, both),
        'accuracy': _ratio(total - wrong, total, total > 0),
        'precision': _ratio(true, called, both & (called > 0)),
        'recall': _ratio(true, num_positive, num_positive > 0),
        'specificity': _ratio(num_negative - false, num_negative, num_negative > 0),
    }


def _calibration_scores(
    values: np.ndarray, positive: np.ndarray, negative: np.ndarray
) -> dict[str, np.ndarray]:
    mass = positive + negative
    total = mass.sum(axis=1)
    # Weight times (mean probability - share of positives), summed over a bin: its part in the ECE.
    gap = (negative * values - positive * (1 - values)).ravel()
    row = np.arange(len(mass))[:, None] * CALIBRATION_BINS
    slot = (row + _cut(mass, CALIBRATION_BINS)).ravel()
    gaps = np.bincount(slot, gap, minlength=row.size * CALIBRATION_BINS)
    error = np.abs(gaps).reshape(-1, CALIBRATION_BINS).sum(axis=1)
    return {
        'brier': _ratio(positive @ (1 - values) ** 2 + negative @ values**2, total, total > 0),
        'ece': _ratio(error, total, total > 0),
    }


def _cut(mass: np.ndarray, bins: int) -> np.ndarray:
    """[R, G] weights of ascending probabilities -> their bins; exact for whole weights."""
    total = mass.sum(axis=1, keepdims=True)
    middle = np.cumsum(mass, axis=1) - mass / 2
    cut = (bins * middle / np.where(total > 0, total, 1)).astype(np.intp)
    return np.minimum(cut, bins - 1)  # what weighs nothing may lie at the very end


# ==== evaluation.few_cases: Whether there are cases enough to select a checkpoint by.

FEW_CASES = 10  # of a class: what is chosen by fewer is a matter of chance


def rarer_cases(
    targets: np.ndarray, labels: Sequence[str], five: Sequence[str], rule: str
) -> dict[str, int]:
    """How many images the rarer class has, of each label that `metrics.selection_score` asks for.

    Args:
        targets: [N, K], 1, 0, or NaN.
        labels: [K] names.
        five: names of the competition tasks.
        rule: see there; by 'auto' those of the five.
    """
    asked = five if rule != 'all' and set(five) <= set(labels) else labels
    columns = {label: targets[:, list(labels).index(label)] for label in asked}
    return {label: int(min((c == 1).sum(), (c == 0).sum())) for label, c in columns.items()}


def describe_few(cases: Mapping[str, int]) -> str:
    """Those of `rarer_cases` that are fewer than FEW_CASES, in words; '' if none is."""
    return ', '.join(f'{label} {count}' for label, count in cases.items() if count < FEW_CASES)


def more_cases(split: str) -> str:
    """What to do where a split that selects has few of a class."""
    if split == 'holdout':
        return 'raise DATA.HOLDOUT_FRACTION'
    return 'take EVAL.SELECT_ON holdout, or fix the number of epochs'

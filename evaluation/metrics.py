"""Metrics of multi-label predictions: the registry, study level, means, and checkpoint selection.

A metric is one function decorated with `@metric`. It receives a `Tally` and returns one value per
row of weights: the score itself and its bootstrap replicates. The report, its CSV tables and the
console output take their columns from `METRICS`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from data.labels import COMPETITION_LABELS, task_labels
from evaluation.intervals import interval

FEW_POSITIVES = 20  # Scores from fewer positives are marked in the report.
CALIBRATION_BINS = 15
CHUNK = 2**15  # Weights processed at a time, so that they fit into a processor's cache.


@dataclass(frozen=True)
class Protocol:
    """How cases are scored."""

    level: str = 'study'  # or 'image'
    aggregate: str = 'max'  # or 'mean', over the images of a study
    views: str = 'all'  # for display
    threshold: str = 'youden'  # rule of evaluation.calibration.choose_threshold
    sensitivity: float = 0.9  # for the rule 'sensitivity'
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Tally:
    """Weighted cases of one label, grouped by distinct probability.

    Attributes:
        values: [G] distinct probabilities in ascending order.
        positive: [R, G] weight of the positive cases with each probability, for R rows of weights.
        negative: [R, G] the same for the negative cases.
        first: Index of the first probability that counts as positive; None without a threshold.
    """

    values: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    first: int | None = None

    @cached_property
    def num_positive(self) -> np.ndarray:  # [R]
        return self.positive.sum(axis=1)

    @cached_property
    def num_negative(self) -> np.ndarray:  # [R]
        return self.negative.sum(axis=1)

    @cached_property
    def num_cases(self) -> np.ndarray:  # [R]
        return self.num_positive + self.num_negative

    @cached_property
    def has_both_classes(self) -> np.ndarray:  # [R] bool
        return (self.num_positive > 0) & (self.num_negative > 0)

    @cached_property
    def true_positives(self) -> np.ndarray:  # [R]
        return self.positive[:, self.first :].sum(axis=1)

    @cached_property
    def false_positives(self) -> np.ndarray:  # [R]
        return self.negative[:, self.first :].sum(axis=1)

    @cached_property
    def num_wrong(self) -> np.ndarray:  # [R]
        return self.false_positives + self.num_positive - self.true_positives


@dataclass(frozen=True)
class Metric:
    """One entry of METRICS.

    Attributes:
        name: Key in report.json and column in the CSV tables.
        title: Column heading in the report.
        explanation: One sentence, shown with the heading.
        compute: Maps a `Tally` to [R] values, NaN where the metric is undefined.
        needs_threshold: Whether the metric scores decisions at a threshold.
        higher_is_better: Whether a higher value is better.
        is_calibration: Whether the metric is also reported after temperature scaling.
        in_summary: Whether the short tables (console, subgroups) show the metric.
    """

    name: str
    title: str
    explanation: str
    compute: Callable[[Tally], np.ndarray]
    needs_threshold: bool = False
    higher_is_better: bool = True
    is_calibration: bool = False
    in_summary: bool = False


METRICS: dict[str, Metric] = {}


def metric(title: str, **options: bool) -> Callable[[Callable], Callable]:
    """Add the decorated function to METRICS under its own name; the options are flags of `Metric`.

    The first line of its docstring explains the metric to readers of the report.
    """

    def register(function: Callable[[Tally], np.ndarray]) -> Callable[[Tally], np.ndarray]:
        explanation = (function.__doc__ or title).splitlines()[0]
        name = function.__name__
        METRICS[name] = Metric(name, title, explanation, function, **options)
        return function

    return register


@metric('AUROC', in_summary=True)
def auroc(tally: Tally) -> np.ndarray:
    """Area under the ROC curve: the share of pairs of a positive and a negative in right order."""
    false = np.cumsum(tally.negative[:, ::-1], axis=1)[:, ::-1]
    # A positive loses to the negatives above it and half to those with the same probability.
    lost = np.einsum('rg,rg->r', tally.positive, false - tally.negative / 2)
    return 1 - _ratio(lost, tally.num_positive * tally.num_negative, tally.has_both_classes)


@metric('Average precision', in_summary=True)
def average_precision(tally: Tally) -> np.ndarray:
    """Mean precision over the recall levels, without interpolation."""
    true = np.cumsum(tally.positive[:, ::-1], axis=1)[:, ::-1]
    found = true + np.cumsum(tally.negative[:, ::-1], axis=1)[:, ::-1]
    at_each = true / np.where(found > 0, found, 1)
    total = np.einsum('rg,rg->r', tally.positive, at_each)
    return _ratio(total, tally.num_positive, tally.has_both_classes)


@metric('Recall (sensitivity)', needs_threshold=True, in_summary=True)
def recall(tally: Tally) -> np.ndarray:
    """Share of the positive cases that are called positive."""
    return _ratio(tally.true_positives, tally.num_positive, tally.num_positive > 0)


@metric('Specificity', needs_threshold=True, in_summary=True)
def specificity(tally: Tally) -> np.ndarray:
    """Share of the negative cases that are called negative."""
    right = tally.num_negative - tally.false_positives
    return _ratio(right, tally.num_negative, tally.num_negative > 0)


@metric('Precision', needs_threshold=True)
def precision(tally: Tally) -> np.ndarray:
    """Share of the cases called positive that are positive."""
    called = tally.true_positives + tally.false_positives
    return _ratio(tally.true_positives, called, tally.has_both_classes & (called > 0))


@metric('F1', needs_threshold=True)
def f1(tally: Tally) -> np.ndarray:
    """Harmonic mean of precision and recall."""
    called = tally.true_positives + tally.false_positives
    return _ratio(2 * tally.true_positives, called + tally.num_positive, tally.has_both_classes)


@metric('Cohen\N{RIGHT SINGLE QUOTATION MARK}s kappa', needs_threshold=True)
def kappa(tally: Tally) -> np.ndarray:
    """Agreement of decisions and labels beyond what chance would give."""
    called = tally.true_positives + tally.false_positives
    by_chance = called * tally.num_negative + (tally.num_cases - called) * tally.num_positive
    return 1 - _ratio(tally.num_wrong * tally.num_cases, by_chance, tally.has_both_classes)


@metric('Accuracy', needs_threshold=True)
def accuracy(tally: Tally) -> np.ndarray:
    """Share of right decisions."""
    return _ratio(tally.num_cases - tally.num_wrong, tally.num_cases, tally.num_cases > 0)


@metric('Brier score', higher_is_better=False, is_calibration=True)
def brier(tally: Tally) -> np.ndarray:
    """Mean squared difference between probability and label."""
    squares = tally.positive @ (1 - tally.values) ** 2 + tally.negative @ tally.values**2
    return _ratio(squares, tally.num_cases, tally.num_cases > 0)


@metric('ECE', higher_is_better=False, is_calibration=True)
def ece(tally: Tally) -> np.ndarray:
    """Expected calibration error over bins of equal weight."""
    mass = tally.positive + tally.negative
    # Weight times (mean probability - share of positives), summed over each bin.
    gap = (tally.negative * tally.values - tally.positive * (1 - tally.values)).ravel()
    row = np.arange(len(mass))[:, None] * CALIBRATION_BINS
    slot = (row + calibration_bins(mass)).ravel()
    gaps = np.bincount(slot, gap, minlength=row.size * CALIBRATION_BINS)
    error = np.abs(gaps).reshape(-1, CALIBRATION_BINS).sum(axis=1)
    return _ratio(error, tally.num_cases, tally.num_cases > 0)


def label_scores(
    probabilities: np.ndarray,
    targets: np.ndarray,
    *,
    threshold: float | None,
    weights: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Compute every metric of one label, once for each row of weights.

    Weights of one give the scores themselves. The multiplicities of a resample give one bootstrap
    replicate. The values equal those of scikit-learn with `sample_weight`.

    Args:
        probabilities: [N]. A case is called positive if its probability is at least the threshold.
        targets: [N], 1, 0, or NaN where the label is not scored.
        threshold: None or NaN if there is none; metrics that need one are NaN then.
        weights: [R, N], 0 or greater; None for a single row of ones.

    Returns:
        [R] for each name in METRICS, NaN where the metric is undefined.
    """
    weights = np.ones((1, len(targets))) if weights is None else weights
    scores = {name: np.full(len(weights), np.nan) for name in METRICS}
    order = np.argsort(probabilities)
    order = order[~np.isnan(targets[order])]
    values, first = np.unique(probabilities[order].astype(np.float64), return_index=True)
    if np.isnan(values).any():
        return scores
    has_threshold = threshold is not None and not np.isnan(threshold)
    at_threshold = int(np.searchsorted(values, threshold)) if has_threshold else None
    is_positive = targets[order] == 1
    step = max(1, CHUNK // max(1, len(order)))
    for start in range(0, len(weights), step):
        rows = slice(start, start + step)
        mass = weights[rows].take(order, axis=1).astype(np.float64)
        positive = np.add.reduceat(mass * is_positive, first, axis=1)
        negative = np.add.reduceat(mass * ~is_positive, first, axis=1)
        tally = Tally(values, positive, negative, at_threshold)
        for name, entry in METRICS.items():
            if has_threshold or not entry.needs_threshold:
                scores[name][rows] = entry.compute(tally)
    return scores


def summary(samples: np.ndarray) -> dict[str, float]:
    """A score and its percentile interval as {'value', 'low', 'high'}.

    `samples` [1 + R] are the score itself, followed by its bootstrap replicates.
    """
    low, high = interval(samples[1:])
    return {'value': float(samples[0]), 'low': low, 'high': high}


def summaries(scores: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The `summary` of each score."""
    return {name: summary(samples) for name, samples in scores.items()}


def mean_summaries(
    per_label: Mapping[str, Mapping[str, np.ndarray]], labels: Sequence[str]
) -> dict[str, dict[str, float]] | None:
    """Summaries of the results of `label_scores` averaged over labels, by name in METRICS.

    None if a label is missing or has no AUROC, or there is no label.
    """
    if not labels or not set(labels) <= set(labels_with_both_classes(per_label)):
        return None
    means = {
        name: np.mean([per_label[label][name] for label in labels], axis=0) for name in METRICS
    }
    return summaries(means)


def labels_with_both_classes(per_label: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
    """The labels whose AUROC is defined."""
    return [label for label, scores in per_label.items() if not np.isnan(scores['auroc'][0])]


def calibration_bins(mass: np.ndarray) -> np.ndarray:  # [R, G] int
    """Assign distinct probabilities to CALIBRATION_BINS bins of about equal weight.

    `mass` [R, G] is the weight of the cases with each of G ascending probabilities. Each
    probability spans a stretch of the total weight, whose middle decides the bin: floor(bins *
    middle / total). With few cases or many ties some bins stay empty.
    """
    total = mass.sum(axis=1, keepdims=True)
    middle = np.cumsum(mass, axis=1) - mass / 2
    bins = (CALIBRATION_BINS * middle / np.where(total > 0, total, 1)).astype(np.intp)
    return np.minimum(bins, CALIBRATION_BINS - 1)  # A case of weight 0 may lie at the very end.


def study_level(
    probabilities: np.ndarray, targets: np.ndarray, studies: Sequence[str], how: str = 'max'
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Combine the images of each study into one row.

    Args:
        probabilities: [N, K].
        targets: [N, K], 1, 0, or NaN.
        studies: [N] study names.
        how: 'max' (as in CheXpert) or 'mean' of the probabilities.

    Returns:
        Probabilities [S, K], the greatest known targets [S, K] (NaN where no image has one), and
        the sorted names [S].

    Source: Irvin et al. 2019, arXiv:1901.07031, section 4 (maximum over the views of a study).
    """
    names, study = np.unique(np.asarray(studies), return_inverse=True)
    shape = names.size, probabilities.shape[1]
    if how == 'mean':
        joined = np.zeros(shape)
        np.add.at(joined, study, probabilities)
        joined /= np.bincount(study)[:, None]
    else:
        joined = np.full(shape, -np.inf)
        np.maximum.at(joined, study, probabilities)
    known = np.full(shape, np.nan)
    np.fmax.at(known, study, targets)  # ignores NaN
    return joined, known, names


def auroc_per_label(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """AUROC [K] of each label over the rows whose target is known; NaN without both classes.

    Probabilities [N, K] may be any increasing score. Targets [N, K] are 1, 0, or NaN.
    """
    areas = np.full(targets.shape[1], np.nan)
    for k, target in enumerate(targets.T):
        known = ~np.isnan(target)
        if np.unique(target[known]).size == 2:
            areas[k] = roc_auc_score(target[known], probabilities[known, k])
    return areas


def mean_defined(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float('nan')


def score_table(
    probabilities: np.ndarray,
    targets: np.ndarray,
    studies: Sequence[str],
    *,
    labels: Sequence[str],
    level: str,
    aggregate: str = 'max',
) -> dict[str, Any]:
    """AUROC of every label of one set of predictions, and the means.

    Args:
        probabilities: [N, K], one row per image.
        targets: [N, K], 1, 0, or NaN where the label is not scored.
        studies: [N] study names of the images.
        labels: [K] label names.
        level: 'study' or 'image'.
        aggregate: 'max' or 'mean' of the probabilities over the images of a study.

    Returns:
        `auroc` {label: area, NaN where undefined}, `positives` {label: number}, `mean_of_five` (NaN
        if one of them is undefined; only if all five are among the labels), `mean_of_defined`,
        `undefined` [labels], `rows`, `level`.
    """
    if level == 'study':
        probabilities, targets, _ = study_level(probabilities, targets, studies, aggregate)
    areas = auroc_per_label(probabilities, targets)
    area_of = dict(zip(labels, areas.tolist(), strict=True))
    positives = np.nansum(targets, axis=0).astype(int).tolist()
    has_five = set(COMPETITION_LABELS) <= set(labels)
    # All or none: a mean over fewer labels is a different quantity.
    five = float(np.mean([area_of[name] for name in COMPETITION_LABELS])) if has_five else np.nan
    return {
        'level': level,
        'rows': len(targets),
        **({'mean_of_five': five} if has_five else {}),
        'mean_of_defined': mean_defined(areas),
        'auroc': area_of,
        'positives': dict(zip(labels, positives, strict=True)),
        'undefined': [name for name, area in area_of.items() if np.isnan(area)],
    }


def score_probabilities(
    config: Any, probabilities: np.ndarray, targets: np.ndarray, studies: np.ndarray
) -> dict[str, Any]:
    """`score_table` of the probabilities [N, K] of images, by the EVAL options of the config."""
    options = {'level': config.EVAL.LEVEL, 'aggregate': config.EVAL.AGGREGATE}
    labels = task_labels(config.DATA.TASK, config.DATA.LABELS)
    return score_table(probabilities, targets, studies, labels=labels, **options)


def selection_score(scores: dict[str, Any], rule: str) -> float:
    """The number by which a checkpoint is selected, from the result of `score_table`.

    The rule is 'five' (mean of the five tasks, NaN if one is undefined), 'all' (mean of all defined
    labels), or 'auto' ('five' where all five are defined, otherwise 'all').
    """
    of_five = scores.get('mean_of_five', np.nan)
    takes_five = rule == 'five' or (rule == 'auto' and not np.isnan(of_five))
    return of_five if takes_five else scores['mean_of_defined']


def describe_scores(scores: dict[str, Any]) -> str:
    """One line about the result of `score_table`, to which `views` and `loss` were added."""
    defined = {label: area for label, area in scores['auroc'].items() if not np.isnan(area)}
    of_five, mean = headline_labels(defined) == COMPETITION_LABELS, selection_score(scores, 'auto')
    counted = 'five' if of_five else '1 label' if len(defined) == 1 else f'{len(defined)} labels'
    return (
        f'AUROC at {scores["level"]} level, {scores["views"]} views, n = {scores["rows"]}: '
        f'mean of {counted} {"n/a" if np.isnan(mean) else f"{mean:.4f}"}, '
        f'loss {scores["loss"]:.4f}; '
        f'{", ".join(f"{label} {area:.4f}" for label, area in defined.items())}'
    )


def headline_labels(defined: Iterable[str]) -> tuple[str, ...]:
    """The labels whose mean AUROC stands for a set: the five tasks if all of them are defined.

    Otherwise these are all labels that have both classes.
    """
    defined = tuple(defined)
    return COMPETITION_LABELS if set(COMPETITION_LABELS) <= set(defined) else defined


def _ratio(numerator: np.ndarray, denominator: np.ndarray, defined: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(defined), np.nan), where=defined)

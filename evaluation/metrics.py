"""Metrics of predictions, their means over labels, and the score that selects a checkpoint.

To add a metric, write one function and decorate it with `@metric`, which states what it needs. The
function receives a `Tally` of a label, or the `Decisions` between classes, and returns one value
per row of weights: the score and the bootstrap replicates. The columns of the report, the CSV
tables and the console output come from `METRICS`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from config import Config, refuse_unless
from data.tables.labels import COMPETITION_LABELS, describe_same, same_labels
from evaluation.intervals import CaseWeights, interval

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# With fewer cases of the smaller class, a label has no interval and no p-value, because those of
# labels of noise exclude chance too often (tests/evaluation/test_intervals.py), and no mean
# contains it.
FEW_CASES = 20
CALIBRATION_BINS = 15
BLOCK = 32  # rows of a matrix of which several blocks are summed at a time
# Number of weights that are processed at a time and fit into a CPU cache, but at least some rows.
CHUNK, LEAST_ROWS = 2**20, 32
# What a metric may need of the cases of a label, and of cases that each have one of several
# classes. Every label has an order of its cases, and it may lack a threshold or known views.
OF_LABEL, OF_CLASSES = ('order', 'probabilities', 'threshold', 'views'), ('classes',)


@dataclass(frozen=True)
class Protocol:
    """Options for scoring cases."""

    level: str = 'study'  # or 'image'
    views: str = 'all'  # only shown in the report
    threshold: str = 'youden'  # rule of evaluation.calibration.choose_threshold
    sensitivity: float = 0.9  # target of the threshold rule 'sensitivity'
    resamples: int = 1000
    seed: int = 0
    ranks_only: bool = False  # whether the numbers of a model are no probabilities


class LabelCases:
    """The cases of one label, grouped once for all rows of weights.

    Args:
        values: Probabilities, [N].
        is_positive: Whether each case is positive, [N].
        weights: Weights of the cases.
        threshold: Lowest probability that is predicted positive; None without a threshold.
        of_views: The cases of each known view.
    """

    def __init__(
        self,
        values: np.ndarray,
        is_positive: np.ndarray,
        weights: CaseWeights,
        threshold: float | None = None,
        of_views: Sequence['LabelCases'] = (),
    ) -> None:
        self.values, self.is_positive, self.weights = values, is_positive, weights
        self.threshold, self.of_views = threshold, of_views
        called = np.zeros(len(values), bool) if threshold is None else values >= threshold
        self.by_decision = weights.grouping(2 * is_positive + called, 4)

    @cached_property
    def by_level(self) -> tuple['csr_array', 'csr_array', 'csr_array']:
        """Group the cases by level: the distinct probabilities of positives, in descending order.

        Returns:
            Groupings of the positives at each level, of the negatives from this level to the next
            higher one, and of the negatives at each level.
        """
        levels = np.unique(self.values[self.is_positive])  # ascending
        at_least = np.searchsorted(levels, self.values, side='right')
        level = len(levels) - at_least  # of a negative below all positives: none
        is_tied = at_least > np.searchsorted(levels, self.values)
        groups = (
            np.where(self.is_positive, level, -1),
            np.where(self.is_positive, -1, level),
            np.where(is_tied & ~self.is_positive, level, -1),
        )
        return tuple(self.weights.grouping(group, len(levels)) for group in groups)

    @cached_property
    def by_probability(self) -> tuple['csr_array', 'csr_array']:
        """Group the cases by distinct probability, in blocks of BLOCK ascending ones.

        The last block ends with at least one empty group.

        Returns:
            Groupings of the weights, and of the weights times probability minus label.
        """
        distinct, group = np.unique(self.values, return_inverse=True)
        num_groups = (len(distinct) // BLOCK + 1) * BLOCK
        gap = self.weights.grouping(group, num_groups, self.values - self.is_positive)
        return self.weights.grouping(group, num_groups), gap

    @cached_property
    def by_nothing(self) -> 'csr_array':
        """Sum the weights times the squared differences of probability and label."""
        squares = (self.values - self.is_positive) ** 2
        return self.weights.grouping(np.zeros(len(squares), int), 1, squares)


@dataclass(frozen=True)
class Tally:
    """Sums of the weights of a label's cases, in R rows of weights.

    Attributes:
        cases: Cases of the label.
        rows: Rows of weights to sum.
        counts: Weights of the patients in these rows by number type, [Q, R], as far as needed.
    """

    cases: LabelCases
    rows: slice
    counts: dict[np.dtype, np.ndarray] = field(default_factory=dict)

    @property
    def known(self) -> set[str]:
        """Return what metrics may use, see `Metric.needs`."""
        lacking = {'threshold': self.cases.threshold is None, 'views': not self.cases.of_views}
        return {name for name in OF_LABEL if not lacking.get(name)}

    @property
    def of_views(self) -> list['Tally']:
        """The cases of each known view."""
        return [Tally(cases, self.rows, self.counts) for cases in self.cases.of_views]

    def sums(self, grouping: 'csr_array') -> np.ndarray:  # [G, R]
        """Return the sums of the weights by group, see `CaseWeights.grouping`."""
        if grouping.dtype not in self.counts:
            counts = self.cases.weights.counts[:, self.rows]
            self.counts[grouping.dtype] = counts.astype(grouping.dtype)
        return grouping @ self.counts[grouping.dtype]

    @cached_property
    def decisions(self) -> np.ndarray:  # [2, 2, R] by class, and whether it was predicted positive
        cells = self.sums(self.cases.by_decision).astype(np.float64)
        return cells.reshape(2, 2, -1)

    @cached_property
    def num_positive(self) -> np.ndarray:  # [R]
        return self.decisions[1].sum(axis=0)

    @cached_property
    def num_negative(self) -> np.ndarray:  # [R]
        return self.decisions[0].sum(axis=0)

    @cached_property
    def num_cases(self) -> np.ndarray:  # [R]
        return self.num_positive + self.num_negative

    @cached_property
    def has_both_classes(self) -> np.ndarray:  # [R] bool
        return (self.num_positive > 0) & (self.num_negative > 0)

    @property
    def true_positives(self) -> np.ndarray:  # [R]
        return self.decisions[1, 1]

    @property
    def false_positives(self) -> np.ndarray:  # [R]
        return self.decisions[0, 1]

    @property
    def num_wrong(self) -> np.ndarray:  # [R]
        return self.decisions[0, 1] + self.decisions[1, 0]

    # The distinct probabilities of positives are levels, in descending order.

    @cached_property
    def positive(self) -> np.ndarray:  # [G, R] positives at each level
        return self.sums(self.cases.by_level[0])

    @cached_property
    def false(self) -> np.ndarray:  # [G, R] negatives at or above each level
        return cumulate(self.sums(self.cases.by_level[1]))

    @cached_property
    def tied(self) -> np.ndarray | float:  # [G, R] negatives at each level
        tied = self.cases.by_level[2]
        return self.sums(tied) if tied.nnz else 0.0


@dataclass(frozen=True)
class Decisions:
    """Weighted cases that each have one of K classes, by true class and decision.

    Attributes:
        confusion: Confusion matrices [R, K, K], true classes in the rows, for R rows of weights.
    """

    confusion: np.ndarray
    known = OF_CLASSES

    @classmethod
    def of(
        cls, probabilities: np.ndarray, targets: np.ndarray, weights: CaseWeights
    ) -> 'Decisions':
        """Decide for the class with the highest probability, the first of equal ones.

        Args:
            probabilities: Probabilities of the classes, [N, K].
            targets: One-hot targets, [N, K]; rows of NaN are not counted.
            weights: Weights of the cases.
        """
        is_known, num_classes = ~np.isnan(targets).any(axis=1), targets.shape[1]
        truth, decision = np.nan_to_num(targets).argmax(axis=1), probabilities.argmax(axis=1)
        cell = np.where(is_known, truth * num_classes + decision, -1)
        grouping = weights.grouping(cell, num_classes**2)
        cells = (grouping @ weights.counts.astype(grouping.dtype)).astype(np.float64)
        return cls(cells.T.reshape(-1, num_classes, num_classes))

    @cached_property
    def right(self) -> np.ndarray:  # [R, K]
        return np.diagonal(self.confusion, axis1=1, axis2=2)

    @cached_property
    def num_cases(self) -> np.ndarray:  # [R]
        return self.confusion.sum(axis=(1, 2))

    @cached_property
    def num_wrong(self) -> np.ndarray:  # [R]
        return self.num_cases - self.right.sum(axis=1)


@dataclass(frozen=True)
class Metric:
    """One entry of METRICS.

    Attributes:
        name: Key in scores.json and report.json, and column in the CSV tables.
        title: Column heading in the report.
        explanation: One sentence that the report shows as tooltip of the heading.
        compute: Function of a `Tally`, or of `Decisions`, to values [R], NaN where undefined.
        needs: 'order' for a metric of the order of the cases; 'probabilities' for one of
            calibration, which is also reported after temperature scaling; 'threshold' for one of
            decisions at a threshold; 'views' for one of the views of the cases; 'classes' for one
            of the decisions between classes. One of several is enough.
        higher_is_better: Whether a higher value is better.
        in_summary: Whether the short tables (console, subgroups) show the metric.
    """

    name: str
    title: str
    explanation: str
    compute: Callable[..., np.ndarray]
    needs: tuple[str, ...]
    higher_is_better: bool = True
    in_summary: bool = False


METRICS: dict[str, Metric] = {}


def metric(
    title: str, *, needs: str | tuple[str, ...] = 'order', **about: Any
) -> Callable[[Callable], Callable]:
    """Return a decorator that adds a function to METRICS.

    The key is the name of the function. The first line of its docstring explains the metric in the
    report. `about` has the other attributes of `Metric`.
    """
    alternatives = (needs,) if isinstance(needs, str) else needs

    def register(function: Callable) -> Callable:
        name, explanation = function.__name__, (function.__doc__ or title).splitlines()[0]
        assert name not in METRICS, f'the metric {name!r} is registered twice'
        METRICS[name] = Metric(name, title, explanation, function, alternatives, **about)
        return function

    return register


def check(config: Config, stage: str | None) -> None:
    """Check the names of metrics in REPORT.COLUMNS."""
    holds = all(name in METRICS for name in config.REPORT.COLUMNS)
    refuse_unless(holds, config, 'REPORT.COLUMNS', f'some of {[*METRICS]}')


def applicable(known: Iterable[str]) -> dict[str, Metric]:
    """Return the metrics that apply if this is known of the cases, see `Metric.needs`."""
    return {name: entry for name, entry in METRICS.items() if {*entry.needs} & {*known}}


def compute(
    cases: Tally | Decisions, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Compute the metrics that apply to some cases, or those of them with these names."""
    found = applicable(cases.known)
    return {name: found[name].compute(cases) for name in found if names is None or name in names}


def ratio(
    numerator: np.ndarray, denominator: np.ndarray, defined: np.ndarray | bool = True
) -> np.ndarray:
    """Divide where it is defined and the denominator is positive, and return NaN elsewhere."""
    found = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    return np.divide(numerator, denominator, out=found, where=defined & (denominator > 0))


@metric('AUROC', in_summary=True)
def auroc(tally: Tally) -> np.ndarray:
    """Area under the ROC curve: share of positive-negative pairs that are ranked correctly."""
    # A positive loses to each negative with a higher probability, and half to each tied negative.
    higher = tally.false - tally.tied / 2
    lost = np.einsum('gr,gr->r', tally.positive, higher, dtype=np.float64)
    return 1 - ratio(lost, tally.num_positive * tally.num_negative)


@metric('AUROC within views', needs='views')
def auroc_within_views(tally: Tally) -> np.ndarray:
    """Share of the positive-negative pairs of one view that are ranked correctly.

    This is the mean of the AUROCs of the views, weighted by their numbers of pairs. A model gains
    nothing by telling the views apart.
    """
    pairs = np.stack([part.num_positive * part.num_negative for part in tally.of_views])
    areas = np.nan_to_num([auroc(part) for part in tally.of_views])  # NaN without a pair
    return ratio((pairs * areas).sum(axis=0), pairs.sum(axis=0))


@metric('Average precision', in_summary=True)
def average_precision(tally: Tally) -> np.ndarray:
    """Mean precision over the recall levels, without interpolation."""
    true = cumulate(tally.positive).astype(np.float64)  # [G, R]
    found = true + tally.false
    # Precision at each probability taken as the threshold.
    precisions = np.divide(true, found, out=true, where=found > 0)
    total = np.einsum('gr,gr->r', tally.positive, precisions)
    return ratio(total, tally.num_positive, tally.has_both_classes)


@metric('Recall (sensitivity)', needs='threshold', in_summary=True)
def recall(tally: Tally) -> np.ndarray:
    """Share of the positive cases that are predicted positive."""
    return ratio(tally.true_positives, tally.num_positive)


@metric('Specificity', needs='threshold', in_summary=True)
def specificity(tally: Tally) -> np.ndarray:
    """Share of the negative cases that are predicted negative."""
    right = tally.num_negative - tally.false_positives
    return ratio(right, tally.num_negative)


@metric('Precision', needs='threshold')
def precision(tally: Tally) -> np.ndarray:
    """Share of the cases predicted positive that are positive; 0 if there are none.

    If it were undefined, a model that never predicts a difficult label would have a higher mean.
    scikit-learn counts 0, too.
    """
    called = tally.true_positives + tally.false_positives
    return ratio(tally.true_positives, np.where(called > 0, called, 1), tally.has_both_classes)


@metric('F1', needs='threshold')
def f1(tally: Tally) -> np.ndarray:
    """Harmonic mean of precision and recall."""
    called = tally.true_positives + tally.false_positives
    return ratio(2 * tally.true_positives, called + tally.num_positive, tally.has_both_classes)


@metric('Cohen\N{RIGHT SINGLE QUOTATION MARK}s kappa', needs='threshold')
def kappa(tally: Tally) -> np.ndarray:
    """Agreement between decisions and labels, corrected for chance."""
    called = tally.true_positives + tally.false_positives
    # kappa = 1 - wrong / (wrong by chance), both as shares of the cases.
    by_chance = called * tally.num_negative + (tally.num_cases - called) * tally.num_positive
    return 1 - ratio(tally.num_wrong * tally.num_cases, by_chance, tally.has_both_classes)


@metric('Accuracy', needs=('threshold', 'classes'))
def accuracy(tally: Tally | Decisions) -> np.ndarray:
    """Share of correct decisions."""
    return ratio(tally.num_cases - tally.num_wrong, tally.num_cases)


@metric('Balanced accuracy', needs='classes')
def balanced_accuracy(decisions: Decisions) -> np.ndarray:
    """Mean, over the classes with cases, of the share of their cases that is decided correctly."""
    return mean_of_classes(ratio(decisions.right, decisions.confusion.sum(axis=2)))


@metric('Macro F1', needs='classes')
def macro_f1(decisions: Decisions) -> np.ndarray:
    """Mean of the F1 of each class over the classes with cases or decisions."""
    counts = decisions.confusion.sum(axis=2) + decisions.confusion.sum(axis=1)
    return mean_of_classes(ratio(2 * decisions.right, counts))


def mean_of_classes(values: np.ndarray) -> np.ndarray:  # [R, K] -> [R]
    """Average the values that are not NaN."""
    return ratio(np.nansum(values, axis=1), (~np.isnan(values)).sum(axis=1))


@metric('Brier score', higher_is_better=False, needs='probabilities')
def brier(tally: Tally) -> np.ndarray:
    """Mean squared difference between probability and label (0 or 1)."""
    return ratio(tally.sums(tally.cases.by_nothing)[0], tally.num_cases)


@metric('ECE', higher_is_better=False, needs='probabilities')
def ece(tally: Tally) -> np.ndarray:
    """Expected calibration error over bins with about equal numbers of cases."""
    blocks = -1, BLOCK, len(tally.num_cases)
    mass, gap = (tally.sums(group).reshape(blocks) for group in tally.cases.by_probability)
    # Of all cases up to the end of each block, [B, R].
    mass_to, gap_to = (np.cumsum(each.sum(axis=1, dtype=float), axis=0) for each in (mass, gap))
    edges = np.arange(1, CALIBRATION_BINS)[:, None, None]
    # First the block in which each bin begins, and then the cases of the block below this bin.
    last = calibration_bins(mass_to - mass[:, -1] / 2, tally.num_cases)
    block = np.minimum((last < edges).sum(axis=1), len(mass) - 1)  # [CALIBRATION_BINS - 1, R]
    row = np.arange(block.shape[1])
    mass_in, gap_in = mass[block, :, row].astype(float), gap[block, :, row]  # [.., R, BLOCK]
    before = (mass_to[block, row] - mass_in.sum(axis=-1))[..., None]
    middle = before + np.cumsum(mass_in, axis=-1) - mass_in / 2
    is_below = calibration_bins(middle, tally.num_cases[:, None]) < edges
    gap_below = gap_to[block, row] - (gap_in * ~is_below).sum(axis=-1)
    # The sum over a bin is weight * (mean probability - share of positives).
    gaps = np.diff(gap_below, axis=0, prepend=0, append=gap_to[-1:])
    return ratio(np.abs(gaps).sum(axis=0), tally.num_cases)


def cumulate(values: np.ndarray) -> np.ndarray:  # [G, R]
    """Return `np.cumsum(values, axis=0)`, several times as fast for many rows, in the same type.

    Blocks of rows are summed side by side, and then each block continues the one before it.
    """
    num_blocks = -(-len(values) // BLOCK)
    found = np.zeros((num_blocks * BLOCK, values.shape[1]), values.dtype)
    found[: len(values)] = values
    blocks = found.reshape(num_blocks, BLOCK, values.shape[1])
    for row in range(1, BLOCK):
        blocks[:, row] += blocks[:, row - 1]
    for block in range(1, num_blocks):
        blocks[block] += blocks[block - 1, -1]
    return found[: len(values)]


def rows_of_views(targets: np.ndarray, views: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each known view with cases of both classes: the others make no pairs.

    Args:
        targets: 1, 0, or NaN where the label is not scored, [N].
        views: View of each case, [N], '' if unknown.
    """
    known = np.flatnonzero(~np.isnan(targets))
    names = sorted({*views[known]} - {''})
    rows = [known[views[known] == name] for name in names]
    return [of_view for of_view in rows if len({*targets[of_view]}) == 2]


def coverage(targets: np.ndarray, every: np.ndarray) -> dict[str, int]:
    """Return what the summary of a score adds if its cases are only some of those of the label."""
    cases, number = (int((~np.isnan(known)).sum()) for known in (targets, every))
    return {'cases': cases, 'of': number} if cases < number else {}


def coverage_within_views(targets: np.ndarray, views: np.ndarray | None) -> dict[str, int]:
    """Return the `coverage` of a score within views, see `rows_of_views`."""
    if views is None:
        return {}
    rows = np.concatenate([np.array([], int), *rows_of_views(targets, views)])
    return coverage(targets[rows], targets)


def least_coverage(scores: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the `coverage` of a mean: that of the score with the smallest share of its cases."""
    found = [{key: score[key] for key in ('cases', 'of')} for score in scores if 'of' in score]
    return min(found, key=lambda part: part['cases'] / part['of'], default={})


def label_scores(
    probabilities: np.ndarray,
    targets: np.ndarray,
    *,
    threshold: float | None,
    weights: CaseWeights | None = None,
    names: Collection[str] | None = None,
    views: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Compute metrics of one label for each row of weights.

    A row of ones gives the scores. A row with the multiplicities of a resample gives a bootstrap
    replicate. The values equal those of scikit-learn with `sample_weight`. With fewer than
    FEW_CASES cases of a class there are no replicates: only the first row has values.

    Args:
        probabilities: Probabilities, [N].
        targets: 1, 0, or NaN where the label is not scored, [N].
        threshold: Lowest probability that is predicted positive. Metrics that need a threshold are
            NaN if it is None or NaN.
        weights: Non-negative weights of the N cases in R rows; None for a single row of ones.
        names: Metrics to compute, by default all that apply to labels.
        views: View of each case, [N], '' if unknown; None for no metrics within views. They are NaN
            if the `rows_of_views` lack cases, and the others are few.

    Returns:
        Values [R] for each name, NaN where the metric is undefined.
    """
    weights = CaseWeights.ones(len(targets)) if weights is None else weights
    names = applicable(OF_LABEL) if names is None else names
    scores = {name: np.full(weights.num_rows, np.nan) for name in names}
    known = np.flatnonzero(~np.isnan(targets))
    values = probabilities.astype(np.float64)
    if np.isnan(values[known]).any():
        return scores

    def cases_of(rows: np.ndarray, *more: Any) -> LabelCases:
        return LabelCases(values[rows], targets[rows] == 1, weights.select(rows), *more)

    of_views = []
    if views is not None and any('views' in METRICS[name].needs for name in names):
        rows = rows_of_views(targets, views)
        in_views = np.concatenate([known[:0], *rows])
        if len(in_views) == len(known) or not has_few_cases(targets[in_views]):
            of_views = [cases_of(of_view) for of_view in rows]
    has_threshold = threshold is not None and not np.isnan(threshold)
    cases = cases_of(known, threshold if has_threshold else None, of_views)
    # Replicates of a handful of cases would give an interval that excludes chance too often.
    scored_rows = 1 if has_few_cases(targets) else weights.num_rows
    step = max(LEAST_ROWS, CHUNK // max(1, len(known)))
    for start in range(0, scored_rows, step):
        rows = slice(start, min(start + step, scored_rows))
        for name, values_of_rows in compute(Tally(cases, rows), names).items():
            scores[name][rows] = values_of_rows
    return scores


def summary(samples: np.ndarray) -> dict[str, float]:
    """Return a score and its percentile interval as {'value', 'low', 'high'}.

    `samples` [1 + R] contains the score, followed by the bootstrap replicates.
    """
    low, high = interval(samples[1:])
    return {'value': float(samples[0]), 'low': low, 'high': high}


def summaries(scores: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return the `summary` of each score."""
    return {name: summary(samples) for name, samples in scores.items()}


def mean_summaries(
    per_label: Mapping[str, Mapping[str, np.ndarray]],
    labels: Sequence[str],
    *,
    metrics: Collection[str] | None = None,
) -> dict[str, dict[str, Any]] | None:
    """Average the results of `label_scores` over labels and summarise the metrics, by default all.

    A metric is averaged over the labels that have a value, because a rare label may lack a
    threshold. `left_out` of a summary lists the others, if any label has a value.

    The result is None if `labels` is empty, or if a label is missing or has no AUROC.
    """
    if not labels or any(label not in per_label for label in labels):
        return None
    if np.isnan([per_label[label]['auroc'][0] for label in labels]).any():
        return None
    means = {}
    for name in applicable(OF_LABEL) if metrics is None else metrics:
        left_out = [label for label in labels if np.isnan(per_label[label][name][0])]
        counted = [label for label in labels if label not in left_out]
        means[name] = summary(
            np.mean([per_label[label][name] for label in counted or labels], axis=0)
        )
        if counted and left_out:
            means[name]['left_out'] = left_out
    return means


def calibration_bins(middle: np.ndarray, total: np.ndarray) -> np.ndarray:  # int
    """Assign distinct probabilities to CALIBRATION_BINS bins of about equal weight.

    Each of the ascending probabilities covers an interval of the cumulative weight, whose `middle`
    determines the bin: floor(bins * middle / total). With few cases or many ties, some bins are
    empty.
    """
    bins = (CALIBRATION_BINS * middle / np.where(total > 0, total, 1)).astype(np.intp)
    return np.minimum(bins, CALIBRATION_BINS - 1)  # A last case with weight 0 is at the upper end.


def study_level(
    probabilities: np.ndarray,
    targets: np.ndarray,
    studies: Sequence[str],
    *,
    exclusive: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Combine the images of each study into one row.

    Args:
        probabilities: Probabilities of the images, [N, K].
        targets: 1, 0, or NaN where the label is not scored, [N, K].
        studies: Study of each image, [N].
        exclusive: Whether the labels are classes, of which a case has one. The probabilities of a
            study then have the sum 1, and a study whose images have several classes is not scored.

    Returns:
        The largest probabilities [S, K], the largest known targets [S, K] (NaN if no image has
        one), and the sorted study names [S].

    Source: Irvin et al. 2019, arXiv:1901.07031, section 4 (maximum over the views of a study).
    """
    names, study = np.unique(np.asarray(studies), return_inverse=True)
    shape = names.size, probabilities.shape[1]
    joined = np.full(shape, -np.inf)
    np.maximum.at(joined, study, probabilities)
    known = np.full(shape, np.nan)
    np.fmax.at(known, study, targets)  # ignores NaN
    if exclusive:
        joined /= joined.sum(axis=1, keepdims=True)
        known[known.sum(axis=1) != 1] = np.nan
    return joined, known, names


def auroc_per_label(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Compute the AUROC of each label over the rows with known targets; NaN without both classes.

    Args:
        probabilities: Probabilities or any other increasing scores, [N, K].
        targets: 1, 0, or NaN where the label is not scored, [N, K].
    """
    pairs = zip(probabilities.T, targets.T, strict=True)
    scores = [label_scores(*pair, threshold=None, names=['auroc']) for pair in pairs]
    return np.array([each['auroc'][0] for each in scores])


def mean_defined(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float('nan')


class SplitScores(TypedDict, total=False):
    """Scores of a checkpoint on a split, as in scores.json (split -> checkpoint -> scores).

    Classes also have the metrics of the decisions between them.
    """

    level: str  # 'study' or 'image'
    rows: int  # number of scored studies or images
    mean_of_five: float  # NaN if `labels_of_mean` lacks one; missing if one of the five is no label
    mean_of_defined: float  # over the `labels_of_mean`
    auroc: dict[str, float]  # NaN where undefined
    positives: dict[str, int]
    negatives: dict[str, int]
    same_as: dict[str, str]  # see `same_labels`
    undefined: list[str]  # labels
    loss: float
    views: str
    selected_on: str  # split that selected the checkpoint
    selecting_images: int
    selecting_labels: list[str]


def score_table(
    probabilities: np.ndarray,
    targets: np.ndarray,
    studies: Sequence[str],
    *,
    labels: Sequence[str],
    level: str,
    exclusive: bool = False,
) -> SplitScores:
    """Compute the AUROC of every label and the means, and the metrics of classes.

    Args:
        probabilities: Probabilities of the images, [N, K].
        targets: 1, 0, or NaN where the label is not scored, [N, K].
        studies: Study of each image, [N].
        labels: Label names, [K].
        level: Level of the scores, 'study' or 'image'.
        exclusive: Whether the labels are classes, see `study_level`.

    Returns:
        The entries up to `undefined`, and those of classes.
    """
    if level == 'study':
        probabilities, targets, _ = study_level(
            probabilities, targets, studies, exclusive=exclusive
        )
    areas = auroc_per_label(probabilities, targets)
    area_of = dict(zip(labels, areas.tolist(), strict=True))
    counts = count_classes(targets, labels, exclusive=exclusive)
    means, counted = {}, labels_of_mean(counts)
    if set(COMPETITION_LABELS) <= set(labels):
        # A mean over fewer than five labels would be a different quantity.
        has_five = set(COMPETITION_LABELS) <= set(counted)
        five = [area_of[name] for name in COMPETITION_LABELS] if has_five else [np.nan]
        means['mean_of_five'] = float(np.mean(five))
    of_classes = {}
    if exclusive:
        decisions = Decisions.of(probabilities, targets, CaseWeights.ones(len(targets)))
        of_classes = {name: float(values[0]) for name, values in compute(decisions).items()}
    return {
        'level': level,
        'rows': len(targets),
        **means,
        'mean_of_defined': mean_defined(np.array([area_of[name] for name in counted])),
        'auroc': area_of,
        **counts,
        'undefined': [name for name, area in area_of.items() if np.isnan(area)],
        **of_classes,
    }


def selecting_labels(scores: SplitScores) -> tuple[str, ...]:
    """Return the labels whose mean AUROC selects a checkpoint. Predictions do not change them.

    They are CheXpert's five tasks if all five are defined, and otherwise all defined labels.
    Labels with few cases (`has_few_cases`) are left out, and those that repeat another one.
    """
    defined = [label for label in scores['auroc'] if label not in scores['undefined']]
    left_out = {*labels_with_few_cases(scores), *scores['same_as']}
    return tuple(label for label in headline_labels(defined) if label not in left_out)


def count_classes(
    targets: np.ndarray, labels: Sequence[str], *, exclusive: bool = False
) -> dict[str, dict[str, Any]]:
    """Return `positives` and `negatives` {label: number} of targets [N, K], and `same_as`.

    This is the result of `same_labels`, and {} for classes, of which two are always complementary.
    """
    counts = {
        name: dict(zip(labels, (targets == value).sum(axis=0).tolist(), strict=True))
        for name, value in (('positives', 1), ('negatives', 0))
    }
    return counts | {'same_as': {} if exclusive else same_labels(targets, labels)}


def labels_of_mean(counts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels that a mean over labels counts, given their `count_classes`.

    They are the labels without few cases. If all have few cases, they are those with both classes,
    and the mean has no interval. Labels that are one label under several names count once.
    """
    positives, negatives = counts['positives'], counts['negatives']
    defined = [label for label in positives if positives[label] and negatives[label]]
    few = labels_with_few_cases(counts)
    enough = [label for label in defined if label not in few] or defined
    return tuple(label for label in enough if label not in counts['same_as'])


def has_few_cases(targets: np.ndarray) -> bool:
    """Return whether fewer than FEW_CASES targets [N] are 1, or are 0."""
    return min((targets == 1).sum(), (targets == 0).sum()) < FEW_CASES


def allows_delong(targets: np.ndarray, patients: np.ndarray) -> bool:
    """Return whether a label [N] has enough cases, each of another patient, for DeLong's method."""
    known = patients[~np.isnan(targets)]
    return len(set(known)) == len(known) and not has_few_cases(targets)


def labels_with_few_cases(counts: Mapping[str, Any]) -> dict[str, str]:
    """Return label -> `few_cases` for the labels with few cases, given their `count_classes`."""
    positives, negatives = counts['positives'], counts['negatives']
    found = {label: few_cases(positives[label], negatives[label]) for label in positives}
    return {label: few for label, few in found.items() if few}


def few_cases(positives: int, negatives: int) -> str:
    """Return the smaller class if it has few cases, such as '2 positives', and otherwise ''."""
    number, name = min((positives, 'positive'), (negatives, 'negative'))
    return f'{number} {name}{"s" * (number != 1)}' if number < FEW_CASES else ''


def case_counts(targets: np.ndarray) -> dict[str, Any]:
    """Return the numbers `n` and `positives` of targets [N] of a label, and `few` (`few_cases`)."""
    positives, negatives = (int((targets == value).sum()) for value in (1, 0))
    few = few_cases(positives, negatives)
    return {'n': positives + negatives, 'positives': positives, 'few': few}


def describe_scores(scores: Mapping[str, Any]) -> str:
    """Format the result of `score_table`, extended by `views` and `loss`, in one line."""
    defined = [label for label in scores['auroc'] if label not in scores['undefined']]
    labels = headline_labels(labels_of_mean(scores))
    of_five = labels == COMPETITION_LABELS
    mean = scores['mean_of_five' if of_five else 'mean_of_defined']
    counted = 'five' if of_five else '1 label' if len(labels) == 1 else f'{len(labels)} labels'
    few, same = labels_with_few_cases(scores), describe_same(scores['same_as'])

    def shown(score: float, few: str) -> str:
        # With few cases, digits would look like a result.
        return f'{score:.1f} ({few})' if few else f'{score:.4f}'

    parts = [f'{label} {shown(scores["auroc"][label], few.get(label, ""))}' for label in defined]
    mean = 'n/a' if np.isnan(mean) else shown(mean, 'few cases' if {*labels} & {*few} else '')
    decided = ''
    if of_classes := [entry for name, entry in applicable(OF_CLASSES).items() if name in scores]:
        values = [f'{entry.title.lower()} {scores[entry.name]:.4f}' for entry in of_classes]
        decided = f'{", ".join(values)}; one class against the others: '
    return (
        f'{decided}AUROC at {scores["level"]} level, {scores["views"]} views, '
        f'n = {scores["rows"]}: mean of {counted} {mean}, '
        f'loss {scores["loss"]:.4f}; {"; ".join(filter(None, [", ".join(parts), same]))}'
    )


def headline_labels(defined: Iterable[str]) -> tuple[str, ...]:
    """Return the labels of the headline score: the five tasks if all are defined, else all."""
    defined = tuple(defined)
    return COMPETITION_LABELS if set(COMPETITION_LABELS) <= set(defined) else defined

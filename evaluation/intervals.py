"""Pseudo-labels: which predictions are confident enough to be learned from, and how true they are.

A model's prediction becomes a hard label, 1 or 0, where held-out patients with real labels say that
the model is seldom wrong there (`choose_values`). How seldom depends on how common a label is: of
one that 2 % have, calling everybody negative is right in 98 %. So errors count against the base
rate, the error rate of giving everybody that value: 1 - prevalence for 1, prevalence for 0. With
`confidence` c the rate among the held-out cases that would get the value must be at most
(1 - c) times the base rate: PPV >= 1 - (1 - c)(1 - prevalence), NPV >= 1 - (1 - c) prevalence.
For c = 0.9 and a prevalence of 2 % that is a PPV of 0.902 and an NPV of 0.998.

No rate is known from a few cases. So there must be MIN_CASES of them, and as many as would hold
MIN_EXPECTED errors at the base rate: for a label that 2 % have, 250 cases that would be called
negative. Otherwise the label gets no pseudo-labels of that value. The error rates are those of the
threshold that was chosen by them, on few patients: they are too good.

Sources: hard labels from the model's own predictions: Lee 2013 (Pseudo-Label, ICML workshop);
rounds of predicting, keeping the confident, training anew: Xie et al. 2020, arXiv:1911.04252
(Noisy Student); positive and negative labels apart, as several may be true of a picture: Rizve et
al. 2021, arXiv:2101.06329. The error relative to the base rate is this project's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

# ==== evaluation.intervals: Bootstrap over patients: resamples that all scores share, and the intervals they give.


class Resamples:
    """Patients drawn with replacement, as many as there are; images of one stay together.

    The same draws serve every subset of the patients' rows (subgroups) and every model (paired
    differences). They depend on the seed and the set of patients, not on the order of rows.

    Args:
        patients: names, a row each; repetitions do not matter.
        resamples: number of draws R.
        seed: of a Philox stream.
    """

    def __init__(self, patients: Sequence[str], *, resamples: int, seed: int) -> None:
        names = sorted(set(patients))
        self._column = {name: column for column, name in enumerate(names)}
        rng = np.random.Generator(np.random.Philox(seed))
        # One byte: that one of many patients is drawn 256 times does not happen.
        self._counts = np.empty((resamples, len(names)), dtype=np.uint8)
        for counts in self._counts:
            drawn = rng.integers(len(names), size=len(names))
            counts[:] = np.bincount(drawn, minlength=len(names))

    def weights(self, patients: Sequence[str]) -> np.ndarray:
        """How often each resample holds the patients of these rows.

        Args:
            patients: [M] names, in any order, with repetitions.

        Returns:
            [R, M] uint8.
        """
        unknown = sorted(set(patients) - self._column.keys())
        if unknown:
            raise ValueError(f'patient {unknown[0]!r} is not one of those resampled')
        return self._counts.take([self._column[name] for name in patients], axis=1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of a score's resamples.

    Args:
        values: [R], NaN where a resample leaves the score undefined.

    Returns:
        2.5 and 97.5 percentile of the defined values; NaN if fewer than 95 % are defined.
    """
    defined = values[~np.isnan(values)]
    if not defined.size or defined.size / len(values) < 0.95:
        return float('nan'), float('nan')
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


# ==== evaluation.delong: DeLong's variance of the AUROC: an interval, and a paired test of two predictions.
#
# Valid only where the rows are independent: each patient once. With several studies or images of a
# patient the variance comes out too small; whoever calls sees to it, or takes the bootstrap over
# patients (`evaluation.intervals`) instead.
#
# The variance is 0 where every positive beats the same share of negatives and every negative loses to
# the same share of positives, as under perfect separation. That is a failure of the estimate, no
# certainty, so there is no interval then (NaN). With fewer than two cases of a class there is no
# variance at all (NaN).
#
# Source: DeLong et al. 1988, Biometrics 44(3), 837-845; by midranks: Sun & Xu 2014, IEEE Signal
# Processing Letters 21(11), 1389-1393.

LEVEL = 0.95


def delong_variance(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """The AUROC and DeLong's estimate of its variance.

    Args:
        probabilities: [N], any increasing score will do.
        targets: [N], 1, 0, or NaN where the label is not to be scored.

    Returns:
        (AUROC, NaN without both classes; variance, NaN with fewer than two of a class).
    """
    wins, losses = _components(probabilities, targets)
    if not (wins.size and losses.size):
        return float('nan'), float('nan')
    return float(wins.mean() / losses.size), _variance_of_mean(wins, losses)


def delong_interval(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
    """The AUROC and its 95 % interval, made on the logit scale.

    The interval is symmetric about logit(AUROC), with the standard error se / (AUROC (1 - AUROC)),
    and then mapped back, so that it stays inside [0, 1]. It also covers the truth more often than
    the plain one where that fails most: of two normal classes with AUROC 0.95, 20 positives and 180
    negatives, in 90 % of draws against 85 % (and the plain one ends above 1 in 21 %).

    Args:
        probabilities: [N].
        targets: [N], 1, 0, or NaN.

    Returns:
        (AUROC, low, high); NaN bounds where the variance is 0 or undefined.

    Source: Pepe 2003, The Statistical Evaluation of Medical Tests, section 5.2; Qin & Hotilovac
    2008, Statistical Methods in Medical Research 17(2), 207-221.
    """
    area, variance = delong_variance(probabilities, targets)
    if not (variance > 0 and 0 < area < 1):
        return area, float('nan'), float('nan')
    reach = norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance) / (area * (1 - area))
    return area, float(expit(logit(area) - reach)), float(expit(logit(area) + reach))


def delong_test(a: np.ndarray, b: np.ndarray, targets: np.ndarray) -> float:
    """Two-sided p-value that two predictions of the same cases have the same AUROC.

    Args:
        a: [N] probabilities.
        b: [N] probabilities, row by row of the same cases.
        targets: [N], 1, 0, or NaN.

    Returns:
        The p-value; 1 where the two order all pairs alike; NaN where the variance of the difference
        is undefined, or 0 although the areas differ.
    """
    (wins_a, losses_a), (wins_b, losses_b) = _components(a, targets), _components(b, targets)
    wins, losses = wins_a - wins_b, losses_a - losses_b
    if min(wins.size, losses.size) < 2:
        return float('nan')
    difference, variance = wins.mean() / losses.size, _variance_of_mean(wins, losses)
    if variance == 0:
        return 1.0 if difference == 0 else float('nan')
    return float(2 * norm.sf(abs(difference) / np.sqrt(variance)))


def _components(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's structural components as counts (a tie is half), which floats hold exactly.

    Returns:
        [P] how many negatives each positive is above; [Q] how many positives are above each
        negative. Empty where a class is.
    """
    positive, negative = probabilities[targets == 1], probabilities[targets == 0]
    ranks = rankdata(np.concatenate([positive, negative]))  # midranks
    wins = ranks[: positive.size] - rankdata(positive)
    losses = positive.size - (ranks[positive.size :] - rankdata(negative))
    return wins, losses


def _variance_of_mean(wins: np.ndarray, losses: np.ndarray) -> float:
    """Variance of the AUROC (or of a difference) from its components; NaN with fewer than two."""
    num_positive, num_negative = wins.size, losses.size
    if min(num_positive, num_negative) < 2:
        return float('nan')
    of_positive = wins.var(ddof=1) / num_negative**2 / num_positive
    of_negative = losses.var(ddof=1) / num_positive**2 / num_negative
    return float(of_positive + of_negative)


# ==== evaluation.confidence: Pseudo-labels: which predictions are confident enough to be learned from, and how true they are.
#
# A model's prediction becomes a hard label, 1 or 0, where held-out patients with real labels say that
# the model is seldom wrong there (`choose_values`). How seldom depends on how common a label is: of
# one that 2 % have, calling everybody negative is right in 98 %. So errors count against the base
# rate, the error rate of giving everybody that value: 1 - prevalence for 1, prevalence for 0. With
# `confidence` c the rate among the held-out cases that would get the value must be at most
# (1 - c) times the base rate: PPV >= 1 - (1 - c)(1 - prevalence), NPV >= 1 - (1 - c) prevalence.
# For c = 0.9 and a prevalence of 2 % that is a PPV of 0.902 and an NPV of 0.998.
#
# No rate is known from a few cases. So there must be MIN_CASES of them, and as many as would hold
# MIN_EXPECTED errors at the base rate: for a label that 2 % have, 250 cases that would be called
# negative. Otherwise the label gets no pseudo-labels of that value. The error rates are those of the
# threshold that was chosen by them, on few patients: they are too good.
#
# Sources: hard labels from the model's own predictions: Lee 2013 (Pseudo-Label, ICML workshop);
# rounds of predicting, keeping the confident, training anew: Xie et al. 2020, arXiv:1911.04252
# (Noisy Student); positive and negative labels apart, as several may be true of a picture: Rizve et
# al. 2021, arXiv:2101.06329. The error relative to the base rate is this project's.

KEEP = ('threshold', 'top_share')
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # that 'top_share' chooses from
MIN_CASES = 10  # held-out cases beyond a threshold
MIN_EXPECTED = 5.0  # errors among them at the base rate


@dataclass(frozen=True)
class Cut:
    """Where one label's pseudo-labels of one value begin.

    Attributes:
        threshold: probability; 1 from it on, 0 up to it. NaN: there are none.
        share: of 'top_share', in (0, 0.5]; else NaN.
        cases: held-out cases beyond the threshold (of 'top_share': of this share).
        errors: of these, how many have the other real label.
    """

    threshold: float = math.nan
    share: float = math.nan
    cases: int = 0
    errors: int = 0


def choose_values(
    held_out: np.ndarray,
    targets: np.ndarray,
    unlabelled: np.ndarray,
    *,
    keep: str,
    confidence: float,
) -> tuple[np.ndarray, list[tuple[Cut, Cut]]]:
    """Hard labels of the unlabelled images where the model is confident.

    'threshold' takes, of all held-out probabilities, the least from which on (for 0: the greatest
    up to which) the error rate is low enough; 'top_share' the greatest of SHARES for which it is,
    and gives the value to that share of the unlabelled images, the most confident ones. A share of
    N is its whole part, and less where equal probabilities go over it.

    Args:
        held_out: [N, K] probabilities of held-out images, NaN where there is none.
        targets: [N, K] their real labels, 1, 0, or NaN where unknown.
        unlabelled: [M, K] probabilities, NaN where there is none.
        keep: 'threshold' or 'top_share'.
        confidence: above 0 and at most 1, see above.

    Returns:
        [M, K] 1, 0, or NaN where not confident (or confident of both), and for each label where
        its positive and its negative values begin.

    Raises:
        ValueError: if `keep` or `confidence` is not allowed.
    """
    check_choice(keep, confidence)
    values = np.full(unlabelled.shape, np.nan, np.float32)
    cuts = []
    for k in range(unlabelled.shape[1]):
        known = ~np.isnan(targets[:, k]) & ~np.isnan(held_out[:, k])
        truth, given = targets[known, k] == 1, held_out[known, k]
        column = unlabelled[~np.isnan(unlabelled[:, k]), k]
        options = {'keep': keep, 'confidence': confidence}
        positive = _choose_cut(given, ~truth, column, **options)
        below = _choose_cut(-given, truth, -column, **options)
        negative = Cut(-below.threshold, below.share, below.cases, below.errors)
        cuts.append((positive, negative))
        high = unlabelled[:, k] >= positive.threshold  # False for NaN
        low = unlabelled[:, k] <= negative.threshold
        values[high & ~low, k] = 1
        values[low & ~high, k] = 0
    return values, cuts


def check_choice(keep: str, confidence: float) -> None:
    """Refuse what `choose_values` cannot choose by."""
    if keep not in KEEP:
        raise ValueError(f'keep must be one of {", ".join(KEEP)}, got {keep!r}')
    if not 0 < confidence <= 1:
        raise ValueError(f'confidence must be above 0 and at most 1, got {confidence!r}')


def audit(values: np.ndarray, real: np.ndarray) -> dict[str, dict[str, float]]:
    """How many pseudo-labels the real labels confirm, and how many they would by chance.

    Args:
        values: [M, K] pseudo-labels 1 or 0, NaN where there is none, of all unlabelled images.
        real: [M, K] the labels that were put aside, 1, 0, or NaN where unknown.

    Returns:
        For 'positive' and 'negative': `values` (how many), `known` (of which the real label is
        known), `confirmed` (share of these that are right) and `by_chance` (the share if as many
        values of each label went to images drawn at random); shares are NaN without any.
    """
    known = ~np.isnan(real)
    figures = {}
    for name, value in (('positive', 1), ('negative', 0)):
        counted = (values == value) & known
        total, right = counted.sum(), (counted & (real == value)).sum()
        rates = ((real == value) & known).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        expected = (counted.sum(axis=0) * rates).sum()
        figures[name] = {
            'values': int((values == value).sum()),
            'known': int(total),
            'confirmed': float(right / total) if total else math.nan,
            'by_chance': float(expected / total) if total else math.nan,
        }
    return figures


def _choose_cut(
    scores: np.ndarray, wrong: np.ndarray, unlabelled: np.ndarray, *, keep: str, confidence: float
) -> Cut:
    """Where the cases with the highest scores end that are seldom enough wrong."""
    if not scores.size:
        return Cut()
    values, cases = _tally(scores)
    errors = np.cumsum(wrong[np.argsort(-scores, kind='stable')])[cases - 1]
    expected = cases * wrong.mean()
    enough = (cases >= MIN_CASES) & (expected >= MIN_EXPECTED)
    # As whole numbers but for the factor: what is equal is not lost to rounding.
    seldom = errors * len(wrong) <= (1 - confidence) * cases * wrong.sum() * (1 + 1e-12)
    good = enough & seldom
    if keep == 'threshold':
        if not good.any():
            return Cut()
        last = int(np.flatnonzero(good)[-1])
        return Cut(float(values[last]), math.nan, int(cases[last]), int(errors[last]))
    for share in reversed(SHARES):
        inside = np.flatnonzero(cases <= _part(share, len(scores)))
        if inside.size and good[inside[-1]]:
            counts = int(cases[inside[-1]]), int(errors[inside[-1]])
            levels, sizes = _tally(unlabelled)
            fitting = levels[sizes <= _part(share, len(unlabelled))]
            return Cut(float(fitting[-1]) if fitting.size else math.nan, share, *counts)
    return Cut()


def _tally(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct scores from the highest on, and how many scores are at least each."""
    values, counts = np.unique(scores, return_counts=True)
    return values[::-1], np.cumsum(counts[::-1])


def _part(share: float, count: int) -> int:
    """The share of the count, rounded down; 0.29 of 100 is 29, though floats give a little less."""
    return math.floor(share * count * (1 + 1e-12))

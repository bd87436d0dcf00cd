"""Confidence intervals and p-values: bootstrap over patients, and DeLong's variance of the AUROC.

DeLong's variance is only valid if each patient appears once. Otherwise, use the bootstrap. DeLong's
estimate can be 0, for example for perfectly separated classes. This does not mean that the AUROC is
certain, so the interval is NaN.

Sources: DeLong et al. 1988, Biometrics 44(3), 837-845; computed by midranks as in Sun & Xu 2014,
IEEE Signal Processing Letters 21(11), 1389-1393.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

LEVEL = 0.95
# With fewer resamples, the ends of an interval are those of a handful of draws.
MIN_RESAMPLES = 200
RESAMPLES_AT_ONCE = 64  # that are drawn before they are written into the columns of a table
EXACT_IN_FLOAT32 = 2**23  # multiples of 1/2 below it


@dataclass(frozen=True)
class CaseWeights:
    """Weights of cases in R rows, such as how often each resample contains a case's patient.

    Attributes:
        counts: Weights of the patients, [Q, R].
        patient: Index of the patient of each case, [N].
        share: Factor of the weight of each case, [N]; None for 1.
        exact: Whether sums over all cases are exact in float32.
    """

    counts: np.ndarray
    patient: np.ndarray
    share: np.ndarray | None = None
    exact: bool = False

    @classmethod
    def ones(cls, num_cases: int) -> 'CaseWeights':
        """Return a single row, in which each case counts once."""
        return cls(np.ones((1, 1)), np.zeros(num_cases, int))

    @property
    def num_rows(self) -> int:
        return self.counts.shape[1]

    def select(self, cases: np.ndarray) -> 'CaseWeights':
        """Select cases by a mask or by their indices."""
        share = None if self.share is None else self.share[cases]
        return replace(self, patient=self.patient[cases], share=share)

    def grouping(
        self, group: np.ndarray, num_groups: int, factor: np.ndarray | None = None
    ) -> 'csr_array':
        """Return a sparse matrix [G, Q] whose product with `counts` sums the weights by group.

        Args:
            group: Group of each case, [N]. Cases outside 0 to G - 1 are left out.
            num_groups: Number of groups G.
            factor: Factor of the weight of each case, [N]; None for 1.
        """
        from scipy.sparse import csr_array  # slow to import

        values = np.ones(len(group), np.float32 if self.exact else np.float64)
        for factors in (self.share, factor):
            values = values if factors is None else values * factors
        inside = (group >= 0) & (group < num_groups)
        places = group[inside], self.patient[inside]
        return csr_array((values[inside], places), shape=(num_groups, len(self.counts)))


class Resamples:
    """Bootstrap resamples of patients, with all images of a patient.

    The same resamples are used for every subgroup and for every model, so that differences are
    paired. They depend on the seed and the set of patients, not on the order of the rows.

    Args:
        patients: Patient of each row.
        resamples: Number of resamples R.
        seed: Seed of the random generator.
    """

    def __init__(self, patients: Sequence[str], *, resamples: int, seed: int) -> None:
        names = sorted(set(patients))
        self._index = {name: index for index, name in enumerate(names)}
        rng = np.random.Generator(np.random.Philox(seed))
        # uint8 is sufficient, because no patient is drawn 256 times. The first row are ones.
        self._counts = np.ones((len(names), 1 + resamples), dtype=np.uint8)
        for start in range(1, 1 + resamples, RESAMPLES_AT_ONCE):
            drawn = [
                np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
                for _ in range(start, min(start + RESAMPLES_AT_ONCE, 1 + resamples))
            ]
            self._counts[:, start : start + len(drawn)] = np.stack(drawn, axis=1)
        self._most = int(self._counts.max(initial=0))

    def weights(self, patients: Sequence[str]) -> CaseWeights:
        """Return the weights of the patient of each row [N].

        They are a row of ones, which gives the score, and how often each resample contains the
        patient, [1 + R].
        """
        index = np.fromiter((self._index[name] for name in patients), int, len(patients))
        present, patient = np.unique(index, return_inverse=True)
        has_all = len(present) == len(self._counts)
        counts = self._counts if has_all else self._counts[present]
        exact = len(index) * self._most < EXACT_IN_FLOAT32
        return CaseWeights(counts, patient, exact=exact or self._sums_are_exact(index))

    def _sums_are_exact(self, index: np.ndarray) -> bool:
        """Return whether the weights of all cases, with these patients, sum up exactly."""
        images = np.bincount(index, minlength=len(self._counts)).astype(np.float32)
        starts = range(0, self._counts.shape[1], RESAMPLES_AT_ONCE)
        blocks = (self._counts[:, start : start + RESAMPLES_AT_ONCE] for start in starts)
        return all((images @ block).max() < EXACT_IN_FLOAT32 for block in blocks)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Compute the 95 % percentile interval of bootstrap replicates [R].

    Replicates are NaN where the score is undefined. The interval is NaN with fewer than
    MIN_RESAMPLES replicates, if fewer than 95 % are defined, and if all are equal, for example
    for perfectly separated classes: this does not mean that the score is certain.
    """
    defined = values[~np.isnan(values)]
    has_enough = len(values) >= MIN_RESAMPLES and defined.size / len(values) >= 0.95
    if not has_enough or np.ptp(defined) == 0:
        return float('nan'), float('nan')
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_p(samples: np.ndarray) -> float:
    """Return the two-sided bootstrap p-value of the hypothesis that a difference is 0.

    The p-value is twice the smaller share of the resamples [R] on one side of 0, at most 1. Each
    count and the number of resamples are increased by one, so the smallest p-value is 2 / (R + 1).
    It is NaN if the interval is undefined.

    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 4.2.
    """
    if np.isnan(interval(samples)[0]):
        return float('nan')
    defined = samples[~np.isnan(samples)]
    fewer = min(np.sum(defined <= 0), np.sum(defined >= 0))
    return min(1.0, float(2 * (1 + fewer) / (1 + defined.size)))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust p-values by Holm's step-down method, ignoring NaN.

    Source: Holm 1979, Scandinavian Journal of Statistics 6(2), 65-70.
    """
    adjusted = np.array(p_values, dtype=float)
    order = np.argsort(adjusted)[: np.sum(~np.isnan(adjusted))]  # NaN sorts last
    steps = np.arange(order.size, 0, -1) * adjusted[order]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


def add_holm(entries: Collection[dict[str, Any]]) -> None:
    """Add `p_holm` to entries: their `p_bootstrap`, adjusted over the entries."""
    adjusted = holm([entry['p_bootstrap'] for entry in entries])
    for entry, value in zip(entries, adjusted, strict=True):
        entry['p_holm'] = float(value)


def delong_variance(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Compute the AUROC and DeLong's estimate of the variance.

    Probabilities [N] may be any increasing scores. Targets [N] are 1, 0, or NaN where the label is
    not scored. The AUROC is NaN without both classes, and the variance with fewer than two cases of
    a class.
    """
    wins, losses = components(probabilities, targets)
    if not (wins.size and losses.size):
        return float('nan'), float('nan')
    return float(wins.mean() / losses.size), variance_of_mean(wins, losses)


def delong_interval(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
    """Compute the AUROC and the limits of the 95 % interval on the logit scale.

    The interval is symmetric about logit(AUROC) with standard error se / (AUROC (1 - AUROC)), so
    that it stays inside [0, 1]. It is NaN if the variance is 0 or undefined. `delong_variance`
    explains the arguments.

    Source: Pepe 2003, The Statistical Evaluation of Medical Tests, section 5.2; Qin & Hotilovac
    2008, Statistical Methods in Medical Research 17(2), 207-221.
    """
    from scipy.special import expit, logit  # slow to import
    from scipy.stats import norm

    area, variance = delong_variance(probabilities, targets)
    if not (variance > 0 and 0 < area < 1):
        return area, float('nan'), float('nan')
    reach = norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance) / (area * (1 - area))
    return area, float(expit(logit(area) - reach)), float(expit(logit(area) + reach))


def delong_test(a: np.ndarray, b: np.ndarray, targets: np.ndarray) -> float:
    """Return the two-sided p-value of the hypothesis that predictions a and b have the same AUROC.

    The p-value is 1 if both rank all pairs alike. It is NaN if the variance of the difference is
    undefined, or 0 although the AUROCs differ. `delong_variance` explains the arguments.
    """
    from scipy.stats import norm  # slow to import

    (wins_a, losses_a), (wins_b, losses_b) = components(a, targets), components(b, targets)
    wins, losses = wins_a - wins_b, losses_a - losses_b
    if min(wins.size, losses.size) < 2:
        return float('nan')
    difference, variance = wins.mean() / losses.size, variance_of_mean(wins, losses)
    if variance == 0:
        return 1.0 if difference == 0 else float('nan')
    return float(2 * norm.sf(abs(difference) / np.sqrt(variance)))


def components(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return DeLong's structural components as exact counts, in which a tie counts half.

    They are the negatives below each positive, [P], and the positives above each negative, [Q].
    """
    from scipy.stats import rankdata  # slow to import

    probabilities = probabilities.astype(np.float64)  # SciPy 1.18 ranks float32 in float32
    positive, negative = probabilities[targets == 1], probabilities[targets == 0]
    ranks = rankdata(np.concatenate([positive, negative]))  # midranks
    below = ranks[: positive.size] - rankdata(positive)
    above = positive.size - (ranks[positive.size :] - rankdata(negative))
    return below, above


def variance_of_mean(wins: np.ndarray, losses: np.ndarray) -> float:
    """Compute the variance of an AUROC or a difference; NaN with fewer than two components."""
    num_positive, num_negative = wins.size, losses.size
    if min(num_positive, num_negative) < 2:
        return float('nan')
    of_positive = wins.var(ddof=1) / num_negative**2 / num_positive
    of_negative = losses.var(ddof=1) / num_positive**2 / num_negative
    return float(of_positive + of_negative)

"""Intervals of scores: bootstrap over patients, and DeLong's variance of the AUROC.

DeLong's variance is valid only where each patient appears once; otherwise use the bootstrap over
patients. The estimate is 0 for example under perfect separation. That is a failure of the estimate
and not certainty, so there is no interval (NaN).

Sources: DeLong et al. 1988, Biometrics 44(3), 837-845; computed by midranks as in Sun & Xu 2014,
IEEE Signal Processing Letters 21(11), 1389-1393.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

LEVEL = 0.95


class Resamples:
    """Patients drawn with replacement; the images of a patient stay together.

    The same draws serve every subset of the rows (subgroups) and every model (paired differences).
    They depend on the seed and the set of patients, not on the order of the rows.

    Args:
        patients: Patient names, one per row; repetitions do not matter.
        resamples: Number of draws R.
        seed: Seed of the draws.
    """

    def __init__(self, patients: Sequence[str], *, resamples: int, seed: int) -> None:
        names = sorted(set(patients))
        self._column = {name: column for column, name in enumerate(names)}
        rng = np.random.Generator(np.random.Philox(seed))
        # One byte is enough: nobody is drawn 256 times.
        self._counts = np.empty((resamples, len(names)), dtype=np.uint8)
        for counts in self._counts:
            drawn = rng.integers(len(names), size=len(names))
            counts[:] = np.bincount(drawn, minlength=len(names))

    def weights(self, patients: Sequence[str]) -> np.ndarray:  # [R, M] uint8
        """How often each resample contains the patients [M] of these rows."""
        return self._counts.take([self._column[name] for name in patients], axis=1)

    def score_weights(self, patients: Sequence[str]) -> np.ndarray:  # [1 + R, M] uint8
        """A row of ones, which gives the score itself, followed by `weights`."""
        return np.pad(self.weights(patients), ((1, 0), (0, 0)), constant_values=1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of a resampled score.

    Values [R] are NaN where a resample leaves the score undefined. The interval is NaN if fewer
    than 95 % are defined.
    """
    defined = values[~np.isnan(values)]
    if not defined.size or defined.size / len(values) < 0.95:
        return float('nan'), float('nan')
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def delong_variance(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """The AUROC and DeLong's estimate of its variance.

    Probabilities [N] may be any increasing score. Targets [N] are 1, 0, or NaN where the label is
    not scored. The AUROC is NaN without both classes, and the variance with fewer than two cases of
    a class.
    """
    wins, losses = components(probabilities, targets)
    if not (wins.size and losses.size):
        return float('nan'), float('nan')
    return float(wins.mean() / losses.size), _variance_of_mean(wins, losses)


def delong_interval(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
    """The AUROC, and the low and high end of its 95 % interval on the logit scale.

    The interval is symmetric about logit(AUROC) with standard error se / (AUROC (1 - AUROC)), so
    that it stays inside [0, 1]. It is NaN where the variance is 0 or undefined. Probabilities and
    targets are as in `delong_variance`.

    Source: Pepe 2003, The Statistical Evaluation of Medical Tests, section 5.2; Qin & Hotilovac
    2008, Statistical Methods in Medical Research 17(2), 207-221.
    """
    area, variance = delong_variance(probabilities, targets)
    if not (variance > 0 and 0 < area < 1):
        return area, float('nan'), float('nan')
    reach = norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance) / (area * (1 - area))
    return area, float(expit(logit(area) - reach)), float(expit(logit(area) + reach))


def delong_test(a: np.ndarray, b: np.ndarray, targets: np.ndarray) -> float:
    """Two-sided p-value that predictions a and b [N] of the same cases have the same AUROC.

    It is 1 where both order all pairs alike, and NaN where the variance of the difference is
    undefined, or 0 although the areas differ. Targets are as in `delong_variance`.
    """
    (wins_a, losses_a), (wins_b, losses_b) = components(a, targets), components(b, targets)
    wins, losses = wins_a - wins_b, losses_a - losses_b
    if min(wins.size, losses.size) < 2:
        return float('nan')
    difference, variance = wins.mean() / losses.size, _variance_of_mean(wins, losses)
    if variance == 0:
        return 1.0 if difference == 0 else float('nan')
    return float(2 * norm.sf(abs(difference) / np.sqrt(variance)))


def components(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's structural components as counts (a tie counts half), which floats hold exactly.

    They are the negatives below each positive [P], and the positives above each negative [Q].
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

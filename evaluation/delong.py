"""DeLong's variance of the AUROC: an interval, and a paired test of two predictions.

Valid only where the rows are independent: each patient once. With several studies or images of a
patient the variance comes out too small; whoever calls sees to it, or takes the bootstrap over
patients (`evaluation.intervals`) instead.

The variance is 0 where every positive beats the same share of negatives and every negative loses to
the same share of positives, as under perfect separation. That is a failure of the estimate, no
certainty, so there is no interval then (NaN). With fewer than two cases of a class there is no
variance at all (NaN).

Source: DeLong et al. 1988, Biometrics 44(3), 837-845; by midranks: Sun & Xu 2014, IEEE Signal
Processing Letters 21(11), 1389-1393.
"""

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

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

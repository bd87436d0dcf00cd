"""Decision thresholds and temperature scaling, both fitted on held-out patients.

Each label has its own temperature. The threshold HALF is not fitted.

Source: Guo et al. 2017, arXiv:1706.04599, section 4.2 (temperature scaling).
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from evaluation.metrics import calibration_bins

# Probabilities are clipped to [CLIP, 1 - CLIP], because the logit is infinite at 0 and 1. Files of
# predictions have 9 significant digits, so a 1 stands for a probability of at least 1 - 5e-10.
CLIP = 1e-9
TEMPERATURES = (0.01, 100.0)  # lower and upper bound of the search
HALF = 0.5  # for all labels with EVAL.THRESHOLD half


def choose_threshold(
    probabilities: np.ndarray, targets: np.ndarray, *, rule: str, sensitivity: float
) -> float:
    """Choose the best threshold among the observed probabilities; NaN without both classes.

    A case is predicted positive if its probability is at least the threshold. The highest of
    several equally good thresholds is chosen, which predicts the fewest positives.

    Args:
        probabilities: Probabilities, [N].
        targets: 1, 0, or NaN where the label is not scored, [N].
        rule: 'youden', 'f1' or 'sensitivity' (EVAL.THRESHOLD).
        sensitivity: Lowest sensitivity that the rule 'sensitivity' accepts, in (0, 1].

    Source: Youden 1950, Cancer 3(1), 32-35 ('youden').
    """
    positive, negative = probabilities[targets == 1], probabilities[targets == 0]
    if not (positive.size and negative.size):
        return float('nan')
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]  # descending
    hits, alarms = _at_least(positive, thresholds), _at_least(negative, thresholds)
    if rule == 'youden':
        # Sensitivity + specificity - 1, times both counts, so that ties are exact.
        quality = hits * negative.size - alarms * positive.size
    elif rule == 'f1':
        quality = 2 * hits / (positive.size + hits + alarms)
    else:
        quality = hits / positive.size >= sensitivity
    # argmax returns the first maximum, and therefore the highest threshold.
    return float(thresholds[np.argmax(quality)])


def fit_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Fit the temperature T that minimises the binary cross-entropy of sigmoid(logit / T).

    The cross-entropy is convex in 1 / T, so a minimum in log T is unique.

    Args:
        probabilities: Probabilities, [N], clipped to [CLIP, 1 - CLIP].
        targets: 1, 0, or NaN where the label is not scored, [N].

    Returns:
        T within TEMPERATURES, or NaN without both classes. T above 1 softens overconfident
        probabilities. T is the lower bound if 0.5 separates the classes, the upper bound if the
        probabilities are no better than a constant 0.5, and exactly 1 if no other T is better.
    """
    known = ~np.isnan(targets)
    truth, logits = targets[known], _logits(probabilities[known])
    if np.unique(truth).size < 2:
        return float('nan')

    def cross_entropy(temperature: float) -> float:
        scaled = logits / temperature
        return float(np.mean(np.logaddexp(0, scaled) - truth * scaled))

    found = minimize_scalar(
        lambda log_temperature: cross_entropy(np.exp(log_temperature)),
        bounds=np.log(TEMPERATURES),
        method='bounded',
        options={'xatol': 1e-8},
    )
    # The search does not reach the bounds. If several values are equal, min returns the first.
    return min((1.0, *TEMPERATURES, float(np.exp(found.x))), key=cross_entropy)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits by T and return probabilities. If T is NaN, nothing changes."""
    if np.isnan(temperature):
        return probabilities
    return expit(_logits(probabilities) / temperature)


def reliability_curve(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, list]:
    """Compute the reliability curve over the bins of the expected calibration error.

    Args:
        probabilities: Probabilities, [N].
        targets: 1, 0, or NaN where the label is not scored, [N].

    Returns:
        `x` (mean probability), `y` (share of positives) and `count` (number of cases) of the
        non-empty bins in ascending order.
    """
    known = ~np.isnan(targets)
    values, truth = probabilities[known].astype(np.float64), targets[known].astype(np.float64)
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    bins = calibration_bins(np.cumsum(counts) - counts / 2, len(values))[group]
    count = np.bincount(bins)
    used = count > 0
    return {
        'x': (np.bincount(bins, values)[used] / count[used]).tolist(),
        'y': (np.bincount(bins, truth)[used] / count[used]).tolist(),
        'count': count[used].tolist(),
    }


def _at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Count the values at or above each threshold."""
    return values.size - np.searchsorted(np.sort(values), thresholds, side='left')


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return logit(np.clip(probabilities.astype(np.float64), CLIP, 1 - CLIP))

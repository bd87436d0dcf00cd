"""Decision thresholds and temperature scaling, both fitted on held-out patients.

The threshold 'half' is fixed and needs none.

Source: Guo et al. 2017, arXiv:1706.04599, section 4.2 (temperature scaling; here one temperature
for each label).
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from config import Registry
from evaluation.metrics import calibration_bins

# Probabilities are moved this far from 0 and 1, where the logit is infinite. Prediction files have
# 9 significant digits, so a 1 in them stands for anything from 1 - 5e-10 on.
CLIP = 1e-9
TEMPERATURES = (0.01, 100.0)  # lowest and highest that are tried
THRESHOLD_RULES = Registry('EVAL.THRESHOLD')
THRESHOLD_RULES['half'] = 0.5  # not chosen: the same for all labels


class Candidates(NamedTuple):
    """What each candidate threshold of one label would find, from the highest threshold on."""

    hits: np.ndarray  # [C] positives at or above each threshold
    alarms: np.ndarray  # [C] negatives at or above each threshold
    num_positive: int
    num_negative: int


@THRESHOLD_RULES.register('youden')
def youden(found: Candidates, _sensitivity: float) -> np.ndarray:
    """Sensitivity + specificity - 1, times both counts, so that ties are exact.

    Source: Youden 1950, Cancer 3(1), 32-35.
    """
    return found.hits * found.num_negative - found.alarms * found.num_positive


@THRESHOLD_RULES.register('f1')
def best_f1(found: Candidates, _sensitivity: float) -> np.ndarray:
    """F1."""
    return 2 * found.hits / (found.num_positive + found.hits + found.alarms)


@THRESHOLD_RULES.register('sensitivity')
def wanted_sensitivity(found: Candidates, sensitivity: float) -> np.ndarray:
    """Whether the sensitivity is at least the wanted one."""
    return found.hits / found.num_positive >= sensitivity


def choose_threshold(
    probabilities: np.ndarray, targets: np.ndarray, *, rule: str, sensitivity: float
) -> float:
    """Choose the best threshold among the observed probabilities; NaN without both classes.

    A case is positive if its probability is at least the threshold. Among equally good thresholds
    the greatest is taken, which calls the fewest cases positive.

    Args:
        probabilities: [N].
        targets: [N], 1, 0, or NaN where the label is not scored.
        rule: Name in THRESHOLD_RULES except 'half', which chooses nothing.
        sensitivity: The wanted sensitivity of the rule 'sensitivity', above 0 and at most 1.
    """
    positive, negative = probabilities[targets == 1], probabilities[targets == 0]
    if not (positive.size and negative.size):
        return float('nan')
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]  # from the greatest on
    hits, alarms = _at_least(positive, thresholds), _at_least(negative, thresholds)
    found = Candidates(hits, alarms, positive.size, negative.size)
    # The first of the greatest.
    return float(thresholds[np.argmax(THRESHOLD_RULES[rule](found, sensitivity))])


def fit_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Fit the temperature T for which sigmoid(logit / T) has the least binary cross-entropy.

    The cross-entropy is convex in 1 / T, so a minimum in log T is the only one.

    Args:
        probabilities: [N], in [0, 1]; 0 and 1 count as CLIP and 1 - CLIP.
        targets: [N], 1, 0, or NaN where the label is not scored.

    Returns:
        T within TEMPERATURES, NaN without both classes; above 1 softens overconfident
        probabilities. It is the lower bound if 0.5 separates the classes, the upper bound if the
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
    # The search does not reach the bounds; among equals, the first is taken.
    return min((1.0, *TEMPERATURES, float(np.exp(found.x))), key=cross_entropy)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits by T and return probabilities; unchanged if T is NaN (not fitted)."""
    if np.isnan(temperature):
        return probabilities
    return expit(_logits(probabilities) / temperature)


def reliability_curve(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, list]:
    """Mean probability and share of positives in the bins of the expected calibration error.

    Probabilities are [N], and targets [N] are 1, 0, or NaN where the label is not scored.

    Returns:
        `x` (mean probability), `y` (share of positives) and `count` of the bins with cases, in
        ascending order of probability.
    """
    known = ~np.isnan(targets)
    values, truth = probabilities[known].astype(np.float64), targets[known].astype(np.float64)
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    bins = calibration_bins(counts[None])[0][group]
    count = np.bincount(bins)
    used = count > 0
    return {
        'x': (np.bincount(bins, values)[used] / count[used]).tolist(),
        'y': (np.bincount(bins, truth)[used] / count[used]).tolist(),
        'count': count[used].tolist(),
    }


def _at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many values are at least each threshold."""
    return values.size - np.searchsorted(np.sort(values), thresholds, side='left')


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return logit(np.clip(probabilities.astype(np.float64), CLIP, 1 - CLIP))

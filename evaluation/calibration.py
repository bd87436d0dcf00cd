"""The probability from which on a case counts as positive, chosen on held-out patients."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from evaluation.metrics import equal_mass_bins

# ==== evaluation.calibration: Temperature scaling, fitted on held-out patients, and reliability curves.
#
# Source: Guo et al. 2017, arXiv:1706.04599, section 4.2; here a temperature for each label.

# Probabilities are moved this far from 0 and 1, where the logit is infinite. Prediction files hold
# 9 significant digits, so that a 1 in them stands for anything from 1 - 5e-10 on.
CLIP = 1e-9
TEMPERATURES = (0.01, 100.0)  # least and greatest that are tried


def fit_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The temperature T whose sigmoid(logit / T) has the least binary cross-entropy.

    In 1 / T the cross-entropy is convex, so that a minimum in log T is the only one.

    Args:
        probabilities: [N], in [0, 1]; 0 and 1 count as CLIP and 1 - CLIP.
        targets: [N], 1, 0, or NaN where the label is not to be scored.

    Returns:
        T within TEMPERATURES: above 1 softens overconfident probabilities. Exactly a bound where
        the best T lies at or beyond it: the least if 0.5 separates the classes (ever sharper is
        ever better), the greatest if the probabilities are no better than a constant 0.5. Exactly 1
        if no T is better. NaN without both classes.
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
    # The search stops short of the bounds; of equals, the first is taken.
    return min((1.0, *TEMPERATURES, float(np.exp(found.x))), key=cross_entropy)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities of the logits divided by T; unchanged where T is NaN (none was fitted)."""
    if np.isnan(temperature):
        return probabilities
    return expit(_logits(probabilities) / temperature)


def reliability_curve(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Mean probability and share of positives in the equal-mass bins of the calibration error.

    Args:
        probabilities: [N].
        targets: [N], 1, 0, or NaN where the label is not to be scored.

    Returns:
        `mean_probability`, `share_positive` and `count`, [B] each, for the B bins that hold a case,
        in ascending order of probability.
    """
    known = ~np.isnan(targets)
    values, truth = probabilities[known].astype(np.float64), targets[known].astype(np.float64)
    bins = equal_mass_bins(values)
    count = np.bincount(bins)
    used = count > 0
    return {
        'mean_probability': np.bincount(bins, values)[used] / count[used],
        'share_positive': np.bincount(bins, truth)[used] / count[used],
        'count': count[used],
    }


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return logit(np.clip(probabilities.astype(np.float64), CLIP, 1 - CLIP))


# ==== evaluation.thresholds: The probability from which on a case counts as positive, chosen on held-out patients.

THRESHOLD_RULES = ('youden', 'f1', 'sensitivity')


def choose_threshold(
    probabilities: np.ndarray, targets: np.ndarray, *, rule: str, sensitivity: float
) -> float:
    """The best threshold among the observed probabilities, by a rule.

    A case is positive at probability >= threshold. Of thresholds that are equally good, the
    greatest is taken: the one that calls the fewest cases positive.

    Args:
        probabilities: [N].
        targets: [N], 1, 0, or NaN where the label is not to be scored.
        rule: 'youden' (greatest sensitivity + specificity - 1), 'f1' (greatest F1), or
            'sensitivity' (the greatest threshold whose sensitivity is at least the wanted one).
        sensitivity: the wanted one, above 0 and at most 1; only 'sensitivity' looks at it.

    Returns:
        The threshold; NaN without both classes.

    Raises:
        ValueError: if the rule or the sensitivity is not allowed.

    Source: Youden 1950, Cancer 3(1), 32-35.
    """
    if rule not in THRESHOLD_RULES:
        raise ValueError(
            f'EVAL.THRESHOLD must be one of {", ".join(THRESHOLD_RULES)}, got {rule!r}'
        )
    if not 0 < sensitivity <= 1:
        raise ValueError(f'EVAL.SENSITIVITY must be above 0 and at most 1, got {sensitivity!r}')
    positive, negative = probabilities[targets == 1], probabilities[targets == 0]
    if not (positive.size and negative.size):
        return float('nan')
    candidates = np.unique(np.concatenate([positive, negative]))[::-1]  # from the greatest on
    hits, alarms = _at_least(positive, candidates), _at_least(negative, candidates)
    if rule == 'youden':  # times both counts: whole numbers, so that ties are exact
        score = hits * negative.size - alarms * positive.size
    elif rule == 'f1':
        score = 2 * hits / (positive.size + hits + alarms)
    else:
        score = hits / positive.size >= sensitivity
    return float(candidates[np.argmax(score)])  # the first of the greatest


def _at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many values are at least each threshold."""
    return values.size - np.searchsorted(np.sort(values), thresholds, side='left')

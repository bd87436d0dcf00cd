"""Temperature scaling, fitted on held-out patients, and reliability curves.

Source: Guo et al. 2017, arXiv:1706.04599, section 4.2; here a temperature for each label.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from evaluation.metrics import equal_mass_bins

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

"""Choose pseudo-labels from confident predictions, and measure how often they are correct.

A prediction becomes a hard label (1 or 0) if the model is rarely wrong at this probability on
held-out patients (`choose_values`). The error rate is compared with the base rate, which is the
error rate if all cases get the same value: 1 - prevalence for the value 1, and the prevalence for
the value 0. With `confidence` c, the error rate among the held-out cases that would get the value
must be at most (1 - c) times the base rate. For c = 0.9 and a prevalence of 2 %, this requires a
positive predictive value of 0.902 for positives and a negative predictive value of 0.998 for
negatives.

Few cases do not determine a rate. There must be at least MIN_CASES, and at least as many as contain
MIN_EXPECTED errors at the base rate. Otherwise, the label gets no pseudo-labels with this value.
The reported error rates are optimistic, because they are measured on the patients that determined
the threshold.

Sources: Lee 2013, Pseudo-Label, ICML workshop (hard labels); Xie et al. 2020, arXiv:1911.04252
(Noisy Student, repeated rounds); Rizve et al. 2021, arXiv:2101.06329 (separate positive and
negative labels). The comparison with the base rate is specific to this project.
"""

import math
from dataclasses import dataclass

import numpy as np

MIN_CASES = 10  # smallest number of held-out cases beyond a threshold
MIN_EXPECTED = 5.0  # smallest number of errors that these cases contain at the base rate


@dataclass(frozen=True)
class Cut:
    """Threshold for the pseudo-labels with one value of one label. The default selects none.

    Attributes:
        threshold: Lowest probability that becomes 1, or highest probability that becomes 0.
        cases: Number of held-out cases beyond the threshold.
        errors: Number of these cases with the opposite real label.
    """

    threshold: float = math.nan
    cases: int = 0
    errors: int = 0


def choose_values(
    held_out: np.ndarray, targets: np.ndarray, unlabelled: np.ndarray, *, confidence: float
) -> tuple[np.ndarray, list[tuple[Cut, Cut]]]:
    """Choose hard labels for the unlabelled images with confident predictions.

    These lie beyond the lowest held-out probability for 1, and the highest for 0, beyond which the
    error rate is low enough.

    Args:
        held_out: Probabilities of held-out images, [N, K], NaN where there is none.
        targets: Real labels of these images, [N, K]: 1, 0, or NaN where unknown.
        unlabelled: Probabilities of the unlabelled images, [M, K], NaN where there is none.
        confidence: Required confidence, in (0, 1].

    Returns:
        Pseudo-labels [M, K]: 1, 0, or NaN where the model is not confident or confident of both;
        and the `Cut` of the positive and of the negative values for each label.
    """
    values = np.full(unlabelled.shape, np.nan, np.float32)
    cuts = []
    for k, column in enumerate(unlabelled.T):
        known = ~np.isnan(targets[:, k]) & ~np.isnan(held_out[:, k])
        truth, given = targets[known, k] == 1, held_out[known, k]
        positive = _choose_cut(given, ~truth, confidence)
        below = _choose_cut(-given, truth, confidence)
        negative = Cut(-below.threshold, below.cases, below.errors)
        cuts.append((positive, negative))
        high, low = column >= positive.threshold, column <= negative.threshold  # False for NaN
        values[high & ~low, k] = 1
        values[low & ~high, k] = 0
    return values, cuts


def audit(values: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Compute the share of correct pseudo-labels and the share expected by chance.

    Args:
        values: Pseudo-labels of all unlabelled images, [M, K]: 1, 0, or NaN where there is none.
        real: Real labels that training does not use, [M, K]: 1, 0, or NaN where unknown.

    Returns:
        `positive_values` (number), `positive_confirmed` (correct share of those with a known real
        label) and `positive_by_chance` (correct share if the images were drawn at random), and the
        same for 'negative'. Shares are NaN if there are no such pseudo-labels.
    """
    known = ~np.isnan(real)
    figures = {}
    for name, value in (('positive', 1), ('negative', 0)):
        given, is_right = values == value, real == value
        total = (given & known).sum()
        rates = is_right.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        by_chance = ((given & known).sum(axis=0) * rates).sum()
        figures |= {
            f'{name}_values': int(given.sum()),
            f'{name}_confirmed': float((given & is_right).sum() / total) if total else math.nan,
            f'{name}_by_chance': float(by_chance / total) if total else math.nan,
        }
    return figures


def _choose_cut(scores: np.ndarray, wrong: np.ndarray, confidence: float) -> Cut:
    """Choose the lowest score beyond which the error rate is low enough."""
    if not scores.size:
        return Cut()
    values, counts = np.unique(scores, return_counts=True)
    values, cases = values[::-1], np.cumsum(counts[::-1])  # descending
    errors = np.cumsum(wrong[np.argsort(-scores, kind='stable')])[cases - 1]
    enough = (cases >= MIN_CASES) & (cases * wrong.mean() >= MIN_EXPECTED)
    # The tolerance accepts equal rates in spite of rounding.
    rarely = errors * len(wrong) <= (1 - confidence) * cases * wrong.sum() * (1 + 1e-12)
    good = np.flatnonzero(enough & rarely)
    if not good.size:
        return Cut()
    last = good[-1]
    return Cut(float(values[last]), int(cases[last]), int(errors[last]))

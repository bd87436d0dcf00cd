"""Pseudo-labels: which predictions are confident enough to train on, and how often they are right.

A prediction becomes a hard label, 1 or 0, where held-out patients with real labels show that the
model is rarely wrong (`choose_values`). Errors count relative to the base rate, the error rate of
giving everybody that value: 1 - prevalence for the value 1, prevalence for the value 0. With
`confidence` c, the error rate among the held-out cases that would get the value must be at most
(1 - c) times the base rate. For c = 0.9 and a prevalence of 2 % that is a positive predictive value
of 0.902 and a negative predictive value of 0.998.

A rate is not known from a few cases. There must be at least MIN_CASES of them, and as many as would
contain MIN_EXPECTED errors at the base rate; otherwise the label gets no pseudo-labels of that
value. The reported error rates are those of the chosen threshold on the patients that it was chosen
on, so they are optimistic.

Sources: hard labels from the model's own predictions: Lee 2013 (Pseudo-Label, ICML workshop);
repeated rounds: Xie et al. 2020, arXiv:1911.04252 (Noisy Student); separate positive and negative
labels: Rizve et al. 2021, arXiv:2101.06329. The error relative to the base rate is this project's.
"""

import math
from dataclasses import dataclass

import numpy as np

KEEP = ('threshold', 'top_share')
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # that 'top_share' chooses from
MIN_CASES = 10  # held-out cases beyond a threshold
MIN_EXPECTED = 5.0  # errors among them at the base rate


@dataclass(frozen=True)
class Cut:
    """Where the pseudo-labels of one value of one label begin; by default there are none.

    Attributes:
        threshold: Probability; 1 from it on, 0 up to it.
        share: With 'top_share', the chosen share in (0, 0.5]; otherwise NaN.
        cases: Held-out cases beyond the threshold (with 'top_share': in this share).
        errors: How many of them have the other real label.
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
    """Choose hard labels for the unlabelled images where the model is confident.

    'threshold' takes the lowest held-out probability from which on (for 0: the highest up to which)
    the error rate is low enough. 'top_share' takes the greatest of SHARES with a low enough error
    rate, and gives the value to that share of the unlabelled images, rounded down, and to fewer
    where equal probabilities would exceed it.

    Args:
        held_out: [N, K] probabilities of held-out images, NaN where there is none.
        targets: [N, K] their real labels, 1, 0, or NaN where unknown.
        unlabelled: [M, K] probabilities, NaN where there is none.
        keep: 'threshold' or 'top_share'.
        confidence: Above 0 and at most 1.

    Returns:
        [M, K] 1, 0, or NaN where the model is not confident (or confident of both), and for each
        label the `Cut` of its positive and of its negative values.
    """
    values = np.full(unlabelled.shape, np.nan, np.float32)
    cuts = []
    for k, column in enumerate(unlabelled.T):
        known = ~np.isnan(targets[:, k]) & ~np.isnan(held_out[:, k])
        truth, given, wanted = targets[known, k] == 1, held_out[known, k], column[~np.isnan(column)]
        options = {'keep': keep, 'confidence': confidence}
        positive = _choose_cut(given, ~truth, wanted, **options)
        below = _choose_cut(-given, truth, -wanted, **options)
        negative = Cut(-below.threshold, below.share, below.cases, below.errors)
        cuts.append((positive, negative))
        high, low = column >= positive.threshold, column <= negative.threshold  # False for NaN
        values[high & ~low, k] = 1
        values[low & ~high, k] = 0
    return values, cuts


def audit(values: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Count how many pseudo-labels the real labels confirm, and how many chance would.

    Args:
        values: [M, K] pseudo-labels 1 or 0, NaN where there is none, of all unlabelled images.
        real: [M, K] the labels that were set aside, 1, 0, or NaN where unknown.

    Returns:
        For 'positive' and 'negative': `positive_values` (number), `positive_confirmed` (share that
        is right, of those with a known real label) and `positive_by_chance` (the share if as many
        values of each label went to images drawn at random); shares are NaN without any.
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


def _choose_cut(
    scores: np.ndarray, wrong: np.ndarray, unlabelled: np.ndarray, *, keep: str, confidence: float
) -> Cut:
    """The lowest score from which on the cases are rarely enough wrong."""
    if not scores.size:
        return Cut()
    values, cases = _tally(scores)
    errors = np.cumsum(wrong[np.argsort(-scores, kind='stable')])[cases - 1]
    enough = (cases >= MIN_CASES) & (cases * wrong.mean() >= MIN_EXPECTED)
    # Compared as whole numbers, so that equal rates are not lost to rounding.
    rarely = errors * len(wrong) <= (1 - confidence) * cases * wrong.sum() * (1 + 1e-12)
    good = enough & rarely
    if keep == 'threshold':
        if not good.any():
            return Cut()
        last = np.flatnonzero(good)[-1]
        return Cut(float(values[last]), math.nan, int(cases[last]), int(errors[last]))
    for share in reversed(SHARES):
        inside = np.flatnonzero(cases <= _part(share, len(scores)))
        if inside.size and good[inside[-1]]:
            levels, sizes = _tally(unlabelled)
            fitting = levels[sizes <= _part(share, len(unlabelled))]
            threshold = float(fitting[-1]) if fitting.size else math.nan
            return Cut(threshold, share, int(cases[inside[-1]]), int(errors[inside[-1]]))
    return Cut()


def _tally(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct scores from the highest on, and how many scores are at least each."""
    values, counts = np.unique(scores, return_counts=True)
    return values[::-1], np.cumsum(counts[::-1])


def _part(share: float, count: int) -> int:
    """The share of the count, rounded down; 0.29 of 100 is 29 in spite of floating point."""
    return math.floor(share * count * (1 + 1e-12))

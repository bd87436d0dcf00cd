"""The probability from which on a case counts as positive, chosen on held-out patients."""

import numpy as np

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

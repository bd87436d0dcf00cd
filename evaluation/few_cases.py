"""Whether there are cases enough to select a checkpoint by."""

from collections.abc import Mapping, Sequence

import numpy as np

FEW_CASES = 10  # of a class: what is chosen by fewer is a matter of chance


def rarer_cases(
    targets: np.ndarray, labels: Sequence[str], five: Sequence[str], rule: str
) -> dict[str, int]:
    """How many images the rarer class has, of each label that `metrics.selection_score` asks for.

    Args:
        targets: [N, K], 1, 0, or NaN.
        labels: [K] names.
        five: names of the competition tasks.
        rule: see there; by 'auto' those of the five.
    """
    asked = five if rule != 'all' and set(five) <= set(labels) else labels
    columns = {label: targets[:, list(labels).index(label)] for label in asked}
    return {label: int(min((c == 1).sum(), (c == 0).sum())) for label, c in columns.items()}


def describe_few(cases: Mapping[str, int]) -> str:
    """Those of `rarer_cases` that are fewer than FEW_CASES, in words; '' if none is."""
    return ', '.join(f'{label} {count}' for label, count in cases.items() if count < FEW_CASES)


def more_cases(split: str) -> str:
    """What to do where a split that selects has few of a class."""
    if split == 'holdout':
        return 'raise DATA.HOLDOUT_FRACTION'
    return 'take EVAL.SELECT_ON holdout, or fix the number of epochs'

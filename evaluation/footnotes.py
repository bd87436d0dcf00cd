"""Footnotes of the report: why a score has no interval, and why no verdict is possible."""

import math
from typing import Any

from evaluation.intervals import LEVEL


class Footnotes:
    """The footnotes below one table, which are numbered in the order of their marks."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        """Return the mark of a footnote, such as 'note 1'. Equal texts share a mark."""
        return f'note {self._numbers.setdefault(text, len(self._numbers) + 1)}'

    def take(self) -> list[str]:
        """Return the lines to write below the table, and begin with note 1 again."""
        lines = [f'{self.mark(text)}: {text}' for text in self._numbers]
        self._numbers = {}
        return lines


def explain_intervals(part: Any, cause: str = 'too few cases of a label') -> None:
    """Add a `note` with the reason to every score that has no interval, in place.

    Args:
        part: Part of a report with resamples: a score (`value`, `low`, `high`), or a dictionary or
            list that contains scores.
        cause: Cause of a missing interval, unless the part has its own `n` and `positives`.
    """
    if isinstance(part, list):
        for entry in part:
            explain_intervals(entry, cause)
    elif isinstance(part, dict) and {'value', 'low'} <= part.keys():
        if math.isnan(part['low']) and not math.isnan(part['value']):
            part['note'] = f'no interval, because of {cause}'
    elif isinstance(part, dict):
        if {'n', 'positives'} <= part.keys():
            positives = part['positives']
            cause = (
                f'{positives} positives and {part["n"] - positives} negatives: more than 5 of 100 '
                'resamples leave the score undefined'
            )
        for name, entry in part.items():
            explain_intervals(entry, 'a variance of 0' if name == 'delong' else cause)


def too_few_resamples(num_labels: int, resamples: int) -> str:
    """Say that no corrected p-value of a comparison can be significant; '' if one can be."""
    smallest = num_labels * 2 / (resamples + 1)
    if not resamples or smallest < 1 - LEVEL:
        return ''
    needed = math.floor(2 * num_labels / (1 - LEVEL))
    return (
        f'no p (Holm) can show a difference: with {resamples} resamples and {num_labels} labels it '
        f'is at least {min(1.0, smallest):.3f}; {1 - LEVEL:.2f} needs more than {needed} resamples'
    )

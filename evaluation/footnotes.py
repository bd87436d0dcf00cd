"""Footnotes of the report: why a score has no interval, and why no verdict is possible."""

import math
from typing import Any

from evaluation.intervals import LEVEL

UNDEFINED = 'more than 5 of 100 resamples leave the score undefined, or all have the same score'
CAUSES = {  # of missing intervals, by the name of the part
    'means': 'the labels have few cases, or a label of the mean has none',
    'delong': 'the variance is 0 or undefined',
    'gap': f'the best and the worst were picked among more than two groups, or {UNDEFINED}',
}


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


def explain_intervals(part: Any, cause: str = UNDEFINED) -> None:
    """Add a `note` with the reason to every score that has no interval, in place.

    Args:
        part: Part of a report with resamples: a score (`value`, `low`, `high`), or a dictionary or
            list that contains scores.
        cause: Cause of a missing interval, unless the part shows another one.
    """
    if isinstance(part, list):
        for entry in part:
            explain_intervals(entry, cause)
    elif isinstance(part, dict) and {'value', 'low'} <= part.keys():
        if math.isnan(part['low']) and not math.isnan(part['value']):
            part['note'] = f'no interval, because {cause}'
    elif isinstance(part, dict):
        if {'n', 'few'} <= part.keys():
            cause = f'there are few cases ({part["few"]})' if part['few'] else UNDEFINED
        for name, entry in part.items():
            explain_intervals(entry, CAUSES.get(name, cause))


def too_few_resamples(num_labels: int, *, resamples: int) -> str:
    """Say that no corrected p-value of a comparison can be significant; '' if one can be."""
    smallest = num_labels * 2 / (resamples + 1)
    if not resamples or smallest < 1 - LEVEL:
        return ''
    needed = math.floor(2 * num_labels / (1 - LEVEL))
    return (
        f'no corrected p can be below {1 - LEVEL:.2f}: with {resamples} resamples and {num_labels} '
        f'labels it is at least {min(1.0, smallest):.3f}. This needs more than {needed} resamples.'
    )

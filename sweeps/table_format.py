"""Format of tables: numbers as text, missing values with footnotes, Markdown and CSV files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.footnotes import Footnotes
from sweeps.row_comparison import ENDS, MISSING
from system.files import replace_files

NOT_FOR_CLINICAL_USE = 'Not for clinical use.'
ONE_SEED = 'A single seed has no interval over seeds, so it cannot show a difference.'
EQUAL_SEEDS = 'The difference is the same for all seeds, so there is no interval over seeds.'
Bounds = Mapping[str, float | None]  # `low` and `high` of an interval; None and NaN are unknown


def write_table(
    folder: Path, name: str, figures: Sequence[Mapping[str, Any]], markdown: str
) -> Path:
    """Write a table as `<name>.csv` (unrounded, empty if unknown) and `<name>.md`.

    Returns:
        Path of the Markdown file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(figures, dtype=object)  # keeps whole numbers whole
    page = folder / f'{name}.md'
    replace_files({page: markdown, page.with_suffix('.csv'): table.to_csv(index=False)})
    return page


def with_notes(rows: Sequence[Mapping[str, str]], notes: Iterable[str]) -> str:
    """Format rows of cells as a Markdown table with a list of notes below."""
    return f'{markdown_table(rows)}\n' + ''.join(f'- {note}\n' for note in notes)


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Format rows of cells as a Markdown table."""
    lines = [list(rows[0]), ['---'] * len(rows[0]), *(list(row.values()) for row in rows)]
    cells = [[cell.replace('<', '&lt;').replace('|', r'\|') for cell in line] for line in lines]
    return ''.join(f'| {" | ".join(line)} |\n' for line in cells)


def columns(name: str, value: float | None, bounds: Bounds) -> dict[str, float | None]:
    """Return the columns of a value and its interval in a CSV file."""
    return {name: value} | {f'{name}_{end}': bounds.get(end) for end in ENDS}


def shown(value: float | None, form: str) -> str:
    """Format a number with a real minus sign, and None and NaN as MISSING."""
    return MISSING if value is None or value != value else f'{value:{form}}'.replace('-', '−')


def interval_text(bounds: Bounds, form: str) -> str:
    """Format an interval as 'low to high', or '' if it is unknown."""
    ends = [shown(bounds.get(end), form) for end in ENDS]
    return '' if MISSING in ends else ' to '.join(ends)


def with_interval(value: float | None, bounds: Bounds, form: str) -> str:
    """Format a number with its interval, if known."""
    text = interval_text(bounds, form)
    return shown(value, form) + (f' ({text})' if text else '')


def missing_value(footnotes: Footnotes, reasons: Iterable[str]) -> str:
    """Return a missing value with the marks of its reasons."""
    return f'{MISSING} ({", ".join(map(footnotes.mark, reasons))})'


def missing_intervals(part: Mapping[str, Any], few_cases: str) -> dict[str, str]:
    """Return the reason for each unknown interval of a comparison (`sweeps.row_comparison`).

    `few_cases` is the reason for seeds with undefined scores, and for patients.
    """
    of_seeds = EQUAL_SEEDS if shown(part['difference'], '') != MISSING else few_cases
    reasons = {'over_seeds': ONE_SEED if part['seeds'] == 1 else of_seeds}
    reasons['over_patients'] = few_cases
    return {noise: text for noise, text in reasons.items() if not interval_text(part[noise], '')}


def verdict_text(part: Mapping[str, Any], missing: Mapping[str, str], footnotes: Footnotes) -> str:
    """Return the verdict of a comparison, given the result of `missing_intervals`."""
    is_missing = part['verdict'] == MISSING
    return missing_value(footnotes, missing.values()) if is_missing else part['verdict']

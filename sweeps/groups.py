"""The gap between groups of patients in a sweep: a table, and a figure by number of labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.intervals import add_holm
from evaluation.model_comparison import ENDS
from evaluation.subgroups import gaps_of
from sweeps.files import Sweep
from sweeps.long_table import MEANS, facts_of, has_few_cases, parts_of, rows_of
from sweeps.plots import plot_by_subset, plot_categories, span_of
from sweeps.tables import (
    about_data,
    about_runs,
    compare,
    file_name,
    interval_text,
    row_cells,
    score_title,
    shown,
    write_score,
    write_table,
)

ABOUT_GAPS = (
    'Gap: the difference between the groups with the highest and the lowest score. They are '
    'selected as extremes, so a gap above 0 is expected even if all groups are equal. p: how often '
    'equal groups have as wide a gap, corrected by Holm over this table. Only the gap of two '
    'groups has an interval, which is over patients and not corrected.'
)


def compare_groups(table: pd.DataFrame, sweep: Sweep, score: str) -> list[dict[str, Any]]:
    """Return the gap in a score between the groups of each column, for each row of a sweep.

    The scores are means over the seeds. `table` is a long table with groups (`score_runs`).
    """
    metric, label = parts_of(score)
    groups = [group for group in table['group'].unique() if group]
    scored = {group: rows_of(table, score, group) for group in groups}
    lines = []
    for column in dict.fromkeys(group.partition(': ')[0] for group in groups):
        names = [group for group in groups if group.startswith(f'{column}: ')]
        for row in (row for row in sweep.rows if any(row.name in scored[name] for name in names)):
            areas, described = {}, []
            for group in (name for name in names if row.name in scored[name]):
                name = group.removeprefix(f'{column}: ')
                runs = scored[group][row.name]
                areas[name] = {score: runs.to_numpy().mean(axis=0)}
                few = label not in MEANS and has_few_cases(table, label, group)
                described.append({'group': name, 'labels': {score: {'few': few}}})
            if not (gap := gaps_of(described, areas).get(score)):
                continue
            line = {'column': column, 'row': row.name, 'labels': row.subset, 'seeds': len(runs)}
            counted = facts_of(table, f'{metric}_labels', label, f'{column}: {gap["best"]}')
            line |= {'labels_in_mean': int(counted[row.name].iloc[0])} if len(counted) else {}
            line |= {'score': score, 'best': gap['best'], 'worst': gap['worst']}
            line |= {'value': gap['gap']['value'], 'p_bootstrap': gap['p_bootstrap']}
            lines.append(line | {end: gap['gap'].get(end, np.nan) for end in ENDS})
    add_holm(lines)
    return lines


def write_groups(
    folder: Path,
    sweep: Sweep,
    table: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    score: str,
    *,
    notes: Sequence[str],
    **options: Any,
) -> list[Path]:
    """Write the tables of a score in groups and of the gaps between them.

    `table` is a long table with groups (`score_runs`). `options` are those of `write_score`.

    Returns:
        Paths of the Markdown files, which lack a table that would be empty.
    """
    groups = [group for group in table['group'].unique() if group]
    subsets = {row.name: row.subset for row in sweep.rows}
    lines = compare(table, pairs, score, subsets=subsets, groups=groups)
    lacking = [name for name in groups if name not in {line['group'] for line in lines}]
    few = [f'Too few cases of a label: {", ".join(lacking)}.'] if lacking else []
    name, files = file_name(sweep.name, score), []
    if lines:
        options |= {'notes': [*few, *notes]}
        files.append(write_score(folder, f'{name}_subgroups', lines, table, sweep, **options))
    if gaps := compare_groups(table, sweep, score):
        files.append(write_gaps(folder, f'{name}_gaps', gaps, sweep, table))
    return files


def write_gaps(
    folder: Path, name: str, gaps: Sequence[Mapping[str, Any]], sweep: Sweep, table: pd.DataFrame
) -> Path:
    """Write the result of `compare_groups` as a table, and return the path of the Markdown file."""
    cells = []
    for line in gaps:
        cell = {'groups': line['column']} | row_cells(sweep, line['row'])
        cell |= {'seeds': str(line['seeds'])}
        if 'labels_in_mean' in line:
            cell['labels in mean'] = str(line['labels_in_mean'])
        cell |= {'best': line['best'], 'worst': line['worst']}
        cell[f'gap in {score_title(line["score"])}'] = shown(line['value'], '.3f')
        cell |= {
            '95 % over patients': interval_text(line, '.3f'),
            'p (Holm)': shown(line['p_holm'], '.3f'),
        }
        cells.append(cell)
    notes = [*about_runs(table, sweep), ABOUT_GAPS, *about_data(table)]
    return write_table(folder, name, gaps, cells, notes)


def plot_gaps(
    path: str | Path, scores: pd.DataFrame, sweep: Sweep, gaps: pd.DataFrame
) -> list[Path]:
    """Draw the gaps of each column, in a comparison of methods by the number of labels.

    `scores` is the long table, and `gaps` the table that `write_gaps` wrote.
    """
    title = f'gap in {score_title(gaps["score"].iloc[0])}'
    why = 'more than two groups, or too few resamples'
    if not sweep.subsets:
        options = {'column': 'column', 'score': title, 'table': scores}
        note = f'No bar: {why}.' if gaps['low'].isna().any() else ''
        columns = {column: column for column in gaps['column']}
        return plot_categories(path, gaps, sweep, columns, note=note, **options)
    means = {column: lines.set_index('row') for column, lines in gaps.groupby('column', sort=False)}
    options = {'score': title, 'noise': 'patients', 'unknown': why, 'table': scores}
    options['limits'] = span_of(gaps[['value', *ENDS]])
    return plot_by_subset(path, means, sweep, **options)

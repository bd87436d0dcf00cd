"""Scores of the same runs in two hospitals: the one of their training, and a second one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.metrics import FEW_CASES, labels_with_few_cases
from evaluation.model_comparison import ENDS, Rows, compare_rows, summarise
from sweeps.files import Sweep
from sweeps.long_table import MEANS, Scored, facts_of, has_few_cases, parts_of, rows_of
from sweeps.tables import (
    EQUAL_SEEDS,
    FEW_RESAMPLES,
    NOISE,
    ONE_SEED,
    about_data,
    about_runs,
    interval_text,
    row_cells,
    score_title,
    shown,
)
from system.tables import write_table

OWN, OTHER = 'own', 'second'  # hospital, in the names of the columns of the CSV file
TITLES = {OWN: 'own hospital', OTHER: 'second hospital'}
MEANING = (
    'Difference: the second hospital minus the own one. It mixes how well a model transfers with '
    'other patients, other labels and another share of views, and is no error of the model alone. '
    'The patients of the two hospitals are resampled independently of each other.'
)
NO_MEAN = (
    f'No mean, and so no difference: no label has at least {FEW_CASES} cases of each class in both '
    'hospitals, and means over other labels in each cannot be compared. The scores of each label '
    'are in {}.md, where no difference has an interval over patients.'
)


def labels_of_both(
    pairs: Sequence[tuple[Scored, Scored]], wanted: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the labels of the means of both hospitals, and the labels that are scored.

    The means are over the labels with enough cases of each class in both hospitals, of which there
    may be none. These are scored, or, without them, those with both classes, and always those in
    `wanted` with both classes.

    Raises:
        ValueError: If no label has both classes in both hospitals.
    """
    enough, both_classes = [], []
    for cases in (run.images.at_level(run.level) for pair in pairs for run in pair):
        few = labels_with_few_cases(cases.count_classes())
        enough.append({*cases.mean_labels()['labels']} - {*few})
        both_classes.append({*cases.with_labels(cases.has_both_classes()).labels})
    shared = [label for label in pairs[0][1].images.labels if label in pairs[0][0].images.labels]
    counted = [label for label in shared if all(label in found for found in enough)]
    defined = [label for label in shared if all(label in found for found in both_classes)]
    if not defined:
        raise ValueError(f'no label has both classes in both hospitals: {", ".join(shared)}')
    scored = [label for label in defined if label in (counted or defined) or label in wanted]
    return counted, scored


def only_labels(run: Scored, labels: Sequence[str]) -> Scored:
    """Return a run whose images have only these labels."""
    return run._replace(
        images=run.images.with_labels([label in labels for label in run.images.labels])
    )


def compare_hospitals(
    own: pd.DataFrame, second: pd.DataFrame, sweep: Sweep, score: str
) -> list[dict[str, Any]]:
    """Return a line for each row with its score in both hospitals, over the seeds of both.

    A score that a hospital lacks is NaN, without a difference.

    The arguments are long tables whose resamples of the patients are independent of each other.
    """
    of_own, of_second = _rows_of(own, score), _rows_of(second, score)
    names = [row.name for row in sweep.rows if row.name in of_own and row.name in of_second]
    rows = {(name, OWN): of_own[name] for name in names}
    rows |= {(name, OTHER): of_second[name] for name in names}
    pairs = [((name, OTHER), (name, OWN)) for name in names]
    subsets = {row.name: row.subset for row in sweep.rows}
    lines = []
    for name, comparison in zip(names, compare_rows(rows, pairs), strict=True):
        line: dict[str, Any] = {'row': name, 'labels': subsets[name], 'score': score}
        for place in TITLES:
            found = summarise(rows[name, place])
            line |= {'seeds': found['seeds'], place: found['value'], f'{place}_sd': found['sd']}
            line |= {f'{place}_{end}': found[end] for end in ENDS}
        if comparison:
            line |= {'seeds': comparison['seeds'], 'difference': comparison['difference']}
            for noise, start in NOISE.items():
                line |= {f'{start}_{end}': comparison[noise][end] for end in ENDS}
            line |= {key: comparison[key] for key in ('p', 'p_holm', 'verdict')}
        lines.append(line)
    return lines


def _rows_of(table: pd.DataFrame, score: str) -> Rows:
    seeds = table.groupby('row')['seed'].unique()
    lacking = {row: pd.DataFrame({0: np.nan}, index=found) for row, found in seeds.items()}
    return lacking | rows_of(table, score)


def write_hospitals(
    folder: Path,
    sweep: Sweep,
    tables: Mapping[str, pd.DataFrame],
    scores: Sequence[str],
    *,
    notes: Sequence[str],
) -> list[Path]:
    """Write a table of the first score, and one of the AUROC of each label, in both hospitals.

    Args:
        folder: Folder of the tables.
        sweep: Sweep of the rows.
        tables: Long table of each hospital (OWN, OTHER).
        scores: The first score, which may be a mean that no hospital has, and then labels.
        notes: Notes about both hospitals.

    Returns:
        Paths of the Markdown files.
    """
    files = []
    below = [*about_runs(tables[OTHER], sweep), *notes, MEANING, *about_data(tables[OTHER])]
    for name, chosen in (('external', scores[:1]), ('external_labels', scores[1:])):
        lines = []
        for score in chosen:
            lines += compare_hospitals(tables[OWN], tables[OTHER], sweep, score)
        cells = [_cells(line, sweep, tables, in_labels=name != 'external') for line in lines]
        reasons, compared = [], [line for line in lines if 'difference' in line]
        if not compared and {parts_of(score)[1] for score in chosen} <= {*MEANS}:
            reasons.append(NO_MEAN.format(f'{sweep.name}_external_labels'))
        if any(line['seeds'] == 1 for line in compared):
            reasons.append(ONE_SEED)
        if any(line['seeds'] > 1 and np.isnan(line['seeds_low']) for line in compared):
            reasons.append(EQUAL_SEEDS)
        bounds = [line[f'{start}_low'] for line in compared for start in (OWN, OTHER)]
        if np.isnan(bounds).any():
            reasons.append(FEW_RESAMPLES)
        if lines:
            path = write_table(folder, f'{sweep.name}_{name}', lines, cells, [*reasons, *below])
            files.append(path)
    return files


def _cells(
    line: Mapping[str, Any], sweep: Sweep, tables: Mapping[str, pd.DataFrame], *, in_labels: bool
) -> dict[str, str]:
    label, cell = parts_of(line['score'])[1], {}
    if in_labels:
        cell['label'] = label
    cell |= row_cells(sweep, line['row']) | {'seeds': str(line['seeds'])}
    for place, title in TITLES.items():
        is_few = line[place] == line[place] and has_few_cases(tables[place], label)
        few = ' (few cases)' if is_few else ''
        name = 'AUROC' if in_labels else score_title(line['score'], tables[place])
        spread = line[f'{place}_sd']
        sd = '' if np.isnan(spread) else f' ± {spread:.3f}'
        cell[f'{name}, {title}'] = shown(line[place], '.3f') + sd + few
        bounds = {end: line[f'{place}_{end}'] for end in ENDS}
        cell[f'95 %, {title}'] = interval_text(bounds, '.3f') or 'n/a'
        if in_labels:
            counts = (
                facts_of(tables[place], metric, label).groupby('row').first()[line['row']]
                for metric in ('positives', 'negatives')
            )
            cell[f'positive / negative, {title}'] = ' / '.join(f'{count:,.0f}' for count in counts)
    cell['difference'] = shown(line.get('difference'), '+.3f')
    for noise, start in NOISE.items():
        bounds = {end: line.get(f'{start}_{end}') for end in ENDS}
        cell[noise.replace('_', ' ')] = interval_text(bounds, '+.3f') or 'n/a'
    return cell


def about_hospitals(
    pairs: Sequence[tuple[Scored, Scored]], labels: Sequence[str], left_out: Sequence[str]
) -> list[str]:
    """Say how many cases each hospital has, and which labels both share."""
    sizes: dict[str, dict[str, None]] = {place: {} for place in TITLES}
    for pair in pairs:
        for place, run in zip(TITLES, pair, strict=True):
            cases = run.images.at_level(run.level)
            patients = len({*cases.patient})
            text = f'{len(cases):,} cases of {patients:,} patients ({run.split}, {run.level} level)'
            sizes[place][text] = None
    notes = [f'{TITLES[place].capitalize()}: {"; ".join(texts)}.' for place, texts in sizes.items()]
    several = f'{len(labels)} label{"s" * (len(labels) != 1)}'
    notes.append(f'Scored: {several} of both hospitals, {", ".join(labels)}.')
    if left_out:
        notes.append(
            f'Not scored, because a hospital has fewer than {FEW_CASES} cases of a class, or '
            f'another label that is the same: {", ".join(left_out)}.'
        )
    return notes

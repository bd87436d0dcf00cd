"""A sweep by subgroup: the rows by sex, age, view and further columns, compared in each group."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.groups import all_groups
from data.labels import COMPETITION_LABELS
from evaluation.cases import Cases
from evaluation.intervals import Resamples
from evaluation.metrics import FEW_CASES, few_cases, label_scores
from evaluation.subgroups import natural_order
from logger import json_safe
from sweeps.collected import Collected, Subgroups
from sweeps.files import Sweep
from sweeps.row_comparison import ENDS, MEANS, MISSING, compare_rows, enough_resamples, summarise
from sweeps.run_scores import BOOTSTRAP_SEED, PROTOCOL, Scored, ScoredPatients, scored_runs
from sweeps.sweep_table import (
    FEW,
    distinct_rows,
    dropping_notes,
    group_title,
    row_title,
    score_title,
    subset_title,
)
from sweeps.table_format import (
    NOT_FOR_CLINICAL_USE,
    ONE_SEED,
    columns,
    interval_text,
    markdown_table,
    shown,
    with_interval,
    write_table,
)

EVERYONE = ('All', 'all')  # column and group of all cases, in which rows are not compared
Group = tuple[str, str]  # column and name


def collect_subgroups(
    collected: Collected,
    sweep: Sweep,
    output: str | Path,
    score: str,
    *,
    further: Sequence[str] = (),
    demographics: str = '',
) -> Subgroups:
    """Score and compare the rows of a sweep in each group, from their stored predictions.

    The groups are those of `data.groups`. In a group, the mean of all labels is that of its labels
    with both classes there. Groups in which a label of the mean of five lacks a class, and
    comparisons that the table of the sweep refuses (`problem`), are left out.

    Args:
        collected: Results of the sweep.
        sweep: Sweep.
        output: Root of the run folders.
        score: An AUROC: a label, or one of `sweeps.row_comparison.MEANS`.
        further: Columns of groups besides sex, age and view; () for EVAL.GROUPS of the runs.
        demographics: File with such columns by patient; '' for DATA.DEMOGRAPHICS of the runs.

    Raises:
        ValueError: If the labels or the predictions of a run cannot be read.
    """
    rows = {row['name']: row for row in distinct_rows(collected)}
    runs = {row.name: scored_runs(row, rows[row.name]['seeds'], output) for row in sweep.rows}
    usable = [row for row in collected['rows'] if not row['problem']]
    names = {row['name'] for row in usable}
    runs = {name: seeds for name, seeds in runs.items() if seeds and name in names}
    pairs = [
        (row['name'], row['against'] if row['against'] in runs else '')
        for row in usable
        if row['name'] in runs
    ]
    splits = {str(run.figures['split']) for seeds in runs.values() for run in seeds.values()}
    reader = _Reader(
        score, (further, demographics), comparisons=sum(bool(against) for _, against in pairs)
    )
    table, facts = reader.read(runs)
    groups = dict.fromkeys(group for _, group in table)
    compared = [
        ((name, group), (against, group) if against and group != EVERYONE else '')
        for group in groups
        for name, against in pairs
        if (name, group) in table
    ]
    cells = []
    for (key, base), part in zip(compared, compare_rows(table, compared, score), strict=True):
        (name, group), against = key, base[0] if base else ''
        cell = {'row': name, 'against': against, 'column': group[0], 'group': group[1]}
        cells.append(cell | facts[key] | summarise(table[key], score) | (part or {}))
    found = {'score': score, 'split': ', '.join(sorted(splits)), 'resamples': reader.resamples}
    return json.loads(json.dumps(json_safe(found | {'cells': cells}), allow_nan=False))


def write_subgroup_table(collected: Collected, folder: Path) -> Path:
    """Write `<sweep>_subgroups.md` and `.csv` from the results of `collect_subgroups`."""
    parts, cells = [], collected['subgroups']['cells']
    for column in dict.fromkeys(cell['column'] for cell in cells):
        own = [cell for cell in cells if cell['column'] == column]
        lines = [dict(_line(collected, row, own)) for row in _rows(collected)]
        parts.append(f'### {column}\n\n{markdown_table(lines)}')
    notes = ''.join(f'- {note}\n' for note in _notes(collected))
    figures = [_figures(cell) for cell in cells]
    return write_table(
        folder, f'{collected["sweep"]}_subgroups', figures, '\n'.join([*parts, notes])
    )


class _Reader:
    """Reads the scores of runs in each group as a long table (`sweeps.row_comparison`)."""

    def __init__(self, score: str, columns: tuple[Sequence[str], str], *, comparisons: int) -> None:
        self.score, self.columns, self.comparisons = score, columns, comparisons
        self.patients: dict[str, ScoredPatients] = {}  # by the cases, which rows share
        self.groups: dict[str, dict[str, np.ndarray]] = {}
        self.resamples = 0

    def read(self, rows: Mapping[str, Mapping[int, Scored]]) -> tuple[dict, dict]:
        """Return (row, group) -> seed -> score -> [1 + R], and (row, group) -> facts."""
        table, facts = {}, {}
        runs = [(name, seed, run) for name, seeds in rows.items() for seed, run in seeds.items()]
        for name, seed, run in tqdm(runs, desc='subgroups', unit='run', disable=None):
            first = next(iter(rows[name].values()))
            cases = str([first.figures[key] for key in PROTOCOL])
            if cases not in self.patients:
                self._open(cases, first)
            patients = self.patients[cases]
            images = patients.images(run.predictions)
            for group, chosen in _members(self.groups[cases], len(images)):
                members = images.select(chosen).at_level(patients.level, patients.aggregate)
                samples, facts[name, group] = _score(members, self.score, patients)
                if samples is not None:
                    table.setdefault((name, group), {})[seed] = {self.score: samples}
        return table, facts

    def _open(self, cases: str, run: Scored) -> None:
        """Read the labels and groups of the cases that a run was scored on."""
        patients = self.patients[cases] = ScoredPatients(run, 0, BOOTSTRAP_SEED)
        records, config, (further, demographics) = patients.records, patients.config, self.columns
        groups = all_groups(
            records,
            further or config.EVAL.GROUPS,
            demographics or config.DATA.DEMOGRAPHICS,
        )
        self.groups[cases] = groups
        count = sum(1 for _ in _members(groups, len(records))) - 1
        self.resamples = max(self.resamples, enough_resamples(self.comparisons * count))
        patients.resamples = Resamples(
            records.patient, resamples=self.resamples, seed=BOOTSTRAP_SEED
        )


def _members(groups: Mapping[str, np.ndarray], size: int) -> Iterator[tuple[Group, np.ndarray]]:
    """Yield each group, first everyone, with a mask [N] of its images."""
    yield EVERYONE, np.full(size, True)
    for column, values in groups.items():
        for name in sorted(set(values) - {''}, key=natural_order):
            yield (column, name), values == name


def _score(
    rows: Cases, score: str, patients: ScoredPatients
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return the AUROC of a group [1 + R], None if it is undefined, and facts about its cases."""
    wanted = {MEANS[0]: COMPETITION_LABELS, MEANS[1]: rows.labels}.get(score, (score,))
    both = dict(zip(rows.labels, rows.has_both_classes(), strict=True))
    labels = [label for label in wanted if both.get(label)]
    few = {}
    for label in labels:
        targets = rows.of_label(label)[1]
        counts = int((targets == 1).sum()), int((targets == 0).sum())
        few |= {f'{text} of {label}': min(counts)} if (text := few_cases(*counts)) else {}
    facts = {
        'cases': len(rows),
        'patients': len(set(rows.patient)),
        'labels': len(labels),
        'few': min(few, key=few.get, default=''),
    }
    if not labels or (score == MEANS[0] and len(labels) < len(wanted)):
        return None, facts
    options = {'threshold': None, 'names': ('auroc',)}
    options['weights'] = patients.resamples.score_weights(rows.patient)
    areas = [label_scores(*rows.of_label(label), **options)['auroc'] for label in labels]
    return np.mean(areas, axis=0), facts


def _rows(collected: Collected) -> list[Mapping[str, Any]]:
    """Return the rows of the table: those that have a cell."""
    known = {(cell['row'], cell['against']) for cell in collected['subgroups']['cells']}
    names = {name for name, _ in known}
    return [
        row
        for row in collected['rows']
        if row['name'] in names and (not row['against'] or (row['name'], row['against']) in known)
    ]


def _line(
    collected: Collected, row: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Yield title and text of the cells of a row, for the groups of one column."""
    yield collected['title'], row_title(collected, row)
    if collected['subsets']:
        yield 'labels', subset_title(collected, row['subset'])
    for group in dict.fromkeys(cell['group'] for cell in cells):
        same = [cell for cell in cells if cell['group'] == group]
        title = group_title(same)
        own = next((cell for cell in same if cell['row'] == row['name']), {})
        yield f'{title}: AUROC', with_interval(own.get('value'), own, '.3f')
        if any(cell['against'] for cell in cells):
            pair = (row['name'], row['against'])
            part = next((c for c in same if (c['row'], c['against']) == pair), {})
            yield f'{title}: difference', _difference(part) if row['against'] else ''


def _difference(part: Mapping[str, Any]) -> str:
    """Return a difference with its interval over patients, and the verdict above or below."""
    text = interval_text(part.get('over_patients', {}), '+.3f') or MISSING
    verdict = part.get('verdict', '')
    end = f', **{verdict}**' if verdict in ('above', 'below') else ''
    return f'{shown(part.get("difference"), "+.3f")} ({text}){end}'


def _notes(collected: Collected) -> Iterator[str]:
    found = collected['subgroups']
    cells, title = found['cells'], score_title(collected, found['score'])
    count = sum(bool(cell.get('verdict')) for cell in cells)
    yield (
        f'{title}, on {found["split"]}: mean over the finished seeds, with the 95 % interval over '
        f'patients of that mean ({found["resamples"]:,} resamples). {_about_mean(found)}'
        'Where no interval is shown, a class is absent in more '
        'than 5 of 100 resamples, or all have the same score. A study is scored in a group of a '
        'view by its images of this view.'
    )
    yield (
        'Differences are paired by seed and patient, with their 95 % interval over patients. '
        "above, below: both intervals (over patients and, by Student's t, over seeds) exclude 0, "
        f"and the p-value after Holm's correction over all {count} comparisons of this table is "
        'below 0.05. Without such a word nothing is shown, also not that the groups are equal.'
    )
    if any(cell['seeds'] == 1 for cell in cells):
        yield ONE_SEED
    few = {
        f'{cell["column"]} {cell["group"]}: {cell["few"]}': None for cell in cells if cell['few']
    }
    if few:
        yield f'{FEW} Fewer than {FEW_CASES} cases of a class. {"; ".join(few)}.'
    yield from dropping_notes(collected)
    yield NOT_FOR_CLINICAL_USE


def _about_mean(found: Subgroups) -> str:
    """Say which labels a mean contains in a group; '' for a label."""
    if found['score'] == MEANS[0]:
        return 'Groups in which one of the five labels lacks a class are left out. '
    if found['score'] == MEANS[1]:
        counts = {f'{cell["column"]} {cell["group"]}': cell['labels'] for cell in found['cells']}
        named = ', '.join(f'{group}: {count}' for group, count in counts.items())
        return (
            f'In a group, the mean contains only the labels with both classes there ({named}). '
            'Means over different labels cannot be compared. '
        )
    return ''


def _figures(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line of a cell in the CSV file."""
    names = ('column', 'group', 'row', 'against', 'cases', 'patients', 'labels', 'few', 'seeds')
    line = {name: cell[name] for name in names}
    line |= columns('auroc', cell['value'], cell) | {'sd': cell['sd']}
    line |= {name: cell.get(name) for name in ('difference', 'verdict')}
    for noise in ('over_patients', 'over_seeds'):
        line |= {f'{noise}_{end}': cell.get(noise, {}).get(end) for end in ENDS}
    return line | {name: cell.get('over_patients', {}).get(name) for name in ('p', 'p_holm')}

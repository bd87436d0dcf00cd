"""Results of a sweep as JSON: saving, reading, and the facts that tables and figures show."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.metrics import METRICS
from sweeps.run_scores import MEANS
from system.files import replace_file

Collected = Mapping[str, Any]  # see `sweeps.results.collect`

SECTIONS = {'pretrain': 'pre-training', 'finetune': 'fine-tuning'}


def save_collected(collected: Collected, folder: str | Path) -> Path:
    """Write the results of a sweep to `<sweep>.json`, for later tables and figures."""
    path = Path(folder) / f'{collected["sweep"]}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(collected, indent=1, ensure_ascii=False) + '\n').encode())
    return path


def read_collected(folder: str | Path, sweep_name: str) -> dict[str, Any]:
    """Read the results that `save_collected` wrote.

    Raises:
        ValueError: If the file is missing or does not contain the results of the sweep.
    """
    path = Path(folder) / f'{sweep_name}.json'
    try:
        found = json.loads(path.read_text('utf-8'))
        is_known = found['sweep'] == sweep_name and 'subsets' in found
        if not is_known or not all({'seeds', 'l1_caveat'} <= {*row} for row in found['rows']):
            raise ValueError(f'it does not contain results of {sweep_name} from table --save')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} cannot be read: {error!r}') from error
    return found


def distinct_rows(collected: Collected) -> list[Mapping[str, Any]]:
    """Return the first entry of each row, because a row has an entry for each comparison."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in collected['rows']:
        found.setdefault(row['name'], row)
    return [*found.values()]


def figures_of(row: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    runs = [entry[section] for entry in row['seeds']]
    return [run['figures'] for run in runs if run and run['figures']]


def all_scores(collected: Collected) -> list[Mapping[str, Any]]:
    return [figures for row in collected['rows'] for figures in figures_of(row, 'finetune')]


def score_of(row: Mapping[str, Any], score: str, kind: str = 'scores') -> pd.Series:
    """Return a score of a row for all seeds for which it is defined.

    `kind` is 'scores', or 'last' for the score of the last epoch.
    """
    values = [figures.get(kind, {}).get(score) for figures in figures_of(row, 'finetune')]
    return pd.Series(values, dtype=float).dropna()


def pretrain_figure(row: Mapping[str, Any], name: str) -> pd.Series:
    """Return one of `pretraining_figures` of a row for all seeds for which it is defined."""
    values = [figures.get(name) for figures in figures_of(row, 'pretrain')]
    return pd.Series(values, dtype=float).dropna()


def unfinished_stages(entry: Mapping[str, Any]) -> list[str]:
    """List the unfinished stages of a seed, such as 'fine-tuning missing'."""
    runs = {name: entry[section] for section, name in SECTIONS.items()}
    return [f'{name} {r["state"]}' for name, r in runs.items() if r and r['state'] != 'finished']


def count_finished(row: Mapping[str, Any]) -> int:
    """Return the number of seeds whose stages are all finished."""
    return sum(not unfinished_stages(entry) for entry in row['seeds'])


def choose_scores(collected: Collected, scores: Sequence[str] | None = None) -> list[str]:
    """Check the scores of a table, or choose the mean of five if all rows have it.

    Raises:
        ValueError: If a score does not exist.
    """
    if scores is None:
        counts = [[len(score_of(row, mean)) for row in collected['rows']] for mean in MEANS]
        return [MEANS[0] if counts[0] == counts[1] else MEANS[1]]
    known = known_scores(collected)
    for score in scores:
        if known and score not in known:
            raise ValueError(f'--scores must be some of {", ".join(known)}, got {score!r}')
    return list(scores)


def known_scores(collected: Collected) -> list[str]:
    """Return all scores of the finished runs."""
    return list({score: None for each in all_scores(collected) for score in each['scores']})


def score_title(collected: Collected, score: str) -> str:
    """Return the name of a score for readers."""
    name, _, label = score.rpartition(':')
    if label == 'mean_of_five':
        label = 'mean of five'
    if label == 'mean_of_defined':
        names = {name for figures in all_scores(collected) for name in figures['positives']}
        counts = {len(f['positives']) - len(f['undefined']) for f in all_scores(collected)}
        label = f'mean of {" or ".join(map(str, sorted(counts))) or "all"} labels'
        label = names.pop() if len(names) == 1 else label
    return f'{METRICS[name or "auroc"].title}, {label}'


def row_title(collected: Collected, row: Mapping[str, Any]) -> str:
    """Return the name or method of a row, with marks for the reference and other comparisons."""
    rows = {each['name']: each for each in collected['rows']}
    reference, key = rows[collected['reference']], 'method' if row['method'] else 'name'
    other = rows[row['against']][key] if row['against'] else ''
    marks = ['reference'] if row[key] == reference[key] else []
    has_others = sum(each['name'] == row['name'] for each in collected['rows']) > 1
    if other and (has_others or other != reference[key]):
        marks.append(f'against {other}')
    return f'{row[key]} ({", ".join(marks)})' if marks else row[key]


def subset_title(collected: Collected, subset: str) -> str:
    """Return the name of a subset of the labels for readers, such as '10 %'."""
    if collected['subsets'] == 'shares':
        return f'{100 * float(subset):g} %'
    return 'all images' if subset == 'all' else f'{int(subset):,} images'

"""Tables of a sweep as Markdown and CSV files, and the summaries of rows that they show."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data.records import TRAINING_LABELS
from engine.files import replace_files
from evaluation.metrics import METRICS
from sweeps.comparison import MEANS, MISSING, SIGNIFICANT, is_compared
from sweeps.files import subset_size

Collected = Mapping[str, Any]  # see `sweeps.results.collect`

SECTIONS = {'pretrain': 'pre-training', 'finetune': 'fine-tuning'}
DIGITS = 6  # decimals of means and standard deviations in CSV files
PUBLISHED = 'published, context only'
INTERNAL = (
    'Internal: held-out training patients who did not select checkpoints or thresholds, with '
    f'{TRAINING_LABELS}.'
)
NOT_FOR_CLINICAL_USE = 'Not for clinical use.'


def score_of(row: Mapping[str, Any], score: str) -> pd.Series:
    """Return a score of a row for all seeds for which it is defined."""
    values = [figures['scores'].get(score) for figures in _figures(row, 'finetune')]
    return pd.Series(values, dtype=float).dropna()


def pretrain_figure(row: Mapping[str, Any], name: str) -> pd.Series:
    """Return one of `pretraining_figures` of a row for all seeds for which it is defined."""
    values = [figures.get(name) for figures in _figures(row, 'pretrain')]
    return pd.Series(values, dtype=float).dropna()


def count_finished(row: Mapping[str, Any]) -> int:
    """Return the number of seeds whose stages are all finished."""
    return sum(not _unfinished_stages(entry) for entry in row['seeds'])


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
    return list({score: None for each in _all_scores(collected) for score in each['scores']})


def score_title(collected: Collected, score: str) -> str:
    """Return the name of a score for readers."""
    name, _, label = score.rpartition(':')
    if label == 'mean_of_five':
        label = 'mean of five'
    if label == 'mean_of_defined':
        names = {name for figures in _all_scores(collected) for name in figures['positives']}
        counts = {len(f['positives']) - len(f['undefined']) for f in _all_scores(collected)}
        label = f'mean of {" or ".join(map(str, sorted(counts))) or "all"} labels'
        label = names.pop() if len(names) == 1 else label
    return f'{METRICS[name or "auroc"].title}, {label}'


def row_title(collected: Collected, row: Mapping[str, Any]) -> str:
    """Return the name or method of a row, with marks for the reference and other comparisons."""
    rows = {each['name']: each for each in collected['rows']}
    reference, key = rows[collected['reference']], 'method' if row['method'] else 'name'
    other = rows[row['against']][key] if row['against'] else ''
    marks = ['reference'] if row[key] == reference[key] else []
    if other not in ('', reference[key]):
        marks.append(f'against {other}')
    return f'{row[key]} ({", ".join(marks)})' if marks else row[key]


def subset_title(collected: Collected, subset: str) -> str:
    """Return the name of a subset of the labels for readers, such as '10 %'."""
    if collected['subsets'] == 'shares':
        return f'{100 * float(subset):g} %'
    return 'all images' if subset == 'all' else f'{int(subset):,} images'


def _figures(row: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    runs = [entry[section] for entry in row['seeds']]
    return [run['figures'] for run in runs if run and run['figures']]


def _all_scores(collected: Collected) -> list[Mapping[str, Any]]:
    return [figures for row in collected['rows'] for figures in _figures(row, 'finetune')]


def _unfinished_stages(entry: Mapping[str, Any]) -> list[str]:
    """List the unfinished stages of a seed, such as 'fine-tuning missing'."""
    runs = {name: entry[section] for section, name in SECTIONS.items()}
    return [f'{name} {r["state"]}' for name, r in runs.items() if r and r['state'] != 'finished']


# Tables -------------------------------------------------------------------------------------------


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


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Format rows of cells as a Markdown table."""
    lines = [list(rows[0]), ['---'] * len(rows[0]), *(list(row.values()) for row in rows)]
    cells = [[cell.replace('<', '&lt;').replace('|', r'\|') for cell in line] for line in lines]
    return ''.join(f'| {" | ".join(line)} |\n' for line in cells)


def shown(value: float | None, form: str) -> str:
    """Format a number with a real minus sign, and None and NaN as MISSING."""
    return MISSING if value is None or value != value else f'{value:{form}}'.replace('-', '−')


def with_interval(value: float | None, low: float | None, high: float | None, form: str) -> str:
    """Format a number with its interval, if known."""
    bounds = [shown(bound, form) for bound in (low, high)]
    return shown(value, form) + ('' if MISSING in bounds else f' ({" to ".join(bounds)})')


def write_sweep_table(
    collected: Collected, folder: Path, scores: Sequence[str] | None = None
) -> Path:
    """Write the table of a sweep (see `write_table`)."""
    scores = choose_scores(collected, scores)
    figures = [_row_figures(collected, row, scores) for row in collected['rows']]
    return write_table(folder, collected['sweep'], figures, sweep_markdown(collected, scores))


def sweep_markdown(collected: Collected, scores: Sequence[str] | None = None) -> str:
    """Return the Markdown table of a sweep with notes below."""
    scores = choose_scores(collected, scores)
    cells = [dict(_row_cells(collected, row, scores)) for row in collected['rows']]
    listed = ''.join(f'- {note}\n' for note in notes(collected))
    return f'{markdown_table(cells)}\n{listed}'


def write_published_table(collected: Collected, scores: Sequence[str], folder: Path) -> Path:
    """Write the scores of all rows with intervals over patients, next to published scores.

    Args:
        collected: Results of the sweep. Each published value is a list in the order of the scores.
        scores: `Sweep.scores`.
        folder: Folder of the table.
    """
    figures, cells = [], []
    for row in collected['rows']:
        line = {'row': row['name']}
        cell = {collected['title']: row['method'], 'labels': subset_title(collected, row['subset'])}
        published = collected['published']['values'].get(row['name'], [None] * len(scores))
        for score, other in zip(scores, published, strict=True):
            own, title = score_of(row, score).mean(), score_title(collected, score)
            ends = row['over_patients'].get(score, {})
            low, high = (ends.get(end) for end in ('low', 'high'))
            line |= {score: own, f'{score}_low': low, f'{score}_high': high}
            line[f'{score}_published'] = other
            cell[title] = with_interval(own, low, high, '.3f')
            cell[f'{title}, published'] = '' if other is None else shown(other, '.3f')
        figures.append(line)
        cells.append(cell)
    about = collected['published']
    text = (
        f'{markdown_table(cells)}\nMean over the finished seeds, with the 95 % percentile interval '
        f'over patients of that mean. {PUBLISHED.capitalize()}: {about["measure"]}, '
        f'{about["source"]}. {about["note"]} {NOT_FOR_CLINICAL_USE}\n'
    )
    return write_table(folder, f'{collected["sweep"]}_published', figures, text)


def write_label_table(collected: Collected, folder: Path) -> Path:
    """Write the AUROC by label and method for the largest subset (see `write_table`)."""
    most = max((row['subset'] for row in collected['rows']), key=subset_size)
    rows = [row for row in collected['rows'] if row['subset'] == most]
    labels = [score for score in known_scores(collected) if is_compared(score)]
    values = {label: {row['method']: score_of(row, label) for row in rows} for label in labels}
    figures = [
        {'label': label} | {f'{method}_mean': seeds.mean() for method, seeds in scores.items()}
        for label, scores in values.items()
    ]
    cells = [
        {f'AUROC, labelled: {subset_title(collected, most)}': score_title(collected, label)[7:]}
        | {method: _with_sd(seeds, '.3f') for method, seeds in scores.items()}
        for label, scores in values.items()
    ]
    return write_table(folder, f'{collected["sweep"]}_labels', figures, markdown_table(cells))


def notes(collected: Collected) -> list[str]:
    """Return the notes below a table, one paragraph each."""
    found = [
        *_score_notes(collected),
        *_l1_notes(collected),
        'Mean ± standard deviation over the finished seeds. Differences are paired by seed, with '
        "the reference unless another row is named. Over seeds: 95 % interval by Student's t. Over "
        'patients: 95 % percentile interval of the difference of the means over seeds, with '
        f'{collected["resamples"]} paired resamples of the patients. Verdict: above or '
        'below if both intervals exclude 0 and the bootstrap p-value over patients, after '
        f"Holm's correction over the rows of the table, is below {SIGNIFICANT}; not significant "
        'after correction if both intervals exclude 0 but the p-value is not below; inside the '
        'noise if an interval includes 0.',
        *_problem_notes(collected),
    ]
    if published := collected['published']:
        found.append(
            f'{PUBLISHED.capitalize()}: {published["measure"]}, {published["source"]}. '
            f'{published["note"]} Data, models or protocols differ, so these values cannot be '
            'compared with the other columns.'
        )
    return [*found, NOT_FOR_CLINICAL_USE]


def _score_notes(collected: Collected) -> Iterator[str]:
    kinds = {}
    for f in _all_scores(collected):
        rows = 'studies' if f['level'] == 'study' else 'images'
        kind = f'Scores on {f["split"]}: {f["rows"]} {rows}, {f["views"]} views'
        kinds[f'{kind}, {f["checkpoint"]} checkpoint'] = f['undefined']
    for kind, undefined in kinds.items():
        missing = f' Labels without both classes: {", ".join(undefined)}.' if undefined else ''
        about = f' {INTERNAL}' if 'on internal' in kind else ''
        yield f'{kind}. Higher is better.{missing}{about}'


def _has_l1(collected: Collected) -> bool:
    """Return whether a row has a reconstruction error. Contrastive methods have none."""
    return any(row['pretraining'] == 'simmim' for row in collected['rows'])


def _l1_notes(collected: Collected) -> Iterator[str]:
    if not _has_l1(collected):
        return
    # Older files of results do not contain `other_images`.
    trivial, rows = [], [row for row in collected['rows'] if not row.get('other_images')]
    for name, title in (('mean', 'mean of the visible pixels'), ('linear', 'interpolation')):
        means = pd.Series([pretrain_figure(row, f'l1_{name}').mean() for row in rows], dtype=float)
        trivial.append(f'{title} {shown(means.mean(), ".2f")}')
    yield (
        'Held-out L1: error on hidden pixels of held-out training patients after pre-training, '
        'with random masks that all rows share. Lower is better. Trivial predictors: '
        f'{", ".join(trivial)}.'
    )
    for row in collected['rows']:
        if row['l1_caveat']:
            yield f'* The held-out L1 of {row["name"]} cannot be compared: {row["l1_caveat"]}.'


def _problem_notes(collected: Collected) -> Iterator[str]:
    """Yield notes on unfinished runs, failed comparisons, and changes of code, data or options."""
    for row in collected['rows']:
        lacking = [
            f'seed {entry["seed"]} ({", ".join(stages)})'
            for entry in row['seeds']
            if (stages := _unfinished_stages(entry))
        ]
        if lacking:
            yield f'{row["name"]} is not finished: {"; ".join(lacking)}.'
        if row['problem']:
            yield f'{row["name"]}: {row["problem"]}.'
    runs = [e[s] for row in collected['rows'] for e in row['seeds'] for s in SECTIONS]
    finished = [run for run in runs if run and run['state'] == 'finished']
    codes = sorted({str(run['provenance']['code']) for run in finished})
    if len(codes) > 1:
        yield f'The runs used {len(codes)} versions of the code: {", ".join(codes)}.'
    for section, title in SECTIONS.items():
        members = [entry[section] for row in collected['rows'] for entry in row['seeds']]
        found = [run['provenance']['tables'] for run in members if run and 'provenance' in run]
        tables = {item for files in found for item in files.items()}
        names = [name for name, _ in tables]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f'The runs of {title} read {names.count(name)} different versions of {name}.'
    differences = defaultdict(list)
    for part in collected['differences_from_files']:
        differences[part['stage'], ', '.join(part['runs']) or 'all'].append(part['change'])
    for (stage, where), changes in differences.items():
        yield f'Runs of {stage} differ from the sweep file ({where}): {"; ".join(changes)}.'


def _row_figures(
    collected: Collected, row: Mapping[str, Any], scores: Sequence[str]
) -> dict[str, Any]:
    line = {'row': row['name'], 'run': row['run'], 'against': row['against']}
    if collected['subsets']:
        line |= {key: row[key] for key in ('method', 'subset', 'pretraining')}
        line |= {f'pretrain_{k}': pretrain_figure(row, k).mean() for k in ('images', 'seconds')}
    line |= {
        'finished_seeds': count_finished(row),
        'seeds': len(row['seeds']),
        'average_distance_px': row['average_distance_px'],
        'hidden_percent': row['hidden_percent'],
        'held_out_l1_caveat': row['l1_caveat'],
    }
    values = {'held_out_l1_grey': pretrain_figure(row, 'l1')}
    values |= {score: score_of(row, score) for score in scores}
    for name, seeds in values.items():
        line |= {
            f'{name}_mean': round(seeds.mean(), DIGITS),
            f'{name}_sd': round(seeds.std(), DIGITS),
        }
    for score in scores:
        part = row['compared'].get(score, {})
        line |= {f'{score}_{name}': part.get(name) for name in ('difference', 'verdict')}
        for noise in ('over_seeds', 'over_patients'):
            bounds = part.get(noise, {})
            line |= {f'{score}_{noise}_{end}': bounds.get(end) for end in ('low', 'high')}
        line |= {f'{score}_{k}': part.get('over_patients', {}).get(k) for k in ('p', 'p_holm')}
    if collected['published']:
        line[PUBLISHED] = collected['published']['values'].get(row['name'])
    return line


def _row_cells(
    collected: Collected, row: Mapping[str, Any], scores: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield title and text of each cell of a row."""
    yield collected['title'], row_title(collected, row)
    if collected['subsets']:
        yield 'labels', subset_title(collected, row['subset'])
        images, seconds = (pretrain_figure(row, name).mean() for name in ('images', 'seconds'))
        cells = shown(images, ',.0f'), shown(seconds / 60, ',.1f')
        titles = 'images seen in pre-training', 'minutes of pre-training'
        yield from zip(titles, cells if row['pretraining'] else ('none', 'none'), strict=True)
    if any(each['average_distance_px'] is not None for each in collected['rows']):
        yield 'AvgDist (px)', shown(row['average_distance_px'], '.2f')
        yield 'hidden (%)', shown(row['hidden_percent'], '.1f')
    if _has_l1(collected):
        l1 = _with_sd(pretrain_figure(row, 'l1'), '.2f')
        l1 = l1 if row['pretraining'] == 'simmim' else 'none'
        yield 'held-out L1 (grey levels)', f'{l1} *' if row['l1_caveat'] else l1
    for score in scores:
        title, part = score_title(collected, score), row['compared'].get(score, {})
        yield title, _with_sd(score_of(row, score), '.3f')
        if not is_compared(score):
            continue
        for name, noise in (('seeds', 'over_seeds'), ('patients', 'over_patients')):
            bounds = part.get(noise, {})
            cell = with_interval(part.get('difference'), *map(bounds.get, ('low', 'high')), '+.3f')
            yield f'{title}: difference (95 % over {name})', cell if row['against'] else ''
        yield f'{title}: verdict', part.get('verdict', MISSING) if row['against'] else ''
    yield 'finished seeds', f'{count_finished(row)} of {len(row["seeds"])}'
    if collected['published']:
        value = collected['published']['values'].get(row['name'])
        value = ', '.join(map(str, value)) if isinstance(value, list) else value
        yield PUBLISHED, '' if value is None else str(value)


def _with_sd(values: pd.Series, form: str) -> str:
    return shown(values.mean(), form) + (f' ± {values.std():{form}}' if len(values) > 1 else '')

"""The tables of a sweep, from its results: all rows, by label, and next to published scores."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data.reading import TRAINING_LABELS
from evaluation.footnotes import Footnotes
from evaluation.metrics import FEW_CASES, METRICS, labels_with_few_cases
from sweeps.collected import Collected, CollectedRow
from sweeps.files import PIXELS, subset_size
from sweeps.row_comparison import ENDS, MEANS, MISSING, SIGNIFICANT, few_of_label, is_compared
from sweeps.table_format import (
    NOT_FOR_CLINICAL_USE,
    columns,
    interval_text,
    markdown_table,
    missing_intervals,
    missing_value,
    shown,
    verdict_text,
    with_interval,
    with_notes,
    write_table,
)

SECTIONS = {'pretrain': 'pre-training', 'finetune': 'fine-tuning'}
DIGITS = 6  # decimals of means and standard deviations in CSV files
PUBLISHED = 'published, context only'
FEW = '*'  # mark of a group with few cases
DROPPING = '†'  # mark of a row whose scoring drops patches
INTERNAL = (
    'Internal: held-out training patients who did not select checkpoints or thresholds, with '
    f'{TRAINING_LABELS}.'
)


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
    footnotes = Footnotes()
    cells = [dict(_row_cells(collected, row, scores, footnotes)) for row in collected['rows']]
    reasons = footnotes.take()
    others = [note for note in notes(collected) if not any(r.endswith(note) for r in reasons)]
    return with_notes(cells, [*reasons, *others])


def write_published_table(collected: Collected, scores: Sequence[str], folder: Path) -> Path:
    """Write the scores of all rows with intervals over patients, next to published scores.

    Args:
        collected: Results of the sweep. Each published value is a list in the order of the scores.
        scores: `Sweep.scores`.
        folder: Folder of the table.
    """
    figures, cells, footnotes = [], [], Footnotes()
    for row in distinct_rows(collected):
        line = {'row': row['name']}
        cell = {collected['title']: method_title(row)}
        cell |= {'labels': subset_title(collected, row['subset'])}
        published = collected['published']['values'].get(row['name'], [None] * len(scores))
        for score, other in zip(scores, published, strict=True):
            own, title = score_of(row, score).mean(), score_title(collected, score)
            bounds = row['over_patients'].get(score, {})
            line |= {**columns(score, own, bounds), f'{score}_published': other}
            cell[title] = with_interval(own, bounds, '.3f')
            if not interval_text(bounds, '') and own == own and is_compared(score):
                cell[title] += f' ({footnotes.mark(_few_cases(row, score))})'
            cell[f'{title}, published'] = '' if other is None else shown(other, '.3f')
        figures.append(line)
        cells.append(cell)
    about = collected['published']
    reasons = ''.join(f'{line}\n\n' for line in [*footnotes.take(), *dropping_notes(collected)])
    text = (
        f'{markdown_table(cells)}\n{reasons}Mean over the finished seeds, with the 95 % '
        f'percentile interval over patients of that mean. {PUBLISHED.capitalize()}: '
        f'{about["measure"]}, {about["source"]}. {about["note"]} {NOT_FOR_CLINICAL_USE}\n'
    )
    return write_table(folder, f'{collected["sweep"]}_published', figures, text)


def write_label_table(collected: Collected, folder: Path) -> Path:
    """Write the AUROC by label and method for the largest subset (see `write_table`)."""
    most = max((row['subset'] for row in collected['rows']), key=subset_size)
    rows = [row for row in distinct_rows(collected) if row['subset'] == most]
    labels = [score for score in known_scores(collected) if is_compared(score)]
    values = {label: {row['method']: score_of(row, label) for row in rows} for label in labels}
    figures = [
        {'label': label} | {f'{method}_mean': seeds.mean() for method, seeds in scores.items()}
        for label, scores in values.items()
    ]
    titles = {row['method']: method_title(row) for row in rows}
    known = [figures for row in rows for figures in _figures(row, 'finetune')]
    cells = []
    for label, scores in values.items():
        few = next(filter(None, (few_of_label(figures, label) for figures in known)), '')
        name = score_title(collected, label)[7:] + (f' ({few})' if few else '')
        cell = {f'AUROC, labelled: {subset_title(collected, most)}': name}
        cells.append(cell | {titles[m]: _with_sd(seeds, '.3f') for m, seeds in scores.items()})
    about = 'Mean ± standard deviation over the finished seeds, without intervals over patients.'
    notes_below = [*_score_notes(collected), about, *dropping_notes(collected)]
    text = with_notes(cells, [*notes_below, NOT_FOR_CLINICAL_USE])
    return write_table(folder, f'{collected["sweep"]}_labels', figures, text)


def notes(collected: Collected) -> list[str]:
    """Return the notes below a table, one paragraph each."""
    found = [
        *_score_notes(collected),
        *_training_notes(collected),
        *_l1_notes(collected),
        *_selection_notes(collected),
        *dropping_notes(collected),
        'Mean ± standard deviation over the finished seeds. Differences are paired by seed, with '
        "the reference unless another row is named. Over seeds: 95 % interval by Student's t. Over "
        'patients: 95 % percentile interval of the difference of the means over seeds, with '
        f'{collected["resamples"]} paired resamples of the patients. Verdict: above or '
        'below if both intervals exclude 0 and the bootstrap p-value over patients, after '
        f"Holm's correction over the comparisons of the same score, is below {SIGNIFICANT}; not "
        'significant after correction if both intervals exclude 0 but the p-value is not below; '
        'inside the noise if an interval includes 0.',
        *_problem_notes(collected),
    ]
    if published := collected['published']:
        found.append(
            f'{PUBLISHED.capitalize()}: {published["measure"]}, {published["source"]}. '
            f'{published["note"]} Data, models or protocols differ, so these values cannot be '
            'compared with the other columns.'
        )
    return [*found, NOT_FOR_CLINICAL_USE]


def distinct_rows(collected: Collected) -> list[Mapping[str, Any]]:
    """Return the first entry of each row, because a row has an entry for each comparison."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in collected['rows']:
        found.setdefault(row['name'], row)
    return [*found.values()]


def _figures(row: CollectedRow, section: str) -> list[Mapping[str, Any]]:
    runs = [entry[section] for entry in row['seeds']]
    return [run['figures'] for run in runs if run and run['figures']]


def _all_scores(collected: Collected) -> list[Mapping[str, Any]]:
    return [figures for row in collected['rows'] for figures in _figures(row, 'finetune')]


def score_of(row: CollectedRow, score: str, kind: str = 'scores') -> pd.Series:
    """Return a score of a row for all seeds for which it is defined.

    `kind` is 'scores', or 'last' for the score of the last epoch.
    """
    values = [figures.get(kind, {}).get(score) for figures in _figures(row, 'finetune')]
    return pd.Series(values, dtype=float).dropna()


def pretrain_figure(row: CollectedRow, name: str) -> pd.Series:
    """Return one of `pretraining_figures` of a row for all seeds for which it is defined."""
    values = [figures.get(name) for figures in _figures(row, 'pretrain')]
    return pd.Series(values, dtype=float).dropna()


def _unfinished_stages(entry: Mapping[str, Any]) -> list[str]:
    """List the unfinished stages of a seed, such as 'fine-tuning missing'."""
    runs = {name: entry[section] for section, name in SECTIONS.items()}
    return [f'{name} {r["state"]}' for name, r in runs.items() if r and r['state'] != 'finished']


def count_finished(row: CollectedRow) -> int:
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


def row_title(collected: Collected, row: CollectedRow) -> str:
    """Return the name or method of a row, with marks for the reference and other comparisons."""
    rows = {each['name']: each for each in collected['rows']}
    reference, key = rows[collected['reference']], 'method' if row['method'] else 'name'
    marks = ['reference'] if row[key] == reference[key] else []
    has_others = sum(each['name'] == row['name'] for each in collected['rows']) > 1
    other = rows[row['against']] if row['against'] else None
    if other and (has_others or other[key] != reference[key]):
        marks.append(f'against {method_title(other)}')
    return f'{method_title(row)} ({", ".join(marks)})' if marks else method_title(row)


def method_title(row: CollectedRow) -> str:
    """Return the method or name of a row, with a mark if scoring drops patches."""
    return (row['method'] or row['name']) + f' {DROPPING}' * bool(_mask_ratios(row))


def dropping_notes(collected: Collected) -> list[str]:
    """Return the note that explains the mark of rows whose scoring drops patches."""
    rows = distinct_rows(collected)
    shares = ', '.join(
        f'{row["name"]} {", ".join(f"{100 * ratio:g} %" for ratio in sorted(ratios))}'
        for row in rows
        if (ratios := _mask_ratios(row))
    )
    note = f'{DROPPING} Scored with a share of the patches dropped (EVAL.MASK_RATIO): {shares}.'
    return [note] if shares else []


def _mask_ratios(row: CollectedRow) -> set[float]:
    """Return the shares of the patches that the scoring of a row drops; empty if it uses all."""
    return {figures.get('mask_ratio', 0) for figures in _figures(row, 'finetune')} - {0}


def subset_title(collected: Collected, subset: str) -> str:
    """Return the name of a subset of the labels for readers, such as '10 %'."""
    if collected['subsets'] == 'shares':
        return f'{100 * float(subset):g} %'
    return 'all images' if subset == 'all' else f'{int(subset):,} images'


def group_title(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of a group with its number of patients, and a mark if it has few cases."""
    patients = sorted({cell['patients'] for cell in cells})
    number = ' to '.join(f'{count:,}' for count in dict.fromkeys([patients[0], patients[-1]]))
    mark = f' {FEW}' if any(cell['few'] for cell in cells) else ''
    return f'{cells[0]["group"]}, {number} patients{mark}'


def _score_notes(collected: Collected) -> Iterator[str]:
    kinds = {}
    for f in _all_scores(collected):
        rows = 'studies' if f['level'] == 'study' else 'images'
        kind = f'Scores on {f["split"]}: {f["rows"]} {rows}, {f["views"]} views'
        model = f'{f["checkpoint"]} checkpoint'
        model = _describe_pixels(collected) if f['checkpoint'] == PIXELS else model
        kinds[f'{kind}, {model}'] = f
    for kind, f in kinds.items():
        undefined = f['undefined']
        missing = f' Labels without both classes: {", ".join(undefined)}.' if undefined else ''
        few = {label: few_of_label(f, label) for label in f['positives'] if label not in undefined}
        named = ', '.join(f'{label} {text}' for label, text in few.items() if text)
        missing += f' Few cases, which make a score unreliable: {named}.' if named else ''
        about = f' {INTERNAL}' if 'on internal' in kind else ''
        yield f'{kind}. Higher is better.{missing}{about}'


def _describe_pixels(collected: Collected) -> str:
    """Describe the baseline. Older files of results do not contain its number of images."""
    known = [
        f['images'] for f in _all_scores(collected) if f['checkpoint'] == PIXELS and 'images' in f
    ]
    images = f' of at most {max(known):,} training images' if known else ''
    return f'logistic regression on pixels{images}'


def _training_notes(collected: Collected) -> Iterator[str]:
    """Yield the numbers of training images, with the labels of which they have few cases."""
    parts = []
    for subset in dict.fromkeys(row['subset'] for row in collected['rows']):
        rows = [row for row in distinct_rows(collected) if row['subset'] == subset]
        runs = [entry['finetune'] or {} for row in rows for entry in row['seeds']]
        known = [run['training'] for run in runs if 'training' in run]  # not in older files
        if known:
            numbers = sorted({counts['images'] for counts in known})
            images = ' to '.join(f'{number:,}' for number in (numbers[0], numbers[-1]))
            images = images if len(numbers) > 1 else f'{numbers[0]:,}'
            few = labels_with_few_cases(min(known, key=lambda counts: counts['images']))
            named = ', '.join(f'{label} {number}' for label, number in few.items())
            title = f'{subset_title(collected, subset)}: ' if subset else ''
            parts.append(title + images + (f' (few cases: {named})' if named else ''))
    if parts:
        yield (
            f'Labelled training images: {"; ".join(parts)}. With few cases, the draw and the seed '
            'decide more than the method.'
        )


def _selection_notes(collected: Collected) -> Iterator[str]:
    if _has_selection(collected):
        yield (
            'Scores and differences are those of the checkpoint in the column of that name. The '
            'score of the last epoch shows what its selection changes; few held-out images select '
            'almost by chance. The held-out score is that of the patients who select the epoch. It '
            'may also choose a row, such as a learning rate, but it is too high to be a result.'
        )


def _has_selection(collected: Collected) -> bool:
    """Return whether a score chose the epoch of a run. Older files of results do not say so."""
    return any(figures.get('selected_epoch') is not None for figures in _all_scores(collected))


def _has_l1(collected: Collected) -> bool:
    """Return whether a row has a reconstruction error. Contrastive methods have none."""
    return any(row['pretraining'] == 'simmim' for row in collected['rows'])


def _l1_notes(collected: Collected) -> Iterator[str]:
    if not _has_l1(collected):
        return
    # Older files of results do not contain `other_images`.
    trivial, rows = [], [row for row in distinct_rows(collected) if not row.get('other_images')]
    for name, title in (('mean', 'mean of the visible pixels'), ('linear', 'interpolation')):
        means = pd.Series([pretrain_figure(row, f'l1_{name}').mean() for row in rows], dtype=float)
        trivial.append(f'{title} {shown(means.mean(), ".2f")}')
    yield (
        'Held-out L1: error on hidden pixels of held-out training patients after pre-training, '
        'with random masks that all rows share. Lower is better. Trivial predictors: '
        f'{", ".join(trivial)}.'
    )
    for row in distinct_rows(collected):
        if row['l1_caveat']:
            yield f'* The held-out L1 of {row["name"]} cannot be compared: {row["l1_caveat"]}.'


def _problem_notes(collected: Collected) -> Iterator[str]:
    """Yield notes on unfinished runs, failed comparisons, and changes of code, data or options."""
    for row in distinct_rows(collected):
        lacking = [
            f'seed {entry["seed"]} ({", ".join(stages)})'
            for entry in row['seeds']
            if (stages := _unfinished_stages(entry))
        ]
        if lacking:
            yield f'{row["name"]} is not finished: {"; ".join(lacking)}.'
    yield from dict.fromkeys(
        f'{r["name"]}: {r["problem"]}.' for r in collected['rows'] if r['problem']
    )
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


def _row_figures(collected: Collected, row: CollectedRow, scores: Sequence[str]) -> dict[str, Any]:
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
    values = {'held_out_l1_grey': pretrain_figure(row, 'l1'), 'held_out_score': _held_out(row)}
    values |= {score: score_of(row, score) for score in scores}
    for name, seeds in values.items():
        line |= {
            f'{name}_mean': round(seeds.mean(), DIGITS),
            f'{name}_sd': round(seeds.std(), DIGITS),
        }
    line |= _selection_figures(row)
    for score in scores:
        part, last = row['compared'].get(score, {}), score_of(row, score, 'last')
        line |= {f'{score}_last_mean': round(last.mean(), DIGITS)}
        line |= {f'{score}_{name}': part.get(name) for name in ('difference', 'verdict')}
        for noise in ('over_seeds', 'over_patients'):
            bounds = part.get(noise, {})
            line |= {f'{score}_{noise}_{end}': bounds.get(end) for end in ENDS}
        line |= {f'{score}_{k}': part.get('over_patients', {}).get(k) for k in ('p', 'p_holm')}
    if collected['published']:
        line[PUBLISHED] = collected['published']['values'].get(row['name'])
    return line


def _row_cells(
    collected: Collected, row: CollectedRow, scores: Sequence[str], footnotes: Footnotes
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
    if any(figures.get('epochs') for figures in _all_scores(collected)):
        yield 'checkpoint', _checkpoint(row)
    if _has_selection(collected):
        yield 'held-out score', _with_sd(_held_out(row), '.3f')
    for score in scores:
        title = score_title(collected, score)
        yield title, _with_sd(score_of(row, score), '.3f')
        if not is_compared(score):
            continue
        if _has_selection(collected):
            yield f'{title}: last epoch', _last_epoch(row, score)
        cells = _comparison_cells(row, score, footnotes) if row['against'] else [''] * 3
        titles = 'difference (95 % over seeds)', 'difference (95 % over patients)', 'verdict'
        yield from zip([f'{title}: {name}' for name in titles], cells, strict=True)
    yield 'finished seeds', f'{count_finished(row)} of {len(row["seeds"])}'
    if collected['published']:
        value = collected['published']['values'].get(row['name'])
        value = ', '.join(map(str, value)) if isinstance(value, list) else value
        yield PUBLISHED, '' if value is None else str(value)


def _comparison_cells(row: CollectedRow, score: str, footnotes: Footnotes) -> Iterator[str]:
    """Yield the difference with each interval and the verdict, with marks where one is missing."""
    part = row['compared'].get(score)
    if part is None:
        problem = f'{row["name"]}: {row["problem"]}.' if row['problem'] else _one_class(row, score)
        yield from [missing_value(footnotes, [problem])] * 3
        return
    missing = missing_intervals(part, _few_cases(row, score))
    for noise in ('over_seeds', 'over_patients'):
        mark = footnotes.mark(missing[noise]) if noise in missing else ''
        text = mark or interval_text(part[noise], '+.3f')
        yield f'{shown(part["difference"], "+.3f")} ({text})'
    if part['verdict'] == MISSING and not missing:
        missing['verdict'] = (
            f'{score} has only {few_of_label(_figures(row, "finetune")[0], score)} in the scored '
            f'cases. Fewer than {FEW_CASES} cases of a class cannot show a difference.'
        )
    yield verdict_text(part, missing, footnotes)


def _one_class(row: CollectedRow, score: str) -> str:
    undefined = sorted({name for f in _figures(row, 'finetune') for name in f['undefined']})
    return f'{score} is undefined, because labels have only one class: {", ".join(undefined)}.'


def _few_cases(row: CollectedRow, score: str) -> str:
    """Return the reason for a missing interval over patients."""
    if row['problem']:
        return f'{row["name"]}: {row["problem"]}.'
    figures, labels, reason = _figures(row, 'finetune')[0], [score], ''
    positives, negatives = figures['positives'], figures.get('negatives') or {}
    if score in MEANS:
        labels = [name for name in positives if name not in figures['undefined']]
        reason = ' for every label'
    counts = {
        name: (positives[name], negatives.get(name, figures['rows'] - positives[name]))
        for name in labels
    }
    label = min(counts, key=lambda name: min(counts[name]))
    return (
        f'Too few cases: fewer than {FEW_CASES} of a class, fewer than 95 % of the resamples have '
        f'positives and negatives{reason}, or all have the same score. '
        f'{label} has {counts[label][0]} positives and {counts[label][1]} negatives.'
    )


def _selection_figures(row: CollectedRow) -> dict[str, str]:
    """Return epochs, selected epochs and selecting images of all seeds as text for a CSV file."""
    return {
        name: ' '.join(map(str, _known(row, name)))
        for name in ('epochs', 'selected_epoch', 'selecting_images')
    }


def _checkpoint(row: CollectedRow) -> str:
    """Describe the scored checkpoint, such as 'epoch 3, 9 of 12, selected on 82 images'."""
    epochs, selected = _known(row, 'epochs'), _known(row, 'selected_epoch')
    if not any(epochs):
        return 'no epochs' if epochs else ''
    total = ', '.join(map(str, sorted({*epochs})))
    if not selected:
        return f'last of {total} epochs'
    images = sorted({*_known(row, 'selecting_images')})
    counted = ' to '.join(f'{number:,}' for number in sorted({*images[:1], *images[-1:]}))
    split = 'valid' if 'valid' in _known(row, 'selected_on') else 'held-out'
    epoch = f'epoch {", ".join(map(str, selected))} of {total}'
    return f'{epoch}, selected on {counted or "unknown"} {split} images'


def _held_out(row: CollectedRow) -> pd.Series:
    """Return the held-out score of each seed whose epochs have one."""
    return pd.Series([v for v in _known(row, 'held_out') if v > -math.inf], dtype=float)


def _last_epoch(row: CollectedRow, score: str) -> str:
    """Return the score of the last epoch of a row that has epochs."""
    if not any(_known(row, 'epochs')):
        return ''
    last = score_of(row, score, 'last')
    return _with_sd(last, '.3f') if len(last) else 'not scored'


def _known(row: CollectedRow, name: str) -> list[Any]:
    """Return a fact about each fine-tuning run of a row that has it."""
    values = [figures.get(name) for figures in _figures(row, 'finetune')]
    return [value for value in values if value is not None]


def _with_sd(values: pd.Series, form: str) -> str:
    return shown(values.mean(), form) + (f' ± {values.std():{form}}' if len(values) > 1 else '')

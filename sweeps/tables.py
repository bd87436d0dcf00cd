"""Tables of a sweep from its long table: compared rows as CSV, Markdown and LaTeX files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from config import NO_ENCODER
from evaluation.intervals import MIN_RESAMPLES
from evaluation.metrics import FEW_CASES, METRICS
from evaluation.model_comparison import (
    ENDS,
    MISSING,
    SIGNIFICANT,
    compare_rows,
    summarise,
)
from evaluation.notices import Notice, notices
from evaluation.run_facts import LABELS
from sweeps.distinctions import distinctions
from sweeps.files import BASELINES, Sweep
from sweeps.long_table import (
    EVERYONE,
    MEANS,
    facts_of,
    has_few_cases,
    is_synthetic,
    known_of_table,
    label_title,
    parts_of,
    rows_of,
)
from system.pages import BOLD, NOT_FOR_CLINICAL_USE
from system.tables import write_table

ONE_SEED = 'A single seed has no interval over seeds, so it cannot show a difference.'
EQUAL_SEEDS = 'The difference is the same for all seeds, so there is no interval over seeds.'
FEW_RESAMPLES = (
    f'No interval: fewer than {MIN_RESAMPLES} resamples, fewer than {FEW_CASES} cases of a class, '
    'fewer than 95 % of the resamples with positives and negatives of every label, or the same '
    'score in all of them.'
)
JOINED = (
    'Each image is scored by a model that was not trained on its patient, with the rank of the '
    'prediction within the fold. '
)
ABOUT_ERRORS = (
    'Held-out L1: under masks that all rows share; curves have the error under the own masks of '
    'a row. Only errors on the same images and of the same '
    'target can be compared.'
)
ABOUT_PUBLISHED = 'Published: context only, because protocols differ.'
SYNTHETIC_NOTE = 'Synthetic X-rays (phantoms): the scores say nothing about patients.'
NOISE = {'over_seeds': 'seeds', 'over_patients': 'patients'}  # name of its columns in the CSV file
FACTS = {  # fact of the long table -> title and format
    'images_seen': ('images seen in pre-training', ',.0f'),
    'pretrain_minutes': ('minutes of pre-training', ',.1f'),
    'held_out_l1': ('held-out L1, shared masks (grey levels)', '.2f'),
    'training_images': ('labelled training images', ',.0f'),
    'epochs': ('epochs', '.0f'),
    'selected_epoch': ('selected epoch', '.1f'),
    'held_out': ('held-out score', '.3f'),
    'minutes': ('minutes', ',.1f'),
}
Line = dict[str, Any]


class Footnotes:
    """The footnotes below one table, which are numbered in the order of their marks."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        """Return the mark of a footnote, such as 'note 1'. Equal texts share a mark."""
        return f'note {self._numbers.setdefault(text, len(self._numbers) + 1)}'

    def keep(self, shown: str) -> None:
        """Keep the notes whose marks are in a text. The others are of columns that are left out."""
        self._numbers = {
            text: number
            for text, number in self._numbers.items()
            if re.search(rf'note {number}\b', shown)
        }

    def take(self) -> list[str]:
        """Return the lines to write below the table, and begin with note 1 again."""
        lines = [f'{self.mark(text)}: {text}' for text in self._numbers]
        self._numbers = {}
        return lines


def compared_pairs(
    table: pd.DataFrame,
    sweep: Sweep,
    *,
    protocols: Mapping[tuple[str, int], str],
    named: Sequence[str] = (),
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return each row with each row to compare it with, or with ''. Baselines are the last rows.

    Args:
        table: Long table.
        sweep: Sweep, whose rows name those to compare with.
        protocols: (row, seed) -> what was scored. Rows with other protocols are not compared.
        named: Rows that are only compared with each other; () for all.

    Returns:
        The pairs, and notes about rows that cannot be compared.
    """
    seeds = table.groupby('row', sort=False)['seed'].agg(set).to_dict()
    pairs, notes = [], []
    rows = [row for row in sweep.rows if row.name in seeds]
    rows.sort(key=lambda row: row.method in NO_ENCODER)
    for row, others in ((row.name, row.against) for row in rows):
        comparable = []
        for name in dict.fromkeys(others):
            common = seeds[row] & seeds.get(name, set())
            if not common or (named and name not in named):
                continue
            if any(protocols.get((row, s)) != protocols.get((name, s)) for s in common):
                first, second = name_of(sweep, row), name_of(sweep, name)
                notes.append(f'{first} was scored on other cases than {second}: not compared.')
                continue
            comparable.append(name)
        pairs += [(row, name) for name in comparable or ['']]
    return pairs, notes


def compare(
    table: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    score: str,
    *,
    subsets: Mapping[str, str],
    groups: Sequence[str] = (EVERYONE,),
) -> list[Line]:
    """Return a line of the CSV file for each pair of rows, in each group."""
    rows = {(n, g): row for g in groups for n, row in rows_of(table, score, g).items()}
    keys = [
        ((name, group), (other, group) if other else '')
        for group in groups
        for name, other in pairs
        if (name, group) in rows
    ]
    metric, label = parts_of(score)
    sizes = {group: facts_of(table, 'cases', group=group) for group in groups if group}
    counted = {group: facts_of(table, f'{metric}_labels', label, group) for group in sizes}
    remarks = {group: _remarks(table, score, group) for group in groups}
    lines = []
    for ((row, group), base), comparison in zip(keys, compare_rows(rows, keys), strict=True):
        summary = summarise(rows[row, group])
        line = {'group': group, 'cases': int(sizes[group][row].iloc[0])} if group else {}
        if group and len(counted[group]):
            line['labels_in_mean'] = int(counted[group][row].iloc[0])
        line |= {'row': row, 'labels': subsets.get(row, ''), 'seeds': summary['seeds']}
        line |= {'score': score, **summary, 'against': base[0] if base else ''}
        if remark := remarks[group].get(row, ''):
            line['remark'] = remark
        if comparison:
            line['difference'] = comparison['difference']
            line['by_seed'] = ' '.join(f'{value:.6f}' for value in comparison['by_seed'])
            for noise, name in NOISE.items():
                line |= {f'{name}_{end}': comparison[noise][end] for end in ENDS}
            line |= {key: comparison[key] for key in ('p', 'p_holm', 'verdict')}
        lines.append(line)
    return lines


def _remarks(table: pd.DataFrame, score: str, group: str) -> dict[str, str]:
    """Return row -> what a reader must know of its score: few cases, or cases that it lacks."""
    metric, label = parts_of(score)
    few = 'few cases' if has_few_cases(table, label, group) else ''
    cases, of = (facts_of(table, f'{metric}_{key}', label, group) for key in ('cases', 'of'))
    lacking = {
        row: f'{number:,.0f} of {whole:,.0f} cases'
        for row, number, whole in zip(cases.index.get_level_values('row'), cases, of, strict=True)
    }
    rows = facts_of(table, 'cases', group=group).index.get_level_values('row')
    return {row: '; '.join(filter(None, [few, lacking.get(row, '')])) for row in rows}


def write_score(
    folder: Path,
    name: str,
    lines: Sequence[Line],
    table: pd.DataFrame,
    sweep: Sweep,
    *,
    notes: Sequence[str],
    draws: str,
    columns: Sequence[str] = (),
) -> Path:
    """Write the lines of a score, and return the path of the Markdown file.

    Args:
        folder: Folder of the table.
        name: Name of the files without suffix.
        lines: Result of `compare`.
        table: Long table, which has the number of labels of a mean.
        sweep: Sweep, which names the rows. The CSV file has the names of the sweep file.
        notes: Notes about the scores.
        draws: Description of the resamples.
        columns: Titles of the columns of the Markdown and the LaTeX file, in order; (): all. The
            CSV file has all.

    Raises:
        ValueError: If the table has no column of such a title.
    """
    footnotes = Footnotes()
    score = lines[0]['score']
    title_of_score = score_title(score, table)
    if 'labels_in_mean' in lines[0] and ', mean' in title_of_score:  # of each line
        title_of_score = f'{METRICS[parts_of(score)[0]].title}, mean'
    cells = [dict(_cells(line, lines, title_of_score, footnotes, sweep)) for line in lines]
    # A mean may be named without its number of labels, which depends on the data and the group.
    names = {score_title(score), score_title(score, table)}
    titles = dict.fromkeys(names, title_of_score) | {'row': sweep.title}
    columns = [titles.get(title, title) for title in columns]
    if unknown := [title for title in columns if title not in cells[0]]:
        raise ValueError(f'--columns must be some of {[*cells[0]]}, got {unknown[0]!r}')
    if columns:
        cells = [{title: cell[title] for title in columns} for cell in cells]
        footnotes.keep(' '.join(text for cell in cells for text in cell.values()))
    count = sum(pd.notna(line.get('p')) for line in lines)  # the others are not corrected
    below = [
        *footnotes.take(),
        *about_runs(table, sweep),
        *_not_above_baselines(lines, sweep),
        *notes,
        f'Over patients: 95 % percentile interval from {draws}. Over seeds: 95 % interval by '
        "Student's t. Verdict: above or below if both intervals exclude 0 and the bootstrap "
        f'p-value, corrected by Holm over the {count} comparisons of this table, is below '
        f'{SIGNIFICANT}.',
        *about_data(table),
    ]
    return write_table(folder, name, lines, cells, below)


def write_all_scores(
    folder: Path,
    name: str,
    scores: Mapping[str, Sequence[Line]],
    sweep: Sweep,
    table: pd.DataFrame | None = None,
    *,
    notes: Sequence[str] = (),
) -> Path:
    """Write one table of several scores, with the best of the rows with the same labels in bold.

    Scores of few cases have no bold.

    Args:
        folder: Folder of the table.
        name: Name of the files without suffix.
        scores: Score -> result of `compare` without groups.
        sweep: Sweep of the rows.
        table: Long table, if it is known, which has the number of cases and of labels of a mean.
        notes: Notes about the scores.

    Returns:
        Path of the Markdown file.
    """
    known = {score: {line['row']: line for line in lines} for score, lines in scores.items()}
    rows = [row for row in sweep.rows if any(row.name in lines for lines in known.values())]
    few = [
        score for score in known if table is not None and has_few_cases(table, parts_of(score)[1])
    ]
    lines, cells, told = [], [], distinctions(sweep)
    most_published = max(map(len, sweep.published.values()), default=0)
    for row in rows:
        seeds = [found[row.name]['seeds'] for found in known.values() if row.name in found]
        number = ' to '.join(map(str, dict.fromkeys((min(seeds), max(seeds)))))
        line = {'row': row.name, 'labels': row.subset, 'seeds': number}
        cell = row_cells(sweep, row.name) | told.get(row.name, {})
        cell['seeds'] = number
        rivals = [other.name for other in rows if other.subset == row.subset]
        for score, found in known.items():
            score_line = found.get(row.name, {})
            line |= {score: score_line.get('value'), f'{score}_sd': score_line.get('sd')}
            text = shown(score_line.get('value'), '.3f')
            text += f' ± {score_line["sd"]:.3f}' if score_line.get('seeds', 0) > 1 else ''
            text += _in_brackets(score_line)
            values = [round(found[name]['value'], 3) for name in rivals if name in found]
            best = max if METRICS[parts_of(score)[0]].higher_is_better else min
            is_best = score_line and round(score_line['value'], 3) == best(values)
            is_bold = is_best and score not in few
            cell[score_title(score, table)] = text.join(BOLD) if is_bold else text
            if score in sweep.scores[:most_published]:  # beside the own score
                place, values = sweep.scores.index(score), sweep.published.get(row.name, [])
                given = values[place] if place < len(values) else None
                line[f'{score}_published'] = given
                title = f'published {METRICS[parts_of(score)[0]].title}'
                cell[title] = '' if given is None else shown(given, '.3f')
        lines.append(line)
        cells.append(cell)
    bold = 'Bold: the best value of the rows with the same labels. Whether it is better by more '
    bold += 'than noise is in the table of each score.'
    if few:
        bold += f' Without bold, because of fewer than {FEW_CASES} cases of a class: '
        bold += f'{"; ".join(score_title(score, table) for score in few)}.'
    notes = [*about_runs(table, sweep), *notes, bold]
    notes += [ABOUT_PUBLISHED] if most_published else []
    notes += about_data(table)
    return write_table(folder, name, lines, cells, notes)


def about_runs(table: pd.DataFrame | None, sweep: Sweep) -> list[str]:
    """Say which facts about the runs of a long table, if it is known, a reader must know."""
    return [] if table is None else [notice.text for notice in notices_of(table, sweep)]


def notices_of(table: pd.DataFrame, sweep: Sweep | None) -> list[Notice]:
    """Return the notices about the runs of a long table.

    In a comparison of methods, names and columns of the rows tell their share of the labels. It is
    a notice only if rows that should have the same one differ.
    """
    known, wanted = known_of_table(table)
    if sweep is None:
        return notices(known, wanted=wanted)
    subsets = {row.name: row.subset for row in sweep.rows}
    shares: dict[str, set[str | None]] = {}
    for (row, _), parts in known.items():
        subset = subsets.get(row, row.partition('_')[2])
        shares.setdefault(subset, set()).update(part.facts.get(LABELS) for part in parts)
    if sweep.subsets and all(len(found) == 1 and None not in found for found in shares.values()):
        known = {
            run: [part._replace(facts={**part.facts, LABELS: ''}) for part in parts]
            for run, parts in known.items()
        }
    known = {(name_of(sweep, row), seed): parts for (row, seed), parts in known.items()}
    return notices(known, wanted=wanted)


def about_data(table: pd.DataFrame | None) -> list[str]:
    """Say what the scores of a long table, if it is known, must not be used for."""
    return [SYNTHETIC_NOTE] * is_synthetic(table) + [NOT_FOR_CLINICAL_USE]


def _not_above_baselines(lines: Sequence[Line], sweep: Sweep) -> Iterator[str]:
    """Name the rows that each baseline equals, which a verdict needs several seeds to say."""
    for method, title in BASELINES.items():
        rows = [
            name_of(sweep, line['row'])
            for line in lines
            if 'group' not in line
            and line['against'].startswith(f'{method}_')
            and (line['difference'] <= 0 or line['patients_low'] <= 0)
        ]
        if rows:
            yield (
                f'The {title} may do as well, because the difference or its interval over '
                f'patients reaches 0: {", ".join(rows)}.'
            )


def facts_cells(table: pd.DataFrame, sweep: Sweep) -> list[dict[str, str]]:
    """Return the facts about the runs of each row, as mean and standard deviation over seeds.

    The first is the name of the row in the sweep file, which only the CSV file has.
    """
    runs, known = facts_of(table, 'epochs').groupby('row', sort=False), distinctions(sweep)
    cells = [
        {
            'row': row,
            **row_cells(sweep, row),
            **known.get(row, {}),
            'SEED of finished runs': ', '.join(map(str, finished.index.get_level_values('seed'))),
        }
        for row, finished in runs
    ]
    for metric, (title, form) in FACTS.items():
        facts = facts_of(table, metric)
        for cell in cells if len(facts) else ():
            values = facts[facts.index.get_level_values('row') == cell['row']]
            cell[title] = with_sd(values, form) if len(values) else ''
    return cells


def read_lines(path: Path, pairs: Sequence[str] = ()) -> pd.DataFrame:
    """Read the compared lines of a table of `write_score`, or only some ROW/ROW.

    Raises:
        ValueError: If it is no such table, or does not compare these.
    """
    options = {'keep_default_na': False, 'na_values': ['']}  # a verdict may be 'n/a'
    options['dtype'] = {'row': str, 'against': str}
    options['converters'] = {'by_seed': lambda text: [float(word) for word in text.split()]}
    try:
        found = pd.read_csv(path, **options)
    except ValueError as error:
        raise ValueError(f'{path} is no table of `ablate.py table`: {error}') from error
    columns = ['row', 'against', 'score', 'value', *ENDS]
    if missing := [name for name in columns if name not in found]:
        raise ValueError(f'{path} must be a table of scores: it lacks {missing}')
    if 'difference' not in found:  # no row is compared
        found['difference'] = float('nan')
    # With groups, a row has a value in each of them.
    keys = ['row', *(['group'] if 'group' in found else [])]
    names = {'row': 'against', 'value': 'against_value'}
    values = found.drop_duplicates(keys)[[*keys, 'value']].rename(columns=names)
    found = found.merge(values, how='left', on=['against', *keys[1:]])
    found.index = found['row'] + '/' + found['against'].fillna('')
    if unknown := [pair for pair in pairs if pair not in found.index]:
        raise ValueError(f'--pairs: {path} does not compare {unknown[0]!r}')
    return found.loc[[*pairs]] if pairs else found


def file_name(sweep: str, score: str) -> str:
    """Return the name of the files of a score without suffix."""
    return re.sub(r'[ :/\\]', '_', f'{sweep}_{score}')


def score_title(score: str, scores: pd.DataFrame | None = None, *, in_groups: bool = False) -> str:
    """Return the name of a score for readers.

    A mean gets its number of labels if a long table has it, of everyone or in all groups, or the
    name of the only label that has enough cases. The mean of five has five labels, but in groups.
    """
    metric, label = parts_of(score)
    title = f'{METRICS[metric].title}, {label_title(label)}'
    if scores is None or (label == MEANS[1] and not in_groups):
        return title
    chosen = (scores['metric'] == f'{metric}_labels') & (scores['label'] == label)
    chosen &= in_groups | (scores['group'] == EVERYONE)
    numbers = sorted({*scores.loc[chosen, 'value'].astype(int)})
    if not numbers:
        return title
    if numbers == [5] and label == MEANS[1]:
        return title
    classes = scores[scores['metric'].isin(['positives', 'negatives'])]
    cases = classes[classes['group'] == EVERYONE].groupby('label')['value'].min()
    counted = cases.index[cases >= FEW_CASES]
    if numbers == [1] and len(counted) == 1:  # a mean over the only label that can be scored
        return f'{METRICS[metric].title}, {counted[0]}'
    title = f'{METRICS[metric].title}, mean'
    shown_numbers = ' to '.join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
    return f'{title} of {shown_numbers} label{"s" * (numbers != [1])}'


def title_of(sweep: Sweep, name: str) -> tuple[str, str]:
    """Return the labels of a row, such as 'all labels', and its name as text."""
    row = next((row for row in sweep.rows if row.name == name), None)
    method, _, subset = name.partition('_')
    if row is not None:
        method, subset = row.method or row.name, row.subset
    elif method not in BASELINES:  # a baseline is a row of the table alone
        raise ValueError(f'{sweep.path} has no row {name!r}, but the table has (--scale)')
    return subset_title(sweep, subset), sweep.titles.get(method, method)


def name_of(sweep: Sweep, name: str) -> str:
    """Return the name of a row in texts, such as 'MAE, 75 % / 1,000 images'."""
    try:
        labels, title = title_of(sweep, name)
    except ValueError:  # a row of another table
        return name
    return f'{title} / {labels}' if labels else title


def subset_title(sweep: Sweep, subset: str) -> str:
    """Return a subset of the labels for readers, such as '10 % of the labels'."""
    if not subset:
        return ''
    if sweep.subsets == 'shares':
        return 'all labels' if float(subset) == 1 else f'{100 * float(subset):g} % of the labels'
    return 'all images' if subset == 'all' else f'{int(subset):,} images'


def row_cells(sweep: Sweep, name: str) -> dict[str, str]:
    """Return the cells that name a row: its title, and its labels in a comparison of methods."""
    labels, title = title_of(sweep, name)
    return {sweep.title: title} | ({'labels': labels} if sweep.subsets else {})


def shown(value: float | None, form: str) -> str:
    """Format a number with a real minus sign, and None and NaN as MISSING."""
    return MISSING if value is None or value != value else f'{value:{form}}'.replace('-', '−')


def interval_text(bounds: Mapping[str, float | None], form: str) -> str:
    """Format an interval as 'low to high', or '' if it is unknown."""
    ends = [shown(bounds.get(end), form) for end in ENDS]
    return '' if MISSING in ends else ' to '.join(ends)


def with_sd(values: pd.Series, form: str) -> str:
    """Format a mean with its standard deviation if it varies."""
    spread = '' if values.nunique() < 2 else f' ± {values.std():{form}}'
    return shown(values.mean(), form) + spread


def _in_brackets(line: Line) -> str:
    return f' ({line["remark"]})' if 'remark' in line else ''


def _cells(
    line: Line, lines: Sequence[Line], title: str, footnotes: Footnotes, sweep: Sweep
) -> Iterator[tuple[str, str]]:
    """Yield title and text of the cells of a line."""

    def marked(*reasons: str) -> str:
        return f'{MISSING} ({", ".join(map(footnotes.mark, reasons))})'

    if 'group' in line:
        yield 'group', line['group']
    yield from row_cells(sweep, line['row']).items()
    for name in ('cases', 'labels_in_mean'):
        if name in line:
            yield name.replace('_', ' '), f'{line[name]:,}'
    sd = f' ± {line["sd"]:.3f}' if line['seeds'] > 1 else ''
    yield title, shown(line['value'], '.3f') + sd + _in_brackets(line)
    if any('last_epoch' in other for other in lines):
        yield 'last epoch', shown(line.get('last_epoch'), '.3f')
    yield '95 % over patients', interval_text(line, '.3f') or marked(FEW_RESAMPLES)
    other = line['against']
    labels, name = title_of(sweep, other) if other else ('', '')
    is_other = labels != title_of(sweep, line['row'])[0]
    yield 'against', f'{name}, {labels}' if other and is_other else name
    if 'difference' in line:
        seeds, missing = len(line['by_seed'].split()), []
        paired = f' ({seeds} of {line["seeds"]} seeds)' if seeds != line['seeds'] else ''
        yield 'difference', shown(line['difference'], '+.3f') + paired
        one = ONE_SEED if seeds == 1 else EQUAL_SEEDS
        for (noise, name), reason in zip(NOISE.items(), (one, FEW_RESAMPLES), strict=True):
            bounds = {end: line[f'{name}_{end}'] for end in ENDS}
            text = interval_text(bounds, '+.3f')
            missing += [] if text else [reason]
            yield noise.replace('_', ' '), text or marked(reason)
        is_missing = line['verdict'] == MISSING
        yield 'verdict', marked(*missing) if is_missing else line['verdict']
    else:
        yield from ((name, '') for name in ('difference', 'over seeds', 'over patients', 'verdict'))

"""Figures of a sweep from its tables: scores, differences, labels, groups, shares, masks.

Each function writes `path` (.png, .pdf or .svg), creates the folder, and returns the files. What
does not fit on a page becomes several files: `path` with _1, _2 and so on.
"""

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill, wrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from config import NO_ENCODER
from data.masking import average_distance, mask_generator
from evaluation.model_comparison import CLEAR_VERDICTS, ENDS, MISSING, t_interval
from sweeps.files import Row, Sweep, expected_config, subset_size
from sweeps.long_table import (
    EVERYONE,
    MEANS,
    facts_of,
    is_synthetic,
    parts_of,
)
from sweeps.tables import notices_of, score_title, subset_title, title_of
from system.files import atomic_writer
from system.pages import (
    NOT_FOR_CLINICAL_USE,
    SYNTHETIC,
    TALLEST,
    WIDTH,
    listed,
    new_figure,
    page_files,
    split_pages,
)

# Colours of Okabe and Ito, which colour-blind readers can distinguish, without yellow.
COLOURS = (
    '#000000', '#E69F00', '#56B4E9', '#009E73', '#0072B2', '#D55E00', '#CC79A7', '#8C8C8C',
)  # fmt: skip
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '<', '>')
MOST_ROWS = len(COLOURS)  # rows or lines in a panel; in a finished sweep no two share a colour
COLOUR, GREY, LIGHT = '#0072B2', '#595959', '#E0E0E0'
SIGNIFICANT_COLOUR = '#D55E00'
BARS = {  # columns of an interval -> its style
    'patients': {'label': '95 % over patients', 'color': COLOURS[2], 'linewidth': 5},
    'seeds': {'label': '95 % over seeds', 'color': COLOURS[0], 'linewidth': 1},
}
POINT = {'marker': 'o', 'markersize': 5, 'color': COLOURS[0], 'markerfacecolor': 'white'}
CLEAR = {'color': SIGNIFICANT_COLOUR, 'markerfacecolor': SIGNIFICANT_COLOUR}
UNKNOWN = {'marker': 'x', 'color': GREY}
SEEDS_NOTE = {'xytext': (0, 5), 'textcoords': 'offset points', 'ha': 'center', 'fontsize': 6}
BASELINE = {'color': SIGNIFICANT_COLOUR, 'linestyle': '--', 'label': 'pixel baseline'}
BY_SEED = {'marker': '.', 'markersize': 4, 'color': GREY, 'linestyle': ''}
# What the network of a row starts from in fine-tuning -> its marker, and what a note says of it.
HERE, FROM_FILE, RANDOM, NO_NETWORK = 'here', 'file', 'random', 'none'
STARTS = {
    HERE: ({}, 'filled: pre-trained here'),
    FROM_FILE: (
        {'fillstyle': 'left', 'markerfacecoloralt': 'white'},
        'half filled: weights from a file',
    ),
    RANDOM: ({'markerfacecolor': 'white'}, 'open: random weights'),
    NO_NETWORK: ({'marker': 'x'}, 'cross: no network'),
}
NARROW = 4.7  # inches: figures of one panel, whose text stays legible on a phone
STYLE = {'font.size': 10, 'pdf.fonttype': 42, 'svg.fonttype': 'none'}  # text stays selectable
STYLE |= {'text.parse_math': False}  # names may have dollar signs, which are no formulas
STYLE |= {'axes.spines.top': False, 'axes.spines.right': False, 'axes.axisbelow': True}
STYLE |= {'legend.frameon': False, 'legend.fontsize': 9, 'grid.color': LIGHT}
LONG_TITLE, LONG_NAME, LONG_AXIS = 34, 28, 40  # letters in a line
LETTERS = 16  # of a note in an inch
NOTE_LINE = 0.14  # inches: height of a line of a note
UNKNOWN_RUNS = 'Without the long table, nothing is known of the runs.'
LINE = 0.17  # inches: height of a line of a name
OVER_PATIENTS = 'Bars: 95 % over patients, of the mean over seeds'
ALL_IMAGES = 4  # 'all' images are drawn at this multiple of the largest number
NUM_MASKS = 200  # for the mean distance to a visible pixel
OUTLINE = [withStroke(linewidth=2.5, foreground='white')]  # of text above lines
FEW_SEEDS = 3  # an interval over fewer seeds spans the whole figure


def plot_scores(
    path: str | Path, lines: pd.DataFrame, sweep: Sweep, scores: pd.DataFrame | None = None
) -> list[Path]:
    """Draw a dot with its interval for each row, and a line at the pixel baseline.

    Rows are grouped by their labels. `lines` is a result of `sweeps.tables.read_lines`, and
    `scores` the long table, if it is known: it has the number of labels of a mean.
    """
    values = lines.drop_duplicates('row').set_index('row')
    rows = [row for row in sweep.rows if row.name in values.index]
    subsets = [*dict.fromkeys(row.subset for row in rows)]
    baselines = {row.subset: values.loc[row.name, 'value'] for row in rows if _is_pixels(row)}
    rows = [row for row in rows if not _is_pixels(row)] or rows
    missing = missing_note(sweep, sweep.rows, values.index)
    names = {row.name: fill(title_of(sweep, row.name)[1], LONG_NAME) for row in rows}
    height, heading = _row_height(names.values(), 0.27), 0.4
    most = int((TALLEST - 1.4 - heading * len(subsets)) / height)
    pages: list[list[Row]] = [[]]
    for subset in subsets:  # a page shows all rows of a subset, if they fit
        for members in split_pages([row for row in rows if row.subset == subset], most):
            if len(pages[-1]) + len(members) > most:
                pages.append([])
            pages[-1] += members
    files = page_files(Path(path), len(pages))
    for file, page in zip(files, pages, strict=True):
        groups: dict[str, list[Row]] = {}
        for row in page:
            groups.setdefault(row.subset, []).append(row)
        tall = 1.4 + heading * len(groups) + height * len(page)
        with drawing(file, tall, width=NARROW) as figure:
            ratios = [len(members) for members in groups.values()]
            options = {'sharex': True, 'squeeze': False, 'height_ratios': ratios}
            panels = figure.subplots(len(groups), 1, **options)[:, 0]
            for axis, (subset, members) in zip(panels, groups.items(), strict=True):
                _draw_scores(axis, sweep, members, values, names)
                if subset in baselines:
                    axis.axvline(baselines[subset], **BASELINE)
            axis.set_xlim(*span_of(values[['value', *ENDS]]))
            axis.locator_params(axis='x', nbins=5)
            axis.set_xlabel(fill(score_title(lines['score'].iloc[0], scores), LONG_AXIS))
            if baselines:
                figure.legend(handles=[Line2D([], [], **BASELINE)], loc='outside upper right')
            shown = [row.name for row in page]
            notes = [bars_note(values.loc[shown]), starts_note(sweep, shown), missing]
            add_note(figure, ' '.join(filter(None, notes)), scores, sweep)
    return files


def _draw_scores(
    axis: Axes,
    sweep: Sweep,
    rows: Sequence[Row],
    values: pd.DataFrame,
    names: Mapping[str, str],
) -> None:
    """Draw the rows with the same labels, whose titles are `names`."""
    for number, row in enumerate(rows):
        scored = values.loc[[row.name]]
        style = {'markersize': 6, 'color': COLOUR, 'linestyle': ''}
        style |= {'marker': 'o'} | STARTS[start_of(row)][0]
        axis.errorbar(scored['value'], [number], xerr=bars_of(scored), elinewidth=1.5, **style)
    axis.set_yticks(range(len(rows)), [names[row.name] for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    title = subset_title(sweep, rows[0].subset)
    axis.set_title(title[:1].upper() + title[1:], loc='left', fontsize=10, weight='bold')
    axis.grid(axis='x')


def _is_pixels(row: Row) -> bool:
    return row.method == 'pixels'


def plot_differences(
    path: str | Path,
    lines: pd.DataFrame,
    sweep: Sweep,
    scores: pd.DataFrame | None = None,
    *,
    rows: Sequence[Row] = (),
) -> list[Path]:
    """Draw the paired differences between compared rows with both intervals.

    `lines` and `scores` are those of `plot_scores`. Rows that are not compared are left out; a note
    names those of `rows`.
    """
    lines = lines[lines['difference'].notna()]
    if lines.empty:
        raise ValueError(f'{path}: the table has no known difference')
    score, seeds = lines['score'].iloc[0], max(map(len, lines['by_seed']))
    groups = lines['group'] if 'group' in lines else [''] * len(lines)
    names = zip(lines['row'], lines['against'], groups, strict=True)
    lines = lines.assign(name=[fill(difference_title(sweep, *name), LONG_TITLE) for name in names])
    height = _row_height(lines['name'], 2 * LINE)
    missing = missing_note(sweep, rows, {*lines['row']}, 'difference')
    bounds = [f'{noise}_{end}' for noise in BARS for end in ENDS]
    by_seed = lines['by_seed'].explode()
    span = span_of(pd.concat([*(lines[name] for name in ('difference', *bounds)), by_seed]))
    files = []
    for file, page in paged(path, lines.to_dict('records'), int((TALLEST - 1.6) / height)):
        with drawing(file, 1.6 + height * len(page)) as figure:
            axis = figure.subplots()
            axis.axvline(0, color=GREY, linewidth=1.2, zorder=1)
            for number, line in enumerate(page):
                for noise, style in BARS.items():
                    ends = [line[f'{noise}_{end}'] for end in ENDS]
                    axis.plot(ends, [number] * 2, solid_capstyle='butt', zorder=2, **style)
                values = line['by_seed']
                axis.plot(values, [number + 0.3] * len(values), zorder=2, **BY_SEED)
                style = CLEAR if line['verdict'] in CLEAR_VERDICTS else {}
                style = UNKNOWN if line['verdict'] == MISSING else style
                axis.plot(line['difference'], number, linestyle='', zorder=3, **POINT | style)
                if len(values) < seeds:
                    at = (line['difference'], number)
                    shown = f'{len(values)} seed{"s" * (len(values) != 1)}'
                    axis.annotate(shown, at, **SEEDS_NOTE)
            axis.set_yticks(range(len(page)), [line['name'] for line in page])
            axis.set_ylim(len(page) - 0.5, -0.5)
            axis.set_xlim(*span)
            axis.set_xlabel(f'difference in {score_title(score, scores)}')
            axis.locator_params(axis='x', nbins=5)
            axis.grid(axis='x')
            points = {'significant': CLEAR, 'not significant': {}}
            points |= {'no verdict': UNKNOWN} if (lines['verdict'] == MISSING).any() else {}
            handles = [Line2D([], [], **style) for style in BARS.values()]
            handles += [Line2D([], [], linestyle='', label=name, **POINT | style)
                        for name, style in points.items()]  # fmt: skip
            handles.append(Line2D([], [], label='one seed', **BY_SEED))
            figure.legend(handles=handles, loc='outside upper center', ncols=3, columnspacing=1)
            note = 'Right of 0: the first is better. '
            note += f'{seeds} seed{"s" * (seeds != 1)}, unless a number is shown. {missing}'
            add_note(figure, note.strip(), scores, sweep)
        files.append(file)
    return files


def difference_title(sweep: Sweep, row: str, other: str, group: str = '') -> str:
    """Return a difference as text, such as 'All labels: SimMIM − none'."""
    (labels, first), (other_labels, second) = title_of(sweep, row), title_of(sweep, other)
    second += f', {other_labels}' if other_labels != labels else ''
    where = ', '.join(filter(None, [labels[:1].upper() + labels[1:], group]))
    return f'{where}: {first} − {second}' if where else f'{first} − {second}'


def plot_labels(path: str | Path, scores: pd.DataFrame, sweep: Sweep) -> list[Path]:
    """Draw the AUROC of every label for each method with the most labels.

    Intervals are over patients. A note names the labels without an AUROC. With a single label
    there is no mean. `scores` is a table of `sweeps.long_table.written`.
    """
    means = _means(scores, 'auroc')
    counted = scores['metric'].isin(['positives', 'negatives']) & (scores['group'] == EVERYONE)
    labels = [label for label in means['label'].unique() if label not in MEANS]
    one_class = scores.loc[counted & (scores['value'] == 0), 'label'].unique()
    unscored = [label for label in one_class if label not in labels]
    note = f'Without an AUROC: {listed(unscored)}.' if unscored else ''
    if len(labels) > 1:
        labels = [*(label for label in MEANS if label in {*means['label']}), *labels]
    titles = {
        label: score_title(label, scores).partition(', ')[2] if label in MEANS else label
        for label in labels
    }
    options = {'column': 'label', 'score': 'AUROC', 'note': note, 'table': scores}
    return plot_categories(path, means, sweep, titles, **options)


def plot_groups(path: str | Path, scores: pd.DataFrame, sweep: Sweep, score: str) -> list[Path]:
    """Draw a score in each group of patients for each row, or method with the most labels.

    A note names the groups with too few cases. `scores` is a table of `sweeps.long_table.written`
    with groups.
    """
    means, groups = _groups_shown(scores, score)
    metric, label = parts_of(score)
    shown = scores[scores['group'].isin(groups)]
    counted = (shown['metric'] == f'{metric}_labels') & (shown['label'] == label)
    numbers = shown[counted].groupby('group')['value'].first()
    of_everyone = facts_of(scores, f'{metric}_labels', label).max() if len(numbers) else None
    titles = {group: group for group in groups}
    notes = []
    if numbers.nunique() > 1:  # groups of other columns have other labels
        titles |= {group: f'{group} ({number:g} labels)' for group, number in numbers.items()}
    if len(numbers) == 0 or {*numbers} == {of_everyone}:
        titles = {EVERYONE: 'everyone'} | titles
    else:
        notes = [f'The mean of everyone is over {of_everyone:g} labels and is not drawn.']
    left_out = [group for group in scores['group'].unique() if group not in (EVERYONE, *groups)]
    notes += [f'Too few cases of a label: {listed(left_out)}.'] if left_out else []
    title = score_title(score, shown, in_groups=True)
    options = {'column': 'group', 'score': title, 'table': scores, 'note': ' '.join(notes)}
    return plot_categories(path, means, sweep, titles, **options)


def has_groups(scores: pd.DataFrame, score: str) -> bool:
    """Return whether a long table has a score of groups of patients."""
    return bool(_groups_shown(scores, score)[1])


def _groups_shown(scores: pd.DataFrame, score: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the scores by group, and the groups that are shown.

    Means are only known where all their labels have enough cases (`shared_labels`). Of a single
    label, groups with an interval are shown, if there are any.
    """
    metric, label = parts_of(score)
    means = _means(scores, metric, label, by='group')
    is_known = means['low'].notna() | (label in MEANS)
    shown = means[is_known] if is_known.any() else means
    return means, [group for group in shown['group'].unique() if group != EVERYONE]


def plot_categories(
    path: str | Path,
    means: pd.DataFrame,
    sweep: Sweep,
    titles: Mapping[str, str],
    *,
    column: str,
    score: str,
    table: pd.DataFrame,
    note: str = '',
) -> list[Path]:
    """Draw the values of the categories in a column, such as labels, with a marker for each row."""
    scored_rows = [row for row in sweep.rows if row.name in {*means['row']}]
    subset = max((row.subset for row in scored_rows), key=lambda name: subset_size(name or 'all'))
    names = [row.name for row in scored_rows if row.subset == subset]
    missing = missing_note(sweep, [row for row in sweep.rows if row.subset == subset], names)
    titles = {category: fill(title, LONG_NAME) for category, title in titles.items()}

    def height(rows: Sequence[str]) -> float:  # of a category
        return _row_height(titles.values(), max(0.3, 0.05 * (len(rows) + 3)))

    means = means[means['row'].isin(names) & means[column].isin([*titles])]
    span = span_of(means[['value', *ENDS]])
    pages = []
    for rows in split_pages(names, MOST_ROWS):
        space = TALLEST - 1.9 - _legend_height(sweep, rows)
        pages += [
            (rows, categories) for categories in split_pages([*titles], int(space / height(rows)))
        ]
    files = page_files(Path(path), len(pages))
    for file, (rows, categories) in zip(files, pages, strict=True):
        tall = 1.9 + _legend_height(sweep, rows) + height(rows) * len(categories)
        with drawing(file, tall) as figure:
            axis = figure.subplots()
            steps = np.linspace(-0.36, 0.36, len(rows)) if len(rows) > 1 else [0.0]
            for name, step in zip(rows, steps, strict=True):
                scored = means[means['row'] == name].set_index(column).reindex(categories)
                heights = np.arange(len(categories)) + step
                style = _style(sweep, name)
                axis.errorbar(scored['value'], heights, xerr=bars_of(scored), **style)
            axis.set_yticks(range(len(categories)), [titles[name] for name in categories])
            axis.set_ylim(len(categories) - 0.5, -0.5)
            axis.set_xlim(*span)
            for edge in np.arange(0.5, len(categories) - 1):
                axis.axhline(edge, color=LIGHT, linewidth=0.6, zorder=0)
            labelled = f'; labelled: {subset_title(sweep, subset)}' if subset else ''
            is_seen = score.startswith('AUROC') and span[0] < 0.5 < span[1]
            chance = '; dotted: chance' if is_seen else ''
            if chance:
                axis.axvline(0.5, color=GREY, linewidth=0.9, linestyle=':', zorder=1)
            axis.set_xlabel(fill(f'{score}{labelled}{chance}', LONG_AXIS))
            _add_method_legend(figure, sweep, names, rows)
            drawn = means[means['row'].isin(rows) & means[column].isin(categories)]
            notes = [bars_note(drawn), note, starts_note(sweep, rows), missing]
            add_note(figure, ' '.join(filter(None, notes)), table, sweep)
    return files


def _row_height(names: Iterable[str], least: float) -> float:
    """Return the height in inches that each of some rows with these names needs."""
    lines = max((1 + name.count('\n') for name in names), default=1)
    return max(least, LINE * lines + 0.03)


def plot_subsets(path: str | Path, scores: pd.DataFrame, sweep: Sweep, score: str) -> list[Path]:
    """Draw a score by the labelled share with one line per method and intervals.

    The intervals are over seeds, or with fewer than FEW_SEEDS over patients.
    """
    metric, label = parts_of(score)
    scores = scores[scores['row'].isin([row.name for row in sweep.rows])]
    chosen = scores[(scores['metric'] == metric) & (scores['label'] == label)]
    seeds = (
        chosen[(chosen['seed'] != '') & (chosen['group'] == EVERYONE)]
        .groupby('row')['value']
        .agg(list)
    )
    means = _means(scores, metric, label).set_index('row')
    noise, unknown = "seeds, by Student's t", 'one seed, or equal values of all seeds'
    if max(map(len, seeds), default=0) < FEW_SEEDS:
        noise = f'patients, because there are fewer than {FEW_SEEDS} seeds'
        unknown = 'too few cases or resamples'
    else:
        halves = seeds.map(lambda values: np.diff(t_interval(values))[0] / 2)
        means['low'], means['high'] = means['value'] - halves, means['value'] + halves
    low, high = span_of(means[['value', *ENDS]])
    # Intervals over few seeds may exceed [0, 1], and a kappa may be below 0.
    limits = max(low, min(0, span_of(means[['value']])[0])), min(high, 1)
    options = {'score': score_title(score, scores), 'noise': noise, 'unknown': unknown}
    return plot_by_subset(path, {'': means}, sweep, limits=limits, table=scores, **options)


def plot_by_subset(
    path: str | Path,
    means: Mapping[str, pd.DataFrame],
    sweep: Sweep,
    *,
    score: str,
    noise: str,
    unknown: str,
    limits: tuple[float, float],
    table: pd.DataFrame,
) -> list[Path]:
    """Draw values by the labelled share with one line per method, a figure for each of `means`.

    Args:
        path: File.
        means: Title -> value, low and high by row.
        sweep: Comparison of methods.
        score: Name of the value.
        noise: What the intervals are over.
        unknown: Why a value has no interval.
        limits: Ends of the axis.
        table: Long table.
    """
    is_share = sweep.subsets == 'shares'
    every = pd.concat([*means.values()])
    scored_rows = [row for row in sweep.rows if row.name in every.index]
    subsets = sorted({row.subset for row in scored_rows}, key=subset_size)
    sizes = [*map(subset_size, subsets)]
    known = [size * (100 if is_share else 1) for size in sizes if size < math.inf]
    positions = dict(zip(sizes, [*known, ALL_IMAGES * max(known, default=1)], strict=False))
    last = {row.method: row.name for row in scored_rows}
    methods = [method for method in _methods(sweep) if method in last]
    pages = [(title, page) for title in means for page in split_pages(methods, MOST_ROWS)]
    files = page_files(Path(path), len(pages))
    for file, (title, page) in zip(files, pages, strict=True):
        rows, shown = [last[method] for method in page], means[title]
        with drawing(file, max(4.4, 3.6 + _legend_height(sweep, rows))) as figure:
            axis = figure.subplots()
            axis.set_title(title, loc='left', fontsize=10, weight='bold')
            axis.set_xscale('log')
            for number, method in enumerate(page):
                moved = 1.04 ** (number - (len(page) - 1) / 2)  # keeps bars apart
                scored = shown.reindex([f'{method}_{subset}' for subset in subsets])
                style = _style(sweep, last[method])
                at = [positions[subset_size(subset)] * moved for subset in subsets]
                axis.errorbar(
                    at,
                    scored['value'],
                    yerr=bars_of(scored),
                    **style | {'linestyle': '-', 'linewidth': 1},
                )
            names = [
                'all' if size == math.inf else f'{position:,g}'
                for size, position in positions.items()
            ]
            axis.set_xticks([*positions.values()], names)
            axis.minorticks_off()
            axis.grid(axis='y')
            axis.set_ylim(*limits)
            axis.set_xlabel('labelled patients (%)' if is_share else 'labelled images')
            axis.set_ylabel(fill(score, LONG_AXIS))
            _add_method_legend(figure, sweep, [last[method] for method in methods], rows)
            drawn = shown.reindex([f'{method}_{name}' for method in page for name in subsets])
            is_unknown = (drawn['value'].notna() & drawn['low'].isna()).any()
            bars = f'Bars: 95 % over {noise}{f"; none: {unknown}" if is_unknown else ""}.'
            missing = missing_note(sweep, sweep.rows, shown.index)
            notes = [bars, starts_note(sweep, rows), missing]
            add_note(figure, ' '.join(filter(None, notes)), table, sweep)
    return files


def plot_masks(path: str | Path, scores: pd.DataFrame, sweep: Sweep, score: str) -> list[Path]:
    """Draw a score by AvgDist (`data.masking.average_distance`) for rows that only change masks.

    Each combination of mask type and mask size has a line, in the colour of its place in the sweep.
    """
    means = _means(scores, *parts_of(score)).set_index('row')
    lines: dict[str, list[tuple[float, str, float]]] = {}
    for row in sweep.mask_rows:
        config = expected_config(row, 'simmim')
        name = f'{config.DATA.MASK_TYPE}, {config.DATA.MASK_PATCH_SIZE} px'
        points = lines.setdefault(name, [])
        if row.name in means.index:
            generator, rng = mask_generator(config), np.random.default_rng(0)
            masks = np.stack([generator(rng) for _ in range(NUM_MASKS)])
            distance = average_distance(masks, config.DATA.IMG_SIZE // masks.shape[1])
            points.append((distance, row.name, config.DATA.MASK_RATIO))
    known = [distance for points in lines.values() for distance, *_ in points]
    numbers = {name: number for number, name in enumerate(lines)}
    missing = missing_note(sweep, sweep.mask_rows, means.index)
    files = []
    for file, page in paged(path, [name for name in lines if lines[name]], MOST_ROWS):
        with drawing(file, 3.8) as figure:
            axis = figure.subplots()
            for name in page:
                distances, rows, ratios = zip(*sorted(lines[name]), strict=True)
                scored = means.loc[[*rows]]
                style = marked(numbers[name]) | {'markersize': 4, 'elinewidth': 0.6, 'label': name}
                axis.errorbar(distances, scored['value'], yerr=bars_of(scored), **style)
                for distance, value, ratio in zip(distances, scored['value'], ratios, strict=True):
                    note = {'xytext': (4, 3), 'textcoords': 'offset points', 'fontsize': 8}
                    note |= {'color': style['color'], 'path_effects': OUTLINE, 'zorder': 5}
                    axis.annotate(f'{ratio:g}', (distance, value), **note)
            if max(known) >= 4 * min(known):  # otherwise there may be a single power of 2
                axis.set_xscale('log', base=2)
            axis.xaxis.set_major_formatter('{x:g}')
            axis.grid(axis='y')
            axis.set_xlabel('AvgDist: mean distance from hidden to nearest visible pixel (px)')
            axis.set_ylabel(fill(score_title(score, scores), LONG_AXIS))
            figure.legend(loc='outside upper center', ncols=4)
            note = f'Numbers: masked share. {bars_note(means)} {missing}'
            add_note(figure, note.strip(), scores, sweep)
        files.append(file)
    return files


def start_of(row: Row) -> str:
    """Return what the network of a row starts from in fine-tuning: one of STARTS."""
    if mode_of(row) in NO_ENCODER:
        return NO_NETWORK
    if row.pretraining:
        return HERE
    has_weights = row.weights or expected_config(row, 'finetune').PRETRAINED
    return FROM_FILE if has_weights else RANDOM


def starts_note(sweep: Sweep, names: Sequence[str]) -> str:
    """Explain the markers of some rows, such as 'Filled: pre-trained here; ...'."""
    found = {start_of(row) for row in sweep.rows if row.name in names}
    note = '; '.join(words for start, (_, words) in STARTS.items() if start in found)
    return f'{note[:1].upper()}{note[1:]}.'


def bars_note(scored: pd.DataFrame) -> str:
    """Explain the bars of some scores, and why others have none."""
    is_unknown = (scored['value'].notna() & scored['low'].isna()).any()
    return f'{OVER_PATIENTS}{"; none: too few cases or resamples" if is_unknown else ""}.'


def missing_note(
    sweep: Sweep, rows: Iterable[Row], known: Collection[str], what: str = 'score'
) -> str:
    """Name the rows that are not `known`, which a figure therefore lacks; '' for none."""
    methods: dict[str, dict[str, bool]] = {}  # title -> labels -> whether they are missing
    for row in rows:
        labels, title = title_of(sweep, row.name)
        methods.setdefault(title, {})[labels] = row.name not in known
    names = []
    for title, labels in methods.items():
        missing = [f'{title} ({name})' for name, is_missing in labels.items() if is_missing]
        names += [title] if len(missing) == len(labels) else missing
    return f'Without a {what}: {listed(names)}.' if names else ''


def mode_of(row: Row) -> str:
    return expected_config(row, 'finetune').FINETUNE.MODE


def paged(path: str | Path, items: Sequence, most: int) -> Iterator[tuple[Path, Sequence]]:
    """Yield a file and its items for each page of at most `most` items."""
    pages = split_pages(items, most)
    yield from zip(page_files(Path(path), len(pages)), pages, strict=True)


@contextlib.contextmanager
def drawing(path: str | Path, height: float, width: float = WIDTH) -> Iterator[Figure]:
    """Provide a figure of `width` x `height` inches, and save it after the block."""
    path = Path(path)
    with rc_context(STYLE):
        figure = new_figure(height, width)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            figure.savefig(file, dpi=200, format=path.suffix[1:])


def told_of_runs(scores: pd.DataFrame | None, sweep: Sweep | None) -> str:
    """Return what a caption says about the facts of the runs of a long table, if it is known."""
    if scores is None:
        return UNKNOWN_RUNS
    return ' '.join(notice.short for notice in notices_of(scores, sweep))


def add_note(
    figure: Figure, text: str, scores: pd.DataFrame | None = None, sweep: Sweep | None = None
) -> None:
    """Add a note below a figure, which also says that it is not for clinical use.

    It also says what the long table `scores` tells of its runs, and of synthetic X-rays.
    """
    text = f'{text} {SYNTHETIC}' if is_synthetic(scores) else text
    text = f'{text} {NOT_FOR_CLINICAL_USE}'
    letters = int(LETTERS * figure.get_figwidth())
    told = told_of_runs(scores, sweep)
    if told:  # which may take several lines, for which the figure grows
        lines = len(wrap(told, letters))
        height = figure.get_figheight() + NOTE_LINE * lines
        figure.set_figheight(min(TALLEST, height))
        text = f'{told} {text}'
    whole = NOT_FOR_CLINICAL_USE.replace(' ', '\xa0')  # stays on one line
    text = fill(text.replace(NOT_FOR_CLINICAL_USE, whole), letters, break_on_hyphens=False)
    text = text.replace('\xa0', ' ')
    figure.supxlabel(text, fontsize=8, color=GREY)


def _means(scores: pd.DataFrame, metric: str, label: str = '', by: str = 'label') -> pd.DataFrame:
    """Return row, label or group, value, low and high of the means over the seeds.

    By label, the values are of all cases; by group, of one label.
    """
    chosen = (scores['seed'] == '') & (scores['metric'] == metric)
    chosen &= (scores['label'] == label) if label else True
    chosen &= (scores['group'] == EVERYONE) if by == 'label' else True
    lines = scores[chosen].replace({'resample': {'': 'value'}})
    table = lines.pivot(index=['row', by], columns='resample', values='value')
    order = lines.drop_duplicates(['row', by])[['row', by]]
    return table.loc[[*map(tuple, order.to_numpy())]].reset_index()


def span_of(values: pd.DataFrame | pd.Series) -> tuple[float, float]:
    """Return the limits of an axis that all pages share, with some room at both ends."""
    known = values.to_numpy(float)
    low, high = np.nanmin(known), np.nanmax(known)
    room = 0.04 * (high - low) or 0.01
    return low - room, high + room


def bars_of(scored: pd.DataFrame) -> np.ndarray:
    """Return the lengths [2, N] of error bars, NaN where the interval is unknown."""
    # With few cases the score may lie outside the percentiles of its resamples.
    lengths = [scored['value'] - scored['low'], scored['high'] - scored['value']]
    return np.maximum(np.array(lengths, float), 0)


def marked(number: int) -> dict[str, Any]:
    return {'color': COLOURS[number % len(COLOURS)], 'marker': MARKERS[number % len(MARKERS)]}


def _style(sweep: Sweep, name: str) -> dict[str, Any]:
    """Return the style of a row. STARTS explains the filling of its marker.

    Colour and marker follow the place of its method in the sweep, so that they are the same in all
    figures, whatever is finished.
    """
    (row,) = (row for row in sweep.rows if row.name == name)
    style = marked(_methods(sweep).index(row.method or row.name))
    return style | {'markersize': 5, 'linestyle': '', 'zorder': 3} | STARTS[start_of(row)][0]


def _methods(sweep: Sweep) -> list[str]:
    """Return the methods, or the rows of an ablation, in the order of the sweep."""
    return [*dict.fromkeys(row.method or row.name for row in sweep.rows)]


def _legend_height(sweep: Sweep, names: Sequence[str]) -> float:
    """Return about how many inches the legend of some rows needs."""
    lines = [1 + _legend_title(sweep, name).count('\n') for name in names]
    half = math.ceil(len(lines) / 2)
    return 0.04 * half + 0.16 * max(sum(lines[:half]), sum(lines[half:]))


def _legend_title(sweep: Sweep, name: str) -> str:
    return fill(title_of(sweep, name)[1], LONG_NAME)


def _add_method_legend(
    figure: Figure, sweep: Sweep, names: Sequence[str], shown: Sequence[str]
) -> None:
    """Add a legend of the `shown` of all rows above the figure."""
    handles = [Line2D([], [], **_style(sweep, name)) for name in shown]
    titles = [_legend_title(sweep, name) for name in shown]
    title = sweep.title
    if len(shown) < len(names):
        first = names.index(shown[0]) + 1
        title = f'{title}: {first} to {first + len(shown) - 1} of {len(names)}'
    title = fill(title, int(LETTERS * figure.get_figwidth() * 8 / 10))  # in letters of 10 points
    style = {'ncols': 2, 'loc': 'outside upper center', 'title': title}
    figure.legend(handles, titles, **style)

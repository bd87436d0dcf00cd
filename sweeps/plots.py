"""Figures of a sweep from its tables: differences, AUROC by label, labelled share and mask; losses.

Each function writes `path` (.png, .pdf or .svg) and creates the folder.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from config import PROBES, Config
from data.masking import average_distance, mask_generator
from evaluation.model_comparison import CLEAR_VERDICTS, ENDS, MISSING, t_interval
from logger import read_metrics
from sweeps.files import BASELINES, Row, Sweep, expected_config, run_folder, subset_size
from sweeps.long_table import EVERYONE, label_title, parts_of
from sweeps.tables import NOT_FOR_CLINICAL_USE, score_title
from system.files import atomic_writer

# Colours of Okabe and Ito, which colour-blind readers can distinguish, without yellow.
COLOURS = (
    '#000000', '#E69F00', '#56B4E9', '#009E73', '#0072B2', '#D55E00', '#CC79A7', '#8C8C8C',
)  # fmt: skip
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '<', '>')
COLOUR, GREY, LIGHT = '#0072B2', '#595959', '#E0E0E0'
SIGNIFICANT_COLOUR = '#D55E00'
BARS = {  # columns of an interval -> its style
    'patients': {'label': '95 % over patients', 'color': COLOURS[2], 'linewidth': 5},
    'seeds': {'label': '95 % over seeds', 'color': COLOURS[0], 'linewidth': 1},
}
POINT = {'marker': 'o', 'markersize': 5, 'color': COLOURS[0], 'markerfacecolor': 'white'}
CLEAR = {'color': SIGNIFICANT_COLOUR, 'markerfacecolor': SIGNIFICANT_COLOUR}
UNKNOWN = {'marker': 'x', 'color': GREY}
BY_SEED = {'marker': '.', 'markersize': 4, 'color': GREY, 'linestyle': ''}
VALUES = {  # absolute scores: name in the legend -> style
    'first': {'marker': 'D', 'markersize': 4, 'color': COLOUR, 'linestyle': ''},
    'second': {'marker': 'D', 'markersize': 4, 'color': COLOUR, 'linestyle': '',
               'markerfacecolor': 'white'},
}  # fmt: skip
WIDTH = 6.3  # text width of an A4 page in inches
STYLE = {'font.size': 9, 'pdf.fonttype': 42, 'svg.fonttype': 'none'}  # text stays selectable
STYLE |= {'axes.spines.top': False, 'axes.spines.right': False, 'axes.axisbelow': True}
STYLE |= {'legend.frameon': False, 'legend.fontsize': 8, 'grid.color': LIGHT}
LONG_TITLE = 36  # names of differences are broken after this length
LONG_NAME = 16  # method names of this length only leave room for three columns in the legend
LOSSES = {  # metrics of an epoch that are drawn if a run has them -> dashes
    'holdout_l1_grey': '-',
    'holdout_loss': '-',
    'loss': '--',
}
CURVES_NOTE = 'One line per seed. Solid: held-out patients. Dashed: training images.'
ALL_IMAGES = 4  # 'all' images are drawn at this multiple of the largest number
COLUMNS = 3  # columns of panels with learning curves
NUM_MASKS = 200  # for the mean distance to a visible pixel


def plot_differences(path: str | Path, lines: pd.DataFrame, sweep: Sweep) -> None:
    """Draw the scores of compared rows, and their paired differences with both intervals.

    `lines` is a result of `sweeps.tables.read_lines`. Rows that are not compared are left out.
    """
    lines = lines[lines['difference'].notna()]
    if lines.empty:
        raise ValueError(f'{path}: the table has no known difference')
    score, seeds = lines['score'].iloc[0], max(map(len, lines['by_seed']))
    with drawing(path, 1.3 + 0.28 * len(lines)) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
        right.axvline(0, color=GREY, linewidth=1.2, zorder=1)
        for place, line in enumerate(lines.to_dict('records')):
            left.plot([line['low'], line['high']], [place] * 2, color=COLOURS[2], linewidth=5)
            left.plot(line['value'], place, zorder=3, **VALUES['first'])
            left.plot(line['against_value'], place, zorder=2, **VALUES['second'])
            _draw_difference(right, place, line, seeds)
        groups = lines['group'] if 'group' in lines else [''] * len(lines)
        names = zip(lines['row'], lines['against'], groups, strict=True)
        names = [fill(difference_title(sweep, *name), LONG_TITLE) for name in names]
        left.set_yticks(range(len(lines)), names)
        left.set_ylim(len(lines) - 0.5, -0.5)
        left.set_xlabel(score_title(score))
        right.set_xlabel('paired difference')
        for axis in (left, right):
            axis.locator_params(axis='x', nbins=3)  # names may leave narrow axes
            axis.grid(axis='x')
        points = {'significant': CLEAR, 'not significant': {}}
        points |= {'no verdict': UNKNOWN} if (lines['verdict'] == MISSING).any() else {}
        handles = [Line2D([], [], label=name, **style) for name, style in VALUES.items()]
        handles += [Line2D([], [], **style) for style in BARS.values()]
        handles += [Line2D([], [], linestyle='', label=name, **POINT | style)
                    for name, style in points.items()]  # fmt: skip
        handles.append(Line2D([], [], label='one seed', **BY_SEED))
        figure.legend(handles=handles, loc='outside upper center', ncols=4, columnspacing=1)
        note = 'Left: mean over the seeds. Right of 0: the first is better. '
        note += f'{seeds} seed{"s" * (seeds != 1)}, unless a number is shown.'
        add_note(figure, f'{note} {NOT_FOR_CLINICAL_USE}')


def difference_title(sweep: Sweep, row: str, other: str, group: str = '') -> str:
    """Return a difference as text, such as 'All labels: SimMIM − none'."""
    (labels, first), (other_labels, second) = title_of(sweep, row), title_of(sweep, other)
    second += f', {other_labels}' if other_labels != labels else ''
    where = ', '.join(filter(None, [labels[:1].upper() + labels[1:], group]))
    return f'{where}: {first} − {second}' if where else f'{first} − {second}'


def title_of(sweep: Sweep, name: str) -> tuple[str, str]:
    """Return the labels of a row, such as 'all labels', and its name as text."""
    row = next((row for row in sweep.rows if row.name == name), None)
    method, _, subset = name.partition('_')
    if row is not None:
        method, subset = row.method or row.name, row.subset
    elif method not in BASELINES:  # a baseline is a row of the table alone
        raise ValueError(f'{sweep.path} has no row {name!r}, but the table has (--scale)')
    return subset_title(sweep, subset), sweep.titles.get(method, method)


def subset_title(sweep: Sweep, subset: str) -> str:
    """Return a subset of the labels for readers, such as '10 % of the labels'."""
    if not subset:
        return ''
    if sweep.subsets == 'shares':
        return 'all labels' if float(subset) == 1 else f'{100 * float(subset):g} % of the labels'
    return 'all images' if subset == 'all' else f'{int(subset):,} images'


def plot_labels(path: str | Path, scores: pd.DataFrame, sweep: Sweep) -> None:
    """Draw the AUROC of every label for each method with the most labels.

    Intervals are over patients. `scores` is a table of `sweeps.long_table.written`.
    """
    subset = max((row.subset for row in sweep.rows), key=subset_size)
    means = _means(scores, 'auroc')
    names = [row.name for row in sweep.rows if row.subset == subset]
    names = [name for name in names if name in means['row'].unique()]
    labels = [*means['label'].unique()]
    with drawing(path, 1.5 + 0.05 * (len(names) + 3) * len(labels)) as figure:
        axis = figure.subplots()
        steps = np.linspace(-0.36, 0.36, len(names))
        for number, (name, step) in enumerate(zip(names, steps, strict=True)):
            own = means[means['row'] == name].set_index('label').reindex(labels)
            places, bars = np.arange(len(labels)) + step, _bars(own)
            axis.errorbar(own['value'], places, xerr=bars, **_style(sweep, number, name))
        axis.set_yticks(range(len(labels)), map(label_title, labels))
        axis.set_ylim(len(labels) - 0.5, -0.5)
        for edge in np.arange(0.5, len(labels) - 1):
            axis.axhline(edge, color=LIGHT, linewidth=0.6, zorder=0)
        axis.axvline(0.5, color=GREY, linewidth=0.9, linestyle=':', zorder=1)
        axis.set_xlabel(f'AUROC; labelled: {subset_title(sweep, subset)}; dotted: chance')
        bars = 'Bars: 95 % over patients, of the mean over seeds, if known.'
        _add_method_legend(figure, sweep, names, bars)


def plot_subsets(path: str | Path, scores: pd.DataFrame, sweep: Sweep, score: str) -> None:
    """Draw a score by the labelled share with one line per method and intervals.

    The intervals are over seeds, or with a single seed over patients.
    """
    metric, label = parts_of(score)
    own = scores[(scores['metric'] == metric) & (scores['label'] == label)]
    seeds = own[(own['seed'] != '') & (own['group'] == EVERYONE)].groupby('row')['value'].agg(list)
    is_single = max(map(len, seeds), default=0) < 2
    means = _means(scores, metric, label).set_index('row')
    if not is_single:
        halves = seeds.map(lambda values: np.diff(t_interval(values))[0] / 2)
        means['low'], means['high'] = means['value'] - halves, means['value'] + halves
    sizes = sorted({subset_size(row.subset) for row in sweep.rows})
    factor = 100 if sweep.subsets == 'shares' else 1
    known = [size * factor for size in sizes if size < math.inf]
    places = dict(zip(sizes, [*known, ALL_IMAGES * max(known, default=1)], strict=False))
    methods = [*dict.fromkeys(row.method for row in sweep.rows if row.name in means.index)]
    subsets = sorted({row.subset for row in sweep.rows}, key=subset_size)
    with drawing(path, 4.2) as figure:
        axis = figure.subplots()
        axis.set_xscale('log')
        for number, method in enumerate(methods):
            moved = 1.04 ** (number - (len(methods) - 1) / 2)  # keeps bars apart
            part = means.reindex([f'{method}_{subset}' for subset in subsets])
            style = _style(sweep, number, part.index[-1]) | {'linestyle': '-', 'linewidth': 1}
            at = [places[subset_size(subset)] * moved for subset in subsets]
            axis.errorbar(at, part['value'], yerr=_bars(part), **style)
        names = ['all' if size == math.inf else f'{place:,g}' for size, place in places.items()]
        axis.set_xticks([*places.values()], names)
        axis.minorticks_off()
        if len(places) == 1:  # a single share would be spread over the axis
            (place,) = places.values()
            axis.set_xlim(place / 2, place * 2)
        axis.grid(axis='y')
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, 0), min(high, 1))  # intervals over few seeds may exceed [0, 1]
        is_share = sweep.subsets == 'shares'
        axis.set_xlabel('labelled patients (%)' if is_share else 'labelled images')
        axis.set_ylabel(score_title(score))
        noise = 'patients, with one seed' if is_single else "seeds, by Student's t"
        names = [f'{method}_{subsets[-1]}' for method in methods]
        _add_method_legend(figure, sweep, names, f'Bars: 95 % over {noise}.')


def plot_masks(path: str | Path, scores: pd.DataFrame, sweep: Sweep, score: str) -> None:
    """Draw a score by AvgDist (`data.masking.average_distance`) for rows that only change masks.

    Each combination of mask type and mask size has a line.
    """
    means = _means(scores, *parts_of(score)).set_index('row')
    lines: dict[str, list[tuple[float, str, float]]] = {}
    for row in sweep.mask_rows:
        if row.name in means.index:
            config = expected_config(row, 'simmim')
            name = f'{config.DATA.MASK_TYPE}, {config.DATA.MASK_PATCH_SIZE} px'
            point = _distance(config), row.name, config.DATA.MASK_RATIO
            lines.setdefault(name, []).append(point)
    with drawing(path, 3.8) as figure:
        axis = figure.subplots()
        for number, (name, points) in enumerate(lines.items()):
            distances, rows, ratios = zip(*sorted(points), strict=True)
            own = means.loc[[*rows]]
            style = {'color': COLOURS[number % len(COLOURS)], 'markersize': 4, 'elinewidth': 0.6}
            style |= {'marker': MARKERS[number % len(MARKERS)], 'label': name}
            axis.errorbar(distances, own['value'], yerr=_bars(own), **style)
            for distance, value, ratio in zip(distances, own['value'], ratios, strict=True):
                note = {'xytext': (4, 3), 'textcoords': 'offset points', 'fontsize': 7}
                axis.annotate(f'{ratio:g}', (distance, value), color=style['color'], **note)
        axis.set_xscale('log', base=2)
        axis.xaxis.set_major_formatter('{x:g}')
        axis.grid(axis='y')
        axis.set_xlabel('AvgDist: mean distance from hidden pixels to the nearest visible one (px)')
        axis.set_ylabel(score_title(score))
        figure.legend(loc='outside upper center', ncols=4)
        bars = 'Bars: 95 % over patients, of the mean over seeds, if known.'
        add_note(figure, f'Numbers: masked share. {bars} {NOT_FOR_CLINICAL_USE}')


def rows_with_curves(sweep: Sweep, *, pretrain: bool) -> list[Row]:
    """Return a row for each pre-training, or each fine-tuning with the most labels.

    Probes and baselines without an encoder are left out, because they have no epochs.
    """
    most = max((row.subset for row in sweep.rows), key=lambda name: subset_size(name or 'all'))
    rows: dict[str, Row] = {}  # by run, which rows may share
    for row in sweep.rows:
        if pretrain and row.pretraining:
            rows.setdefault(row.pretrain_run, row)
        elif not pretrain and row.subset == most and not _is_probe(row):
            rows.setdefault(row.run, row)
    return [*rows.values()]


def plot_curves(
    path: str | Path, sweep: Sweep, seeds: Sequence[int], output: str | Path, *, pretrain: bool
) -> None:
    """Draw the losses of each of the `rows_with_curves` by epoch."""
    chosen = rows_with_curves(sweep, pretrain=pretrain)
    columns = min(COLUMNS, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    with drawing(path, 0.5 + 1.75 * lines) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in panels[len(chosen) :]:
            axis.set_axis_off()
        for row, axis in zip(chosen, panels, strict=False):
            axis.set_title(sweep.titles.get(row.method, row.method or row.name), fontsize=9)
            for seed in seeds:
                stage = row.pretraining if pretrain else 'finetune'
                _draw_losses(axis, run_folder(output, stage, row, seed) / 'metrics.jsonl')
            axis.set_xlabel('epochs')
        add_note(figure, CURVES_NOTE)


def _is_probe(row: Row) -> bool:
    return expected_config(row, 'finetune').FINETUNE.MODE in PROBES


@contextlib.contextmanager
def drawing(path: str | Path, height: float) -> Iterator[Figure]:
    """Provide a figure of page width and `height` inches, and save it after the block."""
    path = Path(path)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout='constrained')
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            figure.savefig(file, dpi=200, format=path.suffix[1:])


def _distance(config: Config) -> float:
    """Return AvgDist of random masks of a run."""
    generator, rng = mask_generator(config), np.random.default_rng(0)
    masks = np.stack([generator(rng) for _ in range(NUM_MASKS)])
    return average_distance(masks, config.DATA.IMG_SIZE // masks.shape[1])


def add_note(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=7, color=GREY, wrap=True)


def _draw_difference(axis: Axes, place: int, line: Mapping[str, Any], seeds: int) -> None:
    """Draw a difference at height `place` with the known intervals and seeds."""
    for noise, style in BARS.items():
        ends = [line[f'{noise}_{end}'] for end in ENDS]
        axis.plot(ends, [place] * 2, solid_capstyle='butt', zorder=2, **style)
    axis.plot(line['by_seed'], [place + 0.3] * len(line['by_seed']), zorder=2, **BY_SEED)
    style = CLEAR if line['verdict'] in CLEAR_VERDICTS else {}
    style = UNKNOWN if line['verdict'] == MISSING else style
    axis.plot(line['difference'], place, linestyle='', zorder=3, **POINT | style)
    if len(line['by_seed']) < seeds:
        note = {'xytext': (0, 5), 'textcoords': 'offset points', 'ha': 'center', 'fontsize': 6}
        axis.annotate(f'{len(line["by_seed"])} seeds', (line['difference'], place), **note)


def _draw_losses(axis: Axes, file: Path) -> None:
    """Draw the losses of a run by epoch; nothing without a run."""
    records = read_metrics(file) if file.is_file() else []
    names = [name for name in LOSSES if any(r.get(name) is not None for r in records)]
    # The error in grey levels has another scale than the losses.
    for name in names[:1] if names[:1] == ['holdout_l1_grey'] else names:
        known = {r['epoch'] + 1: r[name] for r in records if r.get(name) is not None}
        axis.plot([*known], [*known.values()], LOSSES[name], color=COLOUR, linewidth=1)
        axis.set_ylabel('L1 (grey levels)' if name == 'holdout_l1_grey' else 'loss')


def _means(scores: pd.DataFrame, metric: str, label: str = '') -> pd.DataFrame:
    """Return row, label, value, low and high of the means over the seeds."""
    chosen = (scores['seed'] == '') & (scores['group'] == EVERYONE) & (scores['metric'] == metric)
    chosen &= (scores['label'] == label) if label else True
    part = scores[chosen].replace({'resample': {'': 'value'}})
    table = part.pivot(index=['row', 'label'], columns='resample', values='value')
    order = part.drop_duplicates(['row', 'label'])[['row', 'label']]
    return table.loc[[*map(tuple, order.to_numpy())]].reset_index()


def _bars(part: pd.DataFrame) -> np.ndarray:
    """Return the lengths [2, N] of error bars, NaN where the interval is unknown."""
    # With few cases the score may lie outside the percentiles of its resamples.
    lengths = [part['value'] - part['low'], part['high'] - part['value']]
    return np.maximum(np.array(lengths, float), 0)


def _style(sweep: Sweep, number: int, name: str) -> dict[str, Any]:
    """Return the style of the method with this number. Without pre-training, markers are open."""
    colour = COLOURS[number % len(COLOURS)]
    is_pretrained = any(row.pretraining for row in sweep.rows if row.name == name)
    return {
        'color': colour,
        'marker': MARKERS[number % len(MARKERS)],
        'markersize': 4,
        'markerfacecolor': colour if is_pretrained else 'white',
        'linestyle': '',
        'zorder': 3,
    }


def _add_method_legend(figure: Figure, sweep: Sweep, names: Sequence[str], bars: str) -> None:
    """Add a legend above the figure, and a note that explains the bars below."""
    handles = [Line2D([], [], **_style(sweep, number, name)) for number, name in enumerate(names)]
    titles = [title_of(sweep, name)[1] for name in names]
    columns = 4 if max(map(len, titles)) < LONG_NAME else 3
    style = {'ncols': columns, 'loc': 'outside upper center', 'title': sweep.title}
    figure.legend(handles, titles, **style)
    add_note(figure, f'{bars} Open markers: not pre-trained. {NOT_FOR_CLINICAL_USE}')

"""Figures of a sweep: paired differences, learning curves, AUROC by label, labelled share, mask.

Each function writes `path` (.png, .pdf or .svg) and creates the folder. `collected` is the result
of `sweeps.results.collect`, and `score` is a score of the table, by default the first one. An
unknown format, score or subset raises a ValueError.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from logger import read_metrics
from sweeps.collected import Collected, CollectedRow
from sweeps.files import Row, Sweep, expected_config, run_folder, subset_size
from sweeps.row_comparison import ENDS, MEANS, MISSING, is_compared, t_interval
from sweeps.sweep_table import (
    choose_scores,
    distinct_rows,
    dropping_notes,
    group_title,
    known_scores,
    method_title,
    row_title,
    score_of,
    score_title,
    subset_title,
)
from sweeps.table_format import NOT_FOR_CLINICAL_USE
from system.files import atomic_writer

# Colours of Okabe and Ito, which colour-blind readers can distinguish, without yellow.
COLOURS = (
    '#000000', '#E69F00', '#56B4E9', '#009E73', '#0072B2', '#D55E00', '#CC79A7', '#8C8C8C',
)  # fmt: skip
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '<', '>')
COLOUR, GREY, LIGHT = '#0072B2', '#595959', '#E0E0E0'
SIGNIFICANT_COLOUR = '#D55E00'
BARS = {
    'over_patients': {'label': '95 % over patients', 'color': COLOURS[2], 'linewidth': 5},
    'over_seeds': {'label': '95 % over seeds', 'color': COLOURS[0], 'linewidth': 1},
}
POINT = {'marker': 'o', 'markersize': 5, 'color': COLOURS[0], 'markerfacecolor': 'white'}
CLEAR = {'color': SIGNIFICANT_COLOUR, 'markerfacecolor': SIGNIFICANT_COLOUR}
UNKNOWN = {'marker': 'x', 'color': GREY}
BY_SEED = {'marker': '.', 'markersize': 4, 'color': GREY, 'linestyle': ''}
WIDTH = 6.3  # text width of an A4 page in inches
STYLE = {'font.size': 9, 'pdf.fonttype': 42, 'svg.fonttype': 'none'}  # text stays selectable
STYLE |= {'axes.spines.top': False, 'axes.spines.right': False, 'axes.axisbelow': True}
LONG_NAME = 16  # method names of this length only leave room for three columns in the legend
STYLE |= {'legend.frameon': False, 'legend.fontsize': 8, 'grid.color': LIGHT}
LONG_ROW = 24  # row names of this length leave room for a single column of panels
LOSS, L1 = 'holdout_loss', 'holdout_l1_grey'
SPREAD, RANK = 'holdout_feature_spread', 'holdout_effective_rank'
TRAIN_LOSS = 'loss'
LOSSES_NOTE = 'One line per seed. Solid: held-out patients. Dashed: training images.'
CURVES_NOTE = (
    'One line per seed. Dotted: a network without information (for masked images, the mean of the '
    'visible pixels). Losses of different methods cannot be compared. Held-out features have '
    'collapsed if their final spread is below 0.05 or their final rank is below 2.'
)
ALL_IMAGES = 4  # 'all' images are drawn at this multiple of the largest number
COLUMNS = 3  # columns of panels with learning curves


def plot_sweep(path: str | Path, collected: Collected, score: str | None = None) -> None:
    """Draw the paired difference of each row with its intervals over patients and seeds."""
    (score,) = choose_scores(collected, [score] if score else None)
    if not is_compared(score):
        raise ValueError(f'--scores: rows are compared by AUROC only, got {score!r}')
    # With subsets, rows that are only compared with would repeat for each of them.
    rows = [row for row in collected['rows'] if row['against'] or not collected['subsets']]
    titles = _row_titles(collected, rows)
    differences = [
        Difference(title, row['compared'].get(score), len(row['seeds']), _reason(row, rows))
        for title, row in zip(titles, rows, strict=True)
    ]
    base = next(row for row in collected['rows'] if row['name'] == collected['reference'])
    note = f'the row in brackets, or than {method_title(base)}'
    notes = [f'Right of 0: better than {note}.', NOT_FOR_CLINICAL_USE, *dropping_notes(collected)]
    title = score_title(collected, score)
    plot_differences(path, differences, score=title, title=collected['title'], notes=notes)


@dataclass(frozen=True)
class Difference:
    """A line of a figure of differences.

    Attributes:
        title: Name of the line.
        part: Result of `sweeps.row_comparison.compare_rows`, or None.
        seeds: Number of seeds that the reader expects. Fewer are noted.
        reason: Why there is no `part`.
    """

    title: str
    part: Mapping[str, Any] | None
    seeds: int
    reason: str = ''


def plot_differences(
    path: str | Path,
    differences: Sequence[Difference],
    *,
    score: str,
    title: str = '',
    notes: Sequence[str],
) -> None:
    """Draw paired differences in a score, with those of each seed and both intervals.

    `title` stands left of the names of the lines, and `notes` below the figure.
    """
    parts = [each.part for each in differences if each.part]
    with drawing(path, 1.1 + 0.28 * len(differences)) as figure:
        axis = figure.subplots()
        axis.axvline(0, color=GREY, linewidth=1.2, zorder=1)
        for place, each in enumerate(differences):
            _draw_difference(axis, place, each)
        axis.set_yticks(range(len(differences)), [each.title for each in differences])
        axis.set_ylim(len(differences) - 0.5, -0.5)
        axis.locator_params(axis='x', nbins=5)  # names may leave a narrow axis
        axis.grid(axis='x')
        axis.set_ylabel(title)
        axis.set_xlabel(f'paired difference in {score}', loc='right')
        points = {'significant': CLEAR, 'not significant': {}}
        if any(part['verdict'] == MISSING for part in parts):
            points['no verdict'] = UNKNOWN
        handles = [Line2D([], [], **style) for style in BARS.values()]
        for name, style in points.items():
            handles.append(Line2D([], [], linestyle='', label=name, **POINT | style))
        if any(part.get('by_seed') for part in parts):
            handles.append(Line2D([], [], label='one seed', **BY_SEED))
        columns = 5 if len(handles) <= 5 else 3
        figure.legend(handles=handles, loc='outside upper center', ncols=columns, columnspacing=1)
        add_note(figure, ' '.join(notes))


def _reason(row: CollectedRow, rows: Sequence[CollectedRow]) -> str:
    """Return why a row that is not compared is not."""
    if row['against']:
        return 'no finished run to compare'
    is_base = any(other['against'] == row['name'] for other in rows)
    return 'reference of other rows' if is_base else 'not compared'


def plot_subgroups(path: str | Path, collected: Collected) -> None:
    """Draw the paired differences of all rows in each group, with a panel for each column.

    The differences are those of `sweeps.subgroup_table`, with intervals over patients.
    """
    found = collected['subgroups']
    cells = [cell for cell in found['cells'] if cell['against']]
    names = [*dict.fromkeys(cell['column'] for cell in cells)]
    rows = [row for row in collected['rows'] if row['against']]
    rows = [row for row in rows if any(_is_of(cell, row) for cell in cells)]
    if not rows:
        raise ValueError(f'{path}: no row of the sweep can be compared in a subgroup')
    grouped = {name: _by_group(cells, name) for name in names}
    titles = _row_titles(collected, rows)
    # Panels share the names of the rows at the left, unless these need half of the page.
    across = 2 if len(names) > 1 and max(map(len, titles)) < LONG_ROW else 1
    lines = math.ceil(len(names) / across)
    most = max(map(len, grouped.values()))
    height = 0.9 + lines * (0.7 + len(rows) * (0.1 + 0.1 * most))
    with drawing(path, height) as figure:
        panels = figure.subplots(lines, across, sharex=True, sharey=True, squeeze=False)
        for axis in panels.ravel()[len(names) :]:
            axis.set_axis_off()
        for axis, (name, groups) in zip(panels.ravel(), grouped.items(), strict=False):
            _draw_groups(axis, rows, groups)
            style = {'loc': 'lower left', 'bbox_to_anchor': (-0.02, 1), 'ncols': 2, 'fontsize': 6.5}
            style |= {'alignment': 'left', 'columnspacing': 1, 'handletextpad': 0.2}
            axis.legend(title=name, **style)
            axis.tick_params(labelbottom=True)
        panels[0, 0].set_yticks(range(len(rows)), titles)
        panels[0, 0].set_ylim(len(rows) - 0.5, -0.5)
        base = next(row for row in collected['rows'] if row['name'] == collected['reference'])
        note = f'Paired difference in {score_title(collected, found["score"])}; right of 0: better '
        note += f'than the row in brackets, or than {method_title(base)}. Bars: 95 % over '
        note += "patients. Filled: significant after Holm's correction. *: few cases."
        add_note(figure, ' '.join([note, NOT_FOR_CLINICAL_USE, *dropping_notes(collected)]))


def _row_titles(collected: Collected, rows: Sequence[CollectedRow]) -> list[str]:
    """Return the names of rows, with their subset of the labels if the sweep has subsets."""
    names = [row_title(collected, row) for row in rows]
    if not collected['subsets']:
        return names
    subsets = [subset_title(collected, row['subset']) for row in rows]
    return [f'{name}, {subset}' for name, subset in zip(names, subsets, strict=True)]


def _is_of(cell: Mapping[str, Any], row: CollectedRow) -> bool:
    return (cell['row'], cell['against']) == (row['name'], row['against'])


def _by_group(
    cells: Sequence[Mapping[str, Any]], column: str
) -> dict[str, list[Mapping[str, Any]]]:
    """Return the cells of a column of subgroups by the name of the group."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        if cell['column'] == column:
            found.setdefault(cell['group'], []).append(cell)
    return found


def _draw_groups(
    axis: Axes,
    rows: Sequence[CollectedRow],
    groups: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Draw the differences of all rows in the groups of a column, one below the other."""
    axis.axvline(0, color=GREY, linewidth=1.2, zorder=1)
    step = 0.8 / len(groups)
    for number, cells in enumerate(groups.values()):
        # The first colour, black, is that of everyone in other figures.
        style = {'color': COLOURS[1 + number % (len(COLOURS) - 1)]}
        marker = {'marker': MARKERS[number % len(MARKERS)], 'markersize': 4, 'linestyle': ''}
        for place, row in enumerate(rows):
            part = next((cell for cell in cells if _is_of(cell, row)), {})
            if part.get('difference') is None:
                continue
            y = place - 0.4 + step * (number + 0.5)
            ends = [part['over_patients'][end] for end in ENDS]
            if None not in ends:
                axis.plot(ends, [y, y], linewidth=1.2, zorder=2, **style)
            is_clear = part['verdict'] in ('above', 'below')
            fill = style['color'] if is_clear else 'white'
            axis.plot(part['difference'], y, markerfacecolor=fill, zorder=3, **marker, **style)
        axis.plot([], [], markerfacecolor='white', label=group_title(cells), **marker, **style)
    for place in range(1, len(rows)):
        axis.axhline(place - 0.5, color=LIGHT, linewidth=0.8, zorder=0)
    axis.grid(axis='x')


def plot_curves(path: str | Path, sweep: Sweep, seeds: Sequence[int], output: str | Path) -> None:
    """Draw the held-out loss of each pre-training run by epoch, with one line per seed.

    The panel of a method without held-out loss is empty.
    """
    rows = {row.pretrain_run: row for row in reversed(sweep.rows) if row.pretraining}
    with _panels(path, [*reversed(rows.values())], CURVES_NOTE) as panels:
        for row, axis in panels:
            _draw_curves(axis, row, seeds, output)


def plot_losses(path: str | Path, sweep: Sweep, seeds: Sequence[int], output: str | Path) -> None:
    """Draw the losses of each fine-tuning run with the most labels by epoch."""
    most = max((row.subset for row in sweep.rows), key=subset_size)
    rows = [row for row in sweep.rows if row.subset == most]
    with _panels(path, rows, LOSSES_NOTE) as panels:
        for row, axis in panels:
            for seed in seeds:
                records = _epochs(run_folder(output, 'finetune', row, seed))
                for key, dashes in ((LOSS, '-'), (TRAIN_LOSS, '--')):
                    known = {r['epoch'] + 1: r[key] for r in records if r.get(key) is not None}
                    axis.plot([*known], [*known.values()], dashes, color=COLOUR, linewidth=1)
            axis.set_xlabel('epochs')
            axis.set_ylabel('loss')


def plot_labels(path: str | Path, collected: Collected, subset: str | None = None) -> None:
    """Draw the AUROC of every label and the mean for each method, with intervals over patients.

    `subset` is a share or number of labelled images, by default the largest.
    """
    subsets = sorted({row['subset'] for row in collected['rows']}, key=subset_size)
    subset = subsets[-1] if subset is None else subset
    if subset not in subsets:
        raise ValueError(f'--subset must be one of {subsets}, got {subset!r}')
    rows = [row for row in distinct_rows(collected) if row['subset'] == subset]
    labels = [s for s in known_scores(collected) if is_compared(s) and s not in MEANS]
    scores = [*choose_scores(collected), *labels] if len(labels) != 1 else labels
    with drawing(path, 1.5 + 0.05 * (len(rows) + 3) * len(scores)) as figure:
        axis = figure.subplots()
        steps = np.linspace(-0.36, 0.36, len(rows))
        for number, (row, step) in enumerate(zip(rows, steps, strict=True)):
            for place, score in enumerate(scores):
                mean = score_of(row, score).mean()
                if not np.isnan(mean):
                    bars = _patient_bars(mean, row['over_patients'].get(score))
                    axis.errorbar(mean, place + step, xerr=bars, **_method_style(number, row))
        names = [score_title(collected, score).removeprefix('AUROC, ') for score in scores]
        axis.set_yticks(range(len(scores)), names)
        axis.set_ylim(len(scores) - 0.5, -0.5)
        for edge in np.arange(0.5, len(scores) - 1):
            axis.axhline(edge, color=LIGHT, linewidth=0.6, zorder=0)
        axis.axvline(0.5, color=GREY, linewidth=0.9, linestyle=':', zorder=1)
        axis.set_xlabel(f'AUROC; labelled: {subset_title(collected, subset)}; dotted: chance')
        bars = 'Bars: 95 % over patients, of the mean over seeds, if known.'
        _add_method_legend(figure, collected, rows, bars)


def plot_subsets(path: str | Path, collected: Collected, score: str | None = None) -> None:
    """Draw a score by the labelled share with one line per method and intervals.

    The intervals are over seeds, or with a single seed over patients.
    """
    (score,) = choose_scores(collected, [score] if score else None)
    is_share = collected['subsets'] == 'shares'
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(distinct_rows(collected), key=lambda row: subset_size(row['subset'])):
        methods.setdefault(row['method'], []).append(row)
    sizes = sorted({subset_size(row['subset']) for row in collected['rows']})
    known = [size * (100 if is_share else 1) for size in sizes if size < math.inf]
    places = dict(zip(sizes, [*known, ALL_IMAGES * max(known, default=1)], strict=False))
    is_single = len(collected['seeds']) == 1
    with drawing(path, 4.2) as figure:
        axis = figure.subplots()
        axis.set_xscale('log')
        for number, rows in enumerate(methods.values()):
            moved = 1.04 ** (number - (len(methods) - 1) / 2)  # keeps bars apart
            drawn = [row for row in rows if len(score_of(row, score))]
            means = [score_of(row, score).mean() for row in drawn]
            bars = [_bars(row, score, is_single=is_single) for row in drawn]
            axis.errorbar(
                [places[subset_size(row['subset'])] * moved for row in drawn],
                means,
                yerr=np.hstack(bars) if bars else None,
                **_method_style(number, rows[0]) | {'linestyle': '-', 'linewidth': 1},
            )
        names = ['all' if size == math.inf else f'{place:,g}' for size, place in places.items()]
        axis.set_xticks([*places.values()], names)
        axis.minorticks_off()
        axis.grid(axis='y')
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, 0), min(high, 1))  # intervals over few seeds may exceed [0, 1]
        axis.set_xlabel('labelled patients (%)' if is_share else 'labelled images')
        axis.set_ylabel(score_title(collected, score))
        first = [rows[0] for rows in methods.values()]
        noise = 'patients, with one seed' if is_single else "seeds, by Student's t"
        _add_method_legend(figure, collected, first, f'Bars: 95 % over {noise}.')


def plot_masks(
    path: str | Path, sweep: Sweep, collected: Collected, score: str | None = None
) -> None:
    """Draw a score by AvgDist (`data.masking.average_distance`) for rows that only change masks.

    Each combination of mask type and mask size has a line.
    """
    (score,) = choose_scores(collected, [score] if score else None)
    results = {row['name']: row for row in collected['rows']}
    lines: dict[str, list[tuple]] = {}
    for row in sweep.mask_rows:
        data, found = expected_config(row, 'simmim').DATA, results[row.name]
        mean, distance = score_of(found, score).mean(), found['average_distance_px']
        if distance is not None and not np.isnan(mean):
            bars = _patient_bars(mean, found['over_patients'].get(score))
            name = f'{data.MASK_TYPE}, {data.MASK_PATCH_SIZE} px'
            lines.setdefault(name, []).append((distance, mean, bars, data.MASK_RATIO))
    with drawing(path, 3.8) as figure:
        axis = figure.subplots()
        for number, (name, points) in enumerate(lines.items()):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            points = sorted(points, key=lambda point: point[0])
            places = zip(*(point[:2] for point in points), strict=True)
            axis.plot(*places, label=name, color=colour, marker=marker, ms=4)
            for distance, mean, bars, ratio in points:
                axis.errorbar(distance, mean, yerr=bars, color=colour, linewidth=0.6)
                note = {'xytext': (4, 3), 'textcoords': 'offset points', 'fontsize': 7}
                axis.annotate(f'{ratio:g}', (distance, mean), color=colour, **note)
        axis.set_xscale('log', base=2)
        axis.xaxis.set_major_formatter('{x:g}')
        axis.grid(axis='y')
        axis.set_xlabel('AvgDist: mean distance from hidden pixels to the nearest visible one (px)')
        axis.set_ylabel(score_title(collected, score))
        figure.legend(loc='outside upper center', ncols=4)
        bars = 'Bars: 95 % over patients, of the mean over seeds, if known.'
        add_note(figure, f'Numbers: masked share. {bars} {NOT_FOR_CLINICAL_USE}')


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


@contextlib.contextmanager
def _panels(path: str | Path, rows: Sequence[Row], note: str) -> Iterator[list[tuple[Row, Axes]]]:
    """Provide a panel for each row, titled with the method, and add a note below."""
    columns = min(COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    with drawing(path, 0.5 + 1.75 * lines) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in panels[len(rows) :]:
            axis.set_axis_off()
        for row, axis in zip(rows, panels, strict=False):
            axis.set_title(row.method, fontsize=9)
        yield [*zip(rows, panels, strict=False)]
        add_note(figure, note)


def _epochs(folder: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl of a run, or return [] without a run."""
    file = folder / 'metrics.jsonl'
    return read_metrics(file) if file.is_file() else []


def _draw_difference(axis: Axes, place: int, difference: Difference) -> None:
    """Draw a difference at height `place` with the known intervals and seeds."""
    part = difference.part
    if part is None:
        style = {'fontsize': 7, 'color': GREY, 'va': 'center'}
        style |= {'bbox': {'facecolor': 'white', 'edgecolor': 'none', 'pad': 1}}
        axis.text(0.01, place, difference.reason, transform=axis.get_yaxis_transform(), **style)
        return
    for noise, style in BARS.items():
        ends = [part[noise]['low'], part[noise]['high']]
        if None not in ends:
            axis.plot(ends, [place] * 2, solid_capstyle='butt', zorder=2, **style)
    if by_seed := part.get('by_seed'):  # results of earlier versions have none
        axis.plot(by_seed, [place + 0.3] * len(by_seed), zorder=2, **BY_SEED)
    style = CLEAR if part['verdict'] in ('above', 'below') else {}
    style = UNKNOWN if part['verdict'] == MISSING else style
    axis.plot(part['difference'], place, linestyle='', zorder=3, **POINT | style)
    if part['seeds'] < difference.seeds:
        note = {'xytext': (0, 5), 'textcoords': 'offset points', 'ha': 'center'}
        axis.annotate(f'{part["seeds"]} seeds', (part['difference'], place), fontsize=6, **note)


def _draw_curves(axis: Axes, row: Row, seeds: Sequence[int], output: str | Path) -> None:
    """Draw the loss by epoch for each seed, and the loss of a network without information."""
    last = []
    for seed in seeds:
        folder = run_folder(output, row.pretraining, row, seed)
        records = [r for r in _epochs(folder) if LOSS in r or L1 in r]
        if not records:
            continue
        last.append(records[-1])
        key = L1 if L1 in last[-1] else LOSS
        # Before training a contrastive method has no batch statistics and no queue.
        known = [r for r in records if key == L1 or r['epoch'] >= 0]
        epochs, values = [r['epoch'] + 1 for r in known], [r[key] for r in known]
        axis.plot(epochs, values, color=COLOUR, linewidth=1)
        nothing = last[-1].get(f'{L1}_mean' if key == L1 else f'{LOSS}_chance')
        if nothing is not None:
            axis.axhline(nothing, color=GREY, linewidth=0.9, linestyle=':')
        axis.set_ylabel('L1 (grey levels)' if key == L1 else 'loss')
    axis.set_xlabel('epochs')
    if not last:
        axis.text(0.5, 0.5, 'no held-out loss', ha='center', transform=axis.transAxes, color=GREY)
    elif RANK in last[0]:
        rank, spread = (np.mean([r[name] for r in last]) for name in (RANK, SPREAD))
        axis.set_title(f'{axis.get_title()}\nrank {rank:.1f}, spread {spread:.2f}', fontsize=8)


def _bars(row: CollectedRow, score: str, *, is_single: bool) -> np.ndarray:
    """Return the lengths [2, 1] of an error bar over patients or seeds, NaN if it is unknown."""
    values = score_of(row, score)
    if is_single:
        bars = _patient_bars(values.mean(), row['over_patients'].get(score))
        return np.full((2, 1), np.nan) if bars is None else bars
    low, high = t_interval(values)
    return np.full((2, 1), (high - low) / 2)


def _patient_bars(mean: float, part: Mapping[str, float | None] | None) -> np.ndarray | None:
    """Return the lengths [2, 1] of an error bar, or None if the interval is unknown."""
    if part is None or part['low'] is None:
        return None
    # With few cases the score may lie outside the percentiles of its resamples.
    return np.maximum([[mean - part['low']], [part['high'] - mean]], 0)


def _method_style(number: int, row: CollectedRow) -> dict[str, Any]:
    """Return the style of the method with this number. Without pre-training, markers are open."""
    colour = COLOURS[number % len(COLOURS)]
    return {
        'color': colour,
        'marker': MARKERS[number % len(MARKERS)],
        'markersize': 4,
        'markerfacecolor': colour if row['pretraining'] else 'white',
        'linestyle': '',
        'zorder': 3,
    }


def _add_method_legend(
    figure: Figure, collected: Collected, rows: Sequence[Mapping[str, Any]], bars: str
) -> None:
    """Add a legend above the figure, and a note that explains the bars below."""
    handles = [Line2D([], [], **_method_style(number, row)) for number, row in enumerate(rows)]
    names = [method_title(row) for row in rows]
    columns = 4 if max(map(len, names)) < LONG_NAME else 3
    style = {'ncols': columns, 'loc': 'outside upper center', 'title': collected['title']}
    figure.legend(handles, names, **style)
    is_pretrained = all(row['pretraining'] for row in rows)
    open_ones = '' if is_pretrained else 'Open markers: not pre-trained. '
    notes = [bars, f'{open_ones}{NOT_FOR_CLINICAL_USE}', *dropping_notes(collected)]
    add_note(figure, ' '.join(notes))


def add_note(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=7, color=GREY, wrap=True)

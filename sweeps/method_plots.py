"""Figures of a sweep of methods: AUROC of every label, and mean AUROC by what is labelled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.comparison import MEANS, t_interval
from sweeps.plots import GREY, drawing
from sweeps.summary import (
    NOT_FOR_CLINICAL_USE,
    Collected,
    choose_scores,
    score_spread,
    score_title,
    subset_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours less yellow, which is hardly seen on white, and a grey; with the markers
# no two of 72 methods are alike. Methods without pre-training have open markers.
COLOURS = (
    '#000000', '#E69F00', '#56B4E9', '#009E73', '#0072B2', '#D55E00', '#CC79A7', '#8C8C8C',
)  # fmt: skip
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '<', '>')
ROW_SHARE = 0.72  # of a label's height that its methods take
HEIGHT = 4.2  # inches
METHOD_HEIGHT, FRAME_HEIGHT = 0.05, 1.5  # inches
FACTOR = 1.04  # between the places of neighbouring methods on the axis of labels
OVER_PATIENTS = 'Bars: 95 % over patients, of the mean over seeds.'
OVER_SEEDS = "Bars: 95 % over seeds, by Student's t."


def plot_labels(path: str | Path, collected: Collected, subset: str | None = None) -> None:
    """Draw AUROC of every label and their means, a point a method, with intervals over patients.

    Args:
        path: of the figure, .png, .pdf or .svg; its folder is made.
        collected: see `sweeps.results.collect`, of a sweep of methods.
        subset: share or number of labelled images; by default the greatest.

    Raises:
        ValueError: for another format, or if there is no such subset.
    """
    subsets = _subsets(collected)
    subset = subsets[-1] if subset is None else subset
    if subset not in subsets:
        raise ValueError(f'{collected["methods"]["subsets"]} {subset}: there are {subsets}')
    rows = [row for row in collected['rows'] if row['subset'] == subset]
    scores = _scores(collected, rows)
    with drawing(path, FRAME_HEIGHT + METHOD_HEIGHT * (len(rows) + 3) * len(scores)) as figure:
        axis = figure.subplots()
        steps = np.linspace(-ROW_SHARE / 2, ROW_SHARE / 2, len(rows))
        for number, (row, step) in enumerate(zip(rows, steps, strict=True)):
            for place, score in enumerate(scores):
                if (mean := score_spread(row, score).mean) is not None:
                    bars = _over_patients(mean, row['over_patients'].get(score))
                    axis.errorbar(mean, place + step, xerr=bars, **_style(number, row))
        axis.set_yticks(range(len(scores)), [_label(collected, rows, score) for score in scores])
        axis.set_ylim(len(scores) - 0.5, -0.5)
        for edge in np.arange(0.5, len(scores) - 1):
            axis.axhline(edge, color='#E0E0E0', linewidth=0.6, zorder=0)
        axis.tick_params(axis='y', length=0)
        axis.axvline(0.5, color=GREY, linewidth=0.9, linestyle=':', zorder=1)
        axis.set_xlabel(f'AUROC; labelled: {subset_title(collected, subset)}; dotted: chance')
        known = any(row['over_patients'] for row in rows)
        _finish(figure, axis, collected, rows, OVER_PATIENTS if known else 'No intervals.')


def plot_subsets(path: str | Path, collected: Collected, score: str | None = None) -> None:
    """Draw a score by what is labelled, on a log axis, a line a method, with intervals over seeds.

    Args:
        path: as in `plot_labels`.
        collected: as in `plot_labels`.
        score: 'mean_of_five', 'mean_of_defined' or a label; by default as in the table.

    Raises:
        ValueError: for another format, or if there is no such score.
    """
    (score,) = choose_scores(collected, [score] if score else None)
    subsets, percent = _subsets(collected), collected['methods']['subsets'] == 'shares'
    places = {name: float(name) * (100 if percent else 1) for name in subsets}
    rows_of = {
        row['method']: [other for other in collected['rows'] if other['method'] == row['method']]
        for row in collected['rows']
    }
    with drawing(path, HEIGHT) as figure:
        axis = figure.subplots()
        axis.set_xscale('log')
        for number, rows in enumerate(rows_of.values()):
            moved = FACTOR ** (number - (len(rows_of) - 1) / 2)
            known = sorted((places[row['subset']], score_spread(row, score)) for row in rows)
            known = [(x, spread) for x, spread in known if spread.values]
            if known:
                means = [spread.mean for _, spread in known]
                bars = [_over_seeds(spread.values) for _, spread in known]
                style = _style(number, rows[0]) | {'linestyle': '-', 'linewidth': 1}
                xs = [x * moved for x, _ in known]
                axis.errorbar(xs, means, yerr=np.concatenate(bars, axis=1), **style)
        axis.set_xticks([*places.values()], [f'{place:,g}' for place in places.values()])
        axis.minorticks_off()
        axis.grid(axis='y', color='#E0E0E0', linewidth=0.6)
        axis.set_axisbelow(True)
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, 0), min(high, 1))  # intervals over few seeds may reach beyond
        axis.set_xlabel('labelled patients (%)' if percent else 'labelled images')
        axis.set_ylabel(score_title(collected, score))
        _finish(figure, axis, collected, [rows[0] for rows in rows_of.values()], OVER_SEEDS)


def _subsets(collected: Collected) -> list[str]:
    """From few to many."""
    return sorted({row['subset'] for row in collected['rows']}, key=float)


def _scores(collected: Collected, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The mean that the table has, then the labels; of a single label no mean."""
    known = dict.fromkeys(
        name
        for row in rows
        for entry in row['seeds']
        if entry['finetune']['figures']
        for name in entry['finetune']['figures']['scores']
        if name not in MEANS
    )
    return [*known] if len(known) == 1 else [*choose_scores(collected), *known]


def _label(collected: Collected, rows: Sequence[Mapping[str, Any]], score: str) -> str:
    name = score_title(collected, score).removeprefix('AUROC, ')
    return name if any(score_spread(row, score).values for row in rows) else f'{name} (n/a)'


def _style(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """Of method number so many."""
    colour = COLOURS[number % len(COLOURS)]
    return {
        'color': colour,
        'marker': MARKERS[number % len(MARKERS)],
        'markersize': 4,
        'markerfacecolor': colour if row['pretraining'] else 'white',
        'elinewidth': 0.9,
        'capsize': 0,
        'linestyle': '',
        'zorder': 3,
    }


def _over_patients(mean: float, part: Mapping[str, float | None] | None) -> np.ndarray | None:
    """[2, 1] lengths of a bar; none where it is not known."""
    if part is None or part['low'] is None:
        return None
    # The mean of resamples is not that of the cases: in a few it lies at the very end.
    return np.array([[max(mean - part['low'], 0)], [max(part['high'] - mean, 0)]])


def _over_seeds(values: Sequence[float]) -> np.ndarray:
    """[2, 1] lengths of a bar; NaN for one seed."""
    low, high = t_interval(values)
    return np.full((2, 1), (high - low) / 2)


def _finish(
    figure: 'Figure',
    axis: 'Axes',
    collected: Collected,
    rows: Sequence[Mapping[str, Any]],
    bars: str,
) -> None:
    """Legend above, and below what the bars are."""
    from matplotlib.lines import Line2D

    axis.spines[['top', 'right']].set_visible(False)
    handles = [Line2D([], [], **_style_of_marker(n, row)) for n, row in enumerate(rows)]
    reference = collected['methods']['reference']
    names = [row['method'] + ' (reference)' * (row['method'] == reference) for row in rows]
    style = {'ncols': 4, 'frameon': False, 'fontsize': 8, 'loc': 'outside upper center'}
    figure.legend(handles, names, title=collected['title'], **style)
    open_ones = '' if all(row['pretraining'] for row in rows) else 'Open: not pre-trained. '
    text = f'{bars} {open_ones}{NOT_FOR_CLINICAL_USE}'
    figure.supxlabel(text, fontsize=7, color=GREY)


def _style_of_marker(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    keys = ('color', 'marker', 'markersize', 'markerfacecolor', 'linestyle')
    return {key: _style(number, row)[key] for key in keys}

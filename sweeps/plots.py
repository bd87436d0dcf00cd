"""The figure of a sweep: reconstruction error and AUROC of its rows, every seed shown."""

import contextlib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.summary import (
    L1_MARKS,
    NOT_FOR_CLINICAL_USE,
    Collected,
    Spread,
    choose_scores,
    count_finished,
    l1_caveat,
    l1_spread,
    row_title,
    score_spread,
    score_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOUR, GREY = '#0072B2', '#595959'
ROW = {'color': COLOUR, 'marker': 'o', 'markersize': 5}
REFERENCE = {'color': '#D55E00', 'marker': 'D', 'markersize': 5.5}
SEED = {'marker': 'o', 'markersize': 3.5, 'markerfacecolor': 'white', 'markeredgewidth': 0.8}
SEED_OFFSET = 6  # points, from the mean
NOTHING = {'color': GREY, 'marker': 'x', 'markersize': 5, 'linestyle': ''}
TRIVIAL = {
    'mean': ('trivial: mean of visible pixels', '--'),
    'linear': ('trivial: interpolation', ':'),
}
WIDTH = 6.3  # inches: the text of a page in A4
NUMBERS_HEIGHT, ROW_HEIGHT, FRAME_HEIGHT = 3.3, 0.17, 1.35  # inches
NAME_WIDTH = 26  # characters of a line
NUMBER = re.compile(r'-?\d+(\.\d+)?', re.ASCII)  # float() takes 1_000, nan and more
METADATA = {'.png': None, '.pdf': {'CreationDate': None}, '.svg': {'Date': None}}
# Text stays text, and the same figure is the same file.
STYLE = {'font.size': 9, 'pdf.fonttype': 42, 'svg.fonttype': 'none', 'svg.hashsalt': 'sweep'}


def plot_sweep(path: str | Path, collected: Collected, score: str | None = None) -> None:
    """Draw held-out L1 and a score side by side: mean and SD over seeds, and each seed.

    Rows whose names are numbers lie on a numeric axis, by powers of two where a size is varied;
    others are a list.

    Args:
        path: of the figure, .png, .pdf or .svg; its folder is made.
        collected: see `sweeps.results.collect`.
        score: 'mean_of_five', 'mean_of_defined' or a label; by default as in the table.

    Raises:
        ValueError: for another format, or if there is no such score.
    """
    (score,) = choose_scores(collected, [score] if score else None)
    spreads = [
        [l1_spread(row) for row in collected['rows']],
        [score_spread(row, score) for row in collected['rows']],
    ]
    is_list = numbers_of(collected) is None
    lines = sum(_name(collected, row).count('\n') + 1.6 for row in collected['rows'])
    height = FRAME_HEIGHT + ROW_HEIGHT * lines if is_list else NUMBERS_HEIGHT
    with drawing(path, height) as figure:
        panels = figure.subplots(1, 2, sharey=is_list)
        for axis, values in zip(panels, spreads, strict=True):
            (_draw_list if is_list else _draw_numbers)(axis, collected, values)
            axis.spines[['top', 'right']].set_visible(False)
        _draw_trivial(panels[0], collected)
        _label_axes(panels, collected, ('held-out L1 (grey levels)', score_title(collected, score)))
        _add_legend(figure, panels, collected)


@contextlib.contextmanager
def drawing(path: str | Path, height: float) -> Iterator['Figure']:
    """A figure as wide as a page and so many inches high, which is written at the end.

    Raises:
        ValueError: for another format than .png, .pdf or .svg.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix not in METADATA:
        raise ValueError(f'{path}: a figure must end in {", ".join(METADATA)}')
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout='constrained')
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200, metadata=METADATA[path.suffix])


def numbers_of(collected: Collected) -> list[float] | None:
    """The rows' names as numbers, each another; None if there is none such for one."""
    names = [row['name'] for row in collected['rows']]
    if not all(NUMBER.fullmatch(name) for name in names):
        return None
    numbers = [float(name) for name in names]
    return numbers if len(set(numbers)) == len(numbers) else None


def _draw_numbers(axis: 'Axes', collected: Collected, spreads: Sequence[Spread]) -> None:
    numbers = numbers_of(collected)
    axis.margins(x=0.08)  # room for the seeds of the last row
    known = sorted((x, s.mean) for x, s in zip(numbers, spreads, strict=True) if s.values)
    axis.plot(*np.array(known).reshape(-1, 2).T, color=COLOUR, linewidth=1, zorder=2)
    for x, row, spread in zip(numbers, collected['rows'], spreads, strict=True):
        style = _style(collected, row)
        if spread.values:
            axis.errorbar(x, spread.mean, yerr=spread.sd, capsize=3, **style)
            seeds = _seed_style(style) | {'transform': _beside(axis, SEED_OFFSET, 0)}
            axis.plot([x] * len(spread.values), spread.values, **seeds)
            axis.update_datalim([(x, value) for value in spread.values])  # those moved do not count
            if len(spread.values) < len(row['seeds']):
                note = {'xytext': (0, 9), 'textcoords': 'offset points', 'ha': 'center'}
                axis.annotate(f'n = {len(spread.values)}', (x, spread.mean), fontsize=7, **note)
        else:
            axis.plot(x, 0.03, transform=axis.get_xaxis_transform(), **NOTHING)
    if _is_size(collected) and min(numbers) > 0:
        axis.set_xscale('log', base=2)
    axis.minorticks_off()
    axis.set_xticks(numbers, [f'{row["name"]} {_mark(row)}'.rstrip() for row in collected['rows']])


def _draw_list(axis: 'Axes', collected: Collected, spreads: Sequence[Spread]) -> None:
    places = range(len(spreads))
    for y, row, spread in zip(places, collected['rows'], spreads, strict=True):
        style = _style(collected, row)
        if spread.values:
            axis.errorbar(spread.mean, y, xerr=spread.sd, capsize=3, **style)
            seeds = _seed_style(style) | {'transform': _beside(axis, 0, -SEED_OFFSET)}
            axis.plot(spread.values, [y] * len(spread.values), **seeds)
            axis.update_datalim([(value, y) for value in spread.values])
        else:
            axis.plot(0.03, y, transform=axis.get_yaxis_transform(), **NOTHING)
    axis.set_yticks(places, [_name(collected, row) for row in collected['rows']])
    axis.set_ylim(len(spreads) - 0.5, -0.5)
    axis.grid(axis='y', color='#E0E0E0', linewidth=0.6)
    axis.set_axisbelow(True)


def _draw_trivial(axis: 'Axes', collected: Collected) -> None:
    """What predictors without a model reach, as a thin line through the rows."""
    numbers = numbers_of(collected)
    for predictor, (name, dashes) in TRIVIAL.items():
        spreads = [l1_spread(row, predictor) for row in collected['rows']]
        known = [spread.mean for spread in spreads if spread.values]
        style = {'color': GREY, 'linewidth': 0.9, 'linestyle': dashes, 'zorder': 1, 'label': name}
        if known and max(known) - min(known) < 0.01 * max(known):
            line = axis.axvline if numbers is None else axis.axhline
            line(np.mean(known), **style)
        elif known and numbers is None:
            ys = [y for y, spread in enumerate(spreads) if spread.values]
            axis.vlines(known, np.array(ys) - 0.4, np.array(ys) + 0.4, **style)
        elif known:
            xs = [x for x, spread in zip(numbers, spreads, strict=True) if spread.values]
            axis.plot(*np.array(sorted(zip(xs, known, strict=True))).T, **style)


def _label_axes(panels: Sequence['Axes'], collected: Collected, titles: Sequence[str]) -> None:
    better = ('lower is better', 'higher is better')
    for axis, title, direction in zip(panels, titles, better, strict=True):
        if numbers_of(collected) is None:
            axis.set_xlabel(f'{title}\n{direction}')
        else:
            axis.set_xlabel(collected['title'])
            axis.set_ylabel(f'{title}\n{direction}')


def _add_legend(figure: 'Figure', panels: Sequence['Axes'], collected: Collected) -> None:
    from matplotlib.lines import Line2D

    styles = {
        'mean ± SD over seeds': ROW,
        'reference': REFERENCE,
        'a seed': SEED | {'color': COLOUR},
    }
    is_known = all(line.get_marker() != NOTHING['marker'] for axis in panels for line in axis.lines)
    styles |= {'': {'linestyle': ''}} if is_known else {'n/a': NOTHING}  # a column has two
    handles = {name: Line2D([], [], **style | {'linestyle': ''}) for name, style in styles.items()}
    handles |= dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    style = {'ncols': 3, 'frameon': False, 'fontsize': 8}
    figure.legend(handles.values(), handles.keys(), loc='outside upper center', **style)
    marks = sorted({_mark(row) for row in collected['rows']} - {''})
    notes = [f'{mark} Held-out L1: see the notes of the table.' for mark in marks]
    figure.supxlabel(' '.join([*notes, NOT_FOR_CLINICAL_USE]), fontsize=7, color=GREY)


def _beside(axis: 'Axes', right_points: float, up_points: float) -> 'Transform':
    """The panel's coordinates, moved: seeds do not hide their mean."""
    from matplotlib.transforms import ScaledTranslation

    moved = ScaledTranslation(right_points / 72, up_points / 72, axis.figure.dpi_scale_trans)
    return axis.transData + moved


def _style(collected: Collected, row: Mapping[str, Any]) -> dict[str, Any]:
    return {**(REFERENCE if row['name'] == collected['reference'] else ROW), 'zorder': 3}


def _seed_style(style: Mapping[str, Any]) -> dict[str, Any]:
    return SEED | {'color': style['color'], 'linestyle': '', 'zorder': 4}


def _name(collected: Collected, row: Mapping[str, Any]) -> str:
    """For the list, in lines; $ would begin a formula."""
    name = f'{row_title(collected, row)} {_mark(row)}'.rstrip().replace('$', r'\$')
    return textwrap.fill(f'{name}{_lacking(row)}', NAME_WIDTH)


def _mark(row: Mapping[str, Any]) -> str:
    """The table's sign for an L1 that is drawn, but does not compare as it stands."""
    return L1_MARKS.get(l1_caveat(row), '') if l1_spread(row).values else ''


def _lacking(row: Mapping[str, Any]) -> str:
    finished, wanted = count_finished(row), len(row['seeds'])
    return '' if finished == wanted else f', {finished} of {wanted} seeds'


def _is_size(collected: Collected) -> bool:
    return any(key.endswith('_SIZE') for keys in collected['keys'].values() for key in keys)

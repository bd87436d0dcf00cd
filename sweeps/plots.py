"""The figure of a sweep: reconstruction error and AUROC of its rows, every seed shown."""

from __future__ import annotations

import contextlib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config import Config
from engine.run_record import read_record
from logger import read_metrics
from models.contrastive import METHODS
from sweeps.files import Row, Sweep, load_config, run_folder
from sweeps.results import (
    L1_MARKS,
    MEANS,
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
    subset_title,
    t_interval,
)

# ==== sweeps.plots: The figure of a sweep: reconstruction error and AUROC of its rows, every seed shown.

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


# ==== sweeps.curve_plots: The figure of what a sweep of methods learned: held-out losses of its pre-trainings by epoch.

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
PANEL_HEIGHT, FRAME_HEIGHT_curve_plots = 1.75, 0.5  # inches
LOSS, L1, SPREAD, RANK = (
    *('holdout_loss', 'holdout_l1_grey'),
    *('holdout_feature_spread', 'holdout_effective_rank'),
)
COMPARED = 'holdout_images_compared'
NOTE = (
    'A line a seed. Dotted: a network that tells nothing (of masked images the mean of visible '
    'pixels). Losses of different methods do not compare. Spread and rank: of held-out features at '
    'the end; below 0.05 or 2 they have collapsed.'
)


def plot_curves(path: str | Path, sweep: Sweep, seeds: Sequence[int], output: str | Path) -> None:
    """Draw the held-out loss of each pre-training by epoch, a line a seed, from the run folders.

    One without such losses (not begun, nobody held out, patches normalised) has an empty panel.

    Args:
        path: of the figure, .png, .pdf or .svg; its folder is made.
        sweep: one of methods.
        seeds: of the runs.
        output: root of the run folders.

    Raises:
        ValueError: for another format.
    """
    rows = {row.pretrain_run: row for row in sweep.methods.values() if row.pretrain_run}
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    with drawing(path, FRAME_HEIGHT_curve_plots + PANEL_HEIGHT * lines) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in panels[len(rows) :]:
            axis.set_axis_off()
        for axis, row in zip(panels, rows.values(), strict=False):
            axis.set_title(row.method, fontsize=9)
            _draw(axis, _curves(output, row, seeds))
            axis.spines[['top', 'right']].set_visible(False)
        figure.supxlabel(NOTE, fontsize=7, color=GREY, wrap=True)


def _curves(
    output: str | Path, row: Row, seeds: Sequence[int]
) -> list[tuple[list[dict[str, Any]], float | None]]:
    """Of each seed the epochs' figures, and the loss of a network that tells nothing."""
    found = []
    for seed in seeds:
        folder = run_folder(output, row.pretraining, row, seed)
        if folder is None or not (folder / 'metrics.jsonl').is_file():
            continue
        records = [r for r in read_metrics(folder / 'metrics.jsonl') if LOSS in r or L1 in r]
        if not records:
            continue
        if L1 in records[-1]:
            nothing = records[-1].get(f'{L1}_mean')
        else:
            nothing = _chance_of(folder, records[-1])
        found.append((records, nothing))
    return found


def _chance_of(folder: Path, record: dict[str, Any]) -> float | None:
    config = load_config(folder)
    # Logs of earlier versions say nothing of it: a batch, if as many are held out.
    batch = config.DATA.BATCH_SIZE * (read_record(folder) or {}).get('processes', 1)
    return chance(config, record.get(COMPARED, batch))


def chance(config: Config, images: int) -> float | None:
    """Contrastive loss where all of so many images that are compared look alike.

    None for a method without such a value.
    """
    return METHODS[config.CONTRASTIVE.METHOD].chance_loss(config.CONTRASTIVE, images)


def _draw(axis: 'Axes', curves: Sequence[tuple[list[dict[str, Any]], float | None]]) -> None:
    if not curves:
        axis.text(0.5, 0.5, 'no held-out loss', ha='center', transform=axis.transAxes, color=GREY)
        return
    last = [records[-1] for records, _ in curves]
    key = L1 if L1 in last[0] else LOSS
    for records, nothing in curves:
        # Before the first epoch there is no batch norm, no queue: that loss may be anything.
        known = [r for r in records if key == L1 or r['epoch'] >= 0]
        axis.plot(
            [r['epoch'] + 1 for r in known], [r[key] for r in known], color=COLOUR, linewidth=1
        )
        if nothing is not None:
            axis.axhline(nothing, color=GREY, linewidth=0.9, linestyle=':')
    axis.set_xlabel('epochs')
    axis.set_ylabel('L1 (grey levels)' if key == L1 else 'loss')
    if RANK in last[0]:
        rank, spread = (np.mean([r[name] for r in last]) for name in (RANK, SPREAD))
        text = f'rank {rank:.1f}, spread {spread:.2f}'
        axis.set_title(f'{axis.get_title()}\n{text}', fontsize=8)


# ==== sweeps.method_plots: Figures of a sweep of methods: AUROC of every label, and mean AUROC by what is labelled.

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
METHOD_HEIGHT, FRAME_HEIGHT_method_plots = 0.05, 1.5  # inches
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
    with drawing(
        path, FRAME_HEIGHT_method_plots + METHOD_HEIGHT * (len(rows) + 3) * len(scores)
    ) as figure:
        axis = figure.subplots()
        steps = np.linspace(-ROW_SHARE / 2, ROW_SHARE / 2, len(rows))
        for number, (row, step) in enumerate(zip(rows, steps, strict=True)):
            for place, score in enumerate(scores):
                if (mean := score_spread(row, score).mean) is not None:
                    bars = _over_patients(mean, row['over_patients'].get(score))
                    axis.errorbar(mean, place + step, xerr=bars, **_style_method_plots(number, row))
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
                style = _style_method_plots(number, rows[0]) | {'linestyle': '-', 'linewidth': 1}
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


def _style_method_plots(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
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
    return {key: _style_method_plots(number, row)[key] for key in keys}

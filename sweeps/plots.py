"""Figures of a sweep: rows and seeds, learning curves, AUROC by label and by labelled share."""

from __future__ import annotations

import contextlib
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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

# Colours of Okabe and Ito without yellow, which colour-blind readers can tell apart.
COLOURS = (
    '#000000', '#E69F00', '#56B4E9', '#009E73', '#0072B2', '#D55E00', '#CC79A7', '#8C8C8C',
)  # fmt: skip
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '<', '>')
COLOUR, GREY, LIGHT = '#0072B2', '#595959', '#E0E0E0'
ROW = {'color': COLOUR, 'marker': 'o', 'markersize': 5}
REFERENCE = {'color': '#D55E00', 'marker': 'D', 'markersize': 5.5}
SEED = {'marker': 'o', 'markersize': 3.5, 'markerfacecolor': 'white', 'markeredgewidth': 0.8}
SEED_OFFSET = 6  # points between a mean and its seeds
TRIVIAL = {
    'mean': ('trivial: mean of visible pixels', '--'),
    'linear': ('trivial: interpolation', ':'),
}
WIDTH = 6.3  # inches: the text of an A4 page
NUMBER = re.compile(r'-?\d+(\.\d+)?', re.ASCII)  # float() accepts 1_000, nan and more
METADATA = {'.png': None, '.pdf': {'CreationDate': None}, '.svg': {'Date': None}}
# Text stays text, and the same figure gives the same file.
STYLE = {'font.size': 9, 'pdf.fonttype': 42, 'svg.fonttype': 'none', 'svg.hashsalt': 'sweep'}
STYLE |= {'axes.spines.top': False, 'axes.spines.right': False, 'axes.axisbelow': True}
STYLE |= {'legend.frameon': False, 'legend.fontsize': 8, 'grid.color': LIGHT}
LOSS, L1, COMPARED = 'holdout_loss', 'holdout_l1_grey', 'holdout_images_compared'
SPREAD, RANK = 'holdout_feature_spread', 'holdout_effective_rank'
CURVES_NOTE = (
    'One line per seed. Dotted: a network without information (for masked images, the mean of the '
    'visible pixels). Losses of different methods cannot be compared. Spread and rank of held-out '
    'features at the end: below 0.05 or 2 they have collapsed.'
)
COLUMNS = 3  # panels of the learning curves side by side


def plot_sweep(path: str | Path, collected: Collected, score: str | None = None) -> None:
    """Draw held-out L1 and a score: mean and standard deviation over seeds, and each seed.

    Rows whose names are numbers lie on a numeric axis (by powers of two if a size is varied);
    other rows are a list.

    Args:
        path: Path of the figure, .png, .pdf or .svg; its folder is created.
        collected: See `sweeps.results.collect`.
        score: 'mean_of_five', 'mean_of_defined' or a label; by default the score of the table.

    Raises:
        ValueError: If the format or the score is unknown.
    """
    (score,) = choose_scores(collected, [score] if score else None)
    rows, numbers = collected['rows'], row_numbers(collected)
    spreads = [[l1_spread(row) for row in rows], [score_spread(row, score) for row in rows]]
    titles = ('held-out L1 (grey levels)\nlower is better',
              f'{score_title(collected, score)}\nhigher is better')  # fmt: skip
    names = [_list_name(collected, row) for row in rows]
    lines = sum(name.count('\n') + 1.6 for name in names)
    with _drawing(path, 1.35 + 0.17 * lines if numbers is None else 3.3) as figure:
        panels = figure.subplots(1, 2, sharey=numbers is None)
        for axis, values, title in zip(panels, spreads, titles, strict=True):
            _draw_rows(axis, collected, values)
            if numbers is None:
                axis.set_xlabel(title)
                axis.set_yticks(range(len(rows)), names)
                axis.set_ylim(len(rows) - 0.5, -0.5)
                axis.grid(axis='y')
            else:
                axis.set_xlabel(collected['title'])
                axis.set_ylabel(title)
                if min(numbers) > 0 and _varies_size(collected):
                    axis.set_xscale('log', base=2)
                axis.minorticks_off()
                axis.margins(x=0.08)
                axis.set_xticks(numbers, [f'{r["name"]} {_mark(r)}'.rstrip() for r in rows])
        _draw_trivial(panels[0], collected)
        _add_row_legend(figure, panels[0], collected)


def plot_curves(path: str | Path, sweep: Sweep, seeds: Sequence[int], output: str | Path) -> None:
    """Draw the held-out loss of each pre-training by epoch, one line per seed, from run folders.

    A pre-training without such a loss has an empty panel.

    Args:
        path: As in `plot_sweep`.
        sweep: A sweep of methods.
        seeds: Seeds of the runs.
        output: Root of the run folders.
    """
    rows = {row.pretrain_run: row for row in sweep.methods.values() if row.pretrain_run}
    columns = min(COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    with _drawing(path, 0.5 + 1.75 * lines) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in panels[len(rows) :]:
            axis.set_axis_off()
        for axis, row in zip(panels, rows.values(), strict=False):
            axis.set_title(row.method, fontsize=9)
            _draw_curves(axis, _curves(output, row, seeds))
        figure.supxlabel(CURVES_NOTE, fontsize=7, color=GREY, wrap=True)


def plot_labels(path: str | Path, collected: Collected, subset: str | None = None) -> None:
    """Draw AUROC of every label and their mean, one point per method, with patient intervals.

    Args:
        path: As in `plot_sweep`.
        collected: See `sweeps.results.collect`, of a sweep of methods.
        subset: Share or number of labelled images; by default the greatest.

    Raises:
        ValueError: If the format or the subset is unknown.
    """
    subsets = sorted({row['subset'] for row in collected['rows']}, key=float)
    subset = subsets[-1] if subset is None else subset
    if subset not in subsets:
        raise ValueError(f'--subset must be one of {subsets}, got {subset!r}')
    rows = [row for row in collected['rows'] if row['subset'] == subset]
    scores = _label_scores(collected, rows)
    with _drawing(path, 1.5 + 0.05 * (len(rows) + 3) * len(scores)) as figure:
        axis = figure.subplots()
        steps = np.linspace(-0.36, 0.36, len(rows))
        for number, (row, step) in enumerate(zip(rows, steps, strict=True)):
            for place, score in enumerate(scores):
                if (mean := score_spread(row, score).mean) is not None:
                    bars = _patient_bars(mean, row['over_patients'].get(score))
                    axis.errorbar(mean, place + step, xerr=bars, **_method_style(number, row))
        names = [score_title(collected, score).removeprefix('AUROC, ') for score in scores]
        axis.set_yticks(range(len(scores)), names)
        axis.set_ylim(len(scores) - 0.5, -0.5)
        for edge in np.arange(0.5, len(scores) - 1):
            axis.axhline(edge, color=LIGHT, linewidth=0.6, zorder=0)
        axis.axvline(0.5, color=GREY, linewidth=0.9, linestyle=':', zorder=1)
        axis.set_xlabel(f'AUROC; labelled: {subset_title(collected, subset)}; dotted: chance')
        known = any(row['over_patients'] for row in rows)
        bars = 'Bars: 95 % over patients, of the mean over seeds.' if known else 'No intervals.'
        _add_method_legend(figure, collected, rows, bars)


def plot_subsets(path: str | Path, collected: Collected, score: str | None = None) -> None:
    """Draw a score by the labelled share, one line per method, with intervals over seeds.

    Args:
        path: As in `plot_sweep`.
        collected: As in `plot_labels`.
        score: As in `plot_sweep`.

    Raises:
        ValueError: If the format or the score is unknown.
    """
    (score,) = choose_scores(collected, [score] if score else None)
    is_share = collected['methods']['subsets'] == 'shares'
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(collected['rows'], key=lambda row: float(row['subset'])):
        methods.setdefault(row['method'], []).append(row)
    places = {r['subset']: float(r['subset']) * (100 if is_share else 1) for r in collected['rows']}
    with _drawing(path, 4.2) as figure:
        axis = figure.subplots()
        axis.set_xscale('log')
        for number, rows in enumerate(methods.values()):
            moved = 1.04 ** (number - (len(methods) - 1) / 2)  # bars do not hide each other
            known = [(places[row['subset']] * moved, score_spread(row, score)) for row in rows]
            known = [(x, spread) for x, spread in known if spread.values]
            bounds = np.array([t_interval(spread.values) for _, spread in known]).reshape(-1, 2)
            axis.errorbar(
                [x for x, _ in known],
                [spread.mean for _, spread in known],
                yerr=(bounds[:, 1] - bounds[:, 0]) / 2,
                **_method_style(number, rows[0]) | {'linestyle': '-', 'linewidth': 1},
            )
        axis.set_xticks([*places.values()], [f'{place:,g}' for place in places.values()])
        axis.minorticks_off()
        axis.grid(axis='y')
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, 0), min(high, 1))  # intervals over few seeds reach beyond
        axis.set_xlabel('labelled patients (%)' if is_share else 'labelled images')
        axis.set_ylabel(score_title(collected, score))
        first = [rows[0] for rows in methods.values()]
        _add_method_legend(figure, collected, first, "Bars: 95 % over seeds, by Student's t.")


def row_numbers(collected: Collected) -> list[float] | None:
    """The rows' names as different numbers; None if they are not numbers."""
    names = [row['name'] for row in collected['rows']]
    if not all(NUMBER.fullmatch(name) for name in names):
        return None
    numbers = [float(name) for name in names]
    return numbers if len(set(numbers)) == len(numbers) else None


def chance(config: Config, images: int) -> float | None:
    """Contrastive loss if all of the compared images look alike; None if the method has none."""
    return METHODS[config.CONTRASTIVE.METHOD].chance_loss(config.CONTRASTIVE, images)


@contextlib.contextmanager
def _drawing(path: str | Path, height: float) -> Iterator[Any]:
    """A figure as wide as a page, `height` inches high, which is saved at the end."""
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


def _draw_rows(axis: Any, collected: Collected, spreads: Sequence[Spread]) -> None:
    """Means with standard deviations and seeds, along x for numbers and along y for a list."""
    from matplotlib.transforms import ScaledTranslation

    numbers = row_numbers(collected)
    places = range(len(spreads)) if numbers is None else numbers
    offset = (0, -SEED_OFFSET) if numbers is None else (SEED_OFFSET, 0)
    moved = ScaledTranslation(*(points / 72 for points in offset), axis.figure.dpi_scale_trans)

    def xy(place: float, values: Any) -> tuple:
        return (values, place) if numbers is None else (place, values)

    if numbers is not None:
        known = sorted((x, s.mean) for x, s in zip(numbers, spreads, strict=True) if s.values)
        axis.plot(*np.array(known).reshape(-1, 2).T, color=COLOUR, linewidth=1, zorder=2)
    for place, row, spread in zip(places, collected['rows'], spreads, strict=True):
        style = REFERENCE if row['name'] == collected['reference'] else ROW
        error = {'xerr' if numbers is None else 'yerr': spread.sd}
        if spread.values:
            axis.errorbar(*xy(place, spread.mean), **error, capsize=3, zorder=3, **style)
        for value in spread.values:
            seed = SEED | {'color': style['color'], 'zorder': 4}
            axis.plot(*xy(place, value), transform=axis.transData + moved, **seed)
            axis.update_datalim([xy(place, value)])  # moved points do not count
        if numbers is not None and 0 < len(spread.values) < len(row['seeds']):
            note = {'xytext': (0, 9), 'textcoords': 'offset points', 'ha': 'center'}
            axis.annotate(f'n = {len(spread.values)}', (place, spread.mean), fontsize=7, **note)


def _draw_trivial(axis: Any, collected: Collected) -> None:
    """The error of predictors without a model, as a line through the rows."""
    numbers = row_numbers(collected)
    for predictor, (name, dashes) in TRIVIAL.items():
        spreads = [l1_spread(row, predictor) for row in collected['rows']]
        means = np.array([np.nan if s.mean is None else s.mean for s in spreads])
        style = {'color': GREY, 'linewidth': 0.9, 'linestyle': dashes, 'zorder': 1, 'label': name}
        if np.isnan(means).all():
            continue
        if np.nanmax(means) - np.nanmin(means) < 0.01 * np.nanmax(means):
            (axis.axvline if numbers is None else axis.axhline)(np.nanmean(means), **style)
        elif numbers is None:
            ys = np.arange(len(means))
            axis.vlines(means, ys - 0.4, ys + 0.4, **style)
        else:
            order = np.argsort(numbers)
            axis.plot(np.array(numbers)[order], means[order], **style)


def _add_row_legend(figure: Any, axis: Any, collected: Collected) -> None:
    from matplotlib.lines import Line2D

    styles = {'mean ± SD over seeds': ROW, 'reference': REFERENCE, 'seed': SEED | {'color': COLOUR}}
    handles = {name: Line2D([], [], **style, linestyle='') for name, style in styles.items()}
    handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc='outside upper center', ncols=3)
    marks = sorted({_mark(row) for row in collected['rows']} - {''})
    texts = [f'{mark} Held-out L1: see the notes of the table.' for mark in marks]
    figure.supxlabel(' '.join([*texts, NOT_FOR_CLINICAL_USE]), fontsize=7, color=GREY)


def _list_name(collected: Collected, row: Mapping[str, Any]) -> str:
    finished, wanted = count_finished(row), len(row['seeds'])
    lacking = '' if finished == wanted else f', {finished} of {wanted} seeds'
    return textwrap.fill(f'{row_title(collected, row)} {_mark(row)}'.rstrip() + lacking, 26)


def _mark(row: Mapping[str, Any]) -> str:
    """The table's sign for an L1 that is drawn but cannot be compared directly."""
    return L1_MARKS.get(l1_caveat(row), '') if l1_spread(row).values else ''


def _varies_size(collected: Collected) -> bool:
    return any(key.endswith('_SIZE') for keys in collected['keys'].values() for key in keys)


def _curves(
    output: str | Path, row: Row, seeds: Sequence[int]
) -> list[tuple[list[dict[str, Any]], float | None]]:
    """For each seed the figures by epoch, and the loss of a network without information."""
    found = []
    for seed in seeds:
        folder = run_folder(output, row.pretraining, row, seed)
        file = folder / 'metrics.jsonl'
        read = read_metrics(file) if file.is_file() else []
        if not (records := [r for r in read if LOSS in r or L1 in r]):
            continue
        last = records[-1]
        if L1 in last:
            nothing = last.get(f'{L1}_mean')
        else:
            config = load_config(folder)
            # Logs of earlier versions do not contain it: one batch, if that many are held out.
            batch = config.DATA.BATCH_SIZE * (read_record(folder) or {}).get('processes', 1)
            nothing = chance(config, last.get(COMPARED, batch))
        found.append((records, nothing))
    return found


def _draw_curves(axis: Any, curves: Sequence[tuple[list[dict[str, Any]], float | None]]) -> None:
    if not curves:
        axis.text(0.5, 0.5, 'no held-out loss', ha='center', transform=axis.transAxes, color=GREY)
        return
    last = [records[-1] for records, _ in curves]
    key = L1 if L1 in last[0] else LOSS
    for records, nothing in curves:
        # Before the first epoch there are no batch statistics and no queue.
        known = [r for r in records if key == L1 or r['epoch'] >= 0]
        epochs, values = [r['epoch'] + 1 for r in known], [r[key] for r in known]
        axis.plot(epochs, values, color=COLOUR, linewidth=1)
        if nothing is not None:
            axis.axhline(nothing, color=GREY, linewidth=0.9, linestyle=':')
    axis.set_xlabel('epochs')
    axis.set_ylabel('L1 (grey levels)' if key == L1 else 'loss')
    if RANK in last[0]:
        rank, spread = (np.mean([r[name] for r in last]) for name in (RANK, SPREAD))
        axis.set_title(f'{axis.get_title()}\nrank {rank:.1f}, spread {spread:.2f}', fontsize=8)


def _label_scores(collected: Collected, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The mean of the table and all labels; of a single label no mean."""
    figures = [entry['finetune']['figures'] for row in rows for entry in row['seeds']]
    known = dict.fromkeys(score for f in figures if f for score in f['scores'])
    labels = [score for score in known if score not in MEANS]
    return labels if len(labels) == 1 else [*choose_scores(collected), *labels]


def _patient_bars(mean: float, part: Mapping[str, float | None] | None) -> np.ndarray | None:
    """[2, 1] lengths of a bar; None if the interval is unknown."""
    if part is None or part['low'] is None:
        return None
    # With few cases the score may lie outside the percentiles of its resamples.
    return np.maximum([[mean - part['low']], [part['high'] - mean]], 0)


def _method_style(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """Style of a method by its number; methods without pre-training have open markers."""
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
    figure: Any, collected: Collected, rows: Sequence[Mapping[str, Any]], bars: str
) -> None:
    """Legend above the figure, and a line below that explains the bars."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **_method_style(number, row)) for number, row in enumerate(rows)]
    reference = collected['methods']['reference']
    names = [row['method'] + ' (reference)' * (row['method'] == reference) for row in rows]
    style = {'ncols': 4, 'loc': 'outside upper center', 'title': collected['title']}
    figure.legend(handles, names, **style)
    open_ones = '' if all(row['pretraining'] for row in rows) else 'Open: not pre-trained. '
    figure.supxlabel(f'{bars} {open_ones}{NOT_FOR_CLINICAL_USE}', fontsize=7, color=GREY)

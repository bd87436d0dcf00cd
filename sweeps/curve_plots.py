"""The figure of what a sweep of methods learned: held-out losses of its pre-trainings by epoch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config import Config
from logger import read_metrics
from provenance import read_record
from sweeps.plots import COLOUR, GREY, drawing
from sweeps.rows import Row, Sweep, run_folder
from sweeps.run_options import load_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
PANEL_HEIGHT, FRAME_HEIGHT = 1.75, 0.5  # inches
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
    with drawing(path, FRAME_HEIGHT + PANEL_HEIGHT * lines) as figure:
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
    options = config.CONTRASTIVE
    return {
        'moco': math.log(1 + options.QUEUE_SIZE),
        'simclr': math.log(2 * images - 1),
        'swav': math.log(options.NUM_PROTOTYPES),
    }.get(options.METHOD)


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

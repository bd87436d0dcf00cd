"""Learning curves of the runs of a sweep, from the metrics that each run has recorded."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from config import PROBES
from data.tables.records import task_of
from logger import read_metrics
from sweeps.files import Row, Sweep, expected_config, run_folder, subset_size
from sweeps.plots import COLOUR, add_note, drawing, mode_of, paged
from sweeps.tables import subset_title
from system.pages import TALLEST

LOSSES = {  # metrics of an epoch that are drawn if a run has them -> dashes
    'holdout_l1_grey': '-',
    'holdout_loss': '-',
    'loss': '--',
}
DASHES = {'-': 'Solid: held-out patients.', '--': 'Dashed: training images.'}
CONTRASTIVE_NOTE = (
    'Contrastive losses depend on the number of images compared at once, which differs between '
    'methods, and between training and held-out images.'
)
COLUMNS, PANEL = 3, 1.95  # columns of panels with learning curves, and their height
LONG_PANEL = 20  # letters in a line of a title


def rows_with_curves(
    sweep: Sweep, seeds: Sequence[int], output: str | Path, *, pretrain: bool
) -> list[Row]:
    """Return a row for each pre-training, or each fine-tuning with the most labels, that has run.

    Probes and baselines without an encoder are left out, because they have no epochs.
    """
    rows: dict[str, Row] = {}  # by run, which rows may share
    for row in sweep.rows:
        is_trained = bool(row.pretraining) if pretrain else mode_of(row) not in PROBES
        if is_trained and any(_records(output, row, seed, pretrain=pretrain) for seed in seeds):
            rows.setdefault(row.pretrain_run if pretrain else row.run, row)
    if pretrain or not rows:
        return [*rows.values()]
    most = max((row.subset for row in rows.values()), key=lambda name: subset_size(name or 'all'))
    return [row for row in rows.values() if row.subset == most]


def _records(output: str | Path, row: Row, seed: int, *, pretrain: bool) -> list[dict[str, Any]]:
    """Read the records of the epochs of a run that curves show, [] if it has not run."""
    stage = row.pretraining if pretrain else 'finetune'
    metrics = run_folder(output, stage, row, seed) / 'metrics.jsonl'
    records = read_metrics(metrics) if metrics.is_file() else []
    if stage == 'contrastive':  # before training, MoCo has nothing to compare with
        records = [record for record in records if record['epoch'] >= 0]
    return records


def plot_curves(
    path: str | Path,
    sweep: Sweep,
    seeds: Sequence[int],
    output: str | Path,
    *,
    pretrain: bool,
    scores: pd.DataFrame | None = None,
) -> list[Path]:
    """Draw the losses of each of the `rows_with_curves` by epoch.

    `scores` is the long table of the sweep, if it is known.
    """
    chosen = rows_with_curves(sweep, seeds, output, pretrain=pretrain)
    files = []
    for file, page in paged(path, chosen, COLUMNS * int((TALLEST - 0.6) / PANEL)):
        columns = min(COLUMNS, len(page))
        lines = math.ceil(len(page) / columns)
        with drawing(file, 0.6 + PANEL * lines) as figure:
            panels = figure.subplots(lines, columns, squeeze=False).ravel()
            for axis in panels[len(page) :]:
                axis.set_axis_off()
            for row, axis in zip(page, panels, strict=False):
                title = sweep.titles.get(row.method, row.method or row.name)
                axis.set_title(fill(sweep.titles.get(row.name, title), LONG_PANEL), fontsize=9)
                for seed in seeds:
                    _draw_losses(axis, _records(output, row, seed, pretrain=pretrain))
                axis.set_xlabel('epochs')
            is_contrastive = pretrain and any(row.pretraining == 'contrastive' for row in page)
            drawn = {line.get_linestyle() for axis in panels for line in axis.lines}
            notes = ['One line per seed.', *(DASHES[style] for style in DASHES if style in drawn)]
            notes += [CONTRASTIVE_NOTE] if is_contrastive else []
            labelled = '' if pretrain else subset_title(sweep, page[0].subset)
            notes += [f'Labelled: {labelled}.'] if labelled else []
            notes += [] if pretrain else _other_losses(page)
            add_note(figure, ' '.join(notes), scores, is_score=False)
        files.append(file)
    return files


def _other_losses(rows: Sequence[Row]) -> list[str]:
    """Say which losses in training are not that of held-out patients, beside which they are."""
    configs = [expected_config(row, 'finetune') for row in rows]
    pairs = {(config.LOSS.NAME, task_of(config).loss) for config in configs}
    return [
        f'Training images have another loss ({name}) than held-out patients ({other}).'
        for name, other in sorted(pairs)
        if name != other
    ]


def _draw_losses(axis: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw the losses of a run by epoch, from the records of metrics.jsonl."""
    names = [name for name in LOSSES if any(r.get(name) is not None for r in records)]
    # The error in grey levels has another scale than the losses.
    for name in names[:1] if names[:1] == ['holdout_l1_grey'] else names:
        known = {r['epoch'] + 1: r[name] for r in records if r.get(name) is not None}
        axis.plot([*known], [*known.values()], LOSSES[name], color=COLOUR, linewidth=1)
        axis.set_ylabel('L1 (grey levels)' if name == 'holdout_l1_grey' else 'loss')

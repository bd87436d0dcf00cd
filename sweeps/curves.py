"""Learning curves of the runs of a sweep, from the metrics that each run has recorded."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from config import PROBES
from data.tables.records import task_of
from logger import read_metrics
from sweeps.files import Row, Sweep, expected_config, run_folder, subset_size
from sweeps.plots import COLOUR, SIGNIFICANT_COLOUR, add_note, drawing, mode_of, paged, span_of
from sweeps.tables import subset_title
from system.pages import TALLEST, listed

OWN_L1, CHANCE = 'holdout_l1_grey', 'holdout_loss_chance'
LOSSES = {
    OWN_L1: '-',
    'holdout_loss': '-',
    'loss': '--',
    CHANCE: ':',
}  # metric of an epoch -> dashes
DRAWN = {  # dashes -> their meaning
    '-': 'Solid: held-out patients.',
    '--': 'Dashed: training images.',
    ':': 'Dotted: chance, the held-out loss of features that tell no images apart.',
}
CHANCE_LINE = {'linestyle': ':', 'color': SIGNIFICANT_COLOUR, 'linewidth': 1.2, 'zorder': 1}
SHARED = 'Panels with the same kind of loss share the axis.'
OWN_L1_TITLE = 'L1, own masks\n(grey levels)'
OWN_L1_NOTE = (
    'Each row is measured under its own masks, so rows with other masks cannot be compared here: '
    'tables have the error under shared masks.'
)
CONTRASTIVE_NOTE = (
    'Contrastive losses depend on the number of images compared at once, which differs between '
    'methods, and between training and held-out images.'
)
FARTHEST = 5  # a loss before training that is so many times that of the epochs is not on the axis
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
    """Read the records with losses of the epochs of a run, [] if it has not run."""
    stage = row.pretraining if pretrain else 'finetune'
    metrics = run_folder(output, stage, row, seed) / 'metrics.jsonl'
    records = read_metrics(metrics) if metrics.is_file() else []
    records = [r for r in records if any(r.get(name) is not None for name in LOSSES)]
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
    """Draw the mean losses of each of the `rows_with_curves` by epoch, with a band over the seeds.

    Panels whose losses have the same unit share their axis, also on several pages. `scores` is the
    long table of the sweep, if it is known.
    """
    chosen = rows_with_curves(sweep, seeds, output, pretrain=pretrain)
    titles, found, units = {}, {}, {}
    for row in chosen:
        title = sweep.titles.get(row.method, row.method or row.name)
        titles[row.name] = sweep.titles.get(row.name, title)
        runs = [_records(output, row, seed, pretrain=pretrain) for seed in seeds]
        found[row.name] = _losses_of(records for records in runs if records)
        units[row.name] = _unit_of(row, found[row.name], pretrain=pretrain)
    spans = {}  # unit -> limits of the axis
    for unit in units.values():
        tables = [found[name] for name in found if units[name] == unit]
        shown = pd.concat([table[~_is_beyond(table)] for table in tables])
        spans[unit] = span_of(shown[['low', 'high']])
    has_band = any(table['seeds'].max() > 1 for table in found.values())
    files = []
    for file, page in paged(path, chosen, COLUMNS * int((TALLEST - 0.6) / PANEL)):
        columns = min(COLUMNS, len(page))
        lines = math.ceil(len(page) / columns)
        with drawing(file, 0.6 + PANEL * lines) as figure:
            figure.get_layout_engine().set(wspace=0.08)
            panels = figure.subplots(lines, columns, squeeze=False).ravel()
            for axis in panels[len(page) :]:
                axis.set_axis_off()
            for row, axis in zip(page, panels, strict=False):
                axis.set_title(fill(titles[row.name], LONG_PANEL), fontsize=9)
                _draw_losses(axis, found[row.name])
                axis.set_ylim(*spans[units[row.name]])
                axis.set_xlabel('epochs')
                is_error = found[row.name]['metric'].iloc[0] == OWN_L1
                unit = OWN_L1_TITLE if is_error else 'mean loss' if has_band else 'loss'
                axis.set_ylabel(unit)
            shown = pd.concat([found[row.name] for row in page])
            notes = [_about_seeds(shown)]
            notes += [words for name, words in DRAWN.items() if name in {*shown['drawn']}]
            worse = [titles[row.name] for row in page if _is_worse_than_chance(found[row.name])]
            notes += [f'Worse than chance at the end: {listed(worse)}.'] if worse else []
            beyond = [titles[row.name] for row in page if _is_beyond(found[row.name]).any()]
            notes += [f'Before training beyond the axis: {listed(beyond)}.'] if beyond else []
            notes += [SHARED] if len({*units.values()}) < len(units) else []
            notes += [OWN_L1_NOTE] if OWN_L1 in {*shown['metric']} else []
            is_contrastive = pretrain and any(row.pretraining == 'contrastive' for row in page)
            notes += [CONTRASTIVE_NOTE] if is_contrastive else []
            labelled = '' if pretrain else subset_title(sweep, page[0].subset)
            notes += [f'Labelled: {labelled}.'] if labelled else []
            notes += [] if pretrain else _other_losses(page)
            add_note(figure, ' '.join(notes), scores, sweep)
        files.append(file)
    return files


def _losses_of(runs: Iterable[Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """Return each loss by epoch, with its mean, lowest and highest value over runs of one row.

    The error in grey levels has another scale than the losses, which are then left out.
    """
    lines = pd.concat([pd.DataFrame(records) for records in runs])
    names = [name for name in LOSSES if name in lines and lines[name].notna().any()]
    names = [OWN_L1] if OWN_L1 in names else names
    losses = lines.melt('epoch', names, 'metric').dropna().groupby(['metric', 'epoch'])['value']
    table = losses.agg(mean='mean', low='min', high='max', seeds='size').loc[names].reset_index()
    return table.assign(drawn=table['metric'].map(LOSSES), epoch=table['epoch'] + 1)


def _unit_of(row: Row, losses: pd.DataFrame, *, pretrain: bool) -> tuple[str, ...]:
    """Return in what the losses of a row are measured. Only those with the same can be compared."""
    config = expected_config(row, row.pretraining if pretrain else 'finetune')
    if not pretrain:
        return config.LOSS.NAME, task_of(config).loss
    if row.pretraining == 'contrastive':
        return (config.CONTRASTIVE.METHOD,)
    if OWN_L1 in {*losses['metric']}:
        return (OWN_L1,)
    return config.MODEL.SIMMIM.LOSS, config.MODEL.SIMMIM.TARGET


def _is_beyond(losses: pd.DataFrame) -> pd.Series:
    """Return which losses of a row are not on the axis, where they would hide all others.

    Random weights of a deep network without a pre-training can have a loss of a million.
    """
    is_before = losses['epoch'] == 0
    return is_before & (losses['high'] > FARTHEST * losses.loc[~is_before, 'high'].max())


def _is_worse_than_chance(losses: pd.DataFrame) -> bool:
    last = losses.groupby('metric')['mean'].last()
    return bool(last.get('holdout_loss', -math.inf) > last.get(CHANCE, math.inf))


def _about_seeds(losses: pd.DataFrame) -> str:
    """Say over how many seeds the lines of some losses are means."""
    fewest, most = losses['seeds'].min(), losses['seeds'].max()
    if most == 1:
        return 'One seed.'
    number = f'{fewest} to {most}' if fewest < most else most
    return f'Lines: mean over {number} seeds; bands: from the lowest to the highest.'


def _other_losses(rows: Sequence[Row]) -> list[str]:
    """Say which losses in training are not that of held-out patients, beside which they are."""
    configs = [expected_config(row, 'finetune') for row in rows]
    pairs = {(config.LOSS.NAME, task_of(config).loss) for config in configs}
    return [
        f'Training images have another loss ({name}) than held-out patients ({other}).'
        for name, other in sorted(pairs)
        if name != other
    ]


def _draw_losses(axis: Axes, losses: pd.DataFrame) -> None:
    """Draw the losses of a row (`_losses_of`) by epoch."""
    for name, line in losses.groupby('metric', sort=False):
        if name == CHANCE:
            axis.axhline(line['mean'].iloc[-1], **CHANCE_LINE)
            continue
        style = {'linestyle': LOSSES[name], 'color': COLOUR, 'linewidth': 1}
        axis.plot(line['epoch'], line['mean'], **style)
        if line['seeds'].max() > 1:
            axis.fill_between(line['epoch'], line['low'], line['high'], color=COLOUR, alpha=0.2)

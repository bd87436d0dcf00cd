"""Scored images of the finished runs of a sweep, and facts about these runs."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from config import PROBES, Config
from data.tables.groups import all_groups, standard_groups
from data.tables.predictions import read_complete
from data.tables.reading import SCORED_SPLITS, read_split
from data.tables.records import Records, select_views, task_of
from data.tables.splits import split_patients
from engine.run_record import is_finished, read_record, without_home
from evaluation.cases import Cases, cases_of
from evaluation.metrics import auroc_per_label
from evaluation.report.document import SCORES_FILE
from evaluation.run_facts import (
    CHOSEN_ON,
    EPOCH,
    ON_VALID,
    SELECTED_ON_VALID,
    Known,
    known_of_run,
)
from logger import read_metrics
from sweeps.files import (
    Row,
    Sweep,
    expected_config,
    load_config,
    run_folder,
    training_changes,
    without_cache,
)
from sweeps.long_table import MEANS, Scored, read_table
from sweeps.tables import name_of

SPLITS = tuple(sorted(SCORED_SPLITS))  # internal, test, valid: the first scored split is shown
# What JSON of another form raises, also if its parts are nested too deeply.
MALFORMED = (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError)
TOLERANCE = 1e-4  # allowed difference of a recomputed AUROC; predictions have 9 digits
# Runs are scored on the same cases, and can be compared, only if these values agree.
PROTOCOL = ('level', 'views', 'rows', 'undefined', 'positives', 'negatives')

Runs = Mapping[str, Mapping[int, Path]]  # row -> seed -> folder of a finished fine-tuning


class RunScores(NamedTuple):
    """What `read_runs` returns.

    Attributes:
        scored: Scored images of each run.
        facts: Lines of the long table with facts about the runs.
        protocols: (row, seed) -> what was scored and how. Rows with others cannot be compared.
        splits: Descriptions of the scored splits.
    """

    scored: list[Scored]
    facts: list[dict[str, Any]]
    protocols: dict[tuple[str, int], str]
    splits: dict[str, None]


def pretraining_of(folder: Path, row: Row, seed: int) -> Path | None:
    """Return the folder of the pre-training that a run starts from, or None."""
    if row.pretraining:
        return run_folder(folder.parents[1], row.pretraining, row, seed)
    weights = load_config(folder).PRETRAINED
    return Path(weights).parent if weights else None


def read_runs(
    runs: Runs,
    sweep: Sweep,
    *,
    split: str = '',
    groups: tuple[Sequence[str], str] | None = None,
) -> RunScores:
    """Read what the tables and figures of a sweep show of its runs.

    Args:
        runs: Finished runs.
        sweep: Sweep with these rows.
        split: One of SPLITS, or '' for the first of them that a run was scored on.
        groups: Columns of groups besides sex, age and view, () for EVAL.GROUPS; and a file with
            such columns by patient, '' for DATA.DEMOGRAPHICS. None for sex, age and view alone.

    Raises:
        ValueError: If a file of a run cannot be read. The message names it.
    """
    labelled: dict[str, Cases] = {}  # rows with the same cases share labels and groups
    result = RunScores([], [], {}, {})
    rows = {row.name: row for row in sweep.rows}
    folders = {(row, seed): runs[row][seed] for row in runs for seed in runs[row]}
    for (name, seed), folder in folders.items():
        chosen, checkpoint, scores = _read_scores(folder, split)
        protocol = str([chosen, *(scores.get(key) for key in PROTOCOL)])
        config = load_config(folder)
        if protocol not in labelled:
            labelled[protocol] = _labelled_images(config, chosen, groups)
        images, file = labelled[protocol], folder / f'predictions_{chosen}.csv'
        images = replace(images, probabilities=read_complete(file, images.path, images.labels))
        thresholds = {}
        if (folder / SCORES_FILE).is_file():  # of the report
            table = read_table(folder / SCORES_FILE)
            table = table[(table['split'] == chosen) & (table['metric'] == 'threshold')]
            thresholds = table.set_index('label')['value'].to_dict()
        known = _known(file, config, chosen, checkpoint)
        run = Scored(name, seed, images, chosen, config.EVAL.LEVEL, thresholds, (known,))
        _check(folder, run, scores['auroc'])
        result.scored.append(run)
        result.protocols[name, seed] = protocol
        key = {'row': name, 'seed': seed, 'fold': '', 'split': chosen, 'group': ''}
        key['level'] = scores['level']
        facts = run_facts(folder, pretraining_of(folder, rows[name], seed), chosen, checkpoint)
        for (metric, label), value in facts.items():
            result.facts.append(key | {'label': label, 'metric': metric, 'value': value})
        result.splits[f'{chosen}, {scores["rows"]} rows at {scores["level"]} level, '
                      f'{scores["views"]} views, {checkpoint} checkpoint'] = None  # fmt: skip
    return result


def option_notes(sweep: Sweep, runs: Runs) -> list[str]:
    """List how the options of finished runs differ from the sweep file."""
    found: dict[str, set[str]] = {}
    for row in [row for row in sweep.rows if row.name in runs]:
        for stage in row.stages:
            expected = expected_config(row, stage)
            for seed, folder in runs[row.name].items():
                if stage != 'finetune':
                    folder = pretraining_of(folder, row, seed)
                if not is_finished(folder):
                    continue
                config, record = load_config(folder), read_record(folder) or {}
                expected.SEED = config.SEED
                for change in training_changes(stage, (expected, {}), (config, record)):
                    found.setdefault(without_home(change), set()).add(name_of(sweep, row.name))
    every = {name_of(sweep, name) for name in runs}
    alike: dict[tuple[str, ...], list[str]] = {}  # rows -> what differs in all of them
    for change, rows in found.items():
        alike.setdefault(tuple(sorted(rows)), []).append(change)
    notes = []
    for rows, changes in alike.items():
        who = 'All runs' if {*rows} == every else f'Runs of {", ".join(rows)}'
        notes.append(f'{who} differ from the sweep file: {"; ".join(changes)}.')
    return notes


def scored_records(
    config: Config, split: str, logger: logging.Logger, *, optional: bool = False
) -> Records | None:
    """Read the records of 'internal' (see `split_patients`), 'valid' or 'test' in EVAL.VIEWS.

    Returns:
        Records. None for an absent optional split, and for internal if EVAL.INTERNAL_SHARE is 0.
    """
    if split == 'internal':
        if not config.EVAL.INTERNAL_SHARE:
            return None
        records = split_patients(config, read_split(config, 'train', logger))[2]
    else:
        records = read_split(config, split, logger, optional=optional)
    return records and select_views(records, config.EVAL.VIEWS or config.DATA.VIEWS)


def run_facts(
    folder: Path, pretrain: Path | None, split: str, checkpoint: str
) -> dict[tuple[str, str], float]:
    """Return facts about a run and its pre-training, by name and label, or ''.

    Among them are the AUROCs on a split after the last epoch, if they are known.
    """
    record = read_record(folder) or {}
    facts: dict[str, Any] = selection_figures(folder, checkpoint)
    facts['minutes'] = (record.get('seconds') or np.nan) / 60
    facts['training_images'] = ((record.get('data') or {}).get('training') or {}).get('images')
    if pretrain is not None and (pretrain / 'metrics.jsonl').is_file():
        facts |= pretraining_figures(read_metrics(pretrain / 'metrics.jsonl'))
    last = _score_file(folder)[split].get('last') or {}
    areas = {name: last.get(name) for name in MEANS} | last.get('auroc', {})
    by_label = {(name, ''): value for name, value in facts.items()}
    by_label |= {('auroc_last', label): area for label, area in areas.items()}
    return {name: value for name, value in by_label.items() if value is not None and value == value}


def selection_figures(folder: Path, checkpoint: str) -> dict[str, Any]:
    """Return which epoch of a fine-tuning run was scored, and its score on held-out patients."""
    is_probe = load_config(folder).FINETUNE.MODE in PROBES
    epochs = [] if is_probe else read_metrics(folder / 'metrics.jsonl')
    trained = [epoch for epoch in epochs if epoch['epoch'] >= 0]
    scores = {epoch['epoch'] + 1: epoch.get('score') for epoch in trained}
    scored = {epoch: score for epoch, score in scores.items() if score is not None}
    figures = {
        'held_out': max(scored.values(), default=None),
        'epochs': max((epoch['epoch'] + 1 for epoch in trained), default=0),
    }
    if checkpoint == 'last' or not figures['epochs']:
        return figures | {'held_out': [None, *scored.values()][-1]}
    return figures | {'selected_epoch': max(scored, key=scored.get, default=None)}


def pretraining_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compute the results of a pre-training run from the records of metrics.jsonl.

    The minutes are the number of epochs times the median epoch without evaluation.
    """
    last = records[-1] if records else {}
    figures = {'held_out_l1': last.get('reference_l1_grey')}
    timed = [r for r in records if r['epoch'] >= 0 and r.get('seconds') and r['images_per_second']]
    if timed:
        images = max(round(r['images_per_second'] * r['seconds']) for r in timed)
        epochs = sum(record['epoch'] >= 0 for record in records)
        seconds = median(images / record['images_per_second'] for record in timed)
        figures |= {'images_seen': epochs * images, 'pretrain_minutes': epochs * seconds / 60}
    return figures


def _labelled_images(config: Config, split: str, groups: tuple[Sequence[str], str] | None) -> Cases:
    """Return the images of a split as cases without predictions."""
    config = without_cache(config)
    task = task_of(config)
    records = scored_records(config, split, logging.getLogger(__name__))
    found = standard_groups(records)
    if groups is not None:
        columns, demographics = groups
        columns = columns or config.EVAL.GROUPS
        found = all_groups(records, columns, demographics or config.DATA.DEMOGRAPHICS)
    unknown = np.full((len(records), len(task.labels)), np.nan)
    return cases_of(records, task, unknown, name=split, groups=found)


def _known(file: Path, config: Config, split: str, checkpoint: str) -> Known:
    """Return what is known of the run that wrote a file; its options tell what chose the epoch."""
    facts, doubts = known_of_run(file)
    if EPOCH not in facts:
        chosen = 'last'
        if checkpoint == 'selected':
            chosen = 'valid' if config.EVAL.SELECT_ON == 'valid' else 'holdout'
        is_probe = config.FINETUNE.MODE in PROBES
        facts = {**facts, EPOCH: '' if is_probe else CHOSEN_ON.get(chosen, chosen)}
        is_optimistic = split == chosen == 'valid' and not is_probe
        doubts = {**doubts, ON_VALID: [SELECTED_ON_VALID] if is_optimistic else []}
    return Known(facts, doubts)


def _check(folder: Path, run: Scored, written: Mapping[str, float | None]) -> None:
    """Raise a ValueError if scores.json was not computed from these predictions and labels."""
    cases = run.images.at_level(run.level)
    areas = auroc_per_label(cases.probabilities, cases.targets)
    for label, area in zip(cases.labels, areas, strict=True):
        known = written[label]
        if not (np.isnan(area) if known is None else abs(area - known) <= TOLERANCE):
            raise ValueError(
                f'{folder}: the AUROC of {label} is {area} from predictions and labels, '
                f'but {known} in scores.json. One of these files has changed.'
            )


def _read_scores(folder: Path, split: str) -> tuple[str, str, dict[str, Any]]:
    """Return split, checkpoint and scores of a run for the selected or else the last checkpoint."""
    table = _score_file(folder)
    known = [name for name in SPLITS if name in table]
    if not known or split not in ('', *known):
        raise ValueError(
            f'{folder} has scores on {", ".join(known) or "no split"}, but not on '
            f'{split or " or ".join(SPLITS)} (--split)'
        )
    split = split or known[0]
    try:
        checkpoint = 'selected' if table[split].get('selected') else 'last'
        scores = table[split][checkpoint]
        scores = {key: scores[key] for key in scores if key in (*PROTOCOL, 'auroc')}
        return split, checkpoint, scores
    except MALFORMED as error:
        raise ValueError(f'the scores in {folder} cannot be read: {error!r}') from error


def _score_file(folder: Path) -> dict[str, Any]:
    """Read scores.json of a run: split -> checkpoint -> scores."""
    try:
        return dict(json.loads((folder / 'scores.json').read_bytes()))
    except MALFORMED as error:
        raise ValueError(f'the scores in {folder} cannot be read: {error!r}') from error

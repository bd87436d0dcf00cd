"""Predictions of the folds of a cross-validated sweep: join them by rank, and tune by fold.

Joined predictions contain each image once for each row and seed, with the rank of the prediction
among the images of the fold, because predictions of different models have no common scale. Their
files are in `sweeps.joined`.
"""

import itertools
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.tables.folds import folds_of
from data.tables.groups import all_groups
from data.tables.predictions import (
    LabelTable,
    Predictions,
    read_complete,
    read_label_file,
    row_names,
)
from data.tables.reading import read_split
from data.tables.records import select_views, task_of
from data.tables.splits import split_patients, unlabelled_records
from engine.run_record import is_finished
from evaluation.matching import match
from evaluation.metrics import FEW_CASES, auroc_per_label, count_classes, labels_with_few_cases
from evaluation.run_facts import Known, known_of_run, may_be_equal
from logger import read_metrics
from sweeps.files import Sweep, load_config, modes_of, run_folder, without_cache
from sweeps.joined import read_joined_known, read_ranks, save_ranks, seed_files
from sweeps.long_table import COPY, Scored
from sweeps.runner import finished_runs
from system.files import replace_file, sha256

LOGGER = logging.getLogger(__name__)
RATE = 'TRAIN.BASE_LR'
CHOOSING, MEAN_SCORE = ['row', 'seed', 'fold'], 'mean_auroc'  # columns of tuning.csv
TUNING, RUNS = 'tuning.csv', 'runs.csv'
Folds = dict[int, list[Path]]  # seed -> run folder of each fold


def join(sweep: Sweep, folder: Path, *, output: Path, folds: int, seeds: int, tune: bool) -> None:
    """Add the joined predictions of every row and seed whose folds have all finished to a folder.

    Other rows and seeds in the folder stay, so a sweep may run in parts. Only the files of seeds
    that have new predictions are written, see `sweeps.joined`. A table of the runs has
    their seed, minutes and commit. With `tune`, another has the scores that choose a rate.
    """
    runs, others = finished_runs(sweep, range(seeds), output, folds=folds)
    for run in others:
        LOGGER.warning('skipped %s', run)
    used: list[Path] = []  # run folders
    predictions: dict[tuple[str, int], list[Path]] = {}
    for row in [row for row in sweep.rows if row.name in runs]:
        for seed, folders in runs[row.name].items():
            if row.pretraining:
                used.append(run_folder(output, row.pretraining, row, seed))
            used += folders
            files = [folder / 'predictions_valid.csv' for folder in folders]
            predictions[row.name, seed] = files
    known: dict[str, dict[int, list[Known]]] = {}
    modes = modes_of(sweep)
    for (row, seed), files in predictions.items():
        known.setdefault(row, {})[seed] = [*map(known_of_run, files)]
    for row in runs:
        _refuse_copies(row, predictions, known[row], modes[row])
    save_ranks(folder, predictions, known)
    save_runs(folder / RUNS, used)
    if tune:
        save_scores(folder / TUNING, sweep, runs)


def read_joined(
    folder: Path,
    file: Path,
    names: Collection[str],
    *,
    chosen: Mapping[str, Sequence[str]],
    seeds: int,
    groups: tuple[Sequence[str], str] = ((), ''),
) -> Iterator[Scored]:
    """Yield the joined predictions of rows with the labels of a file.

    Args:
        folder: Folder of `join`, or one with several such folders.
        file: CSV file with the labels of all images.
        names: Rows.
        chosen: Row -> row whose predictions each fold takes, see `tuned`.
        seeds: Seeds from this number on are left out.
        groups: Columns of groups besides sex, age and view, and a file with them by patient, or ''.

    Raises:
        ValueError: If there are no predictions of the rows, or not those of a chosen row.
    """
    known = read_joined_known(folder)
    joined = read_ranks(folder, {*names, *itertools.chain(*chosen.values())})
    found = {name: joined[name] for name in joined if name in names}
    if not found:
        raise ValueError(f'{folder} has no predictions of the rows {", ".join(names)}')
    if others := sorted({seed for by_seed in joined.values() for seed in by_seed if seed >= seeds}):
        LOGGER.warning('--seeds %s: seeds %s are left out', seeds, others)
    labels: LabelTable | None = None
    for name, seed in [(row, seed) for row in found for seed in found[row] if seed < seeds]:
        predictions = found[name][seed]
        if labels is None:
            labels = read_label_file(file, labels=predictions.labels)
            if labels.missing:
                absent = ', '.join(labels.missing)
                LOGGER.warning('%s has no column %s: not scored', file, absent)
        if name in chosen:
            if lacking := [row for row in chosen[name] if seed not in joined.get(row, {})]:
                raise ValueError(f'{folder} has no {lacking[0]} with seed {seed}')
            by_fold = [joined[row][seed] for row in chosen[name]]
            order = row_names(labels.records.path).get_indexer(row_names(predictions.names))
            predictions = compose(by_fold, folds_of(labels.records.patient[order], len(by_fold)))
        options = {'level': 'image', 'groups': lambda records: all_groups(records, *groups)}
        cases = match(predictions, labels, name=name, **options)[0]
        parts = known.get(name, {}).get(seed) or [Known()]
        if name in chosen:  # of each fold, those of the row that it has chosen
            rows = [known.get(row, {}).get(seed, ()) for row in chosen[name]]
            parts = [own[i] if i < len(own) else Known() for i, own in enumerate(rows)]
        yield Scored(name, seed, cases, known=tuple(parts))


def _refuse_copies(
    row: str,
    files: Mapping[tuple[str, int], Sequence[Path]],
    known: Mapping[int, Sequence[Known]],
    mode: str,
) -> None:
    """Refuse equal files of two seeds of a row, see `long_table.refuse_copies`."""
    first: dict[str, tuple[Path, int, Known]] = {}
    for seed, of_row in ((seed, own) for (name, seed), own in files.items() if name == row):
        for file, part in zip(of_row, known[seed], strict=True):
            other, other_seed, other_part = first.setdefault(sha256(file), (file, seed, part))
            if other_seed != seed and not may_be_equal([part], [other_part], mode):
                raise ValueError(f'{file} and {other}: {COPY.format(row, seed, row, other_seed)}')


def tuned(sweep: Sweep, folder: Path, save: Path, seeds: int) -> dict[str, list[str]]:
    """Write the choices of rates to a folder, and return row -> chosen row of each fold.

    Raises:
        ValueError: If there are no scores of some rows that differ in their rate.
    """
    files = [parent / TUNING for parent in sorted({file.parent for file in seed_files(folder)})]
    if not (tables := [read_scores(file) for file in files if file.is_file()]):
        raise ValueError(f'--tune needs {folder / TUNING}, which `ablate.py join --tune` writes')
    scores = pd.concat(tables)
    choices = choose_rates(sweep, scores[scores['seed'] < seeds])
    save.mkdir(parents=True, exist_ok=True)
    replace_file(save / TUNING, choices.to_csv(index=False, float_format='%.4f'))
    taken = choices[choices['chosen'].astype(bool)].sort_values('fold')
    return taken.groupby('row')['candidate'].agg(list).to_dict()


def save_runs(path: Path, folders: Iterable[Path]) -> None:
    """Add the finished ones of some run folders to a table. It stays sorted by name.

    A line contains the name of the run, its code version, seed, minutes and images of its data. For
    SimMIM and MAE it also contains the held-out L1 error in grey levels under the masks of the run,
    and the error of linear interpolation.
    """
    known = {'dtype': {'code': str}}  # a commit may look like a number
    lines = pd.read_csv(path, index_col='run', **known).to_dict('index') if path.is_file() else {}
    for folder in filter(is_finished, folders):
        record = json.loads((folder / 'run.json').read_text())
        metrics = folder / 'metrics.jsonl'  # probes have none
        last = read_metrics(metrics)[-1] if metrics.is_file() else {}
        lines[folder.name] = {
            'code': record['code'],
            'seed': record['seed'],
            'minutes': round(record['seconds'] / 60, 2),
            'images': record['data']['images'],
            'holdout_l1_grey': last.get('holdout_l1_grey'),
            'linear': last.get('holdout_l1_grey_linear'),
        }
    if lines:
        runs = pd.DataFrame.from_dict(lines, orient='index').rename_axis('run').sort_index()
        replace_file(path, runs.to_csv(float_format='%.4g').encode())


def arms_of(sweep: Sweep) -> list[list[str]]:
    """Return the rows that differ in TRAIN.BASE_LR alone, for each such group of several rows.

    They start from the same pre-training or weights. Of rows that do not differ at all, for example
    because a share sets the epochs of both, only the first is returned.
    """
    arms: dict[tuple[str, ...], dict[Any, str]] = {}  # arm -> rate -> row
    for row in sweep.rows:
        rate = row.options('finetune').get(RATE)
        options = {**row.options('finetune'), RATE: None}
        learned = row.pretrain_run if row.pretraining else ''
        start = learned, row.weights, row.learns_from
        arm = *start, str(row.configs['finetune']), row.subset, repr(sorted(options.items()))
        arms.setdefault(arm, {}).setdefault(rate, row.name)
    return [[*names.values()] for names in arms.values() if len(names) > 1]


def read_scores(path: Path) -> pd.DataFrame:
    """Read the table of `save_scores`.

    Raises:
        ValueError: If it cannot be read or lacks a column.
    """
    try:
        types = {'row': str, 'seed': int, 'fold': int, MEAN_SCORE: float}
        return pd.read_csv(path, dtype=types)[[*CHOOSING, MEAN_SCORE]]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f'{path} must have columns {CHOOSING} and {MEAN_SCORE}: {error}'
        ) from error


def save_scores(path: Path, sweep: Sweep, runs: Mapping[str, Folds]) -> None:
    """Add the `mean_score` of the runs between which a rate is chosen to a table.

    It has the columns of `CHOOSING` and the score. Runs that it contains are replaced.
    """
    found = [
        (row, seed, fold, mean_score(folder))
        for row in itertools.chain(*arms_of(sweep))
        for seed, folders in runs.get(row, {}).items()
        for fold, folder in enumerate(folders)
    ]
    table = pd.DataFrame(found, columns=[*CHOOSING, MEAN_SCORE])
    if path.is_file():
        table = pd.concat([table, read_scores(path)]).drop_duplicates(CHOOSING)
    text = table.sort_values(CHOOSING).to_csv(index=False, float_format='%.6f')
    replace_file(path, text.encode())


def choose_rates(sweep: Sweep, table: pd.DataFrame) -> pd.DataFrame:
    """Choose a rate for the rows that differ in TRAIN.BASE_LR alone, in each fold.

    The best row of a fold has the highest mean AUROC over the seeds on training patients of the
    fold whom the runs did not learn from (`mean_score`). A patient is scored by a rate that other
    patients chose, and these patients see the runs that are scored: a run that fails is not chosen.

    Args:
        sweep: Sweep.
        table: Scores by which rows are chosen, see `save_scores`.

    Returns:
        For each fold and candidate: row (the first candidate, whose name the chosen ones receive),
        fold, candidate, mean_auroc and chosen. Rows without any run are left out.

    Raises:
        ValueError: If rows that are tuned together have not finished the same seeds.
    """
    seeds = table.groupby('row')['seed'].agg(set)
    means = table.groupby(['row', 'fold'])[MEAN_SCORE].mean()
    choices = []
    for first, *others in arms_of(sweep):
        if not {first, *others} & {*seeds.index}:
            continue
        if unequal := [name for name in others if seeds.get(name) != seeds.get(first)]:
            raise ValueError(f'{first} and {unequal[0]} have not finished the same seeds')
        for fold in means[first].index:
            scores = {name: means[name, fold] for name in (first, *others)}
            best = max(scores, key=scores.get)
            for name, score in scores.items():
                choice = {'row': first, 'fold': fold, 'candidate': name, MEAN_SCORE: score}
                choices.append(choice | {'chosen': name == best})
    return pd.DataFrame(choices, columns=['row', 'fold', 'candidate', MEAN_SCORE, 'chosen'])


def compose(by_fold: Sequence[Predictions], folds: np.ndarray) -> Predictions:
    """Take the predictions of each fold from its own file.

    Args:
        by_fold: Joined predictions of the row that each fold has chosen.
        folds: Fold of each image, [N], in the order of the files.

    Raises:
        ValueError: If the files list other images.
    """
    for predictions in by_fold:
        if not np.array_equal(predictions.names, by_fold[0].names):
            raise ValueError(
                f'{by_fold[0].file}, and {predictions.file}: they must list the same images'
            )
    values = np.stack([predictions.probabilities for predictions in by_fold])  # [folds, N, K]
    return replace(by_fold[0], probabilities=values[folds, np.arange(len(folds))])


def mean_score(folder: Path) -> float:
    """Return the mean AUROC of a run over labels, on training patients whom it did not learn from.

    These are the patients outside the share of the labels and, with EVAL.SELECT_ON 'last', the
    held-out patients. Labels with few cases of a class among them do not count, and labels that are
    one label under several names count once.

    Raises:
        ValueError: If there are no such patients, or all labels have few cases among them.
    """
    config = without_cache(load_config(folder))
    task = task_of(config)
    train, held_out, _ = split_patients(config, read_split(config, 'train', LOGGER))
    splits = {'train': unlabelled_records(config, train)}
    if config.EVAL.SELECT_ON == 'last':
        splits['holdout'] = select_views(held_out, config.EVAL.VIEWS or config.DATA.VIEWS)
    empty = np.empty((0, len(task.labels)))
    predicted, known = [empty], [empty]
    for split, records in splits.items():
        if len(records):
            file = folder / f'predictions_{split}.csv'
            predicted.append(read_complete(file, records.path, task.labels))
            known.append(task.scored(records))
    probabilities, targets = np.concatenate(predicted), np.concatenate(known)
    labels = task.labels
    counts = count_classes(targets, labels)
    left_out = {*labels_with_few_cases(counts), *counts['same_as']}
    counted = [label not in left_out for label in labels]
    if not any(counted):
        raise ValueError(
            f'{folder}: no label has {FEW_CASES} cases of each class among the '
            f'{len(targets)} training images that the run did not learn from'
        )
    return float(auroc_per_label(probabilities[:, counted], targets[:, counted]).mean())

"""Predictions of the folds of a cross-validated sweep: join them by rank, and tune by fold."""

import gzip
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from data.predictions import Predictions, look_up, read_predictions
from data.reading import read_split
from data.records import select_views
from data.splits import split_patients, unlabelled_records
from data.tasks import task_of
from evaluation.metrics import FEW_CASES, auroc_per_label, count_classes, labels_with_few_cases
from sweeps.files import Sweep, load_config, without_cache
from system.files import replace_file

LOGGER = logging.getLogger(__name__)
RATE = 'TRAIN.BASE_LR'
Runs = dict[int, list[Path]]  # seed -> run folder of each fold


def save_ranks(path: Path, files: Sequence[Path]) -> None:
    """Write the predictions of all folds as ranks, see `join_ranks`."""
    joined = join_ranks(files)
    table = pd.DataFrame(joined.probabilities, joined.names, joined.labels)
    text = table.rename_axis(joined.key).sort_index().to_csv(float_format='%.4g').encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, gzip.compress(text, mtime=0))  # without a time, the file is reproducible


def join_ranks(files: Sequence[Path]) -> Predictions:
    """Join predictions of several folds as ranks in (0, 1) within their fold. Ties share a rank.

    Raises:
        ValueError: If an image is in two folds, or the folds have different labels.
    """
    parts = [read_predictions(file) for file in files]
    if len({part.labels for part in parts}) > 1:
        raise ValueError(f'{files[0]} and the files of the other folds have different labels')
    names = np.concatenate([part.names for part in parts])
    if len(set(names)) < len(names):
        name = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f'{name} is in two of the folds that begin with {files[0]}')
    ranks = [(rankdata(part.probabilities, axis=0) - 0.5) / len(part.names) for part in parts]
    return replace(parts[0], names=names, probabilities=np.concatenate(ranks))


def tune(sweep: Sweep, runs: Mapping[str, Runs], *, folds: int, save: Path) -> dict[str, Runs]:
    """Return one row for all rows that differ in TRAIN.BASE_LR alone, and write save/tuning.csv.

    In each fold, it has the runs of the row with the highest mean AUROC over the seeds on training
    patients of the fold whom the runs did not learn from (`mean_score`). A patient is scored by a
    rate that other patients chose, and these patients see the runs that are scored: a run that
    fails is not chosen. The row has the name of the first of its rows.

    Raises:
        ValueError: If rows that are tuned together have not finished the same seeds.
    """
    arms: dict[tuple[str, ...], list[str]] = {}
    for row in [row for row in sweep.rows if row.name in runs]:
        options = {**row.options('finetune'), RATE: None}
        learned = row.pretrain_run if row.pretraining else ''
        arm = learned, str(row.configs['finetune']), row.subset, repr(sorted(options.items()))
        arms.setdefault(arm, []).append(row.name)
    tuned: dict[str, Runs] = {}
    choices = []
    for names in arms.values():
        first = names[0]
        if unequal := [name for name in names if runs[name].keys() != runs[first].keys()]:
            raise ValueError(f'{first} and {unequal[0]} have not finished the same seeds')
        tuned[first] = {seed: [] for seed in runs[first]}
        for fold in range(folds):
            scores = {
                name: mean_score([folders[fold] for folders in runs[name].values()])
                for name in names
            }
            best = max(scores, key=scores.get)
            for seed, folders in runs[best].items():
                tuned[first][seed].append(folders[fold])
            for name, score in scores.items():
                choice = {'row': first, 'fold': fold, 'candidate': name, 'mean_auroc': score}
                choices.append(choice | {'chosen': name == best})
    save.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(choices).to_csv(index=False, float_format='%.4f')
    replace_file(save / 'tuning.csv', table.encode())
    return tuned


def mean_score(folders: Sequence[Path]) -> float:
    """Return the mean AUROC of runs over labels, on training patients whom they did not learn from.

    These are the patients outside the share of the labels and, with EVAL.SELECT_ON 'last', the
    held-out patients. Labels with few cases of a class among them do not count.

    Raises:
        ValueError: If there are no such patients, or all labels have few cases among them.
    """
    scores = []
    for folder in folders:
        labels, probabilities, targets = _not_learned(folder)
        few = labels_with_few_cases(count_classes(targets, labels))
        counted = [label not in few for label in labels]
        if not any(counted):
            raise ValueError(
                f'{folder}: no label has {FEW_CASES} cases of each class among the '
                f'{len(targets)} training images that the run did not learn from'
            )
        scores.append(auroc_per_label(probabilities[:, counted], targets[:, counted]).mean())
    return float(np.mean(scores))


def _not_learned(folder: Path) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return labels [K], probabilities [N, K] and targets [N, K] of patients not learned from."""
    config = without_cache(load_config(folder))
    task = task_of(config)
    train, held_out, _ = split_patients(config, read_split(config, 'train', LOGGER))
    parts = {'train': unlabelled_records(config, train)}
    if config.EVAL.SELECT_ON == 'last':
        parts['holdout'] = select_views(held_out, config.EVAL.VIEWS or config.DATA.VIEWS)
    probabilities, targets = [np.empty((0, len(task.labels)))], [np.empty((0, len(task.labels)))]
    for split, records in parts.items():
        if len(records):
            file = folder / f'predictions_{split}.csv'
            predictions = read_predictions(file, labels=task.labels)
            probabilities.append(look_up(predictions, records.path, task.labels))
            targets.append(task.scored(records))
    return task.labels, np.concatenate(probabilities), np.concatenate(targets)

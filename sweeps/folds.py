"""Predictions of the folds of a cross-validated sweep: join them by rank, and tune by fold."""

import gzip
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from data.predictions import Predictions, read_label_file, read_predictions
from evaluation.cases import Cases, match
from evaluation.metrics import (
    FEW_CASES,
    auroc_per_label,
    count_classes,
    labels_with_few_cases,
)
from sweeps.files import Sweep
from system.files import replace_file

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


def tune(
    sweep: Sweep, runs: Mapping[str, Runs], *, folds: int, labels: Path, save: Path
) -> dict[str, Runs]:
    """Return one row for all rows with the same pre-training and labels, and write save/tuning.csv.

    In each fold, it has the runs of the row with the highest mean AUROC over the seeds on the
    patients of the other folds, so a patient is scored by a setting that other patients chose. The
    row has the name of the first of its rows.

    Raises:
        ValueError: If rows that are tuned together have not finished the same seeds.
    """
    arms: dict[tuple[str, str], list[str]] = {}
    for row in [row for row in sweep.rows if row.name in runs]:
        learned = row.pretrain_run if row.pretraining else ''
        arms.setdefault((learned, row.subset), []).append(row.name)
    tuned: dict[str, Runs] = {}
    choices = []
    for names in arms.values():
        first = names[0]
        if unequal := [name for name in names if runs[name].keys() != runs[first].keys()]:
            raise ValueError(f'{first} and {unequal[0]} have not finished the same seeds')
        tuned[first] = {seed: [] for seed in runs[first]}
        for fold in range(folds):
            scores = {name: mean_score(runs[name], fold, labels) for name in names}
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


def mean_score(runs: Runs, fold: int, labels_file: Path) -> float:
    """Return the mean AUROC of a row over seeds and labels, on the patients of the other folds.

    Labels with few cases of a class among these patients do not count.

    Raises:
        ValueError: If all labels have few cases.
    """
    scores = []
    for folders in runs.values():
        others = [folder for number, folder in enumerate(folders) if number != fold]
        predictions = join_ranks([folder / 'predictions_valid.csv' for folder in others])
        labels = read_label_file(labels_file, labels=predictions.labels)
        cases, _ = match(predictions, labels, name='', level='image', complete=False)
        counted = with_enough_cases(cases)
        if not counted.labels:
            raise ValueError(f'{labels_file}: no label has {FEW_CASES} cases of each class to tune')
        scores.append(auroc_per_label(counted.probabilities, counted.targets).mean())
    return float(np.mean(scores))


def with_enough_cases(cases: Cases, enough: int | None = None) -> Cases:
    """Select the labels without few cases (see `few_cases`)."""
    few = labels_with_few_cases(count_classes(cases.targets, cases.labels), enough)
    return cases.with_labels([label not in few for label in cases.labels])

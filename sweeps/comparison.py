"""Rows of a sweep against another row, over seeds and patients; its runs against its files."""

import contextlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from config import Config
from data.chexpert import select_views
from data.labels import COMPETITION_LABELS, scored_targets, task_labels
from data.predictions import normalise_name, read_predictions, unique_names
from data.splits import read_split
from evaluation.cases import Cases
from evaluation.compare import bootstrap_p, holm
from evaluation.intervals import Resamples, interval
from evaluation.metrics import label_scores
from provenance import is_finished, read_record
from sweeps.plan import STAGES, Sweep, run_folder
from sweeps.run_options import (
    batch_counts,
    changed_options,
    check_encoder,
    expected_config,
    load_config,
)

MEANS = ('mean_of_five', 'mean_of_defined')
SIGNIFICANT = 0.05
LEAST_RESAMPLES = 1000
REACH = 5  # how many times below SIGNIFICANT the smallest corrected p-value can be
# What must be the same, or scores are of other cases.
PROTOCOL = ('split', 'level', 'views', 'rows', 'undefined', 'positives')
FOLDERS = re.compile(r'(?<![\w.])/(?:[^/\s:]+/)+')  # of this machine: not for a table
TOLERANCE = 1e-4  # of an AUROC that is computed again: predictions have 9 digits


class Scored(NamedTuple):
    """A fine-tuned run: its folder, and its figures as `sweeps.results` has them."""

    folder: Path
    figures: dict[str, Any]


class ScoredPatients:
    """The cases that a run was scored on, and resamples of their patients.

    Args:
        run: whose options say what is scored, and how.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        ValueError: if the labels cannot be read.
    """

    def __init__(self, run: Scored, *, resamples: int, seed: int) -> None:
        config, split = load_config(run.folder), run.figures['split']
        self.level, self.aggregate = config.EVAL.LEVEL, config.EVAL.AGGREGATE
        self.labels = task_labels(config.DATA.TASK)
        config.DATA.CACHE_DIR = ''  # the CSV files are where the data are
        records = read_split(config, split, logging.getLogger(__name__))
        self.records = select_views(records, config.EVAL.VIEWS or config.DATA.VIEWS)
        self.targets = scored_targets(
            self.records.labels, task=config.DATA.TASK, blank=config.DATA.BLANK
        )
        self.resamples = Resamples(self.records.patient, resamples=resamples, seed=seed)
        self.count = len(set(self.records.patient))
        self._samples: dict[Path, dict[str, np.ndarray]] = {}

    def samples(self, run: Scored) -> dict[str, np.ndarray]:
        """Score -> [R] of a run in each resample, NaN where a class is missing.

        Raises:
            ValueError: if its predictions are not those that its scores are of.
        """
        if run.folder not in self._samples:
            self._samples[run.folder] = self._resample(run)
        return self._samples[run.folder]

    def intervals(self, runs: Iterable[Scored]) -> dict[str, dict[str, float]]:
        """Score -> `low` and `high` of its mean over the runs.

        Raises:
            ValueError: see `samples`.
        """
        samples = [self.samples(run) for run in runs]
        shared = [score for score in samples[0] if all(score in each for each in samples)]
        means = {score: np.mean([each[score] for each in samples], axis=0) for score in shared}
        bounds = {score: interval(mean) for score, mean in means.items()}
        return {score: {'low': low, 'high': high} for score, (low, high) in bounds.items()}

    def _resample(self, run: Scored) -> dict[str, np.ndarray]:
        cases = self._cases(run.folder / f'predictions_{run.figures["split"]}.csv')
        weights, samples = self.resamples.weights(cases.patient), {}
        for label, probabilities, targets in zip(
            cases.labels, cases.probabilities.T, cases.targets.T, strict=True
        ):
            said = run.figures['scores'][label]
            area = label_scores(probabilities, targets, threshold=None)['auroc'][0]
            if not (np.isnan(area) if said is None else abs(area - said) <= TOLERANCE):
                raise ValueError(
                    f'{run.folder}: AUROC of {label} is {area} by predictions and labels, {said} '
                    'in scores.json: one of them has changed since'
                )
            drawn = label_scores(probabilities, targets, threshold=None, weights=weights)
            samples[label] = drawn['auroc']
        defined = [label for label in cases.labels if label not in run.figures['undefined']]
        for mean, labels in zip(MEANS, (COMPETITION_LABELS, defined), strict=True):
            if labels and set(labels) <= set(defined):
                samples[mean] = np.mean([samples[label] for label in labels], axis=0)
        return samples

    def _cases(self, file: Path) -> Cases:
        predictions, records = read_predictions(file), self.records
        own = pd.Index([normalise_name(name) for name in predictions.names], dtype=object)
        wanted = unique_names(pd.Series(records.path, dtype=object), f'{records.root}')
        places = own.get_indexer(pd.Index(wanted, dtype=object))
        if (
            len(own) != len(wanted)
            or (places < 0).any()
            or set(self.labels) - {*predictions.labels}
        ):
            raise ValueError(
                f'{file}: its {len(own)} rows are not the {len(wanted)} of '
                f'{records.root / records.csv} that the other row was scored on'
            )
        columns = [predictions.labels.index(label) for label in self.labels]
        return Cases(
            name=str(file),
            labels=self.labels,
            path=records.path,
            study=records.study,
            patient=records.patient,
            probabilities=predictions.probabilities[places][:, columns],
            targets=self.targets,
        ).at_level(self.level, self.aggregate)


def row_changes(before: Config, after: Config) -> dict[str, tuple[str, str]]:
    """Option -> its value before and after, as a table shows them; not where things lie."""
    changes = changed_options(before, after, but=('SEED',))
    return {
        key: (FOLDERS.sub('', old), FOLDERS.sub('', new)) for key, (old, new) in changes.items()
    }


def differences_from_files(
    sweep: Sweep, seeds: Sequence[int], output: str | Path
) -> list[dict[str, Any]]:
    """Where finished runs are not what the files of the sweep say, such as by --pretrain-opts.

    Returns:
        For each difference `stage`, `key` (an option, or one of `batch_counts`), `found`,
        `expected`, and `runs`: names of the folders, [] where it is all of the stage.

    Raises:
        ValueError: if a run has another encoder or another size of image: it is of another sweep.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    names: dict[str, set[str]] = {stage: set() for stage in STAGES}
    for stage, row in [(stage, row) for stage in STAGES for row in sweep.rows if row.run_of(stage)]:
        folders = [run_folder(output, stage, row, seed) for seed in seeds]
        expected = expected_config(sweep, row, stage)
        for folder in folders:
            if folder.name not in names[stage] and is_finished(folder):
                names[stage].add(folder.name)
                changes = _differences(folder, expected, sweep, stage)
                for key, (old, new) in changes.items():
                    found.setdefault((stage, key, new, old), []).append(folder.name)
    return [
        dict(zip(('stage', 'key', 'found', 'expected'), difference, strict=True))
        | {'runs': [] if len(runs) == len(names[difference[0]]) else runs}
        for difference, runs in found.items()
    ]


def _differences(
    folder: Path, expected: Config, sweep: Sweep, stage: str
) -> dict[str, tuple[str, str]]:
    config, record = load_config(folder), read_record(folder) or {}
    changes = row_changes(expected, config)
    check_encoder(folder, changes, expected, sweep)
    wanted, found = batch_counts(expected, {}, stage), batch_counts(config, record, stage)
    return changes | {
        key: (str(count), str(found[key])) for key, count in wanted.items() if found[key] != count
    }


def enough_resamples(num_rows: int) -> int:
    """Draws with which each of so many compared rows can be told from the noise.

    R draws give no p-value below 2 / (R + 1) (`bootstrap_p`), Holm's correction none below that
    times the rows.
    """
    return max(LEAST_RESAMPLES, round(2 * REACH * num_rows / SIGNIFICANT))


def compare_rows(
    rows: Mapping[str, Mapping[int, Scored]],
    against: Mapping[str, str],
    *,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Each row minus the one that it is against, over the seeds that both have.

    Args:
        rows: name -> seed -> the finished run.
        against: name -> name of the other row; '' for none.
        resamples: draws of patients; each serves all seeds, rows and scores.
        seed: of the draws.

    Returns:
        By name: `problem` (why it is not compared, or not over patients; ''), `patients` (how many
        were resampled, 0 for none), `over_patients`: score -> `low` and `high` of the percentile
        interval of the scores averaged over the seeds, {} where patients are not known, and
        `compared`: score -> `difference`; `seeds`, how many;
        `over_seeds`: `low` and `high` of Student's t interval of the seed-by-seed differences, NaN
        for one seed; `over_patients`: `low` and `high` of the percentile interval of the
        difference of the scores averaged over the seeds, `p` (`bootstrap_p`) and `p_holm` (over
        the rows), NaN without patients; `verdict` (see `verdict`).
    """
    sources: dict[str, ScoredPatients | str] = {}
    found = {name: _compare(name, rows, against, sources, (resamples, seed)) for name in rows}
    for score in dict.fromkeys(score for entry in found.values() for score in entry['compared']):
        parts = [entry['compared'][score] for entry in found.values() if score in entry['compared']]
        adjusted = holm([part['over_patients']['p'] for part in parts])
        for part, p_value in zip(parts, adjusted, strict=True):
            part['over_patients']['p_holm'] = float(p_value)
            part['verdict'] = verdict(part)
    for name, runs in rows.items():
        patients = sources.get(against[name] or name)
        if isinstance(patients, ScoredPatients) and (found[name]['patients'] or not against[name]):
            with contextlib.suppress(ValueError):  # of a seed that is in no pair: not looked at
                found[name]['over_patients'] = patients.intervals(runs.values())
    return found


def verdict(part: Mapping[str, Any]) -> str:
    """'above' or 'below' where both intervals leave 0 out and `p_holm` is below SIGNIFICANT.

    'inside the noise' where one of them does not, 'n/a' where one is not known and none of the
    others says so.
    """
    seeds, patients = part['over_seeds'], part['over_patients']
    bounds = [(entry['low'], entry['high']) for entry in (seeds, patients)]
    with_zero = any(low <= 0 <= high for low, high in bounds)  # False for NaN
    if with_zero or patients['p_holm'] >= SIGNIFICANT:
        return 'inside the noise'
    if np.isnan(bounds).any():
        return 'n/a'
    return 'above' if part['difference'] > 0 else 'below'


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t; NaN for one value."""
    if len(differences) < 2:
        return float('nan'), float('nan')
    half = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    return float(np.mean(differences) - half), float(np.mean(differences) + half)


def _compare(
    name: str,
    rows: Mapping[str, Mapping[int, Scored]],
    against: Mapping[str, str],
    sources: dict[str, ScoredPatients | str],
    draws: tuple[int, int],
) -> dict[str, Any]:
    entry = {'problem': '', 'patients': 0, 'over_patients': {}, 'compared': {}}
    if not against[name]:
        return entry
    other = rows[against[name]]
    pairs = [(run, other[seed]) for seed, run in rows[name].items() if seed in other]
    if not pairs:
        return entry | {'problem': f'no seed is finished for it and for {against[name]}'}
    unlike = [
        key
        for key in PROTOCOL
        if len({str(run.figures[key]) for pair in pairs for run in pair}) > 1
    ]
    if unlike:
        return entry | {'problem': f'scored on other cases than {against[name]} ({unlike[0]})'}
    entry['compared'] = _over_seeds(pairs)
    try:
        if against[name] not in sources:
            sources[against[name]] = _patients(pairs[0][1], draws)
        patients = sources[against[name]]
        if isinstance(patients, str):
            raise ValueError(patients)
        _over_patients(entry['compared'], pairs, patients)
    except ValueError as error:
        return entry | {'problem': f'no interval over patients: {FOLDERS.sub("", str(error))}'}
    return entry | {'patients': patients.count}


def _patients(run: Scored, draws: tuple[int, int]) -> ScoredPatients | str:
    """Those that a run was scored on, or why they are not known."""
    try:
        return ScoredPatients(run, resamples=draws[0], seed=draws[1])
    except ValueError as error:
        return str(error)


def _over_seeds(pairs: Sequence[tuple[Scored, Scored]]) -> dict[str, dict[str, Any]]:
    compared = {}
    for score in pairs[0][0].figures['scores']:
        values = np.array([[run.figures['scores'][score] for run in pair] for pair in pairs], float)
        if not np.isnan(values).any():
            differences = values[:, 0] - values[:, 1]
            low, high = t_interval(differences)
            nothing = dict.fromkeys(('low', 'high', 'p', 'p_holm'), float('nan'))
            compared[score] = {
                'difference': float(differences.mean()),
                'seeds': len(pairs),
                'over_seeds': {'low': low, 'high': high},
                'over_patients': nothing,
            }
    return compared


def _over_patients(
    compared: dict[str, dict[str, Any]],
    pairs: Sequence[tuple[Scored, Scored]],
    patients: ScoredPatients,
) -> None:
    samples = [[patients.samples(run) for run in pair] for pair in pairs]
    for score, part in compared.items():
        means = [np.mean([pair[k][score] for pair in samples], axis=0) for k in (0, 1)]
        difference = means[0] - means[1]
        low, high = interval(difference)
        part['over_patients'] |= {'low': low, 'high': high, 'p': bootstrap_p(difference)}

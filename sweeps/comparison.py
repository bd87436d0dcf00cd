"""Paired comparisons of the rows of a sweep: intervals over seeds and patients, Holm, verdict."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from config import Config
from data.labels import COMPETITION_LABELS, scored_targets, task_labels
from data.predictions import look_up, read_predictions
from data.reading import scored_records
from data.records import Records
from engine.run_record import without_home
from evaluation.cases import Cases
from evaluation.compare import bootstrap_p, holm
from evaluation.intervals import Resamples, interval
from evaluation.metrics import label_scores
from sweeps.files import load_config, without_cache

MEANS = ('mean_of_five', 'mean_of_defined')
MISSING = 'n/a'
SIGNIFICANT = 0.05
LEAST_RESAMPLES, BOOTSTRAP_SEED = 1000, 0
REACH = 5  # factor by which the smallest possible corrected p-value is below SIGNIFICANT
# Runs are scored on the same cases, and can be compared, only if these values agree.
PROTOCOL = ('split', 'level', 'views', 'rows', 'undefined', 'positives')
TOLERANCE = 1e-4  # allowed difference of a recomputed AUROC; predictions have 9 digits


class Scored(NamedTuple):
    """Folder and scores (see `sweeps.results.read_scores`) of a fine-tuned run.

    `kind` is '_pixels' for the logistic regression on pixels that the run has scored.
    """

    folder: Path
    figures: dict[str, Any]
    kind: str = ''

    @property
    def predictions(self) -> Path:
        return self.folder / f'predictions_{self.figures["split"]}{self.kind}.csv'


class ScoredPatients:
    """Resamples the patients that runs were scored on.

    Args:
        run: Run whose options decide which cases are scored and how.
        resamples: Number of resamples R.
        seed: Seed of the resamples.

    Raises:
        ValueError: If the labels cannot be read.
    """

    def __init__(self, run: Scored, *, resamples: int, seed: int) -> None:
        config, split = without_cache(load_config(run.folder)), run.figures['split']
        self.level, self.aggregate = config.EVAL.LEVEL, config.EVAL.AGGREGATE
        self.labels = task_labels(config.DATA.TASK, config.DATA.LABELS)
        self.records = scored_records(config, split, logging.getLogger(__name__))
        self.targets = real_targets(config, self.records)
        self.resamples = Resamples(self.records.patient, resamples=resamples, seed=seed)
        self._samples: dict[tuple[Path, str], dict[str, np.ndarray]] = {}

    def samples(self, run: Scored) -> dict[str, np.ndarray]:
        """Return score -> [R], the AUROC of a run in each resample; NaN where a class is missing.

        With a single label, the result also has the other metrics at the threshold of the report.

        Raises:
            ValueError: If the scores were not computed from the predictions in the run folder.
        """
        key = run.folder, run.kind
        if key not in self._samples:
            self._samples[key] = self._resample(run)
        return self._samples[key]

    def intervals(self, runs: Iterable[Scored]) -> dict[str, dict[str, float]]:
        """Return score -> {`low`, `high`}, the interval of the mean over the runs."""
        samples = [self.samples(run) for run in runs]
        shared = [score for score in samples[0] if all(score in each for each in samples)]
        means = {score: np.mean([each[score] for each in samples], axis=0) for score in shared}
        return {score: _bounds(interval(means[score])) for score in shared}

    def _resample(self, run: Scored) -> dict[str, np.ndarray]:
        cases = self._cases(run.predictions)
        weights, samples = self.resamples.weights(cases.patient), {}
        for label, probabilities, targets in zip(
            cases.labels, cases.probabilities.T, cases.targets.T, strict=True
        ):
            written = run.figures['scores'][label]
            area = label_scores(probabilities, targets, threshold=None)['auroc'][0]
            if not (np.isnan(area) if written is None else abs(area - written) <= TOLERANCE):
                raise ValueError(
                    f'{run.folder}: the AUROC of {label} is {area} from predictions and labels, '
                    f'but {written} in scores.json. One of these files has changed.'
                )
            threshold = run.figures.get('thresholds', {}).get(label)
            drawn = label_scores(probabilities, targets, threshold=threshold, weights=weights)
            samples[label] = drawn.pop('auroc')
            if len(cases.labels) == 1:  # with many labels they would fill the memory
                for mean in (label, MEANS[1]):
                    samples |= {f'{name}:{mean}': values for name, values in drawn.items()}
        defined = [label for label in cases.labels if label not in run.figures['undefined']]
        for mean, labels in zip(MEANS, (COMPETITION_LABELS, defined), strict=True):
            if labels and set(labels) <= set(defined):
                samples[mean] = np.mean([samples[label] for label in labels], axis=0)
        return samples

    def _cases(self, file: Path) -> Cases:
        predictions, records = read_predictions(file, labels=self.labels), self.records
        probabilities = look_up(predictions, records.path, self.labels)
        if len(predictions.names) != len(records.path) or np.isnan(probabilities).any():
            raise ValueError(
                f'{file}: the {len(predictions.names)} rows are not the {len(records.path)} images '
                f'of {records.csv} that the other row was scored on'
            )
        return Cases(
            name=str(file),
            labels=self.labels,
            path=records.path,
            study=records.study,
            patient=records.patient,
            probabilities=probabilities,
            targets=self.targets,
        ).at_level(self.level, self.aggregate)


def real_targets(config: Config, records: Records) -> np.ndarray:  # [N, K]
    """Return the real labels of records as they are scored."""
    options = {'task': config.DATA.TASK, 'blank': config.DATA.BLANK, 'names': records.label_names}
    return scored_targets(records.labels, **options)


def enough_resamples(num_comparisons: int) -> int:
    """Return the number of resamples with which each of these comparisons can be significant.

    With R resamples the smallest possible p-value is 2 / (R + 1) (`bootstrap_p`), and after Holm's
    correction it is this value times the number of comparisons.
    """
    return max(LEAST_RESAMPLES, round(2 * REACH * num_comparisons / SIGNIFICANT))


def compare_rows(
    rows: Mapping[str, Mapping[int, Scored]],
    pairs: Sequence[tuple[str, str]],
    *,
    resamples: int,
) -> list[dict[str, Any]]:
    """Compare pairs of rows over the seeds that both have.

    Args:
        rows: Name -> seed -> finished run.
        pairs: Names of a row and of the row to compare it with, or '' for none.
        resamples: Number of resamples of the patients, which all seeds, rows and scores share.

    Returns:
        {`problem`, `over_patients`, `compared`} for each pair. `problem` is the reason why there is
        no comparison or no interval over patients, or ''. `over_patients` has the interval of the
        row's own mean over the seeds, by score. `compared` has a comparison by score, see
        `compare_over_seeds`, `compare_over_patients` and `correct_comparisons`. NaN marks unknown
        values.
    """
    patients: dict[str, ScoredPatients] = {}
    found: list[dict[str, Any]] = []
    for name, against in pairs:
        runs, others = rows[name], rows[against or name]
        entry = {'problem': '', 'over_patients': {}, 'compared': {}}
        found.append(entry)
        try:
            if against:
                entry['compared'] = _over_seeds(runs, others, against)
            if not runs:
                continue
            first = next(iter(others.values()))
            cases = str([first.figures[key] for key in PROTOCOL])
            if cases not in patients:  # rows with the same cases share labels and resamples
                patients[cases] = ScoredPatients(first, resamples=resamples, seed=BOOTSTRAP_SEED)
            if against:
                _over_patients(entry['compared'], runs, others, patients[cases])
            # This comes last because a seed without a pair may be damaged.
            entry['over_patients'] = patients[cases].intervals(runs.values())
        except ValueError as error:
            entry['problem'] = without_home(str(error))
    for score in {score: None for entry in found for score in entry['compared']}:
        parts = [entry['compared'][score] for entry in found if score in entry['compared']]
        correct_comparisons(parts)
    return found


def compare_over_seeds(differences: np.ndarray) -> dict[str, Any]:
    """Compare two rows by their paired differences.

    Args:
        differences: [S], the difference of a score for each seed.

    Returns:
        `difference`, the mean; `seeds`; `over_seeds`, the `low` and `high` of Student's t interval;
        and an unknown `over_patients`, which `compare_over_patients` fills.
    """
    return {
        'difference': float(differences.mean()),
        'seeds': len(differences),
        'over_seeds': _bounds(t_interval(differences)),
        'over_patients': dict.fromkeys(('low', 'high', 'p', 'p_holm'), float('nan')),
    }


def compare_over_patients(samples: np.ndarray) -> dict[str, float]:
    """Return the percentile interval (`low`, `high`) and `p` (`bootstrap_p`) of a difference.

    Args:
        samples: [R], the mean difference over the seeds in each resample of the patients.
    """
    return _bounds(interval(samples)) | {'p': bootstrap_p(samples)}


def correct_comparisons(parts: Sequence[dict[str, Any]]) -> None:
    """Correct the p-values of comparisons by Holm, and add `p_holm` and `verdict` to each."""
    adjusted = holm([part['over_patients']['p'] for part in parts])
    for part, p_value in zip(parts, adjusted, strict=True):
        part['over_patients']['p_holm'] = float(p_value)
        part['verdict'] = verdict(part)


def verdict(part: Mapping[str, Any]) -> str:
    """Return the verdict on a comparison.

    Returns:
        'above' or 'below' if both intervals exclude 0 and `p_holm` is below SIGNIFICANT. 'not
        significant after correction' if both intervals exclude 0 and `p_holm` is not below
        SIGNIFICANT. 'inside the noise' if an interval includes 0. Otherwise 'n/a', because an
        interval is unknown.
    """
    seeds, patients = part['over_seeds'], part['over_patients']
    bounds = [(entry['low'], entry['high']) for entry in (seeds, patients)]
    if any(low <= 0 <= high for low, high in bounds):  # False for NaN
        return 'inside the noise'
    if np.isnan(bounds).any():
        return MISSING
    if patients['p_holm'] >= SIGNIFICANT:
        return 'not significant after correction'
    return 'above' if part['difference'] > 0 else 'below'


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % interval of the mean by Student's t. For a single value it is NaN."""
    if len(differences) < 2:
        return float('nan'), float('nan')
    half = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    return float(np.mean(differences) - half), float(np.mean(differences) + half)


def _over_seeds(
    runs: Mapping[int, Scored], others: Mapping[int, Scored], other: str
) -> dict[str, dict[str, Any]]:
    pairs = [(run, others[seed]) for seed, run in runs.items() if seed in others]
    if not pairs:
        raise ValueError(f'no seed is finished for this row and for {other}')
    for key in PROTOCOL:
        if len({str(run.figures[key]) for pair in pairs for run in pair}) > 1:
            raise ValueError(f'the row was scored on other cases than {other} ({key})')
    compared = {}
    for score in pairs[0][0].figures['scores']:
        values = np.array(
            [[run.figures['scores'].get(score) for run in pair] for pair in pairs], float
        )
        if is_compared(score) and not np.isnan(values).any():
            compared[score] = compare_over_seeds(values[:, 0] - values[:, 1])
    return compared


def _over_patients(
    compared: dict[str, dict[str, Any]],
    runs: Mapping[int, Scored],
    others: Mapping[int, Scored],
    patients: ScoredPatients,
) -> None:
    seeds = [seed for seed in runs if seed in others]
    samples = [[patients.samples(rows[seed]) for seed in seeds] for rows in (runs, others)]
    for score, part in compared.items():
        own, base = (np.mean([each[score] for each in row], axis=0) for row in samples)
        part['over_patients'] |= compare_over_patients(own - base)


def _bounds(pair: tuple[float, float]) -> dict[str, float]:
    return dict(zip(('low', 'high'), pair, strict=True))


def is_compared(score: str) -> bool:
    """Return whether rows are compared by a score. Metrics other than AUROC are only shown."""
    return ':' not in score

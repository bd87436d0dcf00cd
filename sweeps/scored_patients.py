"""Runs on resampled patients, and the comparison of the rows of a sweep that follows from them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from config import Config
from data.labels import COMPETITION_LABELS, scored_targets, task_labels
from data.predictions import look_up, read_predictions
from data.reading import scored_records
from data.records import Records
from engine.run_record import without_home
from evaluation.cases import Cases
from evaluation.intervals import Resamples
from evaluation.metrics import label_scores
from sweeps.comparison import ENDS, LongTable, Seeds, compare_rows, summarise
from sweeps.files import load_config, without_cache
from sweeps.run_scores import MEANS, Scored, is_compared

BOOTSTRAP_SEED = 0
# Runs are scored on the same cases, and can be compared, only if these values agree.
PROTOCOL = ('split', 'level', 'views', 'rows', 'undefined', 'positives')
TOLERANCE = 1e-4  # allowed difference of a recomputed AUROC; predictions have 9 digits
Rows = Mapping[str, Mapping[int, Scored]]  # name -> seed -> finished run


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

    def samples(self, run: Scored) -> dict[str, np.ndarray]:
        """Return the scores of a run as in a long table (`sweeps.comparison`), score -> [1 + R].

        R is 0 for scores other than AUROC, unless there is a single label.

        Raises:
            ValueError: If the scores were not computed from the predictions in the run folder.
        """
        written = written_scores(run)
        samples = {
            score: np.append(written.get(score, np.nan), drawn)
            for score, drawn in self._resample(run).items()
        }
        return samples | {score: written[score] for score in written if score not in samples}

    def _resample(self, run: Scored) -> dict[str, np.ndarray]:  # score -> [R]
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


def compare_runs(
    rows: Rows, pairs: Sequence[tuple[str, str]], *, resamples: int
) -> list[dict[str, Any]]:
    """Compare pairs of rows over the seeds that both have.

    Args:
        rows: Name -> seed -> finished run.
        pairs: Names of a row and of the row to compare it with, or '' for none.
        resamples: Number of resamples of the patients, which all seeds, rows and scores share.

    Returns:
        {`problem`, `over_patients`, `compared`} for each pair. `problem` is the reason why there is
        no comparison or no interval over patients, or ''. `over_patients` has the interval of the
        row's own mean over the seeds, by score. `compared` has the result of `compare_rows` by
        score. NaN marks unknown values.
    """
    table, problems = _long_table(rows, pairs, resamples)
    found = [
        {'problem': _problem(rows, problems, *pair), 'over_patients': {}, 'compared': {}}
        for pair in pairs
    ]
    comparable = [(name, '' if _mismatch(rows, name, other) else other) for name, other in pairs]
    runs = [run for seeds in rows.values() for run in seeds.values()]
    for score in filter(is_compared, dict.fromkeys(s for run in runs for s in written_scores(run))):
        for entry, part in zip(found, compare_rows(table, comparable, score), strict=True):
            if part and not np.isnan(part['difference']):
                entry['compared'][score] = part
    for entry, (name, _) in zip(found, pairs, strict=True):
        if not entry['problem']:
            entry['over_patients'] = _own_intervals(table[name])
    return found


def written_scores(run: Scored) -> dict[str, np.ndarray]:
    """Return the scores of a run as in a long table without resamples, score -> [1]."""
    return {score: np.array([value], float) for score, value in run.figures['scores'].items()}


def _long_table(
    rows: Rows, pairs: Sequence[tuple[str, str]], resamples: int
) -> tuple[LongTable, dict[tuple[str, int], str]]:
    """Return the scores of all runs, and (row, seed) -> reason for runs without resamples."""
    table, problems = {name: {} for name in rows}, {}
    patients: dict[str, ScoredPatients] = {}  # rows with the same cases share labels and resamples
    for name in dict.fromkeys(name for pair in pairs for name in reversed(pair) if name):
        for seed, run in rows[name].items():
            first = next(iter(rows[name].values()))
            cases = str([first.figures[key] for key in PROTOCOL])
            try:
                if cases not in patients:
                    patients[cases] = ScoredPatients(
                        first, resamples=resamples, seed=BOOTSTRAP_SEED
                    )
                table[name][seed] = patients[cases].samples(run)
            except ValueError as error:
                table[name][seed] = written_scores(run)
                problems[name, seed] = without_home(str(error))
    return table, problems


def _problem(rows: Rows, problems: Mapping[tuple[str, int], str], name: str, other: str) -> str:
    """Return the first reason why a comparison or an interval is missing, or ''."""
    if mismatch := _mismatch(rows, name, other):
        return mismatch
    base = other or name
    paired = [seed for seed in rows[name] if seed in rows[base]]
    # This comes last because a seed without a pair may be damaged.
    runs = [(row, seed) for row in (name, base) for seed in paired]
    runs += [(name, seed) for seed in rows[name]]
    return next((problems[run] for run in runs if run in problems), '')


def _mismatch(rows: Rows, name: str, other: str) -> str:
    """Return the reason why two rows cannot be compared, or ''."""
    if not other:
        return ''
    pairs = [(run, rows[other][seed]) for seed, run in rows[name].items() if seed in rows[other]]
    if not pairs:
        return f'no seed is finished for this row and for {other}'
    for key in PROTOCOL:
        if len({str(run.figures[key]) for pair in pairs for run in pair}) > 1:
            return f'the row was scored on other cases than {other} ({key})'
    return ''


def _own_intervals(row: Seeds) -> dict[str, dict[str, float]]:
    """Return score -> {`low`, `high`} of a row, for the scores that all seeds have resamples of."""
    first = next(iter(row.values()), {})
    known = [s for s in first if all(len(scores.get(s, ())) > 1 for scores in row.values())]
    return {s: {end: summarise(row, s)[end] for end in ENDS} for s in known}

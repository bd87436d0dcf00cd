"""Scores of a finished run: as its files state them, and on resampled patients."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from config import PROBES
from data.labels import COMPETITION_LABELS
from data.predictions import look_up, read_predictions
from data.reading import SCORED_SPLITS, scored_records
from data.tasks import task_of
from evaluation.cases import Cases
from evaluation.intervals import Resamples
from evaluation.metrics import METRICS, SplitScores, count_classes, label_scores, labels_of_mean
from logger import read_metrics
from sweeps.collected import CollectedSeed, RunFigures
from sweeps.files import PIXELS, Row, load_config, run_folder, without_cache
from sweeps.row_comparison import MEANS

SPLITS = tuple(sorted(SCORED_SPLITS))  # internal, test, valid: the first scored split is shown
# What JSON of another form raises, also if its parts are nested too deeply.
MALFORMED = (ValueError, AttributeError, KeyError, TypeError, RecursionError)
PIXEL_FILES, PIXEL_SCORES = '_pixels', 'pixel_floor'  # kind of predictions, key in scores.json
TOLERANCE = 1e-4  # allowed difference of a recomputed AUROC; predictions have 9 digits


BOOTSTRAP_SEED = 0
# Runs are scored on the same cases, and can be compared, only if these values agree.
PROTOCOL = ('split', 'level', 'views', 'rows', 'undefined', 'positives', 'negatives')


class Scored(NamedTuple):
    """Folder and scores (see `read_scores`) of a fine-tuned run.

    `kind` is '_pixels' for the logistic regression on pixels that the run has scored.
    """

    folder: Path
    figures: RunFigures
    kind: str = ''

    @property
    def predictions(self) -> Path:
        return self.folder / f'predictions_{self.figures["split"]}{self.kind}.csv'


def scored_runs(
    row: Row, seeds: Sequence[CollectedSeed], output: str | Path, kind: str = ''
) -> dict[int, Scored]:
    """Return seed -> finished run of a row, given the entries of `_collect_seed`."""
    return {
        entry['seed']: Scored(
            run_folder(output, 'finetune', row, entry['seed']), entry['finetune']['figures'], kind
        )
        for entry in seeds
        if entry['finetune']['figures']
    }


def written_scores(run: Scored) -> dict[str, np.ndarray]:
    """Return the scores of a run as in a long table without resamples, score -> [1]."""
    return {score: np.array([value], float) for score, value in run.figures['scores'].items()}


class ScoredPatients:
    """Resamples the patients that runs were scored on.

    Args:
        run: Run whose options decide which cases are scored and how.
        resamples: Number of resamples R.
        seed: Seed of the resamples.

    Raises:
        ValueError: If the labels cannot be read.
    """

    def __init__(self, run: Scored, resamples: int, seed: int) -> None:
        config, split = without_cache(load_config(run.folder)), run.figures['split']
        self.config, self.level, self.aggregate = config, config.EVAL.LEVEL, config.EVAL.AGGREGATE
        self.task = task_of(config)
        self.labels = self.task.labels
        self.records = scored_records(config, split, logging.getLogger(__name__))
        self.targets = self.task.scored(self.records)
        self.resamples = Resamples(self.records.patient, resamples=resamples, seed=seed)

    def samples(self, run: Scored) -> dict[str, np.ndarray]:
        """Return the scores of a run as a `LongTable` has them, score -> [1 + R].

        R is 0 for scores other than AUROC, unless there is a single label.

        Raises:
            ValueError: If the scores were not computed from the predictions in the run folder.
        """
        cases = self.images(run.predictions).at_level(self.level, self.aggregate)
        thresholds = run.figures.get('thresholds', {})
        weights, samples = self.resamples.score_weights(cases.patient), {}
        for label in cases.labels:
            options = {'threshold': thresholds.get(label), 'weights': weights}
            drawn = label_scores(*cases.of_label(label), **options)
            samples[label] = drawn.pop('auroc')
            area, written = samples[label][0], run.figures['scores'][label]
            if not (np.isnan(area) if written is None else abs(area - written) <= TOLERANCE):
                raise ValueError(
                    f'{run.folder}: the AUROC of {label} is {area} from predictions and labels, '
                    f'but {written} in scores.json. One of these files has changed.'
                )
            if len(cases.labels) == 1:  # with many labels they would fill the memory
                for mean in (label, MEANS[1]):
                    samples |= {f'{name}:{mean}': values for name, values in drawn.items()}
        counted = labels_of_mean(count_classes(cases.targets, cases.labels))
        for mean, labels in zip(MEANS, (COMPETITION_LABELS, counted), strict=True):
            if labels and set(labels) <= set(counted):
                samples[mean] = np.mean([samples[label] for label in labels], axis=0)
        for score, written in written_scores(run).items():
            samples[score] = np.append(written, samples.get(score, written)[1:])
        return samples

    def images(self, file: Path) -> Cases:
        """Read the predictions of a run as cases with one row per image.

        Raises:
            ValueError: If the file does not have a prediction for each image.
        """
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
            exclusive=self.task.exclusive,
        )


def read_scores(folder: Path, split: str = '') -> Scored:
    """Read the scores of a finished fine-tuning run for the selected or else the last checkpoint.

    Args:
        folder: Run folder.
        split: One of SPLITS, or '' for the first of them that was scored.

    Returns:
        The run with its results up to `thresholds` in `RunFigures`.

    Raises:
        ValueError: If scores.json or report.json cannot be read. The message names the folder.
    """
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
        figures = _protocol(split, checkpoint, table[split][checkpoint])
        report = _read_report(folder / 'report.json', split)
        figures['scores'] = _areas(table[split][checkpoint]) | _report_scores(report)
        figures['last'] = _areas(table[split]['last']) if table[split].get('last') else {}
        labels = report['labels'] if report else []
        figures['thresholds'] = {entry['label']: entry.get('threshold') for entry in labels}
        if ratio := load_config(folder).EVAL.MASK_RATIO:
            figures['mask_ratio'] = ratio
    except (OSError, *MALFORMED) as error:
        raise ValueError(f'the scores in {folder} cannot be read: {error!r}') from error
    return Scored(folder, figures)


def read_pixel_scores(folder: Path, split: str) -> RunFigures | None:
    """Read the scores of the logistic regression on pixels of a run as in `read_scores`.

    The result is None if the run has not scored it.
    """
    scores = _score_file(folder)[split].get(PIXEL_SCORES)
    if not scores:
        return None
    facts = {'images': scores['images'], 'scores': _areas(scores)}
    return _protocol(split, PIXELS, scores) | facts


def selection_figures(folder: Path, checkpoint: str) -> RunFigures:
    """Return which epoch of a fine-tuning run was scored: `held_out` and the entries after it."""
    is_probe = load_config(folder).FINETUNE.MODE in PROBES
    epochs = [] if is_probe else read_metrics(folder / 'metrics.jsonl')
    trained = [epoch for epoch in epochs if epoch['epoch'] >= 0]
    scores = {epoch['epoch'] + 1: epoch.get('score') for epoch in trained}
    scored = {epoch: score for epoch, score in scores.items() if score is not None}
    figures = {
        'held_out': max(scored.values(), default=-np.inf),
        'epochs': max((epoch['epoch'] + 1 for epoch in trained), default=0),
    }
    if checkpoint == 'last' or not figures['epochs']:
        return figures | {'held_out': [-np.inf, *scored.values()][-1]}
    return figures | {'selected_epoch': max(scored, key=scored.get, default=None)}


def pretraining_figures(records: Sequence[Mapping[str, Any]]) -> RunFigures:
    """Compute the results of a pre-training run from the records of metrics.jsonl.

    `seconds` is the number of epochs times the median epoch without evaluation.
    """
    last, key = records[-1] if records else {}, 'reference_l1_grey'
    figures = {'l1': last.get(key)}
    figures |= {f'l1_{name}': last.get(f'{key}_{name}') for name in ('mean', 'linear')}
    timed = [r for r in records if r['epoch'] >= 0 and r.get('seconds') and r['images_per_second']]
    if timed:
        images = max(round(r['images_per_second'] * r['seconds']) for r in timed)
        epochs = sum(record['epoch'] >= 0 for record in records)
        seconds = median(images / record['images_per_second'] for record in timed)
        figures |= {'images': epochs * images, 'seconds': epochs * seconds}
    return figures


def _score_file(folder: Path) -> dict[str, dict[str, SplitScores]]:
    """Read scores.json of a run: split -> checkpoint -> scores."""
    try:
        return dict(json.loads((folder / 'scores.json').read_bytes()))
    except (OSError, *MALFORMED) as error:
        raise ValueError(f'the scores in {folder} cannot be read: {error!r}') from error


def _protocol(split: str, checkpoint: str, scores: SplitScores) -> RunFigures:
    """Return what was scored and how, from a part of scores.json."""
    kept = ('level', 'views', 'rows', 'positives', 'undefined')
    selection = {key: scores[key] for key in ('selected_on', 'selecting_images') if key in scores}
    own = {key: scores[key] for key in kept} | {'negatives': scores.get('negatives')}
    return {'split': split, 'checkpoint': checkpoint} | own | selection


def _areas(scores: SplitScores) -> dict[str, float | None]:
    """Return the MEANS and the AUROC of each label from a part of scores.json."""
    return {name: scores[name] for name in MEANS if name in scores} | scores['auroc']


def _read_report(report: Path, split: str) -> dict[str, Any] | None:
    """Read the part of a report on a split, or return None if there is none."""
    sets = json.loads(report.read_bytes())['sets'] if report.is_file() else []
    return next((part for part in sets if part['name'] == split), None)


def _report_scores(report: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Return the metrics other than AUROC from a part of a report."""
    scores: dict[str, Mapping[str, Any] | None] = {}
    if report:
        scores |= {entry['label']: entry['scores'] for entry in report['labels']}
        means = report['means']['five'], report['means']['labels']
        scores |= dict(zip(MEANS, means, strict=True))
    return {
        f'{name}:{label}': score['value']
        for label, values in scores.items()
        for name in METRICS
        if name != 'auroc' and METRICS[name].higher_is_better
        if values and (score := values.get(name)) is not None
    }

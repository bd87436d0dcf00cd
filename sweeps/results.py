"""Results of a sweep: figures by row and seed, paired differences with intervals, and the table.

`collect` reads the run folders of a sweep into plain JSON values. `write_sweep_table` writes their
table, as a list of rows of figures (the CSV file) and of rows of cells (Markdown), and
`sweeps.plots` draws their figures.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from config import Config, value_at
from data.labels import COMPETITION_LABELS, scored_targets, task_labels
from data.masking import average_distance, mask_generator
from data.records import (
    SCORED_SPLITS,
    TRAINING_LABELS,
    look_up,
    read_predictions,
    scored_records,
)
from engine.files import replace_file, replace_files
from engine.run_record import is_finished, read_record, without_home
from evaluation.cases import Cases
from evaluation.compare import bootstrap_p, holm
from evaluation.intervals import Resamples, interval
from evaluation.metrics import METRICS, label_scores
from logger import json_safe, read_metrics
from sweeps.files import (
    MASK_KEYS,
    Row,
    Sweep,
    expected_config,
    load_config,
    run_folder,
    subset_size,
    training_changes,
    without_cache,
)

Collected = Mapping[str, Any]  # see `collect`

SPLITS = tuple(sorted(SCORED_SPLITS))  # internal, test, valid: the first scored one is shown
MEANS = ('mean_of_five', 'mean_of_defined')
SECTIONS = {'pretrain': 'pre-training', 'finetune': 'fine-tuning'}
SIGNIFICANT = 0.05
LEAST_RESAMPLES, BOOTSTRAP_SEED = 1000, 0
REACH = 5  # how many times below SIGNIFICANT the smallest corrected p-value can be
# Rows are compared only if these agree: otherwise their scores are of other cases.
PROTOCOL = ('split', 'level', 'views', 'rows', 'undefined', 'positives')
TOLERANCE = 1e-4  # of an AUROC that is computed again; predictions have 9 digits
DIGITS = 6  # significant digits of saved figures

NUM_MASKS, MASK_SEED = 200, 0  # for the mean distance to a visible pixel
# Options that decide which images are held out and how they are read.
HELD_OUT_KEYS = (
    *('DATA.VIEWS', 'DATA.FOLD', 'DATA.HOLDOUT_FRACTION', 'DATA.DATASET', 'EVAL.HOLDOUT_IMAGES'),
    *('DATA.IMG_SIZE', 'DATA.PREPROCESS', 'DATA.PRETRAIN_INTERPOLATION', 'TEST.CROP'),
)

MISSING = 'n/a'
PUBLISHED = 'published, context only'
INTERNAL = (
    'Internal: held-out training patients who chose no checkpoint and no threshold, with '
    f'{TRAINING_LABELS}.'
)
NOT_FOR_CLINICAL_USE = 'Not for clinical use.'


# Reading runs -----------------------------------------------------------------------------------


class Scored(NamedTuple):
    """A fine-tuned run: its folder, and its figures (see `read_scores`)."""

    folder: Path
    figures: dict[str, Any]


def collect(
    sweep: Sweep,
    seeds: Sequence[int],
    output: str | Path,
    *,
    split: str = '',
    resamples: int | None = None,
) -> dict[str, Any]:
    """Everything that a table or a figure of a sweep shows, as JSON values.

    Args:
        sweep: The sweep.
        seeds: Seeds of the runs; missing and unfinished runs are listed as such.
        output: Root of the run folders.
        split: Split whose scores are compared, see `read_scores`.
        resamples: Draws of patients for the intervals over patients; None: as many as the number
            of compared rows needs (`enough_resamples`).

    Returns:
        Facts about the sweep and `rows`. Each row has its name, the row it is compared with
        (`against`), for each seed the state, figures and provenance of both stages, and what
        `compare_rows` finds.

    Raises:
        ValueError: If a file of a finished run cannot be read; the message names it.
    """
    reference = _reference_config(sweep, seeds, output)
    rows = {
        row.name: _collect_row(sweep, row, seeds, output, reference)
        | {'seeds': [_collect_seed(row, seed, output, split) for seed in seeds]}
        for row in sweep.rows
    }
    scored = {
        row.name: {
            entry['seed']: Scored(
                run_folder(output, 'finetune', row, entry['seed']), entry['finetune']['figures']
            )
            for entry in rows[row.name]['seeds']
            if entry['finetune']['figures']
        }
        for row in sweep.rows
    }
    against = {row.name: _best_held_out(row.against, scored) for row in sweep.rows}
    resamples = resamples or enough_resamples(sum(map(bool, against.values())))
    compared = compare_rows(scored, against, resamples=resamples)
    collected = {
        'sweep': sweep.name,
        'title': sweep.title,
        'keys': sweep.keys,
        'reference': sweep.reference.name,
        'subsets': sweep.subsets,
        'seeds': list(seeds),
        'published': _published(sweep, scored),
        'resamples': resamples,
        'differences_from_files': differences_from_files(sweep, seeds, output),
        'rows': [row | {'against': against[n]} | compared[n] for n, row in rows.items()],
    }
    return json.loads(json.dumps(_rounded(json_safe(collected)), allow_nan=False))


def _published(sweep: Sweep, scored: Mapping[str, Mapping[int, Scored]]) -> dict[str, Any] | None:
    """What is published on a sweep; None if it is on a label that no run learned."""
    label = (sweep.published or {}).get('label')
    learned = {
        name for runs in scored.values() for s in runs.values() for name in s.figures['positives']
    }
    return None if label and learned and label not in learned else sweep.published


def _best_held_out(names: Sequence[str], scored: Mapping[str, Mapping[int, Scored]]) -> str:
    """Of rows that differ in a tuned option, the one with the best mean held-out score."""
    means = {
        name: np.mean([run.figures['held_out'] for run in scored[name].values()] or -np.inf)
        for name in names
    }
    return max(means, key=means.get, default='')


def save_collected(collected: Collected, folder: str | Path) -> Path:
    """Write the results of a sweep to `<sweep>.json`, from which tables and figures can be made."""
    path = Path(folder) / f'{collected["sweep"]}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(collected, indent=1, ensure_ascii=False) + '\n').encode())
    return path


def read_collected(folder: str | Path, sweep_name: str) -> dict[str, Any]:
    """Read what `save_collected` wrote.

    Raises:
        ValueError: If the file is missing, damaged or of something else; the message names it.
    """
    path = Path(folder) / f'{sweep_name}.json'
    try:
        found = json.loads(path.read_text('utf-8'))
        is_known = found['sweep'] == sweep_name and 'subsets' in found
        if not is_known or not all({'seeds', 'l1_caveat'} <= {*row} for row in found['rows']):
            raise ValueError(f'these are not the results of {sweep_name} by table --save')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} cannot be read: {error!r}') from error
    return found


def read_scores(folder: Path, split: str = '') -> Scored:
    """The scores of a finished fine-tuning, of the selected checkpoint or else of the last one.

    Args:
        folder: Run folder.
        split: One of SPLITS; '': the first of them that was scored.

    Returns:
        Scored: with `split`, `checkpoint`, `level`, `views`, `rows`, `positives`, `undefined`, and
        `scores`: AUROC by label and the MEANS, and from report.json other metrics of both as
        'metric:label', such as 'f1:Edema' or 'f1:mean_of_five'; None where undefined. `thresholds`
        are those of the report by label.

    Raises:
        ValueError: If scores.json or report.json cannot be read; the message names the folder.
    """
    try:
        table = json.loads((folder / 'scores.json').read_bytes())
        known = [name for name in SPLITS if name in table]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f'the scores in {folder} cannot be read: {error!r}') from error
    if not known or split not in ('', *known):
        raise ValueError(
            f'{folder} has scores on {", ".join(known) or "no split"}, and not on '
            f'{split or " or ".join(SPLITS)} (--split)'
        )
    split = split or known[0]
    try:
        checkpoint = 'selected' if table[split].get('selected') else 'last'
        scores = table[split][checkpoint]
        kept = ('level', 'views', 'rows', 'positives', 'undefined')
        figures = {'split': split, 'checkpoint': checkpoint} | {key: scores[key] for key in kept}
        figures['scores'] = {name: scores[name] for name in MEANS if name in scores} | scores[
            'auroc'
        ]
        figures['scores'] |= _report_scores(folder / 'report.json', split)
        figures['thresholds'] = _thresholds(folder / 'report.json', split)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'the scores in {folder} cannot be read: {error!r}') from error
    return Scored(folder, figures)


def _report_scores(report: Path, split: str) -> dict[str, float | None]:
    """The metrics of a report other than AUROC; {} without a report of the split."""
    sets = json.loads(report.read_bytes())['sets'] if report.is_file() else []
    scores: dict[str, Mapping[str, Any] | None] = {}
    for part in [part for part in sets if part['name'] == split]:
        scores |= {entry['label']: entry['scores'] for entry in part['labels']}
        parts = part['means']['five'], part['means']['labels_with_both_classes']
        scores |= dict(zip(MEANS, parts, strict=True))
    return {
        f'{name}:{label}': score['value']
        for label, values in scores.items()
        for name in METRICS
        if name != 'auroc' and METRICS[name].higher_is_better
        if values and (score := values.get(name)) is not None
    }


def _thresholds(report: Path, split: str) -> dict[str, float | None]:
    sets = json.loads(report.read_bytes())['sets'] if report.is_file() else []
    labels = [entry for part in sets if part['name'] == split for entry in part['labels']]
    return {entry['label']: entry.get('threshold') for entry in labels}


def _collect_row(
    sweep: Sweep, row: Row, seeds: Sequence[int], output: str | Path, reference: Config | None
) -> dict[str, Any]:
    """A row; `reference` is the configuration that held-out images are compared with."""
    configs = [load_config(folder) for folder in _finished(row, 'simmim', seeds, output)]
    caveats = {caveat for config in configs for caveat in _l1_caveats(config, reference)}
    masks = {'average_distance_px': None, 'hidden_percent': None}
    if configs and MASK_KEYS & set(sweep.keys):
        masks = _own_masks(configs[0])
    return {
        'name': row.name,
        'run': row.run,
        'method': row.method,
        'subset': row.subset,
        'pretraining': row.pretraining,
        'l1_caveat': ', '.join(sorted(caveats)),
        'other_images': any(_held_out_changes(config, reference) for config in configs),
        **masks,
    }


def _collect_seed(row: Row, seed: int, output: str | Path, split: str) -> dict[str, Any]:
    return {
        'seed': seed,
        'pretrain': _entry(run_folder(output, row.pretraining, row, seed), 'pretrain'),
        'finetune': _entry(run_folder(output, 'finetune', row, seed), 'finetune', split),
    }


def _finished(row: Row, stage: str, seeds: Sequence[int], output: str | Path) -> list[Path]:
    folders = [run_folder(output, stage, row, seed) for seed in seeds]
    return [folder for folder in folders if folder and is_finished(folder)]


def _entry(folder: Path | None, section: str, split: str = '') -> dict[str, Any] | None:
    """State, figures and provenance of a run; None for a stage that the row does not have."""
    if folder is None:
        return None
    if not is_finished(folder):
        return {'state': 'unfinished' if folder.is_dir() else 'missing', 'figures': None}
    if section == 'pretrain':
        figures = pretraining_figures(read_metrics(folder / 'metrics.jsonl'))
    else:
        epochs = read_metrics(folder / 'metrics.jsonl')
        held_out = max((epoch.get('score') or -np.inf for epoch in epochs), default=-np.inf)
        figures = read_scores(folder, split).figures | {'held_out': held_out}
    record = read_record(folder) or {}
    tables = (record.get('data') or {}).get('files') or {}
    provenance = {'code': record.get('code'), 'tables': tables}
    return {'state': 'finished', 'figures': figures, 'provenance': provenance}


def pretraining_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Figures of a pre-training from the lines of its metrics.jsonl.

    Returns:
        `l1`: held-out L1 in grey levels at the end, under the masks that all runs share, next to
        the trivial predictors `l1_mean` and `l1_linear`; `images` seen and `seconds`. Seconds are
        epochs times the median epoch without evaluation. An epoch that an interruption cut in two
        is logged from where it resumed; it counts as a whole epoch at its own rate.
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


def _reference_config(sweep: Sweep, seeds: Sequence[int], output: str | Path) -> Config | None:
    """Configuration of the reference's SimMIM pre-training, or of the first row that has one."""
    rows = [row for row in (sweep.reference, *sweep.rows) if row.pretraining == 'simmim']
    if not rows:
        return None
    folders = _finished(rows[0], 'simmim', seeds, output)
    return load_config(folders[0]) if folders else expected_config(rows[0], 'simmim')


def _own_masks(config: Config) -> dict[str, float]:
    """How much a row's masks hide, and how far that is from the visible."""
    generator, rng = mask_generator(config), np.random.default_rng(MASK_SEED)
    masks = np.stack([generator(rng) for _ in range(NUM_MASKS)])
    distance = average_distance(masks, config.DATA.IMG_SIZE // masks.shape[1])
    hidden = 100 * generator.count / generator.rand_size**2
    return {'average_distance_px': float(distance), 'hidden_percent': hidden}


def _l1_caveats(config: Config, reference: Config) -> Iterator[str]:
    """Why the held-out L1 of a run cannot be compared with the reference's."""
    simmim = config.MODEL.SIMMIM
    if config.MODEL.MAE.NORM_PIX_LOSS or simmim.TARGET != 'pixels':
        yield 'it predicts normalised patches and is given their mean and standard deviation'
    if simmim.TARGET_SIZE not in (0, config.DATA.IMG_SIZE):
        yield 'it predicts one value for several pixels'
    if changed := _held_out_changes(config, reference):
        yield f'its held-out images are others ({", ".join(changed)})'


def _held_out_changes(config: Config, reference: Config) -> list[str]:
    return [key for key in HELD_OUT_KEYS if value_at(config, key) != value_at(reference, key)]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f'{value:.{DIGITS}g}') if isinstance(value, float) else value


def differences_from_files(
    sweep: Sweep, seeds: Sequence[int], output: str | Path
) -> list[dict[str, Any]]:
    """Where finished runs differ from the files of the sweep, such as by --pretrain-opts.

    Returns:
        For each difference its `stage`, the `change` (expected -> found), and the `runs`: names of
        the folders, [] if all runs of the stage differ so.
    """
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    checked: dict[str, set[str]] = defaultdict(set)
    for row in sweep.rows:
        for stage in row.stages:
            expected = expected_config(row, stage)
            for folder in _finished(row, stage, seeds, output):
                if folder.name in checked[stage]:  # a shared pre-training
                    continue
                checked[stage].add(folder.name)
                config, record = load_config(folder), read_record(folder) or {}
                expected.SEED = config.SEED
                for change in training_changes(stage, (expected, {}), (config, record)):
                    found[stage, change].append(folder.name)
    return [
        {
            'stage': stage,
            'change': without_home(change),
            'runs': runs if len(runs) < len(checked[stage]) else [],
        }
        for (stage, change), runs in found.items()
    ]


# Comparing rows ---------------------------------------------------------------------------------


class ScoredPatients:
    """The cases that a run was scored on, and resamples of their patients.

    Args:
        run: Run whose options decide what is scored and how.
        resamples: Number of draws R.
        seed: Seed of the draws.

    Raises:
        ValueError: If the labels cannot be read.
    """

    def __init__(self, run: Scored, *, resamples: int, seed: int) -> None:
        config, split = without_cache(load_config(run.folder)), run.figures['split']
        self.level, self.aggregate = config.EVAL.LEVEL, config.EVAL.AGGREGATE
        self.labels = task_labels(config.DATA.TASK, config.DATA.LABELS)
        self.records = scored_records(config, split, logging.getLogger(__name__))
        self.targets = scored_targets(
            self.records.labels,
            task=config.DATA.TASK,
            blank=config.DATA.BLANK,
            names=self.records.label_names,
        )
        self.resamples = Resamples(self.records.patient, resamples=resamples, seed=seed)
        self._samples: dict[Path, dict[str, np.ndarray]] = {}

    def samples(self, run: Scored) -> dict[str, np.ndarray]:
        """Score -> [R] AUROC of a run in each resample, NaN where a class is missing.

        With a single label, its other metrics follow, at the threshold of the report.

        Raises:
            ValueError: If its predictions are not those that its scores were computed from.
        """
        if run.folder not in self._samples:
            self._samples[run.folder] = self._resample(run)
        return self._samples[run.folder]

    def intervals(self, runs: Iterable[Scored]) -> dict[str, dict[str, float]]:
        """Score -> `low` and `high` of its mean over the runs."""
        samples = [self.samples(run) for run in runs]
        shared = [score for score in samples[0] if all(score in each for each in samples)]
        means = {score: np.mean([each[score] for each in samples], axis=0) for score in shared}
        return {score: _bounds(interval(means[score])) for score in shared}

    def _resample(self, run: Scored) -> dict[str, np.ndarray]:
        cases = self._cases(run.folder / f'predictions_{run.figures["split"]}.csv')
        weights, samples = self.resamples.weights(cases.patient), {}
        for label, probabilities, targets in zip(
            cases.labels, cases.probabilities.T, cases.targets.T, strict=True
        ):
            written = run.figures['scores'][label]
            area = label_scores(probabilities, targets, threshold=None)['auroc'][0]
            if not (np.isnan(area) if written is None else abs(area - written) <= TOLERANCE):
                raise ValueError(
                    f'{run.folder}: AUROC of {label} is {area} from predictions and labels, but '
                    f'{written} in scores.json: one of these files has changed'
                )
            threshold = run.figures.get('thresholds', {}).get(label)
            drawn = label_scores(probabilities, targets, threshold=threshold, weights=weights)
            samples[label] = drawn.pop('auroc')
            if len(cases.labels) == 1:  # of many labels they would fill the memory
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
                f'{file}: its {len(predictions.names)} rows are not the {len(records.path)} of '
                f'{records.csv} that the other row was scored on'
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


def enough_resamples(num_rows: int) -> int:
    """Draws with which each of so many compared rows can differ significantly.

    With R draws no p-value is below 2 / (R + 1) (`bootstrap_p`), and none that Holm corrected is
    below that times the number of rows.
    """
    return max(LEAST_RESAMPLES, round(2 * REACH * num_rows / SIGNIFICANT))


def compare_rows(
    rows: Mapping[str, Mapping[int, Scored]],
    against: Mapping[str, str],
    *,
    resamples: int,
) -> dict[str, dict[str, Any]]:
    """Compare each row with another one, over the seeds that both have.

    Args:
        rows: Name -> seed -> the finished run.
        against: Name -> name of the other row; '' for none.
        resamples: Draws of patients; each serves all seeds, rows and scores.

    Returns:
        By name: `problem` (why there is no comparison, or no interval over patients; ''),
        `over_patients` (score -> `low` and `high` of the row's own score averaged over the seeds),
        and `compared`: AUROC -> `difference`; `seeds`; `over_seeds`: `low` and `high` of Student's
        t interval of the paired differences; `over_patients`: `low` and `high` of the percentile
        interval of the difference, `p` (`bootstrap_p`) and `p_holm` (over the rows); `verdict`. NaN
        stands for unknown values.
    """
    patients: dict[str, ScoredPatients] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, runs in rows.items():
        other = against[name] or name
        entry = found[name] = {'problem': '', 'over_patients': {}, 'compared': {}}
        try:
            if against[name]:
                entry['compared'] = _over_seeds(runs, rows[other], other)
            if runs and other not in patients:  # the labels are read once for each other row
                first = next(iter(rows[other].values()))
                patients[other] = ScoredPatients(first, resamples=resamples, seed=BOOTSTRAP_SEED)
            if against[name]:
                _over_patients(entry['compared'], runs, rows[other], patients[other])
            if runs:  # last: a seed in no pair may be damaged
                entry['over_patients'] = patients[other].intervals(runs.values())
        except ValueError as error:
            entry['problem'] = without_home(str(error))
    for score in {score: None for entry in found.values() for score in entry['compared']}:
        parts = [entry['compared'][score] for entry in found.values() if score in entry['compared']]
        adjusted = holm([part['over_patients']['p'] for part in parts])
        for part, p_value in zip(parts, adjusted, strict=True):
            part['over_patients']['p_holm'] = float(p_value)
            part['verdict'] = verdict(part)
    return found


def verdict(part: Mapping[str, Any]) -> str:
    """'above' or 'below' if both intervals exclude 0 and `p_holm` is below SIGNIFICANT.

    'not significant after correction' if only `p_holm` is not. Otherwise 'inside the noise', or
    'n/a' if an interval is unknown and the rest excludes 0.
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
    """95 % interval of the mean by Student's t; NaN for one value."""
    if len(differences) < 2:
        return float('nan'), float('nan')
    half = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    return float(np.mean(differences) - half), float(np.mean(differences) + half)


def _over_seeds(
    runs: Mapping[int, Scored], others: Mapping[int, Scored], other: str
) -> dict[str, dict[str, Any]]:
    pairs = [(run, others[seed]) for seed, run in runs.items() if seed in others]
    if not pairs:
        raise ValueError(f'no seed is finished for it and for {other}')
    for key in PROTOCOL:
        if len({str(run.figures[key]) for pair in pairs for run in pair}) > 1:
            raise ValueError(f'scored on other cases than {other} ({key})')
    compared = {}
    for score in pairs[0][0].figures['scores']:
        values = np.array(
            [[run.figures['scores'].get(score) for run in pair] for pair in pairs], float
        )
        if is_compared(score) and not np.isnan(values).any():
            differences = values[:, 0] - values[:, 1]
            compared[score] = {
                'difference': float(differences.mean()),
                'seeds': len(pairs),
                'over_seeds': _bounds(t_interval(differences)),
                'over_patients': dict.fromkeys(('low', 'high', 'p', 'p_holm'), float('nan')),
            }
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
        part['over_patients'] |= _bounds(interval(own - base)) | {'p': bootstrap_p(own - base)}


def _bounds(pair: tuple[float, float]) -> dict[str, float]:
    return dict(zip(('low', 'high'), pair, strict=True))


# Summaries of rows ------------------------------------------------------------------------------


def score_of(row: Mapping[str, Any], score: str) -> pd.Series:
    """A score of the seeds for which it is defined."""
    values = [figures['scores'].get(score) for figures in _figures(row, 'finetune')]
    return pd.Series(values, dtype=float).dropna()


def pretrain_figure(row: Mapping[str, Any], name: str) -> pd.Series:
    """One of `pretraining_figures` of the seeds for which it is defined."""
    values = [figures.get(name) for figures in _figures(row, 'pretrain')]
    return pd.Series(values, dtype=float).dropna()


def count_finished(row: Mapping[str, Any]) -> int:
    """Seeds of which every stage is finished."""
    return sum(not _unfinished_stages(entry) for entry in row['seeds'])


def is_compared(score: str) -> bool:
    """Whether rows are compared by a score; metrics other than AUROC are only shown."""
    return ':' not in score


def choose_scores(collected: Collected, scores: Sequence[str] | None = None) -> list[str]:
    """The scores of a table: those asked for, or the mean of five if all rows have it.

    Raises:
        ValueError: If there is no such score.
    """
    if scores is None:
        counts = [[len(score_of(row, mean)) for row in collected['rows']] for mean in MEANS]
        return [MEANS[0] if counts[0] == counts[1] else MEANS[1]]
    known = known_scores(collected)
    for score in scores:
        if known and score not in known:
            raise ValueError(f'--scores must be some of {", ".join(known)}, got {score!r}')
    return list(scores)


def known_scores(collected: Collected) -> list[str]:
    """All scores of the finished runs."""
    return list({score: None for each in _all_scores(collected) for score in each['scores']})


def score_title(collected: Collected, score: str) -> str:
    """A score's name for readers."""
    name, _, label = score.rpartition(':')
    if label == 'mean_of_five':
        label = 'mean of five'
    if label == 'mean_of_defined':
        names = {name for figures in _all_scores(collected) for name in figures['positives']}
        counts = {len(f['positives']) - len(f['undefined']) for f in _all_scores(collected)}
        label = f'mean of {" or ".join(map(str, sorted(counts))) or "all"} labels'
        label = names.pop() if len(names) == 1 else label
    return f'{METRICS[name or "auroc"].title}, {label}'


def row_title(collected: Collected, row: Mapping[str, Any]) -> str:
    """A row's name, or its method; marks the reference, and a comparison with another row."""
    rows = {each['name']: each for each in collected['rows']}
    reference, key = rows[collected['reference']], 'method' if row['method'] else 'name'
    other = rows[row['against']][key] if row['against'] else ''
    marks = ['reference'] if row[key] == reference[key] else []
    if other not in ('', reference[key]):
        marks.append(f'against {other}')
    return f'{row[key]} ({", ".join(marks)})' if marks else row[key]


def subset_title(collected: Collected, subset: str) -> str:
    """A subset of the labels for readers, such as '10 %'."""
    if collected['subsets'] == 'shares':
        return f'{100 * float(subset):g} %'
    return 'all images' if subset == 'all' else f'{int(subset):,} images'


def _figures(row: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    runs = [entry[section] for entry in row['seeds']]
    return [run['figures'] for run in runs if run and run['figures']]


def _all_scores(collected: Collected) -> list[Mapping[str, Any]]:
    return [figures for row in collected['rows'] for figures in _figures(row, 'finetune')]


def _unfinished_stages(entry: Mapping[str, Any]) -> list[str]:
    """What a seed lacks, such as 'fine-tuning missing'."""
    runs = {name: entry[section] for section, name in SECTIONS.items()}
    return [f'{name} {r["state"]}' for name, r in runs.items() if r and r['state'] != 'finished']


# Tables -----------------------------------------------------------------------------------------


def write_table(
    folder: Path, name: str, figures: Sequence[Mapping[str, Any]], markdown: str
) -> Path:
    """Write a table as `<name>.csv` (unrounded, empty if unknown) and `<name>.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(figures, dtype=object)  # keeps whole numbers whole
    page = folder / f'{name}.md'
    replace_files({page: markdown, page.with_suffix('.csv'): table.to_csv(index=False)})
    return page


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of cells as a Markdown table."""
    lines = [list(rows[0]), ['---'] * len(rows[0]), *(list(row.values()) for row in rows)]
    cells = [[cell.replace('<', '&lt;').replace('|', r'\|') for cell in line] for line in lines]
    return ''.join(f'| {" | ".join(line)} |\n' for line in cells)


def shown(value: float | None, form: str) -> str:
    """A figure as text with a minus sign; MISSING for None and NaN."""
    return MISSING if value is None or value != value else f'{value:{form}}'.replace('-', '−')


def with_interval(value: float | None, low: float | None, high: float | None, form: str) -> str:
    """A figure as text, with its interval if that is known."""
    bounds = [shown(bound, form) for bound in (low, high)]
    return shown(value, form) + ('' if MISSING in bounds else f' ({" to ".join(bounds)})')


def write_sweep_table(
    collected: Collected, folder: Path, scores: Sequence[str] | None = None
) -> Path:
    """Write the table of a sweep; see `write_table`."""
    scores = choose_scores(collected, scores)
    figures = [_row_figures(collected, row, scores) for row in collected['rows']]
    return write_table(folder, collected['sweep'], figures, sweep_markdown(collected, scores))


def sweep_markdown(collected: Collected, scores: Sequence[str] | None = None) -> str:
    """The table of a sweep with its notes below."""
    scores = choose_scores(collected, scores)
    cells = [dict(_row_cells(collected, row, scores)) for row in collected['rows']]
    listed = ''.join(f'- {note}\n' for note in notes(collected))
    return f'{markdown_table(cells)}\n{listed}'


def write_published_table(collected: Collected, scores: Sequence[str], folder: Path) -> Path:
    """Write the scores of all rows with their intervals over patients next to published ones.

    Args:
        collected: See `collect`; a published value is a list in the order of the scores.
        scores: `Sweep.scores`.
        folder: See `write_table`.
    """
    figures, cells = [], []
    for row in collected['rows']:
        line = {'row': row['name']}
        cell = {collected['title']: row['method'], 'labels': subset_title(collected, row['subset'])}
        published = collected['published']['values'].get(row['name'], [None] * len(scores))
        for score, other in zip(scores, published, strict=True):
            own, title = score_of(row, score).mean(), score_title(collected, score)
            ends = row['over_patients'].get(score, {})
            low, high = (ends.get(end) for end in ('low', 'high'))
            line |= {score: own, f'{score}_low': low, f'{score}_high': high}
            line[f'{score}_published'] = other
            cell[title] = with_interval(own, low, high, '.3f')
            cell[f'{title}, published'] = '' if other is None else shown(other, '.3f')
        figures.append(line)
        cells.append(cell)
    about = collected['published']
    text = (
        f'{markdown_table(cells)}\nMean over the finished seeds, with the 95 % percentile interval '
        f'over patients of that mean. {PUBLISHED.capitalize()}: {about["measure"]}, '
        f'{about["source"]}. {about["note"]} {NOT_FOR_CLINICAL_USE}\n'
    )
    return write_table(folder, f'{collected["sweep"]}_published', figures, text)


def write_label_table(collected: Collected, folder: Path) -> Path:
    """Write AUROC by label and method, of the greatest subset; see `write_table`."""
    most = max((row['subset'] for row in collected['rows']), key=subset_size)
    rows = [row for row in collected['rows'] if row['subset'] == most]
    labels = [score for score in known_scores(collected) if is_compared(score)]
    values = {label: {row['method']: score_of(row, label) for row in rows} for label in labels}
    figures = [
        {'label': label} | {f'{method}_mean': seeds.mean() for method, seeds in scores.items()}
        for label, scores in values.items()
    ]
    cells = [
        {f'AUROC, labelled: {subset_title(collected, most)}': score_title(collected, label)[7:]}
        | {method: _with_sd(seeds, '.3f') for method, seeds in scores.items()}
        for label, scores in values.items()
    ]
    return write_table(folder, f'{collected["sweep"]}_labels', figures, markdown_table(cells))


def notes(collected: Collected) -> list[str]:
    """What a reader must know of the table, one paragraph each."""
    found = [
        *_score_notes(collected),
        *_l1_notes(collected),
        'Mean ± standard deviation over the finished seeds. Differences are paired by seed, with '
        "the reference unless another row is named. Over seeds: 95 % interval by Student's t. Over "
        'patients: 95 % percentile interval of the difference of the means over seeds, '
        f'{collected["resamples"]} paired resamples of the patients. Verdict: above or '
        'below if both intervals exclude 0 and the bootstrap p-value over patients, corrected by '
        f'Holm over the rows of the table, is below {SIGNIFICANT}; not significant after '
        'correction if only that is not; inside the noise if an interval includes 0.',
        *_problem_notes(collected),
    ]
    if published := collected['published']:
        found.append(
            f'{PUBLISHED.capitalize()}: {published["measure"]}, {published["source"]}. '
            f'{published["note"]} These are other data, models or protocols, which cannot be '
            'compared with the other columns.'
        )
    return [*found, NOT_FOR_CLINICAL_USE]


def _score_notes(collected: Collected) -> Iterator[str]:
    kinds = {}
    for f in _all_scores(collected):
        rows = 'studies' if f['level'] == 'study' else 'images'
        kind = f'Scores on {f["split"]}: {f["rows"]} {rows}, {f["views"]} views'
        kinds[f'{kind}, {f["checkpoint"]} checkpoint'] = f['undefined']
    for kind, undefined in kinds.items():
        missing = f' Labels without both classes: {", ".join(undefined)}.' if undefined else ''
        about = f' {INTERNAL}' if 'on internal' in kind else ''
        yield f'{kind}. Higher is better.{missing}{about}'


def _has_l1(collected: Collected) -> bool:
    """Whether a row has a reconstruction error, which contrastive methods do not have."""
    return any(row['pretraining'] == 'simmim' for row in collected['rows'])


def _l1_notes(collected: Collected) -> Iterator[str]:
    if not _has_l1(collected):
        return
    # Older files of results do not say whether a row's held-out images are the reference's.
    trivial, rows = [], [row for row in collected['rows'] if not row.get('other_images')]
    for name, title in (('mean', 'mean of the visible pixels'), ('linear', 'interpolation')):
        means = pd.Series([pretrain_figure(row, f'l1_{name}').mean() for row in rows], dtype=float)
        trivial.append(f'{title} {shown(means.mean(), ".2f")}')
    yield (
        'Held-out L1: after pre-training, on hidden pixels of held-out training patients, with '
        'random masks that all rows share. Lower is better. Trivial predictors: '
        f'{", ".join(trivial)}.'
    )
    for row in collected['rows']:
        if row['l1_caveat']:
            yield f'* The held-out L1 of {row["name"]} cannot be compared: {row["l1_caveat"]}.'


def _problem_notes(collected: Collected) -> Iterator[str]:
    """Unfinished runs, rows that cannot be compared, differences in code, data or options."""
    for row in collected['rows']:
        lacking = [
            f'seed {entry["seed"]} ({", ".join(stages)})'
            for entry in row['seeds']
            if (stages := _unfinished_stages(entry))
        ]
        if lacking:
            yield f'{row["name"]} is not finished: {"; ".join(lacking)}.'
        if row['problem']:
            yield f'{row["name"]}: {row["problem"]}.'
    runs = [e[s] for row in collected['rows'] for e in row['seeds'] for s in SECTIONS]
    finished = [run for run in runs if run and run['state'] == 'finished']
    codes = sorted({str(run['provenance']['code']) for run in finished})
    if len(codes) > 1:
        yield f'The runs used {len(codes)} versions of the code: {", ".join(codes)}.'
    for section, title in SECTIONS.items():
        members = [entry[section] for row in collected['rows'] for entry in row['seeds']]
        found = [run['provenance']['tables'] for run in members if run and 'provenance' in run]
        tables = {item for files in found for item in files.items()}
        names = [name for name, _ in tables]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f'The runs of {title} have read {names.count(name)} different files {name}.'
    differences = defaultdict(list)
    for part in collected['differences_from_files']:
        differences[part['stage'], ', '.join(part['runs']) or 'all'].append(part['change'])
    for (stage, where), changes in differences.items():
        yield f'Runs of {stage} differ from the sweep file ({where}): {"; ".join(changes)}.'


def _row_figures(
    collected: Collected, row: Mapping[str, Any], scores: Sequence[str]
) -> dict[str, Any]:
    line = {'row': row['name'], 'run': row['run'], 'against': row['against']}
    if collected['subsets']:
        line |= {key: row[key] for key in ('method', 'subset', 'pretraining')}
        line |= {f'pretrain_{k}': pretrain_figure(row, k).mean() for k in ('images', 'seconds')}
    line |= {
        'finished_seeds': count_finished(row),
        'seeds': len(row['seeds']),
        'average_distance_px': row['average_distance_px'],
        'hidden_percent': row['hidden_percent'],
        'held_out_l1_caveat': row['l1_caveat'],
    }
    values = {'held_out_l1_grey': pretrain_figure(row, 'l1')}
    values |= {score: score_of(row, score) for score in scores}
    for name, seeds in values.items():
        line |= {
            f'{name}_mean': round(seeds.mean(), DIGITS),
            f'{name}_sd': round(seeds.std(), DIGITS),
        }
    for score in scores:
        part = row['compared'].get(score, {})
        line |= {f'{score}_{name}': part.get(name) for name in ('difference', 'verdict')}
        for noise in ('over_seeds', 'over_patients'):
            bounds = part.get(noise, {})
            line |= {f'{score}_{noise}_{end}': bounds.get(end) for end in ('low', 'high')}
        line |= {f'{score}_{k}': part.get('over_patients', {}).get(k) for k in ('p', 'p_holm')}
    if collected['published']:
        line[PUBLISHED] = collected['published']['values'].get(row['name'])
    return line


def _row_cells(
    collected: Collected, row: Mapping[str, Any], scores: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Title and text of each cell of a row."""
    yield collected['title'], row_title(collected, row)
    if collected['subsets']:
        yield 'labels', subset_title(collected, row['subset'])
        images, seconds = (pretrain_figure(row, name).mean() for name in ('images', 'seconds'))
        cells = shown(images, ',.0f'), shown(seconds / 60, ',.1f')
        titles = 'images seen in pre-training', 'minutes of pre-training'
        yield from zip(titles, cells if row['pretraining'] else ('none', 'none'), strict=True)
    if any(each['average_distance_px'] is not None for each in collected['rows']):
        yield 'AvgDist (px)', shown(row['average_distance_px'], '.2f')
        yield 'hidden (%)', shown(row['hidden_percent'], '.1f')
    if _has_l1(collected):
        l1 = _with_sd(pretrain_figure(row, 'l1'), '.2f')
        l1 = l1 if row['pretraining'] == 'simmim' else 'none'
        yield 'held-out L1 (grey levels)', f'{l1} *' if row['l1_caveat'] else l1
    for score in scores:
        title, part = score_title(collected, score), row['compared'].get(score, {})
        yield title, _with_sd(score_of(row, score), '.3f')
        if not is_compared(score):
            continue
        for name, noise in (('seeds', 'over_seeds'), ('patients', 'over_patients')):
            bounds = part.get(noise, {})
            cell = with_interval(part.get('difference'), *map(bounds.get, ('low', 'high')), '+.3f')
            yield f'{title}: difference (95 % over {name})', cell if row['against'] else ''
        yield f'{title}: verdict', part.get('verdict', MISSING) if row['against'] else ''
    yield 'finished seeds', f'{count_finished(row)} of {len(row["seeds"])}'
    if collected['published']:
        value = collected['published']['values'].get(row['name'])
        value = ', '.join(map(str, value)) if isinstance(value, list) else value
        yield PUBLISHED, '' if value is None else str(value)


def _with_sd(values: pd.Series, form: str) -> str:
    return shown(values.mean(), form) + (f' ± {values.std():{form}}' if len(values) > 1 else '')

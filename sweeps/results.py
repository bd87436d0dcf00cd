"""Results of a sweep: figures by row and seed, paired differences with intervals, notes, tables.

`collect` reads the run folders of a sweep into plain JSON values. `write_sweep_table` writes the
table of these, and `sweeps.plots` draws its figures. `finding_rows` and `finding_cells` are the
table of a study of one binary task, which is read from the reports of its runs.

Every table is a list of rows of figures (the CSV file) and a list of rows of cells (Markdown).
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from config import PROBES, Config, encoder_name, encoder_node, value_at
from data.data_simmim import mask_generator, reference_mask_generator
from data.labels import COMPETITION_LABELS, NO_FINDING, scored_targets, task_labels
from data.masking import average_distance
from data.records import look_up, read_predictions, read_split, select_views
from engine.files import replace_file
from engine.run_record import is_finished, read_record
from evaluation.cases import Cases
from evaluation.compare import bootstrap_p, holm
from evaluation.intervals import Resamples, interval
from evaluation.metrics import label_scores
from evaluation.published import FRADKIN, MAE_STUDY
from logger import json_safe, read_metrics
from models.contrastive import METHODS
from models.simmim import PRETRAINING
from sweeps.files import (
    SECTION_NAMES,
    STAGES,
    Row,
    Sweep,
    batch_counts,
    changed_options,
    expected_config,
    images_per_step,
    load_config,
    run_folder,
    stage_title,
)

Collected = Mapping[str, Any]  # see `collect`

MEANS = ('mean_of_five', 'mean_of_defined')
SIGNIFICANT = 0.05
LEAST_RESAMPLES = 1000
REACH = 5  # how many times below SIGNIFICANT the smallest corrected p-value can be
# Rows are compared only if these agree: otherwise their scores are of other cases.
PROTOCOL = ('split', 'level', 'views', 'rows', 'undefined', 'positives')
TOLERANCE = 1e-4  # of an AUROC that is computed again; predictions have 9 digits
DIGITS = 6  # significant digits of saved figures
PRIVATE_FOLDERS = re.compile(r'(?<![\w.])/(?:[^/\s:]+/)+')  # of this machine

MASK_KEYS = {'DATA.MASK_TYPE', 'DATA.MASK_PATCH_SIZE', 'DATA.MASK_RATIO'}
SHARE_KEYS = {'DATA.TRAIN_FRACTION', 'DATA.TRAIN_IMAGES'}
NUM_MASKS, MASK_SEED = 200, 0  # for the mean distance to a visible pixel
# Options that decide which images are held out and how they are read.
HELD_OUT_KEYS = (
    *('DATA.VIEWS', 'DATA.HOLDOUT_FRACTION', 'DATA.DATASET', 'EVAL.HOLDOUT_IMAGES'),
    *('DATA.IMG_SIZE', 'DATA.PREPROCESS', 'DATA.PRETRAIN_INTERPOLATION', 'TEST.CROP'),
)
L1_MARKS = {'other target': '*', 'other images': '†', 'coarse target': '‡'}

MISSING = 'n/a'
PUBLISHED = 'published, context only'
NOT_FOR_CLINICAL_USE = 'Not for clinical use.'
FEW_SEEDS = 10  # with fewer, a note says how little they show
RUNS_SHOWN = 6

# Metric in report.json -> title of the column in the table of a binary task.
FINDING_SCORES = {
    'accuracy': 'accuracy',
    'precision': 'precision',
    'f1': 'F1',
    'recall': 'recall',
    'auroc': 'AUC',
}
FINDING_SETTINGS = ('images', 'model', 'augmented', 'pretraining', 'masked')
FINDING_CONTEXT = (
    f'{FRADKIN}, as context only: other data, splits and training, and unknown thresholds. No '
    'difference between these rows and those above is an effect of anything in this table.'
)


# Reading runs -----------------------------------------------------------------------------------


def collect(
    sweep: Sweep,
    seeds: Sequence[int],
    output: str | Path,
    *,
    resamples: int | None = None,
    bootstrap_seed: int = 0,
) -> dict[str, Any]:
    """Everything that a table or a figure of a sweep shows, as JSON values.

    Args:
        sweep: The sweep.
        seeds: Seeds of the runs; missing and unfinished runs are listed as such.
        output: Root of the run folders.
        resamples: Draws of patients for the intervals over patients; None: as many as the number
            of compared rows needs (`enough_resamples`).
        bootstrap_seed: Seed of the draws.

    Returns:
        Facts about the sweep and `rows`. Each row has its name, the row it is compared with
        (`against`), for each seed the state, figures and provenance of both stages, caveats, and
        what `compare_rows` finds.

    Raises:
        ValueError: If a file of a finished run cannot be read; the message names it.
    """
    reference = _reference_config(sweep, seeds, output)
    rows = {row.name: _collect_row(sweep, row, seeds, output, reference) for row in sweep.rows}
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
    against = {name: row['against'] for name, row in rows.items()}
    if resamples is None:
        resamples = enough_resamples(sum(map(bool, against.values())))
    compared = compare_rows(scored, against, resamples=resamples, seed=bootstrap_seed)
    collected = {
        'sweep': sweep.name,
        'title': sweep.title,
        'keys': sweep.keys,
        'reference': sweep.reference.name,
        'seeds': list(seeds),
        'published': asdict(sweep.published) if sweep.published else None,
        'resamples': {'count': resamples, 'seed': bootstrap_seed},
        'trained': {
            section: _trained(sweep.reference, sweep.reference.stage_of(section), seeds, output)
            for section in SECTION_NAMES
        },
        'reference_masks': _reference_masks(reference),
        'differences_from_files': differences_from_files(sweep, seeds, output),
        'rows': [row | compared[name] for name, row in rows.items()],
    }
    if sweep.subsets:
        collected['methods'] = {'reference': sweep.reference.method, 'subsets': sweep.subsets}
    return json.loads(json.dumps(_rounded(json_safe(collected)), allow_nan=False))


def save_collected(collected: Collected, folder: str | Path) -> Path:
    """Write the results of a sweep to `<sweep>.json`, from which tables and figures can be made."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{collected["sweep"]}.json'
    replace_file(path, (json.dumps(collected, indent=1, ensure_ascii=False) + '\n').encode())
    return path


def read_collected(folder: str | Path, sweep_name: str) -> dict[str, Any]:
    """Read what `save_collected` wrote, or earlier versions in one file per row.

    Raises:
        ValueError: If a file is missing or damaged; the message names it.
    """
    collected = _read_saved(Path(folder) / f'{sweep_name}.json', 'sweep')
    for row in collected['rows']:
        if 'seeds' not in row:
            found = _read_saved(Path(folder) / f'{row["run"]}.json', 'run')['seeds']
            row['seeds'] = [entry for entry in found if entry['seed'] in collected['seeds']]
    return collected


def _read_saved(path: Path, key: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text('utf-8').replace('"other_pictures"', '"other_images"'))
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    if not isinstance(content, dict) or content.get(key) != path.stem:
        raise ValueError(f'{path} does not hold the results of the {key} {path.stem}')
    return content


def _collect_row(
    sweep: Sweep, row: Row, seeds: Sequence[int], output: str | Path, reference: Config
) -> dict[str, Any]:
    """A row; `reference` is the configuration of the reference's pre-training."""
    method = {}
    if row.method:
        stage = '' if row.pretrain is None else row.pretraining
        method = {'method': row.method, 'subset': row.subset, 'pretraining': stage}
    pretrained = _finished(row, 'simmim', seeds, output)
    other_images = {
        key
        for config in map(load_config, pretrained)
        for key in HELD_OUT_KEYS
        if value_at(config, key) != value_at(reference, key)
    }
    return {
        'name': row.name,
        'run': row.run,
        'against': _other_row(sweep, row),
        **method,
        'other_images': sorted(other_images),
        **_own_masks(sweep, pretrained),
        'seeds': [
            {
                'seed': seed,
                'pretrain': _pretrain_entry(run_folder(output, row.pretraining, row, seed)),
                'finetune': _finetune_entry(run_folder(output, 'finetune', row, seed)),
            }
            for seed in seeds
        ],
    }


def _other_row(sweep: Sweep, row: Row) -> str:
    """Name of the row that this one is compared with; '' for one that others are compared with."""
    others = {sweep.reference.name, *(other.against for other in sweep.rows)}
    return row.against or ('' if row.name in others else sweep.reference.name)


def _finished(row: Row, stage: str, seeds: Sequence[int], output: str | Path) -> list[Path]:
    folders = [run_folder(output, stage, row, seed) for seed in seeds]
    return [folder for folder in folders if folder and is_finished(folder)]


def _reference_config(sweep: Sweep, seeds: Sequence[int], output: str | Path) -> Config:
    """Configuration of the reference's pre-training, from the files before a run is finished."""
    folders = _finished(sweep.reference, 'simmim', seeds, output)
    return load_config(folders[0]) if folders else expected_config(sweep, sweep.reference, 'simmim')


def _trained(
    row: Row, stage: str, seeds: Sequence[int], output: str | Path
) -> dict[str, Any] | None:
    """What is trained, on what and for how long; None before a run is finished."""
    folders = _finished(row, stage, seeds, output)
    if not folders:
        return None
    config, record = load_config(folders[0]), read_record(folders[0]) or {}
    return {
        'encoder': encoder_name(config),
        'width': encoder_node(config).get('EMBED_DIM'),  # None for a model of timm
        'image_px': config.DATA.IMG_SIZE,
        'mode': config.FINETUNE.MODE,
        'epochs': config.TRAIN.EPOCHS,
        'images_per_step': images_per_step(config, record.get('processes', 1)),
        'base_rate': config.TRAIN.BASE_LR,
        'train_fraction': config.DATA.TRAIN_FRACTION,
        'train_images': config.DATA.TRAIN_IMAGES,
        'holdout_fraction': config.DATA.HOLDOUT_FRACTION,
    }


def _reference_masks(config: Config) -> dict[str, int] | None:
    masks = reference_mask_generator(config)
    if masks is None:
        return None
    side = masks.rand_size
    return {'unit_px': config.DATA.IMG_SIZE // side, 'hidden': masks.count, 'units': side**2}


def _own_masks(sweep: Sweep, folders: Sequence[Path]) -> dict[str, float | None]:
    """In sweeps over masks: how much a row's masks hide, and how far that is from the visible."""
    if not folders or not MASK_KEYS & set(sweep.keys['pretrain']):
        return {'average_distance_px': None, 'hidden_percent': None}
    config = load_config(folders[0])
    generator, rng = mask_generator(config), np.random.default_rng(MASK_SEED)
    masks = np.stack([generator(rng) for _ in range(NUM_MASKS)])
    distance = average_distance(masks, config.DATA.IMG_SIZE // masks.shape[1])
    hidden = 100 * generator.count / generator.rand_size**2
    return {'average_distance_px': float(distance), 'hidden_percent': hidden}


def _pretrain_entry(folder: Path | None) -> dict[str, Any] | None:
    """State, held-out L1 in grey levels, cost and provenance; None without pre-training."""
    if folder is None or not is_finished(folder):
        return folder and _unfinished_entry(folder)
    config, records = load_config(folder), _read(folder / 'metrics.jsonl', read_metrics)
    last = records[-1] if records else {}
    key = 'reference_l1_grey'
    figures = {
        'target': 'patch_normalised'
        if config.MODEL.MAE.NORM_PIX_LOSS
        else config.MODEL.SIMMIM.TARGET,
        # Side of the square of pixels that one predicted value stands for.
        'target_px': config.DATA.IMG_SIZE
        // (config.MODEL.SIMMIM.TARGET_SIZE or config.DATA.IMG_SIZE),
        'reference': {'after': last.get(key)}
        | {name: last.get(f'{key}_{name}') for name in ('mean', 'linear')},
    }
    return _entry(folder, figures) | {'cost': training_cost(records)}


def _finetune_entry(folder: Path) -> dict[str, Any]:
    if not is_finished(folder):
        return _unfinished_entry(folder)
    return _entry(folder, read_scores(folder).figures)


def _unfinished_entry(folder: Path) -> dict[str, Any]:
    state = 'unfinished' if folder.is_dir() else 'missing'
    return {'state': state, 'figures': None, 'provenance': None}


def _entry(folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    record = read_record(folder) or {}
    provenance = {
        'code': record.get('code'),
        'tables': (record.get('data') or {}).get('files') or {},
        'gpus': (record.get('environment') or {}).get('gpus'),
    }
    return {'state': 'finished', 'figures': figures, 'provenance': provenance}


def training_cost(records: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """`epochs`, `images` seen and `seconds` of a pre-training, from the lines of metrics.jsonl.

    Seconds are epochs times the median epoch without evaluation. An epoch that an interruption cut
    in two is logged from where it resumed; it counts as a whole epoch at its own rate.
    """
    timed = [r for r in records if r['epoch'] >= 0 and r.get('seconds') and r['images_per_second']]
    if not timed:
        return None
    images = max(round(r['images_per_second'] * r['seconds']) for r in timed)
    epochs = sum(record['epoch'] >= 0 for record in records)
    seconds = median(images / record['images_per_second'] for record in timed)
    return {'epochs': epochs, 'images': epochs * images, 'seconds': epochs * seconds}


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} of a finished run cannot be read: {error}') from error


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
        For each difference `stage`, `key` (an option, or one of `batch_counts`), `found`,
        `expected`, and `runs`: names of the folders, [] if all runs of the stage differ so.
    """
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    names: dict[str, set[str]] = {stage: set() for stage in STAGES}
    for stage, row in [(stage, row) for stage in STAGES for row in sweep.rows if row.run_of(stage)]:
        expected = expected_config(sweep, row, stage)
        for folder in _finished(row, stage, seeds, output):
            if folder.name in names[stage]:  # a shared pre-training
                continue
            names[stage].add(folder.name)
            config, record = load_config(folder), read_record(folder) or {}
            changes = changed_options(expected, config, but=('SEED',))
            wanted, counts = batch_counts(expected, {}, stage), batch_counts(config, record, stage)
            for key in wanted:
                if wanted[key] != counts[key]:
                    changes[key] = str(wanted[key]), str(counts[key])
            for key, (old, new) in changes.items():
                values = (PRIVATE_FOLDERS.sub('', value) for value in (new, old))
                found[stage, key, *values].append(folder.name)
    return [
        dict(zip(('stage', 'key', 'found', 'expected'), difference, strict=True))
        | {'runs': [] if len(runs) == len(names[difference[0]]) else runs}
        for difference, runs in found.items()
    ]


# Comparing rows ---------------------------------------------------------------------------------


class Scored(NamedTuple):
    """A fine-tuned run: its folder, and its figures (see `read_scores`)."""

    folder: Path
    figures: dict[str, Any]


def read_scores(folder: Path, split: str = '') -> Scored:
    """The scores of a finished fine-tuning, of the selected checkpoint or else of the last one.

    Args:
        folder: Run folder.
        split: 'valid' or 'test'; '': test if it was scored, otherwise valid.

    Returns:
        Scored: with `split`, `checkpoint`, `level`, `views`, `rows`, `positives`, `undefined`, and
        `scores`: AUROC by label and the MEANS, None where undefined.

    Raises:
        ValueError: If scores.json cannot be read.
    """
    file = folder / 'scores.json'
    table = _read(file, lambda path: json.loads(path.read_bytes()))
    try:
        split = split or ('test' if 'test' in table else 'valid')
        checkpoint = 'selected' if table[split].get('selected') else 'last'
        scores = table[split][checkpoint]
        kept = ('level', 'views', 'rows', 'positives', 'undefined')
        figures = {'split': split, 'checkpoint': checkpoint} | {key: scores[key] for key in kept}
        figures['scores'] = {name: scores[name] for name in MEANS} | scores['auroc']
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'{file} does not hold the scores of a finished run: {error!r}') from error
    return Scored(folder, figures)


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
        config, split = load_config(run.folder), run.figures['split']
        self.level, self.aggregate = config.EVAL.LEVEL, config.EVAL.AGGREGATE
        self.labels = task_labels(config.DATA.TASK)
        config.DATA.CACHE_DIR = ''  # the CSV files are in the data folder
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
        bounds = {score: interval(mean) for score, mean in means.items()}
        return {score: {'low': low, 'high': high} for score, (low, high) in bounds.items()}

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
            drawn = label_scores(probabilities, targets, threshold=None, weights=weights)
            samples[label] = drawn['auroc']
        defined = [label for label in cases.labels if label not in run.figures['undefined']]
        for mean, labels in zip(MEANS, (COMPETITION_LABELS, defined), strict=True):
            if labels and set(labels) <= set(defined):
                samples[mean] = np.mean([samples[label] for label in labels], axis=0)
        return samples

    def _cases(self, file: Path) -> Cases:
        predictions, records = read_predictions(file), self.records
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
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Compare each row with another one, over the seeds that both have.

    Args:
        rows: Name -> seed -> the finished run.
        against: Name -> name of the other row; '' for none.
        resamples: Draws of patients; each serves all seeds, rows and scores.
        seed: Seed of the draws.

    Returns:
        By name: `problem` (why there is no comparison, or no interval over patients; ''),
        `patients` (how many were resampled), `over_patients` (score -> `low` and `high` of the
        row's own score averaged over the seeds), and `compared`: score -> `difference`; `seeds`;
        `over_seeds`: `low` and `high` of Student's t interval of the paired differences;
        `over_patients`: `low` and `high` of the percentile interval of the difference, `p`
        (`bootstrap_p`) and `p_holm` (over the rows); `verdict`. NaN stands for unknown values.
    """
    sources: dict[str, ScoredPatients | ValueError] = {}
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
            try:
                found[name]['over_patients'] = patients.intervals(runs.values())
            except ValueError:  # a seed that is in no pair has other predictions
                continue
    return found


def verdict(part: Mapping[str, Any]) -> str:
    """'above' or 'below' if both intervals exclude 0 and `p_holm` is below SIGNIFICANT.

    Otherwise 'inside the noise', or 'n/a' if an interval is unknown and the rest excludes 0.
    """
    seeds, patients = part['over_seeds'], part['over_patients']
    bounds = [(entry['low'], entry['high']) for entry in (seeds, patients)]
    with_zero = any(low <= 0 <= high for low, high in bounds)  # False for NaN
    if with_zero or patients['p_holm'] >= SIGNIFICANT:
        return 'inside the noise'
    if np.isnan(bounds).any():
        return MISSING
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
    sources: dict[str, ScoredPatients | ValueError],
    draws: tuple[int, int],
) -> dict[str, Any]:
    entry = {'problem': '', 'patients': 0, 'over_patients': {}, 'compared': {}}
    other = against[name]
    if not other:
        return entry
    pairs = [(run, rows[other][seed]) for seed, run in rows[name].items() if seed in rows[other]]
    if not pairs:
        return entry | {'problem': f'no seed is finished for it and for {other}'}
    for key in PROTOCOL:
        if len({str(run.figures[key]) for pair in pairs for run in pair}) > 1:
            return entry | {'problem': f'scored on other cases than {other} ({key})'}
    entry['compared'] = _over_seeds(pairs)
    try:
        patients = _patients(other, pairs[0][1], sources, draws)
        _over_patients(entry['compared'], pairs, patients)
    except ValueError as error:
        return entry | {
            'problem': f'no interval over patients: {PRIVATE_FOLDERS.sub("", str(error))}'
        }
    return entry | {'patients': patients.count}


def _patients(
    name: str,
    run: Scored,
    sources: dict[str, ScoredPatients | ValueError],
    draws: tuple[int, int],
) -> ScoredPatients:
    """The patients that a row was scored on; labels are read once for each row."""
    if name not in sources:
        try:
            sources[name] = ScoredPatients(run, resamples=draws[0], seed=draws[1])
        except ValueError as error:
            sources[name] = error
    source = sources[name]
    if isinstance(source, ValueError):
        raise source
    return source


def _over_seeds(pairs: Sequence[tuple[Scored, Scored]]) -> dict[str, dict[str, Any]]:
    compared = {}
    for score in pairs[0][0].figures['scores']:
        values = np.array([[run.figures['scores'][score] for run in pair] for pair in pairs], float)
        if not np.isnan(values).any():
            differences = values[:, 0] - values[:, 1]
            low, high = t_interval(differences)
            compared[score] = {
                'difference': float(differences.mean()),
                'seeds': len(pairs),
                'over_seeds': {'low': low, 'high': high},
                'over_patients': dict.fromkeys(('low', 'high', 'p', 'p_holm'), float('nan')),
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


# Summaries of rows ------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Values of the finished seeds."""

    values: list[float]

    @property
    def mean(self) -> float | None:
        return round(float(np.mean(self.values)), 6) if self.values else None

    @property
    def sd(self) -> float | None:
        """Standard deviation of the sample (n - 1); None for fewer than two values."""
        return round(float(np.std(self.values, ddof=1)), 6) if len(self.values) > 1 else None


def score_spread(row: Mapping[str, Any], score: str) -> Spread:
    """A score over the seeds for which it is defined."""
    runs = [entry['finetune']['figures'] for entry in row['seeds']]
    values = [figures['scores'].get(score) for figures in runs if figures]
    return Spread([value for value in values if value is not None])


def l1_spread(row: Mapping[str, Any], predictor: str = 'after') -> Spread:
    """Held-out L1 in grey levels under the masks that all runs share.

    Args:
        row: Row of `collect`. The result is empty if its held-out images are not the reference's.
        predictor: 'after' pre-training, or the trivial predictors 'mean' and 'linear'.
    """
    runs = [] if row['other_images'] else _figures(row, 'pretrain')
    values = [figures['reference'][predictor] for figures in runs]
    return Spread([value for value in values if value is not None])


def cost_spread(row: Mapping[str, Any], name: str) -> Spread:
    """`images` or `seconds` of pre-training over the seeds (`training_cost`)."""
    runs = [entry['pretrain'] for entry in row['seeds']]
    return Spread([run['cost'][name] for run in runs if run and run.get('cost')])


def count_finished(row: Mapping[str, Any]) -> int:
    """Seeds of which every stage is finished."""
    return sum(not _unfinished_stages(entry) for entry in row['seeds'])


def l1_caveat(row: Mapping[str, Any]) -> str:
    """Why a row's held-out L1 cannot be compared directly: one of L1_MARKS, or ''."""
    figures = _figures(row, 'pretrain')
    if any(entry['target'] != 'pixels' for entry in figures):
        return 'other target'
    if row['other_images']:
        return 'other images'
    return 'coarse target' if any(entry['target_px'] > 1 for entry in figures) else ''


def choose_scores(collected: Collected, scores: Sequence[str] | None = None) -> list[str]:
    """The scores of a table: those asked for, or the mean of five if all rows have it.

    Raises:
        ValueError: If there is no such score.
    """
    if scores is None:
        five, defined = ([score_spread(row, m) for row in collected['rows']] for m in MEANS)
        whole = all(len(a.values) == len(b.values) for a, b in zip(five, defined, strict=True))
        return [MEANS[0] if whole else MEANS[1]]
    known = dict.fromkeys(
        score for figures in _all_scores(collected) for score in figures['scores']
    )
    for score in scores:
        if known and score not in known:
            raise ValueError(f'--scores must be some of {", ".join(known)}, got {score!r}')
    return list(scores)


def score_title(collected: Collected, score: str) -> str:
    """A score's name for readers."""
    if score == 'mean_of_five':
        return 'AUROC, mean of five'
    if score == 'mean_of_defined':
        counts = {len(f['positives']) - len(f['undefined']) for f in _all_scores(collected)}
        return f'AUROC, mean of {" or ".join(map(str, sorted(counts))) or "all"} labels'
    return f'AUROC, {score}'


def row_title(collected: Collected, row: Mapping[str, Any]) -> str:
    """A row's name, or its method; marks the reference, and a comparison with another row."""
    name, other, reference = row['name'], row['against'], collected['reference']
    if methods := collected.get('methods'):
        name, reference = row['method'], methods['reference']
        other = other.removesuffix(f'_{row["subset"]}')
    marks = ['reference'] if name == reference else []
    if other not in ('', reference):
        marks.append(f'against {other}')
    return f'{name} ({", ".join(marks)})' if marks else name


def subset_title(collected: Collected, subset: str) -> str:
    """A subset of the labels for readers, such as '10 %'."""
    is_share = collected['methods']['subsets'] == 'shares'
    return f'{100 * float(subset):g} %' if is_share else f'{int(subset):,} images'


def _figures(row: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    runs = [entry[section] for entry in row['seeds']]
    return [run['figures'] for run in runs if run and run['figures']]


def _all_scores(collected: Collected) -> list[Mapping[str, Any]]:
    return [figures for row in collected['rows'] for figures in _figures(row, 'finetune')]


def _unfinished_stages(entry: Mapping[str, Any]) -> list[str]:
    """What a seed lacks, such as 'fine-tuning missing'."""
    runs = {name: entry[section] for section, name in SECTION_NAMES.items()}
    return [f'{name} {r["state"]}' for name, r in runs.items() if r and r['state'] != 'finished']


# Notes ------------------------------------------------------------------------------------------


def notes(collected: Collected) -> list[str]:
    """What a reader must know of the table, one paragraph each."""
    found = [
        *_training_notes(collected),
        *_method_notes(collected),
        *_score_notes(collected),
        *_l1_notes(collected),
        *_spread_notes(collected),
        *_row_notes(collected),
        *_run_notes(collected),
    ]
    if published := collected['published']:
        note = f' {published["note"]}' if published['note'] else ''
        found.append(
            f'{PUBLISHED.capitalize()}: {published["measure"]}, {published["source"]}.{note} These '
            'are other data, models or protocols, which cannot be compared with the other columns.'
        )
    return [*found, NOT_FOR_CLINICAL_USE]


def _training_notes(collected: Collected) -> Iterator[str]:
    for section, trained in collected['trained'].items():
        if trained:
            width = f' of width {trained["width"]}' if trained['width'] else ''
            parts = [f'{trained["encoder"]}{width}, {trained["image_px"]} px']
            if trained['mode'] in PROBES and section == 'finetune':
                parts.append(trained['mode'])
            else:
                parts += [
                    f'{trained["epochs"]} epochs',
                    f'{trained["images_per_step"]} images per step',
                    f'base learning rate {trained["base_rate"]:g} per 512 images',
                ]
            key, value = 'DATA.TRAIN_FRACTION', trained['train_fraction']
            if trained['train_images']:
                key, value = 'DATA.TRAIN_IMAGES', trained['train_images']
            parts.append(f'{key} {value:g}')
            yield f'{SECTION_NAMES[section].capitalize()} of the reference: {", ".join(parts)}.'
    finetune = collected['trained']['finetune']
    varied = SHARE_KEYS & set(collected['keys'].get('finetune', []))
    if finetune and varied and finetune['holdout_fraction']:
        yield (
            'Checkpoints and thresholds are chosen on held-out patients with labels '
            f'(DATA.HOLDOUT_FRACTION {finetune["holdout_fraction"]:g}), who are not part of the '
            'labelled share: rows with few labels have used more labels than their share.'
        )


def _method_notes(collected: Collected) -> Iterator[str]:
    if 'methods' not in collected:
        return
    yield (
        f'Methods are compared with {collected["methods"]["reference"]} unless another method is '
        'named, on the same labels and fine-tuned for as many epochs. All rows of a method share '
        'one pre-training per seed.'
    )
    runs = [entry['pretrain'] for row in collected['rows'] for entry in row['seeds']]
    machines = {
        ', '.join(run['provenance']['gpus'] or ['a CPU']) for run in runs if run and run['figures']
    }
    if machines:
        yield (
            'Images seen in pre-training: epochs x images. Minutes: epochs x the median epoch '
            f'without evaluation, on {" or ".join(sorted(machines))}. Minutes can be compared only '
            'if each run had the machine to itself.'
        )


def _score_notes(collected: Collected) -> Iterator[str]:
    kinds = {}
    for f in _all_scores(collected):
        rows = 'studies' if f['level'] == 'study' else 'images'
        kind = f'AUROC on {f["split"]}: {f["rows"]} {rows}, {f["views"]} views'
        kinds[f'{kind}, {f["checkpoint"]} checkpoint'] = f['undefined']
    for kind, undefined in kinds.items():
        missing = f' Labels without both classes: {", ".join(undefined)}.' if undefined else ''
        yield f'{kind}. Higher is better.{missing}'


def _l1_notes(collected: Collected) -> Iterator[str]:
    masks = collected['reference_masks']
    if masks is None:
        yield 'There is no held-out L1, because the shared masks do not fit the images.'
        return
    trivial = []
    for name, title in (('mean', 'mean of the visible pixels'), ('linear', 'interpolation')):
        values = [v for row in collected['rows'] for v in l1_spread(row, name).values]
        if values:
            trivial.append(f'{title} {min(values):.2f} to {max(values):.2f}')
    yield (
        'Held-out L1: after pre-training, on hidden pixels of held-out training patients, with '
        f'masks that all rows share (random, units of {masks["unit_px"]} px, {masks["hidden"]} of '
        f'{masks["units"]} hidden). Lower is better.'
        + (f' Trivial predictors: {", ".join(trivial)}.' if trivial else '')
    )
    varied = set(collected['keys'].get('pretrain', []))
    if 'MODEL.SIMMIM.LOSS' in varied:
        yield 'An L1 loss minimises held-out L1, so rows with another loss are at a disadvantage.'
    if MASK_KEYS & varied:
        yield 'Rows whose own masks are close to the shared ones have an advantage in held-out L1.'
    if _has_distances(collected):
        yield (
            'AvgDist: mean distance from a hidden pixel to the nearest visible one, over '
            f'{NUM_MASKS} masks of the row. Hidden: share of the units that its masks hide.'
        )
    keys = ', '.join(sorted({key for row in collected['rows'] for key in row['other_images']}))
    texts = {
        'other target': 'This row predicts normalised patches and is given their mean and standard '
        'deviation: its L1 is another quantity.',
        'other images': f"This row's held-out images are not the reference's ({keys}): its L1 "
        'cannot be compared.',
        'coarse target': 'This row predicts one value for several pixels and is scored on every '
        'pixel: its L1 has a lower limit that other rows do not have.',
    }
    found = {l1_caveat(row) for row in collected['rows']}
    yield from (f'{mark} {texts[name]}' for name, mark in L1_MARKS.items() if name in found)


def _spread_notes(collected: Collected) -> Iterator[str]:
    seeds, draws = collected['seeds'], collected['resamples']
    yield (
        f'Seeds {", ".join(map(str, seeds))}: mean ± standard deviation over the finished seeds. '
        'Differences are paired by seed, with the reference unless another row is named. Over '
        "seeds: 95 % interval by Student's t. Over patients: 95 % percentile interval of the "
        f'difference of the means over seeds, {draws["count"]} paired resamples of the patients.'
    )
    yield (
        'Verdict: above or below if both intervals exclude 0 and the bootstrap p-value over '
        f'patients, corrected by Holm over the rows of the table, is below {SIGNIFICANT}.'
    )
    if len(seeds) == 1:
        yield 'One seed shows nothing of how runs differ by chance: no difference is established.'
    elif len(seeds) < FEW_SEEDS:
        reach = stats.t.ppf(0.975, len(seeds) - 1) / np.sqrt(len(seeds))
        yield (
            f'With {len(seeds)} seeds the interval over seeds reaches {reach:.1f} standard '
            'deviations to either side: only large differences can be found.'
        )


def _row_notes(collected: Collected) -> Iterator[str]:
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


def _run_notes(collected: Collected) -> Iterator[str]:
    """Where runs differ in code or data, or from the files of the sweep."""
    runs = [e[s] for row in collected['rows'] for e in row['seeds'] for s in SECTION_NAMES]
    finished = [run['provenance'] for run in runs if run and run['state'] == 'finished']
    codes = sorted({str(provenance['code']) for provenance in finished})
    if len(codes) > 1:
        yield f'The runs used {len(codes)} versions of the code: {", ".join(codes)}.'
    tables = defaultdict(set)
    for name, checksum in (item for p in finished for item in p['tables'].items()):
        tables[name].add(checksum)
    for name, checksums in tables.items():
        if len(checksums) > 1:
            yield f'The runs have read {len(checksums)} different files {name}.'
    stages = defaultdict(list)
    for part in collected['differences_from_files']:
        others = len(part['runs']) - RUNS_SHOWN
        where = f' in {", ".join(part["runs"][:RUNS_SHOWN])}' if part['runs'] else ''
        where += f' and {others} more' if others > 0 else ''
        stages[part['stage']].append(f'{part["key"]} {part["found"]} for {part["expected"]}{where}')
    for stage, parts in stages.items():
        yield f'{stage_title(stage).capitalize()} differs from the files in {"; ".join(parts)}.'


def _has_distances(collected: Collected) -> bool:
    return any(row['average_distance_px'] is not None for row in collected['rows'])


# Tables -----------------------------------------------------------------------------------------


def write_table(
    folder: Path, name: str, figures: Sequence[Mapping[str, Any]], markdown: str
) -> Path:
    """Write a table as `<name>.csv` (unrounded, empty if unknown) and `<name>.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(figures, dtype=object)  # keeps whole numbers whole
    replace_file(folder / f'{name}.csv', table.to_csv(index=False).encode())
    replace_file(folder / f'{name}.md', markdown.encode())
    return folder / f'{name}.md'


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


def _row_figures(
    collected: Collected, row: Mapping[str, Any], scores: Sequence[str]
) -> dict[str, Any]:
    l1 = l1_spread(row)
    line = {key: row[key] for key in ('name', 'run', 'against')}
    line = {'row': line.pop('name')} | line
    if 'method' in row:
        line |= {key: row[key] for key in ('method', 'subset', 'pretraining')}
        line |= {f'pretrain_{k}': cost_spread(row, k).mean for k in ('images', 'seconds')}
    line |= {
        'finished_seeds': count_finished(row),
        'seeds': len(row['seeds']),
        'average_distance_px': row['average_distance_px'],
        'hidden_percent': row['hidden_percent'],
        'held_out_l1_grey_mean': l1.mean,
        'held_out_l1_grey_sd': l1.sd,
        'held_out_l1_caveat': l1_caveat(row),
    }
    for score in scores:
        spread, part = score_spread(row, score), row['compared'].get(score, {})
        line |= {f'{score}_mean': spread.mean, f'{score}_sd': spread.sd}
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
    if 'methods' in collected:
        yield 'labels', subset_title(collected, row['subset'])
        images, seconds = (cost_spread(row, name).mean for name in ('images', 'seconds'))
        cells = shown(images, ',.0f'), shown(seconds and seconds / 60, ',.1f')
        titles = 'images seen in pre-training', 'minutes of pre-training'
        yield from zip(titles, cells if row['pretraining'] else ('none', 'none'), strict=True)
    if _has_distances(collected):
        yield 'AvgDist (px)', shown(row['average_distance_px'], '.2f')
        yield 'hidden (%)', shown(row['hidden_percent'], '.1f')
    yield 'held-out L1 (grey levels)', _l1_cell(row)
    for score in scores:
        title, part = score_title(collected, score), row['compared'].get(score, {})
        yield title, _with_sd(score_spread(row, score), '.3f')
        for name, noise in (('seeds', 'over_seeds'), ('patients', 'over_patients')):
            bounds = part.get(noise, {})
            cell = with_interval(part.get('difference'), *map(bounds.get, ('low', 'high')), '+.3f')
            yield f'{title}: difference (95 % over {name})', cell if row['against'] else ''
        yield f'{title}: verdict', part.get('verdict', MISSING) if row['against'] else ''
    yield 'finished seeds', f'{count_finished(row)} of {len(row["seeds"])}'
    if collected['published']:
        value = collected['published']['values'].get(row['name'])
        yield PUBLISHED, '' if value is None else str(value)


def _l1_cell(row: Mapping[str, Any]) -> str:
    contrastive = row.get('pretraining') == 'contrastive'  # which hides nothing
    if contrastive or all(entry['pretrain'] is None for entry in row['seeds']):
        return 'none'
    return f'{_with_sd(l1_spread(row), ".2f")} {L1_MARKS.get(l1_caveat(row), "")}'.rstrip()


def _with_sd(spread: Spread, form: str) -> str:
    return shown(spread.mean, form) + (f' ± {spread.sd:{form}}' if spread.sd is not None else '')


# The table of a binary task ---------------------------------------------------------------------


class FinetunedRun(NamedTuple):
    """A fine-tuning of a binary task.

    Attributes:
        folder: Run folder.
        masked: Share of the image that its pre-training hid; None if nothing was hidden.
        pretraining: Run folder of its pre-training; None: the folder of PRETRAINED, if any.
    """

    folder: Path
    masked: float | None
    pretraining: Path | None = None


def finetuned_runs(
    sweep: Sweep, seeds: Sequence[int], output: str | Path
) -> tuple[list[FinetunedRun], list[str]]:
    """The finished fine-tunings of a sweep row by row, and the names of the others.

    Raises:
        ValueError: If none is finished.
    """
    found, others = [], []
    for row in sweep.rows:
        for seed in seeds:
            folder = run_folder(output, 'finetune', row, seed)
            if not is_finished(folder):
                others.append(folder.name)
                continue
            hiding = run_folder(output, 'simmim', row, seed)
            masked = load_config(hiding).DATA.MASK_RATIO if hiding else None
            pretraining = run_folder(output, row.pretraining, row, seed)
            found.append(FinetunedRun(folder, masked, pretraining))
    if not found:
        raise ValueError(f'{output}: no fine-tuning of {sweep.path} is finished')
    return found, others


def finding_rows(runs: Sequence[FinetunedRun], split: str = 'test') -> list[dict[str, Any]]:
    """Figures of each run of a binary task (DATA.TASK any_finding or effusion), from its report.

    Args:
        runs: The runs.
        split: The set of the reports that is shown.

    Returns:
        For each run FINDING_SETTINGS, FINDING_SCORES (each with `_low` and `_high`), `label`,
        `set`, `n`, `positives`, `level`, `views` and `run`.

    Raises:
        ValueError: If a report is missing or has no such set or label, or if tasks differ.
    """
    rows = [_finding_row(run, split) for run in runs]
    for row in rows:
        if row['label'] != rows[0]['label']:
            raise ValueError(
                f'{row["run"]}: DATA.TASK must be that of {rows[0]["run"]} ({rows[0]["label"]}), '
                f'got {row["label"]}'
            )
    return rows


def published_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The published rows of the task of these runs; none for other tasks than any_finding."""
    if (rows[0]['label'],) != task_labels('any_finding'):
        return []
    return [
        row._asdict() | {'pretraining': 'MAE' if row.model.startswith('MAE') else MISSING}
        for row in MAE_STUDY
    ]


def finding_markdown(
    rows: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]]
) -> str:
    """The runs as a Markdown table, then the published rows as another."""
    text = (
        f'{rows[0]["label"]} against {NO_FINDING}. In brackets 95 % intervals, if the report has '
        'them. Accuracy, precision, F1 and recall are at the threshold of the report.\n\n'
        f'{markdown_table([_finding_cells(row) for row in rows])}'
    )
    if published:
        text += (
            f'\n{FINDING_CONTEXT}\n\n{markdown_table([_finding_cells(row) for row in published])}'
        )
    return text


def finding_figures(
    rows: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """All rows for the CSV; `source` is 'run' or 'published'."""
    return [{'source': 'run'} | row for row in rows] + [
        {'source': 'published'} | row for row in published
    ]


def is_augmented(config: Config) -> bool:
    """Whether fine-tuning changed its images at random."""
    aug = config.AUG
    if config.FINETUNE.MODE in PROBES:  # they see the images as they are
        return False
    strengths = (aug.COLOR_JITTER, aug.REPROB, aug.HFLIP, aug.ROTATION, aug.TRANSLATE, aug.SHEAR)
    # An empty CROP_AREA is the default, which crops; an empty SCALE means no scaling.
    ranges = set(aug.CROP_AREA) != {1.0} or not set(aug.SCALE) <= {1.0}
    return ranges or any((*strengths, aug.DISTORTION)) or aug.AUTO_AUGMENT != 'none'


def _finding_row(run: FinetunedRun, split: str) -> dict[str, Any]:
    config = load_config(run.folder)
    data = config.DATA
    if data.TASK == 'observations':
        raise ValueError(
            f'{run.folder}: DATA.TASK must be a binary task such as any_finding, got {data.TASK!r}'
        )
    (label,) = task_labels(data.TASK)
    scored, entry = _find_scores(run.folder / 'report.json', split, label)
    name, width = encoder_name(config), encoder_node(config).get('EMBED_DIM')
    mode = '' if config.FINETUNE.MODE == 'full' else f', {config.FINETUNE.MODE}'
    share = 'all' if data.TRAIN_FRACTION == 1 else f'{100 * data.TRAIN_FRACTION:g} %'
    row = {
        'images': data.TRAIN_IMAGES or share,
        'model': (f'{name}, width {width}' if width else name) + mode,
        'augmented': is_augmented(config),
        'pretraining': _pretraining_title(run.pretraining, config.PRETRAINED),
        'masked': run.masked,
    }
    for metric in FINDING_SCORES:
        score = entry['scores'][metric]
        row[metric] = score['value']
        row |= {f'{metric}_{end}': score[end] for end in ('low', 'high')}
    counts = {key: entry[key] for key in ('n', 'positives')}
    protocol = {key: scored[key] for key in ('level', 'views')}
    return row | {'label': label, 'set': split, **counts, **protocol, 'run': str(run.folder)}


def _pretraining_title(folder: Path | None, checkpoint: str) -> str | None:
    """The method of a pre-training by its run folder; None without pre-training."""
    if folder is None and not checkpoint:
        return None
    folder = folder or Path(checkpoint).parent
    stage = (read_record(folder) or {}).get('stage')
    if stage == 'simmim':
        return PRETRAINING[load_config(folder).MODEL.PRETRAIN].title
    if stage == 'contrastive':
        return METHODS[load_config(folder).CONTRASTIVE.METHOD].title
    return MISSING


def _find_scores(report: Path, split: str, label: str) -> tuple[dict, dict]:
    """The set of this name in a report.json, and its entry for this label."""
    if not report.is_file():
        raise ValueError(f'{report} is missing: fine-tune with REPORT.WRITE True')
    sets = {part['name']: part for part in json.loads(report.read_text('utf-8'))['sets']}
    if split not in sets:
        raise ValueError(f'{report}: there is no set {split!r}, only {", ".join(sets)}')
    labels = {entry['label']: entry for entry in sets[split]['labels']}
    if label not in labels:
        raise ValueError(f'{report}: the set {split!r} has no label {label!r}')
    return sets[split], labels[label]


def _finding_cells(row: Mapping[str, Any]) -> dict[str, str]:
    images, masked = row['images'], row['masked']
    cells = {
        'images': f'{images:,}' if isinstance(images, int) else images,
        'model': row['model'],
        'augmented': 'yes' if row['augmented'] else 'no',
        'pre-training': row.get('pretraining') or '-',
        'masked': '-' if masked is None else f'{masked:.2f}',
    }
    for metric, title in FINDING_SCORES.items():
        bounds = (row.get(f'{metric}_{end}') for end in ('low', 'high'))
        cells[title] = with_interval(row[metric], *bounds, '.3f')
    if 'run' in row:
        rows = {'study': 'studies', 'image': 'images'}[row['level']]
        positive = f'{row["n"]:,} {rows} ({row["positives"]:,} positive)'
        cells |= {'n': f'{positive}, {row["views"]}, {row["set"]}', 'run': row['run']}
    return cells

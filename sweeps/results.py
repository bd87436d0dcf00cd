"""The table of pseudo-label rounds: on real labels and, apart, on pseudo-labelled pictures."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from config import PROBES, Config, default_config, encoder_name, encoder_node, value_at
from data.data_simmim import mask_generator, reference_mask_generator
from data.labels import COMPETITION_LABELS, NO_FINDING, scored_targets, task_labels
from data.masking import average_distance
from data.records import (
    look_up,
    normalise_name,
    read_predictions,
    read_split,
    row_names,
    select_views,
    training_records,
    unique_names,
)
from engine.files import replace_file
from engine.run_record import OPTIONS_FILE, is_finished, read_record
from evaluation.cases import Cases
from evaluation.compare import bootstrap_p, holm
from evaluation.intervals import Resamples, audit, interval
from evaluation.metrics import auroc_per_label, label_scores, mean_defined
from evaluation.published import FRADKIN, MAE_STUDY
from logger import json_safe, read_metrics
from models.contrastive import METHODS
from models.simmim import PRETRAINING
from sweeps.files import (
    SECTION_NAMES,
    STAGES,
    Job,
    Row,
    Sweep,
    batch_counts,
    changed_options,
    check_encoder,
    expected_config,
    images_per_step,
    load_config,
    run_folder,
    stage_title,
)
from sweeps.runner import Patients, Rounds, training_cost

# ==== evaluation.finding_table: The table of a study of one binary task: a row a run, beside published rows as context.
#
# A row is a dict: images, model, augmented, pretraining, masked, and accuracy, precision, f1,
# recall, auroc. Those of runs also say what was scored, and each of their scores has 'value', 'low'
# and 'high'.

# Metric in report.json -> title of the column.
SCORES = {
    'accuracy': 'accuracy',
    'precision': 'precision',
    'f1': 'F1',
    'recall': 'recall',
    'auroc': 'AUC',
}
SETTINGS = ['images', 'model', 'augmented', 'pretraining', 'masked']
TITLES = [*SETTINGS[:3], 'pre-training', *SETTINGS[4:], *SCORES.values()]
UNKNOWN = 'n/a'
SCORED = ['label', 'set', 'n', 'positives', 'level', 'views', 'run']
CONTEXT = (
    f'{FRADKIN}, as context only: other data, splits and training, thresholds unknown, so that no '
    'difference between these rows and those above is an effect of anything named here.'
)

FindingRow = Mapping[str, Any]


def read_runs(
    folders: Sequence[str | Path],
    *,
    masked: Sequence[float | None],
    pretraining: Sequence[Path | None] | None = None,
    split: str = 'test',
) -> list[FindingRow]:
    """A row for each run's folder (config.yaml, report.json), in their order.

    Args:
        folders: of the runs.
        masked: of each, the share that its pre-training hid; None where nothing was hidden.
        pretraining: of each, the folder of its pre-training; None: that of the file PRETRAINED.
        split: the set of the report that is shown.

    Raises:
        ValueError: if a file is missing or is no run's of a binary task, or if tasks differ.
    """
    if len(masked) != len(folders):
        raise ValueError(f'masked: give one value a run, got {len(masked)} for {len(folders)} runs')
    runs = zip(folders, masked, pretraining or [None] * len(folders), strict=True)
    rows = [_read_run(Path(folder), share, before, split) for folder, share, before in runs]
    for row in rows:
        if row['label'] != rows[0]['label']:
            raise ValueError(
                f'{row["run"]}: DATA.TASK must be that of {rows[0]["run"]} '
                f'({rows[0]["label"]}), got {row["label"]}'
            )
    return rows


def published_rows(rows: Sequence[FindingRow]) -> list[FindingRow]:
    """The published rows of the task of these runs; none for another task than any_finding."""
    if (rows[0]['label'],) != task_labels('any_finding'):
        return []
    return [
        row._asdict() | {'pretraining': 'MAE' if row.model.startswith('MAE') else UNKNOWN}
        for row in MAE_STUDY
    ]


def is_augmented(config: Config) -> bool:
    """Whether fine-tuning changed its images at random."""
    aug = config.AUG
    if config.FINETUNE.MODE in PROBES:  # on features of the images as they are
        return False
    strengths = (aug.COLOR_JITTER, aug.REPROB, aug.HFLIP, aug.ROTATION, aug.TRANSLATE, aug.SHEAR)
    # No CROP_AREA is the default, which crops; no SCALE is none.
    ranges = set(aug.CROP_AREA) != {1.0} or not set(aug.SCALE) <= {1.0}
    return ranges or any((*strengths, aug.DISTORTION)) or aug.AUTO_AUGMENT != 'none'


def markdown(rows: Sequence[FindingRow], published: Sequence[FindingRow] = ()) -> str:
    """The runs as a Markdown table, then the published rows as another."""
    header = [*TITLES, 'n', 'run']
    lines = [
        f'{rows[0]["label"]} against {NO_FINDING}. In brackets 95 % intervals, where the report '
        'has them. Accuracy, precision, F1 and recall are at the threshold of the report.',
        '',
        *_table(header, [[*_cells(row), _scored(row), row['run']] for row in rows]),
    ]
    if published:
        lines += ['', CONTEXT, '', *_table(TITLES, [_cells(row) for row in published])]
    return '\n'.join(lines) + '\n'


def write_csv(
    path: str | Path, rows: Sequence[FindingRow], published: Sequence[FindingRow] = ()
) -> None:
    """Write all rows as CSV with unrounded numbers; 'source' is 'run' or 'published'."""
    table = [{'source': 'run'} | _flat(row) for row in rows]
    table += [{'source': 'published'} | _flat(row) for row in published]
    with open(path, 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, list(table[0]), restval='', lineterminator='\n')
        writer.writeheader()
        writer.writerows(table)


def _read_run(
    folder: Path, masked: float | None, pretraining: Path | None, split: str
) -> FindingRow:
    config, report = default_config(), folder / 'report.json'
    config.merge_from_file(folder / OPTIONS_FILE)
    data = config.DATA
    if data.TASK == 'observations':
        raise ValueError(
            f"{folder / 'config.yaml'}: DATA.TASK must be 'any_finding' or 'effusion', got "
            f'{data.TASK!r}'
        )
    (label,) = task_labels(data.TASK)
    scored, entry = _find_scores(report, split, label)
    mode = '' if config.FINETUNE.MODE == 'full' else f', {config.FINETUNE.MODE}'
    return {
        'images': data.TRAIN_IMAGES or _share(data.TRAIN_FRACTION),
        'model': f'{_model(config)}{mode}',
        'augmented': is_augmented(config),
        'pretraining': _pretraining(pretraining, config.PRETRAINED),
        'masked': masked,
        **{metric: entry['scores'][metric] for metric in SCORES},
        'label': label,
        'set': split,
        **{key: entry[key] for key in ('n', 'positives')},
        **{key: scored[key] for key in ('level', 'views')},
        'run': str(folder),
    }


def _model(config: Config) -> str:
    width = encoder_node(config).get('EMBED_DIM')  # a model of timm has none of ours
    return f'{encoder_name(config)}, width {width}' if width else encoder_name(config)


def _pretraining(folder: Path | None, checkpoint: str) -> str | None:
    """The method, by the folder of the run or of its checkpoint; None without pre-training."""
    if folder is None and not checkpoint:
        return None
    folder = folder or Path(checkpoint).parent
    record = read_record(folder) or {}
    if record.get('stage') not in ('simmim', 'contrastive'):
        return UNKNOWN
    config = default_config()
    config.merge_from_file(folder / OPTIONS_FILE)
    if record['stage'] == 'simmim':
        return PRETRAINING[config.MODEL.PRETRAIN].title
    return METHODS[config.CONTRASTIVE.METHOD].title


def _find_scores(report: Path, split: str, label: str) -> tuple[FindingRow, FindingRow]:
    """The set of this name in a report.json, and its entry of this label."""
    if not report.is_file():
        raise ValueError(f'{report} is missing: fine-tune with REPORT.WRITE True')
    try:
        sets = json.loads(report.read_text(encoding='utf-8'))['sets']
        found = {part['name']: part for part in sets}
        labels = {
            name: {entry['label']: entry for entry in part['labels']}
            for name, part in found.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{report} is no report of a run: {error!r}') from error
    if split not in found:
        raise ValueError(f'{report}: there is no set {split!r}, only {", ".join(found) or "none"}')
    if label not in labels[split]:
        raise ValueError(
            f'{report}: the set {split!r} has no label {label!r}, only '
            f'{", ".join(labels[split]) or "none"}'
        )
    return found[split], labels[split][label]


def _share(fraction: float) -> str:
    return 'all' if fraction == 1 else f'{100 * fraction:g} %'


def _cells(row: FindingRow) -> list[str]:
    images, masked = row['images'], row['masked']
    return [
        f'{images:,}' if isinstance(images, int) else images,
        row['model'],
        'yes' if row['augmented'] else 'no',
        row.get('pretraining') or '-',
        '-' if masked is None else f'{masked:.2f}',
        *(_score(row[key]) for key in SCORES),
    ]


def _score(score: float | FindingRow | None) -> str:
    if not isinstance(score, Mapping):
        score = {'value': score, 'low': None, 'high': None}
    value, *interval = (
        None if score[name] is None else f'{score[name]:.3f}' for name in ('value', 'low', 'high')
    )
    if value is None:
        return 'n/a'
    return value if None in interval else f'{value} ({interval[0]} to {interval[1]})'


def _scored(row: FindingRow) -> str:
    rows = {'study': 'studies', 'image': 'images'}.get(row['level'], row['level'])
    return f'{row["n"]:,} {rows} ({row["positives"]:,} positive), {row["views"]}, {row["set"]}'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ['---'] * len(header), *rows]
    return ['| ' + ' | '.join(_escape(cell) for cell in line) + ' |' for line in lines]


def _escape(text: str) -> str:
    """Text that stays in its cell and is no HTML."""
    for character, shown in {'&': '&amp;', '<': '&lt;', '|': r'\|', '\n': ' ', '\r': ' '}.items():
        text = text.replace(character, shown)
    return text


def _flat(row: FindingRow) -> dict[str, object]:
    """One value a column; a score has three."""
    flat = {key: row.get(key) for key in SETTINGS}
    for key in SCORES:
        score = row[key] if isinstance(row[key], Mapping) else {'value': row[key]}
        flat[key] = score['value']
        flat |= {f'{key}_{end}': score.get(end) for end in ('low', 'high')}
    flat |= {key: row.get(key) for key in SCORED}
    return flat


# ==== sweeps.comparison: Rows of a sweep against another row, over seeds and patients; its runs against its files.

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
        wanted = unique_names(records.path, f'{records.root}')
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


# ==== sweeps.results: What the runs of a sweep came to: figures by row and seed, differences, small JSON files.

MASK_KEYS = {'DATA.MASK_TYPE', 'DATA.MASK_PATCH_SIZE', 'DATA.MASK_RATIO'}
NUM_MASKS, MASK_SEED = 200, 0  # of which the mean distance to a visible pixel is taken
# Which pictures are held out, and how they are read.
HELD_OUT_KEYS = {
    'DATA.VIEWS', 'DATA.HOLDOUT_FRACTION', 'DATA.DATASET', 'EVAL.HOLDOUT_IMAGES', 'DATA.IMG_SIZE',
    'DATA.PREPROCESS', 'DATA.PRETRAIN_INTERPOLATION', 'TEST.CROP',
}  # fmt: skip
TRIVIAL = ('mean', 'linear')
LOGGED = {
    'pretrain': ('epoch', 'loss', 'holdout_l1_grey', 'reference_l1_grey'),
    'finetune': ('epoch', 'loss', 'score'),
}
NUMBERS = re.compile(r'\[\n[^\[\]{}"]*\]|\{\n(?:\s*"[\w ]+": [^"{}\[\]\n]+\n)+\s*\}')
DIGITS = 6  # significant, of what is kept


def collect(
    sweep: Sweep,
    seeds: Sequence[int],
    output: str | Path,
    *,
    resamples: int | None = None,
    bootstrap_seed: int = 0,
) -> dict[str, Any]:
    """All that a table or a figure of a sweep shows, as plain JSON.

    Args:
        sweep: the sweep.
        seeds: of the runs; those that are missing or unfinished are listed as such.
        output: folder of the runs.
        resamples: draws of patients for the intervals over patients; None: as many as the number
            of compared rows asks for (`enough_resamples`).
        bootstrap_seed: of the draws.

    Returns:
        `sweep`, `title`, `keys`, `reference` (name of a row), `seeds`, `published`, `resamples`,
        `trained` (what the reference trains, by stage), `reference_masks` (`unit_px`, and how many
        units are `hidden`, of how many `units`; None where they do not fit),
        `differences_from_files` (see there), and `rows`, each with `name`, `run`, `against` (the
        row it is compared with, '' for none), `changes` (options that differ from the
        reference's), `also_changed` (those that an ablation does not declare), `other_pictures`
        (options by which its held-out pictures are not the reference's), `average_distance_px` and
        `hidden_percent` (of its own masks; None but in sweeps over masks), `seeds` (state, figures,
        log and provenance by stage, and the `cost` of pre-training), and what `compare_rows` finds.
        Of a sweep of methods also `methods` (`reference`, and `subsets`: 'shares' or 'images'), and
        of its rows `method`, `subset` and `pretraining` (the stage, '' for none).

    Raises:
        ValueError: naming the file of a finished run that cannot be read, or the folder of one
            that is of another sweep.
    """
    differences = differences_from_files(sweep, seeds, output)
    pretraining = _pretraining_results(sweep, seeds, output)
    rows = {row.name: _collect_row(sweep, row, seeds, output, pretraining) for row in sweep.rows}
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
            section: _trained(
                _finished(sweep.reference, sweep.reference.stage_of(section), seeds, output)
            )
            for section in SECTION_NAMES
        },
        'reference_masks': _reference_masks(pretraining),
        'differences_from_files': differences,
        'rows': [row | compared[name] for name, row in rows.items()],
    }
    if sweep.subsets:
        collected['methods'] = {'reference': sweep.reference.method, 'subsets': sweep.subsets}
    return json.loads(json.dumps(_rounded(json_safe(collected)), allow_nan=False))


def write_rows(collected: Mapping[str, Any], folder: str | Path) -> None:
    """Write `<run>.json` for each row, with its logs, and `<sweep>.json`, which says the rest.

    A run that several sweeps share has one file; what it holds of other seeds stays.

    Raises:
        ValueError: if a file of that name is something else.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in collected['rows']:
        path = _file(folder, row['run'])
        before = _read_json(path, 'run')['seeds'] if path.exists() else []
        seeds = {entry['seed']: entry for entry in [*before, *row['seeds']]}
        _write_json(path, {'run': row['run'], 'seeds': [seeds[number] for number in sorted(seeds)]})
        rows.append({k: v for k, v in row.items() if k != 'seeds'} | {'digest': _digest(row)})
    path = _file(folder, collected['sweep'])
    if path.exists():
        _read_json(path, 'sweep')
    _write_json(path, dict(collected) | {'rows': rows})


def read_rows(folder: str | Path, sweep_name: str) -> dict[str, Any]:
    """What `write_rows` was given.

    Raises:
        ValueError: naming the file that is missing or damaged, or that was written anew since.
    """
    folder = Path(folder)
    collected = _read_json(_file(folder, sweep_name), 'sweep')
    for row in collected['rows']:
        path = _file(folder, row['run'])
        found = _read_json(path, 'run')['seeds']
        digest = row.pop('digest')
        row['seeds'] = [entry for entry in found if entry['seed'] in collected['seeds']]
        if _digest(row) != digest:
            raise ValueError(
                f'{path} is not what {sweep_name}.json was made with: write both anew from the runs'
            )
    return collected


def _collect_row(
    sweep: Sweep, row: Row, seeds: Sequence[int], output: str | Path, reference: Config
) -> dict[str, Any]:
    """A row; `reference` is the reference's options of pre-training."""
    changes, others = {}, set()
    for section in SECTION_NAMES:
        stage = row.stage_of(section)
        folders = [
            [run_folder(output, stage, of, seed) for of in (sweep.reference, row)] for seed in seeds
        ]
        lines = _changes(folders)
        changes[section] = [v for k, v in lines.items() if k in sweep.keys.get(section, [])]
        if not row.method:  # whose YAML files are its own
            others |= lines.keys() - set(sweep.keys.get(section, []))
    own = {}
    if row.method:
        stage = '' if row.pretrain is None else row.pretraining
        own = {'method': row.method, 'subset': row.subset, 'pretraining': stage}
    pretrained = [run_folder(output, 'simmim', row, seed) for seed in seeds]
    pictures = {
        key
        for config in map(load_config, _finished(row, 'simmim', seeds, output))
        for key in HELD_OUT_KEYS
        if value_at(config, key) != value_at(reference, key)
    }
    return {
        'name': row.name,
        'run': row.run,
        'against': _other_row(sweep, row),
        **own,
        'changes': changes,
        'also_changed': sorted(others),
        'other_pictures': sorted(pictures),
        **_own_masks(sweep, pretrained),
        'seeds': [
            {
                'seed': seed,
                'pretrain': _stage(run_folder(output, row.pretraining, row, seed), 'pretrain'),
                'finetune': _stage(run_folder(output, 'finetune', row, seed), 'finetune'),
            }
            for seed in seeds
        ],
    }


def _other_row(sweep: Sweep, row: Row) -> str:
    """Name of the row that this one is compared with; '' for one that others are compared with."""
    others = {sweep.reference.name, *(of.against for of in sweep.rows)}
    return row.against or ('' if row.name in others else sweep.reference.name)


def _finished(row: Row, stage: str, seeds: Sequence[int], output: str | Path) -> list[Path]:
    folders = [run_folder(output, stage, row, seed) for seed in seeds]
    return [folder for folder in folders if folder and is_finished(folder)]


def _pretraining_results(sweep: Sweep, seeds: Sequence[int], output: str | Path) -> Config:
    """The reference's options of pre-training, those of the files before a run is finished."""
    folders = _finished(sweep.reference, 'simmim', seeds, output)
    return load_config(folders[0]) if folders else expected_config(sweep, sweep.reference, 'simmim')


def _trained(folders: Sequence[Path]) -> dict[str, Any] | None:
    """What is trained, on what and for how long; None before a run is finished."""
    if not folders:
        return None
    config, record = load_config(folders[0]), read_record(folders[0]) or {}
    encoder = encoder_node(config)
    held_out = folders[0] / 'predictions_holdout.csv'
    return {
        'encoder': encoder_name(config),
        'width': encoder.get('EMBED_DIM'),  # None, and no blocks, for a model of timm
        'blocks': encoder.get('DEPTHS') or [depth for depth in [encoder.get('DEPTH')] if depth],
        'image_px': config.DATA.IMG_SIZE,
        'channels': config.MODEL.IN_CHANS,
        'mode': config.FINETUNE.MODE,
        'epochs': config.TRAIN.EPOCHS,
        'images_per_step': images_per_step(config, record.get('processes', 1)),
        'base_rate': config.TRAIN.BASE_LR,
        'train_fraction': config.DATA.TRAIN_FRACTION,
        'train_images': config.DATA.TRAIN_IMAGES,
        'holdout_fraction': config.DATA.HOLDOUT_FRACTION,
        'holdout_images': len(read_predictions(held_out).names) if held_out.is_file() else None,
        'select_on': config.EVAL.SELECT_ON,
    }


def _reference_masks(config: Config) -> dict[str, int] | None:
    masks = reference_mask_generator(config)
    if masks is None:
        return None
    side = masks.rand_size
    return {'unit_px': config.DATA.IMG_SIZE // side, 'hidden': masks.count, 'units': side**2}


def _stage(folder: Path | None, section: str) -> dict[str, Any] | None:
    """State, figures, log and provenance of one run; None for a row without that stage."""
    if folder is None:
        return None
    entry = {'state': 'missing', 'figures': None, 'log': None, 'provenance': None}
    if not is_finished(folder):
        return entry | ({'state': 'unfinished'} if folder.is_dir() else {})
    figures = {'pretrain': _pretrain_figures, 'finetune': _finetune_figures}[section]
    is_probe = load_config(folder).FINETUNE.MODE in PROBES  # it has no epochs
    records = [] if is_probe else _read(folder / 'metrics.jsonl', read_metrics)
    log = {key: [record.get(key) for record in records] for key in LOGGED[section]}
    log = {key: values for key, values in log.items() if any(v is not None for v in values)}
    cost = {'cost': training_cost(records)} if section == 'pretrain' else {}
    return {
        'state': 'finished',
        'figures': figures(folder, records),
        'log': log,
        'provenance': _provenance(read_record(folder)),
        **cost,
    }


def _pretrain_figures(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """L1 in grey levels; None where it was not measured, or has another name: it is not alike."""
    config = load_config(folder)
    simmim, size = config.MODEL.SIMMIM, config.DATA.IMG_SIZE
    before = next((record for record in records if record['epoch'] == -1), {})
    figures: dict[str, Any] = {
        'target': 'patch_normalised' if config.MODEL.MAE.NORM_PIX_LOSS else simmim.TARGET,
        'target_px': size // (simmim.TARGET_SIZE or size),  # side of what one value stands for
    }
    for masks in ('holdout', 'reference'):
        key, last = f'{masks}_l1_grey', records[-1] if records else {}
        figures[masks] = {'before': before.get(key), 'after': last.get(key)}
        figures[masks] |= {name: last.get(f'{key}_{name}') for name in TRIVIAL}
    return figures


def _finetune_figures(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores on test, or on valid where there is none, of the selected checkpoint or the last."""
    file = folder / 'scores.json'
    table = _read(file, lambda path: json.loads(path.read_bytes()))
    try:
        split = 'test' if 'test' in table else 'valid'
        checkpoint = 'selected' if 'selected' in table[split] else 'last'
        scores = table[split][checkpoint]
        kept = ('level', 'views', 'rows', 'positives', 'undefined')
        return {
            'split': split,
            'checkpoint': checkpoint,
            **{key: scores[key] for key in kept},
            'scores': {name: scores[name] for name in MEANS} | scores['auroc'],
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f'{file}: it has no scores of a finished run ({error!r})') from error


def _provenance(record: dict[str, Any]) -> dict[str, Any]:
    """What of run.json may be published: no paths."""
    environment, data = record.get('environment') or {}, record.get('data') or {}
    kept = ('code', 'seed', 'processes', 'finished', 'seconds')
    return {
        **{key: record.get(key) for key in kept},
        'starts': len(record.get('starts') or []),
        'data': data.get('fingerprint'),
        'tables': data.get('files') or {},
        'gpus': environment.get('gpus'),
        'torch': (environment.get('packages') or {}).get('torch'),
    }


def _changes(folders: Sequence[Sequence[Path | None]]) -> dict[str, str]:
    """Option -> 'KEY: old -> new' in the first pair of folders that both have a config.yaml."""
    for pair in folders:
        if all(folder and (folder / 'config.yaml').is_file() for folder in pair):
            changes = row_changes(*map(load_config, pair))
            return {key: f'{key}: {old} -> {new}' for key, (old, new) in changes.items()}
    return {}


def _own_masks(sweep: Sweep, folders: Sequence[Path | None]) -> dict[str, float | None]:
    """In sweeps over masks: how much a row's masks hide, and how far that is from the visible."""
    for folder in folders:
        varies_masks = MASK_KEYS & set(sweep.keys.get('pretrain', []))
        if varies_masks and folder and (folder / 'config.yaml').is_file():
            config = load_config(folder)
            generator, rng = mask_generator(config), np.random.default_rng(MASK_SEED)
            masks = np.stack([generator(rng) for _ in range(NUM_MASKS)])
            distance = average_distance(masks, config.DATA.IMG_SIZE // masks.shape[1])
            hidden = 100 * generator.count / generator.rand_size**2
            return {'average_distance_px': float(distance), 'hidden_percent': hidden}
    return {'average_distance_px': None, 'hidden_percent': None}


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} of a finished run cannot be read: {error}') from error


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f'{value:.{DIGITS}g}') if isinstance(value, float) else value


def _digest(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row['seeds'], sort_keys=True).encode()).hexdigest()[:16]


def _file(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise ValueError(f'{name!r} cannot be the name of a file')
    return folder / f'{name}.json'


def _read_json(path: Path, key: str) -> dict[str, Any]:
    """A file that `write_rows` wrote: of a run or of a sweep, as the key says."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    if not isinstance(content, dict) or content.get(key) != path.stem:
        raise ValueError(f'{path} is not the file of the {key} {path.stem}')
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Numbers of one list or section are one line; no text has a line break that is not escaped.
    text = NUMBERS.sub(lambda match: ' '.join(match[0].split()), text)
    replace_file(path, f'{text}\n'.encode())


# ==== sweeps.summary: What a sweep's results come to, row by row, and what a reader of them must know.

Collected = Mapping[str, Any]  # see sweeps.results.collect
MISSING = 'n/a'
PUBLISHED = 'published, context only'
NOT_FOR_CLINICAL_USE = 'Not for clinical use.'
FEW_SEEDS = 10  # with fewer, a note says how little they show
RUNS_SHOWN = 6  # of those that differ from the files
SHARE_KEYS = {'DATA.TRAIN_FRACTION', 'DATA.TRAIN_IMAGES'}
L1_MARKS = {'other target': '*', 'other pictures': '†', 'coarse target': '‡'}


class Spread(NamedTuple):
    """Values of the finished seeds."""

    values: list[float]

    @property
    def mean(self) -> float | None:
        return round(float(np.mean(self.values)), 6) if self.values else None

    @property
    def sd(self) -> float | None:
        """Of the sample (n - 1); None for fewer than two."""
        return round(float(np.std(self.values, ddof=1)), 6) if len(self.values) > 1 else None


def score_spread(row: Mapping[str, Any], score: str) -> Spread:
    """A score over the seeds for which it is defined."""
    runs = [entry['finetune'] for entry in row['seeds'] if entry['finetune']['figures']]
    values = [run['figures']['scores'].get(score) for run in runs]
    return Spread([value for value in values if value is not None])


def l1_spread(row: Mapping[str, Any], predictor: str = 'after') -> Spread:
    """Held-out L1 in grey levels on the masks that all runs share; `predictor`: see `collect`.

    Empty for a row whose held-out pictures are not the reference's.
    """
    if row['other_pictures']:
        return Spread([])
    runs = [entry['pretrain'] for entry in row['seeds']]
    values = [run['figures']['reference'][predictor] for run in runs if run and run['figures']]
    return Spread([value for value in values if value is not None])


def count_finished(row: Mapping[str, Any]) -> int:
    """Seeds of which every stage is finished."""
    return sum(not unfinished_stages(entry) for entry in row['seeds'])


def unfinished_stages(entry: Mapping[str, Any]) -> list[str]:
    """What a seed lacks, such as 'fine-tuning missing'."""
    runs = {name: entry[section] for section, name in SECTION_NAMES.items()}
    return [f'{name} {run["state"]}' for name, run in runs.items()
            if run and run['state'] != 'finished']  # fmt: skip


def choose_scores(collected: Collected, scores: Sequence[str] | None = None) -> list[str]:
    """The scores of a table: those asked for, or the mean of five where all rows have it.

    Raises:
        ValueError: if there is no such score.
    """
    if scores is None:
        whole = all(
            len(score_spread(row, MEANS[0]).values) == len(score_spread(row, MEANS[1]).values)
            for row in collected['rows']
        )
        return [MEANS[0] if whole else MEANS[1]]
    known = dict.fromkeys(
        name for figures in _scored_summary(collected) for name in (*MEANS, *figures['scores'])
    )
    for score in scores:
        if known and score not in known:
            raise ValueError(f'no score {score!r}; there are {", ".join(known)}')
    return list(scores)


def score_title(collected: Collected, score: str) -> str:
    """A score's name for readers."""
    if score == 'mean_of_five':
        return 'AUROC, mean of five'
    if score == 'mean_of_defined':
        counts = {len(f['positives']) - len(f['undefined']) for f in _scored_summary(collected)}
        return f'AUROC, mean of {" or ".join(map(str, sorted(counts))) or "all"} labels'
    return f'AUROC, {score}'


def row_title(collected: Collected, row: Mapping[str, Any]) -> str:
    """A row's name, of methods the method; marks the reference, and comparison with another."""
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


def cost_spread(row: Mapping[str, Any], name: str) -> Spread:
    """`images` or `seconds` of pre-training over the seeds; see `sweeps.costs.training_cost`."""
    runs = [entry['pretrain'] for entry in row['seeds']]
    return Spread([run['cost'][name] for run in runs if run and run.get('cost')])


def has_distances(collected: Collected) -> bool:
    """Whether the sweep is over masks."""
    return any(row['average_distance_px'] is not None for row in collected['rows'])


def l1_caveat(row: Mapping[str, Any]) -> str:
    """Why a row's held-out L1 does not compare as it stands: one of L1_MARKS, or ''."""
    runs = [entry['pretrain'] for entry in row['seeds']]
    figures = [run['figures'] for run in runs if run and run['figures']]
    if any(entry['target'] != 'pixels' for entry in figures):
        return 'other target'
    if row['other_pictures']:
        return 'other pictures'
    return 'coarse target' if any(entry['target_px'] > 1 for entry in figures) else ''


def number(value: float | None, form: str) -> str:
    """With a minus sign; MISSING for None."""
    return MISSING if value is None else f'{value:{form}}'.replace('-', '−')


def notes(collected: Collected) -> list[str]:
    """What a reader must know of the table, a paragraph each."""
    found = [
        *_training_notes(collected),
        *(_method_notes(collected) if 'methods' in collected else ()),
        *_scored_notes(collected),
        *_l1_notes(collected),
        *_caveat_notes(collected),
        *_mask_notes(collected),
        *_spread_notes(collected),
        *_run_notes(collected),
        *_file_notes(collected),
    ]
    published = collected['published']
    if published:
        note = f' {published["note"]}' if published['note'] else ''
        found.append(
            f'{PUBLISHED.capitalize()}: {published["measure"]}, {published["source"]}.{note} Other '
            'data, models or protocols: not to be compared with the other columns.'
        )
    return [*found, NOT_FOR_CLINICAL_USE]


def _scored_summary(collected: Collected) -> Iterator[Mapping[str, Any]]:
    for row in collected['rows']:
        for entry in row['seeds']:
            if entry['finetune']['figures']:
                yield entry['finetune']['figures']


def _finished_runs(collected: Collected) -> Iterator[Mapping[str, Any]]:
    for row in collected['rows']:
        for entry in row['seeds']:
            runs = (entry['pretrain'], entry['finetune'])
            yield from (run for run in runs if run and run['state'] == 'finished')


def _training_notes(collected: Collected) -> Iterator[str]:
    """What the reference trains, and what labels a row of few labels has used besides."""
    pretrain, finetune = (collected['trained'][name] for name in ('pretrain', 'finetune'))
    parts = []
    if pretrain:
        parts.append(
            f'pre-training of {_model_words(pretrain)}; {", ".join(_training_words(pretrain))}'
        )
    if finetune:
        model = _model_words(finetune)
        model = 'the same' if pretrain and model == _model_words(pretrain) else model
        mode = '' if finetune['mode'] == 'full' else f' ({finetune["mode"]})'
        parts.append(f'fine-tuning{mode} of {model}; {", ".join(_training_words(finetune))}')
    if parts:
        yield f'The reference: {". Then ".join(parts)}.'
    if finetune and SHARE_KEYS & set(collected['keys'].get('finetune', [])):
        yield from _label_notes(finetune)


def _model_words(trained: Mapping[str, Any]) -> str:
    blocks = '-'.join(map(str, trained['blocks']))
    size = f'width {trained["width"]}, blocks {blocks}, ' if trained['width'] else ''
    return (
        f'{trained["encoder"]}, {size}{trained["image_px"]} px, '
        f'{trained["channels"]} channel{_s(trained["channels"])}'
    )


def _training_words(trained: Mapping[str, Any]) -> Iterator[str]:
    if trained['mode'] not in PROBES:  # they are fitted, not trained
        yield f'{trained["epochs"]} epoch{_s(trained["epochs"])}'
        yield f'{trained["images_per_step"]} pictures a step'
        yield f'base rate {trained["base_rate"]:g} per 512'
    if trained['train_images']:
        yield f'DATA.TRAIN_IMAGES {trained["train_images"]}'
    else:
        yield f'DATA.TRAIN_FRACTION {trained["train_fraction"]:g}'


def _label_notes(trained: Mapping[str, Any]) -> Iterator[str]:
    count, fraction = trained['holdout_images'], trained['holdout_fraction']
    if not fraction:
        return
    who = f'{count} pictures' if count else f'DATA.HOLDOUT_FRACTION {fraction:g} of the patients'
    chosen = (
        'The checkpoint is chosen on valid, thresholds are'
        if trained['select_on'] == 'valid'
        else 'Checkpoint and thresholds are'
    )
    yield (
        f'{chosen} chosen on held-out patients with labels ({who}), which are beside the labelled '
        'share: a row of few labels has used more of them than its share.'
    )


def _method_notes(collected: Collected) -> Iterator[str]:
    """What methods have alike, and what their pre-training took."""
    yield (
        f'Methods are compared with {collected["methods"]["reference"]} where no other is named, '
        'on the same labels, fine-tuned for as many epochs. One pre-training a seed serves all '
        'rows of a method.'
    )
    runs = [entry['pretrain'] for row in collected['rows'] for entry in row['seeds']]
    machines = {
        ', '.join(run['provenance']['gpus'] or ['a CPU']) for run in runs if run and run['figures']
    }
    if machines:
        yield (
            'Images seen in pre-training: epochs x images. Minutes: epochs x the median epoch, '
            f'without evaluation, on {" or ".join(sorted(machines))}; means over the seeds. They '
            'compare only where runs had the machine to themselves.'
        )


def _scored_notes(collected: Collected) -> Iterator[str]:
    kinds = {}
    for f in _scored_summary(collected):
        kind = (
            f'AUROC on {f["split"]}, {f["level"]} level, {f["views"]} views, n = {f["rows"]} '
            f'{"studies" if f["level"] == "study" else "pictures"}, {f["checkpoint"]} checkpoint'
        )
        kinds[kind] = f['undefined']
    patients = max(row['patients'] for row in collected['rows'])
    for kind, undefined in kinds.items():
        missing = f'; not scored for want of both classes: {", ".join(undefined)}'
        yield (
            kind
            + (f', {patients} patients' if patients and len(kinds) == 1 else '')
            + (missing if undefined else '')
            + '. Higher is better.'
        )


def _l1_notes(collected: Collected) -> Iterator[str]:
    spreads = {
        name: Spread([v for row in collected['rows'] for v in l1_spread(row, name).values])
        for name in ('mean', 'linear')
    }
    trivial = [
        f'{title} {_range(spreads[name].values)}'
        for name, title in (('mean', 'mean of the visible pixels'), ('linear', 'interpolation'))
        if spreads[name].values
    ]
    masks = collected['reference_masks']
    if masks is None:
        yield 'Held-out L1: none, for the masks that rows would share do not fit the pictures.'
        return
    yield (
        'Held-out L1: after pre-training, on hidden pixels of held-out training patients, under '
        f'masks that all rows share (random, units of {masks["unit_px"]} px, {masks["hidden"]} of '
        f'{masks["units"]} = {100 * masks["hidden"] / masks["units"]:.0f} %). Lower is better'
        + (f'; trivial predictors: {", ".join(trivial)}.' if trivial else '.')
    )
    varied = set(collected['keys'].get('pretrain', []))
    if 'MODEL.SIMMIM.LOSS' in varied:
        yield 'L1 is what an L1 loss minimises: a row of another loss is at a disadvantage there.'
    if MASK_KEYS & varied:
        yield 'A row whose own masks are nearest the shared ones has an advantage in held-out L1.'


def _mask_notes(collected: Collected) -> Iterator[str]:
    if has_distances(collected):
        yield (
            'AvgDist: mean distance from a hidden pixel to the nearest visible one, over '
            f'{NUM_MASKS} masks of the row. Hidden: share of the units that its masks hide, their '
            'count rounded up.'
        )


def _caveat_notes(collected: Collected) -> Iterator[str]:
    keys = ', '.join(sorted({key for row in collected['rows'] for key in row['other_pictures']}))
    texts = {
        'other target': 'It predicts normalised patches, and is told their mean and deviation: its '
        'L1 is another quantity.',
        'other pictures': f"Its held-out pictures are not the reference's ({keys}): its L1 does "
        'not compare.',
        'coarse target': 'It predicts one value for each cell of several pixels, and is scored '
        'against every pixel: its L1 cannot fall below a floor that other rows do not have.',
    }
    found = {l1_caveat(row) for row in collected['rows']}
    yield from (f'{mark} {texts[name]}' for name, mark in L1_MARKS.items() if name in found)


def _range(values: Sequence[float]) -> str:
    low, high = (number(value, '.2f') for value in (min(values), max(values)))
    return low if low == high else f'{low} to {high}'


def _spread_notes(collected: Collected) -> Iterator[str]:
    seeds, draws = collected['seeds'], collected['resamples']
    yield (
        f'Seed{_s(len(seeds))} {", ".join(map(str, seeds))}: mean ± SD of the sample over the '
        'finished ones. Differences are seed by seed, of those that both rows have finished, '
        'against the reference where no other row is named. Over seeds: 95 % interval by '
        "Student's t. Over patients: 95 % percentile interval of the difference of the seeds' "
        f'mean, over {draws["count"]} paired resamples of the patients (seed {draws["seed"]}); '
        f'{MISSING} where under 95 % of these have both classes of all labels in question.'
    )
    yield (
        'Verdict: above or below where both intervals leave 0 out and the bootstrap p-value over '
        f'patients, by Holm over the compared rows of the table, is below {SIGNIFICANT}; '
        f'inside the noise where one of these does not hold; {MISSING} where one is not known.'
    )
    if len(seeds) == 1:
        yield 'One seed shows nothing of how runs differ by chance: no difference can be told.'
    elif len(seeds) < FEW_SEEDS:
        reach = stats.t.ppf(0.975, len(seeds) - 1) / np.sqrt(len(seeds))
        yield (
            f'With {len(seeds)} seeds the interval over seeds reaches {reach:.1f} SD of the '
            'differences to either side: large differences alone can show, and that none is found '
            'is no proof that there is none.'
        )


def _s(count: int) -> str:
    return '' if count == 1 else 's'


def _run_notes(collected: Collected) -> Iterator[str]:
    for row in collected['rows']:
        lacking = [
            f'seed {entry["seed"]} ({", ".join(unfinished_stages(entry))})'
            for entry in row['seeds']
            if unfinished_stages(entry)
        ]
        if lacking:
            yield f'{row["name"]} is not finished: {"; ".join(lacking)}.'
        if row['problem']:
            yield f'{row["name"]}: {row["problem"]}.'
        if row['also_changed']:
            yield (
                f'{row["name"]} differs from the reference in more than this sweep varies: '
                f'{", ".join(row["also_changed"])}.'
            )
    codes, tables = set(), defaultdict(set)
    for run in _finished_runs(collected):
        codes.add(str(run['provenance']['code']))
        for name, checksum in run['provenance']['tables'].items():
            tables[name].add(checksum)
    if len(codes) > 1:
        yield f'The runs are of {len(codes)} versions of the code: {", ".join(sorted(codes))}.'
    for name, checksums in tables.items():
        if len(checksums) > 1:
            yield f'The runs have read {len(checksums)} different files {name}.'


def _file_notes(collected: Collected) -> Iterator[str]:
    """Where runs are not what the files of the sweep say."""
    stages = defaultdict(list)
    for part in collected['differences_from_files']:
        runs = part['runs']
        others = f' and {len(runs) - RUNS_SHOWN} more' if len(runs) > RUNS_SHOWN else ''
        where = f' in {", ".join(runs[:RUNS_SHOWN])}{others}' if runs else ''
        stages[part['stage']].append(f'{part["key"]} {part["found"]} for {part["expected"]}{where}')
    if stages:
        listed = [f'{", ".join(parts)} ({stage_title(s)})' for s, parts in stages.items()]
        yield f"The runs differ from the sweep's files in: {'; '.join(listed)}."


# ==== sweeps.tables: Tables of a sweep's results as Markdown, CSV and LaTeX, with notes on how to read them.

LATEX_BREAK = r' \\ '
MARKDOWN = re.compile(r'([\\`*_\[\]|~$])')
LATEX = {
    '\\': r'\textbackslash{}', '{': r'\{', '}': r'\}', '$': r'\$', '&': r'\&', '#': r'\#',
    '%': r'\%', '_': r'\_', '^': r'\textasciicircum{}', '~': r'\textasciitilde{}',
    '<': r'\textless{}', '>': r'\textgreater{}', '|': r'\textbar{}', '–': r'\textendash{}',
    '`': r'\textasciigrave{}', '±': r'$\pm$', '−': r'$-$', '×': r'$\times$',
    '†': r'\textdagger{}', '‡': r'\textdaggerdbl{}',
    '*': r'\textasteriskcentered{}', '[': '{[}', ']': '{]}',  # options, where a row starts so
}  # fmt: skip


def markdown_tables(collected: Collected, scores: Sequence[str] | None = None) -> str:
    """A table with its notes below."""
    listed = '\n'.join(markdown_notes(collected))
    return f'{markdown_table(collected, scores)}\n{listed}\n'


def markdown_table(collected: Collected, scores: Sequence[str] | None = None) -> str:
    """The table alone."""
    head, rows = _cells_tables(collected, choose_scores(collected, scores))
    text = [f'| {" | ".join(map(_markdown_text, line))} |' for line in (head, *rows)]
    text.insert(1, '| --- ' * len(head) + '|')
    return '\n'.join(text) + '\n'


def markdown_notes(collected: Collected) -> list[str]:
    """What a reader must know of the table, a list item each."""
    return [f'- {_markdown_text(note)}' for note in notes(collected)]


def latex(collected: Collected, scores: Sequence[str] | None = None) -> str:
    r"""A tabular for each score, then the notes; for \usepackage{booktabs,graphicx,textcomp}."""
    tabulars = []
    for score in choose_scores(collected, scores):
        head, rows = _cells_tables(collected, [score])
        lines = [rf'{" & ".join(map(_latex_cell, line))} \\' for line in (head, *rows)]
        tabulars += [
            r'\noindent\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%',
            r'\footnotesize\setlength{\tabcolsep}{3pt}%',
            rf'\begin{{tabular}}{{@{{}}l{"r" * (len(head) - 1)}@{{}}}}',
            *(r'\toprule', lines[0], r'\midrule', *lines[1:], r'\bottomrule'),
            r'\end{tabular}}\par\smallskip',
        ]
    listed = [rf'\item {_latex_text(note)}' for note in notes(collected)]
    style = r'\footnotesize\setlength{\itemsep}{0pt}\setlength{\parskip}{0pt}'
    return '\n'.join([*tabulars, rf'\begin{{itemize}}{style}', *listed, r'\end{itemize}', ''])


def csv_text(collected: Collected, scores: Sequence[str] | None = None) -> str:
    """Numbers in columns of their own, empty where not known; a row a row of the sweep."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    rows = list(_csv_rows(collected, choose_scores(collected, scores)))
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return text.getvalue()


def _cells_tables(collected: Collected, scores: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Head and rows as text, narrow: a line break is a wish, not for Markdown."""
    rows = [list(_row_cells(collected, row, scores)) for row in collected['rows']]
    return [head for head, _ in rows[0]], [[cell for _, cell in row] for row in rows]


def _row_cells(
    collected: Collected, row: Mapping[str, Any], scores: Sequence[str]
) -> Iterator[tuple[str, str]]:
    yield ' '.join(collected['title'].split()), ' '.join(row_title(collected, row).split())
    if 'methods' in collected:
        yield 'labels', subset_title(collected, row['subset'])
        for head, name, unit in (('images\nseen', 'images', 1), ('minutes', 'seconds', 60)):
            mean = cost_spread(row, name).mean
            known = number(mean and mean / unit, ',.0f' if unit == 1 else ',.1f')
            yield f'pre-training\n{head}', known if row['pretraining'] else 'none'
    if has_distances(collected):
        yield 'AvgDist\n(px)', number(row['average_distance_px'], '.2f')
        yield 'hidden\n(%)', number(row['hidden_percent'], '.1f')
    yield 'held-out L1\n(grey levels)', _l1_cell(row)
    for score in scores:
        part = row['compared'].get(score)
        yield (
            score_title(collected, score).replace(' ', '\n', 1),
            _spread(score_spread(row, score), '.3f'),
        )
        cells = [
            number(part and part['difference'], '+.3f'),
            *(_interval(part and part[key]) for key in ('over_seeds', 'over_patients')),
            part['verdict'] if part else MISSING,
        ]
        names = ('difference', '95 %\nover seeds', '95 %\nover patients', 'verdict')
        yield from zip(names, cells if row['against'] else [''] * len(names), strict=True)
    yield 'finished\nseeds', f'{count_finished(row)} of {len(row["seeds"])}'
    if collected['published']:
        value = collected['published']['values'].get(row['name'])
        yield PUBLISHED.replace(' ', '\n', 1), '' if value is None else str(value)


def _l1_cell(row: Mapping[str, Any]) -> str:
    contrastive = row.get('pretraining') == 'contrastive'  # which hides nothing
    if contrastive or all(entry['pretrain'] is None for entry in row['seeds']):
        return 'none'
    mark = L1_MARKS.get(l1_caveat(row), '')
    return f'{_spread(l1_spread(row), ".2f")} {mark}'.rstrip()


def _spread(spread: Spread, form: str) -> str:
    if spread.mean is None:
        return MISSING
    return number(spread.mean, form) + (f' ± {spread.sd:{form}}' if spread.sd is not None else '')


def _interval(part: Mapping[str, float | None] | None) -> str:
    if part is None or part['low'] is None:
        return MISSING
    return f'{number(part["low"], "+.3f")} to {number(part["high"], "+.3f")}'


def _csv_rows(collected: Collected, scores: Sequence[str]) -> Iterator[dict[str, Any]]:
    published = collected['published']
    for row in collected['rows']:
        l1 = l1_spread(row)
        line = {
            'row': row['name'],
            'run': row['run'],
            'against': row['against'],
            **_csv_method(row),
            'finished_seeds': count_finished(row),
            'seeds': len(row['seeds']),
            'average_distance_px': row['average_distance_px'],
            'hidden_percent': row['hidden_percent'],
            'held_out_l1_grey_mean': l1.mean,
            'held_out_l1_grey_sd': l1.sd,
            'held_out_l1_caveat': l1_caveat(row),
        }
        for score in scores:
            line |= _csv_score(row, score)
        if published:
            line[PUBLISHED] = published['values'].get(row['name'])
        yield line


def _csv_method(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a sweep of methods: which, with what labels, and what its pre-training took."""
    if 'method' not in row:
        return {}
    images, seconds = (cost_spread(row, name).mean for name in ('images', 'seconds'))
    own = {key: row[key] for key in ('method', 'subset', 'pretraining')}
    return own | {'pretrain_images': images, 'pretrain_seconds': seconds}


def _csv_score(row: Mapping[str, Any], score: str) -> dict[str, Any]:
    spread, part = score_spread(row, score), row['compared'].get(score)
    line = {f'{score}_mean': spread.mean, f'{score}_sd': spread.sd}
    for name in ('difference', 'verdict'):
        line[f'{score}_{name}'] = part and part[name]
    for name in ('over_seeds', 'over_patients'):
        for bound in ('low', 'high'):
            line[f'{score}_{name}_{bound}'] = part and part[name][bound]
    for name in ('p', 'p_holm'):
        line[f'{score}_{name}'] = part and part['over_patients'][name]
    return line


def _markdown_text(text: str) -> str:
    text = ' '.join(text.split())
    return MARKDOWN.sub(r'\\\1', text.replace('&', '&amp;').replace('<', '&lt;'))


def _latex_cell(text: str) -> str:
    """In as many lines as the text has."""
    lines = [_latex_text(line) for line in text.split('\n')]
    return lines[0] if len(lines) == 1 else rf'\shortstack[r]{{{LATEX_BREAK.join(lines)}}}'


def _latex_text(text: str) -> str:
    """Escaped for any TeX; what pdfLaTeX has no letter for is written as its code."""
    text = ' '.join(text.split())
    known = [LATEX.get(c, c if _is_letter_of_tex(c) else f'(U+{ord(c):04X})') for c in text]
    return re.sub('-(?=-)', '-{}', ''.join(known))  # two would become a dash


def _is_letter_of_tex(character: str) -> bool:
    return ' ' <= character <= '~' or ('À' <= character <= 'ÿ' and character not in '×÷ÐÞðþ')


# ==== sweeps.pseudo_table: The table of pseudo-label rounds: on real labels and, apart, on pseudo-labelled pictures.

TABLE = 'rounds'  # name of the files, without suffix
SHOWN = {'mean_of_five': 'mean of five', 'mean_of_defined': 'mean of defined'}


def write_table(rounds: Rounds) -> Path:
    """Write rounds.md and rounds.csv into the output folder; returns the first."""
    rows, folder = collect_pseudo_table(rounds), rounds.setup.output
    replace_file(folder / f'{TABLE}.csv', csv_text_pseudo_table(rows).encode())
    replace_file(folder / f'{TABLE}.md', markdown_pseudo_table(rounds, rows).encode())
    return folder / f'{TABLE}.md'


def collect_pseudo_table(rounds: Rounds) -> list[dict[str, Any]]:
    """A row a run, NaN where a figure is not defined.

    Returns:
        Of each round, and of the run on all labels if there is one: `run`, `best` (whether the
        held-out score chose it), `epochs`, `real_pictures` and `pseudo_pictures` it learned from,
        `held_out` (the score that chose); of each scored split and mean its `value` with `low` and
        `high` (95 % over patients), and the same of its difference to round 0; and of the
        pseudo-labels `auroc` (of the round's model against them: mean over `auroc_labels` labels
        with both values) and, for positive and negative, what `audit` gives.
    """
    patients, rows = rounds.patients, []
    runs = [(job, rounds.setup.file(i) if i else None) for i, job in enumerate(rounds.jobs)]
    runs += [(rounds.reference, None)] if rounds.reference else []
    splits = _Splits(rounds.jobs[0])
    for i, (job, file) in enumerate(runs):
        rows.append(
            {
                'run': job.run,
                'best': i == rounds.best,
                'epochs': job.config.TRAIN.EPOCHS,
                'real_pictures': len(training_records(job.config, patients.train)),
                'pseudo_pictures': 0,
                'held_out': patients.held_out_score(job.folder),
                **splits.scores(job),
                **(_pseudo_figures(patients, job, file) if file else {}),
            }
        )
    return rows


class _Splits:
    """Scores of runs on the splits that they were all scored on, with intervals over patients."""

    def __init__(self, supervised: Job) -> None:
        self.supervised, evaluation = supervised, supervised.config.EVAL
        options = {'resamples': evaluation.RESAMPLES, 'seed': supervised.config.SEED}
        self.patients = {
            split: ScoredPatients(_scored_pseudo_table(supervised.folder, split), **options)
            for split in ('valid', 'test')
            if (supervised.folder / f'predictions_{split}.csv').is_file()
        }

    def scores(self, job: Job) -> dict[str, float]:
        figures = {}
        for split, patients in self.patients.items():
            run, first = (
                _scored_pseudo_table(folder, split)
                for folder in (job.folder, self.supervised.folder)
            )
            for mean in MEANS:
                values = [_number(part.figures['scores'][mean]) for part in (run, first)]
                drawn = [
                    patients.samples(part).get(mean, np.array([np.nan])) for part in (run, first)
                ]
                name = f'{split}_{mean}'
                figures |= _with_interval(name, values[0], drawn[0])
                if job is not self.supervised:
                    difference = values[0] - values[1], drawn[0] - drawn[1]
                    figures |= _with_interval(f'{name}_minus_round0', *difference)
        return figures


def _with_interval(name: str, value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = interval(drawn)
    return {name: value, f'{name}_low': low, f'{name}_high': high}


def _scored_pseudo_table(folder: Path, split: str) -> Scored:
    """A run's scores on a split, of the selected checkpoint or the last one."""
    file = folder / 'scores.json'
    try:
        table = json.loads(file.read_bytes())[split]
        scores = table.get('selected') or table['last']
        figures = {'split': split, 'undefined': scores['undefined']}
        figures['scores'] = {mean: scores[mean] for mean in MEANS} | scores['auroc']
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{file} of a finished run cannot be read: {error!r}') from error
    return Scored(folder, figures)


def _number(value: float | None) -> float:
    return float('nan') if value is None else value


def _pseudo_figures(patients: Patients, job: Job, file: Path) -> dict[str, float]:
    """Of the pseudo-labels that a round learned from: how many, how learned, how true."""
    records, labels = patients.unlabelled, patients.labels
    read = read_predictions(file, allow_empty=True)
    values = look_up(read, row_names(read, records.path), labels)
    pictures = ~np.isnan(values).all(axis=1)
    predicted = patients.predicted(job.folder, 'train', records.select(pictures))
    areas = auroc_per_label(predicted, values[pictures])
    return {
        'pseudo_pictures': int(pictures.sum()),
        'auroc': mean_defined(areas),
        'auroc_labels': int((~np.isnan(areas)).sum()),
        **{
            f'{side}_{key}': value
            for side, counts in audit(values, patients.real(records)).items()
            for key, value in counts.items()
        },
    }


def csv_text_pseudo_table(rows: Sequence[dict[str, Any]]) -> str:
    """Every figure in a column of its own, empty where it is not defined."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval='', lineterminator='\n')
    writer.writeheader()
    for row in rows:
        writer.writerow({key: '' if value != value else value
                         for key, value in row.items()})  # fmt: skip
    return text.getvalue()


def markdown_pseudo_table(rounds: Rounds, rows: Sequence[dict[str, Any]]) -> str:
    """Two tables, and what a reader must know of them."""
    parts = ['## Scores on real labels\n', _table_pseudo_table([_real_cells(row) for row in rows])]
    pseudo = [_pseudo_cells(row) for row in rows if 'auroc' in row]
    if pseudo:
        parts += ['\n## On the pseudo-labelled pictures\n', _table_pseudo_table(pseudo)]
    return ''.join([*parts, '\n', *(f'- {note}\n' for note in _notes(rounds))])


def _table_pseudo_table(rows: Sequence[dict[str, str]]) -> str:
    lines = [list(rows[0]), ['---'] * len(rows[0]), *(list(row.values()) for row in rows)]
    return '\n' + ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _real_cells(row: dict[str, Any]) -> dict[str, str]:
    cells = {
        'run': _title(row),
        'real / pseudo-labelled pictures': f'{row["real_pictures"]} / {row["pseudo_pictures"]}',
        'epochs': str(row['epochs']),
        'held-out AUROC (chose)': _shown(row['held_out'], '.3f'),
    }
    for split in ('valid', 'test'):
        for mean, title in SHOWN.items():
            if f'{split}_{mean}' in row:
                cells[f'{split}: {title}'] = _spread_pseudo_table(row, f'{split}_{mean}', '.3f')
    last = 'test' if 'test_mean_of_five' in row else 'valid'
    mean = MEANS[int(np.isnan(row[f'{last}_mean_of_five']))]
    cells[f'{last}: {SHOWN[mean]} minus round 0'] = (
        _spread_pseudo_table(row, f'{last}_{mean}_minus_round0', '+.3f')
        if f'{last}_{mean}_minus_round0' in row
        else ''
    )
    return cells


def _title(row: dict[str, Any]) -> str:
    names = {'round0': 'round 0: supervised only', 'all_labels': 'all labels'}
    title = names.get(row['run'], row['run'].replace('round', 'round '))
    return f'**{title}**' if row['best'] else title


def _pseudo_cells(row: dict[str, Any]) -> dict[str, str]:
    cells = {
        'run': _title(row),
        'pictures': str(row['pseudo_pictures']),
        'AUROC against the pseudo-labels': (
            f'{_shown(row["auroc"], ".3f")} ({row["auroc_labels"]} labels)'
        ),
    }
    for side in ('positive', 'negative'):
        cells[f'{side} values'] = str(row[f'{side}_values'])
        shares = [_shown(row[f'{side}_{key}'], '.1%') for key in ('confirmed', 'by_chance')]
        cells[f'confirmed (by chance), {side}'] = f'{shares[0]} ({shares[1]})'
    return cells


def _shown(value: float, form: str) -> str:
    return MISSING if np.isnan(value) else f'{value:{form}}'.replace('-', '−')


def _spread_pseudo_table(row: dict[str, Any], name: str, form: str) -> str:
    """A figure and its interval, where it has one."""
    bounds = [row[f'{name}_{bound}'] for bound in ('low', 'high')]
    shown = ' to '.join(_shown(bound, form) for bound in bounds)
    return _shown(row[name], form) + ('' if np.isnan(bounds).any() else f' ({shown})')


def _notes(rounds: Rounds) -> list[str]:
    setup, config = rounds.setup, rounds.patients.config
    held_out = len(set(rounds.patients.held_out.patient))
    return [
        f'Best by the held-out score: round {rounds.best}; {rounds.reason or "going on"}. '
        f'Kept by {setup.keep}, confidence {setup.confidence:g}; seed {config.SEED}.',
        f'The {held_out} held-out patients chose checkpoints, thresholds and round: the held-out '
        'score is too good for that.',
        f'In brackets 95 % intervals over patients ({config.EVAL.RESAMPLES} resamples) of one run: '
        'another seed may differ by more.',
        'Confirmed: the share of pseudo-labels that the real labels, which were put aside, '
        'confirm; by chance: if as many values of each label went to pictures drawn at random. '
        'This is an audit: nothing was trained on or chosen by these labels.',
        NOT_FOR_CLINICAL_USE,
    ]

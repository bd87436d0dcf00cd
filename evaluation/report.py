"""What a fine-tuning run ends with: scores, predictions and the report, in the run's folder."""

import base64
import csv
import hashlib
import hmac
import io
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from scipy.special import expit
from sklearn.metrics import precision_recall_curve, roc_curve
from torch import nn
from torch.utils.data import DataLoader

from config import PROBES, Config, encoder_name
from data import Loaders
from data.labels import COMPETITION_LABELS, UNCERTAIN, task_labels
from data.loader import XrayDataset
from data.records import (
    describe_images,
    group_columns,
    normalise_name,
    standard_groups,
    write_predictions,
)
from engine import distributed
from engine.launch import Run
from engine.run_record import code_version
from evaluation import charts as report_charts
from evaluation import charts as report_view
from evaluation.calibration import (
    apply_temperature,
    choose_threshold,
    fit_temperature,
    reliability_curve,
)
from evaluation.cases import Cases
from evaluation.charts import Node, plain, raw
from evaluation.compare import compare
from evaluation.inference import predict
from evaluation.intervals import Resamples, delong_interval
from evaluation.metrics import (
    FEW_POSITIVES,
    METRICS,
    Protocol,
    as_score,
    describe_few,
    describe_scores,
    label_scores,
    mean_scores,
    more_cases,
    rarer_cases,
    score_table,
)
from evaluation.published import context_rows, is_chexpert_test, points_below, radiologist_points
from evaluation.saliency import write_maps
from evaluation.subgroups import score_groups
from logger import json_safe, read_metrics
from models.losses import masked_bce
from utils import trained_config

# ==== evaluation.report_names: What a report calls images, studies, patients and files: their names, or salted hashes.

SALT_FILE = 'anonymise_salt'
SALT_BYTES = 32
DIGITS = 16  # hexadecimal


class Names:
    """Names as they are."""

    def __call__(self, name: str) -> str:
        """Of an image, a study or a patient."""
        return name

    def file(self, path: str | Path) -> str:
        """Of a file or a folder on this machine."""
        return str(path)


class HashedNames(Names):
    """Salted hashes: the same wherever the salt is, and to be had from a name with the salt alone.

    A name's hash is the first 16 hexadecimal digits of the HMAC-SHA256, keyed by the salt, of what
    `normalise_name` leaves of it. Files go by their last part.
    """

    def __init__(self, folder: Path) -> None:
        self.key = read_salt(folder)
        self.known: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        plain = normalise_name(name)
        text = plain.encode('utf-8', 'surrogateescape')
        hashed = hmac.new(self.key, text, hashlib.sha256).hexdigest()[:DIGITS]
        if self.known.setdefault(hashed, plain) != plain:
            raise ValueError(f'two names have the hash {hashed}: remove {SALT_FILE} for another')
        return hashed

    def file(self, path: str | Path) -> str:
        return Path(path).name


def names_for(folder: Path, *, anonymise: bool) -> Names:
    """The names of the reports of a folder; with `anonymise`, its salt is made if it has none."""
    return HashedNames(folder) if anonymise else Names()


def read_salt(folder: Path) -> bytes:
    """The salt of a folder's reports, made if there is none; its owner alone can read the file.

    Raises:
        ValueError: if the file is not one that this function made.
    """
    path = folder / SALT_FILE
    if not path.exists():
        _make_salt(path)
    try:
        key = bytes.fromhex(path.read_text(encoding='ascii'))
    except ValueError:
        key = b''
    if len(key) != SALT_BYTES:
        raise ValueError(f'{path} holds no salt: restore it, or remove it and get other names')
    return key


def rename_images(document: dict[str, Any], name: Callable[[str], str]) -> None:
    """Give every image and study that a report's document names another name, in place."""
    entries = [error for scored in document['sets'] for error in scored['worst_errors']]
    for entry in [*entries, *document['maps']]:
        entry['path'] = name(entry['path'])


def _make_salt(path: Path) -> None:
    """Write a salt whole or not at all; one that another process made meanwhile stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}')  # of mode 600
    try:
        with open(number, 'w', encoding='ascii') as file:
            file.write(secrets.token_hex(SALT_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a renaming, it leaves a file that is there
        except FileExistsError:
            return
        except OSError:  # a file system without links
            os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


# ==== evaluation.report_tables: The tables of a report as CSV files, for spreadsheets and scripts.

Row = dict[str, object]


def write_tables(folder: Path, report: dict) -> None:
    """Write report_labels.csv, report_groups.csv and, if there are any, report_comparisons.csv.

    Args:
        folder: where.
        report: as `report_view.plain` returns it.
    """
    _write(folder / 'report_labels.csv', ('set', 'level', 'views', 'label'), label_rows(report))
    _write(folder / 'report_groups.csv', ('set', 'column', 'group', 'label'), group_rows(report))
    comparisons = folder / 'report_comparisons.csv'
    comparisons.unlink(missing_ok=True)
    if report['comparisons']:
        _write(comparisons, ('set', 'a', 'b', 'label'), comparison_rows(report))


def label_rows(report: dict) -> Iterator[Row]:
    """A row a label and set, then the set's means."""
    for entry in report['sets']:
        keys = {'set': entry['name'], 'level': entry['level'], 'views': entry['views']}
        for label in entry['labels']:
            scaled = {f'{name}_scaled': label['scaled'].get(name) for name in ('brier', 'ece')}
            yield {
                **keys,
                **{name: label[name] for name in ('label', 'n', 'positives')},
                'uncertain_left_out': entry['uncertain'].get(label['label'], 0),
                **{name: label[name] for name in ('threshold', 'temperature')},
                **_columns({**label['scores'], **scaled, 'auroc_delong': label['delong']}),
                'radiologists_below': label['radiologists_below'],
            }
        for name, title in (
            ('five', '(mean of the five tasks)'),
            ('all', '(mean of all labels)'),
            ('labels_with_both_classes', '(mean of the labels with both classes)'),
        ):
            yield {**keys, 'label': title, **_columns(entry['means'][name] or {})}


def group_rows(report: dict) -> Iterator[Row]:
    """A row a label and group, the group's means, and the gap of each label between groups."""
    for entry in report['sets']:
        for column in entry['groups']:
            keys = {'set': entry['name'], 'column': column['column']}
            for group in column['groups']:
                yield from _rows_of_group({**keys, 'group': group['group']}, group)
            for label, gap in column['gaps'].items():
                pair = f'(gap: {gap["best"]} above {gap["worst"]})'
                yield {**keys, 'group': pair, 'label': label, **_columns({'gap': gap['gap']})}


def _rows_of_group(keys: Row, group: dict) -> Iterator[Row]:
    for label, values in group['labels'].items():
        scores = {**values['scores'], 'auroc_standardised': values['standardised_auroc']}
        counts = {name: values[name] for name in ('n', 'positives', 'few')}
        yield {**keys, 'label': label, **counts, **_columns(scores)}
    counts = {name: group[name] for name in ('rows', 'patients')}
    rates = _columns({'underdiagnosis': group['underdiagnosis']})
    yield {**keys, 'label': '(all cases)', **counts, **rates}
    for name, title in (
        ('five', '(mean of the five tasks)'),
        ('all_defined', '(mean of the defined labels)'),
    ):
        yield {**keys, 'label': title, **_columns({'auroc': group['means'][name]})}


def comparison_rows(report: dict) -> Iterator[Row]:
    """A row a label, then the mean of the five."""
    for entry in report['comparisons']:
        keys = {name: entry[name] for name in ('set', 'a', 'b')}
        rows = dict(entry['labels'])
        if entry['means']['five']:
            rows['(mean of the five tasks)'] = entry['means']['five']
        for label, row in rows.items():
            values = {name: value for name, value in row.items() if name != 'difference'}
            yield {**keys, 'label': label, **_columns({'difference': row['difference']}), **values}


def _columns(scores: dict[str, dict | None]) -> Row:
    """Score -> three columns: its value, and its interval."""
    row = {}
    for name, score in scores.items():
        score = score or {'value': None, 'low': None, 'high': None}
        row |= {name: score['value'], f'{name}_low': score['low'], f'{name}_high': score['high']}
    return row


def _write(path: Path, first: tuple[str, ...], rows: Iterator[Row]) -> None:
    rows = list(rows)
    header = list(dict.fromkeys([*first, *(name for row in rows for name in row)]))
    with path.open('w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow([_cell(name) for name in header])
        writer.writerows([_cell(row.get(name)) for name in header] for row in rows)


def _cell(value: object) -> object:
    if value is None:
        return ''
    return value if isinstance(value, str) else repr(value)


# ==== evaluation.analysis: From cases to what a report says of one set: scores, intervals, curves, calibration, errors.

CURVE_POINTS = 200  # of a drawn curve, at most


@dataclass(frozen=True)
class HeldOut:
    """What is fitted on held-out training patients, a value a label; NaN where it cannot be."""

    thresholds: np.ndarray  # [K]
    temperatures: np.ndarray  # [K]


def fit_held_out(holdout: Cases | None, labels: Sequence[str], protocol: Protocol) -> HeldOut:
    """Thresholds and temperatures of these labels; all NaN without held-out patients."""
    thresholds, temperatures = np.full((2, len(labels)), np.nan)
    if holdout is not None:
        rows = holdout.at_level(protocol.level, protocol.aggregate)
        for k, label in enumerate(labels):
            if label in rows.labels:
                column = rows.labels.index(label)
                pair = rows.probabilities[:, column], rows.targets[:, column]
                thresholds[k] = choose_threshold(
                    *pair, rule=protocol.threshold, sensitivity=protocol.sensitivity
                )
                temperatures[k] = fit_temperature(*pair)
    return HeldOut(thresholds, temperatures)


def score_set(cases: Cases, held_out: HeldOut, protocol: Protocol) -> dict[str, Any]:
    """One entry of the report's `sets`: every score of the cases, with intervals.

    Args:
        cases: a row an image (or a study, if that is all there is).
        held_out: thresholds and temperatures, in the order of the cases' labels.
        protocol: level, resamples and so on.
    """
    rows = cases.at_level(protocol.level, protocol.aggregate)
    resamples = None
    if protocol.resamples:
        resamples = Resamples(rows.patient, resamples=protocol.resamples, seed=protocol.seed)
    weights = resamples.weights(rows.patient) if resamples else None
    are_read = _are_read_by_radiologists(rows, protocol)
    points, samples, entries = {}, {}, []
    for k, label in enumerate(cases.labels):
        pair, threshold = (rows.probabilities[:, k], rows.targets[:, k]), held_out.thresholds[k]
        points[label] = label_scores(*pair, threshold=_optional(threshold))
        if weights is not None:
            samples[label] = label_scores(*pair, threshold=_optional(threshold), weights=weights)
        scores = {name: as_score(points[label], samples.get(label), name) for name in METRICS}
        entry = _label_entry(*pair, threshold, held_out.temperatures[k], weights)
        entries.append({'label': label, 'scores': scores, **entry})
        readers = radiologist_points(label) if are_read else []
        entries[-1] |= _per_patient(*pair, rows.patient) | _radiologists(*pair, readers)
    return {
        'name': cases.name,
        'rows': len(rows),
        'images': len(cases),
        'patients': len(set(rows.patient)),
        'level': protocol.level,
        'aggregate': protocol.aggregate,
        'views': protocol.views,
        'uncertain': rows.count_uncertain(),
        'labels': entries,
        'means': _means(points, samples),
        'groups': score_groups(cases, held_out.thresholds, protocol, resamples),
        'worst_errors': worst_errors(rows, held_out.thresholds),
    }


def worst_errors(rows: Cases, thresholds: np.ndarray) -> list[dict[str, Any]]:
    """The most confident false positive and false negative of each label with a threshold."""
    found = []
    for k, label in enumerate(rows.labels):
        values, targets = rows.probabilities[:, k], rows.targets[:, k]
        wrong = {
            'false positive': ((targets == 0) & (values >= thresholds[k]), np.argmax),
            'false negative': ((targets == 1) & (values < thresholds[k]), np.argmin),
        }
        for kind, (mask, choose) in wrong.items():
            if mask.any():
                row = np.flatnonzero(mask)[choose(values[mask])]
                found.append(
                    {
                        'label': label,
                        'kind': kind,
                        'path': rows.path[row],
                        'probability': float(values[row]),
                        'target': float(targets[row]),
                    }
                )
    return found


def _label_entry(
    probabilities: np.ndarray,
    targets: np.ndarray,
    threshold: float,
    temperature: float,
    weights: np.ndarray | None,
) -> dict[str, Any]:
    known = ~np.isnan(targets)
    scaled = apply_temperature(probabilities, temperature)
    point = label_scores(scaled, targets, threshold=None)
    samples = None
    if weights is not None:
        samples = label_scores(scaled, targets, threshold=None, weights=weights)
    has_temperature = not np.isnan(temperature)
    return {
        'n': int(known.sum()),
        'positives': int((targets == 1).sum()),
        'threshold': float(threshold),
        'temperature': float(temperature),
        'scaled': {
            name: as_score(point, samples, name) for name in ('brier', 'ece') if has_temperature
        },
        'calibration': {
            'raw': _calibration(probabilities, targets),
            'scaled': _calibration(scaled, targets) if has_temperature else None,
        },
        **_curves(probabilities[known], targets[known]),
    }


def _calibration(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, list]:
    curve = reliability_curve(probabilities, targets)
    names = {'x': 'mean_probability', 'y': 'share_positive', 'count': 'count'}
    return {short: np.asarray(curve[name]).tolist() for short, name in names.items()}


def _curves(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """ROC and precision-recall curves, thinned; None for a label without both classes."""
    if np.unique(targets).size < 2:
        return {'roc': None, 'precision_recall': None}
    fpr, tpr, _ = roc_curve(targets, probabilities)
    precision, recall, _ = precision_recall_curve(targets, probabilities, drop_intermediate=True)
    return {'roc': _thin(fpr, tpr), 'precision_recall': _thin(recall[::-1], precision[::-1])}


def _thin(x: np.ndarray, y: np.ndarray) -> dict[str, list[float]]:
    """At most CURVE_POINTS points, first and last among them."""
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), CURVE_POINTS)).round().astype(int))
    return {'x': x[keep].tolist(), 'y': y[keep].tolist()}


def _per_patient(
    probabilities: np.ndarray, targets: np.ndarray, patients: np.ndarray
) -> dict[str, Any]:
    """DeLong's interval, which holds where each patient appears once."""
    known = ~np.isnan(targets)
    if len(set(patients[known])) < known.sum() or np.unique(targets[known]).size < 2:
        return {'delong': None}
    value, low, high = delong_interval(probabilities[known], targets[known])
    return {'delong': {'value': value, 'low': low, 'high': high}}


def _are_read_by_radiologists(rows: Cases, protocol: Protocol) -> bool:
    """Whether these are the studies that the radiologists read, with the labels they gave.

    A single label is a binary task's: its negatives are others.
    """
    return protocol.level == 'study' and len(rows.labels) > 1 and is_chexpert_test(rows.study)


def _radiologists(
    probabilities: np.ndarray, targets: np.ndarray, points: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """The radiologists' points, and how many lie below the curve: of all the studies, or none."""
    if not points or np.isnan(targets).any() or np.unique(targets).size < 2:
        return {'radiologists': [], 'radiologists_below': None}
    fpr, tpr, _ = roc_curve(targets, probabilities)
    below = points_below(fpr, tpr, points)
    shown = [
        {'specificity': point[0], 'sensitivity': point[1], 'below': bool(is_below)}
        for point, is_below in zip(points, below, strict=True)
    ]
    return {'radiologists': shown, 'radiologists_below': int(sum(below))}


def _means(points: dict[str, dict], samples: dict[str, dict]) -> dict[str, Any]:
    """Means over the five tasks and all labels (None where one is undefined), over the defined."""
    labels = list(points)
    defined = [label for label in labels if not np.isnan(points[label]['auroc'][0])]

    def mean(chosen: list[str]) -> dict[str, dict[str, float]] | None:
        if not chosen or not set(chosen) <= set(defined):
            return None
        point = mean_scores(points, chosen)
        sample = mean_scores(samples, chosen) if samples else None
        return {name: as_score(point, sample, name) for name in METRICS}

    five = list(COMPETITION_LABELS) if set(COMPETITION_LABELS) <= set(labels) else []
    return {
        'five': mean(five),
        'all': mean(labels),
        'labels_with_both_classes': mean(defined),
        'undefined': [label for label in labels if label not in defined],
    }


def _optional(threshold: float) -> float | None:
    return None if np.isnan(threshold) else float(threshold)


# ==== evaluation.document: The whole of a report as one dictionary: what report.json holds and report.html shows.

FORMAT = 1
TITLE = 'Chest X-ray classification report'
NOT_COMPARABLE = (
    'These scores hold for the images, label rules and views named here. Published figures were '
    'made on other splits, views, label policies or with ensembles, and are context, not a '
    'comparison. Scores on images whose labels were read from reports by a program, as those of '
    "CheXpert's training patients are, may not be compared with scores on labels by radiologists. "
    'Differences smaller than the intervals show nothing. A score at one hospital does not carry '
    'over to another. Not for clinical use.'
)

NO_HELD_OUT = (
    'no held-out training patients: without them no threshold or temperature is chosen, and what '
    'needs one is n/a'
)
NO_INTERVAL = 'no interval: too many resamples lack a class of one label'


def build_document(
    sets: Sequence[Cases],
    holdout: Cases | Sequence[HeldOut] | None,
    protocol: Protocol,
    *,
    run: Mapping[str, str],
    policy: str = '',
    patients: Mapping[str, Sequence[str]] | None = None,
    warnings: Sequence[str] = (),
    extras: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score every set and put the report together.

    Args:
        sets: what is scored; the last one of `test`, `valid` or files is the headline's.
        holdout: held-out training patients, for thresholds and temperatures; or these, fitted
            already, of each set (each is another model's); None: there are none.
        protocol: how cases are scored.
        run: what was run, name -> value, in the order shown.
        policy: of uncertain labels, for the published figures beside it; '' where unknown.
        patients: split -> patients, to look for some that are in two splits.
        warnings: what the caller warns of.
        extras: further parts of the report: `comparisons`, `training`, `maps`, `maps_check`.
    """
    if holdout is None or isinstance(holdout, Cases):
        fitted = [fit_held_out(holdout, cases.labels, protocol) for cases in sets]
    else:
        fitted = holdout
    scored = [
        score_set(cases, held_out, protocol) for cases, held_out in zip(sets, fitted, strict=True)
    ]
    headline = _headline(scored, protocol.resamples > 0)
    context = context_rows(policy, headline['set'], protocol.level, protocol.views)
    return {
        'format': FORMAT,
        'title': TITLE,
        'run': [{'name': name, 'value': str(value)} for name, value in run.items()],
        'headline': headline,
        'not_comparable': NOT_COMPARABLE,
        'published': context if _has_five(sets[-1].labels) else [],
        'warnings': [
            *warnings,
            *_warn_of_leaks(patients or {}),
            *_warn_of_thresholds(holdout),
            *_warn_of_sets(scored, holdout is not None),
        ],
        'sets': scored,
        **{'comparisons': [], 'training': None, 'maps': [], 'maps_check': None, **(extras or {})},
    }


def compare_sets(sets: Sequence[Cases], protocol: Protocol, *, name: str) -> list[dict[str, Any]]:
    """The report's `comparisons`: every pair of models that predict the same rows.

    Args:
        sets: each another model's predictions.
        protocol: how cases are scored.
        name: of what they are predictions of.
    """
    rows = [cases.at_level(protocol.level, protocol.aggregate) for cases in sets]
    pairs = [(a, b) for a, b in combinations(rows, 2) if set(a.path) == set(b.path)]
    options = {'resamples': protocol.resamples, 'seed': protocol.seed, 'five': COMPETITION_LABELS}
    return [{'set': name, **compare(a, b, **options)} for a, b in pairs]


def _has_five(labels: Sequence[str]) -> bool:
    return set(COMPETITION_LABELS) <= set(labels)


def _headline(scored: Sequence[dict[str, Any]], has_intervals: bool) -> dict[str, Any]:
    """Mean of the five tasks of the last set, a single label's AUROC, or why there is none."""
    last, notes = scored[-1], []
    nothing = {'value': np.nan, 'low': np.nan, 'high': np.nan}
    entries = {entry['label']: entry for entry in last['labels']}
    if len(entries) == 1:
        ((label, entry),) = entries.items()
        name, score, counted = f'AUROC, {label}', entry['scores']['auroc'], [label]
    else:
        name, counted = 'Mean AUROC of the five CheXpert tasks', COMPETITION_LABELS
        score = last['means']['five']['auroc'] if last['means']['five'] else nothing
    undefined = last['means']['undefined']
    if missing := [label for label in counted if label not in entries or label in undefined]:
        notes.append(f'not defined: without both classes or absent: {", ".join(missing)}')
    elif (fewest := min(entries[label]['positives'] for label in counted)) < FEW_POSITIVES:
        notes.append(f'as few as {fewest} positives of a label: a weak estimate')
    if has_intervals and np.isnan(score['low']) and not missing:
        notes.append(NO_INTERVAL)
    described = ('rows', 'patients', 'level', 'views')
    return {
        'set': last['name'],
        'name': name,
        'score': score,
        **{key: last[key] for key in described},
        'note': '; '.join(notes),
    }


def _warn_of_leaks(patients: Mapping[str, Sequence[str]]) -> list[str]:
    lines = []
    for (one, names), (other, others) in combinations(patients.items(), 2):
        if both := sorted(set(names) & set(others)):
            lines.append(
                f'{len(both)} patient(s) are in both {one} and {other}, such as {both[0]}: scores '
                'there are of patients that the model may know'
            )
    return lines


def _warn_of_thresholds(holdout: Cases | Sequence[HeldOut] | None) -> list[str]:
    if holdout is not None:
        return []
    return [NO_HELD_OUT]


def _warn_of_sets(scored: Sequence[dict[str, Any]], has_holdout: bool) -> list[str]:
    """What the sets are warned of; a line that holds for several is said once."""
    names: dict[str, list[str]] = {}
    for entry in scored:
        for line in _warn_of_labels(entry, has_holdout):
            names.setdefault(line, []).append(entry['name'])
    several = 1 < len(scored)
    return [
        f'{"all sets" if several and len(sets) == len(scored) else ", ".join(sets)}: {line}'
        for line, sets in names.items()
    ]


def _warn_of_labels(entry: dict[str, Any], has_holdout: bool) -> list[str]:
    """Labels without both classes, with few positives, without a threshold; groups with few."""
    lines, labels = [], entry['labels']
    undefined = entry['means']['undefined']
    few = [
        f'{part["label"]} ({part["positives"]})'
        for part in labels
        if part['label'] not in undefined and part['positives'] < FEW_POSITIVES
    ]
    unset = [p['label'] for p in labels if np.isnan(p['threshold'])]
    if undefined:
        lines.append(f'without both classes, not scored: {", ".join(undefined)}')
    if few:
        lines.append(f'fewer than {FEW_POSITIVES} positives: {", ".join(few)}')
    if has_holdout and unset:
        lines.append(f'no threshold for want of held-out cases: {", ".join(unset)}')
    small = [
        f'{group["group"]} ({column["column"]})'
        for column in entry['groups']
        for group in column['groups']
        if all(part['few'] for part in group['labels'].values())
    ]
    if small:
        lines.append(
            f'groups with fewer than {FEW_POSITIVES} positives of every label: {", ".join(small)}'
        )
    return lines


# ==== evaluation.report: The report of an evaluation: report.json, one self-contained report.html, and CSV tables.

TEMPLATES = Path(__file__).parent / 'templates'
# Full-quality maps lie beside the report; the page holds JPEGs, so that a mail can carry it.
JPEG_QUALITY = 88
METRIC_TITLES = {
    'auroc': 'AUROC',
    'average_precision': 'Average precision',
    'f1': 'F1',
    'kappa': 'Cohen\N{RIGHT SINGLE QUOTATION MARK}s kappa',
    'accuracy': 'Accuracy',
    'precision': 'Precision',
    'recall': 'Recall (sensitivity)',
    'specificity': 'Specificity',
    'brier': 'Brier score',
    'ece': 'ECE',
}


def write_report(folder: str | Path, report: dict) -> Path:
    """Write a report: the same dict gives the same bytes.

    Args:
        folder: where; the files of `maps` lie in it.
        report: what the page shows, format 1; NaN is written as null and shown as n/a.

    Returns:
        report.html; beside it are report.json, report_labels.csv, report_groups.csv and, where
        models are compared, report_comparisons.csv.

    Raises:
        ValueError: if the report contradicts itself or a map cannot be read.
    """
    folder = Path(folder)
    report = plain(report)
    _check(report)
    page = _render(folder, report)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, ensure_ascii=False, allow_nan=False, indent=1)
    (folder / 'report.json').write_text(text + '\n', encoding='utf-8')
    write_tables(folder, report)
    path = folder / 'report.html'
    path.write_text(page, encoding='utf-8')
    return path


def _check(report: dict) -> None:
    if report['format'] != 1:
        raise ValueError(f'format of the report must be 1, got {report["format"]!r}')
    names = [entry['name'] for entry in report['sets']]
    if report['headline']['set'] not in names:
        raise ValueError(f'headline.set is {report["headline"]["set"]!r}, the sets are {names}')
    for entry in report['sets']:
        means = entry['means']
        if means['undefined'] and means['all'] and means['all']['auroc']['value'] is not None:
            raise ValueError(
                f'means.all of set {entry["name"]!r} holds an AUROC, but the AUROC of '
                f'{", ".join(means["undefined"])} is undefined: it must be null'
            )


def _render(folder: Path, report: dict) -> str:
    root = Node(report)
    script = (TEMPLATES / 'report.js').read_text(encoding='utf-8')
    return (
        _environment()
        .get_template('report.html.j2')
        .render(
            report=root,
            sets=sorted(root['sets'], key=lambda s: raw(s['name']) != report['headline']['set']),
            maps=_maps_by_label(folder, root['maps']),
            style=Markup((TEMPLATES / 'report.css').read_text(encoding='utf-8')),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (
        raw,
        report_view.count,
        report_view.p_value,
        report_view.probability,
        report_view.text,
        report_view.words,
        report_view.entries,
    )
    environment.filters |= {function.__name__: function for function in filters}
    environment.filters |= {'id': report_view.identifier, 'has_few': has_few}
    environment.tests['known'] = report_view.is_known
    environment.globals |= {
        'charts': report_charts,
        'metrics': METRIC_TITLES,
        'five': COMPETITION_LABELS,
        'few_positives': FEW_POSITIVES,
        'mean_of_groups': mean_of_groups,
        'few_labels': few_labels,
        'published_labels': published_labels,
    }
    return environment


def mean_of_groups(column: Node) -> str:
    """Which mean the forest plot of a column shows: that of the five wherever one is defined."""
    means = (group['means']['five'] for group in raw(column['groups']))
    return 'five' if any(mean and mean['value'] is not None for mean in means) else 'all_defined'


def has_few(label: Node) -> bool:
    """Whether a label's scores rest on few positives."""
    return raw(label['positives']) < FEW_POSITIVES


def few_labels(group: Node, mean: str) -> list[str]:
    """The labels of a mean that have few positives in a group."""
    labels = raw(group['labels'])
    names = COMPETITION_LABELS if mean == 'five' else labels
    return [name for name in names if name in labels and labels[name]['few']]


def published_labels(report: Node) -> list[str]:
    """The labels that published figures are given for, in the order of the first set."""
    order = [entry['label'] for entry in raw(report['sets'])[0]['labels']]
    given = [name for entry in raw(report['published']) for name in entry['values']]
    return [name for name in dict.fromkeys([*order, *given]) if name in given]


def _maps_by_label(folder: Path, maps: Node) -> list[tuple[str, list[tuple[Node, str]]]]:
    """(label, its maps and their pictures), in the order in which the labels come."""
    found: dict[str, list[tuple[Node, str]]] = {}
    for entry in maps:
        picture = _picture(folder, raw(entry['file']))
        found.setdefault(raw(entry['label']), []).append((entry, picture))
    return list(found.items())


def _picture(folder: Path, name: str) -> str:
    """A picture beside the report as a data URI."""
    from PIL import Image

    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f'maps: {name!r} lies outside the folder of the report, {folder}')
    try:
        with Image.open(path) as image:
            buffer = io.BytesIO()
            image.convert('RGB').save(buffer, 'JPEG', quality=JPEG_QUALITY)
    except OSError as error:
        raise ValueError(f'maps: cannot read the picture {path}: {error}') from error
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()


# ==== reporting: What a fine-tuning run ends with: scores, predictions and the report, in the run's folder.

SCORED = ('valid', 'test')


def score(config: Any, logits: np.ndarray, loader: DataLoader) -> dict[str, Any]:
    """Scores of one split: `score_probabilities`, the loss, the views."""
    dataset = loader.dataset
    probabilities = expit(logits.astype(np.float64))
    scores = score_probabilities(config, probabilities, dataset.targets, dataset.records.study)
    scores['loss'] = masked_bce(torch.from_numpy(logits), torch.from_numpy(dataset.targets)).item()
    scores['views'] = config.EVAL.VIEWS or config.DATA.VIEWS
    return scores


def score_probabilities(
    config: Any, probabilities: np.ndarray, targets: np.ndarray, studies: np.ndarray
) -> dict[str, Any]:
    """`evaluation.metrics.score_table` of images' probabilities [N, K], by the options EVAL."""
    return score_table(
        probabilities,
        targets,
        studies,
        labels=task_labels(config.DATA.TASK),
        five=COMPETITION_LABELS,
        level=config.EVAL.LEVEL,
        aggregate=config.EVAL.AGGREGATE,
    )


class FinalScores:
    """Scores, predictions and the report of what a run ends with, in the run's folder."""

    def __init__(self, run: Run, loaders: Loaders) -> None:
        self.run = run
        self.suffix = '_eval' if run.config.EVAL_MODE else ''
        self.loaders = loaders
        self.scored = _present({name: getattr(loaders, name) for name in SCORED})
        self.table: dict[str, dict[str, Any]] = {}
        self.logits: dict[str, np.ndarray] = {}

    def score(self, name: str, models: list[nn.Module]) -> None:
        """Score the mean of the models on valid and test, under this name."""
        for split, loader in self.scored.items():
            self._predict(split, models, loader)
            scores = score(self.run.config, self.logits[split], loader)
            self.run.logger.info(f'{split}, {name} checkpoint: {describe_scores(scores)}')
            self.table.setdefault(split, {})[name] = scores

    def write(self, models: list[nn.Module], sources: list[str]) -> None:
        """Write all scores, and predictions and report of the models that were scored last.

        Args:
            models: those models.
            sources: their checkpoints, or the kind of probe.
        """
        run = self.run
        if run.config.EVAL.PREDICT_TRAIN and self.loaders.whole is None:
            run.logger.warning('EVAL.PREDICT_TRAIN: there are no training labels, nothing written')
        others = _present({'holdout': self.loaders.holdout, 'train': self.loaders.whole})
        for split, loader in others.items():  # in one order on all ranks
            self._predict(split, models, loader)
        if not distributed.is_main():
            return
        for split, loader in (self.scored | others).items():
            records = loader.dataset.records
            write_predictions(
                run.folder / f'predictions_{split}{self.suffix}.csv',
                expit(self.logits[split].astype(np.float64)),
                paths=records.path,
                labels=task_labels(run.config.DATA.TASK),
                source=self._source(sources) | {'csv': records.csv, 'rows': len(records)},
            )
        file = run.folder / f'scores{self.suffix}.json'
        file.write_text(json.dumps(json_safe(self.table), indent=1) + '\n', encoding='utf-8')
        run.logger.info(f'scores in {file}. Not for clinical use.')
        if run.config.REPORT.WRITE:
            train, plain, holdout = self.loaders.train, self.loaders.plain, self.loaders.holdout
            shown = _present({'train': plain if train is None else train, 'holdout': holdout})
            shown = {name: loader.dataset for name, loader in (shown | self.scored).items()}
            page = write_run_report(run, models, shown, self.logits, sources)
            run.logger.info(f'report in {page}')

    def _predict(self, split: str, models: list[nn.Module], loader: DataLoader) -> None:
        self.logits[split] = predict(self.run.config, self.run.device, models, loader)

    def _source(self, sources: list[str]) -> dict[str, Any]:
        """Where predictions come from, for the file beside them."""
        config = self.run.config
        return {
            'checkpoint': ', '.join(sources),
            'run': f'{config.MODEL.NAME}/{config.TAG}',
            'task': config.DATA.TASK,
            'views': config.EVAL.VIEWS or config.DATA.VIEWS,
            'preprocess': config.DATA.PREPROCESS,
            'test_time_views': describe_views(config),
            'code': code_version(),
        }


def _present(loaders: dict[str, DataLoader | None]) -> dict[str, DataLoader]:
    """Those that there are, the same on all ranks: one without batches on a rank is there, too."""
    return {name: loader for name, loader in loaders.items() if loader is not None}


def check_scoring(run: Run, path: str | Path) -> None:
    """Compare the options of --eval with those a checkpoint was trained with.

    Raises:
        ValueError: if it learned another task, or from patients that are held out now.
    """
    config, trained = run.config, trained_config(path)
    if trained is None:
        return
    if config.DATA.TASK != trained.DATA.TASK:
        raise ValueError(
            f'{path} learned DATA.TASK {trained.DATA.TASK!r}, it cannot be scored as '
            f'{config.DATA.TASK!r}'
        )
    if config.DATA.HOLDOUT_FRACTION > trained.DATA.HOLDOUT_FRACTION:
        raise ValueError(
            f'{path} was trained with DATA.HOLDOUT_FRACTION {trained.DATA.HOLDOUT_FRACTION}: with '
            f'{config.DATA.HOLDOUT_FRACTION} it has learned from patients that are now held out'
        )
    for key in ('MEAN', 'STD', 'NORMALIZE', 'PREPROCESS', 'IMG_SIZE', 'INTERPOLATION'):
        if config.DATA[key] != trained.DATA[key]:
            run.logger.warning(
                f'{path} was trained with DATA.{key} {trained.DATA[key]}, now {config.DATA[key]}'
            )


def warn_of_few_cases(run: Run, loader: DataLoader | None, split: str) -> None:
    """Say it where the split that selects a checkpoint, or a probe's grid, has few of a class."""
    if loader is None:
        return
    config, targets = run.config, loader.dataset.targets
    labels = task_labels(config.DATA.TASK)
    cases = rarer_cases(targets, labels, COMPETITION_LABELS, config.EVAL.SELECT)
    if few := describe_few(cases):
        run.logger.warning(
            f'selection goes by {len(targets)} images of {split}, with few of the rarer class '
            f'({few}): it is a matter of chance; {more_cases(split)}'
        )


def protocol_of(config: Any) -> Protocol:
    """How the options say that cases are scored."""
    choices = config.EVAL
    return Protocol(
        level=choices.LEVEL,
        aggregate=choices.AGGREGATE,
        views=choices.VIEWS or config.DATA.VIEWS,
        threshold=choices.THRESHOLD,
        sensitivity=choices.SENSITIVITY,
        resamples=choices.RESAMPLES,
        seed=config.SEED,
    )


def cases_of(config: Any, name: str, dataset: XrayDataset, logits: np.ndarray) -> Cases:
    """The cases of a split: what was predicted, what is true, and the groups asked for."""
    records, is_task = dataset.records, config.DATA.TASK != 'observations'
    groups = {}
    if name in SCORED:
        groups = standard_groups(records, config.EVAL.AGE_BANDS)
        groups |= group_columns(records, config.EVAL.GROUPS, demographics=config.DATA.DEMOGRAPHICS)
    return Cases(
        name=name,
        labels=task_labels(config.DATA.TASK),
        path=records.path,
        study=records.study,
        patient=records.patient,
        probabilities=expit(logits.astype(np.float64)),
        targets=dataset.targets,
        groups=groups,
        uncertain=None if is_task else records.labels == UNCERTAIN,
    )


def write_run_report(
    run: Run,
    models: list[nn.Module],
    datasets: dict[str, XrayDataset],
    logits: dict[str, np.ndarray],
    sources: list[str],
) -> Path:
    """Write report.html, report.json, its tables and maps; returns the page.

    Args:
        run: the run.
        models: those scored; the maps are of the first.
        datasets: of `train` and `holdout` where there are some, of `valid` and `test`.
        logits: of all but train.
        sources: the models' checkpoints, or the kind of probe.
    """
    config = run.config
    folder = run.folder / 'report_eval' if config.EVAL_MODE else run.folder
    cases = {
        name: cases_of(config, name, datasets[name], logits[name])
        for name in ('holdout', *SCORED)
        if name in datasets
    }
    holdout, trained = cases.pop('holdout', None), training_config(run, sources)
    names = names_for(run.folder, anonymise=config.REPORT.ANONYMISE)
    document = build_document(
        list(cases.values()),
        holdout,
        protocol_of(config),
        run=describe_run(run, sources, trained, names),
        policy=trained.DATA.UNCERTAIN if trained else '',
        patients={
            split: [*map(names, dataset.records.patient)] for split, dataset in datasets.items()
        },
        warnings=_warn_of_selection(trained),
        extras={'training': training_curves(run.folder, config, sources)},
    )
    thresholds = {part['label']: part['threshold'] for part in document['sets'][-1]['labels']}
    shown = list(cases)[-1]
    document |= write_maps(run, models[0], datasets[shown], cases[shown], thresholds, folder)
    rename_images(document, names)
    return write_report(folder, document)


def describe_run(
    run: Run, sources: list[str], trained: Config | None, names: Names
) -> dict[str, str]:
    """What was run, name -> value, for the report's first screen."""
    config, data = run.config, run.config.DATA
    checkpoint = ', '.join(names.file(source) for source in sources)
    labeller = f', labels of {data.LABELLER}' if data.DATASET == 'mimic-cxr' else ''
    data_set = f'{data.DATASET}{labeller}'
    return {
        'Task': data.TASK,
        'Model': f'{encoder_name(config)}, {data.IMG_SIZE} px',
        'Run': f'{config.MODEL.NAME}/{config.TAG}',
        'Checkpoint': f'mean of {checkpoint}' if len(sources) > 1 else checkpoint,
        **_describe_training(trained, names),
        'Data': data_set if config.REPORT.ANONYMISE else f'{data.DATA_PATH} ({data_set})',
        'Blank labels': data.BLANK,
        'Pictures': describe_images(data.DATA_PATH),
        'Pixels': f'preprocessing {data.PREPROCESS}, normalised by {data.NORMALIZE}',
        'Threshold rule': config.EVAL.THRESHOLD,
        'Test-time views': describe_views(config),
        'Seed': str(config.SEED),
        'Code': code_version(),
    }


def describe_views(config: Config) -> str:
    """Which views of an image are averaged."""
    views = 'one view' if config.EVAL.TTA == 'none' else config.EVAL.TTA
    return f'{views}, each also mirrored' if config.EVAL.TTA_FLIP else views


def training_config(run: Run, sources: list[str]) -> Config | None:
    """The options that the scored model was trained with: those in its checkpoint, or the probe's.

    None where they are not known: several checkpoints, or one that holds no options.
    """
    if sources[0] in PROBES:
        return run.config
    return trained_config(sources[0]) if len(sources) == 1 else None


def _describe_training(trained: Config | None, names: Names) -> dict[str, str]:
    if trained is None:
        return {'Training': 'not known'}
    data, is_probe = trained.DATA, trained.FINETUNE.MODE in PROBES
    exceptions = ', '.join(f'{k}: {v}' for k, v in data.UNCERTAIN_BY_LABEL.items())
    policy = data.UNCERTAIN + (f' ({exceptions})' if exceptions else '')
    by_share = f'{100 * data.TRAIN_FRACTION:g} % of the patients'
    start = trained.MODEL.RESUME or trained.PRETRAINED
    rows = {
        'Fitted': trained.FINETUNE.MODE,
        'Started from': names.file(start) if start else 'random weights',
        'Trained on': f'{data.TRAIN_IMAGES} images' if data.TRAIN_IMAGES else by_share,
        'Uncertain labels in training': policy if data.TASK == 'observations' else 'left out',
    }
    if data.PSEUDO_LABELS:
        rows['Trained on'] += f', and pseudo-labels of {names.file(data.PSEUDO_LABELS)}'
    if is_probe:
        return rows | {'Grid chosen on': 'holdout'}
    return rows | {'Loss': trained.LOSS.NAME, 'Selected on': trained.EVAL.SELECT_ON}


def training_curves(folder: Path, config: Config, sources: list[str]) -> dict[str, Any] | None:
    """Losses and the selecting score by epoch, from metrics.jsonl.

    None where the scored model was not trained in this folder.
    """
    file, split = folder / 'metrics.jsonl', config.EVAL.SELECT_ON
    own = len(sources) == 1 and Path(sources[0]).parent == folder
    records = [r for r in read_metrics(file) if 'loss' in r] if own and file.is_file() else []
    if not records:
        return None
    names = {
        'Training loss': 'loss',
        f'Loss on {split} (binary cross-entropy)': f'{split}_loss',
        f'Mean AUROC on {split}': 'score',
    }
    curves = [
        {'name': name, 'values': [record.get(key) for record in records]}
        for name, key in names.items()
    ]
    return {'epochs': [record['epoch'] for record in records], 'curves': curves}


def _warn_of_selection(trained: Config | None) -> list[str]:
    if trained and trained.EVAL.SELECT_ON == 'valid' and trained.FINETUNE.MODE not in PROBES:
        return ['the checkpoint was selected on valid: the scores on valid are too good']
    return []

"""Compute the scores, intervals, curves and worst errors of one set of cases for the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from data.tables.groups import is_unknown
from evaluation.calibration import (
    HALF,
    apply_temperature,
    choose_threshold,
    fit_temperature,
    reliability_curve,
)
from evaluation.cases import Cases, choose_cases
from evaluation.intervals import CaseWeights, Resamples, delong_interval
from evaluation.metrics import (
    FEW_CASES,
    Decisions,
    Protocol,
    allows_delong,
    applicable,
    case_counts,
    compute,
    coverage_within_views,
    label_scores,
    least_coverage,
    mean_summaries,
    summaries,
)
from evaluation.published import RADIOLOGISTS, is_chexpert_test, points_below
from evaluation.subgroups import score_groups, score_metadata
from system.progress import in_threads

CURVE_POINTS = 200  # largest number of points in a curve
HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class HeldOut:
    """Values that were fitted on held-out training patients, NaN where there is none."""

    thresholds: np.ndarray  # [K]
    temperatures: np.ndarray  # [K]
    missing: tuple[str, ...] = ()  # labels that the held-out cases do not have
    counts: tuple[dict[str, Any], ...] = ()  # [K] their `case_counts`, {} where unknown


def fit_held_out(holdout: Cases | None, labels: Sequence[str], protocol: Protocol) -> HeldOut:
    """Fit thresholds and temperatures for these labels.

    Without held-out cases they are NaN, except for the threshold 'half', which is always 0.5.
    """
    thresholds, temperatures = np.full((2, len(labels)), np.nan)
    if is_fixed := protocol.threshold == 'half':
        thresholds[:] = HALF
    if holdout is None:
        return HeldOut(thresholds, temperatures)
    rows, counts = holdout.at_level(protocol.level), [{} for _ in labels]
    for k, label in enumerate(labels):
        if label in rows.labels:
            pair = rows.of_label(label)
            counts[k] = case_counts(pair[1])
            if not is_fixed:
                thresholds[k] = choose_threshold(
                    *pair, rule=protocol.threshold, sensitivity=protocol.sensitivity
                )
            temperatures[k] = fit_temperature(*pair)
    missing = tuple(label for label in labels if label not in rows.labels)
    return HeldOut(thresholds, temperatures, missing, tuple(counts))


def score_set(cases: Cases, held_out: HeldOut, protocol: Protocol) -> dict[str, Any]:
    """Compute one entry of the report's `sets`.

    The cases have one row per image, or per study if only studies are known. The held-out values
    are in the order of their labels. Labels without both classes are listed but not scored.
    """
    rows = cases.at_level(protocol.level)
    has_both = rows.has_both_classes()
    undefined = [label for label, both in zip(rows.labels, has_both, strict=True) if not both]
    every = rows
    cases, rows = cases.with_labels(has_both), rows.with_labels(has_both)
    counts = held_out.counts or [{} for _ in has_both]
    counts = [count for count, both in zip(counts, has_both, strict=True) if both]
    held_out = HeldOut(held_out.thresholds[has_both], held_out.temperatures[has_both])
    resamples = Resamples(rows.patient, resamples=protocol.resamples, seed=protocol.seed)
    weights = resamples.weights(rows.patient)
    # A task with a single label has other negatives than the radiologists' study.
    were_read = protocol.level == 'study' and len(has_both) > 1 and is_chexpert_test(rows.study)

    def score(k: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        label, values = rows.labels[k], (held_out.thresholds[k], held_out.temperatures[k])
        found, entry = score_label(rows, label, *values, weights=weights, protocol=protocol)
        readers = RADIOLOGISTS.get(label, ()) if were_read else ()
        entry |= _radiologists(*rows.of_label(label), readers)
        entry |= {'held_out': counts[k], 'few_held_out': counts[k].get('few', '')}
        return found, {'label': label} | entry

    scored = in_threads(score, range(len(rows.labels)), f'scores of {cases.name}')
    scores = {entry['label']: found for found, entry in scored}
    entries = {entry['label']: entry for _, entry in scored}
    mean_labels, means = rows.mean_labels(), {}
    for key, labels in mean_labels.items():
        means[key] = mean_summaries(scores, labels)
        if means[key]:
            of_labels = (entries[label]['scores']['auroc_within_views'] for label in labels)
            means[key]['auroc_within_views'] |= least_coverage(of_labels)
    return {
        'name': cases.name,
        'rows': len(rows),
        'images': len(cases),
        'patients': len(set(rows.patient)),
        'level': protocol.level,
        'views': protocol.views,
        'uncertain': rows.count_uncertain(),
        'made_of': dict(rows.made_of),
        'unknown_views': int(is_unknown(rows.groups.get('View', ())).sum()),
        **({'classes': score_classes(every, weights)} if rows.exclusive else {}),
        'labels': [*entries.values()],
        'means': {
            **means,
            'counted': [*mean_labels['labels']],
            'few': [label for label in mean_labels['labels'] if entries[label]['few']],
            'same_as': rows.count_classes()['same_as'],
            'undefined': undefined,
        },
        'groups': score_groups(cases, held_out.thresholds, protocol, resamples),
        'metadata': score_metadata(cases, protocol.level, weights),
        'worst_errors': worst_errors(rows, held_out.thresholds),
    }


def score_label(
    rows: Cases,
    label: str,
    threshold: float,
    temperature: float,
    *,
    weights: CaseWeights,
    protocol: Protocol,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Score one label with both classes.

    Args:
        rows: Cases at the level of the protocol.
        label: Name of the label.
        threshold: Lowest probability that is predicted positive; NaN if there is none.
        temperature: Temperature of its logits; NaN if there is none.
        weights: A row of ones and of each resample, [1 + R].
        protocol: Options for scoring.

    Returns:
        Metric -> score and its bootstrap replicates, [1 + R]; and the report's entry of the label:
        counts, scores with intervals, threshold, temperature and what the charts show.
    """
    pair, views = rows.of_label(label), rows.several_views()
    scores = label_scores(*pair, threshold=threshold, weights=weights, views=views)
    if protocol.ranks_only:
        scores |= dict.fromkeys(applicable({'probabilities'}), np.full(weights.num_rows, np.nan))
    scaled, curves = _calibration(*pair, float(temperature), weights)
    delong = (float('nan'),) * 3
    if allows_delong(pair[1], rows.patient):  # enough cases, and one row for each patient
        delong = delong_interval(*pair)
    scaled['auroc_delong'] = dict(zip(('value', 'low', 'high'), delong, strict=True))
    described = summaries(scores) | scaled
    described['auroc_within_views'] |= coverage_within_views(pair[1], views)
    return scores, {
        **case_counts(pair[1]),
        'scores': described,
        'threshold': float(threshold),
        'temperature': float(temperature),
        'calibration': curves,
        'confusion': _confusion(*pair, threshold),
        'histogram': _histogram(*pair),
        **_curves(*pair),
    }


def score_classes(rows: Cases, weights: CaseWeights) -> dict[str, Any]:
    """Return the part `classes` of a set in the report: counts, decisions, and metrics.

    The first row of the weights [1 + R] are ones, followed by the weights of the bootstrap, which
    are left out if a class has few cases: there are no intervals then.
    """
    decisions = Decisions.of(rows.probabilities, rows.targets, weights)
    counts = decisions.confusion[0].astype(int)
    cases = zip(counts.sum(axis=1), rows.labels, strict=True)
    smallest, label = min((found for found in cases if found[0]), default=(FEW_CASES, ''))
    few = f'{smallest} of {label}' if smallest < FEW_CASES else ''
    if few:
        decisions = Decisions(decisions.confusion[:1])
    return {
        'labels': list(rows.labels),
        'n': int(counts.sum()),
        'few': few,
        'confusion': counts.tolist(),
        'scores': summaries(compute(decisions)),
    }


def worst_errors(rows: Cases, thresholds: np.ndarray) -> list[dict[str, Any]]:
    """Find the most confident false positive and false negative of each label."""
    found = []
    for label, threshold in zip(rows.labels, thresholds, strict=True):
        values, targets = rows.of_label(label)
        chosen = choose_cases(values, targets, threshold, 1)
        for kind in ('false positive', 'false negative'):
            for row in chosen[kind]:
                entry = {'label': label, 'kind': kind, 'path': rows.path[row]}
                entry |= {'probability': float(values[row]), 'target': float(targets[row])}
                found.append(entry)
    return found


def _calibration(
    probabilities: np.ndarray, targets: np.ndarray, temperature: float, weights: CaseWeights
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compute calibration metrics after temperature scaling, and reliability curves."""
    curves = {'raw': reliability_curve(probabilities, targets), 'scaled': None}
    if np.isnan(temperature):
        return {}, curves
    scaled = apply_temperature(probabilities, temperature)
    curves['scaled'] = reliability_curve(scaled, targets)
    names = applicable({'probabilities'})
    scores = label_scores(scaled, targets, threshold=None, weights=weights, names=names)
    return {f'{name}_scaled': found for name, found in summaries(scores).items()}, curves


def _confusion(
    probabilities: np.ndarray, targets: np.ndarray, threshold: float
) -> dict[str, int] | None:
    """Count true and false decisions; None without a threshold."""
    if np.isnan(threshold):
        return None
    called = probabilities >= threshold
    counts = {
        'true_positives': called & (targets == 1),
        'false_negatives': ~called & (targets == 1),
        'false_positives': called & (targets == 0),
        'true_negatives': ~called & (targets == 0),
    }
    return {name: int(rows.sum()) for name, rows in counts.items()}


def _histogram(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Count negatives and positives in equal bins between lowest and highest probability."""
    known = probabilities[~np.isnan(targets)]
    low, high = float(known.min()), float(known.max())
    counts = {
        name: np.histogram(probabilities[targets == value], HISTOGRAM_BINS, (low, high))[0].tolist()
        for name, value in (('negative', 0), ('positive', 1))
    }
    return {'low': low, 'high': high, **counts}


def _curves(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Compute ROC and precision-recall curves with at most CURVE_POINTS points."""
    known = ~np.isnan(targets)
    probabilities, targets = probabilities[known], targets[known]
    fpr, tpr, _ = roc_curve(targets, probabilities)
    precision, recall, _ = precision_recall_curve(targets, probabilities, drop_intermediate=True)
    return {'roc': _thin(fpr, tpr), 'precision_recall': _thin(recall[::-1], precision[::-1])}


def _thin(x: np.ndarray, y: np.ndarray) -> dict[str, list[float]]:
    """Select at most CURVE_POINTS points, including the first and the last."""
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), CURVE_POINTS)).round().astype(int))
    return {'x': x[keep].tolist(), 'y': y[keep].tolist()}


def _radiologists(
    probabilities: np.ndarray, targets: np.ndarray, points: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Return the radiologists' operating points and how many of them lie below the ROC curve."""
    if not points or np.isnan(targets).any():
        return {'radiologists': [], 'radiologists_below': None}
    fpr, tpr, _ = roc_curve(targets, probabilities)
    below = points_below(fpr, tpr, points)
    shown = [
        {'specificity': point[0], 'sensitivity': point[1], 'below': is_below}
        for point, is_below in zip(points, below, strict=True)
    ]
    return {'radiologists': shown, 'radiologists_below': sum(below)}

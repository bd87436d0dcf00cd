"""Paired comparison of two models: differences in AUROC with intervals and p-values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from data.labels import COMPETITION_LABELS
from evaluation.cases import Cases
from evaluation.intervals import Resamples, bootstrap_p, delong_test
from evaluation.metrics import (
    count_classes,
    few_cases,
    has_few_cases,
    headline_labels,
    label_scores,
    labels_of_mean,
    summary,
)


def compare(a: Cases, b: Cases, *, resamples: int, seed: int) -> dict[str, Any]:
    """Compare two models.

    Args:
        a: Cases of the first model at the level to compare.
        b: Cases of the second model with the same paths, in any order, and the same targets.
        resamples: Number of bootstrap resamples of patients, shared by both models and all labels.
            With 0 there are no intervals and no bootstrap p-values.
        seed: Seed of the resamples.

    Returns:
        Entry of the report's `comparisons` without its `set`. `a` and `b` are the names. `labels`
        contains the common labels with both classes: `n`, `positives`, `few` (of `few_cases`),
        `difference` (AUROC of a minus AUROC of b), `p_bootstrap`, `p_delong` (NaN unless each
        patient has one row) and `same` (of `likeness`).
        `means` contains `five`, or `labels` (`labels_of_mean`) if one of the five is not counted:
        `difference`, `p_bootstrap`, `same` and `few`, the names of its labels with few cases.
    """
    labels = [label for label in a.with_labels(a.has_both_classes()).labels if label in b.labels]
    b = b.in_order_of(a.path)
    weights = Resamples(a.patient, resamples=resamples, seed=seed).score_weights(a.patient)
    entries, differences = {}, {}
    for label in labels:
        (of_a, targets), (of_b, _) = a.of_label(label), b.of_label(label)
        areas = [
            label_scores(values, targets, threshold=None, weights=weights, names=['auroc'])
            for values in (of_a, of_b)
        ]
        differences[label] = areas[0]['auroc'] - areas[1]['auroc']
        positives, negatives = (int((targets == value).sum()) for value in (1, 0))
        entries[label] = {
            'n': positives + negatives,
            'positives': positives,
            'few': few_cases(positives, negatives),
            **_summary(differences[label]),
            'p_delong': _p_delong(of_a, of_b, targets, a.patient),
            'same': likeness(of_a, of_b, targets),
        }
    counted = headline_labels(labels_of_mean(_counts(a, labels)))
    key = 'five' if counted == COMPETITION_LABELS else 'labels'
    means = {'five': None}
    if counted:
        kinds = {entries[label]['same'] for label in counted}
        means[key] = _summary(np.mean([differences[label] for label in counted], axis=0))
        means[key]['same'] = '' if '' in kinds else min(kinds - {'identical'}, default='identical')
        means[key]['few'] = ', '.join(label for label in counted if entries[label]['few'])
    return {'a': a.name, 'b': b.name, 'labels': entries, 'means': means}


def likeness(a: np.ndarray, b: np.ndarray, targets: np.ndarray) -> str:
    """Say why two models cannot differ in AUROC: their scored predictions are alike.

    Returns:
        'identical' for the same numbers, 'same order of cases' for numbers that rank the cases
        alike, such as a rescaled copy, and '' otherwise.
    """
    known = ~np.isnan(targets)
    if np.array_equal(a[known], b[known]):
        return 'identical'
    return 'same order of cases' if np.array_equal(rankdata(a[known]), rankdata(b[known])) else ''


def _counts(cases: Cases, labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return `count_classes` of these labels."""
    wanted = cases.with_labels([label in labels for label in cases.labels])
    return count_classes(wanted.targets, wanted.labels)


def _summary(samples: np.ndarray) -> dict[str, Any]:
    """Summarise a difference and the bootstrap replicates, [1 + R]."""
    return {'difference': summary(samples), 'p_bootstrap': bootstrap_p(samples[1:])}


def _p_delong(a: np.ndarray, b: np.ndarray, targets: np.ndarray, patients: np.ndarray) -> float:
    """Return DeLong's p-value; NaN if a patient appears more than once, or with few cases."""
    of_known = patients[~np.isnan(targets)]
    if len(set(of_known)) < len(of_known) or has_few_cases(targets):
        return float('nan')
    return delong_test(a, b, targets)

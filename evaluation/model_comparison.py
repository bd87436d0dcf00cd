"""Paired comparison of models: differences with intervals over patients and seeds, and p-values."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.stats import rankdata

from evaluation.cases import Cases
from evaluation.intervals import Resamples, bootstrap_p, delong_test, holm, interval
from evaluation.metrics import (
    allows_delong,
    case_counts,
    coverage_within_views,
    label_scores,
    least_coverage,
    summary,
)
from system.progress import in_threads

MISSING = 'n/a'
SIGNIFICANT = 0.05
ENDS = ('low', 'high')  # of an interval
CLEAR_VERDICTS = ('above', 'below')
EQUAL = 1e-9  # a smaller range of differences over the seeds is rounding
# Name -> score of each seed: the value itself, and then its value in each resample, [S, 1 + R].
Rows = Mapping[Hashable, pd.DataFrame]


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
        `auroc_a`, `auroc_b`, `difference` (of a minus b), `p_bootstrap`, `within_views` (the
        difference of the AUROCs within views with its `coverage`, NaN with a single view),
        `p_delong` (NaN unless each patient has one row) and `same` (of `likeness`).
        `means` contains `five`, or `labels` (`labels_of_mean`) if one of the five is not counted:
        the AUROCs, `difference`, `p_bootstrap`, `within_views`, `same`, `counted`, the names of its
        labels, and `few`, those with few cases.
    """
    labels = [label for label in a.with_labels(a.has_both_classes()).labels if label in b.labels]
    b = b.in_order_of(a.path)
    weights = Resamples(a.patient, resamples=resamples, seed=seed).weights(a.patient)
    options = {
        'weights': weights,
        'views': a.several_views(),
        'names': ['auroc', 'auroc_within_views'],
    }

    def score(label: str) -> tuple[np.ndarray, dict[str, Any]]:
        (of_a, targets), (of_b, _) = a.of_label(label), b.of_label(label)
        scores = [
            label_scores(values, targets, threshold=None, **options) for values in (of_a, of_b)
        ]
        samples = np.stack([[*areas.values()] for areas in scores], axis=1)
        # It needs enough cases, and a single row for each patient.
        has_delong = allows_delong(targets, a.patient)
        summaries = _summary(samples)
        summaries['within_views'] |= coverage_within_views(targets, options['views'])
        return samples, {
            **case_counts(targets),
            **summaries,
            'p_delong': delong_test(of_a, of_b, targets) if has_delong else float('nan'),
            'same': likeness(of_a, of_b, targets),
        }

    scored = in_threads(score, labels, f'{a.name} minus {b.name}')
    found = {label: samples for label, (samples, _) in zip(labels, scored, strict=True)}
    entries = {label: entry for label, (_, entry) in zip(labels, scored, strict=True)}
    mean_labels = a.with_labels([label in labels for label in a.labels]).mean_labels()
    key = 'five' if mean_labels['five'] else 'labels'
    counted, means = mean_labels[key], {'five': None}
    if counted:
        kinds = {entries[label]['same'] for label in counted}
        means[key] = _summary(np.mean([found[label] for label in counted], axis=0))
        of_labels = (entries[label]['within_views'] for label in counted)
        means[key]['within_views'] |= least_coverage(of_labels)
        means[key]['same'] = '' if '' in kinds else min(kinds - {'identical'}, default='identical')
        means[key]['counted'] = [*counted]
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


def _summary(samples: np.ndarray) -> dict[str, Any]:
    """Summarise the scores of two models and their `difference` for the report.

    `samples` [2, 2, 1 + R] contains the AUROC and the AUROC within views of each model.
    """
    areas, within_views = samples
    found = difference((areas[0] - areas[1])[None])
    return {
        'auroc_a': summary(areas[0]),
        'auroc_b': summary(areas[1]),
        'within_views': summary(within_views[0] - within_views[1]),
        'difference': {'value': found['difference'], **found['over_patients']},
        'p_bootstrap': found['p'],
    }


def compare_rows(
    rows: Rows, pairs: Sequence[tuple[Hashable, Hashable]]
) -> list[dict[str, Any] | None]:
    """Compare pairs of rows over the seeds that both have.

    Args:
        rows: Scores of the rows, which share the resamples of the patients, by seed.
        pairs: Names of a row and of the row to compare it with, or '' for none.

    Returns:
        A comparison for each pair, or None without a row or a seed to compare with: `by_seed`, the
        differences in the order of the seeds; `difference`, their mean; `seeds`, their number;
        `over_seeds`, the `low` and `high` of Student's t interval; `over_patients`, the same of the
        percentile interval; `p` (`bootstrap_p`) and `p_holm`, corrected over all pairs; and
        `verdict`. NaN marks unknown values.
    """
    compared: list[dict[str, Any] | None] = []
    for name, against in pairs:
        row, other = rows[name], rows.get(against)
        seeds = [] if other is None else sorted({*row.index} & {*other.index})
        differences = np.full((1, 1), np.nan)
        if seeds:
            first, second = (np.ascontiguousarray(scores.loc[seeds]) for scores in (row, other))
            differences = first - second
        is_known = not np.isnan(differences[:, 0]).any()
        compared.append(difference(differences) if is_known else None)
    known = [entry for entry in compared if entry]
    for entry, p_value in zip(known, holm([entry['p'] for entry in known]), strict=True):
        entry['p_holm'] = float(p_value)
        entry['verdict'] = verdict(entry)
    return compared


def difference(differences: np.ndarray) -> dict[str, Any]:
    """Summarise paired differences of each seed and resample, [S, 1 + R].

    Returns:
        The entries of `compare_rows` without the correction: seeds and patients vary separately.
    """
    by_seed, over_patients = differences[:, 0], differences.mean(axis=0)[1:]
    return {
        'difference': float(by_seed.mean()),
        'seeds': len(by_seed),
        'by_seed': by_seed.tolist(),
        'over_seeds': _bounds(t_interval(by_seed)),
        'over_patients': _bounds(interval(over_patients)),
        'p': bootstrap_p(over_patients),
    }


def verdict(entry: Mapping[str, Any]) -> str:
    """Return the verdict on a comparison.

    Returns:
        'above' or 'below' if both intervals exclude 0 and `p_holm` is below SIGNIFICANT. 'not
        significant after correction' if both intervals exclude 0 and `p_holm` is not below
        SIGNIFICANT. 'inside the noise' if an interval includes 0, where that over patients is
        known. Otherwise 'n/a', such as with few cases of a class.
    """
    bounds = [
        (entry[noise]['low'], entry[noise]['high']) for noise in ('over_seeds', 'over_patients')
    ]
    has_enough = not np.isnan(bounds[1]).any()
    if has_enough and any(low <= 0 <= high for low, high in bounds):  # False for NaN
        return 'inside the noise'
    if np.isnan(bounds).any():
        return MISSING
    if entry['p_holm'] >= SIGNIFICANT:
        return 'not significant after correction'
    return 'above' if entry['difference'] > 0 else 'below'


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % interval of the mean by Student's t.

    It is NaN for a single value, and if all values are equal: rows that do not depend on the seed,
    such as probes of given weights, show nothing about other seeds.
    """
    if len(differences) < 2 or np.ptp(differences) < EQUAL:
        return float('nan'), float('nan')
    half = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    return float(np.mean(differences) - half), float(np.mean(differences) + half)


def summarise(row: pd.DataFrame) -> dict[str, Any]:
    """Return the number of `seeds`, the mean `value` and `sd` over them, and its `low` and `high`.

    The interval is over patients. NaN marks unknown values.
    """
    samples = np.ascontiguousarray(row)  # [S, 1 + R]
    values = samples[:, 0]
    return {
        'seeds': len(values),
        'value': values.mean(),
        'sd': values.std(ddof=1) if len(values) > 1 else np.nan,
        **_bounds(interval(samples.mean(axis=0)[1:])),
    }


def _bounds(pair: tuple[float, float]) -> dict[str, float]:
    return dict(zip(ENDS, pair, strict=True))

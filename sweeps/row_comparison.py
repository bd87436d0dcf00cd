"""Comparison of rows over seeds and patients: intervals, Holm's correction, verdict.

The scores of the rows are in a long table, row -> seed -> score -> [1 + R]: the score itself, and
then its value in each resample of the patients. All rows share the resamples, so that differences
are paired. R is 0 where the patients of a run cannot be resampled.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from evaluation.intervals import bootstrap_p, holm, interval
from evaluation.metrics import few_cases

MEANS = ('mean_of_five', 'mean_of_defined')  # scores that are means over labels
MISSING = 'n/a'
SIGNIFICANT = 0.05
LEAST_RESAMPLES = 1000
REACH = 5  # factor by which the smallest possible corrected p-value is below SIGNIFICANT
ENDS = ('low', 'high')  # of an interval
CLEAR_VERDICTS = ('above', 'below')
EQUAL = 1e-9  # a smaller range of differences over the seeds is rounding

Seeds = Mapping[int, Mapping[str, np.ndarray]]  # seed -> score -> [1 + R]
LongTable = Mapping[Hashable, Seeds]


def enough_resamples(num_comparisons: int) -> int:
    """Return how many resamples are needed so that a corrected p-value can be significant.

    With R resamples the smallest possible p-value is 2 / (R + 1) (`bootstrap_p`), and after Holm's
    correction it is this value times the number of comparisons.
    """
    return max(LEAST_RESAMPLES, round(2 * REACH * num_comparisons / SIGNIFICANT))


def is_compared(score: str) -> bool:
    """Return whether rows are compared by a score. Metrics other than AUROC are only shown."""
    return ':' not in score


def summarise(row: Seeds, score: str) -> dict[str, Any]:
    """Return the number of `seeds`, the mean `value` and `sd` over them, and its `low` and `high`.

    The interval is over patients. NaN marks unknown values.
    """
    samples = _samples(row.values(), score)
    values = samples[:, 0]
    return {
        'seeds': len(values),
        'value': values.mean(),
        'sd': values.std(ddof=1) if len(values) > 1 else np.nan,
        **_bounds(interval(samples.mean(axis=0)[1:])),
    }


def compare_rows(
    table: LongTable, pairs: Sequence[tuple[Hashable, Hashable]], score: str
) -> list[dict[str, Any] | None]:
    """Compare pairs of rows by a score over the seeds that both have.

    Args:
        table: Long table.
        pairs: Names of a row and of the row to compare it with, or '' for none.
        score: Score of the table.

    Returns:
        A comparison for each pair, or None without a row or a seed to compare with: `by_seed`, the
        differences in the order of the seeds; `difference`, their mean; `seeds`, their number;
        `over_seeds`, the `low` and `high` of Student's t interval; `over_patients`, those of the
        percentile interval, with `p` (`bootstrap_p`) and `p_holm`, corrected over all pairs; and
        `verdict`. NaN marks unknown values.
    """
    compared = [_compare(table[name], table.get(against, {}), score) for name, against in pairs]
    parts = [part for part in compared if part]
    adjusted = holm([part['over_patients']['p'] for part in parts])
    for part, p_value in zip(parts, adjusted, strict=True):
        part['over_patients']['p_holm'] = float(p_value)
        part['verdict'] = verdict(part)
    return compared


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


def few_of_label(figures: Mapping[str, Any], score: str) -> str:
    """Return `few_cases` of the scored cases of a run for the AUROC of a label; '' for a mean."""
    if score not in figures['positives']:
        return ''
    positives = figures['positives'][score]
    negatives = (figures.get('negatives') or {}).get(score, figures['rows'] - positives)
    return few_cases(positives, negatives)


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % interval of the mean by Student's t.

    It is NaN for a single value, and if all values are equal: rows that do not depend on the seed,
    such as probes of given weights, show nothing about other seeds.
    """
    if len(differences) < 2 or np.ptp(differences) < EQUAL:
        return float('nan'), float('nan')
    half = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    return float(np.mean(differences) - half), float(np.mean(differences) + half)


def _compare(row: Seeds, other: Seeds, score: str) -> dict[str, Any] | None:
    """Compare two rows without correction; None if they have no common seed with this score."""
    seeds = sorted(seed for seed in row if score in row[seed] and score in other.get(seed, {}))
    if not seeds:
        return None
    own, base = (_samples([each[seed] for seed in seeds], score) for each in (row, other))
    known = min(own.shape[1], base.shape[1])
    differences = own[:, :known] - base[:, :known]  # [S, 1 + R]
    by_seed, over_patients = differences[:, 0], differences.mean(axis=0)[1:]
    return {
        'difference': float(by_seed.mean()),
        'seeds': len(seeds),
        'by_seed': by_seed.tolist(),
        'over_seeds': _bounds(t_interval(by_seed)),
        'over_patients': _bounds(interval(over_patients)) | {'p': bootstrap_p(over_patients)},
    }


def _samples(seeds: Iterable[Mapping[str, np.ndarray]], score: str) -> np.ndarray:  # [S, 1 + R]
    """Return a score of several seeds, without resamples if a seed has none."""
    arrays = [scores[score] for scores in seeds]
    known = min(map(len, arrays))
    return np.array([array[:known] for array in arrays])


def _bounds(pair: tuple[float, float]) -> dict[str, float]:
    return dict(zip(ENDS, pair, strict=True))

"""Lower bound of the differences in AUROC that a sweep can detect.

Hanley and McNeil derive the standard error of an AUROC from the numbers of positives and negatives,
and the standard error of a paired difference from the correlation of the two AUROCs.

Sources: Hanley & McNeil 1982, Radiology 143(1), 29-36; Hanley & McNeil 1983, Radiology 148(3),
839-843.
"""

import logging
from collections.abc import Iterator
from math import sqrt
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct, norm, t

from config import Config
from data.labels import COMPETITION_LABELS
from data.reading import TRAINING_LABELS, scored_records
from data.tasks import task_of
from evaluation.metrics import count_classes, study_level
from sweeps.comparison import SIGNIFICANT
from sweeps.run_scores import SPLITS

POWER = 0.8
AREA = 0.85  # assumed AUROC of both rows
# Correlation of the AUROCs of two rows on the same patients. The 24 paired intervals of Pneumonia
# in docs/results/nih1000 and nih1000_methods imply 0.74 to 0.96 (0.51 once), lower quartile 0.86.
CORRELATION = 0.85


class CaseCounts(NamedTuple):
    """Split that scores a run, with the positives and negatives of each label."""

    split: str
    unit: str
    rows: int
    patients: int
    counts: dict[str, tuple[int, int]]


def count_cases(config: Config, logger: logging.Logger, split: str = '') -> CaseCounts:
    """Count the cases of the split on which a sweep compares its rows.

    Args:
        config: Options of fine-tuning.
        logger: Receives remarks about the data.
        split: Split of the sweep; '' for the first scored split.
    """
    parts = (
        (name, scored_records(config, name, logger, optional=name == 'test'))
        for name in ([split] if split else SPLITS)
    )
    split, records = next((name, part) for name, part in parts if part is not None)
    task = task_of(config)
    targets = task.scored(records)
    if config.EVAL.LEVEL == 'study':
        _, targets, _ = study_level(np.zeros(targets.shape), targets, records.study)
    labels = task.labels
    positives, negatives = count_classes(targets, labels).values()
    counts = {label: (positives[label], negatives[label]) for label in labels}
    unit = 'studies' if config.EVAL.LEVEL == 'study' else 'images'
    return CaseCounts(split, unit, len(targets), len(set(records.patient)), counts)


def standard_error(area: float, positives: int, negatives: int) -> float:
    """Compute the standard error of an AUROC (Hanley and McNeil 1982)."""
    of_positives, of_negatives = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area)
    variance += (positives - 1) * (of_positives - area**2)
    variance += (negatives - 1) * (of_negatives - area**2)
    return sqrt(variance / (positives * negatives))


def detectable_difference(positives: int, negatives: int, comparisons: int) -> float:
    """Compute the paired difference in AUROC that is detected with POWER over patients.

    Holm's correction equals Bonferroni's for the comparison with the smallest p-value.
    """
    error = standard_error(AREA, positives, negatives) * sqrt(2 * (1 - CORRELATION))
    return (norm.isf(SIGNIFICANT / (2 * comparisons)) + norm.ppf(POWER)) * error


def detectable_deviations(seeds: int) -> float:
    """Compute the detectable difference over seeds, in deviations of the paired differences."""
    limit = t.isf(SIGNIFICANT / 2, seeds - 1)
    return brentq(lambda d: nct.sf(limit, seeds - 1, d * sqrt(seeds)) - POWER, 0.01, 100)


def describe_power(cases: CaseCounts, *, comparisons: int, seeds: int) -> Iterator[str]:
    """Yield lines about the detectable differences of a sweep, with all assumptions."""
    yield (
        f'Smallest detectable difference in AUROC on {cases.split} ({cases.rows:,} {cases.unit} of '
        f'{cases.patients:,} patients), comparisons: {comparisons}'
    )
    found = {
        label: detectable_difference(*counts, comparisons)
        for label, counts in cases.counts.items()
        if min(counts)
    }
    for label, difference in found.items():
        positives, negatives = cases.counts[label]
        counts = f'{label:<27}{positives:>7,} positive {negatives:>7,} negative'
        yield f'  {counts}   at least {difference:.3f}'
    if set(COMPETITION_LABELS) <= set(found):
        mean = np.mean([found[label] for label in COMPETITION_LABELS])
        least = mean / sqrt(len(COMPETITION_LABELS))  # if the labels move independently
        yield f'  {"mean of the five":<62}at least {least:.3f}, and at most {mean:.3f}'
    yield (
        f'Assumed: power {POWER:.0%}, alpha {SIGNIFICANT} with Holm, AUROC {AREA}, correlation of '
        f'the AUROCs of two rows {CORRELATION}, independent {cases.unit} (Hanley and McNeil 1983).'
    )
    yield (
        f'These are lower bounds: {cases.unit} of a patient are not independent, the correlation '
        'comes from Pneumonia in docs/results, and the power over seeds is not included.'
    )
    if cases.split == 'internal':
        yield f'The split internal has {TRAINING_LABELS}.'
    if seeds == 1:
        yield 'One seed gives no interval over seeds, so no row can be above or below another.'
    else:
        yield (
            f'With {seeds} seeds the difference must also be at least '
            f'{detectable_deviations(seeds):.1f} standard deviations of the paired differences '
            'between seeds.'
        )

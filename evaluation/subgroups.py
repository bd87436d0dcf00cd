"""Scores by sex, age band, view and other columns, and the gaps between groups."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.labels import COMPETITION_LABELS, NO_FINDING
from evaluation.cases import Cases
from evaluation.intervals import Resamples, interval
from evaluation.metrics import FEW_POSITIVES, METRICS, Protocol, as_score, label_scores, mean_scores

STANDARD_COLUMNS = ('Age', 'Sex')  # that the standardised AUROC adjusts for


def score_groups(
    cases: Cases, thresholds: np.ndarray, protocol: Protocol, resamples: Resamples | None
) -> list[dict[str, Any]]:
    """Score every group of every column: the report's `groups`.

    Groups are formed from images and then brought to the level of the protocol, so with views as
    groups a study counts with its images of that view. All groups share the same thresholds.

    Args:
        cases: One row per image, or per study.
        thresholds: [K], NaN if there is none.
        protocol: How cases are scored.
        resamples: Resamples of all patients; None for no intervals.
    """
    columns = []
    everyone = cases.at_level(protocol.level, protocol.aggregate)
    for column, values in cases.groups.items():
        strata = [name for name in STANDARD_COLUMNS if name != column]
        scored = {}
        for name in sorted(set(values) - {''}, key=_natural_order):
            rows = cases.select(values == name).at_level(protocol.level, protocol.aggregate)
            shares = standard_weights(everyone, rows, strata)
            scored[name] = _GroupScores(name, rows, shares, thresholds, resamples)
        if scored:
            groups = [group.entry() for group in scored.values()]
            columns.append(
                {'column': column, 'groups': groups, 'gaps': _gaps(scored, cases.labels)}
            )
    return columns


class _GroupScores:
    """Every score of one group, with its resamples, which the gaps need."""

    def __init__(
        self,
        name: str,
        rows: Cases,
        shares: np.ndarray,
        thresholds: np.ndarray,
        resamples: Resamples | None,
    ) -> None:
        self.name, self.rows = name, rows
        weights = resamples.weights(rows.patient) if resamples else None
        self.points, self.samples, self.standard = {}, {}, {}
        for k, label in enumerate(rows.labels):
            pair = rows.probabilities[:, k], rows.targets[:, k]
            self.points[label] = label_scores(*pair, threshold=thresholds[k])
            standard = label_scores(*pair, threshold=None, weights=shares[None, :, k])
            standard_samples = None
            if weights is not None:
                self.samples[label] = label_scores(*pair, threshold=thresholds[k], weights=weights)
                standard_samples = label_scores(
                    *pair, threshold=None, weights=weights * shares[:, k]
                )
            self.standard[label] = as_score(standard, standard_samples, 'auroc')

    def positives(self, label: str) -> int:
        return int((self.rows.targets[:, self.rows.labels.index(label)] == 1).sum())

    def entry(self) -> dict[str, Any]:
        targets = self.rows.targets
        labels = {}
        for k, (label, point) in enumerate(self.points.items()):
            samples = self.samples.get(label)
            labels[label] = {
                'n': int((~np.isnan(targets[:, k])).sum()),
                'positives': self.positives(label),
                'few': self.positives(label) < FEW_POSITIVES,
                'scores': {metric: as_score(point, samples, metric) for metric in METRICS},
                'standardised_auroc': self.standard[label],
            }
        return {
            'group': self.name,
            'rows': len(self.rows),
            'patients': len(set(self.rows.patient)),
            'labels': labels,
            'means': {
                'five': self._mean(COMPETITION_LABELS),
                'all_defined': self._mean(self._defined()),
            },
            'underdiagnosis': self._underdiagnosis(),
        }

    def _defined(self) -> list[str]:
        return [label for label, point in self.points.items() if not np.isnan(point['auroc'][0])]

    def _mean(self, labels: Sequence[str]) -> dict[str, float] | None:
        """Mean AUROC; None if one of the labels is undefined."""
        if not labels or not set(labels) <= set(self._defined()):
            return None
        samples = mean_scores(self.samples, labels) if self.samples else None
        return as_score(mean_scores(self.points, labels), samples, 'auroc')

    def _underdiagnosis(self) -> dict[str, float] | None:
        """False-positive rate of No Finding: the share of patients with a finding called healthy.

        Source: Seyyed-Kalantari et al. 2021, Nature Medicine 27.
        """
        if NO_FINDING not in self.points or np.isnan(self.points[NO_FINDING]['specificity'][0]):
            return None
        score = as_score(self.points[NO_FINDING], self.samples.get(NO_FINDING), 'specificity')
        return {'value': 1 - score['value'], 'low': 1 - score['high'], 'high': 1 - score['low']}


def standard_weights(everyone: Cases, rows: Cases, columns: Sequence[str]) -> np.ndarray:
    """Weights that give a group the composition of all rows (direct standardisation).

    For each label, over the rows where it is known, the weight of a row is the share of its stratum
    (the combination of the columns' values) among all rows divided by its share in the group.
    Strata that the group lacks cannot be compensated.

    Args:
        everyone: All rows.
        rows: The rows of the group.
        columns: Names in `groups`; names that are missing there are ignored.

    Returns:
        [N, K] weights of the rows of the group, 0 where a label is unknown.
    """
    columns = [column for column in columns if column in everyone.groups]
    of_all, of_group = (_strata(cases, columns) for cases in (everyone, rows))
    codes = {stratum: i for i, stratum in enumerate(dict.fromkeys([*of_all, *of_group]))}
    of_all, of_group = (np.array([codes[s] for s in strata]) for strata in (of_all, of_group))
    weights = np.zeros(rows.targets.shape)
    for k, target in enumerate(rows.targets.T):
        known = ~np.isnan(target)
        found = of_group[known]
        if found.size:
            wanted = np.bincount(of_all[~np.isnan(everyone.targets[:, k])], minlength=len(codes))
            present = np.bincount(found, minlength=len(codes))
            weights[known, k] = wanted[found] / wanted.sum() / (present[found] / found.size)
    return weights


def _strata(cases: Cases, columns: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip(*(cases.groups[name] for name in columns), strict=True)) or [()] * len(cases)


def _gaps(scored: dict[str, _GroupScores], labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each label, the groups with the highest and lowest AUROC, and their difference.

    The interval is that of the difference over the same resamples of patients. The two groups are
    extremes, so a gap above 0 is expected even where all groups are equal.
    """
    gaps = {}
    for label in labels:
        areas = {name: group.points[label]['auroc'][0] for name, group in scored.items()}
        areas = {name: area for name, area in areas.items() if not np.isnan(area)}
        if len(areas) < 2:
            continue
        worst, *_, best = sorted(areas, key=areas.__getitem__)
        low = high = np.nan
        if scored[best].samples:
            samples = [scored[name].samples[label]['auroc'] for name in (best, worst)]
            low, high = interval(samples[0] - samples[1])
        few = any(scored[name].positives(label) < FEW_POSITIVES for name in (best, worst))
        gap = {'value': float(areas[best] - areas[worst]), 'low': low, 'high': high}
        gaps[label] = {'best': best, 'worst': worst, 'few': few, 'gap': gap}
    return gaps


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Sort numbers in a name by value: '5-9' before '10-14'."""
    parts = re.findall(r'\d+|\D+', name)
    return [(int(part), '') if part.isdecimal() else (-1, part) for part in parts]

"""Scores of groups by sex, age, view and other columns, and the gaps between groups."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from data.tables.groups import is_unknown, members
from data.tables.labels import NO_FINDING
from evaluation.cases import Cases
from evaluation.intervals import CaseWeights, Resamples, add_holm, interval
from evaluation.metrics import (
    OF_LABEL,
    Protocol,
    applicable,
    case_counts,
    coverage,
    has_few_cases,
    headline_labels,
    label_scores,
    mean_summaries,
    summaries,
    summary,
)
from evaluation.tuning import patient_folds
from system.progress import in_threads

STANDARD_COLUMNS = ('Age', 'Sex')  # columns that the standardised AUROC adjusts for
# Columns of groups that may rank cases without an image. The first of each line has the most facts;
# those after it are known of more cases.
METADATA = [
    {'view': ('View',), 'frontal or lateral': ('Direction',)},
    {'age and sex': STANDARD_COLUMNS, 'age': ('Age',), 'sex': ('Sex',)},
]


def score_groups(
    cases: Cases, thresholds: np.ndarray, protocol: Protocol, resamples: Resamples
) -> list[dict[str, Any]]:
    """Score every group of every column for the report's `groups`.

    Groups contain images, which are then combined to the level of the protocol. In a group of a
    view, a study is therefore scored by the images with this view. Those whose group is unknown are
    scored as well, but make no gap. All groups share the thresholds [K], NaN if there is none, and
    the resamples of patients. They have the metrics of the short tables. The p-values of the gaps
    are corrected over all labels and columns.
    """
    everyone = cases.at_level(protocol.level)
    headline = headline_labels(everyone.mean_labels()['labels'])
    shown = [name for name, entry in applicable(OF_LABEL).items() if entry.in_summary]

    def score(group: tuple[str, str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        column, name = group
        rows = cases.select(masks[column][name]).at_level(protocol.level)
        weights = resamples.weights(rows.patient)
        scores = {
            label: label_scores(
                *rows.of_label(label), threshold=threshold, weights=weights, names=shown
            )
            for label, threshold in zip(rows.labels, thresholds, strict=True)
        }
        strata = [other for other in STANDARD_COLUMNS if other != column and masks.get(other)]
        shares = standard_weights(everyone, rows, strata)
        areas = {label: values['auroc'] for label, values in scores.items()}
        same = mean_summaries(scores, headline, metrics=['auroc'])
        described = _describe_group(name, rows, scores, weights, shares)
        return described | {'headline': same and same['auroc']}, areas

    masks = {column: members(values) for column, values in cases.groups.items()}
    pairs = [(column, name) for column in masks for name in masks[column]]
    scored = dict(zip(pairs, in_threads(score, pairs, 'scores of groups'), strict=True))
    columns: list[dict[str, Any]] = []
    for column in filter(masks.get, masks):
        groups = [scored[column, name][0] for name in masks[column]]
        areas = {name: scored[column, name][1] for name in masks[column]}
        columns.append({'column': column, 'groups': groups, 'gaps': gaps_of(groups, areas)})
    add_holm([gap for part in columns for gap in part['gaps'].values()])
    return columns


def ranks_of_groups(cases: Cases, columns: Sequence[str]) -> np.ndarray:  # [N, K]
    """Rank the cases of each label by their group alone, such as their age and sex.

    A group is a combination of values of the columns. The groups are ordered by their shares of
    positive cases among the patients of other folds, so a label does not rank itself.
    """
    group = _strata(cases, columns)
    targets = pd.DataFrame(cases.targets)
    fold, ranks = patient_folds(cases.targets, cases.patient), np.full(cases.targets.shape, 0.5)
    for number in np.unique(fold):
        own = fold == number
        shares = targets[~own].groupby(group[~own]).mean().rank(pct=True)
        ranks[own] = shares.reindex(group[own]).fillna(0.5)
    return ranks


def score_metadata(images: Cases, level: str, weights: CaseWeights) -> dict[str, dict[str, Any]]:
    """Score how well METADATA alone rank the cases, for the report's `metadata`.

    Args:
        images: Cases with one row per image.
        level: Level of the scores.
        weights: Weights of the cases at this level: a row of ones and of each resample, [1 + R].

    Returns:
        Name of the metadata -> label -> summary of the AUROC of the cases of which they are known,
        with the `coverage`, if these are enough. Metadata with fewer facts are scored if those with
        more are unknown of some cases.
    """
    rows, found = images.at_level(level), {}
    if 'View' in images.groups:
        directions = [view.partition(' ')[0] for view in images.groups['View']]
        of_images = replace(images, groups={'View': np.array(directions, object)})
        directions = of_images.at_level(level).groups['View']
        rows = replace(rows, groups={**rows.groups, 'Direction': directions})
    for alternatives in METADATA if rows.labels else ():
        for name, columns in alternatives.items():
            if not all(column in rows.groups for column in columns):
                continue
            known = np.flatnonzero(_strata(rows, columns).notna())
            cases, of_known = rows.select(known), weights.select(known)
            if all(len({*cases.groups[column]}) > 1 for column in columns):
                ranks, found[name] = ranks_of_groups(cases, columns), {}
                for k, label in enumerate(rows.labels):
                    target, every = cases.targets[:, k], rows.targets[:, k]
                    if not has_few_cases(target):
                        options = {'threshold': None, 'weights': of_known, 'names': ['auroc']}
                        areas = label_scores(ranks[:, k], target, **options)['auroc']
                        found[name][label] = summary(areas) | coverage(target, every)
            if len(known) == len(rows):
                break
    return found


def standard_weights(everyone: Cases, rows: Cases, columns: Sequence[str]) -> np.ndarray:
    """Return weights [N, K] that give a group the composition of all rows.

    This is direct standardisation. A stratum is a combination of values of the columns. For each
    label, the weight of a row is the share of the row's stratum among all rows divided by the share
    of this stratum in the group. Both shares count only rows where label and stratum are known. The
    weight of the others is 0. Strata that the group lacks cannot be compensated.
    """
    of_all, of_group = (_strata(cases, columns) for cases in (everyone, rows))
    weights = np.zeros(rows.targets.shape)
    for k, target in enumerate(rows.targets.T):
        known = ~np.isnan(target)
        found = of_group[known]
        wanted = of_all[~np.isnan(everyone.targets[:, k])].value_counts(normalize=True)
        present = found.value_counts(normalize=True)
        weights[known, k] = (found.map(wanted) / found.map(present)).fillna(0)
    return weights


def _strata(cases: Cases, columns: Sequence[str]) -> pd.Series:
    """Return the combination of the columns' values in each row, NaN if one is unknown."""
    strata = pd.Series([''] * len(cases), dtype=object)
    for name in columns:
        strata = (strata + '\n' + cases.groups[name]).mask(is_unknown(cases.groups[name]))
    return strata


def _describe_group(
    name: str,
    rows: Cases,
    scores: dict[str, dict[str, np.ndarray]],
    weights: CaseWeights,
    shares: np.ndarray,
) -> dict[str, Any]:
    """Return the report's entry of one group, from bootstrap weights and `standard_weights`."""
    labels = {}
    for k, (label, values) in enumerate(scores.items()):
        probabilities, target = rows.of_label(label)
        counted = np.where(shares[:, k] > 0, target, np.nan)
        standard = label_scores(
            probabilities,
            counted,
            threshold=None,
            weights=replace(weights, share=shares[:, k], exact=False),
            names=['auroc'],
        )['auroc']
        standard = summary(standard) | coverage(counted, target)
        labels[label] = {
            **case_counts(target),
            'scores': summaries(values) | {'auroc_standardised': standard},
        }
    mean_labels = rows.mean_labels()
    means = {
        key: mean_summaries(scores, names, metrics=['auroc']) for key, names in mean_labels.items()
    }
    return {
        'group': name,
        'rows': len(rows),
        'patients': len(set(rows.patient)),
        'labels': labels,
        'means': {key: mean and mean['auroc'] for key, mean in means.items()},
        'counted': [*mean_labels['labels']],
        'underdiagnosis': _underdiagnosis(scores),
    }


def _underdiagnosis(scores: dict[str, dict[str, np.ndarray]]) -> dict[str, float] | None:
    """Compute the share of cases with a finding for which the model predicts No Finding.

    Source: Seyyed-Kalantari et al. 2021, Nature Medicine 27.
    """
    if NO_FINDING not in scores or np.isnan(scores[NO_FINDING]['specificity'][0]):
        return None
    return summary(1 - scores[NO_FINDING]['specificity'])


def gaps_of(
    groups: list[dict[str, Any]], areas: dict[str, dict[str, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """Find the groups with the highest and lowest AUROC for each label, and the difference.

    Unknown groups are left out, and those with few cases if two others remain. The groups are
    selected as extremes, so a gap above 0 is expected even if all groups are equal. Among more than
    two groups it has no interval, because one that excludes 0 would be common, but a p-value that
    counts all of them.
    """
    gaps = {}
    labels = {group['group']: group['labels'] for group in groups}
    for label in groups[0]['labels']:
        of_group = {
            name: found[label]
            for name, found in areas.items()
            if not (is_unknown(name) or np.isnan(found[label][0]))
        }
        enough = [name for name in of_group if not labels[name][label]['few']]
        compared = enough if len(enough) > 1 else [*of_group]
        if len(compared) > 1:
            worst, *_, best = sorted(compared, key=lambda name: of_group[name][0])
            gap = of_group[best] - of_group[worst]
            gaps[label] = {
                'best': best,
                'worst': worst,
                'few': len(enough) < 2,
                'gap': summary(gap if len(compared) == 2 else gap[:1]),
                'p_bootstrap': range_p(np.stack([of_group[name] for name in compared])),
            }
    return gaps


def range_p(areas: np.ndarray) -> float:
    """Return the bootstrap p-value of the hypothesis that groups have the same AUROC.

    The deviations of the resamples from the scores show how wide a range of AUROCs is by chance:
    the p-value is the share of the resamples, each count increased by one, whose deviations have at
    least the range of the scores. It is NaN where an interval would be undefined.

    Args:
        areas: AUROC of each of G groups, followed by its bootstrap replicates, [G, 1 + R].

    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 4.4.
    """
    by_chance = np.ptp(areas[:, 1:] - areas[:, :1], axis=0)  # NaN if one group is undefined
    if np.isnan(interval(by_chance)[0]):
        return float('nan')
    by_chance = by_chance[~np.isnan(by_chance)]
    return float((1 + np.sum(by_chance >= np.ptp(areas[:, 0]))) / (1 + by_chance.size))

"""Metrics of predicted numbers such as age, and their part of the report and of comparisons.

To add a metric, write one function and decorate it with `@number_metric`. The function receives the
predicted and the true numbers of one label and returns one value per row of weights: the score and
the bootstrap replicates. In the cases of this module, `probabilities` are the predicted numbers in
the units of the label, and `targets` are the true numbers, NaN where the label is not scored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evaluation.cases import Cases
from evaluation.charts import significant
from evaluation.intervals import Resamples, add_holm, bootstrap_p
from evaluation.metrics import (
    CHUNK,
    Metric,
    Protocol,
    adds_to,
    few_in_all,
    mean_defined,
    ratio,
    summaries,
    summary,
)
from evaluation.metrics import study_level as combine_studies
from evaluation.subgroups import natural_order

SHOWN_POINTS = 1000  # largest number of points in a scatter plot
SHOWN_ERRORS = 3  # number of the largest errors of each sign that the report lists for a label


NUMBER_METRICS: dict[str, Metric] = {}
number_metric = adds_to(NUMBER_METRICS)


@number_metric('MAE', higher_is_better=False)
def mae(predicted: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean absolute error, in the units of the label."""
    return _mean(np.abs(predicted - target), weights)


@number_metric('RMSE', higher_is_better=False)
def rmse(predicted: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Root of the mean squared error, in the units of the label; large errors count more."""
    return np.sqrt(_mean((predicted - target) ** 2, weights))


@number_metric('R\N{SUPERSCRIPT TWO}')
def r2(predicted: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficient of determination: 1 is perfect, and 0 is as good as the mean of these targets."""
    unexplained = weights @ (predicted - target) ** 2
    total = _products(target, target, weights)
    return 1 - ratio(unexplained, total, _varies(target, weights))


@number_metric('Correlation')
def correlation(predicted: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson correlation of predicted and true numbers, which ignores offset and scale."""
    spread = _products(predicted, predicted, weights) * _products(target, target, weights)
    defined = _varies(predicted, weights) & _varies(target, weights)
    root = np.sqrt(np.maximum(spread, 0))
    return np.clip(ratio(_products(predicted, target, weights), root, defined), -1, 1)


def mean_error(predicted: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of prediction minus target, [R]: above 0, the predictions are too high."""
    return _mean(predicted - target, weights)


def number_scores(
    predicted: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray | None = None,
    functions: Mapping[str, Callable] | None = None,
) -> dict[str, np.ndarray]:
    """Compute metrics of one label for each row of weights, over the rows with a target.

    Args:
        predicted: Predicted numbers, [N]. All metrics are NaN if one with a target is NaN.
        targets: True numbers, [N], NaN where the label is not scored.
        weights: Non-negative weights, [R, N]. None means a single row of ones.
        functions: Name -> function like `mae`, by default all of NUMBER_METRICS.

    Returns:
        Values [R] for each name, NaN where the metric is undefined.
    """
    functions = functions or {name: entry.compute for name, entry in NUMBER_METRICS.items()}
    weights = np.ones((1, len(targets))) if weights is None else weights
    known = np.flatnonzero(~np.isnan(targets))
    values, truth = (part[known].astype(np.float64) for part in (predicted, targets))
    scores = {name: np.full(len(weights), np.nan) for name in functions}
    if not known.size or np.isnan(values).any():
        return scores
    step = max(1, CHUNK // known.size)
    for start in range(0, len(weights), step):
        rows = slice(start, start + step)
        mass = weights[rows].take(known, axis=1).astype(np.float64)
        for name, compute in functions.items():
            scores[name][rows] = compute(values, truth, mass)
    return scores


def at_study_level(cases: Cases, level: str) -> Cases:
    """Average the images of each study into one row if the level is 'study'.

    The prediction is the mean over all images of a study, and the target is the mean of the known
    targets, NaN if there is none. Paths and groups are those of `Cases.at_level`.
    """
    if level == 'image':
        return cases
    _, targets, _ = _study_means(cases.probabilities, cases.targets, cases.study)
    return replace(cases.at_level(level, 'mean'), targets=targets)


def number_table(
    predicted: np.ndarray,
    targets: np.ndarray,
    studies: Sequence[str],
    *,
    labels: Sequence[str],
    level: str,
    aggregate: str = 'mean',
) -> dict[str, Any]:
    """Compute the metrics of every label for scores.json.

    Args:
        predicted: Predicted numbers of the images, [N, K], in the units of the labels.
        targets: True numbers, [N, K], NaN where the label is not scored.
        studies: Study of each image, [N].
        labels: Label names, [K].
        level: Level of the scores, 'study' (means over the images) or 'image'.
        aggregate: Not used: the maximum of several numbers would be too high.

    Returns:
        `level`, `rows`, `counts` {label: number of targets}, `undefined` [labels without R²], and
        {label: value} for each name of NUMBER_METRICS, NaN where undefined.
    """
    if level == 'study':
        predicted, targets, _ = _study_means(predicted, targets, studies)
    scores = {
        label: number_scores(predicted[:, k], targets[:, k]) for k, label in enumerate(labels)
    }
    counts = (~np.isnan(targets)).sum(axis=0).tolist()
    return {
        'level': level,
        'rows': len(targets),
        **{
            name: {label: float(values[name][0]) for label, values in scores.items()}
            for name in NUMBER_METRICS
        },
        'counts': dict(zip(labels, counts, strict=True)),
        'undefined': [label for label, values in scores.items() if np.isnan(values['r2'][0])],
    }


def labels_with_few_numbers(scores: Mapping[str, Any]) -> dict[str, str]:
    """Return label -> number of cases of a `number_table`, for the labels with few cases."""
    found = {label: few_in_all(count) for label, count in scores['counts'].items()}
    return {label: few for label, few in found.items() if few}


def selecting_numbers(scores: Mapping[str, Any], rule: str) -> tuple[str, ...]:
    """Return the labels of a `number_table` whose mean R² selects a checkpoint, under any rule."""
    few = labels_with_few_numbers(scores)
    return tuple(label for label in scores['r2'] if label not in few)


def number_selection_score(scores: Mapping[str, Any], rule: str) -> float:
    """Return the mean R² of the `selecting_numbers` that have one; NaN if none has.

    R² and not the MAE selects a checkpoint, because it is comparable between labels with different
    units.
    """
    labels = selecting_numbers(scores, rule)
    return mean_defined(np.array([scores['r2'][label] for label in labels]))


def describe_numbers(scores: Mapping[str, Any]) -> str:
    """Format the result of `number_table`, extended by `views`, in one line."""
    parts = []
    for label, count in scores['counts'].items():
        error, share = scores['mae'][label], scores['r2'][label]
        of_label = '' if count == scores['rows'] else f', n = {count}'
        shown = 'n/a' if np.isnan(share) else f'{share:.2f}'
        parts.append(f'{label} {significant(error)} (R² {shown}{of_label})')
    return (
        f'MAE at {scores["level"]} level, {scores["views"]} views, n = {scores["rows"]}: '
        f'{", ".join(parts)}'
    )


def score_numbers(
    cases: Cases, protocol: Protocol, baseline: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Compute one entry of the report's `numbers`.

    Args:
        cases: One row per image, or per study if only studies are known.
        protocol: Options for scoring. `aggregate` and the thresholds are not used, because studies
            are averaged.
        baseline: Label -> mean of the training targets, the constant that is scored for comparison.
            Without it, the constant is the mean of the scored targets.

    Returns:
        The entry. `undefined` lists the labels without any target, which are otherwise left out.
        Standard deviations are those of the rows (divided by n), so that `sd` equals the RMSE of
        the mean of the scored targets.
    """
    everyone = at_study_level(cases, protocol.level)
    scored = ~np.isnan(everyone.targets).all(axis=0)
    undefined = [label for label, known in zip(everyone.labels, scored, strict=True) if not known]
    cases, rows = cases.with_labels(scored), everyone.with_labels(scored)
    resamples = Resamples(rows.patient, resamples=protocol.resamples, seed=protocol.seed)
    weights = resamples.score_weights(rows.patient)
    return {
        'name': cases.name,
        'rows': len(rows),
        'images': len(cases),
        'patients': len(set(rows.patient)),
        'level': protocol.level,
        'views': protocol.views,
        'labels': [
            _describe_label(rows, label, weights, (baseline or {}).get(label))
            for label in rows.labels
        ],
        'undefined': undefined,
        'groups': _score_groups(cases, protocol, resamples),
        'largest_errors': _largest_errors(rows),
    }


def compare_numbers(a: Cases, b: Cases, *, resamples: int, seed: int) -> dict[str, Any]:
    """Compare the MAE of two models. A lower MAE is better.

    Args:
        a: Cases of the first model at the level to compare.
        b: Cases of the second model with the same paths, in any order, and the same targets.
        resamples: Number of bootstrap resamples of patients, shared by both models and all labels.
            With 0 there are no intervals and no p-values.
        seed: Seed of the resamples.

    Returns:
        Entry of the report's `comparisons` without its `set`, as of `evaluation.compare.compare`.
        `score` is 'MAE'. `labels` contains the common labels with targets: `n`, `few` (of
        `few_in_all`), `difference` (MAE of a minus MAE of b; below 0, the first model is better),
        `p_bootstrap`, `p_holm` and `same` ('identical' or ''). `means` is empty, because labels
        have different units.
    """
    b = b.in_order_of(a.path)
    weights = Resamples(a.patient, resamples=resamples, seed=seed).score_weights(a.patient)
    entries, shared = {}, [label for label in a.labels if label in b.labels]
    for label in shared:
        (of_a, targets), (of_b, _) = a.of_label(label), b.of_label(label)
        known = ~np.isnan(targets)
        if known.any():
            of_each = (number_scores(part, targets, weights, {'mae': mae}) for part in (of_a, of_b))
            difference = np.subtract(*(scores['mae'] for scores in of_each))
            entries[label] = {
                'n': int(known.sum()),
                'few': few_in_all(int(known.sum())),
                'difference': summary(difference),
                'p_bootstrap': bootstrap_p(difference[1:]),
                'same': 'identical' if np.array_equal(of_a[known], of_b[known]) else '',
            }
    add_holm(entries.values())
    return {'a': a.name, 'b': b.name, 'score': 'MAE', 'labels': entries, 'means': {}}


def _describe_label(
    rows: Cases, label: str, weights: np.ndarray, of_training: float | None
) -> dict[str, Any]:
    """Return the report's entry of one label, from bootstrap weights and the training mean."""
    predicted, targets = rows.of_label(label)
    known = ~np.isnan(targets)
    truth, values = (part[known].astype(np.float64) for part in (targets, predicted))
    constant = float(truth.mean()) if of_training is None else float(of_training)
    of_constant = number_scores(np.full(len(targets), constant), targets, weights)
    return {
        'label': label,
        'n': len(truth),
        'few': few_in_all(len(truth)),
        'mean': float(truth.mean()),
        'sd': float(truth.std()),
        'predicted_mean': float(values.mean()),
        'predicted_sd': float(values.std()),
        'scores': summaries(number_scores(predicted, targets, weights)),
        'constant': {
            'value': constant,
            'source': 'scored targets' if of_training is None else 'training targets',
            'scores': summaries(of_constant),
        },
        'points': _points(values, truth),
    }


def _points(predicted: np.ndarray, targets: np.ndarray) -> dict[str, list[float]]:
    """Select at most SHOWN_POINTS points at equal steps of their order by target."""
    order = np.lexsort((predicted, targets))
    keep = np.linspace(0, len(order) - 1, min(len(order), SHOWN_POINTS)).round().astype(int)
    chosen = order[keep]
    return {'target': targets[chosen].tolist(), 'predicted': predicted[chosen].tolist()}


def _largest_errors(rows: Cases) -> list[dict[str, Any]]:
    """Find the predictions of each label that are most too high and most too low."""
    found = []
    for label in rows.labels:
        predicted, targets = rows.of_label(label)
        errors = predicted - targets
        for kind, signed in (('too high', errors), ('too low', -errors)):
            wrong = np.flatnonzero(signed > 0)  # False for NaN
            for row in wrong[np.argsort(-signed[wrong], kind='stable')][:SHOWN_ERRORS]:
                entry = {'label': label, 'kind': kind, 'path': rows.path[row]}
                entry |= {'predicted': float(predicted[row]), 'target': float(targets[row])}
                found.append(entry)
    return found


def _score_groups(cases: Cases, protocol: Protocol, resamples: Resamples) -> list[dict[str, Any]]:
    """Score every group of every column with the common resamples of patients.

    Groups contain images, which are then averaged to the level of the protocol.
    """
    functions, columns = {'mae': mae, 'mean_error': mean_error}, []
    for column, values in cases.groups.items():
        groups = []
        for name in sorted(set(values) - {''}, key=natural_order):
            rows = at_study_level(cases.select(values == name), protocol.level)
            weights = resamples.score_weights(rows.patient)
            labels = {}
            for label in rows.labels:
                pair = rows.of_label(label)
                count = int((~np.isnan(pair[1])).sum())
                labels[label] = {
                    'n': count,
                    'few': few_in_all(count),
                    'scores': summaries(number_scores(*pair, weights, functions)),
                }
            counts = {'rows': len(rows), 'patients': len(set(rows.patient))}
            groups.append({'group': name, **counts, 'labels': labels})
        if groups:
            columns.append({'column': column, 'groups': groups})
    return columns


def _study_means(
    predicted: np.ndarray, targets: np.ndarray, studies: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean predictions [S, K], mean known targets [S, K] and names [S] of studies."""
    means, _, names = combine_studies(predicted, targets, studies, 'mean')
    study = np.unique(np.asarray(studies), return_inverse=True)[1]
    totals, counts = np.zeros((2, *means.shape))
    np.add.at(totals, study, np.nan_to_num(targets))
    np.add.at(counts, study, ~np.isnan(targets))
    return means, ratio(totals, counts), names


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:  # [R]
    total = weights.sum(axis=1)
    return ratio(weights @ values, total)


def _products(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:  # [R]
    """Return the weighted sums of products of the deviations from the weighted means.

    The values are first centred at their plain means, so that little precision is lost.
    """
    a, b = a - a.mean(), b - b.mean()
    total = weights.sum(axis=1)
    shift = ratio((weights @ a) * (weights @ b), total)
    return weights @ (a * b) - shift


def _varies(values: np.ndarray, weights: np.ndarray) -> np.ndarray:  # [R] bool
    """Return whether the values with a positive weight differ; False for fewer than two rows."""
    counted = weights > 0
    highest = np.where(counted, values, -np.inf).max(axis=1)
    return highest > np.where(counted, values, np.inf).min(axis=1)

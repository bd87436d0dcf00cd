"""Scores and comparisons of predicted numbers, such as ages (DATA.TASK regression).

`Cases.probabilities` are the predicted numbers here, and `Cases.targets` the true ones. To add a
metric, write one function and decorate it with `@number_metric`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluation.cases import Cases
from evaluation.compare import bootstrap_p, holm
from evaluation.intervals import Resamples
from evaluation.metrics import Protocol, few_in_all, mean_defined, summaries, summary
from evaluation.subgroups import natural_order

MOST_POINTS = 1000  # in a scatter plot
NUM_ERRORS = 3  # of each sign in the list of the largest errors


@dataclass(frozen=True)
class NumberMetric:
    """One entry of NUMBER_METRICS."""

    name: str  # key in scores.json and report.json
    title: str
    explanation: str  # the report shows it as tooltip of the title
    compute: Callable[..., np.ndarray]
    higher_is_better: bool


NUMBER_METRICS: dict[str, NumberMetric] = {}


def number_metric(title: str, *, higher_is_better: bool) -> Callable[[Callable], Callable]:
    """Decorate a function (predicted [N], true [N], weights [R, N]) -> [R] as a metric.

    The values are NaN where the metric is undefined. The first line of the function's docstring
    explains the metric in the report.
    """

    def register(function: Callable) -> Callable:
        name, explanation = function.__name__, (function.__doc__ or title).splitlines()[0]
        assert name not in NUMBER_METRICS, f'the metric {name!r} is registered twice'
        NUMBER_METRICS[name] = NumberMetric(name, title, explanation, function, higher_is_better)
        return function

    return register


@number_metric('MAE', higher_is_better=False)
def mae(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean absolute error, in the units of the label."""
    return _mean(np.abs(predicted - true), weights)


@number_metric('RMSE', higher_is_better=False)
def rmse(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Root of the mean squared error, in the units of the label."""
    return np.sqrt(_mean((predicted - true) ** 2, weights))


@number_metric('R²', higher_is_better=True)
def r2(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the variance of the true numbers that the predictions explain; a constant has 0."""
    spread = _covariance(true, true, weights)
    return 1 - _ratio(_mean((predicted - true) ** 2, weights), spread)


@number_metric('Correlation', higher_is_better=True)
def correlation(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of predictions and true numbers."""
    squares = _covariance(predicted, predicted, weights) * _covariance(true, true, weights)
    return _ratio(_covariance(predicted, true, weights), np.sqrt(np.maximum(squares, 0)))


def mean_error(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of prediction minus true number, [R]: above 0, predictions are too high."""
    return _mean(predicted - true, weights)


def number_rows(cases: Cases, level: str) -> Cases:
    """Combine the images of each study into one row if the level is 'study'.

    The prediction and the target of a study are the means over its images with known targets; over
    all images if none is known. Paths and groups come from the first image.
    """
    if level == 'image':
        return cases
    names, study = np.unique(cases.study.astype(str), return_inverse=True)
    first = cases.select(np.unique(cases.study.astype(str), return_index=True)[1])
    known = ~np.isnan(cases.targets)
    has_known = _sums(known, study)[study] > 0
    counted = known | ~has_known
    counts = _sums(counted, study)
    targets = np.where(known, cases.targets, 0)
    return replace(
        first,
        path=names.astype(object),
        probabilities=_sums(np.where(counted, cases.probabilities, 0), study) / counts,
        targets=np.where(_sums(known, study) > 0, _sums(targets, study) / counts, np.nan),
    )


def number_table(
    predicted: np.ndarray,
    targets: np.ndarray,
    studies: np.ndarray,
    *,
    labels: Sequence[str],
    level: str,
    aggregate: str = 'mean',
) -> dict[str, Any]:
    """Compute NUMBER_METRICS of every label.

    Args:
        predicted: Predictions of the images, [N, K].
        targets: True numbers, [N, K], NaN where unknown.
        studies: Study of each image, [N].
        labels: Label names, [K].
        level: Level of the scores, 'study' or 'image'.
        aggregate: Not used: the prediction of a study is the mean, because a maximum is too high.

    Returns:
        Each metric as {label: value, NaN where undefined}, `counts` {label: number of known
        targets}, `undefined` [labels without R²], `rows` and `level`.
    """
    names = np.asarray(studies, object)
    rows = number_rows(Cases('', tuple(labels), names, names, names, predicted, targets), level)
    values = {label: _scores(rows, label) for label in labels}
    table: dict[str, Any] = {'level': level, 'rows': len(rows)}
    for name in NUMBER_METRICS:
        table[name] = {label: float(values[label][name][0]) for label in labels}
    table['counts'] = dict(zip(labels, (~np.isnan(rows.targets)).sum(axis=0).tolist(), strict=True))
    return table | {'undefined': [label for label in labels if np.isnan(table['r2'][label])]}


def describe_numbers(scores: Mapping[str, Any]) -> str:
    """Format the result of `number_table`, extended by `views` and `loss`, in one line."""
    parts = [
        f'{label} MAE {scores["mae"][label]:.4g}, R² {scores["r2"][label]:.4f}'
        for label in scores['mae']
    ]
    return (
        f'errors at {scores["level"]} level, {scores["views"]} views, n = {scores["rows"]}: '
        f'{"; ".join(parts)}'
    )


def labels_with_few_numbers(scores: Mapping[str, Any]) -> dict[str, str]:
    """Return label -> number of cases, for the labels with fewer than FEW_CASES."""
    found = {label: few_in_all(count) for label, count in scores['counts'].items()}
    return {label: few for label, few in found.items() if few}


def selecting_numbers(scores: Mapping[str, Any], rule: str) -> tuple[str, ...]:
    """Return the labels whose mean R² selects a checkpoint, whatever EVAL.SELECT says."""
    few = labels_with_few_numbers(scores)
    return tuple(label for label in scores['r2'] if label not in few)


def number_selection_score(scores: Mapping[str, Any], rule: str) -> float:
    """Return the mean R² of the `selecting_numbers` with a value; NaN if there is none."""
    labels = selecting_numbers(scores, rule)
    return mean_defined(np.array([scores['r2'][label] for label in labels]))


def score_numbers(
    cases: Cases, protocol: Protocol, *, baseline: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Compute one entry of the report's `numbers`.

    Args:
        cases: Cases with one row per image.
        protocol: Options for scoring, of which level, views, resamples and seed apply.
        baseline: Label -> mean of the training targets. None: the mean of the scored targets.
    """
    rows = number_rows(cases, protocol.level)
    resamples = Resamples(rows.patient, resamples=protocol.resamples, seed=protocol.seed)
    weights = resamples.score_weights(rows.patient)
    entries = []
    for label in rows.labels:
        predicted, true = rows.of_label(label)
        known = ~np.isnan(true)
        n, target = int(known.sum()), true[known]
        constant = baseline[label] if baseline else float(target.mean()) if n else np.nan
        shown = np.unique(np.linspace(0, n - 1, min(n, MOST_POINTS)).astype(int))
        entries.append(
            {
                'label': label,
                'n': n,
                'few': few_in_all(n),
                'mean': float(target.mean()) if n else np.nan,
                'sd': float(target.std()) if n else np.nan,
                'predicted_sd': float(predicted[known].std()) if n else np.nan,
                'scores': summaries(_scores(rows, label, weights)),
                'mean_error': summary(_scores(rows, label, weights, bias=True)['mean_error']),
                'constant': constant,
                'constant_mae': float(np.abs(target - constant).mean()) if n else np.nan,
                'points': {'x': target[shown].tolist(), 'y': predicted[known][shown].tolist()},
            }
        )
    return {
        'name': rows.name,
        'rows': len(rows),
        'images': len(cases),
        'patients': len(set(rows.patient)),
        'level': protocol.level,
        'views': protocol.views,
        'constant_is': 'the training images' if baseline else 'these cases',
        'labels': entries,
        'groups': _score_groups(cases, protocol.level, resamples),
        'errors': _largest_errors(rows),
    }


def compare_numbers(a: Cases, b: Cases, protocol: Protocol) -> dict[str, Any]:
    """Compare the errors of two models on the same rows, in any order.

    Returns:
        The names `a` and `b`, and `labels` with `n`, `difference` (MAE of a minus MAE of b: below
        0, a is better) with its interval, `p_bootstrap`, and `p_holm` over the labels.
    """
    a, b = number_rows(a, protocol.level), number_rows(b, protocol.level)
    places = {path: row for row, path in enumerate(b.path)}
    b = b.select(np.array([places[path] for path in a.path], int))
    resamples = Resamples(a.patient, resamples=protocol.resamples, seed=protocol.seed)
    weights, entries = resamples.score_weights(a.patient), {}
    for label in (label for label in a.labels if label in b.labels):
        samples = _scores(a, label, weights)['mae'] - _scores(b, label, weights)['mae']
        entries[label] = {
            'n': int((~np.isnan(a.of_label(label)[1])).sum()),
            'difference': summary(samples),
            'p_bootstrap': bootstrap_p(samples[1:]),
        }
    adjusted = holm([entry['p_bootstrap'] for entry in entries.values()])
    for entry, p_value in zip(entries.values(), adjusted, strict=True):
        entry['p_holm'] = float(p_value)
    return {'a': a.name, 'b': b.name, 'labels': entries}


def _score_groups(cases: Cases, level: str, resamples: Resamples) -> list[dict[str, Any]]:
    """Score every group of every column; the resamples of patients are those of all cases."""
    columns = []
    for column, values in cases.groups.items():
        groups = []
        for name in sorted({*values} - {''}, key=natural_order):
            rows = number_rows(cases.select(values == name), level)
            weights = resamples.score_weights(rows.patient)
            labels = {}
            for label in rows.labels:
                n = int((~np.isnan(rows.of_label(label)[1])).sum())
                found = _scores(rows, label, weights, bias=True)
                scores = {key: summary(found[key]) for key in ('mae', 'mean_error')}
                labels[label] = {'n': n, 'few': few_in_all(n), **scores}
            patients = len({*rows.patient})
            groups.append(
                {'group': name, 'rows': len(rows), 'patients': patients} | {'labels': labels}
            )
        if groups:
            columns.append({'column': column, 'groups': groups})
    return columns


def _largest_errors(rows: Cases) -> list[dict[str, Any]]:
    """List the predictions of each label that are most too high and most too low."""
    found = []
    for label in rows.labels:
        predicted, true = rows.of_label(label)
        order = np.argsort(predicted - true, kind='stable')  # NaN is last
        order = order[: (~np.isnan(true)).sum()]
        lowest = order[:NUM_ERRORS]
        highest = [row for row in order[::-1][:NUM_ERRORS] if row not in lowest]
        for row in (*highest, *lowest[::-1]):
            values = {'prediction': float(predicted[row]), 'target': float(true[row])}
            found.append({'label': label, 'path': rows.path[row], **values})
    return found


def _scores(
    rows: Cases, label: str, weights: np.ndarray | None = None, *, bias: bool = False
) -> dict[str, np.ndarray]:
    """Compute all metrics of a label, [R] each, and with `bias` also the mean error."""
    predicted, true = rows.of_label(label)
    known = ~np.isnan(true)
    own = np.ones((1, known.sum())) if weights is None else weights[:, known].astype(np.float64)
    pair = predicted[known], true[known].astype(np.float64)
    found = {name: metric.compute(*pair, own) for name, metric in NUMBER_METRICS.items()}
    return found | ({'mean_error': mean_error(*pair, own)} if bias else {})


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:  # [N], [R, N] -> [R]
    return _ratio(weights @ values, weights.sum(axis=1))


def _covariance(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:  # [R]
    """Return weighted covariances; those that are only rounding errors are 0."""
    if not x.size:
        return np.zeros(len(weights))
    x, y = x - x.mean(), y - y.mean()  # fewer digits are lost
    found = _mean(x * y, weights) - _mean(x, weights) * _mean(y, weights)
    return np.where(np.abs(found) > 1e-12 * x.std() * y.std(), found, 0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    empty = np.full(len(denominator), np.nan)
    return np.divide(numerator, denominator, out=empty, where=denominator > 0)


def _sums(values: np.ndarray, study: np.ndarray) -> np.ndarray:  # [N, K] -> [S, K]
    sums = np.zeros((study.max(initial=-1) + 1, values.shape[1]))
    np.add.at(sums, study, values)
    return sums

"""Charts of the report show the numbers of the report."""

import re

import numpy as np
import pytest
from cases import FIVE, entries, of_test_set
from sklearn.metrics import auc

from evaluation.report.charts import forest_row, histogram, nice_axis, precision_recall, roc


@pytest.fixture(scope='module')
def labels() -> list[dict]:
    """Return the entries of the five labels on CheXpert's test studies."""
    return [*entries(of_test_set(FIVE)).values()]


def drawn(svg: str) -> tuple[np.ndarray, np.ndarray]:
    """Convert the pixels of the drawn curve to data coordinates."""
    path = re.search('<path class="curve series-0" d="([^"]*)"', svg)[1]
    points = np.array([[float(v) for v in p.split()] for p in re.split('[ML]', path)[1:]])
    return (points[:, 0] - 48) / 236, (246 - points[:, 1]) / 236


def test_the_area_under_a_drawn_curve_is_the_score(labels: list[dict]) -> None:
    for label in labels:
        x, y = drawn(str(roc(label, 'a')))
        assert auc(x, y) == pytest.approx(label['scores']['auroc']['value'], abs=1e-3)
        x, y = drawn(str(precision_recall(label, 'a')))
        area = label['scores']['average_precision']['value']
        assert auc(x, y) == pytest.approx(area, abs=1e-3)


def test_a_negative_that_is_ranked_first_draws_no_spike() -> None:
    points = {'x': [0.0, 0.0, 0.5, 1.0], 'y': [1.0, 0.0, 0.5, 0.4]}
    label = {'label': 'Edema', 'precision_recall': points, 'positives': 2, 'n': 5}
    x, y = drawn(str(precision_recall(label, 'a')))
    assert y[x < 0.25] == pytest.approx(0.5, abs=1e-3)
    assert auc(x, y) == pytest.approx((0.5 + 0.4) / 2, abs=1e-3)


def test_radiologists_are_drawn_filled_below_the_curve(labels: list[dict]) -> None:
    label = labels[-1]
    svg = str(roc(label, 'a'))
    below = label['radiologists_below']
    assert (svg.count('"reader below"'), svg.count('"reader above"')) == (below, 3 - below)
    x, y = re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="3.8" class="reader', svg).groups()
    assert (float(x) - 48) / 236 == pytest.approx(1 - 0.947, abs=1e-3)
    assert (246 - float(y)) / 236 == pytest.approx(0.817, abs=1e-3)


def test_a_forest_row_places_value_and_interval() -> None:
    axis = nice_axis([0.5, 1.0])
    svg = str(forest_row({'value': 0.75, 'low': 0.6, 'high': 1.0}, axis, 0.5))
    assert 'cx="50.00%"' in svg
    assert 'class="whisker" x1="21.80%" x2="97.00%"' in svg
    few = str(forest_row({'value': 0.75, 'low': None, 'high': None}, axis, 0.5, True))
    assert 'class="dot few"' in few
    assert 'whisker' not in few


@pytest.mark.parametrize(
    'values, low, high, names',
    [
        ([0.52, 0.97], 0.5, 1.0, ['0.5', '0.6', '0.7', '0.8', '0.9', '1.0']),
        ([-0.031, 0.04], -0.04, 0.04, ['−0.04', '−0.02', '0.00', '0.02', '0.04']),
        ([3.0, 3.0], 1.0, 5.0, ['1', '2', '3', '4', '5']),
        ([], 0.0, 1.0, ['0.0', '0.2', '0.4', '0.6', '0.8', '1.0']),
    ],
)
def test_axes_end_at_round_ticks(values: list, low: float, high: float, names: list) -> None:
    axis = nice_axis(values)
    assert (axis.low, axis.high) == pytest.approx((low, high))
    assert [name for _, name in axis.names()] == names


def test_a_histogram_shows_the_shares_of_both_classes_and_the_threshold(labels: list[dict]) -> None:
    label = labels[0] | {'threshold': 0.5}
    counts = label['histogram']
    assert sum(counts['positive']) == label['positives']
    assert sum(counts['positive'] + counts['negative']) == label['n']
    svg = str(histogram(label, 'a'))
    for name, style in (('negative', 0), ('positive', 1)):
        path = re.search(f'<path class="curve series-{style}" d="([^"]*)"', svg)[1]
        heights = [float(p.split()[1]) for p in re.split('[ML]', path)[2:-1:2]]
        drawn = (246 - np.array(heights)) / (246 - min(heights))
        assert drawn == pytest.approx(np.array(counts[name]) / max(counts[name]), abs=2e-3)
    assert 'class="threshold"' in svg

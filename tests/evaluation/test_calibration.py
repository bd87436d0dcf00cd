"""Temperatures, reliability curves and thresholds against grids and brute force."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import confusion_matrix

from evaluation.calibration import (
    TEMPERATURES,
    apply_temperature,
    choose_threshold,
    fit_temperature,
    reliability_curve,
)
from evaluation.metrics import label_scores

NAN = np.nan
CHOSEN = ['youden', 'f1', 'sensitivity']


def overconfident(temperature, *, size):
    """Draw targets, and probabilities whose logits are `temperature` times too large."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2.0, size)
    targets = (rng.random(size) < expit(logits)).astype(float)
    return expit(logits * temperature), targets


def test_equals_a_grid_search_over_the_known_entries():
    probabilities, targets = overconfident(1.7, size=150)
    known = np.random.default_rng(0).random(150) < 0.8
    grid = np.exp(np.linspace(np.log(0.3), np.log(10), 4001))  # steps of 0.09 %
    tried = expit(logit(probabilities[known]) / grid[:, None])
    losses = -np.log(np.where(targets[known] == 1, tried, 1 - tried)).mean(axis=1)
    found = fit_temperature(probabilities, np.where(known, targets, NAN))
    assert found == pytest.approx(grid[np.argmin(losses)], rel=1e-3)


def test_apply_divides_the_logits():
    # odds 9, 1, 1/4: their square roots are odds 3, 1, 1/2; their squares 81, 1, 1/16.
    probabilities = np.array([0.9, 0.5, 0.2])
    np.testing.assert_allclose(apply_temperature(probabilities, 2), [3 / 4, 1 / 2, 1 / 3])
    np.testing.assert_allclose(apply_temperature(probabilities, 0.5), [81 / 82, 1 / 2, 1 / 17])
    np.testing.assert_allclose(apply_temperature(probabilities, 1), probabilities, rtol=1e-12)


def test_degenerate_labels_give_a_bound_or_one():
    targets = np.array([1.0, 1.0, 0.0, 0.0, NAN])
    separable = np.array([1.0, 0.6, 0.4, 0.0, 0.5])
    assert fit_temperature(separable, targets) == TEMPERATURES[0] == 0.01
    assert fit_temperature(1 - separable, targets) == TEMPERATURES[1] == 100
    assert fit_temperature(np.full(5, 0.5), targets) == 1, 'all temperatures give the same'
    sharp = apply_temperature(separable, TEMPERATURES[0])
    np.testing.assert_allclose(sharp, [1, 1, 0, 0, 0.5], atol=1e-12)


@pytest.mark.parametrize('targets', [[1, 1, NAN], [0, 0, 0], [NAN, NAN, NAN], []])
def test_without_both_classes_there_is_neither_temperature_nor_threshold(targets):
    probabilities, targets = np.linspace(0.2, 0.9, len(targets)), np.array(targets, float)
    temperature = fit_temperature(probabilities, targets)
    assert np.isnan(temperature)
    np.testing.assert_array_equal(apply_temperature(probabilities, temperature), probabilities)
    for rule in CHOSEN:
        assert np.isnan(choose_threshold(probabilities, targets, rule=rule, sensitivity=0.9))


def test_the_calibration_error_follows_from_the_curve():
    probabilities, targets = overconfident(2.0, size=400)
    probabilities = probabilities.round(2)
    targets[np.random.default_rng(1).random(400) < 0.2] = NAN
    curve = {
        name: np.array(values) for name, values in reliability_curve(probabilities, targets).items()
    }
    assert curve['count'].sum() == (~np.isnan(targets)).sum()
    error = (np.abs(curve['x'] - curve['y']) * curve['count']).sum() / curve['count'].sum()
    assert error == pytest.approx(label_scores(probabilities, targets, threshold=None)['ece'][0])
    assert (np.diff(curve['x']) > 0).all()


def test_curve_of_equal_bins_worked_by_hand():
    # 30 cases without ties in 15 bins: two neighbours each.
    probabilities = np.arange(1, 31) / 32
    targets = np.tile([0.0, 1.0, 1.0, 1.0, 0.0, 0.0], 5)
    shuffled = np.random.default_rng(0).permutation(30)
    curve = reliability_curve(probabilities[shuffled], targets[shuffled])
    assert curve['count'] == [2] * 15
    assert curve['x'] == [(2 * i + 1.5) / 32 for i in range(15)]
    assert curve['y'] == [0.5, 1.0, 0.0] * 5
    few = reliability_curve(np.array([0.7, 0.2, 0.4]), np.array([1.0, NAN, 0.0]))
    assert few == {'x': [0.4, 0.7], 'y': [0.0, 1.0], 'count': [1, 1]}


def draw(seed, *, levels, size=40):
    """Draw probabilities with many ties, and correlated targets, some of which are unknown."""
    rng = np.random.default_rng(seed)
    probabilities = rng.integers(0, levels + 1, size) / levels
    targets = (rng.random(size) < 0.2 + 0.5 * probabilities).astype(float)
    targets[rng.random(size) < 0.15] = NAN
    return probabilities, targets


def merit(rule, called, truth, wanted):
    """Compute the criterion of a rule as an exact fraction."""
    (true_negative, alarms), (misses, hits) = confusion_matrix(truth, called).tolist()
    sensitivity = Fraction(hits, hits + misses)
    if rule == 'youden':
        return sensitivity + Fraction(true_negative, true_negative + alarms) - 1
    if rule == 'f1':
        return Fraction(2 * hits, 2 * hits + alarms + misses)
    return sensitivity >= Fraction(wanted)


@pytest.mark.parametrize('rule', CHOSEN)
def test_the_threshold_is_the_highest_of_the_best_observed_probabilities(rule):
    for seed, levels in enumerate((4, 20, 20)):
        probabilities, targets = draw(seed, levels=levels)
        wanted = ['0.5', '0.8', '1'][seed]
        known = ~np.isnan(targets)
        truth, values = targets[known], probabilities[known]
        best = max(
            (merit(rule, (values >= value).astype(float), truth, wanted), value)
            for value in np.unique(values)
        )
        found = choose_threshold(probabilities, targets, rule=rule, sensitivity=float(wanted))
        assert found == best[1], (seed, best)


def test_single_precision_probabilities_are_positive_at_their_own_threshold():
    probabilities = np.array([0.1, 0.7, 0.3], np.float32)
    threshold = choose_threshold(
        probabilities, np.array([0.0, 1.0, 0.0]), rule='youden', sensitivity=0.9
    )
    assert (probabilities >= threshold).tolist() == [False, True, False]

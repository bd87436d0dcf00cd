"""DeLong's variance, interval and test against U-statistics in double loops and known figures."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from evaluation.intervals import delong_interval, delong_test, delong_variance

NAN = np.nan


def draw(seed, *, levels, size=45):
    """Two predictions with ties that share noise, and targets, some of them unknown."""
    rng = np.random.default_rng(seed)
    targets = (rng.random(size) < 0.35).astype(float)
    shared = targets + rng.normal(0, 1, size)
    a, b = (norm.cdf(shared + rng.normal(0, spread, size)) for spread in (0.5, 1.5))
    targets[rng.random(size) < 0.1] = NAN
    return np.round(a * levels) / levels, np.round(b * levels) / levels, targets


def components(scores, targets):
    """V10 and V01 of DeLong et al. 1988, equations 4 and 5, one pair at a time."""
    positive, negative = scores[targets == 1].tolist(), scores[targets == 0].tolist()

    def wins(x, y):
        return 1.0 if x > y else 0.5 if x == y else 0.0

    v10 = [sum(wins(x, y) for y in negative) / len(negative) for x in positive]
    v01 = [sum(wins(x, y) for x in positive) / len(positive) for y in negative]
    return v10, v01


def covariance(x, y):
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    pairs = zip(x, y, strict=True)
    return sum((one - mean_x) * (other - mean_y) for one, other in pairs) / (len(x) - 1)


def covariance_of_areas(a, b, targets):
    (a10, a01), (b10, b01) = components(a, targets), components(b, targets)
    return covariance(a10, b10) / len(a10) + covariance(a01, b01) / len(a01)


@pytest.mark.parametrize('levels', [3, 12, 10**6])
def test_equals_the_u_statistic_in_double_loops(levels):
    for seed in range(8):
        a, b, targets = draw(seed, levels=levels)
        known = ~np.isnan(targets)
        area, variance = delong_variance(a, targets)
        assert area == pytest.approx(roc_auc_score(targets[known], a[known]), abs=1e-12)
        assert variance == pytest.approx(covariance_of_areas(a, a, targets), abs=1e-12)

        other, variance_b = delong_variance(b, targets)
        spread = math.sqrt(variance + variance_b - 2 * covariance_of_areas(a, b, targets))
        wanted = math.erfc(abs(area - other) / spread / math.sqrt(2))
        assert delong_test(a, b, targets) == pytest.approx(wanted, abs=1e-12)
        assert delong_test(b, a, targets) == delong_test(a, b, targets)

        value, low, high = delong_interval(a, targets)
        reach = 1.959963984540054 * math.sqrt(variance) / (area * (1 - area))
        assert value == area
        assert math.log(low / (1 - low)) == pytest.approx(math.log(area / (1 - area)) - reach)
        assert math.log(high / (1 - high)) == pytest.approx(math.log(area / (1 - area)) + reach)


def test_equals_the_published_figures_of_a_rated_ct_study():
    """Hanley & McNeil 1982, Table I: 58 normal, 51 abnormal; figures: Stata's manual of roctab."""
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    ratings = np.repeat(np.tile(np.arange(1.0, 6.0), 2), normal + abnormal)
    targets = np.repeat([0.0, 1.0], [58, 51])
    area, variance = delong_variance(ratings, targets)
    error = math.sqrt(variance)
    assert (round(area, 4), round(error, 4)) == (0.8932, 0.0307)
    plain = area - 1.959964 * error, area + 1.959964 * error
    assert plain == pytest.approx((0.83295, 0.95339), abs=5e-6)


def test_only_the_order_counts():
    a, b, targets = draw(3, levels=40)
    assert delong_interval(a, targets) == delong_interval(np.exp(3 * a) - 7, targets)
    assert delong_test(a, b, targets) == delong_test(a**3, np.sqrt(b), targets)


def test_variance_zero_gives_no_interval_and_no_warning():
    targets = np.array([1.0, 1.0, 1.0, 0.0, 0.0, NAN])
    perfect, constant = np.array([0.9, 0.8, 0.7, 0.2, 0.1, 0.5]), np.full(6, 0.3)
    for scores, area in ((perfect, 1.0), (-perfect, 0.0), (constant, 0.5)):
        assert delong_variance(scores, targets) == (area, 0.0)
        np.testing.assert_array_equal(delong_interval(scores, targets), [area, NAN, NAN])
        assert delong_test(scores, scores, targets) == 1.0
    assert np.isnan(delong_test(perfect, constant, targets))
    mixed = np.array([0.9, 0.15, 0.7, 0.2, 0.1, 0.5])
    assert delong_test(mixed, mixed / 2, targets) == 1.0


def test_too_few_of_a_class_is_undefined():
    scores = np.array([0.9, 0.8, 0.7])
    np.testing.assert_array_equal(delong_interval(scores, np.array([0, 1, 0.0])), [0.5, NAN, NAN])
    assert np.isnan(delong_test(scores, scores**2, np.array([0, 1, 0.0])))
    for targets in ([1.0, 1, 1], [0.0, 0, NAN], [NAN] * 3):
        np.testing.assert_array_equal(delong_interval(scores, np.array(targets)), [NAN] * 3)
        assert np.isnan(delong_test(scores, scores, np.array(targets)))


@pytest.mark.slow
def test_rejects_five_per_cent_of_true_null_hypotheses_and_most_false_ones():
    rng = np.random.default_rng(11)
    targets = np.repeat([1.0, 0.0], [80, 120])

    def rejections(second, draws):
        shared = rng.normal(0, 1, (draws, 200)) + 1.2 * targets
        a = shared + rng.normal(0, 1, (draws, 200))
        b = shared + rng.normal(0, second, (draws, 200))
        values = [delong_test(x, y, targets) for x, y in zip(a, b, strict=True)]
        return np.mean(np.array(values) < 0.05)

    # 4000 draws: a standard error of 0.0034.
    assert rejections(second=1, draws=4000) == pytest.approx(0.05, abs=0.012)
    assert rejections(second=3, draws=400) > 0.5


@pytest.mark.slow
def test_interval_covers_the_true_area_and_more_often_than_the_plain_one():
    rng = np.random.default_rng(12)
    targets = np.repeat([1.0, 0.0], [20, 180])
    true = 0.95
    shift = norm.ppf(true) * math.sqrt(2) * targets
    covered, plain = [], []
    for _ in range(2000):
        scores = rng.normal(0, 1, 200) + shift
        area, low, high = delong_interval(scores, targets)
        covered.append(low <= true <= high)
        plain.append(abs(area - true) <= 1.96 * math.sqrt(delong_variance(scores, targets)[1]))
    assert np.mean(covered) > 0.88
    assert np.mean(covered) > np.mean(plain) + 0.03

"""Bootstrap and DeLong intervals against brute force, published values and true values."""

import math

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import norm
from sklearn.metrics import recall_score, roc_auc_score

from evaluation.intervals import (
    CaseWeights,
    Resamples,
    bootstrap_p,
    delong_interval,
    delong_test,
    delong_variance,
    interval,
)
from evaluation.metrics import label_scores

NAN = np.nan
pytestmark = pytest.mark.usefixtures('few_cases_select')


def rows_of(weights: CaseWeights) -> np.ndarray:  # [1 + R, N]
    return weights.counts[weights.patient].T


def test_weights_are_multiplicities_of_whole_patients_that_every_subset_shares():
    patients = ['c', 'a', 'b', 'a', 'd', 'e', 'c']
    resamples = Resamples(patients, resamples=200, seed=3)
    ones, *weights = rows_of(resamples.weights(patients))
    assert (ones == 1).all()
    weights = np.array(weights)
    assert weights.shape == (200, 7)
    np.testing.assert_array_equal(weights[:, 1], weights[:, 3])
    np.testing.assert_array_equal(weights[:, 0], weights[:, 6])
    np.testing.assert_array_equal(weights[:, [0, 1, 2, 4, 5]].sum(axis=1), 5)
    fewer = rows_of(resamples.weights(['e', 'b', 'e']))
    np.testing.assert_array_equal(fewer[1:], weights[:, [5, 2, 5]])
    # Other rows of the same patients use the same resamples, so models can be compared.
    again = Resamples(['e', 'd', 'c', 'b', 'a'], resamples=200, seed=3)
    np.testing.assert_array_equal(rows_of(again.weights(patients))[1:], weights)
    other = Resamples(patients, resamples=200, seed=4)
    assert (rows_of(other.weights(patients))[1:] != weights).any()


@pytest.mark.parametrize('cases', [slice(None), slice(0, 150)])
def test_sums_are_exact_in_float32_up_to_the_largest_sum_of_a_row(monkeypatch, cases) -> None:
    patients = [f'p{number // 3}' for number in range(300)][cases]
    resamples = Resamples([f'p{number}' for number in range(100)], resamples=200, seed=0)
    largest = int(rows_of(resamples.weights(patients)).sum(axis=1, dtype=int).max())
    assert largest < 2 * len(patients)  # but some patients are drawn more often
    for limit, exact in ((largest, False), (largest + 1, True)):
        monkeypatch.setattr('evaluation.intervals.EXACT_IN_FLOAT32', limit)
        assert resamples.weights(patients).exact == exact


def test_replicates_are_those_of_repeated_rows():
    rng = np.random.default_rng(1)
    patients = [f'p{i}' for i in rng.integers(0, 40, 120)]
    p = rng.integers(0, 10, 120) / 10
    y = (rng.random(120) < p).astype(float)
    weights = Resamples(patients, resamples=8, seed=0).weights(patients)
    scores = label_scores(p, y, threshold=0.3, weights=weights)
    rng = np.random.Generator(np.random.Philox(0))
    names = sorted(set(patients))
    for r in range(1, 9):
        drawn = rng.integers(len(names), size=len(names))
        rows = [i for d in drawn for i, name in enumerate(patients) if name == names[d]]
        assert scores['auroc'][r] == pytest.approx(roc_auc_score(y[rows], p[rows]), abs=1e-9)
        assert scores['recall'][r] == pytest.approx(recall_score(y[rows], p[rows] >= 0.3), abs=1e-9)


def test_an_interval_contains_the_middle_95_percent_of_the_defined_values():
    values = np.arange(1001.0)
    assert interval(np.random.default_rng(0).permutation(values)) == pytest.approx((25, 975))
    values[951:] = np.nan  # 5 % of 1001, rounded down
    assert interval(values) == pytest.approx((950 * 0.025, 950 * 0.975))
    values[950] = np.nan
    assert np.isnan(interval(values)).all()
    assert np.isnan(interval(np.array([]))).all()
    perfect = np.full(1000, np.nan)
    perfect[:980] = 1.0  # separated classes in each resample that has both
    assert np.isnan(interval(perfect)).all()


def draw(seed, *, levels, size=45):
    """Draw two correlated predictions with ties, and targets, some of which are unknown."""
    rng = np.random.default_rng(seed)
    targets = (rng.random(size) < 0.35).astype(float)
    shared = targets + rng.normal(0, 1, size)
    a, b = (norm.cdf(shared + rng.normal(0, spread, size)) for spread in (0.5, 1.5))
    targets[rng.random(size) < 0.1] = NAN
    return np.round(a * levels) / levels, np.round(b * levels) / levels, targets


def components(scores, targets):
    """Compute V10 and V01 of DeLong et al. 1988, equations 4 and 5, over all pairs."""
    positive, negative = scores[targets == 1].tolist(), scores[targets == 0].tolist()

    def wins(x, y):
        return 1.0 if x > y else 0.5 if x == y else 0.0

    v10 = [sum(wins(x, y) for y in negative) / len(negative) for x in positive]
    v01 = [sum(wins(x, y) for x in positive) / len(positive) for y in negative]
    return v10, v01


def covariance_of_areas(a, b, targets):
    pairs = zip(components(a, targets), components(b, targets), strict=True)
    return sum(np.cov(x, y)[0, 1] / len(x) for x, y in pairs)


@pytest.mark.parametrize('levels', [3, 12, 10**6])
def test_equals_the_u_statistic_in_double_loops(levels):
    for seed in range(2):
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
        assert logit([low, high]) == pytest.approx(logit(area) + np.array([-reach, reach]))


def test_equals_the_published_figures_of_a_rated_ct_study():
    """Hanley & McNeil 1982, Table I (58 normal, 51 abnormal), and Stata's manual of roctab."""
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    ratings = np.repeat(np.tile(np.arange(1.0, 6.0), 2), normal + abnormal)
    targets = np.repeat([0.0, 1.0], [58, 51])
    area, variance = delong_variance(ratings, targets)
    error = math.sqrt(variance)
    assert (round(area, 4), round(error, 4)) == (0.8932, 0.0307)
    plain = area - 1.959964 * error, area + 1.959964 * error
    assert plain == pytest.approx((0.83295, 0.95339), abs=5e-6)


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


def test_float32_scores_give_the_same_interval_as_float64():
    a, _, targets = draw(2, levels=50, size=2001)
    scores = a.astype(np.float32)
    assert delong_interval(scores, targets) == delong_interval(scores.astype(float), targets)


def test_labels_of_noise_are_rarely_significant(monkeypatch: pytest.MonkeyPatch):
    """Twelve models of noise: without the rule, a fifth of the labels with 3 positives would be."""
    monkeypatch.setattr('evaluation.metrics.FEW_CASES', 20)
    rng, count = np.random.default_rng(5), 300
    patients = [f'p{i}' for i in range(count)]
    weights = Resamples(patients, resamples=200, seed=0).weights(patients)
    excluded, significant = [], []
    for positives in (3, 10, 20, 20, 20, 40):
        targets = (np.arange(count) < positives).astype(float)
        noise = rng.random((12, count))
        areas = [label_scores(p, targets, threshold=None, weights=weights)['auroc'] for p in noise]
        bounds = np.array([interval(area[1:]) for area in areas])
        assert np.isnan(bounds).all() == (positives < 20)
        excluded += [low > 0.5 or high < 0.5 for low, high in bounds if positives >= 20]
        pairs = [bootstrap_p(areas[i][1:] - areas[i + 1][1:]) for i in range(0, 12, 2)]
        assert np.isnan(pairs).all() == (positives < 20)
        significant += [p < 0.05 for p in pairs if positives >= 20]
    assert np.mean(excluded) <= 0.07
    assert np.mean(significant) <= 0.07

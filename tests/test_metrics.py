"""Metrics against scikit-learn, brute force and cases worked out by hand."""

from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

import evaluation.metrics
from evaluation.metrics import (
    METRICS,
    auroc_per_label,
    describe_few,
    describe_scores,
    equal_mass_bins,
    label_scores,
    mean_scores,
    rarer_cases,
    score_table,
    selection_score,
    study_level,
)

NAN = np.nan


def ece_in_fractions(probabilities, targets, weights):
    """The definition, case by case: a bin for each distinct probability, then the bins' gaps."""
    total, below, sums = Fraction(sum(weights)), Fraction(0), {}
    for value in sorted(set(probabilities)):
        tied = [i for i, p in enumerate(probabilities) if p == value]
        mass = sum(Fraction(weights[i]) for i in tied)
        if mass:
            which = int(15 * (below + mass / 2) / total)
            positive = sum(Fraction(weights[i]) for i in tied if targets[i] == 1)
            mass_p, mass_y, mass_all = sums.get(which, (0, 0, 0))
            sums[which] = mass_p + mass * Fraction(value), mass_y + positive, mass_all + mass
        below += mass
    return float(sum(n / total * abs(p / n - y / n) for p, y, n in sums.values()))


def by_sklearn(probabilities, targets, threshold, weights=None):
    """Every metric but the ECE, the cases with known targets alone."""
    known = ~np.isnan(targets)
    p, y = probabilities[known], targets[known].astype(int)
    weights = None if weights is None else weights[known]
    called = (p >= threshold).astype(int)
    given = {'sample_weight': weights}
    return {
        'auroc': roc_auc_score(y, p, **given),
        'average_precision': average_precision_score(y, p, **given),
        'f1': f1_score(y, called, **given),
        'kappa': cohen_kappa_score(y, called, **given),
        'accuracy': accuracy_score(y, called, **given),
        'precision': precision_score(y, called, **given),
        'recall': recall_score(y, called, **given),
        'specificity': recall_score(y, called, pos_label=0, **given),
        'brier': brier_score_loss(y, p, **given),
    }


def drawn_cases(seed, num_cases, num_values, dtype=np.float64):
    """Probabilities with many ties (the threshold 0.5 among them), targets with NaN."""
    rng = np.random.default_rng(seed)
    probabilities = (rng.integers(0, num_values + 1, num_cases) / num_values).astype(dtype)
    targets = (rng.random(num_cases) < 0.2 + 0.5 * probabilities).astype(float)
    targets[rng.random(num_cases) < 0.15] = NAN
    return probabilities, targets, rng


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (80, 3)) / 6  # many ties
    targets = rng.integers(0, 2, (80, 3)).astype(float)
    targets[rng.random((80, 3)) < 0.2] = NAN
    for k, area in enumerate(auroc_per_label(scores, targets)):
        positive = scores[targets[:, k] == 1, k][:, None]
        negative = scores[targets[:, k] == 0, k][None]
        assert area == pytest.approx(((positive > negative) + 0.5 * (positive == negative)).mean())
        known = ~np.isnan(targets[:, k])
        assert area == roc_auc_score(targets[known, k], scores[known, k])


def test_a_label_with_one_class_has_no_auroc():
    targets = np.array([[1, 0, NAN], [1, 0, NAN], [NAN, 1, NAN]])
    areas = auroc_per_label(np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]), targets)
    np.testing.assert_array_equal(areas, [NAN, 1.0, NAN])


@pytest.mark.parametrize('dtype', [np.float64, np.float32])
@pytest.mark.parametrize(
    ('seed', 'num_cases', 'num_values'), [(0, 60, 4), (1, 500, 20), (2, 900, 10**6)]
)
def test_every_metric_is_scikit_learns(seed, num_cases, num_values, dtype):
    probabilities, targets, _ = drawn_cases(seed, num_cases, num_values, dtype)
    scores = label_scores(probabilities, targets, threshold=0.5)
    assert list(scores) == list(METRICS)
    for name, wanted in by_sklearn(probabilities.astype(float), targets, 0.5).items():
        assert scores[name].shape == (1,)
        assert scores[name][0] == pytest.approx(wanted, abs=1e-9), name
    known = ~np.isnan(targets)
    wanted = ece_in_fractions(
        probabilities[known].astype(float).tolist(), targets[known], [1] * known.sum()
    )
    assert scores['ece'][0] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize('chunk', [1, 1000])
def test_weights_count_as_often_in_every_row_and_chunk(chunk, monkeypatch):
    monkeypatch.setattr(evaluation.metrics, 'CHUNK', chunk)
    probabilities, targets, rng = drawn_cases(3, 200, 12)
    weights = rng.poisson(1, (6, 200)).astype(np.uint8)
    scores = label_scores(probabilities, targets, threshold=0.5, weights=weights)
    known = ~np.isnan(targets)
    for r, row in enumerate(weights):
        repeated = np.repeat(probabilities, row), np.repeat(targets, row)
        for wanted in (
            by_sklearn(probabilities, targets, 0.5, row),
            by_sklearn(*repeated, 0.5),
            {name: values[0] for name, values in label_scores(*repeated, threshold=0.5).items()},
            {
                'ece': ece_in_fractions(
                    probabilities[known].tolist(), targets[known], row[known].tolist()
                )
            },
        ):
            for name, value in wanted.items():
                assert scores[name][r] == pytest.approx(value, abs=1e-9), (name, r)


def test_fractional_weights_are_scikit_learns_too():
    probabilities, targets, rng = drawn_cases(4, 300, 15)
    weights = rng.random((3, 300)) * (rng.random((3, 300)) < 0.8)
    scores = label_scores(probabilities, targets, threshold=0.4, weights=weights)
    for r, row in enumerate(weights):
        for name, wanted in by_sklearn(probabilities, targets, 0.4, row).items():
            assert scores[name][r] == pytest.approx(wanted, abs=1e-9), name


def test_calibration_error_worked_by_hand():
    # 0.2 three times, one positive: gap 2/15, weight 3/5. 0.9 twice, both positive: gap 1/10.
    scores = label_scores(
        np.array([0.9, 0.2, 0.2, 0.9, 0.2]), np.array([1.0, 0, 1, 1, 0]), threshold=None
    )
    assert scores['ece'][0] == pytest.approx(3 / 5 * 2 / 15 + 2 / 5 / 10)
    assert scores['brier'][0] == pytest.approx((2 * 0.01 + 2 * 0.04 + 0.64) / 5)
    # 1/60, 3/60, ... 59/60, two a bin, the lower one negative, the upper one positive: bin j has
    # mean (2j + 1) / 30 and share 1/2, a gap of 14/30, 12/30, ... 0, ... 14/30, together 112/30.
    p, y = (np.arange(30) + 0.5) / 30, np.tile([0.0, 1.0], 15)
    assert label_scores(p, y, threshold=None)['ece'][0] == pytest.approx(112 / 30 / 15)


def test_bins_hold_equal_mass_and_ties_stay_together():
    rng = np.random.default_rng(5)
    p = rng.permutation(300) / 300
    np.testing.assert_array_equal(equal_mass_bins(p), (p * 300).round().astype(int) // 20)
    # 0.1 spans 0 to 1/2 of the weight, 0.3 to 5/8, 0.8 to 1: middles 1/4, 9/16, 13/16 of 8 bins.
    p = np.array([0.8, 0.1, 0.3, 0.1, 0.8])
    weights = np.array([1, 3, 1, 1, 2])
    assert equal_mass_bins(p, 8, weights).tolist() == [6, 2, 4, 2, 6]
    # A middle on a cut belongs to the bin above it; what weighs nothing has a bin as well.
    assert equal_mass_bins(np.array([0.1, 0.2, 0.3]), 2).tolist() == [0, 1, 1]
    assert equal_mass_bins(np.array([0.1, 0.9]), 15, np.array([1, 0])).tolist() == [7, 14]


def test_scores_without_both_classes_are_undefined_without_a_warning():
    p = np.array([0.2, 0.6, 0.7, 0.9])
    ones = label_scores(p, np.array([1.0, 1.0, NAN, 1.0]), threshold=0.5)
    zeros = label_scores(p, np.array([0.0, 0.0, NAN, 0.0]), threshold=0.5)
    none = label_scores(p, np.full(4, NAN), threshold=0.5)
    for name in ('auroc', 'average_precision', 'f1', 'kappa', 'precision'):
        assert np.isnan([ones[name], zeros[name], none[name]]).all(), name
    assert [s['recall'][0] for s in (ones, zeros)] == pytest.approx([2 / 3, NAN], nan_ok=True)
    assert [s['specificity'][0] for s in (ones, zeros)] == pytest.approx([NAN, 1 / 3], nan_ok=True)
    assert [s['accuracy'][0] for s in (ones, zeros)] == pytest.approx([2 / 3, 1 / 3])
    assert ones['brier'][0] == pytest.approx((0.64 + 0.16 + 0.01) / 3)
    assert zeros['ece'][0] == pytest.approx((0.2 + 0.6 + 0.9) / 3)
    assert all(np.isnan(values).all() for values in none.values())


def test_a_row_of_weights_is_undefined_by_itself():
    p, y = np.array([0.2, 0.6, 0.7]), np.array([0.0, 1.0, 0.0])
    weights = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 0]])
    scores = label_scores(p, y, threshold=0.5, weights=weights)
    np.testing.assert_array_equal(scores['auroc'], [0.5, NAN, NAN, 1])
    np.testing.assert_array_equal(scores['recall'], [1, NAN, NAN, 1])
    np.testing.assert_array_equal(scores['specificity'], [0.5, 0.5, NAN, 1])
    np.testing.assert_allclose(scores['brier'], [0.23, 0.265, NAN, 0.1])
    nothing_called = label_scores(p, y, threshold=0.8)
    assert np.isnan(nothing_called['precision'][0])
    assert nothing_called['f1'][0] == nothing_called['recall'][0] == 0


@pytest.mark.parametrize('threshold', [None, NAN])
def test_without_a_threshold_only_what_needs_one_is_undefined(threshold):
    probabilities, targets, _ = drawn_cases(6, 80, 9)
    scores = label_scores(probabilities, targets, threshold=threshold)
    assert {name for name, values in scores.items() if np.isnan(values).any()} == {
        name for name, entry in METRICS.items() if entry.needs_threshold
    }


def test_an_unknown_probability_leaves_no_score_unless_its_target_is_unknown_too():
    p, y = np.array([0.2, NAN, 0.7]), np.array([0.0, 1.0, 1.0])
    assert np.isnan([*label_scores(p, y, threshold=0.5).values()]).all()
    y[1] = NAN
    assert label_scores(p, y, threshold=0.5)['auroc'][0] == 1


def test_a_mean_over_labels_is_undefined_where_one_label_is():
    per_label = {
        'a': {'auroc': np.array([0.5, 0.7, 0.9]), 'f1': np.array([0.1, NAN, 0.3])},
        'b': {'auroc': np.array([0.7, NAN, 1.0]), 'f1': np.array([0.3, 0.2, 0.5])},
        'c': {'auroc': np.array([NAN, NAN, 0.0]), 'f1': np.array([NAN, 0.0, 1.0])},
    }
    means = mean_scores(per_label, ['a', 'b'])
    assert list(means) == ['auroc', 'f1']
    np.testing.assert_allclose(means['auroc'], [0.6, NAN, 0.95])
    np.testing.assert_allclose(means['f1'], [0.2, NAN, 0.4])


def test_a_study_has_the_mean_probability_of_its_images_and_the_greatest_target():
    probabilities = np.array([[0.2, 0.9], [0.7, 0.1], [0.4, 0.3], [0.3, 0.2]])
    targets = np.array([[1.0, NAN], [0.0, 0.0], [0.0, NAN], [NAN, 1.0]])
    mean, known, names = study_level(probabilities, targets, ['b', 'b', 'a', 'b'], how='mean')
    assert names.tolist() == ['a', 'b']
    np.testing.assert_allclose(mean, [[0.4, 0.3], [0.4, 0.4]])
    np.testing.assert_array_equal(known, [[0.0, NAN], [1.0, 1.0]])


def test_a_study_has_the_greatest_probability_of_its_images():
    probabilities = np.array([[0.2, 0.9], [0.7, 0.1], [0.4, 0.3]])
    targets = np.array([[1.0, NAN], [1.0, 0.0], [0.0, NAN]])
    best, known, names = study_level(probabilities, targets, ['b', 'b', 'a'])
    assert names.tolist() == ['a', 'b']
    np.testing.assert_array_equal(best, [[0.4, 0.3], [0.7, 0.9]])
    np.testing.assert_array_equal(known, [[0.0, NAN], [1.0, 0.0]])


@pytest.mark.parametrize(
    ('five', 'rule', 'wanted'),
    [
        ('ab', 'five', 1 / 4),
        ('ab', 'auto', 1 / 4),
        ('ab', 'all', 1 / 3),
        ('ax', 'auto', 1 / 3),
        ('ax', 'five', NAN),
        ('ax', 'all', 1 / 3),
        ('x', 'auto', 1 / 3),
        ('az', 'five', NAN),  # no label of this task
        ('az', 'auto', 1 / 3),
    ],
)
def test_selection_score(five, rule, wanted):
    """Of areas of 1/2, 0 and 1/2, and one that is not defined."""
    scores = score_table(
        np.array([[0.9, 0.2, 0.7, 0.1], [0.4, 0.8, 0.3, 0.2], [0.6, 0.1, 0.1, 0.3]]),
        np.array([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]),
        ['u', 'v', 'w'],
        labels=list('abcx'),
        five=list(five),
        level='image',
    )
    assert selection_score(scores, rule) == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize('rule', ['five', 'auto', 'all'])
def test_nothing_selects_where_no_area_is_defined(rule):
    targets = np.array([[1.0, NAN], [1.0, NAN]])
    scores = score_table(
        targets, targets, ['u', 'v'], labels=list('ab'), five=list('ab'), level='image'
    )
    assert np.isnan(selection_score(scores, rule))


def test_score_table_names_what_is_undefined_and_never_averages_over_fewer_tasks():
    probabilities = np.array([[0.9, 0.2], [0.4, 0.3], [0.1, 0.8]])
    targets = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    table = score_table(
        probabilities, targets, ['x', 'y', 'y'], labels=['a', 'b'], five=['a', 'b'], level='study'
    )
    assert table['rows'] == 2
    assert table['auroc'] == {'a': 1.0, 'b': pytest.approx(NAN, nan_ok=True)}
    assert table['positives'] == {'a': 1, 'b': 0}
    assert table['undefined'] == ['b']
    assert np.isnan(table['mean_of_five'])
    line = describe_scores(table | {'views': 'frontal', 'loss': 0.5})
    assert 'mean of five n/a' in line
    assert line.endswith(': b')


@pytest.mark.parametrize(
    ('five', 'rule', 'wanted'),
    [
        (['a', 'b'], 'auto', {'a': 1, 'b': 0}),
        (['b'], 'five', {'b': 0}),
        (['a', 'b'], 'all', {'a': 1, 'b': 0, 'c': 2}),
        (['a', 'other'], 'auto', {'a': 1, 'b': 0, 'c': 2}),
    ],
)
def test_rarer_cases(five, rule, wanted):
    targets = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0], [NAN, NAN, 0], [0, 0, 0]], float)
    assert rarer_cases(targets, ['a', 'b', 'c'], five, rule) == wanted


def test_the_few_are_named() -> None:
    assert describe_few({'a': 9, 'b': 10, 'c': 0}) == 'a 9, c 0'
    assert describe_few({'b': 10}) == ''


@pytest.mark.parametrize('name', METRICS)
def test_a_perfect_prediction_has_the_best_value(name):
    """The direction of every registered metric is right."""
    p, y = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0])
    best = label_scores(p, y, threshold=0.5)[name][0]
    other = label_scores(np.array([0.3, 0.8, 0.4, 0.6]), y, threshold=0.5)[name][0]
    assert (best > other) == METRICS[name].higher_is_better

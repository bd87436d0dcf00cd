"""Metrics against scikit-learn, brute force and values computed by hand."""

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
from data.tables.labels import COMPETITION_LABELS
from evaluation.intervals import CaseWeights
from evaluation.metrics import (
    FEW_CASES,
    METRICS,
    OF_LABEL,
    applicable,
    auroc_per_label,
    describe_scores,
    label_scores,
    labels_with_few_cases,
    mean_summaries,
    score_table,
    selecting_labels,
    study_level,
)

NAN = np.nan
OF_LABELS = applicable(OF_LABEL)


def ece_in_fractions(probabilities, targets, weights):
    """Compute the ECE by definition with exact fractions."""
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


def by_sklearn(probabilities, targets, threshold, views=None):
    known = ~np.isnan(targets)
    p, y = probabilities[known], targets[known].astype(int)
    called = (p >= threshold).astype(int)
    within = {}
    if views is not None:
        parts = [(y[views[known] == v], p[views[known] == v]) for v in ('AP', 'PA', 'other')]
        pairs = [(own == 1).sum() * (own == 0).sum() for own, _ in parts]
        areas = [roc_auc_score(*part) if n else 0 for part, n in zip(parts, pairs, strict=True)]
        within = {'auroc_within_views': np.average(areas, weights=pairs)}
    return within | {
        'auroc': roc_auc_score(y, p),
        'average_precision': average_precision_score(y, p),
        'f1': f1_score(y, called),
        'kappa': cohen_kappa_score(y, called),
        'accuracy': accuracy_score(y, called),
        'precision': precision_score(y, called),
        'recall': recall_score(y, called),
        'specificity': recall_score(y, called, pos_label=0),
        'brier': brier_score_loss(y, p),
    }


def drawn_cases(seed, num_cases, num_values, dtype=np.float64):
    """Draw probabilities with many ties, also at the threshold 0.5, and targets with NaN."""
    rng = np.random.default_rng(seed)
    probabilities = (rng.integers(0, num_values + 1, num_cases) / num_values).astype(dtype)
    targets = (rng.random(num_cases) < 0.2 + 0.5 * probabilities).astype(float)
    targets[rng.random(num_cases) < 0.15] = NAN
    return probabilities, targets, rng


def drawn_views(rng, num_cases):
    """Draw views, of which one is unknown and one has few cases."""
    return rng.choice(
        np.array(['AP', 'PA', '', 'other'], object), num_cases, p=[0.5, 0.3, 0.15, 0.05]
    )


def test_auroc_per_label_ignores_unknown_targets_and_needs_both_classes():
    scores = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.4, 0.8, 0.9], [0.9, 0.1, 0.2]])
    targets = np.array([[0, 0, NAN], [1, 0, NAN], [0, 0, NAN], [NAN, 0, 1]], float)
    # The positive of the first label ranks above one negative and ties with the other.
    np.testing.assert_array_equal(auroc_per_label(scores, targets), [0.75, NAN, NAN])


@pytest.mark.parametrize(
    ('seed', 'num_cases', 'num_values', 'dtype'),
    [(0, 150, 4, np.float64), (1, 300, 20, np.float32), (2, 300, 10**6, np.float32)],
)
def test_every_metric_is_scikit_learns(seed, num_cases, num_values, dtype):
    probabilities, targets, rng = drawn_cases(seed, num_cases, num_values, dtype)
    views = drawn_views(rng, num_cases)
    scores = label_scores(probabilities, targets, threshold=0.5, views=views)
    assert list(scores) == list(OF_LABELS)
    for name, wanted in by_sklearn(probabilities.astype(float), targets, 0.5, views).items():
        assert scores[name].shape == (1,)
        assert scores[name][0] == pytest.approx(wanted, abs=1e-9), name
    known = ~np.isnan(targets)
    wanted = ece_in_fractions(
        probabilities[known].astype(float).tolist(), targets[known], [1] * known.sum()
    )
    assert scores['ece'][0] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize('chunk', [1, 1000])
def test_weights_count_as_repetitions_in_every_row_and_chunk(chunk, monkeypatch):
    monkeypatch.setattr(evaluation.metrics, 'CHUNK', chunk)
    monkeypatch.setattr(evaluation.metrics, 'LEAST_ROWS', 1)
    probabilities, targets, rng = drawn_cases(3, 160, 12)
    weights = rng.poisson(1, (3, 160)).astype(np.uint8)
    views = drawn_views(rng, 160)
    rows = CaseWeights(weights.T, np.arange(160), exact=True)
    scores = label_scores(probabilities, targets, threshold=0.5, weights=rows, views=views)
    for r, row in enumerate(weights):
        repeated = np.repeat(probabilities, row), np.repeat(targets, row)
        known = ~np.isnan(repeated[1])
        wanted = by_sklearn(*repeated, 0.5, np.repeat(views, row))
        wanted['ece'] = ece_in_fractions(
            repeated[0][known].tolist(), repeated[1][known], [1] * known.sum()
        )
        wanted = {**label_scores(*repeated, threshold=0.5), **wanted}
        for name in OF_LABELS:
            assert scores[name][r] == pytest.approx(wanted[name], abs=1e-9), (name, r)


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
    assert all(np.isnan(values).all() for values in none.values())


def test_each_row_of_weights_can_be_undefined(monkeypatch):
    monkeypatch.setattr('evaluation.metrics.FEW_CASES', 1)
    p, y = np.array([0.2, 0.6, 0.7]), np.array([0.0, 1.0, 0.0])
    weights = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 0]])
    rows = CaseWeights(weights.T, np.arange(3))
    scores = label_scores(p, y, threshold=0.5, weights=rows)
    np.testing.assert_array_equal(scores['auroc'], [0.5, NAN, NAN, 1])
    np.testing.assert_array_equal(scores['specificity'], [0.5, 0.5, NAN, 1])
    nothing_called = label_scores(p, y, threshold=0.8)
    assert nothing_called['precision'][0] == 0
    assert nothing_called['f1'][0] == nothing_called['recall'][0] == 0


@pytest.mark.parametrize('views', [None, np.full(40, '', object)])
def test_scores_within_views_need_views_with_both_classes(views) -> None:
    probabilities, targets = np.linspace(0, 1, 40), np.repeat([0.0, 1.0], 20)
    assert np.isnan(label_scores(probabilities, targets, threshold=None, views=views)
                    ['auroc_within_views'])  # fmt: skip
    by_label = np.where(targets == 1, 'AP', 'PA').astype(object)
    scores = label_scores(probabilities, targets, threshold=None, views=by_label)
    assert scores['auroc'] == 1 and np.isnan(scores['auroc_within_views'])


def test_only_metrics_of_decisions_are_undefined_without_a_threshold():
    probabilities, targets, rng = drawn_cases(6, 80, 9)
    scores = label_scores(probabilities, targets, threshold=NAN, views=drawn_views(rng, 80))
    assert {name for name, values in scores.items() if np.isnan(values).any()} == {
        name for name, entry in OF_LABELS.items() if ('threshold' in entry.needs)
    }


def test_a_mean_over_labels_is_undefined_without_the_auroc_of_a_label():
    draws = np.linspace(0.1, 0.9, 200)
    values = {'a': [0.5, *draws], 'b': [0.7, *(draws / 2)], 'c': [NAN, *draws]}
    per_label = {k: dict.fromkeys(OF_LABELS, np.array(v)) for k, v in values.items()}
    means = mean_summaries(per_label, ['a', 'b'])
    assert list(means) == list(OF_LABELS)
    low, high = np.percentile(0.75 * draws, [2.5, 97.5])
    assert means['f1'] == pytest.approx({'value': 0.6, 'low': low, 'high': high})
    for labels in (['a', 'c'], ['a', 'missing'], []):
        assert mean_summaries(per_label, labels) is None


def test_a_mean_over_labels_leaves_out_labels_without_a_threshold_and_names_them():
    per_label = {}
    for name, threshold in (('a', 0.5), ('b', None), ('c', 0.4)):
        probabilities, targets, rng = drawn_cases(ord(name), 80, 9)
        options = {'threshold': threshold, 'views': drawn_views(rng, 80)}
        per_label[name] = label_scores(probabilities, targets, **options)
    means = mean_summaries(per_label, ['a', 'b', 'c'])
    for name, entry in OF_LABELS.items():
        counted = ['a', 'c'] if ('threshold' in entry.needs) else ['a', 'b', 'c']
        wanted = np.mean([per_label[label][name][0] for label in counted])
        assert means[name]['value'] == pytest.approx(wanted)
        assert means[name].get('left_out', []) == ['b'] * ('threshold' in entry.needs)


def test_a_study_has_the_greatest_probability_and_target() -> None:
    probabilities = np.array([[0.2, 0.9], [0.7, 0.1], [0.4, 0.3], [0.3, 0.2]])
    targets = np.array([[1.0, NAN], [0.0, 0.0], [0.0, NAN], [NAN, 1.0]])
    joined, known, names = study_level(probabilities, targets, ['b', 'b', 'a', 'b'])
    assert names.tolist() == ['a', 'b']
    np.testing.assert_allclose(joined, [[0.4, 0.3], [0.7, 0.9]])
    np.testing.assert_array_equal(known, [[0.0, NAN], [1.0, 1.0]])
    probabilities[0, 0] = NAN
    joined, *_ = study_level(probabilities, targets, ['b', 'b', 'a', 'b'])
    assert np.isnan(joined).tolist() == [[False, False], [True, False]]


def drawn_table(labels: list[str], positives: dict[str, int]) -> dict:
    """Scores of random predictions for labels with FEW_CASES positives, or with these numbers."""
    rng, rows = np.random.default_rng(0), 2 * FEW_CASES + 10
    targets = np.zeros((rows, len(labels)))
    for k, label in enumerate(labels):
        targets[: positives.get(label, FEW_CASES), k] = 1
    targets = np.stack([rng.permutation(column) for column in targets.T], axis=1)
    names = [str(row) for row in range(rows)]
    return score_table(rng.random(targets.shape), targets, names, labels=labels, level='image')


FIVE, SIX = [*COMPETITION_LABELS], [*COMPETITION_LABELS, 'Fracture']


@pytest.mark.parametrize(
    ('positives', 'candidates', 'few'),
    [
        ({}, FIVE, {}),
        ({'Edema': 19}, FIVE, {'Edema': '19 positives'}),
        ({'Edema': 2 * FEW_CASES + 6}, FIVE, {'Edema': '4 negatives'}),
        # Without one of the five, all defined labels select.
        ({'Edema': 0}, SIX, {'Edema': '0 positives'}),
        ({'Edema': 0, 'Fracture': 3}, SIX, {'Edema': '0 positives', 'Fracture': '3 positives'}),
        (dict.fromkeys(SIX, 3), FIVE, dict.fromkeys(SIX, '3 positives')),
    ],
)
def test_labels_with_few_cases_of_a_class_do_not_select(positives, candidates, few):
    table = drawn_table(SIX, positives)
    assert selecting_labels(table) == tuple(label for label in candidates if label not in few)
    assert labels_with_few_cases(table) == few


def test_the_log_shows_no_digits_of_few_cases():
    few = drawn_table(SIX, dict.fromkeys(SIX, 3)) | {'loss': 0.0, 'views': 'all'}
    line = describe_scores(few)
    assert f'mean of five {few["mean_of_five"]:.1f} (few cases), loss' in line
    assert f'Edema {few["auroc"]["Edema"]:.1f} (3 positives)' in line
    one = drawn_table(SIX, dict.fromkeys(SIX[1:], 3)) | {'loss': 0.0, 'views': 'all'}
    assert f'mean of 1 label {one["mean_of_defined"]:.4f}, loss' in describe_scores(one)


def test_the_score_table_counts_cases_and_lists_undefined_labels():
    """The first task has AUROC 0, the next 1/2, and the last has no positives."""
    probabilities = np.array([[0.9, 0.5, 0.5], [0.1, 0.5, 0.5], [0.1, 0.5, 0.5]])
    targets = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [NAN, 1.0, NAN]])
    table = score_table(probabilities, targets, [*'uvw'], labels=[*'abc'], level='image')
    assert table['auroc'] == pytest.approx({'a': 0, 'b': 0.5, 'c': NAN}, nan_ok=True)
    assert table['positives'] == {'a': 1, 'b': 2, 'c': 0}
    assert table['negatives'] == {'a': 1, 'b': 1, 'c': 2}
    assert table['undefined'] == ['c']
    assert table['mean_of_defined'] == pytest.approx(0.25)
    assert table['rows'] == 3
    assert 'mean_of_five' not in table


@pytest.mark.parametrize('name', OF_LABELS)
def test_a_perfect_prediction_has_the_best_value(name):
    p, y = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0])
    options = {'threshold': 0.5, 'views': np.full(4, 'AP', object)}
    best = label_scores(p, y, **options)[name][0]
    other = label_scores(np.array([0.3, 0.8, 0.4, 0.6]), y, **options)[name][0]
    assert (best > other) == METRICS[name].higher_is_better


def test_a_label_under_several_names_counts_once():
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 4)) < 0.4).astype(float)
    targets[:, 3], targets[:, 0] = targets[:, 1], 1 - targets[:, 1]
    values, labels = rng.random(targets.shape), ['No Finding', 'Lung Opacity', 'Edema', 'Pneumonia']
    table = score_table(values, targets, [*map(str, range(200))], labels=labels, level='image')
    areas = [roc_auc_score(targets[:, k], values[:, k]) for k in (1, 2)]
    assert table['mean_of_defined'] == pytest.approx(np.mean(areas), abs=1e-12)
    assert table['same_as'] == dict.fromkeys(['Pneumonia', 'No Finding'], 'Lung Opacity')
    line = describe_scores(table | {'loss': 0.0, 'views': 'all'})
    assert 'mean of 2 labels' in line
    assert 'Lung Opacity, Pneumonia and No Finding are one label under several names' in line

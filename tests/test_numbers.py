"""Predicted numbers: metrics against scikit-learn, studies, comparison, and the report."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cases import NAN, make_cases
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from evaluation.cases import Cases
from evaluation.intervals import Resamples
from evaluation.metrics import FEW_CASES, Protocol
from evaluation.numbers import (
    NUMBER_METRICS,
    SHOWN_ERRORS,
    SHOWN_POINTS,
    at_study_level,
    compare_numbers,
    describe_numbers,
    mean_error,
    number_metric,
    number_scores,
    number_selection_score,
    number_table,
    score_numbers,
)
from evaluation.report import (
    build_number_document,
    compare_number_sets,
    rename_images,
    write_report,
)

LABELS = ('Age', 'Heart size')
PROTOCOL = Protocol(level='study', resamples=100)


def weighted_correlation(target: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> float:
    covariance = np.cov(target, predicted, aweights=weights)
    return covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])


REFERENCES = {
    'mae': lambda t, p, w: mean_absolute_error(t, p, sample_weight=w),
    'rmse': lambda t, p, w: mean_squared_error(t, p, sample_weight=w) ** 0.5,
    'r2': lambda t, p, w: r2_score(t, p, sample_weight=w),
    'correlation': weighted_correlation,
}


def some_numbers(name: str = 'test', *, error: float = 9.0, seed: int = 0) -> Cases:
    """Draw 200 images of 199 studies, with a rare group and one unknown age.

    Rows and targets do not depend on the seed or the error.
    """
    rng = np.random.default_rng(4)
    age = np.clip(rng.normal(61, 16, 200), 18, 95).round()
    size = rng.normal(0.48, 0.06, 200)
    study = np.array([f'test/patient{i:05d}/study1' for i in range(200)], object)
    study[1] = study[0]
    age[1], size[1] = age[0], size[0]
    sex = rng.choice(np.array(['Female', 'Male'], object), 200)
    sex[[7, 60, 150]] = 'Other'
    sex[1] = sex[0]
    noise = np.random.default_rng(seed).normal(size=(200, 2))
    targets = np.stack([age, size], axis=1)
    predicted = targets.mean(axis=0) + 0.6 * (targets - targets.mean(axis=0))
    predicted += noise * [error, 0.03]
    targets[199, 0] = NAN
    return make_cases(
        predicted, targets, name=name, labels=LABELS, study=study, groups={'Sex': sex}
    )


@pytest.mark.parametrize('name', NUMBER_METRICS)
def test_metric_equals_scikit_learn_for_the_score_and_for_every_resample(name):
    cases = some_numbers()
    predicted, targets = cases.of_label('Age')
    weights = Resamples(cases.patient, resamples=40, seed=1).score_weights(cases.patient)
    found = number_scores(predicted, targets, weights)[name]
    known = ~np.isnan(targets)
    expected = [
        REFERENCES[name](targets[known], predicted[known], row[known].astype(float))
        for row in weights
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    repeated = [np.repeat(np.flatnonzero(known), row[known]) for row in weights]  # brute force
    again = [number_scores(predicted[rows], targets[rows])[name][0] for rows in repeated]
    np.testing.assert_allclose(found, again, rtol=1e-9)


def test_metrics_do_not_depend_on_a_large_offset():
    predicted, targets = some_numbers().of_label('Age')
    here, far = (number_scores(predicted + shift, targets + shift) for shift in (0, 1e7))
    assert all(far[name] == pytest.approx(here[name], rel=1e-6) for name in NUMBER_METRICS)


@pytest.mark.parametrize(
    ('predicted', 'targets', 'undefined'),
    [
        ([1, 2, 3], [5, 5, 5], {'r2', 'correlation'}),
        ([2, 2, 2], [1, 2, 3], {'correlation'}),
        ([1, 2, 3], [0.1, NAN, NAN], {'r2', 'correlation'}),
        ([1, 2, 3], [NAN, NAN, NAN], set(NUMBER_METRICS)),
        ([1, NAN, 3], [1, 2, 3], set(NUMBER_METRICS)),
        ([1, NAN, 3], [1, NAN, 4], set()),
        ([0.1] * 7, [0.3, *[0.7] * 6], {'correlation'}),
    ],
)
def test_a_metric_without_a_value_is_nan(predicted, targets, undefined):
    scores = number_scores(np.array(predicted, float), np.array(targets, float))
    assert {name for name, value in scores.items() if np.isnan(value[0])} == undefined


def test_a_resample_with_equal_targets_has_no_r2():
    weights = np.array([[1, 1, 1], [0, 2, 1]])
    found = number_scores(np.array([1.0, 2, 4]), np.array([0.1, 0.7, 0.7]), weights)['r2']
    assert np.isnan(found).tolist() == [False, True]


def test_a_metric_is_not_registered_twice():
    with pytest.raises(AssertionError, match='mae'):

        @number_metric('again')
        def mae() -> None:
            """Nothing."""


def test_a_study_has_the_mean_prediction_and_the_mean_known_target():
    cases = make_cases(
        np.array([[1.0], [4.0], [10.0], [20.0]]),
        np.array([[2.0], [NAN], [NAN], [7.0]]),
        study=np.array(['a/p1/s', 'a/p1/s', 'a/p0/s', 'a/p2/s'], object),
        groups={'Sex': np.array(['x', 'y', 'z', 'x'], object)},
    )
    rows = at_study_level(cases, 'study')
    assert rows.path.tolist() == ['a/p0/s', 'a/p1/s', 'a/p2/s']
    assert rows.patient.tolist() == ['p0', 'p1', 'p2']
    assert rows.groups['Sex'].tolist() == ['z', 'x', 'x']
    np.testing.assert_allclose(rows.probabilities[:, 0], [10, 2.5, 20])
    np.testing.assert_allclose(rows.targets[:, 0], [NAN, 2, 7])
    assert at_study_level(cases, 'image') is cases


@pytest.mark.parametrize('level', ['image', 'study'])
def test_the_table_has_the_scores_of_the_level(level):
    cases = some_numbers()
    arrays = cases.probabilities, cases.targets, cases.study
    table = number_table(*arrays, labels=LABELS, level=level)
    rows = at_study_level(cases, level)
    assert table['rows'] == (200 if level == 'image' else 199)
    assert table['counts'] == {'Age': table['rows'] - 1, 'Heart size': table['rows']}
    for label in LABELS:
        expected = number_scores(*rows.of_label(label))
        assert {name: table[name][label] for name in expected} == {
            name: values[0] for name, values in expected.items()
        }
    assert table['undefined'] == []


def test_the_selection_score_is_the_mean_of_the_defined_r2():
    cases = some_numbers()
    targets = cases.targets.copy()
    table = number_table(cases.probabilities, targets, cases.study, labels=LABELS, level='image')
    assert number_selection_score(table, 'auto') == pytest.approx(np.mean([*table['r2'].values()]))
    targets[:, 1] = 0.5
    table = number_table(cases.probabilities, targets, cases.study, labels=LABELS, level='image')
    assert table['undefined'] == ['Heart size']
    assert number_selection_score(table, 'auto') == table['r2']['Age']
    assert np.isnan(number_selection_score({'r2': {'Age': NAN}, 'counts': {'Age': 99}}, 'auto'))


def test_one_line_describes_the_scores():
    scores = {'level': 'study', 'views': 'frontal', 'rows': 200, 'counts': {'Age': 200, 'b': 3}}
    scores |= {'mae': {'Age': 8.3149, 'b': 1234.5}, 'r2': {'Age': 0.521, 'b': NAN}}
    assert describe_numbers(scores) == (
        'MAE at study level, frontal views, n = 200: Age 8.31 (R² 0.52), b 1,234 (R² n/a, n = 3)'
    )


def test_an_entry_has_scores_with_intervals_and_the_constant():
    entry = score_numbers(some_numbers(), PROTOCOL, {'Age': 70.0})
    age, size = entry['labels']
    assert (entry['rows'], entry['images'], entry['patients']) == (199, 200, 199)
    for label in entry['labels']:
        for score in label['scores'].values():
            assert score['low'] < score['value'] < score['high']
    targets = at_study_level(some_numbers(), 'study').of_label('Age')[1]
    assert age['n'] == 198
    assert not age['few']
    assert (age['mean'], age['sd']) == pytest.approx((np.nanmean(targets), np.nanstd(targets)))
    assert age['constant']['source'] == 'training targets'
    assert age['constant']['scores']['mae']['value'] == np.nanmean(np.abs(targets - 70))
    assert size['constant']['source'] == 'scored targets'
    assert size['constant']['value'] == pytest.approx(size['mean'])
    assert size['constant']['scores']['rmse']['value'] == pytest.approx(size['sd'])
    assert size['constant']['scores']['r2']['value'] == pytest.approx(0)


def test_groups_have_the_mean_error_and_mark_few_cases():
    (column,) = score_numbers(some_numbers(), PROTOCOL)['groups']
    groups = {group['group']: group for group in column['groups']}
    assert list(groups) == ['Female', 'Male', 'Other']
    rows = at_study_level(some_numbers(), 'study')
    for name, group in groups.items():
        part = rows.select(rows.groups['Sex'] == name)
        errors = part.probabilities[:, 0] - part.targets[:, 0]
        label = group['labels']['Age']
        assert label['scores']['mean_error']['value'] == pytest.approx(np.nanmean(errors))
        assert label['scores']['mae']['value'] == pytest.approx(np.nanmean(np.abs(errors)))
        assert label['n'] == (~np.isnan(errors)).sum()
        assert bool(label['few']) == (label['n'] < FEW_CASES)
    assert groups['Other']['labels']['Age']['few']
    above = mean_error(np.array([3.0]), np.array([1.0]), np.ones((1, 1)))
    assert above == 2  # prediction minus target


def test_the_largest_errors_have_both_signs():
    entry = score_numbers(some_numbers(), PROTOCOL)
    rows = at_study_level(some_numbers(), 'study')
    errors = rows.probabilities[:, 0] - rows.targets[:, 0]
    of_age = [error for error in entry['largest_errors'] if error['label'] == 'Age']
    assert len(of_age) == 2 * SHOWN_ERRORS
    high, low = of_age[0], of_age[SHOWN_ERRORS]
    assert (high['kind'], high['path']) == ('too high', rows.path[np.nanargmax(errors)])
    assert (low['kind'], low['path']) == ('too low', rows.path[np.nanargmin(errors)])


def test_a_large_set_has_a_limited_number_of_points():
    values = np.random.default_rng(0).normal(size=(3 * SHOWN_POINTS, 1))
    entry = score_numbers(make_cases(values, values), Protocol(level='image', resamples=0))
    points = entry['labels'][0]['points']
    assert len(points['target']) == len(points['predicted']) == SHOWN_POINTS
    assert (points['target'][0], points['target'][-1]) == (values.min(), values.max())
    assert points['predicted'] == points['target']


def test_a_comparison_is_the_paired_difference_in_mae():
    a = at_study_level(some_numbers('a', error=4), 'study')
    b = at_study_level(some_numbers('b', seed=1), 'study')
    found = compare_numbers(a, b.select(np.arange(len(b))[::-1]), resamples=200, seed=0)
    age = found['labels']['Age']
    maes = [number_scores(*cases.of_label('Age'))['mae'][0] for cases in (a, b)]
    assert age['difference']['value'] == pytest.approx(maes[0] - maes[1])
    assert age['difference']['high'] < 0
    assert age['p_bootstrap'] == pytest.approx(2 / 201)
    assert age['p_holm'] == pytest.approx(4 / 201)
    assert (found['a'], found['b'], found['score']) == ('a', 'b', 'MAE')
    same = compare_numbers(a, a, resamples=200, seed=0)['labels']['Age']
    assert (same['same'], same['difference']['value']) == ('identical', 0)


def make_document(**options) -> dict:
    models = [some_numbers('small'), some_numbers('large', error=4, seed=1)]
    extras = {'comparisons': compare_number_sets(models, PROTOCOL, name='test')}
    options = {'run': {'Task': 'regression'}, 'extras': extras, 'baseline': {'Age': 60.0}} | options
    return build_number_document(models, PROTOCOL, **options)


def test_the_report_has_every_file_with_the_scores(tmp_path: Path):
    document = make_document()
    page = write_report(tmp_path, document).read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        *('report.html', 'report.json', 'report_scores.tex', 'report_labels.csv'),
        *('report_groups.csv', 'report_comparisons.csv'),
    }
    written = json.loads((tmp_path / 'report.json').read_text())
    assert (written['sets'], written['headline']) == ([], None)
    assert [entry['name'] for entry in written['numbers']] == ['small', 'large']
    mae = written['numbers'][0]['labels'][0]['scores']['mae']
    labels = pd.read_csv(tmp_path / 'report_labels.csv')
    assert labels['label'].tolist() == [*LABELS] * 2
    assert labels.loc[0, ['mae', 'mae_low']].tolist() == [mae['value'], mae['low']]
    assert labels['constant_source'].tolist() == ['training targets', 'scored targets'] * 2
    groups = pd.read_csv(tmp_path / 'report_groups.csv')
    assert len(groups) == 2 * 3 * len(LABELS)
    assert 'mean_error_high' in groups
    assert len(pd.read_csv(tmp_path / 'report_comparisons.csv')) == 2
    tex = (tmp_path / 'report_scores.tex').read_text()
    assert 'Differences in MAE' in tex
    assert f'{mae["value"]:.2f} [{mae["low"]:.2f}, ' in tex
    assert page.count('class="point"') >= 4 * 198
    assert 'MAE of the first model minus MAE of the second' in page
    assert 'AUROC' not in page
    assert page.count('Not for clinical use') >= 3
    assert f'value="{mae["value"]!r}"' in page


def test_a_single_set_without_resamples_or_groups_has_a_report(tmp_path: Path):
    cases = replace(some_numbers(), groups={})
    cases.targets[:, 1] = NAN
    document = build_number_document([cases], Protocol(resamples=0), run={})
    write_report(tmp_path, document)
    assert any('Heart size' in line for line in document['warnings'])
    assert not (tmp_path / 'report_comparisons.csv').exists()
    assert len(pd.read_csv(tmp_path / 'report_labels.csv')) == 1


def test_alerts_name_constant_and_useless_predictions():
    cases = some_numbers()
    predicted = cases.probabilities.copy()
    predicted[:, 0] = 61 + 1e-3 * predicted[:, 0]
    cases = replace(cases, probabilities=predicted)
    alerts = build_number_document([cases], PROTOCOL, run={})['alerts']
    assert len(alerts) == 2
    assert all('Age' in line and 'Heart' not in line for line in alerts)
    assert make_document()['alerts'] == []


def test_nan_predictions_have_a_report_without_scores(tmp_path: Path):
    cases = some_numbers()
    cases.probabilities[3, 0] = NAN
    document = build_number_document([cases], PROTOCOL, run={})
    write_report(tmp_path, document)
    assert any('NaN' in line and 'Age' in line for line in document['warnings'])
    written = json.loads((tmp_path / 'report.json').read_text())
    assert written['numbers'][0]['labels'][0]['scores']['mae']['value'] is None


def test_names_of_the_largest_errors_are_replaced(tmp_path: Path):
    document = make_document()
    rename_images(document, lambda name: 'hashed')
    paths = {error['path'] for entry in document['numbers'] for error in entry['largest_errors']}
    assert paths == {'hashed'}
    write_report(tmp_path, document)
    assert all(b'patient000' not in path.read_bytes() for path in tmp_path.iterdir())

"""Scores of predicted numbers: metrics, studies, groups, comparisons and the report."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from evaluation.cases import Cases
from evaluation.metrics import Protocol
from evaluation.numbers import NUMBER_METRICS, number_rows
from evaluation.report import build_number_document, rename_images, write_report


def test_the_metrics_of_numbers_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(8)
    true = rng.normal(50, 20, 80)
    predicted, weights = 0.6 * true + rng.normal(15, 9, 80), rng.integers(0, 4, (4, 80))
    found = {name: m.compute(predicted, true, weights) for name, m in NUMBER_METRICS.items()}
    assert {*found} == {'mae', 'rmse', 'r2', 'correlation'}
    for row, weight in enumerate(weights):
        options = {'sample_weight': weight}
        squared = mean_squared_error(true, predicted, **options)
        repeated = np.repeat(np.arange(80), weight)  # a weight is a number of copies
        wanted = {
            'mae': mean_absolute_error(true, predicted, **options),
            'rmse': squared**0.5,
            'r2': r2_score(true, predicted, **options),
            'correlation': np.corrcoef(predicted[repeated], true[repeated])[0, 1],
        }
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name][row], value, err_msg=name)


def test_scores_of_constant_numbers_are_undefined() -> None:
    true, one = np.full(9, 0.1), np.ones((1, 9))
    assert np.isnan(NUMBER_METRICS['r2'].compute(np.arange(9.0), true, one))
    assert np.isnan(NUMBER_METRICS['correlation'].compute(true, np.arange(9.0), one))
    rare = np.where(np.arange(9) == 8, 5.0, 0.1)  # a resample without the last case is constant
    weights = np.stack([np.ones(9), np.arange(9) < 8])
    assert np.isnan(NUMBER_METRICS['r2'].compute(true, rare, weights)).tolist() == [False, True]


def number_cases(num_studies: int = 60) -> Cases:
    """Two images per study; the second one has no age. Women are predicted 5 years too old."""
    rng = np.random.default_rng(1)
    age = np.repeat(rng.uniform(20, 90, num_studies), 2)
    sex = np.repeat(np.where(np.arange(num_studies) % 2, 'Female', 'Male'), 2).astype(object)
    study = np.repeat([f'patient{i}/study1' for i in range(num_studies)], 2).astype(object)
    predicted = age + rng.normal(0, 4, len(age)) + 5 * (sex == 'Female')
    true = np.where(np.arange(len(age)) % 2, np.nan, age)
    path = np.array([f'{name}/{i}.png' for i, name in enumerate(study)], object)
    groups = {'Sex': sex}
    return Cases(
        'valid', ('Age',), path, study, study, predicted[:, None], true[:, None], groups=groups
    )


def test_a_study_has_the_mean_of_its_images_with_known_numbers() -> None:
    cases = number_cases(2)
    rows = number_rows(cases, 'study')
    np.testing.assert_array_equal(rows.probabilities, cases.probabilities[[0, 2]])
    np.testing.assert_allclose(rows.targets, cases.targets[[0, 2]])
    unknown = replace(cases, targets=np.full_like(cases.targets, np.nan))
    rows = number_rows(unknown, 'study')
    np.testing.assert_allclose(rows.probabilities[0], cases.probabilities[:2].mean())
    assert np.isnan(rows.targets).all()


def test_the_report_of_numbers_shows_bias_constant_and_differences(tmp_path: Path) -> None:
    cases, protocol = number_cases(), Protocol(level='study', resamples=100)
    worse = replace(cases, name='worse', probabilities=cases.probabilities + 10)
    options = {'run': {'Task': 'regression'}, 'baseline': {'Age': 50.0}, 'compared': True}
    document = build_number_document([cases, worse], protocol, **options)
    (part,) = document['numbers'][0]['labels']
    true, predicted = cases.targets[::2, 0], cases.probabilities[::2, 0]
    assert part['n'] == 60 and part['constant_mae'] == pytest.approx(np.abs(true - 50).mean())
    assert part['scores']['mae']['value'] == pytest.approx(np.abs(true - predicted).mean())
    assert part['scores']['mae']['low'] < part['scores']['mae']['value']
    men, women = (
        {group['group']: group['labels']['Age']['mean_error'] for group in column['groups']}[sex]
        for column in document['numbers'][0]['groups']
        for sex in ('Male', 'Female')
    )
    assert men['low'] < 0 < men['high'] and 3 < women['low'] < women['high'] < 7
    (difference,) = document['differences']
    row = difference['labels']['Age']
    errors = np.abs(predicted - true).mean() - np.abs(predicted + 10 - true).mean()
    assert row['difference']['value'] == pytest.approx(errors) and row['difference']['high'] < 0
    assert (difference['a'], row['p_holm'] < 0.05) == ('valid', True)
    rename_images(document, lambda name: 'hashed')
    page = write_report(tmp_path, document).read_text()
    assert 'patient1/study1' not in page and 'Not for clinical use' in page
    assert page.count('<svg class="panel"') == 2, 'a scatter plot for each set'
    table = pd.read_csv(tmp_path / 'report_labels.csv')
    assert table.loc[0, 'mae'] == pytest.approx(part['scores']['mae']['value'])
    groups = pd.read_csv(tmp_path / 'report_groups.csv')
    assert {*groups['group']} == {'Male', 'Female'} and 'mean_error_low' in groups
    assert 'MAE' in (tmp_path / 'report_scores.tex').read_text()


def test_a_model_that_predicts_a_constant_raises_an_alert() -> None:
    cases = number_cases()
    constant = replace(cases, probabilities=np.full_like(cases.probabilities, 50))
    document = build_number_document([constant], Protocol(resamples=100), run={})
    assert 'hardly vary' in document['alerts'][0]
    noise = np.random.default_rng(0).normal(50, 20, cases.probabilities.shape)
    document = build_number_document(
        [replace(cases, probabilities=noise)], Protocol(resamples=100), run={}
    )
    assert 'not be better than a constant' in document['alerts'][0]

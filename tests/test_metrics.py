"""Scores against scikit-learn, brute force and cases worked by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.metrics import (
    auroc_per_label,
    describe_scores,
    score_table,
    selection_score,
    study_level,
)
from evaluation.predictions import write_predictions

NAN = np.nan


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


def test_a_study_has_the_greatest_probability_of_its_images():
    probabilities = np.array([[0.2, 0.9], [0.7, 0.1], [0.4, 0.3]])
    targets = np.array([[1.0, NAN], [1.0, 0.0], [0.0, NAN]])
    best, known, names = study_level(probabilities, targets, ['b', 'b', 'a'])
    assert names.tolist() == ['a', 'b']
    np.testing.assert_array_equal(best, [[0.4, 0.3], [0.7, 0.9]])
    np.testing.assert_array_equal(known, [[0.0, NAN], [1.0, 0.0]])


@pytest.mark.parametrize(
    ('areas', 'rule', 'wanted'),
    [
        ([0.5, 0.7, 0.9], 'five', 0.6),
        ([0.5, 0.7, 0.9], 'auto', 0.6),
        ([0.5, 0.7, 0.9], 'all', 0.7),
        ([0.5, NAN, 0.9], 'auto', 0.7),
        ([0.5, NAN, 0.9], 'five', NAN),
        ([0.5, NAN, 0.9], 'all', 0.7),
        ([NAN, NAN, NAN], 'auto', NAN),
    ],
)
def test_selection_score(areas, rule, wanted):
    score = selection_score(np.array(areas), ['a', 'b', 'c'], ['a', 'b'], rule)
    assert score == pytest.approx(wanted, nan_ok=True)


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
    assert 'n/a for want of both classes: b' in line


def test_predictions_keep_nine_digits_and_tell_where_they_come_from(tmp_path):
    values = np.array([[0.123456789012, 1e-12], [1.0, 0.5]])
    write_predictions(
        tmp_path / 'predictions_valid.csv', values,
        paths=['a/b.jpg', 'c, d.jpg'], labels=['One', 'Two'], source={'checkpoint': 'x.pth'},
    )  # fmt: skip
    table = pd.read_csv(tmp_path / 'predictions_valid.csv')
    assert table.columns.tolist() == ['Path', 'One', 'Two']
    assert table.Path.tolist() == ['a/b.jpg', 'c, d.jpg']
    np.testing.assert_allclose(table[['One', 'Two']], values, rtol=5e-9)
    assert '"checkpoint": "x.pth"' in (tmp_path / 'predictions_valid.json').read_text()

"""Thresholds against brute force over every candidate and cases worked by hand."""

from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from evaluation.calibration import THRESHOLD_RULES, choose_threshold

NAN = np.nan


def draw(seed, *, levels, size=60):
    """Probabilities with many ties, targets that lean with them, some of them unknown."""
    rng = np.random.default_rng(seed)
    probabilities = rng.integers(0, levels + 1, size) / levels
    targets = (rng.random(size) < 0.2 + 0.5 * probabilities).astype(float)
    targets[rng.random(size) < 0.15] = NAN
    return probabilities, targets


def merit(rule, called, truth, wanted):
    """What a rule maximises, as an exact fraction, from a confusion matrix."""
    (true_negative, alarms), (misses, hits) = confusion_matrix(truth, called).tolist()
    sensitivity = Fraction(hits, hits + misses)
    if rule == 'youden':
        return sensitivity + Fraction(true_negative, true_negative + alarms) - 1
    if rule == 'f1':
        return Fraction(2 * hits, 2 * hits + alarms + misses)
    return sensitivity >= Fraction(wanted)


@pytest.mark.parametrize('rule', THRESHOLD_RULES)
@pytest.mark.parametrize('levels', [4, 20, 1000])
def test_is_the_greatest_of_the_best_of_all_observed_probabilities(rule, levels):
    for seed in range(15):
        probabilities, targets = draw(seed, levels=levels)
        wanted = ['0.5', '0.8', '1'][seed % 3]
        known = ~np.isnan(targets)
        truth, values = targets[known], probabilities[known]
        best = max(
            (merit(rule, (values >= value).astype(float), truth, wanted), value)
            for value in np.unique(values)
        )
        found = choose_threshold(probabilities, targets, rule=rule, sensitivity=float(wanted))
        assert found == best[1], (seed, best)


def test_rules_worked_by_hand():
    probabilities = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    targets = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    # From 0.9 down: hits 1 1 2 3 3 3 4 4, alarms 0 1 1 1 2 3 3 4.
    # Youden: .25 0 .25 .5 .25 0 .25 0; F1: .4 .333 .571 .75 .667 .6 .727 .667.
    assert choose_threshold(probabilities, targets, rule='youden', sensitivity=0.9) == 0.6
    assert choose_threshold(probabilities, targets, rule='f1', sensitivity=0.9) == 0.6
    wanted = {0.25: 0.9, 0.26: 0.7, 0.5: 0.7, 0.75: 0.6, 0.9: 0.3, 1.0: 0.3}
    for sensitivity, threshold in wanted.items():
        found = choose_threshold(
            probabilities, targets, rule='sensitivity', sensitivity=sensitivity
        )
        assert found == threshold, sensitivity


def test_equally_good_thresholds_give_the_greatest():
    # Youden's index is 0.5 at 0.8 (1 of 2, no alarm) and at 0.2 (2 of 2, 1 of 2 alarms).
    probabilities, targets = np.array([0.8, 0.5, 0.2, 0.1]), np.array([1.0, 0.0, 1.0, 0.0])
    assert choose_threshold(probabilities, targets, rule='youden', sensitivity=0.9) == 0.8
    # F1 is 2/3 at both.
    probabilities, targets = np.array([0.8, 0.5, 0.4, 0.2]), np.array([1.0, 0.0, 0.0, 1.0])
    assert choose_threshold(probabilities, targets, rule='f1', sensitivity=0.9) == 0.8
    assert f1_score(targets, probabilities >= 0.2) == f1_score(targets, probabilities >= 0.8)


def test_single_precision_probabilities_are_positive_at_their_own_threshold():
    probabilities = np.array([0.1, 0.7, 0.3], np.float32)
    threshold = choose_threshold(
        probabilities, np.array([0.0, 1.0, 0.0]), rule='youden', sensitivity=0.9
    )
    assert (probabilities >= threshold).tolist() == [False, True, False]


@pytest.mark.parametrize('rule', THRESHOLD_RULES)
@pytest.mark.parametrize('targets', [[1, 1, NAN], [0, NAN, 0], [NAN, NAN, NAN], []])
def test_without_both_classes_there_is_no_threshold(rule, targets):
    targets = np.array(targets, float)
    assert np.isnan(
        choose_threshold(np.full(targets.size, 0.5), targets, rule=rule, sensitivity=0.9)
    )


@pytest.mark.parametrize(
    ('options', 'parts'),
    [
        (
            {'rule': 'best', 'sensitivity': 0.9},
            ('EVAL.THRESHOLD', "'best'", 'youden, f1, sensitivity'),
        ),
        ({'rule': 'sensitivity', 'sensitivity': 0.0}, ('EVAL.SENSITIVITY', '0.0', 'at most 1')),
        ({'rule': 'sensitivity', 'sensitivity': 1.5}, ('EVAL.SENSITIVITY', '1.5', 'at most 1')),
    ],
)
def test_mistakes_are_refused(options, parts):
    with pytest.raises(ValueError) as error:
        choose_threshold(np.array([0.1, 0.9]), np.array([0.0, 1.0]), **options)
    assert all(part in str(error.value) for part in parts)

"""Analysis of one set: radiologists, uncertain labels, held-out values, worst errors."""

from dataclasses import replace

import numpy as np
import pytest
from cases import FIVE, NAN, entries, make_cases, of_test_set
from scipy.special import expit, logit
from sklearn.metrics import accuracy_score, brier_score_loss, confusion_matrix, f1_score, roc_curve

from evaluation.analysis import HeldOut, fit_held_out, score_set, worst_errors
from evaluation.metrics import Protocol
from evaluation.published import RADIOLOGISTS


def shown(found):
    """Return the labels with radiologists, and check that others have no count of them."""
    assert all(
        bool(p['radiologists']) == (p['radiologists_below'] is not None) for p in found.values()
    )
    return [label for label, part in found.items() if part['radiologists']]


def test_radiologists_are_shown_on_the_studies_that_they_read():
    cases = of_test_set()
    found = entries(cases)
    assert shown(found) == FIVE
    for k, label in enumerate(FIVE):
        fpr, tpr, _ = roc_curve(cases.targets[:, k], cases.probabilities[:, k])
        below = [np.interp(1 - spec, fpr, tpr) > sens for spec, sens in RADIOLOGISTS[label]]
        part = found[label]
        assert [p['below'] for p in part['radiologists']] == below
        assert part['radiologists_below'] == sum(below)
        points = tuple((p['specificity'], p['sensitivity']) for p in part['radiologists'])
        assert points == RADIOLOGISTS[label]


@pytest.mark.parametrize('change', ['image level', 'single label', 'unknown', 'phantom'])
def test_radiologists_are_not_shown_on_other_cases(change):
    cases, level, left = of_test_set(), 'study', []
    if change == 'image level':
        level = 'image'
    elif change == 'single label':  # the negatives differ from the study
        cases = of_test_set(labels=('Pleural Effusion',))
    elif change == 'unknown':
        cases.targets[17, FIVE.index('Edema')] = NAN
        left = [label for label in FIVE if label != 'Edema']
    else:
        study = np.array([name.replace('v1.0', 'phantom') for name in cases.study], object)
        cases = replace(cases, study=study)
    assert shown(entries(cases, level=level)) == left


def test_uncertain_labels_are_counted_at_the_level_that_is_scored():
    """A study is uncertain if one image is uncertain and none is known."""
    study = np.array([f'test/patient{i}/study1' for i in (2, 2, 2, 1, 1, 1, 3, 3, 4, 5)], object)
    cells = np.array([[-1, -1], [-1, 1], [-1, 0], [-1, 0], [NAN, 0], [-1, 0], [NAN, -1], [NAN, -1]])
    cells = np.concatenate([cells, [[1, 0], [0, 1]]])  # so that both labels have both classes
    uncertain = cells == -1
    targets = np.where(uncertain, NAN, cells)
    cases = make_cases(np.full(cells.shape, 0.5), targets, study=study, uncertain=uncertain)
    nothing = HeldOut(np.full(2, NAN), np.full(2, NAN))
    for level, wanted in (
        ('image', {'label 0': 5, 'label 1': 3}),
        ('study', {'label 0': 2, 'label 1': 1}),
    ):
        scored = score_set(cases, nothing, Protocol(level=level, resamples=0))
        assert scored['uncertain'] == wanted
    rows = cases.at_level('study')
    assert rows.uncertain[:3].tolist() == [[True, False], [True, False], [False, True]]


def test_held_out_values_are_matched_to_labels_by_name():
    """Held-out cases can have other labels in another order, or lack a label."""
    rng = np.random.default_rng(1)
    targets = (rng.random((80, 2)) < 0.5).astype(float)
    holdout = make_cases(rng.random((80, 2)), targets, labels=('b', 'a'))
    fitted = fit_held_out(holdout, ('a', 'missing', 'b'), Protocol(level='image'))
    wanted = {}
    for k, label in enumerate(holdout.labels):
        fpr, tpr, thresholds = roc_curve(
            targets[:, k], holdout.probabilities[:, k], drop_intermediate=False
        )
        wanted[label] = thresholds[np.argmax(tpr - fpr)]
    expected = [wanted['a'], NAN, wanted['b']]
    np.testing.assert_array_equal(fitted.thresholds, expected)
    assert np.isnan(fitted.temperatures).tolist() == [False, True, False]
    assert np.isnan(fit_held_out(None, ('a',), Protocol()).thresholds).all()


def test_the_threshold_half_is_not_chosen():
    rng = np.random.default_rng(2)
    targets = (rng.random((80, 1)) < 0.5).astype(float)
    cases = make_cases(rng.random((80, 1)), targets, labels=('a',))
    protocol = Protocol(level='image', threshold='half', resamples=0)
    for holdout in (None, cases):
        held_out = fit_held_out(holdout, ('a', 'missing'), protocol)
        assert held_out.thresholds.tolist() == [0.5, 0.5]
    scores = entries(cases, fit_held_out(None, ('a',), protocol), level='image')['a']['scores']
    for name, function in (('accuracy', accuracy_score), ('f1', f1_score)):
        wanted = function(cases.targets, cases.probabilities >= 0.5)
        assert scores[name]['value'] == pytest.approx(wanted)


def test_worst_errors_are_the_most_confident_ones():
    probabilities = np.array([[0.9], [0.7], [0.2], [0.1], [0.5], [0.95]])
    targets = np.array([[0], [0], [1], [1], [1], [NAN]])
    cases = make_cases(probabilities, targets, labels=('Edema',))
    found = worst_errors(cases, np.array([0.5]))
    assert [(e['kind'], e['probability'], e['target']) for e in found] == [
        ('false positive', 0.9, 0.0),
        ('false negative', 0.1, 1.0),
    ]
    assert [e['path'] for e in found] == [cases.path[0], cases.path[3]]
    assert worst_errors(cases, np.array([NAN])) == []


def test_the_confusion_matrix_is_that_of_the_threshold() -> None:
    rng = np.random.default_rng(0)
    targets = rng.choice([0.0, 1.0, NAN], size=(90, 1))
    cases = make_cases(rng.random((90, 1)).round(1), targets)
    found = entries(cases, HeldOut(np.array([0.4]), np.array([NAN])))['label 0']['confusion']
    known = ~np.isnan(targets[:, 0])
    called = cases.probabilities[known, 0] >= 0.4
    (tn, fp), (fn, tp) = confusion_matrix(targets[known, 0], called)
    assert (found['true_positives'], found['false_negatives']) == (tp, fn)
    assert (found['false_positives'], found['true_negatives']) == (fp, tn)
    assert entries(cases)['label 0']['confusion'] is None


def test_scaled_scores_are_those_of_the_probabilities_at_the_temperature() -> None:
    cases, temperature = of_test_set(labels=('Edema',)), 2.5
    found = entries(cases, HeldOut(np.array([NAN]), np.array([temperature])))['Edema']
    probabilities, targets = cases.probabilities[:, 0], cases.targets[:, 0]
    scaled = expit(logit(probabilities) / temperature)
    for name, values in (('brier', probabilities), ('brier_scaled', scaled)):
        wanted = brier_score_loss(targets, values)
        assert found['scores'][name]['value'] == pytest.approx(wanted)

"""Paired comparisons against counted pairs on explicit resamples, and p-values by hand."""

from dataclasses import replace

import numpy as np
import pytest
from cases import NAN, make_cases, pair_auroc
from scipy.special import expit

from evaluation.intervals import Resamples, bootstrap_p, delong_test, holm
from evaluation.model_comparison import compare

LABELS = ('Edema', 'Fracture', 'Cardiomegaly')


def make_pair(*, rows_each=1, unknown=0.1):
    """Return two sets of cases with the same rows. The second has noisier predictions."""
    rng = np.random.default_rng(0)
    names = [f'test/patient{i // rows_each:05d}/study{i}' for i in range(80)]
    targets = (rng.random((80, len(LABELS))) < 0.4).astype(float)
    shared = 1.5 * targets + rng.normal(0, 0.7, targets.shape)
    targets[rng.random(targets.shape) < unknown] = NAN
    views = rng.choice(np.array(['Frontal AP', 'Frontal PA', ''], object), 80, p=[0.5, 0.4, 0.1])
    given = {'labels': LABELS, 'study': np.array(names, object), 'groups': {'View': views}}
    return [
        make_cases(expit(shared + rng.normal(0, noise, targets.shape)), targets, name=name, **given)
        for name, noise in (('first', 0.5), ('second', 1.5))
    ]


def areas_of_resample(cases, counts, k):
    """Count the pairs of the AUROC with each row repeated as often as it was drawn."""
    rows = np.repeat(np.arange(len(cases)), counts)
    rows = rows[~np.isnan(cases.targets[rows, k])]
    return pair_auroc(cases.targets[rows, k], cases.probabilities[rows, k])


def drawn_counts(cases):
    """Return how often each row is drawn, [R, N]: once in the first, then in each resample."""
    drawn = Resamples(cases.patient, resamples=200, seed=3).weights(cases.patient)
    return drawn.counts[drawn.patient].T


def as_interval(values):
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return pytest.approx({'value': values[0], 'low': low, 'high': high})


def test_equals_counted_pairs_on_resamples_written_out():
    a, b = make_pair(rows_each=2)
    found = compare(a, b, resamples=200, seed=3)
    differences = {
        label: np.array(
            [areas_of_resample(a, w, k) - areas_of_resample(b, w, k) for w in drawn_counts(a)]
        )
        for k, label in enumerate(LABELS)
    }
    differences['mean'] = np.mean([*differences.values()], axis=0)
    entries = found['labels'] | {'mean': found['means']['labels']}
    assert list(entries) == [*LABELS, 'mean']
    for name, entry in entries.items():
        assert entry['difference'] == as_interval(differences[name]), name
        drawn = differences[name][1:]
        fewer = min((drawn <= 0).sum(), (drawn >= 0).sum())
        assert entry['p_bootstrap'] == pytest.approx(min(1, 2 * (1 + fewer) / 201))


def test_differences_within_views_are_those_of_counted_pairs():
    a, b = make_pair()
    found = compare(a, b, resamples=200, seed=3)
    views = [a.groups['View'] == name for name in ('Frontal AP', 'Frontal PA')]

    def area(cases, counts, k):
        pairs, total = 0, 0.0
        for chosen in views:
            own = np.where(chosen, counts, 0)
            rows = np.repeat(a.targets[:, k], own)
            count = int((rows == 1).sum() * (rows == 0).sum())
            pairs, total = pairs + count, total + count * areas_of_resample(cases, own, k)
        return total / pairs

    differences = [area(a, w, 1) - area(b, w, 1) for w in drawn_counts(a)]
    within = found['labels']['Fracture']['within_views']
    known = ~np.isnan(a.targets[:, 1])
    assert within.pop('cases') == (known & np.logical_or(*views)).sum() < within.pop('of')
    assert within == as_interval(differences)
    mean = np.mean([part['within_views']['value'] for part in found['labels'].values()])
    assert found['means']['labels']['within_views']['value'] == pytest.approx(mean)
    (one, two) = (replace(cases, groups={}) for cases in (a, b))
    none = compare(one, two, resamples=200, seed=3)['labels']['Fracture']
    assert np.isnan(none['within_views']['value'])
    assert none['difference'] == found['labels']['Fracture']['difference']


@pytest.mark.parametrize('rows_each', [1, 2])
def test_delong_needs_one_row_per_patient(rows_each):
    a, b = make_pair(rows_each=rows_each)
    entries = compare(a, b, resamples=200, seed=0)['labels'].values()
    by_delong = [
        delong_test(a.probabilities[:, k], b.probabilities[:, k], a.targets[:, k]) for k in range(3)
    ]
    wanted = by_delong if rows_each == 1 else [NAN] * 3
    np.testing.assert_array_equal([entry['p_delong'] for entry in entries], wanted)


def test_predictions_that_are_the_same_or_in_the_same_order_are_named():
    a, b = make_pair()
    for k, values in enumerate((a.probabilities[:, 0], a.probabilities[:, 1] / 2)):
        b.probabilities[:, k] = values
    b.probabilities[np.isnan(a.targets[:, 0]), 0] = 0.5  # not scored
    found = compare(a, b, resamples=200, seed=0)
    assert [entry['same'] for entry in found['labels'].values()] == [
        'identical',
        'same order of cases',
        '',
    ]
    assert found['means']['labels']['same'] == ''
    one, two = (cases.with_labels([True, True, False]) for cases in (a, b))
    mean = compare(one, two, resamples=200, seed=0)['means']['labels']
    assert mean['same'] == 'same order of cases'
    assert mean['difference']['value'] == 0
    assert np.isnan([mean['difference']['low'], mean['p_bootstrap']]).all()


def test_rows_are_matched_by_path_and_labels_by_name():
    a, b = make_pair()
    wanted = compare(a, b, resamples=200, seed=1)
    shuffled = b.select(np.random.default_rng(0).permutation(len(b)))
    assert compare(a, shuffled, resamples=200, seed=1) == wanted
    columns = {'probabilities': b.probabilities[:, [2, 0]], 'targets': b.targets[:, [2, 0]]}
    fewer = replace(b, labels=('Cardiomegaly', 'Edema'), **columns)
    found = compare(a, fewer, resamples=200, seed=1)
    assert list(found['labels']) == ['Edema', 'Cardiomegaly']
    for label, entry in found['labels'].items():
        assert entry['difference'] == wanted['labels'][label]['difference']


def test_a_label_of_one_class_is_left_out_of_the_comparison_and_its_mean():
    a, b = make_pair(unknown=0)
    a.targets[:, 1] = 0.0  # the array is shared by both
    a.targets[1:, 2] = 0.0
    a.targets[0, 2] = 1.0
    found = compare(a, b, resamples=2000, seed=0)
    assert list(found['labels']) == ['Edema', 'Cardiomegaly']
    single = found['labels']['Cardiomegaly']
    assert not np.isnan(single['difference']['value'])
    assert np.isnan([single['difference']['low'], single['p_bootstrap'], single['p_delong']]).all()
    edema = found['labels']['Edema']
    assert found['means']['labels']['difference'] == edema['difference']  # few cases do not count


def test_bootstrap_p_worked_by_hand():
    assert bootstrap_p(np.array([0.1] * 397 + [-0.1] * 2)) == pytest.approx(2 * 3 / 400)
    assert bootstrap_p(np.linspace(-0.2, -0.1, 399)) == pytest.approx(2 * 1 / 400)
    assert np.isnan(bootstrap_p(np.full(399, -0.1)))  # no interval
    assert bootstrap_p(np.array([0.0] * 3 + [0.1] * 396)) == pytest.approx(2 * 4 / 400)
    assert bootstrap_p(np.array([0.1, -0.1] * 100)) == 1.0
    assert np.isnan(bootstrap_p(np.array([0.1, -0.1] * 99)))  # 198 resamples are too few
    assert bootstrap_p(np.array([0.1] * 398 + [0.2, NAN])) == pytest.approx(2 * 1 / 400)
    assert np.isnan(bootstrap_p(np.array([0.1] * 300 + [0.2] + [NAN] * 20)))


def test_holm_worked_by_hand():
    # Sorted: .005 x 4, .01 x 3, .03 x 2, .04 x 1; the last is raised to the one before it.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, NAN, 0.04]), [0.02, NAN, 0.04])
    np.testing.assert_allclose(holm([0.5, 0.6, 0.2]), [1.0, 1.0, 0.6])
    assert holm([]).tolist() == []

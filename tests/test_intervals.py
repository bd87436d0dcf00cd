"""Resamples of patients and their intervals, by brute force and against true values."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score

from evaluation.intervals import Resamples, interval
from evaluation.metrics import METRICS, label_scores

SEPARATION = 1.2  # of the classes' means, in standard deviations
CUT = 0.6  # threshold on the score, above the negatives' mean


def binormal(rng, num_patients, images_each, shared):
    """Images of patients, every third one positive; `shared`: the patient's part of the variance.

    Over all images the score is N(0, 1) or N(SEPARATION, 1), whatever is shared.
    """
    positive = np.arange(num_patients) % 3 == 0
    patient = np.repeat(np.arange(num_patients), images_each)
    score = np.sqrt(shared) * rng.standard_normal(num_patients)[patient]
    score += np.sqrt(1 - shared) * rng.standard_normal(patient.size)
    score += SEPARATION * positive[patient]
    return norm.cdf(score), positive[patient].astype(float), [f'p{i}' for i in patient]


def test_weights_are_multiplicities_of_whole_patients_that_every_subset_shares():
    patients = ['c', 'a', 'b', 'a', 'd', 'e', 'c']
    resamples = Resamples(patients, resamples=200, seed=3)
    weights = resamples.weights(patients)
    assert weights.shape == (200, 7)
    np.testing.assert_array_equal(weights[:, 1], weights[:, 3])
    np.testing.assert_array_equal(weights[:, 0], weights[:, 6])
    np.testing.assert_array_equal(weights[:, [0, 1, 2, 4, 5]].sum(axis=1), 5)
    np.testing.assert_array_equal(resamples.weights(['e', 'b', 'e']), weights[:, [5, 2, 5]])
    # Other rows of the same patients: the same draws, so models can be compared.
    again = Resamples(['e', 'd', 'c', 'b', 'a'], resamples=200, seed=3)
    np.testing.assert_array_equal(again.weights(patients), weights)
    other = Resamples(patients, resamples=200, seed=4)
    assert (other.weights(patients) != weights).any()


def test_patients_are_drawn_with_replacement_and_evenly():
    patients = [f'p{i}' for i in range(50)]
    weights = Resamples(patients, resamples=4000, seed=0).weights(patients).astype(float)
    # Each multiplicity is Binomial(50, 1/50).
    assert weights.var() == pytest.approx(50 * 1 / 50 * 49 / 50, rel=0.02)
    assert (weights == 0).mean() == pytest.approx((49 / 50) ** 50, rel=0.02)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=5 / np.sqrt(4000))


def test_a_patient_who_was_not_drawn_from_is_named():
    with pytest.raises(ValueError, match="patient 'stranger'"):
        Resamples(['a', 'b'], resamples=2, seed=0).weights(['a', 'stranger'])


def test_replicates_are_those_of_repeated_rows():
    rng = np.random.default_rng(1)
    patients = [f'p{i}' for i in rng.integers(0, 40, 120)]
    p = rng.integers(0, 10, 120) / 10
    y = (rng.random(120) < p).astype(float)
    weights = Resamples(patients, resamples=30, seed=0).weights(patients)
    scores = label_scores(p, y, threshold=0.3, weights=weights)
    rng = np.random.Generator(np.random.Philox(0))
    names = sorted(set(patients))
    for r in range(30):
        drawn = rng.integers(len(names), size=len(names))
        rows = [i for d in drawn for i, name in enumerate(patients) if name == names[d]]
        assert scores['auroc'][r] == pytest.approx(roc_auc_score(y[rows], p[rows]), abs=1e-9)
        precision = average_precision_score(y[rows], p[rows])
        assert scores['average_precision'][r] == pytest.approx(precision, abs=1e-9)
        assert scores['recall'][r] == pytest.approx(recall_score(y[rows], p[rows] >= 0.3), abs=1e-9)
        alone = label_scores(p[rows], y[rows], threshold=0.3)
        for name in METRICS:
            assert scores[name][r] == pytest.approx(alone[name][0], abs=1e-9), name


def test_an_interval_holds_the_middle_95_percent_of_what_is_defined():
    values = np.arange(1001.0)
    assert interval(np.random.default_rng(0).permutation(values)) == pytest.approx((25, 975))
    values[951:] = np.nan  # 5 % of 1001, rounded down
    assert interval(values) == pytest.approx((950 * 0.025, 950 * 0.975))
    values[950] = np.nan
    assert np.isnan(interval(values)).all()
    assert np.isnan(interval(np.array([]))).all()


@pytest.mark.slow
@pytest.mark.parametrize(('images_each', 'shared'), [(1, 0), (3, 0.7)])
def test_intervals_cover_the_true_value_19_times_in_20(images_each, shared):
    rng = np.random.default_rng(2024)
    true = {
        'auroc': norm.cdf(SEPARATION / np.sqrt(2)),
        'recall': norm.cdf(SEPARATION - CUT),
        'specificity': norm.cdf(CUT),
    }
    covered = dict.fromkeys(true, 0)
    for seed in range(500):
        p, y, patients = binormal(rng, 300, images_each, shared)
        weights = Resamples(patients, resamples=400, seed=seed).weights(patients)
        scores = label_scores(p, y, threshold=norm.cdf(CUT), weights=weights)
        for name, value in true.items():
            low, high = interval(scores[name])
            covered[name] += low <= value <= high
    for name, count in covered.items():
        assert 0.92 <= count / 500 <= 0.98, (name, count / 500)


def test_repeated_images_of_a_patient_do_not_narrow_the_interval():
    rng = np.random.default_rng(7)
    p, y, patients = binormal(rng, 300, 1, 0)
    # Six views of each patient, all but the same.
    views, targets = np.repeat(p, 6) + 1e-4 * rng.standard_normal(1800), np.repeat(y, 6)
    names = np.repeat(patients, 6)
    by_patient = Resamples(patients, resamples=1000, seed=0)
    by_image = Resamples([str(i) for i in range(1800)], resamples=1000, seed=0)

    def width(scores, name):
        low, high = interval(scores[name])
        return high - low

    single = label_scores(p, y, threshold=0.7, weights=by_patient.weights(patients))
    grouped = label_scores(views, targets, threshold=0.7, weights=by_patient.weights(names))
    images = by_image.weights([str(i) for i in range(1800)])
    naive = label_scores(views, targets, threshold=0.7, weights=images)
    for name in ('auroc', 'average_precision', 'recall', 'accuracy'):
        # The views add nothing, so the width is that of one view; images alone: 1 / sqrt(6) of it.
        assert width(grouped, name) == pytest.approx(width(single, name), rel=0.02), name
        assert width(naive, name) == pytest.approx(width(single, name) / 6**0.5, rel=0.15), name

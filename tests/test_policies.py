"""Policies with a value of its own for each image: smooth targets, predictions; all together."""

import numpy as np
import pytest
from scipy import stats

from data.labels import LABELS, POLICIES, training_targets

NAN = np.nan
K = len(LABELS)


def smooth(policy: str, rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """[N, K] targets of images that are uncertain in every label."""
    labels = np.full((len(rows), K), -1, np.float32)
    return training_targets(
        labels, uncertain=policy, by_label={}, blank='ignore', rows=rows, seed=seed
    )


def test_policies_of_a_mixed_table_label_by_label() -> None:
    """Against a loop over the entries, each policy in one label at least."""
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([1, 0, -1, NAN], np.float32), (60, K))
    predictions = rng.random((60, K)).astype(np.float32)
    rows = rng.permutation(1000)[:60]
    by_label = dict(zip(LABELS[1:], [*POLICIES, *POLICIES], strict=False))
    targets = training_targets(
        labels,
        uncertain='zeros',
        by_label=by_label,
        blank='ignore',
        rows=rows,
        seed=3,
        predictions=predictions,
    )
    fixed = {'zeros': 0, 'ones': 1, 'ignore': NAN, 'multiclass': 2}
    for i, k in np.ndindex(labels.shape):
        policy = by_label.get(LABELS[k], 'zeros')
        if labels[i, k] in (0, 1):
            expected = labels[i, k]
        elif np.isnan(labels[i, k]):
            expected = NAN if k else 0
        elif policy == 'self_train':
            expected = predictions[i, k]
        elif policy in fixed:
            expected = fixed[policy]
        else:
            expected = smooth(policy, rows[[i]], seed=3)[0, k]
        np.testing.assert_array_equal(targets[i, k], np.float32(expected))


@pytest.mark.parametrize(
    'policy, low, high', [('zeros_smooth', 0, 0.3), ('ones_smooth', 0.55, 0.85)]
)
def test_smooth_targets_are_uniform_over_their_range(policy: str, low: float, high: float) -> None:
    targets = smooth(policy, np.arange(20_000))
    assert targets.dtype == np.float32 and len(np.unique(targets)) > 0.95 * targets.size
    for k in range(K):
        fit = stats.kstest(targets[:, k], 'uniform', (low, high - low))
        assert fit.pvalue > 1e-3, LABELS[k]
        # Standard error of the mean: 0.3 / sqrt(12 * 20,000) = 0.0006.
        assert abs(targets[:, k].mean() - (low + high) / 2) < 0.0025
    assert targets.min() >= np.float32(low) and targets.max() <= np.float32(high)
    # Labels are drawn apart: 1 / sqrt(20,000) = 0.007.
    correlations = np.corrcoef(targets.T)[np.triu_indices(K, 1)]
    assert np.abs(correlations).max() < 0.04


def test_smooth_target_is_a_function_of_seed_row_and_label_alone() -> None:
    rng = np.random.default_rng(1)
    everything = smooth('ones_smooth', np.arange(500))
    for rows in (rng.permutation(500), rng.permutation(500)[:7], np.array([499]), np.array([0])):
        np.testing.assert_array_equal(smooth('ones_smooth', rows), everything[rows])
    # Which other entries are uncertain plays no part.
    labels = rng.choice(np.array([1, 0, -1, NAN], np.float32), (500, K))
    targets = training_targets(
        labels, uncertain='ones_smooth', by_label={}, blank='negative', rows=np.arange(500)
    )
    np.testing.assert_array_equal(targets[labels == -1], everything[labels == -1])
    assert (targets[labels != -1] == np.nan_to_num(labels[labels != -1])).all()
    other_seed = smooth('ones_smooth', np.arange(500), seed=1)
    assert (other_seed != everything).all()
    assert (everything[:, 1:] != everything[:, :1]).all()


def test_smooth_target_is_this_number_of_philox() -> None:
    """Pinned by NumPy's own generator, so that a rerun years later draws the same."""
    for seed, row, k in ((0, 0, 0), (5, 17, 3), (7, 223_413, 13)):
        bits = np.random.Philox(key=[seed, k], counter=[0, 0, 3, 0])
        drawn = np.random.Generator(bits).random(row + 1)[row]
        for policy, low, width in (('zeros_smooth', 0, 0.3), ('ones_smooth', 0.55, 0.3)):
            target = smooth(policy, np.array([row]), seed)[0, k]
            assert target == pytest.approx(low + width * drawn, abs=1e-7)


@pytest.mark.parametrize('policy', ['zeros_smooth', 'ones_smooth', 'self_train'])
def test_policy_with_a_value_for_each_image_needs_rows(policy: str) -> None:
    labels = np.zeros((4, K), np.float32)
    with pytest.raises(ValueError, match=f'^Edema: the policy {policy!r} needs the rows'):
        training_targets(
            labels,
            uncertain='ones',
            by_label={'Edema': policy},
            blank='negative',
            predictions=np.full(labels.shape, 0.5),
        )


def test_self_train_reads_predictions_only_where_uncertain() -> None:
    labels = np.zeros((3, K), np.float32)
    labels[:, 1], labels[:, 2] = [-1, 0, 1], [NAN, -1, -1]
    predictions = np.full((3, K), NAN)
    predictions[0, 1], predictions[1, 2], predictions[2, 2] = 0, 0.25, 1
    options = {'uncertain': 'self_train', 'by_label': {}, 'blank': 'negative'}
    targets = training_targets(labels, rows=np.arange(3), predictions=predictions, **options)
    assert targets[:, 1].tolist() == [0, 0, 1] and targets[:, 2].tolist() == [0, 0.25, 1]


@pytest.mark.parametrize('value', [NAN, -0.001, 1.001, np.inf])
def test_self_train_refuses_what_is_no_probability(value: float) -> None:
    labels = np.zeros((3, K), np.float32)
    labels[1:, 1] = -1
    predictions = np.full((3, K), 0.5)
    predictions[2, 1] = value
    options = {'uncertain': 'self_train', 'by_label': {}, 'blank': 'negative'}
    with pytest.raises(ValueError) as error:
        training_targets(labels, rows=np.array([4, 40, 7]), predictions=predictions, **options)
    assert str(error.value) == (
        'DATA.SELF_TRAIN_PREDICTIONS: for Enlarged Cardiomediastinum, uncertain in row 9 of the '
        "training CSV (the header is row 1), 'self_train' needs a prediction from 0 to 1, "
        f'got {value}'
    )
    with pytest.raises(ValueError, match="'self_train' needs DATA.SELF_TRAIN_PREDICTIONS"):
        training_targets(labels, rows=np.arange(3), **options)

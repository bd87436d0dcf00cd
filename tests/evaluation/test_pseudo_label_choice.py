"""Pseudo-labels: choice of confident predictions, and the share that real labels confirm."""

from fractions import Fraction

import numpy as np
import pytest

from evaluation.pseudo_label_choice import MIN_CASES, MIN_EXPECTED, audit, choose_values

NAN = np.nan


def is_seldom_wrong(cases: list[bool], wrong: list[bool], confidence: str) -> bool:
    """Check number and error rate of these cases with exact fractions."""
    base = Fraction(sum(wrong), len(wrong))
    expected, limit = len(cases) * base, (1 - Fraction(confidence)) * base
    is_enough = len(cases) >= MIN_CASES and expected >= Fraction(MIN_EXPECTED)
    return is_enough and Fraction(sum(cases), len(cases)) <= limit


def brute_force(
    p: list[float], y: list[float], q: list[float], side: int, confidence: str
) -> list[bool]:
    """Find the probabilities q that get the value `side` by trying all thresholds."""
    known = [(a, b != side) for a, b in zip(p, y, strict=True) if not np.isnan([a, b]).any()]
    wrong = [b for _, b in known]

    def beyond(a: float, t: float) -> bool:
        return a >= t if side == 1 else a <= t

    good = []
    for t in {a for a, _ in known}:
        cases = [b for a, b in known if beyond(a, t)]
        if is_seldom_wrong(cases, wrong, confidence):
            good.append(t)
    threshold = (min if side == 1 else max)(good, default=None)
    return [threshold is not None and beyond(a, threshold) for a in q]


@pytest.mark.parametrize('confidence', ['0.1', '0.8'])
def test_values_equal_those_of_a_search_over_all_thresholds(confidence: str) -> None:
    rng = np.random.default_rng(7)
    rates = np.array([0.05, 0.3, 0.5, 0.9])
    targets = (rng.random((160, 4)) < rates).astype(float)
    held_out = 1 / (1 + np.exp(-rng.normal(4 * targets - 2, 1)))
    held_out[:, 2] = rng.random(160)  # no better than chance
    held_out = np.round(held_out, 2)  # with ties
    targets[rng.random(targets.shape) < 0.1] = NAN
    held_out[rng.random(targets.shape) < 0.1] = NAN  # without a prediction
    unlabelled = np.round(rng.random((100, 4)), 2)
    unlabelled[rng.random(unlabelled.shape) < 0.05] = NAN
    values, cuts = choose_values(held_out, targets, unlabelled, confidence=float(confidence))
    assert values.dtype == np.float32
    for k in range(4):
        columns = held_out[:, k].tolist(), targets[:, k].tolist(), unlabelled[:, k].tolist()
        ones, zeros = (brute_force(*columns, side, confidence) for side in (1, 0))
        expected = [
            NAN if one == zero else float(one) for one, zero in zip(ones, zeros, strict=True)
        ]
        np.testing.assert_array_equal(values[:, k], expected, err_msg=f'label {k}')
        for cut, side in zip(cuts[k], (1, 0), strict=True):
            if not np.isnan(cut.threshold):
                p, y = held_out[:, k], targets[:, k]
                beyond = (p >= cut.threshold) if side else (p <= cut.threshold)
                assert cut.cases == (beyond & ~np.isnan(y)).sum()
                assert cut.errors == (beyond & (y == 1 - side)).sum()
    found = ~np.isnan(values).all(axis=0)
    assert found.sum() >= 2
    assert confidence == '0.1' or not found[2]


@pytest.mark.parametrize(('clean', 'kept'), [(249, 0), (250, 250)])
def test_a_rare_label_needs_many_cases_for_negative_values(clean: int, kept: int) -> None:
    """With 2 % positives, 250 cases contain 5 errors by chance. The model makes none."""
    held_out = np.arange(1000)[:, None] / 1000
    targets = np.zeros((1000, 1))
    targets[clean : clean + 20] = 1
    values, [(_, negative)] = choose_values(held_out, targets, held_out, confidence=0.99)
    assert (values == 0).sum() == kept == negative.cases
    # Predicting all cases negative has an NPV of 98 %, so this is no confidence.
    shuffled = np.random.default_rng(0).permutation(targets)
    values, _ = choose_values(held_out, shuffled, held_out, confidence=0.9)
    assert np.isnan(values).all()


@pytest.mark.parametrize('value', [0.0, 1.0, NAN])
def test_one_class_alone_gives_no_labels(value: float) -> None:
    held_out = np.random.default_rng(0).random((100, 1))
    targets = np.full((100, 1), value)
    values, _ = choose_values(held_out, targets, held_out, confidence=0.5)
    assert np.isnan(values).all()


def test_confirmed_pseudo_labels_are_counted_one_by_one() -> None:
    values = np.array([[1, 1, 0], [1, 0, NAN], [0, NAN, 0], [1, 1, 0]], float)
    real = np.array([[1, 0, 0], [0, 0, 1], [0, 1, NAN], [NAN, 1, 1]], float)
    assert audit(values, real) == {
        'positive_values': 5,
        'positive_confirmed': 2 / 4,  # one of two is correct in each of the first two columns
        'positive_by_chance': pytest.approx((2 * 1 / 3 + 2 * 2 / 4) / 4),
        'negative_values': 5,
        'negative_confirmed': 3 / 4,
        'negative_by_chance': pytest.approx((2 / 3 + 2 / 4 + 2 * 1 / 3) / 4),
    }
    nothing = audit(np.full((3, 1), NAN), np.ones((3, 1)))
    assert nothing['positive_values'] == 0 and np.isnan(nothing['positive_confirmed'])

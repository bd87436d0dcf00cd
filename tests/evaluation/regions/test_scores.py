"""Scores of a map against an independent implementation, pixel by pixel, and other libraries."""

import math

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from evaluation.regions.analysis import as_grid
from evaluation.regions.regions import Size
from evaluation.regions.scores import (
    THRESHOLDS,
    PlacedMap,
    PositionPrior,
    View,
    centre_map,
    iou_of_others,
    otsu,
    random_map,
    score_map,
)


def brute_force(values: np.ndarray, region: np.ndarray, threshold: float) -> tuple[float, float]:
    """Return whether the highest pixel is a hit, and the IoU at a threshold, by loops."""
    highest, hits, count, both, either = -math.inf, 0, 0, 0, 0
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            value, is_inside = float(values[row, column]), bool(region[row, column])
            if value > highest:
                highest, hits, count = value, 0, 0
            if value == highest:
                count += 1
                hits += is_inside
            both += value >= threshold and is_inside
            either += value >= threshold or is_inside
    if float(values.min()) == highest:  # the map has no highest point and marks nothing
        return 0.0, 0.0
    return hits / count, both / either


def random_cases(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return maps and regions: smooth ones, ones with ties, and constant ones."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        size = Size(*rng.integers(5, 40, 2).tolist())
        cells = rng.random(rng.integers(2, 9, 2))
        if number % 4 == 1:
            cells = np.round(cells * 3)  # several highest pixels
        if number % 20 == 2:
            cells[:] = 0.3
        if number % 4 == 3:
            cells = rng.random(size)
        region = np.zeros(size, bool)
        top, left = rng.integers(0, size.height), rng.integers(0, size.width)
        region[top : top + rng.integers(1, 20), left : left + rng.integers(1, 20)] = True
        found.append((PlacedMap(cells).at(size), region))
    return found


def test_hit_and_iou_equal_an_independent_implementation_on_200_maps() -> None:
    constant = ties = 0
    for values, region in random_cases(200):
        found = score_map(values, region)
        marks_from = (
            (math.floor(threshold_otsu(values, 256) * 256) + 1) / 256 if values.any() else 1
        )
        hit, iou = brute_force(values, region, marks_from)
        assert (found.hit, found.iou) == (pytest.approx(hit), pytest.approx(iou))
        for place in (0, 15, 30):
            _, iou = brute_force(values, region, THRESHOLDS[place])
            assert found.ious[place] == pytest.approx(iou)
        constant += not found.has_signal
        ties += 0 < found.hit < 1
    assert constant == 10 and ties > 5


def test_average_precision_and_mass_equal_scikit_learn_and_a_sum() -> None:
    for values, region in random_cases(60):
        found = score_map(values, region)
        exact = average_precision_score(region.ravel(), values.ravel())
        assert found.average_precision == pytest.approx(exact, abs=1e-9)
        if found.has_signal:
            assert found.mass == pytest.approx((values * region).sum() / values.sum(), rel=1e-5)


def test_average_precision_of_a_map_with_a_long_tail_equals_scikit_learn() -> None:
    """Nearly all values are far below the highest one, and some of them are equal."""
    rng = np.random.default_rng(0)
    region = np.zeros((48, 56), bool)
    region[10:30, 8:40] = True
    for digits in (1, 9):
        grades = (rng.normal(size=region.shape) + region).round(digits)
        values = np.exp(10 * (grades - grades.max()))
        expected = average_precision_score(region.ravel(), values.ravel())
        assert score_map(values, region).average_precision == pytest.approx(expected, abs=1e-9)


def test_otsu_has_the_largest_variance_between_both_classes() -> None:
    """Against all thresholds, with the definition of the variance between two classes."""
    rng = np.random.default_rng(3)
    for _ in range(10):
        values = np.concatenate([rng.normal(0.3, 0.1, 500), rng.normal(0.7, 0.1, 200)]).clip(
            0, 0.99
        )
        bins = np.floor(values * 256)
        variances = []
        for end in range(1, 256):
            low, high = bins[bins < end], bins[bins >= end]
            both = len(low) * len(high)
            variances.append(both * (low.mean() - high.mean()) ** 2 if both else 0)
        counts = np.bincount((values * 2**16).astype(int), minlength=2**16)
        assert otsu(counts) == (np.argmax(variances) + 1) / 256


@pytest.mark.parametrize('size', [(31, 57), (224, 224), (5, 3)])
def test_a_map_is_enlarged_as_pytorch_does(size: tuple[int, int]) -> None:
    cells = np.random.default_rng(1).random((7, 9)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(cells)[None, None], size, mode='bilinear')[
        0, 0
    ].numpy()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(PlacedMap(cells).at(Size(*size)), expected, atol=2e-6)


def test_a_map_of_the_size_of_the_image_does_not_change() -> None:
    cells = np.random.default_rng(1).integers(0, 5, (37, 53)) / 4
    np.testing.assert_array_equal(PlacedMap(cells).at(Size(37, 53)), cells)


@pytest.mark.parametrize('view', [View(), View(0.25, 0.5, 0.5, 0.5)])
def test_neither_the_unit_nor_the_offset_of_a_map_changes_it(view: View) -> None:
    """As with gradients of 1e-60, logits above 1e8, and values near the end of the range."""
    cells = np.random.default_rng(1).integers(-4096, 4097, (9, 7)) / 1024
    cells[0, :2] = -4, 4
    expected = PlacedMap(cells, view).at(Size(40, 40))
    changed = [cells * 1e-60, cells + 1e8, cells * 1e38, cells * 4e307, cells * 2.0**-1060]
    for other in changed:
        found = PlacedMap(other, view).at(Size(40, 40))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_outside_its_view_a_map_has_its_lowest_value() -> None:
    cells = np.array([[2.0, 4.0], [3.0, 2.0]])
    found = PlacedMap(cells, View(0.25, 0.5, 0.5, 0.5)).at(Size(40, 40))
    assert found[:10].max() == found[30:].max() == found[:, :20].max() == 0
    inside = F.interpolate(torch.from_numpy(cells)[None, None], (20, 20), mode='bilinear')[0, 0]
    np.testing.assert_allclose(found[10:30, 20:], (inside.numpy() - 2) / 2, atol=1e-6)


def test_a_map_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match='NaN or infinite'):
        PlacedMap(np.array([[1.0, np.nan]])).at(Size(4, 4))


def test_the_threshold_is_chosen_on_other_patients() -> None:
    """Brute force: for each fold, the best mean over the cases of the other folds."""
    from data.tables.folds import folds_of

    rng = np.random.default_rng(5)
    patients = np.array([f'patient{n:05d}' for n in rng.integers(0, 12, 40)], object)
    ious = rng.random((40, len(THRESHOLDS)))
    found, fold = iou_of_others(ious, patients), folds_of(patients, 5)
    for case in range(40):
        means = [ious[fold != fold[case], t].mean() for t in range(len(THRESHOLDS))]
        assert found[case] == ious[case, int(np.argmax(means))]
    assert np.isnan(iou_of_others(ious[:1], patients[:1])).all()


def test_the_prior_leaves_the_patient_out() -> None:
    masks = np.zeros((4, 64, 64), bool)
    for number, place in enumerate([(3, 3), (3, 3), (20, 40), (50, 50)]):
        masks[number][place] = True
    grids = np.stack([as_grid(mask) for mask in masks])
    prior = PositionPrior(['A', 'A', 'A', 'B'], ['p1', 'p1', 'p2', 'p1'], grids)
    values = prior.of('A', 'p1').at(Size(64, 64))
    assert (values > 0).sum() == 1 and values[20, 40] == 1
    values = prior.of('A', 'p3').at(Size(64, 64))
    assert values[3, 3] == 1 and values[20, 40] == 0.5
    assert not prior.of('B', 'p1').at(Size(64, 64)).any(), 'there is no other patient'


@pytest.mark.parametrize('size', [(390, 320), (37, 150), (64, 128)])
def test_the_prior_has_the_share_of_each_cell_that_a_mask_covers(size: tuple[int, int]) -> None:
    """Each pixel is divided into 64 x 64 parts, which lie in one cell of 64 x 64 each."""
    mask = np.zeros(size, bool)
    mask[size[0] // 4 : size[0] // 2, size[1] // 10 : size[1] // 3] = True
    mask[-3:, -5:] = True
    parts = mask.astype(np.uint8).repeat(64, axis=0).repeat(64, axis=1)
    expected = parts.reshape(64, size[0], 64, size[1]).mean(axis=(1, 3))
    np.testing.assert_allclose(as_grid(mask) / 2**16, expected, rtol=0, atol=2.0**-17 + 1e-9)


def test_maps_without_a_model() -> None:
    values = centre_map().at(Size(65, 33))
    assert np.unravel_index(values.argmax(), values.shape) == (32, 16)
    one, same, other = (random_map('a.png', label, 0).cells for label in ('A', 'A', 'B'))
    assert np.array_equal(one, same) and not np.array_equal(one, other)

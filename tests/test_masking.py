"""Mask generators: counts, where the hidden units lie, and what the draws depend on."""

import math

import numpy as np
import pytest
from scipy.stats import chisquare

from data.masking import MASKS, MaskGenerator, average_distance

SIZES = [(192, 32, 4), (224, 32, 16), (96, 16, 4), (64, 4, 4), (96, 32, 32), (512, 32, 32)]
RATIOS = [0.05, 0.25, 0.4, 0.5, 0.55, 0.6, 0.75, 0.88]


def units(generator: MaskGenerator, count: int, seed: int = 0) -> np.ndarray:
    """[count, n, n] masks with one entry per unit."""
    rng = np.random.default_rng(seed)
    masks = np.stack([generator(rng) for _ in range(count)]).astype(bool)
    return masks[:, :: generator.scale, :: generator.scale]


@pytest.mark.parametrize('mask_type', MASKS)
@pytest.mark.parametrize('size, unit, patch', SIZES)
@pytest.mark.parametrize('ratio', RATIOS)
def test_hides_exactly_the_rounded_up_share_in_whole_units(mask_type, size, unit, patch, ratio):
    generator = MaskGenerator(size, unit, patch, ratio, mask_type)
    scale = unit // patch
    hidden = math.ceil((size // unit) ** 2 * ratio)
    rng = np.random.default_rng(3)
    for _ in range(5):
        mask = generator(rng)
        assert mask.shape == (size // patch, size // patch)
        assert mask.dtype == np.int64
        assert set(np.unique(mask)) == {0, 1}
        assert mask.sum() == hidden * scale**2
        blocks = mask.reshape(size // unit, scale, size // unit, scale)
        assert np.array_equal(blocks.min(axis=(1, 3)), blocks.max(axis=(1, 3)))


def test_rounding_up_is_that_of_double_precision():
    # 100 * 0.55 is 55.00000000000001
    assert MaskGenerator(320, 32, 32, 0.55)().sum() == 56


def test_first_mask_after_seed_0_is_simmims():
    np.random.seed(0)
    rows = '001001 011011 011111 001010 001111 111101'.split()
    assert [''.join(map(str, row)) for row in MaskGenerator(192, 32, 32, 0.6)()] == rows


@pytest.mark.parametrize('mask_type', MASKS)
def test_draws_depend_on_the_given_source_alone(mask_type):
    generator = MaskGenerator(192, 16, 4, 0.6, mask_type)
    np.random.seed(1)
    first = generator(np.random.default_rng(5))
    np.random.seed(2)
    before = np.random.get_state()[1].copy()
    assert np.array_equal(generator(np.random.default_rng(5)), first)
    assert np.array_equal(np.random.get_state()[1], before)
    assert not np.array_equal(generator(np.random.default_rng(6)), first)


@pytest.mark.parametrize('mask_type', MASKS)
def test_global_state_and_random_state_give_the_same_masks(mask_type):
    generator = MaskGenerator(192, 16, 4, 0.6, mask_type)
    np.random.seed(11)
    legacy = [generator() for _ in range(3)]
    source = np.random.RandomState(11)
    assert np.array_equal(legacy, [generator(source) for _ in range(3)])
    assert not np.array_equal(legacy[0], legacy[1])


def test_random_hides_every_unit_equally_often():
    hidden = units(MaskGenerator(192, 32, 4, 0.6), 4000).reshape(4000, 36).sum(axis=0)
    # Counts of a draw without replacement: variance smaller than chi-square's by (n - k) / (n - 1).
    statistic = ((hidden - 4000 * 22 / 36) ** 2).sum() / (4000 * 22 / 36 * 14 / 35)
    assert 15 < statistic < 70  # chi-square with 35 degrees: 99.9 % lies between


def test_random_hides_pairs_independently_of_their_distance():
    masks = units(MaskGenerator(192, 32, 4, 0.6), 4000)
    wanted = 22 * 21 / (36 * 35)
    assert abs((masks[:, :, 1:] & masks[:, :, :-1]).mean() - wanted) < 0.005
    assert abs((masks[:, 0, 0] & masks[:, 5, 5]).mean() - wanted) < 0.04


@pytest.mark.parametrize('size, unit, ratio', [(192, 32, 0.6), (192, 16, 0.3), (224, 32, 0.5)])
def test_square_is_compact_and_its_corner_is_uniform(size, unit, ratio):
    generator = MaskGenerator(size, unit, unit, ratio, 'square')
    n = size // unit
    count = math.ceil(n**2 * ratio)
    side = math.ceil(math.sqrt(count))
    places = np.zeros((n - side + 1, n - side + 1))
    for mask in units(generator, 3000):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, left = rows[0], columns[0]
        square = mask[top : top + side, left : left + side]
        assert square.sum() == count  # nothing outside
        assert square[:-1, :-1].all()  # visible units only in the last row and column
        visible_row, visible_column = (~square[-1, :-1]).sum(), (~square[:-1, -1]).sum()
        assert 0 <= visible_column - visible_row <= 1  # both are cut, from their common corner
        places[top, left] += 1
    assert chisquare(places.ravel()).pvalue > 0.001


def _alike_neighbours(masks: np.ndarray) -> float:
    """Share of neighbouring units that are both hidden or both visible."""
    across = (masks[:, :, 1:] == masks[:, :, :-1]).mean()
    return (across + (masks[:, 1:] == masks[:, :-1]).mean()) / 2


@pytest.mark.parametrize('unit', [32, 16, 8])
def test_block_hides_coherent_regions(unit):
    block = _alike_neighbours(units(MaskGenerator(192, unit, unit, 0.6, 'block'), 300))
    random = _alike_neighbours(units(MaskGenerator(192, unit, unit, 0.6), 300))
    assert abs(random - 0.52) < 0.03  # 0.6^2 + 0.4^2
    assert block > 0.75


def test_block_favours_no_side():
    share = units(MaskGenerator(224, 16, 16, 0.4, 'block'), 4000).mean(axis=0)
    error = 4 * np.sqrt(0.25 / 4000)
    for turned in (share[::-1], share[:, ::-1]):
        assert np.abs(share - turned).max() < np.sqrt(2) * error
    assert abs(share[:7].mean() - share[7:].mean()) < 0.02
    assert share.min() > 0.02  # corners are reached, too


@pytest.mark.parametrize(
    'end, wanted', [(0.9, [[1, 1], [1, 0]]), (0.1, [[0, 1], [1, 1]])], ids=['bottom', 'top']
)
def test_last_block_is_cut_at_either_end(end, wanted):
    class Scripted:
        def random(self, size: int) -> np.ndarray:
            return np.array([1.0, 0.5, 0.0, 0.0, end])  # area 3, aspect 1: 2 x 2 in the corner

    mask = MaskGenerator(64, 16, 16, 3 / 16, 'block')(Scripted())
    assert mask.sum() == 3
    assert mask[:2, :2].tolist() == wanted


def test_block_draws_rectangles_of_beits_area_and_aspect():
    # BEiT's smallest block, 16 of 196 units, is all that is hidden: mostly one rectangle.
    masks = units(MaskGenerator(224, 16, 16, 16 / 196, 'block'), 1000)
    heights, widths = masks.any(axis=2).sum(axis=1), masks.any(axis=1).sum(axis=1)
    single = heights * widths < 16 + np.maximum(heights, widths)  # its box, but for the cut
    assert single.mean() > 0.6
    heights, widths = heights[single], widths[single]
    sides = range(2, 9)  # sqrt(16 * 0.3) to sqrt(16 / 0.3); two touching blocks may reach further
    for side in (heights, widths):
        assert set(sides) <= set(side)
        assert np.isin(side, sides).mean() > 0.97
    assert abs(np.log(heights / widths).mean()) < 0.1


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((192, 36, 4, 0.6), r'divide the image: DATA.IMG_SIZE 192, DATA.MASK_PATCH_SIZE 36'),
        (
            (192, 32, 5, 0.6),
            r'DATA.MASK_PATCH_SIZE must be a multiple of the model patch 5, got 32',
        ),
        ((192, 32, 4, 0.0), r'DATA.MASK_RATIO 0.0 hides 0 of 36'),
        ((192, 32, 4, 1.0), r'DATA.MASK_RATIO 1.0 hides 36 of 36'),
        ((192, 32, 4, 0.99), r'hides 36 of 36'),
        ((32, 32, 4, 0.6), r'hides 1 of 1'),
        ((192, 32, 4, 0.6, 'spiral'), r"DATA.MASK_TYPE must be one of .*'square'.* got 'spiral'"),
    ],
)
def test_impossible_masks_are_refused_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskGenerator(*arguments)


@pytest.mark.parametrize('patch', [1, 4])
@pytest.mark.parametrize('mask_type', MASKS)
def test_average_distance_equals_brute_force(mask_type, patch):
    generator = MaskGenerator(8 * patch, 2 * patch, patch, 0.5, mask_type)
    rng = np.random.default_rng(4)
    masks = np.stack([generator(rng) for _ in range(3)])
    masks[0, :, 0] = 1  # the masks differ in how much is hidden
    distances = []
    for mask in masks:
        hidden = np.kron(mask, np.ones((patch, patch)))
        visible = np.argwhere(hidden == 0)
        for pixel in np.argwhere(hidden == 1):
            distances.append(np.sqrt(((visible - pixel) ** 2).sum(axis=1)).min())
    assert average_distance(masks, patch) == pytest.approx(np.mean(distances), rel=1e-12)


def test_average_distance_of_one_token():
    mask = np.zeros((1, 3, 3), dtype=np.int64)
    mask[0, 1, 1] = 1
    assert average_distance(mask, 1) == 1
    assert average_distance(mask, 3) == pytest.approx((8 * 1 + 2) / 9)


@pytest.mark.parametrize('hidden', [[0, 0], [1, 0], [1, 1]])
def test_average_distance_needs_hidden_and_visible_pixels_in_every_mask(hidden):
    masks = np.zeros((2, 4, 4), dtype=np.int64) + np.array(hidden)[:, None, None]
    with pytest.raises(ValueError, match='hide at least one pixel, and each leave one visible'):
        average_distance(masks, 4)


def test_larger_units_hide_pixels_further_from_visible_ones():
    def distance(unit: int) -> float:
        return average_distance(units(MaskGenerator(192, unit, unit, 0.6), 20), unit)

    assert distance(8) < distance(16) < distance(32) < distance(64)


def test_units_of_reference_masks_are_32_px_or_an_eighth_of_a_small_side():
    from data.data_simmim import reference_mask_patch

    units = {size: reference_mask_patch(size) for size in (32, 64, 96, 128, 192, 224)}
    assert units == {32: 4, 64: 8, 96: 12, 128: 32, 192: 32, 224: 32}

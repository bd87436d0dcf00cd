"""Mask generators: counts, places and draws of the hidden units, and the masks of SimMIM."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from golden_cases import case_id, cases, recorded
from scipy.ndimage import label
from scipy.stats import chisquare

from data.data_simmim import reference_mask_patch
from data.masking import MASKS, MaskGenerator, average_distance

SIZES = [(192, 32, 4, 0.6), (64, 4, 4, 0.05), (96, 32, 32, 0.88), (320, 32, 32, 0.55)]


def units(generator: MaskGenerator, count: int, seed: int = 0) -> np.ndarray:
    """[count, n, n] masks with one entry per unit."""
    rng = np.random.default_rng(seed)
    masks = np.stack([generator(rng) for _ in range(count)]).astype(bool)
    return masks[:, :: generator.scale, :: generator.scale]


@pytest.mark.parametrize('mask_type', MASKS)
@pytest.mark.parametrize('size, unit, patch, ratio', SIZES)
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


@pytest.mark.parametrize('mask_type', MASKS)
def test_draws_depend_on_the_given_source_alone(mask_type):
    generator = MaskGenerator(192, 16, 4, 0.6, mask_type)
    np.random.seed(1)
    first = generator(np.random.default_rng(5))
    np.random.seed(2)
    before = np.random.get_state()[1].copy()
    assert np.array_equal(generator(np.random.default_rng(5)), first)
    assert np.array_equal(np.random.get_state()[1], before)
    others = [generator(np.random.default_rng(seed)) for seed in range(6, 16)]
    assert not all(np.array_equal(other, first) for other in others)


@pytest.mark.parametrize('ratio', [0.25, 0.3])  # 0.25 of 12 x 12 units are a full square
def test_square_is_compact_and_its_corner_is_uniform(ratio):
    generator = MaskGenerator(192, 16, 16, ratio, 'square')
    n, count = 12, math.ceil(12**2 * ratio)
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


@pytest.mark.parametrize(
    'arguments, key',
    [
        ((192, 36, 4, 0.6), 'DATA.MASK_PATCH_SIZE'),
        ((192, 32, 4, 0.99), 'DATA.MASK_RATIO'),
        ((192, 32, 4, 0.6, 'spiral'), 'DATA.MASK_TYPE'),
    ],
)
def test_impossible_masks_are_refused(arguments, key):
    with pytest.raises(ValueError, match=key):
        MaskGenerator(*arguments)


def test_average_distance_equals_brute_force():
    patch = 4
    generator = MaskGenerator(8 * patch, 2 * patch, patch, 0.5, 'block')
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


def test_units_of_reference_masks_are_32_px_or_an_eighth_of_a_small_side():
    units = {size: reference_mask_patch(size) for size in (32, 64, 96, 128, 192, 224)}
    assert units == {32: 4, 64: 8, 96: 12, 128: 32, 192: 32, 224: 32}


def _masks(case: dict, *args: np.random.RandomState) -> np.ndarray:
    generator = MaskGenerator(**case['inputs']['generator'])
    return np.stack([generator(*args) for _ in range(case['inputs']['count'])])


@pytest.mark.parametrize('case', cases('masks'), ids=case_id)
def test_masks_are_as_recorded(case):
    inputs, (values, arrays) = case['inputs'], recorded(case)
    np.random.seed(inputs['seed'])
    got = _masks(case)
    assert got.dtype == np.int64
    assert got.shape[1:] == tuple(values['shape'])
    assert got.sum(axis=(1, 2)).tolist() == np.ravel(values['hidden']).tolist()
    assert (len(np.unique(got, axis=0)) > 1) == inputs['varied']
    scale = inputs['generator']['mask_patch_size'] // inputs['generator']['model_patch_size']
    units = got[:, ::scale, ::scale]
    assert np.array_equal(units.repeat(scale, axis=1).repeat(scale, axis=2), got)
    if inputs['mode'] == 'exact':
        assert np.array_equal(got, arrays['masks'])
        assert np.array_equal(_masks(case, np.random.RandomState(inputs['seed'])), got)


def test_no_block_is_smaller_than_beits_smallest():
    """16 of 14 x 14 units are one block, to which rounding may add a second."""
    masks = units(MaskGenerator(224, 16, 16, 16 / 196, 'block'), 200)
    regions = [label(mask)[1] for mask in masks]
    assert max(regions) <= 3 and np.mean(regions) < 1.7


@pytest.mark.parametrize(('drawn', 'shape'), [(0.0, (3, 10)), (1.0, (10, 3))])
def test_the_aspect_of_blocks_is_between_beits_limits(drawn, shape):
    """The largest block for 30 units: its height / width is 0.3 or 1 / 0.3 at the limits."""
    rng = SimpleNamespace(random=lambda number: np.array([1.0, drawn, 0.0, 0.0, 0.9]))
    rows, columns = np.divmod(MASKS['block'](rng, 14, 30, None), 14)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == shape and len(rows) == 30


@pytest.mark.parametrize(
    ('side', 'count', 'shape', 'end'),
    [
        (14, 14, (2, 7), 0.9),  # of 16 units, the smallest area, although fewer are missing
        (4, 3, (1, 3), 0.1),  # no block is taller than its area and aspect allow
    ],
)
def test_a_block_of_the_smallest_area_has_its_shape(side, count, shape, end):
    rng = SimpleNamespace(random=lambda number: np.array([1.0, 0.0, 0.0, 0.0, end]))
    rows, columns = np.divmod(np.sort(MASKS['block'](rng, side, count, None)), side)
    assert np.array_equal((rows, columns), np.indices(shape).reshape(2, -1))


@pytest.mark.parametrize(
    'hidden',
    [[], [0, 0, 1], np.arange(16) < 10, np.arange(10) - 1, np.arange(10) + 7, np.arange(10.0)],
)
def test_a_mask_of_another_number_of_units_is_refused(hidden, monkeypatch):
    """A function of one's own may return too few units, or the mask instead of its indices."""
    monkeypatch.setitem(MASKS, 'mine', lambda *_: np.asarray(hidden))
    with pytest.raises(ValueError, match=r"'mine' hides \d units instead of 10"):
        MaskGenerator(64, 16, 4, 0.6, 'mine')()

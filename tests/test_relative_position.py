"""Relative positions, windows and patch merging against published tables, loops and timm."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline

from models.relative_position import resize_table
from models.swin_transformer import (
    WindowAttention,
    shifted_window_mask,
    window_partition,
    window_reverse,
)
from models.vision_transformer import RelativePositionBias


def window_index(side: int) -> torch.Tensor:
    return WindowAttention(4, side, num_heads=1).relative_position_index


def grid_index(side: int) -> torch.Tensor:
    return RelativePositionBias(side, num_heads=1).relative_position_index


def nested_loop_index(side: int) -> np.ndarray:
    """Number the pairs (row difference, column difference) in ascending order."""
    span = range(-(side - 1), side)
    number = {pair: i for i, pair in enumerate((dr, dc) for dr in span for dc in span)}
    tokens = [(r, c) for r in range(side) for c in range(side)]
    return np.array([[number[r - s, c - d] for s, d in tokens] for r, c in tokens])


@pytest.mark.parametrize('side', [3])
def test_index_equals_nested_loops(side: int) -> None:
    want = nested_loop_index(side)
    assert np.array_equal(window_index(side), want)
    grid = grid_index(side).numpy()
    assert np.array_equal(grid[1:, 1:], want)
    rows = (2 * side - 1) ** 2 + 3
    assert set(grid[0, 1:]) == {rows - 3}
    assert set(grid[1:, 0]) == {rows - 2}
    assert grid[0, 0] == rows - 1


def ramp() -> torch.Tensor:
    return (torch.arange(121.0) / 121)[:, None]


def test_resized_ramp_has_the_specified_values() -> None:
    got = resize_table(ramp(), 169)
    assert got.shape == (169, 1)
    assert got.dtype == torch.float32
    values = got[:, 0].double().numpy()
    assert values[0] == pytest.approx(5.42318e-7, rel=1e-4)
    np.testing.assert_allclose(values[1:3], [5.75358e-3, 1.18741e-2], rtol=1e-5)
    assert values[84] == pytest.approx(0.49586776, abs=1e-7)
    assert values[168] == pytest.approx(0.99173498, abs=1e-7)


@pytest.mark.parametrize(
    'old, new, q',
    [(11, 13, 1.0912812996), (23, 27, 1.0328930473), (13, 11, 1.0100009346)],
)
def test_resized_table_equals_scipys_surface_head_by_head(old: int, new: int, q: float) -> None:
    table = torch.randn(old**2, 2, generator=torch.Generator().manual_seed(1))
    got = resize_table(table, new**2)
    steps = [sum(q**j for j in range(k + 1)) for k in range(old // 2)]
    x = np.array([-step for step in reversed(steps)] + [0.0] + steps)
    asked = np.clip(np.arange(new) - new // 2, x[0], x[-1])
    for head in range(2):
        z = table[:, head].view(old, old).double().numpy()
        want = RectBivariateSpline(x, x, z.T)(asked, asked).T
        np.testing.assert_allclose(got[:, head].view(new, new), want, rtol=0, atol=2e-6)


def test_class_token_rows_are_kept() -> None:
    extra = torch.tensor([[7.0], [8.0], [9.0]])
    got = resize_table(torch.cat([ramp(), extra]), 169 + 3)
    assert torch.equal(got[:-3], resize_table(ramp(), 169))
    assert torch.equal(got[-3:], extra)


def test_small_windows_repeat_their_edge() -> None:
    assert torch.equal(resize_table(torch.tensor([[2.5]]), 9), torch.full((9, 1), 2.5))
    assert torch.equal(resize_table(ramp(), 1), ramp()[60:61])  # the centre is selected
    grown = resize_table(torch.arange(9.0)[:, None], 25)[:, 0].view(5, 5)  # window 2 to 3
    want = np.pad(np.arange(9.0).reshape(3, 3), 1, mode='edge')
    np.testing.assert_allclose(grown, want, atol=1e-6)


def test_windows_are_squares_in_row_major_order_and_join_to_the_grid() -> None:
    grid = torch.arange(2 * 6 * 6).view(2, 6, 6, 1)
    windows = window_partition(grid, 3)
    assert windows.shape == (2 * 4, 9, 1)
    assert torch.equal(windows[5].view(3, 3), grid[1, :3, 3:, 0])
    assert torch.equal(window_reverse(windows, 3, 6), grid)


@pytest.mark.parametrize('side, window, shift', [(4, 2, 1), (6, 3, 1)])
def test_shift_mask_separates_tokens_that_were_not_neighbours_before_the_roll(
    side: int, window: int, shift: int
) -> None:
    mask = shifted_window_mask(side, window, shift)
    across = side // window
    assert mask.shape == (across**2, window**2, window**2)
    for number in range(across**2):
        tokens = []  # position of each token before the roll
        for i in range(window**2):
            row = number // across * window + i // window
            column = number % across * window + i % window
            tokens.append(((row + shift) % side, (column + shift) % side))
        for i, (r, c) in enumerate(tokens):
            for j, (s, d) in enumerate(tokens):
                near = abs(r - s) < window and abs(c - d) < window
                assert mask[number, i, j] == (0 if near else -100)

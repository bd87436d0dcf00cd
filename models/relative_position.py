"""Gather and resize tables of relative position biases."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch import nn

# The last rows of a ViT's table are for the class token as query, as key, and as both.
CLASS_TOKEN_ROWS = 3


def gather_bias(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Gather the bias of the logits, [heads, N, N], from a table [T, heads] and an index [N, N]."""
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).contiguous()


def gather_biases(attention: Sequence[nn.Module]) -> tuple[torch.Tensor, ...]:
    """Gather the biases [heads, N, N] of all attention modules in one operation."""
    tables = torch.cat([module.relative_position_bias_table for module in attention], dim=1)
    return gather_bias(tables, attention[0].relative_position_index).chunk(len(attention))


def resize_table(table: torch.Tensor, new_len: int) -> torch.Tensor:
    """Resize a bias table to another window or grid by cubic interpolation.

    As in SimMIM, the old positions are spaced geometrically so that the outermost one lies at the
    new edge. The spline is evaluated at whole positions, clamped to the old edge. A window of 2
    tokens has too few positions for a cubic spline, so a quadratic one is used. The rows of a class
    token do not change.

    Args:
        table: Bias table, [T, heads]. T is (2 side - 1)^2, plus 3 with a class token.
        new_len: New number of rows T.

    Raises:
        ValueError: If the old or new table does not belong to a square grid.
    """
    old_side, new_side = _side(len(table)), _side(new_len)
    if old_side == new_side:
        return table.clone()
    offsets, extra = table[: old_side**2], table[old_side**2 :]
    # One surface [side, side] of offsets per head.
    surfaces = offsets.T.reshape(-1, old_side, old_side).double().cpu().numpy()
    if old_side == 1:
        resized = np.tile(surfaces.reshape(-1), (new_side, new_side, 1))
    else:
        old = _old_positions(old_side // 2, new_side // 2)
        new = np.arange(new_side) - new_side // 2
        # A spline of degree k needs k + 1 positions.
        degree = min(3, old_side - 1)
        splines = [RectBivariateSpline(old, old, each, kx=degree, ky=degree) for each in surfaces]
        resized = np.stack([spline(new, new) for spline in splines], axis=-1)
    resized = torch.from_numpy(resized.reshape(new_side**2, -1))
    return torch.cat([resized.to(extra), extra])


def _side(length: int) -> int:
    """Return the side of the square of offsets in a table with this number of rows."""
    for extra in (0, CLASS_TOKEN_ROWS):
        side = math.isqrt(max(length - extra, 0))
        if side**2 == length - extra and side % 2:
            return side
    raise ValueError(f'a relative position table must belong to a square grid, got {length} rows')


def _old_positions(steps: int, new_steps: int) -> np.ndarray:
    """Return 0 and +-(1 + q + ... + q^k) for all k < steps, with the largest about new_steps.

    As in SimMIM, q is the last value that the bisection tried, not the final midpoint.
    """
    left, right = 1.01, 1.5
    while right - left > 1e-6:
        q = (left + right) / 2
        if (1 - q**steps) / (1 - q) > new_steps:
            right = q
        else:
            left = q
    outward = np.cumsum(q ** np.arange(steps))
    return np.concatenate([-outward[::-1], [0.0], outward])

"""Relative position bias of attention: gathering it from its table, and resizing of tables."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch import nn

# Last rows of a ViT's table: the class token as query, as key, and as both.
CLASS_TOKEN_ROWS = 3


def gather_bias(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the bias of the logits, [heads, N, N], from table [T, heads] and index [N, N]."""
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).contiguous()


def gather_biases(attention: Sequence[nn.Module]) -> tuple[torch.Tensor, ...]:
    """Return the bias [heads, N, N] of each attention module, gathered at once."""
    tables = torch.cat([module.relative_position_bias_table for module in attention], dim=1)
    return gather_bias(tables, attention[0].relative_position_index).chunk(len(attention))


def resize_table(table: torch.Tensor, new_len: int) -> torch.Tensor:
    """Resize a bias table [T, heads] for another window or grid with a cubic surface.

    As in SimMIM, the old positions are spread geometrically until the outermost lies at the new
    edge. They are evaluated at whole numbers, clamped to the old edge. A window of 2 tokens has too
    few positions for a cubic surface and uses a quadratic one. Rows of a class token do not change.

    Args:
        table: [T, heads], T = (2 side-1)^2, and 3 more with a class token.
        new_len: The new T.

    Raises:
        ValueError: If a table does not belong to a square grid.
    """
    old_side, new_side = _side(len(table)), _side(new_len)
    if old_side == new_side:
        return table.clone()
    offsets, extra = table[: old_side**2], table[old_side**2 :]
    surfaces = offsets.T.reshape(-1, old_side, old_side).double().cpu().numpy()
    resized = np.stack([_resize_surface(surface, new_side) for surface in surfaces], axis=-1)
    resized = torch.from_numpy(resized.reshape(new_side**2, -1))
    return torch.cat([resized.to(extra), extra])


def _side(length: int) -> int:
    """Side of the table's square of offsets."""
    for extra in (0, CLASS_TOKEN_ROWS):
        side = math.isqrt(max(length - extra, 0))
        if side**2 == length - extra and side % 2:
            return side
    raise ValueError(f'a relative position table must belong to a square grid, got {length} rows')


def _resize_surface(surface: np.ndarray, new_side: int) -> np.ndarray:
    """One head's [side, side] table of offsets at the new offsets, clamped to the old edge."""
    side = len(surface)
    if side == 1:
        return np.full((new_side, new_side), surface.item())
    old = _old_positions(side // 2, new_side // 2)
    new = np.arange(new_side) - new_side // 2
    degree = min(3, side - 1)
    return RectBivariateSpline(old, old, surface, kx=degree, ky=degree)(new, new)


def _old_positions(steps: int, new_steps: int) -> np.ndarray:
    """Return 0 and +-(1 + q + ... + q^k) for k < steps; the last is about new_steps.

    As in SimMIM, the bisection returns the last q that it tried, not the final middle.
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

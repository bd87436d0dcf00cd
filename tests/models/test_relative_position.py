"""Resized tables of relative positions. Their use: test_parity_models.py."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline

from models.relative_position import resize_table


def ramp() -> torch.Tensor:
    return (torch.arange(121.0) / 121)[:, None]


@pytest.mark.parametrize(
    'old, new, q', [(11, 13, 1.0912812996), (23, 27, 1.0328930473), (13, 11, 1.0100009346)]
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

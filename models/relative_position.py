"""The linear head of a classifier."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

# ==== models.relative_position: Relative position: index of a window's or grid's bias table, and tables for another size.

CLASS_TOKEN_ROWS = 3  # class token as query, as key, as both: the last rows of a ViT's table


def window_index(side: int) -> torch.Tensor:
    """Row of the bias table for every pair of tokens in a window.

    Query (r, c) and key (r', c') share row (r - r' + side-1) * (2 side-1) + (c - c' + side-1).

    Returns:
        [side^2, side^2] int64, query by key.
    """
    row, column = (axis.flatten() for axis in np.indices((side, side)))
    rows_apart = row[:, None] - row[None, :] + side - 1
    columns_apart = column[:, None] - column[None, :] + side - 1
    return torch.from_numpy(rows_apart * (2 * side - 1) + columns_apart)


def grid_index(side: int) -> torch.Tensor:
    """`window_index` of the whole grid, with the class token in front.

    Returns:
        [side^2 + 1, side^2 + 1] int64, query by key.
    """
    length = (2 * side - 1) ** 2 + CLASS_TOKEN_ROWS
    index = torch.full((side**2 + 1, side**2 + 1), length - 1)
    index[0, 1:] = length - 3
    index[1:, 0] = length - 2
    index[1:, 1:] = window_index(side)
    return index


def gather_bias(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Bias of the attention logits: table [T, heads] and index [N, N] give [heads, N, N]."""
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).contiguous()


def resize_table(table: torch.Tensor, new_len: int) -> torch.Tensor:
    """Bias table for another window or grid, by a cubic surface over geometric spacing.

    The old positions are stretched, the farther out the more, until the outermost lies at the new
    edge; the new ones are whole numbers, clamped to the old edge. A window of 2 tokens has too few
    positions for a cubic: a quadratic takes its place. Rows of a class token are kept as they are.

    Args:
        table: [T, heads], T = (2 side-1)^2, and 3 more with a class token.
        new_len: the new T.

    Returns:
        [new_len, heads], of the table's type and device.

    Raises:
        ValueError: if a length is that of no square grid, or only one has class-token rows.
    """
    (old_side, old_extra), (new_side, new_extra) = _layout(len(table)), _layout(new_len)
    if old_extra != new_extra:
        raise ValueError(
            f'a relative position table of {len(table)} rows cannot become one of {new_len}: '
            'only one of them has class-token rows'
        )
    if old_side == new_side:
        return table.clone()
    offsets, extra = table[: old_side**2], table[old_side**2 :]
    surfaces = offsets.T.reshape(-1, old_side, old_side).double().cpu().numpy()
    resized = np.stack([_resize_surface(surface, new_side) for surface in surfaces], axis=-1)
    resized = torch.from_numpy(resized.reshape(new_side**2, -1))
    return torch.cat([resized.to(extra), extra])


def _layout(length: int) -> tuple[int, int]:
    """Side of the table's square of offsets, and the number of rows after it."""
    for extra in (0, CLASS_TOKEN_ROWS):
        side = math.isqrt(max(length - extra, 0))
        if side**2 == length - extra and side % 2:
            return side, extra
    raise ValueError(
        f'a relative position table has (2 side-1)^2 rows, or 3 more with a class token; '
        f'got {length}: non-square grids are not supported'
    )


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
    """0 and +-(1 + q + ... + q^k) for k < steps, with q such that the last is about new_steps.

    The bisection gives the q last tried, not the final middle: SimMIM's resized tables have it so.
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


# ==== models.attention: How attention is computed: written out, or by PyTorch's fused kernels.


def resolve(attention: str, device: torch.device, *, in_windows: bool) -> str:
    """What MODEL.ATTENTION 'auto' means: 'sdpa' for a ViT's whole grid on a GPU, else 'eager'."""
    if attention != 'auto':
        return attention
    return 'sdpa' if device.type == 'cuda' and not in_windows else 'eager'


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    bias: torch.Tensor | None,
    scale: float,
    fused: bool,
) -> torch.Tensor:
    """softmax(scale * q k^T + bias) v.

    Args:
        q: queries, [B, heads, N, d], or [B, windows, heads, N, d].
        k: keys, of the same shape.
        v: values, of the same shape.
        bias: [heads, N, N], or [windows, heads, N, N]; None: none.
        scale: of the products.
        fused: whether PyTorch's scaled_dot_product_attention computes it.

    Returns:
        A tensor of the shape of q.
    """
    if fused:
        return _fused(q, k, v, bias, scale)
    logits = (q * scale) @ k.transpose(-2, -1)  # [..., heads, N, N]
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1) @ v


def _fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """The fused kernels take four dimensions: windows go with the heads where each has a bias."""
    shape = q.shape
    if bias is not None:
        bias = bias.to(q.dtype)
    if q.ndim == 5:
        first = 0 if bias is None or bias.ndim == 3 else 1
        q, k, v = (tensor.flatten(first, first + 1) for tensor in (q, k, v))
        bias = bias.flatten(0, 1) if first else bias
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return x.view(shape)


@contextmanager
def written_out(model: nn.Module) -> Iterator[None]:
    """While entered, all attention of the model is 'eager': its probabilities can be seen."""
    modules = [module for module in model.modules() if hasattr(module, 'attention')]
    before = [module.attention for module in modules]
    for module in modules:
        module.attention = 'eager'
    try:
        yield
    finally:
        for module, attention in zip(modules, before, strict=True):
            module.attention = attention


# ==== models.recompute: Blocks that are computed again in the backward pass, in place of keeping what they computed.

# TRAIN.CHECKPOINT_KEEPS: what is kept of a block beside its input.
KEEPS = {
    'nothing': [],
    'products': [torch.ops.aten.mm.default, torch.ops.aten.addmm.default],  # of linear layers
}


def run_block(
    block: nn.Module, x: torch.Tensor, bias: torch.Tensor | None, *, keeps: str | None
) -> torch.Tensor:
    """block(x, bias); with `keeps`, one of KEEPS, the rest is computed again for the gradient."""
    if keeps is None:
        return block(x, bias)
    options = {'use_reentrant': False}
    if KEEPS[keeps]:
        options['context_fn'] = partial(create_selective_checkpoint_contexts, KEEPS[keeps])
    return checkpoint(block, x, bias, **options)


# ==== models.classifier_head: The linear head of a classifier.


class ClassifierHead(nn.Linear):
    """Features [B, F] to logits [B, K], in evaluation as precise as its weights: float32.

    In training autocast decides; FINETUNE.MODE last_layer trains it as in evaluation. Logits in
    bfloat16 have 8 significant bits: images tie, and an AUROC is off in its fourth decimal, over
    few images in its third.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        device = features.device.type
        if self.training or not torch.amp.is_autocast_available(device):
            return super().forward(features)
        with torch.autocast(device, enabled=False):
            return F.linear(features.to(self.weight.dtype), self.weight, self.bias)

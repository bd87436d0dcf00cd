"""Whether the kernel for window attention works on this machine, before a run relies on it."""

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch import nn

from models.swin_transformer import SwinTransformerBlock

# Greatest difference from attention that is written out, as a share of the greatest value.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def settle_attention(model: nn.Module, dtype: torch.dtype | None, logger: logging.Logger) -> None:
    """Where MODEL.ATTENTION 'triton' fails or differs here, all blocks get 'eager'; one line.

    Args:
        model: on its device.
        dtype: that matrix products run in; None: float32.
        logger: gets the line.
    """
    blocks = [
        module
        for module in model.modules()
        if isinstance(module, SwinTransformerBlock) and module.attn.attention == 'triton'
    ]
    kinds = {(len(block.order), block.shift, block.attn.num_heads): block for block in blocks}
    try:
        for block in kinds.values():
            with _without_dropout(block):
                _compare(block, dtype)
    except Exception as error:  # whatever stops it, the run needs no kernel
        first = str(error).partition('\n')[0]
        logger.warning(
            f'MODEL.ATTENTION triton: eager in its place, {type(error).__name__}: {first}'
        )
        for block in blocks:
            block.attn.attention = 'eager'


@contextlib.contextmanager
def _without_dropout(block: SwinTransformerBlock) -> Iterator[None]:
    """In training, which alone takes the kernel, but nothing is dropped while this is entered."""
    training = block.training
    block.attn.train().proj_drop.eval()
    try:
        yield
    finally:
        block.attn.train(training)


def _compare(block: SwinTransformerBlock, dtype: torch.dtype | None) -> None:
    """Output and gradients of both ways, for random tokens."""
    attn, weight = block.attn, block.attn.qkv.weight
    device, width = weight.device, weight.shape[1]
    N = len(attn.relative_position_index)
    random = torch.Generator(device).manual_seed(0)
    x, bias, grad = (
        torch.randn(shape, generator=random, device=device)
        for shape in (
            (2, len(block.order), width),
            (attn.num_heads, N, N),
            (2, len(block.order), width),
        )
    )
    results = {}
    for kind in ('eager', 'triton'):  # as it was, at the end
        attn.attention = kind
        inputs = [tensor.clone().requires_grad_() for tensor in (x, bias)]
        with torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext():
            out = attn(*inputs, order=block.order, inverse=block.inverse, mask=block.attn_mask)
        gradients = torch.autograd.grad((out.float() * grad).sum(), inputs)
        results[kind] = [out.detach().float(), *gradients]
    for name, ours, want in zip(
        ('output', 'gradient', 'gradient of the bias'),
        results['triton'],
        results['eager'],
        strict=True,
    ):
        difference = ((ours - want).abs().max() / want.abs().max()).item()
        if not difference <= TOLERANCE[dtype or torch.float32]:
            raise ArithmeticError(f'its {name} is off by {difference:.1e} of the greatest value')

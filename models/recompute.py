"""Blocks that are computed again in the backward pass, in place of keeping what they computed."""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

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

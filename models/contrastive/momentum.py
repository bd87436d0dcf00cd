"""Slowly moving copies of networks (MoCo, BYOL): how they follow, and how fast."""

import copy
import math

import torch
from torch import nn


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters need no gradient: no optimizer and no process group touches them."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow_(target: nn.Module, online: nn.Module, momentum: torch.Tensor) -> None:
    """Make each parameter of `target` momentum * itself + (1 - momentum) * that of `online`.

    Buffers, the running statistics of batch norm, are the target's own.
    """
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, (1 - momentum).to(slow.dtype))


def cosine_momentum(step: torch.Tensor, *, total_steps: int, start: float) -> torch.Tensor:
    """BYOL's momentum after the update of `step` (from 0): `start`, rising to 1 by half a cosine.

    Source: Grill et al. 2020, arXiv:2006.07733, section 3.3.
    """
    progress = (step.double() / total_steps).clamp(0, 1)
    return 1 - (1 - start) * (torch.cos(math.pi * progress) + 1) / 2

"""Attention rollout: how much of each patch the tokens of a ViT's last block have read."""

import torch
from torch import nn

from config import Config
from evaluation.maps.method import MapMethod
from models.encoder import MAP_CELLS, Encoder

NO_ROLLOUT = f'no blocks in which all of at least {MAP_CELLS} x {MAP_CELLS} patches attend'


@torch.no_grad()
def rollout(model: nn.Module, images: torch.Tensor) -> torch.Tensor:  # [B, h, h]
    """Multiply the attention of all blocks, each with half of its weight on the token itself.

    The map is the row of the class token, or the mean over the rows of the patches if the head
    reads the patches. It is the same for all labels.

    Source: Abnar & Zuidema 2020, arXiv:2005.00928.
    """
    rows: list[torch.Tensor] = []

    def multiply(attention: nn.Module, inputs: tuple) -> None:
        weights = attention.weights(*inputs).float().mean(dim=1)  # [B, N, N], mean over heads
        # The other half stands for the connection around the block.
        weights = (weights + torch.eye(weights.shape[-1], device=weights.device)) / 2
        rows[:] = [weights @ rows[0]] if rows else [weights]

    hooks = [block.attn.register_forward_pre_hook(multiply) for block in model.blocks]
    try:
        model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    (found,) = rows
    reads_class_token = not getattr(model.head, 'takes_tokens', False) and model.fc_norm is None
    received = found[:, 0, 1:] if reads_class_token else found[:, 1:, 1:].mean(dim=1)
    return received.unflatten(1, (model.grid_size, model.grid_size))


def rollout_maps(
    config: Config, model: nn.Module, images: torch.Tensor, k: int
) -> torch.Tensor:  # [B, h, h]
    """Return the rollout, which does not depend on the label k."""
    return rollout(model, images)


def lacks_rollout(model: nn.Module) -> str:
    """Return why a model has no rollout, or ''."""
    has_all = isinstance(model, Encoder) and model.attends_globally
    return '' if has_all and model.grid_size >= MAP_CELLS else NO_ROLLOUT


ROLLOUT = MapMethod('attention rollout', rollout_maps, lacks_rollout, depends_on_label=False)

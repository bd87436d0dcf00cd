"""Encoders, reconstruction and losses; importing the package imports no torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from yacs.config import CfgNode


def build_model(
    config: 'CfgNode', is_pretrain: bool = True, *, num_outputs: int | None = None
) -> 'nn.Module':
    """The model of `models.build.build_model`."""
    from models.build import build_model as build

    return build(config, is_pretrain, num_outputs=num_outputs)

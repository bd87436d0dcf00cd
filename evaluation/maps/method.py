"""What a method of saliency maps is."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from config import Config


class MapMethod(NamedTuple):
    """A method of maps.

    Attributes:
        title: What its maps show.
        maps: Function of (config, model, images [B, C, S, S], k) to the maps of label k, [B, h, w].
        lacks: Function from a model to the reason why it has no such maps, or ''.
        depends_on_label: Whether the maps of two labels of an image differ.
    """

    title: str
    maps: Callable[[Config, nn.Module, torch.Tensor, int], torch.Tensor]
    lacks: Callable[[nn.Module], str]
    depends_on_label: bool = True

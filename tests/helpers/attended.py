"""SimMIM that hides what its encoder attends to most, as a method of one's own.

Kakogeorgiou et al. 2022, arXiv:2203.12719 (AttMask), where an averaged encoder attends.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.simmim import PRETRAINING, SimMIM, repeat


@PRETRAINING.register('attended')
class Attended(SimMIM):
    title = 'SimMIM of attended patches'

    @classmethod
    def from_config(cls, config: Any, *, total_steps: int = 1) -> 'Attended':
        model = super().from_config(config, total_steps=total_steps)
        model.unit = config.DATA.MASK_PATCH_SIZE // model.patch_size  # side in patches
        model.share = config.MODEL.ATTENDED.SHARE
        return model

    def refine_mask(self, x: Tensor, mask: Tensor) -> Tensor:
        """Replace a share of the hidden units by those that the encoder attends to most."""
        drawn = mask[:, :: self.unit, :: self.unit].flatten(1)  # [B, units]
        side = mask.shape[1] // self.unit
        received = F.adaptive_avg_pool2d(self.encoder.attention_map(x), side).flatten(1)
        count = drawn.sum(dim=1, keepdim=True, dtype=torch.int64)
        attended = ranks(received) < (count * self.share).round()
        hidden = ranks(2 * attended + drawn) < count  # attended units first, and then drawn ones
        return repeat(hidden.to(mask.dtype).view(-1, side, side), self.unit)


def ranks(values: Tensor) -> Tensor:
    """Return the rank of each value of a row, 0 for the largest; equal ones keep their order."""
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)

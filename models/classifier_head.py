"""The linear head of a classifier."""

import torch
from torch import nn
from torch.nn import functional as F


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

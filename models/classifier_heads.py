"""Heads of classifiers, which map the output of an encoder to one logit per output.

To add a head, register one subclass of `ClassifierHead`. Its constructor takes the width F of the
features and the number K of outputs, and as keyword arguments options of its own, such as
MODEL.MAXIMA.COUNT of 'maxima'. Its parameter `weight` has K rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config import REGISTRIES

CLASSIFIER_HEADS = REGISTRIES['MODEL.HEAD']
HEAD_DIM = 64  # width of an attention head, as in a ViT


class ClassifierHead(nn.Module, ABC):
    """A head that computes in float32 during evaluation.

    Logits in bfloat16 have only 8 significant bits, so images tie and the AUROC changes in the
    third or fourth decimal. During training, autocast selects the precision.

    Attributes:
        takes_tokens: Whether the input is all tokens of the last stage, [B, L, F], instead of
            pooled features, [B, F] (class attribute).
        takes_patient: Whether it also reads numbers of the patient, [B, P] (class attribute).
    """

    takes_tokens: ClassVar[bool] = False
    takes_patient: ClassVar[bool] = False
    weight: Tensor

    @abstractmethod
    def logits(self, inputs: Tensor) -> Tensor:
        """Compute the logits, [B, K]."""

    def forward(self, inputs: Tensor) -> Tensor:
        device = inputs.device.type
        if self.training or device == 'meta':  # meta tensors have no autocast
            return self._checked(self.logits(inputs))
        with torch.autocast(device, enabled=False):
            return self._checked(self.logits(inputs.to(self.weight.dtype)))

    def _checked(self, outputs: Tensor) -> Tensor:
        if outputs.shape[1:] != self.weight.shape[:1]:
            raise ValueError(
                f'{type(self).__name__}.logits must return [B, {len(self.weight)}], one value for '
                f'each row of its weight, got {[*outputs.shape]}'
            )
        return outputs


@CLASSIFIER_HEADS.register('linear')
class LinearHead(ClassifierHead, nn.Linear):
    """A linear layer on the pooled features, as in SimMIM."""

    def logits(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight, self.bias)


@CLASSIFIER_HEADS.register('attention')
class AttentionHead(ClassifierHead):
    """One learned query for each output attends to all tokens, and a linear layer reads the result.

    Masked pre-training does not train a pooled vector, so the mean of the tokens loses more than
    after other methods.

    Source: attentive probing, Chen et al. 2022, arXiv:2202.03026; El-Nouby et al. 2024,
    arXiv:2401.08541. There all outputs share one query.
    """

    takes_tokens = True

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        most = max(1, num_features // HEAD_DIM)
        self.num_heads = next(n for n in range(most, 0, -1) if num_features % n == 0)
        self.norm = nn.LayerNorm(num_features)
        self.key_value = nn.Linear(num_features, 2 * num_features)
        self.query = nn.Parameter(torch.empty(num_classes, num_features))
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.zeros_(self.key_value.bias)
        for weight in (self.key_value.weight, self.query, self.weight):
            nn.init.trunc_normal_(weight, std=0.02)

    def attend(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attention of each output [B, heads, K, L], and the values [B, L, heads, d]."""
        both = self.key_value(self.norm(tokens)).unflatten(2, (2, self.num_heads, -1))
        keys, values = both.unbind(dim=2)  # [B, L, heads, d]
        # Scaled by 1 / sqrt(d), as all dot products of attention.
        queries = self.query.unflatten(1, (self.num_heads, -1)) * keys.shape[-1] ** -0.5
        # Each of the K outputs has its own query, so each looks at its own regions.
        products = torch.einsum('khd,blhd->bhkl', queries.to(keys.dtype), keys)
        return products.softmax(dim=-1), values

    def logits(self, inputs: Tensor) -> Tensor:
        attention, values = self.attend(inputs)
        found = torch.einsum('bhkl,blhd->bkhd', attention, values).flatten(2)  # [B, K, F]
        # Output k reads only what its own query found: a linear layer per row.
        return (found * self.weight).sum(dim=2) + self.bias


def build_classifier_head(
    num_features: int,
    num_classes: int,
    name: str = 'linear',
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return the head MODEL.HEAD with its options, or nn.Identity for 0 classes."""
    if num_classes == 0:
        return nn.Identity()
    return CLASSIFIER_HEADS[name](num_features, num_classes, **(options or {}))


def freeze_encoder(model: nn.Module) -> None:
    """Freeze all parameters outside the head."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith('head.'))

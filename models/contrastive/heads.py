"""What stands between an encoder and a contrastive loss: projectors, predictors, prototypes."""

import torch
from torch import nn
from torch.nn import functional as F

from models.contrastive.losses import in_float32, unit


def mlp_head(
    in_features: int,
    out_features: int,
    *,
    hidden: int,
    norm: bool = True,
    norm_output: bool = False,
) -> nn.Sequential:
    """Two linear layers with ReLU between, [B, in_features] to [B, out_features].

    Args:
        in_features: width of the input.
        out_features: width of the output.
        hidden: width between the layers.
        norm: whether batch norm precedes the ReLU (SimCLR, BYOL, SwAV; not MoCo v2).
        norm_output: whether batch norm follows the second layer (SimCLR).
    """
    layers = [nn.Linear(in_features, hidden, bias=not norm)]  # batch norm has a bias of its own
    if norm:
        layers.append(nn.BatchNorm1d(hidden))
    layers += [nn.ReLU(), nn.Linear(hidden, out_features, bias=not norm_output)]
    if norm_output:
        layers.append(nn.BatchNorm1d(out_features))
    return nn.Sequential(*layers)


class Prototypes(nn.Linear):
    """SwAV's prototypes [K, D]: a linear layer without bias whose rows are kept at length 1.

    They are normalised before each training step, and, as the step changes them, for evaluation.
    """

    def __init__(self, dim: int, num_prototypes: int) -> None:
        super().__init__(dim, num_prototypes, bias=False)
        self.normalise_()

    @torch.no_grad()
    def normalise_(self) -> None:
        self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, z: torch.Tensor, learn: torch.Tensor) -> torch.Tensor:
        """Cosines [..., K] of vectors [..., D]; where `learn` (bool) is false, none is learnt.

        The prototypes' gradient is 0 then, not absent, as DistributedDataParallel waits for it.
        """
        if not self.training:
            return _products(unit(z), unit(self.weight))
        fixed = self.weight.detach()
        return _products(unit(z), fixed + learn * (self.weight - fixed))


@in_float32
def _products(z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(z, weight)

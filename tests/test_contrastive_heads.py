"""Projectors, predictors and prototypes: the layers of the papers."""

import pytest
import torch
from torch import nn

from models.contrastive import BYOL, MoCo, Prototypes, SimCLR, SwAV


class Encoder(nn.Module):
    num_features = 7

    @property
    def backbone(self) -> nn.Module:
        return self


def layers(head: nn.Sequential) -> list[tuple]:
    """(inputs, outputs, whether there is a bias), 'relu', or channels of a batch norm."""
    described = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            described.append((layer.in_features, layer.out_features, layer.bias is not None))
        else:
            described.append('relu' if isinstance(layer, nn.ReLU) else layer.num_features)
    return described


MLP = [(7, 4096, False), 4096, 'relu', (4096, 256, True)]


@pytest.mark.parametrize(
    ('model', 'projector'),
    [
        (MoCo(Encoder()), [(7, 7, True), 'relu', (7, 128, True)]),
        (SimCLR(Encoder()), [(7, 7, False), 7, 'relu', (7, 128, False), 128]),
        (BYOL(Encoder(), total_steps=1), MLP),
        (SwAV(Encoder()), [(7, 2048, False), 2048, 'relu', (2048, 128, True)]),
    ],
)
def test_projectors_are_the_papers(model, projector):
    assert layers(model.projector) == projector
    if isinstance(model, BYOL):
        assert layers(model.predictor) == [(256, 4096, False), *MLP[1:]]
    if isinstance(model, SwAV):
        assert layers([model.prototypes]) == [(128, 3000, False)]


def test_under_autocast_prototypes_are_compared_in_float32():
    prototypes = Prototypes(16, 4)
    z = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    want = prototypes(z.float(), learn=torch.tensor(True))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(prototypes(z, learn=torch.tensor(True)), want)

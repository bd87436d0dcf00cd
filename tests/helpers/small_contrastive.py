"""Small contrastive methods with an encoder without batch norm, their views, and equal states."""

from functools import partial
from inspect import signature

import torch
from torch import nn

from models.contrastive import METHODS, ContrastiveMethod
from models.encoder import Encoder
from optimizer import param_groups

BATCH = 8
SMALL = {'dim': 6, 'hidden': 12, 'total_steps': 10, 'queue_size': 3 * BATCH, 'momentum': 0.8}
SMALL |= {'num_prototypes': 5, 'freeze_prototypes_steps': 1}


def small(method: type[ContrastiveMethod]) -> partial:
    """A method with small sizes, of any method that is registered."""
    known = signature(method).parameters
    return partial(method, **{key: value for key, value in SMALL.items() if key in known})


BUILD = {name: small(method) for name, method in METHODS.items()}


class Convolution(Encoder):
    """An encoder without batch norm, for images of any size."""

    num_features = 7

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 7, kernel_size=3)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images).tanh().mean(dim=(2, 3))

    def get_num_layers(self) -> int:
        return 1

    def get_layer_id(self, name: str) -> int:
        return 1


def build(name: str, **keys: object) -> nn.Module:
    """Build a float64 method with fixed weights, without batch norm across images."""
    torch.manual_seed(0)
    model = BUILD[name](Convolution(), **keys).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    return model


def views(name: str, step: int, batch: int = BATCH) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    sizes = [12, 12, 8, 8, 8, 8, 8, 8] if name == 'swav' else [12, 12]
    return [
        torch.randn(batch, 1, size, size, generator=generator, dtype=torch.float64)
        for size in sizes
    ]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    groups = param_groups(model, weight_decay=0.05, base_lr=0.1, layer_decay=None)
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def assert_same_state(got: dict, want: dict, **tolerance: float) -> None:
    assert got.keys() == want.keys()
    for key, value in want.items():
        tolerances = tolerance or {'rtol': 0, 'atol': 0}
        torch.testing.assert_close(got[key], value, **tolerances, msg=lambda m, k=key: f'{k}: {m}')

"""Figures of held-out views: how many images are compared, and when features have collapsed."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from config import default_config
from main_contrastive import HeldOutViews
from models.contrastive import SimCLR
from sweeps.plots import chance


class Constant(nn.Module):
    """An encoder that is blind but for a little noise: each image is (1, ..., 1)."""

    num_features = 8

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.weight, self.noise = nn.Parameter(torch.ones(())), noise

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        seen = images.flatten(1)[:, :8]
        return self.weight * (torch.ones_like(seen) + self.noise * seen)


def score(batches: list[int], *, noise: float, epoch: int = 0) -> dict[str, float]:
    """Figures of held-out batches of so many images."""
    generator = torch.Generator().manual_seed(0)
    loader = [
        [torch.randn(size, 1, 8, 8, generator=generator) for _ in range(3)] for size in batches
    ]
    run = SimpleNamespace(
        config=default_config(),
        device=torch.device('cpu'),
        logger=logging.getLogger('collapse'),
    )
    return HeldOutViews(loader)(run, SimCLR(Constant(noise)), epoch)


@pytest.mark.parametrize(
    'images, noise, epoch, warned',
    [
        *((16, 0, 3, 1), (16, 1e-3, 0, 1), (16, 1e-3, -1, 0), (16, 3, 3, 0)),
        *((1, 3, 3, 0), (2, 3, 3, 0), (3, 3, 3, 0), (4, 3, 3, 0), (4, 1e-3, 3, 1)),
    ],
)
def test_a_collapse_is_warned_of(caplog, images, noise, epoch, warned) -> None:
    """Not before training, when nothing is learned, nor of images too few for a rank above 2."""
    caplog.set_level(logging.WARNING)
    score([images], noise=noise, epoch=epoch)
    assert caplog.text.count('the features have collapsed') == warned


@pytest.mark.parametrize('batches', [[6], [4, 4, 4]])
def test_the_number_of_images_compared_gives_the_loss_of_a_blind_network(batches) -> None:
    """In batches as they are, whatever DATA.BATCH_SIZE is."""
    figures = score(batches, noise=0)
    assert figures['holdout_images_compared'] == batches[0]
    config = default_config()
    config.CONTRASTIVE.METHOD = 'simclr'
    expected = chance(config, figures['holdout_images_compared'])
    assert expected == math.log(2 * batches[0] - 1)
    assert figures['holdout_loss'] == pytest.approx(expected, rel=1e-5)

"""Predictions have the order of the images, and non-finite outputs raise an error."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import config_with
from torch import nn
from torch.utils.data import DataLoader

from config import Config
from evaluation.inference import predict

CPU = torch.device('cpu')


class Samples(list):
    """A dataset of (image, 0, index)."""


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(7, 3, 4, 4)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))


@pytest.fixture
def config() -> Config:
    return config_with(DATA__LABELS=['first', 'second'])


def loader_of(images: torch.Tensor) -> DataLoader:
    samples = Samples((image, 0, index) for index, image in enumerate(images))
    samples.files = [f'{index}.png' for index in range(len(images))]
    samples.records = SimpleNamespace(root=Path('root'), csv='valid.csv', path=samples.files)
    return DataLoader(samples, batch_size=3)


def test_logits_have_the_order_of_the_images(config, model, images) -> None:
    got = predict(config, CPU, model, loader_of(images))
    np.testing.assert_allclose(got, model(images).detach().numpy(), rtol=1e-5)


def test_a_non_finite_logit_raises_an_error_with_the_first_image(config, model, images) -> None:
    images[4, 0, 0, 0], images[6, 0, 0, 0] = float('nan'), float('inf')
    loader = loader_of(images)
    with pytest.raises(ValueError, match=r'valid\.csv.*4\.png'):
        predict(config, CPU, model, loader)
    del loader.dataset.records
    with pytest.raises(ValueError, match=r'4\.png'):
        predict(config, CPU, model, loader)

"""Predictions have the order of the images, and non-finite outputs raise an error."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import config_with
from torch import nn
from torch.utils.data import DataLoader, Dataset

from evaluation.inference import predict

CPU = torch.device('cpu')


class Images(Dataset):
    """A dataset of (image, 0, index)."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images
        self.files = [f'{i}.png' for i in range(len(images))]
        self.records = Namespace(root=Path('root'), csv='valid.csv', path=self.files)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        return self.images[index], 0, index


class Classifier(nn.Module):
    """A classifier with two linear outputs."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 48, generator=generator))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight.T


def config_of_two_labels():
    return config_with(DATA__LABELS=['first', 'second'])


def random_images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_logits_have_the_order_of_the_images() -> None:
    images, model = random_images(7, 3, 4, 4), Classifier()
    got = predict(config_of_two_labels(), CPU, model, DataLoader(Images(images), batch_size=3))
    np.testing.assert_allclose(got, model(images).detach().numpy(), rtol=1e-5)


def test_a_non_finite_logit_raises_an_error_with_the_first_image() -> None:
    images = random_images(7, 3, 4, 4)
    images[4, 0, 0, 0], images[6, 0, 0, 0] = float('nan'), float('inf')
    dataset, config = Images(images), config_of_two_labels()
    loader = DataLoader(dataset, batch_size=3)
    with pytest.raises(ValueError, match=r'valid\.csv.*4\.png'):
        predict(config, CPU, Classifier(), loader)
    del dataset.records
    with pytest.raises(ValueError, match=r'4\.png'):
        predict(config, CPU, Classifier(), loader)

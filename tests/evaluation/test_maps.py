"""Attention rollout and occlusion against other computations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.maps import METHODS
from evaluation.maps.occlusion import CELLS, occlusion_maps
from evaluation.maps.rollout import rollout
from evaluation.saliency import label_maps, map_method, map_title, reason_without_maps
from models.swin_transformer import SwinTransformer
from models.vision_transformer import VisionTransformer

VIT = {'img_size': 32, 'patch_size': 4, 'in_chans': 1, 'num_classes': 3, 'embed_dim': 16,
       'depth': 3, 'num_heads': 2}  # fmt: skip
SWIN = {'img_size': 32, 'patch_size': 2, 'in_chans': 1, 'num_classes': 3, 'embed_dim': 8,
        'depths': [2, 2], 'num_heads': [1, 2], 'window_size': 4}  # fmt: skip
CONFIG = SimpleNamespace(MODEL=SimpleNamespace(NUM_CLASSES=3))


def vit(**options: object) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(**VIT | options).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize('pools', [True, False])
@pytest.mark.parametrize('bias', [{}, {'use_rpb': True}, {'use_shared_rpb': True}])
def test_rollout_is_the_product_of_attention_with_the_identity(pools: bool, bias: dict) -> None:
    """By hand: the attention that each block computes from its own input, in NumPy."""
    model = vit(use_mean_pooling=pools, **bias)
    images = torch.randn(2, 1, 32, 32)
    product = np.eye(65)
    with torch.no_grad():
        x = model._with_class_and_positions(model.patch_embed(images))
        for block, own in zip(model.blocks, model._biases(), strict=True):
            weights = block.attn.weights(block.norm1(x), own).numpy().mean(axis=1)
            product = (weights + np.eye(65)) / 2 @ product
            x = block(x, own)
    rows = product[:, 1:, 1:].mean(axis=1) if pools else product[:, 0, 1:]
    found = rollout(model, images)
    np.testing.assert_allclose(found.numpy(), rows.reshape(2, 8, 8), rtol=1e-4)
    if not pools:  # a share of attention
        assert ((0 < found.sum(dim=(1, 2))) & (found.sum(dim=(1, 2)) < 1)).all()


def test_rollout_leaves_the_model_as_it_was() -> None:
    model, images = vit(), torch.randn(1, 1, 32, 32)
    before = model(images)
    rollout(model, images)
    assert torch.equal(model(images), before)
    assert not any(block.attn._forward_pre_hooks for block in model.blocks)


class Brightness(nn.Module):
    """Scores of three labels: the sums of the left half, of the right half, and of nothing."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        left, right = images[..., :14].sum(dim=(1, 2, 3)), images[..., 14:].sum(dim=(1, 2, 3))
        return torch.stack([left, right, 0 * left], dim=1)


def test_occlusion_is_the_mean_fall_of_the_score_below_each_square() -> None:
    """Brute force: cover each square of 4 x 4 pixels, and average over the squares of a cell."""
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    for k in (0, 1):
        found = occlusion_maps(CONFIG, Brightness(), images, k)
        for image, map_ in zip(images, found, strict=True):
            falls = np.zeros((CELLS, CELLS, 2))
            for row in range(CELLS - 1):
                for column in range(CELLS - 1):
                    covered = image.clone()
                    covered[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4] = image.mean()
                    fall = Brightness()(image[None])[0, k] - Brightness()(covered[None])[0, k]
                    falls[row : row + 2, column : column + 2] += [fall.item(), 1]
            expected = (falls[..., 0] / falls[..., 1]).clip(0)
            np.testing.assert_allclose(map_.numpy(), expected, atol=1e-4)
    assert not occlusion_maps(CONFIG, Brightness(), images, 2).any()


def test_each_method_has_its_models() -> None:
    swin, head = SwinTransformer(**SWIN), vit(head='attention')
    lacking = {
        name: [
            bool(reason_without_maps(model, name)) for model in (vit(), swin, head, nn.Linear(1, 1))
        ]
        for name in METHODS
    }
    assert lacking == {
        'grad-cam': [False, False, False, True],
        'attention': [True, True, False, True],
        'rollout': [False, True, False, True],
        'occlusion': [False, False, False, False],
    }
    assert (
        reason_without_maps(nn.Linear(1, 1)) and map_title(head, 'rollout') == 'attention rollout'
    )
    assert map_method(head).title == 'attention of the head'
    images = torch.randn(2, 1, 32, 32)
    for name in METHODS:  # the labels differ, unless the method says that they do not
        one, other = (label_maps(CONFIG, head, images, k, name) for k in (0, 1))
        assert torch.equal(one, other) != map_method(head, name).depends_on_label, name
    shapes = {name: label_maps(CONFIG, head, images, 1, name).shape[1:] for name in METHODS}
    assert shapes == {'grad-cam': (8, 8), 'attention': (8, 8), 'rollout': (8, 8),
                      'occlusion': (14, 14)}  # fmt: skip

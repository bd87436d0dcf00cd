"""Weights of DINOv2 from transformers and timm."""

import re
from pathlib import Path

import pytest
import timm
import torch
from transfers import GREY, IMAGENET, grey_images, make_config, randomise, started
from yacs.config import CfgNode

from models.timm_classifier import find_layout

PATCH = 14
# What the ViT of this project needs for DINOv2.
LAYOUT = {'MODEL__VIT__PATCH_SIZE': PATCH, 'MODEL__VIT__USE_APE': True,
          'MODEL__VIT__USE_SHARED_RPB': False, 'MODEL__VIT__INIT_VALUES': 1.0}  # fmt: skip


@pytest.fixture
def small_timm(monkeypatch):
    """Build timm's models with a width of 48, two blocks and four heads."""
    create, sizes = timm.create_model, {'embed_dim': 48, 'depth': 2, 'num_heads': 4}
    monkeypatch.setattr(timm, 'create_model', lambda name, **kept: create(name, **kept, **sizes))
    find_layout.cache_clear()
    yield
    find_layout.cache_clear()


def write_dinov2(
    transformers, kind: str, folder: Path, *, size: int = 56, plain: bool = False, **options: object
):
    """Write a DINOv2 of transformers with random weights; return it and its file.

    With `plain`, the file has the names of `state_dict()`, which differ from `save_pretrained`'s.
    """
    family = re.match(r'Dinov2(WithRegisters)?', kind)[0]
    sizes = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4}
    sizes |= {'image_size': size, 'patch_size': PATCH}
    model = getattr(transformers, kind)(
        getattr(transformers, f'{family}Config')(**(sizes | options))
    )
    randomise(model)
    model.eval().save_pretrained(folder)
    if plain:
        torch.save(model.state_dict(), folder / 'weights.pth')
    return model.double(), folder / ('weights.pth' if plain else 'model.safetensors')


def vit(size: int, channels: int = 3, **options: object) -> CfgNode:
    return make_config('vit', channels, DATA__IMG_SIZE=size, **(LAYOUT | options))


def timm_vit(name: str, size: int) -> CfgNode:
    return make_config('timm', 3, DATA__IMG_SIZE=size, MODEL__TIMM__NAME=name)


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert wanted.std() > 0.3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ('size', 'channels', 'plain'), [(42, 3, False), (84, 3, False), (56, 1, False), (56, 3, True)]
)
def test_dinov2_of_transformers_gives_its_tokens_and_its_class_token(
    size: int, channels: int, plain: bool, transformers, tmp_path, log
) -> None:
    """The file has the positions of 4 x 4 patches, which are interpolated for 3 x 3 and 6 x 6."""
    kind = 'Dinov2ForImageClassification'
    theirs, file = write_dinov2(transformers, kind, tmp_path, plain=plain)
    ours = started(vit(size, channels), file).double()
    x = grey_images(IMAGENET if channels == 3 else GREY, size=size).double()
    wanted = theirs.dinov2(pixel_values=grey_images(IMAGENET, size=size).double())
    assert_same(ours.encode(ours.patch_embed(x)), wanted.last_hidden_state)
    assert_same(ours.forward_features(x), wanted.pooler_output)
    assert re.search(r'new +2  head 2$', log.text, re.MULTILINE)


@torch.no_grad()
@pytest.mark.parametrize(
    ('kind', 'name', 'is_gated'),
    [
        ('Dinov2Model', 'vit_base_patch14_dinov2', False),
        ('Dinov2WithRegistersModel', 'vit_giant_patch14_reg4_dinov2', True),
    ],
)
@pytest.mark.parametrize(('size', 'plain'), [(70, False), (42, False), (70, True)])
@pytest.mark.usefixtures('small_timm')
def test_dinov2_of_transformers_gives_its_features_in_timm(
    kind: str, name: str, is_gated: bool, size: int, plain: bool, transformers, tmp_path, log
) -> None:
    """Only models with registers antialias the positions, of 5 x 5 patches here, for 3 x 3."""
    options = {'size': 70, 'plain': plain, 'hidden_size': 48, 'use_swiglu_ffn': is_gated}
    theirs, file = write_dinov2(transformers, kind, tmp_path, **options)
    ours = started(timm_vit(name, size), file).double()
    x = grey_images(IMAGENET, size=size).double()
    wanted = theirs(pixel_values=x)
    assert_same(ours.encoder.forward_features(x), wanted.last_hidden_state)
    assert_same(ours.forward_features(x), wanted.pooler_output)
    assert re.search(r'new +2  head 2$', log.text, re.MULTILINE)


@torch.no_grad()
def test_masked_pre_training_starts_with_dinov2s_mask_token(transformers, tmp_path) -> None:
    theirs, file = write_dinov2(transformers, 'Dinov2Model', tmp_path)
    config = vit(56, DATA__MASK_PATCH_SIZE=PATCH)
    ours = started(config, file, is_pretrain=True).double().encoder
    mask = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.6
    x = grey_images(IMAGENET, size=56).double()
    wanted = theirs(pixel_values=x, bool_masked_pos=mask.flatten(1)).last_hidden_state
    assert_same(ours(x, mask).flatten(2).transpose(1, 2), wanted[:, 1:])

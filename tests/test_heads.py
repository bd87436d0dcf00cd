"""Inverse Swin heads: stages, patch expansion, gradients, and decoders from other checkpoints."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transfers import TABLE, make_config, transfer

from models import build_model
from models.simmim import HEADS

NANO = {'MODEL__SIMMIM__HEAD': 'inverse_swin_nano'}


def seeded(kind: str, channels: int = 1, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(make_config(kind, channels, **NANO, **options))


def features_of(stride: int, channels: int, side: int) -> SimpleNamespace:
    """Return the properties that a head reads from an encoder with 1024 features."""
    return SimpleNamespace(num_features=1024, stride=stride, in_chans=channels, output_side=side)


def batch(model: nn.Module, images: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    side = model.encoder.grid_size
    mask = torch.zeros(images, side, side, dtype=torch.int64)
    mask[:, : side // 2, side // 2 :] = 1
    return torch.randn(images, model.in_chans, 32, 32), mask


@pytest.mark.parametrize(
    'name, stride, side, stages',
    [
        # width, tokens across, window, blocks, heads
        ('inverse_swin_t', 32, 6,
         [(768, 6, 6, 2, 24), (384, 12, 6, 6, 12), (192, 24, 6, 2, 6), (96, 48, 6, 2, 3)]),
        ('inverse_swin_b', 32, 7,
         [(1024, 7, 7, 2, 32), (512, 14, 7, 18, 16), (256, 28, 7, 2, 8), (128, 56, 7, 2, 4)]),
        ('inverse_swin_nano', 16, 14, [(256, 14, 7, 2, 16), (128, 28, 7, 2, 8), (64, 56, 7, 2, 4)]),
        ('inverse_swin_nano', 8, 8, [(256, 8, 4, 2, 16), (128, 16, 4, 2, 8)]),
        ('inverse_swin_nano', 4, 11, [(256, 11, 11, 2, 16)]),
    ],
)  # fmt: skip
def test_stages_are_swins_in_reverse(name: str, stride: int, side: int, stages: list) -> None:
    with torch.device('meta'):
        head = HEADS[name](features_of(stride, 1, side))
        got = head(torch.empty(2, 1024, side, side))
    assert got.shape == (2, 1, side * stride, side * stride)
    shapes = []
    for layer in head:
        if hasattr(layer, 'stage'):
            first, *_ = blocks = layer.stage.blocks
            heads = first.attn.num_heads
            width = first.norm1.normalized_shape[0]
            window = first.attn.window_size
            shapes.append((width, first.side, window, len(blocks), heads))
            shifts = [block.attn.shift for block in blocks]
            assert shifts == [0, 0 if first.side == window else window // 2] * (len(blocks) // 2)
    assert shapes == stages


@pytest.mark.parametrize(
    'kind, channels, options, stages',
    [('swin', 1, {}, 2), ('swin', 3, {'MODEL__SWIN__PATCH_SIZE': 2}, 1), ('vit', 3, {}, 2),
     ('vit', 1, {'MODEL__VIT__PATCH_SIZE': 16}, 3)],
)  # fmt: skip
def test_every_parameter_gets_a_gradient_from_hidden_pixels_alone(
    kind: str, channels: int, options: dict, stages: int
) -> None:
    model = seeded(kind, channels, **options)
    assert sum(hasattr(layer, 'stage') for layer in model.decoder) == stages
    x, mask = batch(model)
    reconstruction = model.reconstruct(x, mask)
    assert reconstruction.shape == x.shape
    loss = model(x, mask)
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.any() for p in model.decoder.parameters() if p.ndim > 1)
    error = (reconstruction - x).abs()[:, :, :16, 16:]  # what is hidden
    assert loss.item() == pytest.approx(error.mean().item(), rel=1e-5)


def test_pretraining_resumes_with_the_head_at_another_window(tmp_path) -> None:
    larger = make_config('swin', 1, DATA__IMG_SIZE=48, **NANO)  # 6 tokens across, not 4
    larger.merge_from_list(['MODEL.SWIN.WINDOW_SIZE', 6])
    source, target = transfer(make_config('swin', 1, **NANO), larger, tmp_path)
    tables = [key for key in source.decoder.state_dict() if key.endswith(TABLE)]
    for key, value in target.decoder.state_dict().items():
        if key in tables:
            assert len(value) == 11**2
        elif not key.endswith(('index', 'attn_mask')):
            assert torch.equal(value, source.decoder.state_dict()[key]), key
    assert len(tables) == 4

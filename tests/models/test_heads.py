"""Inverse Swin heads: stages, patch expansion, gradients, and decoders from other checkpoints."""

from types import SimpleNamespace

import pytest
import torch
from transfers import TABLE, make_config, transfer

from models import build_model
from models.simmim import HEADS, inverse_patches

NANO = {'MODEL__SIMMIM__HEAD': 'inverse_swin_nano'}


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
    # The properties that a head reads from an encoder.
    encoder = SimpleNamespace(num_features=1024, stride=stride, in_chans=1, output_side=side)
    with torch.device('meta'):
        head = HEADS[name](encoder)
        got = head(torch.empty(2, 1024, side, side))
    assert got.shape == (2, 1, side * stride, side * stride)
    all_blocks = [layer.stage.blocks for layer in head if hasattr(layer, 'stage')]
    for (width, side, window, num_blocks, heads), blocks in zip(stages, all_blocks, strict=True):
        shifts = [block.attn.shift for block in blocks]
        assert shifts == [0, 0 if side == window else window // 2] * (num_blocks // 2)
        attention = blocks[0].attn
        assert (attention.window_size, attention.num_heads) == (window, heads)
        assert (blocks[0].norm1.normalized_shape, blocks[0].side) == ((width,), side)


@pytest.mark.parametrize(
    'kind, channels, options, stages',
    [('swin', 1, {}, 2), ('swin', 3, {'MODEL__SWIN__PATCH_SIZE': 2}, 1), ('vit', 3, {}, 2),
     ('vit', 1, {'MODEL__VIT__PATCH_SIZE': 16}, 3)],
)  # fmt: skip
def test_every_parameter_learns_from_hidden_pixels_alone(kind, channels, options, stages) -> None:
    torch.manual_seed(0)
    model = build_model(make_config(kind, channels, **NANO, **options))
    assert sum(hasattr(layer, 'stage') for layer in model.decoder) == stages
    x, side = torch.randn(2, channels, 32, 32), model.encoder.grid_size
    mask = torch.zeros(2, side, side, dtype=torch.int64)
    mask[:, : side // 2, side // 2 :] = 1
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


@pytest.mark.parametrize(
    ('stride', 'sides'),
    [(128, [128, 64, 32, 16]), (32, [32, 16, 8, 4]), (16, [16, 8, 4]), (12, [12, 6]), (4, [4])],
)
def test_an_inverse_swin_halves_at_most_three_times_and_not_below_4_px(stride, sides) -> None:
    assert inverse_patches(stride) == sides

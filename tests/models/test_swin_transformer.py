"""The structure of Swin against published sizes, and the sizes that it refuses."""

import pytest
import torch
from tiny import config_with
from torch import nn

from models.swin_transformer import BasicLayer, SwinTransformer


def test_the_defaults_are_the_published_swin_t() -> None:
    """28,288,354 parameters with 1,000 classes, as Swin-T of Liu et al. 2021 in timm."""
    with torch.device('meta'):
        model = SwinTransformer()
        stage = BasicLayer(96, 56, 3, 7, drop_path=[0.0, 0.0], is_last=True)  # as in a decoder
    assert sum(parameter.numel() for parameter in model.parameters()) == 28_288_354
    for part in (model, stage):
        assert not any(module.p for module in part.modules() if isinstance(module, nn.Dropout))


def test_every_other_block_is_shifted_where_there_are_several_windows() -> None:
    with torch.device('meta'):
        model = SwinTransformer(depths=[2, 3, 4, 2], window_size=7)
    shifts = [[block.attn.shift for block in layer.blocks] for layer in model.layers]
    assert shifts == [[0, 3], [0, 3, 0], [0, 3, 0, 3], [0, 0]]
    assert [isinstance(layer.downsample, nn.Identity) for layer in model.layers] == [False] * 3 + [
        True
    ]


@pytest.mark.parametrize(
    ('key', 'value', 'allowed'),
    [
        ('DEPTHS', [], 'one positive integer'),
        ('DEPTHS', [2, 0, 6, 2], 'one positive integer'),
        ('NUM_HEADS', [3, -6, 12, 24], 'one positive integer'),
        ('NUM_HEADS', [3, 6, 12], 'as long as MODEL.SWIN.DEPTHS, 4'),
        ('NUM_HEADS', [3, 6, 12, 25], 'a divisor of the width of each stage .* in stage 3'),
        ('PATCH_SIZE', 5, 'a multiple of 40'),
        ('WINDOW_SIZE', 5, 'a divisor of the side'),
    ],
)
def test_sizes_that_do_not_fit_are_refused(key: str, value: object, allowed: str) -> None:
    config = config_with(DATA__IMG_SIZE=224)
    SwinTransformer.check(config, None)
    setattr(config.MODEL.SWIN, key, value)
    with pytest.raises(ValueError, match=f'{key}|DATA.IMG_SIZE') as error:
        SwinTransformer.check(config, None)
    assert error.match(allowed)


@pytest.mark.parametrize(('size', 'window'), [(224, 7), (224, 56), (192, 6), (96, 24)])
def test_a_window_fits_that_divides_each_larger_side(size: int, window: int) -> None:
    config = config_with(DATA__IMG_SIZE=size)
    config.MODEL.SWIN.WINDOW_SIZE = window
    SwinTransformer.check(config, None)

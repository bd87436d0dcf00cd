"""Messages that name the encoder of a file, if the file does not fit the model."""

import pytest
import timm
import torch
from transfers import load, make_config
from yacs.config import CfgNode

from config import value_at
from models import build_model
from models.weights.recognise import ARCHITECTURE, HEADS, likely_encoder

# The ViT of this project as a DINOv2: 4 x 4 patches, and the usual width of a head.
DINOV2 = {'DATA__IMG_SIZE': 56, 'MODEL__VIT__PATCH_SIZE': 14, 'MODEL__VIT__USE_APE': True,
          'MODEL__VIT__USE_SHARED_RPB': False, 'MODEL__VIT__INIT_VALUES': 1.0,
          'MODEL__VIT__NUM_HEADS': 1}  # fmt: skip


def options_in(message: str) -> list[str]:
    return message.partition('--opts ')[2].split()


@pytest.mark.parametrize(
    'config',
    [
        make_config('swin', 1),
        make_config('vit', 1),
        make_config('vit', 1, MODEL__VIT__USE_RPB=True, MODEL__VIT__USE_SHARED_RPB=False),
        make_config('vit', 1, **DINOV2),
        make_config('vit', 1, MODEL__VIT__USE_MEAN_POOLING=True),
        make_config('vit', 1, MODEL__VIT__QKV_BIAS=False, MODEL__VIT__MLP_RATIO=2.5),
        make_config('swin', 1, MODEL__SWIN__QKV_BIAS=False, MODEL__SWIN__MLP_RATIO=2.0),
        make_config('timm', 3, MODEL__TIMM__NAME='resnet18'),
    ],
)  # fmt: skip
def test_a_misfit_names_options_that_fit_the_file(config: CfgNode, tmp_path) -> None:
    """The options of the message, in a config of another encoder, build a model of the file."""
    with torch.device('meta'):
        source = build_model(config, is_pretrain=False)
    state = {  # without the prefix, as in a file of timm
        key.removeprefix('encoder.'): torch.ones_like(value, device='cpu')
        for key, value in source.state_dict().items()
    }
    wrong = make_config('vit', config.MODEL.IN_CHANS, MODEL__VIT__EMBED_DIM=16,
                        DATA__IMG_SIZE=config.DATA.IMG_SIZE, MODEL__VIT__PATCH_SIZE=2)  # fmt: skip
    with pytest.raises(ValueError, match='looks like') as raised:
        load(state, wrong, build_model(wrong, is_pretrain=False), tmp_path)
    options = options_in(str(raised.value))
    wrong.merge_from_list(options)
    for key in {*options[::2]} - {'MODEL.VIT.INIT_VALUES'}:  # a file has no initial values
        assert value_at(wrong, key) == value_at(config, key), key
    load(state, wrong, build_model(wrong, is_pretrain=False), tmp_path)


def test_a_vit_without_a_norm_pools_its_tokens() -> None:
    """So does transformers' BEiT without a pooler, whose weights have neither norm."""
    model = build_model(make_config('vit', 1, MODEL__VIT__USE_MEAN_POOLING=True), num_outputs=3,
                        is_pretrain=False)  # fmt: skip
    state = {key: value for key, value in model.state_dict().items() if 'fc_norm' not in key}
    options = options_in(likely_encoder(state, {}))
    assert options[options.index('MODEL.VIT.USE_MEAN_POOLING') + 1] == 'True'


@pytest.mark.parametrize(
    'name', ['vit_small_patch14_reg4_dinov2', 'vit_giant_patch14_dinov2', 'resnet50', 'densenet121']
)
def test_an_encoder_that_only_timm_has_gets_its_name_in_timm(name: str) -> None:
    """DINOv2 has registers or gated MLPs here."""
    with torch.device('meta'):
        state = timm.create_model(name).state_dict()
    assert options_in(likely_encoder(state, {})) == ['MODEL.TYPE', 'timm', 'MODEL.TIMM.NAME', name]


@pytest.mark.parametrize(
    ('name', 'known'),
    [
        ('vit_small_patch16_224', '6 in ViT-S of timm, DeiT, DINO and DINOv2, 12 in ViT-S of MoCo'),
        ('deit3_medium_patch16_224', 'unknown for this width'),
    ],
)
def test_a_number_of_heads_that_is_not_stored_is_not_guessed(name: str, known: str) -> None:
    """Width / 64, which was named here before, is wrong for MoCo v3's ViT-S and MAE's ViT-H."""
    with torch.device('meta'):
        state = timm.create_model(name).state_dict()
    message = likely_encoder(state, {})
    assert f'(MODEL.VIT.NUM_HEADS is not stored: {known}' in message
    assert 'MODEL.VIT.NUM_HEADS' not in options_in(message)
    assert 'MODEL.VIT.NUM_HEADS 3' in likely_encoder(state, {HEADS: [3]})


@pytest.mark.parametrize(
    ('name', 'more', 'reason'),
    [
        ('vit_base_patch16_224', {'reg_tokens': 4}, 'registers, which only'),
        ('vit_medium_patch16_reg4_gap_256', {}, 'registers and no class token, which only'),
        ('vit_base_patch16_clip_224', {}, 'a norm before the blocks, which only'),
        ('vit_base_patch16_siglip_224', {}, 'attention pooling and no class token, which only'),
    ],
)
def test_what_only_models_of_timm_have_is_the_reason(name, more, reason) -> None:
    with torch.device('meta'):
        state = timm.create_model(name, **more).state_dict()
    message = likely_encoder(state, {ARCHITECTURE: name})
    assert f'with {reason} models of timm have' in message
    assert options_in(message) == ['MODEL.TYPE', 'timm', 'MODEL.TIMM.NAME', name]
    assert options_in(likely_encoder(state, {}))[-1] == 'NAME'

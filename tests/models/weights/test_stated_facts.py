"""Facts that weights do not show: a mismatch is refused, and the named option gives the features.

The features are compared with the forward pass of the program that wrote the weights.
"""

import json
import re
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from transfers import (
    PLAIN,
    assert_same,
    images,
    make_config,
    make_model,
    randomise,
    started,
    started_timm,
    transfer,
)
from transformers_configs import swin_config, vit_config

from config import config_text
from models import build_model
from models.weights.recognise import KNOWN_HEADS

DIFFERENT = 'would compute something else'
TIMM = {'MODEL__TIMM__NAME': 'vit_tiny_patch16_224', 'DATA__IMG_SIZE': 224}
VIT_SIZES = {'img_size': 32, 'patch_size': 8, 'in_chans': 1, 'embed_dim': 32, 'depth': 2}


def tokens_of(model: torch.nn.Module) -> torch.Tensor:
    return model.encode(model.patch_embed(images(model.in_chans)))


def write_theirs(model: torch.nn.Module, folder: Path) -> Path:
    randomise(model)
    model.eval().save_pretrained(folder)
    return folder / 'model.safetensors'


def change_config(folder: Path, **values: object) -> None:
    file = folder / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# config.json of transformers


@torch.no_grad()
@pytest.mark.parametrize(('kind', 'heads'), [('ViT', 2), ('ViTMAE', 8), ('Dinov2', 2)])
def test_the_number_of_heads_in_config_json_is_needed(kind, heads, transformers, tmp_path) -> None:
    theirs = getattr(transformers, f'{kind}Model')(
        vit_config(getattr(transformers, f'{kind}Config'), num_attention_heads=heads, mlp_ratio=4,
                   mask_ratio=0.0)
    )  # fmt: skip
    file = write_theirs(theirs, tmp_path)
    options = PLAIN | {'MODEL__VIT__INIT_VALUES': 1.0 if kind == 'Dinov2' else None}
    message = rf'{DIFFERENT}.* 4 here \(set MODEL.VIT.NUM_HEADS {heads}'
    with pytest.raises(ValueError, match=message):
        started(make_config('vit', 1, **options), file)
    ours = started(make_config('vit', 1, **options, MODEL__VIT__NUM_HEADS=heads), file)
    noise = {'noise': torch.arange(16.0)[None].expand(2, -1)} if kind == 'ViTMAE' else {}
    wanted = theirs(pixel_values=images(), **noise).last_hidden_state
    assert wanted.std() > 0.3
    torch.testing.assert_close(tokens_of(ours), wanted, rtol=0, atol=1e-4)


def test_the_heads_of_maes_decoder_are_compared_where_it_is_loaded(transformers, tmp_path) -> None:
    sizes = {'hidden_size': 16, 'num_hidden_layers': 1, 'intermediate_size': 64}
    sizes = {f'decoder_{key}': value for key, value in sizes.items()}
    theirs = vit_config(transformers.ViTMAEConfig, **sizes, decoder_num_attention_heads=2)
    file = write_theirs(transformers.ViTMAEForPreTraining(theirs), tmp_path)
    config = make_config('vit', 1, **PLAIN, MODEL__PRETRAIN='mae', DATA__MASK_PATCH_SIZE=8)
    config.MODEL.MAE.update(DECODER_EMBED_DIM=16, DECODER_DEPTH=1, DECODER_NUM_HEADS=4)
    with pytest.raises(ValueError, match=r'set MODEL\.MAE\.DECODER_NUM_HEADS 2\)$'):
        started(config, file, is_pretrain=True)
    started(make_config('vit', 1, **PLAIN), file)
    config.MODEL.MAE.DECODER_NUM_HEADS = 2
    started(config, file, is_pretrain=True)


@pytest.mark.parametrize('kind', ['swin', 'vit'])
@pytest.mark.parametrize(
    ('fact', 'message'),
    [
        ({'hidden_act': 'quick_gelu'}, 'activation quickgelu in .* gelu here'),
        ({'hidden_act': 'gelu_pytorch_tanh'}, 'activation gelutanh in'),
        ({'hidden_act': 'relu'}, 'activation relu in'),
        ({'layer_norm_eps': 1e-3}, 'epsilon of the norms 0.001 in'),
        ({'hidden_act': 'gelu_python'}, None),
    ],
)
def test_activation_and_epsilon_are_compared(kind, fact, message, transformers, tmp_path, log):
    theirs = {
        'swin': lambda: transformers.SwinModel(swin_config(transformers)),
        'vit': lambda: transformers.ViTModel(vit_config(transformers.ViTConfig)),
    }[kind]()
    file = write_theirs(theirs, tmp_path)
    change_config(tmp_path, **fact)
    if message is None:
        started(make_config(kind, 1, **PLAIN), file)
        assert 'assumed, because' not in log.text
        assert ('epsilon of the norms: 1e-12, here 1e-06' in log.text) == (kind == 'vit')
        return
    with pytest.raises(ValueError, match=f'{message}.*MODEL.TYPE {kind} has no option for it'):
        started(make_config(kind, 1, **PLAIN), file)


@torch.no_grad()
def test_the_pooling_of_beit_is_compared(transformers, tmp_path) -> None:
    """The file of a BEiT that does not pool has the same entries as one that was never pooled."""
    options = {'use_relative_position_bias': True, 'use_shared_relative_position_bias': True}
    config = vit_config(transformers.BeitConfig, use_mean_pooling=False, **options)
    theirs = transformers.BeitModel(config)
    file = write_theirs(theirs, tmp_path)
    ours = make_config('vit', 1, MODEL__VIT__USE_RPB=True, MODEL__VIT__USE_MEAN_POOLING=True)
    with pytest.raises(ValueError, match=r'pooling token .*set MODEL\.VIT\.USE_MEAN_POOLING False'):
        started(ours, file)
    ours.MODEL.VIT.USE_MEAN_POOLING = False
    wanted = theirs(pixel_values=images()).pooler_output
    found = started(ours, file).forward_features(images())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_resnet_with_other_strides_is_refused(transformers, tmp_path) -> None:
    sizes = {'hidden_sizes': [256, 512, 1024, 2048], 'depths': [3, 4, 6, 3]}
    transformers.ResNetModel(transformers.ResNetConfig(**sizes)).save_pretrained(tmp_path)
    config = make_config('timm', 3, MODEL__TIMM__NAME='resnet50')
    started_timm(config, tmp_path / 'model.safetensors')
    for key in ('downsample_in_bottleneck', 'downsample_in_first_stage'):
        change_config(tmp_path, **{key: True})
        with pytest.raises(ValueError, match=f'{key} True in their training, and False here'):
            started_timm(config, tmp_path / 'model.safetensors')
        change_config(tmp_path, **{key: False})


@pytest.mark.parametrize('value', ['12', [], [4, 'x'], {'a': 1}, True])
def test_an_impossible_fact_is_named(value, transformers, tmp_path) -> None:
    file = write_theirs(transformers.ViTModel(vit_config(transformers.ViTConfig)), tmp_path)
    change_config(tmp_path, num_attention_heads=value)
    with pytest.raises(ValueError, match='num_attention_heads must be a number'):
        started(make_config('vit', 1, **PLAIN), file)


# config.json of timm, and files that name a model of timm


def timm_folder(folder: Path, name: str = 'vit_tiny_patch16_224', **arguments: object):
    """Write a model of timm with random weights as a folder; return it and its file."""
    model = timm.create_model(name, **arguments)
    randomise(model)
    save_for_hf(model.eval(), folder, model_args=arguments, safe_serialization=True)
    return model, folder / 'model.safetensors'


@torch.no_grad()
def test_the_arguments_of_timms_config_json_are_compared(tmp_path) -> None:
    theirs, file = timm_folder(tmp_path, **VIT_SIZES, num_heads=2)
    with pytest.raises(ValueError, match=rf'{DIFFERENT}.*set MODEL\.VIT\.NUM_HEADS 2'):
        started(make_config('vit', 1, **PLAIN), file)
    ours = started(make_config('vit', 1, **PLAIN, MODEL__VIT__NUM_HEADS=2), file)
    assert_same(tokens_of(ours), theirs.forward_features(images()))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'act_layer': 'quick_gelu'}, 'activation quickgelu in their training'),
        ({'global_pool': 'avg', 'fc_norm': False}, 'USE_MEAN_POOLING True'),
    ],
)
def test_other_arguments_of_timm_are_refused(arguments, message, tmp_path) -> None:
    _, file = timm_folder(tmp_path, **VIT_SIZES, num_heads=4, **arguments)
    with pytest.raises(ValueError, match=message):
        started(make_config('vit', 1, **PLAIN, MODEL__VIT__USE_MEAN_POOLING=False), file)


def test_an_unknown_argument_of_timm_is_refused_and_not_used(tmp_path) -> None:
    """It could also download something."""
    _, file = timm_folder(tmp_path, **VIT_SIZES, num_heads=4)
    for arguments in ({'checkpoint_path': '/etc/passwd'}, {'output_stride': 16}):
        change_config(tmp_path, model_args=VIT_SIZES | arguments)
        with pytest.raises(ValueError, match=f'the argument {next(iter(arguments))} of vit_tiny'):
            started(make_config('vit', 1, **PLAIN), file)


@pytest.mark.parametrize(
    ('theirs', 'ours', 'is_same'),
    [
        ('tf_mobilenetv3_small_075', 'mobilenetv3_small_075', False),
        ('vit_tiny_patch16_224', 'vit_tiny_patch16_224', True),
    ],
)
def test_a_model_of_timm_that_differs_in_no_shape_is_refused(theirs, ours, is_same, tmp_path):
    torch.save(timm.create_model(theirs).state_dict(), tmp_path / 'pytorch_model.bin')
    about = {'architecture': theirs, 'num_classes': 1000, 'pretrained_cfg': {}}
    (tmp_path / 'config.json').write_text(json.dumps(about))
    config = make_config('timm', 3, MODEL__TIMM__NAME=ours, DATA__IMG_SIZE=224)
    refusal = pytest.raises(ValueError, match=f'{DIFFERENT}.*strides and padding')
    with nullcontext() if is_same else refusal:
        started_timm(config, tmp_path / 'pytorch_model.bin')


def test_the_model_that_a_file_names_is_compared(tmp_path) -> None:
    """As timm's CheckpointSaver writes it, with its options as an argparse.Namespace or dict."""
    state, name = VisionTransformer(**VIT_SIZES, num_heads=2).state_dict(), 'vit_tiny_patch16_224'
    options = Namespace(model=name, model_kwargs={'num_heads': 2}, gp=None)
    as_arch = {'arch': name, 'model_kwargs': options.model_kwargs}
    two, three = rf'{DIFFERENT}.*set MODEL\.VIT\.NUM_HEADS 2', 'heads 3 in their training, and 4'
    for more, message in (
        ({'args': options}, two),
        ({'args': options, 'arch': 'vit'}, two),
        ({'args': vars(options)}, two),
        ({'args': as_arch}, two),
        ({'arch': name}, three),
    ):
        torch.save({'state_dict': state, 'optimizer': {}} | more, tmp_path / 'x.pth')
        with pytest.raises(ValueError, match=message):
            started(make_config('vit', 1, **PLAIN), tmp_path / 'x.pth')


def test_timms_config_json_states_mean_and_deviation(tmp_path, log) -> None:
    """Here 0.5 and 0.5; those of ImageNet would be wrong."""
    sizes = VIT_SIZES | {'in_chans': 3}
    _, file = timm_folder(tmp_path, **sizes, num_heads=4)
    started(make_config('vit', 1, **PLAIN, MODEL__VIT__USE_MEAN_POOLING=False), file)
    assert 'from 3 to 1 channels, from mean 0.5, 0.5, 0.5 and deviation 0.5, 0.5, 0.5' in log.text
    assert 'assumed' not in log.text


# Checkpoints of this project


def test_the_heads_of_a_checkpoint_are_compared(tmp_path) -> None:
    """They have the same weights, and the features would be others."""
    mae = PLAIN | {'MODEL__PRETRAIN': 'mae', 'MODEL__MAE__DECODER_EMBED_DIM': 16,
                   'MODEL__MAE__DECODER_DEPTH': 1, 'DATA__MASK_PATCH_SIZE': 8}  # fmt: skip
    for key in ('VIT__NUM_HEADS', 'MAE__DECODER_NUM_HEADS'):
        configs = (make_config('vit', 1, **mae | {f'MODEL__{key}': heads}) for heads in (4, 2))
        with pytest.raises(ValueError, match=f'set MODEL.{key.replace("__", ".")} 4'):
            transfer(*configs, tmp_path, own=True)


def test_the_timm_model_of_a_checkpoint_is_compared(tmp_path) -> None:
    names = ('tf_mobilenetv3_small_075', 'mobilenetv3_small_075')
    before, now = (make_config('timm', 3, MODEL__TIMM__NAME=name) for name in names)
    state = build_model(before, is_pretrain=False).state_dict()
    torch.save({'model': state, 'config': config_text(before)}, tmp_path / 'own.pth')
    with pytest.raises(ValueError, match='strides and padding'):
        started_timm(now, tmp_path / 'own.pth')
    started_timm(before, tmp_path / 'own.pth')


@pytest.mark.parametrize(('before', 'now'), [(0.5, None), (None, 0.5), (0.5, 0.25)])
def test_the_scale_of_the_attention_in_a_checkpoint_is_compared(before, now, tmp_path) -> None:
    configs = (make_config('swin', 1, MODEL__SWIN__QK_SCALE=scale) for scale in (before, now))
    with pytest.raises(ValueError, match=rf'set MODEL\.SWIN\.QK_SCALE {before}\)'):
        transfer(*configs, tmp_path, own=True)


def test_the_heads_of_an_attention_head_are_not_those_of_the_encoder(tmp_path) -> None:
    """A probe with MODEL.HEAD attention starts from an encoder without it."""
    before = make_config('vit', 1, **PLAIN, MODEL__VIT__NUM_HEADS=2)
    now = make_config('vit', 1, **PLAIN, MODEL__VIT__NUM_HEADS=2, MODEL__HEAD='attention')
    heads = make_model(now, is_pretrain=False).head.modules()
    assert 2 not in [module.num_heads for module in heads if hasattr(module, 'num_heads')]
    transfer(before, now, tmp_path, stages=(True, False), own=True)


# Where nothing is stated


@pytest.mark.parametrize(
    ('kind', 'options', 'heads'),
    [
        ('vit', PLAIN, r'4 heads assumed, because the file does not state their number$'),
        ('timm', TIMM, r'3 heads assumed.* 3 in ViT-Ti'),
        ('swin', PLAIN, None),  # its position tables have a column for each head
    ],
)
def test_heads_that_nothing_states_are_logged_as_assumed(kind, options, heads, tmp_path, log):
    config = make_config(kind, 3, **options)
    source = make_model(config, is_pretrain=False).state_dict()
    source = {key.removeprefix('encoder.'): value for key, value in source.items()}
    torch.save(source, tmp_path / 'x.pth')
    started(config, tmp_path / 'x.pth')
    if heads is None:
        assert 'heads assumed' not in log.text
    else:
        assert any(re.search(heads, message) for message in log.messages)


@pytest.mark.parametrize(
    'name',
    ['vit_tiny_patch16_224', 'vit_small_patch16_224', 'vit_base_patch16_224',
     'vit_large_patch16_224', 'vit_so400m_patch14_siglip_224', 'vit_huge_patch14_224',
     'vit_giant_patch14_224', 'vit_gigantic_patch14_224', 'vit_giant_patch14_dinov2'],
)  # fmt: skip
def test_the_known_numbers_of_heads_are_those_of_timm(name: str) -> None:
    with torch.device('meta'):
        model = timm.create_model(name, depth=1)
    heads = re.match(r'\d+', KNOWN_HEADS[model.embed_dim])[0]
    assert int(heads) == model.blocks[0].attn.num_heads

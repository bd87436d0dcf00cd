"""Weights from folders of transformers: published models, and exports of this project."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_models_export import CASES
from transfers import (
    GREY,
    IMAGENET,
    LOGGER,
    grey_images,
    load_run,
    make_config,
    make_model,
    randomise,
)
from yacs.config import CfgNode

from config import default_config
from models import build_model
from models.convert import to_huggingface
from models.export import export
from utils import load_pretrained

NAMES_OF_CASES = [
    pytest.param(name, marks=[] if name == 'swin' else [pytest.mark.slow])
    for name in ('swin', 'vit, shared table', 'vit, pre-trained to be pooled', 'vit, MAE')
]
PLAIN = {'MODEL__VIT__USE_APE': True, 'MODEL__VIT__INIT_VALUES': None,
         'MODEL__VIT__USE_SHARED_RPB': False}  # fmt: skip


def started(config: CfgNode, file: Path, *, is_pretrain: bool = False) -> torch.nn.Module:
    model = make_model(config, seed=7, is_pretrain=is_pretrain)
    config.PRETRAINED = str(file)
    load_pretrained(config, model, LOGGER)
    return model


def images(channels: int = 1, size: int = 32) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(5))


# Folders of this project


@pytest.mark.parametrize('name', NAMES_OF_CASES)
def test_an_exported_folder_gives_the_checkpoint_s_weights_back(name: str, tmp_path, log) -> None:
    pytest.importorskip('transformers', reason='needs requirements-export.txt')
    stage, model, _ = CASES[name]
    source = load_run(tmp_path, stage, model)
    export(source, 'huggingface', tmp_path / 'hf', overwrite=False)
    config = default_config()
    config.merge_from_file(str(tmp_path / 'run.yaml'))
    if not config.MODEL.VIT.QKV_BIAS:
        config.MODEL.VIT.QKV_BIAS = True  # queries and values always have a bias in transformers
    is_pretrain = stage == 'simmim'
    torch.manual_seed(3)
    config.PRETRAINED = str(tmp_path / 'hf' / 'model.safetensors')
    found = build_model(config, is_pretrain=is_pretrain)
    load_pretrained(config, found, LOGGER)
    found = found.encoder if is_pretrain else found
    expected = source.encoder.state_dict()
    for key, value in found.state_dict().items():
        if key.startswith('head.'):  # transformers' files do not say what the labels mean
            assert not torch.equal(value, expected[key]) or key == 'head.bias'
        elif key in expected and key != 'mask_token':
            assert torch.equal(value, expected[key]), key
        else:
            assert key == 'mask_token' or key.endswith(('q_bias', 'v_bias')), key
            assert key == 'mask_token' or not value.any()
    assert 'channels' not in log.text and 'normalised with' not in log.text


# Models of transformers


@pytest.fixture
def transformers():
    return pytest.importorskip('transformers', reason='needs requirements-export.txt')


def write_theirs(model: torch.nn.Module, folder: Path) -> Path:
    randomise(model)
    model.eval().save_pretrained(folder)
    return folder / 'model.safetensors'


def swin_config(transformers, channels: int = 1, **options: object):
    return transformers.SwinConfig(
        image_size=32, patch_size=4, num_channels=channels, embed_dim=16, depths=[2, 1],
        num_heads=[2, 4], window_size=4, encoder_stride=8, **options,
    )  # fmt: skip


def vit_config(kind, channels: int = 1, **options: object):
    sizes = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4}
    sizes |= {'intermediate_size': 128, 'image_size': 32, 'patch_size': 8, 'encoder_stride': 8}
    return kind(num_channels=channels, **(sizes | options))


@torch.no_grad()
@pytest.mark.parametrize('kind', ['SwinModel', 'SwinForImageClassification'])
def test_swin_of_transformers_gives_its_features(kind: str, transformers, tmp_path, log) -> None:
    theirs = getattr(transformers, kind)(swin_config(transformers))
    file = write_theirs(theirs, tmp_path)
    ours, bare = started(make_config('swin', 1), file), getattr(theirs, 'swin', theirs)
    x, wanted = images(), bare(pixel_values=images())
    tokens = ours.encode(ours.patch_embed(x))
    assert wanted.last_hidden_state.std() > 0.5
    torch.testing.assert_close(tokens, wanted.last_hidden_state, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.forward_features(x), wanted.pooler_output, rtol=0, atol=1e-4)
    assert re.search(r'new +2  head 2$', log.text, re.MULTILINE)


@torch.no_grad()
def test_simmim_of_transformers_reconstructs_the_same(transformers, tmp_path, log) -> None:
    """The test compares encoder, mask token and decoder on hidden patches."""
    theirs = transformers.SwinForMaskedImageModeling(swin_config(transformers))
    file = write_theirs(theirs, tmp_path)
    ours = started(make_config('swin', 1), file, is_pretrain=True)
    mask = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.6
    wanted = theirs(pixel_values=images(), bool_masked_pos=mask.flatten(1)).reconstruction
    found = ours.reconstruct(images(), mask.long())
    assert wanted.std() > 0.5
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert re.search(r'new +0$', log.text, re.MULTILINE)


@pytest.mark.slow
@torch.no_grad()
def test_vit_of_transformers_gives_its_features(transformers, tmp_path) -> None:
    """The biases of the keys, which only timm's ViT has, do not affect the features.

    The test uses float64, because twelve blocks would amplify rounding to about 1e-4.
    """
    sizes = {'hidden_size': 192, 'num_hidden_layers': 12, 'num_attention_heads': 3}
    sizes |= {'intermediate_size': 768, 'patch_size': 16, 'layer_norm_eps': 1e-6}
    theirs = transformers.ViTModel(vit_config(transformers.ViTConfig, **sizes))
    file, x = write_theirs(theirs, tmp_path), images().double()
    wanted = theirs.double()(pixel_values=x).last_hidden_state
    assert wanted.std() > 0.5
    assert load_file(file)[next(k for k in load_file(file) if 'key.bias' in k)].std() > 0.1

    config = make_config('timm', 1)
    config.MODEL.TIMM.NAME = 'vit_tiny_patch16_224'
    found = started(config, file).double().encoder.forward_features(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)

    config = make_config('vit', 1, **PLAIN)
    config.MODEL.VIT.update(EMBED_DIM=192, DEPTH=12, NUM_HEADS=3, PATCH_SIZE=16)
    ours = started(config, file).double()
    found = ours.encode(ours.patch_embed(x))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@torch.no_grad()
def test_beit_of_transformers_gives_its_features(transformers, tmp_path) -> None:
    options = {'use_relative_position_bias': True, 'use_shared_relative_position_bias': True}
    config = vit_config(transformers.BeitConfig, use_mean_pooling=True, **options)
    theirs = transformers.BeitModel(config)
    file = write_theirs(theirs, tmp_path)
    ours = make_config('vit', 1, MODEL__VIT__USE_RPB=True, MODEL__VIT__USE_MEAN_POOLING=True)
    wanted = theirs(pixel_values=images()).pooler_output
    found = started(ours, file).forward_features(images())
    assert wanted.std() > 0.3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def mae_of_transformers(
    transformers, kind: str, channels: int, mask_ratio: float
) -> torch.nn.Module:
    """Build MAE with random weights and sine-cosine positions, as in the published file."""
    sizes = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4}
    decoder = {'hidden_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 4}
    sizes |= {'intermediate_size': 128, 'image_size': 32, 'patch_size': 8}
    sizes |= {f'decoder_{key}': value for key, value in decoder.items()}
    sizes |= {'decoder_intermediate_size': 64, 'num_channels': channels}
    # MAE's own epsilon; transformers' 1e-12 moves these features by 2e-5.
    config = transformers.ViTMAEConfig(**sizes, mask_ratio=mask_ratio, layer_norm_eps=1e-6)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not name.endswith(('position_embeddings', 'decoder_pos_embed')):
                centre = 1.0 if 'norm' in name and name.endswith('.weight') else 0.0
                value.normal_(centre, 0.15)
    return model


@torch.no_grad()
@pytest.mark.parametrize('kind', ['ViTMAEForPreTraining', 'ViTMAEModel'])
@pytest.mark.parametrize('channels', [3, 1])
def test_mae_of_transformers_gives_its_features(
    kind: str, channels: int, transformers, tmp_path
) -> None:
    """The test covers both kinds of position embeddings, and one or three channels."""
    torch.manual_seed(1)
    theirs = mae_of_transformers(transformers, kind, 3, mask_ratio=0.0)
    theirs.save_pretrained(tmp_path)
    in_order = torch.arange(16.0).expand(2, -1)  # a fixed order of patches instead of a random one
    x = grey_images(IMAGENET)
    wanted = getattr(theirs, 'vit', theirs)(pixel_values=x, noise=in_order).last_hidden_state
    assert wanted.std() > 0.5
    for fixed in (True, False):
        options = PLAIN | {'MODEL__VIT__USE_APE': not fixed, 'MODEL__VIT__USE_SINCOS': fixed}
        ours = started(make_config('vit', channels, **options), tmp_path / 'model.safetensors')
        found = ours.encode(ours.patch_embed(x if channels == 3 else grey_images(GREY)))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('layers', ['decoder_layers', 'decoder_encoder.layer'])
def test_mae_of_transformers_predicts_the_same_pixels(layers: str, transformers, tmp_path) -> None:
    """The decoder's blocks can have two names. The published file uses the first."""
    torch.manual_seed(2)
    theirs = mae_of_transformers(transformers, 'ViTMAEForPreTraining', 1, mask_ratio=0.75)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / 'model.safetensors'
    state = {
        re.sub(r'decoder_(layers|encoder\.layer)', layers, key): value
        for key, value in load_file(file).items()
    }
    save_file(state, file)
    config = make_config(
        'vit', 1, **PLAIN | {'MODEL__PRETRAIN': 'mae', 'MODEL__VIT__USE_APE': False}
    )
    config.MODEL.VIT.USE_SINCOS, config.DATA.MASK_PATCH_SIZE, config.DATA.MASK_RATIO = True, 8, 0.75
    config.MODEL.MAE.update(DECODER_EMBED_DIM=16, DECODER_DEPTH=1, DECODER_NUM_HEADS=4)
    ours = started(config, file, is_pretrain=True)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(3))
    wanted = theirs(pixel_values=images(), noise=noise)
    found = ours.predict(images(), wanted.mask.unflatten(1, (4, 4)).long())
    pixels = found.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3).flatten(3).squeeze(1)
    assert wanted.logits.std() > 0.3
    torch.testing.assert_close(pixels, wanted.logits, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    'processor, statistics',
    [
        ({'do_normalize': True, 'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}, ([0.5] * 3,) * 2),
        ({'do_normalize': False}, ([0.0] * 3, [1.0] * 3)),
        (None, IMAGENET),
    ],
)
def test_channels_are_folded_by_the_processor_s_statistics(
    processor: dict | None, statistics: tuple, transformers, tmp_path
) -> None:
    """Without the file, ImageNet's statistics are assumed."""
    theirs = transformers.ViTModel(vit_config(transformers.ViTConfig, 3))
    file = write_theirs(theirs, tmp_path)
    if processor:
        (tmp_path / 'preprocessor_config.json').write_text(json.dumps(processor))
    ours = started(make_config('vit', 1, **PLAIN), file)
    found = ours.encode(ours.patch_embed(grey_images(GREY)))
    wanted = theirs(pixel_values=grey_images(statistics)).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


# Errors


def test_a_processor_that_does_not_fit_the_weights_raises_an_error(tmp_path) -> None:
    state = to_huggingface(
        make_model(make_config('vit', 3, **PLAIN), is_pretrain=False).state_dict()
    )
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / 'model.safetensors')
    grey = json.dumps({'image_mean': [0.5], 'image_std': [0.5]})
    for text in (grey, '{', '[' * 100_000):
        (tmp_path / 'preprocessor_config.json').write_text(text)
        with pytest.raises(ValueError, match='preprocessor_config.json'):
            started(make_config('vit', 3, **PLAIN), tmp_path / 'model.safetensors')


def test_weights_of_another_family_are_named_despite_their_processor(tmp_path) -> None:
    state = to_huggingface(
        make_model(make_config('vit', 3, **PLAIN), is_pretrain=False).state_dict()
    )
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / 'model.safetensors')
    processor = json.dumps({'image_mean': [0.5] * 3, 'image_std': [0.5] * 3})
    (tmp_path / 'preprocessor_config.json').write_text(processor)
    other = make_config('timm', 3, MODEL__TIMM__NAME='resnet18')
    other.PRETRAINED = str(tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match='looks like'):
        load_pretrained(other, build_model(other, is_pretrain=False), LOGGER)


@pytest.mark.parametrize('std', [[0.2, 0.0, 0.2], [0.2, -0.2, 0.2]])
def test_channels_are_not_folded_by_an_impossible_deviation(std: list, tmp_path: Path) -> None:
    state = to_huggingface(
        make_model(make_config('vit', 3, **PLAIN), is_pretrain=False).state_dict()
    )
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / 'model.safetensors')
    processor = json.dumps({'image_mean': [0.5] * 3, 'image_std': std})
    (tmp_path / 'preprocessor_config.json').write_text(processor)
    with pytest.raises(ValueError, match='normalisation'):
        started(make_config('vit', 1, **PLAIN), tmp_path / 'model.safetensors')

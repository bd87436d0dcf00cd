"""Weights from folders of transformers: published models, and exports of this project."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transfers import (
    GREY,
    IMAGENET,
    PLAIN,
    grey_images,
    images,
    mae_config,
    make_config,
    randomise,
    started,
)
from transformers_configs import swin_config, vit_config

# Models of transformers


@pytest.fixture(params=['save_pretrained', 'state_dict'])
def write_theirs(request, tmp_path) -> Callable[[torch.nn.Module], Path]:
    """Fill a model and write it in one of two ways, which give the entries different names."""

    def write(model: torch.nn.Module) -> Path:
        randomise(model)
        model.eval().save_pretrained(tmp_path)
        if request.param == 'save_pretrained':
            return tmp_path / 'model.safetensors'
        torch.save(model.state_dict(), tmp_path / 'weights.pth')
        return tmp_path / 'weights.pth'

    return write


@torch.no_grad()
def test_swin_of_transformers_gives_its_features(transformers, write_theirs, log) -> None:
    theirs = transformers.SwinForImageClassification(swin_config(transformers))
    file = write_theirs(theirs)
    ours = started(make_config('swin', 1), file)
    x, wanted = images(), theirs.swin(pixel_values=images())
    tokens = ours.encode(ours.patch_embed(x))
    assert wanted.last_hidden_state.std() > 0.5
    torch.testing.assert_close(tokens, wanted.last_hidden_state, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.forward_features(x), wanted.pooler_output, rtol=0, atol=1e-4)
    assert re.search(r'new +2  head 2$', log.text, re.MULTILINE)


@torch.no_grad()
def test_simmim_of_transformers_reconstructs_the_same(transformers, write_theirs, log) -> None:
    """The test compares encoder, mask token and decoder on hidden patches."""
    theirs = transformers.SwinForMaskedImageModeling(swin_config(transformers))
    file = write_theirs(theirs)
    ours = started(make_config('swin', 1), file, is_pretrain=True)
    mask = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.6
    wanted = theirs(pixel_values=images(), bool_masked_pos=mask.flatten(1)).reconstruction
    found = ours.reconstruct(images(), mask.long())
    assert wanted.std() > 0.5
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert re.search(r'new +0$', log.text, re.MULTILINE)


@torch.no_grad()
def test_beit_of_transformers_gives_its_features(transformers, write_theirs) -> None:
    options = {'use_relative_position_bias': True, 'use_shared_relative_position_bias': True}
    config = vit_config(transformers.BeitConfig, use_mean_pooling=True, **options)
    theirs = transformers.BeitModel(config)
    file = write_theirs(theirs)
    ours = make_config('vit', 1, MODEL__VIT__USE_RPB=True, MODEL__VIT__USE_MEAN_POOLING=True)
    wanted = theirs(pixel_values=images()).pooler_output
    found = started(ours, file).forward_features(images())
    assert wanted.std() > 0.3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def mae_of_transformers(transformers) -> torch.nn.Module:
    """Build MAE with random weights and sine-cosine positions, as in the published file."""
    decoder = {'hidden_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 4}
    sizes = {f'decoder_{key}': value for key, value in decoder.items()}
    sizes |= {'decoder_intermediate_size': 64, 'mask_ratio': 0.75}
    # MAE's own epsilon; transformers' 1e-12 moves these features by 2e-5.
    config = vit_config(transformers.ViTMAEConfig, **sizes, layer_norm_eps=1e-6)
    model = transformers.ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not name.endswith(('position_embeddings', 'decoder_pos_embed')):
                centre = 1.0 if 'norm' in name and name.endswith('.weight') else 0.0
                value.normal_(centre, 0.15)
    return model


@torch.no_grad()
@pytest.mark.parametrize('layers', ['decoder_layers', 'decoder_encoder.layer', ''])
def test_mae_of_transformers_predicts_the_same_pixels(layers: str, transformers, tmp_path) -> None:
    """A saved decoder's blocks can have two names, and `state_dict()` has others ('').

    The published file uses the first.
    """
    torch.manual_seed(2)
    theirs = mae_of_transformers(transformers)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / 'model.safetensors'
    state = {
        re.sub(r'decoder_(layers|encoder\.layer)', layers, key): value
        for key, value in load_file(file).items()
    }
    save_file(state if layers else theirs.state_dict(), file)
    ours = started(mae_config(1), file, is_pretrain=True)
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
    processor: dict | None, statistics: tuple, transformers, write_theirs, tmp_path
) -> None:
    """Without the file, ImageNet's statistics are assumed."""
    theirs = transformers.ViTModel(vit_config(transformers.ViTConfig, 3))
    file = write_theirs(theirs)
    if processor:
        (tmp_path / 'preprocessor_config.json').write_text(json.dumps(processor))
    ours = started(make_config('vit', 1, **PLAIN), file)
    found = ours.encode(ours.patch_embed(grey_images(GREY)))
    wanted = theirs(pixel_values=grey_images(statistics)).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_processor_that_does_not_fit_the_weights_raises_an_error(transformers, tmp_path) -> None:
    transformers.ViTModel(vit_config(transformers.ViTConfig, 3)).save_pretrained(tmp_path)
    grey = json.dumps({'image_mean': [0.5], 'image_std': [0.5]})
    no_numbers = json.dumps({'image_mean': [0.5] * 3, 'image_std': ['0.5'] * 3})
    for text in (grey, no_numbers, '[]', '{', '[' * 100_000):
        (tmp_path / 'preprocessor_config.json').write_text(text)
        with pytest.raises(ValueError, match='preprocessor_config.json'):
            started(make_config('vit', 3, **PLAIN), tmp_path / 'model.safetensors')


def test_an_unknown_entry_is_refused_and_not_called_a_missing_patch_embedding(
    transformers, tmp_path
) -> None:
    """Names of transformers begin with `encoder.`, as names of this project's pre-training do."""
    state = transformers.ViTModel(vit_config(transformers.ViTConfig)).state_dict()
    state['encoder.layer.0.strange.weight'] = torch.ones(3)
    torch.save(state, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=r'1 unexpected \(encoder\.layer\.0\.strange\.weight\)\. '):
        started(make_config('vit', 1, **PLAIN), tmp_path / 'weights.pth')

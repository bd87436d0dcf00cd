"""The attention of the last block against transformers, and a method that hides what it finds."""

import numpy as np
import pytest
import torch
from same_runs import assert_same_weights, final_state
from tiny import SWIN, arguments, finished_run, run_folder, run_main, tiny_config
from torch import nn
from transfers import images, make_config, randomise, started
from transformers_configs import vit_config

from config import Own, check_config
from models import vision_transformer
from models.build import build_model
from models.encoder import ENCODERS

EAGER = {'attn_implementation': 'eager'}  # which gives the weights
SHARE = {
    'SHARE': Own(1.0, 'Share of the hidden units that the attention chooses.', within='[0, 1]')
}


@pytest.fixture
def attended(add_part):
    add_part('MODEL.PRETRAIN', 'attended', 'attended', '', 'MODEL.ATTENDED', SHARE)


def saved(model: nn.Module, folder) -> str:
    randomise(model)
    model.eval().save_pretrained(folder)
    return folder / 'model.safetensors'


@torch.no_grad()
@pytest.mark.parametrize('depths', [[1, 1], [1, 2]], ids=['not shifted', 'shifted'])
def test_attention_of_a_swin_is_that_of_transformers(depths, transformers, tmp_path) -> None:
    """The last stage has four windows of 2 x 2 tokens."""
    sizes = {'embed_dim': 16, 'depths': depths, 'num_heads': [2, 4], 'window_size': 2}
    config = transformers.SwinConfig(image_size=32, patch_size=4, num_channels=1, **sizes, **EAGER)
    theirs = transformers.SwinModel(config, add_pooling_layer=False)
    options = {f'MODEL__SWIN__{key.upper()}': value for key, value in sizes.items()}
    ours = started(make_config('swin', 1, **options), saved(theirs, tmp_path))
    wanted = theirs(pixel_values=images(), output_attentions=True).attentions[-1]
    found = ours.attention(images())
    assert found.shape == (2, 4, 4, 4, 4) and wanted.amax() > 0.5
    torch.testing.assert_close(found.flatten(0, 1), wanted, rtol=0, atol=1e-5)

    # The windows of the grid, whose tokens the shift by 1 moves to the end of its axis.
    received, grid, shift = found.mean(dim=(2, 3)) / 4, ours.attention_map(images()), depths[1] // 2
    for window, token in np.ndindex(4, 4):
        row = (window // 2 * 2 + token // 2 + shift) % 4
        column = (window % 2 * 2 + token % 2 + shift) % 4
        torch.testing.assert_close(grid[:, row, column], received[:, window, token])


@torch.no_grad()
@pytest.mark.parametrize('is_fused', [False, True])
def test_attention_of_a_vit_is_that_of_transformers(
    is_fused, transformers, tmp_path, monkeypatch
) -> None:
    """Also of a model that uses a fused kernel, which gives no weights."""
    options = {'use_relative_position_bias': True, 'use_shared_relative_position_bias': True}
    config = vit_config(transformers.BeitConfig, use_mean_pooling=True, **options, **EAGER)
    theirs = transformers.BeitModel(config)
    ours = make_config('vit', 1, MODEL__VIT__USE_RPB=True, MODEL__VIT__USE_MEAN_POOLING=True)
    ours = started(ours, saved(theirs, tmp_path))
    if is_fused:  # as on a GPU
        monkeypatch.setattr(vision_transformer, 'attend', vision_transformer.attend_fused)
    wanted = theirs(pixel_values=images(), output_attentions=True).attentions[-1]
    found = ours.attention(images())
    assert found.shape == (2, 4, 17, 17)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    patches = wanted[:, :, 1:, 1:].mean(dim=(1, 2))
    want = (patches / patches.sum(dim=1, keepdim=True)).view(2, 4, 4)
    torch.testing.assert_close(ours.attention_map(images()), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize('kind', ['swin', 'vit'])
def test_a_map_has_the_sum_1_and_a_gradient(kind) -> None:
    model = build_model(make_config(kind, 1), is_pretrain=True)
    found = model.encoder.attention_map(images())
    assert found.shape == (2, 4, 4) and (found > 0).all()
    torch.testing.assert_close(found.sum(dim=(1, 2)), torch.ones(2))
    found.square().sum().backward()
    assert model.encoder.patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('kind', ['swin', 'vit'])
def test_attended_units_are_hidden_in_training_and_validation_keeps_the_drawn_masks(
    kind, attended
) -> None:
    options = {'DATA__IMG_SIZE': 64, 'DATA__MASK_PATCH_SIZE': 16, 'MODEL__PRETRAIN': 'attended'}
    config = make_config(kind, 1, **options)
    check_config(config, 'simmim')
    torch.manual_seed(0)
    model, x = build_model(config), images(size=64)
    unit, seen = 16 // model.patch_size, []
    model.loss = lambda x, mask: seen.append(mask) or x.sum()

    def mask_of(units: torch.Tensor) -> torch.Tensor:
        return units.view(2, 4, 4).repeat_interleave(unit, 1).repeat_interleave(unit, 2)

    units = torch.zeros(2, 16, dtype=torch.uint8)
    units[0, :6] = units[1, 10:] = 1
    model.train()(x, mask_of(units))
    model.eval()(x, mask_of(units))
    attention = model.encoder.attention_map(x)
    side = attention.shape[1] // 4
    attention = attention.view(2, 4, side, 4, side).mean(dim=(2, 4)).flatten(1)
    most = attention.argsort(dim=1, descending=True)[:, :6]
    trained, validated = seen
    assert torch.equal(trained, mask_of(torch.zeros_like(units).scatter(1, most, 1)))
    assert torch.equal(validated, mask_of(units)) and trained.dtype == validated.dtype


def test_a_method_that_hides_what_is_attended_trains_and_resumes_bit_for_bit(
    attended, phantom, tmp_path
) -> None:
    model = SWIN | {'PRETRAIN': 'attended', 'ATTENDED': {'SHARE': 0.5}}
    sections = {'TRAIN': {'SAVE_EVERY_STEPS': 2}, 'EVAL': {'HOLDOUT_IMAGES': 2}}
    whole = finished_run('simmim', phantom, tmp_path / 'a', model=model, **sections)
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', model, **sections)
    start = ['--resume', str(whole / 'ckpt_epoch_0_step_2.pth')]
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'b', *start)) == 0
    assert_same_weights(final_state(run_folder(tmp_path / 'b', 'simmim')), final_state(whole))


def test_an_encoder_without_attention_says_so() -> None:
    class Plain(ENCODERS['swin']):
        attention_map = ENCODERS['swin'].__mro__[1].attention_map

    model = Plain(**Plain.constructor_arguments(make_config('swin', 1)), num_classes=0)
    with pytest.raises(NotImplementedError, match='Plain has no attention'):
        model.attention_map(images())

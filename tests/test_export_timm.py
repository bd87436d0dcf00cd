"""export/to_timm.py: models that timm builds itself compute what the checkpoint computes."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_export_source import load_run, outputs_of, randomise, swin, vit
from tiny import SWIN, VIT

from models import export as to_timm
from models.export import Source, example_images

MAE = {'PRETRAIN': 'mae', 'MAE': {'DECODER_EMBED_DIM': 8, 'DECODER_NUM_HEADS': 2}}
ALONE = {'USE_SHARED_RPB': False}
# stage, MODEL, timm's model
CASES = {
    'swin': ('finetune', SWIN, 'swin_tiny_patch4_window7_224'),
    'swin, 3 channels': ('finetune', swin(IN_CHANS=3), 'swin_tiny_patch4_window7_224'),
    'swin, window over a stage': (
        'finetune', swin(WINDOW_SIZE=16), 'swin_tiny_patch4_window7_224',
    ),
    'swin, no bias': ('finetune', swin(QKV_BIAS=False), 'swin_tiny_patch4_window7_224'),
    'swin, pre-trained': ('simmim', SWIN, 'swin_tiny_patch4_window7_224'),
    'vit, shared table': ('finetune', VIT, 'beit_base_patch16_224'),
    'vit, own tables, pooled': (
        'finetune',
        vit(USE_RPB=True, USE_MEAN_POOLING=True, USE_APE=True, INIT_VALUES=None, **ALONE),
        'beit_base_patch16_224',
    ),
    'vit, both tables, 3 channels': (
        'finetune', vit(USE_RPB=True, IN_CHANS=3, QKV_BIAS=False), 'beit_base_patch16_224',
    ),
    'vit, learned positions': (
        'finetune', vit(USE_APE=True, INIT_VALUES=None, **ALONE), 'vit_base_patch16_224',
    ),
    'vit, fixed positions, pooled': (
        'finetune', vit(USE_SINCOS=True, USE_MEAN_POOLING=True, **ALONE), 'vit_base_patch16_224',
    ),
    'vit, no positions': (
        'finetune', vit(QKV_BIAS=False, MLP_RATIO=2.5, **ALONE), 'vit_base_patch16_224',
    ),
    'vit, pre-trained': ('simmim', VIT, 'beit_base_patch16_224'),
    'vit, pre-trained to be pooled': (
        'simmim', vit(USE_MEAN_POOLING=True), 'beit_base_patch16_224',
    ),
    'vit, MAE': (
        'simmim',
        vit(USE_SINCOS=True, USE_MEAN_POOLING=True, INIT_VALUES=None, **ALONE) | MAE,
        'vit_base_patch16_224',
    ),
}  # fmt: skip


def export(folder: Path, stage: str, model: dict) -> tuple[Source, Path]:
    source = load_run(folder, stage, model)
    file = folder / 'out' / 'a.safetensors'
    assert to_timm.write_timm(source, file, overwrite=False) < 1e-5
    return source, file


def about(file: Path) -> dict:
    with safe_open(file, 'pt') as opened:
        return json.loads(opened.metadata()['simmim'])


@pytest.mark.parametrize('stage, model, name', CASES.values(), ids=CASES)
def test_timm_s_own_model_computes_the_same(stage, model, name, tmp_path) -> None:
    """Built under timm's name with the header's arguments, filled strictly from random weights."""
    source, file = export(tmp_path, stage, model)
    theirs = timm.create_model(name, **about(file)['arguments']).eval()
    assert type(theirs).__name__ == about(file)['class']
    randomise(theirs)
    theirs.load_state_dict(load_file(file), strict=True)
    images = example_images(source, 3)
    with torch.no_grad():
        found = theirs(images) if source.outputs else theirs.forward_features(images)
    expected = outputs_of(source, 3)
    assert expected.std() > 0.5 and expected.shape[0] == 3
    found = found.numpy().reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_each_entry_matters(tmp_path) -> None:
    """A model with one entry that is not the checkpoint's computes something else."""
    for stage, model, name in (CASES['swin'], CASES['vit, shared table']):
        source, file = export(tmp_path / name, stage, model)
        state, expected = load_file(file), outputs_of(source, 3)
        theirs = timm.create_model(name, **about(file)['arguments']).eval()
        unseen = set()
        for key, value in state.items():
            theirs.load_state_dict(state | {key: value + torch.rand(value.shape)})
            with torch.no_grad():
                found = theirs(example_images(source, 3)).numpy()
            if np.abs(found - expected).max() < 1e-3:
                unseen.add(key)
        assert unseen == set()


def test_the_header_says_what_is_needed_to_use_it(tmp_path) -> None:
    header = about(export(tmp_path, 'finetune', SWIN)[1])
    assert header['class'] == 'SwinTransformer'
    assert header['arguments']['window_size'] == 4 and header['arguments']['num_classes'] == 14
    assert header['input_size'] == [1, 32, 32] and header['outputs'][13] == 'Support Devices'
    assert (header['mean'], header['std']) == ([0.503], [0.292])
    assert 'not for clinical use' in header['use']


def test_the_file_is_read_as_any_other_of_the_user_s(tmp_path) -> None:
    _, file = export(tmp_path, 'finetune', SWIN)
    other = tmp_path / 'other'
    other.touch()
    assert file.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize('broken', ['swin_to_timm', 'vit_to_timm_beit', 'vit_to_timm_vit'])
def test_what_timm_computes_otherwise_is_not_written(broken, tmp_path, monkeypatch) -> None:
    name = {'swin_to_timm': 'swin', 'vit_to_timm_beit': 'vit, shared table'}.get(
        broken, 'vit, learned positions'
    )
    stage, model, _ = CASES[name]
    source = load_run(tmp_path, stage, model)
    right = getattr(to_timm, broken)

    def swapped(state: dict) -> dict:
        """The norms of the first two blocks change places."""
        state = right(state)
        first, second = [key for key in state if key.endswith('norm1.weight')][:2]
        return state | {first: state[second], second: state[first]}

    monkeypatch.setattr(to_timm, broken, swapped)
    with pytest.raises(ValueError, match='gives other outputs than the checkpoint'):
        to_timm.write_timm(source, tmp_path / 'a.safetensors', overwrite=False)
    assert not list(tmp_path.glob('*a.*safetensors'))

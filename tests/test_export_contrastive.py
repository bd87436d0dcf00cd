"""Exports of contrastive pre-training: the encoder's pooled features; and what cards say."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_export_source import outputs_of, randomise, run, vit, write_run
from test_export_timm import MAE, about
from test_readme import load_script
from tiny import ROOT, SWIN, VIT, tiny_config

from config import config_text, default_config
from models import build_model
from models.contrastive import METHODS, build_contrastive
from models.export import (
    Source,
    example_images,
    facts,
    load_source,
    load_timm,
    write_huggingface,
    write_onnx,
    write_timm,
    write_torch_export,
)
from utils import load_pretrained, save_checkpoint

LOGGER = logging.getLogger('export')
RESNET = {'TYPE': 'timm', 'DROP_PATH_RATE': 0.0, 'IN_CHANS': 1, 'TIMM': {'NAME': 'resnet18'}}
POOLED = vit(USE_MEAN_POOLING=True)
SMALL = {'QUEUE_SIZE': 32, 'NUM_PROTOTYPES': 8}


def write_contrastive(folder: Path, model: dict, method: str = 'moco') -> Path:
    """A checkpoint as main_contrastive.py leaves it, with random weights; returns its path."""
    cfg = tiny_config(
        folder / 'run.yaml', 'contrastive', model, CONTRASTIVE=SMALL | {'METHOD': method}
    )
    config = default_config()
    config.merge_from_file(str(cfg))
    trained = build_contrastive(config, total_steps=10, num_images=100, logger=LOGGER)
    if model is not RESNET:  # its activations would explode
        randomise(trained)
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    path = folder / 'ckpt_epoch_1.pth'
    save_checkpoint(path, {'model': trained.state_dict(), 'config': config_text(config)})
    return path


def load(folder: Path, model: dict, method: str = 'moco') -> Source:
    return load_source(write_contrastive(folder, model, method), LOGGER)


def fine_tuned_features(folder: Path, images: torch.Tensor) -> np.ndarray:
    """What fine-tuning starts from, with --pretrained: its features."""
    config = default_config()
    config.merge_from_file(str(folder / 'run.yaml'))
    config.MODEL.NUM_CLASSES, config.PRETRAINED = 14, str(folder / 'ckpt_epoch_1.pth')
    model = build_model(config, is_pretrain=False).eval()
    load_pretrained(config, model, LOGGER)
    with torch.no_grad():
        return model.forward_features(images).numpy()


@pytest.mark.parametrize(
    'model, method, width',
    [*((VIT, method, 16) for method in METHODS), (POOLED, 'moco', 16), (SWIN, 'simclr', 16),
     (RESNET, 'moco', 512), (RESNET, 'swav', 512)],
)  # fmt: skip
def test_the_encoder_gives_the_features_that_fine_tuning_starts_from(
    model: dict, method: str, width: int, tmp_path
) -> None:
    source = load(tmp_path, model, method)
    found = outputs_of(source, 3)
    assert (source.gives, source.outputs, found.shape) == ('features', (), (3, width))
    assert found.std() > 0.05
    expected = fine_tuned_features(tmp_path, example_images(source, 3))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert facts(source)['outputs'] == 'features'


def test_no_momentum_encoder_is_taken_for_it(tmp_path) -> None:
    """Of MoCo and BYOL the encoder that gradients train, as --pretrained does."""
    path = write_contrastive(tmp_path, VIT, 'byol')
    state = torch.load(path)['model']
    assert not torch.equal(state['encoder.cls_token'], state['momentum_encoder.cls_token'])
    found = load_source(path, LOGGER).encoder.cls_token
    assert torch.equal(found, state['encoder.cls_token'])


@pytest.mark.parametrize('model', [VIT, POOLED, SWIN], ids=['vit', 'vit, pooled', 'swin'])
def test_timm_gives_the_same_features(model: dict, tmp_path) -> None:
    source, file = load(tmp_path, model), tmp_path / 'a.safetensors'
    assert write_timm(source, file, overwrite=False) < 1e-5
    theirs, header = load_timm(file)
    assert header['outputs'] == 'features' and about(file) == header
    with torch.no_grad():
        found = theirs(example_images(source, 3)).numpy()
    np.testing.assert_allclose(found, outputs_of(source, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize('model', [VIT, POOLED, SWIN], ids=['vit', 'vit, pooled', 'swin'])
def test_transformers_gives_the_same_features(model: dict, tmp_path) -> None:
    transformers = pytest.importorskip('transformers', reason='needs requirements-export.txt')
    source = load(tmp_path, model)
    assert write_huggingface(source, tmp_path / 'hf', overwrite=False) < 1e-5
    theirs, found = transformers.AutoModel.from_pretrained(
        tmp_path / 'hf', output_loading_info=True
    )
    assert not any(found.values()), found
    with torch.no_grad():
        pooled = theirs.eval()(pixel_values=example_images(source, 3)).pooler_output.numpy()
    np.testing.assert_allclose(pooled, outputs_of(source, 3), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('model', [POOLED, RESNET], ids=['vit', 'resnet18'])
def test_a_program_of_torch_export_gives_the_same_features(model: dict, tmp_path) -> None:
    source, file = load(tmp_path, model), tmp_path / 'a.pt2'
    assert write_torch_export(source, file, overwrite=False) < 1e-5
    with torch.no_grad():
        found = torch.export.load(file).module()(example_images(source, 5)).numpy()
    np.testing.assert_allclose(found, outputs_of(source, 5), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('model', [VIT, RESNET], ids=['vit', 'resnet18'])
def test_onnxruntime_gives_the_same_features(model: dict, tmp_path) -> None:
    onnxruntime = pytest.importorskip('onnxruntime', reason='needs requirements-export.txt')
    source, file = load(tmp_path, model), tmp_path / 'a.onnx'
    assert write_onnx(source, file, overwrite=False) < 1e-5
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    (output,) = session.get_outputs()
    found = session.run(None, {'images': example_images(source, 4).numpy()})[0]
    assert output.name == 'features'
    np.testing.assert_allclose(found, outputs_of(source, 4), rtol=0, atol=1e-5)


def test_the_script_exports_it_and_refuses_a_model_of_timm_for_its_own_reason(
    tmp_path, capsys
) -> None:
    script = load_script(ROOT / 'scripts' / 'export.py')
    file = tmp_path / 'a.safetensors'
    words = write_contrastive(tmp_path, VIT), '--to', 'timm', '--output', file
    assert run(script, *words) == 0
    said = capsys.readouterr().out
    assert ': features, at most' in said and 'Not for clinical use' in said
    assert 'norm.weight' in load_file(file)
    words = (
        write_contrastive(tmp_path, RESNET),
        '--to',
        'timm',
        '--output',
        tmp_path / 'b.safetensors',
    )
    assert run(script, *words) == 2
    error = capsys.readouterr().err
    assert "MODEL.TYPE must be one of ['swin', 'vit'], got 'timm'; --to onnx and" in error


def test_an_entry_that_is_missing_is_named(tmp_path) -> None:
    path = write_contrastive(tmp_path, VIT)
    saved = torch.load(path)
    del saved['model']['encoder.cls_token']
    save_checkpoint(path, saved)
    with pytest.raises(ValueError, match=r'1 missing \(cls_token\)'):
        load_source(path, LOGGER)


# Cards


def card_of(source: Source, folder: Path) -> str:
    pytest.importorskip('transformers', reason='needs requirements-export.txt')
    write_huggingface(source, folder / 'hf', overwrite=False)
    return (folder / 'hf' / 'README.md').read_text()


MASKED = {
    'simmim': (SWIN, 'by SimMIM', 'MODEL.SIMMIM.LOSS | l1 |', 'MODEL.MAE.'),
    'mae': (
        vit(USE_SINCOS=True, USE_SHARED_RPB=False) | MAE,
        'by MAE (hidden patches from visible ones, squared error)',
        'MODEL.MAE.NORM_PIX_LOSS | False |',
        'MODEL.SIMMIM.',
    ),
}


@pytest.mark.parametrize('model, method, row, no_row', MASKED.values(), ids=MASKED)
def test_a_card_tells_the_loss_that_was_taken(model, method, row, no_row, tmp_path) -> None:
    card = card_of(load_source(write_run(tmp_path, 'simmim', model), LOGGER), tmp_path)
    assert method in card and row in card and no_row not in card
    assert '| DATA.MASK_RATIO | 0.6 |' in card and 'last_hidden_state' in card
    assert 'CONTRASTIVE' not in card


ROWS = {
    'moco': ('MoCo v2', {'TEMPERATURE', 'MOMENTUM', 'QUEUE_SIZE'}),
    'simclr': ('SimCLR', {'TEMPERATURE'}),
    'byol': ('BYOL', {'MOMENTUM'}),
    'swav': (
        'SwAV',
        {'TEMPERATURE', 'NUM_PROTOTYPES', 'FREEZE_PROTOTYPES_STEPS'}
        | {'LOCAL_CROPS', 'LOCAL_CROP_AREA', 'LOCAL_SIZE'},
    ),
}


@pytest.mark.parametrize('method', METHODS)
def test_a_card_of_contrastive_pre_training_names_the_method(method: str, tmp_path) -> None:
    name, own = ROWS[method]
    card = card_of(load(tmp_path, VIT, method), tmp_path)
    assert f'pre-trained by {name}; it has no classifier' in card
    assert f'| CONTRASTIVE.METHOD | {method} |' in card
    rows = {line.split(' ')[1] for line in card.splitlines() if line.startswith('| CONTRASTIVE.')}
    assert rows == {f'CONTRASTIVE.{key}' for key in {'METHOD', 'DIM', 'BLUR'} | own}
    assert "| CONTRASTIVE.DIM | the method's own |" in card
    assert 'pooler_output' in card and 'MODEL.SIMMIM' not in card and 'MASK_RATIO' not in card
    assert '| PRETRAINED | nothing |' in card and 'not for clinical use' in card


def test_a_card_of_a_classifier_has_no_row_of_pre_training(tmp_path) -> None:
    card = card_of(load_source(write_run(tmp_path, 'finetune', VIT), LOGGER), tmp_path)
    assert '| LOSS.NAME | bce |' in card and '| PRETRAINED | nothing |' in card
    assert not {'MODEL.SIMMIM', 'CONTRASTIVE', 'MASK_RATIO'} & set(card.split())
    assert json.loads((tmp_path / 'hf' / 'config.json').read_text())['problem_type']

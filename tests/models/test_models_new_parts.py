"""The examples of docs/howto/extend.md in whole runs, and in what reads their checkpoints."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import SWIN, config_with, finished_run
from torch import nn
from transfers import GREY, IMAGENET, LOGGER, assert_same, grey_images, in_grey_levels

from config import default_config
from evaluation.held_out import HeldOutReconstruction
from models.build import build_model
from models.weights.export import load_trained_model, model_card
from utils import load_pretrained, read_checkpoint

SIZES = {'PATCH_SIZE': 8, 'EMBED_DIM': 16, 'DEPTH': 2}
ENCODER = {'TYPE': 'convolutions', 'IN_CHANS': 1, 'CONVOLUTIONS': SIZES}


@pytest.mark.slow
def test_a_new_encoder_is_pretrained_and_fine_tuned(phantom, tmp_path, add_example):
    """SimMIM uses a new head. Fine-tuning uses layer decay, a new loss and maps."""
    for file in ('convolutions', 'three_stages', 'squared'):
        add_example(f'models/{file}.py')
    model = ENCODER | {'SIMMIM': {'HEAD': 'three_stages'}}
    learned = finished_run('simmim', phantom, tmp_path, model=model, TRAIN={'EPOCHS': 1})
    weights = ['--pretrained', str(learned / 'ckpt_epoch_0.pth')]
    sections = {
        'TRAIN': {'EPOCHS': 1, 'LAYER_DECAY': 0.5, 'USE_CHECKPOINT': True},
        'LOSS': {'NAME': 'squared'},
        'REPORT': {'WRITE': True},
    }
    folder = finished_run('finetune', phantom, tmp_path, *weights, model=ENCODER, **sections)
    assert (folder / 'report.html').exists()


def test_a_new_head_is_folded_between_channels(tmp_path, add_example):
    """The converted reconstructions agree in grey levels, as for the linear head."""
    for file in ('convolutions', 'three_stages'):
        add_example(f'models/{file}.py')
    options = {f'MODEL__CONVOLUTIONS__{key}': value for key, value in SIZES.items()}
    options |= {'MODEL__TYPE': 'convolutions', 'MODEL__SIMMIM__HEAD': 'three_stages'}
    options |= {'DATA__IMG_SIZE': 32, 'DATA__MASK_PATCH_SIZE': 8}
    torch.manual_seed(0)
    rgb = build_model(config_with(**options)).eval()
    torch.save({'model': rgb.state_dict()}, tmp_path / 'rgb.pth')
    config = config_with(**options, MODEL__IN_CHANS=1, PRETRAINED=str(tmp_path / 'rgb.pth'))
    grey = build_model(config).eval()
    load_pretrained(config, grey, LOGGER)
    mask = torch.arange(16).view(1, 4, 4).expand(2, 4, 4) % 2
    with torch.no_grad():
        wanted = in_grey_levels(rgb.reconstruct(grey_images(IMAGENET), mask), IMAGENET)
        found = in_grey_levels(grey.reconstruct(grey_images(GREY), mask), GREY)
    assert_same(found, wanted)


def with_a_norm(code: str) -> str:
    """Give I-JEPA a module with a name of the encoder's, and another name to its counter."""
    line = '        self.predictor = '
    assert line in code and "'step'" in code and 'self.step' in code
    code = code.replace(line, f'        self.norm = nn.LayerNorm(encoder.num_features)\n{line}')
    return code.replace("'step'", "'updates'").replace('self.step', 'self.updates')


def test_a_masked_method_without_target_in_whole_runs(phantom, tmp_path, add_example, monkeypatch):
    """The name of its counter does not matter, nor that a module is named like the encoder's."""
    key, name, module = add_example('models/ijepa.py', with_a_norm)
    model, once = SWIN | {'PRETRAIN': name}, {'EPOCHS': 1}
    learned = finished_run('simmim', phantom, tmp_path / 'first', model=model, TRAIN=once)
    last = json.loads((learned / 'metrics.jsonl').read_text().splitlines()[-1])
    assert {'holdout_loss', 'holdout_feature_spread', 'holdout_effective_rank'} <= last.keys()
    checkpoint = learned / 'ckpt_epoch_0.pth'
    state = read_checkpoint(checkpoint)['model']
    assert state['updates'] > 0

    weights = ['--pretrained', str(checkpoint)]
    tuned = finished_run('finetune', phantom, tmp_path, *weights, TRAIN=once)
    log = (tuned / 'log_rank0.txt').read_text()
    assert re.search(r'unused .* updates 1, averaged \d+, norm 2, predictor 2', log)

    copies = []
    method = sys.modules[module].IJEPA
    encoder_loaded = method.encoder_loaded

    def spy(self):
        encoder_loaded(self)
        copies.append({key: value.clone() for key, value in self.averaged.state_dict().items()})

    monkeypatch.setattr(method, 'encoder_loaded', spy)
    finished_run('simmim', phantom, tmp_path / 'second', *weights, model=model, TRAIN=once)
    [copied] = copies
    assert all(torch.equal(value, state[f'encoder.{key}']) for key, value in copied.items())

    source = load_trained_model(checkpoint, LOGGER)
    card = model_card(source).content
    assert source.gives == 'tokens' and 'pre-trained by I-JEPA;' in card
    assert '| MODEL.PRETRAIN | ijepa |' in card and 'CONTRASTIVE' not in card


def test_the_held_out_loss_of_a_masked_method_is_a_mean_over_images():
    class Brightness(nn.Module):
        target = None

        def forward(self, images, masks):
            return images.mean()

        def held_out_features(self, images):
            return images.flatten(1)

    batches = [(torch.zeros(16, 1, 2, 2), torch.zeros(16)), (torch.ones(1, 1, 2, 2), torch.ones(1))]
    score = HeldOutReconstruction(SimpleNamespace(holdout=batches, reference=None))
    run = SimpleNamespace(config=default_config(), device=torch.device('cpu'), logger=LOGGER)
    assert score(run, Brightness(), -1)['holdout_loss'] == pytest.approx(1 / 17)

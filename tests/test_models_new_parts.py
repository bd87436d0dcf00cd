"""New encoders, methods, heads and losses need one file, and a name in config.py."""

import copy
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from timm.layers import PatchEmbed
from tiny import SWIN, finished_run
from torch import nn
from transfers import GREY, IMAGENET, LOGGER, assert_same, grey_images, in_grey_levels

import config as config_module
from config import OPTIONS, REGISTRIES, Own, default_config, encoder_node
from evaluation.held_out import HeldOutReconstruction
from models.build import build_model
from models.classifier_heads import build_classifier_head
from models.contrastive import (
    ContrastiveMethod,
    build_contrastive,
    cosine_momentum,
    in_float32,
    mlp_head,
    update_average_,
)
from models.encoder import ENCODERS, PatchEncoder, masked_version, run_block
from models.export import load_trained_model, model_card
from models.losses import LossOfLabels
from models.simmim import MaskedModel
from utils import load_pretrained, read_checkpoint


class Block(nn.Module):
    """A block of ConvNeXt on a grid [B, D, h, w]."""

    def __init__(self, dim):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.GroupNorm(1, dim)
        self.mlp = nn.Sequential(nn.Conv2d(dim, 2 * dim, 1), nn.GELU(), nn.Conv2d(2 * dim, dim, 1))

    def forward(self, x):
        return x + self.mlp(self.norm(self.depthwise(x)))


class ConvNeXt(PatchEncoder):
    """A small ConvNeXt with two stages."""

    def __init__(self, *, img_size, patch_size, in_chans, embed_dim, depths, num_classes, **others):
        super().__init__()
        self.in_chans, self.patch_size, self.embed_dim = in_chans, patch_size, embed_dim
        self.stride, self.num_features = 2 * patch_size, 2 * embed_dim
        self.use_checkpoint = others['use_checkpoint']
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(embed_dim * 2**k) for _ in range(depth))
            for k, depth in enumerate(depths)
        )
        self.downsample = nn.Conv2d(embed_dim, 2 * embed_dim, 2, stride=2)
        self.norm = nn.LayerNorm(self.num_features)
        self.head = build_classifier_head(self.num_features, num_classes)

    @classmethod
    def stride_of(cls, config):
        return 2 * encoder_node(config).PATCH_SIZE

    def encode(self, tokens, hidden=None):
        x = tokens.transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))
        for stage, blocks in enumerate(self.stages):
            x = self.downsample(x) if stage else x
            for block in blocks:
                x = run_block(block, x, use_checkpoint=self.use_checkpoint)
        return self.norm(x.flatten(2).transpose(1, 2))

    def get_num_layers(self):
        return 2

    def get_layer_id(self, name):
        part, *rest = name.split('.')
        return {'patch_embed': 0, 'mask_token': 0}.get(
            part, int(rest[0]) + 1 if rest[0] in '01' else 2
        )


class BarlowTwins(ContrastiveMethod):
    """Barlow Twins, Zbontar et al. 2021, arXiv:2103.03230."""

    title = 'Barlow Twins'

    def __init__(self, encoder, *, dim=16):
        super().__init__(encoder, mlp_head(encoder.num_features, dim, hidden=dim))

    def loss(self, view1, view2):
        return cross_correlation_loss(self.project(view1), self.project(view2))


@in_float32
def cross_correlation_loss(z1, z2):
    z1, z2 = ((z - z.mean(0)) / (z.std(0) + 1e-5) for z in (z1, z2))
    error = z1.T @ z2 / len(z1) - torch.eye(z1.shape[1])
    return error.square().sum()


class FeaturePrediction(MaskedModel):
    """Predict the features of an averaged encoder, without a target in the image."""

    title, target = 'Feature prediction', None

    def __init__(self, encoder, *, total_steps, momentum):
        super().__init__()
        self.in_chans, self.patch_size = encoder.in_chans, encoder.patch_size
        self.total_steps, self.first_momentum = total_steps, momentum
        self.encoder, self.averaged = encoder, copy.deepcopy(encoder).requires_grad_(False)
        self.predictor = nn.Linear(encoder.num_features, encoder.num_features)
        self.norm = nn.LayerNorm(encoder.num_features)  # the encoder has one of the same name
        self.register_buffer(self.counter, torch.zeros((), dtype=torch.int64))

    counter = 'updates'

    @classmethod
    def from_config(cls, config, *, total_steps=1):
        encoder = ENCODERS[config.MODEL.TYPE]
        arguments = encoder.constructor_arguments(config)
        momentum = config.MODEL.SOME_MASKED.MOMENTUM
        return cls(masked_version(encoder)(**arguments), total_steps=total_steps, momentum=momentum)

    @classmethod
    def check_options(cls, config):
        pass

    def loss(self, x, mask):
        predictions = self.predictor(self.norm(self.encoder(x, mask).flatten(2).transpose(1, 2)))
        return (predictions - self.averaged.forward_tokens(x)).square().mean()

    def held_out_features(self, x):
        return self.encoder.forward_tokens(x).mean(dim=1)

    def begin_step(self):
        count = getattr(self, self.counter)
        start, steps = self.first_momentum, self.total_steps
        momentum = cosine_momentum(count, total_steps=steps, start=start)
        update_average_(self.averaged, self.encoder, momentum)
        count += 1

    def encoder_loaded(self):
        self.averaged.load_state_dict(self.encoder.state_dict())


class TwoStepHead(nn.Module):
    """A head whose children have names."""

    def __init__(self, encoder, *, channels, cell=1, use_checkpoint=False):
        super().__init__()
        self.bottleneck = nn.Conv2d(encoder.num_features, 8, 1)
        self.pixels = nn.Conv2d(8, (encoder.stride // cell) ** 2 * channels, 1)
        self.shuffle = nn.PixelShuffle(encoder.stride // cell)

    def forward(self, x):
        return self.shuffle(self.pixels(self.bottleneck(x)))


@pytest.fixture(autouse=True)
def parts():
    """Declare and register the parts for one test."""
    before = dict(OPTIONS)
    options = {'PATCH_SIZE': 4, 'EMBED_DIM': 8, 'DEPTHS': [1, 1]}  # lines of config.py
    options = {name: Own(default, f'{name} of the encoder.') for name, default in options.items()}
    masked = {'MOMENTUM': Own(0.9, 'First momentum.', within='[0, 1)')}
    sections = {'SOME_ENCODER': options, 'SOME_MASKED': masked}
    config_module.declare(sections, config_module._C.MODEL, 'MODEL.')
    added = {
        'MODEL.TYPE': ('some_encoder', ConvNeXt),
        'MODEL.PRETRAIN': ('some_masked', FeaturePrediction),
        'CONTRASTIVE.METHOD': ('some_method', BarlowTwins),
        'MODEL.SIMMIM.HEAD': ('some_head', TwoStepHead),
        'LOSS.NAME': ('some_loss', LossOfLabels(lambda targets, labels: squared_loss)),
    }
    for key, (name, part) in added.items():
        option = OPTIONS[key]
        config_module.OPTIONS[key] = replace(option, parts={**option.parts, name: __name__})
        REGISTRIES[key].register(name)(part)
    yield
    for key, (name, _) in added.items():
        del REGISTRIES[key][name]
    for key in OPTIONS.keys() - before.keys():
        del OPTIONS[key]
    OPTIONS.update(before)
    for section in sections:
        del config_module._C.MODEL[section]


def squared_loss(outputs, targets):
    known = ~targets.isnan()
    return (outputs.sigmoid() - targets.nan_to_num()).square().where(known, 0).mean()


CONVNEXT = {'TYPE': 'some_encoder', 'IN_CHANS': 1, 'SOME_ENCODER': {'EMBED_DIM': 4}}


@pytest.mark.slow
def test_a_new_encoder_is_pretrained_and_fine_tuned(phantom, tmp_path):
    """SimMIM uses a new head. Fine-tuning uses layer decay, a new loss and maps."""
    model = CONVNEXT | {'SIMMIM': {'HEAD': 'some_head'}}
    learned = finished_run('simmim', phantom, tmp_path, model=model, TRAIN={'EPOCHS': 1})
    weights = ['--pretrained', str(learned / 'ckpt_epoch_0.pth')]
    sections = {
        'TRAIN': {'EPOCHS': 1, 'LAYER_DECAY': 0.5, 'USE_CHECKPOINT': True},
        'LOSS': {'NAME': 'some_loss'},
        'REPORT': {'WRITE': True},
    }
    folder = finished_run('finetune', phantom, tmp_path, *weights, model=CONVNEXT, **sections)
    assert (folder / 'report.html').exists()


def make_config(head='some_head', channels=3):
    config = default_config()
    config.MODEL.TYPE, config.MODEL.SIMMIM.HEAD = 'some_encoder', head
    config.MODEL.IN_CHANS, config.DATA.IMG_SIZE, config.DATA.MASK_PATCH_SIZE = channels, 32, 8
    return config


def test_a_head_with_named_children_is_folded_between_channels(tmp_path):
    """The converted reconstructions agree in grey levels, as for the linear head."""
    torch.manual_seed(0)
    rgb = build_model(make_config()).eval()
    torch.save({'model': rgb.state_dict()}, tmp_path / 'rgb.pth')
    config = make_config(channels=1)
    config.PRETRAINED = str(tmp_path / 'rgb.pth')
    grey = build_model(config).eval()
    load_pretrained(config, grey, LOGGER)
    mask = torch.arange(64).view(1, 8, 8).expand(2, 8, 8) % 2
    with torch.no_grad():
        wanted = in_grey_levels(rgb.reconstruct(grey_images(IMAGENET), mask), IMAGENET)
        found = in_grey_levels(grey.reconstruct(grey_images(GREY), mask), GREY)
    assert_same(found, wanted)


def test_a_new_method_trains_a_new_encoder():
    config = make_config()
    config.CONTRASTIVE.METHOD = 'some_method'
    config_module.check_config(config, 'contrastive')
    model = build_contrastive(config, total_steps=3)
    loss = model(torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.projector[-1].out_features == 16


@pytest.mark.parametrize('counter', ['updates', pytest.param('step', marks=pytest.mark.slow)])
def test_a_masked_method_without_target_is_trained_loaded_and_exported(
    counter, phantom, tmp_path, monkeypatch
):
    """The name of its counter does not matter, nor that a module is named like the encoder's."""
    monkeypatch.setattr(FeaturePrediction, 'counter', counter)
    model, once = (
        SWIN | {'PRETRAIN': 'some_masked', 'SOME_MASKED': {'MOMENTUM': 0.8}},
        {'EPOCHS': 1},
    )
    learned = finished_run('simmim', phantom, tmp_path / 'first', model=model, TRAIN=once)
    last = json.loads((learned / 'metrics.jsonl').read_text().splitlines()[-1])
    assert {'holdout_loss', 'holdout_feature_spread', 'holdout_effective_rank'} <= last.keys()
    checkpoint = learned / 'ckpt_epoch_0.pth'
    state = read_checkpoint(checkpoint)['model']
    assert state[counter] > 0

    weights = ['--pretrained', str(checkpoint)]
    tuned = finished_run('finetune', phantom, tmp_path, *weights, TRAIN=once)
    log = (tuned / 'log_rank0.txt').read_text()
    assert re.search(rf'unused .* {counter} 1, averaged \d+, predictor 2, norm 2', log)

    copies = []
    encoder_loaded = FeaturePrediction.encoder_loaded

    def spy(self):
        encoder_loaded(self)
        copies.append({key: value.clone() for key, value in self.averaged.state_dict().items()})

    monkeypatch.setattr(FeaturePrediction, 'encoder_loaded', spy)
    finished_run('simmim', phantom, tmp_path / 'second', *weights, model=model, TRAIN=once)
    [copied] = copies
    assert all(torch.equal(value, state[f'encoder.{key}']) for key, value in copied.items())

    source = load_trained_model(checkpoint, LOGGER)
    card = model_card(source).content
    assert source.gives == 'tokens' and 'pre-trained by Feature prediction;' in card
    assert '| MODEL.SOME_MASKED.MOMENTUM | 0.8 |' in card and 'CONTRASTIVE' not in card


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

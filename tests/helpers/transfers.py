"""Small models, checkpoints of runs, and weights loaded as --pretrained does."""

import logging
from pathlib import Path

import torch
import yaml
from golden_cases import fill
from tiny import SWIN, tiny_config

from config import Config, config_text, default_config
from models import build_model
from models.contrastive import build_contrastive
from models.timm_classifier import TimmClassifier
from models.weights.export import example_images, load_trained_model
from utils import load_pretrained, save_checkpoint

LOGGER = logging.getLogger('pretrained')
TABLE = 'relative_position_bias_table'
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = ((0.503,), (0.292,))
PLAIN = {'MODEL__VIT__USE_APE': True, 'MODEL__VIT__INIT_VALUES': None,
         'MODEL__VIT__USE_SHARED_RPB': False}  # fmt: skip
MAE_OPTIONS = {
    'MODEL__PRETRAIN': 'mae', 'MODEL__VIT__USE_SINCOS': True, 'MODEL__VIT__USE_SHARED_RPB': False,
    'MODEL__VIT__INIT_VALUES': None, 'MODEL__MAE__DECODER_EMBED_DIM': 16,
    'MODEL__MAE__DECODER_DEPTH': 1, 'MODEL__MAE__DECODER_NUM_HEADS': 4,
    'DATA__MASK_PATCH_SIZE': 8, 'DATA__MASK_RATIO': 0.75,
}  # fmt: skip


def make_config(kind, channels, **options):
    """A small Swin (stride 8) or ViT (patch 8); options by key, __ for a dot."""
    config = default_config()
    config.MODEL.TYPE, config.DATA.IMG_SIZE, config.MODEL.NUM_CLASSES = kind, 32, 14
    config.MODEL.DROP_PATH_RATE = 0.0
    swin, vit = config.MODEL.SWIN, config.MODEL.VIT
    swin.EMBED_DIM, swin.DEPTHS, swin.NUM_HEADS, swin.WINDOW_SIZE = 16, [2, 1], [2, 4], 4
    vit.EMBED_DIM, vit.DEPTH, vit.NUM_HEADS, vit.PATCH_SIZE = 32, 2, 4, 8
    config.MODEL.IN_CHANS = channels
    for key, value in options.items():
        config.merge_from_list([key.replace('__', '.'), value])
    return config


def mae_config(channels: int = 1, **options: object):
    """A ViT with 4 x 4 patches of 8 px, width 32 and decoder width 16."""
    return make_config('vit', channels, **(MAE_OPTIONS | options))


def make_model(config, seed=1, *, is_pretrain=True):
    model = build_model(config, is_pretrain=is_pretrain).eval()
    fill.fill_model(model, seed)
    return model


def load(state, target_config, model, tmp_path, **extra):
    """Load a state dict (or a checkpoint of which it is the model) as --pretrained does."""
    path = tmp_path / 'source.pth'
    torch.save({'model': state, **extra}, path)
    target_config.PRETRAINED = str(path)
    load_pretrained(target_config, model, LOGGER)
    return model


def started(config, file, *, is_pretrain=False):
    """A filled model that starts from a file, as with --pretrained."""
    model = make_model(config, seed=7, is_pretrain=is_pretrain)
    config.PRETRAINED = str(file)
    load_pretrained(config, model, LOGGER)
    return model


def started_timm(config: Config, path: Path) -> TimmClassifier:
    """Build a model that starts from a file, as with --pretrained; initialised and not filled."""
    torch.manual_seed(9)
    model = build_model(config, is_pretrain=False).eval()
    config.PRETRAINED = str(path)
    load_pretrained(config, model, LOGGER)
    return model


def transfer(source_config, target_config, tmp_path, *, stages=(True, True), own=False):
    """A filled model of the first config, and one of the second started from it."""
    source = make_model(source_config, is_pretrain=stages[0])
    target = make_model(target_config, seed=2, is_pretrain=stages[1])
    extra = {'config': config_text(source_config)} if own else {}
    return source, load(source.state_dict(), target_config, target, tmp_path, **extra)


def images(channels: int = 1, size: int = 32) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(5))


def grey_images(statistics, count=2, size=32):
    """The same grey images in [0, 1], as channels normalised by the statistics see them."""
    generator = torch.Generator().manual_seed(5)
    grey = torch.rand(count, 1, size, size, generator=generator, dtype=torch.float64)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in statistics)
    return ((grey - mean) / std).float()


def in_grey_levels(images, statistics):
    """Normalised channels back to pixels in [0, 1], averaged over the channels."""
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
    return (images * std + mean).mean(1)


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def randomise(model):
    """Fill the parameters so that none keeps an initial 0 or 1 that could hide a missing entry."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            centre = 1.0 if 'norm' in name and name.endswith('.weight') else 0.0
            value.copy_(centre + 0.4 * noise)


def write_run(folder, stage, model=SWIN, **sections):
    """Write the checkpoint of a tiny run with random weights; return its path."""
    config = default_config()
    config.merge_from_file(str(tiny_config(folder / 'run.yaml', stage, model, **sections)))
    config.STAGE = stage
    if stage == 'contrastive':
        trained = build_contrastive(config, total_steps=10)
    else:
        trained = build_model(config, is_pretrain=stage == 'simmim')
    if model['TYPE'] != 'timm' or stage != 'contrastive':  # the activations would explode
        randomise(trained)
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    path = folder / 'ckpt_epoch_1.pth'
    save_checkpoint(path, {'model': trained.state_dict(), 'config': config_text(config)})
    return path


def load_run(folder, stage, model=SWIN, **sections):
    return load_trained_model(write_run(folder, stage, model, **sections), LOGGER)


def outputs_of(source, count):
    with torch.no_grad():
        return source.network(example_images(source, count)).numpy()


def with_option(checkpoint, file, key, value):
    """A copy of a checkpoint whose options have another value, which its maker may have set."""
    saved = torch.load(checkpoint, weights_only=True)
    options = section = yaml.safe_load(saved['config'])
    *sections, name = key.split('.')
    for part in sections:
        section = section[part]
    section[name] = value
    torch.save(saved | {'config': yaml.safe_dump(options)}, file)
    return file

"""Weights of torchvision, timm and this project for timm models."""

import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transfers
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer
from transfers import (
    GREY,
    IMAGENET,
    LOGGER,
    assert_same,
    grey_images,
    started_timm,
    write_run,
)
from yacs.config import CfgNode

from models.weights.export import export, load_trained_model
from scripts.api import load_encoder
from utils import read_checkpoint, save_checkpoint

# Families whose features end in layers below `head` (a norm or a convolution), and others.
IN_HEAD = ['convnext_atto', 'edgenext_xx_small', 'hgnetv2_b0']
OTHERS = ['resnet10t', 'mobilenetv3_small_050']
SLOW = [
    *('convnextv2_atto', 'caformer_s18', 'poolformerv2_s12', 'davit_tiny', 'densenet121'),
    *('efficientnet_lite0', 'inception_next_atto', 'regnetx_002', 'nfnet_l0', 'ghostnet_050'),
    *('maxvit_rmlp_pico_rw_256', 'coatnet_pico_rw_224', 'swin_tiny_patch4_window7_224'),
    *('vit_tiny_patch16_224', 'deit_tiny_distilled_patch16_224', 'levit_128s', 'vgg11'),
    *(
        'xcit_nano_12_p16_224',
        'fastvit_t8',
        'rdnet_tiny',
        'hiera_tiny_224',
        'cait_xxs24_224',
        'mambaout_femto',
    ),
]


def make_config(name: str, channels: int = 3, labels: int = 14) -> CfgNode:
    options = {'MODEL__TIMM__NAME': name, 'MODEL__NUM_CLASSES': labels}
    return transfers.make_config('timm', channels, **options)


def with_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """Build a model with non-trivial batch norm statistics, in evaluation mode."""
    generator = torch.Generator().manual_seed(4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.normal_(module.bias, 0, 0.1, generator=generator)
    return model.eval()


def make_timm(name: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(1)
    return with_statistics(timm.create_model(name, **options))


def images(channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(5))


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Move all vectors of a model from their initial 0 and 1, which hide a missing norm."""
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:
                value += 0.1 * torch.randn(value.shape, generator=generator)
    return model


@pytest.mark.parametrize(
    'name', [*IN_HEAD, *OTHERS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
@torch.no_grad()
def test_the_features_of_timms_files_are_timms_pre_logits(name: str, tmp_path: Path) -> None:
    theirs = spread(make_timm(name))
    size = 64 if name in [*IN_HEAD, *OTHERS] else theirs.default_cfg['input_size'][-1]
    torch.save(theirs.state_dict(), tmp_path / 'file.pth')
    config = make_config(name)
    config.DATA.IMG_SIZE = size
    ours = started_timm(config, tmp_path / 'file.pth')
    without_classifier = timm.create_model(name, num_classes=0).eval()
    missing = without_classifier.load_state_dict(theirs.state_dict(), strict=False).missing_keys
    assert missing == []
    want = without_classifier(images(3, size))
    assert want.std() > 0
    torch.testing.assert_close(ours.forward_features(images(3, size)), want)


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['finetune', 'contrastive'])
@pytest.mark.parametrize('name', IN_HEAD)
@torch.no_grad()
def test_the_features_of_our_runs_and_exports_are_those_of_the_run(name, stage, tmp_path) -> None:
    model = {'TYPE': 'timm', 'DROP_PATH_RATE': 0.0, 'IN_CHANS': 1, 'TIMM': {'NAME': name}}
    checkpoint = write_run(tmp_path, stage, model)
    saved = read_checkpoint(checkpoint)
    for key, value in saved['model'].items():  # no vector keeps its initial values
        if value.ndim == 1 and 'var' not in key:
            value += 0.1 * torch.randn_like(value)
    save_checkpoint(checkpoint, saved)
    encoder, _ = load_encoder(checkpoint)
    reference = timm.create_model(name, num_classes=0, in_chans=1).eval()
    own = {key.removeprefix('encoder.'): value for key, value in saved['model'].items()}
    assert reference.load_state_dict(own, strict=False).missing_keys == []
    want = reference(images(1))
    assert_same(encoder(images(1)), want)
    again, _ = load_encoder(checkpoint)
    assert torch.equal(again(images(1)), encoder(images(1))), 'two starts'

    config = make_config(name, 1)
    config.DATA.IMG_SIZE = 32
    assert_same(started_timm(config, checkpoint).forward_features(images(1)), want)
    export(load_trained_model(checkpoint, LOGGER), 'timm', tmp_path / 'exported', overwrite=False)
    assert_same(
        started_timm(config, tmp_path / 'exported/model.safetensors').forward_features(images(1)),
        want,
    )


def test_an_entry_of_the_encoder_that_is_missing_or_unused_is_refused(tmp_path: Path) -> None:
    theirs = make_timm('convnext_atto').state_dict()
    for change, problem in (
        ({'head.norm.weight': None}, r'missing.*head\.norm\.weight'),
        ({'head.other.weight': torch.ones(3)}, r'unexpected.*head\.other\.weight'),
        ({'norm_pre.weight': torch.ones(3)}, r'unexpected.*norm_pre\.weight'),
    ):
        state = {key: value for key, value in (theirs | change).items() if value is not None}
        torch.save(state, tmp_path / 'file.pth')
        config = make_config('convnext_atto')
        with pytest.raises(ValueError, match=f'(?s){problem}'):
            started_timm(config, tmp_path / 'file.pth')


def test_a_file_that_fits_several_models_says_which(tmp_path: Path, log) -> None:
    theirs = make_timm('tf_efficientnet_lite0')
    save_file(theirs.state_dict(), tmp_path / 'model.safetensors')
    names = {'efficientnet_lite0': 'tf_efficientnet_lite0', 'resnet18': ''}
    for name, other in names.items():
        if name == 'resnet18':
            save_file(make_timm(name).state_dict(), tmp_path / 'model.safetensors')
        log.clear()
        started_timm(make_config(name), tmp_path / 'model.safetensors')
        assert (f'also fits {other}, which computes other features' in log.text) == bool(other)


def test_a_file_that_names_another_model_of_the_same_shapes_is_refused(tmp_path, log) -> None:
    save_file(make_timm('tf_efficientnet_lite0').state_dict(), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text('{"architecture": "tf_efficientnet_lite0"}')
    with pytest.raises(ValueError, match='padding'):
        started_timm(make_config('efficientnet_lite0'), tmp_path / 'model.safetensors')
    started_timm(make_config('tf_efficientnet_lite0'), tmp_path / 'model.safetensors')
    assert 'also fits' not in log.text, 'the file names its model'


@torch.no_grad()
def test_torchvisions_weights_give_torchvisions_logits(tmp_path, log) -> None:
    torch.manual_seed(1)
    theirs = with_statistics(torchvision.models.resnet18(weights=None))
    torch.save(theirs.state_dict(), tmp_path / 'file.pth')
    ours = started_timm(make_config('resnet18', labels=1000), tmp_path / 'file.pth')
    assert re.search(r'new +2  head 2$', log.text, re.MULTILINE)
    assert re.search(r'unused +2  head 2$', log.text, re.MULTILINE), 'of unknown labels'
    *_, classifier = theirs.children()
    ours.head.load_state_dict(classifier.state_dict())
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_resnet_of_transformers_gives_its_features(transformers, tmp_path, log) -> None:
    torch.manual_seed(3)
    sizes = {'embedding_size': 64, 'hidden_sizes': [64, 128, 256, 512], 'depths': [2, 2, 2, 2]}
    config = transformers.ResNetConfig(**sizes, layer_type='basic')
    theirs = transformers.ResNetForImageClassification(config)
    bare = with_statistics(theirs.resnet)
    theirs.save_pretrained(tmp_path)
    ours = started_timm(make_config('resnet18'), tmp_path / 'model.safetensors')
    wanted = bare(pixel_values=images()).pooler_output.flatten(1)
    assert wanted.std() > 0.3
    torch.testing.assert_close(ours.forward_features(images()), wanted, rtol=0, atol=1e-5)
    assert re.search(r'unused +2\b', log.text), 'its classifier'
    assert re.search(r'new +2  head 2', log.text)


@torch.no_grad()
def test_folded_channels_are_exact_away_from_the_padded_border(tmp_path, log) -> None:
    theirs = make_timm('test_efficientnet')
    torch.save(theirs.state_dict(), tmp_path / 'file.pth')
    ours = started_timm(make_config('test_efficientnet', 1), tmp_path / 'file.pth')
    results = []
    for model, x in ((theirs, grey_images(IMAGENET)), (ours.encoder, grey_images(GREY))):
        results.append(model.bn1(model.conv_stem(x)))
    inner = [result[..., 1:-1, 1:-1] for result in results]
    assert_same(inner[1], inner[0])
    assert (results[0] - results[1]).abs().max() > 0.01, 'as the log says of the border'
    assert 'from 3 to 1 channels' in log.text and 'border' in log.text


@torch.no_grad()
def test_files_without_options_use_the_normalisation_that_timm_documents(tmp_path) -> None:
    """For this ViT of timm they are 0.5 and 0.5, and ImageNet's values would be wrong."""
    theirs = make_timm('test_vit', img_size=32)
    assert theirs.default_cfg['mean'] == (0.5, 0.5, 0.5)
    torch.save(theirs.state_dict(), tmp_path / 'file.pth')
    ours = started_timm(make_config('test_vit', 1), tmp_path / 'file.pth')
    features = theirs.forward_head(theirs.forward_features(grey_images(((0.5,) * 3,) * 2)), True)
    assert_same(ours.forward_features(grey_images(GREY)), features)


def test_channels_that_cannot_be_converted_raise_an_error(tmp_path) -> None:
    """The layer standardises its weights."""
    torch.save(make_timm('test_nfnet').state_dict(), tmp_path / 'file.pth')
    with pytest.raises(ValueError, match=r'file.pth: .*MODEL.IN_CHANS'):
        started_timm(make_config('test_nfnet', 1), tmp_path / 'file.pth')


@torch.no_grad()
def test_timms_swin_gives_the_same_features(tmp_path: Path) -> None:
    torch.manual_seed(1)
    sizes = {'embed_dim': 24, 'depths': (2, 2), 'num_heads': (2, 4), 'window_size': 4}
    swin = SwinTransformer(img_size=32, **sizes, num_classes=14, global_pool='avg').eval()
    save_file(swin.state_dict(), tmp_path / 'swin.safetensors')
    config = make_config('', labels=14)
    config.MODEL.TYPE = 'swin'
    for key, value in sizes.items():
        config.MODEL.SWIN[key.upper()] = list(value) if isinstance(value, tuple) else value
    model = started_timm(config, tmp_path / 'swin.safetensors')
    x = images()
    wanted = swin.forward_head(swin.forward_features(x), pre_logits=True)
    torch.testing.assert_close(model.forward_features(x), wanted)
    assert not torch.equal(model.head.weight, swin.head.fc.weight), 'of unknown labels'

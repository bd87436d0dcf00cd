"""Timm models as classifiers compute the same as in timm."""

import logging

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from tiny import finished_run
from transfers import make_config

from evaluation.saliency import grad_cam
from logger import read_metrics
from models import build_model
from models.timm_classifier import TimmClassifier, find_layout
from optimizer import build_optimizer
from utils import read_checkpoint

RESNET = {'TYPE': 'timm', 'DROP_PATH_RATE': 0.0, 'IN_CHANS': 1, 'TIMM': {'NAME': 'test_resnet'}}


def images(size: int, count: int = 2, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def timm_twin(model: TimmClassifier) -> torch.nn.Module:
    options = dict(model.layout.options, num_classes=len(model.head.weight))
    twin = timm.create_model(model.name, **options)
    weight, bias = sorted(model.layout.classifier, reverse=True)
    state = model.encoder.state_dict() | {weight: model.head.weight, bias: model.head.bias}
    twin.load_state_dict(state)
    return twin.train(model.training)


@pytest.mark.parametrize('name', ['resnet18', 'test_vit'])
def test_logits_equal_those_of_timm(name: str) -> None:
    torch.manual_seed(0)
    model = TimmClassifier(name, 32, 1, 3).eval()
    x = images(32)
    with torch.no_grad():
        logits, features = model(x), model.forward_features(x)
        torch.testing.assert_close(logits, timm_twin(model)(x), rtol=1e-5, atol=1e-5)
    assert features.shape == (2, model.num_features)
    assert all(key.startswith(('encoder.', 'head.')) for key in model.state_dict())


@pytest.mark.parametrize(
    ('name', 'channels'), [('resnet18', 1), ('densenet121', 3), ('test_efficientnet', 3)]
)
def test_channels_last_changes_the_order_of_features_and_not_of_weights(name, channels) -> None:
    """Only in training; a checkpoint cannot tell, and scores and exports do not change."""
    torch.manual_seed(0)
    model = TimmClassifier(name, 64, channels, 3, channels_last=True).double()
    plain = TimmClassifier(name, 64, channels, 3).double()
    plain.load_state_dict(model.state_dict())
    x, orders = images(64, channels=channels).double(), []
    last = model.encoder.get_submodule(model.layout.map_layer)
    last.register_forward_hook(
        lambda *parts: orders.append(parts[2].is_contiguous(memory_format=torch.channels_last))
    )
    for each in (model, plain):
        optimizer = torch.optim.AdamW(each.parameters(), fused=True)
        each(x).square().sum().backward()
        optimizer.step()
        for parameter in each.parameters():
            moments = optimizer.state[parameter].values()
            assert all(item.is_contiguous() for item in (parameter, parameter.grad, *moments))
    gradients = [[p.grad for p in each.parameters()] for each in (model, plain)]
    torch.testing.assert_close(*gradients)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert orders == [True, False]


def rates_and_decay(groups: list[dict]) -> dict[int, tuple[float, float]]:
    return {
        id(parameter): (group['lr_scale'], group['weight_decay'])
        for group in groups
        for parameter in group['params']
    }


def test_rates_and_decay_of_layers_are_timms() -> None:
    config = make_config('timm', 1, TRAIN__LAYER_DECAY=0.5, TRAIN__WEIGHT_DECAY=0.05)
    config.MODEL.TIMM.NAME = 'resnet18'
    model = build_model(config, is_pretrain=False)
    twin = timm_twin(model)
    free = getattr(twin, 'no_weight_decay', set)()
    ours = build_optimizer(config, model, logging.getLogger(), False).param_groups
    theirs = param_groups_layer_decay(twin, 0.05, no_weight_decay_list=free, layer_decay=0.5)
    ours, theirs = rates_and_decay(ours), rates_and_decay(theirs)
    own, layers = dict(model.named_parameters()), set()
    for key, parameter in twin.named_parameters():
        is_head = key in model.layout.classifier
        other = own[f'head.{key.split(".")[-1]}' if is_head else f'encoder.{key}']
        assert ours[id(other)] == pytest.approx(theirs[id(parameter)]), key
        layers.add(ours[id(other)][0])
    assert len(ours) == len(theirs) and len(layers) > 8


def test_maps_of_a_resnet_are_of_the_last_stage_with_enough_cells() -> None:
    model = TimmClassifier('resnet18', 64, 1, 3).eval()
    assert model.saliency_layer() is model.encoder.layer2
    maps = grad_cam(model, images(64), lambda outputs: outputs[:, 0])
    assert maps.shape[1:] == (8, 8)
    assert find_layout('resnet18', img_size=224, in_chans=1).map_layer == 'layer4'


@pytest.mark.slow
def test_a_resnet_learns_and_its_last_layer_alone(phantom, tmp_path) -> None:
    """The loss falls, and 'last_layer' changes neither encoder nor running statistics."""
    train = {'EPOCHS': 3, 'WARMUP_EPOCHS': 0, 'BASE_LR': 0.5, 'ACCUMULATION_STEPS': 1}
    full = finished_run('finetune', phantom, tmp_path / 'full', model=RESNET, TRAIN=train)
    losses = [line['loss'] for line in read_metrics(full / 'metrics.jsonl') if 'loss' in line]
    assert losses[-1] < 0.8 * losses[0]
    before = read_checkpoint(full / 'ckpt_epoch_2.pth')['model']
    assert before['encoder.bn1.num_batches_tracked'] == 21

    weights = ('--pretrained', str(full / 'ckpt_epoch_2.pth'))
    mode = {'FINETUNE': {'MODE': 'last_layer'}, 'TRAIN': {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}}
    last = finished_run('finetune', phantom, tmp_path / 'last', *weights, model=RESNET, **mode)
    after = read_checkpoint(last / 'ckpt_epoch_0.pth')['model']
    for key, value in before.items():
        assert torch.equal(after[key], value) != key.startswith('head.'), key

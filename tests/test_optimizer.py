"""Optimizers: groups of parameters, the options of the config, and exact resuming."""

import copy
import logging

import pytest
import torch
from tiny import config_with

from config import config_text
from optimizer import OPTIMIZERS, build_optimizer, param_groups
from utils import load_moments

LOGGER = logging.getLogger('test')


class Named(torch.nn.Module):
    """Parameters whose names contain an exempt name without being it."""

    def __init__(self):
        super().__init__()
        self.token = torch.nn.Parameter(torch.zeros(1, 2))
        self.my_token = torch.nn.Parameter(torch.zeros(1, 2))
        self.table = torch.nn.ParameterDict({'x': torch.zeros(1, 2)})
        self.tables = torch.nn.Parameter(torch.zeros(1, 2))
        self.frozen = torch.nn.Parameter(torch.zeros(1, 2), requires_grad=False)
        self.vector = torch.nn.Parameter(torch.zeros(2))

    def no_weight_decay(self):
        return {'token'}

    def no_weight_decay_keywords(self):
        return {'table'}


def test_exemption_is_by_whole_names_and_parts():
    model = Named()
    groups = param_groups(model, weight_decay=0.05, base_lr=1e-3, layer_decay=None)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = ([names[id(each)] for each in group['params']] for group in groups)
    assert [group['weight_decay'] for group in groups] == [0.05, 0]
    assert decayed == ['my_token', 'tables'] and exempt == ['token', 'vector', 'table.x']


def test_the_rate_falls_from_the_head_to_the_embedding_and_no_layer_is_outside():
    model, layers = Named(), {'token': 0, 'my_token': 1}
    model.get_num_layers = lambda: 1
    model.get_layer_id = lambda name: layers.get(name, 2)
    options = {'weight_decay': 0.05, 'base_lr': 1e-3, 'layer_decay': 0.5}
    found = [
        (group['group_name'], group['lr'], group['lr_scale'])
        for group in param_groups(model, **options)
    ]
    assert found == [
        ('layer_0_no_decay', 2.5e-4, 0.25),
        ('layer_1_decay', 5e-4, 0.5),
        ('layer_2_decay', 1e-3, 1),
        ('layer_2_no_decay', 1e-3, 1),
    ]
    layers['token'] = 3
    with pytest.raises(ValueError, match='get_layer_id'):
        param_groups(model, **options)


def test_sgd_is_nesterov_without_dampening():
    config = config_with(TRAIN__OPTIMIZER__NAME='SGD', TRAIN__OPTIMIZER__MOMENTUM=0.8)
    optimizer = build_optimizer(config, Named(), LOGGER, is_pretrain=True)
    assert type(optimizer) is torch.optim.SGD
    group = optimizer.param_groups[0]
    assert (group['momentum'], group['nesterov'], group['dampening']) == (0.8, True, 0)


def step_with(optimizer, parameters, value):
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, value)
    optimizer.step()


def in_two_groups(name, **options):
    """An optimizer of two tensors, of which one has weight decay."""
    matrix = torch.linspace(-1, 1, 6).reshape(2, 3)
    parameters = [torch.nn.Parameter(matrix.clone()) for _ in range(2)]
    groups = [
        {'params': [parameter], 'lr': 0.1, 'weight_decay': decay}
        for parameter, decay in zip(parameters, (0.05, 0.0), strict=True)
    ]
    return parameters, OPTIMIZERS[name](groups, config_with(**options).TRAIN.OPTIMIZER)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_an_optimizer_resumes_exactly(name):
    parameters, optimizer = in_two_groups(name)
    for value in (0.5, -2.0):
        step_with(optimizer, parameters, value)
    saved = {
        'config': config_text(config_with(TRAIN__OPTIMIZER__NAME=name)),
        'optimizer': copy.deepcopy(optimizer.state_dict()),
        'scaler': {},
    }
    others, resumed = in_two_groups(name)
    for parameter, other in zip(parameters, others, strict=True):
        other.data.copy_(parameter.data)
    load_moments(saved, resumed, torch.amp.GradScaler(enabled=False), name=name, source='file')
    for which, of in ((optimizer, parameters), (resumed, others)):
        step_with(which, of, 1.0)
    assert all(map(torch.equal, parameters, others))


def test_lamb_moves_by_the_norm_of_the_weights():
    """You et al. 2019, algorithm 2: the first step has the length rate * |weights|."""
    parameters, optimizer = in_two_groups('lamb', TRAIN__OPTIMIZER__EPS=1e-12)
    before = parameters[0].detach().clone()
    step_with(optimizer, parameters, 1e3)  # no gradient is clipped
    moved = (parameters[0] - before).norm().item()
    assert moved == pytest.approx(0.1 * before.norm().item(), rel=1e-5)


def test_adamw_has_the_options_of_the_config():
    config = config_with(TRAIN__OPTIMIZER__EPS=1e-6, TRAIN__OPTIMIZER__BETAS=(0.8, 0.95))
    optimizer = build_optimizer(config, Named(), LOGGER, is_pretrain=True)
    assert {(group['eps'], tuple(group['betas'])) for group in optimizer.param_groups} == {
        (1e-6, (0.8, 0.95))
    }

"""Optimizers: groups of parameters, the options of the config, and exact resuming."""

import copy
import logging

import pytest
import torch
from same_runs import assert_same_weights, final_state
from tiny import VIT, arguments, config_with, finished_run, run_folder, run_main, tiny_config

from config import Own, config_text, selected_part
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


@pytest.mark.parametrize(
    ('options', 'wanted'),
    [
        ({'NAME': 'SGD', 'MOMENTUM': 0.8}, {'momentum': 0.8, 'nesterov': True, 'dampening': 0}),
        ({'EPS': 1e-6, 'BETAS': (0.8, 0.95)}, {'eps': 1e-6, 'betas': (0.8, 0.95)}),
    ],
)
def test_sgd_is_nesterov_and_adamw_has_the_options_of_the_config(options, wanted):
    config = config_with(**{f'TRAIN__OPTIMIZER__{key}': value for key, value in options.items()})
    for group in build_optimizer(config, Named(), LOGGER, is_pretrain=True).param_groups:
        assert group | wanted == group


def test_the_log_counts_the_tensors_with_weight_decay(log):
    build_optimizer(config_with(), Named(), LOGGER, is_pretrain=True)
    (line,) = [line for line in log.messages if 'tensors in' in line]
    assert '5 tensors in 2 groups, 2 of them with weight decay 0.05;' in line


def step_with(optimizer, parameters, value):
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, value)
    optimizer.step()


def in_two_groups(name, **options):
    matrix = torch.linspace(-1, 1, 6).reshape(2, 3)
    parameters = [torch.nn.Parameter(matrix.clone()) for _ in range(2)]
    groups = [
        {'params': [parameter], 'names': [f'{decay}'], 'lr': 0.1, 'weight_decay': decay}
        for parameter, decay in zip(parameters, (0.05, 0.0), strict=True)
    ]
    config = config_with(**options | {'TRAIN__OPTIMIZER__NAME': name})
    build = selected_part(config, 'TRAIN.OPTIMIZER.NAME', with_options=True)
    return parameters, build(groups, config.TRAIN.OPTIMIZER)


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


@pytest.fixture
def muon(add_part):
    steps = Own(5, 'Steps of the iteration.', within='[1, inf)')
    momentum = Own(0.95, 'Momentum of the matrices.', within='[0, 1)')
    section = 'TRAIN.OPTIMIZER.NAMED_MUON', {'MOMENTUM': momentum, 'STEPS': steps}
    add_part('TRAIN.OPTIMIZER.NAME', 'named_muon', 'muon', '', *section)


@pytest.mark.parametrize('layer_decay', [None, 0.5])
def test_groups_have_the_names_of_their_parameters(layer_decay):
    model = Named()
    model.get_num_layers, model.get_layer_id = lambda: 1, lambda name: 2
    groups = param_groups(model, weight_decay=0.05, base_lr=1e-3, layer_decay=layer_decay)
    for group in groups:
        named = [model.get_parameter(name) for name in group['names']]
        assert [*map(id, named)] == [*map(id, group['params'])]
    learned = {name for name, each in model.named_parameters() if each.requires_grad}
    assert sorted(name for group in groups for name in group['names']) == sorted(learned)


@pytest.mark.parametrize('shape', [(4, 6), (6, 4)])
def test_a_step_of_muon_equals_pytorchs(shape, muon) -> None:
    reference = getattr(torch.optim, 'Muon', None)
    if reference is None:
        pytest.skip('this version of PyTorch has no Muon')
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(3, *shape)
    weight, other = (torch.nn.Parameter(start.clone()) for _ in range(2))
    group = {'params': [weight], 'names': ['blocks.0.w'], 'lr': 0.1, 'weight_decay': 0.05}
    config = config_with(TRAIN__OPTIMIZER__NAME='named_muon')
    mine = selected_part(config, 'TRAIN.OPTIMIZER.NAME', with_options=True)(
        [group], config.TRAIN.OPTIMIZER
    )
    theirs = reference([other], lr=0.1, weight_decay=0.05, momentum=0.95)
    for gradient in gradients:
        weight.grad, other.grad = gradient.clone(), gradient.clone()
        mine.step()
        theirs.step()
    # PyTorch's iteration is in bfloat16.
    torch.testing.assert_close(weight, other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize('stage', ['simmim', pytest.param('finetune', marks=pytest.mark.slow)])
def test_an_optimizer_with_booleans_in_its_state_resumes_exactly(stage, muon, phantom, tmp_path):
    optimizer = {'NAME': 'named_muon', 'NAMED_MUON': {'STEPS': 3}}
    train = {'OPTIMIZER': optimizer, 'SAVE_EVERY_STEPS': 2, 'BASE_LR': 0.01}
    sections = {'TRAIN': train, 'EVAL': {'HOLDOUT_IMAGES': 2}}
    whole = finished_run(stage, phantom, tmp_path / 'a', model=VIT, **sections)
    cfg = tiny_config(tmp_path / 'run.yaml', stage, VIT, **sections)
    start = ['--resume', str(whole / 'ckpt_epoch_0_step_2.pth')]
    assert run_main(stage, arguments(cfg, phantom, tmp_path / 'b', *start)) == 0
    want = final_state(whole)
    assert_same_weights(final_state(run_folder(tmp_path / 'b', stage)), want)
    states = want['optimizer']['state'].values()
    kinds = {getattr(value, 'dtype', type(value)) for state in states for value in state.values()}
    assert {bool, torch.bool, torch.float32} <= kinds

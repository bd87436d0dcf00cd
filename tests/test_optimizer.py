import copy
import logging

import pytest
import torch
from tiny import config_with
from torch import nn

from config import config_text, default_config
from models import build_model
from optimizer import OPTIMIZERS, build_optimizer, param_groups
from utils import load_moments

LOGGER = logging.getLogger('test')


def make_config(*pairs):
    config = default_config()
    config.merge_from_list(['DATA.BATCH_SIZE', 512, *pairs])
    return config


def make_model(config, is_pretrain):
    """The model without values: full sizes cost nothing."""
    with torch.device('meta'):
        return build_model(config, is_pretrain=is_pretrain)


def swin():
    node = 'MODEL.SWIN.'
    return make_config(
        *('DATA.IMG_SIZE', 192, f'{node}EMBED_DIM', 128, f'{node}WINDOW_SIZE', 6),
        *(f'{node}DEPTHS', [2, 2, 18, 2], f'{node}NUM_HEADS', [4, 8, 16, 32]),
    )


def vit(stage):
    finetune = stage == 'finetune'
    return make_config(
        *('MODEL.TYPE', 'vit', 'MODEL.VIT.USE_MEAN_POOLING', finetune),
        *('MODEL.VIT.USE_RPB', finetune, 'MODEL.VIT.USE_SHARED_RPB', not finetune),
    )


def names_without_decay(model, groups):
    exempt = {id(p) for group in groups if group['weight_decay'] == 0 for p in group['params']}
    return {name for name, p in model.named_parameters() if id(p) in exempt}


def groups_of(model, layer_decay=None):
    return param_groups(model, weight_decay=0.05, base_lr=1e-3, layer_decay=layer_decay)


@pytest.mark.parametrize(
    'config, decay, count, first, last, scale',
    [
        (swin(), 0.9, 52, ['layer_0_decay', 'layer_0_no_decay'], 25, 0.0717898),
        (vit('finetune'), 0.65, 28, ['layer_0_no_decay', 'layer_0_decay'], 13, 0.00369721),
    ],
    ids=['swin_base', 'vit_base'],
)
def test_finetuning_groups_by_layer(config, decay, count, first, last, scale):  # noqa: PLR0913
    groups = groups_of(make_model(config, is_pretrain=False), decay)
    names = [group['group_name'] for group in groups]
    assert len(set(names)) == len(names) == count
    assert names[:2] == first
    assert names[2:4] == ['layer_1_no_decay', 'layer_1_decay']
    assert names[-1] == f'layer_{last}_decay'
    assert groups[0]['lr_scale'] == pytest.approx(scale, rel=1e-5)
    assert groups[-1]['lr_scale'] == 1
    for group in groups:
        assert group['lr'] == pytest.approx(1e-3 * group['lr_scale'], rel=1e-12)
        assert group['weight_decay'] == (0 if group['group_name'].endswith('_no_decay') else 0.05)


def test_swin_tables_decay_in_pretraining_and_not_in_finetuning():
    config = swin()
    pretraining = make_model(config, is_pretrain=True)
    exempt = names_without_decay(pretraining, groups_of(pretraining))
    assert not any('relative_position_bias_table' in name for name in exempt)
    assert 'encoder.mask_token' in exempt

    classifier = make_model(config, is_pretrain=False)
    exempt = names_without_decay(classifier, groups_of(classifier, 0.9))
    tables = {n for n, _ in classifier.named_parameters() if 'relative_position_bias_table' in n}
    assert len(tables) == 24 and tables <= exempt


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
    groups = groups_of(model)
    assert names_without_decay(model, groups) == {'token', 'table.x', 'vector'}
    held = sum(len(group['params']) for group in groups)
    assert held == 5  # all but the frozen one


def test_sgd_is_nesterov_without_dampening():
    config = make_config('TRAIN.OPTIMIZER.NAME', 'SGD', 'TRAIN.OPTIMIZER.MOMENTUM', 0.8)
    optimizer = build_optimizer(config, make_model(config, False), LOGGER, False)
    assert type(optimizer) is torch.optim.SGD
    group = optimizer.param_groups[0]
    assert (group['momentum'], group['nesterov'], group['dampening']) == (0.8, True, 0)


def step_with(optimizer, parameters, value):
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, value)
    optimizer.step()


def in_two_groups(name, *pairs):
    """An optimizer of two tensors, of which one has weight decay."""
    matrix = torch.linspace(-1, 1, 6).reshape(2, 3)
    parameters = [torch.nn.Parameter(matrix.clone()) for _ in range(2)]
    groups = [
        {'params': [parameter], 'lr': 0.1, 'weight_decay': decay}
        for parameter, decay in zip(parameters, (0.05, 0.0), strict=True)
    ]
    options = make_config(*pairs).TRAIN.OPTIMIZER
    return parameters, OPTIMIZERS[name].build(groups, options)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_an_optimizer_names_its_moments_and_resumes_exactly(name):
    parameters, optimizer = in_two_groups(name)
    for value in (0.5, -2.0):
        step_with(optimizer, parameters, value)
    state = optimizer.state[parameters[0]].values()
    moments = [value for value in state if torch.is_tensor(value) and value.shape == (2, 3)]
    assert len(moments) == OPTIMIZERS[name].moments

    saved = {
        'config': config_text(make_config('TRAIN.OPTIMIZER.NAME', name)),
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
    parameters, optimizer = in_two_groups('lamb', 'TRAIN.OPTIMIZER.EPS', 1e-12)
    before = parameters[0].detach().clone()
    step_with(optimizer, parameters, 1e3)  # no gradient is clipped
    moved = (parameters[0] - before).norm().item()
    assert moved == pytest.approx(0.1 * before.norm().item(), rel=1e-5)


def test_adamw_has_the_options_of_the_config():
    config = config_with(TRAIN__OPTIMIZER__EPS=1e-6, TRAIN__OPTIMIZER__BETAS=(0.8, 0.95))
    model = nn.Linear(2, 2)
    model.no_weight_decay = model.no_weight_decay_keywords = set
    optimizer = build_optimizer(config, model, LOGGER, is_pretrain=True)
    assert {(group['eps'], tuple(group['betas'])) for group in optimizer.param_groups} == {
        (1e-6, (0.8, 0.95))
    }


def test_the_log_describes_the_groups_of_the_built_optimizer(monkeypatch, caplog):
    """An optimizer of one's own may not keep the groups that it is given."""

    def build(groups, options):
        return torch.optim.SGD([p for group in groups for p in group['params']], lr=1e-3)

    monkeypatch.setitem(OPTIMIZERS, 'sgd', OPTIMIZERS['sgd']._replace(build=build))
    model = nn.Linear(2, 2)
    model.no_weight_decay = model.no_weight_decay_keywords = set
    caplog.set_level(logging.INFO)
    config = config_with(TRAIN__OPTIMIZER__NAME='sgd', TRAIN__WEIGHT_DECAY=0.3)
    build_optimizer(config, model, logging.getLogger('groups'), is_pretrain=True)
    assert '2 tensors in 1 group' in caplog.text and '0.3' not in caplog.text

"""Recorded rates, parameter groups, pre-trained weights and short training runs of SimMIM."""

import logging

import pytest
import torch
from golden_cases import assert_close, case_config, case_id, cases, fill, recorded

from config import encoder_node
from lr_scheduler import build_scheduler, scaled_lr
from models import build_model
from optimizer import build_optimizer
from utils import load_pretrained

LOGGER = logging.getLogger('parity')


def check(case: dict, got, want, what: str, *, factor: float = 1.0, **tolerance: float) -> None:
    tolerance = case['tolerance'] | tolerance
    limits = {key: tolerance[key] * factor for key in ('rtol', 'atol')}
    assert_close(got, want, **limits, what=f'{case["name"]} {what}')


def rates(optimizer, model, names: list[str]) -> dict[str, float]:
    named = dict(model.named_parameters())
    by_id = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    return {name: by_id[id(named[name])] for name in names}


def build(case: dict, n_iter_per_epoch: int):
    config = case_config(case)
    pretrain = case['inputs']['is_pretrain']
    model = build_model(config, is_pretrain=pretrain)
    optimizer = build_optimizer(config, model, LOGGER, pretrain)
    return config, model, optimizer, build_scheduler(config, optimizer, n_iter_per_epoch)


@pytest.mark.parametrize('case', cases('lr'), ids=case_id)
def test_rates(case):
    values, _ = recorded(case)
    inputs = case['inputs']
    if inputs['mode'] == 'scaling':
        got = scaled_lr(case_config(case), inputs['world_size'])
        want = [values['BASE_LR'], values['WARMUP_LR'], values['MIN_LR']]
        check(case, [got.base, got.warmup, got.min], want, 'scaled rates')
        return
    if inputs['mode'] == 'single':
        config, model = case_config(case), torch.nn.Linear(2, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=config.TRAIN.BASE_LR)
        scheduler = build_scheduler(config, optimizer, inputs['n_iter_per_epoch'])
    else:
        _, model, optimizer, scheduler = build(case, inputs['n_iter_per_epoch'])
    names = list(values['start'])
    check(
        case, list(rates(optimizer, model, names).values()), list(values['start'].values()), 'start'
    )
    history = []
    for step in inputs['updates']:
        scheduler.step_update(step)
        history.append(rates(optimizer, model, names))
    for name, want in values['updates'].items():
        check(case, [row[name] for row in history], want, f'rate of {name}')


@pytest.mark.parametrize('case', cases('param_groups'), ids=case_id)
def test_parameter_groups(case):
    values, _ = recorded(case)
    config, model, optimizer, scheduler = build(case, 10)
    scheduler.step_update(0)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    got = {
        named[id(parameter)]: (group['lr'] / config.TRAIN.BASE_LR, group['weight_decay'])
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    assert got.keys() == values.keys()
    for name, want in values.items():
        check(case, got[name], (want['lr_scale'], want['weight_decay']), f'group of {name}')


@pytest.mark.parametrize('case', cases('remap'), ids=case_id)
def test_pretrained_weights(case, tmp_path):
    values, arrays = recorded(case)
    inputs, config = case['inputs'], case_config(case)
    source = fill.checkpoint(
        values['source_shapes'], values['source_buffers'], inputs['source_seed']
    )
    torch.save({'model': source}, tmp_path / 'source.pth')
    config.defrost()
    config.PRETRAINED = str(tmp_path / 'source.pth')
    model = build_model(config, is_pretrain=False).eval()
    fill.fill_model(model, inputs['weights_seed'])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_pretrained(config, model, LOGGER)
    after = model.state_dict()

    tables = [key for key in after if key.endswith('relative_position_bias_table')]
    assert {key for key in arrays if key != 'logits'} == set(tables)
    for key in tables:
        check(case, after[key], arrays[key], f'table {key}')
    for key in values['loaded']:
        own = key if key in source else f'encoder.{key}'
        if own not in source:  # a block's copy of the shared table
            own = 'encoder.rel_pos_bias.relative_position_bias_table'
        assert torch.equal(after[key], source[own]), key
    for key in values['kept']:
        assert torch.equal(after[key], before[key]), key
    for key in before:
        if fill.is_buffer(key):
            assert torch.equal(after[key], before[key]), key

    size, channels = config.DATA.IMG_SIZE, config.MODEL.IN_CHANS
    x = torch.from_numpy(fill.images(inputs['image_seed'], inputs['batch'], channels, size))
    with torch.no_grad():
        check(case, model(x), arrays['logits'], 'logits', factor=10)


def batch_loss(model, config, inputs: dict, step: int, device: torch.device) -> torch.Tensor:
    node = encoder_node(config)
    size, batch = config.DATA.IMG_SIZE, inputs['batch']
    x = torch.from_numpy(
        fill.images(inputs['image_seed'] + step, batch, config.MODEL.IN_CHANS, size)
    ).to(device)
    if inputs['is_pretrain']:
        mask = fill.masks(
            inputs['mask_seed'] + step,
            batch,
            size,
            inputs['mask_patch'],
            node.PATCH_SIZE,
            inputs['mask_ratio'],
        )
        return model(x, torch.from_numpy(mask).to(device))
    targets = torch.from_numpy(fill.targets(inputs['target_seed'] + step, batch, 14)).to(device)
    return torch.nn.functional.binary_cross_entropy_with_logits(model(x), targets)


@pytest.mark.parametrize('case', cases('train'), ids=case_id)
def test_short_training_run(case, device):
    values, _ = recorded(case)
    inputs, tolerance = case['inputs'], case['tolerance']
    if device.type == 'cuda':  # it adds in another order
        case = case | {'tolerance': {key: max(limit, 1e-4) for key, limit in tolerance.items()}}
    config, model, optimizer, scheduler = build(case, inputs['n_iter_per_epoch'])
    fill.fill_model(model.train(), inputs['weights_seed'])
    model.to(device)
    accumulation = max(1, config.TRAIN.ACCUMULATION_STEPS)
    losses, norms, history = [], [], []
    for step in range(inputs['micro_steps']):
        loss = batch_loss(model, config, inputs, step, device)
        losses.append(loss.item())
        (loss / accumulation).backward()
        if (step + 1) % accumulation == 0:
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.TRAIN.CLIP_GRAD)
            norms.append(norm.item())
            history.append(rates(optimizer, model, inputs['watched']))
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step_update(step)
    check(case, losses, values['loss'], 'loss')
    check(case, norms, values['grad_norm'], 'grad_norm', rtol=10 * case['tolerance']['rtol'])
    for name, want in values['lr'].items():
        check(case, [row[name] for row in history], want, f'lr of {name}', rtol=1e-6, atol=0)
    final_loss = batch_loss(model, config, inputs, 0, device).item()
    check(case, final_loss, values['final_loss'], 'final loss')
    named = dict(model.named_parameters())
    for name, want in values['final_norms'].items():
        check(case, named[name].detach().norm().item(), want, f'norm of {name}')


def test_every_case_of_these_kinds_is_compared():
    kinds = ('lr', 'param_groups', 'remap', 'train')
    assert [len(cases(kind)) for kind in kinds] == [11, 5, 6, 5]

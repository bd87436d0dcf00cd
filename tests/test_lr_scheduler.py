"""Schedules against those of timm and PyTorch, and refusals; SimMIM's: test_parity_training.py."""

import numpy as np
import pytest
import torch
from timm.scheduler import CosineLRScheduler
from tiny import config_with
from torch.optim.lr_scheduler import OneCycleLR

from lr_scheduler import SCHEDULES, build_scheduler

BATCHES = 625  # per epoch


def make_config(**options):
    """A config whose rates are those of the options: the global batch is 512."""
    return config_with(DATA__BATCH_SIZE=512, **{f'TRAIN__{k}': v for k, v in options.items()})


def make_optimizer(*rates):
    groups = [{'params': [torch.nn.Parameter(torch.zeros(1))], 'lr': rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0)


def rate_at(config, steps, base):
    optimizer = make_optimizer(base)
    scheduler = build_scheduler(config, optimizer, BATCHES)
    got = []
    for step in steps:
        scheduler.step_update(step)
        got.append(optimizer.param_groups[0]['lr'])
    return got


def test_the_shifted_cosine_is_that_of_timm():
    """Timm's `warmup_prefix`: the cosine begins where the warm-up ends."""
    total, warmup, base = 8 * BATCHES, 2 * BATCHES, 5e-3
    rates = {'WARMUP_LR': 1e-6, 'MIN_LR': 3e-7, 'EPOCHS': 8, 'WARMUP_EPOCHS': 2}
    shapes = {'t_initial': total - warmup, 'warmup_t': warmup, 'warmup_prefix': True}
    theirs = CosineLRScheduler(
        make_optimizer(base), lr_min=3e-7, warmup_lr_init=1e-6, t_in_epochs=False, **shapes
    )
    steps = [0, 1, 700, warmup - 1, warmup, warmup + 1, 3333, total - 1]
    want = [theirs._get_lr(step)[0] for step in steps]
    shifted = make_config(LR_SCHEDULER__WARMUP_PREFIX=True, **rates)
    assert rate_at(shifted, steps, base) == pytest.approx(want, rel=1e-9)
    plain = rate_at(make_config(**rates), [warmup], base)[0]
    assert plain < 0.9 * base == pytest.approx(0.9 * rate_at(shifted, [warmup], base)[0])


@pytest.mark.parametrize('kind', [torch.optim.AdamW, torch.optim.SGD])
def test_rate_and_momentum_of_one_cycle_are_those_of_torch(kind):
    """Torch's cycle of T steps peaks at step pct_start x T - 1 and ends at step T - 1."""
    total, warmup, base = 80, 30, 5e-3
    given = {} if kind is torch.optim.AdamW else {'momentum': 0.9, 'nesterov': True}

    def momentum(optimizer):
        group = optimizer.param_groups[0]
        return group['betas'][0] if 'betas' in group else group['momentum']

    ours, other = (kind([torch.nn.Parameter(torch.zeros(1))], lr=base, **given) for _ in range(2))
    shape = {'total_steps': total + 1, 'pct_start': (warmup + 1) / (total + 1)}
    theirs = OneCycleLR(other, max_lr=base, **shape)
    rates = {'WARMUP_LR': base / 25, 'MIN_LR': base / 25e4, 'LR_SCHEDULER__NAME': 'onecycle'}
    rates |= {'EPOCHS': 8, 'WARMUP_EPOCHS': 3}
    scheduler = build_scheduler(make_config(**rates), ours, 10)
    found, wanted = [], []
    for step in range(total):
        scheduler.step_update(step)
        found.append((ours.param_groups[0]['lr'], momentum(ours)))
        wanted.append((other.param_groups[0]['lr'], momentum(other)))
        other.step()
        theirs.step()
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert found[0][1] == pytest.approx(0.95) and found[warmup][1] == pytest.approx(0.85)
    if 'betas' in ours.param_groups[0]:
        assert ours.param_groups[0]['betas'][1] == 0.999
    scheduler.step_update(3 * total)
    assert ours.param_groups[0]['lr'] == base / 25e4 and momentum(ours) == 0.95


@pytest.mark.parametrize('value', [-1e-9, np.nan, np.inf])
def test_a_rate_that_cannot_be_used_is_refused(value, monkeypatch):
    monkeypatch.setitem(SCHEDULES, 'cosine', lambda *_: lambda step, base: value)
    config = make_config(EPOCHS=2, WARMUP_EPOCHS=1)
    scheduler = build_scheduler(config, make_optimizer(1.0, 1.0), BATCHES)
    with pytest.raises(ValueError, match=rf"'cosine' .*SCHEDULER.NAME.* at batch {BATCHES};"):
        scheduler.step_update(BATCHES)
    scheduler.step_update(2 * BATCHES)  # after the run

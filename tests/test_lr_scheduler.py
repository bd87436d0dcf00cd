import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from config import default_config
from lr_scheduler import build_scheduler, scaled_lr

BATCHES = 625  # 1,281,167 images, 16 processes of 128


def make_config(**options):
    """A config whose rates are those of the options: the global batch is 512."""
    config = default_config()
    config.DATA.BATCH_SIZE = 512
    for key, value in options.items():
        config.merge_from_list([f'TRAIN.{key.replace("__", ".")}', value])
    return config


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


PRETRAIN = {
    'BASE_LR': 8e-4,
    'WARMUP_LR': 4e-6,
    'MIN_LR': 4e-5,
    'EPOCHS': 100,
    'WARMUP_EPOCHS': 10,
}
MULTISTEP = {
    'BASE_LR': 4e-4,
    'WARMUP_LR': 2e-6,
    'EPOCHS': 800,
    'WARMUP_EPOCHS': 10,
    'LR_SCHEDULER__NAME': 'multistep',
    'LR_SCHEDULER__MULTISTEPS': [700],
    'LR_SCHEDULER__GAMMA': 0.1,
}
FINETUNE = {
    'BASE_LR': 5e-3,
    'WARMUP_LR': 1e-6,
    'MIN_LR': 1e-6,
    'EPOCHS': 100,
    'WARMUP_EPOCHS': 20,
}
STEP = PRETRAIN | {
    'LR_SCHEDULER__NAME': 'step',
    'LR_SCHEDULER__DECAY_EPOCHS': 30,
    'LR_SCHEDULER__DECAY_RATE': 0.1,
}


@pytest.mark.parametrize(
    'options, base, values',
    [
        (
            PRETRAIN,
            8e-4,
            {
                0: 4e-6,
                3125: 4.02e-4,
                6249: 7.9987264e-4,
                6250: 7.814014762e-4,
                31250: 4.2e-4,
                62499: 4.0000000480e-5,
                62500: 4e-5,
                99999: 4e-5,
            },
        ),
        (MULTISTEP, 4e-4, {3125: 2.01e-4, 6250: 4e-4, 437499: 4e-4, 437500: 4e-5}),
        (PRETRAIN | {'LR_SCHEDULER__NAME': 'linear'}, 8e-4, {34375: 4.04e-4, 62499: 8.01408e-6}),
        (STEP, 8e-4, {3125: 4.02e-4, 18749: 8e-4, 18750: 8e-5}),
        (FINETUNE, 5e-3, {6250: 2.5005e-3, 12500: 4.522637977e-3, 62499: 1.0000031576e-6}),
        (FINETUNE, 5e-3 * 0.8**25, {0: 1e-6, 6250: 9.944732966e-6, 12500: 1.718117395e-5}),
    ],
    ids=['cosine', 'multistep', 'linear', 'step', 'finetune', 'finetune-layer-0'],
)
def test_rates_are_those_of_simmim(options, base, values):
    got = rate_at(make_config(**options), values, base)
    assert got == pytest.approx(list(values.values()), rel=1e-8)


def test_rate_depends_on_the_step_alone():
    config = make_config(**PRETRAIN)
    assert rate_at(config, [40000, 3, 6250], 8e-4)[2] == rate_at(config, [6250], 8e-4)[0]


def test_first_rate_is_the_start_of_the_warmup():
    optimizer = make_optimizer(8e-4, 1e-6)
    build_scheduler(make_config(**PRETRAIN), optimizer, BATCHES)
    assert [group['lr'] for group in optimizer.param_groups] == [4e-6, 4e-6]
    assert [group['initial_lr'] for group in optimizer.param_groups] == [8e-4, 1e-6]


def test_layer_scale_is_applied_once():
    scale = 0.65**13
    optimizer = make_optimizer(5e-3, 5e-3 * scale)
    for group, value in zip(optimizer.param_groups, (1.0, scale), strict=True):
        group['lr_scale'] = value
    config = make_config(**FINETUNE | {'WARMUP_EPOCHS': 0, 'MIN_LR': 0.0})
    scheduler = build_scheduler(config, optimizer, BATCHES)
    for step in (0, 100, 31250):
        scheduler.step_update(step)
        top, bottom = (group['lr'] for group in optimizer.param_groups)
        assert bottom / top == pytest.approx(scale, rel=1e-12)


ONECYCLE = {
    'BASE_LR': 5e-3,
    'WARMUP_LR': 1e-6,
    'MIN_LR': 3e-7,
    'EPOCHS': 8,
    'WARMUP_EPOCHS': 3,
    'LR_SCHEDULER__NAME': 'onecycle',
}


def rates_of_torch(scheduler, num_steps):
    """The first group's rate at every step."""
    rates = []
    for _ in range(num_steps):
        rates.append(scheduler.optimizer.param_groups[0]['lr'])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(('scale', 'warmup_epochs'), [(1.0, 3), (0.65**13, 8)])
def test_one_cycle_is_that_of_torch(scale, warmup_epochs):
    """Torch's cycle of T steps peaks at step pct_start x T - 1 and ends at step T - 1."""
    total, warmup, base = 8 * BATCHES, warmup_epochs * BATCHES, 5e-3 * scale
    config = make_config(**ONECYCLE | {'WARMUP_EPOCHS': warmup_epochs})
    theirs = OneCycleLR(
        make_optimizer(base),
        max_lr=base,
        total_steps=total + 1,
        pct_start=(warmup + 1) / (total + 1),
        anneal_strategy='cos',
        cycle_momentum=False,
        div_factor=base / 1e-6,
        final_div_factor=1e-6 / 3e-7,
    )
    steps = range(total)
    got = rate_at(config, steps, base)
    assert got == pytest.approx(rates_of_torch(theirs, total), rel=1e-12)
    assert rate_at(config, [total, 2 * total], base) == [3e-7, 3e-7]


@pytest.mark.parametrize(
    'batch, accumulation, processes, factor',
    [(128, 0, 16, 4), (128, 1, 16, 4), (64, 4, 4, 2), (8, 0, 1, 1 / 64)],
)
def test_rates_scale_with_the_global_batch(batch, accumulation, processes, factor):
    config = make_config(BASE_LR=1e-4, WARMUP_LR=5e-7, MIN_LR=5e-6)
    config.DATA.BATCH_SIZE, config.TRAIN.ACCUMULATION_STEPS = batch, accumulation
    config.freeze()
    before = config.dump()
    got = scaled_lr(config, processes)
    assert got == pytest.approx((1e-4 * factor, 5e-7 * factor, 5e-6 * factor), rel=1e-12)
    assert config.dump() == before


def test_unknown_schedule_is_refused():
    config = make_config(LR_SCHEDULER__NAME='plateau')
    with pytest.raises(ValueError, match='TRAIN.LR_SCHEDULER.NAME'):
        build_scheduler(config, make_optimizer(1e-3), BATCHES)

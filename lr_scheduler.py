"""Learning rates, weight decay and momentum, scheduled per batch.

Learning rates are scaled with the effective batch size.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch.optim import Optimizer

from config import REGISTRIES, Config, selected_part
from system import distributed

REFERENCE_BATCH = 512  # effective batch size for which the config gives the learning rates
LINEAR_END = 0.01  # final learning rate of the linear schedule, as a share of the base rate

MOMENTA = 0.95, 0.85  # of 'onecycle', with the lowest and with the highest rate

Rate = Callable[[int, float], float]  # (batch of the run, base rate) -> learning rate
# Each schedule is a function (config, batches per epoch, MIN_LR, **options) -> Rate after the
# warm-up. The options are its own, such as TRAIN.LR_SCHEDULER.WSD.SHARE of 'wsd'.
SCHEDULES: dict[str, Callable[[Config, int, float], Rate]] = REGISTRIES['TRAIN.LR_SCHEDULER.NAME']


class ScaledLR(NamedTuple):
    """TRAIN.BASE_LR, WARMUP_LR and MIN_LR, scaled with the effective batch size."""

    base: float
    warmup: float
    min: float


def scaled_lr(config: Config, world_size: int) -> ScaledLR:
    """Multiply the config's three learning rates by the effective batch size / 512."""
    accumulation = max(1, config.TRAIN.ACCUMULATION_STEPS)
    # The linear rule of Goyal et al. 2017 (arXiv:1706.02677), with SimMIM's reference batch.
    factor = config.DATA.BATCH_SIZE * world_size * accumulation / REFERENCE_BATCH
    train = config.TRAIN
    return ScaledLR(train.BASE_LR * factor, train.WARMUP_LR * factor, train.MIN_LR * factor)


class Scheduler:
    """Sets rate and momentum of every parameter group as functions of the batch.

    There is no state to save. The base rate of a group is its `lr` at construction, which already
    includes the factor of its layer.

    Args:
        optimizer: Optimizer whose parameter groups have their base rate as `lr`.
        rate: Function (batch, base rate) -> learning rate after the batch.
        momentum: Function of the batch -> momentum, or first of the betas. None keeps it constant.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rate: Rate,
        momentum: Callable[[int], float] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.rate, self.momentum = rate, momentum
        self.base_rates = [group['lr'] for group in optimizer.param_groups]
        self.step_update(0)

    def step_update(self, step: int) -> None:
        """Set the values of all groups after batch `step` of the run, from 0 on."""
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group['lr'] = float(self.rate(step, base))  # no checkpoint can contain NumPy's numbers
        for group in self.optimizer.param_groups if self.momentum else ():
            if 'betas' in group:
                group['betas'] = (float(self.momentum(step)), *group['betas'][1:])
            if 'momentum' in group:  # Muon has both
                group['momentum'] = float(self.momentum(step))


def build_scheduler(config: Config, optimizer: Optimizer, n_iter_per_epoch: int) -> Scheduler:
    """Build the schedule of TRAIN.LR_SCHEDULER.

    With 'onecycle' the momentum falls while the rate rises, and rises while the rate falls.
    All parameter groups share the start of the warm-up and the minimum.
    """
    name = config.TRAIN.LR_SCHEDULER.NAME
    rates = scaled_lr(config, distributed.world_size())
    warmup_steps = int(config.TRAIN.WARMUP_EPOCHS * n_iter_per_epoch)
    total_steps = int(config.TRAIN.EPOCHS * n_iter_per_epoch)
    decay = selected_part(config, 'TRAIN.LR_SCHEDULER.NAME', with_options=True)(
        config, n_iter_per_epoch, rates.min
    )

    def rate(step: int, base: float) -> float:
        # From here on the schedule alone decides; its own start may lie before, as in SimMIM.
        if step >= warmup_steps:
            value = decay(step, base)
            if step < total_steps and not 0 <= value < math.inf:
                raise ValueError(
                    f'the schedule {name!r} (TRAIN.LR_SCHEDULER.NAME) gives the learning rate '
                    f'{value:g} at batch {step}; it must be a finite number, at least 0'
                )
            return value
        if name == 'onecycle':
            return _half_cosine(rates.warmup, base, step, warmup_steps)
        # All groups start from the same rate and reach their own base rate together.
        return rates.warmup + step * (base - rates.warmup) / warmup_steps

    def momentum(step: int) -> float:
        high, low = MOMENTA
        # Opposite to the rate: low momentum while the steps are large.
        if step < warmup_steps:
            return _half_cosine(high, low, step, warmup_steps)
        return onecycle(config, n_iter_per_epoch, high)(step, low)

    return Scheduler(optimizer, rate, momentum if name == 'onecycle' else None)


@SCHEDULES.register('cosine')
def cosine(config: Config, n_iter_per_epoch: int, floor: float) -> Rate:
    """Follow half a cosine over the whole run, or with WARMUP_PREFIX from the end of the warm-up.

    Without WARMUP_PREFIX the cosine begins at step 0, as in SimMIM, so the learning rate drops
    slightly at the end of the warm-up.
    """
    if config.TRAIN.LR_SCHEDULER.WARMUP_PREFIX:
        return onecycle(config, n_iter_per_epoch, floor)
    total = int(config.TRAIN.EPOCHS * n_iter_per_epoch)
    return lambda step, base: floor if step >= total else _half_cosine(base, floor, step, total)


@SCHEDULES.register('linear')
def linear(config: Config, n_iter_per_epoch: int, floor: float) -> Rate:
    """Decrease linearly from the end of the warm-up to LINEAR_END times the base rate."""
    warmup = int(config.TRAIN.WARMUP_EPOCHS * n_iter_per_epoch)
    length = max(1, int(config.TRAIN.EPOCHS * n_iter_per_epoch) - warmup)
    return lambda step, base: base - (1 - LINEAR_END) * base * (step - warmup) / length


@SCHEDULES.register('step')
def step_decay(config: Config, n_iter_per_epoch: int, floor: float) -> Rate:
    """Multiply by DECAY_RATE every DECAY_EPOCHS epochs."""
    interval = int(config.TRAIN.LR_SCHEDULER.DECAY_EPOCHS * n_iter_per_epoch)
    factor = config.TRAIN.LR_SCHEDULER.DECAY_RATE
    return lambda step, base: base * factor ** (step // interval)


@SCHEDULES.register('multistep')
def multistep(config: Config, n_iter_per_epoch: int, floor: float) -> Rate:
    """Multiply by GAMMA at each epoch in MULTISTEPS."""
    # Epochs become batches, because the schedule moves with every batch.
    milestones = [epoch * n_iter_per_epoch for epoch in config.TRAIN.LR_SCHEDULER.MULTISTEPS]
    gamma = config.TRAIN.LR_SCHEDULER.GAMMA
    return lambda step, base: base * gamma ** sum(milestone <= step for milestone in milestones)


@SCHEDULES.register('onecycle')
def onecycle(config: Config, n_iter_per_epoch: int, floor: float) -> Rate:
    """Follow half a cosine up during the warm-up, and half a cosine down after it.

    Source: Smith & Topin 2018, arXiv:1708.07120.
    """
    total = int(config.TRAIN.EPOCHS * n_iter_per_epoch)
    warmup = int(config.TRAIN.WARMUP_EPOCHS * n_iter_per_epoch)

    def decay(step: int, base: float) -> float:
        return floor if step >= total else _half_cosine(base, floor, step - warmup, total - warmup)

    return decay


def _half_cosine(start: float, end: float, step: int, length: int) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * step / length))

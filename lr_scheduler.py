"""Learning rates: scaled by the global batch, and scheduled as a function of the micro-batch."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch.optim import Optimizer

from config import Config
from engine import distributed

REFERENCE_BATCH = 512  # images per update that the config's rates are meant for
LINEAR_END = 0.01  # share of its base rate at which the linear schedule ends


class ScaledLR(NamedTuple):
    """TRAIN.BASE_LR, WARMUP_LR and MIN_LR for the global batch of a run."""

    base: float
    warmup: float
    min: float


def scaled_lr(config: Config, world_size: int) -> ScaledLR:
    """The config's three rates times the images per update over 512; the config stays as it is."""
    accumulation = max(1, config.TRAIN.ACCUMULATION_STEPS)
    factor = config.DATA.BATCH_SIZE * world_size * accumulation / REFERENCE_BATCH
    train = config.TRAIN
    return ScaledLR(train.BASE_LR * factor, train.WARMUP_LR * factor, train.MIN_LR * factor)


class Scheduler:
    """Sets every group's rate from the number of the micro-batch alone; there is no state to save.

    A group's base rate is its `lr` at construction, kept in its `initial_lr` too. A layer scale is
    in there already, so it acts once; start of the warm-up and floor are the same for all groups.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        decay: Callable[[int, float], float],
        *,
        warmup_steps: int,
        warmup_lr: float,
        warmup: Callable[[float, float, int, int], float],
    ) -> None:
        self.optimizer = optimizer
        self.decay = decay
        self.warmup_steps = warmup_steps
        self.warmup_lr = warmup_lr
        self.warmup = warmup
        self.base_rates = [group['lr'] for group in optimizer.param_groups]
        for group, base in zip(optimizer.param_groups, self.base_rates, strict=True):
            group['initial_lr'] = base
        self.step_update(0)

    def rate(self, step: int, base: float) -> float:
        """The rate after micro-batch `step` (counted from 0 over the run) of a group."""
        if step < self.warmup_steps:
            return self.warmup(self.warmup_lr, base, step, self.warmup_steps)
        return self.decay(step, base)

    def step_update(self, step: int) -> None:
        """Set the rates that the update after micro-batch `step` will use."""
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group['lr'] = self.rate(step, base)


def build_scheduler(config: Config, optimizer: Optimizer, n_iter_per_epoch: int) -> Scheduler:
    """The schedule that TRAIN.LR_SCHEDULER names, counted in micro-batches.

    Raises:
        ValueError: if the name is unknown.
    """
    name = config.TRAIN.LR_SCHEDULER.NAME
    if name not in _SCHEDULES:
        raise ValueError(
            f'TRAIN.LR_SCHEDULER.NAME must be one of {sorted(_SCHEDULES)}, got {name!r}'
        )
    rates = scaled_lr(config, distributed.world_size())
    return Scheduler(
        optimizer,
        _SCHEDULES[name](config, n_iter_per_epoch, rates.min),
        warmup_steps=int(config.TRAIN.WARMUP_EPOCHS * n_iter_per_epoch),
        warmup_lr=rates.warmup,
        warmup=_half_cosine if name == 'onecycle' else _line,
    )


def _line(start: float, end: float, step: int, length: int) -> float:
    return start + step * (end - start) / length


def _half_cosine(start: float, end: float, step: int, length: int) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * step / length))


def _cosine(config: Config, n_iter_per_epoch: int, floor: float) -> Callable[[int, float], float]:
    total = int(config.TRAIN.EPOCHS * n_iter_per_epoch)

    # The warm-up is not taken off the step, so the rate drops a little where the warm-up ends.
    def decay(step: int, base: float) -> float:
        return floor if step >= total else _half_cosine(base, floor, step, total)

    return decay


def _onecycle(config: Config, n_iter_per_epoch: int, floor: float) -> Callable[[int, float], float]:
    """Half a cosine down from the warm-up's end to the end of training; the warm-up is one, too.

    Source: Smith & Topin 2018, arXiv:1708.07120.
    """
    total = int(config.TRAIN.EPOCHS * n_iter_per_epoch)
    warmup = int(config.TRAIN.WARMUP_EPOCHS * n_iter_per_epoch)

    def decay(step: int, base: float) -> float:
        return floor if step >= total else _half_cosine(base, floor, step - warmup, total - warmup)

    return decay


def _linear(config: Config, n_iter_per_epoch: int, floor: float) -> Callable[[int, float], float]:
    warmup = int(config.TRAIN.WARMUP_EPOCHS * n_iter_per_epoch)
    length = max(1, int(config.TRAIN.EPOCHS * n_iter_per_epoch) - warmup)
    return lambda step, base: base - (1 - LINEAR_END) * base * (step - warmup) / length


def _step(config: Config, n_iter_per_epoch: int, floor: float) -> Callable[[int, float], float]:
    interval = int(config.TRAIN.LR_SCHEDULER.DECAY_EPOCHS * n_iter_per_epoch)
    factor = config.TRAIN.LR_SCHEDULER.DECAY_RATE
    return lambda step, base: base * factor ** (step // interval)


def _multistep(
    config: Config, n_iter_per_epoch: int, floor: float
) -> Callable[[int, float], float]:
    milestones = [epoch * n_iter_per_epoch for epoch in config.TRAIN.LR_SCHEDULER.MULTISTEPS]
    gamma = config.TRAIN.LR_SCHEDULER.GAMMA
    return lambda step, base: base * gamma ** sum(milestone <= step for milestone in milestones)


_SCHEDULES = {
    'cosine': _cosine,
    'linear': _linear,
    'step': _step,
    'multistep': _multistep,
    'onecycle': _onecycle,
}

"""Where training stands: what a checkpoint holds, and how a run goes on from one."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import distributed
from compilation import Compiled
from config import Config, config_changes, config_text
from config_merge import load_yaml
from meters import Progress
from utils import load_model_state, load_moments, refuse_damaged, set_rng_state


@dataclass
class TrainState:
    """What changes while training, and goes into checkpoints."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    num_batches: int  # micro-batches of an epoch
    accumulation: int = 1  # micro-batches of a step
    epoch: int = 0
    batch: int = 0  # micro-batches of this epoch that are done
    best_score: float = -math.inf
    source: str = ''  # the checkpoint that it went on from
    progress: Progress = field(default_factory=Progress)
    step_losses: list[Tensor] = field(default_factory=list)  # of the step under way
    rng_marks: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # at the start of steps
    before_step: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # what undoes a step

    @property
    def parallel(self) -> DistributedDataParallel | None:
        """What exchanges gradients with other processes, if there are any."""
        model = self.model.module if isinstance(self.model, Compiled) else self.model
        return model if isinstance(model, DistributedDataParallel) else None

    @property
    def module(self) -> nn.Module:
        """The model itself, not compiled, without DistributedDataParallel around it."""
        model = self.model
        while isinstance(model, Compiled | DistributedDataParallel):
            model = model.module
        return model

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; the last of an epoch may have fewer micro-batches."""
        return math.ceil(self.num_batches / self.accumulation)

    @property
    def step(self) -> int:
        """Optimizer steps of this epoch that are done."""
        return math.ceil(self.batch / self.accumulation)

    def contents(self, config: Config, rng: list[dict[str, Tensor]], *, finished: bool) -> dict:
        """What a checkpoint holds; `utils.RESUME_KEYS` says which of it resuming needs.

        Args:
            config: of the run.
            rng: random states of all ranks.
            finished: whether the epoch is over; else `batch` of its micro-batches are done.
        """
        return {
            'model': self.module.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'scaler': self.scaler.state_dict(),
            'epoch': self.epoch,
            'batch': self.batch,
            'num_batches': self.num_batches,
            'accumulation': self.accumulation,
            'finished': finished,
            'best_score': self.best_score,
            'progress': self.progress.numbers(),
            'rng': rng,
            'config': config_text(config),
        }

    def restore(self, saved: dict, config: Config, *, source: str, logger: logging.Logger) -> None:
        """Go on from a checkpoint, with the rates, decay and lengths of the config at hand.

        Args:
            saved: of `utils.read_resumable`.
            config: of the run.
            source: the checkpoint's name.
            logger: what changed since is warned of.

        Raises:
            ValueError: if it is of another model, or its place in an epoch means another one here.
        """
        self.source = source
        with refuse_damaged(source):
            self._restore(saved, config, source, logger)
        logger.info(f'resumed from {source}: epoch {self.epoch}, micro-batch {self.batch}')

    def _restore(self, saved: dict, config: Config, source: str, logger: logging.Logger) -> None:
        load_model_state(self.module, saved['model'], source, logger)
        load_moments(saved, self.optimizer, self.scaler, source)
        self.epoch, self.best_score = saved['epoch'], saved['best_score']
        self.progress = Progress(**saved['progress'])
        if saved['finished']:
            self.next_epoch()
        elif saved['batch']:
            self.batch = self._place(saved, config, source)
        if (self.epoch, self.batch) > (config.TRAIN.EPOCHS, 0):
            raise ValueError(
                f'{source}: {self.epoch} epochs and {self.batch} micro-batches are done, more than '
                f'TRAIN.EPOCHS {config.TRAIN.EPOCHS}: raise it, or begin anew under another --tag'
            )
        if self.epoch or self.batch:
            self.scheduler.step_update(self.epoch * self.num_batches + self.batch - 1)
        for line in config_changes(saved['config'], config_text(config)):
            logger.warning(f'changed since the checkpoint: {line}')
        rng = saved['rng']
        if len(rng) == distributed.world_size():
            set_rng_state(rng[distributed.rank()])
        else:
            logger.info(
                f'the checkpoint has random states for {len(rng)} process(es), this run has '
                f'{distributed.world_size()}: dropout and drop path are drawn anew'
            )

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.progress = self.epoch + 1, 0, self.progress.next_epoch()

    def _place(self, saved: dict, config: Config, source: str) -> int:
        """The micro-batch of this run at which the checkpoint's step is done."""
        batch_size, accumulation = _batch_options(saved)
        processes = len(saved['rng'])
        accumulation = saved.get('accumulation', accumulation)
        old, new = batch_size * processes, config.DATA.BATCH_SIZE * distributed.world_size()
        same_data = abs(saved['num_batches'] * old - self.num_batches * new) < max(old, new)
        if old == new:
            same_data = saved['num_batches'] == self.num_batches
        if old * accumulation != new * self.accumulation or not same_data:
            raise ValueError(
                f'{source}: stopped at micro-batch {saved["batch"]} of {saved["num_batches"]} in '
                f'epoch {saved["epoch"]}, each of {batch_size} images on {processes} process(es), '
                f'{accumulation} a step; an epoch now has {self.num_batches} of '
                f'{config.DATA.BATCH_SIZE} on {distributed.world_size()}, {self.accumulation} a '
                'step: go on with the same data and as many images a step, or from the end of an '
                'epoch'
            )
        step = math.ceil(saved['batch'] / accumulation)
        return min(step * self.accumulation, self.num_batches)


def accumulation_steps(
    config: Config, saved: dict | None, logger: logging.Logger, *, compares_images: bool = False
) -> int:
    """Micro-batches of a step: the config's, or what keeps the images of a checkpoint's step.

    Where only the number of processes has changed since the checkpoint, a step goes on with as
    many images as before.

    Args:
        config: of the run.
        saved: of `utils.read_resumable`; None for a run that begins.
        logger: told of other numbers than the config's.
        compares_images: whether the loss is of how the images of a micro-batch on all processes
            compare, so that their number cannot change.

    Raises:
        ValueError: if no whole number of micro-batches does that, or more or fewer images would be
            compared.
    """
    asked = max(1, config.TRAIN.ACCUMULATION_STEPS)
    if saved is None:
        return asked
    processes, now = len(saved['rng']), distributed.world_size()
    if compares_images and _batch_options(saved)[0] * processes != config.DATA.BATCH_SIZE * now:
        raise ValueError(
            f'the run compares {_batch_options(saved)[0]} x {processes} images (DATA.BATCH_SIZE x '
            f'processes), not {config.DATA.BATCH_SIZE} x {now}: go on with as many, or start '
            'another run under another --tag'
        )
    if _batch_options(saved) != (config.DATA.BATCH_SIZE, asked):
        return asked
    used = saved.get('accumulation', asked)
    if used * processes == asked * now:
        return asked
    steps, rest = divmod(used * processes, now)
    if rest:
        images = used * processes * config.DATA.BATCH_SIZE
        raise ValueError(
            f'the run was trained with {images} images a step on {processes} process(es); {now} '
            f'processes with DATA.BATCH_SIZE {config.DATA.BATCH_SIZE} cannot make that up: take '
            f'a number of processes that divides {used * processes}, or say what you want with '
            '--batch-size and --accumulation-steps'
        )
    logger.warning(
        f'{now} process(es) in place of {processes}: {steps} micro-batches a step in place of '
        f'{used}, so that a step has as many images as before'
    )
    return steps


def _batch_options(saved: dict) -> tuple[int, int]:
    """DATA.BATCH_SIZE and TRAIN.ACCUMULATION_STEPS that a checkpoint's run was asked for."""
    asked = load_yaml(saved['config'])
    return asked['DATA']['BATCH_SIZE'], max(1, asked['TRAIN']['ACCUMULATION_STEPS'])

"""The state of training: progress within an epoch, contents of checkpoints, and resuming."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from config import Config, config_changes, config_text, load_yaml
from engine import distributed
from engine.clock import Clock
from engine.device import Compiled
from utils import load_model_state, load_moments, name_damaged, set_rng_state

EMA_DECAY = 0.98  # of the loss in the log, per batch


@dataclass
class Progress:
    """Losses and gradient norms of the current epoch; checkpoints contain their sums.

    Losses and norms stay on the device until `flush`, so that no step waits for them.
    """

    loss_sum: float = 0.0
    num_losses: int = 0
    norm_sum: float = 0.0
    num_norms: int = 0
    loss_ema: float = math.nan
    last_loss: float = math.nan
    last_norm: float = math.nan
    num_skipped: int = 0  # steps of the run skipped under TRAIN.ON_NAN 'skip'
    waiting_losses: list[Tensor] = field(default_factory=list)
    # With each norm the number of losses that waited then; the last one is of the norm's step.
    waiting_norms: list[tuple[int, Tensor]] = field(default_factory=list)

    def flush(self, *, overflow_is_handled: bool) -> int | None:
        """Add the waiting values, losses as means over the ranks.

        If `overflow_is_handled`, a gradient scaler has skipped the steps whose norm is not finite,
        and these norms are ignored.

        Returns:
            None, or the position in the waiting losses of the first non-finite value (of a norm:
            the position of its step's last loss). Nothing is added then.
        """
        if not self.waiting_losses:
            return None
        losses = distributed.all_reduce_sum(torch.stack(self.waiting_losses).float())
        losses = (losses / distributed.world_size()).tolist()
        ends = [waited - 1 for waited, _ in self.waiting_norms]
        norms = torch.stack([norm for _, norm in self.waiting_norms]).tolist() if ends else []
        self.waiting_losses, self.waiting_norms = [], []
        bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        if not overflow_is_handled:
            bad += [i for i, norm in zip(ends, norms, strict=True) if not math.isfinite(norm)]
        if bad:
            return min(bad)
        for loss in losses:
            self.loss_sum += loss
            self.num_losses += 1
            self.last_loss = loss
            is_first = math.isnan(self.loss_ema)
            self.loss_ema = loss if is_first else EMA_DECAY * self.loss_ema + (1 - EMA_DECAY) * loss
        for norm in filter(math.isfinite, norms):
            self.norm_sum += norm
            self.num_norms += 1
            self.last_norm = norm
        return None

    def has_losses(self) -> bool:
        return bool(self.num_losses or self.waiting_losses)

    def mean_loss(self) -> float:
        return self.loss_sum / self.num_losses if self.num_losses else math.nan

    def mean_norm(self) -> float:
        return self.norm_sum / self.num_norms if self.num_norms else math.nan

    def next_epoch(self) -> 'Progress':
        """Return an empty one that keeps what continues over epochs."""
        return Progress(loss_ema=self.loss_ema, num_skipped=self.num_skipped)

    def numbers(self) -> dict[str, float]:
        """Return what a checkpoint contains."""
        return {k: v for k, v in vars(self).items() if isinstance(v, int | float)}


@dataclass
class TrainState:
    """Everything that changes during training and is written into checkpoints."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    num_batches: int  # of an epoch
    accumulation: int = 1  # batches whose gradients are accumulated for a step
    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    best_score: float = -math.inf
    source: str = ''  # the checkpoint that training resumed from
    compares_images: bool = False  # whether the loss compares the images of a batch
    progress: Progress = field(default_factory=Progress)
    clock: Clock = field(default_factory=Clock)
    step_losses: list[Tensor] = field(default_factory=list)  # of the current step
    before_step: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # buffers, their copies

    @property
    def parallel(self) -> DistributedDataParallel | None:
        """The wrapper that exchanges gradients, if there are several processes."""
        model = self.model.module if isinstance(self.model, Compiled) else self.model
        return model if isinstance(model, DistributedDataParallel) else None

    @property
    def module(self) -> nn.Module:
        """The model without wrappers."""
        model = self.model
        while isinstance(model, Compiled | DistributedDataParallel):
            model = model.module
        return model

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; the last one may have fewer batches."""
        return math.ceil(self.num_batches / self.accumulation)

    @property
    def step(self) -> int:
        """Optimizer steps of this epoch that are done."""
        return math.ceil(self.batch / self.accumulation)

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.progress = self.epoch + 1, 0, self.progress.next_epoch()

    def contents(self, config: Config, rng: list[dict[str, Tensor]], *, finished: bool) -> dict:
        """Return the contents of a checkpoint; see `utils.RESUME_KEYS`.

        `rng` holds the states of the random generators of all ranks. If the epoch is not
        `finished`, `batch` of its batches are done.
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
        """Resume from a checkpoint, with learning rates, weight decay and lengths of the config.

        Raises:
            ValueError: If it is of another model, was written within an epoch that has other
                batches now, or of a loss that compared another number of images.
        """
        self.source = source
        with name_damaged(source):
            load_model_state(self.module, saved['model'], source, logger)
            load_moments(saved, self.optimizer, self.scaler, source)
            self.best_score = saved['best_score']
            self.progress = Progress(**saved['progress'])
            self._go_to(saved, config)
            self._compare_images(saved, config, logger)
            for line in config_changes(saved['config'], config_text(config)):
                logger.warning(f'changed since the checkpoint: {line}')
            rng, processes = saved['rng'], distributed.world_size()
            if len(rng) == processes:
                set_rng_state(rng[distributed.rank()])
            else:
                logger.warning(
                    f'the checkpoint is of {len(rng)} process(es) and this run has {processes}: '
                    'dropout and drop path start from new random states'
                )
        logger.info(f'resumed from {source}: epoch {self.epoch}, batch {self.batch}')

    def _compare_images(self, saved: dict, config: Config, logger: logging.Logger) -> None:
        """Warn if a step has another number of images than before.

        Raises:
            ValueError: If the loss compares the images of a batch and their number has changed.
        """
        size, before = load_yaml(saved['config'])['DATA']['BATCH_SIZE'], len(saved['rng'])
        processes = distributed.world_size()
        old, new = size * before, config.DATA.BATCH_SIZE * processes
        if self.compares_images and old != new:
            raise ValueError(
                f'{self.source}: the run compares {size} x {before} images (DATA.BATCH_SIZE x '
                f'processes), not {config.DATA.BATCH_SIZE} x {processes}: resume with as many, or '
                'choose another --tag'
            )
        old, new = old * saved.get('accumulation', 1), new * self.accumulation
        if old != new:
            logger.warning(
                f'a step had {old} images on {before} process(es) and now has {new} on '
                f'{processes}, and the learning rates follow: set --batch-size and '
                '--accumulation-steps to keep them'
            )

    def _go_to(self, saved: dict, config: Config) -> None:
        """Set epoch, batch and learning rates to where the checkpoint was written."""
        self.epoch = saved['epoch']
        if saved['finished']:
            self.next_epoch()
        elif saved['batch']:
            self.batch = self._same_place(saved, config)
        if (self.epoch, self.batch) > (config.TRAIN.EPOCHS, 0):
            raise ValueError(
                f'{self.source}: {self.epoch} epochs and {self.batch} batches are done, more than '
                f'TRAIN.EPOCHS {config.TRAIN.EPOCHS}: raise it, or choose another --tag'
            )
        if self.epoch or self.batch:
            self.scheduler.step_update(self.epoch * self.num_batches + self.batch - 1)

    def _same_place(self, saved: dict, config: Config) -> int:
        """Return the batch of this run at which the checkpoint's last step is done.

        Raises:
            ValueError: If an epoch now has other data, or a step another number of images.
        """
        batch_size = load_yaml(saved['config'])['DATA']['BATCH_SIZE']
        accumulation, processes = saved['accumulation'], len(saved['rng'])
        old, new = batch_size * processes, config.DATA.BATCH_SIZE * distributed.world_size()
        if old == new:
            same_data = saved['num_batches'] == self.num_batches
        else:
            same_data = abs(saved['num_batches'] * old - self.num_batches * new) < max(old, new)
        if old * accumulation != new * self.accumulation or not same_data:
            raise ValueError(
                f'{self.source} was written within an epoch of {saved["num_batches"]} batches of '
                f'{batch_size} images on {processes} process(es), {accumulation} per step. An '
                f'epoch now has {self.num_batches} of {config.DATA.BATCH_SIZE} on '
                f'{distributed.world_size()}, {self.accumulation} per step. Use the same data and '
                'as many images per step (--batch-size, --accumulation-steps), or resume from the '
                'end of an epoch.'
            )
        step = math.ceil(saved['batch'] / accumulation)
        return min(step * self.accumulation, self.num_batches)

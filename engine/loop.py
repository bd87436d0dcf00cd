"""One epoch, and the loop over epochs, for every stage."""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from config import Config, config_changes, config_text, load_yaml
from engine import distributed
from engine.device import Compiled, autocast, autocast_dtype, changed_by_forward, to_device
from engine.device import wrap as wrap_compiled
from engine.launch import Interruptions, Preempted
from engine.run_record import Run
from engine.saving import CheckpointWriter
from lr_scheduler import build_scheduler
from models.batch_norm import share_batch_norm
from optimizer import build_optimizer
from utils import (
    BEST_CHECKPOINT,
    checkpoint_name,
    checkpoint_to_resume,
    load_model_state,
    load_moments,
    load_pretrained,
    read_resumable,
    refuse_damaged,
    rng_state,
    set_rng_state,
)

# ==== parallel: A model in several processes: who exchanges which gradients, and in what type.


def wrap(config: Config, model: nn.Module, device: torch.device) -> nn.Module:
    """The model, in several processes with DistributedDataParallel around it.

    Gradients are exchanged in buckets while the backward pass goes on, and are views of these
    buckets then: not kept twice. With TRAIN.GRADIENT_EXCHANGE 'bfloat16' they are rounded to it,
    divided and summed in it. Batch norms take their statistics over all processes.
    """
    if distributed.world_size() == 1:
        return model
    share_batch_norm(model)
    with warnings.catch_warnings():  # of the argument's new name, which older PyTorch lacks
        warnings.filterwarnings('ignore', message='`broadcast_buffers` is deprecated')
        model = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == 'cuda' else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    if config.TRAIN.GRADIENT_EXCHANGE == 'bfloat16':
        model.register_comm_hook(None, bf16_compress_hook)
    return model


# ==== meters: Figures of the current epoch: losses and gradient norms without waiting for the device; time.

EMA_DECAY = 0.98  # of the loss in the log, per micro-batch
SPIKE = 10  # a gradient norm is one from so many times the median on
SPIKE_WINDOW = 100  # steps behind the median; before a fifth of them, nothing is one


@dataclass
class Progress:
    """Losses and norms of the current epoch; checkpoints hold them, for resumed epochs.

    Losses and norms stay on the device until `settle`, so that no step waits for them.
    """

    loss_sum: float = 0.0
    num_losses: int = 0
    norm_sum: float = 0.0
    num_norms: int = 0
    loss_ema: float = math.nan
    last_loss: float = math.nan
    last_norm: float = math.nan
    num_skipped: int = 0  # steps of the run, under TRAIN.ON_NAN 'skip'
    waiting_losses: list[torch.Tensor] = field(default_factory=list)
    # With each norm: how many losses waited with it, the last one that of its step.
    waiting_norms: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    recent_norms: deque[float] = field(default_factory=lambda: deque(maxlen=SPIKE_WINDOW))
    spikes: list[tuple[float, float]] = field(default_factory=list)  # norm, median before it

    def settle(self, overflow_is_handled: bool) -> int | None:
        """Take in the waiting figures, losses as means over the ranks.

        Returns:
            None, or the position in the waiting losses of the first figure that is not finite
            (of a norm: of its step's last loss). A norm that overflows under a gradient scaler is
            left out instead: the scaler has skipped that step.
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
            self._add_loss(loss)
        for norm in norms:
            if math.isfinite(norm):
                self._add_norm(norm)
        return None

    def _add_loss(self, loss: float) -> None:
        self.loss_sum, self.num_losses = self.loss_sum + loss, self.num_losses + 1
        self.last_loss = loss
        first = math.isnan(self.loss_ema)
        self.loss_ema = loss if first else EMA_DECAY * self.loss_ema + (1 - EMA_DECAY) * loss

    def _add_norm(self, norm: float) -> None:
        self.norm_sum, self.num_norms = self.norm_sum + norm, self.num_norms + 1
        self.last_norm = norm
        if len(self.recent_norms) >= SPIKE_WINDOW // 5:
            median = statistics.median(self.recent_norms)
            if norm > SPIKE * median:
                self.spikes.append((norm, median))
        self.recent_norms.append(norm)

    def has_losses(self) -> bool:
        return bool(self.num_losses or self.waiting_losses)

    def mean_loss(self) -> float:
        return self.loss_sum / self.num_losses if self.num_losses else math.nan

    def mean_norm(self) -> float:
        return self.norm_sum / self.num_norms if self.num_norms else math.nan

    def next_epoch(self) -> 'Progress':
        """A fresh one, but for what runs on over epochs."""
        return Progress(
            loss_ema=self.loss_ema, num_skipped=self.num_skipped, recent_norms=self.recent_norms
        )

    def numbers(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {k: v for k, v in vars(self).items() if isinstance(v, int | float)}


class Clock:
    """Seconds per micro-batch, and how many of them were spent waiting for data."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.batches = 0
        self.batch_seconds = self.data_seconds = 0.0

    def data_ready(self) -> None:
        self.data_seconds += time.perf_counter() - self.last

    def batch_done(self) -> None:
        now = time.perf_counter()
        self.batch_seconds, self.last = now - self.last, now
        self.batches += 1

    def skip(self) -> None:
        """Leave out what was done since the batch: saving is no waiting for data."""
        now = time.perf_counter()
        self.start += now - self.last
        self.last = now

    def mean_batch(self) -> float:
        return (self.last - self.start) / max(1, self.batches)

    def mean_data(self) -> float:
        return self.data_seconds / max(1, self.batches)


# ==== train_state: Where training stands: what a checkpoint holds, and how a run goes on from one.


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


# ==== training_step: One optimizer step: forward, backward, clipping, and what a loss that is not finite does.

SMALLEST_SCALE = 2.0**-10  # of a gradient scaler: below it every step has overflowed for long
LossFunction = Callable[[nn.Module, Any], torch.Tensor]


def train_one_batch(run: Run, state: TrainState, batch: Any, loss_fn: LossFunction, i: int) -> bool:
    """Forward and backward of micro-batch `i`, and the step where it ends one: whether it does."""
    start = i - i % state.accumulation
    size = min(state.accumulation, state.num_batches - start)
    if i == start:
        _begin_step(run, state, i)
    ends_step = i + 1 == start + size
    loss = _backward(run, state, batch, loss_fn, size, ends_step)
    state.step_losses.append(loss)
    if run.config.TRAIN.ON_NAN == 'stop':  # else they count once the step is made
        state.progress.waiting_losses.append(loss)
    try:
        if ends_step:
            _optimizer_step(run, state)
    finally:  # a step that is left out is over, too
        state.batch = i + 1
        if ends_step:
            state.step_losses.clear()
            state.scheduler.step_update(state.epoch * state.num_batches + i)
    return ends_step


def _begin_step(run: Run, state: TrainState, i: int) -> None:
    """Note what a step that is left out is undone with; the model's own `begin_step`, if any."""
    state.rng_marks[i] = rng_state()
    if run.config.TRAIN.ON_NAN == 'skip':
        changing = changed_by_forward(state.module)
        state.before_step = [(tensor, tensor.clone()) for tensor in changing]
    if hasattr(state.module, 'begin_step'):
        state.module.begin_step()


def _backward(
    run: Run, state: TrainState, batch: Any, loss_fn: LossFunction, group_size: int, sync: bool
) -> torch.Tensor:
    """Add the gradient of loss / group_size; only with `sync` the ranks exchange gradients."""
    quiet = state.parallel is not None and not sync
    with state.parallel.no_sync() if quiet else contextlib.nullcontext():
        with autocast(run.config, run.device):
            loss = loss_fn(state.model, to_device(batch, run.device))
        state.scaler.scale(loss / group_size).backward()
    return loss.detach().clone()  # CUDA graphs write the next one over it


def _optimizer_step(run: Run, state: TrainState) -> None:
    """Clip, step, clear.

    Raises:
        NotFiniteError: under TRAIN.ON_NAN 'skip', if no step could be made; it is left out.
    """
    state.scaler.unscale_(state.optimizer)
    limit = run.config.TRAIN.CLIP_GRAD or math.inf
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), limit)
    stops = run.config.TRAIN.ON_NAN == 'stop'  # once the figures are looked at
    steps = stops or _is_finite(state, norm)
    if steps:
        state.scaler.step(state.optimizer)
        state.progress.waiting_losses += [] if stops else state.step_losses
        state.progress.waiting_norms.append((len(state.progress.waiting_losses), norm))
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if not steps:
        raise NotFiniteError(run, state, state.batch + 1 - len(state.step_losses))


def _is_finite(state: TrainState, norm: torch.Tensor) -> bool:
    """Whether a step's losses and its gradient are finite on all ranks; waits for the device."""
    figures = torch.stack(state.step_losses)
    if not state.scaler.is_enabled():  # a scaler leaves a step out itself, and goes on smaller
        figures = torch.cat([figures, norm.reshape(1).to(figures)])
    return not distributed.all_reduce_sum((~figures.isfinite()).sum())


class NotFiniteError(FloatingPointError):
    """A loss or gradient of the step that begins at micro-batch `batch` is not finite."""

    def __init__(self, run: Run, state: TrainState, batch: int) -> None:
        self.batch = batch - batch % state.accumulation
        super().__init__(
            f'the loss or its gradient is not finite in epoch {state.epoch}, micro-batch {batch}, '
            f'learning rate {shown_rate(run, state):.4e}'
        )


def skip_step(run: Run, state: TrainState, loader: DataLoader, error: NotFiniteError) -> None:
    """Undo, record and count a step that was left out; too many of them stop the run."""
    undo_step(state)
    state.progress.num_skipped += 1
    limit = run.config.TRAIN.NAN_LIMIT
    if state.progress.num_skipped > limit:
        raise FloatingPointError(f'{error}; more than TRAIN.NAN_LIMIT {limit} steps were not')
    run.logger.warning(f'{error}: step skipped, {state.progress.num_skipped} of at most {limit}')


@torch.no_grad()
def undo_step(state: TrainState) -> None:
    """Make what a step that was left out changed in its forward pass as it was before."""
    for tensor, before in state.before_step:
        tensor.copy_(before)


def settle(run: Run, state: TrainState) -> None:
    """Bring the waiting figures in.

    Raises:
        NotFiniteError: if one is not finite.
    """
    first_waiting = state.batch - len(state.progress.waiting_losses)
    bad = state.progress.settle(overflow_is_handled=state.scaler.is_enabled())
    if state.scaler.is_enabled() and state.scaler.get_scale() < SMALLEST_SCALE:
        bad = 0
    if bad is not None:
        batch = first_waiting + bad
        start = batch - batch % state.accumulation
        state.scheduler.step_update(max(0, state.epoch * state.num_batches + start - 1))
        raise NotFiniteError(run, state, batch)
    for norm, median in state.progress.spikes:
        run.logger.warning(
            f'gradient norm {norm:.4g} in epoch {state.epoch} before step {state.step}: '
            f'{norm / median:.0f} times the median of the last steps'
        )
    state.progress.spikes.clear()
    state.rng_marks = {
        start: mark
        for start, mark in state.rng_marks.items()
        if start + state.accumulation > state.batch
    }


def shown_rate(run: Run, state: TrainState) -> float:
    """The first group's rate in pre-training; the last group's (the head's) in fine-tuning."""
    return state.optimizer.param_groups[0 if run.is_pretrain else -1]['lr']


# ==== engine: One epoch, and the loop over epochs, for every stage.

wrap_parallel = wrap


class Saver:
    """When a run's checkpoints are written, and when it stops: after a step, the same on all ranks.

    `epoch` and `step` of a file's name count as in SimMIM, from 0 and within the epoch.
    """

    def __init__(self, run: Run, interruptions: Interruptions) -> None:
        self.run = run
        self.interruptions = interruptions
        self.writer = None
        if distributed.is_main():
            self.writer = CheckpointWriter(run.folder, run.logger, keep=run.config.SAVE_KEEP)

    def __enter__(self) -> 'Saver':
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer:
            self.writer.flush()  # the folder is this run's until its files are whole

    def after_step(self, state: TrainState) -> bool:
        """Save where it is due; whether that was so.

        Raises:
            Preempted: if the run was asked to stop; it has been saved then.
        """
        every = self.run.config.TRAIN.SAVE_EVERY_STEPS
        steps_done = state.epoch * state.steps_per_epoch + state.step
        stops, saves = self.interruptions.due(wait=state.batch == state.num_batches)
        if self.writer:
            self.writer.poll()
        if not (stops or saves or (every and steps_done % every == 0)):
            return False
        settle(self.run, state)
        self.save(state, checkpoint_name(state.epoch, state.step))
        if stops:
            self.stop(state)
        return True

    def after_epoch(self, state: TrainState, score: float) -> None:
        """Save the best and the epoch's checkpoint where they are due; stop if that was asked."""
        config, epoch = self.run.config, state.epoch
        is_best = score > state.best_score
        if is_best:  # never NaN, which nothing would be above
            state.best_score = score
        stops, _ = self.interruptions.due(wait=True)
        is_last = epoch + 1 == config.TRAIN.EPOCHS
        if stops or is_last or epoch % config.SAVE_FREQ == 0:
            self.save(state, checkpoint_name(epoch), finished=True, best=is_best)
        elif is_best:
            self.save(state, BEST_CHECKPOINT, finished=True)
        if stops:
            self.stop(state)

    def save(
        self, state: TrainState, name: str, *, finished: bool = False, best: bool = False
    ) -> None:
        """Write a checkpoint on rank 0, in the background; every rank gives its random states."""
        rng = distributed.gather(rng_state())
        if self.writer:
            contents = state.contents(self.run.config, rng, finished=finished)
            self.writer.save(name, contents, best=best)
        if name != BEST_CHECKPOINT:  # which no run goes on from by itself
            self.interruptions.saved()

    def stop(self, state: TrainState) -> None:
        self.close()
        place = f'epoch {state.epoch}, step {state.step} of {state.steps_per_epoch}'
        by = self.interruptions.signal or 'a signal to another process'
        raise Preempted(
            f'stopped by {by} and saved in {place}; the same command goes on from there'
        )

    def close(self) -> None:
        """Wait until all is written; ValueError if the newest checkpoint could not be."""
        if self.writer:
            self.writer.close()


def fit(
    run: Run,
    model: nn.Module,
    loader: DataLoader,
    loss_fn: LossFunction,
    *,
    after_epoch: Callable[[Run, nn.Module, int], dict[str, Any]],
) -> TrainState:
    """Train for the config's epochs, from a checkpoint or pre-trained weights where there are any.

    Args:
        run: the run.
        model: built model, on any device.
        loader: training batches (`data.loader.make_loader`).
        loss_fn: (model, batch on the device) -> scalar, a mean over the batch.
        after_epoch: (run, model, epoch) -> figures for the log of epochs; `score`, where given,
            selects `ckpt_best.pth` (greatest). Before training it is called with epoch -1.

    Returns:
        The state after the last epoch: the model (`module`), the greatest score (`best_score`).

    Raises:
        Preempted: if a signal asked the run to stop; it has been saved then.
    """
    train, logger = run.config.TRAIN, run.logger
    state = begin(run, model, loader)
    run.scalars.forget_from(state.epoch if state.epoch or state.batch else -1)
    if state.epoch == train.EPOCHS:
        logger.warning(f'all {state.epoch} epochs are done already: nothing is trained')
    start = time.time()
    with (
        Interruptions(train.SAVE_EVERY_MINUTES, train.RANK_TIMEOUT_MINUTES) as interruptions,
        Saver(run, interruptions) as saver,
    ):
        if state.epoch == state.batch == 0:
            run.scalars.write_epoch({'epoch': -1, **after_epoch(run, state.module, -1)})
        while state.epoch < train.EPOCHS:
            figures = train_one_epoch(run, state, loader, loss_fn, saver)
            figures |= after_epoch(run, state.module, state.epoch)
            run.scalars.write_epoch({'epoch': state.epoch, **figures})
            saver.after_epoch(state, figures.get('score', -math.inf))
            state.next_epoch()
        saver.close()
    distributed.barrier()  # what rank 0 wrote is there for all
    logger.info(f'Training time {timedelta(seconds=int(time.time() - start))}')
    return state


def begin(run: Run, model: nn.Module, loader: DataLoader) -> TrainState:
    """Model on its device, optimizer, schedule; weights and position from where there are any."""
    config, logger = run.config, run.logger
    checkpoint = checkpoint_to_resume(config, run.folder, logger)
    saved = read_resumable(checkpoint) if checkpoint else None
    compares_images = run.stage == 'contrastive'
    accumulation = accumulation_steps(config, saved, logger, compares_images=compares_images)
    as_trained = config.clone()  # rates go by the images of a step
    as_trained.defrost()
    as_trained.TRAIN.ACCUMULATION_STEPS = accumulation

    model.to(run.device)
    optimizer = build_optimizer(as_trained, model, logger, run.is_pretrain)
    scheduler = build_scheduler(as_trained, optimizer, len(loader))
    scaler = torch.amp.GradScaler(
        run.device.type, enabled=autocast_dtype(config, run.device) == torch.float16
    )
    state = TrainState(model, optimizer, scheduler, scaler, len(loader), accumulation)
    if saved is not None:
        state.restore(saved, config, source=str(checkpoint), logger=logger)
    elif config.PRETRAINED:
        load_pretrained(config, getattr(model, 'whole_encoder', model), logger)
        if compares_images:
            model.encoder_loaded()
    run.record.begin(checkpoint, done=state.epoch >= config.TRAIN.EPOCHS)
    num_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info(
        f'{num_parameters:,} parameters; {len(loader)} micro-batches of {config.DATA.BATCH_SIZE} '
        f'an epoch and process, {state.steps_per_epoch} steps of '
        f'{config.DATA.BATCH_SIZE * accumulation * distributed.world_size()} images'
    )
    state.model = wrap_parallel(config, model, run.device)
    num_images = config.TRAIN.EPOCHS * len(loader) * config.DATA.BATCH_SIZE
    graphs = accumulation == distributed.world_size() == 1
    options = {'num_images': num_images, 'graphs': graphs, 'logger': logger}
    if compares_images and distributed.world_size() > 1:  # one that fails to compile keeps others
        logger.info('TRAIN.COMPILE: not compiled, processes exchange features in the forward pass')
    else:
        state.model = wrap_compiled(config, state.model, run.device, **options)
    return state


def train_one_epoch(
    run: Run,
    state: TrainState,
    loader: DataLoader,
    loss_fn: LossFunction,
    saver: Saver | None = None,
) -> dict[str, Any]:
    """One pass over the data, from where `state` stands to the end of its epoch.

    Under accumulation a group of micro-batches makes one step; the last group of an epoch may be
    shorter and is divided by its own length. The gradient is clipped once per step.

    Returns:
        Figures of the epoch: loss, grad_norm, lr, images_per_second, data_seconds, seconds; and
        skipped_steps, of the run so far, under TRAIN.ON_NAN 'skip'.

    Raises:
        FloatingPointError: if a loss (or without gradient scaler a gradient norm) is not finite,
            under 'skip' in more than TRAIN.NAN_LIMIT steps. A record of the step is written.
        Preempted: see Saver.
    """
    config, epoch, num_batches = run.config, state.epoch, state.num_batches
    state.model.train()
    loader.batch_sampler.set_epoch(epoch, first_batch=state.batch)
    clock = Clock()
    try:
        for i, batch in enumerate(loader, start=state.batch):
            clock.data_ready()
            ends_step = True
            try:
                ends_step = train_one_batch(run, state, batch, loss_fn, i)
            except NotFiniteError as error:
                skip_step(run, state, loader, error)
            prints = i % config.PRINT_FREQ == 0 or i + 1 == num_batches
            if prints := prints and state.progress.has_losses():
                settle(run, state)
            clock.batch_done()
            if prints:
                _log_line(run, state, clock, i)
            if ends_step and saver and saver.after_step(state):
                clock.skip()
    except NotFiniteError as error:
        raise FloatingPointError(
            f'{error}; nothing of this was saved. Lower TRAIN.BASE_LR, lengthen the warm-up, or '
            f'take --amp-opt-level O0.'
        ) from error
    seconds = time.perf_counter() - clock.start
    run.logger.info(f'EPOCH {epoch} training takes {timedelta(seconds=int(seconds))}')
    images = clock.batches * config.DATA.BATCH_SIZE * distributed.world_size()
    figures = {
        'loss': state.progress.mean_loss(),
        'grad_norm': state.progress.mean_norm(),
        'lr': shown_rate(run, state),
        'images_per_second': images / seconds,
        'data_seconds': clock.data_seconds,
        'seconds': seconds,
    }
    if config.TRAIN.ON_NAN == 'skip':
        figures['skipped_steps'] = state.progress.num_skipped
    return figures


def _log_line(run: Run, state: TrainState, clock: Clock, i: int) -> None:
    progress, config = state.progress, run.config
    images_per_second = config.DATA.BATCH_SIZE * distributed.world_size() / clock.mean_batch()
    left = timedelta(seconds=int(clock.mean_batch() * (state.num_batches - i)))
    memory = torch.cuda.max_memory_allocated() / 2**20 if run.device.type == 'cuda' else 0.0
    run.logger.info(
        f'Train: [{state.epoch}/{config.TRAIN.EPOCHS}][{i}/{state.num_batches}]\t'
        f'eta {left} lr {shown_rate(run, state):.4e}\t'
        f'time {clock.batch_seconds:.4f} ({clock.mean_batch():.4f})\t'
        f'data {clock.mean_data():.4f}\t'
        f'loss {progress.last_loss:.4f} ({progress.mean_loss():.4f}) ema {progress.loss_ema:.4f}\t'
        f'grad_norm {progress.last_norm:.4f} ({progress.mean_norm():.4f})\t'
        f'{images_per_second:.0f} images/s' + (f'\tmem {memory:.0f}MB' if memory else '')
    )
    run.scalars.write_step(
        {'loss': progress.last_loss, 'loss_ema': progress.loss_ema, 'lr': shown_rate(run, state)},
        state.epoch * state.num_batches + i,
    )

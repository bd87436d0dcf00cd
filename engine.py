"""One optimizer step, one epoch, and the loop over epochs, for every stage."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import distributed
from config import config_changes, config_text
from device import autocast, autocast_dtype, to_device
from launcher import Run
from launcher import launch as launch
from launcher import setup_run as setup_run
from lr_scheduler import build_scheduler
from meters import Clock, Progress
from optimizer import build_optimizer
from utils import (
    BEST_CHECKPOINT,
    checkpoint_name,
    find_newest_checkpoint,
    load_pretrained,
    resume,
    rng_state,
    save_checkpoint,
    set_rng_state,
)

SMALLEST_SCALE = 2.0**-10  # of a gradient scaler: below it every step has overflowed for long
LossFunction = Callable[[nn.Module, Any], torch.Tensor]


@dataclass
class TrainState:
    """What changes while training, and goes into checkpoints."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    num_batches: int  # micro-batches of an epoch
    epoch: int = 0
    batch: int = 0  # micro-batches of this epoch that are done
    best_score: float = -math.inf
    progress: Progress = field(default_factory=Progress)

    @property
    def module(self) -> nn.Module:
        """The model without DistributedDataParallel around it."""
        wrapped = isinstance(self.model, DistributedDataParallel)
        return self.model.module if wrapped else self.model


def fit(
    run: Run,
    model: nn.Module,
    loader: DataLoader,
    loss_fn: LossFunction,
    *,
    after_epoch: Callable[[Run, nn.Module, int], dict[str, Any]],
) -> nn.Module:
    """Train for the config's epochs, from a checkpoint or pre-trained weights where there are any.

    Args:
        run: the run.
        model: built model, on any device.
        loader: training batches (`data.loader.make_loader`).
        loss_fn: (model, batch on the device) -> scalar, a mean over the batch.
        after_epoch: (run, model, epoch) -> figures for the log of epochs; `score`, where given,
            selects `ckpt_best.pth` (greatest). Before training it is called with epoch -1.

    Returns:
        The model as it is after the last epoch.
    """
    config, logger = run.config, run.logger
    state = _begin(run, model, loader)
    if state.epoch == config.TRAIN.EPOCHS:
        logger.warning(f'all {state.epoch} epochs are done already: nothing is trained')
    start = time.time()
    if state.epoch == state.batch == 0:
        run.scalars.write_epoch({'epoch': -1, **after_epoch(run, state.module, -1)})
    while state.epoch < config.TRAIN.EPOCHS:
        epoch = state.epoch
        figures = train_one_epoch(run, state, loader, loss_fn)
        figures |= after_epoch(run, state.module, epoch)
        run.scalars.write_epoch({'epoch': epoch, **figures})
        is_best = figures.get('score', -math.inf) > state.best_score
        state.best_score = figures['score'] if is_best else state.best_score
        if is_best:  # first, so that no later checkpoint lacks it
            _save(run, state, BEST_CHECKPOINT, finished=True)
        if epoch % config.SAVE_FREQ == 0 or epoch + 1 == config.TRAIN.EPOCHS:
            _save(run, state, checkpoint_name(epoch), finished=True)
        state.epoch, state.batch, state.progress = epoch + 1, 0, state.progress.next_epoch()
    logger.info(f'Training time {timedelta(seconds=int(time.time() - start))}')
    return state.module


def _begin(run: Run, model: nn.Module, loader: DataLoader) -> TrainState:
    """Model on its device, optimizer, schedule; weights and position from where there are any."""
    config, logger = run.config, run.logger
    model.to(run.device)
    optimizer = build_optimizer(config, model, logger, run.is_pretrain)
    scheduler = build_scheduler(config, optimizer, len(loader))
    scaler = torch.amp.GradScaler(
        run.device.type, enabled=autocast_dtype(config, run.device) == torch.float16
    )
    state = TrainState(model, optimizer, scheduler, scaler, len(loader))
    checkpoint = config.MODEL.RESUME
    if not checkpoint and config.TRAIN.AUTO_RESUME:
        checkpoint = distributed.broadcast(find_newest_checkpoint(run.folder))
    if checkpoint:
        _continue(run, state, checkpoint)
    elif config.PRETRAINED:
        load_pretrained(config, model, logger)
    num_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    accumulation = max(1, config.TRAIN.ACCUMULATION_STEPS)
    logger.info(
        f'{num_parameters:,} parameters; {len(loader)} micro-batches of {config.DATA.BATCH_SIZE} '
        f'an epoch and process, {math.ceil(len(loader) / accumulation)} steps of '
        f'{config.DATA.BATCH_SIZE * accumulation * distributed.world_size()} images'
    )
    run.scalars.forget_from(state.epoch if state.epoch or state.batch else -1)
    if distributed.world_size() > 1:
        devices = [run.device.index] if run.device.type == 'cuda' else None
        state.model = DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
    return state


def _continue(run: Run, state: TrainState, checkpoint: str | Path) -> None:
    """Go on from a checkpoint, with the rates, decay and lengths of the config at hand."""
    saved = resume(checkpoint, state.module, state.optimizer, state.scaler, run.logger)
    state.epoch, state.batch = saved['epoch'], saved['batch']
    state.best_score, state.progress = saved['best_score'], Progress(**saved['progress'])
    if saved['finished']:
        state.epoch, state.batch, state.progress = state.epoch + 1, 0, state.progress.next_epoch()
    if state.batch and saved['num_batches'] != state.num_batches:
        raise ValueError(
            f'{checkpoint}: stopped at micro-batch {state.batch} of {saved["num_batches"]} in '
            f'epoch {state.epoch}, but an epoch now has {state.num_batches}: go on with the same '
            'data, batch size and number of processes, or from the end of an epoch'
        )
    if state.epoch or state.batch:
        state.scheduler.step_update(state.epoch * state.num_batches + state.batch - 1)
    for line in config_changes(saved['config'], config_text(run.config)):
        run.logger.warning(f'changed since the checkpoint: {line}')
    rng = saved['rng']
    if len(rng) == distributed.world_size():
        set_rng_state(rng[distributed.rank()])
    else:
        run.logger.info(
            f'the checkpoint has random states for {len(rng)} process(es), this run has '
            f'{distributed.world_size()}: dropout and drop path are drawn anew'
        )
    run.logger.info(f'resumed from {checkpoint}: epoch {state.epoch}, micro-batch {state.batch}')


def train_one_epoch(
    run: Run, state: TrainState, loader: DataLoader, loss_fn: LossFunction
) -> dict[str, Any]:
    """One pass over the data, from where `state` stands to the end of its epoch.

    Under accumulation a group of micro-batches makes one step; the last group of an epoch may be
    shorter and is divided by its own length. The gradient is clipped once per step.

    Returns:
        Figures of the epoch: loss, grad_norm, lr, images_per_second, data_seconds, seconds.

    Raises:
        FloatingPointError: if a loss (or without gradient scaler a gradient norm) is not finite.
    """
    config, epoch, num_batches = run.config, state.epoch, state.num_batches
    accumulation = max(1, config.TRAIN.ACCUMULATION_STEPS)
    steps_per_epoch = math.ceil(num_batches / accumulation)
    state.model.train()
    loader.batch_sampler.set_epoch(epoch, first_batch=state.batch)
    clock = Clock()
    for i, batch in enumerate(loader, start=state.batch):
        clock.data_ready()
        group_start = i - i % accumulation
        group_size = min(accumulation, num_batches - group_start)
        ends_group = i + 1 == group_start + group_size
        loss = _backward(run, state, batch, loss_fn, group_size, ends_group)
        state.progress.waiting_losses.append(loss)
        if ends_group:
            state.progress.waiting_norms.append(_optimizer_step(config, state))
            state.scheduler.step_update(epoch * num_batches + i)
        state.batch, step = i + 1, i // accumulation + 1
        prints = i % config.PRINT_FREQ == 0 or i + 1 == num_batches
        saves = ends_group and _step_save_due(config, epoch * steps_per_epoch + step)
        if prints or saves:
            _settle(run, state)
        clock.batch_done()
        if prints:
            _log_line(run, state, clock, i)
        if saves:
            _save(run, state, checkpoint_name(epoch, step))
            clock.skip()
    seconds = time.perf_counter() - clock.start
    run.logger.info(f'EPOCH {epoch} training takes {timedelta(seconds=int(seconds))}')
    images = clock.batches * config.DATA.BATCH_SIZE * distributed.world_size()
    return {
        'loss': state.progress.mean_loss(),
        'grad_norm': state.progress.mean_norm(),
        'lr': _shown_rate(run, state),
        'images_per_second': images / seconds,
        'data_seconds': clock.data_seconds,
        'seconds': seconds,
    }


def _backward(
    run: Run, state: TrainState, batch: Any, loss_fn: LossFunction, group_size: int, sync: bool
) -> torch.Tensor:
    """Add the gradient of loss / group_size; only with `sync` the ranks exchange gradients."""
    quiet = isinstance(state.model, DistributedDataParallel) and not sync
    with state.model.no_sync() if quiet else contextlib.nullcontext():
        with autocast(run.config, run.device):
            loss = loss_fn(state.model, to_device(batch, run.device))
        state.scaler.scale(loss / group_size).backward()
    return loss.detach()


def _optimizer_step(config: Any, state: TrainState) -> torch.Tensor:
    """Clip, step, clear. Returns the gradient norm before clipping."""
    state.scaler.unscale_(state.optimizer)
    limit = config.TRAIN.CLIP_GRAD or math.inf
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), limit)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    return norm


def _settle(run: Run, state: TrainState) -> None:
    """Bring the waiting figures in; stop if one is not finite."""
    first_waiting = state.batch - len(state.progress.waiting_losses)
    bad = state.progress.settle(overflow_is_handled=state.scaler.is_enabled())
    if state.scaler.is_enabled() and state.scaler.get_scale() < SMALLEST_SCALE:
        bad = 0
    if bad is not None:
        batch = first_waiting + bad
        group_start = batch - batch % max(1, run.config.TRAIN.ACCUMULATION_STEPS)
        state.scheduler.step_update(max(0, state.epoch * state.num_batches + group_start - 1))
        raise FloatingPointError(
            f'the loss or its gradient is not finite in epoch {state.epoch}, micro-batch {batch}, '
            f'learning rate {_shown_rate(run, state):.4e}; nothing of this was saved. Lower '
            'TRAIN.BASE_LR, lengthen the warm-up, or take --amp-opt-level O0'
        )


def _shown_rate(run: Run, state: TrainState) -> float:
    """The first group's rate in pre-training; the last group's (the head's) in fine-tuning."""
    return state.optimizer.param_groups[0 if run.is_pretrain else -1]['lr']


def _log_line(run: Run, state: TrainState, clock: Clock, i: int) -> None:
    progress, config = state.progress, run.config
    images_per_second = config.DATA.BATCH_SIZE * distributed.world_size() / clock.mean_batch()
    left = timedelta(seconds=int(clock.mean_batch() * (state.num_batches - i)))
    memory = torch.cuda.max_memory_allocated() / 2**20 if run.device.type == 'cuda' else 0.0
    run.logger.info(
        f'Train: [{state.epoch}/{config.TRAIN.EPOCHS}][{i}/{state.num_batches}]\t'
        f'eta {left} lr {_shown_rate(run, state):.4e}\t'
        f'time {clock.batch_seconds:.4f} ({clock.mean_batch():.4f})\t'
        f'data {clock.mean_data():.4f}\t'
        f'loss {progress.last_loss:.4f} ({progress.mean_loss():.4f}) ema {progress.loss_ema:.4f}\t'
        f'grad_norm {progress.last_norm:.4f} ({progress.mean_norm():.4f})\t'
        f'{images_per_second:.0f} images/s\tmem {memory:.0f}MB'
    )
    run.scalars.write_step(
        {'loss': progress.last_loss, 'loss_ema': progress.loss_ema, 'lr': _shown_rate(run, state)},
        state.epoch * state.num_batches + i,
    )


def _step_save_due(config: Any, steps_done: int) -> bool:
    every = config.TRAIN.SAVE_EVERY_STEPS
    return every > 0 and steps_done % every == 0


def _save(run: Run, state: TrainState, name: str, *, finished: bool = False) -> None:
    """Write a checkpoint on rank 0; every rank gives its random states.

    `epoch` is the epoch of the file's name, as in SimMIM; `finished` tells that it is over, else
    `batch` of its `num_batches` micro-batches are done.
    """
    rng = distributed.gather(rng_state())
    if distributed.is_main():
        contents = {
            'model': state.module.state_dict(),
            'optimizer': state.optimizer.state_dict(),
            'scaler': state.scaler.state_dict(),
            'epoch': state.epoch,
            'batch': state.batch,
            'num_batches': state.num_batches,
            'finished': finished,
            'best_score': state.best_score,
            'progress': state.progress.numbers(),
            'rng': rng,
            'config': config_text(run.config),
        }
        save_checkpoint(run.folder / name, contents)
        run.logger.info(f'saved {run.folder / name}')
    distributed.barrier()

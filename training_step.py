"""One optimizer step: forward, backward, clipping, and what a loss that is not finite does."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import distributed
from compilation import changed_by_forward
from device import autocast, to_device
from launcher import Run
from train_state import TrainState
from utils import rng_state

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
        raise FloatingPointError(
            f'{error}; more than TRAIN.NAN_LIMIT {limit} steps were not'
        )
    run.logger.warning(
        f'{error}: step skipped, {state.progress.num_skipped} of at most {limit}'
    )


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

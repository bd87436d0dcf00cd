"""Training loop of every stage: optimizer steps, epochs, and logging."""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from config import Config, module_of_option
from engine.clock import Clock, duration
from engine.interruptions import Interruptions
from engine.parallel import share_batch_norm, wrap_parallel
from engine.run import Run
from engine.run_record import note_evaluation
from engine.saving import Saver
from engine.train_state import TrainState
from logger import DETAIL
from lr_scheduler import build_scheduler
from optimizer import build_optimizer
from system import distributed
from system.device import autocast, autocast_dtype, to_device
from system.files import checkpoint_name
from system.tool import command_of
from utils import (
    checkpoint_to_evaluate,
    checkpoint_to_resume,
    load_model_state,
    load_pretrained,
    read_checkpoint,
    read_resumable,
)

COMPILED_DEVICES = ('cuda',)  # compiling gains little on a CPU: docs/explanation/speed.md
SMALLEST_SCALE = 2.0**-10  # a gradient scaler below this has seen only overflows for many steps
LossFunction = Callable[[nn.Module, Any], Tensor]


def fit(
    run: Run,
    model: nn.Module,
    loader: DataLoader,
    loss_fn: LossFunction,
    *,
    after_epoch: Callable[[Run, nn.Module, int], dict[str, Any]],
    selects_by: str = '',
) -> TrainState:
    """Train for TRAIN.EPOCHS epochs, starting from a checkpoint or pre-trained weights if given.

    Args:
        run: Run.
        model: Model on any device.
        loader: Loader of the training batches (`data.loader.make_loader`).
        loss_fn: Function (model, batch on the device) -> scalar mean over the batch, see
            `train_one_batch`.
        after_epoch: Function (run, model, epoch) -> values for metrics.jsonl. It is called with
            epoch -1 before training, after every EVAL.EVERY epochs and after the last epoch.
        selects_by: Name of the score whose highest value selects ckpt_best.pth. With '' nothing is
            selected, and there is no such checkpoint.

    Raises:
        Preempted: If a signal asked the run to stop, after a checkpoint was saved.
    """
    config, train, logger = run.config, run.config.TRAIN, run.logger
    state = begin(run, model, loader)
    wrap_model(run, state)
    # Epochs after the checkpoint may have been logged already; they are trained again.
    first = state.epoch if state.epoch or state.batch else -1
    run.scalars.forget_from(first, state.progress.run_batches)
    if state.is_done(config):
        logger.warning(f'all {state.epoch} epochs are already trained: nothing is left to do')
    start = time.perf_counter()
    with (
        Interruptions(train.SAVE_EVERY_MINUTES, train.RANK_TIMEOUT_MINUTES) as interruptions,
        Saver(run, interruptions) as saver,
    ):
        # Scores before the first step, as a reference for all others.
        if state.epoch == state.batch == 0:
            with state.clock.between_epochs():
                run.scalars.write_epoch({'epoch': -1, **after_epoch(run, state.scored, -1)})
        while not state.is_done(config):
            figures = train_one_epoch(run, state, loader, loss_fn, saver)
            with state.clock.between_epochs():
                done, held_out = state.epoch + 1, {}
                if done % config.EVAL.EVERY == 0 or done == train.EPOCHS:
                    held_out = after_epoch(run, state.scored, state.epoch)
                run.scalars.write_epoch({'epoch': state.epoch, **figures, **held_out})
                saver.after_epoch(state, held_out.get('score') if selects_by else None)
            run.record.save()
            state.next_epoch()
            _log_epoch(run, state, figures['loss'], held_out, selects_by)
        saver.close()
    distributed.barrier()  # all ranks can now read the files of rank 0
    logger.info(f'Training time {timedelta(seconds=int(time.perf_counter() - start))}')
    if run.is_pretrain:
        last = run.folder / checkpoint_name(train.EPOCHS - 1)
        words = f'{command_of("main_finetune.py")} --cfg CONFIG --data-path DIR --pretrained {last}'
        logger.info(f'next: fine-tune it with {words}')
    return state


def evaluate(
    run: Run,
    model: nn.Module,
    holdout: DataLoader | None,
    after_epoch: Callable[[Run, nn.Module, int], dict[str, Any]],
) -> None:
    """Evaluate a checkpoint of pre-training on the held-out images (--eval)."""
    config = run.config
    if holdout is None:
        share = config.DATA.HOLDOUT_FRACTION
        raise ValueError(f'--eval: DATA.HOLDOUT_FRACTION {share} holds out too few images')
    path = checkpoint_to_evaluate(config, run.folder)
    checkpoint = read_checkpoint(path)
    run.lineage.start_from(str(path), checkpoint, run.logger)
    load_model_state(model.to(run.device), checkpoint['model'], str(path), run.logger)
    after_epoch(run, model, -1)
    if distributed.is_main():
        note_evaluation(run.folder, path, ['holdout'], run.logger)


def total_steps(config: Config, loader: DataLoader) -> int:
    """Return the number of optimizer steps of a run."""
    return config.TRAIN.EPOCHS * math.ceil(len(loader) / max(1, config.TRAIN.ACCUMULATION_STEPS))


def begin(run: Run, model: nn.Module, loader: DataLoader) -> TrainState:
    """Build the training state: optimizer, schedule, and a checkpoint or pre-trained weights.

    The model is not wrapped yet (`wrap_model`), so it does not wait for other processes.
    """
    config, logger = run.config, run.logger
    checkpoint = checkpoint_to_resume(config, run.folder, logger)
    saved = read_resumable(checkpoint, logger) if checkpoint else None
    accumulation = max(1, config.TRAIN.ACCUMULATION_STEPS)
    # The model moves before the optimizer is built, which refers to its parameters.
    model.to(run.device)
    optimizer = build_optimizer(config, model, logger, run.is_pretrain)
    scheduler = build_scheduler(config, optimizer, len(loader))
    # Only float16 needs it: its smallest normal number is 6e-5, while bfloat16 has float32's range.
    scaler = torch.amp.GradScaler(
        run.device.type, enabled=autocast_dtype(config, run.device) == torch.float16
    )
    state = TrainState(model, optimizer, scheduler, scaler, len(loader), accumulation)
    state.clock = Clock(config.EVAL.EVERY)
    state.compares_images = run.stage == 'contrastive'
    # A checkpoint of this run already contains what became of the pre-trained weights.
    if saved is None and config.PRETRAINED:
        weights = load_pretrained(config, model.pretrained_module, logger)
        run.lineage.start_from(config.PRETRAINED, weights, logger)
    # Averaged copies of the encoder (MoCo, BYOL) begin with the loaded weights.
    model.encoder_loaded()
    if saved is not None:
        state.restore(saved, config, source=str(checkpoint), logger=logger)
        run.lineage.start_from(str(checkpoint), saved, logger)
    run.record.begin(checkpoint, done=state.is_done(config))
    num_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info(
        f'{num_parameters:,} parameters; {len(loader)} batches of {config.DATA.BATCH_SIZE} per '
        f'epoch and process, {state.steps_per_epoch} steps of '
        f'{config.DATA.BATCH_SIZE * accumulation * distributed.world_size()} images. Epochs count '
        'from 1 here, and from 0 in names of files'
    )
    return state


def wrap_model(run: Run, state: TrainState) -> None:
    """Wrap the model for several processes, and compile it according to TRAIN.COMPILE."""
    state.model = share_batch_norm(state.model, run.device)
    if run.config.TRAIN.COMPILE != 'none' and run.device.type in COMPILED_DEVICES:
        state.model = module_of_option('TRAIN.COMPILE').compiled(run, state.model)
    # The exchange of gradients stays outside of the compiled model, which is then one graph.
    state.model = wrap_parallel(state.model, run.device, run.config.TRAIN.GRADIENT_EXCHANGE)


def train_one_epoch(
    run: Run,
    state: TrainState,
    loader: DataLoader,
    loss_fn: LossFunction,
    saver: Saver,
) -> dict[str, Any]:
    """Train from the current batch of `state` to the end of the epoch.

    With TRAIN.ACCUMULATION_STEPS gradients are accumulated over several batches. The last step of
    an epoch may have fewer batches and divides by their number. Gradients are clipped once per
    step.

    Returns:
        Values for metrics.jsonl: loss, grad_norm, lr, images_per_second, data_seconds and seconds.

    Raises:
        FloatingPointError: If a loss is not finite or, without a gradient scaler, a gradient norm.
        Preempted: If a signal asked the run to stop (see `Saver`).
    """
    config, epoch = run.config, state.epoch
    # A validation may have left the model in evaluation mode.
    state.model.train()
    loader.batch_sampler.set_epoch(epoch, first_batch=state.batch)
    clock, progress = state.clock, state.progress
    clock.start_epoch()
    # Time of this epoch before a restart, which its figures include.
    before, waited = progress.seconds, progress.data_seconds
    with _progress_bar(run, state) as bar:
        for i, batch in enumerate(loader, start=state.batch):
            clock.data_ready()
            train_one_batch(run, state, batch, loss_fn, i)
            _log_batch(run, state, i, bar)
            # Between two batches of a step there are gradients that no checkpoint contains.
            ends_step = state.batch % state.accumulation == 0 or i + 1 == state.num_batches
            if ends_step and saver.is_due(state):
                flush_metrics(run, state)  # a non-finite loss must not be saved
                progress.seconds = before + time.perf_counter() - clock.start
                progress.data_seconds = waited + clock.data_seconds
                saver.save_step(state)
    seconds = before + time.perf_counter() - clock.start
    run.logger.debug(f'epoch {epoch + 1}: training took {timedelta(seconds=int(seconds))}')
    images = state.batch * config.DATA.BATCH_SIZE * distributed.world_size()
    return {
        'loss': state.progress.mean_loss(),
        **state.progress.mean_logged(),
        'grad_norm': state.progress.mean_norm(),
        'lr': shown_rate(run, state),
        'images_per_second': images / seconds,
        'data_seconds': waited + clock.data_seconds,
        'seconds': seconds,
    }


def train_one_batch(run: Run, state: TrainState, batch: Any, loss_fn: LossFunction, i: int) -> None:
    """Run forward and backward passes of batch `i`, and the optimizer step after the last batch.

    The hooks of the model (`models.model.Model`) are called around the step. `run.batch_rng` has
    the random numbers of the batch. They depend on SEED, epoch, batch and rank, so that a resumed
    run draws the same ones, for example for Mixup.
    """
    # Batches start to start + size - 1 form the step of batch i; the last step may be shorter.
    start = i - i % state.accumulation
    size = min(state.accumulation, state.num_batches - start)
    ends_step = i + 1 == start + size
    if i == start:
        state.module.begin_step()
    run.batch_rng = np.random.default_rng([run.config.SEED, state.epoch, i, distributed.rank()])

    # Ranks exchange gradients once per step, after its last batch.
    is_quiet = state.parallel is not None and not ends_step
    with state.parallel.no_sync() if is_quiet else contextlib.nullcontext():
        with autocast(run.config, run.device):
            loss = loss_fn(state.model, to_device(batch, run.device))
        # Gradients add up to the gradient of the mean loss over the batches of a step.
        state.scaler.scale(loss / size).backward()

    # A copy, because CUDA graphs overwrite the loss in the next forward pass.
    state.progress.waiting_losses.append(loss.detach().clone())
    logged = state.module.logged_values()
    state.progress.waiting_logged.append({name: v.clone() for name, v in logged.items()})
    if ends_step:
        optimizer_step(run, state)
        state.scheduler.step_update(state.epoch * state.num_batches + i)
        state.module.after_step(state)
    state.batch = i + 1
    state.progress.run_batches += 1


def optimizer_step(run: Run, state: TrainState) -> None:
    """Clip the gradients, make the optimizer step and clear the gradients.

    A gradient scaler skips steps that overflow.
    """
    # The limit of the norm is for gradients without the scaler's factor.
    state.scaler.unscale_(state.optimizer)
    # With an infinite limit the norm is only measured, for the log.
    limit = run.config.TRAIN.CLIP_GRAD or math.inf
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), limit)
    if run.config.TRAIN.CLIP_VALUE:
        nn.utils.clip_grad_value_(state.model.parameters(), run.config.TRAIN.CLIP_VALUE)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.progress.waiting_norms.append((len(state.progress.waiting_losses), norm))
    # Setting to None saves a pass over the memory of the gradients.
    in_place = state.accumulation > 1 and state.keeps_gradients
    state.optimizer.zero_grad(set_to_none=not in_place)


def flush_metrics(run: Run, state: TrainState) -> None:
    """Add the waiting losses and norms to the metrics of the epoch.

    Raises:
        FloatingPointError: If a loss or norm is not finite.
    """
    # The losses stay on the GPU until a line is due, so that no step waits for it.
    first_waiting = state.batch - len(state.progress.waiting_losses)
    bad = state.progress.flush(overflow_is_handled=state.scaler.is_enabled())
    if state.scaler.is_enabled() and state.scaler.get_scale() < SMALLEST_SCALE:
        bad = 0
    if bad is not None:
        batch = first_waiting + bad
        start = batch - batch % state.accumulation
        # The message shows the rate of the step that failed.
        state.scheduler.step_update(max(0, state.epoch * state.num_batches + start - 1))
        advice = 'Lower TRAIN.BASE_LR, raise TRAIN.WARMUP_EPOCHS, or use --amp-opt-level O0.'
        if state.epoch == start == 0:
            advice = (
                'No step was made before, so check the images, the target and the loss, or use '
                '--amp-opt-level O0.'
            )
        raise FloatingPointError(
            f'the loss or its gradient is not finite in epoch {state.epoch + 1}, batch '
            f'{batch + 1}, with learning rate {shown_rate(run, state):.4e}; no checkpoint contains '
            f'these weights. {advice}'
        )


def shown_rate(run: Run, state: TrainState) -> float:
    """Return the logged learning rate: the first group's, or in fine-tuning the head's."""
    return state.optimizer.param_groups[0 if run.is_pretrain else -1]['lr']


def _progress_bar(run: Run, state: TrainState) -> tqdm:
    """Return the progress bar of an epoch, which rank 0 shows if the console is a terminal."""
    return tqdm(
        desc=f'epoch {state.epoch + 1}/{run.config.TRAIN.EPOCHS}',
        # Without tqdm's own times and rate, so that the bar is long enough at 80 columns.
        bar_format='{desc} {percentage:3.0f}%|{bar}|{n_fmt}/{total_fmt}{postfix}',
        total=state.num_batches,
        initial=state.batch,
        file=sys.stdout,
        disable=not (distributed.is_main() and sys.stdout.isatty()),
        leave=False,
        dynamic_ncols=True,
        mininterval=1,
        miniters=1,
    )


def _log_batch(run: Run, state: TrainState, i: int, bar: tqdm) -> None:
    """Update the progress bar, and write the log line of batch `i` if it is due."""
    is_due = i % run.config.PRINT_FREQ == 0 or i + 1 == state.num_batches
    progress = state.progress
    is_due = is_due and bool(progress.num_losses or progress.waiting_losses)
    if is_due:
        flush_metrics(run, state)  # waits for the GPU, so it counts as time of this batch
    state.clock.batch_done()
    if is_due:
        _log_line(run, state, i)
    if bar.update():  # it was drawn, at most once a second, so that a GPU hardly ever waits
        losses = [state.progress.last_loss, *state.progress.waiting_losses]
        bar.set_postfix_str(f'loss {float(losses[-1]):.4f}, {_time_left(run, state)}')


def _time_left(run: Run, state: TrainState) -> str:
    """Estimate the remaining training time."""
    epochs = run.config.TRAIN.EPOCHS - state.epoch
    seconds = state.clock.seconds_left(epochs * state.num_batches - state.batch, epochs)
    return f'{duration(seconds)} left'


def _log_epoch(
    run: Run, state: TrainState, loss: float, held_out: dict[str, Any], selects_by: str
) -> None:
    """Log the number of finished epochs, and the loss and a held-out value of the last one.

    The value is the score that selects the checkpoint, or the first value if none does.
    """
    parts = [f'loss {loss:.4f}']
    if held_out:
        key = 'score' if selects_by else next(iter(held_out))
        parts.append(f'{selects_by or key.replace("_", " ")} {held_out[key]:.4f}')
    parts += [] if state.is_done(run.config) else [_time_left(run, state)]
    run.logger.info(f'epoch {state.epoch} of {run.config.TRAIN.EPOCHS}: {", ".join(parts)}')


def _log_line(run: Run, state: TrainState, i: int) -> None:
    """Log loss, rate, gradient norm and speed after batch `i`, for people and for LOGGER."""
    progress, clock, epochs = state.progress, state.clock, run.config.TRAIN.EPOCHS
    images_per_second = run.config.DATA.BATCH_SIZE * distributed.world_size() / clock.mean_batch()
    eta = timedelta(seconds=int(clock.mean_batch() * (state.num_batches - i)))
    memory = torch.cuda.max_memory_allocated() / 2**20 if run.device.type == 'cuda' else 0.0
    head = f'Train: [{state.epoch + 1}/{epochs}][{i + 1}/{state.num_batches}]'
    left = _time_left(run, state)
    loss = f'loss {progress.last_loss:.4f} ({progress.mean_loss():.4f})'
    means = progress.mean_logged()  # also of terms that the loss had before a resume
    for name, last in progress.last_logged.items():
        loss += f' {name} {last:.4f} ({means[name]:.4f})'
    speed = f'{images_per_second:.0f} images/s'
    rate = shown_rate(run, state)
    run.logger.info(
        f'{head}\teta {eta} ({left}) lr {rate:.4e}\t'
        f'time {clock.batch_seconds:.4f} ({clock.mean_batch():.4f})\t'
        f'data {clock.mean_data():.4f}\t{loss} ema {progress.loss_ema:.4f}\t'
        f'grad_norm {progress.last_norm:.4f} ({progress.mean_norm():.4f})\t{speed}'
        + (f'\tmem {memory:.0f}MB' if memory else ''),
        extra=DETAIL | {'short': f'{head} {left}, lr {rate:.1e}, {loss}, {speed}'},
    )
    run.scalars.write_step(
        {
            'loss': progress.last_loss,
            **progress.last_logged,
            'loss_ema': progress.loss_ema,
            'lr': rate,
        },
        progress.run_batches - 1,
    )

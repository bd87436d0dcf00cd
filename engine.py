"""One epoch, and the loop over epochs, for every stage."""

import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import distributed
from checkpoint_files import BEST_CHECKPOINT, checkpoint_name
from compilation import wrap as wrap_compiled
from device import autocast_dtype
from launcher import Run
from launcher import launch as launch
from launcher import setup_run as setup_run
from lr_scheduler import build_scheduler
from meters import Clock
from optimizer import build_optimizer
from parallel import wrap as wrap_parallel
from preemption import Interruptions, Preempted
from saving import CheckpointWriter
from train_state import TrainState, accumulation_steps
from training_step import (
    LossFunction,
    NotFiniteError,
    settle,
    shown_rate,
    skip_step,
    train_one_batch,
)
from utils import checkpoint_to_resume, load_pretrained, read_resumable, rng_state


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

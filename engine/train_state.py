"""State of training: progress within an epoch, contents of checkpoints, and resuming."""

import logging
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from config import (
    Config,
    config_changes,
    config_text,
    flat_options,
    load_yaml,
)
from engine.clock import Clock
from system import distributed
from utils import load_model_state, load_moments, name_damaged, set_rng_state

SCORED = 'scored.'  # prefix of the entries of a submodule whose weights are scored
EMA_DECAY = 0.98  # decay per batch of the logged moving average of the loss
# What an option affects (see config.py) -> why another value is refused, and what to do.
REFUSED_CHANGES = {
    'outputs': (
        'was trained with other labels',
        'choose another --tag, or start from its weights with --pretrained',
    ),
    'patients': (
        'may have learned from patients who would be held out or scored now',
        'use the same values',
    ),
    'model': (
        'has the weights of another model',
        'choose another --tag, or start from its encoder with --pretrained',
    ),
}


class WrappedModel(nn.Module):
    """A model with the same weights around another one, such as `engine.compilation.Compiled`.

    Attributes:
        module: Model inside, which is scored and saved.
        keeps_gradients: Whether gradients that accumulate must stay where they are.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.keeps_gradients = False


@dataclass
class Progress:
    """Accumulates losses and gradient norms of the current epoch. Checkpoints contain the sums.

    The values stay on the device until `flush`, so that no step waits for them.
    """

    loss_sum: float = 0.0
    num_losses: int = 0
    norm_sum: float = 0.0
    num_norms: int = 0
    loss_ema: float = math.nan
    last_loss: float = math.nan
    last_norm: float = math.nan
    seconds: float = 0.0  # of this epoch before the last resume
    data_seconds: float = 0.0  # part of them that waited for data
    run_batches: int = 0  # finished batches of the run, of whatever size: the axis of its curves
    waiting_losses: list[Tensor] = field(default_factory=list)
    logged_sums: dict[str, float] = field(default_factory=dict)  # of values beside the loss
    logged_counts: dict[str, int] = field(default_factory=dict)  # batches that had each of them
    last_logged: dict[str, float] = field(default_factory=dict)
    waiting_logged: list[dict[str, Tensor]] = field(default_factory=list)
    # (number of waiting losses up to the end of the step, norm of the step)
    waiting_norms: list[tuple[int, Tensor]] = field(default_factory=list)

    def flush(self, *, overflow_is_handled: bool) -> int | None:
        """Add the waiting losses, averaged over the ranks, and the waiting norms.

        Args:
            overflow_is_handled: Whether a gradient scaler has already skipped steps with a
                non-finite norm, so that these norms are ignored.

        Returns:
            None if all values are finite. Otherwise nothing is added, and the result is the index
            of the first non-finite loss, or of the last loss before the first non-finite norm.
        """
        if not self.waiting_losses:
            return None
        losses = _over_ranks(self.waiting_losses)
        names = dict.fromkeys(name for values in self.waiting_logged for name in values)
        logged = {
            name: _over_ranks([values[name] for values in self.waiting_logged if name in values])
            for name in names
        }
        ends = [waited - 1 for waited, _ in self.waiting_norms]
        norms = torch.stack([norm for _, norm in self.waiting_norms]).tolist() if ends else []
        self.waiting_losses, self.waiting_logged, self.waiting_norms = [], [], []
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
        for name, values in logged.items():
            for value in values:  # one by one, so that a resumed run has the same sum
                self.logged_sums[name] = self.logged_sums.get(name, 0.0) + value
                self.logged_counts[name] = self.logged_counts.get(name, 0) + 1
            self.last_logged[name] = values[-1]
        for norm in filter(math.isfinite, norms):
            self.norm_sum += norm
            self.num_norms += 1
            self.last_norm = norm
        return None

    def mean_loss(self) -> float:
        return self.loss_sum / self.num_losses if self.num_losses else math.nan

    def mean_logged(self) -> dict[str, float]:
        """Return the means of the values beside the loss, each over the batches that had it."""
        return {name: total / self.logged_counts[name] for name, total in self.logged_sums.items()}

    def mean_norm(self) -> float:
        return self.norm_sum / self.num_norms if self.num_norms else math.nan

    def next_epoch(self) -> 'Progress':
        """Return the initial progress of the next epoch."""
        return Progress(loss_ema=self.loss_ema, run_batches=self.run_batches)

    def numbers(self) -> dict[str, Any]:
        """Return the values for a checkpoint."""
        numbers = {k: v for k, v in vars(self).items() if isinstance(v, int | float)}
        if self.logged_sums:
            numbers['logged_sums'] = dict(self.logged_sums)
            numbers['logged_counts'] = dict(self.logged_counts)
        return numbers


def _over_ranks(values: list[Tensor]) -> list[float]:
    """Return the means over the ranks of scalars on the device."""
    total = distributed.all_reduce_sum(torch.stack(values).float())
    return (total / distributed.world_size()).tolist()


@dataclass
class TrainState:
    """Everything that changes during training and is written to checkpoints."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    num_batches: int  # batches per epoch
    accumulation: int = 1  # batches per optimizer step
    epoch: int = 0
    batch: int = 0  # finished batches of the current epoch
    best_score: float = -math.inf
    source: str = ''  # checkpoint that training resumed from
    compares_images: bool = False  # whether the loss compares the images of a batch
    progress: Progress = field(default_factory=Progress)
    clock: Clock = field(default_factory=Clock)

    @property
    def parallel(self) -> DistributedDataParallel | None:
        """Return the wrapper that exchanges gradients, or None in a single process."""
        return self.model if isinstance(self.model, DistributedDataParallel) else None

    @property
    def keeps_gradients(self) -> bool:
        """Return whether gradients that accumulate must stay where they are."""
        model = self.parallel.module if self.parallel else self.model
        return isinstance(model, WrappedModel) and model.keeps_gradients

    @property
    def module(self) -> nn.Module:
        """Return the model without wrappers."""
        model = self.model
        while isinstance(model, WrappedModel | DistributedDataParallel):
            model = model.module
        return model

    @property
    def scored(self) -> nn.Module:
        """Return the model whose weights are scored, and `model` in checkpoints.

        It is the trained model, or its submodule `scored`, for example an average of the weights
        that `after_step` updates.
        """
        model = self.module
        return model if model.scored is None else model.scored

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps per epoch. The last one may have fewer batches."""
        return math.ceil(self.num_batches / self.accumulation)

    @property
    def step(self) -> int:
        """Return the number of finished optimizer steps of the current epoch."""
        return math.ceil(self.batch / self.accumulation)

    def add_score(self, score: float) -> bool:
        """Take note of the score of a validation, and return whether it is the best so far."""
        is_best = score > self.best_score  # never for NaN: no later score would exceed it
        self.best_score = score if is_best else self.best_score
        return is_best

    def is_done(self, config: Config) -> bool:
        """Return whether nothing is left to train."""
        return self.epoch >= config.TRAIN.EPOCHS

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.progress = self.epoch + 1, 0, self.progress.next_epoch()

    def contents(self, config: Config, rng: list[dict[str, Tensor]], *, finished: bool) -> dict:
        """Return the contents of a checkpoint (see `utils.RESUME_KEYS`).

        SimMIM's code resumes from it, too: `lr_scheduler` is empty, so that the schedule is that of
        the config. `rng` has the states of the random generators of all ranks.
        """
        trained = {}
        if self.scored is not self.module:
            state = self.module.state_dict()
            trained = {key: value for key, value in state.items() if not key.startswith(SCORED)}
        return {
            'model': self.scored.state_dict(),
            'trained': trained,
            'optimizer': self.optimizer.state_dict(),
            'lr_scheduler': {},
            'max_accuracy': max(0.0, self.best_score),
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
        """Resume from a checkpoint. Learning rates, weight decay and epochs come from the config.

        Raises:
            ValueError: If options with REFUSED_CHANGES, or the batches of an unfinished epoch have
                changed.
        """
        self.source = source
        with name_damaged(source):
            changes = partial(config_changes, saved['config'], config_text(config))
            for effect, (problem, advice) in REFUSED_CHANGES.items():
                if other := changes(effect):
                    raise ValueError(f'{source} {problem} ({"; ".join(other)}): {advice}')
            scored = saved['model']
            weights = saved.get('trained') or scored
            # TRAIN.AVERAGE may be switched: an average that begins now begins with these weights.
            if self.scored is not self.module:
                weights = weights | {f'{SCORED}{key}': scored[key] for key in scored}
            try:
                load_model_state(self.module, weights, source, logger)
            except ValueError as error:
                changed = '; '.join(changes('weights')) or 'no option'
                raise ValueError(
                    f'{error}. Changed since the checkpoint: {changed}. To start from the encoder '
                    'of another model, use --pretrained instead of --resume'
                ) from error
            name = config.TRAIN.OPTIMIZER.NAME
            load_moments(saved, self.optimizer, self.scaler, name=name, source=source)
            self.best_score = saved['best_score']
            self.progress = progress = Progress(**saved['progress'])
            if 'logged_counts' not in saved['progress']:  # of a version whose batches had all terms
                progress.logged_counts = dict.fromkeys(progress.logged_sums, progress.num_losses)
            self._set_position(saved, config)
            if 'run_batches' not in saved['progress']:  # a checkpoint of SimMIM
                self.progress.run_batches = self.epoch * self.num_batches + self.batch
            self._compare_batches(saved, config, logger)
            self._log_changes(saved, config, logger)
            # Each rank has drawn its own dropout and drop path.
            rng, processes = saved['rng'], distributed.world_size()
            if len(rng) == processes:
                set_rng_state(rng[distributed.rank()])
            else:
                logger.warning(
                    f'processes: {len(rng)} wrote the checkpoint, and this run has {processes}: '
                    'dropout and drop path start from new random states'
                )
        logger.info(f'resumed from {source}: {self.epoch} epochs and {self.batch} batches are done')

    def _log_changes(self, saved: dict, config: Config, logger: logging.Logger) -> None:
        """Log changed options, and forget the best score if another score selects now.

        The selection of a run that has nothing left to train stays as it is.
        """
        changes = partial(config_changes, saved['config'], config_text(config))
        gone = sorted(
            flat_options(saved['config']).keys() - flat_options(config_text(config)).keys()
        )
        if gone:
            logger.warning(f'options of the checkpoint that no longer exist: {", ".join(gone)}')
        for line in changes():
            if line.partition(':')[0] not in gone:
                logger.warning(f'changed since the checkpoint: {line}')
        if changes('selection') and not self.is_done(config):
            self.best_score = -math.inf
            logger.warning(
                'another score selects the checkpoint now, so earlier epochs no longer count'
            )

    def _set_position(self, saved: dict, config: Config) -> None:
        """Set epoch, batch and learning rates from a checkpoint."""
        self.epoch = saved['epoch']
        if saved['finished']:
            self.next_epoch()
        elif saved['batch']:
            # The steps stay the same, and may have another number of batches.
            step = math.ceil(saved['batch'] / saved['accumulation'])
            # The position counts steps, because images of a finished step must not be seen again.
            self.batch = min(step * self.accumulation, self.num_batches)
        if (self.epoch, self.batch) > (config.TRAIN.EPOCHS, 0):
            raise ValueError(
                f'{self.source}: {self.epoch} epochs and {self.batch} batches are trained, more '
                f'than TRAIN.EPOCHS {config.TRAIN.EPOCHS}: raise it, or choose another --tag'
            )
        if self.epoch or self.batch:
            # The schedule has no state: the last finished batch determines all rates.
            self.scheduler.step_update(self.epoch * self.num_batches + self.batch - 1)

    def _compare_batches(self, saved: dict, config: Config, logger: logging.Logger) -> None:
        """Compare the number of images of a step with the checkpoint, and warn if it has changed.

        Raises:
            ValueError: If the checkpoint is within an epoch, and the data or the images of a step
                have changed, so that the rest of the epoch would have other images. Or if the loss
                compares the images of a batch, and their number or the batches of a step, which the
                momentum follows, have changed.
        """
        size, processes = load_yaml(saved['config'])['DATA']['BATCH_SIZE'], len(saved['rng'])
        accumulation, num_batches = saved['accumulation'], saved['num_batches']
        old, new = size * processes, config.DATA.BATCH_SIZE * distributed.world_size()
        old_step, new_step = old * accumulation, new * self.accumulation
        change = (
            f'{self.source}: a step had {old_step} images (processes {processes} x {accumulation}'
            f' batches x {size}), and now it has {new_step} ({distributed.world_size()} x '
            f'{self.accumulation} x {config.DATA.BATCH_SIZE})'
        )
        # Batches of another size may leave out other images at the end of an epoch.
        tolerated = 0 if old == new else max(old, new) - 1
        is_same_data = abs(num_batches * old - self.num_batches * new) <= tolerated
        if self.batch and not (old_step == new_step and is_same_data):
            raise ValueError(
                f'{change}; an epoch had {num_batches} batches, and now it has {self.num_batches}. '
                'Within an epoch, use the same data and images per step (--batch-size, '
                '--accumulation-steps), or resume from the end of an epoch.'
            )
        if self.compares_images and (old, old_step) != (new, new_step):
            raise ValueError(
                f'{change}. The loss compares the images of a batch, and the momentum follows the '
                'steps: keep both numbers, or choose another --tag.'
            )
        if old_step != new_step:
            logger.warning(
                f'{change}, and the learning rates change in proportion. Set --batch-size and '
                '--accumulation-steps to keep them.'
            )

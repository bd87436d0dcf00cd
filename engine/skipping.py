"""Skipping of optimizer steps whose loss or gradient is not finite (TRAIN.ON_NAN 'skip')."""

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from config import Config
from engine.compilation import copy_buffers, restore_buffers
from system import distributed


@dataclass
class SkippedSteps:
    """Decides whether an optimizer step is skipped, undoes its traces, and counts skipped steps.

    With TRAIN.ON_NAN 'stop' no step is skipped and none waits for the device. Then
    `engine.loop.flush_metrics` checks losses and norms later.

    Attributes:
        count: Number of skipped steps of the whole run. Checkpoints contain it.
        losses: Losses of the current step, which count once it is made. Empty with 'stop'.
        before: Tensors that a skipped step must not change, each with its copy.
    """

    count: int = 0
    losses: list[Tensor] = field(default_factory=list)
    before: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def begin_step(self, config: Config, module: nn.Module) -> None:
        """Forget the losses of the last step, and copy what a skipped step must not change."""
        self.losses = []
        if config.TRAIN.ON_NAN == 'skip':
            self.before = copy_buffers(module)

    def must_skip(self, config: Config, norm: Tensor | None) -> bool:
        """Return whether a loss or the norm of the step is not finite on any rank.

        `norm` is None with a gradient scaler, which skips overflowing steps itself.
        """
        if config.TRAIN.ON_NAN == 'stop':
            return False
        values = torch.stack(self.losses)
        if norm is not None:
            values = torch.cat([values, norm.reshape(1).to(values)])
        return bool(distributed.all_reduce_sum((~values.isfinite()).sum()))  # waits for the device

    def skip(self, config: Config, logger: logging.Logger, problem: str) -> None:
        """Restore the buffers and count the step.

        Raises:
            FloatingPointError: After more than TRAIN.NAN_LIMIT skipped steps.
        """
        restore_buffers(self.before)
        self.count += 1
        limit = config.TRAIN.NAN_LIMIT
        if self.count > limit:
            raise FloatingPointError(
                f'{problem}; more than TRAIN.NAN_LIMIT {limit} steps were skipped'
            )
        logger.warning(f'{problem}: the step is skipped ({self.count} of at most {limit})')

"""Figures of the current epoch: losses and gradient norms without waiting for the device; time."""

import math
import time
from dataclasses import dataclass, field

import torch

import distributed

EMA_DECAY = 0.98  # of the loss in the log, per micro-batch


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
    waiting_losses: list[torch.Tensor] = field(default_factory=list)
    waiting_norms: list[torch.Tensor] = field(default_factory=list)

    def settle(self, overflow_is_handled: bool) -> int | None:
        """Take in the waiting figures, losses as means over the ranks.

        Returns:
            None, or the position in the waiting losses of the first figure that is not finite
            (of a norm: the last loss before it). A norm that overflows under a gradient scaler is
            left out instead: the scaler has skipped that step.
        """
        if not self.waiting_losses:
            return None
        num_steps = max(1, len(self.waiting_norms))
        losses = distributed.all_reduce_sum(torch.stack(self.waiting_losses).float())
        losses = (losses / distributed.world_size()).tolist()
        norms = torch.stack(self.waiting_norms).tolist() if self.waiting_norms else []
        self.waiting_losses, self.waiting_norms = [], []
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                return i
            self.loss_sum, self.num_losses, self.last_loss = (
                self.loss_sum + loss,
                self.num_losses + 1,
                loss,
            )
            first = math.isnan(self.loss_ema)
            self.loss_ema = loss if first else EMA_DECAY * self.loss_ema + (1 - EMA_DECAY) * loss
        for j, norm in enumerate(norms):
            if math.isfinite(norm):
                self.norm_sum, self.num_norms, self.last_norm = (
                    self.norm_sum + norm,
                    self.num_norms + 1,
                    norm,
                )
            elif not overflow_is_handled:
                return min(len(losses) - 1, (j + 1) * len(losses) // num_steps - 1)
        return None

    def mean_loss(self) -> float:
        return self.loss_sum / self.num_losses if self.num_losses else math.nan

    def mean_norm(self) -> float:
        return self.norm_sum / self.num_norms if self.num_norms else math.nan

    def next_epoch(self) -> 'Progress':
        """A fresh one; only the running mean of the loss goes on."""
        return Progress(loss_ema=self.loss_ema)

    def numbers(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {k: v for k, v in vars(self).items() if not k.startswith('waiting')}


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

"""Figures of the current epoch: losses and gradient norms without waiting for the device; time."""

import math
import statistics
import time
from collections import deque
from dataclasses import dataclass, field

import torch

import distributed

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

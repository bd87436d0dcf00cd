"""Training time: seconds per batch and between epochs, and an estimate of the remaining time."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator


class Clock:
    """Measures batches and validations, and estimates the remaining time of the run.

    Args:
        epochs_between_validations: EVAL.EVERY.
    """

    def __init__(self, epochs_between_validations: int = 1) -> None:
        self.num_timed, self.timed_seconds = 0, 0.0  # all batches of this process but the first
        self._between = deque(maxlen=epochs_between_validations)
        self._has_begun = False
        self.start_epoch()

    def start_epoch(self) -> None:
        """Start the clock of an epoch."""
        self.start = self.last = time.perf_counter()
        self.batches = 0
        self.batch_seconds = self.data_seconds = 0.0

    def data_ready(self) -> None:
        """Add the time since the last batch to the time spent waiting for data."""
        self.data_seconds += time.perf_counter() - self.last

    def batch_done(self) -> None:
        """Count a batch and its seconds."""
        now = time.perf_counter()
        self.batch_seconds, self.last = now - self.last, now
        self.batches += 1
        if self._has_begun:  # the first batch may compile
            self.num_timed += 1
            self.timed_seconds += self.batch_seconds
        self._has_begun = True

    def mean_batch(self) -> float:
        """Return the mean seconds per batch of the epoch, including waiting for data."""
        return (self.last - self.start) / self.batches

    def mean_data(self) -> float:
        """Return the mean seconds per batch of the epoch spent waiting for data."""
        return self.data_seconds / self.batches

    @contextlib.contextmanager
    def between_epochs(self) -> Iterator[None]:
        """Measure validation and saving after an epoch."""
        start = time.perf_counter()
        yield
        self._between.append(time.perf_counter() - start)

    def seconds_left(self, batches: int, epochs: int) -> float:
        """Estimate the seconds of this many batches, and of validation after this many epochs."""
        batch = self.timed_seconds / self.num_timed if self.num_timed else self.batch_seconds
        return batches * batch + epochs * sum(self._between) / self._between.maxlen


def duration(seconds: float) -> str:
    """Format seconds with a unit, such as '3.2 h' or '4 min'."""
    if seconds >= 3600:
        return f'{seconds / 3600:,.1f} h'
    return f'{seconds / 60:.0f} min' if seconds >= 120 else f'{seconds:.0f} s'

"""Requests to stop or to save during training: signals and the clock, agreed on by all ranks."""

import os
import signal
import time
from datetime import timedelta
from signal import SIGINT, SIGTERM, SIGUSR1
from types import FrameType

import torch
import torch.distributed as dist

STOP_SIGNALS = (SIGTERM, SIGUSR1, SIGINT)  # Slurm sends SIGUSR1 or SIGTERM with --signal


class Preempted(Exception):  # noqa: N818 (not an error: the run resumes later)
    """The run was asked to stop, and has saved its state."""


class Interruptions:
    """Requests to stop or to save during training, on which all ranks agree.

    SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) ask to stop after the current step; a second SIGINT stops
    at once. With several ranks, all of them learn of a request one step later, so that no step has
    to wait for the exchange, and all stop at the same step.

    Args:
        save_minutes: Minutes between saves, by the clock of rank 0; 0 for never.
        timeout_minutes: How long a rank waits for the others.
    """

    def __init__(self, save_minutes: float = 0.0, timeout_minutes: float = 30.0) -> None:
        self.timeout = timedelta(minutes=timeout_minutes)
        self.signal = ''  # the first one that this process received
        self.save_seconds = save_minutes * 60
        self.last_save = time.monotonic()
        self.group = None
        self.pending = None

    def __enter__(self) -> 'Interruptions':
        if dist.is_initialized():
            # Its own group on the CPU waits neither for the device nor for the gradients.
            self.group = dist.new_group(backend='gloo', timeout=self.timeout)
        self.before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.group is not None and error is None:
            self._finish()
            dist.destroy_process_group(self.group)

    def saved(self) -> None:
        """Note that a checkpoint was written."""
        self.last_save = time.monotonic()

    def due(self, *, wait: bool) -> tuple[bool, bool]:
        """Whether to stop now, and whether to save now; the answer is the same on all ranks.

        Every rank must call this after every step. With `wait`, requests of this step count, and
        not only those of the step before.
        """
        late = 0 < self.save_seconds <= time.monotonic() - self.last_save
        if self.group is None:
            return bool(self.signal), late
        answer = self._finish()
        # A requested save is not requested again before it is done.
        self._start([bool(self.signal), late and dist.get_rank() == 0 and not answer[1]])
        if wait:
            answer = [a or b for a, b in zip(answer, self._finish(), strict=True)]
        return answer[0], answer[1]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == SIGINT and self.signal:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal = signal.Signals(number).name
            # No logging here: the signal may have interrupted the logger.
            os.write(2, f'{self.signal}: stopping after this step, then saving\n'.encode())

    def _start(self, requests: list[bool]) -> None:
        flags = torch.tensor(requests, dtype=torch.uint8)
        work = dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group, async_op=True)
        self.pending = work, flags

    def _finish(self) -> list[bool]:
        """The result of the exchange that was started, if any."""
        if self.pending is None:
            return [False, False]
        (work, flags), self.pending = self.pending, None
        work.wait()
        return flags.bool().tolist()

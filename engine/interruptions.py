"""Requests to stop or to save during training, on which all ranks agree."""

import contextlib
import os
import signal
import time
from datetime import timedelta
from signal import SIGINT
from types import FrameType

import torch
import torch.distributed as dist

from system.tool import STOP_SIGNALS


class Preempted(Exception):  # noqa: N818 (not an error: the run resumes later)
    """Raised after a run was asked to stop and has saved its state."""


class Interruptions:
    """Collects requests to stop or to save during training, on which all ranks agree.

    SIGTERM, SIGUSR1, SIGHUP and SIGINT (Ctrl-C) request a stop after the current step. A second
    SIGINT stops immediately. With several ranks, a request takes effect one step later on all of
    them, so that no step waits for communication. A request after the last step is raised as a
    signal at the end, with the handlers from before.

    Args:
        save_minutes: Minutes between two saves by the clock of rank 0, or 0 for none.
        timeout_minutes: Minutes that a rank waits for the others.
    """

    def __init__(self, save_minutes: float = 0.0, timeout_minutes: float = 10.0) -> None:
        self.timeout = timedelta(minutes=timeout_minutes)
        self.signal = ''  # first signal that this process received
        self.save_seconds = save_minutes * 60
        self.last_save = time.monotonic()
        self.group = None
        self.pending = None

    def __enter__(self) -> 'Interruptions':
        if dist.is_initialized():
            # A separate group on the CPU does not wait for the device or the gradients.
            self.group = dist.new_group(backend='gloo', timeout=self.timeout)
        self.before = {
            number: signal.signal(number, self._receive) for number in (*STOP_SIGNALS, SIGINT)
        }
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        stops = False
        try:
            if error is None:
                stops, _ = self.due(wait=True)
        finally:
            for number, handler in self.before.items():
                signal.signal(number, handler)
        if error is not None:
            return
        if self.group is not None:
            dist.destroy_process_group(self.group)
        if stops or self.signal:  # it came after the last step, so it stops what follows
            signal.raise_signal(signal.Signals[self.signal or 'SIGTERM'])

    def saved(self) -> None:
        """Restart the time until the next save."""
        self.last_save = time.monotonic()

    def due(self, *, wait: bool) -> tuple[bool, bool]:
        """Return whether to stop and whether to save now, the same on all ranks.

        Every rank must call this after every step.

        Args:
            wait: Whether requests during this step count, and not only requests until the previous
                step.
        """
        late = 0 < self.save_seconds <= time.monotonic() - self.last_save
        if self.group is None:
            return bool(self.signal), late
        answer = self._finish()
        # A save that is about to happen is not requested again.
        asks_to_save = late and dist.get_rank() == 0 and not answer[1]
        flags = torch.tensor([bool(self.signal), asks_to_save], dtype=torch.uint8)
        work = dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group, async_op=True)
        self.pending = work, flags
        if wait:
            answer = [a or b for a, b in zip(answer, self._finish(), strict=True)]
        return answer[0], answer[1]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == SIGINT and self.signal:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal = signal.Signals(number).name
            # The signal may have interrupted the logger, so the message does not use it.
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, f'{self.signal}: stopping after this step, then saving\n'.encode())

    def _finish(self) -> list[bool]:
        """Return the result of the pending communication, if any."""
        if self.pending is None:
            return [False, False]
        (work, flags), self.pending = self.pending, None
        work.wait()
        return flags.bool().tolist()

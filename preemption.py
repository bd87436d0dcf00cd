"""What may interrupt training between two steps: a signal or the clock, agreed by all ranks."""

import os
import signal
import threading
import time
from datetime import timedelta
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # USR1: Slurm's --signal


class Preempted(Exception):  # noqa: N818 (no error: the run goes on later)
    """The run was asked to stop, and has saved where it stands."""


class Interruptions:
    """Requests to stop or to save, while it is entered; between the ranks they agree.

    SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) ask to stop after the current step; a second SIGINT stops
    at once.  With several ranks what one of them was asked is known to all a step later, so that
    no step waits for the exchange, and all stop at the same step.

    Args:
        save_minutes: a save is due when the last one was so long ago, by rank 0's clock; 0: never.
        timeout_minutes: that a rank waits for the others.
    """

    def __init__(self, save_minutes: float = 0.0, timeout_minutes: float = 30.0) -> None:
        self.timeout = timedelta(minutes=timeout_minutes)
        self.signal = ''  # the first that this process received
        self.save_seconds = save_minutes * 60
        self.last_save = time.monotonic()
        self.group = None
        self.pending = None

    def __enter__(self) -> 'Interruptions':
        if dist.is_initialized():
            # Of its own, on the CPU: it neither waits for the device nor for the gradients.
            self.group = dist.new_group(backend='gloo', timeout=self.timeout)
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # others cannot take signals
            self.before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.group is not None and error is None:
            self._finish()
            dist.destroy_process_group(self.group)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal = signal.Signals(number).name
            # No logging in a handler: the log may be what it interrupts.
            os.write(2, f'{self.signal}: this step is finished, then saved\n'.encode())

    def saved(self) -> None:
        """A checkpoint was written: the clock starts again."""
        self.last_save = time.monotonic()

    def due(self, *, wait: bool) -> tuple[bool, bool]:
        """Whether to stop now, and whether to save now: the same answer on all ranks.

        Every rank must call it after every step.

        Args:
            wait: for what is asked at this step, not at the one before.
        """
        late = 0 < self.save_seconds <= time.monotonic() - self.last_save
        if self.group is None:
            return bool(self.signal), late
        answer = self._finish()
        # A save that was asked for is not asked for again before it is done.
        self._start([bool(self.signal), late and dist.get_rank() == 0 and not answer[1]])
        if wait:
            answer = [a or b for a, b in zip(answer, self._finish(), strict=True)]
        return answer[0], answer[1]

    def _start(self, asked: list[bool]) -> None:
        flags = torch.tensor(asked, dtype=torch.uint8)
        work = dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group, async_op=True)
        self.pending = work, flags

    def _finish(self) -> list[bool]:
        """The answer under way; nothing is asked where there is none."""
        if self.pending is None:
            return [False, False]
        (work, flags), self.pending = self.pending, None
        work.wait()
        return flags.bool().tolist()

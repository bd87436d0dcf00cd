"""Schedule of checkpoints, and writing them in the background."""

import copy
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.interruptions import Interruptions, Preempted
from engine.run import Run
from engine.train_state import TrainState
from logger import DETAIL
from system import distributed
from system.downloads import LINEAGE
from system.files import BEST_CHECKPOINT, checkpoint_name
from utils import prune, remove_partial_files, rng_state, save_checkpoint

RETRY_SECONDS = 60.0


class Saver:
    """Decides when checkpoints are saved and when the run stops, the same on all ranks.

    Epochs in file names count from 0 as in SimMIM. Steps count within the epoch.
    """

    def __init__(self, run: Run, interruptions: Interruptions) -> None:
        self.run = run
        self.interruptions = interruptions
        self.writer = None
        self.stops = False  # whether the run stops at the step of the last `is_due`
        if distributed.is_main():
            self.writer = CheckpointWriter(run.folder, run.logger, keep=run.config.SAVE_KEEP)

    def __enter__(self) -> 'Saver':
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer:
            self.writer.flush()  # the run folder stays locked until its files are complete

    def is_due(self, state: TrainState) -> bool:
        """Return whether to save after the current step. It must be called after every step."""
        every = self.run.config.TRAIN.SAVE_EVERY_STEPS
        # Counted over the whole run, so that the interval does not begin again in each epoch.
        steps_done = state.epoch * state.steps_per_epoch + state.step
        self.stops, saves = self.interruptions.due(wait=state.batch == state.num_batches)
        if self.writer:
            self.writer.poll()
        return self.stops or saves or (every > 0 and steps_done % every == 0)

    def save_step(self, state: TrainState) -> None:
        """Save a checkpoint within an epoch, and raise Preempted if the run was asked to stop."""
        self._save(state, checkpoint_name(state.epoch, state.step))
        if self.stops:
            self._stop(state)

    def after_epoch(self, state: TrainState, score: float | None) -> None:
        """Save ckpt_best.pth and the checkpoint of the epoch if they are due.

        `score` is None if no score of this epoch can select it.

        Raises:
            Preempted: If the run was asked to stop.
        """
        config, epoch = self.run.config, state.epoch
        # Before anything is saved, because a checkpoint contains the best score.
        is_best = score is not None and state.add_score(score)
        stops, _ = self.interruptions.due(wait=True)
        is_last = epoch + 1 == config.TRAIN.EPOCHS
        # The best file comes first: after a kill between the two, the run repeats the epoch.
        names = [BEST_CHECKPOINT] if is_best else []
        if stops or is_last or epoch % config.SAVE_FREQ == 0:
            names.append(checkpoint_name(epoch))
        if names:
            self._save(state, *names, finished=True)
        if stops:
            self._stop(state)

    def close(self) -> None:
        """Wait until all checkpoints are written.

        Raises:
            ValueError: If a checkpoint cannot be written.
        """
        if self.writer:
            self.writer.close()

    def _save(self, state: TrainState, *names: str, finished: bool = False) -> None:
        """Start writing on rank 0 with the random states of all ranks."""
        # All ranks take part, although only rank 0 writes.
        rng = distributed.gather(rng_state())
        if self.writer:
            contents = state.contents(self.run.config, rng, finished=finished)
            contents[LINEAGE] = self.run.lineage.contents()
            self.writer.save(names, contents)
        if names[-1] != BEST_CHECKPOINT:  # no run resumes from it automatically
            self.interruptions.saved()

    def _stop(self, state: TrainState) -> None:
        self.close()
        position = f'epoch {state.epoch + 1}, step {state.step} of {state.steps_per_epoch}'
        by = self.interruptions.signal or 'a signal to another process'
        raise Preempted(f'stopped by {by}, saved in {position}: the same command resumes the run')


class CheckpointWriter:
    """Writes checkpoints in a background thread, from copies in memory.

    If a checkpoint cannot be written, for example because the disk is full, it stays in memory and
    is tried again after RETRY_SECONDS, with the next checkpoint and at the end. Only the newest and
    the best checkpoint can wait, because each one replaces its predecessor.

    Args:
        folder: Run folder.
        logger: Receives a line for each saved checkpoint and each failure.
        keep: Number of newest checkpoints to keep in addition to the best one. 0 keeps all.
    """

    def __init__(self, folder: str | Path, logger: logging.Logger, *, keep: int) -> None:
        self.folder = Path(folder)
        self.logger = logger
        self.keep = keep
        self._waiting: dict[str, dict] = {}  # file name -> contents, until the thread has written
        self._error = ''  # message of the last failed attempt
        self._writing: Future[None] | None = None
        self._retry_at = math.inf
        remove_partial_files(self.folder)

    def save(self, names: Sequence[str], state: dict) -> None:
        """Copy the contents of a checkpoint and start writing, after the previous write has ended.

        Args:
            names: BEST_CHECKPOINT, the name of a regular checkpoint, or both in this order.
            state: Contents of the checkpoint.
        """
        # One write at a time: a second one would compete for the disk and the memory.
        self.flush()
        name = names[-1]
        if name != BEST_CHECKPOINT:
            for older in self._waiting.keys() - {BEST_CHECKPOINT, name}:
                self.logger.warning(f'{self.folder / older} was never written: {name} replaces it')
                del self._waiting[older]
        # Both files share one copy, so the memory of a checkpoint is needed once.
        self._waiting |= dict.fromkeys(names, copy_state(state))
        self._start()

    def poll(self) -> None:
        """Retry a failed write if it is due, without waiting."""
        if self._writing is not None and self._writing.done():
            self.flush()
        if self._writing is None and self._waiting and time.monotonic() >= self._retry_at:
            self._start()

    def flush(self) -> None:
        """Wait for the current write."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def close(self) -> None:
        """Wait until all checkpoints are written, and retry failed writes once.

        Raises:
            ValueError: If a checkpoint cannot be written.
        """
        self.flush()
        if self._waiting:
            self._start()
            self.flush()
        if self._waiting:
            paths = ', '.join(str(self.folder / name) for name in self._waiting)
            raise ValueError(f'{paths}: the checkpoint cannot be written ({self._error})')

    def _start(self) -> None:
        pool = ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
        self._writing = pool.submit(self._write_waiting)
        pool.shutdown(wait=False)  # the thread ends with the write

    def _write_waiting(self) -> None:
        for name in list(self._waiting):
            path = self.folder / name
            try:
                save_checkpoint(path, self._waiting[name])
            except (OSError, RuntimeError, MemoryError) as error:
                self._error = str(error) or type(error).__name__
                self._retry_at = time.monotonic() + RETRY_SECONDS
                self.logger.warning(
                    f'{path}: the checkpoint cannot be written ({self._error}). It stays in memory '
                    f'and is tried again every {RETRY_SECONDS:.0f} s'
                )
                continue
            del self._waiting[name]
            self.logger.info(f'saved {name}', extra=DETAIL)
            if name != BEST_CHECKPOINT:
                with suppress(OSError):  # the next save prunes again
                    prune(self.folder, self.keep, name)


def copy_state(value: Any) -> Any:
    """Copy the contents of a checkpoint to CPU memory, where training cannot change them."""
    # A copy also on the CPU, where the optimizer changes the weights in place.
    if isinstance(value, Tensor):
        return value.detach().to('cpu', copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps the class and the attributes of the dictionary
        for key, item in value.items():
            copied[key] = copy_state(item)
        return copied
    if isinstance(value, list | tuple):
        return type(value)(copy_state(item) for item in value)
    return value

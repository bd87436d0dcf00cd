"""Checkpoints written in the background, from copies in memory, and again where that failed.

Of Swin-B with AdamW (1.08 GB), on 2 busy CPU cores and a local disk, `CheckpointWriter.save` holds
training up for 0.2 to 0.4 s, 4 % of the time that writing takes at once; the first save, which gets
the memory that the later ones use again, for 2 to 6 s.
"""

import copy
import logging
import math
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils import BEST_CHECKPOINT, find_newest_checkpoint, prune, write_checkpoint

RETRY_SECONDS = 60.0


class Outcome(NamedTuple):
    """Of one try to write a checkpoint."""

    name: str
    error: str = ''  # why it is not written
    removed: tuple[str, ...] = ()  # older checkpoints
    prune_error: str = ''


class CheckpointWriter:
    """Writes checkpoints one after another in a thread of its own, from copies in memory.

    What could not be written, as on a full disk, is kept and tried again: after RETRY_SECONDS,
    before the next checkpoint is copied, and at the end.  A later checkpoint takes the place of an
    earlier one that waits, but none takes that of the best but a better one: at most two wait.

    Args:
        folder: of the run.
        logger: told what was saved, removed, or could not be written.
        keep: so many of the newest checkpoints stay, beside the best; 0: all.
    """

    def __init__(self, folder: str | Path, logger: logging.Logger, *, keep: int) -> None:
        self.folder = Path(folder)
        self.logger = logger
        self.keep = keep
        self._waiting: dict[str, dict] = {}  # not on disk; the thread reads it while it writes
        self._errors: dict[str, str] = {}  # of those waiting that were tried
        self._newest = ''
        self._writing: Future[list[Outcome]] | None = None
        self._retry_at = math.inf
        prune(self.folder, 0)

    @property
    def failed(self) -> bool:
        """Whether the newest checkpoint that was asked for could not be written so far."""
        return self._newest in self._errors

    def save(self, name: str, state: dict, *, best: bool = False) -> None:
        """Copy a checkpoint's contents and begin to write them, when the one before is written.

        Args:
            name: of the file.
            state: its contents.
            best: whether they are written as BEST_CHECKPOINT, too, before.
        """
        names = (BEST_CHECKPOINT, name) if best else (name,)
        self.flush()
        for repeated in names:
            self._forget(repeated)
        if self._waiting:
            self._begin()
            self.flush()
        for older in [n for n in self._waiting if BEST_CHECKPOINT not in (n, name)]:
            self.logger.warning(f'{self.folder / older} is given up: {name} takes its place')
            self._forget(older)
        self._newest = name
        self._waiting |= dict.fromkeys(names, copy_state(state))
        self._begin()

    def poll(self) -> None:
        """Report a write that has ended, and begin the next try where one is due; never waits."""
        if self._writing is not None and self._writing.done():
            self.flush()
        if self._writing is None and self._waiting and time.monotonic() >= self._retry_at:
            self._begin()

    def flush(self) -> None:
        """Wait for the write under way."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            for outcome in writing.result():
                self._report(outcome)

    def close(self) -> None:
        """Wait until all is written.

        Raises:
            ValueError: naming what could not be written, the last try included.
        """
        self.flush()
        if self._waiting:
            self._begin()
            self.flush()
        if self._errors:
            lines = [
                f'{self.folder / name}: the checkpoint cannot be written ({error})'
                for name, error in self._errors.items()
            ]
            raise ValueError('; '.join(lines))

    def _begin(self) -> None:
        """Write what waits; only this thread changes it, and not before the write has ended."""
        pool = ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
        self._writing = pool.submit(self._write_waiting)
        pool.shutdown(wait=False)  # the thread ends with the write; the process waits for it

    def _write_waiting(self) -> list[Outcome]:
        return [self._write(name, state) for name, state in self._waiting.items()]

    def _write(self, name: str, state: dict) -> Outcome:
        try:
            write_checkpoint(self.folder / name, state)
        except (OSError, RuntimeError, MemoryError) as error:
            # The text alone: its traceback holds the copy.
            return Outcome(name, str(error) or type(error).__name__)
        if name == BEST_CHECKPOINT:
            return Outcome(name)
        try:
            removed = prune(self.folder, self.keep, newest=name)
        except OSError as error:
            return Outcome(name, prune_error=str(error))
        return Outcome(name, removed=tuple(path.name for path in removed))

    def _report(self, outcome: Outcome) -> None:
        path = self.folder / outcome.name
        if not outcome.error:
            self._forget(outcome.name)
            self.logger.info(f'saved {path}')
            if outcome.removed:
                self.logger.info(f'removed {", ".join(outcome.removed)}: SAVE_KEEP is {self.keep}')
            if outcome.prune_error:
                self.logger.warning(f'old checkpoints cannot be removed ({outcome.prune_error})')
            return
        again = outcome.name in self._errors
        self._errors[outcome.name] = outcome.error
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self.logger.log(
            logging.DEBUG if again else logging.WARNING,
            f'{path}: the checkpoint cannot be written ({outcome.error}); {_still_there(path)}; '
            f'it is kept in memory and tried again every {RETRY_SECONDS:.0f} s, before the next '
            'one and at the end',
        )

    def _forget(self, name: str) -> None:
        self._waiting.pop(name, None)
        self._errors.pop(name, None)


def copy_state(state: Any) -> Any:
    """A copy in CPU memory that training cannot change, with the same tensors sharing memory.

    Each storage is copied once, so that the file is as large as that of the original.
    """
    storages: dict[tuple, torch.UntypedStorage] = {}
    copied = _copy(state, storages)
    if any(device.type == 'cuda' for device, *_ in storages):
        torch.cuda.synchronize()
    return copied


def _copy(value: Any, storages: dict[tuple, torch.UntypedStorage]) -> Any:
    if isinstance(value, Tensor):
        return _copy_tensor(value.detach(), storages)
    if isinstance(value, dict):
        copied = copy.copy(value)  # of its class, with its attributes
        for key, item in value.items():
            copied[key] = _copy(item, storages)
        return copied
    if isinstance(value, list | tuple):
        return type(value)(_copy(item, storages) for item in value)
    return value


def _copy_tensor(tensor: Tensor, storages: dict[tuple, torch.UntypedStorage]) -> Tensor:
    source = tensor.untyped_storage()
    key = (source.device, source.data_ptr(), source.nbytes())
    if key not in storages:
        on_gpu = source.device.type == 'cuda'
        target = torch.empty(source.nbytes(), dtype=torch.uint8, pin_memory=on_gpu)
        storages[key] = target.untyped_storage().copy_(source, non_blocking=on_gpu)
    view = torch.empty(0, dtype=tensor.dtype)
    return view.set_(storages[key], tensor.storage_offset(), tensor.size(), tensor.stride())


def _still_there(path: Path) -> str:
    """Which checkpoint there is to go on from, in words."""
    if os.path.exists(path):  # False, no error, where the folder itself is at fault
        return 'the one before of this name is still there'
    newest = None
    with suppress(OSError):
        newest = find_newest_checkpoint(path.parent)
    return 'there is no other yet' if newest is None else f'{newest.name} is still there'

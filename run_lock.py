"""One run in a folder at a time."""

import fcntl
import logging
import os
import re
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from checksums import BUSY, NO_LOCKS

LOCK_FILE = 'run.lock'
WAIT_SECONDS = 2.0  # for a lock that no living run is known to have
POLL_SECONDS = 0.01
HOLDER = re.compile(r'host (\S+), process (\d{1,9}), since .+')


class RunLock:
    """Keeps a second run out of a run's folder, from `acquire` until `release` or the process ends.

    The lock is the file system's on `run.lock`, which is free by itself when its process died; who
    holds it stands in the file.  Where the file system has no locks, that text decides: a run goes
    on unless its process lives on this host.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOCK_FILE
        self.file = None

    def acquire(self) -> 'RunLock':
        """Take the lock.

        Raises:
            ValueError: naming host, process and time, if another run has it.
        """
        file = open(self.path, 'a+', encoding='utf-8', errors='replace')  # noqa: SIM115
        try:
            self._lock(file)
            file.truncate(0)
            now = time.strftime('%Y-%m-%d %H:%M:%S')
            file.write(f'host {socket.gethostname()}, process {os.getpid()}, since {now}\n')
            file.flush()
        except BaseException:
            file.close()
            raise
        self.file = file
        return self

    def release(self) -> None:
        """Give the lock back; the file stays, empty."""
        if self.file is not None:
            self.file.truncate(0)
            self.file.close()
            self.file = None

    def __enter__(self) -> 'RunLock':
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _lock(self, file: TextIO) -> None:
        """Take the lock, after `is_locked` of other processes, which has it for a moment."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._try_lock(file, fcntl.LOCK_EX):
            holder = _read(file)
            if _goes_on(holder) or time.monotonic() > deadline:
                raise self._refusal(holder)
            time.sleep(POLL_SECONDS)

    def _try_lock(self, file: TextIO, kind: int) -> bool:
        """Take a lock of this kind, which the end of the file's use gives back; False: busy."""
        try:
            fcntl.lockf(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:
                return False
            if error.errno not in NO_LOCKS:
                raise
            self._judge(_read(file))
        return True

    def _judge(self, holder: str) -> None:
        """Without locks: refuse if the run that the text names goes on, as far as can be seen."""
        if _goes_on(holder):
            raise self._refusal(holder)
        if holder:
            logging.getLogger(__name__).warning(
                f'{self.path}: the file system has no locks; the run named there ({holder}) is '
                'taken for ended'
            )

    def _refusal(self, holder: str) -> ValueError:
        return ValueError(
            f'{self.path.parent}: another run is going on in this folder '
            f'({holder or "its process is not named"}); end it, or choose another --tag or --output'
        )


def is_locked(folder: str | Path) -> bool:
    """Whether a run of another process goes on in this folder, as far as can be seen."""
    lock = RunLock(folder)
    try:
        file = open(lock.path, encoding='utf-8', errors='replace')  # noqa: SIM115
    except (FileNotFoundError, PermissionError):
        return False
    with file:
        try:
            return not lock._try_lock(file, fcntl.LOCK_SH)  # who only reads cannot take the other
        except ValueError:
            return True


def _read(file: TextIO) -> str:
    file.seek(0)
    return file.read(1000).strip()


def _goes_on(holder: str) -> bool:
    """Whether the text names a process that runs on this host."""
    match = HOLDER.fullmatch(holder)
    return bool(match) and match[1] == socket.gethostname() and _lives(int(match[2]))


def _lives(process: int) -> bool:
    """Whether another process of this number runs on this host."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True

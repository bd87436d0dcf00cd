"""What ended a process of a run: in words, in the run's folder, and told to the other processes."""

import contextlib
import json
import os
import re
import socket
import threading
import time
from logging import Logger
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import distributed
from preemption import EXIT_PREEMPTED

EXIT_UNEXPECTED, EXIT_MISTAKE, EXIT_OTHER_PROCESS = 1, 2, 3
POLL_SECONDS = 2  # between two looks for failures of other processes
GRACE_SECONDS = 15  # for a process to end by itself after the failure of another
LOOK_SECONDS = 5  # after a broken connection, for the other's record to appear

MISTAKES = (ValueError, FloatingPointError, OSError, torch.OutOfMemoryError)
_WORKER = re.compile(r'\n\w[\w.]*: ')  # of the traceback that a loader's worker sends
_CONNECTION = re.compile(
    r'clos|reset|refused|broken pipe|remote|network|unreachable|no route|aborted|recv', re.I
)
_SILENCE = re.compile(r'timed? ?out', re.I)
_LOOK = (
    'look at the last lines of each log_rank<r>.txt, at what torchrun says of each process, '
    "and at the kernel's log (dmesg) of each node"
)
_GONE = (
    'another process of this run ended without a word (killed, out of memory, crashed) or the '
    f'network to it was cut: {_LOOK}'
)
_SILENT = (
    'another process of this run did not answer within TRAIN.RANK_TIMEOUT_MINUTES: it stands '
    f'still, is much slower, or the network to it was cut: {_LOOK}'
)


class Terminated(BaseException):
    """A signal to stop, named in the text, where nothing is trained."""


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code of the process, and the error in one line."""
    text = str(error).strip()
    if text.startswith('Caught '):  # in a loader's worker
        text = _WORKER.split(text)[-1].strip()
    if isinstance(error, Terminated):
        return EXIT_PREEMPTED, f'stopped by {text}, with nothing to save; the same command goes on'
    if isinstance(error, MISTAKES):
        return EXIT_MISTAKE, text
    if isinstance(error, RuntimeError) and 'have a deterministic implementation' in text:
        operation = text.split(' does not ')[0]
        return EXIT_MISTAKE, (
            f'TRAIN.DETERMINISTIC: {operation} has no deterministic version in this torch; '
            'leave the option off, or what needs this operation'
        )
    if isinstance(error, RuntimeError) and text.startswith('DataLoader worker'):
        return EXIT_MISTAKE, (
            f'{text} - if it ran out of memory, lower DATA.NUM_WORKERS or --batch-size'
        )
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and 'gloo' in text):
        if _SILENCE.search(text):
            return EXIT_OTHER_PROCESS, _SILENT
        if _CONNECTION.search(text):
            return EXIT_OTHER_PROCESS, _GONE
    return EXIT_UNEXPECTED, f'unexpected {type(error).__name__}: {text.partition(chr(10))[0]}'


def tell_torchrun(message: str) -> None:
    """Have torchrun show what ended this process in the table that it ends with."""
    if path := os.environ.get('TORCHELASTIC_ERROR_FILE'):
        report = {'message': message, 'extraInfo': {'timestamp': str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({'message': report}), encoding='utf-8')


class Failures:
    """Failures of this run's processes: a file `failure_rank<r>.json` in its folder for each.

    What fails because another process is gone leaves no file, so that the earliest is the cause.
    With one process there are none. All ranks must make it at once.

    Args:
        folder: the run's folder.
        clear: whether to remove the files of a run before.
    """

    def __init__(self, folder: Path, *, clear: bool) -> None:
        self.folder = folder
        if clear and distributed.is_main():
            for path in folder.glob('failure_rank*.json'):
                path.unlink(missing_ok=True)
        # Files of another run in this folder, such as an evaluation, are told apart by its start.
        starts = distributed.gather(f'{socket.gethostname()} {os.getpid()} {time.time_ns()}')
        self.run = starts[0]

    def record(self, message: str) -> None:
        """Tell the other processes of a failure of this one."""
        if distributed.world_size() == 1:
            return
        rank, host = distributed.rank(), socket.gethostname()
        path = self.folder / f'failure_rank{rank}.json'
        record = {'time': time.time(), 'rank': rank, 'host': host, 'message': message}
        with contextlib.suppress(OSError):  # the folder may be what failed; the log has it
            temporary = path.with_suffix('.tmp')
            temporary.write_text(json.dumps(record | {'run': self.run}), encoding='utf-8')
            os.replace(temporary, path)

    def first_elsewhere(self, seconds: float) -> str:
        """The earliest failure of another process in one line; '' if none appears in `seconds`."""
        if distributed.world_size() == 1:
            return ''
        end = time.monotonic() + seconds
        while not (records := self._others()) and time.monotonic() < end:
            time.sleep(0.1)
        if not records:
            return ''
        first = min(records, key=lambda record: record['time'])
        return f'rank {first["rank"]} on host {first["host"]} failed first: {first["message"]}'

    def watch(self, logger: Logger) -> None:
        """End this process when another has failed and it does not notice, in a thread."""

        def look() -> None:
            while not self._others():
                time.sleep(POLL_SECONDS)
            time.sleep(GRACE_SECONDS)
            logger.error(self.first_elsewhere(0))
            os._exit(EXIT_OTHER_PROCESS)

        if distributed.world_size() > 1:
            threading.Thread(target=look, daemon=True).start()

    def _others(self) -> list[dict[str, Any]]:
        own = f'failure_rank{distributed.rank()}.json'
        paths = [path for path in self.folder.glob('failure_rank*.json') if path.name != own]
        records = []
        for path in paths:
            with contextlib.suppress(OSError, ValueError):  # gone, or of something else
                records.append(json.loads(path.read_text(encoding='utf-8')))
        return [record for record in records if record['run'] == self.run]

"""Text log (console on rank 0, one file per rank) and scalars (metrics.jsonl, TensorBoard).

A full disk, or a folder that is gone, ends no run: what cannot be written is kept in memory, the
console says so once, and it is written, in order, as soon as that works again.
"""

import json
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from termcolor import colored

DATE_FORMAT = '%Y-%m-%d %H:%M:%S'


class Appender:
    """Appends to a file, opened anew each time; what cannot be written waits in memory.

    Attributes:
        waiting: the bytes that are not in the file yet.
    """

    def __init__(self, path: str | Path, tell: Callable[[str], object]) -> None:
        """`tell` is called when something cannot be written, the first time."""
        self.path = Path(path)
        self.tell = tell
        self.told = False
        self.waiting = bytearray()

    def check(self) -> None:
        """Make the file where it is not there; an OSError if it cannot be opened."""
        with open(self.path, 'ab'):
            pass

    def append(self, data: bytes) -> None:
        """Write what waits, and then this, or as much of it as goes."""
        self.waiting += data
        try:
            with open(self.path, 'ab', buffering=0) as file:
                while self.waiting:
                    written = file.write(self.waiting)
                    del self.waiting[:written]
        except OSError as error:
            if not self.told:
                self.told = True
                self.tell(
                    f'{self.path} cannot be written ({error.strerror}); what belongs there is '
                    'kept in memory, and written as soon as that works'
                )

    def close(self) -> None:
        """Try once more; `tell` if something is lost."""
        if self.waiting:
            self.append(b'')
        if self.waiting:
            self.tell(f'{self.path}: the last {len(self.waiting)} bytes could not be written')
            self.waiting.clear()


class _FileHandler(logging.Handler):
    """A log file that does not end the run if it cannot be written."""

    def __init__(self, path: Path, tell: Callable[[str], object]) -> None:
        super().__init__()
        self.file = Appender(path, tell)
        self.file.check()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + '\n'
        except Exception:  # a message whose arguments do not fit
            self.handleError(record)
        else:
            self.file.append(line.encode('utf-8', 'backslashreplace'))

    def close(self) -> None:
        self.file.close()
        super().close()


class _Console(logging.StreamHandler):
    """Standard output, which may be a file on the disk that is full, or a pipe that is closed."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def create_logger(output_dir: str | Path, dist_rank: int = 0, name: str = '') -> logging.Logger:
    """Logger that writes `log_rank<r>.txt` (appended) in `output_dir`, and on rank 0 the console.

    Args:
        output_dir: the run's folder; it must exist.
        dist_rank: rank of this process.
        name: name of the logger, shown in each line.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)

    where, what = '(%(filename)s %(lineno)d)', '%(levelname)s %(message)s'
    if dist_rank == 0:
        console = _Console(sys.stdout)
        console.setLevel(logging.INFO)
        head = colored('[%(asctime)s %(name)s]', 'green') + colored(where, 'yellow')
        console.setFormatter(logging.Formatter(f'{head}: {what}', DATE_FORMAT))
        logger.addHandler(console)
    tell = logger.warning if dist_rank == 0 else _print_error
    file = _FileHandler(Path(output_dir) / f'log_rank{dist_rank}.txt', tell)
    file.setFormatter(logging.Formatter(f'[%(asctime)s %(name)s] {where}: {what}', DATE_FORMAT))
    logger.addHandler(file)
    return logger


class ScalarLog:
    """Figures of a run: a JSON object per epoch in `metrics.jsonl`, curves in `tensorboard/`.

    Only the rank that is `enabled` writes. Figures that are not finite are written as null.
    """

    def __init__(
        self,
        folder: str | Path,
        enabled: bool = True,
        *,
        logger: logging.Logger | None = None,
    ) -> None:
        self.path = Path(folder) / 'metrics.jsonl'
        self.enabled = enabled
        if enabled:
            tell = logger.warning if logger else _print_error
            board = Path(folder) / 'tensorboard'
            board.mkdir(exist_ok=True)
            name = f'events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}'
            self.board = Appender(board / name, tell)
            self.board.check()
            self.board.append(_events({}, 0, file_version='brain.Event:2'))
            self.records = Appender(self.path, tell)

    def forget_from(self, epoch: int) -> None:
        """Drop the records of `epoch` and later: a resumed run writes them again.

        Raises:
            ValueError: naming the line that is no record; one that is cut off at the end is of an
                epoch that is run again.
        """
        if self.enabled and self.path.exists():
            lines = self.path.read_bytes().splitlines(keepends=True)
            if lines and not lines[-1].endswith(b'\n'):
                lines.pop()
            records = _parse(lines, self.path)
            kept = [line for line, r in zip(lines, records, strict=True) if r['epoch'] < epoch]
            temporary = self.path.with_name(f'.{self.path.name}.tmp')
            with open(temporary, 'wb') as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)

    def write_epoch(self, record: dict[str, Any]) -> None:
        """Append one epoch's figures: `epoch` and further scalars or dictionaries."""
        if not self.enabled:
            return
        line = json.dumps(json_safe(record), allow_nan=False) + '\n'
        self.records.append(line.encode())
        scalars = {
            f'epoch/{key}': value
            for key, value in record.items()
            if isinstance(value, int | float) and key != 'epoch'
        }
        self.board.append(_events(scalars, record['epoch']))

    def write_step(self, values: dict[str, float], step: int) -> None:
        """Curves within epochs, by the number of micro-batches done (TensorBoard only)."""
        if self.enabled:
            scalars = {f'step/{key}': value for key, value in values.items()}
            self.board.append(_events(scalars, step))

    def close(self) -> None:
        """Say what could not be written, if anything could not."""
        if self.enabled:
            self.records.close()
            self.board.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in order.

    Raises:
        ValueError: naming the line that is no record.
    """
    return list(_parse(Path(path).read_bytes().splitlines(), Path(path)))


def json_safe(value: Any) -> Any:
    """The value with None in place of every float that is not finite."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(lines: list[bytes], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            is_record = isinstance(record, dict) and isinstance(record.get('epoch'), int)
        except (ValueError, RecursionError):
            is_record = False
        if not is_record:
            raise ValueError(f'{path}, line {number}: it is no record of an epoch; remove the line')
        yield record


def _events(scalars: dict[str, float], step: int, **more: str) -> bytes:
    """Scalars in the format of TensorBoard's event files."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    event = Event(wall_time=time.time(), step=step, **more)
    if values:
        event.summary.CopyFrom(Summary(value=values))
    file = BytesIO()
    RecordWriter(file).write(event.SerializeToString())
    return file.getvalue()


def _print_error(message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201

"""Text log (console on rank 0, one file per rank) and metrics (metrics.jsonl, LOGGER).

The console shows time and message in lines of at most 100 columns, or of the width of a narrower
terminal. The file also contains the date and the module. A full disk does not end a run: metrics
are kept in memory and written later.

To add a program that shows the metrics (LOGGER), register one subclass of `Writer` in a file, as
`engine/metric_writers.py` does.
"""

import contextlib
import copy
import json
import logging
import math
import os
import shutil
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from termcolor import colored
from tqdm import tqdm

from config import REGISTRIES, Config, default_config
from system.files import in_one_line, replace_file

DATE_FORMAT, TIME_FORMAT = '%Y-%m-%d %H:%M:%S', '%H:%M:%S'
COLUMNS = 100  # width of the console; a terminal may be narrower
# Passed as `extra` with messages within an epoch. A terminal shows the progress bar instead of
# them. If `extra` also has the key 'short', the console shows this text instead of the message.
DETAIL = {'is_detail': True}
WRITERS = REGISTRIES['LOGGER']


def create_logger(output_dir: str | Path, dist_rank: int = 0, name: str = '') -> logging.Logger:
    """Create a logger that appends to `log_rank<r>.txt`, and on rank 0 also writes to the console.

    The folder must exist. Each line of the file contains the name of the logger.

    Raises:
        OSError: If the log file cannot be opened.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    # Libraries may configure the root logger, which would print each line twice.
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # the disk may be full
            handler.close()

    if dist_rank == 0:
        console = _Console(sys.stdout)
        console.setLevel(logging.INFO)
        console.setFormatter(_ConsoleFormatter())
        logger.addHandler(console)
    path = Path(output_dir) / f'log_rank{dist_rank}.txt'
    file = _LogFile(path, encoding='utf-8', errors='backslashreplace')
    head = '[%(asctime)s %(name)s] (%(filename)s %(lineno)d)'
    file.setFormatter(logging.Formatter(f'{head}: %(levelname)s %(message)s', DATE_FORMAT))
    logger.addHandler(file)
    return logger


class Writer(ABC):
    """Shows the metrics of a run in another program. Its first error ends the writer, not the run.

    Args:
        folder: Run folder.
        config: Run configuration.
        logger: For messages to the user.
    """

    @abstractmethod
    def __init__(self, folder: Path, config: Config, logger: logging.Logger) -> None: ...

    @abstractmethod
    def forget_from(self, epoch: int, step: int) -> None:
        """Drop the values of this epoch and batch and of later ones, which a run writes again.

        It is called before training begins, for a new run with epoch -1 and batch 0.
        """

    @abstractmethod
    def write_scalars(self, scalars: dict[str, float], step: int) -> None:
        """Write values at an epoch (names with 'epoch/') or batch (names with 'step/')."""

    @abstractmethod
    def write_image(self, tag: str, path: Path, step: int) -> None:
        """Copy an image file."""

    @abstractmethod
    def write_file(self, path: Path) -> None:
        """Keep a result, such as the report, with the run, if the program can."""

    @abstractmethod
    def close(self, code: int) -> None:
        """End with the exit code of the run, which is 0 if it has finished."""


class ScalarLog:
    """Writes the metrics of a run: one JSON object per epoch to `metrics.jsonl`, and to LOGGER.

    Non-finite values are written as null. Failed writes are logged as warnings. Only rank 0 is
    `enabled`.

    Raises:
        ValueError: If LOGGER needs a package that is missing.
    """

    def __init__(
        self,
        folder: str | Path,
        enabled: bool = True,
        *,
        config: Config | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self.path = Path(folder) / 'metrics.jsonl'
        self.enabled = enabled
        self.logger = logger or logging.getLogger(__name__)
        self._waiting = b''  # records that are not written yet
        self._has_warned = False
        self._writers: dict[str, Writer] = {}
        config = config or default_config()
        for name in config.LOGGER if enabled else ():
            try:
                self._writers[name] = WRITERS[name](self.path.parent, config, self.logger)
            except ModuleNotFoundError as error:
                raise ValueError(
                    f'LOGGER {name} needs the package {error.name}: pip install {error.name}'
                ) from error
            except Exception as error:
                self._warn(name, error)

    def forget_from(self, epoch: int, step: int) -> None:
        """Remove what a resumed run writes again: values from an epoch on and from a batch on.

        An incomplete last line, which a killed run can leave, is also removed. `step` counts
        batches over the whole run, as in `write_step`.
        """
        self._write(lambda writer: writer.forget_from(epoch, step))
        if not self.enabled or not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        complete = [line for line in lines if line.endswith(b'\n')]
        records = zip(complete, _parse(complete, self.path), strict=True)
        kept = [line for line, record in records if record['epoch'] < epoch]
        replace_file(self.path, b''.join(kept))

    def write_epoch(self, record: dict[str, Any]) -> None:
        """Append the metrics of one epoch: `epoch`, scalars, and dictionaries of scalars."""
        if not self.enabled:
            return
        self._waiting += json.dumps(json_safe(record), allow_nan=False).encode() + b'\n'
        self._write_waiting()
        scalars = {key: value for key, value in record.items() if key != 'epoch'}
        for key, value in record.items():  # such as the AUROC by label
            if isinstance(value, dict):
                scalars |= {f'{key}/{name}': item for name, item in value.items()}
        numbers = {f'epoch/{k}': v for k, v in scalars.items() if isinstance(v, int | float)}
        self._write(lambda writer: writer.write_scalars(numbers, record['epoch']))

    def write_step(self, values: dict[str, float], step: int) -> None:
        """Write values within an epoch to LOGGER. `step` counts batches over the whole run."""
        scalars = {f'step/{key}': value for key, value in values.items()}
        self._write(lambda writer: writer.write_scalars(scalars, step))

    def write_image(self, tag: str, path: Path, step: int) -> None:
        """Copy an image file to LOGGER."""
        self._write(lambda writer: writer.write_image(tag, path, step))

    def write_file(self, path: Path) -> None:
        """Keep a result, such as the report, with the run in LOGGER."""
        self._write(lambda writer: writer.write_file(path))

    def close(self, code: int = 0) -> None:
        """Write the remaining records, and warn if that fails. `code` is the run's exit code."""
        self._write_waiting()
        if self._waiting:
            self.logger.warning(f'{self.path}: the last records cannot be written')
        self._write(lambda writer: writer.close(code))
        self._writers = {}

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        try:
            with open(self.path, 'ab', buffering=0) as file:
                while self._waiting:
                    self._waiting = self._waiting[file.write(self._waiting) :]
                # A power failure could otherwise spare a checkpoint and lose its record.
                os.fsync(file.fileno())
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                self.logger.warning(f'{self.path} cannot be written ({error.strerror})')

    def _write(self, write: Callable[[Writer], object]) -> None:
        """Write with each writer until its first error, such as a full disk."""
        for name, writer in list(self._writers.items()):
            try:
                write(writer)
            except Exception as error:
                del self._writers[name]
                self._warn(name, error)

    def _warn(self, name: str, error: Exception) -> None:
        self.logger.warning(
            f'LOGGER {name} has stopped ({in_one_line(error)}); metrics.jsonl has all metrics'
        )


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of a `metrics.jsonl` in order.

    Raises:
        ValueError: If a line is not a record. The message names the line.
    """
    return list(_parse(Path(path).read_bytes().splitlines(), path))


def wrap(line: str, indent: str) -> str:
    """Wrap a line at COLUMNS, or at the width of a narrower terminal, and indent the other lines.

    Words and paths are not broken.
    """
    if len(line.split()) == 1:
        return line
    width = min(COLUMNS, shutil.get_terminal_size((COLUMNS, 1)).columns)
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def json_safe(value: Any) -> Any:
    """Replace every non-finite float by None."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(lines: Iterable[bytes], path: str | Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record['epoch'] + 0
        except (ValueError, TypeError, KeyError):
            raise ValueError(f'{path}, line {number} is not the record of an epoch') from None
        yield record


class _Console(logging.StreamHandler):
    """Writes to standard output: a terminal, a file on a disk that may be full, or a pipe."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_hidden = hasattr(record, 'is_detail') and self.stream.isatty()
        return not is_hidden and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(self.stream):  # keeps the progress bar intact
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _ConsoleFormatter(logging.Formatter):
    """Formats time, level (from warnings on) and message in lines of at most COLUMNS.

    An error stays on one line, because scripts search for it.
    """

    def format(self, record: logging.LogRecord) -> str:
        shown = copy.copy(record)
        shown.msg, shown.args = getattr(record, 'short', record.getMessage()), None
        time = self.formatTime(record, TIME_FORMAT)
        level = f'{record.levelname} ' if record.levelno > logging.INFO else ''
        lines = f'{time} {level}{super().format(shown)}'.split('\n')
        if record.levelno < logging.ERROR:
            indent = ' ' * (len(time) + 1)
            lines = [wrap(line, indent) for line in lines]
        lines[0] = colored(time, 'green') + lines[0].removeprefix(time)
        return '\n'.join(lines)


class _LogFile(logging.FileHandler):
    """Writes the log file. On a full disk it warns once, and Python writes its buffer later."""

    has_warned = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.has_warned:
            self.has_warned = True
            text = f'{self.baseFilename} cannot be written ({error.strerror})'
            print(text, file=sys.stderr)  # noqa: T201

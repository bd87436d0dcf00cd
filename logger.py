"""The text log (console on rank 0, one file per rank) and the metrics (metrics.jsonl, TensorBoard).

The console shows the time and the message in lines of 100 columns; the file has date and module.
A full disk does not end a run: metrics that cannot be written are kept in memory and written later.
"""

import contextlib
import copy
import json
import logging
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from termcolor import colored
from tqdm import tqdm

from engine.files import replace_file

DATE_FORMAT, TIME_FORMAT = '%Y-%m-%d %H:%M:%S', '%H:%M:%S'
COLUMNS = 100  # of a line on the console
# `extra` of a line about a part of an epoch: in a terminal the progress bar takes its place. With
# 'short' another text, the console shows that text instead of the message.
DETAIL = {'is_detail': True}


def create_logger(output_dir: str | Path, dist_rank: int = 0, name: str = '') -> logging.Logger:
    """Create a logger that appends to `log_rank<r>.txt`, and on rank 0 also writes to the console.

    The folder must exist. The name is shown in each line.

    Raises:
        OSError: If the log file cannot be opened.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # of a full disk
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


class ScalarLog:
    """Metrics of a run: one JSON object per epoch in `metrics.jsonl`, curves in `tensorboard/`.

    Values that are not finite are written as null. Only rank 0 is `enabled`, and the logger
    receives a warning if something cannot be written.

    Raises:
        OSError: If the files cannot be created.
    """

    def __init__(
        self, folder: str | Path, enabled: bool = True, *, logger: logging.Logger | None = None
    ) -> None:
        self.path = Path(folder) / 'metrics.jsonl'
        self.enabled = enabled
        self.logger = logger or logging.getLogger(__name__)
        self._waiting = b''  # records that are not in the file yet
        self._has_warned = False
        self._board = None
        if enabled:
            # Imported here because it takes seconds, and only rank 0 of a run needs it.
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.path.parent / 'tensorboard'))

    def forget_from(self, epoch: int) -> None:
        """Drop the records of `epoch` and later ones, which a resumed run writes again.

        An incomplete last line, left by a run that was killed, is dropped too.
        """
        if not self.enabled or not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        complete = [line for line in lines if line.endswith(b'\n')]
        records = zip(complete, _parse(complete, self.path), strict=True)
        kept = [line for line, record in records if record['epoch'] < epoch]
        replace_file(self.path, b''.join(kept))

    def write_epoch(self, record: dict[str, Any]) -> None:
        """Append the metrics of one epoch: `epoch` and further scalars or dictionaries."""
        if not self.enabled:
            return
        self._waiting += json.dumps(json_safe(record), allow_nan=False).encode() + b'\n'
        self._write_waiting()
        scalars = {key: value for key, value in record.items() if key != 'epoch'}
        for key, value in record.items():  # such as the AUROC by label
            if isinstance(value, dict):
                scalars |= {f'{key}/{name}': item for name, item in value.items()}
        numbers = {k: v for k, v in scalars.items() if isinstance(v, int | float)}
        self._write_curves({f'epoch/{key}': v for key, v in numbers.items()}, record['epoch'])

    def write_step(self, values: dict[str, float], step: int) -> None:
        """Write curves within epochs to TensorBoard; `step` counts micro-batches."""
        self._write_curves({f'step/{key}': value for key, value in values.items()}, step)

    def write_image(self, tag: str, path: Path, step: int) -> None:
        """Copy an image file to TensorBoard."""
        self._write_board(
            lambda board: board.add_image(
                tag, np.asarray(Image.open(path).convert('RGB')), step, dataformats='HWC'
            )
        )

    def close(self) -> None:
        """Write what is still waiting, and warn if that fails."""
        self._write_waiting()
        if self._waiting:
            self.logger.warning(f'{self.path}: the last records could not be written')
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()
            self._board = None

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        try:
            with open(self.path, 'ab', buffering=0) as file:
                while self._waiting:
                    self._waiting = self._waiting[file.write(self._waiting) :]
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                self.logger.warning(f'{self.path} cannot be written ({error.strerror})')

    def _write_curves(self, scalars: dict[str, float], step: int) -> None:
        self._write_board(
            lambda board: [board.add_scalar(tag, value, step) for tag, value in scalars.items()]
        )

    def _write_board(self, write: Callable[[Any], object]) -> None:
        """Write to TensorBoard. After a first error, such as a full disk, nothing is written."""
        if self._board is None:
            return
        try:
            write(self._board)
        except OSError as error:
            self._board = None
            self.logger.warning(f'tensorboard/ is not written any more ({error.strerror})')


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of a `metrics.jsonl` in order; a ValueError names a line that is none."""
    return list(_parse(Path(path).read_bytes().splitlines(), path))


def wrap(line: str, indent: str) -> str:
    """Break a line into lines of at most COLUMNS, but no path or other word; indent the others."""
    if len(line.split()) == 1:
        return line
    return textwrap.fill(
        line, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def json_safe(value: Any) -> Any:
    """Replace every float that is not finite by None."""
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
            raise ValueError(f'{path}, line {number}: this is not a record of an epoch') from None
        yield record


class _Console(logging.StreamHandler):
    """Standard output, which may be a terminal, a file on a full disk or a closed pipe."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_hidden = hasattr(record, 'is_detail') and self.stream.isatty()
        return not is_hidden and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(self.stream):  # a line does not break a progress bar
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _ConsoleFormatter(logging.Formatter):
    """The time and the message in lines of at most COLUMNS, and the level of warnings.

    An error stays in one line, which scripts look for.
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
    """A log file whose disk may be full for a while; what Python still buffers is written later."""

    has_warned = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.has_warned:
            self.has_warned = True
            text = f'{self.baseFilename} cannot be written ({error.strerror})'
            print(text, file=sys.stderr)  # noqa: T201

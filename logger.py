"""Text log (console on rank 0, one file per rank) and scalars (metrics.jsonl, TensorBoard)."""

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

from termcolor import colored

DATE_FORMAT = '%Y-%m-%d %H:%M:%S'


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
        console = logging.StreamHandler(sys.stdout)
        console.setLevel(logging.INFO)
        head = colored('[%(asctime)s %(name)s]', 'green') + colored(where, 'yellow')
        console.setFormatter(logging.Formatter(f'{head}: {what}', DATE_FORMAT))
        logger.addHandler(console)
    file = logging.FileHandler(Path(output_dir) / f'log_rank{dist_rank}.txt', encoding='utf-8')
    file.setFormatter(logging.Formatter(f'[%(asctime)s %(name)s] {where}: {what}', DATE_FORMAT))
    logger.addHandler(file)
    return logger


class ScalarLog:
    """Figures of a run: a JSON object per epoch in `metrics.jsonl`, curves in `tensorboard/`.

    Only the rank that is `enabled` writes. Figures that are not finite are written as null.
    """

    def __init__(self, folder: str | Path, enabled: bool = True) -> None:
        self.path = Path(folder) / 'metrics.jsonl'
        self.enabled = enabled
        self.board = None
        if enabled:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(Path(folder) / 'tensorboard'))

    def forget_from(self, epoch: int) -> None:
        """Drop the records of `epoch` and later: a resumed run writes them again."""
        if self.enabled and self.path.exists():
            lines = self.path.read_text(encoding='utf-8').splitlines(keepends=True)
            if lines and not lines[-1].endswith('\n'):  # cut off: of an epoch that is run again
                self.path.write_text(''.join(lines[:-1]), encoding='utf-8')
            kept = [r for r in read_metrics(self.path) if r['epoch'] < epoch]
            self.path.write_text(''.join(json.dumps(r) + '\n' for r in kept))

    def write_epoch(self, record: dict[str, Any]) -> None:
        """Append one epoch's figures: `epoch` and further scalars or dictionaries."""
        if not self.enabled:
            return
        with self.path.open('a', encoding='utf-8') as file:
            file.write(json.dumps(json_safe(record), allow_nan=False) + '\n')
        for key, value in record.items():
            if isinstance(value, int | float) and key != 'epoch':
                self.board.add_scalar(f'epoch/{key}', value, record['epoch'])

    def write_step(self, values: dict[str, float], step: int) -> None:
        """Curves within epochs, by the number of micro-batches done (TensorBoard only)."""
        if self.enabled:
            for key, value in values.items():
                self.board.add_scalar(f'step/{key}', value, step)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in order."""
    return [json.loads(line) for line in Path(path).read_text(encoding='utf-8').splitlines()]


def json_safe(value: Any) -> Any:
    """The value with None in place of every float that is not finite."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

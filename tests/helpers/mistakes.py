"""What the tests of users' mistakes share: data to spoil, runs of one epoch, what they left."""

import csv
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from tiny import SWIN, run_main, tiny_config

STAGES = ('simmim', 'finetune')
ERROR = re.compile(r'(?:ERROR|(?:\A|: )error:) ')
RESULTS = re.compile(r'\.pth|\.tmp|predictions_|scores\.json|\.png')


def exit_code(stage: str, argv: list[str]) -> int:
    try:
        return run_main(stage, argv)
    except SystemExit as error:  # the parser's own
        return error.code


def no_space(*_: object, **__: object) -> None:
    """Stands for a function that writes, on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def results_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob('*') if RESULTS.search(path.name)]


def linked(source: Path, target: Path) -> Path:
    """The data once more, images as hard links: replace files, never write into them."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def edit(path: Path, change: Callable[[list[list[str]]], object]) -> None:
    """Change the rows of a CSV; rows[0] is the header, rows[n] is row n + 1 of the file."""
    with path.open(newline='') as file:
        rows = list(csv.reader(file))
    change(rows)
    path.unlink()
    with path.open('w', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows(rows)


def config_of(folder: Path, stage: str, model: dict = SWIN, **data: object) -> Path:
    """All of the data, one epoch."""
    data = {'TRAIN_IMAGES': 0} | ({'HOLDOUT_FRACTION': 0.0} if stage == 'simmim' else {}) | data
    train = {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}
    return tiny_config(folder / 'run.yaml', stage, model, DATA=data, TRAIN=train)

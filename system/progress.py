"""Long work: a progress bar on a terminal, a line a minute elsewhere, and threads."""

import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from system.tool import usable_cpus

LINE_SECONDS = 60  # between two lines in a log file
MOST_THREADS = 8
Item, Result = TypeVar('Item'), TypeVar('Result')


class Progress(tqdm):
    """tqdm's bar on a terminal; a line every LINE_SECONDS where the output is no terminal."""

    def __init__(self, items: Iterable | None = None, name: str = '', **options: Any) -> None:
        if not sys.stderr.isatty():
            options |= {'mininterval': LINE_SECONDS, 'delay': LINE_SECONDS, 'leave': True}
        super().__init__(items, name, **options)

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        """Return tqdm's function that prints a line over the one before it, or a new line."""
        if file.isatty():
            return tqdm.status_printer(file)
        return lambda line: file.write(f'\n{line}')


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], name: str
) -> list[Result]:
    """Return the results of a function that mostly runs in NumPy, which lets threads compute."""
    with ThreadPoolExecutor(min(MOST_THREADS, usable_cpus())) as threads:
        return list(Progress(threads.map(function, items), name, total=len(items), leave=False))

"""Command-line tools: a mistake of the user becomes one line and an exit code."""

import os
import signal
import sys
from argparse import ArgumentTypeError, HelpFormatter, Namespace
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from textwrap import fill

from config import DEFAULTS, Config

ROOT = Path(__file__).resolve().parents[1]
# Exit codes of all programs: docs/faults.md says what they mean.
EXIT_UNEXPECTED, EXIT_MISTAKE, EXIT_OTHER_PROCESS, EXIT_INTERRUPTED = 1, 2, 3, 130
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes the run
EXIT_NOT_KEPT = 76  # stopped by a signal, and the same command begins again
# Slurm sends SIGUSR1 or SIGTERM with --signal. A closed terminal sends SIGHUP, which nohup ignores.
STOP_SIGNALS = [signal.SIGTERM, signal.SIGUSR1]
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    STOP_SIGNALS.append(signal.SIGHUP)


class Paragraphs(HelpFormatter):
    """Wraps the paragraphs of a description, except those that begin with a command or a flag."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return '\n\n'.join(
            part if part.startswith(('python ', '--')) else fill(part, width)
            for part in text.strip().split('\n\n')
        )


def usable_cpus() -> int:
    """Return the number of CPU cores that this process may use in a Slurm job or container."""
    from joblib import cpu_count  # slow to import

    return cpu_count()


def share_of_cpus() -> int:
    """Return this process's share of the usable cores, at least 1."""
    local_processes = int(os.environ.get('LOCAL_WORLD_SIZE', '1'))  # set by torchrun
    return max(1, usable_cpus() // local_processes)


def num_workers(config: Config) -> int:
    """Return the number of loader processes that a training process starts.

    The default is at most its share of the usable cores. Another number was chosen, for example
    above the cores because workers wait for a slow file system.
    """
    wanted = config.DATA.NUM_WORKERS
    return min(wanted, share_of_cpus()) if wanted == DEFAULTS.DATA.NUM_WORKERS else wanted


def command_of(program: str, root: Path = ROOT) -> str:
    """Return what a user calls to start a program, such as 'python scripts/predict.py'.

    An installed wheel has commands instead: simmim-predict (see scripts/console.py).
    """
    if (root / 'pyproject.toml').is_file():
        return f'python {program}'
    return f'simmim-{Path(program).stem.removeprefix("main_").replace("_", "-")}'


def at_least(least: int) -> Callable[[str], int]:
    """Return a type of argparse: whole numbers from `least`, which is 0 or above."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ArgumentTypeError(f'must be a whole number from {least}, got {text!r}')
        return int(text)

    return number


def tool(main: Callable[[Namespace], int | None]) -> Callable[[Namespace], int]:
    """Return the `main` of a script that ends with one line for an error of the user.

    The exit code is that of `main`, 0 without one, 2 after a ValueError or an OSError, and 130
    after Ctrl-C. Other errors are mistakes of the program and keep their traceback.
    """

    @wraps(main)
    def run(args: Namespace) -> int:
        try:
            return main(args) or 0
        except (ValueError, OSError) as error:
            print(f'error: {error}', file=sys.stderr)  # noqa: T201
            return EXIT_MISTAKE
        except KeyboardInterrupt:
            print('interrupted', file=sys.stderr)  # noqa: T201
            return EXIT_INTERRUPTED

    return run

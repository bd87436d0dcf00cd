"""Command-line tools: a mistake of the user becomes one line and an exit code."""

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import wraps

EXIT_MISTAKE, EXIT_INTERRUPTED = 2, 130


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

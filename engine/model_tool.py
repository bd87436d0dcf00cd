"""The `main` of scripts that run a model: errors become one line."""

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import wraps

from engine.launch import EXIT_UNEXPECTED, explain
from system.tool import tool


def model_tool(main: Callable[[Namespace], int]) -> Callable[[Namespace], int]:
    """Return the `main` of a script that runs a model, as `system.tool.tool` does.

    Errors that a worker of a loader reports, and a lack of memory, also become one line.
    """

    @tool
    @wraps(main)
    def run(args: Namespace) -> int:
        try:
            return main(args)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            code, text = explain(error)
            if code == EXIT_UNEXPECTED:
                raise
            print(f'error: {text}', file=sys.stderr)  # noqa: T201
            return code

    return run

"""Scripts that run a model: their device, and errors in one line."""

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import wraps

import torch

from engine.launch import EXIT_UNEXPECTED, explain
from system.device import disable_tf32
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


def named_device(name: str) -> torch.device:
    """Return the device that a flag names, 'cpu', 'cuda' or 'cuda:N', and disable TF32.

    Raises:
        ValueError: If this machine does not have the device.
    """
    disable_tf32()
    gpus = [f'cuda:{i}' for i in range(torch.cuda.device_count())]
    if name not in ('cpu', *gpus, *(['cuda'] if gpus else [])):
        raise ValueError(
            f'--device must be cpu, cuda or cuda:N, got {name!r}; PyTorch finds {len(gpus)} GPUs'
        )
    return torch.device(name)

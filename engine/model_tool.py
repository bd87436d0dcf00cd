"""Scripts that run a model on images: their flags, and errors in one line."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from functools import wraps

import torch

from engine.causes import explain
from system.device import allow_tf32
from system.tool import EXIT_UNEXPECTED, Paragraphs, at_least, tool


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


def model_parser(description: str) -> ArgumentParser:
    """Return a parser with the flags of all scripts that run a model on images."""
    parser = ArgumentParser(description=description, formatter_class=Paragraphs)
    add = parser.add_argument
    number = {'type': at_least(1), 'help': 'images per batch (default: as in the run, at most 128)'}
    add('--batch-size', **number)
    workers = 'processes that load images (default: as in the run)'
    add('--num-workers', type=at_least(0), help=workers)
    add('--skip-bad', action='store_true', help='skip unusable images and list them')
    device = 'cpu, cuda or cuda:N (default: a GPU if there is one)'
    add('--device', type=_device, help=device)
    return parser


def device_named(name: str) -> torch.device:
    """Return the device that a flag names, and disable TF32."""
    allow_tf32(False)
    gpus = [f'cuda:{i}' for i in range(torch.cuda.device_count())]
    if name not in ('cpu', *gpus, *(['cuda'] if gpus else [])):
        raise ValueError(
            f'--device must be cpu, cuda or cuda:N, got {name!r}; PyTorch finds {len(gpus)} GPUs'
        )
    return torch.device(name)


def _device(name: str) -> torch.device:
    try:
        return device_named(name)
    except ValueError as error:  # the parser would replace its text
        raise ArgumentTypeError(str(error).removeprefix('--device ')) from error

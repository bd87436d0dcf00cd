"""The start of a main before PyTorch is imported, and what its processes tell torchrun."""

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path

from config import Config, build_parser, read_config
from system.downloads import check_exists
from system.files import newest_first
from system.tool import EXIT_MISTAKE


def check_command(stage: str) -> None:
    """Answer --help, and end with one line if flags, options or paths are wrong.

    A main calls this before it imports PyTorch, which takes seconds.
    """
    args = build_parser(stage).parse_args()
    try:
        check_paths(read_config(args))
    except (ValueError, OSError) as error:
        report_to_torchrun(str(error), is_cause=True)
        print(f'error: {error}', file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_MISTAKE)


def check_paths(config: Config) -> None:
    """Check that the data exist, and the weights unless a checkpoint of the run replaces them.

    Raises:
        ValueError: If a path does not exist. The message names it.
    """
    weights = config.MODEL.RESUME or config.PRETRAINED
    folder = Path(config.OUTPUT) / config.MODEL.NAME / config.TAG
    needs_weights = not (config.EVAL_MODE or config.THROUGHPUT_MODE)  # --eval chooses others
    if weights and needs_weights and not newest_first(folder):
        check_exists(weights)
    data = config.DATA.DATA_PATH
    if not data:
        raise ValueError('DATA.DATA_PATH is empty: give the folder of the data with --data-path')
    if not os.path.exists(data):
        raise ValueError(f'DATA.DATA_PATH: {data} does not exist; give the folder with --data-path')


def report_to_torchrun(message: str, *, is_cause: bool) -> None:
    """Write message and time to torchrun's error file, because torchrun shows the first failure.

    `is_cause` is whether this process failed on its own, and not because another one did.
    """
    if path := os.environ.get('TORCHELASTIC_ERROR_FILE'):
        process = f'rank {os.environ.get("RANK")} on host {socket.gethostname()}'
        extra = {
            'timestamp': str(int(time.time())),
            'cause': f'{process} failed first: {message}' if is_cause else '',
        }
        report = {'message': {'message': message, 'extraInfo': extra}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps(report), encoding='utf-8')


def cause_from_torchrun() -> str:
    """Return why another process of this node failed, from torchrun's error files; '' if none."""
    path = os.environ.get('TORCHELASTIC_ERROR_FILE')
    for file in Path(path).parents[1].glob(f'*/{Path(path).name}') if path else ():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if cause := json.loads(file.read_text(encoding='utf-8'))['message']['extraInfo'][
                'cause'
            ]:
                return cause
    return ''

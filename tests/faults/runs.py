"""Real training processes, started and watched: in groups with and without torchrun."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tiny import DEADLINE, ROOT, arguments, run_folder, tiny_config

MAIN = Path(__file__).with_name('faulty_main.py')
ENVIRONMENT = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}


def fault(rank: int, step: int, do: str, **more: str) -> dict:
    """What `rank` does before its batch `step` (counted from 0, over epochs)."""
    return {'rank': rank, 'step': step, 'do': do, **more}


def tiny_arguments(folder: Path, data: Path, **train: object) -> list[str]:
    """Flags of a tiny pre-training whose output is `folder`/out."""
    train = {'SAVE_EVERY_STEPS': 1} | train
    sections = {'EVAL': {'HOLDOUT_IMAGES': 2}, 'SAVE_KEEP': 3, 'PRINT_FREQ': 1}
    cfg = tiny_config(folder / 'run.yaml', 'simmim', TRAIN=train, **sections)
    return arguments(cfg, data, folder / 'out')


class Started:
    """A process with its output in a file."""

    def __init__(self, command: list[str], output: Path, **environment: str) -> None:
        self.output = output
        with output.open('w') as file:
            self.process = subprocess.Popen(
                [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
                env=ENVIRONMENT | environment,
                start_new_session=True,  # a signal to its group is not for the tests
            )  # fmt: skip

    def wait(self) -> int:
        return self.process.wait(DEADLINE)

    @property
    def text(self) -> str:
        return self.output.read_text()


@contextmanager
def started(*commands: Started) -> Iterator[None]:
    """End the processes at the latest with the test."""
    try:
        yield
    finally:
        for command in commands:
            with suppress(ProcessLookupError):
                os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait()


def ranks(folder: Path, argv: list[str], *faults: dict) -> list[Started]:
    """The two processes of a group, with nobody above them that would end them."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        address = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(probe.getsockname()[1])}
    environments = ({'RANK': r, 'LOCAL_RANK': r, 'WORLD_SIZE': '2'} | address for r in '01')
    command = [str(MAIN), json.dumps(faults), *argv]
    return [Started(command, folder / f'console_{e["RANK"]}.txt', **e) for e in environments]


def torchrun(folder: Path, argv: list[str], *faults: dict, restarts: int) -> Started:
    """The same two processes started by torchrun, which restarts them if one fails."""
    flags = ['--standalone', '--nproc_per_node', '2', '--max-restarts', str(restarts)]
    command = ['-m', 'torch.distributed.run', *flags, str(MAIN), json.dumps(faults), *argv]
    return Started(command, folder / 'console.txt')


def log_lines(folder: Path, rank: int = 0) -> list[str]:
    """Lines of a rank's log, without time, logger and place."""
    path = run_folder(folder / 'out', 'simmim') / f'log_rank{rank}.txt'
    lines = path.read_text().splitlines() if path.exists() else []
    return [re.sub(r'^\[[^\]]*\] \([^)]*\): ', '', line) for line in lines]

"""Real training processes, started and watched: in groups with and without torchrun."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from tiny import ROOT, arguments, run_folder, tiny_config

MAIN = Path(__file__).with_name('faulty_main.py')
DEADLINE = 120  # seconds; a step of the tests takes much less
ENVIRONMENT = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}


def fault(rank: int, step: int, do: str, **more: str) -> dict:
    """What `rank` does before its micro-batch `step` (counted from 0, over epochs)."""
    return {'rank': rank, 'step': step, 'do': do, **more}


def tiny_arguments(
    folder: Path, data: Path, *more: str, train: dict | None = None, **sections: dict
) -> list[str]:
    """Flags of a tiny pre-training whose output is `folder`/out."""
    cfg = tiny_config(folder / 'run.yaml', 'simmim', TRAIN=train or {}, **sections)
    return arguments(cfg, data, folder / 'out', *more)


class Started:
    """A process with its output in a file."""

    def __init__(self, command: list[str], output: Path, **environment: str) -> None:
        self.output = output
        self.mark = uuid.uuid4().hex  # all that descends from the process has it, too
        with output.open('w') as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, text=True,
                env=ENVIRONMENT | environment | {'STARTED_BY_TEST': self.mark},
                start_new_session=True,  # a signal to its group is not for the tests
            )  # fmt: skip

    def wait(self, seconds: float = DEADLINE) -> int:
        return self.process.wait(seconds)

    def kill(self) -> None:
        """End it with all that it started: torchrun's workers are in sessions of their own."""
        self.process.kill()
        self.process.wait()
        for path in Path('/proc').glob('[0-9]*/environ'):
            with suppress(OSError):  # another user's, or ended
                if self.mark.encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)

    @property
    def text(self) -> str:
        return self.output.read_text()


@contextmanager
def started(commands: list[Started]) -> Iterator[list[Started]]:
    """End at the latest with the test, with all that they started."""
    try:
        yield commands
    finally:
        for command in commands:
            command.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def command_of(argv: list[str], *faults: dict, **constants: float) -> list[str]:
    settings = json.dumps({'faults': faults, 'constants': constants})
    return [str(MAIN), settings, *argv]


def ranks(
    folder: Path, argv: list[str], *faults: dict, world_size: int = 2, **constants: float
) -> list[Started]:
    """The processes of a group, with nobody above them that would end them."""
    port = str(free_port())
    return [
        Started(
            [sys.executable, *command_of(argv, *faults, **constants)],
            folder / f'console_{rank}.txt',
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size),
            MASTER_ADDR='127.0.0.1', MASTER_PORT=port,
        )
        for rank in range(world_size)
    ]  # fmt: skip


def torchrun(
    folder: Path, argv: list[str], *faults: dict, flags: tuple[str, ...] = ('--standalone',)
) -> Started:
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', *flags]
    return Started([*command, *command_of(argv, *faults)], folder / 'console.txt')


def log_lines(folder: Path, rank: int = 0) -> list[str]:
    """Lines of a rank's log, without time, logger and place."""
    path = run_folder(folder / 'out', 'simmim') / f'log_rank{rank}.txt'
    lines = path.read_text().splitlines() if path.exists() else []
    return [re.sub(r'^\[[^\]]*\] \([^)]*\): ', '', line) for line in lines]


def wait_until(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f'{what}: not within {seconds} s'
        time.sleep(0.05)


def assert_same_weights(got: dict, want: dict) -> None:
    """Compare the models of two checkpoints bit by bit."""
    assert list(got['model']) == list(want['model'])
    assert all(torch.equal(got['model'][key], value) for key, value in want['model'].items())


@contextmanager
def two_nodes(name: str) -> Iterator[Callable[[], None]]:
    """Two network namespaces `<name>0`, `<name>1` and a cable between them; yields what cuts it."""
    run = [f'ip netns add {name}0', f'ip netns add {name}1']
    run += [f'ip link add {name}0 netns {name}0 type veth peer name {name}1 netns {name}1']
    for i in (0, 1):
        run += [f'ip -n {name}{i} addr add 10.77.0.{i + 1}/24 dev {name}{i}']
        run += [f'ip -n {name}{i} link set {device} up' for device in ('lo', f'{name}{i}')]
    try:
        try:
            for line in run:
                subprocess.run(line.split(), check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            pytest.skip(f'no network namespaces here: {error}')
        except subprocess.CalledProcessError as error:
            reason = f'{" ".join(error.cmd)}: {error.stderr.strip()}'
            if 'not permitted' in reason or 'denied' in reason:
                pytest.skip(f'no right to network namespaces here: {reason}')
            pytest.fail(f'no network namespaces: {reason}', pytrace=False)
        yield lambda: subprocess.run(f'ip -n {name}1 link set {name}1 down'.split(), check=True)
    finally:
        for i in (0, 1):
            subprocess.run(f'ip netns del {name}{i}'.split(), check=False, capture_output=True)

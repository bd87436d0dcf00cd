"""A run that is killed, stopped, or whose disk is full, ends with the weights of another one."""

import json
import os
import random
import signal
import subprocess

import pytest
from runs import MAIN, Started, fault, log_lines, started, tiny_arguments
from same_runs import assert_same_weights, untimed_curves
from tiny import SCRIPTS, run_folder, wait_until

from logger import read_metrics
from system.tool import STOP_SIGNALS
from utils import newest_good, read_checkpoint

pytestmark = pytest.mark.slow
EPOCHS = 8
LAST = f'ckpt_epoch_{EPOCHS - 1}.pth'
SIGNALS = (signal.SIGKILL, *STOP_SIGNALS, signal.SIGINT)


def start(folder, data, console, workers=0):
    argv = tiny_arguments(folder, data, EPOCHS=EPOCHS)
    return Started([SCRIPTS['simmim'], *argv, '--opts', 'DATA.NUM_WORKERS', str(workers)], console)


@pytest.fixture(scope='module')
def whole(phantom, tmp_path_factory):
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp('whole')
    run = start(folder, phantom, folder / 'console.txt')
    with started(run):
        assert run.wait() == 0, run.text
    return run_folder(folder / 'out', 'simmim')


def steps(folder):
    return sum('Train: [' in line for line in log_lines(folder))


def test_a_run_killed_again_and_again_ends_like_an_undisturbed_one(phantom, whole, tmp_path):
    draw = random.Random(0)
    for kind in (*SIGNALS, None):
        target = steps(tmp_path) + draw.randrange(4, 14)
        run = start(tmp_path, phantom, tmp_path / f'console_{kind}.txt', workers=2)
        with started(run):
            if kind is not None:
                wait_until(lambda target=target: steps(tmp_path) >= target, f'{target} steps')
                os.killpg(run.process.pid, kind)  # like a cluster and a terminal do
            expected = {None: 0, signal.SIGKILL: -9}.get(kind, 75)
            assert run.wait() == expected, run.text
            wait_until(lambda run=run: not is_alive(run), 'the end of its workers')
    folder = run_folder(tmp_path / 'out', 'simmim')
    assert_same_weights(read_checkpoint(folder / LAST), read_checkpoint(whole / LAST))
    assert untimed_curves(folder) == untimed_curves(whole)


def is_alive(run):
    """Whether a process of the run or one of its workers has not ended."""
    try:
        os.killpg(run.process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_second_ctrl_c_ends_a_run_and_its_workers_at_once(phantom, tmp_path):
    argv = [*tiny_arguments(tmp_path, phantom), '--opts', 'DATA.NUM_WORKERS', '2']
    # A step has two batches. The run waits within its second step, so it cannot stop by itself.
    command = [str(MAIN), json.dumps([fault(0, 3, 'wait')]), *argv]
    run = Started(command, tmp_path / 'console.txt')
    with started(run):
        wait_until(lambda: steps(tmp_path) >= 3, 'the first batch of the second step')
        os.killpg(run.process.pid, signal.SIGINT)
        wait_until(lambda: 'SIGINT: stopping after this step' in run.text, 'an answer')
        assert run.process.poll() is None
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.wait() == -signal.SIGINT, run.text  # a shell shows 130
        wait_until(lambda: not is_alive(run), 'the end of its workers')
        assert run.text.count('stopping after this step') == 1


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 MB, in memory."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'nothing can be mounted here: {error}')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def test_a_run_waits_for_space_on_a_full_disk_and_loses_nothing(phantom, whole, disk, tmp_path):
    folder, ballast = run_folder(disk / 'out', 'simmim'), disk / 'ballast'
    run = start(disk, phantom, tmp_path / 'console.txt')
    with started(run):
        wait_until(lambda: steps(disk) > 8, 'the second epoch')
        with pytest.raises(OSError), ballast.open('wb', buffering=0) as file:
            while True:
                file.write(bytes(4096))
        wait_until(lambda: 'ckpt_epoch_' in run.text and 'No space left' in run.text, 'a warning')
        assert run.process.poll() is None, run.text
        assert newest_good(folder, None) is not None
        ballast.unlink()
        assert run.wait() == 0, run.text
    assert_same_weights(read_checkpoint(folder / LAST), read_checkpoint(whole / LAST))
    assert [r['epoch'] for r in read_metrics(folder / 'metrics.jsonl')] == list(range(-1, EPOCHS))
    assert not list(folder.glob('*.tmp'))

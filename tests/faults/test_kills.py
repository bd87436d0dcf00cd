"""A training process that is killed or stopped at random moments gives the same weights."""

import os
import random
import signal
import sys

import pytest
from runs import Started, assert_same_weights, log_lines, started, tiny_arguments, wait_until
from tiny import SCRIPTS, run_folder

from utils import read_checkpoint

pytestmark = pytest.mark.slow
EPOCHS = 12
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def steps(folder):
    return sum('Train: [' in line for line in log_lines(folder))


def run(argv, folder, number=0):
    """The process group of a run with a worker of the loader."""
    command = [sys.executable, SCRIPTS['simmim'], *argv]
    return Started(command, folder / f'console_{number}.txt')


def test_a_run_that_is_killed_again_and_again_ends_like_an_undisturbed_one(phantom, tmp_path):
    folders = [tmp_path / name for name in ('whole', 'killed')]
    options = {
        'train': {'EPOCHS': EPOCHS, 'SAVE_EVERY_STEPS': 1, 'WARMUP_EPOCHS': 1},
        'DATA': {'NUM_WORKERS': 1},
        'EVAL': {'HOLDOUT_IMAGES': 1},
        'SAVE_KEEP': 3,
        'PRINT_FREQ': 1,
    }
    whole, killed = (tiny_arguments(folder, phantom, **options) for folder in folders)
    with started([run(whole, folders[0])]) as (process,):
        assert process.wait() == 0, process.text
    draw, last = random.Random(0), f'ckpt_epoch_{EPOCHS - 1}.pth'
    for number, kind in enumerate(SIGNALS):
        target = steps(folders[1]) + draw.randrange(4, 14)
        with started([run(killed, folders[1], number)]) as (process,):
            wait_until(
                lambda target=target: (
                    steps(folders[1]) >= target or process.process.poll() is not None
                ),
                f'{target} steps',
            )
            os.killpg(process.process.pid, kind)  # like a cluster and a terminal do
            assert process.wait() == (-9 if kind == signal.SIGKILL else 75), process.text
    with started([run(killed, folders[1], len(SIGNALS))]) as (process,):
        assert process.wait() == 0, process.text
    want, got = (read_checkpoint(run_folder(folder / 'out', 'simmim') / last) for folder in folders)
    assert_same_weights(got, want)

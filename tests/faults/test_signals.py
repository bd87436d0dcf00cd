"""Signals as a cluster and a terminal send them: to every process of the run."""

import os
import signal
import sys

import pytest
from runs import Started, log_lines, started, tiny_arguments, wait_until
from tiny import SCRIPTS

SLOW = [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGUSR1, signal.SIGINT)]


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, *SLOW])
def test_loaders_workers_stay_until_the_step_is_done(number, phantom, tmp_path):
    argv = tiny_arguments(
        tmp_path, phantom, train={'EPOCHS': 500}, DATA={'NUM_WORKERS': 2}, PRINT_FREQ=1,
        EVAL={'HOLDOUT_IMAGES': 1},
    )  # fmt: skip
    run = Started([sys.executable, SCRIPTS['simmim'], *argv], tmp_path / 'console.txt')
    with started([run]):
        wait_until(lambda: any('Train: [1/500][3/7]' in x for x in log_lines(tmp_path)), 'epoch 1')
        os.killpg(run.process.pid, number)
        assert run.wait() == 75, run.text
    name = signal.Signals(number).name
    assert f'stopped by {name} and saved in epoch' in log_lines(tmp_path)[-1]

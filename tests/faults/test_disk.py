"""The disk fills up, or the data disappear, in the middle of a run."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
from runs import Started, assert_same_weights, log_lines, started, tiny_arguments, wait_until
from tiny import SCRIPTS, run_folder

from logger import read_metrics
from utils import newest_good, read_checkpoint

pytestmark = pytest.mark.slow
LAST = 'ckpt_epoch_11.pth'


@contextmanager
def small_disk(folder):
    """A disk of 8 MB, in memory."""
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'nothing can be mounted here: {error}')
    try:
        yield folder
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


def arguments_of(folder, data):
    train = {'EPOCHS': 12, 'SAVE_EVERY_STEPS': 1}
    return tiny_arguments(
        folder, data, train=train, SAVE_KEEP=3, PRINT_FREQ=1, EVAL={'HOLDOUT_IMAGES': 1}
    )


def start(argv, tmp_path, name='console.txt'):
    return Started([sys.executable, SCRIPTS['simmim'], *argv], tmp_path / name)


def trains(folder, epoch):
    return lambda: any(f'Train: [{epoch}/' in line for line in log_lines(folder))


@pytest.fixture(scope='module')
def whole(phantom, tmp_path_factory):
    """The last checkpoint of an undisturbed run."""
    folder = tmp_path_factory.mktemp('whole')
    with started([start(arguments_of(folder, phantom), folder)]) as (run,):
        assert run.wait() == 0, run.text
    return read_checkpoint(run_folder(folder / 'out', 'simmim') / LAST)


def test_a_run_waits_for_space_on_a_full_disk_and_loses_nothing(phantom, whole, tmp_path):
    with small_disk(tmp_path / 'disk') as disk:
        folder = run_folder(disk / 'out', 'simmim')
        with started([start(arguments_of(disk, phantom), tmp_path)]) as (run,):
            wait_until(trains(disk, 2), 'epoch 2')
            ballast = disk / 'ballast'
            with ballast.open('wb', buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        continue
                except OSError:
                    pass
            wait_until(lambda: 'No space left' in run.text, 'a warning')
            assert run.process.poll() is None, run.text
            assert newest_good(folder, None) is not None
            ballast.unlink()
            assert run.wait() == 0, run.text
        assert 'Traceback' not in run.text
        assert str(folder / 'ckpt_epoch_') in run.text, 'the message names the file'
        assert_same_weights(read_checkpoint(folder / LAST), whole)
        assert [r['epoch'] for r in read_metrics(folder / 'metrics.jsonl')] == list(range(-1, 12))
        assert not list(folder.glob('*.tmp'))


def test_a_run_whose_data_disappear_ends_with_the_row_and_resumes_later(phantom, whole, tmp_path):
    data, away = tmp_path / phantom.name, tmp_path / 'away'
    shutil.copytree(phantom, data)
    argv = arguments_of(tmp_path, data)
    with started([start(argv, tmp_path)]) as (run,):
        wait_until(trains(tmp_path, 2), 'epoch 2')
        os.rename(data, away)
        assert run.wait() == 2, run.text
    assert 'train.csv, row' in run.text.splitlines()[-1]
    os.rename(away, data)
    with started([start(argv, tmp_path, 'again.txt')]) as (run,):
        assert run.wait() == 0, run.text
    assert_same_weights(read_checkpoint(run_folder(tmp_path / 'out', 'simmim') / LAST), whole)

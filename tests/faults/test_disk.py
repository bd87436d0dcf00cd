"""The disk fills up, turns read-only, or the data go away in the middle of a run."""

import os
import random
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
from runs import Started, log_lines, started, tiny_arguments, wait_until
from test_engine_loop import assert_same_weights
from tiny import SCRIPTS, run_folder

from utils import newest_good, read_checkpoint

LAST = 'ckpt_epoch_39.pth'
TRAIN = {'EPOCHS': 40, 'SAVE_EVERY_STEPS': 1}
MOMENT = random.Random(0)


def try_or_skip(*command):
    try:
        subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'nothing can be mounted here: {error}')


@contextmanager
def mounted(folder, *options):
    folder.mkdir(exist_ok=True)
    try_or_skip('mount', *options, folder)
    try:
        yield folder
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


def arguments_of(folder, data):
    return tiny_arguments(
        folder, data, train=TRAIN, SAVE_KEEP=3, PRINT_FREQ=1, EVAL={'HOLDOUT_IMAGES': 1}
    )


def start(argv, tmp_path, name='console.txt'):
    return Started([sys.executable, SCRIPTS['simmim'], *argv], tmp_path / name)


def trains(folder, epoch):
    return lambda: any(f'Train: [{epoch}/' in line for line in log_lines(folder))


@pytest.fixture(scope='module')
def whole(phantom, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    run = start(arguments_of(folder, phantom), folder)
    assert run.wait(600) == 0, run.text
    return read_checkpoint(run_folder(folder / 'out', 'simmim') / LAST)


@pytest.mark.slow
def test_a_full_disk_is_waited_for_and_nothing_is_lost(phantom, whole, tmp_path):
    with mounted(tmp_path / 'disk', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs') as disk:
        argv = arguments_of(disk, phantom)
        with started([start(argv, tmp_path)]) as (run,):
            epoch = MOMENT.randrange(2, 8)
            wait_until(trains(disk, epoch), f'epoch {epoch}')
            ballast = disk / 'ballast'
            with ballast.open('wb', buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        continue
                except OSError:
                    pass
            folder = run_folder(disk / 'out', 'simmim')
            wait_until(lambda: 'No space left' in run.text, 'a warning')
            assert run.process.poll() is None, run.text
            assert newest_good(folder, None) is not None
            ballast.unlink()
            assert run.wait(600) == 0, run.text
        assert_same_weights(read_checkpoint(folder / LAST), whole)
        epochs = [line for line in (folder / 'metrics.jsonl').read_text().splitlines()]
        assert len(epochs) == 41, 'no line of the figures is lost'
        assert not list(folder.glob('.*.tmp'))


@pytest.mark.slow
def test_a_disk_that_turns_read_only_ends_in_words_and_the_run_goes_on_later(
    phantom, whole, tmp_path
):
    """As the kernel does it to a disk that fails, with files of the run open."""
    image, disk = tmp_path / 'image', tmp_path / 'disk'
    with image.open('wb') as file:
        file.truncate(2**25)
    try_or_skip('mkfs.ext4', '-q', image)
    folder = run_folder(disk / 'out', 'simmim')
    with mounted(disk, '-o', 'loop', image):
        argv = arguments_of(disk, phantom)
        os.sync()  # the config; of what the run wrote, what it has synchronised is left
        with started([start(argv, tmp_path)]) as (run,):
            epoch = MOMENT.randrange(2, 8)
            wait_until(trains(disk, epoch), f'epoch {epoch}')
            try_or_skip('mount', '-o', 'remount,abort', disk)
            assert run.wait(600) == 2, run.text
        assert 'Read-only file system' in run.text
        ends = run.text.splitlines()[-6:]  # the others say what of the log is lost
        assert any(f'{LAST}: the checkpoint cannot be written' in line for line in ends), ends
        assert 'Traceback' not in run.text
        assert newest_good(folder, None) is not None
    subprocess.run(['fsck.ext4', '-y', str(image)], capture_output=True, check=False)
    with (
        mounted(disk, '-o', 'loop', image),
        started([start(argv, tmp_path, 'again.txt')]) as (run,),
    ):
        assert run.wait(600) == 0, run.text
        assert_same_weights(read_checkpoint(folder / LAST), whole)


@pytest.mark.slow
def test_data_that_go_away_end_the_run_in_a_line_and_it_goes_on_when_they_are_back(
    phantom, whole, tmp_path
):
    data, away = tmp_path / phantom.name, tmp_path / 'away'
    shutil.copytree(phantom, data)
    argv = arguments_of(tmp_path, data)
    with started([start(argv, tmp_path)]) as (run,):
        epoch = MOMENT.randrange(2, 8)
        wait_until(trains(tmp_path, epoch), f'epoch {epoch}')
        os.rename(data, away)
        assert run.wait() == 2, run.text
    assert 'there is no image' in run.text.splitlines()[-1]
    assert 'train.csv, row' in run.text.splitlines()[-1]
    folder = run_folder(tmp_path / 'out', 'simmim')
    assert newest_good(folder, None) is not None
    os.rename(away, data)
    with started([start(argv, tmp_path, 'again.txt')]) as (run,):
        assert run.wait(600) == 0, run.text
    assert_same_weights(read_checkpoint(folder / LAST), whole)

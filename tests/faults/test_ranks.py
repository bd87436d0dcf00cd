"""One of two training processes fails: both end, the cause is the last line, nothing is lost."""

import json

import pytest
import torch
from runs import fault, log_lines, ranks, started, tiny_arguments, torchrun, wait_until
from tiny import run_folder

from utils import read_checkpoint

pytestmark = pytest.mark.slow
BROKEN = 'the image of patient 7 is broken'
EVERY_STEP = {'SAVE_EVERY_STEPS': 1}


def folder_of(tmp_path):
    return run_folder(tmp_path / 'out', 'simmim')


def weights(folder):
    return read_checkpoint(folder / 'ckpt_epoch_1.pth')['model']


def assert_same_weights(got, want):
    assert list(got) == list(want)
    assert all(torch.equal(got[key], value) for key, value in want.items())


@pytest.fixture(scope='module')
def undisturbed(phantom, tmp_path_factory):
    """The weights of two ranks without any fault."""
    folder = tmp_path_factory.mktemp('undisturbed')
    with started(ranks(folder, tiny_arguments(folder, phantom, train=EVERY_STEP))) as processes:
        assert [process.wait() for process in processes] == [0, 0], processes[0].text
    return weights(folder_of(folder))


def test_the_other_rank_names_the_first_that_failed(phantom, tmp_path):
    processes = ranks(tmp_path, tiny_arguments(tmp_path, phantom), fault(1, 3, 'fail'))
    with started(processes):
        assert [process.wait() for process in processes] == [3, 2]
    record = json.loads((folder_of(tmp_path) / 'failure_rank1.json').read_text())
    assert record['rank'] == 1 and BROKEN in record['message']
    assert BROKEN in log_lines(tmp_path, 1)[-1]
    last = log_lines(tmp_path, 0)[-1]
    assert 'rank 1' in last and record['host'] in last and record['message'] in last
    assert all('Traceback' not in process.text for process in processes)
    assert not (folder_of(tmp_path) / 'failure_rank0.json').exists(), 'it is not the cause'


def test_a_killed_process_ends_the_other_one(phantom, tmp_path):
    processes = ranks(tmp_path, tiny_arguments(tmp_path, phantom), fault(0, 3, 'kill'))
    with started(processes):
        assert [process.wait() for process in processes] == [-9, 3]
    assert log_lines(tmp_path, 1)[-1].startswith('ERROR another process')


def test_a_process_that_hangs_is_waited_for_as_long_as_the_config_says(phantom, tmp_path):
    argv = tiny_arguments(tmp_path, phantom, train={'RANK_TIMEOUT_MINUTES': 0.2})
    processes = ranks(tmp_path, argv, fault(1, 3, 'hang'))
    with started(processes):
        assert processes[0].wait() == 3
        assert processes[1].process.poll() is None
    assert 'RANK_TIMEOUT_MINUTES' in log_lines(tmp_path, 0)[-1]


def test_torchrun_restarts_a_killed_run_with_the_same_result(undisturbed, phantom, tmp_path):
    kill = fault(1, 3, 'kill', once=str(tmp_path / 'killed'))
    argv = tiny_arguments(tmp_path, phantom, train=EVERY_STEP)
    command = torchrun(tmp_path, argv, kill, flags=('--standalone', '--max-restarts', '2'))
    with started([command]):
        assert command.wait() == 0, command.text
    starts = [line for line in log_lines(tmp_path, 0) if line.startswith('INFO run folder')]
    assert len(starts) == 2
    assert_same_weights(weights(folder_of(tmp_path)), undisturbed)
    assert not list(folder_of(tmp_path).glob('failure_rank*.json'))


def test_a_sigterm_to_one_process_saves_and_stops_both(undisturbed, phantom, tmp_path):
    argv = tiny_arguments(tmp_path, phantom, train=EVERY_STEP)
    processes = ranks(tmp_path, argv, fault(0, 3, 'slow'))
    folder = folder_of(tmp_path)
    with started(processes):
        wait_until((folder / 'ckpt_epoch_0_step_1.pth').exists, 'the first checkpoint')
        processes[1].process.terminate()
        assert [process.wait() for process in processes] == [75, 75], processes[0].text
    processes = ranks(tmp_path, argv)
    with started(processes):
        assert [process.wait() for process in processes] == [0, 0], processes[0].text
    assert_same_weights(weights(folder), undisturbed)

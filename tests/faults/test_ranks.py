"""Of two training processes one fails: all end, the cause is the last line, nothing is lost."""

import json

import pytest
import torch
from runs import (
    fault,
    log_lines,
    ranks,
    started,
    tiny_arguments,
    torchrun,
    wait_until,
)
from tiny import run_folder

from engine.launch import RunLock
from utils import read_checkpoint

BROKEN = 'the picture of patient 7 is broken'
NO_WORD = 'another process of this run ended without a word (killed, out of memory, crashed)'
EVERY_STEP = {'SAVE_EVERY_STEPS': 1}


def folder_of(tmp_path):
    return run_folder(tmp_path / 'out', 'simmim')


def weights(folder, epoch=1):
    return read_checkpoint(folder / f'ckpt_epoch_{epoch}.pth')['model']


def assert_same_weights(got, want):
    assert list(got) == list(want)
    assert all(torch.equal(got[key], value) for key, value in want.items())


@pytest.fixture(scope='module')
def undisturbed(phantom, tmp_path_factory):
    """The weights of two ranks that nothing happened to."""
    folder = tmp_path_factory.mktemp('undisturbed')
    with started(ranks(folder, tiny_arguments(folder, phantom, train=EVERY_STEP))) as processes:
        assert [process.wait() for process in processes] == [0, 0], processes[0].text
    return weights(folder_of(folder))


@pytest.mark.slow
def test_the_others_name_the_first_that_failed(phantom, tmp_path):
    processes = ranks(tmp_path, tiny_arguments(tmp_path, phantom), fault(1, 3, 'fail'))
    with started(processes):
        assert [process.wait() for process in processes] == [3, 2]
    record = json.loads((folder_of(tmp_path) / 'failure_rank1.json').read_text())
    cause = f'rank 1 on host {record["host"]} failed first: {BROKEN}'
    assert (record['rank'], record['message']) == (1, BROKEN)
    assert log_lines(tmp_path, 0)[-1] == f'ERROR {cause}'
    assert log_lines(tmp_path, 1)[-1] == f'ERROR {BROKEN}'
    assert processes[0].text.endswith(f'ERROR {cause}\n')
    assert 'Traceback' not in processes[0].text + processes[1].text
    assert processes[1].text.endswith(f'error: {BROKEN}\n')
    assert not (folder_of(tmp_path) / 'failure_rank0.json').exists(), 'it failed by another'


@pytest.mark.slow
def test_an_unexpected_error_keeps_its_traceback(phantom, tmp_path):
    processes = ranks(tmp_path, tiny_arguments(tmp_path, phantom), fault(0, 2, 'bug'))
    with started(processes):
        assert [process.wait() for process in processes] == [1, 3]
    line = "unexpected KeyError: 'nobody expected this'"
    assert log_lines(tmp_path, 0)[-1] == f'ERROR {line}'
    assert 'Traceback (most recent call last):' in log_lines(tmp_path, 0)
    assert 'Traceback (most recent call last):' in processes[0].text
    assert log_lines(tmp_path, 1)[-1].endswith(f'failed first: {line}')


@pytest.mark.slow
@pytest.mark.parametrize('killed', [0, 1])
def test_a_killed_process_ends_the_other_without_torchrun(killed, phantom, tmp_path):
    processes = ranks(tmp_path, tiny_arguments(tmp_path, phantom), fault(killed, 3, 'kill'))
    with started(processes):
        assert [process.wait() for process in processes] == ([-9, 3] if killed == 0 else [3, -9])
    assert log_lines(tmp_path, 1 - killed)[-1].startswith(f'ERROR {NO_WORD}')


@pytest.mark.slow
def test_a_crash_outside_python_leaves_its_place_in_the_log(phantom, tmp_path):
    processes = ranks(tmp_path, tiny_arguments(tmp_path, phantom), fault(1, 3, 'abort'))
    with started(processes):
        assert [process.wait() for process in processes] == [3, -6]
    lines = log_lines(tmp_path, 1)
    assert 'Fatal Python error: Aborted' in lines
    assert any('in train_one_epoch' in line for line in lines)


@pytest.mark.slow
def test_a_process_that_stands_still_is_waited_for_as_long_as_the_config_says(phantom, tmp_path):
    argv = tiny_arguments(tmp_path, phantom, train={'RANK_TIMEOUT_MINUTES': 0.2})
    processes = ranks(tmp_path, argv, fault(1, 3, 'stand_still'))
    with started(processes):
        assert processes[0].wait() == 3
        assert processes[1].process.poll() is None
    log = log_lines(tmp_path, 0)
    assert any('waited for 0.2 minutes (TRAIN.RANK_TIMEOUT_MINUTES)' in line for line in log)
    assert 'did not answer within TRAIN.RANK_TIMEOUT_MINUTES' in log[-1]


@pytest.mark.slow
def test_a_process_that_notices_nothing_is_ended_when_another_failed(phantom, tmp_path):
    faults = fault(0, 3, 'wait_for_end'), fault(1, 3, 'fail')
    argv = tiny_arguments(tmp_path, phantom)
    processes = ranks(tmp_path, argv, *faults, POLL_SECONDS=0.1, GRACE_SECONDS=1)
    with started(processes):
        assert [process.wait() for process in processes] == [3, 2]
    assert log_lines(tmp_path, 0)[-1].endswith(f'failed first: {BROKEN}')


@pytest.mark.slow
def test_under_torchrun_the_sigterm_after_a_failure_is_no_preemption(phantom, tmp_path):
    command = torchrun(tmp_path, tiny_arguments(tmp_path, phantom), fault(1, 3, 'fail'))
    with started([command]):
        assert command.wait() == 1
    assert log_lines(tmp_path, 0)[-1].endswith(f'failed first: {BROKEN}')
    assert not any('stopped by' in line for line in log_lines(tmp_path, 0))
    table = command.text.partition('Root Cause (first observed failure):')[2]
    assert 'exitcode  : 2 ' in table
    assert f'traceback : {BROKEN}' in table
    assert not list(folder_of(tmp_path).glob('ckpt_epoch_1*')), 'nothing is saved after it'


@pytest.mark.slow
@pytest.mark.parametrize('killed', [0, 1])
def test_torchrun_starts_a_killed_run_again_and_nothing_changes(
    killed, undisturbed, phantom, tmp_path
):
    kill = fault(killed, 3, 'kill', once=str(tmp_path / 'killed'))
    argv = tiny_arguments(tmp_path, phantom, train=EVERY_STEP)
    flags = ('--standalone', '--max-restarts', '2')
    command = torchrun(tmp_path, argv, kill, flags=flags)
    with started([command]):
        assert command.wait() == 0, command.text
    log = log_lines(tmp_path, 0)
    assert sum(line.startswith('INFO run folder') for line in log) == 2
    assert sum(line.startswith('INFO resumed from') for line in log) == 1
    assert_same_weights(weights(folder_of(tmp_path)), undisturbed)
    assert not list(folder_of(tmp_path).glob('failure_rank*.json'))


@pytest.mark.slow
def test_a_slow_process_does_not_end_the_run(undisturbed, phantom, tmp_path):
    argv = tiny_arguments(tmp_path, phantom, train=EVERY_STEP)
    processes = ranks(tmp_path, argv, fault(1, 1, 'slow'), fault(0, 4, 'slow'))
    with started(processes):
        assert [process.wait() for process in processes] == [0, 0]
    assert_same_weights(weights(folder_of(tmp_path)), undisturbed)


@pytest.mark.slow
def test_all_ranks_end_with_the_message_of_a_lock_that_is_taken(phantom, tmp_path):
    folder = folder_of(tmp_path)
    folder.mkdir(parents=True)
    with RunLock(folder):
        processes = ranks(tmp_path, tiny_arguments(tmp_path, phantom))
        with started(processes):
            assert [process.wait() for process in processes] == [2, 2]
    for process in processes:
        assert 'another run is going on in this folder' in process.text.splitlines()[-1]
    assert [path.name for path in folder.iterdir() if path.suffix == '.pth'] == []
    assert not (folder / 'config.yaml').exists()


@pytest.mark.slow
def test_a_sigterm_to_one_process_saves_and_stops_both(undisturbed, phantom, tmp_path):
    argv = tiny_arguments(tmp_path, phantom, train=EVERY_STEP)
    processes = ranks(tmp_path, argv, fault(0, 3, 'slow'))
    folder = folder_of(tmp_path)
    with started(processes):
        wait_until((folder / 'ckpt_epoch_0_step_1.pth').exists, 'the first checkpoint')
        processes[1].process.terminate()
        assert [process.wait() for process in processes] == [75, 75], processes[0].text
    assert 'WARNING stopped by' in log_lines(tmp_path, 0)[-1]
    processes = ranks(tmp_path, argv)
    with started(processes):
        assert [process.wait() for process in processes] == [0, 0], processes[0].text
    assert_same_weights(weights(folder), undisturbed)

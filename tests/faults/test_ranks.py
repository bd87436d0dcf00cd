"""One of two training processes fails: both end, the cause is the last line, nothing is lost."""

import json

import pytest
from runs import fault, log_lines, ranks, started, tiny_arguments, torchrun
from tiny import run_folder, wait_until

pytestmark = pytest.mark.slow
BROKEN = 'the image of patient 7 is broken'


def folder_of(tmp_path):
    return run_folder(tmp_path / 'out', 'simmim')


def test_the_other_rank_names_the_first_that_failed(phantom, tmp_path):
    both = ranks(tmp_path, tiny_arguments(tmp_path, phantom), fault(1, 3, 'fail'))
    with started(*both):
        assert [process.wait() for process in both] == [3, 2]
    record = json.loads((folder_of(tmp_path) / 'failure_rank1.json').read_text())
    assert record['rank'] == 1 and BROKEN in record['message']
    assert BROKEN in log_lines(tmp_path, 1)[-1]
    last = log_lines(tmp_path, 0)[-1]
    assert 'rank 1' in last and record['host'] in last and record['message'] in last
    assert not (folder_of(tmp_path) / 'failure_rank0.json').exists(), 'it is not the cause'


def test_a_process_that_hangs_is_waited_for_as_long_as_the_config_says(phantom, tmp_path):
    argv = tiny_arguments(tmp_path, phantom, RANK_TIMEOUT_MINUTES=0.2)
    both = ranks(tmp_path, argv, fault(1, 3, 'hang'))
    with started(*both):
        assert both[0].wait() == 3
        assert both[1].process.poll() is None
    assert 'RANK_TIMEOUT_MINUTES' in log_lines(tmp_path, 0)[-1]


@pytest.mark.parametrize('silent', [0, 1])
def test_a_process_that_stops_silently_ends_the_other_soon(silent, phantom, tmp_path):
    both = ranks(tmp_path, tiny_arguments(tmp_path, phantom), fault(silent, 3, 'stop'))
    with started(*both):
        assert both[1 - silent].wait() == 3
        assert both[silent].process.poll() is None
    last, record = log_lines(tmp_path, 1 - silent)[-1], folder_of(tmp_path)
    record = json.loads((record / f'failure_rank{1 - silent}.json').read_text())
    assert f'rank {silent}' in last and record['host'] in last and record['message'] in last


def test_ranks_that_were_stopped_or_killed_resume(phantom, tmp_path):
    """SIGTERM to one process stops both; torchrun restarts both after one is killed."""
    argv, folder = tiny_arguments(tmp_path, phantom), folder_of(tmp_path)
    both = ranks(tmp_path, argv, fault(0, 2, 'slow'))
    with started(*both):
        wait_until((folder / 'ckpt_epoch_0_step_1.pth').exists, 'the first checkpoint')
        both[1].process.terminate()
        assert [process.wait() for process in both] == [75, 75], both[0].text
    command = torchrun(tmp_path, argv, fault(1, 1, 'kill', once=str(tmp_path / 'killed')))
    with started(command):
        assert command.wait() == 0, command.text
    lines = log_lines(tmp_path)
    assert sum(line.startswith('INFO run folder') for line in lines) == 3
    assert sum(line.startswith('INFO resumed from') for line in lines) == 2
    assert (folder / 'ckpt_epoch_1.pth').exists()
    assert not [*folder.glob('failure_rank*.json'), *folder.glob('alive_rank*')]

"""One of two training processes fails: both end, the cause is the last line, nothing is lost."""

import pytest
from runs import fault, log_lines, ranks, started, tiny_arguments, torchrun
from tiny import run_folder, wait_until

pytestmark = pytest.mark.slow
BROKEN = 'the image of patient 7 is broken'


def folder_of(tmp_path):
    return run_folder(tmp_path / 'out', 'simmim')


@pytest.mark.parametrize(
    ('do', 'code', 'cause'),
    [('fail', 2, BROKEN), ('kill', -9, 'Signal 9 (SIGKILL)'), ('abort', -6, 'Signal 6 (SIGABRT)')],
)
def test_torchrun_ends_with_the_cause(do, code, cause, phantom, tmp_path):
    """The other process, which ends because its connection is closed, does not hide it."""
    argv = tiny_arguments(tmp_path, phantom)
    command = torchrun(tmp_path, argv, fault(1, 3, do), restarts=0)
    with started(command):
        assert command.wait() == 1
    root = ' '.join(command.text.split('Root Cause')[1].split())
    assert 'rank : 1' in root and f'exitcode : {code}' in root and cause in root
    last = log_lines(tmp_path, 0)[-1]
    if do == 'fail':
        assert BROKEN in log_lines(tmp_path, 1)[-1]
        assert 'rank 1' in last and BROKEN in last
    else:
        assert "torchrun's output" in last


def test_a_process_that_hangs_is_waited_for_as_long_as_the_config_says(phantom, tmp_path):
    argv = tiny_arguments(tmp_path, phantom, RANK_TIMEOUT_MINUTES=0.2)
    both = ranks(tmp_path, argv, fault(1, 3, 'hang'))
    with started(*both):
        assert both[0].wait() == 3
        assert both[1].process.poll() is None
    assert 'RANK_TIMEOUT_MINUTES' in log_lines(tmp_path, 0)[-1]


def test_ranks_that_were_stopped_or_killed_resume(phantom, tmp_path):
    """SIGTERM to one process stops both; torchrun restarts both after one is killed."""
    argv, folder = tiny_arguments(tmp_path, phantom), folder_of(tmp_path)
    both = ranks(tmp_path, argv, fault(0, 2, 'slow'))
    with started(*both):
        wait_until((folder / 'ckpt_epoch_0_step_1.pth').exists, 'the first checkpoint')
        both[1].process.terminate()
        assert [process.wait() for process in both] == [75, 75], both[0].text
    killed = fault(1, 1, 'kill', once=str(tmp_path / 'killed'))
    command = torchrun(tmp_path, argv, killed, restarts=1)
    with started(command):
        assert command.wait() == 0, command.text
    lines = log_lines(tmp_path)
    assert sum(line.startswith('INFO run folder') for line in lines) == 3
    assert sum(line.startswith('INFO resumed from') for line in lines) == 2
    assert (folder / 'ckpt_epoch_1.pth').exists()


def test_sigterm_to_torchrun_saves_the_run(phantom, tmp_path):
    """SIGUSR1 would end torchrun alone, without a word to its processes."""
    argv, folder = tiny_arguments(tmp_path, phantom), folder_of(tmp_path)
    command = torchrun(tmp_path, argv, fault(0, 2, 'slow'), restarts=0)
    with started(command):
        wait_until((folder / 'ckpt_epoch_0_step_1.pth').exists, 'the first checkpoint')
        command.process.terminate()
        assert command.wait() != 0
        lines = [log_lines(tmp_path, rank)[-1] for rank in range(2)]
    assert all('saved in epoch' in line and 'the same command resumes' in line for line in lines)

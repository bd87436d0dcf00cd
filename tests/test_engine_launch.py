"""How a run starts and ends: exit codes, last line, determinism, the run folder and its lock."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mistakes import config_of
from tiny import ROOT, arguments, run_folder

from engine import launch as starting
from engine.interruptions import Interruptions, Preempted
from engine.launch import Process, Terminated, explain, launch
from engine.metric_writers import TensorBoard
from engine.run_record import is_locked
from logger import WRITERS

HOLD = """
import sys
from pathlib import Path
from engine.run_record import run_lock
with run_lock(Path(sys.argv[1])):
    print('held', flush=True)
    sys.stdin.read()
"""
FULL = 'unable to write to file </torch_7_1>: No space left on device (28)'
IN_WORKER = """Caught ValueError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "x.py", line 1, in f
ValueError: row 3: bad
"""
NOT_DETERMINISTIC = 'x_backward does not have a deterministic implementation, but you set ...'
GLOO = '[third_party/gloo/gloo/transport/tcp/pair.cc:545] '


@pytest.fixture
def argv(eight, tmp_path):
    return arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')


@pytest.fixture
def folder(tmp_path):
    return run_folder(tmp_path / 'out', 'simmim')


@pytest.fixture
def holder(folder):
    """Another process that holds the lock of the run folder."""
    folder.mkdir(parents=True)
    command = [sys.executable, '-c', HOLD, str(folder)]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout.readline() == 'held\n'
        yield process
        process.kill()


def log_of(folder):
    return (folder / 'log_rank0.txt').read_text()


def raising(error):
    def main(run):
        raise error

    return main


def stopped_after_training(run):
    with Interruptions():
        os.kill(os.getpid(), signal.SIGTERM)  # while the last checkpoint is written
    raise AssertionError('it went on')


def raised(error):
    with contextlib.suppress(type(error)):
        raise error
    return error


# Exit codes


@pytest.mark.parametrize(
    'error, code, part',
    [
        (ValueError('DATA.X: must be 1'), 2, 'DATA.X: must be 1'),
        (FileNotFoundError(2, 'No such file', 'a.jpg'), 2, 'a.jpg'),
        (torch.OutOfMemoryError('CUDA out of memory.'), 2, 'CUDA out of memory.'),
        (RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.'), 2, 'Killed. If'),
        (RuntimeError('DataLoader worker (pid(s) 7) exited unexpectedly'), 2, 'DATA.NUM_WORKERS'),
        (RuntimeError(f'Caught RuntimeError in worker.\nRuntimeError: {FULL}'), 2, '--shm-size'),
        (RuntimeError('DataLoader worker is killed by signal: Bus error.'), 2, '--ipc=host'),
        (RuntimeError(NOT_DETERMINISTIC), 2, 'TRAIN.DETERMINISTIC: x_backward'),
        (RuntimeError(GLOO + 'Read error: Connection reset by peer'), 3, 'log_rank'),
        (dist.DistBackendError('Watchdog caught collective timeout'), 3, 'RANK_TIMEOUT_MINUTES'),
        (dist.DistBackendError('Duplicate GPU detected'), 1, 'Duplicate GPU'),
        (ValueError(IN_WORKER), 2, 'row 3: bad'),
        (MemoryError(), 2, 'memory'),
        (MemoryError('Caught MemoryError in w.\nTraceback:\n  x\nMemoryError'), 2, 'memory'),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 2, '9 bytes'),
        (RuntimeError('unable to mmap 9 bytes: Cannot allocate memory (12)'), 2, 'NUM_WORKERS'),
        (raised(OSError(28, 'No space left on device')), 2, 'test_engine_launch.py'),
        (OSError(), 2, 'OSError'),
        (KeyError('x'), 1, "KeyError: 'x'"),
        (Terminated('SIGUSR1'), 75, 'SIGUSR1'),
    ],
)
def test_each_error_has_an_exit_code_and_one_line(error, code, part):
    got, line = explain(error)
    assert got == code
    assert part in line and '\n' not in line


@pytest.mark.parametrize(
    'main, code, level',
    [
        (lambda run: None, 0, None),
        (lambda run: 1, 1, None),
        (raising(Preempted('saved')), 75, 'WARNING saved'),
        (raising(ValueError('DATA.X: 1')), 2, 'ERROR DATA.X: 1'),
        (raising(KeyError('bug')), 1, "ERROR unexpected KeyError: 'bug'"),
        (lambda run: os.kill(os.getpid(), signal.SIGTERM), 75, 'ERROR stopped by SIGTERM'),
        (stopped_after_training, 75, 'ERROR stopped by SIGTERM'),
    ],
)
def test_a_run_ends_with_its_code_and_one_line_and_frees_its_folder(
    main, code, level, argv, folder, capfd, monkeypatch
):
    codes = []

    class Board(TensorBoard):
        def close(self, code):
            codes.append(code)
            super().close(code)

    monkeypatch.setitem(WRITERS, 'tensorboard', Board)
    before = signal.getsignal(signal.SIGTERM)
    assert launch('simmim', main, argv) == code
    assert codes == [code]
    shown = capfd.readouterr()
    if level:
        assert level in log_of(folder).splitlines()[-1]
    assert ('Traceback' in shown.out + shown.err) == ('unexpected' in str(level))
    assert ('Traceback' in log_of(folder)) == ('ERROR' in str(level))
    assert signal.getsignal(signal.SIGTERM) is before
    assert not is_locked(folder)


@pytest.mark.parametrize('mode', ['--eval', '--throughput', '--check'])
def test_what_does_not_train_resumes_nothing_and_leaves_only_its_log(mode, argv, folder, capfd):
    def stop(run):
        os.kill(os.getpid(), signal.SIGTERM)

    assert launch('simmim', raising(ValueError('no checkpoint')), [*argv, mode]) == 2
    assert 'no checkpoint' in capfd.readouterr().out
    assert launch('simmim', stop, [*argv, mode]) == 76
    last = log_of(folder).splitlines()[-1]
    assert 'SIGTERM' in last and 'resumes' not in last
    assert [path.name for path in folder.iterdir()] == ['log_rank0.txt']


# Determinism


def determinism(run):
    cudnn = torch.backends.cudnn
    run.logger.info(
        f'{torch.are_deterministic_algorithms_enabled()} {cudnn.deterministic} {cudnn.benchmark} '
        f'{os.environ.get("CUBLAS_WORKSPACE_CONFIG")}'
    )


def test_deterministic_sets_all_switches_for_one_run(argv, folder, monkeypatch):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    assert launch('simmim', determinism, [*argv, '--opts', 'TRAIN.DETERMINISTIC', 'True']) == 0
    assert log_of(folder).splitlines()[-1].endswith('INFO True True False :4096:8')
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    assert launch('simmim', determinism, argv) == 0
    assert log_of(folder).splitlines()[-1].endswith('INFO False False True None')


# The lock


def test_a_second_run_in_the_folder_is_refused_until_the_first_one_ends(
    argv, folder, holder, capfd
):
    assert is_locked(folder)
    assert launch('simmim', raising(AssertionError('it ran')), argv) == 2
    assert str(folder) in capfd.readouterr().err.splitlines()[-1]
    assert {path.name for path in folder.iterdir()} == {'run.lock'}
    for mode in ('--eval', '--throughput', '--check'):
        assert launch('simmim', lambda run: None, [*argv, mode]) == 0
    holder.kill()  # and its lock is free
    holder.wait()
    assert not is_locked(folder)
    assert launch('simmim', lambda run: None, argv) == 0


def test_a_file_system_without_locks_never_refuses_a_requeued_run(argv, folder, monkeypatch):
    """Whoever left a lock file there, such as a node that died, does not block the run."""

    def flock(*_) -> None:
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr(fcntl, 'flock', flock)
    folder.mkdir(parents=True)
    (folder / 'run.lock').write_text('4242\nnode-that-died\n')
    assert launch('simmim', lambda run: None, argv) == 0
    assert not is_locked(folder)
    assert 'cannot be locked' in log_of(folder)


def test_an_output_that_cannot_be_written(eight, tmp_path, refused):
    (tmp_path / 'file').write_text('mine')
    output = tmp_path / 'file' / 'runs'
    refused('simmim', arguments(config_of(tmp_path, 'simmim'), eight, output), 'OUTPUT', output)
    assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize('flag', ['--pretrained', '--resume'])
def test_a_missing_checkpoint_is_refused_before_the_data_are_read(flag, tmp_path, refused) -> None:
    (tmp_path / 'ckpt_best.pth').touch()
    argv = arguments(config_of(tmp_path, 'finetune'), tmp_path / 'no_data', tmp_path / 'out')
    missing = tmp_path / 'missing.pth'
    refused('finetune', [*argv, flag, str(missing)], missing, 'ckpt_best.pth')


def test_a_process_ends_although_the_store_does_not_answer(monkeypatch, capsys) -> None:
    """As after a network has failed; the test would hang."""
    forever = threading.Event()
    store = SimpleNamespace(compare_set=lambda *_: forever.wait())

    def set_up(args: object, process: Process) -> None:
        process.store = store
        raise ValueError('a mistake')

    monkeypatch.setattr(starting, 'setup_run', set_up)
    monkeypatch.setattr(starting, 'CAUSE_SECONDS', 0.01)
    assert launch('simmim', print, ['--cfg', 'any.yaml', '--data-path', 'any']) == 2
    assert 'error: a mistake' in capsys.readouterr().err
    forever.set()

"""How a run starts and ends: exit codes, last line, determinism, the run folder and its lock."""

import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from mistakes import STAGES, config_of, results_in
from tiny import ROOT, arguments, run_folder, run_main, tiny_config

import main_simmim
from engine.interruptions import Preempted
from engine.launch import Terminated, explain, is_locked, launch, run_lock
from utils import read_checkpoint

HOLD = """
import sys
from pathlib import Path
from engine.launch import run_lock
with run_lock(Path(sys.argv[1])):
    print('held', flush=True)
    sys.stdin.read()
"""
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


# Exit codes


@pytest.mark.parametrize(
    'error, code, part',
    [
        (ValueError('DATA.X: must be 1'), 2, 'DATA.X: must be 1'),
        (FileNotFoundError(2, 'No such file', 'a.jpg'), 2, 'a.jpg'),
        (torch.OutOfMemoryError('CUDA out of memory.'), 2, 'CUDA out of memory.'),
        (RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.'), 2, 'NUM_WORKERS'),
        (RuntimeError(GLOO + 'Read error: Connection reset by peer'), 3, 'log_rank'),
        (dist.DistBackendError('Watchdog caught collective timeout'), 3, 'RANK_TIMEOUT_MINUTES'),
        (dist.DistBackendError('Duplicate GPU detected'), 1, 'Duplicate GPU'),
        (KeyError('x'), 1, "KeyError: 'x'"),
        (Terminated('SIGUSR1'), 75, 'SIGUSR1'),
    ],
)
def test_each_error_has_an_exit_code_and_one_line(error, code, part):
    got, line = explain(error)
    assert got == code
    assert part in line and '\n' not in line


def test_an_error_in_a_worker_of_the_loader_keeps_its_text():
    error = ValueError('row 3: bad')
    wrapped = (
        f'Caught {type(error).__name__} in DataLoader worker process 0.\nOriginal Traceback '
        f'(most recent call last):\n  File "x.py", line 1, in f\n{type(error).__name__}: {error}\n'
    )
    assert explain(type(error)(wrapped)) == (2, str(error))


@pytest.mark.parametrize(
    'main, code, level',
    [
        (lambda run: None, 0, None),
        (lambda run: 1, 1, None),
        (raising(Preempted('saved')), 75, 'WARNING saved'),
        (raising(ValueError('DATA.X: 1')), 2, 'ERROR DATA.X: 1'),
        (raising(KeyError('bug')), 1, "ERROR unexpected KeyError: 'bug'"),
        (lambda run: os.kill(os.getpid(), signal.SIGTERM), 75, 'ERROR stopped by SIGTERM'),
    ],
)
def test_a_run_ends_with_its_code_and_one_line_and_frees_its_folder(
    main, code, level, argv, folder, capfd
):
    before = signal.getsignal(signal.SIGTERM)
    assert launch('simmim', main, argv) == code
    shown = capfd.readouterr()
    if level:
        assert level in log_of(folder).splitlines()[-1]
    assert ('Traceback' in shown.out + shown.err) == ('unexpected' in str(level))
    assert ('Traceback' in log_of(folder)) == ('ERROR' in str(level))
    assert signal.getsignal(signal.SIGTERM) is before
    assert not is_locked(folder)


# Determinism


def determinism(run):
    cudnn = torch.backends.cudnn
    run.logger.info(
        f'{torch.are_deterministic_algorithms_enabled()} {cudnn.deterministic} {cudnn.benchmark} '
        f'{os.environ.get("CUBLAS_WORKSPACE_CONFIG")}'
    )


@pytest.fixture
def nondeterministic_afterwards():
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.usefixtures('nondeterministic_afterwards')
def test_deterministic_sets_all_switches_for_one_run(argv, folder, monkeypatch):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    assert launch('simmim', determinism, [*argv, '--opts', 'TRAIN.DETERMINISTIC', 'True']) == 0
    assert log_of(folder).splitlines()[-1].endswith('INFO True True False :4096:8')
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    assert launch('simmim', determinism, argv) == 0
    assert log_of(folder).splitlines()[-1].endswith('INFO False False True None')


@pytest.mark.usefixtures('nondeterministic_afterwards')
def test_an_operation_without_a_deterministic_version_is_named(
    phantom, tmp_path, refused, monkeypatch
):
    def loss(model, batch):
        torch.zeros(4).put_(torch.tensor([0]), torch.ones(1))

    monkeypatch.setattr(main_simmim, 'reconstruction_loss', loss)
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', TRAIN={'DETERMINISTIC': True})
    refused('simmim', arguments(cfg, phantom, tmp_path / 'out'), 'TRAIN.DETERMINISTIC', 'put_')


@pytest.mark.slow
@pytest.mark.usefixtures('nondeterministic_afterwards')
@pytest.mark.parametrize('stage', STAGES)
def test_two_deterministic_runs_have_identical_weights(stage, phantom, tmp_path):
    cfg = tiny_config(
        tmp_path / 'run.yaml', stage, TRAIN={'DETERMINISTIC': True}, DATA={'NUM_WORKERS': 2}
    )
    weights = []
    for name in ('first', 'second'):
        assert run_main(stage, arguments(cfg, phantom, tmp_path / name)) == 0
        path = run_folder(tmp_path / name, stage) / 'ckpt_epoch_1.pth'
        weights.append(read_checkpoint(path)['model'])
    assert all(torch.equal(weights[1][key], value) for key, value in weights[0].items())


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


def test_a_lock_is_free_after_its_block_and_asking_does_not_free_it(tmp_path):
    assert not is_locked(tmp_path)
    with run_lock(tmp_path):
        assert is_locked(tmp_path) and is_locked(tmp_path)
        with pytest.raises(ValueError, match='--tag'), run_lock(tmp_path):
            pass
    assert not is_locked(tmp_path)
    with run_lock(tmp_path):
        pass


# Folders that cannot be written


@pytest.mark.parametrize('below', ['', 'runs/here'])
def test_an_output_that_is_a_file_or_below_one(below, eight, tmp_path, refused):
    (tmp_path / 'file').write_text('mine')
    output = tmp_path / 'file' / below
    refused('simmim', arguments(config_of(tmp_path, 'simmim'), eight, output), 'OUTPUT', output)
    assert (tmp_path / 'file').read_text() == 'mine'


def test_a_run_folder_that_cannot_be_written(argv, folder, refused):
    (folder / 'log_rank0.txt').mkdir(parents=True)
    refused('simmim', argv, 'OUTPUT', folder, '--output')
    assert not results_in(folder)


def test_a_check_writes_nothing_but_its_log(argv, folder):
    assert launch('simmim', lambda run: run.scalars.write_epoch({'epoch': 0}), argv) == 0
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    on_check = [*argv, '--check']
    assert launch('simmim', lambda run: run.scalars.write_epoch({'epoch': 1}), on_check) == 0
    changed = {p.name for p in folder.iterdir() if p.is_file() and before.get(p) != p.read_bytes()}
    assert changed == {'log_rank0.txt'}

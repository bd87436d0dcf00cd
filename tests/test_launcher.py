"""How a run starts and ends: exit codes, the last line, determinism, and what a check leaves."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from tiny import ROOT, arguments, run_folder, run_main, tiny_config

import main_simmim
from engine.launch import Preempted, Terminated, explain, launch
from utils import read_checkpoint

HOLD = """
import sys
from run_lock import RunLock
lock = RunLock(sys.argv[1]).acquire()
print('held', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def argv(eight, tmp_path):
    return arguments(tiny_config(tmp_path / 'run.yaml', 'simmim'), eight, tmp_path / 'out')


@pytest.fixture
def folder(tmp_path):
    return run_folder(tmp_path / 'out', 'simmim')


def log_of(folder):
    return (folder / 'log_rank0.txt').read_text()


def raising(error):
    def main(run):
        raise error

    return main


GLOO = '[third_party/gloo/gloo/transport/tcp/pair.cc:545] '


@pytest.mark.parametrize(
    'error, code, part',
    [
        (ValueError('DATA.X: must be 1'), 2, 'DATA.X: must be 1'),
        (FloatingPointError('loss is nan'), 2, 'loss is nan'),
        (FileNotFoundError(2, 'No such file', 'a.jpg'), 2, "No such file: 'a.jpg'"),
        (torch.OutOfMemoryError('CUDA out of memory.'), 2, 'CUDA out of memory.'),
        (RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.'), 2, 'NUM_WORKERS'),
        (RuntimeError(GLOO + 'Read error: Connection reset by peer'), 3, 'ended without a word'),
        (RuntimeError(GLOO + 'Timed out waiting 9ms for recv'), 3, 'RANK_TIMEOUT_MINUTES'),
        (dist.DistBackendError('remote process exited or network error'), 3, 'without a word'),
        (dist.DistBackendError('Watchdog caught collective timeout'), 3, 'did not answer'),
        (dist.DistBackendError('Duplicate GPU detected'), 1, 'DistBackendError: Duplicate GPU'),
        (RuntimeError('Expected all tensors to be on one device\nmore'), 1, 'on one device'),
        (KeyError('x'), 1, "unexpected KeyError: 'x'"),
        (Terminated('SIGUSR1'), 75, 'SIGUSR1'),
    ],
)
def test_an_error_in_one_line_and_its_exit_code(error, code, part):
    got, line = explain(error)
    assert got == code
    assert part in line
    assert '\n' not in line


@pytest.mark.parametrize(
    'error', [ValueError('row 3: bad'), FileNotFoundError(2, 'No such file', 'a.jpg')]
)
def test_an_error_in_a_worker_of_the_loader_ends_in_its_own_words(error):
    wrapped = (
        f'Caught {type(error).__name__} in DataLoader worker process 0.\nOriginal Traceback '
        f'(most recent call last):\n  File "x.py", line 1, in f\n{type(error).__name__}: {error}\n'
    )
    assert explain(type(error)(wrapped)) == (2, str(error))


def test_a_stopped_and_saved_run_ends_with_75(argv, folder):
    assert launch('simmim', raising(Preempted('stopped by SIGUSR1 and saved')), argv) == 75
    assert log_of(folder).splitlines()[-1].endswith('WARNING stopped by SIGUSR1 and saved')


def test_the_exit_code_is_mains_own(argv):
    assert launch('simmim', lambda run: None, argv) == 0
    assert launch('simmim', lambda run: 1, argv) == 1


def test_a_bug_keeps_its_traceback_and_ends_in_one_line(argv, folder, capsys):
    assert launch('simmim', raising(KeyError('nobody')), argv) == 1
    for text in (log_of(folder), capsys.readouterr().out):
        assert 'Traceback (most recent call last):' in text
        assert 'in raising' not in text
        assert text.splitlines()[-1].endswith("ERROR unexpected KeyError: 'nobody'")


def test_a_mistake_shows_its_traceback_in_the_log_alone(argv, folder, capfd):
    assert launch('simmim', raising(ValueError('DATA.X: must be 1')), argv) == 2
    shown = capfd.readouterr()
    assert 'Traceback' not in shown.out + shown.err
    assert 'Traceback' in log_of(folder)
    assert log_of(folder).splitlines()[-1].endswith('ERROR DATA.X: must be 1')


def test_sigterm_outside_training_is_said_and_handled_no_longer_than_the_run(argv, folder):
    before = signal.getsignal(signal.SIGTERM)
    assert launch('simmim', lambda run: os.kill(os.getpid(), signal.SIGTERM), argv) == 75
    assert (
        log_of(folder)
        .splitlines()[-1]
        .endswith('ERROR stopped by SIGTERM, with nothing to save; the same command goes on')
    )
    assert signal.getsignal(signal.SIGTERM) is before


# Determinism ----------------------------------------------------------------------------------


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
def test_deterministic_sets_all_switches_and_is_undone_by_the_next_run(argv, folder, monkeypatch):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    on = [*argv, '--opts', 'TRAIN.DETERMINISTIC', 'True']
    assert launch('simmim', determinism, on) == 0
    assert log_of(folder).splitlines()[-1].endswith('INFO True True False :4096:8')
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    assert launch('simmim', determinism, argv) == 0
    assert log_of(folder).splitlines()[-1].endswith('INFO False False True None')


@pytest.mark.usefixtures('nondeterministic_afterwards')
def test_an_operation_without_deterministic_version_is_refused_in_words(
    phantom, tmp_path, refused, monkeypatch
):
    def loss(model, batch):
        torch.zeros(4).put_(torch.tensor([0]), torch.ones(1))

    monkeypatch.setattr(main_simmim, 'reconstruction_loss', loss)
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', TRAIN={'DETERMINISTIC': True})
    refused('simmim', arguments(cfg, phantom, tmp_path / 'out'),
            'TRAIN.DETERMINISTIC: put_', 'no deterministic version')  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures('nondeterministic_afterwards')
@pytest.mark.parametrize('stage', ['simmim', 'finetune'])
def test_two_deterministic_runs_have_the_same_weights_bit_for_bit(stage, phantom, tmp_path):
    cfg = tiny_config(
        tmp_path / 'run.yaml', stage, TRAIN={'DETERMINISTIC': True}, DATA={'NUM_WORKERS': 2}
    )
    weights = []
    for name in ('first', 'second'):
        assert run_main(stage, arguments(cfg, phantom, tmp_path / name)) == 0
        path = run_folder(tmp_path / name, stage) / 'ckpt_epoch_1.pth'
        weights.append(read_checkpoint(path)['model'])
    assert all(torch.equal(weights[1][key], value) for key, value in weights[0].items())


# The folder -----------------------------------------------------------------------------------


def test_a_check_leaves_nothing_but_its_log(argv, folder):
    assert launch('simmim', lambda run: run.scalars.write_epoch({'epoch': 0}), argv) == 0
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    (folder / 'config.yaml').write_text('of the run')
    on_check = [*argv, '--check']
    assert launch('simmim', lambda run: run.scalars.write_epoch({'epoch': 1}), on_check) == 0
    changed = {p.name for p in folder.iterdir() if p.is_file() and before.get(p) != p.read_bytes()}
    assert changed == {'log_rank0.txt', 'config.yaml'}
    assert (folder / 'config.yaml').read_text() == 'of the run'


def test_a_second_run_in_the_folder_is_refused_while_the_first_goes_on(argv, folder, capfd):
    folder.mkdir(parents=True)
    command = [sys.executable, '-c', HOLD, str(folder)]
    holder = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == 'held\n'
        assert launch('simmim', raising(AssertionError('it ran')), argv) == 2
        assert f'process {holder.pid}' in capfd.readouterr().err.splitlines()[-1]
        assert {path.name for path in folder.iterdir()} == {'run.lock'}, 'nothing is touched'
        for mode in ('--eval', '--throughput', '--check'):
            assert launch('simmim', lambda run: None, [*argv, mode]) == 0
    finally:
        holder.kill()
        holder.wait()
    assert launch('simmim', lambda run: None, argv) == 0


def test_a_run_leaves_its_folder_free(argv, folder):
    for main in (lambda run: None, raising(ValueError('no')), raising(KeyError('bug'))):
        launch('simmim', main, argv)
        assert (folder / 'run.lock').read_text() == ''


def test_a_run_folder_that_is_removed_while_training_ends_in_one_line(
    phantom, tmp_path, folder, refused, monkeypatch
):
    loss_fn = main_simmim.reconstruction_loss

    def loss(model, batch):
        shutil.rmtree(folder, ignore_errors=True)
        return loss_fn(model, batch)

    monkeypatch.setattr(main_simmim, 'reconstruction_loss', loss)
    argv = arguments(tiny_config(tmp_path / 'run.yaml', 'simmim'), phantom, tmp_path / 'out')
    refused('simmim', argv, folder)

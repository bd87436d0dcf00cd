"""How a run starts and ends: exit codes, last line, determinism, the run folder and its lock."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from mistakes import config_of
from tiny import ROOT, arguments, run_folder

from engine.causes import explain
from engine.interruptions import Interruptions, Preempted
from engine.launch import launch
from engine.metric_writers import TensorBoard
from engine.run_folder import is_locked, run_lock
from logger import WRITERS
from system.start import cause_from_torchrun, check_command, report_to_torchrun

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


def stopped_in_a_library(run):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        raise AttributeError('_lock')


@pytest.mark.parametrize(
    'error, code, part',
    [
        (ValueError('DATA.X: must be 1'), 2, 'DATA.X: must be 1'),
        (FileNotFoundError(2, 'No such file', 'a.jpg'), 2, 'a.jpg'),
        (torch.OutOfMemoryError('CUDA out of memory.'), 2, 'CUDA out of memory.'),
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
        (RuntimeError('DataLoader timed out after 1800 seconds'), 2, 'DATA.NUM_WORKERS 0'),
        (RuntimeError('Application timeout caused pair closure'), 3, 'RANK_TIMEOUT_MINUTES'),
        (dist.DistNetworkError('The client socket has failed to connect'), 3, 'log_rank'),
        (dist.DistStoreError('wait timeout after 600000ms'), 3, 'dmesg'),
        (dist.DistBackendError('NCCL error: remote process exited'), 3, 'dmesg'),
        (RuntimeError('The size of tensor a (3) must match'), 1, 'unexpected RuntimeError'),
        (OSError(), 2, 'OSError'),
        (KeyError('x'), 1, "KeyError: 'x'"),
        (AttributeError("'NoneType' object has no attribute 'ndim'"), 1, 'without `return`'),
        (TypeError("unsupported operand type(s) for /: 'NoneType' and 'int'"), 1, 'extend.md'),
        (AttributeError("'int' object has no attribute 'ndim'"), 1, "attribute 'ndim'"),
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
        (stopped_in_a_library, 75, 'ERROR stopped by SIGTERM'),
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
    folder.mkdir(parents=True)  # a new one would not outlive a mistake
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
def test_what_does_not_train_leaves_only_its_log(mode, argv, folder, capfd, monkeypatch):
    def stop(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    assert launch('simmim', raising(ValueError('no checkpoint')), [*argv, mode]) == 2
    assert 'no checkpoint' in capfd.readouterr().out
    assert launch('simmim', stop, [*argv, mode]) == 76
    with monkeypatch.context() as patch:
        patch.setattr('engine.launch.create_logger', stop)  # during the set-up
        assert launch('simmim', stop, [*argv, mode]) == 76
    last = log_of(folder).splitlines()[-1]
    assert 'SIGTERM' in last and 'resumes' not in last
    assert [path.name for path in folder.iterdir()] == ['log_rank0.txt']


def test_ctrl_c_outside_training_ends_at_once_and_frees_the_folder(argv, folder) -> None:
    with pytest.raises(KeyboardInterrupt):  # Python then ends as if by the signal, with code 130
        launch('simmim', raising(KeyboardInterrupt()), argv)
    assert not is_locked(folder)


@pytest.mark.parametrize('is_ignored', [False, True])
def test_a_closed_terminal_stops_a_run_unless_nohup_started_it(is_ignored: bool) -> None:
    code = 'import signal, system.tool; print(signal.SIGHUP in system.tool.STOP_SIGNALS)'
    command = ['env', '--default-signal=HUP']  # the tests, too, may be started by nohup
    command += [*['nohup'] * is_ignored, sys.executable, '-c', code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f'{not is_ignored}\n'


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


def test_a_second_run_in_the_folder_is_refused_until_the_first_one_ends(argv, folder, capfd):
    folder.mkdir(parents=True)
    with run_lock(folder):
        assert is_locked(folder)
        assert launch('simmim', raising(AssertionError('it ran')), argv) == 2
        assert str(folder) in capfd.readouterr().err.splitlines()[-1]
        assert {path.name for path in folder.iterdir()} == {'run.lock'}
        for mode in ('--eval', '--throughput', '--check'):
            assert launch('simmim', lambda run: None, [*argv, mode]) == 0
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


def test_what_another_program_left_in_the_environment_is_a_mistake(argv, monkeypatch, refused):
    monkeypatch.setenv('WORLD_SIZE', '1')
    refused('simmim', argv, 'unset WORLD_SIZE, or start with torchrun')


@pytest.mark.parametrize('flag', ['--pretrained', '--resume'])
def test_a_missing_checkpoint_is_refused_before_the_data_are_read(flag, tmp_path, refused) -> None:
    (tmp_path / 'ckpt_best.pth').touch()
    argv = arguments(config_of(tmp_path, 'finetune'), tmp_path / 'no_data', tmp_path / 'out')
    missing = tmp_path / 'missing.pth'
    refused('finetune', [*argv, flag, str(missing)], missing, 'ckpt_best.pth')


def test_processes_learn_from_torchruns_files_which_one_failed_first(tmp_path, monkeypatch) -> None:
    files = [tmp_path / f'attempt_0/{rank}/error.json' for rank in range(3)]
    for rank, file in enumerate(files):
        file.parent.mkdir(parents=True)
        monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(file))
        monkeypatch.setenv('RANK', str(rank))
        assert cause_from_torchrun() == ''
        report_to_torchrun('ended', is_cause=False)
    files[0].write_text('{"message": "of another program"}')
    files[1].write_text('half a li')
    assert cause_from_torchrun() == ''
    report_to_torchrun('the image is broken', is_cause=True)
    assert json.loads(files[2].read_text())['message']['message'] == 'the image is broken'
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(files[0]))
    wanted = 'rank 2 on host .* failed first: the image is broken'
    assert re.fullmatch(wanted, cause_from_torchrun())
    monkeypatch.delenv('TORCHELASTIC_ERROR_FILE')
    assert cause_from_torchrun() == ''
    report_to_torchrun('nobody reads it', is_cause=True)


@pytest.mark.parametrize(
    'words, code, part',
    [
        (['--help'], 0, '--data-path'),
        (['--batchsize', '4'], 2, '--batchsize'),
        (['--opts', 'TRAIN.EPOCSH', '4'], 2, 'did you mean TRAIN.EPOCHS'),
        (['--opts', 'TRAIN.EPOCHS', '0'], 2, 'TRAIN.EPOCHS must be'),
        (['--opts', 'MODEL.SWIN.DEPTHS', '2'], 2, 'MODEL.SWIN.DEPTHS'),
        (['--opts', 'LOSS.NAME', 'bce'], 2, 'LOSS.NAME'),
        (['--check', '--data-path', 'missing_folder'], 2, 'missing_folder'),
        (['--check', '--pretrained', 'missing.pth'], 2, 'missing.pth'),
        (['--resume', 'missing.pth'], 2, 'missing.pth'),
        (['--cfg', 'missing.yaml'], 2, 'missing.yaml'),
        ([], 0, ''),
    ],
)
def test_mistakes_are_answered_before_pytorch_is_imported(words, code, part, argv, capsys) -> None:
    """`check_command` is all that a main calls before; its imports are looked at below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['main_simmim.py', *argv, *words])
        try:
            check_command('simmim')
            ended = 0
        except SystemExit as error:
            ended = error.code
    shown = capsys.readouterr()
    assert ended == code
    assert part in shown.out + shown.err and 'Traceback' not in shown.err


FIRST = ['import sys', 'from system.start import check_command']
HEAVY = 'torch timm torchvision scipy pandas openpyxl wandb transformers huggingface_hub'.split()


def test_what_a_main_imports_first_is_not_heavy_and_the_rest_only_needs_pandas() -> None:
    """One process: what none of the mains imports, each one does not import."""
    code = (
        f'import sys; heavy = {HEAVY}\n'
        'import system.start\n'
        'assert not {*heavy} & {*sys.modules}, {*heavy} & {*sys.modules}\n'
        'import main_simmim, main_contrastive, main_finetune\n'
        'print(*({*heavy, "torch._dynamo"} & {*sys.modules}))'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert sorted(done.stdout.split()) == ['pandas', 'torch'], done.stderr
    for stage in ('simmim', 'contrastive', 'finetune'):
        head, check, _ = (ROOT / f'main_{stage}.py').read_text().partition(f"('{stage}')")
        assert check and re.findall('^(?:import|from) .*', head, re.M) == FIRST, stage

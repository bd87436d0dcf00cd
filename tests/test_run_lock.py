"""A run's folder belongs to one run at a time."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from engine import launch as run_lock
from engine.launch import RunLock, is_locked

ROOT = Path(__file__).resolve().parents[1]
HOST = socket.gethostname()
HOLD = """
import os, signal, sys
from run_lock import RunLock
lock = RunLock(sys.argv[1])
lock.acquire()
print('held', flush=True)
sys.stdin.readline()
if sys.argv[2:]:
    lock.release()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts processes that hold the lock until they are told to end."""
    started = []

    def hold(*more: str) -> subprocess.Popen:
        command = [sys.executable, '-c', HOLD, str(tmp_path), *more]
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
        process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
        started.append(process)
        assert process.stdout.readline() == 'held\n'
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'lockf', refuse)


def text(folder: Path) -> str:
    return (folder / 'run.lock').read_text()


def refused_for(folder: Path, process: int) -> None:
    before = text(folder)
    words = rf'{folder}: another run is going on in this folder \(host {HOST}, process {process}, '
    with pytest.raises(ValueError, match=words + r'since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\)'):
        RunLock(folder).acquire()
    assert text(folder) == before


def test_a_second_run_is_refused_and_told_who_has_the_folder(start, tmp_path) -> None:
    holder = start()
    refused_for(tmp_path, holder.pid)
    refused_for(tmp_path, holder.pid)  # nor did the first refusal free it


def test_the_lock_of_a_process_that_was_killed_is_free(start, tmp_path, log) -> None:
    holder = start()
    holder.send_signal(signal.SIGKILL)
    holder.wait(30)
    assert f'process {holder.pid},' in text(tmp_path)
    with RunLock(tmp_path):
        assert re.fullmatch(rf'host {HOST}, process {os.getpid()}, since .*\n', text(tmp_path))
    assert not log.records
    assert text(tmp_path) == ''


def test_a_lock_that_was_released_is_free_while_its_process_lives(tmp_path, start) -> None:
    lock = RunLock(tmp_path).acquire()
    lock.release()
    lock.release()
    refused_for(tmp_path, start().pid)


def test_other_folders_are_free(start, tmp_path) -> None:
    start()
    (tmp_path / 'other').mkdir()
    with RunLock(tmp_path / 'other'):
        pass


def test_without_locks_a_live_process_of_this_host_is_refused(start, tmp_path, no_locks) -> None:
    refused_for(tmp_path, start().pid)


@pytest.mark.parametrize('kind', ['killed', 'other host', 'unreadable'])
def test_without_locks_others_are_taken_over_with_a_warning(
    start, tmp_path, no_locks, log, kind
) -> None:
    holder = start()
    if kind == 'killed':
        holder.kill()
        holder.wait(30)
    else:
        other = text(tmp_path).replace(HOST, 'elsewhere') if kind == 'other host' else 'half a li'
        (tmp_path / 'run.lock').write_text(other)
    before = text(tmp_path).strip()
    with RunLock(tmp_path):
        assert f'host {HOST}, process {os.getpid()}, ' in text(tmp_path)
    (record,) = log.records
    assert record.levelname == 'WARNING'
    assert 'has no locks' in record.message and f'({before})' in record.message


def test_without_locks_a_free_folder_needs_no_warning(tmp_path, no_locks, start, log) -> None:
    for _ in range(2):
        with RunLock(tmp_path):
            assert f'process {os.getpid()}, ' in text(tmp_path)
    assert not log.records


def test_other_errors_pass_through(tmp_path, monkeypatch) -> None:
    def broken(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(FileNotFoundError):
        RunLock(tmp_path / 'absent').acquire()
    monkeypatch.setattr(fcntl, 'lockf', broken)
    with pytest.raises(OSError, match='Input/output error'):
        RunLock(tmp_path).acquire()


POLL = """
import sys
from run_lock import is_locked
print('polling', flush=True)
while True:
    is_locked(sys.argv[1])
"""


@pytest.fixture
def polled(tmp_path: Path) -> Iterator[None]:
    """Another process asks all the time whether the folder is locked."""
    RunLock(tmp_path).acquire().release()
    command = [sys.executable, '-c', POLL, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == 'polling\n'
        yield
        assert process.poll() is None
        process.kill()


@pytest.mark.usefixtures('polled')
def test_who_asks_for_the_lock_keeps_no_run_out(tmp_path) -> None:
    for _ in range(200):
        with RunLock(tmp_path):
            assert f'process {os.getpid()}, ' in text(tmp_path)


@pytest.mark.usefixtures('polled')
def test_nor_a_run_that_goes_on_after_a_kill(tmp_path, start) -> None:
    holder = start()
    holder.kill()
    holder.wait(30)
    dead = text(tmp_path)
    for _ in range(200):
        (tmp_path / 'run.lock').write_text(dead)
        with RunLock(tmp_path):
            assert f'process {os.getpid()}, ' in text(tmp_path)


def test_a_holder_that_is_not_named_is_waited_for_and_then_refused(
    tmp_path, start, monkeypatch
) -> None:
    start()
    (tmp_path / 'run.lock').write_text('')
    monkeypatch.setattr(run_lock, 'WAIT_SECONDS', 0.05)
    with pytest.raises(ValueError, match='its process is not named'):
        RunLock(tmp_path).acquire()


def test_a_lock_can_be_asked_for_without_the_right_to_write(tmp_path, start, monkeypatch) -> None:
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    start()
    opened = []

    def watched(path: Path, mode: str = 'r', **options: str) -> TextIO:
        opened.append(mode)
        return open(path, mode, **options)

    monkeypatch.setattr(run_lock, 'open', watched, raising=False)
    assert is_locked(tmp_path)
    assert opened == ['r']

    def forbidden(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(run_lock, 'open', forbidden)
    assert not is_locked(tmp_path)


@pytest.mark.parametrize('goes_on', [True, False])
def test_without_locks_the_text_says_whether_it_is_locked(
    goes_on, start, tmp_path, no_locks
) -> None:
    holder = start()
    if not goes_on:
        holder.kill()
        holder.wait(30)
    assert is_locked(tmp_path) == goes_on

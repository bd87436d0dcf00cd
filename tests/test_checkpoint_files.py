"""Files of checkpoints: whole or not at all, whatever happens while one is written."""

import contextlib
import errno
import gc
import hashlib
import logging
import os
import shutil
import subprocess
import weakref
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import IO

import pytest
import torch

import utils as checkpoint_files
from utils import check_file, checksum_file, newest_good, prune, read_checkpoint, save_checkpoint

LOGGER = logging.getLogger('test')
NAME = 'ckpt_epoch_3.pth'


def state(value: float) -> dict:
    return {'model': {'weight': torch.full((3000,), value)}, 'epoch': 3}


def value_of(path: Path) -> float:
    """The one value of the weights."""
    values = read_checkpoint(path)['model']['weight'].unique()
    assert len(values) == 1
    return values.item()


def write(folder: Path, *names: str) -> list[Path]:
    for name in names:
        save_checkpoint(folder / name, state(1.0))
    return [folder / name for name in names]


def tap(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None]) -> None:
    """Call `before` at each call to the system that writes; one takes a part of what is given."""

    class Tapped(FileIO):
        def write(self, data: memoryview) -> int:
            before()
            return super().write(data[: max(len(data) // 2, 1000)])

    def opened(path: Path, mode: str, buffering: int = -1) -> IO:
        before()
        return Tapped(path, mode) if buffering == 0 else open(path, mode, buffering)

    def wrap(owner: object, name: str, call: Callable) -> None:
        def wrapped(*arguments: object, **options: object) -> object:
            before()
            return call(*arguments, **options)

        monkeypatch.setattr(owner, name, wrapped)

    monkeypatch.setattr(checkpoint_files, 'open', opened, raising=False)
    wrap(os, 'open', os.open)
    wrap(os, 'fsync', lambda descriptor: None)  # for speed: no power fails here
    wrap(os, 'replace', os.replace)
    wrap(Path, 'unlink', Path.unlink)


def checked(folder: Path, old: float | None) -> float | None:
    """What is read from a folder in which a write over the `old` value was broken off."""
    path = folder / NAME
    found = newest_good(folder, LOGGER)
    assert found == (path if old or path.exists() else None)
    value = found and value_of(found)
    save_checkpoint(path, state(3.0))  # what was left is no obstacle
    prune(folder, 0)
    assert value_of(path) == 3.0
    assert sorted(os.listdir(folder)) == [NAME, f'{NAME}.sha256']
    return value


@pytest.mark.parametrize('old', [1.0, None])
def test_a_crash_at_any_call_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch, old) -> None:
    folder, left = tmp_path / 'run', []
    folder.mkdir()
    if old:
        save_checkpoint(folder / NAME, state(old))

    def keep_what_a_crash_leaves() -> None:
        left.append(shutil.copytree(folder, tmp_path / str(len(left))))

    with monkeypatch.context() as patch:
        tap(patch, keep_what_a_crash_leaves)
        save_checkpoint(folder / NAME, state(2.0))
    values = [checked(path, old) for path in left]
    assert len(values) > 40
    renamed = values.index(2.0)
    assert set(values[:renamed]) == {old} and set(values[renamed:]) == {2.0}
    assert renamed < len(values) - 4  # the checksum, and the folder twice, come after it


@pytest.mark.parametrize('old', [1.0, None])
def test_a_failure_of_any_call_leaves_the_old_file_or_the_new_one(
    tmp_path, monkeypatch, old
) -> None:
    values, number, calls = [], 0, 1

    def fail_once() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    while calls >= number:
        folder = tmp_path / str(number)
        folder.mkdir()
        if old:
            save_checkpoint(folder / NAME, state(old))
        number, calls, raised = number + 1, 0, None
        with monkeypatch.context() as patch:
            tap(patch, fail_once)
            try:
                save_checkpoint(folder / NAME, state(2.0))
            except OSError as error:
                raised = error.errno
        tidied = calls - 2 < number  # the last two remove what is left, and need not succeed
        assert raised == (None if tidied else errno.ENOSPC)
        assert not list(folder.glob('.*'))
        values.append(checked(folder, old))
    assert len(values) > 40
    renamed = values.index(2.0)
    assert set(values[:renamed]) == {old} and set(values[renamed:]) == {2.0}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip('no small file system can be mounted: there is no mount command')
    if done.returncode:
        pytest.skip(f'no small file system can be mounted: {done.stderr.strip()}')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk) -> None:
    path = small_disk / NAME
    save_checkpoint(path, state(1.0))
    large = {'model': {'weight': torch.ones(2**20)}}
    with pytest.raises(OSError) as caught:
        save_checkpoint(path, large)
    assert caught.value.errno == errno.ENOSPC
    assert value_of(path) == 1.0
    assert sorted(os.listdir(small_disk)) == [NAME, f'{NAME}.sha256']
    save_checkpoint(path, state(2.0))
    assert value_of(path) == 2.0


def test_a_failed_write_holds_nothing_in_memory(small_disk) -> None:
    large = {'model': {'weight': torch.ones(2**20)}}
    weight = weakref.ref(large['model']['weight'])
    gc.disable()
    try:
        with contextlib.suppress(OSError):
            save_checkpoint(small_disk / NAME, large)
        del large
        assert weight() is None
    finally:
        gc.enable()
    assert not list(small_disk.iterdir())


def test_a_folder_that_cannot_be_synchronised_is_no_obstacle(tmp_path, monkeypatch) -> None:
    sync = os.fsync

    def synchronise(descriptor: int) -> None:
        if os.path.isdir(f'/proc/self/fd/{descriptor}'):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(os, 'fsync', synchronise)
    save_checkpoint(tmp_path / NAME, state(1.0))
    assert value_of(tmp_path / NAME) == 1.0


def test_the_checksum_is_that_of_sha256sum(tmp_path) -> None:
    (path,) = write(tmp_path, NAME)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert checksum_file(path) == tmp_path / f'{NAME}.sha256'
    assert checksum_file(path).read_text() == f'{digest}  {NAME}\n'


def flipped(place: float) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        at = int(place * (len(content) - 1))
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    return change


DAMAGE = {
    'flipped first': (flipped(0), 'damaged or replaced'),
    'flipped in the weights': (flipped(0.5), 'damaged or replaced'),
    'flipped last': (flipped(1), 'damaged or replaced'),
    'cut short': (lambda content: content[:-1], 'cut short, damaged or replaced'),
    'longer': (lambda content: content + b'\0', 'damaged or replaced'),
    'empty': (lambda content: b'', 'it is empty'),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_file_is_refused_in_words(tmp_path, kind) -> None:
    change, words = DAMAGE[kind]
    (path,) = write(tmp_path, NAME)
    check_file(path)
    path.write_bytes(change(path.read_bytes()))
    for check in (check_file, read_checkpoint):
        with pytest.raises(ValueError, match=f'{NAME}: not .*{words}') as caught:
            check(path)
        assert '\n' not in str(caught.value)


def test_a_checksum_without_one_is_refused(tmp_path) -> None:
    (path,) = write(tmp_path, NAME)
    for content in (b'', b'\xff\xfe\n', b'0' * 64):
        checksum_file(path).write_bytes(content)
        with pytest.raises(ValueError, match=rf'not that in {NAME}\.sha256'):
            check_file(path)


def test_a_file_without_a_checksum_is_taken(tmp_path) -> None:
    (path,) = write(tmp_path, NAME)
    checksum_file(path).unlink()
    check_file(path)
    assert value_of(path) == 1.0


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch) -> None:
    (path,) = write(tmp_path, NAME)

    def broken(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(checkpoint_files, 'sha256', broken)
    with pytest.raises(ValueError, match=rf'{NAME}: cannot be read \(.*Input/output error'):
        check_file(path)


def test_newest_good_falls_back_and_says_why(tmp_path, log) -> None:
    names = [f'ckpt_epoch_{n}.pth' for n in (9, 10, 11, 12)] + ['ckpt_best.pth']
    nine, ten, eleven, twelve, best = write(tmp_path, *names)
    assert newest_good(tmp_path, LOGGER) == twelve and not log.records
    twelve.write_bytes(b'')
    eleven.write_bytes(flipped(0.5)(eleven.read_bytes()))
    torch.save({'weights': 1}, ten)
    checksum_file(ten).unlink()
    assert newest_good(tmp_path, LOGGER) == nine
    assert [record.levelname for record in log.records] == ['WARNING'] * 3
    reasons = {twelve: 'it is empty', eleven: 'damaged or replaced', ten: 'no weights under'}
    for record, (path, reason) in zip(log.records, reasons.items(), strict=True):
        assert record.message.startswith(f'{path}: ') and reason in record.message


def test_where_no_checkpoint_is_good_none_is_passed_over(tmp_path, log) -> None:
    assert newest_good(tmp_path, LOGGER) is None
    assert newest_good(tmp_path / 'absent', LOGGER) is None
    write(tmp_path, 'ckpt_best.pth')
    assert newest_good(tmp_path, LOGGER) is None and not log.records
    for number in (1, 2):
        (tmp_path / f'ckpt_epoch_{number}.pth').write_bytes(b'')
    words = r'ckpt_epoch_2\.pth: .*empty; none of the 2 checkpoint\(s\) in .* can be read'
    with pytest.raises(ValueError, match=words):
        newest_good(tmp_path, LOGGER)


ALL = [
    'ckpt_epoch_2.pth',
    'ckpt_epoch_9.pth',
    'ckpt_epoch_10_step_9.pth',
    'ckpt_epoch_10_step_10.pth',
    'ckpt_epoch_10.pth',
]
OTHERS = ['ckpt_best.pth', 'ckpt_epoch_10_old.pth', 'other.pth']


@pytest.mark.parametrize(
    'keep, newest, removed',
    [
        (0, None, []),
        (1, None, ALL[:4]),
        (2, None, ALL[:3]),
        (5, None, []),
        (9, None, []),
        (1, ALL[3], ALL[:3]),  # beyond it is another attempt's, or a damaged one
        (2, ALL[1], []),
        (1, ALL[0], []),
    ],
)
def test_prune_keeps_the_newest_and_the_best(tmp_path, keep, newest, removed) -> None:
    write(tmp_path, *ALL, *OTHERS)
    checksum_file(tmp_path / ALL[0]).unlink()
    left = ('.ckpt_epoch_4.pth.tmp', '.ckpt_best.pth.sha256.tmp')
    for name in (*left, '.other.tmp'):
        (tmp_path / name).write_bytes(b'half')
    gone = prune(tmp_path, keep, newest=newest)
    assert sorted(path.name for path in gone) == sorted(removed)
    kept = [name for name in ALL + OTHERS if name not in removed]
    sums = [f'{name}.sha256' for name in kept if name != ALL[0]]
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, *sums, '.other.tmp'])
    assert prune(tmp_path, keep, newest=newest) == []

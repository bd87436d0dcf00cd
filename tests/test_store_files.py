"""Copying a packed store to a node: once, whole, checked; locks and files written whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packed_data import contents, copied, file_of, flip_bit, make_data, packed

import data.store
from data.packing import append
from data.store import copy_store, open_store, verify
from engine.files import replace_file

ROOT = Path(__file__).resolve().parents[1]
COPY = """
import logging, sys
from data.store_files import copy_store
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
print('begin', flush=True)
sys.stdin.readline()
print(copy_store(sys.argv[1], sys.argv[2], logging.getLogger()))
"""
HOLD = """
import os, signal, sys
from pathlib import Path
import data.store_files as files
def stop(*arguments):
    os.write(1, b'holding' + os.linesep.encode())  # at once: several threads copy
    signal.pause()
files.copy_file = stop
files.copy_store(sys.argv[1], sys.argv[2])
"""


@pytest.fixture(scope='module')
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('packed')
    root = make_data(folder / 'data', 30)
    (root / file_of(4)).write_bytes(b'no picture')
    return packed(root, folder / 'store', skip_bad=True)


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def start(code: str, *arguments: Path) -> subprocess.Popen:
    command = [sys.executable, '-c', code, *map(str, arguments)]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def test_copy_is_whole_and_made_once(store: Path, tmp_path: Path, log) -> None:
    target = tmp_path / 'deep' / 'er'
    logger = data.store_files.logging.getLogger('copy')
    assert copy_store(store, target, logger) == target
    assert contents(target) == contents(store) and not verify(target)
    assert log.text.count('copied') == 1
    before = inodes(target)
    assert copy_store(str(store), str(target), logger) == target
    assert inodes(target) == before and log.text.count('copied') == 1
    assert copy_store(store, store) == store


@pytest.mark.parametrize('harm', ['cut', 'flipped', 'missing', 'half'])
def test_a_broken_copy_is_mended_and_good_files_stay(
    store: Path, tmp_path: Path, harm: str
) -> None:
    target = copy_store(store, tmp_path / 'copy')
    before, name = inodes(target), 'pixels_00002.bin'
    if harm == 'cut':
        os.truncate(target / name, 9)
    elif harm == 'flipped':
        (target / 'store.json').unlink()
        flip_bit(target / name, 9)
    else:
        (target / name).unlink()
    if harm == 'half':
        (target / 'store.json').unlink()
        (target / f'{name}.tmp').write_bytes(b'half of it')
    copy_store(store, target)
    assert contents(target) == contents(store)
    changed = {file for file, inode in inodes(target).items() if before.get(file) != inode}
    assert changed <= {name, 'store.json', 'bad_images.csv'}


def test_a_store_that_was_added_to_is_copied_again_in_part(store: Path, tmp_path: Path) -> None:
    root = make_data(tmp_path / 'data', 30)
    grown = packed(root, tmp_path / 'grown', csv_names=['train.csv'])
    target = copy_store(grown, tmp_path / 'copy')
    before = inodes(target)
    append(root, grown, 'valid.csv')
    added = grown / open_store(grown).about['shards'][-1]
    flip_bit(added, 0)
    with pytest.raises(ValueError, match=f'{added.name} is not what it was'):
        copy_store(grown, target)
    assert not (target / 'store.json').exists()
    flip_bit(added, 0)
    copy_store(grown, target)
    same = [name for name in before if name.startswith('pixels_')]
    assert {name: inodes(target)[name] for name in same} == {name: before[name] for name in same}
    every = np.arange(len(open_store(grown)))
    np.testing.assert_array_equal(open_store(target).gather(every), open_store(grown).gather(every))
    assert not verify(target)


def test_a_spoilt_source_is_named_and_leaves_no_store(store: Path, tmp_path: Path) -> None:
    spoilt, target = copied(store, tmp_path / 'spoilt'), tmp_path / 'copy'
    flip_bit(spoilt / 'pixels_00003.bin', 100, 7)
    with pytest.raises(ValueError, match=r'spoilt/pixels_00003.bin is not what it was'):
        copy_store(spoilt, target)
    assert not (target / 'store.json').exists()
    assert not (target / 'pixels_00003.bin').exists()
    copy_store(store, target)
    assert contents(target) == contents(store)
    with pytest.raises(ValueError, match='no packed store'):
        copy_store(tmp_path / 'nowhere', target)


def test_a_full_disk_is_told_before_anything_is_copied(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = data.store_files.shutil.disk_usage(tmp_path)._replace(free=29 * 256)
    monkeypatch.setattr(data.store_files.shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(ValueError, match='do not fit'):
        copy_store(store, tmp_path / 'copy')
    assert not list((tmp_path / 'copy').glob('pixels*'))


def test_of_many_processes_one_copies(store: Path, tmp_path: Path) -> None:
    target = tmp_path / 'copy'
    runs = [start(COPY, store, target) for _ in range(4)]
    for run in runs:
        assert run.stdout.readline() == 'begin\n'
    for run in runs:
        run.stdin.write('\n')
        run.stdin.flush()
    outputs = [run.communicate(timeout=60)[0] for run in runs]
    assert all(output.endswith(f'{target}\n') for output in outputs)
    assert sum('copied' in output for output in outputs) == 1
    assert contents(target) == contents(store)


def test_a_killed_copy_lets_the_next_one_in(store: Path, tmp_path: Path) -> None:
    target = tmp_path / 'copy'
    holder = start(HOLD, store, target)
    assert holder.stdout.readline() == 'holding\n'
    waiting = start(COPY, store, target)
    assert waiting.stdout.readline() == 'begin\n'
    waiting.stdin.write('\n')
    waiting.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=0.5)
    assert not (target / 'store.json').exists()
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert waiting.communicate(timeout=60)[0].endswith(f'{target}\n')
    assert contents(target) == contents(store)


def test_replacing_a_file_keeps_the_old_one_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'file'
    replace_file(path, b'old')

    def fail(descriptor: int) -> None:
        raise OSError('disk full')

    monkeypatch.setattr(data.store_files.os, 'fsync', fail)
    with pytest.raises(OSError, match='disk full'):
        replace_file(path, b'new')
    assert path.read_bytes() == b'old'

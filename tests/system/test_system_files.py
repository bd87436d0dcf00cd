"""Writing files: atomically, and several files together, also on a full disk; file systems."""

import os
from pathlib import Path

import pytest

from system.files import atomic_writer, locked, replace_file, replace_files


@pytest.mark.parametrize('last', ['a', 'z'])
def test_a_full_disk_leaves_all_files_of_a_group_as_they_were(last, tmp_path, full_disk):
    files = {tmp_path / 'm': 'new', tmp_path / last: 'x' * 2000}
    for path in files:
        path.write_text('before')
    with full_disk(), pytest.raises(OSError, match=str(tmp_path / last)):
        replace_files(files)
    assert {path.read_text() for path in tmp_path.iterdir()} == {'before'}
    assert len(os.listdir(tmp_path)) == len(files)


@pytest.mark.parametrize('name', ['file/a', 'folder'])
def test_an_error_names_the_file_that_was_to_be_written(name, tmp_path):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(OSError) as failure:
        replace_file(tmp_path / name, 'text')
    assert str(failure.value).endswith(f": '{tmp_path / name}'")
    assert sorted(os.listdir(tmp_path)) == ['file', 'folder']


def test_an_error_of_the_block_is_passed_on(tmp_path):
    with pytest.raises(ValueError, match='mine'), atomic_writer(tmp_path / 'a') as file:
        file.write(b'half')
        raise ValueError('mine')
    assert not os.listdir(tmp_path)


def test_a_forked_worker_does_not_keep_the_lock_of_a_process_that_died(tmp_path: Path) -> None:
    (reader, writer), (ready, started) = os.pipe(), os.pipe()
    with locked(tmp_path / 'run.lock', wait=False):
        if not (worker := os.fork()):
            os.close(writer)
            os.write(started, b'.')
            os.read(reader, 1)  # until the parent closes its end
            os._exit(0)
        os.read(ready, 1)
        with pytest.raises(ValueError, match='another process'):
            with locked(tmp_path / 'run.lock', wait=False):
                pass
    try:
        with locked(tmp_path / 'run.lock', wait=False) as has_locks:
            assert has_locks
    finally:
        os.close(writer)
        os.waitpid(worker, 0)
        for end in (reader, ready, started):
            os.close(end)

"""What packing refuses, the script, and killing it by signals."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from packed_data import (
    SMALL,
    contents,
    file_of,
    flip_bit,
    killed_after,
    make_data,
    packed,
)

import data.packing
from data.packing import Settings, append, pack
from data.store import is_store, verify

ROOT = Path(__file__).resolve().parents[1]
PACK = [sys.executable, str(ROOT / 'scripts' / 'pack.py')]
LOCKING = """
import sys
from pathlib import Path
from checksums import locked
with locked(Path(sys.argv[1]), wait=False):
    print('locked', flush=True)
    sys.stdin.read()
    import time
    time.sleep(100)
"""


@pytest.mark.parametrize('finished', [True, False])
@pytest.mark.parametrize(
    'settings, part',
    [
        (Settings(17, shard_bytes=1000), 'settings, size was 16, is now 17'),
        (Settings(16, False, shard_bytes=1000), 'settings, square was True, is now False'),
        (Settings(16, keep_16bit=True, shard_bytes=1000), 'keep_16bit was False, is now True'),
        (Settings(16, shard_bytes=2000), 'shard_bytes was 1000, is now 2000'),
        (SMALL, 'source, images was 10, is now 11'),
    ],
)
def test_refuses_to_mix(tmp_path: Path, settings: Settings, part: str, finished: bool) -> None:
    root, store = make_data(tmp_path / 'data'), tmp_path / 'store'
    if finished:
        pack(root, store, SMALL)
    else:
        with killed_after(4):
            pack(root, store, SMALL)
    before = contents(store)
    if settings == SMALL:
        make_data(root, 11)
    with pytest.raises(ValueError, match=part):
        pack(root, store, settings)
    assert contents(store) == before


def test_refuses_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, store = make_data(tmp_path / 'data'), packed(tmp_path / 'data', tmp_path / 'store')
    before = sorted(root.rglob('*'))
    for inside in (root, root / 'store', root / 'train' / '..'):
        with pytest.raises(ValueError, match='must not lie in --data-path'):
            pack(root, inside, SMALL)
    assert sorted(root.rglob('*')) == before
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'thesis.txt').touch()
    with pytest.raises(ValueError, match='not empty: it holds thesis.txt'):
        pack(root, other, SMALL)
    assert os.listdir(other) == ['thesis.txt']
    with pytest.raises(ValueError, match='is a packed store'):
        pack(store, tmp_path / 'new', SMALL)
    with pytest.raises(ValueError, match='is no folder'):
        pack(tmp_path / 'nowhere', tmp_path / 'new', SMALL)
    with pytest.raises(ValueError, match='adds to a store'):
        append(root, tmp_path / 'new', 'test.csv')
    (root / 'bad_images.csv').touch()
    with pytest.raises(ValueError, match='another file under this name'):
        pack(root, tmp_path / 'new', SMALL)
    assert not (tmp_path / 'new').exists()


def test_refuses_a_full_disk_before_it_writes(tmp_path: Path, monkeypatch) -> None:
    root, lines = make_data(tmp_path / 'data'), []
    usage = data.packing.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(data.packing.shutil, 'disk_usage', lambda path: usage._replace(free=2559))
    with pytest.raises(ValueError, match='do not fit'):
        pack(root, tmp_path / 'store', SMALL, report=lines.append)
    assert '10 pictures squeezed to 16 x 16 px, 8 bits' in lines[0]
    assert not list((tmp_path / 'store').glob('pixels_*'))


def test_refuses_a_store_that_another_process_writes(tmp_path: Path) -> None:
    root, store = make_data(tmp_path / 'data'), tmp_path / 'store'
    other = subprocess.Popen(
        [sys.executable, '-c', LOCKING, str(store)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == 'locked\n'
        with pytest.raises(ValueError, match='another process is writing'):
            pack(root, store, SMALL)
        os.kill(other.pid, signal.SIGKILL)
    finally:
        other.communicate()
    assert is_store(packed(root, store))


@pytest.mark.parametrize('values', [{'size': None}, {'size': 0}, {'size': 9, 'shard_bytes': 0}])
def test_settings_that_cannot_be_are_refused(values: dict) -> None:
    with pytest.raises(ValueError, match='size'):
        Settings(**values)


def test_script_packs_verifies_and_names_its_mistakes(tmp_path: Path) -> None:
    root, store = make_data(tmp_path / 'data', p2=4095), tmp_path / 'store'

    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = [*PACK, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    made = run('--data-path', root, '--output', store, '--size', 16, '--shard-size', '1KB')
    assert made.returncode == 0, made.stderr
    line = '10 pictures squeezed to 16 x 16 px, 8 bits, 0 of them packed already: about 0.00 GB'
    assert line in made.stdout
    assert '1 pictures of more than 8 bits were rounded to 8 (--keep-16bit)' in made.stdout
    assert 'image/s' in made.stderr
    assert (
        contents(store)['pixels_00000.bin']
        == contents(packed(root, tmp_path / 's'))['pixels_00000.bin']
    )
    assert run('--output', store, '--verify').stdout == f'{store}: no problems\n'
    flip_bit(store / 'pixels_00001.bin', 300)
    found = run('--output', store, '--verify')
    assert found.returncode == 1 and file_of(5) in found.stderr
    mixed = run('--data-path', root, '--output', store, '--size', 'native')
    assert mixed.returncode == 2 and 'settings, size was 16, is now None' in mixed.stderr
    wrong = run('--data-path', root, '--output', store, '--size', 'large')
    assert wrong.returncode == 2 and "or 'native', got 'large'" in wrong.stderr
    for mistake in (['--verify'], ['--size', 9, '--append', 'x'], ['--shard-size', '1TB'], []):
        assert run('--data-path', root, '--output', store, *mistake).returncode == 2


@pytest.mark.slow
def test_killed_ten_times_by_a_signal_gives_the_same_bytes(tmp_path: Path) -> None:
    root, store = make_data(tmp_path / 'data', 6000), tmp_path / 'store'
    options = ['--size', '16', '--shard-size', '200KB', '--workers', '2']
    command = [*PACK, '--data-path', str(root), '--output', str(store), *options]
    whole = packed(root, tmp_path / 'whole', Settings(16, shard_bytes=200_000))
    draw, done = random.Random(0), []
    journal = store / 'packing.jsonl'
    for kill in range(10):
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = (kill + draw.random()) * 550 * 33  # bytes of the journal, 34 a picture
        while run.poll() is None and not (journal.exists() and journal.stat().st_size > until):
            time.sleep(0.001)
        time.sleep(draw.random() * 0.02)
        run.kill()
        assert run.wait() == -signal.SIGKILL
        done.append(journal.stat().st_size)
        assert not _workers_left(store)
    assert done == sorted(done) and done[0] < done[4] < done[-1], done
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert contents(store) == contents(whole) and not verify(store)


def _workers_left(store: Path) -> bool:
    """Whether a worker of a killed run lives on for more than ten seconds."""
    for _ in range(1000):
        if not any(str(store) in command for command in _commands()):
            return False
        time.sleep(0.01)
    return True


def _commands() -> Iterator[str]:
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        with suppress(OSError):  # it has ended meanwhile
            yield path.read_text()

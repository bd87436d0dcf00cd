"""What the data check says of pictures: copies, links, stores, those that end a process."""

import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.check
from data.check import look_at, look_at_all
from data.packing import Settings, pack


def test_copies_are_told_from_the_first_in_another_split(
    spoilt: Path, tmp_path: Path, check: Callable
) -> None:
    train, *valid = (
        [line.split(',')[0].partition('/')[2] for line in (spoilt / name).open()][1:3]
        for name in ('train.csv', 'valid.csv')
    )
    for file in (train[1], *valid[0]):
        shutil.copy(spoilt / train[0], spoilt / file)
    assert check(spoilt)[1] == [
        ('same pixels', 'train.csv', 3, train[1]),
        ('same pixels in two splits', 'valid.csv', 2, valid[0][0]),
        ('same pixels in two splits', 'valid.csv', 3, valid[0][1]),
    ]
    lines = (tmp_path / 'lists' / 'problems.csv').read_text().splitlines()[1:]
    lines = [line for line in lines if 'same pixels' in line]
    assert len(lines) == 3
    assert all(f'are those of {train[0]} (row 2 of train.csv)' in line for line in lines)


def test_a_folder_of_pictures(spoilt: Path, tmp_path: Path, check: Callable) -> None:
    outside = Path(shutil.move(spoilt / 'valid', tmp_path / 'outside'))
    (spoilt / 'valid').symlink_to(outside)
    picture = min(spoilt.rglob('*.jpg'))
    shutil.copy(picture, spoilt / 'zzz.png')
    found = [
        ('folder with scores', '', None, 'train.csv'),
        ('folder with scores', '', None, 'valid.csv'),
        ('link that leaves the folder', '', None, 'valid'),
        ('same pixels', '', None, 'zzz.png'),
    ]
    assert sorted(check(spoilt, '--dataset', 'folder')[1]) == found
    for name in ('train.csv', 'valid.csv'):
        (spoilt / name).unlink()
    assert check(spoilt)[1] == found[2:]


def test_a_linked_split_is_refused_row_by_row(
    spoilt: Path, tmp_path: Path, check: Callable
) -> None:
    outside = Path(shutil.move(spoilt / 'valid', tmp_path / 'outside'))
    (spoilt / 'valid').symlink_to(outside)
    num_rows = len((spoilt / 'valid.csv').read_text().splitlines()) - 1
    found = check(spoilt)[1]
    assert {(kind, name) for kind, name, *_ in found} == {
        ('link that leaves the folder', 'valid.csv')
    }
    assert [cells[2] for cells in found] == list(range(2, num_rows + 2))


@pytest.mark.parametrize('settings', [Settings(size=32), Settings(size=None, square=False)])
def test_a_packed_store(spoilt: Path, tmp_path: Path, check: Callable, settings: Settings) -> None:
    store = tmp_path / 'store'
    Image.new('L', (80, 80)).save(spoilt / 'valid' / 'unnamed.png')
    first = min((spoilt / 'train').rglob('*.jpg'))
    first.write_bytes(b'')
    pack(spoilt, store, settings, skip_bad=True)
    found = check(store)[1]
    assert [cells[0] for cells in found] == ['left out of the store']
    shard = next(store.glob('pixels_*.bin'))
    pixels = bytearray(shard.read_bytes())
    pixels[5] ^= 1
    shard.write_bytes(pixels)
    kinds = [cells[0] for cells in check(store)[1]]
    assert kinds == ['left out of the store', 'unusable image']
    shard.write_bytes(pixels[:-1])
    assert [cells[0] for cells in check(store)[1]] == ['damaged store']


def digest(folder: Path, pixels: np.ndarray, name: str, mode: str = '') -> bytes:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(folder / name)
    return look_at(folder, name).digest


def test_digests_are_of_pixels_not_of_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90), dtype=np.uint8)
    first = digest(tmp_path, pixels, 'a.png')
    assert len(first) == 16
    assert digest(tmp_path, pixels, 'b.bmp') == first
    assert digest(tmp_path, pixels, 'c.tif', 'RGB') == first
    assert digest(tmp_path, pixels.astype(np.uint16) * 257, 'd.png') == first
    assert digest(tmp_path, pixels.astype(np.uint16) * 256, 'e.png') != first
    assert digest(tmp_path, pixels.T.copy(), 'f.png') != first
    assert digest(tmp_path, pixels.reshape(90, 70), 'g.png') != first
    changed = pixels.copy()
    changed[69, 89] ^= 1
    assert digest(tmp_path, changed, 'h.png') != first


@pytest.mark.skipif(multiprocessing.get_start_method() != 'fork', reason='patches what is forked')
def test_a_picture_that_ends_its_process_is_named(
    spoilt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(f.relative_to(spoilt).as_posix() for f in spoilt.rglob('*.jpg'))
    read = data.check_pictures.load_image

    def deadly(path: Path, root: Path) -> Image.Image:
        if path == spoilt / files[7] or path == spoilt / files[70]:
            os._exit(1)
        return read(path, root)

    expected = list(look_at_all(spoilt, files, workers=2))
    monkeypatch.setattr(data.check_pictures, 'load_image', deadly)
    looks = list(look_at_all(spoilt, files, workers=2))
    assert len(files) > 100
    for position in (7, 70):
        expected[position] = looks[position]
        assert looks[position].problems[0][0] == 'unusable image'
        assert 'ended the process' in looks[position].problems[0][1]
    assert looks == expected

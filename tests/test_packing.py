"""Building a packed store: what is stored, and the same bytes whatever happens."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from csv_files import image_path, row, write
from packed_data import (
    NATIVE,
    SMALL,
    Killed,
    contents,
    file_of,
    flip_bit,
    killed_after,
    make_data,
    packed,
    picture,
)
from PIL import Image

import data.packing
from data.images import load_image
from data.packing import Settings, append, encode, pack
from data.records import read_csv, read_folder
from data.store import is_store, open_store, verify


def assert_same_image(found: Image.Image, wanted: Image.Image) -> None:
    assert found.mode == wanted.mode
    np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


def test_native_store_gives_every_picture_as_its_file_does(tmp_path: Path) -> None:
    highest = {'p1': 250, 'p2': 1000, 'p3': 4095, 'p4': 9000, 'p6': 65535}
    root = make_data(tmp_path / 'data', **highest)
    exact = open_store(packed(root, tmp_path / 'exact', Settings(None, False, keep_16bit=True)))
    rounded = open_store(packed(root, tmp_path / 'rounded', NATIVE))
    assert exact.files == rounded.files == sorted(file_of(number) for number in range(1, 11))
    modes = set()
    for position, file in enumerate(exact.files):
        wanted = load_image(root / file)
        modes.add(wanted.mode)
        assert_same_image(exact.image(position), wanted)
        levels = Image.fromarray(np.rint(np.asarray(wanted)).astype(np.uint8))
        assert_same_image(rounded.image(position), levels)
    assert modes == {'L', 'F'}
    assert (exact.about['rounded'], rounded.about['rounded']) == (0, 5)


def test_grey_levels_of_no_whole_range_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.random.default_rng(0).uniform(0, 255, (3, 5)).astype(np.float32)
    monkeypatch.setattr(data.packing_images, 'load_image', lambda path: Image.fromarray(levels))
    stored = encode('x', Settings(None, False, keep_16bit=True))
    assert stored[1:3] == (3, 5)
    np.testing.assert_array_equal(np.frombuffer(stored.data, '<f4').reshape(3, 5), levels)


@pytest.mark.parametrize(
    'size, square, sides, wanted',
    [
        (16, True, (40, 25), (16, 16)),
        (64, True, (40, 25), (64, 64)),
        (16, False, (40, 25), (26, 16)),
        (16, False, (24, 48), (16, 32)),
        (32, False, (40, 25), (40, 25)),
    ],
)
def test_sizes(tmp_path: Path, size: int, square: bool, sides: tuple, wanted: tuple) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, sides[::-1]).astype('u1'))
    (tmp_path / 'data').mkdir()
    image.save(tmp_path / 'data' / 'x.png')
    store = open_store(packed(tmp_path / 'data', tmp_path / 'store', Settings(size, square)))
    assert store.side == (size if square else None)
    resized = image if sides == wanted else image.resize(wanted, Image.Resampling.BICUBIC)
    assert_same_image(store.image(0), resized)


def test_resized_16_bit_pictures_are_kept_to_half_a_level_of_65536(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    root.mkdir()
    Image.fromarray(picture(1, 65535)).save(root / 'x.png')
    image = load_image(root / 'x.png').resize((9, 9), Image.Resampling.BICUBIC)
    wanted = np.clip(np.asarray(image), 0, 255)
    settings = Settings(9, keep_16bit=True)
    store = open_store(packed(root, tmp_path / 'store', settings))
    found = store.image(0)
    assert store.side is None and found.mode == 'F'
    assert 0 < np.abs(np.asarray(found) - wanted).max() <= 0.5 / 257 + 1e-5
    low = open_store(packed(root, tmp_path / 'low', Settings(9))).image(0)
    np.testing.assert_array_equal(np.asarray(low), np.rint(wanted))


def test_bytes_do_not_depend_on_workers(tmp_path: Path) -> None:
    root = make_data(tmp_path / 'data', 150)
    one = contents(packed(root, tmp_path / 'one'))
    assert contents(packed(root, tmp_path / 'three', workers=3)) == one
    assert sum(name.startswith('pixels_') for name in one) == 50
    assert max(len(data) for name, data in one.items() if 'pixels' in name) == 3 * 16 * 16


@pytest.mark.parametrize('harm', ['none', 'pixels', 'journal', 'both cut', 'flipped'])
def test_goes_on_after_being_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    root, store = make_data(tmp_path / 'data', 20), tmp_path / 'store'
    whole = contents(packed(root, tmp_path / 'whole'))
    with killed_after(11):
        pack(root, store, SMALL)
    with pytest.raises(ValueError, match='not finished: run scripts/pack.py'):
        is_store(store)
    redone = 20 - 11
    journal, last = store / 'packing.jsonl', store / 'pixels_00003.bin'
    if harm == 'pixels':  # written, but not yet in the journal
        (store / 'pixels_00004.bin').write_bytes(b'more' * 300)
        last.write_bytes(last.read_bytes() + b'more' * 300)
    elif harm == 'journal':
        os.truncate(journal, journal.stat().st_size - 5)
        redone += 1
    elif harm == 'both cut':
        os.truncate(journal, journal.stat().st_size - 5)
        os.truncate(last, 100)
        redone += 2
    elif harm == 'flipped':
        flip_bit(store / 'pixels_00002.bin', 3 * 256 - 1)
        redone += 3
    if harm == 'journal':  # and again, behind what was cut
        with killed_after(4):
            pack(root, store, SMALL)
        redone -= 4
    read = []

    def counted(path) -> Image.Image:
        read.append(path)
        return load_image(path)

    monkeypatch.setattr(data.packing_images, 'load_image', counted)
    assert contents(packed(root, store)) == whole
    assert len(read) == redone
    read.clear()
    assert contents(packed(root, store)) == whole and not read


def test_bad_picture_stops_or_is_listed(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    root, store, lines = make_data(tmp_path / 'data'), tmp_path / 'store', []
    for number in (3, 5):
        (root / file_of(number)).write_bytes(b'no picture')
    with pytest.raises(ValueError, match=rf'{file_of(3)} cannot be read.*--skip-bad'):
        pack(root, store, SMALL)
    pack(root, store, SMALL, skip_bad=True, report=lines.append)
    assert '2 of them packed already' in lines[0]
    assert lines[-1] == f'2 pictures could not be read: see {store / "bad_images.csv"}'
    listed = (store / 'bad_images.csv').read_text().splitlines()
    assert listed[0] == 'file,problem' and len(listed) == 3
    assert listed[1].startswith(f'{file_of(3)},') and listed[2].startswith(f'{file_of(5)},')
    assert contents(packed(root, tmp_path / 'again', workers=2, skip_bad=True)) == contents(store)
    append(root, store, write(tmp_path / 'again.csv', [row(image_path(1).replace('jpg', 'png'))]))
    assert list(open_store(store).left_out) == [file_of(3), file_of(5)] and not verify(store)
    records = read_csv(store, 'train.csv', logger=logging.getLogger('packing'))
    kept = read_csv(root, 'train.csv').select(np.array([0, 1, 3, 4, 5, 6]))
    assert records.file.tolist() == kept.file.tolist()
    assert records.row.tolist() == kept.row.tolist() == [0, 1, 3, 4, 5, 6]
    np.testing.assert_array_equal(records.labels, kept.labels)
    assert 'train.csv: 1 images could not be read when the store was packed' in log.text


def test_stopped_run_with_left_out_pictures_needs_skip_bad_again(
    tmp_path: Path,
) -> None:
    root, store = make_data(tmp_path / 'data'), tmp_path / 'store'
    (root / file_of(3)).write_bytes(b'no picture')
    with killed_after(6):
        pack(root, store, SMALL, skip_bad=True)
    with pytest.raises(ValueError, match=rf'{file_of(3)} cannot be read.*--skip-bad'):
        pack(root, store, SMALL)
    whole = contents(packed(root, tmp_path / 'whole', skip_bad=True))
    assert contents(packed(root, store, skip_bad=True)) == whole


def test_refuses_a_source_without_one_good_picture(tmp_path: Path) -> None:
    root = make_data(tmp_path / 'data', 1)
    (root / file_of(1)).write_bytes(b'no picture')
    with pytest.raises(ValueError, match='none of the 1 pictures'):
        pack(root, tmp_path / 'store', SMALL, skip_bad=True)


def test_append_adds_a_csv_and_the_pictures_it_names(
    tmp_path: Path,
) -> None:
    root, store = make_data(tmp_path / 'data', 20), tmp_path / 'store'
    pack(root, store, SMALL, csv_names=['train.csv', 'valid.csv'])
    before = contents(store)
    assert 'test.csv' in before and len(open_store(store)) == 18
    with pytest.raises(ValueError, match='test.csv.*images not found'):
        read_csv(store, 'test.csv')
    with killed_after(1):
        append(root, store, 'test.csv')
    now = contents(store)
    assert {name: now[name] for name in before} == before and not verify(store)
    append(root, store, 'test.csv')
    added = contents(store)
    unbroken = packed(root, tmp_path / 'other', csv_names=['train.csv', 'valid.csv'])
    append(root, unbroken, 'test.csv')
    assert contents(unbroken) == added and not verify(store)
    assert read_csv(store, 'test.csv').file.tolist() == [file_of(7), file_of(14)]
    opened, one = open_store(store), open_store(packed(root, tmp_path / 'one'))
    assert opened.files == one.files
    every = np.arange(20)
    np.testing.assert_array_equal(opened.gather(every), one.gather(every))
    append(root, store, 'test.csv')
    assert contents(store) == added


def test_append_takes_labels_from_elsewhere_and_refuses_another_file_of_a_name(
    tmp_path: Path,
) -> None:
    root, store = make_data(tmp_path / 'data'), packed(tmp_path / 'data', tmp_path / 'store')
    path = image_path(2).replace('.jpg', '.png')
    relabelled = write(tmp_path / 'relabelled.csv', [row(path, Edema='-1')])
    pixels = {name: data for name, data in contents(store).items() if 'pixels' in name}
    append(root, store, relabelled)
    assert read_csv(store, 'relabelled.csv').labels[0, 5] == -1
    assert {name: data for name, data in contents(store).items() if 'pixels' in name} == pixels
    other = write(tmp_path / 'elsewhere' / 'train.csv', [row(path)])
    with pytest.raises(ValueError, match='another train.csv already'):
        append(root, store, other)


def test_append_is_finished_after_a_kill_behind_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, chosen = make_data(tmp_path / 'data', 20), ['train.csv']
    store = packed(root, tmp_path / 'store', csv_names=chosen)
    whole = packed(root, tmp_path / 'whole', csv_names=chosen)
    for name in ('valid.csv', 'test.csv'):
        append(root, whole, name)

    def die(*args) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(data.packing, '_clean', die)
        append(root, store, 'valid.csv')
    assert (store / 'packing.json').exists() and not verify(store)
    append(root, store, 'test.csv')
    assert contents(store) == contents(whole)


def test_tree_without_csv(tmp_path: Path) -> None:
    root, store = tmp_path / 'tree', tmp_path / 'store'
    for number, name in enumerate(['b.png', 'a/c.png', 'a/ä b.PNG', 'a-b.png']):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(root / name)
    records = read_folder(packed(root, store), allow_all_images=False)
    wanted = read_folder(root, allow_all_images=False)
    assert records.file.tolist() == wanted.file.tolist()
    assert records.file.tolist() == ['a-b.png', 'a/c.png', 'a/ä b.PNG', 'b.png']
    write(root / 'a' / 'valid.csv', [])
    with pytest.raises(ValueError, match='a/valid.csv is there'):
        pack(root, tmp_path / 'new', SMALL)
    both = packed(root, tmp_path / 'both', all_images=True)
    with pytest.raises(ValueError, match='DATA.ALLOW_ALL_IMAGES True'):
        read_folder(both, allow_all_images=False)
    assert read_folder(both, allow_all_images=True).file.tolist() == wanted.file.tolist()


def test_all_images_adds_those_that_no_csv_names(tmp_path: Path) -> None:
    root = make_data(tmp_path / 'data', 3)
    Image.fromarray(picture(0)).save(root / 'x.png')
    assert open_store(packed(root, tmp_path / 'named')).files == [file_of(i) for i in (1, 2, 3)]
    store = packed(root, tmp_path / 'all', all_images=True)
    assert open_store(store).files == [*(file_of(i) for i in (1, 2, 3)), 'x.png']
    with pytest.raises(ValueError, match='packed from a folder with train.csv or valid.csv'):
        read_folder(store, allow_all_images=False)

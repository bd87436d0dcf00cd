"""The packed store: the same records and images as the folder, resumable, every change is found."""

import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from packed_data import SMALL, contents, copied, file_of, flip_bit, killed_after, make_data, packed
from PIL import Image
from tiny import run_script
from xray_splits import LOGGER, make_config, write_split, xray

import data.store_files
from data.chexpert import read_csv
from data.folder import read_folder
from data.images import BadImageError, full_size, load_image
from data.packing import Settings, pack, read_source
from data.reading import open_data, read_split
from data.records import Records
from data.store import open_store
from data.store_about import file_crc32, is_store, read_about
from data.store_files import copy_store, verify, write_json


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, two of them with more than 8 bits."""
    return make_data(tmp_path_factory.mktemp('data'), p3=4095, p6=65535)


@pytest.fixture(scope='module')
def store(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten squares in four shards."""
    return packed(root, tmp_path_factory.mktemp('packed') / 'store')


def assert_same_records(found: Records, wanted: Records) -> None:
    for name, values in vars(wanted).items():
        if isinstance(values, np.ndarray):
            np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)


# Contents


def test_records_and_images_are_those_of_the_folder(root: Path, tmp_path: Path) -> None:
    store = packed(root, tmp_path / 'store', Settings(size=None, square=False, keep_16bit=True))
    opened = open_store(store)
    for name in ('train.csv', 'valid.csv', 'test.csv'):
        found, wanted = (read_csv(folder, name) for folder in (store, root))
        assert_same_records(found, wanted)
        for file in wanted.file:
            image, original = opened.image(opened.position([file])[0]), load_image(root / file)
            assert image.mode == original.mode and image.tobytes() == original.tobytes()
            assert full_size(image) == full_size(original)


@pytest.mark.parametrize(
    'settings', [Settings(16), Settings(16, keep_16bit=True), Settings(16, square=False)]
)
def test_images_are_resized_with_pillow(root: Path, tmp_path: Path, settings: Settings) -> None:
    opened = open_store(packed(root, tmp_path / 'store', settings))
    for position, file in enumerate(opened.files):
        original = load_image(root / file)
        short = min(original.size)
        size = [round(side * 16 / short) for side in original.size]
        size = [16, 16] if settings.square else size
        wanted = np.asarray(original.resize(size, Image.Resampling.BICUBIC), float).clip(0, 255)
        image = opened.image(position)
        assert full_size(image) == (original.height, original.width)
        tolerance = 255 / 65535 if settings.keep_16bit else 0.5
        np.testing.assert_allclose(np.asarray(image, float), wanted, atol=tolerance * 1.01)
        assert image.mode == ('F' if original.mode == 'F' and settings.keep_16bit else 'L')


def test_positions_names_and_folders(tmp_path: Path) -> None:
    root, long = tmp_path / 'tree', 'z' * 200 + '.png'
    for name in ('a.png', 'a/b.png', 'a/é.png', 'a0.png', 'ab/c.png', long):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        xray(20, 20).save(root / name)
    (root / 'a' / 'bad.png').write_bytes(b'damaged')
    store = open_store(packed(root, tmp_path / 'store', skip_bad=True))
    assert store.files == ['a.png', 'a/b.png', 'a/é.png', 'a0.png', 'ab/c.png', long]
    wanted = ['ab/c.png', 'a/é.png', 'a/bad.png', '', 'zz', long + 'x', 'a/b.pn', 'a.png', long]
    assert store.position(wanted).tolist() == [4, 2, -1, -1, -1, -1, -1, 0, 5]
    assert store.below('a') == ['a/b.png', 'a/bad.png', 'a/é.png']
    names = ['a', 'a/bad.png', 'ab/c.png', 'b', 'z' * 300]
    assert [store.exists(name) for name in names] == [True, True, True, False, False]
    assert list(store.left_out) == ['a/bad.png']
    with pytest.raises(IndexError):
        store.image(-1)


# Packing


def test_workers_and_interruptions_change_no_byte(root: Path, store: Path, tmp_path: Path) -> None:
    wanted = contents(store)
    assert contents(packed(root, tmp_path / 'two', workers=2)) == wanted
    for count in (2, 7):
        with killed_after(count):
            pack(read_source(root), tmp_path / 'killed', SMALL)
    with pytest.raises(ValueError, match='not finished'):
        is_store(tmp_path / 'killed')
    assert contents(packed(root, tmp_path / 'killed')) == wanted
    assert contents(packed(root, tmp_path / 'killed')) == wanted  # it is complete


def test_packing_starts_over_from_a_damaged_shard_and_a_repaired_image(tmp_path: Path) -> None:
    root = make_data(tmp_path / 'data')
    wanted = contents(packed(root, tmp_path / 'whole'))
    with killed_after(7):
        pack(read_source(root), tmp_path / 'cut', SMALL)
    os.truncate(tmp_path / 'cut/pixels_00000.bin', 10)
    assert contents(packed(root, tmp_path / 'cut')) == wanted
    good = (root / file_of(2)).read_bytes()
    (root / file_of(2)).write_bytes(b'damaged')
    with killed_after(7):
        pack(read_source(root), tmp_path / 'repaired', SMALL, skip_bad=True)
    (root / file_of(2)).write_bytes(good)
    assert contents(packed(root, tmp_path / 'repaired')) == wanted


def test_other_settings_or_data_are_refused(root: Path, store: Path, tmp_path: Path) -> None:
    for begun in (False, True):
        output = tmp_path / 'begun' if begun else copied(store, tmp_path / 'done')
        if begun:
            with killed_after(2):
                pack(read_source(root), output, SMALL)
        with pytest.raises(ValueError, match='size'):
            pack(read_source(root), output, Settings(17, shard_bytes=1000))
        with pytest.raises(ValueError, match='images'):
            pack(read_source(make_data(tmp_path / f'other{begun}', 4)), output, SMALL)


def test_damaged_images_are_listed_and_left_out(tmp_path: Path, caplog) -> None:
    root = make_data(tmp_path / 'data')
    (root / file_of(2)).write_bytes(b'damaged')
    with pytest.raises(ValueError, match='patient00002.*--skip-bad'):
        pack(read_source(root), tmp_path / 'store', SMALL)
    about = pack(read_source(root), tmp_path / 'store', SMALL, skip_bad=True)
    assert list(about['left_out']) == [file_of(2)] and about['images'] == 9
    assert file_of(2) in (tmp_path / 'store' / 'bad_images.csv').read_text()
    config = make_config(tmp_path / 'store')
    open_data(config, LOGGER)
    assert len(read_split(config, 'train', LOGGER)) == len(read_csv(root, 'train.csv')) - 1
    assert '1 images could not be read when it was packed (bad_images.csv)' in caplog.text
    assert 'patient00002' not in caplog.text, 'there may be many'
    (root / file_of(3)).unlink()
    with pytest.raises(ValueError, match='patient00003'):  # it may be readable later
        pack(read_source(root), tmp_path / 'other', SMALL, skip_bad=True)


def test_places_that_cannot_be_a_store_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'notes.txt').write_text('mine')
    for output in (root / 'store', tmp_path / 'full'):
        with pytest.raises(ValueError, match='--output'):
            pack(read_source(root), output, SMALL)
    assert os.listdir(tmp_path / 'full') == ['notes.txt']


def test_images_of_other_csv_files(root: Path, tmp_path: Path) -> None:
    few = packed(root, tmp_path / 'few', csv_names=['valid.csv'])
    assert len(open_store(few).files) == 2
    with pytest.raises(ValueError, match='train.csv'):
        read_csv(few, 'train.csv')
    root = copied(root, tmp_path / 'data')
    xray(30, 30).save(root / 'extra.png')
    every = packed(root, tmp_path / 'every', all_images=True)
    assert 'extra.png' in open_store(every).files
    with pytest.raises(ValueError, match='train.csv|valid.csv|scored'):
        read_folder(every, allow_all_images=False)


def test_the_script_packs_verifies_and_reports(root: Path, tmp_path: Path, capsys) -> None:
    store = str(tmp_path / 'store')

    def run(*words: str) -> int:
        return run_script('pack', *words, '--output', store)

    words = ['--data-path', str(root), '--workers', '1']
    assert run(*words, '--size', '16') == 0
    assert run('--verify') == 0
    assert run(*words, '--size', '17') == 2
    assert run(*words, '--size', 'big') == 2
    assert store in capsys.readouterr().err
    flip_bit(Path(store) / 'pixels_00000.bin', 5)
    assert run('--verify') == 1
    assert 'pixels_00000.bin' in capsys.readouterr().err


# Damage


def test_images_with_the_pixels_of_another_split_are_named(tmp_path: Path, capsys) -> None:
    (tmp_path / 'data').mkdir()
    write_split(tmp_path / 'data', 'train', 2)
    write_split(tmp_path / 'data', 'valid', 1)  # of the first patient, under other names
    for name, warned in (('train.csv', ''), ('train.csv valid.csv', '2 images')):
        words = ['--data-path', tmp_path / 'data', '--size', 24, '--output', tmp_path / name]
        words += ['--workers', 1, '--csv', *name.split()]
        assert run_script('pack', *words) == 0
        shown = capsys.readouterr().err
        assert warned in shown and bool(warned) == ('another split' in shown)
    assert 'valid/patient00000/study1/view1_frontal.png' in shown


def test_a_flipped_bit_anywhere_is_found(store: Path, tmp_path: Path) -> None:
    draw, whole = random.Random(0), contents(store)
    damaged = copied(store, tmp_path / 'damaged')
    for name, written in whole.items():
        for _ in range(4):
            place, bit = draw.randrange(len(written)), draw.randrange(8)
            flip_bit(damaged / name, place, bit)
            problems = verify(damaged)
            assert len(problems) == 1 and str(damaged / name) in problems[0], (name, place, bit)
            flip_bit(damaged / name, place, bit)
        (damaged / name).write_bytes(written[:-2])
        assert name in verify(damaged)[0]
        (damaged / name).unlink()
        assert name in verify(damaged)[0]
        if not name.startswith('pixels'):
            with pytest.raises(ValueError, match=name):
                open_store(damaged)
        (damaged / name).write_bytes(written)
    assert verify(damaged) == []


def test_reading_finds_damage_and_a_file_that_is_cut_short(store: Path, tmp_path: Path) -> None:
    damaged = copied(store, tmp_path / 'damaged')
    flip_bit(damaged / 'pixels_00001.bin', 2 * 256 + 17, 5)
    opened = open_store(damaged)
    opened.image(4)
    with pytest.raises(BadImageError, match=opened.files[5]):
        opened.image(5)
    os.truncate(damaged / 'pixels_00001.bin', 300)
    with pytest.raises(BadImageError, match='pixels_00001.bin'):
        opened.image(4)
    (damaged / 'pixels_00003.bin').unlink()
    with pytest.raises(ValueError, match='pixels_00003.bin') as caught:
        opened.image(9)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_shard_that_changes_after_its_first_check_is_found(store: Path, tmp_path: Path) -> None:
    changing = copied(store, tmp_path / 'changing')
    opened, file = open_store(changing), changing / 'pixels_00001.bin'
    before = opened.image(5).tobytes()
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # the same pixels
    assert opened.image(5).tobytes() == before
    flip_bit(file, 2 * 256 + 17, 5)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # however coarse the clock is
    with pytest.raises(BadImageError, match=opened.files[5]):
        opened.image(5)


# Copies on the disk of a node


def test_a_copy_is_resumed_checked_and_reused(store: Path, tmp_path: Path, monkeypatch) -> None:
    target, copies, copy_file = tmp_path / 'copy', [], data.store_files.copy_file

    def counted(source: Path, *args) -> None:
        copies.append(source.name)
        copy_file(source, *args)

    monkeypatch.setattr(data.store_files, 'copy_file', counted)
    copy_store(store, target)
    assert contents(target) == contents(store)
    assert sorted(copies) == sorted(read_about(store)['files'])
    copies.clear()
    copy_store(store, target)
    assert copies == []
    (target / 'store.json').unlink()
    flip_bit(target / 'pixels_00002.bin', 7)
    copy_store(store, target)
    assert copies == ['pixels_00002.bin'] and contents(target) == contents(store)
    assert copy_store(store, store) == store


def test_a_damaged_source_or_a_full_disk_is_not_copied(
    store: Path, tmp_path: Path, monkeypatch
) -> None:
    damaged = copied(store, tmp_path / 'damaged')
    flip_bit(damaged / 'pixels_00002.bin', 7)
    with pytest.raises(ValueError, match='pixels_00002.bin'):
        copy_store(damaged, tmp_path / 'copy')
    assert not is_store(tmp_path / 'copy')
    assert not list((tmp_path / 'copy').glob('*.tmp'))
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(ValueError, match='GB free'):
        copy_store(store, tmp_path / 'other')


# Stores from elsewhere, whose checksums fit


def put(field: str, value: int) -> Callable[[np.ndarray], None]:
    def change(places: np.ndarray) -> None:
        places[field][3] = value

    return change


def rewrite(store: Path, **entries: object) -> None:
    """Change entries of store.json and its checksum."""
    write_json(store / 'store.json', read_about(store) | entries)


def pipe(store: Path) -> None:
    (store / 'train.csv').unlink()
    os.mkfifo(store / 'train.csv')
    rewrite(store, files=read_about(store)['files'] | {'train.csv': [0, 0]})


FOREIGN = {'version': ('version 3', lambda store: rewrite(store, version=3))}
FOREIGN['a pipe, which nothing may wait for'] = ('train.csv', pipe)
for text in ('', '[]', '{"version": 2}', '[' * 100_000):
    change = partial(lambda text, store: (store / 'store.json').write_text(text), text)
    FOREIGN[f'text {text:.20}'] = ('store.json', change)
for name in ('../../victim/x', '/etc/hostname', 'a/../../b', 'a\0b', ''):
    FOREIGN[f'file {name!r}'] = ('store.json', partial(rewrite, files={name: [0, 0]}))
    FOREIGN[f'shard {name!r}'] = ('store.json', partial(rewrite, shards=[name]))


@pytest.mark.parametrize('kind', FOREIGN)
def test_a_foreign_store_is_neither_opened_nor_copied(store: Path, tmp_path: Path, kind) -> None:
    part, change = FOREIGN[kind]
    foreign, target = copied(store, tmp_path / 'foreign'), tmp_path / 'cache' / 'store'
    change(foreign)
    for use in (open_store, lambda path: copy_store(path, target)):
        with pytest.raises(ValueError, match=part):
            use(foreign)
    assert not (target / 'store.json').exists() and not (tmp_path / 'victim').exists()


PLACES, NAMES = 'places_00000.npy', 'names_00000.npy'
MISFITS = {
    'shard': (PLACES, put('shard', 4)),
    'form': (PLACES, put('form', 99)),
    'offset': (PLACES, put('offset', 2**63)),
    'height': (PLACES, put('height', 2**31)),
    'width': (PLACES, put('width', 0)),
    'a name outside': (NAMES, lambda names: names.put(0, b'../x.png')),
    'unsorted names': (NAMES, lambda names: names.put([1, 2, 3], names[[3, 1, 2]])),
    'a repeated name': (NAMES, lambda names: names.put(2, names[1])),
}


@pytest.mark.parametrize('misfit', MISFITS)
def test_an_index_that_does_not_fit_is_refused(store: Path, tmp_path: Path, misfit: str) -> None:
    name, change = MISFITS[misfit]
    foreign = copied(store, tmp_path / 'foreign')
    file = foreign / name
    index = np.load(file)
    change(index)
    np.save(file, index)
    entry = {name: [file.stat().st_size, file_crc32(file)]}
    rewrite(foreign, files=read_about(foreign)['files'] | entry)
    with pytest.raises(ValueError, match=name):
        open_store(foreign)

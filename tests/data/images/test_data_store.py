"""The packed store: the same records and images as the folder, resumable, every change is found."""

import errno
import os
import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
from packed_data import SMALL, contents, copied, file_of, flip_bit, killed_after, make_data, packed
from PIL import Image
from pyarrow import ipc
from tiny import ROOT, run_script
from xray_splits import LOGGER, make_config, write_split, xray

import data.images.store_files
import data.packing
from data.images.files import BadImageError, full_size, load_image
from data.images.store import SCHEMA, Store, open_store, read_rows
from data.images.store_files import LOCK_FILE, copy_store, verify, write_json
from data.images.store_manifest import file_crc32, is_store, read_manifest
from data.packing import Settings, pack, read_source
from data.tables.chexpert import read_csv
from data.tables.folder import read_folder
from data.tables.reading import log_loading, read_split
from system.files import locked

WHOLE = Settings(size=None, square=False, keep_16bit=True)


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, two of them with more than 8 bits."""
    return make_data(tmp_path_factory.mktemp('data'), p3=4095, p6=65535)


@pytest.fixture(scope='module')
def store(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten squares in four shards."""
    return packed(root, tmp_path_factory.mktemp('packed') / 'store')


@pytest.fixture(scope='module')
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ten images as they are."""
    return packed(root, tmp_path_factory.mktemp('packed') / 'store', WHOLE)


# Contents


def test_records_and_images_are_those_of_the_folder(root: Path, whole: Path) -> None:
    opened = open_store(whole)
    for name in ('train.csv', 'valid.csv', 'test.csv'):
        found, wanted = (read_csv(folder, name) for folder in (whole, root))
        for field, values in vars(wanted).items():
            if isinstance(values, np.ndarray):
                np.testing.assert_array_equal(getattr(found, field), values, err_msg=field)
        for file in wanted.file:
            image, original = opened.image(opened.position([file])[0]), load_image(root / file)
            assert image.mode == original.mode and image.tobytes() == original.tobytes()
            assert full_size(image) == full_size(original)


def test_grey_levels_that_are_no_integers_of_any_bits_are_kept(tmp_path: Path, monkeypatch) -> None:
    """Such as those of a DICOM file with an odd window."""
    root = make_data(tmp_path / 'data', 3)
    levels = np.random.default_rng(0).uniform(0, 255, (20, 30)).astype(np.float32)
    encode = data.packing.encode
    odd = Image.fromarray(levels)
    monkeypatch.setattr(data.packing, 'encode', lambda image, settings: encode(odd, settings))
    image = open_store(packed(root, tmp_path / 'store', WHOLE)).image(1)
    assert image.mode == 'F' and image.tobytes() == levels.tobytes()


def test_other_programs_read_the_rows(root: Path, whole: Path) -> None:
    rows = ipc.open_file(str(whole / 'images_00000.arrow')).read_all().to_pylist()
    assert [row['name'] for row in rows] == sorted(row['name'] for row in rows)
    for row in rows:
        image = load_image(root / row['name'])
        bits = {255: 'u1', 4095: '<u2', 65535: '<u2'}
        pixels = np.frombuffer(row['pixels'], bits[row['white']])
        pixels = pixels.reshape(row['height'], row['width']) * (255 / row['white'])
        np.testing.assert_allclose(pixels, np.asarray(image), rtol=1e-6)
        assert (row['full_height'], row['full_width']) == pixels.shape
        assert row['crc32'] == zlib.crc32(row['pixels'])
    assert {row['white'] for row in rows} == {255, 4095, 65535}


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


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / 'data').mkdir()
    file = os.fsencode(tmp_path / 'data') + b'/R\xf6ntgen.png'
    xray(20, 20).save(tmp_path / 'x.png')
    try:
        os.rename(tmp_path / 'x.png', file)
    except OSError:
        pytest.skip('the file system has no such names')
    with pytest.raises(ValueError, match='UTF-8.*ntgen'):
        read_source(tmp_path / 'data')


# Packing


def test_workers_and_interruptions_change_no_byte(root: Path, store: Path, tmp_path: Path) -> None:
    wanted = contents(store)
    assert contents(packed(root, tmp_path / 'two', workers=2)) == wanted
    for count in (0, 2, 3, 1, 4):  # images until each kill; three are in a shard
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
    for damage in (Path.unlink, lambda file: os.truncate(file, 10), lambda file: flip_bit(file, 9)):
        damage(tmp_path / 'cut/images_00000.arrow')
        with killed_after(5):
            pack(read_source(root), tmp_path / 'cut', SMALL)
    os.truncate(tmp_path / 'cut/images_00000.arrow', 10)
    assert contents(packed(root, tmp_path / 'cut')) == wanted
    good = (root / file_of(2)).read_bytes()
    (root / file_of(2)).write_bytes(b'damaged')
    with killed_after(7):
        pack(read_source(root), tmp_path / 'repaired', SMALL, skip_bad=True)
    (root / file_of(2)).write_bytes(good)
    resumed = pack(read_source(root), tmp_path / 'repaired', SMALL, skip_bad=True)
    assert not resumed['left_out'] and contents(tmp_path / 'repaired') == wanted


def test_packing_starts_over_if_images_were_changed_or_swapped(tmp_path: Path, caplog) -> None:
    root = make_data(tmp_path / 'data')
    first, last = (root / file_of(number) for number in (1, 9))

    def swap() -> None:  # which keeps the times of the contents
        first.rename(root / 'other')
        last.rename(first)
        (root / 'other').rename(last)

    for number, change in enumerate((swap, lambda: first.write_bytes(last.read_bytes()))):
        with killed_after(7):
            pack(read_source(root), tmp_path / f'cut_{number}', SMALL)
        change()
        wanted = contents(packed(root, tmp_path / f'whole_{number}'))
        assert contents(packed(root, tmp_path / f'cut_{number}')) == wanted
    assert caplog.messages == [f'{file_of(1)} was changed after it was packed: begin again'] * 2


def test_a_complete_store_that_lacks_a_file_is_not_called_packed(root, store, tmp_path) -> None:
    lacking = copied(store, tmp_path / 'store')
    (lacking / 'images_00002.arrow').unlink()
    with pytest.raises(ValueError, match='images_00002.arrow.*a new folder'):
        pack(read_source(root), lacking, SMALL)


def test_two_packers_at_once_are_refused(root: Path, tmp_path: Path) -> None:
    with killed_after(4):
        pack(read_source(root), tmp_path / 'store', SMALL)
    before = contents(tmp_path / 'store')
    with locked(tmp_path / 'store' / LOCK_FILE, wait=False):
        with pytest.raises(ValueError, match='another process is writing'):
            pack(read_source(root), tmp_path / 'store', SMALL)
    assert contents(tmp_path / 'store') == before


@pytest.mark.parametrize('full', ['images_00001.arrow', 'valid.csv', 'store.json'])
def test_a_disk_that_fills_leaves_nothing_whole(root, store, tmp_path, full, monkeypatch) -> None:
    replace = os.replace

    def replace_or_fail(source: Path, target: Path) -> None:
        if target.name == full:
            raise OSError(errno.ENOSPC, 'No space left on device', str(source))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', replace_or_fail)
        with pytest.raises((OSError, ValueError), match='No space left'):
            pack(read_source(root), tmp_path / 'store', SMALL)
    with pytest.raises(ValueError, match='not finished'):
        open_store(tmp_path / 'store')
    assert not list((tmp_path / 'store').glob('*.tmp'))
    assert contents(packed(root, tmp_path / 'store')) == contents(store)


def test_other_settings_or_data_are_refused(root: Path, store: Path, tmp_path: Path) -> None:
    done, begun = copied(store, tmp_path / 'done'), tmp_path / 'begun'
    with killed_after(2):
        pack(read_source(root), begun, SMALL)
    other = read_source(make_data(tmp_path / 'other', 4))
    for output in (done, begun):
        with pytest.raises(ValueError, match='size'):
            pack(read_source(root), output, Settings(17, shard_bytes=1000))
        with pytest.raises(ValueError, match='images'):
            pack(other, output, SMALL)


def test_damaged_images_are_listed_and_left_out(tmp_path: Path, caplog) -> None:
    root = make_data(tmp_path / 'data')
    (root / file_of(2)).write_bytes(b'damaged')
    with pytest.raises(ValueError, match='patient00002.*--skip-bad'):
        pack(read_source(root), tmp_path / 'store', SMALL)
    manifest = pack(read_source(root), tmp_path / 'store', SMALL, skip_bad=True)
    assert list(manifest['left_out']) == [file_of(2)] and manifest['images'] == 9
    assert file_of(2) in (tmp_path / 'store' / 'bad_images.csv').read_text()
    config = make_config(tmp_path / 'store')
    log_loading(config, LOGGER)
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
    assert store in capsys.readouterr().err
    flip_bit(Path(store) / 'images_00000.arrow', 5)
    assert run('--verify') == 1
    assert 'images_00000.arrow' in capsys.readouterr().err


# Damage


def test_images_with_the_pixels_of_another_split_are_named(tmp_path: Path, capsys) -> None:
    (tmp_path / 'data').mkdir()
    write_split(tmp_path / 'data', 'train', 2)
    write_split(tmp_path / 'data', 'valid', 1)  # of the first patient, under other names
    words = ['--data-path', tmp_path / 'data', '--size', 24, '--workers', 1, '--output']
    assert run_script('pack', *words, tmp_path / 'a', '--csv', 'train.csv') == 0
    assert 'another split' not in capsys.readouterr().err
    assert run_script('pack', *words, tmp_path / 'b', '--csv', 'train.csv', 'valid.csv') == 0
    shown = capsys.readouterr().err
    assert '2 images' in shown and 'another split' in shown
    assert 'valid/patient01000/study1/view1_frontal.png' in shown


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
        if not name.startswith('images'):
            with pytest.raises(ValueError, match=name):
                open_store(damaged)
        (damaged / name).write_bytes(written)
    assert verify(damaged) == []


def test_reading_finds_damage_and_a_file_that_is_cut_short(store: Path, tmp_path: Path) -> None:
    damaged = copied(store, tmp_path / 'damaged')
    opened = open_store(damaged)
    flip_bit(damaged / 'images_00001.arrow', opened.index['offset'][5].item() + 17, 5)
    opened.image(4)
    with pytest.raises(BadImageError, match=opened.files[5]):
        opened.image(5)
    os.truncate(damaged / 'images_00001.arrow', 300)
    with pytest.raises(BadImageError, match='images_00001.arrow'):
        opened.image(4)
    (damaged / 'images_00003.arrow').unlink()
    with pytest.raises(ValueError, match='images_00003.arrow') as caught:
        opened.image(9)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_shard_that_changes_after_its_first_check_is_found(store: Path, tmp_path: Path) -> None:
    changing = copied(store, tmp_path / 'changing')
    opened, file = open_store(changing), changing / 'images_00001.arrow'
    before = opened.image(5).tobytes()
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # the same pixels
    assert opened.image(5).tobytes() == before
    flip_bit(file, opened.index['offset'][5].item() + 17, 5)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # however coarse the clock is
    with pytest.raises(BadImageError, match=opened.files[5]):
        opened.image(5)


# Copies on the disk of a node


def test_a_copy_is_resumed_checked_and_reused(store: Path, tmp_path: Path, monkeypatch) -> None:
    copy_file = Mock(side_effect=data.images.store_files.copy_file)
    monkeypatch.setattr(data.images.store_files, 'copy_file', copy_file)

    def copied_now() -> list[str]:
        copy_file.reset_mock()
        copy_store(store, tmp_path / 'copy')
        assert contents(tmp_path / 'copy') == contents(store)
        return sorted(call.args[0].name for call in copy_file.call_args_list)

    assert copied_now() == sorted(read_manifest(store)['files'])
    assert copied_now() == []
    (tmp_path / 'copy' / 'store.json').unlink()
    flip_bit(tmp_path / 'copy' / 'images_00002.arrow', 7)
    assert copied_now() == ['images_00002.arrow']
    assert copy_store(store, store) == store


def test_a_damaged_source_or_a_full_disk_is_not_copied(store, tmp_path, monkeypatch) -> None:
    damaged = copied(store, tmp_path / 'damaged')
    flip_bit(damaged / 'images_00002.arrow', 7)
    with pytest.raises(ValueError, match='images_00002.arrow'):
        copy_store(damaged, tmp_path / 'copy')
    assert not is_store(tmp_path / 'copy')
    assert not list((tmp_path / 'copy').glob('*.tmp'))
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(ValueError, match='GB free'):
        copy_store(store, tmp_path / 'other')


# Stores from elsewhere, whose checksums fit


def rewrite(store: Path, **entries: object) -> None:
    """Change entries of store.json and its checksum."""
    write_json(store / 'store.json', read_manifest(store) | entries)


def pipe(store: Path) -> None:
    (store / 'train.csv').unlink()
    os.mkfifo(store / 'train.csv')
    rewrite(store, files=read_manifest(store)['files'] | {'train.csv': [0, 0]})


def with_text(text: str) -> Callable[[Path], object]:
    return lambda store: (store / 'store.json').write_text(text)


UNREADABLE = 'store.json cannot be read'
FOREIGN = {
    'version': ('version 2.*pack', partial(rewrite, version=2)),
    'a pipe, which nothing may wait for': ('train.csv', pipe),
    'empty': (UNREADABLE, with_text('')),
    'a list': (UNREADABLE, with_text('[]')),
    'no checksum': (UNREADABLE, with_text('{"version": 2}')),
    'deep': (UNREADABLE, with_text('[' * 100_000)),
    'a file outside': (UNREADABLE, partial(rewrite, files={'../../victim/x': [0, 0]})),
    'a text as number': (UNREADABLE, partial(rewrite, files={'images_00000.arrow': [1, '2']})),
    'no numbers': (UNREADABLE, partial(rewrite, files={'images_00000.arrow': 5})),
    'no reason': (UNREADABLE, partial(rewrite, left_out={'a.png': 3})),
    'settings': (UNREADABLE, partial(rewrite, settings={'size': '256'})),
    'another entry': (UNREADABLE, partial(rewrite, another=1)),
}


@pytest.mark.parametrize('kind', FOREIGN)
def test_a_foreign_store_is_neither_opened_nor_copied(store: Path, tmp_path: Path, kind) -> None:
    message, change = FOREIGN[kind]
    foreign, target = copied(store, tmp_path / 'foreign'), tmp_path / 'cache' / 'store'
    change(foreign)
    for use in (open_store, lambda path: copy_store(path, target)):
        with pytest.raises(ValueError, match=message):
            use(foreign)
    assert not (target / 'store.json').exists() and not (tmp_path / 'victim').exists()


def write_shard(store: Path, batch: pa.RecordBatch, times: int = 1, **options: str) -> None:
    """Replace the second shard of a store, and its checksums in store.json."""
    file = store / 'images_00001.arrow'
    options = ipc.IpcWriteOptions(**options)
    with ipc.new_file(str(file), batch.schema, options=options) as writer:
        for _ in range(times):
            writer.write_batch(batch)
    numbers = [file.stat().st_size, file_crc32(file)]
    rewrite(store, files=read_manifest(store)['files'] | {file.name: numbers})


def second_shard(store: Path) -> pa.RecordBatch:
    return ipc.open_file(str(store / 'images_00001.arrow')).get_batch(0)


def first_row(**values: object) -> Callable[[list[dict]], None]:
    return lambda rows: rows[0].update(values)


OTHER_ROWS, SIZE, NAME = 'do not fit store.json', 'a size does not fit', 'a name is not a path'
ORDER, MISSING = 'not sorted', 'a value is missing'
MISFITS = {
    'another number': (OTHER_ROWS, first_row(full_height=20)),
    'another name': (OTHER_ROWS, lambda rows: rows[0].update(name=rows[0]['name'] + 'a')),
    'no side': (SIZE, first_row(width=0)),
    'two negative sides': (SIZE, first_row(width=-16, height=-16)),
    'a side that is too long': (SIZE, first_row(height=2**31 - 1)),
    'a negative side before packing': (SIZE, first_row(full_width=-1)),
    'no white': (SIZE, first_row(white=0)),
    'too few pixels': (SIZE, first_row(pixels=b'x')),
    'a name outside': (NAME, first_row(name='../x.png')),
    'an empty name': (NAME, first_row(name='')),
    'unsorted names': (ORDER, list.reverse),
    'a repeated name': (ORDER, lambda rows: rows.append(rows[-1])),
    'missing numbers': (MISSING, first_row(width=None)),
    'no rows': (MISSING, list.clear),
}


@pytest.mark.parametrize('misfit', MISFITS)
def test_a_shard_with_wrong_rows_is_refused(store: Path, tmp_path: Path, misfit: str) -> None:
    message, change = MISFITS[misfit]
    foreign = copied(store, tmp_path / 'foreign')
    rows = second_shard(foreign).to_pylist()
    change(rows)
    write_shard(foreign, pa.RecordBatch.from_pylist(rows, SCHEMA))
    with pytest.raises(ValueError, match=message):
        open_store(foreign)


@pytest.mark.parametrize(
    ('message', 'columns', 'options'),
    [
        ('one record batch', SCHEMA.names, {'times': 2}),
        ('compressed', SCHEMA.names, {'compression': 'zstd'}),
        ('compressed', SCHEMA.names, {'compression': 'lz4'}),
        ('the columns must be', ['name'], {}),
    ],
)
def test_a_shard_of_another_form_is_refused(store, tmp_path, message, columns, options) -> None:
    foreign = copied(store, tmp_path / 'foreign')
    write_shard(foreign, second_shard(foreign).select(columns), **options)
    with pytest.raises(ValueError, match=message):
        open_store(foreign)


def test_a_shard_that_would_decompress_to_a_lot_takes_no_memory(store, tmp_path) -> None:
    foreign = copied(store, tmp_path / 'foreign')
    rows = second_shard(foreign).to_pylist()
    rows[0]['pixels'] = bytes(2**24)
    write_shard(foreign, pa.RecordBatch.from_pylist(rows, SCHEMA), compression='zstd')
    default = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(default)
    pa.set_memory_pool(counting)
    try:
        with pytest.raises(ValueError, match='it is compressed'):
            open_store(foreign)
    finally:
        pa.set_memory_pool(default)
    assert counting.max_memory() < 2**20


@pytest.mark.parametrize(
    'limit', ['data.images.store.MAX_NAMES_BYTES', 'data.images.store_manifest.MAX_JSON_BYTES']
)
def test_a_store_that_would_fill_the_memory_is_refused(store, limit, monkeypatch) -> None:
    """A single long name pads all names."""
    monkeypatch.setattr(limit, 100)
    with pytest.raises(ValueError, match='more than 100 bytes'):
        Store(store)


@pytest.mark.parametrize('changes', [{28: 127, 190: 128}, {37: 128, 335: 128}])
def test_a_message_of_another_kind_is_refused_and_ends_no_process(store, tmp_path, changes) -> None:
    """Pyarrow ends the process if such a message is read as a schema."""
    file = tmp_path / 'images_00000.arrow'
    damaged = bytearray((store / file.name).read_bytes())
    for place, value in changes.items():
        damaged[place] = value
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match='no shard of a store'):
        read_rows([file])


def test_packing_does_not_import_torch(tmp_path: Path) -> None:
    """It would take seconds, and some 400 MB in each process."""
    words = ['--data-path', str(make_data(tmp_path / 'data')), '--output', str(tmp_path / 'store')]
    words += ['--size', '16', '--preprocess', 'equalize', '--workers', '2']
    command = (
        'import sys; from scripts.pack import main, parse_args\n'
        f'assert main(parse_args({words})) == 0\n'
        'assert "torch" not in sys.modules'
    )
    done = subprocess.run([sys.executable, '-c', command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '10 images' in done.stdout

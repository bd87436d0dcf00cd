"""Reading a packed store: records as from the folder, the same runs, and no change unnoticed."""

import gc
import json
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from csv_files import write
from packed_data import (
    NATIVE,
    SMALL,
    contents,
    copied,
    file_of,
    flip_bit,
    killed_after,
    make_data,
    packed,
)
from tiny import arguments, run_folder, run_main, tiny_config
from xray_splits import make_config

import data.store
from data import build_loader
from data.images import load_image
from data.packing import Settings, append, pack
from data.phantom import make_phantom_mimic
from data.records import (
    LABELLERS,
    SPLITS,
    Records,
    read_csv,
    read_folder,
    read_mimic,
    split_holdout,
    take_subset,
)
from data.store import PICTURE, Store, encode_about, is_store, open_store, verify

LOGGER = logging.getLogger('packed')
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten squares in four files; what they were packed from is gone."""
    folder = tmp_path_factory.mktemp('packed')
    packed(make_data(folder / 'data'), folder / 'store')
    shutil.rmtree(folder / 'data')
    return folder / 'store'


def assert_same_records(found: Records, wanted: Records) -> None:
    for name, values in vars(wanted).items():
        if name == 'root':
            continue
        if isinstance(values, np.ndarray):
            np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)
        else:
            assert getattr(found, name) == values, name


def test_records_splits_and_subsets_are_those_of_the_folder(phantom: Path, tmp_path: Path) -> None:
    store = packed(phantom, tmp_path / 'store', NATIVE)
    for name in ('train.csv', 'valid.csv', 'test.csv'):
        found, wanted = (read_csv(root, name) for root in (store, phantom))
        assert found.root == store
        assert_same_records(found, wanted)
        assert (store / name).read_bytes() == (phantom / name).read_bytes()
        for ours, theirs in zip(split_holdout(found, 0.2), split_holdout(wanted, 0.2), strict=True):
            assert_same_records(ours, theirs)
        options = {'fraction': 0.5, 'images': 0, 'seed': 3}
        assert_same_records(take_subset(found, **options), take_subset(wanted, **options))
    opened = open_store(store)
    for file in read_csv(phantom, 'valid.csv').file:
        found, wanted = opened.image(opened.position([file])[0]), load_image(phantom / file)
        assert found.mode == wanted.mode and found.tobytes() == wanted.tobytes()


def test_csv_of_studies_and_other_suffixes(tmp_path: Path) -> None:
    root = make_data(tmp_path / 'data', 6)
    (root / file_of(2)).rename((root / file_of(2)).with_name('view2_lateral.png'))
    second = (root / file_of(3)).with_name('view2_lateral.png')
    shutil.copy(root / file_of(3), second)
    header = ['Study', *read_csv_header(root)[5:]]
    studies = [f'CheXpert-v1.0-small/{file_of(i).rpartition("/")[0]}' for i in (3, 2)]
    write(root / 'test.csv', [{'Study': study, 'Edema': '1'} for study in studies], header)
    store = packed(root, tmp_path / 'store', csv_names=['valid.csv', 'test.csv'])
    wanted = read_csv(root, 'test.csv')
    assert len(wanted) == 3
    assert_same_records(read_csv(store, 'test.csv'), wanted)
    (root / file_of(4)).write_bytes(b'no picture')
    write(root / 'more.csv', [{'Study': studies[0].replace('00003', '00004')}], header)
    append(root, store, 'more.csv', skip_bad=True)
    assert len(read_csv(store, 'more.csv')) == 0
    converted = tmp_path / 'converted'
    shutil.copytree(root / 'train', converted / 'train')
    jpg = (root / 'valid.csv').read_text().replace('.png', '.jpg')
    (converted / 'valid.csv').write_text(jpg)
    store = packed(converted, tmp_path / 'png', Settings(16, image_suffix='.png'))
    options = {'image_suffix': '.png'}
    wanted = read_csv(converted, 'valid.csv', **options)
    assert_same_records(read_csv(store, 'valid.csv', **options), wanted)
    with pytest.raises(ValueError, match=r'images not found; tried .*\.jpg .*IMAGE_SUFFIX'):
        read_csv(store, 'valid.csv')


def read_csv_header(root: Path) -> list[str]:
    return (root / 'valid.csv').read_text().splitlines()[0].split(',')


def test_mimic(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    root, store = tmp_path / 'mimic', tmp_path / 'store'
    make_phantom_mimic(root, num_train=8, num_valid=3, num_test=3, size=32, seed=0, workers=1)
    wanted = {(s, x): read_mimic(root, s, labeller=x) for s in SPLITS for x in LABELLERS}
    spoilt = wanted['train', 'chexpert'].file[2]
    (root / spoilt).write_bytes(b'no picture')
    pack(root, store, SMALL, skip_bad=True)
    shutil.rmtree(root)
    for (split, labeller), records in wanted.items():
        found = read_mimic(store, split, labeller=labeller, logger=LOGGER)
        assert_same_records(found, records.select(records.file != spoilt))
    assert 'split.csv' in log.text and '1 images could not be read when the store' in log.text


def test_positions_names_and_folders(tmp_path: Path) -> None:
    root, long = tmp_path / 'tree', 'z' * 200 + '.png'
    for name in ('a.png', 'a/b.png', 'a/é.png', 'a0.png', 'ab/c.png', long):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(make_data(tmp_path / 'data', 1) / file_of(1), root / name)
    (root / 'a' / 'bad.png').write_bytes(b'no picture')
    store = open_store(packed(root, tmp_path / 'store', skip_bad=True))
    assert store.files == ['a.png', 'a/b.png', 'a/é.png', 'a0.png', 'ab/c.png', long]
    wanted = ['ab/c.png', 'a/é.png', 'a/bad.png', '', 'zz', long + 'x', 'a/b.pn', 'a.png', long]
    assert store.position(wanted).tolist() == [4, 2, -1, -1, -1, -1, -1, 0, 5]
    assert store.position([]).tolist() == []
    assert 'a/b.png' in store and 'a/bad.png' not in store and 'a' not in store
    assert store.below('a') == ['a/b.png', 'a/bad.png', 'a/é.png']
    assert store.below('a/b') == [] and store.below('z' * 300) == []
    names = ['a', 'a/bad.png', 'ab/c.png', 'b', 'z' * 300]
    assert [store.exists(name) for name in names] == [True, True, True, False, False]
    assert list(store.left_out) == ['a/bad.png']
    for read in (store.image, store.pixels, lambda p: store.gather(np.array([0, p]))):
        with pytest.raises(IndexError, match='no picture at position -1'):
            read(-1)


def test_gather_stacks_pictures_of_several_files(store: Path) -> None:
    opened, order = open_store(store), np.array([9, 0, 4, 4, 2])
    stacked = np.stack([np.asarray(opened.image(position)) for position in order])
    found = opened.gather(order)
    assert found.dtype == np.uint8 and found.shape == (5, 16, 16) and found.flags.writeable
    np.testing.assert_array_equal(found, stacked)
    assert len({picture.tobytes() for picture in stacked}) == 4
    again = pickle.loads(pickle.dumps(opened))  # noqa: S301
    assert len(pickle.dumps(opened)) < 300
    np.testing.assert_array_equal(again.gather(order), stacked)


CUT_OFF = """
import os, sys
import numpy as np
from data.packed import open_store
store = open_store(sys.argv[1])
every = np.arange(len(store))
before = store.gather(every)
os.rename(store.path / 'pixels_00000.bin', store.path / 'away.bin')
(store.path / 'pixels_00000.bin').write_bytes(bytes(768))
assert (store.gather(every) == before).all()  # what was opened is read on
os.truncate(store.path / 'pixels_00001.bin', int(sys.argv[2]))
for read in (store.image, lambda position: store.gather(np.array([0, position]))):
    try:
        read(5)
    except ValueError as error:
        print(error)
"""


@pytest.mark.parametrize('size', [0, 600])
def test_a_file_that_is_cut_short_while_in_use_is_named(
    store: Path, tmp_path: Path, size: int
) -> None:
    store = copied(store, tmp_path / 'store')
    command = [sys.executable, '-c', CUT_OFF, str(store), str(size)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run
    line = (
        f'{store}/pixels_00001.bin ends at byte {max(size, 512)}, within a picture: it was changed'
    )
    assert [found[: len(line)] for found in run.stdout.splitlines()] == [line] * 2


def test_a_store_is_opened_once_and_again_only_when_it_was_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_data(tmp_path / 'data')
    store = packed(root, tmp_path / 'store', csv_names=['train.csv'])
    (tmp_path / 'link').symlink_to(store)
    opened = open_store(store)
    for place in (str(store), tmp_path / 'link', tmp_path / 'data' / '..' / 'store'):
        assert open_store(place) is opened
    monkeypatch.chdir(tmp_path)
    assert open_store('store') is opened
    append(root, store, 'valid.csv')
    again = open_store(store)
    assert again is not opened and len(again) == len(opened) + 2


def test_a_run_opens_its_store_once(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, read_index = [], data.packed.read_index
    store = packed(phantom, tmp_path / 'store', Settings(32))
    monkeypatch.setattr(
        data.packed,
        'read_index',
        lambda path, about: opened.append(path) or read_index(path, about),
    )
    for is_pretrain in (True, False):
        config = make_config(store, 'DATA.IMG_SIZE', 32, 'DATA.MASK_PATCH_SIZE', 8)
        loaders = build_loader(config, LOGGER, is_pretrain)
        assert all(next(iter(loader)) for loader in loaders if loader)
    assert opened == [store]


@pytest.mark.skipif(not os.path.exists('/proc/self/fd'), reason='needs Linux')
def test_files_of_pixels_are_opened_when_they_are_read_and_closed_in_the_end(
    store: Path, tmp_path: Path
) -> None:
    store = copied(store, tmp_path / 'store')

    def held() -> list[str]:
        targets = (os.path.realpath(path) for path in Path('/proc/self/fd').iterdir())
        return sorted(path for path in targets if path.startswith(f'{store}/pixels_'))

    opened = Store(store)
    assert held() == []
    for _ in range(3):
        opened.gather(np.array([0, 9, 1]))
        opened.image(2)
    assert held() == [f'{store}/pixels_00000.bin', f'{store}/pixels_00003.bin']
    del opened
    gc.collect()
    assert held() == []


def test_a_flipped_bit_anywhere_is_found(store: Path, tmp_path: Path) -> None:
    draw, whole = random.Random(0), contents(store)
    assert not verify(store)
    for name, written in whole.items():
        spoilt = copied(store, tmp_path / name)
        for _ in range(6):
            place, bit = draw.randrange(len(written)), draw.randrange(8)
            flip_bit(spoilt / name, place, bit)
            problems = verify(spoilt)
            assert len(problems) == 1 and str(spoilt / name) in problems[0], (name, place, bit)
            if not name.startswith('pixels'):
                with pytest.raises(ValueError, match=name):
                    open_store(spoilt)
            flip_bit(spoilt / name, place, bit)
        assert not verify(spoilt)
        (spoilt / name).write_bytes(written[:-2])
        assert name in verify(spoilt)[0]
        (spoilt / name).unlink()
        assert name in verify(spoilt)[0]


def test_reading_finds_a_flipped_bit_on_the_first_read_of_a_picture(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = copied(store, tmp_path / 'spoilt')
    flip_bit(spoilt / 'pixels_00001.bin', 2 * 256 + 17, 5)
    opened, good = open_store(spoilt), np.array([0, 1, 2, 3, 4, 6, 7, 8, 9])
    found = rf'pixels_00001.bin: the picture of {file_of(6)} \(at byte 512\) is not what was packed'
    for read in (opened.image, opened.pixels, lambda p: opened.gather(np.array([p]))):
        with pytest.raises(ValueError, match=found):
            read(5)
    calls = []
    monkeypatch.setattr(data.packed.zlib, 'crc32', lambda d: calls.append(1) or zlib_crc32(d))
    good = np.delete(np.arange(10), 5)
    opened.gather(good)
    assert len(calls) == 9
    opened.gather(good)
    opened.image(2)
    assert len(calls) == 9


zlib_crc32 = zlib.crc32


def test_training_finds_a_flipped_bit(
    phantom: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    store = packed(phantom, tmp_path / 'store', Settings(32))
    opened = open_store(store)
    records = split_holdout(read_csv(store, 'train.csv'), 0.2)[0]
    records = records.select(records.view == 'frontal')
    file = str(records.file[3])
    flip_bit(store / 'pixels_00000.bin', int(opened.position([file])[0]) * 32 * 32 + 99)
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', DATA={'TRAIN_IMAGES': 0})
    assert run_main('simmim', arguments(cfg, store, tmp_path / 'out')) == 2
    assert f'the picture of {file} ' in capfd.readouterr().out


@pytest.mark.parametrize('stage', [pytest.param('simmim', marks=pytest.mark.slow), 'finetune'])
def test_both_mains_run_from_a_store_alone_as_from_the_folder(
    phantom: Path, tmp_path: Path, stage: str
) -> None:
    folder = copied(phantom, tmp_path / 'data')
    store = packed(folder, tmp_path / 'store', NATIVE)
    cfg, losses = tiny_config(tmp_path / 'run.yaml', stage), []
    for place in (folder, store):
        output = tmp_path / f'out_{place.name}'
        assert run_main(stage, arguments(cfg, place, output)) == 0
        lines = (run_folder(output, stage) / 'metrics.jsonl').read_text().splitlines()
        losses.append([json.loads(line) for line in lines])
        shutil.rmtree(folder, ignore_errors=True)
    assert without_times(losses[0]) == without_times(losses[1]) != []


def without_times(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if 'loss' in k or 'auroc' in k} for line in lines]


def test_unfinished_stores_and_other_versions_are_refused(store: Path, tmp_path: Path) -> None:
    root = make_data(tmp_path / 'data')
    with killed_after(2):
        pack(root, tmp_path / 'begun', SMALL)
    for read in (is_store, lambda path: read_csv(path, 'train.csv')):
        with pytest.raises(ValueError, match='not finished|no such CSV'):
            read(tmp_path / 'begun')
    with pytest.raises(ValueError, match='not finished'):
        read_folder(tmp_path / 'begun', allow_all_images=True)
    assert not is_store(root) and is_store(store)
    with pytest.raises(ValueError, match='no packed store: it has no store.json'):
        open_store(root)
    newer = copied(store, tmp_path / 'newer')
    for version in (1, 3):
        about = open_store(store).about | {'version': version}
        (newer / 'store.json').write_bytes(encode_about(about))
        with pytest.raises(ValueError, match=f'version {version}; this program reads 2: pack the'):
            open_store(newer)


def test_a_csv_that_names_other_pictures_is_refused(store: Path, tmp_path: Path) -> None:
    store = copied(store, tmp_path / 'store')
    text = (store / 'train.csv').read_text()
    lines = text.splitlines()
    (store / 'more.csv').write_text('\n'.join([*lines, lines[1].replace('00001', '00099'), '']))
    with pytest.raises(
        ValueError, match=r'more.csv, row 9 .*patient00099.*not in the store.*--app'
    ):
        read_csv(store, 'more.csv')


def test_a_large_store_takes_no_memory_for_each_picture(tmp_path: Path) -> None:
    count, each = 223_414, 256 * 256
    store = sparse_store(tmp_path / 'store', count)
    tracemalloc.start()
    try:
        opened = open_store(store)
        places = opened.position([f'train/patient{i:06d}/study1/view1.jpg' for i in (3, 223_413)])
        picture = opened.gather(np.array([*places, 100_000]))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(opened) == count and places.tolist() == [3, 223_413]
    assert not picture.any()
    assert held < 1_500_000 and peak < 12_000_000, (held, peak)
    assert sum(path.stat().st_size for path in store.glob('pixels_*')) == count * each


def sparse_store(store: Path, count: int) -> Path:
    """A store of black 256 x 256 pictures whose pixels take no place on the disk."""
    store.mkdir()
    each, shard = 256 * 256, 15_000
    pictures = np.zeros(count, PICTURE)
    pictures['shard'], pictures['offset'] = np.divmod(np.arange(count), shard)
    pictures['offset'] *= each
    pictures['height'] = pictures['width'] = 256
    pictures['full_height'], pictures['full_width'] = 320, 390
    pictures['crc32'] = zlib.crc32(bytes(each))
    names = np.array([f'train/patient{i:06d}/study1/view1.jpg' for i in range(count)], bytes)
    files, shards = {}, [f'pixels_{i:05d}.bin' for i in range(-(-count // shard))]
    for number, name in enumerate(shards):
        with open(store / name, 'wb') as file:
            file.truncate(each * min(shard, count - number * shard))
        files[name] = [(store / name).stat().st_size, 0]
    for kind, values in {'names': names, 'pictures': pictures}.items():
        path = store / f'{kind}_00000.npy'
        np.save(path, values)
        files[path.name] = [path.stat().st_size, zlib.crc32(path.read_bytes())]
    settings = {'size': 256, 'square': True, 'keep_16bit': False}
    about = {'version': 2, 'settings': settings, 'generation': 0, 'images': count, 'left_out': {}}
    about |= {'scored': False, 'shards': shards, 'files': files}
    (store / 'store.json').write_bytes(encode_about(about))
    return store

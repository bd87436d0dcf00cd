"""One store of several sources: packed, resumed, read source by source; duplicates of sources."""

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from packed_data import SMALL, file_of, killed_after, make_data
from PIL import Image
from test_data_layouts import nih
from test_data_sources import HERE, LOOSE, THERE, loaders_of
from tiny import config_with
from xray_splits import samples_of, write_split, xray

from data.check import SAME_XRAY, look_at
from data.chexpert import read_csv, read_folder
from data.layouts import read_layout
from data.packing import join_sources, pack, read_source
from data.records import Folder, open_images
from data.store import copy_store, is_store, open_store, read_about, verify
from scripts.check_data import main as check
from scripts.check_data import parse_args as check_args
from scripts.pack import main as pack_main
from scripts.pack import parse_args as pack_args


def sources_file(folder: Path, *entries: dict) -> Path:
    file = folder / 'sources.yaml'
    file.write_text(yaml.safe_dump({'DATA': {'SOURCES': list(entries)}}))
    return file


@pytest.fixture(scope='module')
def store(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('packed')
    cfg = sources_file(folder, HERE, THERE, LOOSE)
    argv = ['--data-path', str(drive), '--sources', str(cfg), '--output', str(folder / 'store')]
    assert pack_main(pack_args([*argv, '--size', 'native', '--workers', '2'])) == 0
    return folder / 'store'


def test_the_store_has_the_images_and_tables_of_each_source(drive, store):
    whole = open_store(store)
    files = {'here': 'A', 'there': 'B', 'loose': 'C'}
    wanted = {
        f'{name}/{path.relative_to(drive / folder)}'
        for name, folder in files.items()
        for path in (drive / folder).rglob('*.png')
    }
    assert set(whole.files) == wanted
    for name, folder in files.items():
        part, data = open_images(store / name), drive / folder
        assert [*part.files] == sorted(str(p.relative_to(data)) for p in data.rglob('*.png'))
        for file, position in zip(part.files, part.position(part.files), strict=True):
            pixels = np.asarray(part.image(int(position)))
            assert np.array_equal(pixels, np.asarray(Image.open(data / file)))
        assert part.position(['no/such.png']).tolist() == [-1]
        assert read_about(store / name)['images'] == len(part.files)
        assert is_store(store / name) and not is_store(store / 'other')
    assert (store / 'here' / 'train.csv').read_bytes() == (drive / 'A/train.csv').read_bytes()
    assert not (store / 'train.csv').exists()
    records = read_csv(store / 'there', 'train.csv', look_up='all')
    assert records.file.tolist() == read_csv(drive / 'B', 'train.csv').file.tolist()
    assert len(read_folder(store / 'loose', allow_all_images=False)) == 5
    with pytest.raises(ValueError, match=r'store\.json'):
        read_folder(store / 'here', allow_all_images=False)
    assert open_images(store / 'loose').below('deep') == [f'deep/{n}.png' for n in range(5)]
    assert open_images(store / 'loose').exists('deep') and not verify(store)


def test_pre_training_on_the_store_has_the_samples_of_the_files(drive, store, tmp_path):
    """The same entries of DATA.SOURCES serve for both, and for a copy on the node."""
    wanted = loaders_of(drive, HERE, THERE, LOOSE)
    for options in ((), ('DATA.CACHE_DIR', str(tmp_path / 'cache'))):
        loaders = loaders_of(store, HERE, THERE, LOOSE, options=options)
        for loader, want in zip(loaders[:2], wanted[:2], strict=True):
            for sample, same in zip(samples_of(loader, 1), samples_of(want, 1), strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(sample, same, strict=True))
    copies = {part.records.root.parent for part in loaders.train.dataset.parts.values()}
    assert len(copies) == 1 and copies.pop().parent == tmp_path / 'cache'
    with pytest.raises(ValueError, match=r'DATA\.SOURCES.*other'):
        loaders_of(store, HERE | {'name': 'other'})


def test_any_number_of_workers_and_a_resumed_packing_write_the_same_bytes(tmp_path):
    for name in ('a', 'b'):
        make_data(tmp_path / name, 8)
    source = join_sources({name: read_source(tmp_path / name) for name in ('b', 'a')})
    tables = [f'{name}/{split}.csv' for name in 'ab' for split in ('test', 'train', 'valid')]
    found = []
    for output, workers in (('one', 1), ('three', 3)):
        about = pack(source, tmp_path / output, SMALL, workers=workers)
        found.append(contents_of(tmp_path / output))
        assert set(tables) < set(found[-1]) and about['images'] == 16
    with killed_after(9):
        pack(source, tmp_path / 'killed', SMALL)
    with killed_after(3):
        pack(source, tmp_path / 'killed', SMALL)
    pack(source, tmp_path / 'killed', SMALL)
    copy_store(tmp_path / 'one', tmp_path / 'copy')
    assert (
        found[0] == found[1] == contents_of(tmp_path / 'killed') == contents_of(tmp_path / 'copy')
    )
    other = join_sources({name: read_source(tmp_path / name) for name in 'a'})
    with pytest.raises(ValueError, match='killed.*images'):
        pack(other, tmp_path / 'killed', SMALL)


def contents_of(store: Path) -> dict[str, bytes]:
    files = [path for path in store.rglob('*.*') if path.suffix != '.lock']
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def test_images_that_cannot_be_read_are_left_out_of_their_source(tmp_path):
    for name in ('a', 'b'):
        make_data(tmp_path / name, 4)
    (tmp_path / 'b' / file_of(2)).write_bytes(b'')
    source = join_sources({name: read_source(tmp_path / name) for name in 'ab'})
    with pytest.raises(ValueError, match='--skip-bad'):
        pack(source, tmp_path / 'store', SMALL)
    pack(source, tmp_path / 'store', SMALL, skip_bad=True)
    assert [*open_images(tmp_path / 'store' / 'b').left_out] == [file_of(2)]
    assert not open_images(tmp_path / 'store' / 'a').left_out
    assert 'b/' + file_of(2) in (tmp_path / 'store' / 'bad_images.csv').read_text()


def test_an_output_in_a_source_is_refused(drive, tmp_path, capsys):
    cfg = sources_file(tmp_path, HERE)
    argv = ['--data-path', str(drive), '--sources', str(cfg), '--size', '16']
    assert pack_main(pack_args([*argv, '--output', str(drive / 'A' / 'store')])) == 2
    assert '--output' in capsys.readouterr().err


# Duplicates


@pytest.fixture
def shared(drive: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Two data sets that share four X-rays, two of them in other forms; and which."""
    root = tmp_path / 'drive'
    for name in 'AB':
        shutil.copytree(drive / name, root / name)
    write_split(root / 'B', 'valid', 2)
    rng = np.random.default_rng(0)
    files = {name: read_csv(root / name, 'train.csv').file for name in 'AB'}
    scored = read_csv(root / 'B', 'valid.csv').file
    blobs = [smooth(rng) for _ in range(4)]
    for file in scored:
        Image.fromarray(smooth(rng)).save(root / 'B' / file)
    Image.fromarray(blobs[0]).save(root / 'A' / files['A'][0])
    Image.fromarray(blobs[0]).save(root / 'B' / files['B'][0])  # the same bytes
    Image.fromarray(blobs[1]).save(root / 'A' / files['A'][1])
    recoded = io.BytesIO()
    Image.fromarray(blobs[1]).resize((150, 140)).save(recoded, 'JPEG', quality=60)
    Image.open(recoded).save(root / 'B' / files['B'][3])  # smaller, and compressed with loss
    Image.fromarray(blobs[2]).save(root / 'A' / files['A'][4])  # scored there, so left out here
    Image.fromarray((blobs[2] * 0.8 + 9).astype(np.uint8)).save(root / 'B' / scored[1])
    Image.fromarray(blobs[3]).save(root / 'B' / files['B'][5])  # nowhere else
    return root, {
        f'there/{files["B"][0]}': f'here/{files["A"][0]}',
        f'there/{files["B"][3]}': f'here/{files["A"][1]}',
        f'here/{files["A"][4]}': f'there/{scored[1]}',
    }


def smooth(rng: np.random.Generator) -> np.ndarray:
    """Clouds of grey, as distinct as X-rays of two patients."""
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6)).astype(np.uint8))
    return np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC))


def test_x_rays_of_two_sources_are_found_and_left_out(shared, tmp_path):
    root, wanted = shared
    cfg, listed = sources_file(tmp_path, HERE, THERE), tmp_path / 'duplicates.csv'
    argv = ['--data-path', str(root), '--cfg', str(cfg), '--output', str(tmp_path / 'all.csv')]
    assert check(check_args([*argv, '--duplicates', str(listed), '--workers', '1'])) in (0, 1)
    every = pd.read_csv(listed)
    found = every[every['why'] != 'patient in two splits']
    assert dict(zip(found['file'], found['same_as'], strict=True)) == wanted
    table = pd.read_csv(tmp_path / 'all.csv')
    same = table[table['kind'] == 'same X-ray in two sources']
    assert set(same['file']) == set(wanted) and set(same['severity']) == {'warning'}
    assert set(table['csv'].dropna()) <= {'here/train.csv', 'there/train.csv', 'there/valid.csv'}
    loaders = loaders_of(root, HERE, THERE, options=('DATA.LEAVE_OUT', str(listed)))
    used = {
        f'{name}/{file}'
        for loader in loaders[:2]
        for name, part in loader.dataset.parts.items()
        for file in part.records.file
    }
    assert not used & set(every['file']) and len(used) == 20 + 12 - len(every)
    assert check(check_args([*argv, '--duplicates', str(root / 'A' / 'x.csv')])) == 2


def test_thumbnails_of_real_x_rays_tell_copies_from_other_x_rays(nih1000, tmp_path):
    """Brute force over all pairs of 100 X-rays and of their smaller, compressed copies."""
    files = sorted((nih1000).rglob('*.png'))[::10]
    for number, file in enumerate(files):
        with Image.open(file) as image:
            image.convert('L').save(tmp_path / f'{number}.png')
            image.convert('L').resize((128, 128)).save(tmp_path / f'{number}.jpg', quality=60)
    images = Folder(tmp_path)
    numbers = range(len(files))
    whole, copies = (
        np.stack([look_at(images, f'{n}.{form}')[3] for n in numbers]) for form in ('png', 'jpg')
    )
    apart = np.abs(whole[:, None] - copies[None]).max(axis=2)
    own = np.eye(len(files), dtype=bool)
    assert apart[own].max() < SAME_XRAY < 0.5 * apart[~own].min()


def test_a_data_set_with_a_layout_is_packed_with_its_tables_and_lists(tmp_path):
    """Only the images of its splits, alone and as a source; the readers find all they need."""
    root = nih(tmp_path / 'nih')
    for number, path in enumerate(sorted(root.rglob('*.png'))):
        xray(seed=number).save(path)
    xray(seed=9).save(root / 'images_001' / 'images' / 'unlisted.png')
    assert pack_main(pack_args(['--data-path', str(root), '--dataset', 'nih', '--size', '16',
                           '--output', str(tmp_path / 'alone')])) == 0  # fmt: skip
    cfg = sources_file(tmp_path, {'name': 'n', 'dataset': 'nih', 'path': 'nih'}, LOOSE)
    shutil.copytree(root / 'images_001', tmp_path / 'C')
    argv = ['--data-path', str(tmp_path), '--sources', str(cfg), '--size', '16']
    assert pack_main(pack_args([*argv, '--output', str(tmp_path / 'joined')])) == 0
    config = config_with(DATA__DATASET='nih')
    for store in (tmp_path / 'alone', tmp_path / 'joined' / 'n'):
        for split in ('train', 'test'):
            records = read_layout(config, store, split, look_up='all')
            assert records.file.tolist() == read_layout(config, root, split).file.tolist()
        assert len(open_images(store).files) == 5

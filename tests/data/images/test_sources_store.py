"""Stores of several sources in pre-training, and duplicates of sources."""

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from drive_sources import HERE, LOOSE, THERE, loaders_of
from PIL import Image, ImageOps
from xray_splits import samples_of, write_split

from data.describe.check import SAME_XRAY, look_at
from data.images.image_source import Folder
from data.images.store_manifest import is_store
from data.tables.chexpert import read_csv
from scripts.check_data import main as check
from scripts.check_data import parse_args as check_args
from scripts.pack import main as pack_main
from scripts.pack import parse_args as pack_args


@pytest.fixture(scope='module')
def stores(drive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of each source, with the name of its folder."""
    folder = tmp_path_factory.mktemp('packed')
    for name in 'ABC':
        argv = ['--data-path', str(drive / name), '--output', str(folder / name)]
        assert pack_main(pack_args([*argv, '--size', 'native', '--workers', '1'])) == 0
    return folder


def test_pre_training_on_stores_has_the_samples_of_the_files(drive, stores, tmp_path):
    """The same entries of DATA.SOURCES serve for both, and for copies on the node."""
    wanted = loaders_of(drive, HERE, THERE, LOOSE)
    for options in ((), ('DATA.CACHE_DIR', str(tmp_path / 'cache'))):
        loaders = loaders_of(stores, HERE, THERE, LOOSE, options=options)
        for loader, want in zip(loaders[:2], wanted[:2], strict=True):
            for sample, same in zip(samples_of(loader, 1), samples_of(want, 1), strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(sample, same, strict=True))
    copies = {part.records.root for part in loaders.train.dataset.parts.values()}
    assert len(copies) == 3 and {copy.parent for copy in copies} == {tmp_path / 'cache'}
    some = loaders_of(stores, HERE, THERE | {'path': str(drive / 'B')})  # the other is a folder
    assert [is_store(part.records.root) for part in some.train.dataset.parts.values()] == [1, 0]


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
    cfg, listed = tmp_path / 'sources.yaml', tmp_path / 'duplicates.csv'
    cfg.write_text(yaml.safe_dump({'DATA': {'SOURCES': [HERE, THERE]}}))
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
    """Brute force over all pairs of 50 X-rays and of their smaller, compressed copies."""
    files = sorted((nih1000).rglob('*.png'))[::20]
    images, own = Folder(tmp_path), np.eye(len(files), dtype=bool)
    xrays, whole = [], []
    for number, file in enumerate(files):
        with Image.open(file) as image:
            xrays.append(image.convert('L'))
        xrays[-1].save(tmp_path / f'{number}.bmp')
        whole.append(look_at(images, f'{number}.bmp')[3])
    for change in (
        lambda image: image,
        ImageOps.invert,
        ImageOps.equalize,
        lambda image: ImageOps.invert(ImageOps.equalize(image)),
        lambda image: image.point(lambda level: round(255 * (level / 255) ** 0.6)),
    ):
        copies = []
        for number, xray in enumerate(xrays):
            change(xray).resize((128, 128)).save(tmp_path / f'{number}.jpg', quality=60)
            copies.append(look_at(images, f'{number}.jpg')[3])
        signs = [np.abs(np.stack(whole)[:, None] - sign * np.stack(copies)[None]).max(axis=2)
                 for sign in (1, -1)]  # fmt: skip
        apart = np.minimum(*signs)
        assert apart[own].max() < SAME_XRAY < 0.5 * apart[~own].min()

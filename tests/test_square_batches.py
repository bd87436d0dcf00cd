"""A packed store of squares, batch by batch: what the files give, image by image."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import arguments, run_folder, run_main, tiny_config
from xray_splits import make_config

from data import Loaders, build_loader
from data.device_loader import on_device
from data.loader import SquareDataset
from data.packing import pack
from data.packing_images import Settings
from data.phantom import make_phantom
from data.splits import describe_pictures

LOGGER = logging.getLogger('test_square_batches')


@pytest.fixture(scope='module')
def squares(phantom, tmp_path_factory) -> tuple[Path, Path]:
    """A folder of square pictures, and the store of the same pixels."""
    folder = tmp_path_factory.mktemp('squares') / 'CheXpert-phantom'
    for file in phantom.rglob('*.jpg'):
        square = folder / file.relative_to(phantom).with_suffix('.png')
        square.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.convert('L').resize((48, 48)).save(square)
    for file in phantom.glob('*.csv'):
        (folder / file.name).write_text(file.read_text().replace('.jpg', '.png'))
    pack(folder, folder.parent / 'store', Settings(size=48))
    return folder, folder.parent / 'store'


def loaders_of(path: Path, is_pretrain: bool, **keys) -> Loaders:
    options = [item for key, value in keys.items() for item in (key.replace('__', '.'), value)]
    config = make_config(path, 'DATA.IMG_SIZE', 32, 'DATA.MASK_PATCH_SIZE', 8, *options)
    return on_device(build_loader(config, LOGGER, is_pretrain), torch.device('cpu'))


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(
    'is_pretrain, keys',
    [(True, {}), (False, {'DATA__SAMPLER': 'weighted', 'AUG__ROTATION': 10.0})]
    + [(False, {'EVAL__TTA': 'crops', 'EVAL__TTA_FLIP': True})],
)
def test_store_of_squares_gives_the_batches_of_its_files(squares, is_pretrain, keys, workers):
    files, store = (
        loaders_of(path, is_pretrain, DATA__NUM_WORKERS=workers, **keys) for path in squares
    )
    assert isinstance(store.train.dataset, SquareDataset)
    for name in Loaders._fields:
        one_by_one, at_once = getattr(files, name), getattr(store, name)
        assert (one_by_one is None) == (at_once is None)
        if one_by_one is None:
            continue
        if name == 'train':
            one_by_one.batch_sampler.set_epoch(2, first_batch=1)
            at_once.batch_sampler.set_epoch(2, first_batch=1)
        batches = list(zip(one_by_one, at_once, strict=True))
        assert batches
        for wanted, batch in batches:
            for items in zip(wanted, batch, strict=True):
                assert_same(*items)


def assert_same(wanted: torch.Tensor, item: torch.Tensor) -> None:
    assert (item.dtype, item.shape) == (wanted.dtype, wanted.shape)
    if item.ndim < 4:  # masks, targets, positions, scales
        assert torch.equal(item.nan_to_num(9), wanted.nan_to_num(9))
        return
    off = (item - wanted).abs() * 255 * 0.292  # files are rounded, by bicubic twice
    assert off.max() < 12 and off.mean() < 0.5


@pytest.fixture(scope='module')
def oblong(tmp_path_factory) -> Path:
    """Pictures of about 320 x 260 and 260 x 320 px."""
    folder = tmp_path_factory.mktemp('oblong') / 'CheXpert-phantom'
    make_phantom(folder, num_train=16, num_valid=8, num_test=2, size=320, seed=0)
    return folder


def grey_levels_off(files: Loaders, store: Loaders, name: str) -> float:
    """How far the pixels of a loader are from those of the files, on average."""
    pairs = zip(getattr(files, name), getattr(store, name), strict=True)
    off = [(one[0] - other[0]).abs().mean() for one, other in pairs]
    return 255 * 0.292 * float(np.mean(off))


# The greatest that were seen: 0.60, 0.39 and 0.57; of pictures that stay squeezed, 24 to 39.
@pytest.mark.parametrize(
    'settings, limit',
    [(Settings(256), 0.8), (Settings(320), 0.6), (Settings(256, keep_16bit=True), 0.8)],
    ids=['256', '320', 'by picture'],
)
def test_a_store_of_squares_gives_the_views_of_its_files(oblong, settings, limit, tmp_path):
    store = tmp_path / 'store'
    pack(oblong, store, settings)
    options = {'DATA__IMG_SIZE': 192, 'DATA__MASK_PATCH_SIZE': 32, 'DATA__UNCERTAIN': 'ones'}
    options |= {'AUG__COLOR_JITTER': 0.0, 'AUG__REPROB': 0.0}
    off = {}
    for is_pretrain, keys in (
        (True, {}),
        (False, {'TEST__CROP': True}),
        (False, {'TEST__CROP': True, 'EVAL__TTA': 'crops'}),
        (False, {'TEST__CROP': False}),
    ):
        pair = [loaders_of(path, is_pretrain, **options, **keys) for path in (oblong, store)]
        for name in ('train', 'holdout') if is_pretrain else ('train', 'valid'):
            off[(is_pretrain, name, *keys.values())] = grey_levels_off(*pair, name)
    assert max(off.values()) < limit, off


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['simmim', 'finetune'])
def test_training_on_a_store_is_that_on_its_files(squares, stage, tmp_path):
    config, losses = tiny_config(tmp_path / f'{stage}.yaml', stage), []
    for path in squares:
        output = tmp_path / path.name
        assert run_main(stage, arguments(config, path, output)) == 0
        lines = (run_folder(output, stage) / 'metrics.jsonl').read_text().splitlines()
        losses.append([json.loads(line)['loss'] for line in lines[1:]])
    assert len(losses[0]) == 2
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize(
    'settings, form',
    [
        (Settings(40), 'squeezed to 40 x 40 px, 8 bits'),
        (Settings(40, square=False), 'of short side 40 px or less, aspect kept, 8 bits'),
        (
            Settings(None, square=False, keep_16bit=True),
            'at their own sizes, more than 8 bits kept',
        ),
    ],
)
def test_the_form_of_a_store_is_logged_and_too_small_a_one_warned_of(
    phantom, settings, form, tmp_path, log
):
    store = tmp_path / 'store'
    images = pack(phantom, store, settings)['images']
    assert describe_pictures(store) == f'packed {form}' and describe_pictures(phantom) == 'files'
    for size, crop, is_enough in ((32, True, True), (40, True, False), (40, False, True)):
        log.clear()
        keys = ['DATA.IMG_SIZE', size, 'DATA.MASK_PATCH_SIZE', 8, 'TEST.CROP', crop]
        build_loader(make_config(store, *keys), LOGGER, is_pretrain=True)
        assert log.text.count(f'{store}: {images} pictures, packed {form}') == 1
        warned = f'{store}: pictures of 40 px are enlarged, for views of 40 px need 45 px'
        assert (warned in log.text) == (settings.size is not None and not is_enough)
    log.clear()
    build_loader(make_config(phantom), LOGGER, is_pretrain=True)
    assert 'pictures, packed' not in log.text

"""A packed store of squares, batch by batch: what the files give, image by image."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_loader import make_config
from tiny import arguments, run_folder, run_main, tiny_config

from data import Loaders, build_loader
from data.device_loader import on_device
from data.loader import SquareDataset
from data.packing import pack
from data.packing_images import Settings

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

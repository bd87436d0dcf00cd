"""What pre-training loads: images and masks, held-out patients, folders."""

import numpy as np
import pytest
import torch
from xray_splits import LOGGER, make_config, samples_of

from data.build import build_loader
from data.loader import sample_rng
from data.masking import MaskGenerator
from system.device import to_device


def test_pretraining_batches(data_path):
    loaders = build_loader(make_config(data_path), LOGGER, is_pretrain=True)
    images, masks = to_device(next(iter(loaders.train)), torch.device('cpu'))
    assert images.shape == (4, 1, 64, 64) and images.dtype == torch.float32
    assert masks.shape == (4, 16, 16) and masks.dtype == torch.uint8
    assert (masks.sum(dim=(1, 2)) == 10 * 16).all()  # ceil(16 * 0.6) units of 4 x 4 tokens
    assert len(loaders.train) == 32 // 4
    assert loaders.valid is None and loaders.test is None
    train, holdout = (set(loader.dataset.records.patient) for loader in loaders[:2])
    assert len(train) == 16 and len(holdout) == 4 and not train & holdout
    finetune = build_loader(make_config(data_path), LOGGER, is_pretrain=False)
    assert set(finetune.holdout.dataset.records.patient) == holdout
    none = build_loader(make_config(data_path, 'DATA.HOLDOUT_FRACTION', 0.0), LOGGER, True)
    assert none.holdout is None and none.reference is None


@pytest.mark.parametrize('seed', [0, 7])
def test_held_out_masks_are_fixed_whatever_the_seed(data_path, seed):
    config = make_config(data_path, 'SEED', seed, 'DATA.MASK_TYPE', 'block')
    loaders = build_loader(config, LOGGER, is_pretrain=True)
    rows = loaders.holdout.dataset.records.row.tolist()
    own, reference = MaskGenerator(64, 16, 4, 0.6, 'block'), MaskGenerator(64, 8, 4, 0.6)
    for loader, generator in ((loaders.holdout, own), (loaders.reference, reference)):
        samples = samples_of(loader, seed)
        for row, (_, mask, _, _) in zip(rows, samples, strict=True):
            assert np.array_equal(mask, generator(sample_rng(0, 0, row)))
    for sample, same in zip(*(samples_of(loader, 0) for loader in loaders[1:3]), strict=True):
        assert torch.equal(sample[0], same[0])


FITTING = [(64, 4, True), (64, 32, False), (48, 4, False)]


@pytest.mark.parametrize('size, patch, there', FITTING)
def test_reference_masks_exist_where_their_units_fit(data_path, size, patch, there):
    sizes = ['DATA.IMG_SIZE', size, 'DATA.MASK_PATCH_SIZE', size // 2, 'MODEL.TYPE', 'vit']
    more = ['MODEL.VIT.PATCH_SIZE', patch, 'MODEL.IN_CHANS', 1]
    config = make_config(data_path, *sizes, *more)
    loaders = build_loader(config, LOGGER, is_pretrain=True)
    assert (loaders.reference is not None) == there
    assert loaders.holdout is not None


@pytest.mark.parametrize('count, rows', [(3, 3), (100, 8)])
def test_held_out_images_are_limited_and_evenly_spread(data_path, count, rows):
    every = build_loader(make_config(data_path, 'EVAL.HOLDOUT_IMAGES', 0), LOGGER, True)
    every = every.holdout.dataset.records.row.tolist()
    config = make_config(data_path, 'EVAL.HOLDOUT_IMAGES', count)
    loaders = build_loader(config, LOGGER, is_pretrain=True)
    for loader in (loaders.holdout, loaders.reference):
        got = loader.dataset.records.row.tolist()
        assert len(got) == rows
        assert got == ([every[0], every[2], every[5]] if count == 3 else every)

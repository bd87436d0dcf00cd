"""Masks that depend on the image need one file, and their name in config.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from xray_splits import LOGGER, make_config, samples_of

from config import check_config
from data.build import build_loader
from data.images.files import BadImageError
from data.images.preprocess import Preprocess
from data.masking import MASKS, MaskGenerator, Rng
from data.packing import Settings, pack, read_source
from data.transforms import Box, View

SIZE, SIDE = 64, 8  # of the input in pixels, and of the grid of mask units
DARK, BRIGHT = 40, 220


def lung_units(rng: Rng, side: int, count: int, view: View | None) -> np.ndarray:
    """Hide units inside the lungs first, and then others."""
    order = rng.random(side**2)
    if view is not None:
        unit = view.size // side
        inside = view.lungs.reshape(side, unit, side, unit).mean(axis=(1, 3))
        order += inside.ravel() < 0.5
    return np.argsort(order)[:count]


@pytest.fixture(autouse=True)
def lungs(add_part: Callable[..., None]) -> None:
    add_part('DATA.MASK_TYPE', 'lungs', __name__)
    MASKS.register('lungs')(lung_units)


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images that are bright inside the lungs, and lung masks, as files and packed."""
    places = {name: tmp_path_factory.mktemp(name) for name in ('images', 'masks')}
    for number in range(12):
        width, height = 90 + 3 * number, 120 - 4 * number
        mask = Image.new('L', (width, height))
        box = (10, 20 + number, width // 2, 60)  # in one half, so that a flip is noticed
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        pixels = np.where(np.asarray(mask), BRIGHT, DARK) + np.arange(width) % 2
        for name, image in (('images', Image.fromarray(pixels.astype(np.uint8))), ('masks', mask)):
            file = places[name] / f'patient{number:05d}' / 'x.png'
            file.parent.mkdir()
            image.save(file)
    for name in ('images', 'masks'):
        places[f'native {name}'] = store = tmp_path_factory.mktemp('store') / name
        pack(read_source(places[name]), store, Settings(size=None, square=False))
    return places


def config_of(images: Path, masks: Path | str, *options: object):
    more = ['DATA.DATASET', 'folder', 'DATA.IMG_SIZE', SIZE, 'DATA.MASK_PATCH_SIZE', SIZE // SIDE]
    more += ['MODEL.SWIN.WINDOW_SIZE', 4]
    more += ['DATA.MASK_TYPE', 'lungs', 'DATA.MASK_RATIO', 0.2, 'DATA.LUNG_MASKS', str(masks)]
    config = make_config(images, *more, *options)
    check_config(config, 'simmim')
    return config


def masks_of(config) -> list[np.ndarray]:  # [SIDE, SIDE] each
    """The masks of two epochs of training and of the held-out images, after a check of each."""
    loaders = build_loader(config, LOGGER, is_pretrain=True)
    units = []
    for loader, epochs in ((loaders.train, (0, 1)), (loaders.holdout, (0,))):
        for image, mask, *_ in samples_of(loader, *epochs):
            hidden = mask.numpy()[:: len(mask) // SIDE, :: len(mask) // SIDE].astype(bool)
            grey = (image[0].numpy() * 0.292 + 0.503) * 255
            share = (grey - DARK) / (BRIGHT - DARK)
            share = share.reshape(SIDE, SIZE // SIDE, SIDE, SIZE // SIDE).mean(axis=(1, 3))
            if (share > 0.6).sum() > hidden.sum():  # enough units inside
                assert share[hidden].min() > 0.4
            else:  # some outside are hidden, too
                assert share[~hidden].max() < 0.6
            units.append(hidden)
    assert len(units) == 2 * 8 + 3
    return units


@pytest.mark.parametrize(
    'options', [(), ('TEST.CROP', False), ('DATA.PREPROCESS', ['lung_crop', 'resize'])]
)
def test_units_inside_the_lungs_of_each_sample_are_hidden_first(folders, options):
    masks_of(config_of(folders['images'], folders['masks'], *options))


@pytest.mark.parametrize(
    'images, masks',
    [('native images', 'masks'), ('images', 'native masks'), ('native images', 'native masks')],
)
def test_images_and_lung_masks_may_be_packed(folders, images, masks):
    wanted = masks_of(config_of(folders['images'], folders['masks']))
    assert np.array_equal(masks_of(config_of(folders[images], folders[masks])), wanted)


@pytest.mark.parametrize('size, error', [(None, 'one mask'), ((40, 40), 'as large as')])
def test_a_lung_mask_that_does_not_fit_its_image_is_refused(folders, tmp_path, size, error):
    name = 'patient00000/x.png'
    image = Image.open(folders['images'] / name)
    image.info[('file name',)] = name
    view = View(image, Box(0, 0, 50, 50), False, SIZE, Preprocess(config_of('', tmp_path)))
    (tmp_path / name).parent.mkdir()
    if size:
        Image.linear_gradient('L').resize(size).save(tmp_path / name)
    with pytest.raises(BadImageError, match=error):
        view.lungs  # noqa: B018


def test_masks_without_an_image_are_drawn():
    assert MaskGenerator(64, 8, 4, 0.3, 'lungs')().sum() == 20 * 4

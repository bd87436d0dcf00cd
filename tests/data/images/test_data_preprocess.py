"""Steps that change the shape of images, lung masks, and other steps for scored images."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from packed_data import file_of, make_data, packed
from PIL import Image
from tiny import run_script
from xray_splits import LOGGER, make_config, samples_of

from data.augmentation import TrainTransform
from data.data_finetune import build_loader_finetune
from data.images.files import BadImageError, full_size, load_image
from data.images.image_source import open_images
from data.images.preprocess import Preprocess, Setup, apply_steps
from data.images.preprocess_steps import check as check_steps
from data.images.store_manifest import read_manifest
from data.loader import sample_rng
from data.packing import Settings
from data.tables.given_folders import read_data_set
from data.tables.reading import data_root

BICUBIC = Image.Resampling.BICUBIC
SIZE = 16
ORDERS = (['resize', 'denoise', 'equalize_cv'], ['denoise', 'resize', 'equalize_cv'])
ORDERS += (['denoise', 'equalize_cv', 'resize'],)
MASK = np.zeros((40, 44), np.uint8)
MASK[5:37, 10:41] = 1
MASK[8:20, 22:30] = 0


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp('data'), p6=65535)


def config_of(root: Path, steps: list[str], *options):
    options = ('DATA.PREPROCESS', steps, 'DATA.IMG_SIZE', SIZE, 'DATA.MASK_PATCH_SIZE', 4, *options)
    return make_config(root, *options)


def read(root: Path, name: str) -> Image.Image:
    return open_images(root).reader([name])(0)


@pytest.mark.parametrize('steps', ORDERS)
def test_steps_before_and_after_resizing_are_the_same_for_files_and_stores(root, tmp_path, steps):
    settings = Settings(SIZE, preprocess=steps)
    store, part = (
        packed(root, tmp_path / name, replace(settings, preprocess=some))
        for name, some in (('all', steps), ('first', steps[: steps.index('resize') + 1]))
    )
    name = file_of(1)
    wanted = np.asarray(load_image(root / name))
    for step in steps:
        if step == 'resize':
            wanted = np.asarray(Image.fromarray(wanted).resize((SIZE, SIZE), BICUBIC))
        else:
            wanted = cv2.medianBlur(wanted, 3) if step == 'denoise' else cv2.equalizeHist(wanted)
    views = []
    for folder in (root, store, part):
        config = config_of(folder, steps)
        image = Preprocess(config)(read(folder, name))
        assert np.array_equal(image, wanted)
        assert full_size(image) == full_size(load_image(root / name))
        views.append(TrainTransform(config)(read(folder, name), sample_rng(0, 0, 1)))
        assert data_root(config, LOGGER) == str(folder)
    assert all((view == views[0]).all() for view in views)


@pytest.mark.parametrize(
    ('packed_steps', 'steps', 'size', 'key'),
    [
        (['resize', 'denoise'], ['denoise', 'resize'], SIZE, 'DATA.PREPROCESS'),
        (['resize'], ['resize'], 12, 'DATA.IMG_SIZE'),
        (['resize', 'denoise'], ['resize'], SIZE, 'DATA.PREPROCESS'),
    ],
)
def test_a_store_that_gives_other_images_is_refused(root, tmp_path, packed_steps, steps, size, key):
    store = packed(root, tmp_path / 'store', Settings(SIZE, preprocess=packed_steps))
    config = config_of(store, steps, 'DATA.IMG_SIZE', size)
    with pytest.raises(ValueError, match=key):
        data_root(config, LOGGER)
    assert len(read_data_set('chexpert', str(store), 'train'))  # any steps will do for records


@pytest.fixture
def lungs(tmp_path: Path) -> Path:
    """An image of 40 x 44 pixels and a folder with its mask."""
    pixels = np.random.default_rng(0).integers(1, 255, MASK.shape).astype(np.uint8)
    for folder, content in (('images', pixels), ('masks', MASK)):
        (tmp_path / folder / 'a').mkdir(parents=True)
        Image.fromarray(content).save(tmp_path / folder / 'a' / 'x.png')
    return tmp_path


def masked(lungs: Path, *steps: str) -> Image.Image:
    image = open_images(lungs / 'images').reader(['a/x.png'])(0)
    return apply_steps(image, steps, Setup(SIZE, str(lungs / 'masks')))


def test_masks_are_multiplied_and_cropped_to_their_bounding_box(lungs):
    pixels = np.asarray(Image.open(lungs / 'images/a/x.png'))
    assert np.array_equal(masked(lungs, 'lung_multiply'), pixels * MASK)
    cropped = masked(lungs, 'lung_crop')
    assert np.array_equal(cropped, pixels[5:37, 10:41]) and full_size(cropped) == (32, 31)
    both = masked(lungs, 'lung_multiply', 'lung_crop', 'resize')
    wanted = Image.fromarray((pixels * MASK)[5:37, 10:41]).resize((SIZE, SIZE), BICUBIC)
    assert np.array_equal(both, wanted) and full_size(both) == (32, 31)


def save_mask(lungs: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(lungs / 'masks/a/x.png')


MASK_FAULTS = {
    'missing': lambda lungs: (lungs / 'masks/a/x.png').unlink(),
    'two': lambda lungs: Image.fromarray(MASK).save(lungs / 'masks/a/x.bmp'),
    'other size': partial(save_mask, pixels=MASK[:, :-1]),
    'empty': partial(save_mask, pixels=0 * MASK),
    'damaged': lambda lungs: (lungs / 'masks/a/x.png').write_bytes(b'no image'),
    'too small': partial(save_mask, pixels=MASK * (np.arange(44) < 12).astype(np.uint8)),
}


@pytest.mark.parametrize('fault', MASK_FAULTS)
def test_a_mask_that_does_not_fit_is_an_error_with_its_name(lungs, fault):
    MASK_FAULTS[fault](lungs)
    with pytest.raises(BadImageError, match=r'a/x'):
        masked(lungs, 'lung_crop')


def make_masks(root: Path, folder: Path) -> Path:
    """A mask for each image, without its first and last row and column."""
    for file in root.rglob('*.png'):
        pixels = np.zeros(np.asarray(Image.open(file)).shape, np.uint8)
        pixels[1:-1, 1:-1] = 255
        target = folder / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    return folder


def test_a_store_packed_with_masks_gives_the_images_of_the_files(root, tmp_path):
    masks, steps = make_masks(root, tmp_path / 'masks'), ['lung_multiply', 'lung_crop', 'resize']
    flags = ['--data-path', str(root), '--output', str(tmp_path / 'store'), '--size', str(SIZE)]
    flags += ['--preprocess', *steps, '--workers', '1']
    assert run_script('pack', *flags, '--lung-masks', masks) == 0
    store = tmp_path / 'store'
    from_files = config_of(root, steps, 'DATA.LUNG_MASKS', str(masks))
    from_store = config_of(store, steps)
    images = []
    for config, folder in ((from_files, root), (from_store, store)):
        check_steps(config, 'finetune')
        assert data_root(config, LOGGER) == str(folder)
        images.append(Preprocess(config)(read(folder, file_of(1))))
    assert np.array_equal(*images) and full_size(images[0]) == full_size(images[1])
    assert read_manifest(store)['settings']['lung_masks'] == str(masks)
    with pytest.raises(ValueError, match='DATA.PREPROCESS'):
        data_root(config_of(store, []), LOGGER)
    with pytest.raises(ValueError, match='lung_masks'):
        packed(root, store, Settings(SIZE, preprocess=steps, lung_masks='others'))
    with pytest.raises(ValueError, match='DATA.LUNG_MASKS'):
        data_root(config_of(root, steps), LOGGER)
    with pytest.raises(SystemExit):
        run_script('pack', *flags)


def images_of(loader) -> np.ndarray:
    return np.stack([sample[0].numpy() for sample in samples_of(loader, 0)])


def test_scored_images_can_have_other_steps_from_files_and_from_a_second_store(root, tmp_path):
    steps = ['resize', 'denoise', 'equalize_cv']
    stores = [packed(root, tmp_path / str(number), Settings(SIZE, preprocess=steps[:number]))
              for number in (1, 3)]  # fmt: skip
    options = ('EVAL.PREPROCESS', ['resize'], 'TEST.CROP', False, 'DATA.HOLDOUT_FRACTION', 0.3)
    loaders = [
        build_loader_finetune(config_of(folder, steps, *options, *more), LOGGER)
        for folder, more in (
            (root, ()),
            (stores[0], ()),
            (stores[1], ('EVAL.DATA_PATH', str(stores[0]))),
        )
    ]
    for split in ('valid', 'test', 'holdout', 'train'):
        first, *others = (images_of(getattr(each, split)) for each in loaders)
        assert all(np.array_equal(first, other) for other in others)
    plain = build_loader_finetune(config_of(root, ['resize'], *options), LOGGER)
    assert np.array_equal(images_of(plain.valid), images_of(loaders[2].valid))
    assert not np.array_equal(images_of(plain.train), images_of(loaders[2].train))
    with pytest.raises(ValueError, match=r'EVAL\.PREPROCESS'):
        build_loader_finetune(config_of(stores[1], steps, *options), LOGGER)


def test_images_that_the_second_folder_lacks_are_an_error(root, tmp_path):
    other = make_data(tmp_path / 'other', count=6)
    config = config_of(root, [], 'EVAL.DATA_PATH', str(other), 'DATA.HOLDOUT_FRACTION', 0.3)
    with pytest.raises(ValueError, match='patient'):
        build_loader_finetune(config, LOGGER)

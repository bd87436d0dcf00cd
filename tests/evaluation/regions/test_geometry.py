"""A map lies where the image was: a bright square in an image, whose pixels are the map."""

from pathlib import Path

import numpy as np
import pytest
import torch
from csv_files import image_path, row, write
from PIL import Image
from tiny import config_with

from config import Config
from data.images.files import load_image
from data.packing import Settings, pack, read_source
from data.transforms import EvalTransform
from evaluation.regions.model_maps import read_datasets, view_of
from evaluation.regions.regions import BOX, Size, as_regions
from evaluation.regions.scores import PlacedMap, score_map
from evaluation.regions.sources import size_of_image

SMALL = {'DATA__IMG_SIZE': 128, 'DATA__DATASET': 'chexpert'}
SHAPES = [Size(320, 240), Size(200, 360), Size(256, 256)]
VIEWS = {
    'squeezed': {},
    'cropped': {'TEST__CROP': True},
    'resized before': {'DATA__PREPROCESS': ['resize'], 'TEST__CROP': True},
}
STORES = {
    'files': None,
    'squares': Settings(size=128, square=True),
    'own aspect': Settings(size=96, square=False),
    'own size': Settings(size=None, square=False),
}


def square_of(size: Size) -> tuple[slice, slice]:
    """Return a square that is neither in the centre nor symmetric, and inside of each crop."""
    side = min(size) // 4
    top, left = size.height // 2 - side, size.width // 2 + side // 4
    return slice(top, top + side), slice(left, left + side)


def write_image(root: Path, size: Size) -> str:
    """Write a data set with one image, black but for a square; return its path in the table."""
    path = image_path(1, 1, 'view1_frontal', folder='train').replace('.jpg', '.png')
    pixels = np.zeros(size, np.uint8)
    pixels[square_of(size)] = 200
    (root / path).parent.mkdir(parents=True)
    Image.fromarray(pixels).save(root / path)
    write(root / 'train.csv', [row(f'Set/{path}', Edema='1.0')])
    return path


def placed_pixels(config: Config, image: Image.Image) -> PlacedMap:
    """Return what a model sees of an image as the map."""
    transform = EvalTransform(config)
    image = transform.preprocess(image)
    return PlacedMap(transform.square(image), view_of(transform, image))


def iou(placed: PlacedMap, size: Size, region: tuple[slice, slice]) -> float:
    mask = np.zeros(size, bool)
    mask[region] = True
    scores = score_map(placed.at(size), mask)
    assert scores.hit == 1
    return scores.iou


@pytest.mark.parametrize('size', SHAPES, ids=str)
@pytest.mark.parametrize(
    ('view', 'store'),
    # 'resize' must be packed, see below.
    [(v, s) for v in VIEWS for s in STORES if v != 'resized before' or s == 'files'],
)
def test_the_map_lies_on_the_region(tmp_path: Path, size: Size, view: str, store: str) -> None:
    """Files and packed stores of other sizes, with and without the aspect, squeezed and cropped."""
    root = tmp_path / 'set'
    write_image(root, size)
    if STORES[store] is not None:
        pack(read_source(root), tmp_path / 'store', STORES[store])
        root = tmp_path / 'store'
    config = config_with(DATA__DATA_PATH=str(root), **SMALL, **VIEWS[view])
    image = read_datasets(config)['train'].image(0)
    assert size_of_image(image) == size
    # Edges are a few pixels wide after resizing, of a square of 50 to 64 pixels.
    assert iou(placed_pixels(config, image), size, square_of(size)) > 0.88


def test_a_store_that_was_packed_with_resize_keeps_the_shape(tmp_path: Path) -> None:
    size, root = SHAPES[0], tmp_path / 'set'
    write_image(root, size)
    pack(read_source(root), tmp_path / 'store', Settings(size=128, preprocess=('resize',)))
    config = config_with(
        DATA__DATA_PATH=str(tmp_path / 'store'), **SMALL, DATA__PREPROCESS=['resize']
    )
    image = read_datasets(config)['train'].image(0)
    assert size_of_image(image) == size
    assert iou(placed_pixels(config, image), size, square_of(size)) > 0.88


@pytest.mark.parametrize('crop', [True, False])
def test_a_region_that_was_drawn_at_another_size_is_met(tmp_path: Path, crop: bool) -> None:
    """Boxes in pixels of 1,280 x 960, and an image of 320 x 240."""
    size, root = SHAPES[0], tmp_path / 'set'
    path = write_image(root, size)
    rows, columns = (slice(4 * part.start, 4 * part.stop) for part in square_of(size))
    box = columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
    found = {'path': path, 'label': 'Edema', 'row': 'row 2'} | dict(zip(BOX, box, strict=True))
    regions = as_regions(Path('own.csv'), 'own table', [found]).drawn_on(Size(1280, 960))
    config = config_with(DATA__DATA_PATH=str(root), DATA__IMG_SIZE=128, TEST__CROP=crop)
    image = load_image(root / path)
    full = regions.size_of(path, 'Edema', size_of_image(image))
    values = placed_pixels(config, image).at(full)
    assert score_map(values, regions.mask(path, 'Edema', full)).iou > 0.88


def test_what_a_crop_leaves_out_has_no_signal() -> None:
    """A square in the corner is not in the centre crop, so that no map can find it."""
    pixels = np.full((256, 256), 90, np.uint8)
    pixels[100:150, 100:150] = 140
    pixels[:12, :12] = 255
    placed = placed_pixels(
        config_with(DATA__IMG_SIZE=128, TEST__CROP=True), Image.fromarray(pixels)
    )
    values = placed.at(Size(256, 256))
    edge = (256 - 256 * 128 / 146) / 2  # the short side is enlarged to 256/224 of 128
    assert values[: int(edge)].max() == 0 and values[int(edge) + 1 :].max() == 1
    assert values[105:145, 105:145].min() > 0.9


def test_a_flipped_or_transposed_map_misses(tmp_path: Path) -> None:
    """The test can see a mistake: neither gives the overlap of the right map."""
    size, root = SHAPES[2], tmp_path / 'set'
    path = write_image(root, size)
    placed = placed_pixels(config_with(DATA__IMG_SIZE=128), load_image(root / path))
    mask = np.zeros(size, bool)
    mask[square_of(size)] = True
    for cells in (placed.cells[::-1], placed.cells[:, ::-1], placed.cells.T):
        assert score_map(PlacedMap(cells).at(size), mask).iou < 0.3


def test_tokens_of_a_grid_lie_where_their_patches_are() -> None:
    """One cell of 8 x 8 is highest, and so is the centre of its patch in the image."""
    for row_, column in ((0, 0), (2, 5), (7, 3)):
        cells = torch.zeros(8, 8)
        cells[row_, column] = 1
        values = PlacedMap(cells.numpy()).at(Size(240, 160))
        places = np.argwhere(values == values.max()).mean(axis=0)
        expected = np.array([(row_ + 0.5) * 30 - 0.5, (column + 0.5) * 20 - 0.5])
        assert np.abs(places - expected).max() <= 8  # the edge of the image is a plateau

"""The steps of DATA.PREPROCESS: grey levels, size and lung masks.

To add a step, register a function (image, setup) -> image, and name it and its file in config.py.
"""

import os
from types import ModuleType

import numpy as np
from PIL import Image, ImageOps

from config import Config, refuse_unless, value_at
from data.images.files import FILE_NAME, FULL_SIZE, MIN_SIDE, BadImageError, full_size, grey_levels
from data.images.image_source import IMAGE_SUFFIXES, open_images
from data.images.preprocess import LUNG_STEPS, PREPROCESS, SHAPE_STEPS, WHITE, Setup

CLAHE_CLIP_LIMIT = 2.0  # limit of a histogram bin, relative to a flat histogram
CLAHE_TILES = (8, 8)
MEDIAN_SIDE = 3
# OpenCV's defaults: filter strength, and sides of the compared patches and of the searched area.
NON_LOCAL_MEANS = {'h': 3, 'templateWindowSize': 7, 'searchWindowSize': 21}
RESIZE_FILTER = Image.Resampling.BICUBIC
MASK_LEVEL = 128  # grey level from which a pixel of a mask with such levels is inside


def check(config: Config, stage: str | None) -> None:
    """Refuse an order of steps in which a mask would not fit the image, and masks of sources."""
    for key in ('DATA.PREPROCESS', 'EVAL.PREPROCESS'):
        steps = value_at(config, key) or []
        shaping = [name for name in steps if name in SHAPE_STEPS]
        is_ordered = shaping == [name for name in SHAPE_STEPS if name in shaping]
        allowed = f'in the order {SHAPE_STEPS}, with each of these steps at most once'
        refuse_unless(is_ordered, config, key, allowed)
        if config.DATA.SOURCES:  # which may have images of the same name
            needs_masks = {*LUNG_STEPS}.intersection(steps)
            refuse_unless(not needs_masks, config, key, 'without lung masks with DATA.SOURCES')
    if config.DATA.SOURCES:
        refuse_unless(not config.DATA.LUNG_MASKS, config, 'DATA.LUNG_MASKS', "'' with DATA.SOURCES")


@PREPROCESS.register('equalize')
def equalize(image: Image.Image, setup: Setup) -> Image.Image:
    """Make all grey levels about equally frequent, by Pillow's rule."""
    return _like(image, np.asarray(ImageOps.equalize(Image.fromarray(grey_levels(image)))))


@PREPROCESS.register('equalize_cv')
def equalize_cv(image: Image.Image, setup: Setup) -> Image.Image:
    """Make all grey levels about equally frequent, by OpenCV's rule (needs OpenCV).

    The darkest level becomes 0 and the brightest 255. Pillow's rule rounds other steps.
    """
    return _like(image, _opencv().equalizeHist(grey_levels(image)))


@PREPROCESS.register('clahe')
def clahe(image: Image.Image, setup: Setup) -> Image.Image:
    """Equalise the histogram of each tile, with limited contrast (needs OpenCV)."""
    filter_ = _opencv().createCLAHE(clipLimit=CLAHE_CLIP_LIMIT, tileGridSize=CLAHE_TILES)
    return _like(image, filter_.apply(grey_levels(image)))


@PREPROCESS.register('denoise')
def denoise(image: Image.Image, setup: Setup) -> Image.Image:
    """Replace each pixel by the median of its 3 x 3 neighbourhood (needs OpenCV)."""
    return _like(image, _opencv().medianBlur(np.asarray(image), MEDIAN_SIDE))


@PREPROCESS.register('non_local_means')
def non_local_means(image: Image.Image, setup: Setup) -> Image.Image:
    """Replace each pixel by a mean over similar patches around it (slow; needs OpenCV).

    Source: Buades et al. 2011, Non-Local Means Denoising, doi:10.5201/ipol.2011.bcm_nlm.
    """
    return _like(image, _opencv().fastNlMeansDenoising(grey_levels(image), **NON_LOCAL_MEANS))


@PREPROCESS.register('resize')
def resize(image: Image.Image, setup: Setup) -> Image.Image:
    """Make the image a square. Crops are still drawn on its own height and width."""
    square = squeezed(image, (setup.size, setup.size))
    square.info[FULL_SIZE] = full_size(image)
    return square


@PREPROCESS.register('lung_crop')
def lung_crop(image: Image.Image, setup: Setup) -> Image.Image:
    """Cut out the bounding box of the mask."""
    box = mask_of(image, setup.lung_masks).getbbox()
    if min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
        raise BadImageError(
            f'the lung mask of {image.info[FILE_NAME]} in {setup.lung_masks} must be at least '
            f'{MIN_SIDE} pixels wide and high, got {box[2] - box[0]} x {box[3] - box[1]}'
        )
    return image.crop(box)


@PREPROCESS.register('lung_multiply')
def lung_multiply(image: Image.Image, setup: Setup) -> Image.Image:
    """Make all pixels outside the mask black."""
    pixels = np.asarray(image)
    inside = np.asarray(mask_of(image, setup.lung_masks)) > 0
    return _like(image, pixels * inside.astype(pixels.dtype))


def squeezed(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image to a width and height, with grey levels in [0, 255]."""
    resized = image.resize(size, RESIZE_FILTER)
    if image.mode == 'L':
        return resized
    return _like(resized, np.clip(np.asarray(resized), 0, 255))  # bicubic may overshoot


def mask_of(image: Image.Image, folder: str, *, is_cropped: bool = False) -> Image.Image:
    """Read the mask of an image (`own_mask`) at the size of the image."""
    mask = own_mask(image, folder, is_cropped=is_cropped)
    mask = mask.resize(image.size, Image.Resampling.NEAREST)  # the image or the mask may be packed
    mask.info[FULL_SIZE] = full_size(image)
    return mask


def own_mask(image: Image.Image, folder: str, *, is_cropped: bool = False) -> Image.Image:
    """Read the mask of an image, WHITE inside, at the size in which it is kept.

    The mask is the image below the folder or in the store with the name of the image and any
    suffix. Pixels with at least MASK_LEVEL are inside. If all levels of the mask are lower, such as
    0 and 1, all pixels above 0 are. If the image is what `lung_crop` cut out, so is the mask.

    Raises:
        BadImageError: If there is not exactly one such mask, if it cannot be read, if it has
            another full size than the image, or if all its pixels are equal.
    """
    name = image.info.get(FILE_NAME)
    if not name or not folder:
        raise ValueError(
            'lung masks are needed: those of the images below DATA.DATA_PATH in the folder '
            f'DATA.LUNG_MASKS, got {folder!r} for {name or "an image"}'
        )
    stem, masks = os.path.splitext(name)[0], open_images(folder)
    names = [f'{stem}{suffix}' for suffix in IMAGE_SUFFIXES]
    lacking = masks.lacking(names, np.full(len(names), True))
    found = [name for place, name in enumerate(names) if place not in lacking]
    if len(found) != 1:
        raise BadImageError(
            f'image {name} needs one mask {stem} with a suffix of {", ".join(IMAGE_SUFFIXES)} '
            f'in {folder}, got {", ".join(found) or "none"}'
        )
    mask = masks.reader(found)(0)
    levels = np.asarray(mask)
    inside = levels >= MASK_LEVEL if levels.max() >= MASK_LEVEL else levels > 0
    mask = _like(mask, np.where(inside, WHITE, 0).astype(np.uint8))
    if is_cropped:
        mask = mask.crop(mask.getbbox())
        mask.info.pop(FULL_SIZE, None)
    if full_size(mask) != full_size(image):
        raise BadImageError(
            f'the mask {found[0]} in {folder} must be as large as the image {name}, '
            f'{full_size(image)} pixels (height, width), got {full_size(mask)}'
        )
    return mask


def _like(image: Image.Image, pixels: np.ndarray) -> Image.Image:
    """Make an image of changed pixels with the metadata of the original, such as its full size."""
    changed = Image.fromarray(pixels)
    changed.info = image.info
    return changed


def _opencv() -> ModuleType:
    """Import OpenCV and keep it on one thread, because loader workers already share the cores."""
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            "DATA.PREPROCESS 'clahe', 'denoise', 'equalize_cv' and 'non_local_means' need OpenCV: "
            f'pip install opencv-python-headless ({error})'
        ) from error
    cv2.setNumThreads(0)
    return cv2

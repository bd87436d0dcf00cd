"""Apply the steps of DATA.PREPROCESS, which change the grey levels of whole images.

The steps are applied first, in the order of the option. `scripts/pack.py --preprocess` applies them
when a store is packed, so that slow steps are computed once. They are then not applied again.
"""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from PIL import Image, ImageOps

from config import Config, Registry
from data.images import PACKED_STEPS

CLAHE_CLIP_LIMIT = 2.0  # limit of a histogram bin, relative to a flat histogram
CLAHE_TILES = (8, 8)
MEDIAN_SIDE = 3
# OpenCV's defaults: filter strength, and sides of the compared patches and of the searched area.
NON_LOCAL_MEANS = {'h': 3, 'templateWindowSize': 7, 'searchWindowSize': 21}

# Name -> function(image) -> image. Steps except 'denoise' are defined for 256 levels, so they round
# 16-bit images.
PREPROCESS = Registry('DATA.PREPROCESS')


class Preprocess:
    """Applies the steps of DATA.PREPROCESS to an image, unless it was packed with them."""

    def __init__(self, config: Config) -> None:
        self.steps = config.DATA.PREPROCESS

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if image.info.get(PACKED_STEPS) else apply_steps(image, self.steps)


def apply_steps(image: Image.Image, steps: Sequence[str]) -> Image.Image:
    """Apply steps, which are names in PREPROCESS, one after another."""
    for name in steps:
        image = PREPROCESS[name](image)
    return image


@PREPROCESS.register('equalize')
def equalize(image: Image.Image) -> Image.Image:
    """Make all grey levels about equally frequent."""
    return _like(image, np.asarray(ImageOps.equalize(Image.fromarray(_to_8_bit(image)))))


@PREPROCESS.register('clahe')
def clahe(image: Image.Image) -> Image.Image:
    """Equalise the histogram of each tile, with limited contrast (needs OpenCV)."""
    filter_ = _opencv().createCLAHE(clipLimit=CLAHE_CLIP_LIMIT, tileGridSize=CLAHE_TILES)
    return _like(image, filter_.apply(_to_8_bit(image)))


@PREPROCESS.register('denoise')
def denoise(image: Image.Image) -> Image.Image:
    """Replace each pixel by the median of its 3 x 3 neighbourhood (needs OpenCV)."""
    return _like(image, _opencv().medianBlur(np.asarray(image), MEDIAN_SIDE))


@PREPROCESS.register('non_local_means')
def non_local_means(image: Image.Image) -> Image.Image:
    """Replace each pixel by a mean over similar patches around it (slow; needs OpenCV).

    Source: Buades et al. 2011, Non-Local Means Denoising, doi:10.5201/ipol.2011.bcm_nlm.
    """
    return _like(image, _opencv().fastNlMeansDenoising(_to_8_bit(image), **NON_LOCAL_MEANS))


def _to_8_bit(image: Image.Image) -> np.ndarray:
    return np.rint(np.asarray(image)).astype(np.uint8)


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
            "DATA.PREPROCESS 'clahe', 'denoise' and 'non_local_means' need OpenCV: "
            f'pip install opencv-python-headless ({error})'
        ) from error
    cv2.setNumThreads(0)
    return cv2

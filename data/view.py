"""The part of an image that a sample shows, in pixels of the image."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.images import FILE_NAME, full_size
from data.preprocess import WHITE, Preprocess

BOX_STEPS = 1024  # boxes are rounded to 1/1024 pixel, which float32 represents exactly


class Box(NamedTuple):
    """A rectangle in an image, in pixels of the full size."""

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True)
class View:
    """The part of an image that a sample shows; nothing is computed before it is used.

    Attributes:
        image: The whole image after DATA.PREPROCESS.
        box: The part that is shown.
        flipped: Whether the part is mirrored.
        size: Side S of the sample in pixels.
        preprocess: The steps that were applied to the image.
    """

    image: Image.Image
    box: Box
    flipped: bool
    size: int
    preprocess: Preprocess

    @property
    def file(self) -> str:
        """Return the name of the image file, relative to the folder of the data set."""
        return self.image.info[FILE_NAME]

    @cached_property
    def lungs(self) -> np.ndarray:  # [S, S] bool
        """Return which pixels of the sample are inside the lung mask (DATA.LUNG_MASKS)."""
        return self.cut(self.preprocess.lung_mask(self.image)) > WHITE / 2

    def cut(
        self, image: Image.Image, resample: Image.Resampling = Image.Resampling.BILINEAR
    ) -> np.ndarray:  # [S, S]
        """Cut this part out of an image with the same full size, in grey levels."""
        pixels = resized_crop(image, self.box, self.size, resample)
        return pixels[:, ::-1] if self.flipped else pixels


def resized_crop(
    image: Image.Image, box: Box, size: int, resample: Image.Resampling
) -> np.ndarray:  # [size, size]
    """Cut a box out and resize it to a square with antialiasing.

    The box is in pixels of `full_size(image)`, which differs from the size of the image if the
    image was resized when it was packed.
    """
    full, found = full_size(image), (image.height, image.width)
    if full != found:
        top, bottom = _scaled(box.top, box.height, found[0], full[0])
        left, right = _scaled(box.left, box.width, found[1], full[1])
    else:
        top, left, bottom, right = box.top, box.left, box.top + box.height, box.left + box.width
    x, y = math.floor(left), math.floor(top)
    # resize(box=...) on the whole image would mix pixels outside the box into the edges.
    cut = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
    return resize(cut, (size, size), resample, (left - x, top - y, right - x, bottom - y))


def resize(
    image: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:  # [H, W]
    """Resize an image, or a box of it, to a width and height."""
    pixels = np.asarray(image.resize(size, resample, box), np.float32)
    return pixels if image.mode == 'L' else np.clip(pixels, 0, 255)  # 'F' may overshoot


def _scaled(start: float, length: float, found: int, full: int) -> tuple[float, float]:
    """Scale an interval from the full size of an image to its stored size."""
    ends = start * found / full, (start + length) * found / full
    start, end = (round(value * BOX_STEPS) / BOX_STEPS for value in ends)
    return start, end

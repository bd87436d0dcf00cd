"""Transform images: preprocessing, crop, resize, flip, augmentation, normalisation.

A transform takes an image and the random generator of the sample. It draws in a fixed order: crop,
flip, mask, then augmentations of fine-tuning. No global random state is read. Pixels are float32
arrays [H, W] with grey levels in [0, 255] until they are normalised.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from config import Config, pixel_statistics
from data.images.files import FILE_NAME, enlarged_side, full_size
from data.images.preprocess import WHITE, Preprocess

CROP_ASPECT = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
BOX_STEPS = 1024  # boxes are rounded to 1/1024 pixel, which float32 represents exactly

# Filters by name; 'random' chooses one of two for each image.
FILTERS = {
    'bilinear': (Image.Resampling.BILINEAR,),
    'bicubic': (Image.Resampling.BICUBIC,),
    'lanczos': (Image.Resampling.LANCZOS,),
    'hamming': (Image.Resampling.HAMMING,),
    'random': (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}


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


@dataclass(frozen=True)
class GreyImages:
    """Images in whole grey levels, which the device normalises: a quarter of the bytes, or fewer.

    They stand in a sample or a batch in place of normalised images, of which `to` computes the same
    numbers, bit for bit.

    Attributes:
        levels: uint8 [1, S, S], or [B, 1, S, S] in a batch.
        statistics: Scale and offset, float32 [2, C], or [B, 2, C] in a batch. They are one tensor,
            because each one keeps a file open on its way from a worker.
    """

    levels: torch.Tensor
    statistics: torch.Tensor

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, rows: int | slice) -> 'GreyImages':
        return GreyImages(self.levels[rows], self.statistics[rows])

    def pin_memory(self) -> 'GreyImages':
        """Copy to memory from which a GPU copies without waiting; the DataLoader calls it."""
        return GreyImages(self.levels.pin_memory(), self.statistics.pin_memory())

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> torch.Tensor:
        """Copy to a device, and normalise there: float32 [C, S, S], or [B, C, S, S] of a batch."""
        levels = self.levels.to(device, non_blocking=non_blocking)
        statistics = self.statistics.to(device, non_blocking=non_blocking)
        scale, offset = statistics[..., None, None].unbind(-4)
        images = levels - offset
        images /= scale
        return images


class Normalize:
    """Convert grey levels to the input of the model: (pixels - offset) / scale for each channel.

    With DATA.NORMALIZE 'dataset', offset and scale are 255 times the mean and the standard
    deviation of the data set. With 'image', they are the mean and the standard deviation of the
    image (at least one grey level).
    """

    def __init__(self, config: Config) -> None:
        mean, std = pixel_statistics(config)
        self.by_image = config.DATA.NORMALIZE == 'image'
        self.offset = np.float32(255) * np.array(mean, np.float32)  # [C]
        self.scale = np.float32(255) * np.array(std, np.float32)  # [C]

    def __call__(
        self, pixels: np.ndarray, before: np.ndarray | None = None
    ) -> np.ndarray:  # [C, H, W]
        """Normalise one image.

        Args:
            pixels: float32 [H, W] in grey levels.
            before: The same without random changes of brightness and contrast, which 'image' would
                undo with the statistics of `pixels`; None if there are none.
        """
        scale, offset = self.statistics(pixels, before)
        image = np.empty((len(offset), *pixels.shape), np.float32)
        np.subtract(pixels, offset[:, None, None], out=image)
        image /= scale[:, None, None]
        return image

    def sample(
        self, pixels: np.ndarray, before: np.ndarray | None = None
    ) -> GreyImages | torch.Tensor:
        """Return what a worker sends of one image, see `__call__`.

        Pixels of 8-bit images are whole grey levels, because Pillow rounds when it resizes them.
        Other images, and changes such as noise or contrast, have fractions: they are normalised.
        """
        levels = pixels.astype(np.uint8)
        if not np.array_equal(levels, pixels):
            return torch.from_numpy(self(pixels, before))
        statistics = np.stack(self.statistics(pixels, before))
        return GreyImages(torch.from_numpy(levels[None]), torch.from_numpy(statistics))

    def statistics(
        self, pixels: np.ndarray, before: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scale [C] and offset [C]: image * scale + offset restores the grey levels."""
        offset, scale = self.offset, self.scale
        if self.by_image:
            before = pixels if before is None else before
            offset = np.full_like(offset, before.mean())
            scale = np.full_like(scale, max(before.std(), 1))
        return scale, offset


class RandomCrop:
    """The common start of all training transforms: preprocessing, random crop and flip."""

    def __init__(self, config: Config, interpolation: str, area: tuple[float, float]) -> None:
        self.size = config.DATA.IMG_SIZE
        self.preprocess = Preprocess(config)
        self.area = tuple(config.AUG.CROP_AREA) or area
        self.hflip = config.AUG.HFLIP
        self.filters = FILTERS[interpolation]
        self.normalize = Normalize(config)

    def draw(self, image: Image.Image, rng: np.random.Generator) -> View:
        """Preprocess an image, and draw the part of it that the sample shows."""
        image = self.preprocess(image)
        box = draw_crop(rng, *full_size(image), area=self.area)
        return View(image, box, rng.random() < self.hflip, self.size, self.preprocess)

    def cut(self, view: View, rng: np.random.Generator) -> np.ndarray:  # [S, S]
        """Cut the part out in grey levels; only the filter 'random' draws from `rng`."""
        resample = self.filters[0 if len(self.filters) == 1 else rng.integers(len(self.filters))]
        return view.cut(view.image, resample)


class EvalTransform:
    """Return a normalised image [C, S, S]; nothing is random.

    With TEST.CROP, it shows the centre crop of the enlarged image. Otherwise it shows the whole
    image squeezed to a square.

    Args:
        config: Run configuration.
        interpolation: Name in FILTERS. The default is DATA.INTERPOLATION.
        is_scored: Whether EVAL.PREPROCESS replaces DATA.PREPROCESS.
    """

    def __init__(
        self, config: Config, interpolation: str | None = None, *, is_scored: bool = True
    ) -> None:
        self.size = config.DATA.IMG_SIZE
        self.preprocess = Preprocess(config, is_scored=is_scored)
        self.crop = config.TEST.CROP
        self.filter = FILTERS[interpolation or config.DATA.INTERPOLATION][0]
        self.normalize = Normalize(config)

    def pixels(self, image: Image.Image) -> np.ndarray:  # [S, S]
        """Return what the model sees of an image, in grey levels."""
        return self.square(self.preprocess(image))

    def square(self, image: Image.Image) -> np.ndarray:  # [S, S]
        """Return what the model sees of a preprocessed image."""
        if self.crop:
            return centre_crop(image, self.size, self.filter)
        return resize(image, (self.size, self.size), self.filter)

    def view(self, image: Image.Image) -> View:
        """Return which part of a preprocessed image `square` shows."""
        height, width = full_size(image)
        box = Box(0, 0, height, width)
        if self.crop:  # exact up to the rounding of the enlarged sides
            side = self.size * min(height, width) / enlarged_side(self.size)
            box = Box((height - side) / 2, (width - side) / 2, side, side)
        return View(image, box, False, self.size, self.preprocess)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> torch.Tensor:
        return torch.from_numpy(self.normalize(self.pixels(image)))

    def sample(
        self, image: Image.Image, rng: np.random.Generator | None = None
    ) -> GreyImages | torch.Tensor:
        """Return what a worker sends of the normalised image."""
        return self.normalize.sample(self.pixels(image))


def draw_crop(
    rng: np.random.Generator, height: int, width: int, *, area: tuple[float, float]
) -> Box:
    """Draw the box of a random resized crop by torchvision's rule.

    There are always 22 uniform draws: ten candidates (area, logarithm of the aspect) and one
    position. The first candidate that fits is taken, or else the largest centred box with an
    aspect (width / height) in CROP_ASPECT.

    Args:
        rng: Random generator of the sample.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        area: Range of the share of the image that the box covers.
    """
    *candidates, top, left = rng.random(2 * CROP_ATTEMPTS + 2).tolist()
    # Logarithms, so that wide and tall crops are equally likely.
    low, high = map(math.log, CROP_ASPECT)
    for share, log_aspect in zip(candidates[::2], candidates[1::2], strict=True):
        pixels = (area[0] + share * (area[1] - area[0])) * height * width
        ratio = math.exp(low + log_aspect * (high - low))
        crop_width, crop_height = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(top * (height - crop_height + 1))
            left = int(left * (width - crop_width + 1))
            return Box(top, left, crop_height, crop_width)
    # No candidate fits, for example in a very narrow image.
    crop_width = min(width, round(height * CROP_ASPECT[1]))
    crop_height = min(height, round(width / CROP_ASPECT[0]))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def centre_crop(
    image: Image.Image, size: int, resample: Image.Resampling
) -> np.ndarray:  # [size, size]
    """Resize the short side to 256/224 of the size, then cut out the centre."""
    height, width = full_size(image)
    side, short = enlarged_side(size), min(height, width)
    pixels = resize(image, (side * width // short, side * height // short), resample)
    top, left = round((pixels.shape[0] - size) / 2), round((pixels.shape[1] - size) / 2)
    return pixels[top : top + size, left : left + size]


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

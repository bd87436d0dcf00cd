"""Image operations: reading, crop, resize, flip, jitter, erasing, mean and deviation.

A transform takes an image of `load_image` and the sample's generator.  It draws first, in a fixed
order (crop, flip, mask, then the rest), and computes afterwards; no global random state is read.
Pixels are float32 arrays [H, W] in grey levels 0..255 until they are normalised.
"""

import math
import re
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from config import Config, encoder_node
from data.masking import MaskGenerator

GREY_STATISTICS = (0.503,), (0.292,)  # 870 images of CheXpert-v1.0-small
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MODES_8_BIT = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr')
MODES_16_BIT = ('I', 'I;16', 'I;16L', 'I;16B', 'I;16N')
FULL_RANGES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))

PRETRAIN_AREA = (0.67, 1.0)
FINETUNE_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)
ERASE_ATTEMPTS = 10

# One filter, or those that 'random' chooses from for each image.
FILTERS = {
    'bilinear': (Image.Resampling.BILINEAR,),
    'bicubic': (Image.Resampling.BICUBIC,),
    'lanczos': (Image.Resampling.LANCZOS,),
    'hamming': (Image.Resampling.HAMMING,),
    'random': (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def statistics(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of pixels in [0, 1]."""
    mean, std = GREY_STATISTICS if encoder_node(config).IN_CHANS == 1 else IMAGENET_STATISTICS
    return tuple(config.DATA.MEAN) or mean, tuple(config.DATA.STD) or std


def load_image(path: str | PathLike[str]) -> Image.Image:
    """Read an image as one channel of grey levels.

    Colour becomes ITU-R 601 luma, transparency lies on black, EXIF rotation is undone.  16-bit
    images are scaled by their true range: the smallest of 8, 10, 12, 14, 16 bits that holds them.

    Returns:
        Mode 'L' for 8 bits; mode 'F' in grey levels 0..255, not rounded, for 16 bits.

    Raises:
        ValueError: naming the path, if there is no such file or it cannot be read.
    """
    try:
        with Image.open(path) as image:
            if image.mode in MODES_8_BIT and re.search(r';16[BLN]', str(image.tile)):
                raise ValueError('16-bit colour or alpha would be cut to 8 bits; store 16-bit grey')
            ImageOps.exif_transpose(image, in_place=True)
            return _to_grey(image)
    except FileNotFoundError:
        raise ValueError(f'there is no image {path}') from None
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise ValueError(f'image {path} cannot be read: {error}') from error


def draw_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float] = CROP_ASPECT,
) -> Box:
    """Draw the box of a random resized crop, by torchvision's rule.

    Always uses up 22 uniforms: ten candidates (area, logarithm of the aspect) and one position.
    The first candidate that fits is taken; else the largest centred box of an allowed aspect.

    Args:
        rng: the sample's generator.
        height: of the image, in pixels.
        width: of the image, in pixels.
        area: range of the box's share of the image.
        aspect: range of width over height.
    """
    uniforms = rng.random(2 * CROP_ATTEMPTS + 2)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for share, log_aspect in uniforms[:-2].reshape(CROP_ATTEMPTS, 2):
        pixels = (area[0] + share * (area[1] - area[0])) * height * width
        ratio = math.exp(low + log_aspect * (high - low))
        crop_width, crop_height = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(uniforms[-2] * (height - crop_height + 1))
            left = int(uniforms[-1] * (width - crop_width + 1))
            return Box(top, left, crop_height, crop_width)
    crop_width = min(width, round(height * aspect[1]))
    crop_height = min(height, round(width / aspect[0]))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return Box(top, left, crop_height, crop_width)


def resized_crop(
    image: Image.Image, box: Box, size: int, resample: Image.Resampling
) -> np.ndarray:  # [size, size]
    """Cut the box out and resize it to a square, antialiased."""
    right, bottom = box.left + box.width, box.top + box.height
    # Not resize(box=...): that lets pixels outside the box into its edges.
    return _resize(image.crop((box.left, box.top, right, bottom)), (size, size), resample)


def centre_crop(
    image: Image.Image, size: int, resample: Image.Resampling
) -> np.ndarray:  # [size, size]
    """Resize the short side to 256/224 of the size, then cut the size out of the centre."""
    short = int(256 / 224 * size)
    height, width = image.height, image.width
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    top, left = round((height - size) / 2), round((width - size) / 2)
    return _resize(image, (width, height), resample)[top : top + size, left : left + size]


def jitter(pixels: np.ndarray, *, brightness: float, contrast: float) -> np.ndarray:
    """Multiply by the brightness, then spread around the mean by the contrast; both clipped."""
    pixels = np.clip(pixels * np.float32(brightness), 0, 255)
    mean = pixels.mean()
    return np.clip(mean + (pixels - mean) * np.float32(contrast), 0, 255)


def erase(
    image: np.ndarray, rng: np.random.Generator, *, probability: float, mode: str, max_count: int
) -> None:
    """Random erasing as timm does it: overwrite 1 to max_count rectangles, in place.

    Args:
        image: [C, H, W], normalised.
        rng: the sample's generator.
        probability: that anything is erased at all.
        mode: what fills a rectangle: 'const' zeros, 'rand' a normal value a channel, 'pixel' one
            a channel and pixel.
        max_count: the count is uniform; the rectangles share the area.
    """
    if rng.random() >= probability:
        return
    channels, height, width = image.shape
    low, high = np.log(ERASE_ASPECT)
    count = rng.integers(1, max_count + 1)
    for _ in range(count):
        for _ in range(ERASE_ATTEMPTS):
            pixels = rng.uniform(*ERASE_AREA) * height * width / count
            aspect = math.exp(rng.uniform(low, high))
            h, w = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if h < height and w < width:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                area = image[:, top : top + h, left : left + w]
                shape = (channels, 1, 1) if mode == 'rand' else area.shape
                area[:] = 0 if mode == 'const' else rng.standard_normal(shape, np.float32)
                break


class Normalize:
    """Grey levels to the model's input: (pixels - offset) / scale, repeated for each channel.

    With DATA.NORMALIZE 'dataset' offset and scale are 255 times mean and deviation of the data
    set; with 'image' they are those of the image itself (scale at least one grey level).
    """

    def __init__(self, config: Config) -> None:
        mean, std = statistics(config)
        self.by_image = config.DATA.NORMALIZE == 'image'
        self.offset = np.float32(255) * np.array(mean, np.float32)  # [C]
        self.scale = np.float32(255) * np.array(std, np.float32)  # [C]

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normalise one image.

        Args:
            pixels: [H, W] in grey levels.

        Returns:
            image [C, H, W], scale [C], offset [C]: image * scale + offset are grey levels again.
        """
        offset, scale = self.offset, self.scale
        if self.by_image:
            offset = np.full_like(offset, pixels.mean())
            scale = np.full_like(scale, max(pixels.std(), 1))
        image = (pixels - offset[:, None, None]) / scale[:, None, None]
        return np.ascontiguousarray(image, np.float32), scale, offset


class PretrainTransform:
    """(image, rng) -> (normalised image [C, S, S], mask [h, w])."""

    def __init__(self, config: Config, mask_generator: MaskGenerator) -> None:
        self.size = config.DATA.IMG_SIZE
        self.area = tuple(config.AUG.CROP_AREA) or PRETRAIN_AREA
        self.hflip = config.AUG.HFLIP
        self.filters = FILTERS[config.DATA.PRETRAIN_INTERPOLATION]
        self.mask_generator = mask_generator
        self.normalize = Normalize(config)

    def __call__(
        self, image: Image.Image, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        box = draw_crop(rng, image.height, image.width, area=self.area)
        flipped = rng.random() < self.hflip
        mask = self.mask_generator(rng)
        pixels = resized_crop(image, box, self.size, _choose(self.filters, rng))
        pixels = pixels[:, ::-1] if flipped else pixels
        return torch.from_numpy(self.normalize(pixels)[0]), torch.from_numpy(mask)


class TrainTransform:
    """Fine-tuning: (image, rng) -> normalised image [C, S, S], augmented."""

    def __init__(self, config: Config) -> None:
        self.size = config.DATA.IMG_SIZE
        self.area = tuple(config.AUG.CROP_AREA) or FINETUNE_AREA
        self.hflip = config.AUG.HFLIP
        self.filters = FILTERS[config.DATA.INTERPOLATION]
        strength = config.AUG.COLOR_JITTER
        self.jitter_range = (max(0.0, 1 - strength), 1 + strength) if strength else None
        self.erasing = {
            'probability': config.AUG.REPROB,
            'mode': config.AUG.REMODE,
            'max_count': config.AUG.RECOUNT,
        }
        self.normalize = Normalize(config)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        box = draw_crop(rng, image.height, image.width, area=self.area)
        flipped = rng.random() < self.hflip
        pixels = resized_crop(image, box, self.size, _choose(self.filters, rng))
        pixels = pixels[:, ::-1] if flipped else pixels
        if self.jitter_range:
            brightness, contrast = rng.uniform(*self.jitter_range, size=2)
            pixels = jitter(pixels, brightness=brightness, contrast=contrast)
        normalized = self.normalize(pixels)[0]
        erase(normalized, rng, **self.erasing)
        return torch.from_numpy(normalized)


class EvalTransform:
    """(image, rng) -> normalised image [C, S, S]; nothing is drawn.

    The centre crop of an enlarged image (TEST.CROP), or the whole image squashed to the square.
    """

    def __init__(self, config: Config, interpolation: str | None = None) -> None:
        self.size = config.DATA.IMG_SIZE
        self.crop = config.TEST.CROP
        self.filter = FILTERS[interpolation or config.DATA.INTERPOLATION][0]
        self.normalize = Normalize(config)

    def pixels(self, image: Image.Image) -> np.ndarray:  # [S, S]
        """What the model gets to see, in grey levels."""
        if self.crop:
            return centre_crop(image, self.size, self.filter)
        return _resize(image, (self.size, self.size), self.filter)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        return torch.from_numpy(self.normalize(self.pixels(image))[0])


class HoldoutTransform:
    """(image, rng) -> (image [C, S, S], mask [h, w], scale [C], offset [C]), nothing augmented.

    The normalised image, a mask drawn from rng, and what turns normalised values into grey levels:
    image * scale + offset.  So a difference of two normalised values times scale is in grey levels.
    """

    def __init__(self, config: Config, mask_generator: MaskGenerator) -> None:
        self.view = EvalTransform(config, config.DATA.PRETRAIN_INTERPOLATION)
        self.mask_generator = mask_generator

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> tuple[Any, ...]:
        normalized = self.view.normalize(self.view.pixels(image))
        image, scale, offset = map(torch.from_numpy, normalized)
        return image, torch.from_numpy(self.mask_generator(rng)), scale, offset


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode in MODES_16_BIT:
        return _from_16_bit(np.asarray(image))
    if image.mode not in MODES_8_BIT:
        raise ValueError(f'pixels of mode {image.mode!r} are neither 8-bit nor 16-bit grey')
    if image.has_transparency_data:
        black = Image.new('RGBA', image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert('RGBA'))
    return image.convert('L')


def _from_16_bit(pixels: np.ndarray) -> Image.Image:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > FULL_RANGES[-1]:
        raise ValueError(f'pixels from {low} to {high} are outside the 16-bit range')
    full = next(full for full in FULL_RANGES if high <= full)
    return Image.fromarray(pixels.astype(np.float32) * np.float32(255 / full))


def _resize(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling
) -> np.ndarray:  # [H, W]
    pixels = np.asarray(image.resize(size, resample), np.float32)
    return pixels if image.mode == 'L' else np.clip(pixels, 0, 255)  # 'F' may overshoot


def _choose(filters: tuple[Image.Resampling, ...], rng: np.random.Generator) -> Image.Resampling:
    return filters[0] if len(filters) == 1 else filters[rng.integers(len(filters))]

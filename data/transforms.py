"""Transform images: preprocessing, crop, resize, flip, augmentation, normalisation.

A transform takes an image and the random generator of the sample. It draws in a fixed order: crop,
flip, mask, then augmentations of fine-tuning. No global random state is read. Pixels are float32
arrays [H, W] with grey levels in [0, 255] until they are normalised.
"""

import math

import numpy as np
import torch
from PIL import Image

from config import Config, enlarged_side, pixel_statistics
from data.images import full_size
from data.preprocess import Preprocess
from data.view import Box, View, resize

CROP_ASPECT = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10

# Filters by name; 'random' chooses one of two for each image.
FILTERS = {
    'bilinear': (Image.Resampling.BILINEAR,),
    'bicubic': (Image.Resampling.BICUBIC,),
    'lanczos': (Image.Resampling.LANCZOS,),
    'hamming': (Image.Resampling.HAMMING,),
    'random': (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}


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
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Normalise one image.

        Args:
            pixels: float32 [H, W] in grey levels.
            before: The same without random changes of brightness and contrast, which 'image' would
                undo with the statistics of `pixels`; None if there are none.

        Returns:
            image [C, H, W], scale [C], offset [C]. image * scale + offset restores the grey levels.
        """
        offset, scale = self.offset, self.scale
        if self.by_image:
            # Statistics of the changed pixels would undo the change of brightness and contrast.
            before = pixels if before is None else before
            offset = np.full_like(offset, before.mean())
            scale = np.full_like(scale, max(before.std(), 1))
        image = np.empty((len(offset), *pixels.shape), np.float32)
        np.subtract(pixels, offset[:, None, None], out=image)
        image /= scale[:, None, None]
        return image, scale, offset


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
    """Return a normalised image [C, S, S], or several views of it [T, C, S, S]; nothing is random.

    With TEST.CROP, the view is the centre crop of the enlarged image. Otherwise it is the whole
    image squeezed to a square. With EVAL.TTA 'crops', the views are the centre and the four corners
    of the enlarged image (T = 5), and TEST.CROP decides whether the aspect is kept.

    Args:
        config: Run configuration.
        interpolation: Name in FILTERS. The default is DATA.INTERPOLATION.
        test_time_views: If False, there is one view as in training, and EVAL.TTA and
            EVAL.PREPROCESS are ignored.
    """

    def __init__(
        self, config: Config, interpolation: str | None = None, *, test_time_views: bool = True
    ) -> None:
        self.size = config.DATA.IMG_SIZE
        self.preprocess = Preprocess(config, is_scored=test_time_views)
        self.crop = config.TEST.CROP
        self.five_crops = test_time_views and config.EVAL.TTA == 'crops'
        self.filter = FILTERS[interpolation or config.DATA.INTERPOLATION][0]
        self.normalize = Normalize(config)

    def pixels(self, image: Image.Image) -> np.ndarray:  # [S, S]
        """Return the single view of an image, which EVAL.TTA does not change, in grey levels."""
        return self.square(self.preprocess(image))

    def square(self, image: Image.Image) -> np.ndarray:  # [S, S]
        """Return the single view of a preprocessed image."""
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

    def views(self, image: Image.Image) -> np.ndarray:  # [T, S, S]
        """Return all views of an image in grey levels."""
        if not self.five_crops:
            return self.pixels(image)[None]
        image = self.preprocess(image)
        enlarged = _enlarge(image, self.size, self.filter, keep_aspect=self.crop)
        return five_crops(enlarged, self.size)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> torch.Tensor:
        views = np.stack([self.normalize(view)[0] for view in self.views(image)])
        return torch.from_numpy(views if self.five_crops else views[0])


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
    return five_crops(_enlarge(image, size, resample, keep_aspect=True), size)[0]


def five_crops(pixels: np.ndarray, size: int) -> np.ndarray:  # [H, W] -> [5, size, size]
    """Cut out the centre, top left, top right, bottom left and bottom right."""
    bottom, right = pixels.shape[0] - size, pixels.shape[1] - size
    places = [(round(bottom / 2), round(right / 2)), (0, 0), (0, right), (bottom, 0)]
    places.append((bottom, right))
    return np.stack([pixels[top : top + size, left : left + size] for top, left in places])


def _enlarge(
    image: Image.Image, size: int, resample: Image.Resampling, *, keep_aspect: bool
) -> np.ndarray:  # [H, W]
    """Resize the short side (without keep_aspect, both sides) to `enlarged_side`."""
    height, width = full_size(image) if keep_aspect else (1, 1)
    side, short = enlarged_side(size), min(height, width)
    return resize(image, (side * width // short, side * height // short), resample)

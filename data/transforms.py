"""Transform images: preprocessing, crop, resize, flip, augmentation, normalisation.

A transform takes an image and the random generator of the sample. It draws in a fixed order: crop,
flip, mask, then augmentations of fine-tuning. No global random state is read. Pixels are float32
arrays [H, W] with grey levels in [0, 255] until they are normalised.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as F

from config import PRETRAIN_FILTER, Config, enlarged_side, pixel_statistics
from data.images import full_size
from data.masking import MaskGenerator
from data.preprocess import Preprocess
from data.view import Box, View, resize

PRETRAIN_AREA = (0.67, 1.0)
FINETUNE_AREA = (0.08, 1.0)
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

# Inward directions (x, y) of the corners: top left, top right, bottom right, bottom left.
INWARD = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])
ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)
ERASE_ATTEMPTS = 10
RANDAUGMENT_STEPS = 30  # number of steps from no change to the greatest strength
# Name -> function(image, share of the greatest strength in [-1, 1]). These are torchvision's
# operations, with a bilinear filter and without 'Color', which does not change grey images.
RANDAUGMENT: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    'Identity': lambda image, share: image,
    'ShearX': lambda image, share: _moved(image, slope=(0.3 * share, 0)),
    'ShearY': lambda image, share: _moved(image, slope=(0, 0.3 * share)),
    'TranslateX': lambda image, share: _moved(image, shift=(150 / 331 * share, 0)),
    'TranslateY': lambda image, share: _moved(image, shift=(0, 150 / 331 * share)),
    'Rotate': lambda image, share: F.rotate(image, 30 * share, F.InterpolationMode.BILINEAR),
    'Brightness': lambda image, share: F.adjust_brightness(image, 1 + 0.9 * share),
    'Contrast': lambda image, share: F.adjust_contrast(image, 1 + 0.9 * share),
    'Sharpness': lambda image, share: F.adjust_sharpness(image, 1 + 0.9 * share),
    'Posterize': lambda image, share: F.posterize(image, 8 - round(4 * abs(share))),
    'Solarize': lambda image, share: F.solarize(image, 255 * (1 - abs(share))),
    'AutoContrast': lambda image, share: F.autocontrast(image),
    'Equalize': lambda image, share: F.equalize(image),
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


class PretrainTransform(RandomCrop):
    """Return a normalised crop [C, S, S] of an image, and a mask [h, w], for pre-training."""

    def __init__(self, config: Config, mask_generator: MaskGenerator) -> None:
        super().__init__(config, PRETRAIN_FILTER, PRETRAIN_AREA)
        self.mask_generator = mask_generator
        self.noise = config.AUG.NOISE

    def __call__(
        self, image: Image.Image, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # The view comes before the mask, because a mask may depend on what the crop shows.
        view = self.draw(image, rng)
        mask = self.mask_generator(rng, view)
        pixels = self.cut(view, rng)
        if self.noise:
            pixels = pixels + self.noise * rng.standard_normal(pixels.shape, np.float32)
        return torch.from_numpy(self.normalize(pixels)[0]), mask_bytes(mask)


class TrainTransform(RandomCrop):
    """Return an augmented and normalised crop [C, S, S] of an image for fine-tuning."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.DATA.INTERPOLATION, FINETUNE_AREA)
        aug = config.AUG
        self.warp = RandomWarp(config)
        self.randaugment = RandAugment(config)
        self.jitter, self.jitters_contrast = aug.COLOR_JITTER, aug.JITTER_CONTRAST
        self.erasing = {'probability': aug.REPROB, 'mode': aug.REMODE, 'max_count': aug.RECOUNT}

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        # Geometry first, then grey levels, and erasing last, on the normalised image.
        before = self.warp(self.cut(self.draw(image, rng), rng), rng)
        pixels = self.randaugment(before, rng)
        if self.jitter:
            brightness, contrast = rng.uniform(max(0.0, 1 - self.jitter), 1 + self.jitter, size=2)
            contrast = contrast if self.jitters_contrast else 1.0
            pixels = jitter(pixels, brightness=brightness, contrast=contrast)
        normalized = self.normalize(pixels, before)[0]
        erase(normalized, rng, **self.erasing)
        return torch.from_numpy(normalized)


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


class HoldoutTransform:
    """Return an image [C, S, S] without augmentation, a mask [h, w], scale [C] and offset [C].

    image * scale + offset restores the grey levels. Only the mask is drawn from `rng`.
    """

    def __init__(self, config: Config, mask_generator: MaskGenerator) -> None:
        self.plain = EvalTransform(config, PRETRAIN_FILTER, test_time_views=False)
        self.mask_generator = mask_generator

    def __call__(
        self, image: Image.Image, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        image = self.plain.preprocess(image)
        mask = self.mask_generator(rng, self.plain.view(image))
        normalized = self.plain.normalize(self.plain.square(image))
        image, scale, offset = map(torch.from_numpy, normalized)
        return image, mask_bytes(mask), scale, offset


class RandomWarp:
    """Apply rotation and perspective with one resampling (AUG.ROTATION and AUG.DISTORTION).

    If both are off, nothing is drawn. Otherwise there are always 13 uniform draws, so that neither
    option changes the draws of the other. Four of them are not used: they keep the samples of runs
    that had more options. Areas from outside the crop are black.
    """

    def __init__(self, config: Config) -> None:
        self.rotation = config.AUG.ROTATION
        self.distortion = config.AUG.DISTORTION

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Warp a square image [S, S]."""
        if not self.rotation and not self.distortion:
            return pixels
        size, uniforms = len(pixels), rng.random(13)
        matrix = warp_matrix(
            size,
            angle=(2 * uniforms[0] - 1) * self.rotation,
            inward=uniforms[5:].reshape(4, 2) * self.distortion * size / 2,
        )
        return warp(pixels, matrix)


class RandAugment:
    """Apply several random operations of RANDAUGMENT with the same strength.

    Two numbers are drawn for each operation: its index, and the sign of its strength. Grey levels
    are rounded, because the operations take 8 bits.

    Source: Cubuk et al. 2020, arXiv:1909.13719, with the strengths of torchvision.
    """

    def __init__(self, config: Config) -> None:
        self.count, self.magnitude = config.AUG.RANDAUGMENT or (0, 0)

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change a square image [S, S]."""
        if not self.count:
            return pixels
        image = Image.fromarray(np.rint(pixels).astype(np.uint8))
        operations = [*RANDAUGMENT.values()]
        for _ in range(self.count):
            change, sign = operations[rng.integers(len(operations))], rng.choice((-1, 1))
            image = change(image, sign * self.magnitude / RANDAUGMENT_STEPS)
        return np.asarray(image, np.float32)


def mask_bytes(mask: np.ndarray) -> torch.Tensor:  # [h, w]
    """Convert a mask to bytes: an eighth of what workers send and the GPU receives."""
    return torch.from_numpy(mask.astype(np.uint8))


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


def warp_matrix(
    size: int,
    *,
    angle: float = 0.0,
    inward: np.ndarray | float = 0.0,
) -> np.ndarray:  # [3, 3]
    """Return the homography from points (x, y, 1) of a square image to points of the warped image.

    As in torchvision, a rotation around the centre is followed by a perspective. Points are in
    pixels; (0, 0) is the outer corner of the first pixel.

    Args:
        size: Side of the image in pixels.
        angle: Clockwise rotation in degrees.
        inward: Inward shifts (x, y) in pixels, [4, 2], of the top left, top right, bottom right and
            bottom left corner. Below a third of the side, the corners stay convex.
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # Clockwise on the screen, because y points down.
    linear = np.array([[cos, -sin], [sin, cos]])
    centre = np.array([size / 2, size / 2])
    rotation = np.eye(3)
    rotation[:2, :2] = linear
    # The centre stays where it is.
    rotation[:2, 2] = centre - linear @ centre
    corners = size * (INWARD < 0) + INWARD * inward
    return _perspective(corners, size) @ rotation


def warp(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:  # [S, S] both ways
    """Warp an image by a homography with a bicubic filter; areas from outside are black."""
    # Pillow asks for the map from each output pixel back to the input.
    inverse = np.linalg.inv(matrix)
    warped = Image.fromarray(pixels).transform(
        pixels.shape[::-1],
        Image.Transform.PERSPECTIVE,
        tuple((inverse / inverse[2, 2]).ravel()[:8]),
        Image.Resampling.BICUBIC,
    )
    return np.clip(np.asarray(warped), 0, 255)  # bicubic may overshoot


def jitter(pixels: np.ndarray, *, brightness: float, contrast: float) -> np.ndarray:
    """Multiply pixels by the brightness, scale them around the mean by the contrast, and clip."""
    pixels = np.clip(pixels * np.float32(brightness), 0, 255)
    # The mean after the change of brightness stays the same.
    mean = pixels.mean()
    return np.clip(mean + (pixels - mean) * np.float32(contrast), 0, 255)


def erase(
    image: np.ndarray, rng: np.random.Generator, *, probability: float, mode: str, max_count: int
) -> None:
    """Erase 1 to max_count random rectangles in place, like timm's random erasing.

    Args:
        image: Normalised image [C, H, W].
        rng: Random generator of the sample.
        probability: Probability of erasing.
        mode: Content of a rectangle: zeros ('const'), one normal value per channel ('rand'), or one
            normal value per channel and pixel ('pixel').
        max_count: Largest number of rectangles, which share the erased area.
    """
    if rng.random() >= probability:
        return
    channels, height, width = image.shape
    low, high = np.log(ERASE_ASPECT)
    # Several rectangles share the erased area, so their number does not change it.
    count = rng.integers(1, max_count + 1)
    for _ in range(count):
        for _ in range(ERASE_ATTEMPTS):
            pixels = rng.uniform(*ERASE_AREA) * height * width / count
            aspect = math.exp(rng.uniform(low, high))
            h, w = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            # A candidate that does not fit is drawn again, at most ERASE_ATTEMPTS times.
            if h < height and w < width:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                area = image[:, top : top + h, left : left + w]
                shape = (channels, 1, 1) if mode == 'rand' else area.shape
                area[:] = 0 if mode == 'const' else rng.standard_normal(shape, np.float32)
                break


def _enlarge(
    image: Image.Image, size: int, resample: Image.Resampling, *, keep_aspect: bool
) -> np.ndarray:  # [H, W]
    """Resize the short side (without keep_aspect, both sides) to `enlarged_side`."""
    height, width = full_size(image) if keep_aspect else (1, 1)
    side, short = enlarged_side(size), min(height, width)
    return resize(image, (side * width // short, side * height // short), resample)


def _moved(
    image: Image.Image, *, shift: tuple[float, float] = (0, 0), slope: tuple[float, float] = (0, 0)
) -> Image.Image:
    """Shift by shares of the side, in whole pixels, or shear from the top left corner."""
    shift = [int(part * image.width) for part in shift]
    shear = [math.degrees(math.atan(part)) for part in slope]
    return F.affine(image, 0, shift, 1, shear, F.InterpolationMode.BILINEAR, center=[0, 0])


def _perspective(corners: np.ndarray, size: int) -> np.ndarray:  # [4, 2] -> [3, 3]
    """Return the homography that maps the corners of a square to four corners, clockwise.

    Source: Heckbert 1989, Fundamentals of Texture Mapping and Image Warping, section 2.2.3.
    """
    top_left, top_right, bottom_right, bottom_left = corners
    sides = np.stack([top_right - bottom_right, bottom_left - bottom_right], axis=1)
    g, h = np.linalg.solve(sides, top_left - top_right + bottom_right - bottom_left)
    columns = top_right * (1 + g) - top_left, bottom_left * (1 + h) - top_left, top_left
    matrix = np.vstack([np.stack(columns, axis=1), (g, h, 1)])
    matrix[:, :2] /= size  # from the unit square's coordinates to pixels
    return matrix

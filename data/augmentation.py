"""Augment training images of fine-tuning: warps, RandAugment, brightness and contrast, erasing."""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from config import Config, module_of_option
from data.transforms import GreyImages, RandomCrop

FINETUNE_AREA = (0.08, 1.0)
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
    'Rotate': lambda image, share: image.rotate(30 * share, Image.Resampling.BILINEAR),
    'Brightness': lambda image, share: ImageEnhance.Brightness(image).enhance(1 + 0.9 * share),
    'Contrast': lambda image, share: ImageEnhance.Contrast(image).enhance(1 + 0.9 * share),
    'Sharpness': lambda image, share: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * share),
    'Posterize': lambda image, share: ImageOps.posterize(image, 8 - round(4 * abs(share))),
    'Solarize': lambda image, share: ImageOps.solarize(image, 255 * (1 - abs(share))),
    'AutoContrast': lambda image, share: ImageOps.autocontrast(image),
    'Equalize': lambda image, share: ImageOps.equalize(image),
}


class TrainTransform(RandomCrop):
    """Return an augmented and normalised crop [C, S, S] of an image for fine-tuning."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.DATA.INTERPOLATION, FINETUNE_AREA)
        aug = config.AUG
        self.warp = RandomWarp(config)
        self.randaugment = RandAugment(config)
        self.jitter, self.jitters_contrast = aug.COLOR_JITTER, aug.JITTER_CONTRAST
        if aug.AUTO_AUGMENT != 'none':
            self.randaugment = module_of_option('AUG.AUTO_AUGMENT').AutoAugment(config)
            self.jitter = 0.0  # a policy of timm replaces it, as in SimMIM
        self.erasing = {'probability': aug.REPROB, 'mode': aug.REMODE, 'max_count': aug.RECOUNT}

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> GreyImages | torch.Tensor:
        # Geometry first, then grey levels, and erasing last, on the normalised image.
        before = self.warp(self.cut(self.draw(image, rng), rng), rng)
        pixels = self.randaugment(before, rng)
        if self.jitter:
            brightness, contrast = rng.uniform(max(0.0, 1 - self.jitter), 1 + self.jitter, size=2)
            contrast = contrast if self.jitters_contrast else 1.0
            pixels = jitter(pixels, brightness=brightness, contrast=contrast)
        if not self.erasing['probability']:
            return self.normalize.sample(pixels, before)
        normalized = self.normalize(pixels, before)
        erase(normalized, rng, **self.erasing)
        return torch.from_numpy(normalized)


class RandomWarp:
    """Apply rotation and perspective with one resampling (AUG.ROTATION and AUG.DISTORTION).

    If both are off, nothing is drawn. Otherwise there are always 9 uniform draws, so that neither
    option changes the draws of the other. Areas from outside the crop are black.
    """

    def __init__(self, config: Config) -> None:
        self.rotation = config.AUG.ROTATION
        self.distortion = config.AUG.DISTORTION

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Warp a square image [S, S]."""
        if not self.rotation and not self.distortion:
            return pixels
        size, uniforms = len(pixels), rng.random(9)
        matrix = warp_matrix(
            size,
            angle=(2 * uniforms[0] - 1) * self.rotation,
            inward=uniforms[1:].reshape(4, 2) * self.distortion * size / 2,
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
    # The homography that maps the corners of the square to four corners, clockwise: Heckbert 1989,
    # Fundamentals of Texture Mapping and Image Warping, section 2.2.3.
    corners = size * (INWARD < 0) + INWARD * inward
    top_left, top_right, bottom_right, bottom_left = corners
    sides = np.stack([top_right - bottom_right, bottom_left - bottom_right], axis=1)
    g, h = np.linalg.solve(sides, top_left - top_right + bottom_right - bottom_left)
    columns = top_right * (1 + g) - top_left, bottom_left * (1 + h) - top_left, top_left
    perspective = np.vstack([np.stack(columns, axis=1), (g, h, 1)])
    perspective[:, :2] /= size  # from the unit square's coordinates to pixels
    return perspective @ rotation


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


def _moved(
    image: Image.Image, *, shift: tuple[float, float] = (0, 0), slope: tuple[float, float] = (0, 0)
) -> Image.Image:
    """Shift by shares of the side, in whole pixels, or shear from the top left corner."""
    across, down = (int(share * image.width) for share in shift)
    # Pillow asks for the map from each output pixel back to the input.
    back = (1, slope[0], -across, slope[1], 1, -down)
    return image.transform(image.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)

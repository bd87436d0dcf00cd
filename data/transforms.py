"""Image operations: contrast, crop, resize, flip, mean and deviation, scored views.

A transform takes an image of `load_image` and the sample's generator.  It draws in a fixed order
(crop, flip, mask, then what `data.augment` adds in fine-tuning); no global random state is read.
Pixels are float32 arrays [H, W] in grey levels 0..255 until they are normalised.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image, ImageOps

from config import Config
from data.images import full_size
from data.masking import MaskGenerator

# ==== data.augment: What fine-tuning adds to crop and flip: geometry, jitter, erasing.

# How a corner moves inward, as (x, y): top left, top right, bottom right, bottom left.
INWARD = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])

ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)
ERASE_ATTEMPTS = 10


class RandomWarp:
    """Rotation, shift, enlargement, shear and perspective by AUG's ranges, in one resampling.

    Where all are off nothing is drawn; else always 13 uniforms, so that an option that is turned
    on moves none of the others.  The image is that of the crop, so what a warp brings in from
    outside it is black.
    """

    def __init__(self, config: Config) -> None:
        aug = config.AUG
        self.rotation, self.translate, self.shear = aug.ROTATION, aug.TRANSLATE, aug.SHEAR
        self.scale = tuple(aug.SCALE) or (1.0, 1.0)
        self.distortion = aug.DISTORTION
        self.is_on = any((aug.ROTATION, aug.TRANSLATE, aug.SCALE, aug.SHEAR, aug.DISTORTION))

    def __call__(
        self, pixels: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:  # [S, S] both ways
        if not self.is_on:
            return pixels
        size, uniforms = len(pixels), rng.random(13)
        angle, shift_x, shift_y, shear = 2 * uniforms[:4] - 1
        matrix = warp_matrix(
            size,
            angle=angle * self.rotation,
            shift=(shift_x * self.translate * size, shift_y * self.translate * size),
            scale=self.scale[0] + uniforms[4] * (self.scale[1] - self.scale[0]),
            shear=shear * self.shear,
            inward=uniforms[5:].reshape(4, 2) * self.distortion * size / 2,
        )
        return warp(pixels, matrix)


def warp_matrix(
    size: int,
    *,
    angle: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    shear: float = 0.0,
    inward: np.ndarray | float = 0.0,
) -> np.ndarray:  # [3, 3]
    """The homography from points (x, y, 1) of a square image to those of the warped one.

    As torchvision's affine, around the centre (shear, then enlargement and rotation, then shift),
    followed by its perspective.  Points are in pixels, (0, 0) the outer corner of the first one.

    Args:
        size: side of the image in pixels.
        angle: in degrees, clockwise.
        shift: (right, down) in pixels.
        scale: enlargement.
        shear: of the rows against each other, in degrees.
        inward: [4, 2], how far (x, y) each corner moves inward in pixels: top left, top right,
            bottom right, bottom left.  Below a third of the side the corners stay convex.
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    linear = (
        scale * np.array([[cos, -sin], [sin, cos]]) @ [[1, -math.tan(math.radians(shear))], [0, 1]]
    )
    centre = np.array([size / 2, size / 2])
    affine = np.eye(3)
    affine[:2, :2], affine[:2, 2] = linear, centre + shift - linear @ centre
    corners = size * (INWARD < 0) + INWARD * inward
    return _perspective(corners, size) @ affine


def warp(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:  # [S, S] both ways
    """Move the image by a homography of its points; black where it has none.

    Bicubic, for X-rays that are scored are not blurred by a second resampling.  Against warping at
    four times the size it is off by 1.5 grey levels and keeps 91 % of the energy of second
    differences; bilinear is off by 2.0 and keeps 54 %.  For 224 px: 1.7 ms against 0.9.
    """
    inverse = np.linalg.inv(matrix)
    warped = Image.fromarray(pixels).transform(
        pixels.shape[::-1],
        Image.Transform.PERSPECTIVE,
        tuple((inverse / inverse[2, 2]).ravel()[:8]),
        Image.Resampling.BICUBIC,
    )
    return np.clip(np.asarray(warped), 0, 255)  # bicubic may overshoot


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


def _perspective(corners: np.ndarray, size: int) -> np.ndarray:  # [4, 2] -> [3, 3]
    """The homography that takes a square's corners, clockwise from the top left, to these.

    Source: Heckbert 1989, Fundamentals of Texture Mapping and Image Warping, section 2.2.3.
    """
    top_left, top_right, bottom_right, bottom_left = corners
    sides = np.stack([top_right - bottom_right, bottom_left - bottom_right], axis=1)
    g, h = np.linalg.solve(sides, top_left - top_right + bottom_right - bottom_left)
    columns = top_right * (1 + g) - top_left, bottom_left * (1 + h) - top_left, top_left
    matrix = np.vstack([np.stack(columns, axis=1), (g, h, 1)])
    matrix[:, :2] /= size  # from the unit square's coordinates to pixels
    return matrix


# ==== data.transforms: Image operations: contrast, crop, resize, flip, mean and deviation, scored views.
#
# A transform takes an image of `load_image` and the sample's generator.  It draws in a fixed order
# (crop, flip, mask, then what `data.augment` adds in fine-tuning); no global random state is read.
# Pixels are float32 arrays [H, W] in grey levels 0..255 until they are normalised.

GREY_STATISTICS = (0.503,), (0.292,)  # 870 images of CheXpert-v1.0-small
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PRETRAIN_AREA = (0.67, 1.0)
FINETUNE_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
BOX_STEPS = 1024  # to a pixel: float32 has them exactly

CLAHE_CLIP_LIMIT = 2.0  # a level's share of a tile, over that in a flat histogram: limits the slope
CLAHE_TILES = (8, 8)
MEDIAN_SIDE = 3

# One filter, or those that 'random' chooses from for each image.
FILTERS = {
    'bilinear': (Image.Resampling.BILINEAR,),
    'bicubic': (Image.Resampling.BICUBIC,),
    'lanczos': (Image.Resampling.LANCZOS,),
    'hamming': (Image.Resampling.HAMMING,),
    'random': (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}


class Box(NamedTuple):
    """A part of an image, in pixels of its full size."""

    top: int
    left: int
    height: int
    width: int


def statistics(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of pixels in [0, 1]."""
    mean, std = GREY_STATISTICS if config.MODEL.IN_CHANS == 1 else IMAGENET_STATISTICS
    return tuple(config.DATA.MEAN) or mean, tuple(config.DATA.STD) or std


def preprocess(image: Image.Image, name: str) -> Image.Image:
    """Change a whole image's grey levels, at its own size (DATA.PREPROCESS).

    'equalize' makes all grey levels about equally frequent; 'clahe' does so in tiles, with limited
    contrast; 'denoise' takes the median of 3 x 3 pixels.  Histograms have 256 levels: for the
    first two a 16-bit image is rounded to whole grey levels (mode 'L'); the median keeps fractions.

    Why the median: it takes 0.01 ms for 390 x 320 pixels of 8 bits (0.4 ms of 16 bits), non-local
    means 60 ms.  Those keep clean X-rays better (47 dB against 38), but not those with dead pixels.

    Raises:
        ValueError: for another name, or where OpenCV is needed and absent.
    """
    if name == 'none':
        return image
    if name == 'equalize':
        changed = ImageOps.equalize(_whole_levels(image))
    elif name == 'clahe':
        clahe = _opencv(name).createCLAHE(clipLimit=CLAHE_CLIP_LIMIT, tileGridSize=CLAHE_TILES)
        changed = Image.fromarray(clahe.apply(np.asarray(_whole_levels(image))))
    elif name == 'denoise':
        changed = Image.fromarray(_opencv(name).medianBlur(np.asarray(image), MEDIAN_SIDE))
    else:
        raise ValueError(
            f"DATA.PREPROCESS must be 'none', 'equalize', 'clahe' or 'denoise', got {name!r}"
        )
    changed.info = image.info
    return changed


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


def scale_boxes(boxes: ArrayLike, full: ArrayLike, found: ArrayLike) -> np.ndarray:
    """Boxes of images of one size in the images that these were resized to.

    Args:
        boxes: [..., 4]: top, left, height, width.
        full: [..., 2], height and width that the boxes are of.
        found: [..., 2], height and width of what there is.

    Returns:
        float64 [..., 4], rounded to BOX_STEPS, so that all ways to cut a box out see the same one.
    """
    start, length = np.split(np.asarray(boxes, np.float64), 2, axis=-1)
    corners = np.stack([start, start + length]) * found / np.asarray(full)
    start, end = np.rint(corners * BOX_STEPS) / BOX_STEPS
    return np.concatenate([start, end - start], axis=-1)


def resized_crop(
    image: Image.Image, box: Box, size: int, resample: Image.Resampling
) -> np.ndarray:  # [size, size]
    """Cut the box out and resize it to a square, antialiased."""
    full, found = full_size(image), (image.height, image.width)
    top, left, height, width = box if full == found else scale_boxes(box, full, found).tolist()
    outer = math.floor(left), math.floor(top), math.ceil(left + width), math.ceil(top + height)
    left, top = left - outer[0], top - outer[1]
    inner = left, top, left + width, top + height
    # Not resize(box=...) alone: that lets pixels outside the box into its edges.
    return _resize(image.crop(outer), (size, size), resample, box=inner)


def centre_crop(
    image: Image.Image, size: int, resample: Image.Resampling
) -> np.ndarray:  # [size, size]
    """Resize the short side to 256/224 of the size, then cut the size out of the centre."""
    return five_crops(enlarge(image, size, resample, keep_aspect=True), size)[0]


def enlarge(
    image: Image.Image, size: int, resample: Image.Resampling, *, keep_aspect: bool
) -> np.ndarray:  # [H, W]
    """Resize the short side to 256/224 of the size; without keep_aspect, both sides."""
    sides = np.array(full_size(image)) if keep_aspect else np.ones(2, np.int64)
    height, width = enlarged_sides(sides, size).tolist()
    return _resize(image, (width, height), resample)


def enlarged_sides(sides: np.ndarray, size: int) -> np.ndarray:
    """Height and width [..., 2] of `enlarge` for images of these."""
    return int(256 / 224 * size) * sides // sides.min(axis=-1, keepdims=True)


def five_crops(pixels: np.ndarray, size: int) -> np.ndarray:  # [H, W] -> [5, size, size]
    """Cut out the centre, then top left, top right, bottom left, bottom right."""
    places = five_places(np.array(pixels.shape), size).tolist()
    return np.stack([pixels[top : top + size, left : left + size] for top, left in places])


def five_places(sides: np.ndarray, size: int) -> np.ndarray:
    """Top and left [..., 5, 2] of `five_crops` for pixels of these sides [..., 2]."""
    far = np.asarray(sides) - size
    centre = np.rint(far / 2).astype(np.int64)
    zero, (bottom, right) = np.zeros_like(far[..., 0]), np.moveaxis(far, -1, 0)
    corners = [(zero, zero), (zero, right), (bottom, zero), (bottom, right)]
    return np.stack([centre, *(np.stack(corner, axis=-1) for corner in corners)], axis=-2)


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
        self.preprocess = config.DATA.PREPROCESS
        self.area = tuple(config.AUG.CROP_AREA) or PRETRAIN_AREA
        self.hflip = config.AUG.HFLIP
        self.filters = FILTERS[config.DATA.PRETRAIN_INTERPOLATION]
        self.mask_generator = mask_generator
        self.normalize = Normalize(config)

    def __call__(
        self, image: Image.Image, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image = preprocess(image, self.preprocess)
        box = draw_crop(rng, *full_size(image), area=self.area)
        flipped = rng.random() < self.hflip
        mask = self.mask_generator(rng)
        pixels = resized_crop(image, box, self.size, _choose(self.filters, rng))
        pixels = pixels[:, ::-1] if flipped else pixels
        return torch.from_numpy(self.normalize(pixels)[0]), torch.from_numpy(mask)


class TrainTransform:
    """Fine-tuning: (image, rng) -> normalised image [C, S, S], augmented."""

    def __init__(self, config: Config) -> None:
        self.size = config.DATA.IMG_SIZE
        self.preprocess = config.DATA.PREPROCESS
        self.area = tuple(config.AUG.CROP_AREA) or FINETUNE_AREA
        self.hflip = config.AUG.HFLIP
        self.filters = FILTERS[config.DATA.INTERPOLATION]
        self.warp = RandomWarp(config)
        strength = config.AUG.COLOR_JITTER
        self.jitter_range = (max(0.0, 1 - strength), 1 + strength) if strength else None
        self.erasing = {
            'probability': config.AUG.REPROB,
            'mode': config.AUG.REMODE,
            'max_count': config.AUG.RECOUNT,
        }
        self.normalize = Normalize(config)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        image = preprocess(image, self.preprocess)
        box = draw_crop(rng, *full_size(image), area=self.area)
        flipped = rng.random() < self.hflip
        pixels = resized_crop(image, box, self.size, _choose(self.filters, rng))
        pixels = self.warp(pixels[:, ::-1] if flipped else pixels, rng)
        if self.jitter_range:
            brightness, contrast = rng.uniform(*self.jitter_range, size=2)
            pixels = jitter(pixels, brightness=brightness, contrast=contrast)
        normalized = self.normalize(pixels)[0]
        erase(normalized, rng, **self.erasing)
        return torch.from_numpy(normalized)


class EvalTransform:
    """(image, rng) -> normalised image [C, S, S], or views of it [T, C, S, S]; nothing is drawn.

    The centre crop of an enlarged image (TEST.CROP), or the whole image squashed to the square.
    With EVAL.TTA 'crops', the centre and the four corners of the enlarged image (T = 5), of which
    TEST.CROP keeps the aspect, too; with EVAL.TTA_FLIP, the mirror images follow (T = 2 or 10).

    Args:
        config: all options.
        interpolation: a name of FILTERS; None: DATA.INTERPOLATION.
        test_time_views: False: one view, whatever EVAL.TTA and EVAL.TTA_FLIP say.
    """

    def __init__(
        self, config: Config, interpolation: str | None = None, *, test_time_views: bool = True
    ) -> None:
        self.size = config.DATA.IMG_SIZE
        self.preprocess = config.DATA.PREPROCESS
        self.crop = config.TEST.CROP
        self.five_crops = test_time_views and config.EVAL.TTA == 'crops'
        self.mirror = test_time_views and config.EVAL.TTA_FLIP
        self.num_views = (5 if self.five_crops else 1) * (2 if self.mirror else 1)
        self.filter = FILTERS[interpolation or config.DATA.INTERPOLATION][0]
        self.normalize = Normalize(config)

    def pixels(self, image: Image.Image) -> np.ndarray:  # [S, S]
        """The one view of test time without EVAL.TTA, in grey levels."""
        image = preprocess(image, self.preprocess)
        if self.crop:
            return centre_crop(image, self.size, self.filter)
        return _resize(image, (self.size, self.size), self.filter)

    def views(self, image: Image.Image) -> np.ndarray:  # [T, S, S]
        """What the model gets to see, in grey levels."""
        if self.five_crops:
            image = preprocess(image, self.preprocess)
            enlarged = enlarge(image, self.size, self.filter, keep_aspect=self.crop)
            views = five_crops(enlarged, self.size)
        else:
            views = self.pixels(image)[None]
        return np.concatenate([views, views[..., ::-1]]) if self.mirror else views

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        views = np.stack([self.normalize(view)[0] for view in self.views(image)])
        return torch.from_numpy(views if self.num_views > 1 else views[0])


class HoldoutTransform:
    """(image, rng) -> (image [C, S, S], mask [h, w], scale [C], offset [C]), nothing augmented.

    The normalised image, a mask drawn from rng, and what turns normalised values into grey levels:
    image * scale + offset.  So a difference of two normalised values times scale is in grey levels.
    """

    def __init__(self, config: Config, mask_generator: MaskGenerator) -> None:
        interpolation = config.DATA.PRETRAIN_INTERPOLATION
        self.view = EvalTransform(config, interpolation, test_time_views=False)
        self.mask_generator = mask_generator

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> tuple[Any, ...]:
        normalized = self.view.normalize(self.view.pixels(image))
        image, scale, offset = map(torch.from_numpy, normalized)
        return image, torch.from_numpy(self.mask_generator(rng)), scale, offset


def _whole_levels(image: Image.Image) -> Image.Image:  # mode 'L'
    if image.mode == 'L':
        return image
    return Image.fromarray(np.rint(np.asarray(image)).astype(np.uint8))


def _opencv(name: str) -> ModuleType:
    """OpenCV, on the calling thread alone: the loader's workers share the cores already."""
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            f'DATA.PREPROCESS {name!r} needs OpenCV: pip install opencv-python-headless ({error})'
        ) from error
    cv2.setNumThreads(0)
    return cv2


def _resize(
    image: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:  # [H, W]
    pixels = np.asarray(image.resize(size, resample, box), np.float32)
    return pixels if image.mode == 'L' else np.clip(pixels, 0, 255)  # 'F' may overshoot


def _choose(filters: tuple[Image.Resampling, ...], rng: np.random.Generator) -> Image.Resampling:
    return filters[0] if len(filters) == 1 else filters[rng.integers(len(filters))]

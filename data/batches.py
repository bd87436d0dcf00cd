"""Transforms of whole batches: twins of `data.transforms` for square pictures of one size.

`draw` makes the random parameters, with those of each image as the file path draws them, in the
loader's workers; `apply` turns uint8 pictures into the model's input where these lie, on the CPU or
a GPU.  Pixels differ from the file path by its rounding: it resizes pictures of 8 bits to whole
grey levels, this does not.
"""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.augment import RandomWarp, erase, warp_matrix
from data.batch_draws import (  # noqa: F401 (batch_uniforms stays importable from here)
    CROP_UNIFORMS,
    BatchRng,
    batch_uniforms,
    draw_crops,
    draw_masks,
)
from data.resampling import resize_crops, warp_batch
from data.transforms import (
    EvalTransform,
    HoldoutTransform,
    Normalize,
    PretrainTransform,
    TrainTransform,
    preprocess,
)

Parameters = dict[str, torch.Tensor]
WARP_UNIFORMS = 13


class _Batch:
    """What the batch transforms share.

    Args:
        transform: the twin for one image, of which the settings are taken.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def prepare(self, images: np.ndarray) -> np.ndarray:  # uint8 [B, H, W] both ways
        """Change the grey levels of each image (DATA.PREPROCESS)."""
        name = self.transform.preprocess
        if name == 'none':
            return images
        return np.stack([preprocess(Image.fromarray(image), name) for image in images])

    def draw(
        self,
        seed: int,
        epoch: int,
        rows: np.ndarray,
        occurrences: np.ndarray | None = None,
        *,
        heights: np.ndarray,
        widths: np.ndarray,
    ) -> Parameters:
        """The random parameters of a batch.

        Args:
            seed: SEED of the config.
            epoch: epoch, from 0.
            rows: [B], the numbers that key the images' generators (Records.row).
            occurrences: [B], how often the epoch has had each image before; None: never.
            heights: [B], of the images in pixels.
            widths: [B], of the images in pixels.

        Returns:
            Tensors for `apply`, a row an image where not said otherwise.
        """
        return self._draw(BatchRng(seed, epoch, rows, occurrences), heights, widths)

    def _draw(self, rng: BatchRng, heights: np.ndarray, widths: np.ndarray) -> Parameters:
        return {}


class PretrainBatch(_Batch):
    """uint8 [B, H, W] -> (normalised images [B, C, S, S], masks int64 [B, h, w])."""

    def _draw(self, rng: BatchRng, heights: np.ndarray, widths: np.ndarray) -> Parameters:
        twin = self.transform
        parameters = _draw_crop_and_flip(twin, rng, heights, widths)
        units = draw_masks(twin.mask_generator, rng)
        parameters['hidden_units'] = torch.from_numpy(units)
        parameters['filters'] = torch.from_numpy(rng.choose(len(twin.filters)))
        return parameters

    def apply(
        self, images: torch.Tensor, parameters: Parameters
    ) -> tuple[torch.Tensor, torch.Tensor]:
        twin = self.transform
        pixels = _crop(twin, images, parameters)
        return normalize_batch(twin.normalize, pixels)[0], _tokens(twin, parameters)


class FinetuneBatch(_Batch):
    """uint8 [B, H, W] -> normalised images [B, C, S, S], augmented."""

    def _draw(self, rng: BatchRng, heights: np.ndarray, widths: np.ndarray) -> Parameters:
        twin = self.transform
        parameters = _draw_crop_and_flip(twin, rng, heights, widths)
        parameters['filters'] = torch.from_numpy(rng.choose(len(twin.filters)))
        if twin.warp.is_on:
            inverses = _inverse_warps(twin.warp, rng.random(WARP_UNIFORMS), twin.size)
            parameters['inverse_warps'] = torch.from_numpy(inverses)
        if twin.jitter_range:
            low, high = twin.jitter_range
            factors = low + (high - low) * rng.random(2)
            parameters['jitter'] = torch.from_numpy(factors.astype(np.float32))
        erased = np.flatnonzero(rng.random(1)[:, 0] < twin.erasing['probability'])
        return parameters | self._erase(erased, rng) if len(erased) else parameters

    def _erase(self, images: np.ndarray, batch_rng: BatchRng) -> Parameters:
        """Where in the normalised batch [B * C * S * S] these images are overwritten, and by what.

        Their generators are drawn from anew, for the normal values are made by rejection.
        """
        twin = self.transform
        shape = len(twin.normalize.offset), twin.size, twin.size
        positions, values = [], []
        for image in images:
            rng, scratch = batch_rng.alone(image), np.full(shape, np.nan, np.float32)
            rng.random(CROP_UNIFORMS + 1)
            if len(twin.filters) > 1:  # leaves half a word, which the next integer takes
                rng.integers(len(twin.filters))
            rng.random(WARP_UNIFORMS * twin.warp.is_on + 2 * bool(twin.jitter_range))
            erase(scratch, rng, **twin.erasing)
            inside = np.flatnonzero(~np.isnan(scratch))
            positions.append(inside + image * scratch.size)
            values.append(scratch.ravel()[inside])
        return {
            'erased': torch.from_numpy(np.concatenate(positions)),
            'erased_values': torch.from_numpy(np.concatenate(values)),
        }

    def apply(self, images: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        twin = self.transform
        pixels = _crop(twin, images, parameters)
        if 'inverse_warps' in parameters:
            pixels = warp_batch(pixels, parameters['inverse_warps'])
        if 'jitter' in parameters:
            pixels = _jitter(pixels, parameters['jitter'])
        images = normalize_batch(twin.normalize, pixels)[0]
        if 'erased' in parameters:
            images.view(-1)[parameters['erased']] = parameters['erased_values']
        return images


class EvalBatch(_Batch):
    """uint8 [B, H, W] -> normalised images [B, C, S, S], or views of them [B, T, C, S, S]."""

    def apply(self, images: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        twin = self.transform
        views = self.pixels(images)  # [B, T, S, S]
        normalised, *_ = normalize_batch(twin.normalize, views.flatten(0, 1))
        views = normalised.unflatten(0, views.shape[:2])  # [B, T, C, S, S]
        views = torch.cat([views, views.flip(-1)], dim=1) if twin.mirror else views
        return views if twin.five_crops or twin.mirror else views[:, 0]

    def pixels(self, images: torch.Tensor) -> torch.Tensor:  # [B, T, S, S]
        """The centre (TEST.CROP) or the whole image, and with five crops the corners, in grey."""
        twin, (height, width) = self.transform, images.shape[1:]
        assert height == width, images.shape
        side = int(256 / 224 * twin.size) if twin.crop or twin.five_crops else twin.size
        boxes = images.new_zeros((len(images), 4), dtype=torch.int64)
        boxes[:, 2], boxes[:, 3] = height, width
        pixels = resize_crops(images, boxes, side, (twin.filter,))
        far = side - twin.size
        places = (round(far / 2),) * 2, (0, 0), (0, far), (far, 0), (far, far)
        places = places if twin.five_crops else places[:1]
        views = [pixels[:, y : y + twin.size, x : x + twin.size] for y, x in places]
        return torch.stack(views, dim=1)


class HoldoutBatch(_Batch):
    """uint8 [B, H, W] -> (images [B, C, S, S], masks [B, h, w], scale [B, C], offset [B, C])."""

    def __init__(self, transform: HoldoutTransform) -> None:
        super().__init__(transform)
        self.view = EvalBatch(transform.view)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        return self.view.prepare(images)

    def _draw(self, rng: BatchRng, heights: np.ndarray, widths: np.ndarray) -> Parameters:
        return {'hidden_units': torch.from_numpy(draw_masks(self.transform.mask_generator, rng))}

    def apply(self, images: torch.Tensor, parameters: Parameters) -> tuple[torch.Tensor, ...]:
        pixels = self.view.pixels(images)[:, 0]
        images, scale, offset = normalize_batch(self.transform.view.normalize, pixels)
        return images, _tokens(self.transform, parameters), scale, offset


def batch_transform(transform: Any) -> _Batch:
    """The twin for batches of a transform of `data.transforms`."""
    twins = {
        PretrainTransform: PretrainBatch,
        TrainTransform: FinetuneBatch,
        EvalTransform: EvalBatch,
        HoldoutTransform: HoldoutBatch,
    }
    return twins[type(transform)](transform)


def normalize_batch(
    normalize: Normalize, pixels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`Normalize` of each image.

    Args:
        normalize: the settings.
        pixels: [B, S, S] in grey levels; may be overwritten.

    Returns:
        images [B, C, S, S], scale [B, C], offset [B, C].
    """
    num_images, num_channels = len(pixels), len(normalize.offset)
    if normalize.by_image:
        mean = pixels.mean(dim=(1, 2))
        pixels = pixels.sub_(mean[:, None, None])
        deviation = torch.linalg.vector_norm(pixels, dim=(1, 2)) / math.sqrt(pixels[0].numel())
        scale = deviation.clamp_(min=1)
        images = pixels.div_(scale[:, None, None])[:, None].repeat(1, num_channels, 1, 1)
        return images, *(item[:, None].repeat(1, num_channels) for item in (scale, mean))
    # Numbers, not tensors: a copy to the GPU from here would wait for all that runs there.
    offsets, scales = normalize.offset.tolist(), normalize.scale.tolist()
    channels = [pixels] if num_channels == 1 else pixels[None].repeat(num_channels, 1, 1, 1)
    for channel, offset, scale in zip(channels, offsets, scales, strict=True):
        channel.sub_(offset).div_(scale)
    each = [
        torch.stack([pixels.new_full((num_images,), value) for value in values], dim=1)
        for values in (scales, offsets)
    ]
    return torch.stack(tuple(channels), dim=1), *each


def _draw_crop_and_flip(
    twin: Any, rng: BatchRng, heights: np.ndarray, widths: np.ndarray
) -> Parameters:
    boxes = draw_crops(rng.random(CROP_UNIFORMS), heights, widths, area=twin.area)
    return {
        'boxes': torch.from_numpy(boxes),
        'flipped': torch.from_numpy(rng.random(1)[:, 0] < twin.hflip),
    }


def _crop(twin: Any, images: torch.Tensor, parameters: Parameters) -> torch.Tensor:  # [B, S, S]
    return resize_crops(
        images,
        parameters['boxes'],
        twin.size,
        twin.filters,
        chosen=parameters['filters'],
        mirrored=parameters['flipped'],
    )


def _tokens(twin: Any, parameters: Parameters) -> torch.Tensor:  # int64 [B, h, w]
    scale = twin.mask_generator.scale
    units = parameters['hidden_units'].long()
    return units.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)


def _inverse_warps(warp: RandomWarp, uniforms: np.ndarray, size: int) -> np.ndarray:
    """The homographies [B, 3, 3] that `warp` draws, from points of its results to the images'."""
    signed, (low, high) = 2 * uniforms[:, :4] - 1, warp.scale
    matrices = [
        warp_matrix(
            size,
            angle=angle * warp.rotation,
            shift=(right * warp.translate * size, down * warp.translate * size),
            scale=low + enlargement * (high - low),
            shear=shear * warp.shear,
            inward=inward.reshape(4, 2) * warp.distortion * size / 2,
        )
        for (angle, right, down, shear), enlargement, inward in zip(
            signed, uniforms[:, 4], uniforms[:, 5:], strict=True
        )
    ]
    return np.linalg.inv(np.stack(matrices))


def _jitter(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """`data.augment.jitter` with a brightness and a contrast an image, factors [B, 2], in place."""
    brightness, contrast = factors[..., None, None].unbind(1)
    pixels = pixels.mul_(brightness).clamp_(0, 255)
    mean = pixels.mean(dim=(1, 2), keepdim=True)
    return pixels.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 255)

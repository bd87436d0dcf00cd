"""Transforms of whole batches: twins of `data.transforms` for pictures squeezed to one square.

`draw` makes the parameters, with the random ones of each image as the file path draws them, in the
loader's workers; `apply` turns uint8 pictures into the model's input where these lie, on the CPU or
a GPU.  Boxes are of the pictures before they were squeezed, so that crops and views have the aspect
and the content that they have from files.  Pixels differ from the file path by its rounding: it
resizes pictures of 8 bits to whole grey levels, this does not.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.augment import RandomWarp, erase, warp_matrix
from data.batch_draws import CROP_UNIFORMS, BatchRng, draw_crops, draw_masks
from data.resampling import resize_crops, warp_batch
from data.transforms import (
    EvalTransform,
    HoldoutTransform,
    Normalize,
    PretrainTransform,
    TrainTransform,
    enlarged_sides,
    five_places,
    preprocess,
    scale_boxes,
)

Parameters = dict[str, torch.Tensor]
WARP_UNIFORMS = 13


class _Batch(ABC):
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
        sizes: np.ndarray,
        side: int,
    ) -> Parameters:
        """The parameters of a batch.

        Args:
            seed: SEED of the config.
            epoch: epoch, from 0.
            rows: [B], the numbers that key the images' generators (Records.row).
            occurrences: [B], how often the epoch has had each image before; None: never.
            sizes: [B, 2], heights and widths of the pictures before they were squeezed.
            side: of the squares, in pixels.

        Returns:
            Tensors for `apply`, a row an image where not said otherwise.
        """
        return self._draw(BatchRng(seed, epoch, rows, occurrences), np.asarray(sizes), side)

    @abstractmethod
    def _draw(self, rng: BatchRng, sizes: np.ndarray, side: int) -> Parameters:
        """As `draw`, sizes as an array."""

    @abstractmethod
    def apply(self, images: torch.Tensor, parameters: Parameters) -> Any:
        """What the model gets of pictures uint8 [B, side, side], as the class says."""


class PretrainBatch(_Batch):
    """uint8 [B, H, W] -> (normalised images [B, C, S, S], masks int64 [B, h, w])."""

    def _draw(self, rng: BatchRng, sizes: np.ndarray, side: int) -> Parameters:
        twin = self.transform
        parameters = _draw_crop_and_flip(twin, rng, sizes, side)
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

    def _draw(self, rng: BatchRng, sizes: np.ndarray, side: int) -> Parameters:
        twin = self.transform
        parameters = _draw_crop_and_flip(twin, rng, sizes, side)
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

    def _draw(self, rng: BatchRng, sizes: np.ndarray, side: int) -> Parameters:
        return self.boxes(sizes, side)

    def boxes(self, sizes: np.ndarray, side: int) -> Parameters:
        """Where in the squares the views are, [B, T, 4]: centre (TEST.CROP) or whole, corners."""
        twin = self.transform
        enlarged = np.full_like(sizes, twin.size)
        if twin.crop or twin.five_crops:
            enlarged = enlarged_sides(sizes if twin.crop else np.ones_like(sizes), twin.size)
        places = five_places(enlarged, twin.size)[:, : 5 if twin.five_crops else 1]
        boxes = np.concatenate([places, np.full_like(places, twin.size)], axis=-1)
        boxes = scale_boxes(boxes, enlarged[:, None], np.array([side, side]))
        return {'boxes': torch.from_numpy(boxes.astype(np.float32))}

    def apply(self, images: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        twin = self.transform
        views = self.pixels(images, parameters['boxes'])  # [B, T, S, S]
        normalised, *_ = normalize_batch(twin.normalize, views.flatten(0, 1))
        views = normalised.unflatten(0, views.shape[:2])  # [B, T, C, S, S]
        views = torch.cat([views, views.flip(-1)], dim=1) if twin.mirror else views
        return views if twin.five_crops or twin.mirror else views[:, 0]

    def pixels(self, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:  # [B, T, S, S]
        """The views in these boxes [B, T, 4], in grey levels."""
        twin = self.transform
        views = [
            resize_crops(images, view, twin.size, (twin.filter,), around=True)
            for view in boxes.unbind(1)
        ]
        return torch.stack(views, dim=1)


class HoldoutBatch(_Batch):
    """uint8 [B, H, W] -> (images [B, C, S, S], masks [B, h, w], scale [B, C], offset [B, C])."""

    def __init__(self, transform: HoldoutTransform) -> None:
        super().__init__(transform)
        self.view = EvalBatch(transform.view)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        return self.view.prepare(images)

    def _draw(self, rng: BatchRng, sizes: np.ndarray, side: int) -> Parameters:
        units = torch.from_numpy(draw_masks(self.transform.mask_generator, rng))
        return {'hidden_units': units, **self.view.boxes(sizes, side)}

    def apply(self, images: torch.Tensor, parameters: Parameters) -> tuple[torch.Tensor, ...]:
        pixels = self.view.pixels(images, parameters['boxes'])[:, 0]
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


def _draw_crop_and_flip(twin: Any, rng: BatchRng, sizes: np.ndarray, side: int) -> Parameters:
    boxes = draw_crops(rng.random(CROP_UNIFORMS), *sizes.T, area=twin.area)
    boxes = scale_boxes(boxes, sizes, np.array([side, side]))
    return {
        'boxes': torch.from_numpy(boxes.astype(np.float32)),
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

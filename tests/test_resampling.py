"""Resampling of batches: torchvision's, Pillow's and a brute-force sum's pixels."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from data.augment import warp, warp_matrix
from data.batch_draws import BatchRng, draw_crops
from data.resampling import KERNELS, resize_crops, warp_batch
from data.transforms import FILTERS, Box, resized_crop

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
TORCHVISION = {BILINEAR: InterpolationMode.BILINEAR, BICUBIC: InterpolationMode.BICUBIC}


def noise(*shape: int) -> torch.Tensor:
    values = np.random.RandomState(0).randint(0, 256, shape)
    return torch.from_numpy(values.astype(np.uint8))


def random_boxes(count: int, height: int, width: int, area=(0.08, 1.0)) -> torch.Tensor:
    sides = np.full(count, height), np.full(count, width)
    return torch.from_numpy(draw_crops(BatchRng(0, 0, range(count)).random(22), *sides, area=area))


def reach_of(resample: Image.Resampling) -> int:
    return {BILINEAR: 1, BICUBIC: 2, Image.Resampling.LANCZOS: 3, Image.Resampling.HAMMING: 1}[
        resample
    ]


def weight(resample: Image.Resampling, x: float) -> float:
    """Pillow's filters, as its documentation and Keys 1981 have them."""
    if abs(x) >= reach_of(resample):
        return 0.0
    x, pi = abs(x), math.pi
    if resample == BILINEAR:
        return 1 - x
    if resample == BICUBIC:
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        return near if x < 1 else -0.5 * (x**3 - 5 * x**2 + 8 * x - 4)
    if x == 0:
        return 1.0
    sinc = math.sin(pi * x) / (pi * x)
    if resample == Image.Resampling.HAMMING:
        return sinc * (0.54 + 0.46 * math.cos(pi * x))
    return sinc * math.sin(pi * x / 3) / (pi * x / 3)


def brute_force(pixels: np.ndarray, size: int, resample: Image.Resampling) -> np.ndarray:
    """Resize [H, W] by a loop over every pixel of the result and of the image, along each axis."""

    def matrix(length: int) -> np.ndarray:  # [size, length]
        scale = length / size
        stretch = max(scale, 1)
        weights = np.array(
            [
                [weight(resample, (j + 0.5 - scale * (i + 0.5)) / stretch) for j in range(length)]
                for i in range(size)
            ]
        )
        return weights / weights.sum(axis=1, keepdims=True)

    height, width = pixels.shape
    return np.clip(matrix(height) @ pixels @ matrix(width).T, 0, 255)


@pytest.mark.parametrize('resample', [BILINEAR, BICUBIC])
@pytest.mark.parametrize('height, width, size', [(64, 64, 48), (64, 64, 96), (90, 33, 40)])
def test_resizing_equals_torchvisions(resample, height, width, size):
    images, boxes = noise(250, height, width), random_boxes(250, height, width)
    wanted = [
        F.resized_crop(image[None].float(), *box, [size, size], TORCHVISION[resample], True)[0]
        for image, box in zip(images, boxes.tolist(), strict=True)
    ]
    resized = resize_crops(images, boxes, size, (resample,))
    torch.testing.assert_close(resized, torch.stack(wanted).clamp(0, 255), rtol=0, atol=1e-3)


@pytest.mark.parametrize('resample', KERNELS)
@pytest.mark.parametrize('size', [24, 61])
def test_resizing_equals_a_brute_force_sum(resample, size):
    images, boxes = noise(12, 50, 40), random_boxes(12, 50, 40)
    resized = resize_crops(images, boxes, size, (resample,))
    for image, (top, left, height, width), result in zip(
        images, boxes.tolist(), resized, strict=True
    ):
        part = image[top : top + height, left : left + width].double().numpy()
        np.testing.assert_allclose(result, brute_force(part, size, resample), atol=2e-3)


@pytest.mark.parametrize('name', ['bilinear', 'bicubic', 'lanczos', 'hamming'])
def test_resizing_equals_pillows_but_for_its_rounding(name):
    images, boxes = noise(60, 64, 64), random_boxes(60, 64, 64)
    resized = resize_crops(images, boxes, 48, FILTERS[name]).numpy()
    for image, box, result in zip(images.numpy(), boxes.tolist(), resized, strict=True):
        unrounded = Image.fromarray(image.astype(np.float32))
        wanted = resized_crop(unrounded, Box(*box), 48, FILTERS[name][0])
        np.testing.assert_allclose(result, wanted, atol=0.02)
        if name == 'bilinear':  # the others are cut to 0..255 between the axes, too
            rounded = resized_crop(Image.fromarray(image), Box(*box), 48, FILTERS[name][0])
            assert np.abs(result - rounded).max() < 1.02


@pytest.mark.parametrize('name', ['bilinear', 'bicubic', 'lanczos', 'hamming'])
def test_fractional_boxes_equal_pillows(name):
    images, rng = noise(60, 64, 64), np.random.RandomState(1)
    start = rng.randint(0, 30 * 1024, (60, 2)) / 1024
    start[::5], start[1::5] = 0, np.rint(start[1::5])
    boxes = np.hstack([start, np.minimum(rng.randint(1024, 60 * 1024, (60, 2)) / 1024, 64 - start)])
    options = torch.from_numpy(boxes), 48, FILTERS[name]
    within, around = resize_crops(images, *options), resize_crops(images, *options, around=True)
    for image, box, inside, whole in zip(images.numpy(), boxes, within, around, strict=True):
        unrounded, (top, left, height, width) = Image.fromarray(image.astype(np.float32)), box
        place = left, top, left + width, top + height
        wanted = np.clip(unrounded.resize((48, 48), FILTERS[name][0], place), 0, 255)
        np.testing.assert_allclose(whole, wanted, atol=0.02)
        rows = slice(math.floor(top), math.ceil(top + height))
        columns = slice(math.floor(left), math.ceil(left + width))
        part = unrounded.crop((columns.start, rows.start, columns.stop, rows.stop))
        place = np.array(place) - [columns.start, rows.start] * 2
        wanted = np.clip(part.resize((48, 48), FILTERS[name][0], place.tolist()), 0, 255)
        np.testing.assert_allclose(inside, wanted, atol=0.02)


def test_smallest_and_largest_boxes_at_the_borders():
    images = noise(5, 20, 30)
    boxes = torch.tensor(
        [(0, 0, 20, 30), (19, 29, 1, 1), (0, 0, 1, 30), (0, 29, 20, 1), (18, 28, 2, 2)]
    )
    resized = resize_crops(images, boxes, 16, (BICUBIC,))
    assert (resized[1] == images[1, 19, 29]).all()
    for image, (top, left, height, width), result in zip(
        images, boxes.tolist(), resized, strict=True
    ):
        part = image[top : top + height, left : left + width].double().numpy()
        np.testing.assert_allclose(result, brute_force(part, 16, BICUBIC), atol=2e-3)


def test_no_pixel_outside_a_box_counts():
    images, boxes = noise(20, 40, 40), random_boxes(20, 40, 40, area=(0.1, 0.6))
    others = 255 - images
    for other, image, (top, left, height, width) in zip(
        others, images, boxes.tolist(), strict=True
    ):
        inside = slice(top, top + height), slice(left, left + width)
        other[inside] = image[inside]
    resized, filters = resize_crops(images, boxes, 32, (BICUBIC,)), (BICUBIC,)
    assert torch.equal(resized, resize_crops(others, boxes, 32, filters))


def test_whole_image_at_its_own_size_stays_as_it_is():
    images = noise(3, 32, 32)
    boxes = torch.tensor([0, 0, 32, 32]).expand(3, 4)
    for resample in KERNELS:
        resized = resize_crops(images, boxes, 32, (resample,))
        torch.testing.assert_close(resized, images.float(), rtol=0, atol=1e-3)


def test_each_image_has_its_filter_and_its_mirror_image():
    images, boxes = noise(21, 64, 64), random_boxes(21, 64, 64)
    chosen, mirrored = torch.arange(21) % 2, torch.arange(21) % 3 == 0
    mixed = resize_crops(images, boxes, 48, (BILINEAR, BICUBIC), chosen=chosen, mirrored=mirrored)
    plain = [resize_crops(images, boxes, 48, (resample,)) for resample in (BILINEAR, BICUBIC)]
    for i, result in enumerate(mixed):
        wanted = plain[i % 2][i]
        wanted = wanted.flip(1) if i % 3 == 0 else wanted
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-3)


def test_an_image_comes_out_the_same_in_any_batch():
    images, boxes = noise(19, 50, 50), random_boxes(19, 50, 50)
    together = resize_crops(images, boxes, 33, (BICUBIC,))
    for i in range(19):
        alone = resize_crops(images[i : i + 1], boxes[i : i + 1], 33, (BICUBIC,))
        assert torch.equal(alone[0], together[i])


# Homographies --------------------------------------------------------------------------------


def random_matrices(count: int, size: int) -> list[np.ndarray]:
    matrices = []
    for uniforms in np.random.RandomState(1).rand(count, 13):
        angle, right, down, shear = 2 * uniforms[:4] - 1
        matrices.append(
            warp_matrix(
                size,
                angle=180 * angle,
                shift=(0.2 * size * right, 0.2 * size * down),
                scale=0.7 + 0.8 * uniforms[4],
                shear=20 * shear,
                inward=uniforms[5:].reshape(4, 2) * 0.3 * size / 2,
            )
        )
    return matrices


def test_warping_equals_that_of_each_image():
    pixels, matrices = noise(60, 48, 48).float(), random_matrices(60, 48)
    warped = warp_batch(pixels, torch.from_numpy(np.linalg.inv(matrices)))
    assert (warped == 0).float().mean() > 0.1  # black from outside
    for image, matrix, result in zip(pixels.numpy(), matrices, warped.numpy(), strict=True):
        # At a pixel on the very border of the image rounding may decide whether it is black.
        off = np.abs(result - warp(image, matrix)) > 0.01
        assert off.sum() <= 1


@pytest.mark.parametrize(
    'matrix, wanted',
    [
        (np.eye(3), lambda image: image),
        (warp_matrix(16, shift=(3, 0)), lambda image: np.pad(image, ((0, 0), (3, 0)))[:, :16]),
        (warp_matrix(16, shift=(0, -2)), lambda image: np.pad(image, ((0, 2), (0, 0)))[2:]),
        (warp_matrix(16, angle=90), lambda image: np.rot90(image, -1)),
    ],
)
def test_warping_by_whole_pixels_moves_them(matrix, wanted):
    image = noise(1, 16, 16).float()
    warped = warp_batch(image, torch.from_numpy(np.linalg.inv(matrix))[None])
    np.testing.assert_allclose(warped[0], wanted(image[0].numpy()), atol=1e-3)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_pixels():
    images, boxes = noise(40, 64, 64), random_boxes(40, 64, 64)
    chosen, mirrored = torch.arange(40) % 2, torch.arange(40) % 3 == 0
    options = {'chosen': chosen, 'mirrored': mirrored}
    resized = resize_crops(images, boxes, 48, (BILINEAR, BICUBIC), **options)
    on_gpu = resize_crops(images.cuda(), boxes, 48, (BILINEAR, BICUBIC), **options)
    torch.testing.assert_close(on_gpu.cpu(), resized, rtol=0, atol=1e-3)
    inverses = torch.from_numpy(np.linalg.inv(random_matrices(40, 48)))
    warped = warp_batch(resized, inverses)
    off = (warp_batch(on_gpu, inverses).cpu() - warped).abs() > 0.01
    assert off.sum() <= 5

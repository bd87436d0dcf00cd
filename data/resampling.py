"""Resampling of a batch at once, on the CPU or a GPU: boxes to squares, and homographies.

A result pixel is a weighted sum of a few pixels.  `torch.embedding_bag` is that sum for whole rows,
so a picture is resampled from top to bottom, transposed, and resampled again.  Bilinear from 256 to
192 px that is 11,000 images/s on one core; with dense weights it is 1,900, and torch's antialiased
resizing, image by image, 6,900 (7,700 where it rounds to grey levels).
"""

import math
from collections.abc import Callable

import torch
from PIL import Image
from torch.nn import functional as F

# Images: what fits the CPU's cache, and a part of the GPU's memory.
RESIZED_AT_ONCE = {'cpu': 8, 'cuda': 512}
WARPED_AT_ONCE = {'cpu': 1, 'cuda': 64}

Kernel = Callable[[torch.Tensor], torch.Tensor]


def _triangle(x: torch.Tensor) -> torch.Tensor:
    return (1 - x).clamp_(min=0)


def _cubic(x: torch.Tensor) -> torch.Tensor:
    """Keys 1981 with a = -0.5."""
    inner = ((1.5 * x - 2.5) * x * x).add_(1)
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, inner, outer.mul_(x < 2))


def _lanczos(x: torch.Tensor) -> torch.Tensor:
    return (torch.sinc(x) * torch.sinc(x / 3)).mul_(x < 3)


def _hamming(x: torch.Tensor) -> torch.Tensor:
    return (torch.sinc(x) * (0.54 + 0.46 * torch.cos(math.pi * x))).mul_(x < 1)


# Pillow's filters of absolute distances: how far they reach, and their weights.
KERNELS: dict[Image.Resampling, tuple[int, Kernel]] = {
    Image.Resampling.BILINEAR: (1, _triangle),
    Image.Resampling.BICUBIC: (2, _cubic),
    Image.Resampling.LANCZOS: (3, _lanczos),
    Image.Resampling.HAMMING: (1, _hamming),
}


@torch.no_grad()
def resize_crops(
    images: torch.Tensor,
    boxes: torch.Tensor,
    size: int,
    filters: tuple[Image.Resampling, ...],
    *,
    chosen: torch.Tensor | None = None,
    mirrored: torch.Tensor | None = None,
    around: bool = False,
) -> torch.Tensor:
    """Cut a box out of each image and resize it to a square, antialiased.

    Equal to torchvision's `resized_crop` of float pixels, and to Pillow's but for its rounding to
    whole grey levels.  Pixels that no part of a box covers do not count, unless asked for.

    Args:
        images: [B, H, W], uint8 or float32, in grey levels.
        boxes: [B, 4] in pixels and fractions, on any device: top, left, height, width.
        size: side of the squares in pixels.
        filters: one filter of KERNELS, or several to choose from.
        chosen: [B], which of several filters.
        mirrored: [B], True where the result is turned left to right.
        around: whether the pixels around a box count, as where a whole image is resized and the
            square then cut out of it.

    Returns:
        float32 [B, size, size] in grey levels, within 0..255, where the images are.
    """
    boxes = boxes.to(images.device)
    kernels = [KERNELS[resample] for resample in filters]
    top, left, height, width = boxes.to(torch.float32)[..., None].unbind(1)  # [B, 1]
    order = torch.arange(size, device=images.device).expand(len(images), size)
    options = {'kernels': kernels, 'chosen': chosen, 'around': around}
    rows = _taps(order, top, height, images.shape[1], **options)
    if mirrored is not None:
        order = torch.where(mirrored.to(images.device)[:, None], size - 1 - order, order)
    columns = _taps(order, left, width, images.shape[2], **options)
    resized = images.new_empty((len(images), size, size), dtype=torch.float32)
    for part in _parts(images, RESIZED_AT_ONCE):
        tall = images[part].to(torch.float32)
        flat = _weighted_rows(tall, rows[0][part], rows[1][part])  # [b, size, W]
        turned = _transpose(flat, flat.new_empty(len(flat), flat.shape[2], size))
        turned = _weighted_rows(turned, columns[0][part], columns[1][part])
        _transpose(turned, resized[part])
    return resized.clamp_(0, 255)  # all but bilinear and hamming may overshoot


@torch.no_grad()
def warp_batch(pixels: torch.Tensor, inverses: torch.Tensor) -> torch.Tensor:
    """Move each image by a homography of its points; black where it has none.

    Equal to `data.augment.warp`: bicubic with a = -1 (Pillow's for transforms), clipped.

    Args:
        pixels: [B, H, W] float32 in grey levels.
        inverses: float64 [B, 3, 3], from points (x, y, 1) of the result to those of the image.

    Returns:
        float32 [B, H, W].
    """
    inverses, warped = inverses.to(pixels.device), torch.empty_like(pixels)
    for part in _parts(pixels, WARPED_AT_ONCE):
        warped[part] = _warp(pixels[part], inverses[part])
    return warped.clamp_(0, 255)


def _taps(
    order: torch.Tensor,
    start: torch.Tensor,
    length: torch.Tensor,
    limit: int,
    *,
    kernels: list[tuple[int, Kernel]],
    chosen: torch.Tensor | None,
    around: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pixels along one axis make each pixel of the result, and their weights.

    Args:
        order: [B, S], which of the result's pixels.
        start: float32 [B, 1], where the boxes begin.
        length: float32 [B, 1], how long they are.
        limit: how long the images are: it bounds the taps without looking at the boxes.
        kernels: (reach, weights) of the filters.
        chosen: [B], which of several.
        around: whether the pixels around a box count.

    Returns:
        positions int32 [B, S, K], weights float32 [B, S, K].
    """
    size, reach = order.shape[1], max(reach for reach, _ in kernels)
    origin = start.floor()  # positions count from here, so that whole boxes lose no digit
    within = start - origin
    low, high = (-origin, limit - origin) if around else (0 * origin, (within + length).ceil())
    scale = length / size
    stretch = scale.clamp(min=1)  # a filter is widened where the picture gets smaller
    centre = within + scale * (order + 0.5)
    num_taps = math.ceil(2 * reach * max(limit / size, 1))
    first = torch.maximum((centre - reach * stretch + 0.5).floor(), low).int()
    taps = first[..., None] + torch.arange(num_taps, dtype=torch.int32, device=order.device)
    distance = (taps + (0.5 - centre)[..., None]).div_(stretch[..., None]).abs_()
    weights = kernels[0][1](distance)
    for number, (_, kernel) in enumerate(kernels[1:], start=1):
        takes_it = (chosen.to(order.device) == number)[:, None, None]
        weights = torch.where(takes_it, kernel(distance), weights)
    end = high.int()[..., None]
    weights = weights.mul_(taps < end)
    weights /= weights.sum(dim=-1, keepdim=True)
    return torch.minimum(taps, end - 1).add_(origin.int()[..., None]), weights


def _weighted_rows(
    images: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:  # [B, S, W]
    """Sums over K rows of each image [B, H, W], with rows (int32) and weights [B, S, K]."""
    num_images, height, width = images.shape
    _, size, num_taps = rows.shape
    first = torch.arange(0, num_images * height, height, dtype=rows.dtype, device=rows.device)
    sums = F.embedding_bag(
        (rows + first[:, None, None]).view(-1, num_taps),
        images.view(-1, width),
        per_sample_weights=weights.reshape(-1, num_taps),
        mode='sum',
    )
    return sums.view(num_images, size, width)


def _transpose(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:  # [B, W, H]
    """Rows to columns; on the CPU one by one, for a single matrix is transposed in blocks."""
    if images.is_cuda:
        return out.copy_(images.transpose(1, 2))
    for image, turned in zip(images, out, strict=True):
        turned.copy_(image.t())
    return out


def _warp(pixels: torch.Tensor, inverses: torch.Tensor) -> torch.Tensor:  # [B, H, W] both ways
    """Windows of four pixels side by side, summed over four rows, then within the window."""
    num_images, height, width = pixels.shape
    x, y = _points(inverses, height, width)  # float64 [B, H, W]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = torch.where(inside, x - 0.5, 0), torch.where(inside, y - 0.5, 0)
    column, row = x.floor().int(), y.floor().int()  # from -1 on
    padded = F.pad(pixels[:, None], (2, 2, 2, 2), mode='replicate')[:, 0]
    windows = padded.unfold(2, 4, 1)  # [B, H + 4, W + 1, 4]
    num_rows, num_columns = windows.shape[1:3]
    options = {'dtype': torch.int32, 'device': pixels.device}
    image = torch.arange(num_images, **options)[:, None, None]
    first = ((image * num_rows + row + 1) * num_columns + column + 1).view(-1, 1)
    sums = F.embedding_bag(
        first + num_columns * torch.arange(4, **options),
        windows.reshape(-1, 4),
        per_sample_weights=_cubic_weights((y - row).float()).view(-1, 4),
        mode='sum',
    )
    sums = (sums.view(*pixels.shape, 4) * _cubic_weights((x - column).float())).sum(dim=-1)
    return sums.mul_(inside)


def _points(
    inverses: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:  # float64 [B, H, W] each
    """Where the centres of the result's pixels come from, (0, 0) the outer corner."""
    options = {'dtype': torch.float64, 'device': inverses.device}
    x = torch.arange(width, **options) + 0.5
    y = torch.arange(height, **options)[:, None] + 0.5
    a = inverses[:, :, :, None, None]  # [B, 3, 3, 1, 1]
    sums = [a[:, k, 0] * x + (a[:, k, 1] * y + a[:, k, 2]) for k in range(3)]
    return sums[0] / sums[2], sums[1] / sums[2]


def _cubic_weights(offset: torch.Tensor) -> torch.Tensor:
    """Weights [..., 4] of the pixels at -1, 0, 1, 2 for a point at 0 <= offset < 1, a = -1."""
    square = offset * offset
    cube = square * offset
    return torch.stack(
        [
            2 * square - offset - cube,
            1 - 2 * square + cube,
            offset + square - cube,
            cube - square,
        ],
        dim=-1,
    )


def _parts(images: torch.Tensor, at_once: dict[str, int]) -> list[slice]:
    step = at_once[images.device.type]
    return [slice(first, first + step) for first in range(0, len(images), step)]

"""What chance decides for a batch at once: the draws of `sample_rng`, of every sample together.

Each function gives for a sample what its twin gives for the sample alone, whatever else is in the
batch: `BatchRng` (data.sampling.sample_rng), `draw_crops` (data.transforms.draw_crop) and
`draw_masks` (data.masking.MaskGenerator).
"""

import math
from collections.abc import Sequence

import numpy as np

from data.masking import BLOCK_ASPECT, BLOCK_MIN_SHARE, MaskGenerator
from data.sampling import sample_rng
from data.transforms import CROP_ASPECT, CROP_ATTEMPTS

# Philox4x64-10: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
MULTIPLIERS = np.array([0xD2E7470EE14C6C93, 0xCA5A826395121157], np.uint64)[:, None, None]
KEY_STEPS = np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], np.uint64)
ROUNDS = 10
LOW_HALF, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)

CROP_UNIFORMS = 2 * CROP_ATTEMPTS + 2
BLOCKS_AT_ONCE = 16  # of four words each: those of a crop, a flip and a mask of 36 units


class BatchRng:
    """The generators of a batch's samples; a draw moves each on as `sample_rng`'s would be.

    Args:
        seed: SEED of the config.
        epoch: epoch, from 0.
        indices: [B], stable number of each image.
        occurrences: [B], how often the epoch has had each image before; None: never.
    """

    def __init__(
        self,
        seed: int,
        epoch: int,
        indices: Sequence[int] | np.ndarray,
        occurrences: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        self.seed, self.epoch = seed, epoch
        self.key = np.random.Philox(key=[seed, epoch]).state['state']['key']  # [2], as it reads it
        self.indices = np.asarray(indices, np.uint64)
        self.occurrences = np.zeros_like(self.indices)
        if occurrences is not None:
            self.occurrences[:] = occurrences
        self.words = np.empty((len(self.indices), 0), np.uint64)  # those made so far
        self.position = np.zeros(len(self.indices), np.int64)  # how many of them are used up

    def random(self, count: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The next uniforms of these samples, [len(rows), count] in [0, 1)."""
        return (self._next(count, rows) >> np.uint64(11)) * 2.0**-53

    def choose(self, num_options: int) -> np.ndarray:  # [B]
        """What the first `integers(num_options)` gives, for one option (no draw) or two.

        It takes the lower half of a word; NumPy keeps the upper one for the next integer.
        """
        assert num_options in (1, 2)
        if num_options == 1:
            return np.zeros(len(self.indices), np.int64)
        return ((self._next(1)[:, 0] & LOW_HALF) >> np.uint64(31)).astype(np.int64)

    def alone(self, number: int) -> np.random.Generator:
        """One sample's own generator, from its start."""
        index, occurrence = int(self.indices[number]), int(self.occurrences[number])
        return sample_rng(self.seed, self.epoch, index, occurrence)

    def _next(self, count: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        wanted = self.position[rows, None] + np.arange(count)
        needed = int(wanted.max(initial=-1)) + 1
        first = self.words.shape[1] // 4
        if needed > 4 * first:
            last = max(-(-needed // 4), first + BLOCKS_AT_ONCE)
            self.words = np.hstack([self.words, self._blocks(first, last)])
        self.position[rows] += count
        return np.take_along_axis(self.words[rows], wanted, axis=1)

    def _blocks(self, first: int, last: int) -> np.ndarray:  # [B, 4 * (last - first)]
        """The words of blocks first to last of each sample: the cipher of (block + 1, index, ...).

        NumPy moves the counter on before it makes a block: the first one is that of counter 1.
        """
        shape = len(self.indices), last - first
        even, odd = np.zeros((2, *shape), np.uint64), np.zeros((2, *shape), np.uint64)
        even[0] = np.arange(first + 1, last + 1)  # counter's words 0 and 2; 2 is 0
        odd[0], odd[1] = self.indices[:, None], self.occurrences[:, None]  # words 1 and 3
        key = self.key.copy()
        for _ in range(ROUNDS):
            high, low = _product(even)
            even, odd = high[::-1] ^ odd ^ key[:, None, None], low[::-1]
            key += KEY_STEPS
        return np.stack([even[0], odd[0], even[1], odd[1]], axis=-1).reshape(shape[0], -1)


def draw_crops(
    uniforms: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float] = CROP_ASPECT,
) -> np.ndarray:
    """The boxes of random resized crops, each as `draw_crop` draws it.

    Args:
        uniforms: [B, 22].
        heights: [B], of the images in pixels.
        widths: [B], of the images in pixels.
        area: range of the box's share of the image.
        aspect: range of width over height.

    Returns:
        int64 [B, 4]: top, left, height, width.
    """
    heights, widths = np.asarray(heights, np.int64), np.asarray(widths, np.int64)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    shares, log_aspects = np.moveaxis(uniforms[:, :-2].reshape(-1, CROP_ATTEMPTS, 2), 2, 0)
    pixels = (area[0] + shares * (area[1] - area[0])) * heights[:, None] * widths[:, None]
    ratios = _exp(low + log_aspects * (high - low))
    crop_widths = np.rint(np.sqrt(pixels * ratios)).astype(np.int64)
    crop_heights = np.rint(np.sqrt(pixels / ratios)).astype(np.int64)
    fits = (0 < crop_widths) & (crop_widths <= widths[:, None])
    fits &= (0 < crop_heights) & (crop_heights <= heights[:, None])
    rows, first, fitting = np.arange(len(uniforms)), fits.argmax(axis=1), fits.any(axis=1)
    centred_widths = np.minimum(widths, np.rint(heights * aspect[1]).astype(np.int64))
    centred_heights = np.minimum(heights, np.rint(widths / aspect[0]).astype(np.int64))
    crop_widths = np.where(fitting, crop_widths[rows, first], centred_widths)
    crop_heights = np.where(fitting, crop_heights[rows, first], centred_heights)
    tops = (uniforms[:, -2] * (heights - crop_heights + 1)).astype(np.int64)
    lefts = (uniforms[:, -1] * (widths - crop_widths + 1)).astype(np.int64)
    tops = np.where(fitting, tops, (heights - crop_heights) // 2)
    lefts = np.where(fitting, lefts, (widths - crop_widths) // 2)
    return np.stack([tops, lefts, crop_heights, crop_widths], axis=1)


def draw_masks(mask_generator: MaskGenerator, rng: BatchRng) -> np.ndarray:
    """The masks that `mask_generator` draws from each sample's generator, by units.

    Returns:
        bool [B, units, units], True where hidden; a unit is `mask_generator.scale` tokens wide.
    """
    draw = {'_random': _random, '_square': _square, '_block': _block}[
        mask_generator._hidden_units.__name__
    ]
    side = mask_generator.rand_size
    return draw(side, mask_generator.count, rng).reshape(-1, side, side)


def _random(side: int, count: int, rng: BatchRng) -> np.ndarray:  # [B, side ** 2]
    order = np.argsort(rng.random(side**2), axis=1, kind='stable')
    hidden = np.zeros(order.shape, bool)
    np.put_along_axis(hidden, order[:, :count], True, axis=1)
    return hidden


def _square(side: int, count: int, rng: BatchRng) -> np.ndarray:  # [B, side ** 2]
    width = math.isqrt(count - 1) + 1
    rows, columns = np.divmod(np.arange(width**2), width)
    inner_first = np.lexsort((np.minimum(rows, columns), np.maximum(rows, columns)))
    kept = inner_first[:count]
    top, left = (rng.random(2) * (side - width + 1)).astype(np.int64).T[..., None]
    hidden = np.zeros((top.size, side**2), bool)
    np.put_along_axis(hidden, (top + rows[kept]) * side + left + columns[kept], True, axis=1)
    return hidden


def _block(side: int, count: int, rng: BatchRng) -> np.ndarray:  # [B, side ** 2]
    """One block after another for the images that lack units still."""
    hidden = np.zeros((len(rng.indices), side**2), bool)
    smallest = BLOCK_MIN_SHARE * side**2
    low, high = np.log(BLOCK_ASPECT)
    rows, columns = np.divmod(np.arange(side**2), side)
    unfinished = np.arange(len(hidden))
    while len(unfinished):
        missing = count - hidden[unfinished].sum(axis=1)
        area, aspect, top, left, end = rng.random(5, unfinished).T
        area = smallest + area * np.maximum(missing - smallest, 0)
        aspect = _exp(low + aspect * (high - low))
        height = np.rint(np.sqrt(area * aspect)).astype(np.int64).clip(1, side)
        width = np.rint(np.sqrt(area / aspect)).astype(np.int64).clip(1, side)
        top = (top * (side - height + 1)).astype(np.int64)
        left = (left * (side - width + 1)).astype(np.int64)
        new = (rows >= top[:, None]) & (rows < (top + height)[:, None]) & ~hidden[unfinished]
        new &= (columns >= left[:, None]) & (columns < (left + width)[:, None])
        at_end = end[:, None] < 0.5
        rank = np.where(at_end, new[:, ::-1].cumsum(axis=1)[:, ::-1], new.cumsum(axis=1))
        hidden[unfinished] |= new & (rank <= missing[:, None])
        unfinished = unfinished[hidden[unfinished].sum(axis=1) < count]
    return hidden


def _product(factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower 64 bits of the cipher's multipliers times these, [2, B, blocks]."""
    low, high = factors & LOW_HALF, factors >> HALF
    by_low, by_high = MULTIPLIERS & LOW_HALF, MULTIPLIERS >> HALF
    middle = by_high * low + ((by_low * low) >> HALF)
    other = by_low * high + (middle & LOW_HALF)
    return by_high * high + (middle >> HALF) + (other >> HALF), MULTIPLIERS * factors


def _exp(values: np.ndarray) -> np.ndarray:
    """`math.exp` of each: NumPy's own may differ in the last bit."""
    return np.array([math.exp(value) for value in values.ravel().tolist()]).reshape(values.shape)

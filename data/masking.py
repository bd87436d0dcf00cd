"""Mask generators: which patches of an image are hidden."""

import math

import numpy as np

MASK_TYPES = ('random', 'square', 'block')
BLOCK_MIN_SHARE = 16 / 196  # BEiT's smallest block: 16 of its 14 x 14 patches
BLOCK_ASPECT = (0.3, 1 / 0.3)


class MaskGenerator:
    """Draws masks that hide an exact share of an image's square units.

    Types: 'random' hides units anywhere; 'square' one compact square; 'block' rectangles that may
    overlap (Bao et al. 2021, arXiv:2106.08254, algorithm 1), the last one cut to reach the count.

    Args:
        input_size: side of the image in pixels.
        mask_patch_size: side of a unit in pixels.
        model_patch_size: side of a token in pixels.
        mask_ratio: share of units that are hidden; the count is rounded up.
        mask_type: one of MASK_TYPES.

    Raises:
        ValueError: if the sizes do not divide each other, if no unit or every unit would be
            hidden, or if there is no such type.
    """

    def __init__(
        self,
        input_size: int = 192,
        mask_patch_size: int = 32,
        model_patch_size: int = 4,
        mask_ratio: float = 0.6,
        mask_type: str = 'random',
    ) -> None:
        if input_size % mask_patch_size:
            raise ValueError(
                f'the mask patch must divide the image: DATA.IMG_SIZE {input_size}, '
                f'DATA.MASK_PATCH_SIZE {mask_patch_size}'
            )
        if mask_patch_size % model_patch_size:
            raise ValueError(
                f'DATA.MASK_PATCH_SIZE must be a multiple of the model patch {model_patch_size}, '
                f'got {mask_patch_size}'
            )
        if mask_type not in MASK_TYPES:
            raise ValueError(f'DATA.MASK_TYPE must be one of {MASK_TYPES}, got {mask_type!r}')
        self.rand_size = input_size // mask_patch_size
        self.scale = mask_patch_size // model_patch_size
        self.count = math.ceil(self.rand_size**2 * mask_ratio)
        if not 1 <= self.count < self.rand_size**2:
            raise ValueError(
                f'DATA.MASK_RATIO {mask_ratio} hides {self.count} of {self.rand_size**2} units of '
                f'{mask_patch_size} pixels; it must hide at least one and leave one visible'
            )
        self._hidden_units = {'random': self._random, 'square': self._square, 'block': self._block}[
            mask_type
        ]

    def __call__(
        self, rng: np.random.Generator | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Draw one mask.

        Args:
            rng: source of the draws; without one they come from NumPy's global legacy state.

        Returns:
            int64 [h, w] on the grid of tokens, 1 where hidden.
        """
        mask = np.zeros(self.rand_size**2, dtype=np.int64)
        mask[self._hidden_units(np.random if rng is None else rng)] = 1
        mask = mask.reshape(self.rand_size, self.rand_size)
        return mask.repeat(self.scale, axis=0).repeat(self.scale, axis=1)

    def _random(self, rng: np.random.Generator | np.random.RandomState) -> np.ndarray:
        if isinstance(rng, np.random.Generator):  # one uniform a unit: a batch can be drawn at once
            order = np.argsort(rng.random(self.rand_size**2), kind='stable')
        else:  # SimMIM's own draw
            order = rng.permutation(self.rand_size**2)
        return order[: self.count]

    def _square(self, rng: np.random.Generator | np.random.RandomState) -> np.ndarray:
        """Units of a square; its last row and column are hidden from their far ends inwards."""
        side = math.isqrt(self.count - 1) + 1
        rows, columns = np.divmod(np.arange(side**2), side)
        inner_first = np.lexsort((np.minimum(rows, columns), np.maximum(rows, columns)))
        kept = inner_first[: self.count]
        top, left = (rng.random(2) * (self.rand_size - side + 1)).astype(int)
        return (top + rows[kept]) * self.rand_size + left + columns[kept]

    def _block(self, rng: np.random.Generator | np.random.RandomState) -> np.ndarray:
        hidden = np.zeros((self.rand_size, self.rand_size), dtype=bool)
        smallest = BLOCK_MIN_SHARE * self.rand_size**2
        low, high = np.log(BLOCK_ASPECT)
        while missing := self.count - np.count_nonzero(hidden):
            area, aspect, top, left, end = rng.random(5)
            area = smallest + area * max(missing - smallest, 0)
            aspect = math.exp(low + aspect * (high - low))
            height = min(max(round(math.sqrt(area * aspect)), 1), self.rand_size)
            width = min(max(round(math.sqrt(area / aspect)), 1), self.rand_size)
            top, left = (
                int(top * (self.rand_size - height + 1)),
                int(left * (self.rand_size - width + 1)),
            )
            block = np.zeros_like(hidden)
            block[top : top + height, left : left + width] = True
            new = np.flatnonzero(block & ~hidden)
            if end < 0.5:  # cut at the bottom or at the top, so that neither is favoured
                new = new[::-1]
            hidden.flat[new[:missing]] = True
        return np.flatnonzero(hidden)


def average_distance(masks: np.ndarray, patch_size: int) -> float:
    """Mean Euclidean distance in pixels from a hidden pixel to the nearest visible one.

    SimMIM's AvgDist (Xie et al. 2022, arXiv:2111.09886), by which masks of any type compare.

    Args:
        masks: [N, h, w], 1 where a token is hidden.
        patch_size: side of a token in pixels.

    Raises:
        ValueError: if a mask leaves nothing visible, or nothing is hidden.
    """
    from scipy.ndimage import distance_transform_edt

    hidden = np.asarray(masks, dtype=bool).repeat(patch_size, axis=1).repeat(patch_size, axis=2)
    if not hidden.any() or hidden.all(axis=(1, 2)).any():
        raise ValueError('masks must hide at least one pixel, and each leave one visible')
    return float(np.concatenate([distance_transform_edt(mask)[mask] for mask in hidden]).mean())

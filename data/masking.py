"""Draw masks, which hide patches of an image.

To add a mask type, write a function that draws the hidden units of one image and register it under
the name for DATA.MASK_TYPE. A mask may depend on the image: see MASKS. Options of a mask type, such
as DATA.GREEN.WIDTH of 'green', are keyword arguments of its function.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from config import REGISTRIES, Config, encoder_node

if TYPE_CHECKING:
    from data.transforms import View

BLOCK_MIN_SHARE = 16 / 196  # BEiT's smallest block has 16 of 14 x 14 patches
BLOCK_ASPECT = (0.3, 1 / 0.3)

Rng = np.random.Generator | np.random.RandomState

# Name -> function(rng, side, count, view, **options). The function returns the flat indices of
# exactly `count` hidden units on a grid of side x side units. The count follows from
# DATA.MASK_RATIO. The view is what the sample shows of its image, or None without an image.
MASKS = REGISTRIES['DATA.MASK_TYPE']


class MaskGenerator:
    """Draws masks that hide an exact share of the square units of an image.

    Args:
        input_size: Side of the image in pixels.
        mask_patch_size: Side of a unit in pixels.
        model_patch_size: Side of a token in pixels.
        mask_ratio: Share of hidden units in (0, 1); the number of units is rounded up.
        mask_type: A name in MASKS.
        options: Options of the mask type; None: their default values.

    Raises:
        ValueError: If a size is not a multiple of the next, if no unit or every unit would be
            hidden, or if the type is unknown.
    """

    def __init__(
        self,
        input_size: int = 192,
        mask_patch_size: int = 32,
        model_patch_size: int = 4,
        mask_ratio: float = 0.6,
        mask_type: str = 'random',
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if input_size % mask_patch_size:
            raise ValueError(
                f'DATA.IMG_SIZE {input_size} must be a multiple of DATA.MASK_PATCH_SIZE, '
                f'got {mask_patch_size}'
            )
        if mask_patch_size % model_patch_size:
            raise ValueError(
                f'DATA.MASK_PATCH_SIZE must be a multiple of the model patch {model_patch_size}, '
                f'got {mask_patch_size}'
            )
        # A unit covers whole tokens, so that no token is hidden in part: SimMIM's 192 px have
        # 6 x 6 units of 32 px, each of 8 x 8 tokens of a Swin.
        self.rand_size = input_size // mask_patch_size
        self.scale = mask_patch_size // model_patch_size
        # The same number in every mask, so that all images of a batch count equally in the loss.
        self.count = math.ceil(self.rand_size**2 * mask_ratio)
        if not 1 <= self.count < self.rand_size**2:
            raise ValueError(
                f'DATA.MASK_RATIO {mask_ratio} hides {self.count} of {self.rand_size**2} units of '
                f'{mask_patch_size} pixels; it must hide at least one and leave one visible'
            )
        self.mask_type = mask_type
        self.hidden_units: Callable[..., np.ndarray] = MASKS[mask_type]
        self.options = MASKS.options_of(mask_type) if options is None else options

    def __call__(self, rng: Rng | None = None, view: 'View | None' = None) -> np.ndarray:
        """Draw a mask int64 [h, w] on the grid of tokens, with 1 for hidden tokens.

        By default, NumPy's global legacy generator is used. Masks that depend on the image need
        the view.
        """
        side, scale = self.rand_size, self.scale
        mask = np.zeros(side**2, dtype=np.int64)
        rng = np.random if rng is None else rng
        units = np.asarray(self.hidden_units(rng, side, self.count, view, **self.options))
        if units.dtype.kind in 'iu' and units.size and 0 <= units.min() <= units.max() < side**2:
            mask[units] = 1
        if mask.sum() != self.count:
            raise ValueError(
                f'DATA.MASK_TYPE {self.mask_type!r} hides {mask.sum()} units instead of '
                f'{self.count}: its function must return the indices of that many units, whole '
                f'numbers from 0 to {side**2 - 1}'
            )
        # [side, side] units -> [h, w] tokens
        mask = mask.reshape(side, side)
        return mask.repeat(scale, axis=0).repeat(scale, axis=1)


@MASKS.register('random')
def random_units(rng: Rng, side: int, count: int, view: 'View | None') -> np.ndarray:
    """Hide units anywhere, each with the same probability (SimMIM)."""
    if isinstance(rng, np.random.Generator):
        # Always side**2 draws, so that equal generators give nested masks for several ratios.
        order = np.argsort(rng.random(side**2), kind='stable')
    else:  # the same draw as SimMIM's
        order = rng.permutation(side**2)
    return order[:count]


@MASKS.register('square')
def square_units(rng: Rng, side: int, count: int, view: 'View | None') -> np.ndarray:
    """Hide one square; its last row and column are filled from their far ends inwards."""
    # The smallest square with at least `count` units.
    square = math.isqrt(count - 1) + 1
    rows, columns = np.divmod(np.arange(square**2), square)
    inner_first = np.lexsort((np.minimum(rows, columns), np.maximum(rows, columns)))
    kept = inner_first[:count]
    # Every position inside the grid is equally likely.
    top, left = (rng.random(2) * (side - square + 1)).astype(int)
    return (top + rows[kept]) * side + left + columns[kept]


@MASKS.register('block')
def block_units(rng: Rng, side: int, count: int, view: 'View | None') -> np.ndarray:
    """Hide rectangles that may overlap; the last rectangle is cut to reach the count.

    Source: Bao et al. 2021, arXiv:2106.08254, algorithm 1 (BEiT).
    """
    hidden = np.zeros((side, side), dtype=bool)
    smallest = BLOCK_MIN_SHARE * side**2
    low, high = np.log(BLOCK_ASPECT)
    while missing := count - np.count_nonzero(hidden):
        area, aspect, top, left, end = rng.random(5)
        # Area and logarithm of the aspect are uniform, as in BEiT.
        area = smallest + area * max(missing - smallest, 0)
        aspect = math.exp(low + aspect * (high - low))
        height = min(max(round(math.sqrt(area * aspect)), 1), side)
        width = min(max(round(math.sqrt(area / aspect)), 1), side)
        top, left = int(top * (side - height + 1)), int(left * (side - width + 1))
        block = np.zeros_like(hidden)
        block[top : top + height, left : left + width] = True
        # In row-major order, so that the cut takes away rows at one end of the block.
        new = np.flatnonzero(block & ~hidden)
        if end < 0.5:  # cut at the bottom or at the top with equal probability
            new = new[::-1]
        hidden.flat[new[:missing]] = True
    return np.flatnonzero(hidden)


def mask_generator(config: Config) -> MaskGenerator:
    """Build the mask generator of a run."""
    data = config.DATA
    return MaskGenerator(
        data.IMG_SIZE,
        data.MASK_PATCH_SIZE,
        encoder_node(config).PATCH_SIZE,
        data.MASK_RATIO,
        data.MASK_TYPE,
        MASKS.options_of(data.MASK_TYPE, config),
    )


def average_distance(masks: np.ndarray, patch_size: int) -> float:
    """Return the mean Euclidean distance in pixels from a hidden pixel to the nearest visible one.

    This is SimMIM's AvgDist (Xie et al. 2022, arXiv:2111.09886).

    Args:
        masks: Masks [N, h, w] with 1 for hidden tokens.
        patch_size: Side of a token in pixels.

    Raises:
        ValueError: If nothing is hidden, or if a mask leaves nothing visible.
    """
    from scipy.ndimage import distance_transform_edt  # slow to import

    hidden = np.asarray(masks, dtype=bool).repeat(patch_size, axis=1).repeat(patch_size, axis=2)
    if not hidden.any() or hidden.all(axis=(1, 2)).any():
        raise ValueError('masks must hide at least one pixel, and each must leave one visible')
    return float(np.concatenate([distance_transform_edt(mask)[mask] for mask in hidden]).mean())

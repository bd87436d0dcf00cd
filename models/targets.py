"""What a reconstruction is compared with: pixels or averages of them, plain or normalised."""

from torch import Tensor
from torch.nn import functional as F

TARGETS = ('pixels', 'patch_normalised')
EPS = 1e-6  # MAE's, added to the variance


class Target:
    """Turns images into what the head is to give, and that back into images.

    Args:
        kind: 'pixels'; or 'patch_normalised': each masking unit less its mean, over its standard
            deviation (He et al. 2021, arXiv:2111.06377, `norm_pix_loss`).
        cell: side in pixels of the square over which pixels are averaged to one value.
        unit: side of a masking unit in pixels, a multiple of the cell.
    """

    def __init__(self, kind: str = 'pixels', *, cell: int = 1, unit: int = 1) -> None:
        self.kind = kind
        self.cell = cell
        self.unit = unit

    def of(self, images: Tensor) -> Tensor:
        """Images [B, C, S, S] to [B, C, S / cell, S / cell]."""
        values = average_cells(images, self.cell)
        if self.kind == 'pixels':
            return values
        mean, std = unit_statistics(values, self.unit // self.cell)
        return (values - mean) / std

    def to_images(self, predictions: Tensor, images: Tensor) -> Tensor:
        """Predictions [B, C, S / cell, ...] of the target of `images` to images [B, C, S, S].

        A normalised unit gets mean and deviation of that unit of `images`, hidden or not.
        """
        if self.kind != 'pixels':
            values = average_cells(images, self.cell)
            mean, std = unit_statistics(values, self.unit // self.cell)
            predictions = predictions * std + mean
        return repeat(predictions, self.cell)


def average_cells(values: Tensor, cell: int) -> Tensor:
    """[B, C, S, S] to the means over cells of cell x cell pixels, [B, C, S / cell, S / cell]."""
    return values if cell == 1 else F.avg_pool2d(values, cell)


def repeat(values: Tensor, times: int) -> Tensor:
    """Every value of [..., h, w] over a square of times x times."""
    for axis in (-2, -1):
        values = values.repeat_interleave(times, dim=axis)
    return values


def unit_statistics(values: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(unbiased variance + EPS) of the units around each value, in float32.

    Args:
        values: [B, C, H, W].
        side: of a unit, in values; the channels of a unit count together.

    Returns:
        Two of [B, 1, H, W].
    """
    blocks = values.float().unfold(2, side, side).unfold(3, side, side)  # [B, C, h, w, side, side]
    var, mean = blocks.var(dim=(1, 4, 5)), blocks.mean(dim=(1, 4, 5))  # [B, h, w]
    return repeat(mean[:, None], side), repeat((var + EPS).sqrt()[:, None], side)

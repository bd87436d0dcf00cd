"""Trivial predictors, errors where the image is hidden, and figures for masked pre-training."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from system.files import atomic_writer
from system.pages import FONT, FONT_WIDTH, SMALL, TALLEST, WIDTH, new_figure

# What is predicted for visible patches has no loss and is noise, so it is not shown.
COLUMNS = ('input', 'masked', 'visible input +\nreconstruction')
HIDDEN_COLOUR = (86, 135, 190)
DPI = 150


def pixel_mask(mask: np.ndarray, patch_size: int) -> np.ndarray:
    """Enlarge a mask of patches [h, w] (1 hidden) to pixels [h * patch_size, w * patch_size]."""
    return mask.astype(bool).repeat(patch_size, axis=0).repeat(patch_size, axis=1)


def visible_mean(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Fill the `hidden` pixels [H, W] of an image [C, H, W] with the mean of the visible pixels."""
    means = image[:, ~hidden].mean(axis=1)
    return np.where(hidden, means[:, None, None], image)


def linear_interpolation(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Fill the `hidden` pixels by linear interpolation on a triangulation of the visible pixels.

    Pixels outside the convex hull get the value of the nearest visible pixel. A Delaunay triangle
    that contains hidden pixels only has corners that touch hidden pixels, so visible pixels further
    away than two pixels are left out. (Those that touch hidden ones may all lie on one line.)
    """
    from scipy.interpolate import griddata  # slow to import
    from scipy.ndimage import binary_dilation

    edge = binary_dilation(hidden, np.ones((5, 5))) & ~hidden
    visible, wanted = np.argwhere(edge), np.argwhere(hidden)
    values = image[:, edge].T  # [V, C]
    filled = griddata(visible, values, wanted, method='linear')
    outside = np.isnan(filled[:, 0])
    if outside.any():
        filled[outside] = griddata(visible, values, wanted[outside], method='nearest')
    result = image.copy()
    result[:, hidden] = filled.T
    return result


TRIVIAL_PREDICTORS = {'mean': visible_mean, 'linear': linear_interpolation}


@dataclass(frozen=True)
class Reconstruction:
    """An image, a mask of hidden pixels, and the model's prediction.

    Attributes:
        image: Normalised image, [C, H, W].
        hidden: Mask of the hidden pixels, [H, W] bool.
        prediction: Normalised image [C, H, W], or another target of the image, [T, h, w].
        grey_scale: Factor of each channel from normalised values to grey levels (0 to 255), [C].
        grey_offset: Offset that is added after this factor, [C].
        target_of: Function from an image to its target, [C, H, W] -> [T, h, w]; None for images.
    """

    image: np.ndarray
    hidden: np.ndarray
    prediction: np.ndarray
    grey_scale: np.ndarray
    grey_offset: np.ndarray
    target_of: Callable[[np.ndarray], np.ndarray] | None = None

    def measured(self, image: np.ndarray) -> np.ndarray:
        """Convert an image [C, H, W] to what the model predicts of it, with its shape."""
        return image if self.target_of is None else self.target_of(image)

    def grey(self, values: np.ndarray) -> np.ndarray:
        """Convert normalised values [C, H, W] to one image [H, W] in grey levels."""
        levels = values * self.grey_scale[:, None, None] + self.grey_offset[:, None, None]
        return levels.mean(axis=0)


def hidden_error(item: Reconstruction, values: np.ndarray) -> np.ndarray:
    """Sum the absolute error of a prediction where the image is hidden.

    Args:
        item: Image and mask.
        values: Prediction with the shape of `item.prediction`.

    Returns:
        Mean error over the values of a pixel (or of a cell of the target), for images also in grey
        levels, otherwise NaN, and number of hidden pixels (or cells), [3].
    """
    wanted = item.measured(item.image)
    cell = item.image.shape[-1] // wanted.shape[-1]
    hidden = item.hidden[::cell, ::cell]
    error = np.abs(values - wanted)[:, hidden].sum(axis=1, dtype=np.float64)
    grey = np.nan if item.target_of else (error * item.grey_scale).mean()
    return np.array([error.mean(), grey, hidden.sum()])


def plot_reconstructions(path: str | Path, items: Sequence[Reconstruction], title: str) -> None:
    """Plot input, masked input, and the input with reconstructed hidden pixels, a row per image."""
    side = min(WIDTH / len(COLUMNS), (TALLEST - 0.8) / len(items))
    figure = new_figure(0.8 + side * len(items), min(WIDTH, side * len(COLUMNS)))
    axes = figure.subplots(len(items), len(COLUMNS), squeeze=False)
    for row, item in zip(axes, items, strict=True):
        image, prediction = item.grey(item.image), item.grey(item.prediction)
        masked = np.repeat(image[..., None], 3, axis=2)
        masked[item.hidden] = HIDDEN_COLOUR
        joined = np.where(item.hidden, prediction, image)
        for axis, panel in zip(row, (image, masked, joined), strict=True):
            panel = np.clip(np.rint(panel), 0, 255).astype(np.uint8)
            axis.imshow(panel, cmap='gray', vmin=0, vmax=255)
            axis.set_axis_off()
    for axis, name in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(name, fontsize=FONT)
    figure.suptitle(textwrap.fill(title, round(FONT_WIDTH * figure.get_figwidth())), fontsize=SMALL)
    Path(path).parent.mkdir(exist_ok=True)
    with atomic_writer(path) as file:
        figure.savefig(file, dpi=DPI)

"""Trivial predictors, errors on hidden pixels, and figures for masked reconstruction."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.interpolate import griddata

from system.files import atomic_writer

COLUMNS = ('input', 'masked', 'reconstruction', 'visible input +\nreconstruction')
HIDDEN_COLOUR = (86, 135, 190)


def pixel_mask(mask: np.ndarray, patch_size: int) -> np.ndarray:
    """Enlarge a mask of patches [h, w] (1 hidden) to pixels [h * patch_size, w * patch_size]."""
    return mask.astype(bool).repeat(patch_size, axis=0).repeat(patch_size, axis=1)


def visible_mean(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Fill the `hidden` pixels [H, W] of an image [C, H, W] with the mean of the visible pixels."""
    means = image[:, ~hidden].mean(axis=1)
    return np.where(hidden, means[:, None, None], image)


def linear_interpolation(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Fill the `hidden` pixels by linear interpolation on a triangulation of the visible pixels.

    Pixels outside the convex hull get the value of the nearest visible pixel.
    """
    visible, wanted = np.argwhere(~hidden), np.argwhere(hidden)
    values = image[:, ~hidden].T  # [V, C]
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
        prediction: Normalised prediction, [C, H, W].
        grey_scale: Factor of each channel from normalised values to grey levels (0 to 255), [C].
        grey_offset: Offset that is added after this factor, [C].
    """

    image: np.ndarray
    hidden: np.ndarray
    prediction: np.ndarray
    grey_scale: np.ndarray
    grey_offset: np.ndarray

    def grey(self, values: np.ndarray) -> np.ndarray:
        """Convert normalised values [C, H, W] to one image [H, W] in grey levels."""
        levels = values * self.grey_scale[:, None, None] + self.grey_offset[:, None, None]
        return levels.mean(axis=0)


def hidden_error(item: Reconstruction, prediction: np.ndarray) -> np.ndarray:
    """Sum the absolute error of a prediction [C, H, W] over the hidden pixels.

    Returns:
        Mean error over channels in normalised units and in grey levels, and number of pixels, [3].
    """
    error = np.abs(prediction - item.image)[:, item.hidden].sum(axis=1, dtype=np.float64)
    return np.array([error.mean(), (error * item.grey_scale).mean(), item.hidden.sum()])


def plot_reconstructions(path: str | Path, items: Sequence[Reconstruction], title: str) -> None:
    """Plot input, masked input, reconstruction, and their combination in one PNG row per image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 2.1 * len(items) + 0.8), layout='constrained')
    axes = figure.subplots(len(items), len(COLUMNS), squeeze=False)
    for row, item in zip(axes, items, strict=True):
        image, prediction = item.grey(item.image), item.grey(item.prediction)
        masked = np.repeat(image[..., None], 3, axis=2)
        masked[item.hidden] = HIDDEN_COLOUR
        joined = np.where(item.hidden, prediction, image)
        for axis, panel in zip(row, (image, masked, prediction, joined), strict=True):
            panel = np.clip(np.rint(panel), 0, 255).astype(np.uint8)
            axis.imshow(panel, cmap='gray', vmin=0, vmax=255)
            axis.set_axis_off()
    for axis, name in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(name, fontsize=11)
    figure.suptitle(textwrap.fill(title, 90), fontsize=10)
    Path(path).parent.mkdir(exist_ok=True)
    with atomic_writer(path) as file:
        figure.savefig(file, dpi=110)

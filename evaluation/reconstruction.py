"""Masked reconstruction: trivial predictors, errors on hidden pixels, and figures."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.interpolate import griddata

from engine.files import atomic_writer

COLUMNS = ('input', 'masked', 'reconstruction', 'visible input +\nreconstruction')
HIDDEN_COLOUR = (86, 135, 190)


def pixel_mask(mask: np.ndarray, patch_size: int) -> np.ndarray:
    """Token mask [h, w] (1 hidden) -> pixel mask [h * patch_size, w * patch_size], bool."""
    return mask.astype(bool).repeat(patch_size, axis=0).repeat(patch_size, axis=1)


def visible_mean(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Fill pixels of an image [C, H, W], `hidden` [H, W] bool, with each channel's visible mean."""
    means = image[:, ~hidden].mean(axis=1)
    return np.where(hidden, means[:, None, None], image)


def linear_interpolation(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Fill hidden pixels by linear interpolation, and by the nearest pixel outside the hull.

    Uses a Delaunay triangulation of the visible pixels. Shapes are those of `visible_mean`.
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
    """One image, its hidden pixels, and the model's prediction.

    Attributes:
        image: [C, H, W] normalised.
        hidden: [H, W] bool.
        prediction: [C, H, W] normalised.
        grey_scale: [C], with value * grey_scale + grey_offset in grey levels (0 to 255).
        grey_offset: [C].
    """

    image: np.ndarray  # [C, H, W]
    hidden: np.ndarray  # [H, W]
    prediction: np.ndarray  # [C, H, W]
    grey_scale: np.ndarray  # [C]
    grey_offset: np.ndarray  # [C]

    def grey(self, values: np.ndarray) -> np.ndarray:
        """Normalised values [C, H, W] as one image [H, W] in grey levels."""
        levels = values * self.grey_scale[:, None, None] + self.grey_offset[:, None, None]
        return levels.mean(axis=0)


def hidden_error(item: Reconstruction, prediction: np.ndarray) -> np.ndarray:
    """Absolute error of a prediction [C, H, W], summed over the hidden pixels, mean over channels.

    Returns:
        [3]: in normalised units, in grey levels, and the number of hidden pixels.
    """
    error = np.abs(prediction - item.image)[:, item.hidden].sum(axis=1, dtype=np.float64)
    return np.array([error.mean(), (error * item.grey_scale).mean(), item.hidden.sum()])


def plot_reconstructions(path: str | Path, items: Sequence[Reconstruction], title: str) -> None:
    """Plot one row per image as a PNG: input, masked (tinted), reconstruction, and both joined."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 2.1 * len(items) + 0.8), layout='constrained')
    FigureCanvasAgg(figure)
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

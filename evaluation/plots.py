"""Figures, written as PNG."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.reconstruction import Reconstruction

COLUMNS = ('input', 'masked', 'reconstruction', 'visible input +\nreconstruction')
HIDDEN_COLOUR = (86, 135, 190)


def plot_reconstructions(path: str | Path, items: Sequence[Reconstruction], title: str) -> None:
    """One row an image: input, masked (hidden area tinted), reconstruction, both joined.

    Args:
        path: PNG to write; its folder is made.
        items: what to show.
        title: the line above.
    """
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
    figure.savefig(path, dpi=110)

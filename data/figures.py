"""Figures of the images of a data set: examples of each label, and preprocessing.

All figures have the width of a page, so that their text is legible on a phone, too. No figure shows
the number of a patient or the name of a file.
"""

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from data.images import PACKED_STEPS
from data.labels import POSITIVE
from data.preprocess import Preprocess, apply_steps
from data.records import Records, images_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.3  # text width of an A4 page in inches
IMAGES_PER_ROW = 4
LARGEST_SIDE = 512  # of a shown image, in pixels
FONT, SMALL = 9, 8
FONT_WIDTH = 12.5  # letters in an inch, for titles that are wrapped
STYLE = {'svg.fonttype': 'none', 'svg.hashsalt': 'figure'}  # selectable text, reproducible names
NOT_FOR_CLINICAL_USE = 'Not for clinical use.'


def encode_figure(figure: 'Figure') -> dict[str, bytes]:
    """Return the PNG and SVG file of a figure by suffix; equal figures give equal bytes."""
    from matplotlib import rc_context

    files = {}
    metadata = {'.png': {'Software': None}, '.svg': {'Date': None}}
    with rc_context(STYLE):
        for suffix, about in metadata.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], dpi=200, metadata=about)
            files[suffix] = buffer.getvalue()
    return files


def new_figure(height: float) -> 'Figure':
    """Return an empty figure of page width and `height` inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout='constrained')


def plot_examples(records: Records, count: int, seed: int) -> 'Figure':
    """Show `count` random images that are positive for each label, from different patients.

    Labels without a positive image are left out. An image may have further labels.

    Raises:
        ValueError: If no label has a positive image, or if an image cannot be read.
    """
    read = images_of(records).reader(records.file)
    blocks = []
    for label, values in zip(records.label_names, records.labels.T, strict=True):
        chosen = _choose(records, np.flatnonzero(values == POSITIVE), count, seed)
        if len(chosen):
            titles = [label] + [''] * (len(chosen) - 1)
            blocks.append([*zip(titles, map(read, chosen.tolist()), strict=True)])
    if not blocks:
        raise ValueError(f'--examples: no image of {records.root} is positive for a label')
    figure = _plot_grid(blocks, count)
    note = 'Images were drawn at random for each label. They may have further labels.'
    figure.supxlabel(f'{note}\n{NOT_FOR_CLINICAL_USE}', fontsize=SMALL)
    return figure


def plot_steps(records: Records, preprocess: Preprocess, count: int, seed: int) -> 'Figure':
    """Show `count` random images before and after each step of DATA.PREPROCESS.

    Each step is applied to the result of the steps before it.

    Raises:
        ValueError: If the images were packed with the steps, or if an image cannot be read.
    """
    read, steps = images_of(records).reader(records.file), preprocess.steps
    blocks = []
    for index in _choose(records, np.arange(len(records)), count, seed).tolist():
        image = read(index)
        if image.info.get(PACKED_STEPS):
            raise ValueError(
                f'--examples: the store {records.root} was packed with the steps {[*steps]} of '
                'DATA.PREPROCESS, so that the images before them are not known; use the image files'
            )
        panels = [('original', image)]
        for number, step in enumerate(steps, start=1):
            image = apply_steps(image, [step], preprocess.setup)
            panels.append((f'{number}. {step}', image))
        blocks.append(panels)
    figure = _plot_grid(blocks, 1 + len(steps))
    figure.supxlabel(
        f'Each step follows the one before it.\n{NOT_FOR_CLINICAL_USE}', fontsize=SMALL
    )
    return figure


def show_image(axis: 'Axes', image: Image.Image | np.ndarray) -> None:
    """Show an image with grey levels from 0 to 255 without axes."""
    if isinstance(image, Image.Image):
        image = image.copy()
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    axis.imshow(np.asarray(image), cmap='gray', vmin=0, vmax=255)
    axis.set_axis_off()


def _choose(records: Records, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw up to `count` of the rows, each of another patient."""
    rows = np.random.default_rng(seed).permutation(rows)
    first = np.unique(records.patient[rows].astype(str), return_index=True)[1]
    return rows[np.sort(first)][:count]


def _plot_grid(blocks: Sequence[Sequence[tuple[str, Image.Image]]], size: int) -> 'Figure':
    """Plot blocks of up to `size` (title, image), as many next to each other as fit into a row."""
    columns = min(size, IMAGES_PER_ROW)
    across, lines = IMAGES_PER_ROW // columns, math.ceil(size / columns)
    rows, side = math.ceil(len(blocks) / across) * lines, WIDTH / (across * columns)
    tallest = min(1.4, max(each.height / each.width for block in blocks for _, each in block))
    figure = new_figure(0.5 + rows * (0.35 + side * tallest))
    axes = figure.subplots(rows, across * columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for number, block in enumerate(blocks):
        row, column = number // across * lines, number % across * columns
        for place, (title, image) in enumerate(block):
            axis = axes[row + place // columns, column + place % columns]
            show_image(axis, image)
            axis.set_anchor('N')
            title = textwrap.fill(title, round(FONT_WIDTH * side))
            axis.set_title(title, fontsize=FONT, loc='left')
    return figure

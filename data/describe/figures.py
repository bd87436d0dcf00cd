"""Figures of the images of a data set: examples of each label, and preprocessing.

All figures have the width of a page, so that their text is legible on a phone, too. No figure shows
the number of a patient or the name of a file.
"""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from data.images.files import PACKED_STEPS
from data.images.preprocess import Preprocess, apply_steps
from data.tables.labels import POSITIVE
from data.tables.records import Records, images_of
from system.pages import (
    FONT,
    FONT_WIDTH,
    SMALL,
    TALLEST,
    WIDTH,
    listed,
    new_figure,
    note_on_images,
    page_names,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGES_PER_ROW = 6
LABELS_PER_ROW = {1: 4, 2: 3, 3: 2}  # by the number of images of a label; 1 from 4 on
LARGEST_SIDE = 512  # of a shown image, in pixels
FLATTEST, TALLEST_SHAPE = 0.2, 1.4  # height of an image that is shown with a width of 1
TITLE_HEIGHT, NOTE_LINE, GAP = 0.35, 0.16, 0.08  # in inches


def plot_examples(records: Records, count: int, seed: int) -> dict[str, 'Figure']:
    """Show `count` random images that are positive for each label, from different patients.

    A note names the labels without a positive image. An image may have further labels.

    Returns:
        Figures by name: 'examples', or with several pages 'examples_1', 'examples_2', ...

    Raises:
        ValueError: If no label has a positive image, or if an image cannot be read.
    """
    read = images_of(records).reader(records.file)
    blocks, missing = [], []
    for label, values in zip(records.label_names, records.labels.T, strict=True):
        chosen = _choose(records, np.flatnonzero(values == POSITIVE), count, seed)
        if len(chosen):
            titles = [label] + [''] * (len(chosen) - 1)
            blocks.append([*zip(titles, map(read, chosen.tolist()), strict=True)])
        else:
            missing.append(label)
    if not blocks:
        raise ValueError(f'--examples: no image of {records.root} is positive for a label')
    note = 'Images were drawn at random for each label. They may have further labels.'
    note += f' Without a positive image: {listed(missing)}.' if missing else ''
    return _plot_grid('examples', blocks, count, note, records)


def plot_steps(
    records: Records, preprocess: Preprocess, count: int, seed: int
) -> dict[str, 'Figure']:
    """Show `count` random images before and after each step of DATA.PREPROCESS.

    Each step is applied to the result of the steps before it.

    Returns:
        Figures by name: 'preprocess', or with several pages 'preprocess_1', 'preprocess_2', ...

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
    note = 'Each step follows the one before it.'
    return _plot_grid('preprocess', blocks, 1 + len(steps), note, records)


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


def _shape(image: Image.Image) -> float:
    """Return the height of an image that is shown with a width of 1."""
    return min(TALLEST_SHAPE, max(FLATTEST, image.height / image.width))


def _plot_grid(
    name: str,
    blocks: Sequence[Sequence[tuple[str, Image.Image]]],
    size: int,
    note: str,
    records: Records,
) -> dict[str, 'Figure']:
    """Plot blocks of up to `size` (title, image), several next to each other, on pages.

    All images of a line have its height, so that no image leaves a gap below it.
    """
    columns = min(size, IMAGES_PER_ROW)
    across, wide = LABELS_PER_ROW.get(columns, 1), WIDTH / LABELS_PER_ROW.get(columns, 1)
    words = textwrap.wrap(note, round(FONT_WIDTH * WIDTH)) + [note_on_images(records.path)]
    below = NOTE_LINE * (1 + len(words))
    rows = []  # lines of blocks next to each other: height of their images, and their parts
    for start in range(0, len(blocks), across):
        members = blocks[start : start + across]
        lines = []
        for first in range(0, size, columns):
            parts = [block[first : first + columns] for block in members]
            heights = [_line_height(part, columns, wide) for part in parts if part]
            lines += [(min(heights), parts)] if heights else []
        rows.append(lines)
    pages, used = [[]], below
    for lines in rows:  # a block is on one page
        needed = sum(TITLE_HEIGHT + height for height, _ in lines)
        if pages[-1] and used + needed > TALLEST:
            pages.append([])
            used = below
        pages[-1] += lines
        used += needed
    figures = {}
    for page_name, page in zip(page_names(name, len(pages)), pages, strict=True):
        tall = below + sum(TITLE_HEIGHT + height for height, _ in page)
        figure, top = new_figure(tall), tall
        figure.set_layout_engine('none')  # the images have their places
        for height, parts in page:
            top -= TITLE_HEIGHT + height
            for number, part in enumerate(parts):
                left = number * wide + GAP / 2
                for place, (title, image) in enumerate(part):
                    width = height / _shape(image)
                    box = left / WIDTH, top / tall, width / WIDTH, height / tall
                    axis = figure.add_axes(box)
                    show_image(axis, image)
                    # The only title of a block may be as wide as the block.
                    is_alone = place == 0 and not any(words for words, _ in part[1:])
                    letters = round(FONT_WIDTH * (wide if is_alone else width))
                    title = textwrap.fill(shortened(title, 2 * letters), letters)
                    axis.set_title(title, fontsize=FONT, loc='left')
                    left += width + GAP
        figure.supxlabel('\n'.join(words), fontsize=SMALL)
        figures[page_name] = figure
    return figures


def _line_height(part: Sequence[tuple[str, Image.Image]], columns: int, wide: float) -> float:
    """Return the height of images that fill a line of `columns`, with `wide` inches for them."""
    widths = [1 / _shape(image) for _, image in part]  # of images with a height of 1
    widths += [sum(widths) / len(widths)] * (columns - len(part))
    return (wide - GAP * columns) / sum(widths)

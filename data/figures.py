"""Figures of a data set: labels, ages and groups, examples of each label, and preprocessing.

All figures have the width of a page, so that their text is legible on a phone, too. No figure shows
the number of a patient or the name of a file.
"""

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from data.groups import UNKNOWN
from data.images import PACKED_STEPS
from data.labels import POSITIVE
from data.preprocess import Preprocess, apply_steps
from data.records import Records, images_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Kinds of cells of the CSV file, with colours by Okabe and Ito for colour-blind readers.
KINDS = {'positive': '#D55E00', 'uncertain': '#F0E442', 'negative': '#0072B2', 'blank': '#DDDDDD'}
# Colours and markers of groups.
GROUP_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#000000', '#E69F00')
GROUP_MARKERS = 'os^DvP*'
EVERYTHING = 'All'  # name of the column and group of counts over a whole split
WIDTH = 6.3  # text width of an A4 page in inches
IMAGES_PER_ROW = 4
LARGEST_SIDE = 512  # of a shown image, in pixels
FONT, SMALL = 9, 8
FONT_WIDTH = 12.5  # letters in an inch, for titles that are wrapped
STYLE = {'svg.fonttype': 'none', 'svg.hashsalt': 'figure'}  # selectable text, reproducible names
NOT_FOR_CLINICAL_USE = 'Not for clinical use.'


@dataclass(frozen=True)
class Panel:
    """An image of a grid and its title, which may be empty."""

    image: Image.Image | np.ndarray
    title: str = ''


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


def plot_labels(splits: pd.DataFrame, counts: pd.DataFrame) -> 'Figure':
    """Plot the kinds of cells of each label in % of the images, one panel per split.

    Args:
        splits: `Description.splits` of `data.describe`.
        counts: `Description.counts`.
    """
    counts = counts[(counts['column'] == EVERYTHING) & (counts['level'] == 'image')]
    columns, num_labels = min(2, len(splits)), counts['label'].nunique()
    rows = math.ceil(len(splits) / columns)
    figure = new_figure(0.6 + rows * (0.9 + 0.2 * num_labels))
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axis, split in zip(axes, splits.itertuples(), strict=False):
        table = counts[counts['split'] == split.split].set_index('label')
        left = 0
        for kind, colour in KINDS.items():
            share = 100 * table[kind] / split.images
            style = {'color': colour, 'edgecolor': 'white', 'linewidth': 0.5, 'label': kind}
            axis.barh(table.index, share, left=left, **style)
            left = left + share
        for label, positive in table['positive'].items():
            axis.text(102, label, f'{positive:,}', va='center', fontsize=SMALL)
        axis.set_title(f'{split.split}: {split.images:,} images', fontsize=FONT)
        axis.set_xlabel('% of images; right: number positive', fontsize=SMALL)
        axis.set_xlim(0, 100)
        axis.tick_params(labelsize=SMALL)
        axis.spines[['top', 'right']].set_visible(False)
    for axis in axes[len(splits) :]:
        axis.set_axis_off()
    axes[0].invert_yaxis()
    handles, names = axes[0].get_legend_handles_labels()
    style = {'ncols': len(KINDS), 'frameon': False, 'fontsize': FONT}
    figure.legend(handles, names, loc='outside upper center', **style)
    return figure


def plot_groups(counts: pd.DataFrame, ages: pd.DataFrame) -> 'Figure':
    """Plot age by sex, images by group and labels by group of the first split.

    Columns whose groups are all unknown are left out, and so are ages that are all unknown.

    Args:
        counts: `Description.counts` of `data.describe`.
        ages: `Description.ages`.
    """
    split = counts['split'].iloc[0]
    counts, ages = (table[table['split'] == split] for table in (counts, ages))
    tables = dict(list(counts[counts['level'] == 'image'].groupby('column', sort=False)))
    everything = tables.pop(EVERYTHING)
    tables = {name: table for name, table in tables.items() if set(table['group']) != {UNKNOWN}}
    shown = [(_group_sizes(table), _title(name, table)) for name, table in tables.items()]
    counted = [part for name, part in zip(tables, shown, strict=True) if name not in ('Sex', 'Age')]
    above, below = len(counted) + bool(len(ages)), len(tables)
    if not above:
        figure = new_figure(1)
        figure.suptitle('Sex, age, view and other groups are unknown.', fontsize=FONT)
        return figure
    heights = [2.1 * math.ceil(above / 2), (1.7 + 0.2 * len(everything)) * math.ceil(below / 2)]
    figure = new_figure(0.4 + sum(heights))
    images = everything[[*KINDS]].iloc[0].sum()
    figure.suptitle(f'{split}: {images:,} images', fontsize=FONT + 1)
    top, bottom = figure.subfigures(2, 1, height_ratios=heights)
    axes = _pairs(top, above)
    if len(ages):
        _plot_ages(next(axes), ages)
    for sizes, title in counted:
        _plot_sizes(next(axes), sizes, title)
    axes = _pairs(bottom, below, sharey=True)
    for table, part in zip(tables.values(), shown, strict=True):
        _plot_prevalence(next(axes), table, *part)
    figure.axes[above].invert_yaxis()
    return figure


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
            panels = zip(map(read, chosen.tolist()), titles, strict=True)
            blocks.append([Panel(*panel) for panel in panels])
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
        panels = [Panel(image, 'original')]
        for number, step in enumerate(steps, start=1):
            image = apply_steps(image, [step], preprocess.setup)
            panels.append(Panel(image, f'{number}. {step}'))
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


def _plot_grid(blocks: Sequence[Sequence[Panel]], size: int) -> 'Figure':
    """Plot blocks of up to `size` panels, as many next to each other as fit into a row."""
    columns = min(size, IMAGES_PER_ROW)
    across, lines = IMAGES_PER_ROW // columns, math.ceil(size / columns)
    rows, side = math.ceil(len(blocks) / across) * lines, WIDTH / (across * columns)
    shapes = [np.shape(panel.image) for block in blocks for panel in block]
    tallest = min(1.4, max(height / width for height, width in shapes))
    figure = new_figure(0.5 + rows * (0.35 + side * tallest))
    axes = figure.subplots(rows, across * columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for number, block in enumerate(blocks):
        row, column = number // across * lines, number % across * columns
        for place, panel in enumerate(block):
            axis = axes[row + place // columns, column + place % columns]
            show_image(axis, panel.image)
            axis.set_anchor('N')
            title = textwrap.fill(panel.title, round(FONT_WIDTH * side))
            axis.set_title(title, fontsize=FONT, loc='left')
    return figure


def _pairs(figure: 'Figure', count: int, sharey: bool = False) -> Iterator['Axes']:
    """Return `count` axes in rows of two."""
    axes = figure.subplots(math.ceil(count / 2), min(2, count), sharey=sharey, squeeze=False)
    for axis in axes.ravel():
        axis.spines[['top', 'right']].set_visible(False)
        axis.tick_params(labelsize=SMALL)
    for axis in axes.ravel()[count:]:
        axis.set_axis_off()
    return iter(axes.ravel()[:count])


def _plot_ages(axis: 'Axes', ages: pd.DataFrame) -> None:
    """Plot the number of images by age, in bands of 5 years, with a bar for each sex."""
    bands = ages.assign(age=ages['age'] // 5 * 5).groupby(['sex', 'age'])['images'].sum()
    for number, (sex, images) in enumerate(bands.groupby('sex')):
        years = images.index.get_level_values('age') + 1.6 * number + 0.9
        axis.bar(years, images, width=1.6, color=GROUP_COLOURS[number], label=sex)
    axis.set_title('Age by sex', fontsize=FONT)
    axis.set_xlabel('years', fontsize=SMALL)
    axis.set_ylabel('images', fontsize=SMALL)
    axis.legend(frameon=False, fontsize=SMALL)


def _plot_sizes(axis: 'Axes', sizes: pd.Series, title: str) -> None:
    """Plot the number of images of each group."""
    axis.barh(sizes.index, sizes, color=GROUP_COLOURS[0])
    axis.set_title(f'Images by {title}', fontsize=FONT)
    axis.set_xlabel('images', fontsize=SMALL)
    axis.invert_yaxis()


def _plot_prevalence(axis: 'Axes', table: pd.DataFrame, sizes: pd.Series, title: str) -> None:
    """Plot the share of positive images of each label, with a marker for each group."""
    positive = table.pivot(index='label', columns='group', values='positive')
    for number, (group, size) in enumerate(sizes.items()):
        share = 100 * positive.loc[table['label'].unique(), group] / size
        style = {'color': GROUP_COLOURS[number], 'alpha': 0.8, 'markersize': 5}
        label = f'{group} ({size:,})'
        axis.plot(share, share.index, GROUP_MARKERS[number], label=label, **style)
    axis.set_title(f'Prevalence by {title}', fontsize=FONT)
    axis.set_xlabel('% of images positive', fontsize=SMALL)
    axis.set_xlim(0, None)
    axis.grid(axis='y', color='0.9')
    place = {'loc': 'upper center', 'bbox_to_anchor': (0.5, -0.16)}
    axis.legend(frameon=False, fontsize=SMALL, **place)


def _group_sizes(table: pd.DataFrame) -> pd.Series:
    """Return the number of images of the largest groups, one for each marker of a figure."""
    sizes = table.drop_duplicates('group').set_index('group')[[*KINDS]].sum(axis=1)
    return sizes[sizes.index.isin(sizes.nlargest(len(GROUP_MARKERS)).index)]


def _title(column: str, table: pd.DataFrame) -> str:
    column = column.lower() if column in ('Sex', 'Age', 'View') else column
    number, shown = table['group'].nunique(), len(GROUP_MARKERS)
    return f'{column}\n{shown} largest of {number} groups' if number > shown else column

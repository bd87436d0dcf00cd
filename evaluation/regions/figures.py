"""Figures of localisation: scores by label with baselines, and examples with region and map."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from data.describe.figures import show_image
from evaluation.regions.analysis import EVERYONE, HIT, IOU, MEAN, TITLES, RegionCases, Row
from evaluation.regions.regions import Regions, Size
from evaluation.regions.scores import marked
from evaluation.regions.sources import OWN, MapSource
from evaluation.saliency import transparent_colours
from system.pages import FONT, SMALL, figures_of_rows, note_on_images, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours of Okabe and Ito for models; baselines are grey.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
GREY = '#6B6B6B'
LINE, HEAD, AXIS = 0.19, 0.3, 0.35  # inches: a row, the name of a label, and the axis below
EXAMPLE = 2.5  # height of a row of examples
SHOWN_SIDE = 384  # pixels of the longer side of an example
PLACES = ('best', 'median', 'worst')
LETTERS = 34  # of the name of a row
REGION = '#00E5FF'  # outline of a region


def plot_scores(
    name: str,
    scores: pd.DataFrame,
    rows: Sequence[Row],
    labels: Sequence[str],
    *,
    shown: Sequence[str],
    paths: Sequence[str],
) -> dict[str, 'Figure']:
    """Draw two scores of each label: models in colour, baselines in grey.

    Args:
        name: Name of the figure.
        scores: `scores` of `analysis.analyse`.
        rows: Rows in the order of the figure.
        labels: Labels, or MEAN, in the order of the figure.
        shown: The scores.
        paths: Images, which tell whether they are synthetic.
    """
    known = scores[scores['group'] == EVERYONE].set_index(['row', 'label', 'score'])
    models = [row.name for row in rows if row.source and row.kind == OWN]
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(models)}
    highest = float(np.nanmax([known.loc[known.index.isin(shown, 2), ['value', 'high']]]))
    options = {'known': known, 'rows': rows, 'colour': colour, 'shown': shown}
    options['most'] = min(1.0, highest * 1.05)
    height = HEAD + AXIS + LINE * len(rows)
    blocks = [(height, partial(_plot_label, label=label, **options)) for label in labels]
    note = 'Circles: models; crosses: baselines. Lines: 95 % over patients, where there are enough '
    note += f'cases. {note_on_images(paths)}'
    return figures_of_rows(name, blocks, note)


def _plot_label(
    part: Any,
    *,
    label: str,
    known: pd.DataFrame,
    rows: Sequence[Row],
    colour: Mapping[str, str],
    shown: Sequence[str],
    most: float,
) -> None:
    """Draw the scores of a label: a panel for each score, and a line for each row."""
    panels = part.subplots(1, len(shown), sharey=True)
    cases = int(known.loc[rows[0].name, label, shown[0]]['cases'])
    name = 'Mean over labels with enough cases' if label == MEAN else label
    title = f'{name}: {cases} case{"s" * (cases != 1)}'
    part.suptitle(title, fontsize=FONT, x=0.01, ha='left', weight='bold')
    for axis, score in zip(panels, shown, strict=True):
        for place, row in enumerate(rows):
            line = known.loc[row.name, label, score]
            style = {'color': colour.get(row.name, GREY)}
            if not np.isnan(line['low']):
                axis.plot([line['low'], line['high']], [place, place], linewidth=1.5, **style)
            marker = 'o' if row.name in colour else 'x'
            style |= {'linestyle': '', 'clip_on': False}
            axis.plot(line['value'], place, marker=marker, markersize=5, **style)
        axis.set_xlim(-0.02 * most, most)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel(TITLES[score], fontsize=SMALL)
        axis.tick_params(labelsize=SMALL)
        axis.grid(axis='x', color='#E0E0E0', linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[['top', 'right']].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [shortened(row.name, LETTERS) for row in rows])


def choose_examples(row: Row, cases: RegionCases, label: str) -> list[int]:
    """Return the case of a label with the highest, the median and the lowest IoU."""
    ious = row.scores.loc[cases.marked['label'] == label, IOU].sort_values(
        ascending=False, kind='stable'
    )
    count = len(ious)
    return [ious.index[place] for place in dict.fromkeys((0, (count - 1) // 2, count - 1))]


def plot_examples(
    row: Row, source: MapSource, regions: Regions, cases: RegionCases, labels: Sequence[str]
) -> dict[str, 'Figure']:
    """Show the best, the median and the worst case of each label of a model by IoU.

    They are not chosen by hand. No figure shows the name of an image or of a patient.
    """
    blocks = []
    for label in labels:
        examples = []
        for place in choose_examples(row, cases, label):
            case = cases.marked.loc[place]
            full = Size(case['height'], case['width'])
            scale = min(1.0, SHOWN_SIDE / max(full))
            size = Size(*(max(1, round(side * scale)) for side in full))
            mask = Image.fromarray(regions.mask(case['path'], label, full))
            placed = source.maps(case['path'], label)[row.kind]
            image = source.image(case['path'])
            examples.append(
                {
                    'image': image.resize(size[::-1]) if image is not None else None,
                    'map': placed.at(size),
                    'region': np.asarray(mask.resize(size[::-1])),
                    'iou': row.scores.loc[place, IOU],
                    'hit': row.scores.loc[place, HIT],
                }
            )
        blocks.append((EXAMPLE, partial(_plot_examples, label=label, examples=examples)))
    note = 'Solid line: region. Colour: map. Dashed line: what it marks. Star: its highest point. '
    note += note_on_images(cases.marked['path'])
    return figures_of_rows('examples', blocks, note)


def _plot_examples(part: Any, *, label: str, examples: Sequence[Mapping[str, Any]]) -> None:
    part.suptitle(label, fontsize=FONT, x=0.01, ha='left', weight='bold')
    panels = part.subplots(1, len(PLACES))
    for axis in panels:
        axis.set_axis_off()
    names = PLACES if len(examples) == len(PLACES) else ('best', 'worst')[: len(examples)]
    for axis, name, example in zip(panels, names, examples, strict=False):
        values = example['map']
        if example['image'] is None:
            axis.imshow(np.zeros(values.shape), cmap='gray', vmin=0, vmax=1)
        else:
            show_image(axis, example['image'])
        axis.imshow(values, cmap=transparent_colours(), vmin=0, vmax=1)
        # A frame of one pixel, so that the outline also closes at the edge of the image.
        region = np.pad(example['region'].astype(float), 1)
        places = [np.arange(-1, side + 1) for side in example['region'].shape]
        axis.contour(places[1], places[0], region, [0.5], colors=REGION, linewidths=1.4)
        if values.any():
            area = np.pad(marked(values).astype(float), 1)
            style = {'colors': 'white', 'linewidths': 1, 'linestyles': 'dashed'}
            axis.contour(places[1], places[0], area, [0.5], **style)
            top, left = np.unravel_index(values.argmax(), values.shape)
            style = {'markerfacecolor': 'white', 'markeredgecolor': 'black'}
            axis.plot(left, top, marker='*', markersize=9, **style)
        axis.set_xlim(-0.5, values.shape[1] - 0.5)
        axis.set_ylim(values.shape[0] - 0.5, -0.5)
        hit = 'hit' if example['hit'] == 1 else 'miss'
        if 0 < example['hit'] < 1:
            hit = f'{100 * example["hit"]:.0f} % hit'
        if not values.any():
            hit = 'map without a signal'
        axis.set_title(f'{name}: IoU {example["iou"]:.2f}, {hit}', fontsize=SMALL)

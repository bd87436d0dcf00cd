"""The figure of measured cases: bars of images per second, a panel for each model and batch."""

import io
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.store_files import replace_file
from speed.cases import BASELINE
from speed.results import Row, device_of, panels, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart.
PUBLISHED, OURS, GREY = '#D55E00', '#0072B2', '#595959'
WIDTH, BAR_HEIGHT, FRAME_HEIGHT = 7.5, 0.34, 0.95  # inches
TITLE_WIDTH = 90  # characters of a line
ERROR_WIDTH = 60
ROOM = 1.45  # for what is written at the bars


def plot_rates(path: Path, rows: Sequence[Row]) -> None:
    """Draw the median of each case as a bar, least to greatest as a line on it.

    Args:
        path: PNG to write.
        rows: of `speed.results.read_rows`.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    groups = panels(rows)
    heights = [FRAME_HEIGHT + BAR_HEIGHT * len(group) for group in groups]
    devices = list(dict.fromkeys(map(device_of, rows)))
    with rc_context({'font.size': 9}):
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.8), layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, group in zip(axes, groups, strict=True):
            _draw(axis, group)
            title = title_of(group[0])
            axis.set_title(title if len(devices) == 1 else f'{title}\n{device_of(group[0])}')
        title = 'Training steps on synthetic batches'
        title += f': {devices[0]}' if len(devices) == 1 else ''
        figure.suptitle(textwrap.fill(title, TITLE_WIDTH))
        handles = [Patch(color=PUBLISHED), Patch(color=OURS)]
        names = ['the model as published', 'our model']
        figure.legend(handles, names, loc='outside lower center', ncols=2, frameon=False)
        data = io.BytesIO()
        figure.savefig(data, format='png', dpi=150)
    replace_file(path, data.getvalue())


def _draw(axis: 'Axes', rows: Sequence[Row]) -> None:
    for y, row in enumerate(rows):
        rates = row['images_per_second']
        if row['error']:
            text = textwrap.shorten(f'failed: {row["error"]}', ERROR_WIDTH)
            axis.annotate(_plain(text), (0, y), (4, 0), textcoords='offset points', **MIDDLE)
            continue
        median = statistics.median(rates)
        spread = [[median - min(rates)], [max(rates) - median]]
        code = row['options'].get('code')
        axis.barh(y, median, height=0.7, color=PUBLISHED if code == 'published' else OURS)
        axis.errorbar(median, y, xerr=spread, color='black', capsize=3, linewidth=1)
        ratio = '' if row['ratio'] is None else f' ({row["ratio"]:.2f} × {BASELINE})'
        text = f'{median:,.0f}{ratio}' if median >= 100 else f'{median:.3g}{ratio}'
        place = {'xytext': (6, 0), 'textcoords': 'offset points'}
        axis.annotate(text, (max(rates), y), **place, **MIDDLE)
    axis.set_yticks(range(len(rows)), [_plain(row['case']) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    greatest = max((rate for row in rows for rate in row['images_per_second']), default=1)
    axis.set_xlim(0, ROOM * greatest)
    axis.set_xlabel('images/s: median of the rounds, and least to greatest')
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(axis='x', color='#E0E0E0', linewidth=0.6)
    axis.set_axisbelow(True)


MIDDLE = {'va': 'center', 'fontsize': 8, 'color': GREY}


def _plain(text: str) -> str:
    """A dollar sign would begin a formula."""
    return text.replace('$', r'\$')

"""Charts of what is in a data set: labels, age by sex, and other groups, by split."""

import textwrap
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from data.tables.groups import UNKNOWN, natural_order
from system.pages import (
    FONT,
    NOT_FOR_CLINICAL_USE,
    NOTE,
    SMALL,
    TALLEST,
    figures_of_rows,
    shortened,
    split_pages,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {'positive': '#D55E00', 'uncertain': '#E69F00', 'negative': '#0072B2', 'blank': '#D9D9D9'}
OTHERS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9')  # of splits, or of sexes
MOST_SPLITS = 4  # next to each other
BAR, LINE = 0.24, 0.15  # height of a bar, and of a line of its name, in inches
LETTERS = 30  # in a line of a name


def plot_counts(
    counts: pd.DataFrame,
    ages: pd.DataFrame,
    labels: Sequence[str],
    use: str = NOT_FOR_CLINICAL_USE,
) -> dict[str, 'Figure']:
    """Draw the counts of a data set.

    Args:
        counts: `counts` of a `data.describe.description.Description`.
        ages: Images by split, age and sex: the columns split, age, sex, images.
        labels: Columns of the counts that are labels. The others are groups.
        use: What the images must not be used for.

    Returns:
        Figures by name: 'labels' (share of each value by label and split), 'ages' (images by age
        and sex, if an age is known) and 'groups' (share of each group by split); with several pages
        'labels_1', 'labels_2' and so on.
    """
    whole = counts[counts['column'] == counts['column'].iloc[0]].set_index('split')['images']
    shares = counts.assign(share=100 * counts['images'] / counts['split'].map(whole))
    rows = []
    for splits in split_pages([*whole.index], MOST_SPLITS):
        bar = _bar_height(labels)
        for some in split_pages(labels, int((TALLEST - NOTE - 1.3) / bar)):
            draw = partial(_plot_labels, shares=shares, labels=some, sizes=whole[splits])
            rows.append((1.3 + bar * len(some), draw))
    note = f'Share of the images of each split. {use}'
    figures = figures_of_rows('labels', rows, note)
    if {*ages['age']} - {UNKNOWN}:
        rows = [
            (2.4, partial(_plot_ages, ages=ages, splits=splits))
            for splits in split_pages([*whole.index], MOST_SPLITS)
        ]
        figures |= figures_of_rows('ages', rows, f'Images by age in years and sex. {use}')
    columns = [name for name in shares['column'].unique()[1:] if name not in labels]
    rows = []
    for column in columns:
        part = shares[shares['column'] == column]
        if {*part['group']} == {UNKNOWN}:
            continue
        names = sorted({*part['group']}, key=natural_order)
        bar = max(_bar_height(names), 0.1 * len(whole))  # each group has a bar for each split
        for groups in split_pages(names, int((TALLEST - NOTE - 0.95) / bar)):
            height = 0.8 + LINE * _wrapped(column).count('\n') + bar * len(groups)
            rows.append((height, partial(_plot_groups, part=part, groups=groups)))
    if rows:
        figures |= figures_of_rows('groups', rows, note)
    return figures


def _wrapped(name: str) -> str:
    """Return a name, or both ends of a long one, in one to three lines."""
    return textwrap.fill(shortened(name, 2 * LETTERS), LETTERS)


def _bar_height(names: Sequence[str]) -> float:
    """Return the height in inches that a bar with one of these names needs."""
    return max(BAR, LINE * max(1 + _wrapped(name).count('\n') for name in names))


def _plot_labels(
    row: Any, *, shares: pd.DataFrame, labels: Sequence[str], sizes: pd.Series
) -> None:
    """Draw a stacked bar for each label, with a panel for each split."""
    panels = row.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axis, (split, size) in zip(panels, sizes.items(), strict=True):
        of_split = shares[shares['split'] == split]
        table = of_split.pivot_table(index='column', columns='group', values='share')
        table = table.reindex(index=[*labels], columns=[*COLOURS]).fillna(0)
        table = table.rename(index=_wrapped)
        table.plot.barh(ax=axis, stacked=True, color=COLOURS, width=0.75, legend=False)
        axis.set_title(f'{split}: {size:,}', fontsize=FONT)
        axis.set_xlim(0, 100)
        _set_style(axis, xlabel='%')
    panels[0].invert_yaxis()
    handles, names = panels[0].get_legend_handles_labels()
    row.legend(handles, names, ncols=4, loc='outside upper center', fontsize=SMALL, frameon=False)


def _plot_ages(row: Any, *, ages: pd.DataFrame, splits: Sequence[str]) -> None:
    """Draw the images by age, with a bar for each sex and a panel for each split."""
    bands, sexes = (sorted({*ages[column]}, key=natural_order) for column in ('age', 'sex'))
    panels = row.subplots(1, len(splits), squeeze=False)[0]
    for axis, split in zip(panels, splits, strict=True):
        of_split = ages[ages['split'] == split]
        table = of_split.pivot_table(index='age', columns='sex', values='images', aggfunc='sum')
        table = table.reindex(index=bands, columns=sexes).fillna(0)
        table.plot.bar(ax=axis, color=[*OTHERS], width=0.8, rot=60, legend=False)
        axis.set_title(split, fontsize=FONT)
        axis.yaxis.get_major_locator().set_params(integer=True)
        _set_style(axis)
    panels[0].set_ylabel('images', fontsize=SMALL)
    handles, names = panels[0].get_legend_handles_labels()
    row.legend(handles, names, ncols=4, loc='outside upper center', fontsize=SMALL, frameon=False)


def _plot_groups(row: Any, *, part: pd.DataFrame, groups: Sequence[str]) -> None:
    """Draw the share of each group, with a bar for each split."""
    axis = row.subplots()
    table = part.pivot(index='group', columns='split', values='share').reindex(groups).fillna(0)
    table = table[[*part['split'].unique()]].rename(index=_wrapped)
    table.plot.barh(ax=axis, color=[*OTHERS], width=0.8, legend=False)
    axis.invert_yaxis()
    axis.set_title(_wrapped(part['column'].iloc[0]), fontsize=FONT, loc='left')
    _set_style(axis, xlabel='%')
    row.legend(loc='outside right upper', fontsize=SMALL, frameon=False)


def _set_style(axis: Any, xlabel: str = '') -> None:
    axis.set_xlabel(xlabel, fontsize=SMALL)
    axis.set_ylabel('')
    axis.tick_params(labelsize=SMALL)
    axis.spines[['top', 'right']].set_visible(False)

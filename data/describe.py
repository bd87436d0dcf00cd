"""Describe a data set: splits, labels by group, and training targets."""

import io
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import Config, require
from data.chexpert import csv_names
from data.datasets import DATASETS
from data.groups import group_columns, standard_groups
from data.labels import (
    NEGATIVE,
    POSITIVE,
    UNCERTAIN,
    UNCERTAIN_CLASS,
)
from data.records import Records, select_views
from data.splits import split_holdout, training_records
from data.tasks import task_of
from system.files import replace_files

# Kinds of cells of the CSV file, with colours by Okabe and Ito for colour-blind readers.
KINDS = {'positive': '#D55E00', 'uncertain': '#F0E442', 'negative': '#0072B2', 'blank': '#DDDDDD'}
# Colours and markers of groups.
GROUP_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#000000', '#E69F00')
GROUP_MARKERS = 'os^DvP*'
BY_RANK = ('blank', 'negative', 'uncertain', 'positive')  # a study has its highest-ranked cell
TARGETS = ('positive', 'negative', 'soft', 'third class')
SHARES = {'positive': 'positive share', 'negative': 'negative share'}  # of all but the left out
EVERYTHING = 'All'  # name of the column and group of counts over a whole split
UNKNOWN = 'unknown'
BOTH = 'train + holdout'  # name of the training CSV before patients are held out
RACE = 'PRIMARY_RACE'  # column of CheXpert's demographics file
TABLES = ('splits', 'counts', 'targets', 'ages')


@dataclass(frozen=True)
class Description:
    """Tables of counts; `counts` has a row for each split, level, group and label."""

    splits: pd.DataFrame  # split, images, studies, patients, shares of these, views
    counts: pd.DataFrame  # split, level, column, group, label, then KINDS
    # split, label, policy, then SHARES, TARGETS and 'left out'; see `_count_all_targets`
    targets: pd.DataFrame
    ages: pd.DataFrame  # split, sex, age in years, number of images, without unknown ages
    notes: list[str]


def build_description(config: Config) -> Description:
    """Describe the tables of the data set in DATA.DATA_PATH.

    The images need not exist, unless a CSV file has a column `Study` in place of `Path`.
    """
    sets, counts = _read_sets(config), []
    demographics = config.DATA.DEMOGRAPHICS
    further = config.EVAL.GROUPS or ([RACE] if demographics else [])
    for name, records in sets.items():
        groups = standard_groups(records, config.EVAL.AGE_BANDS)
        groups |= group_columns(records, further, demographics=demographics)
        counts.append(count_labels(records, groups).assign(split=name))
    counts = pd.concat(counts)[['split', 'level', 'column', 'group', 'label', *KINDS]]
    ages = pd.concat({name: count_ages(records) for name, records in sets.items()}, names=['split'])
    ages = ages.reset_index('split').reset_index(drop=True)
    splits = {name: records for name, records in sets.items() if name != BOTH}
    targets, notes = _count_all_targets(config, splits), [_describe_shared(splits)]
    if len(targets):
        notes.append(_describe_targets(config))
    return Description(count_splits(splits), counts, targets, ages, notes)


def count_splits(splits: Mapping[str, Records]) -> pd.DataFrame:
    """Count the images, studies, patients and views of each split."""
    table = pd.DataFrame(
        {
            'split': name,
            'images': len(records),
            'studies': len(set(records.study)),
            'patients': len(set(records.patient)),
            'frontal': int((records.view == 'frontal').sum()),
            'lateral': int((records.view == 'lateral').sum()),
        }
        for name, records in splits.items()
    )
    for unit in ('images', 'studies', 'patients'):
        table[f'of all {unit}'] = table[unit] / table[unit].sum()
    return table


def count_labels(records: Records, groups: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Count the kinds of cells of each label over images and studies, overall and by group.

    A study belongs to the groups of all its images. Within a group it has the labels of its images
    in this group.

    Args:
        records: Records of N images.
        groups: Groups [N] by column, '' for an unknown group.

    Returns:
        Table with the columns level, column, group, label and KINDS.
    """
    values = (NEGATIVE, UNCERTAIN, POSITIVE)
    ranks = np.select([records.labels == value for value in values], [1, 2, 3], 0)
    images = pd.DataFrame(ranks.astype(np.int8), columns=records.label_names)
    tables = []
    for column, names in {EVERYTHING: np.full(len(records), EVERYTHING), **groups}.items():
        names = pd.Series(names, dtype=object).replace('', UNKNOWN)
        studies = images.groupby([names, records.study]).max()
        levels = {
            'image': (images, names.to_numpy()),
            'study': (studies, studies.index.get_level_values(0)),
        }
        for level, (cells, members) in levels.items():
            by_kind = {
                kind: (cells == rank).groupby(members).sum().stack()
                for rank, kind in enumerate(BY_RANK)
            }
            table = pd.DataFrame(by_kind).rename_axis(['group', 'label']).reset_index()
            tables.append(table.assign(level=level, column=column))
    return pd.concat(tables, ignore_index=True)


def count_ages(records: Records) -> pd.DataFrame:
    """Count the images by sex and age in years; age 0 is a missing age in CheXpert."""
    table = pd.DataFrame({'sex': records.sex, 'age': np.floor(records.age)})
    known = table[table['age'] > 0].astype({'age': int})
    return known.value_counts().sort_index().reset_index(name='images')


def count_targets(config: Config, records: Records) -> pd.DataFrame:
    """Count the targets of each label over the images of a split.

    Shares are those of the images with a target; without any they are NaN.
    """
    task = task_of(config)
    # The predictions do not matter, because soft targets are only counted.
    targets = task.learned(records, np.full(records.labels.shape, 0.5))
    kinds = (targets == 1, targets == 0, targets == UNCERTAIN_CLASS, np.isnan(targets))
    positive, negative, third_class, left_out = (kind.sum(axis=0) for kind in kinds)
    soft = len(targets) - positive - negative - third_class - left_out
    counts = dict(zip(TARGETS, (positive, negative, soft, third_class), strict=True))
    policies = [task.policies.get(label, 'none') for label in task.labels]
    table = pd.DataFrame({'label': task.labels, 'policy': policies} | counts)
    for kind, title in SHARES.items():
        table[title] = table[kind] / table[[*TARGETS]].sum(axis=1)
    return table.assign(**{'left out': left_out})


def format_description(description: Description) -> str:
    """Format the tables as text, without the counts by group and without rows of zeros."""
    counts, parts = description.counts, [_text(description.splits)]
    overall = counts[counts['column'] == EVERYTHING]
    for (name, level), table in overall.groupby(['split', 'level'], sort=False):
        parts.append(f'{name}, {level} level\n{_label_rows(table[["label", *KINDS]])}')
    if len(description.targets):
        parts.append(f'targets\n{_label_rows(description.targets)}')
    return '\n\n'.join([*parts, '\n'.join(description.notes)])


def save_description(description: Description, folder: str | Path) -> None:
    """Write the tables as CSV files and JSON, labels.png and groups.png; all or none of them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: getattr(description, name) for name in TABLES}
    files = {f'{name}.csv': table.to_csv(index=False) for name, table in tables.items()}
    contents = {name: table.to_dict('records') for name, table in tables.items()}
    contents['notes'] = description.notes
    files['description.json'] = json.dumps(contents, indent=1) + '\n'
    files |= {'labels.png': plot_labels(description), 'groups.png': plot_groups(description)}
    replace_files({folder / name: data for name, data in files.items()})


def plot_labels(description: Description) -> bytes:
    """Plot the kinds of cells of each label in % of the images, one panel per split; return PNG."""
    splits, counts = description.splits, description.counts
    figure = _new_figure(3 + 2.6 * len(splits), 5.6)
    axes = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    counts = counts[(counts['column'] == EVERYTHING) & (counts['level'] == 'image')]
    for axis, split in zip(axes, splits.itertuples(), strict=True):
        table = counts[counts['split'] == split.split].set_index('label')
        left = 0
        for kind, colour in KINDS.items():
            share = 100 * table[kind] / split.images
            style = {'color': colour, 'edgecolor': 'white', 'linewidth': 0.5, 'label': kind}
            axis.barh(table.index, share, left=left, **style)
            left = left + share
        for label, positive in table['positive'].items():
            axis.text(102, label, f'{positive:,}', va='center', fontsize=8)
        axis.set_title(f'{split.split}\n{split.images:,} images, number positive', fontsize=10)
        axis.set(xlim=(0, 100), xlabel='% of images')
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].invert_yaxis()
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc='outside upper center', ncols=len(KINDS), frameon=False)
    return _png(figure)


def plot_groups(description: Description) -> bytes:
    """Plot age by sex, images by group and labels by group of the first split; return a PNG."""
    counts, ages = description.counts, description.ages
    split = counts['split'].iloc[0]
    counts = counts[(counts['split'] == split) & (counts['level'] == 'image')]
    tables = dict(list(counts.groupby('column', sort=False)))
    images = tables.pop(EVERYTHING)[[*KINDS]].iloc[0].sum()
    sizes = {column: _group_sizes(table) for column, table in tables.items()}
    counted = [column for column in tables if column not in ('Sex', 'Age')]
    figure = _new_figure(4 * len(tables), 9.5)
    figure.suptitle(f'{split}: {images:,} images')
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.7))
    first, *others = top.subplots(1, 1 + len(counted), squeeze=False)[0]
    _plot_ages(first, ages[ages['split'] == split])
    for axis, column in zip(others, counted, strict=True):
        axis.barh(sizes[column].index, sizes[column], color=GROUP_COLOURS[0])
        axis.set(title=_title(column, tables[column]), xlabel='images')
        axis.invert_yaxis()
    axes = bottom.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axis, (column, table) in zip(axes, tables.items(), strict=True):
        positive = table.pivot(index='label', columns='group', values='positive')
        for number, (group, size) in enumerate(sizes[column].items()):
            share = 100 * positive.loc[table['label'].unique(), group] / size
            style = {'color': GROUP_COLOURS[number], 'alpha': 0.8, 'label': f'{group} ({size:,})'}
            axis.plot(share, share.index, GROUP_MARKERS[number], **style)
        axis.set(title=_title(column, table), xlabel='% of images positive', xlim=(0, None))
        axis.grid(axis='y', color='0.9')
        axis.legend(loc='upper center', bbox_to_anchor=(0.5, -0.1), frameon=False, fontsize=8)
    axes[0].invert_yaxis()
    for axis in (first, *others, *axes):
        axis.spines[['top', 'right']].set_visible(False)
    return _png(figure)


def _plot_ages(axis: Any, ages: pd.DataFrame) -> None:
    """Plot the number of images by age, in bands of 5 years, with a bar for each sex."""
    bands = ages.assign(age=ages['age'] // 5 * 5).groupby(['sex', 'age'])['images'].sum()
    for number, (sex, images) in enumerate(bands.groupby('sex')):
        years = images.index.get_level_values('age') + 1.6 * number + 0.9
        axis.bar(years, images, width=1.6, color=GROUP_COLOURS[number], label=sex)
    axis.set(title='Age by sex', xlabel='years' if len(ages) else 'unknown', ylabel='images')
    if len(ages):
        axis.legend(frameon=False)


def _group_sizes(table: pd.DataFrame) -> pd.Series:
    """Return the number of images of the largest groups, one for each marker of a figure."""
    sizes = table.drop_duplicates('group').set_index('group')[[*KINDS]].sum(axis=1)
    return sizes[sizes.index.isin(sizes.nlargest(len(GROUP_MARKERS)).index)]


def _title(column: str, table: pd.DataFrame) -> str:
    number, shown = table['group'].nunique(), len(GROUP_MARKERS)
    return f'{column}: {shown} largest of {number} groups' if number > shown else column


def _new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained')


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    return buffer.getvalue()


def _read_sets(config: Config) -> dict[str, Records]:
    """Read the splits that exist, and BOTH if patients are held out."""
    data, sets, dataset = config.DATA, {}, DATASETS[config.DATA.DATASET]
    allowed = 'a task whose columns are not numbers, because only the marks of labels are counted'
    require(not task_of(config).cells.numbers, config, 'DATA.TASK', allowed)
    splits = dataset.splits(config) if dataset.splits else ('train', 'valid', 'test')
    options = {'labels': task_of(config).columns, 'look_up': 'none'}
    options['optional'] = dataset.splits is None
    for split in splits if dataset.labelled else ():
        records = dataset.read(config, data.DATA_PATH, split, **options)
        if records is None:
            continue
        if split == 'train' and data.HOLDOUT_FRACTION:
            sets[BOTH] = records
            sets['train'], sets['holdout'] = split_holdout(records, data.HOLDOUT_FRACTION)
        else:
            sets[split] = records
    if not sets:
        names = ', '.join(csv_names(config).values())
        raise ValueError(
            f'DATA.DATASET {data.DATASET}: DATA.DATA_PATH {data.DATA_PATH} has no labels to count '
            f'({names}, or the tables of MIMIC-CXR or of a layout)'
        )
    return sets


def _count_all_targets(config: Config, splits: Mapping[str, Records]) -> pd.DataFrame:
    """Count the targets of train and, in a binary task, of the scored splits."""
    data, tables = config.DATA, [pd.DataFrame()]
    for name, records in splits.items():
        if name == 'train':
            records = training_records(config, records)
        elif task_of(config).has_policies:
            continue
        else:
            records = select_views(records, config.EVAL.VIEWS or data.VIEWS)
        table = count_targets(config, records)
        table.insert(0, 'split', name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _describe_targets(config: Config) -> str:
    data = config.DATA
    views = f'DATA.VIEWS {data.VIEWS}' + f', EVAL.VIEWS {config.EVAL.VIEWS}' * bool(
        config.EVAL.VIEWS
    )
    return (
        f'targets: {views}, DATA.TASK {data.TASK}, DATA.BLANK {data.BLANK}; soft: between 0 and 1, '
        'left out: excluded from the loss or from the scores'
    )


def _describe_shared(splits: Mapping[str, Records]) -> str:
    """Describe how many patients each pair of splits shares, which should be none."""
    patients = {name: set(records.patient) for name, records in splits.items()}
    shared = [
        f'{one} and {other} {len(patients[one] & patients[other])}'
        for one, other in combinations(patients, 2)
    ]
    return f'patients in two splits: {", ".join(shared) or "there is one split"}'


def _label_rows(table: pd.DataFrame) -> str:
    """Format a table of labels; list labels that only have counts in the last column below it."""
    empty = table.iloc[:, :-1].sum(axis=1, numeric_only=True) == 0
    kind, names = table.columns[-1], ', '.join(table['label'][empty])
    line = textwrap.fill(f'{kind} everywhere: {names}', 100) if names else ''
    return '\n'.join(filter(None, ['' if empty.all() else _text(table[~empty]), line]))


def _text(table: pd.DataFrame) -> str:
    """Format a table with separators of thousands, and shares in per cent."""
    forms = {'i': '{:,}'.format, 'f': '{:.1%}'.format}
    formatters = [forms.get(dtype.kind, str) for dtype in table.dtypes]
    return table.to_string(index=False, formatters=formatters)

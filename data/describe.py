"""Describe a data set: splits, labels by group, and training targets."""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from config import Config, require
from data.chexpert import csv_names
from data.datasets import DATASETS
from data.figures import (
    EVERYTHING,
    KINDS,
    encode_figure,
    plot_examples,
    plot_groups,
    plot_labels,
    plot_steps,
)
from data.groups import UNKNOWN, add_demographics, all_groups, read_demographics
from data.labels import (
    NEGATIVE,
    POSITIVE,
    UNCERTAIN,
    UNCERTAIN_CLASS,
)
from data.layouts import SPLITS
from data.preprocess import Preprocess
from data.reading import read_part
from data.records import Records, select_views
from data.splits import split_patients, training_records
from data.tasks import task_of
from system.files import replace_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BY_RANK = ('blank', 'negative', 'uncertain', 'positive')  # a study has its highest-ranked cell
TARGETS = ('positive', 'negative', 'soft', 'third class')
SHARES = {'positive': 'positive share', 'negative': 'negative share'}  # of all but the left out
BOTH = 'train + holdout'  # name of the training patients before some are held out
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
    counts, demographics = [], config.DATA.DEMOGRAPHICS
    sets = {
        name: add_demographics(records, demographics) for name, records in read_sets(config).items()
    }
    further = config.EVAL.GROUPS or _race(next(iter(sets.values())), demographics)
    for name, records in sets.items():
        groups = all_groups(records, config.EVAL.AGE_BANDS, further, demographics)
        counts.append(count_labels(records, groups).assign(split=name))
    counts = pd.concat(counts)[['split', 'level', 'column', 'group', 'label', *KINDS]]
    ages = pd.concat({name: count_ages(records) for name, records in sets.items()}, names=['split'])
    ages = ages.reset_index('split').reset_index(drop=True)
    splits = {name: records for name, records in sets.items() if name != BOTH}
    targets, notes = _count_all_targets(config, splits), [_describe_shared(splits)]
    if len(targets):
        notes.append(_describe_targets(config))
    if demographics:
        notes.append(f'sex and age come from {demographics} where the data set has neither')
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


def save_description(
    description: Description, folder: str | Path, figures: Mapping[str, 'Figure'] | None = None
) -> list[str]:
    """Write the tables as CSV files and JSON, and the figures as PNG and SVG; all or none of them.

    Args:
        description: Tables, which are also drawn as the figures `labels` and `groups`.
        folder: Folder, which is created.
        figures: Further figures by name.

    Returns:
        Names of the files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: getattr(description, name) for name in TABLES}
    files = {f'{name}.csv': table.to_csv(index=False) for name, table in tables.items()}
    contents = {name: table.to_dict('records') for name, table in tables.items()}
    contents['notes'] = description.notes
    files['description.json'] = json.dumps(contents, indent=1) + '\n'
    counts = description.counts
    drawn = {
        'labels': plot_labels(description.splits, counts),
        'groups': plot_groups(counts, description.ages),
    }
    for name, figure in (drawn | dict(figures or {})).items():
        files |= {f'{name}{suffix}': data for suffix, data in encode_figure(figure).items()}
    replace_files({folder / name: data for name, data in files.items()})
    return list(files)


def plot_images(config: Config, count: int) -> dict[str, 'Figure']:
    """Return figures of the first split: examples of each label, and the steps of DATA.PREPROCESS.

    Args:
        config: Run configuration. DATA.VIEWS selects the images, and SEED those that are drawn.
        count: Number of images for each label, and of images with their steps.
    """
    records = select_views(next(iter(read_sets(config).values())), config.DATA.VIEWS)
    figures = {'examples': plot_examples(records, count, config.SEED)}
    if config.DATA.PREPROCESS:
        figures['preprocess'] = plot_steps(records, Preprocess(config), count, config.SEED)
    return figures


def read_sets(config: Config) -> dict[str, Records]:
    """Read the splits of a run that exist, and BOTH if patients are held out."""
    data, sets, dataset = config.DATA, {}, DATASETS[config.DATA.DATASET]
    allowed = 'a task whose columns are not numbers, because only the marks of labels are counted'
    require(not task_of(config).cells.numbers, config, 'DATA.TASK', allowed)
    options = {'labels': task_of(config).columns, 'look_up': 'none'}
    for split in SPLITS if dataset.labelled else ():
        optional = dataset.splits is None or split not in dataset.splits(config)
        records = read_part(config, data.DATA_PATH, split, optional=optional, **options)
        if records is None:
            continue
        if split == 'train' and data.HOLDOUT_FRACTION:
            names = ('train', 'holdout', 'internal')
            parts = zip(names, split_patients(config, records), strict=True)
            sets |= {BOTH: records} | {name: part for name, part in parts if len(part)}
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


def _race(records: Records, demographics: str) -> list[str]:
    """Return the column of CheXpert's demographics that is counted by default, if it exists."""
    has_race = demographics and RACE in read_demographics(records, demographics)
    return [RACE] if has_race else []


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

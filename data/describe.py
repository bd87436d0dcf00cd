"""What a data set in CheXpert's layout holds: splits, labels by group, and training targets."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from config import Config
from data.labels import (
    BLANK,
    LABELS,
    NEGATIVE,
    POSITIVE,
    UNCERTAIN,
    UNCERTAIN_CLASS,
    find_task,
    label_policies,
    scored_targets,
    task_labels,
    training_targets,
)
from data.records import (
    Records,
    group_columns,
    read_csv,
    split_holdout,
    standard_groups,
    training_records,
)

# What a cell of the CSV says. Colours by Okabe and Ito, told apart without red or green.
KINDS = {'positive': '#D55E00', 'uncertain': '#F0E442', 'negative': '#0072B2', 'blank': '#DDDDDD'}
TARGETS = ('positive', 'negative', 'soft', 'third class', 'left out')
EVERYTHING = 'All'  # column and group of the counts over a whole split
UNKNOWN = 'unknown'
BOTH = 'train + holdout'  # the training CSV before patients are held out


@dataclass(frozen=True)
class Description:
    """Tables of counts; `counts` has a row for each split, level, group and label."""

    splits: pd.DataFrame  # split, images, studies, patients, shares of these, views
    counts: pd.DataFrame  # split, level, column, group, label, then KINDS
    targets: pd.DataFrame  # label, policy, then TARGETS: of the images that are trained on
    notes: list[str]


def build_description(config: Config) -> Description:
    """Describe the CSV files of DATA.DATA_PATH; the images need not be there.

    Only a file of studies (`Study` in place of `Path`) needs them: its images are those on disk.
    """
    sets = _read_sets(config)
    splits = {name: records for name, records in sets.items() if name != BOTH}
    counts, notes = [], [_describe_shared(splits)]
    for name, records in sets.items():
        groups = standard_groups(records, config.EVAL.AGE_BANDS) | group_columns(
            records, config.EVAL.GROUPS, demographics=config.DATA.DEMOGRAPHICS
        )
        table, differing = count_labels(records, groups)
        table.insert(0, 'split', name)
        counts.append(table)
        notes.append(
            f'{name}: labels that differ between the images of a study: {differing}; images of '
            f'age 0, which counts as unknown: {(records.age == 0).sum()}'
        )
    targets = pd.DataFrame()
    if 'train' in splits:
        targets, note = _training_table(config, splits['train'])
        notes.append(note)
    return Description(count_splits(splits), pd.concat(counts), targets, notes)


def count_splits(splits: Mapping[str, Records]) -> pd.DataFrame:
    """Images, studies, patients and views of each split, and its share of all splits."""
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


def count_labels(records: Records, groups: Mapping[str, np.ndarray]) -> tuple[pd.DataFrame, int]:
    """Count what the cells say, over images and over studies, overall and by group.

    A study belongs to each group that one of its images is in, and is labelled there by its
    images of that group: with views as groups, a study of both views counts in both.

    Args:
        records: the images.
        groups: column -> [N] text, '' where unknown.

    Returns:
        The table (level, column, group, label, then KINDS), and how many labels differ between
        the images of a study.
    """
    studies = pd.factorize(records.study)[0]
    groups = {EVERYTHING: np.full(len(records), EVERYTHING, object), **groups}
    tables = []
    for column, values in groups.items():
        codes, names = pd.factorize(np.where(values == '', UNKNOWN, values))
        for group in sorted(names, key=lambda name: (name == UNKNOWN, name)):
            members = codes == np.flatnonzero(names == group)[0]
            labels = records.labels[members]
            by_level = {'image': labels, 'study': study_labels(labels, studies[members])[0]}
            for level, rows in by_level.items():
                place = {'level': level, 'column': column, 'group': group}
                tables.append(_count_kinds(rows).assign(**place))
    order = ['level', 'column', 'group', 'label', *KINDS]
    differing = study_labels(records.labels, studies)[1]
    return pd.concat(tables, ignore_index=True)[order], differing


def study_labels(labels: np.ndarray, studies: np.ndarray) -> tuple[np.ndarray, int]:
    """One row a study: positive goes before uncertain, negative, blank, in that order.

    Args:
        labels: [N, K] of the images.
        studies: [N] which study each image is of.

    Returns:
        [S, K] in the order of the sorted studies, and the number of its entries on which the
        study's images do not agree.
    """
    values = np.array([BLANK, NEGATIVE, UNCERTAIN, POSITIVE], np.float32)
    ranks = np.select([labels == value for value in values[1:]], [1, 2, 3], 0).astype(np.int8)
    order = np.argsort(studies, kind='stable')
    first = np.unique(studies[order], return_index=True)[1]
    highest = np.maximum.reduceat(ranks[order], first)
    lowest = np.minimum.reduceat(ranks[order], first)
    return values[highest], int((highest != lowest).sum())


def count_targets(targets: np.ndarray) -> pd.DataFrame:
    """Count the training targets of each label by what they are."""
    kinds = (targets == 1, targets == 0, targets == UNCERTAIN_CLASS, np.isnan(targets))
    positive, negative, third_class, left_out = (kind.sum(axis=0) for kind in kinds)
    soft = len(targets) - positive - negative - third_class - left_out
    return pd.DataFrame(
        dict(zip(TARGETS, (positive, negative, soft, third_class, left_out), strict=True))
    )


def format_description(description: Description) -> str:
    """The tables as text: of whole CSV files; by group, shares in the first of them."""
    counts, parts = description.counts, [_text(description.splits)]
    first = counts['split'].iloc[0]
    in_first = ('train', 'holdout') if first == BOTH else ()
    overall = counts[(counts['column'] == EVERYTHING) & ~counts['split'].isin(in_first)]
    for name, table in overall.groupby('split', sort=False):
        wide = table.pivot(index='label', columns='level', values=list(KINDS)).loc[list(LABELS)]
        wide = wide.swaplevel(axis=1)[['image', 'study']].rename_axis(columns=(None, None))
        wide = wide.rename(columns={'image': 'images', 'study': 'studies'}, level=0)
        parts.append(f'{name}\n{_text(wide.reset_index())}')
    images = counts[(counts['split'] == first) & (counts['level'] == 'image')]
    for column, table in images.groupby('column', sort=False):
        if column != EVERYTHING:
            parts.append(f'{first}, {column}: images that are positive\n{_text(_shares(table))}')
    if len(description.targets):
        parts.append(f'training targets\n{_text(description.targets)}')
    return '\n\n'.join([*parts, '\n'.join(description.notes)])


def save_description(description: Description, folder: str | Path) -> None:
    """Write splits.csv, counts.csv, targets.csv, description.json and labels.png."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: getattr(description, name) for name in ('splits', 'counts', 'targets')}
    for name, table in tables.items():
        table.to_csv(folder / f'{name}.csv', index=False)
    contents = {name: table.to_dict('records') for name, table in tables.items()}
    contents['notes'] = description.notes
    (folder / 'description.json').write_text(json.dumps(contents, indent=1) + '\n')
    plot_labels(folder / 'labels.png', description)


def plot_labels(path: str | Path, description: Description) -> None:
    """Draw one panel a split: what the cells of each label say, as shares of the images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    splits, counts = description.splits, description.counts
    figure = Figure(figsize=(3 + 2.6 * len(splits), 5.6), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    counts = counts[(counts['column'] == EVERYTHING) & (counts['level'] == 'image')]
    for axis, split in zip(axes, splits.itertuples(), strict=True):
        table = counts[counts['split'] == split.split].set_index('label').loc[list(LABELS)]
        left = np.zeros(len(LABELS))
        for kind, colour in KINDS.items():
            share = 100 * table[kind].to_numpy() / split.images
            style = {'color': colour, 'edgecolor': 'white', 'linewidth': 0.5, 'label': kind}
            axis.barh(range(len(LABELS)), share, left=left, **style)
            left += share
        for place, positive in enumerate(table['positive']):
            axis.text(102, place, f'{positive:,}', va='center', fontsize=8)
        axis.text(102, -0.85, 'positive', va='center', fontsize=8)
        axis.set_title(f'{split.split}\n{split.images:,} images', fontsize=10)
        axis.set(xlim=(0, 100), ylim=(len(LABELS) - 0.4, -0.6), xlabel='% of images')
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set_yticks(range(len(LABELS)), LABELS)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc='outside upper center', ncols=len(KINDS), frameon=False)
    figure.savefig(path, dpi=150)


def _read_sets(config: Config) -> dict[str, Records]:
    """The splits whose CSV is there, and before them the training CSV as a whole."""
    data, sets = config.DATA, {}
    names = {'train': data.TRAIN_CSV, 'valid': data.VALID_CSV, 'test': data.TEST_CSV}
    for split, csv_name in names.items():
        if not (Path(data.DATA_PATH) / csv_name).is_file():
            continue
        records = read_csv(data.DATA_PATH, csv_name, image_suffix=data.IMAGE_SUFFIX, look_up='none')
        if split == 'train' and data.HOLDOUT_FRACTION:
            sets[BOTH] = records
            sets['train'], sets['holdout'] = split_holdout(records, data.HOLDOUT_FRACTION)
        else:
            sets[split] = records
    if not sets:
        raise ValueError(f'DATA.DATA_PATH: no {", ".join(names.values())} in {data.DATA_PATH}')
    return sets


def _describe_shared(splits: Mapping[str, Records]) -> str:
    """How many patients each two splits share, which should be none."""
    patients = {name: set(records.patient) for name, records in splits.items()}
    shared = [
        f'{one} and {other} {len(patients[one] & patients[other])}'
        for one, other in combinations(patients, 2)
    ]
    return f'patients in two splits: {", ".join(shared) or "there is one split"}'


def _training_table(config: Config, records: Records) -> tuple[pd.DataFrame, str]:
    """Counts of the targets of the images that a run with this config trains on."""
    data = config.DATA
    records = training_records(config, records)
    if find_task(data.TASK).uses_policies:
        policies = label_policies(data.UNCERTAIN, data.UNCERTAIN_BY_LABEL)
        targets = training_targets(
            records.labels,
            policies,
            blank=data.BLANK,
            rows=records.row,
            seed=config.SEED,
            # Soft targets are only counted: their values do not matter.
            predictions=np.full(records.labels.shape, 0.5),
        )
    else:
        policies = ['none']
        targets = scored_targets(records.labels, task=data.TASK, blank=data.BLANK)
    table = count_targets(targets)
    table.insert(0, 'label', task_labels(data.TASK))
    table.insert(1, 'policy', policies)
    note = (
        f'training targets: {len(records):,} images of train (DATA.VIEWS {data.VIEWS}, DATA.TASK '
        f'{data.TASK}, DATA.BLANK {data.BLANK}); soft: between 0 and 1, left out: no loss'
    )
    return table, note


def _count_kinds(labels: np.ndarray) -> pd.DataFrame:
    kinds = (labels == POSITIVE, labels == UNCERTAIN, labels == NEGATIVE, np.isnan(labels))
    counts = np.stack([kind.sum(axis=0) for kind in kinds], axis=1)  # [K, 4]
    return pd.DataFrame(counts, columns=list(KINDS)).assign(label=LABELS)


def _shares(counts: pd.DataFrame) -> pd.DataFrame:
    """Labels by the groups of one column: shares of positive images, and the images of each."""
    images = counts[list(KINDS)].sum(axis=1)
    counts = counts.assign(share=counts['positive'] / images)
    names = {
        group: f'{group} (n = {images[rows.index[0]]:,})'
        for group, rows in counts.groupby('group', sort=False)
    }
    table = counts.pivot(index='label', columns='group', values='share').loc[list(LABELS)]
    return table[list(names)].rename(columns=names).rename_axis(columns=None).reset_index()


def _text(table: pd.DataFrame) -> str:
    """A table for people: thousands apart, shares in per cent."""
    forms = {'i': '{:,}'.format, 'f': '{:.1%}'.format}
    formatters = [forms.get(dtype.kind, str) for dtype in table.dtypes]
    return table.to_string(index=False, formatters=formatters)

"""Describe a data set: what each split contains, and training targets."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from config import Config
from data.describe.figures import plot_examples, plot_steps
from data.describe.observations import MEANINGS, SOURCE
from data.images.preprocess import Preprocess
from data.tables.chexpert import SPLITS, open_data_set
from data.tables.groups import UNKNOWN, add_demographics, all_groups
from data.tables.labels import NEGATIVE, NO_FINDING, POSITIVE, UNCERTAIN, UNCERTAIN_CLASS
from data.tables.reading import mark_left_out, report_names_not_found
from data.tables.records import OTHER_VIEW, Records, csv_names, select_views, task_of
from data.tables.splits import describe_subset, split_patients, training_records
from data.tables.table import refuse
from system.files import replace_files
from system.pages import PACKAGES, encode_figure, latex_table, markdown_table, note_on_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ON_FAULT = partial(refuse, logger=logging.getLogger(__name__))
UNITS = ('images', 'studies', 'patients')
KINDS = {'positive': POSITIVE, 'uncertain': UNCERTAIN, 'negative': NEGATIVE}  # others are blank
EVERYTHING = 'All'  # name of the column and group of counts over a whole split
TARGETS = ('positive', 'negative', 'soft', 'third class')
TABLES = ('counts', 'targets')
SETS = {'full': 'full set', 'sub-sample': 'sub-sample', 'train': 'train', 'holdout': 'held out'}
SETS |= {'valid': 'validation', 'test': 'test'}  # split -> name in tables, in order
OF_GROUPS = (
    'Groups: images, and their share of the images of the split. The images of a patient may be in '
    'several groups.'
)


@dataclass(frozen=True)
class Description:
    """Tables of counts; `counts` has a row for each split and group.

    Labels are columns like the others. Their groups are positive, uncertain, negative and blank.
    """

    counts: pd.DataFrame  # split, column, group, then UNITS
    # split, label, policy, TARGETS, their 'total', 'positive share' of it, and 'left out'; see
    # `_count_all_targets`
    targets: pd.DataFrame
    # image, a column for each label, split, sub-sample; None for a task with policies
    images: pd.DataFrame | None
    notes: list[str]
    about_targets: str  # options that the targets depend on, or ''
    ages: pd.DataFrame  # split, age, sex, images
    labels: tuple[str, ...]  # columns of `counts` that are labels
    use: str  # what the images must not be used for


def build_description(config: Config) -> Description:
    """Describe the tables of the data set in DATA.DATA_PATH.

    The images need not exist, unless a CSV file has a column `Study` in place of `Path`.
    """
    counts, ages, labels = [], [], {}
    demographics = config.DATA.DEMOGRAPHICS
    sets = {
        name: add_demographics(records, demographics) for name, records in read_sets(config).items()
    }
    for name, records in sets.items():
        groups = all_groups(records, config.EVAL.GROUPS, demographics)
        counts.append(count_groups(records, groups).assign(split=name))
        by_age = pd.DataFrame({'age': groups['Age'], 'sex': groups['Sex']}, dtype=object)
        by_age = by_age.replace('', UNKNOWN).groupby(['age', 'sex']).size()
        ages.append(by_age.reset_index(name='images').assign(split=name))
        labels |= dict.fromkeys(records.label_names)
    counts = pd.concat(counts)[['split', 'column', 'group', *UNITS]]
    targets, notes, about_targets = _count_all_targets(config, sets), [], ''
    if len(targets):
        data, scored = config.DATA, config.EVAL.VIEWS
        about_targets = (
            f'targets: DATA.VIEWS {data.VIEWS}{f", EVAL.VIEWS {scored}" if scored else ""}, '
            f'DATA.TASK {data.TASK}, DATA.BLANK {data.BLANK}; soft: between 0 and 1, left out: '
            'excluded from the loss or from the scores'
        )
    if demographics:
        notes.append(f'sex and age come from {demographics} where the data set has neither')
    images = None if task_of(config).has_policies else _list_images(config, sets)
    use = note_on_images(path for records in sets.values() for path in records.path)
    return Description(
        counts, targets, images, notes, about_targets, pd.concat(ages), tuple(labels), use
    )


def read_table_of_run(config: Config) -> pd.DataFrame:
    """Return the images that a run reads as one table in CheXpert's form, with a column Split.

    Rows keep their numbers as the index, unless two splits have tables of their own.
    """
    tables, read, data_set = [], [], open_data_set(config)
    options = {'labels': task_of(config).columns, 'optional': True, 'look_up': 'none'}
    for split in SPLITS:
        records = data_set.read(split, **options)
        if records is None:
            continue
        records = mark_left_out(config, records)
        read.append(records)
        records = records.kept()
        is_alone = (records.study == records.path) | (records.study == records.file)
        studies = [study.rpartition('/')[2] for study in records.study]
        table = pd.DataFrame(
            {
                'Path': records.path,
                'Split': split,
                'Patient': records.patient,
                'Study': np.where(is_alone, '', studies),
                'Sex': records.sex,
                'Age': records.age,
                'Frontal/Lateral': [view.capitalize() or OTHER_VIEW for view in records.view],
                'AP/PA': records.ap_pa,
            },
            records.sample,
        )
        labels = pd.DataFrame(records.labels, table.index, records.label_names)
        groups = pd.DataFrame(records.groups, table.index, records.group_names)
        tables.append(table.join(labels).join(groups))
    if not tables:
        raise ValueError(f'DATA.DATA_PATH {config.DATA.DATA_PATH} has no table that a run reads')
    report_names_not_found(config, read, ON_FAULT)
    table = pd.concat(tables)
    return table if table.index.is_unique else table.reset_index(drop=True)


def count_groups(records: Records, groups: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Count images, studies and patients: all of them, by group, and by the value of each label.

    A study or a patient is counted in every group that one of its images is in.

    Args:
        records: Records of N images.
        groups: Groups [N] by column, '' for an unknown group.

    Returns:
        Table with the columns column, group and UNITS.
    """
    columns = {EVERYTHING: np.full(len(records), EVERYTHING), **groups}
    for label, values in zip(records.label_names, records.labels.T, strict=True):
        columns[label] = np.select([values == kind for kind in KINDS.values()], [*KINDS], 'blank')
    images = pd.DataFrame(
        {
            'images': np.arange(len(records)),
            'studies': pd.factorize(records.study)[0],
            'patients': pd.factorize(records.patient)[0],
        }
    )
    tables = []
    for column, names in columns.items():
        names = pd.Series(names, name='group', dtype=object).replace('', UNKNOWN)
        tables.append(images.groupby(names).nunique().reset_index().assign(column=column))
    return pd.concat(tables, ignore_index=True)


def count_targets(config: Config, targets: np.ndarray) -> pd.DataFrame:
    """Count the targets [N, K] of each label."""
    task = task_of(config)
    kinds = (targets == 1, targets == 0, targets == UNCERTAIN_CLASS, np.isnan(targets))
    positive, negative, third_class, left_out = (kind.sum(axis=0) for kind in kinds)
    soft = len(targets) - positive - negative - third_class - left_out
    counts = dict(zip(TARGETS, (positive, negative, soft, third_class), strict=True))
    policies = [task.policies.get(label, 'none') for label in task.labels]
    table = pd.DataFrame({'label': task.labels, 'policy': policies} | counts)
    total = table[[*TARGETS]].sum(axis=1)
    share = (positive / total.where(total > 0)).round(4)
    return table.assign(**{'total': total, 'positive share': share, 'left out': left_out})


def cells_of_counts(counts: pd.DataFrame, form: str, form_of_whole: str) -> pd.DataFrame:
    """Return cells with a column for each split, and a row for each (column, group).

    Those of EVERYTHING have a row for each of the UNITS, and the others their images.

    Args:
        counts: `counts` of a `Description`.
        form: Form of the `images` of a group and of their `share` of the split.
        form_of_whole: Form of a number of images, studies or patients of a split.
    """
    is_whole = counts['column'] == EVERYTHING
    whole, groups = counts[is_whole].set_index('split')[[*UNITS]], counts[~is_whole]
    shares = groups['images'] / groups['split'].map(whole['images'])
    pairs = zip(groups['images'], shares, strict=True)
    groups = groups.assign(cell=[form.format(images=n, share=share) for n, share in pairs])
    table = groups.pivot(index=['column', 'group'], columns='split', values='cell').fillna('')
    table = table.loc[[*groups['column'].unique()], whole.index]
    names = pd.MultiIndex.from_product([[EVERYTHING], UNITS])
    sizes = pd.DataFrame(whole.T.to_numpy(), names, whole.index).map(form_of_whole.format)
    return pd.concat([sizes, table]).rename_axis(columns=None)


def format_description(description: Description) -> str:
    """Format the numbers of images by group, with a column for each split, and the targets."""
    cells = cells_of_counts(description.counts, '{images:,} {share:6.1%}', '{:,}       ')
    parts = [cells.to_string()]
    if len(description.targets):
        forms = dict.fromkeys((*TARGETS, 'total', 'left out'), '{:,}'.format)
        parts.append(f'targets\n{description.targets.to_string(index=False, formatters=forms)}')
    return '\n\n'.join(filter(None, [*parts, description.about_targets, *description.notes]))


def patient_table(description: Description) -> list[dict[str, str]]:
    """Return the cells of the patients, studies and images of each split, and of images by group.

    Columns of which no image has a known group are left out, and so are labels.
    """
    table = cells_of_counts(description.counts, '{images:,} ({share:.1%})', '{:,}')
    names: dict[str, list[str]] = {}
    for column, group in table.index:
        names.setdefault(column, []).append(group)
    names[EVERYTHING].reverse()
    rows = []
    for column, groups in names.items():
        if groups == [UNKNOWN] or column in description.labels:
            continue
        for group in groups:
            name = group if column == EVERYTHING else f'{column}: {group}'
            cells = table.loc[(column, group)]
            splits = in_order(description.counts['split'])
            rows.append({'': name} | {SETS.get(each, each): cells[each] or '0' for each in splits})
    return rows


def in_order(splits: pd.Series) -> list[str]:
    """Return the different splits in the order of tables."""
    found = [*splits.unique()]
    return [*(name for name in SETS if name in found), *(n for n in found if n not in SETS)]


def label_table(targets: pd.DataFrame) -> list[dict[str, str]]:
    """Return the cells of the numbers and shares of 0 and 1 of each label in each set.

    `targets` is that of a `Description`. The full set is all but test, see `_count_all_targets`.
    """
    cells = []
    for name in in_order(targets['split']) if len(targets) else ():
        for line in targets[targets['split'] == name].to_dict('records'):
            cell = {'set': SETS.get(name, name), 'label': line['label']}
            cell['images'] = f'{line["total"]:,}'
            for value in ('negative', 'positive'):
                share = line[value] / line['total'] if line['total'] else float('nan')
                number = {'negative': '0', 'positive': '1'}[value]
                cell[number] = f'{line[value]:,}'
                cell[f'share of {number}'] = f'{share:.1%}' if line['total'] else ''
            cells.append(cell | {'left out': f'{line["left out"]:,}'})
    return cells


def save_description(
    description: Description, folder: str | Path, figures: Mapping[str, 'Figure'] | None = None
) -> list[str]:
    """Write the tables as CSV files, and figures as PNG and SVG; all or none of them.

    The `patient_table`, the `label_table` and the MEANINGS of the labels are Markdown and LaTeX.

    Args:
        description: Tables.
        folder: Folder, which is created.
        figures: Figures by name.

    Returns:
        Names of the files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: getattr(description, name) for name in (*TABLES, 'images')}
    files = {
        f'{name}.csv': table.to_csv(index=False)
        for name, table in tables.items()
        if table is not None
    }
    known = [name for name in description.labels if name in MEANINGS]
    meanings = [{'observation': name, 'meaning': MEANINGS[name]} for name in known]
    notes = [*description.notes, description.use]
    for name, cells, below in (
        ('patients', patient_table(description), [OF_GROUPS, *notes]),
        ('targets', label_table(description.targets), [description.about_targets, *notes]),
        ('observations', meanings, [SOURCE]),
    ):
        if cells:
            lines = [markdown_table(cells), *(f'- {note}' for note in below), '']
            files[f'{name}.md'] = '\n'.join(lines)
            latex = latex_table(pd.DataFrame(cells), below, index=False)
            files[f'{name}.tex'] = PACKAGES + latex
    for name, figure in (figures or {}).items():
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
    task = task_of(config)
    if not task.has_policies:
        targets, names = task.scored(records), task.labels
        if len(names) == 1:  # a finding against none
            targets, names = np.hstack([targets, 1 - targets]), (*names, NO_FINDING)
        records = replace(records, labels=targets, label_names=names)
    figures = plot_examples(records, count, config.SEED)
    if config.DATA.PREPROCESS:
        figures |= plot_steps(records, Preprocess(config), count, config.SEED)
    return figures


def read_sets(config: Config) -> dict[str, Records]:
    """Read the splits of a run that exist."""
    data, sets, read, data_set = config.DATA, {}, [], open_data_set(config)
    options = {'labels': task_of(config).columns, 'optional': True, 'look_up': 'none'}
    for split in SPLITS if data_set.labelled else ():
        records = data_set.read(split, **options)
        if records is None:
            continue
        records = mark_left_out(config, records)
        read.append(records)
        if split == 'train' and data.HOLDOUT_FRACTION:
            names = ('train', 'holdout', 'internal')
            parts = zip(names, split_patients(config, records), strict=True)
            sets |= {name: part.kept() for name, part in parts if len(part)}
        else:
            sets[split] = records.kept()
    if not sets:
        names = ', '.join(csv_names(config).values())
        raise ValueError(
            f'DATA.DATASET {data.DATASET}: DATA.DATA_PATH {data.DATA_PATH} has no labels to count '
            f'({names}, or the tables of a known data set)'
        )
    report_names_not_found(config, read, ON_FAULT)
    return sets


def _count_all_targets(config: Config, splits: Mapping[str, Records]) -> pd.DataFrame:
    """Count the targets of the images that are trained on and, without policies, of all others.

    Without policies, train has all its images; `full` is all but test, and `sub-sample` the part of
    train that DATA.TRAIN_IMAGES or DATA.TRAIN_FRACTION selects.
    """
    task, tables = task_of(config), [pd.DataFrame()]
    train = training_records(config, splits['train']) if 'train' in splits else None
    targets: dict[str, np.ndarray] = {}
    if task.has_policies and train is not None:
        # The predictions do not matter, because soft targets are only counted.
        targets['train'] = task.learned(train, np.full(train.labels.shape, 0.5))
    elif not task.has_policies:
        targets = {name: task.scored(_in_views(config, name, splits[name])) for name in splits}
        if known := [values for name, values in targets.items() if name != 'test']:
            targets['full'] = np.concatenate(known)
        if train is not None and describe_subset(config):
            targets['sub-sample'] = task.scored(train)
    for name, values in targets.items():
        table = count_targets(config, values)
        table.insert(0, 'split', name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _list_images(config: Config, splits: Mapping[str, Records]) -> pd.DataFrame:
    """List the images with their targets, split, and whether the training subset has them."""
    task, tables = task_of(config), []
    for name, records in splits.items():
        records = _in_views(config, name, records)
        chosen = training_records(config, splits[name]).path if name == 'train' else []
        table = pd.DataFrame(task.scored(records), columns=[*task.labels])
        table.insert(0, 'image', records.path)
        tables.append(table.assign(split=name, **{'sub-sample': np.isin(records.path, chosen)}))
    return pd.concat(tables, ignore_index=True)


def _in_views(config: Config, split: str, records: Records) -> Records:
    """Select the images in the views that a split is trained on or scored in."""
    views = config.DATA.VIEWS if split == 'train' else config.EVAL.VIEWS or config.DATA.VIEWS
    return select_views(records, views)

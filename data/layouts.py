"""Layouts: data sets that a YAML file of about ten lines describes, all read by one reader.

DATA.DATASET is the name of a shipped layout (the files in configs/datasets/), or the path of a
YAML file. docs/howto/datasets.md explains the keys, which are the fields of `Layout`.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from config import Config
from data.labels import BLANK, CELLS, NEGATIVE, POSITIVE, UNCERTAIN, any_of
from data.records import (
    LAYOUT_SUFFIX,
    Fault,
    Folder,
    OnFault,
    Records,
    Table,
    existing_records,
    open_images,
    refuse,
    register_dataset,
)
from data.store import Store

SHIPPED = Path(__file__).resolve().parents[1] / 'configs' / 'datasets'
SPLITS = ('train', 'valid', 'test')
MARKS = {'positive': POSITIVE, 'negative': NEGATIVE, 'uncertain': UNCERTAIN}
# Names of views in a layout: the view, and the projection of a frontal image.
VIEWS = {
    'frontal': ('frontal', ''),
    'AP': ('frontal', 'AP'),
    'PA': ('frontal', 'PA'),
    'lateral': ('lateral', ''),
}
VIEW_CELLS = {cell: name for name in VIEWS for cell in (name, name.upper(), name.capitalize())}
VIEW_CELLS |= dict.fromkeys(('L', 'LL', 'RL'), 'lateral')
SEXES = {'f': 'Female', 'female': 'Female', 'm': 'Male', 'male': 'Male'}
SEXES |= dict.fromkeys(('', 'u', 'unknown', 'o', 'other', 'none', 'nan'), 'Unknown')
AGE = re.compile(r'(\d+(?:\.\d*)?) ?([YMWD]?)(?: or more|\+)?', re.ASCII)  # 61, 061Y, 85 or more
PER_YEAR = {'': 1.0, 'Y': 1.0, 'M': 12.0, 'W': 52.18, 'D': 365.25}
OLDEST = 120  # years; a greater age is an error of typing, such as NIH's 412, and means unknown
COLUMN = re.compile(r'\{([^{}]+)\}')
IMAGE = re.compile(r'([^{]*\*/)?[^*]*\{[^{}*]+\}[^*]*')  # folders with *, then columns
Labels = Mapping[str, Sequence[str]]  # label -> its names in the file, of which one is enough
# Columns that the reader adds; the * keeps them apart from those of the file.
NAME, PATIENT, SPLIT = '*name', '*patient', '*split'
# Keys of the mappings in a layout; none: any.
KEYS = {
    'table': SPLITS,
    'views': tuple(VIEWS),
    'labels': ('column', 'separator', 'names', *MARKS),
    'rename': (),
    'splits': ('column', *SPLITS),
}


@dataclass(frozen=True)
class Layout:
    """What a YAML file says about a data set; all values are text, or lists or mappings of text."""

    file: Path
    table: str | Mapping[str, str]  # pattern of the CSV file; or split -> pattern
    image: str  # path below the data folder: {column} is a cell of the row, * any folders
    patient: str = ''  # name of a column, as the next four
    study: str = ''
    view: str = ''
    sex: str = ''
    age: str = ''
    views: str | Mapping[str, Sequence[str]] = ''  # name in VIEWS -> cells; or that of all images
    labels: Mapping[str, Any] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)  # name in the file -> in DATA.LABELS
    splits: Mapping[str, Any] = field(default_factory=dict)  # split -> text file, or cells
    majority_vote: str = 'false'  # 'true' if an image has several rows, such as one per reader

    @property
    def tables(self) -> dict[str, str]:
        """Split -> pattern of its CSV file; '' is one file for all splits."""
        return {'': self.table} if isinstance(self.table, str) else dict(self.table)

    @property
    def lists(self) -> dict[str, str]:
        """Split -> text file that lists its images."""
        return {} if 'column' in self.splits else dict(self.splits)

    @property
    def split_names(self) -> list[str]:
        """The splits that there are; without any in the file, all images are for training."""
        named = self.splits if '' in self.tables else self.tables
        return [split for split in SPLITS if split in named] or ['train']

    @property
    def columns(self) -> list[str]:
        """The columns that each row needs."""
        names = [*COLUMN.findall(self.image), self.patient, self.study, self.view, self.sex]
        names += [self.age, self.labels.get('column', ''), self.splits.get('column', '')]
        return [name for name in dict.fromkeys(names) if name not in ('', 'split')]

    def find(self, root: Path, pattern: str) -> Path:
        """The one file in the data folder that fits a pattern."""
        found = sorted(root.glob(pattern))
        if len(found) != 1:
            names = ', '.join(file.name for file in found) or 'none'
            raise ValueError(f'{root} must hold one {pattern} (see {self.file}), found: {names}')
        return found[0]


def open_layout(name: str) -> Layout:
    """Read a layout: a shipped one by its name, or the YAML file at a path.

    Raises:
        ValueError: Naming the file, the key and what is allowed.
    """
    file = Path(name) if name.endswith(LAYOUT_SUFFIX) else SHIPPED / f'{name}{LAYOUT_SUFFIX}'
    try:
        # This loader leaves all values as text, so that `yes` and `1.0` equal cells of a table.
        given = yaml.load(file.read_text('utf-8'), yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise ValueError(f'DATA.DATASET: the layout {file} cannot be read: {reason}') from error

    def demand(holds: bool, key: str, allowed: str) -> None:
        if not holds:
            raise ValueError(f'{file}: {key} must be {allowed}, got {given.get(key)!r:.200}')

    known = [entry.name for entry in fields(Layout)[1:]]
    if not isinstance(given, dict) or not {'table', 'image'} <= set(given) <= set(known):
        raise ValueError(f'{file}: it must have the keys table and image, and of {known} any other')
    for key, value in given.items():
        if isinstance(value, dict):
            holds = key in KEYS and set(value) <= set(KEYS[key] or value)
        else:
            holds = isinstance(value, str) and key not in ('labels', 'rename', 'splits')
        names = f'a mapping with keys of {KEYS[key] or "your own"}' if key in KEYS else 'text'
        demand(holds, key, names)
    layout = Layout(file, **given)
    demand(layout.majority_vote in ('true', 'false'), 'majority_vote', 'true or false')
    holds = IMAGE.fullmatch(layout.image) is not None
    demand(holds, 'image', 'a path with {columns}, and * for folders before them')
    holds = '{split}' not in layout.image or (layout.split_names != ['train'] and not layout.lists)
    demand(holds, 'image', 'without {split}, which needs a table or a cell for each split')
    holds = not isinstance(layout.views, str) or layout.views in ('', *VIEWS)
    demand(holds, 'views', f'one of {tuple(VIEWS)}, or a mapping from them to cells')
    holds = ('column' in layout.labels) == ('separator' in layout.labels)
    demand(holds, 'labels', 'with both column and separator, or with neither')
    holds = not layout.splits or ('' in layout.tables and set(layout.splits) != {'column'})
    demand(holds, 'splits', 'of one table, and name train, valid or test')
    return layout


def read_layout(  # noqa: PLR0913
    layout: Layout,
    data_path: str | Path,
    split: str,
    *,
    image_suffix: str = '',
    labels: Sequence[str] = (),
    optional: bool = False,
    logger: logging.Logger | None = None,
    look_up: str = 'first',
    on_fault: OnFault = refuse,
) -> Records | None:
    """Read and check one split of a data set that a layout describes; see `read_csv`.

    Returns:
        Records in the order of the table, whose names of images (`path`) are the files below the
        folder. None if an optional split is absent, or if nothing can be used.

    Raises:
        ValueError: If anything is wrong, naming file, row and column.
    """
    root, images = Path(data_path), open_images(data_path, on_fault)
    own = split if split in layout.tables else ''
    is_there = {part: any(root.glob(name)) for part, name in layout.tables.items()}
    if optional and not (split in layout.split_names and is_there[own]):
        return None
    if split not in layout.split_names:
        raise ValueError(
            f'{layout.file} has no split {split}, only {", ".join(layout.split_names)}: describe '
            "it there, or choose patients to score by DATA.FOLD, such as '0/5'"
        )
    tables = {
        part: _read_rows(layout, root, part, labels=labels, on_fault=on_fault)
        for part in layout.tables
        if part == own or is_there[part]
    }
    _refuse_shared_patients(layout, tables)
    table = tables[own]
    values, is_wanted = _read_labels(layout, table, labels), (table[SPLIT] == split).to_numpy(bool)
    table.cells, values = table.cells[is_wanted], values[is_wanted]
    if not len(table):
        table.fault('empty split', f'it has no usable row of the split {split}')
        return None
    is_first = ~table[NAME].duplicated().to_numpy()
    if layout.majority_vote == 'true':
        values = _vote(values, pd.factorize(table[NAME])[0])
        table.cells = table.cells[is_first]
    else:
        table.keep_first(layout.columns[0], 'duplicate image', table[NAME])
        values = values[is_first]
    files = table[NAME]
    if image_suffix:
        files = files.map(lambda file: os.path.splitext(file)[0] + image_suffix)
    if '*' in layout.image:
        files = _locate(layout.image, files, images, on_fault)
    study = table[PATIENT] + '/' + table[layout.study] if layout.study else files
    records = Records(
        root=root,
        csv=table.file.relative_to(root).as_posix(),
        row=table.row,
        path=files.to_numpy(object),
        file=files.to_numpy(object),
        patient=table[PATIENT].to_numpy(object),
        study=study.to_numpy(object),
        **_describe(layout, table),
        labels=values,
        label_names=tuple(labels),
    )
    if optional and not images.exists(records.file[0]):
        return None
    if logger is not None:
        unknown = f'{(records.view == "").sum()} are neither frontal nor lateral'
        logger.info(f'{records.csv}, {split}: {len(records)} images; {unknown}')
    return existing_records(records, table.row, images, look_up, on_fault, logger)


def _read_rows(
    layout: Layout, root: Path, part: str, *, labels: Sequence[str], on_fault: OnFault
) -> Table:
    """A table with the columns NAME, PATIENT and SPLIT, which is NaN for rows of no split."""
    table = Table(layout.find(root, layout.tables[part]), on_fault)
    own = () if 'column' in layout.labels else labels
    table.require(
        layout.columns, labels=[name for label in own for name in _in_file(layout, label)]
    )
    prefix, *pieces = COLUMN.split(layout.image)  # text and columns in turn
    if not len(table):
        return table
    split = pd.Series(part or 'train', table.cells.index, object)
    if column := layout.splits.get('column'):
        cells = {cell: name for name in SPLITS for cell in _listed(layout.splits.get(name, []))}
        split[:] = table.map(column, cells, 'value of the split', dtype=object)
    name = pd.Series('', table.cells.index, object)
    for column, text in zip(pieces[::2], pieces[1::2], strict=True):
        name += (split if column == 'split' else table[column]) + text
    if layout.lists:
        split = name.map(_read_lists(layout, root, set(name), on_fault))
    patient = table[layout.patient] if layout.patient else name
    table.cells = table.cells.assign(**{NAME: prefix + name, PATIENT: patient, SPLIT: split})
    inside = [not {'', '.', '..'} & set(text.split('/')) for text in name.fillna('')]
    table.keep(layout.columns[0], inside, 'name of an image', 'gives no path below the folder')
    has_patient = (table[PATIENT] != '').to_numpy(bool)
    table.keep(layout.patient, has_patient, 'missing patient', 'names no patient')
    return table


def _read_lists(layout: Layout, root: Path, known: set[str], on_fault: OnFault) -> dict[str, str]:
    """Image -> split, from the text files that list the images of the splits, one a line."""
    found: dict[str, str] = {}
    for split, pattern in layout.lists.items():
        file = layout.find(root, pattern)
        for number, line in enumerate(file.read_text('utf-8').splitlines(), start=1):
            name = line.strip()
            if name in found:
                detail = f'line {number}: {name} is already in the list of {found[name]}'
                on_fault(Fault('image listed twice', detail, str(file), file=name))
            elif name and name not in known:
                detail = f'line {number}: {name} has no row in the table'
                on_fault(Fault('missing row', detail, str(file), file=name))
            elif name:
                found[name] = split
    return found


def _refuse_shared_patients(layout: Layout, tables: Mapping[str, Table]) -> None:
    """Drop the rows of patients who are in an earlier split of the tables, and report them."""
    every = pd.concat(
        pd.DataFrame({PATIENT: table[PATIENT], SPLIT: table[SPLIT]}) for table in tables.values()
    )
    first = every.dropna().drop_duplicates(PATIENT).set_index(PATIENT)[SPLIT]
    for table in tables.values():
        split = table[SPLIT]
        good = (split.isna() | (split == table[PATIENT].map(first))).to_numpy(bool)
        problem = 'is of a patient who is also in another split'
        table.keep(layout.patient or layout.columns[0], good, 'patient in two splits', problem)


def _in_file(layout: Layout, label: str) -> list[str]:
    """The names that the file has for a label."""
    return [theirs for theirs, name in layout.rename.items() if name == label] or [label]


def _listed(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _read_labels(layout: Layout, table: Table, labels: Sequence[str]) -> np.ndarray:
    """[N, K] float32: 1, 0, -1 uncertain, NaN blank."""
    marks_of = _listed_marks if 'column' in layout.labels else _marks_of_columns
    columns = marks_of(layout, table, {label: _in_file(layout, label) for label in labels})
    return np.array(columns, np.float32).reshape(len(labels), len(table)).T


def _marks_of_columns(layout: Layout, table: Table, labels: Labels) -> list[np.ndarray]:
    """The labels, each [N], that have columns of their own."""
    cells = {cell: MARKS[mark] for mark in MARKS for cell in _listed(layout.labels.get(mark, []))}
    cells = {'': BLANK} | cells if cells else CELLS
    return [
        any_of(np.stack([table.map(name, cells, 'value of a label') for name in names], axis=1))
        for names in labels.values()
    ]


def _listed_marks(layout: Layout, table: Table, labels: Labels) -> list[np.ndarray]:
    """The labels, each [N], that are listed in one column."""
    column, separator = layout.labels['column'], layout.labels['separator']
    codes, cells = pd.factorize(table[column].to_numpy(object))
    found = [_names_in(cell, separator) for cell in cells]
    known = set(_listed(layout.labels.get('names', [*set().union(*found)])))
    good = np.array([names <= known for names in found], bool)[codes]
    table.check(column, good, 'value of a label', f'has other labels than {layout.file} names')
    columns = []
    for label, names in labels.items():
        if known.isdisjoint(names):
            there = ', '.join(sorted({layout.rename.get(name, name) for name in known}))
            table.fault('missing label', f'no label {label} (see DATA.LABELS); there are: {there}')
        is_listed = [not listed.isdisjoint(names) for listed in found]
        columns.append(np.where(cells == '', BLANK, is_listed)[codes])
    return columns


def _names_in(cell: str, separator: str) -> set[str]:
    """The labels in a cell such as A|B or ['a', 'b']."""
    names = (name.strip(' \'"') for name in cell.strip('[] ').split(separator))
    return {name for name in names if name}


def _vote(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Labels [N, K] of rows -> of images: what more rows say; uncertain if as many say either."""
    positive, negative, uncertain = (
        pd.DataFrame(values == mark).groupby(image).sum().to_numpy() for mark in MARKS.values()
    )
    conditions = [positive > negative, negative > positive, positive + negative + uncertain > 0]
    return np.select(conditions, [POSITIVE, NEGATIVE, UNCERTAIN], BLANK).astype(np.float32)


def _locate(pattern: str, files: pd.Series, images: Store | Folder, on_fault: OnFault) -> pd.Series:
    """The files whose folders fit what precedes the last * of a pattern; without one, the *."""
    start, _, end = pattern.rpartition('*')
    depth, wanted = end.count('/'), files.str.rpartition('*/')[2]
    is_folder, is_named, places = isinstance(images, Folder), set(wanted), {}
    for file in images.below() if is_folder else sorted([*images.files, *images.left_out]):
        folder, name = file.rsplit('/', depth)[0], '/'.join(file.split('/')[-depth:])
        if name not in is_named or not fnmatchcase(folder, f'{start}*'):
            continue
        if places.setdefault(name, file) != file:
            detail = f'{images.path}: {file} and {places[name]} have the same name'
            on_fault(Fault('image in two folders', detail, file=file))
    return wanted.map(places).fillna(files)


def _describe(layout: Layout, table: Table) -> dict[str, np.ndarray]:
    """View, projection, sex and age of each row, as in `Records`."""
    views = np.full(len(table), layout.views if isinstance(layout.views, str) else '', object)
    if layout.view:
        given = layout.views if isinstance(layout.views, dict) else {}
        cells = {cell: name for name, cells in given.items() for cell in _listed(cells)}
        views = table[layout.view].map(cells or VIEW_CELLS).fillna('').to_numpy(object)
    view, ap_pa = np.array([VIEWS.get(name, ('', '')) for name in views], object).reshape(-1, 2).T
    sexes = {cell: SEXES[cell.lower()] for cell in table[layout.sex] if cell.lower() in SEXES}
    ages = {cell: _years(match) for cell in table[layout.age] if (match := AGE.fullmatch(cell))}
    allowed = 'F, M, Female, Male, Other, Unknown, or empty'
    sex = table.map(layout.sex, sexes, 'value of the sex', allowed=allowed, dtype=object)
    allowed = 'years such as 61, 061Y, 85 or more, or empty'
    age = table.map(layout.age, {'': np.nan} | ages, 'value of the age', allowed=allowed)
    return {'view': view, 'ap_pa': ap_pa, 'sex': sex, 'age': age}


def _years(match: re.Match[str]) -> float:
    years = float(match[1]) / PER_YEAR[match[2]]
    return years if years <= OLDEST else np.nan


def _files(config: Config, root: Path) -> list[Path]:
    layout = open_layout(config.DATA.DATASET)
    names = [*layout.tables.values(), *layout.lists.values()]
    return [file for name in names for file in sorted(root.glob(name))]


@register_dataset(
    *sorted(file.stem for file in SHIPPED.glob(f'*{LAYOUT_SUFFIX}')),
    labelled=True,
    tables=_files,
    splits=lambda config: open_layout(config.DATA.DATASET).split_names,
)
def _read_split(config: Config, root: str | Path, split: str, **options: Any) -> Records | None:
    layout = open_layout(config.DATA.DATASET)
    return read_layout(layout, root, split, image_suffix=config.DATA.IMAGE_SUFFIX, **options)

"""Read data sets that a YAML file of about ten lines, the layout, describes.

DATA.DATASET is the name of a shipped layout (a file in configs/datasets/) or the path of a YAML
file. docs/howto/datasets.md explains the keys, which are the fields of `Layout`.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import LAYOUT_SUFFIX, Config, load_yaml
from data.image_source import IMAGE_SUFFIXES, ImageSource, open_images
from data.labels import (
    BLANK,
    CELLS,
    NEGATIVE,
    NO_FINDING,
    POSITIVE,
    SIMILAR,
    UNCERTAIN,
    any_of,
    similar_warning,
)
from data.records import (
    OLDEST,
    VIEWS_HINT,
    Records,
    existing_records,
    lacks_images,
    register_dataset,
)
from data.table import Fault, OnFault, Table, find_file, refuse, rows_of_labels
from system.files import is_below
from system.tool import command_of

SHIPPED = Path(__file__).resolve().parents[1] / 'configs' / 'datasets'
SPLITS = ('train', 'valid', 'test')
MARKS = {'positive': POSITIVE, 'negative': NEGATIVE, 'uncertain': UNCERTAIN}
RANKS = (NEGATIVE, UNCERTAIN, POSITIVE)  # a later one outranks the others
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
COLUMN = re.compile(r'\{([^{}]+)\}')
IMAGE = re.compile(r'([^{]*\*/)?[^*]*\{[^{}*]+\}[^*]*')  # folders with *, then columns
SUFFIX_PATTERN = rf'(?i:{"|".join(map(re.escape, IMAGE_SUFFIXES))})'
# Columns that the reader adds; the * keeps them apart from the columns of the file.
NAME, PATIENT, SPLIT = '*name', '*patient', '*split'
PATH = 'Path'  # column with the path of the image in a table that is made of paths
# Allowed keys of the mappings in a layout; an empty tuple allows any key.
KEYS = {
    'table': SPLITS,
    'views': tuple(VIEWS),
    'sexes': ('Female', 'Male', 'Unknown'),
    'labels': ('table', 'key', 'column', 'separator', 'names', 'leave_out', *MARKS),
    'rename': (),
    'splits': ('column', *SPLITS),
    'where': (),
}
OF_LISTS = ('column', 'separator', 'names', 'leave_out')  # keys of a column that lists the labels
NOT_CELLS = ('table', 'key', *OF_LISTS)  # keys whose values are not cells
# Texts in a list that name no label, and words by which a list says that it is not complete. An
# image with such a word must be left out; otherwise its other labels count as negative.
NO_NAMES = ('', 'nan', 'null', 'na', 'n/a')
UNKNOWN = {
    'exclude',
    'excluded',
    'suboptimal study',
    'unchanged',
    'unknown',
    'uncertain',
    'unclear',
}
UNKNOWN |= {'not labelled', 'not labeled', 'unlabelled', 'unlabeled', 'not reported', 'no report'}
UNKNOWN |= {'undetermined', 'indeterminate', 'inconclusive', 'not assessed', 'not evaluable', '?'}
LISTS = ('names', 'leave_out')  # those of them that may be lists
QUOTES = 'a value that starts with * or { must be in quotes'
MANY_ROWS = 0.2  # share of rows without a known label above which the check lists their cells
EXAMPLES = 5  # of cells in a warning
LONGEST = 200  # characters of a path in a layout; each folder in it is a level of recursion


@dataclass(frozen=True)
class Layout:
    """The content of a YAML file that describes a data set; values are text, or lists of text."""

    file: Path
    # Pattern of the CSV file; or split -> pattern; '': the {columns} are read from the paths.
    table: str | Mapping[str, str] = ''
    image: str = ''  # path below the data folder: {column} is a cell of the row, * any folders
    suffix: str = ''  # suffix of the image files, such as .png, if the table has another
    patient: str = ''  # name of a column, like the next five
    study: str = ''
    view: str = ''
    projection: str = ''  # AP or PA of frontal images, if `view` does not say it
    sex: str = ''
    age: str = ''
    views: str | Mapping[str, Sequence[str]] = ''  # key of VIEWS -> cells; or the view of all
    sexes: Mapping[str, Sequence[str]] = field(default_factory=dict)  # sex -> cells
    labels: Mapping[str, Any] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)  # name in the file -> in DATA.LABELS
    splits: Mapping[str, Any] = field(default_factory=dict)  # split -> text file, or cells
    where: Mapping[str, str | Sequence[str]] = field(default_factory=dict)  # column -> cells to use
    majority_vote: str = ''  # column that names the reader, if an image has rows of several readers
    boxes: str = 'false'  # 'true' if an image has a row for each box

    @property
    def tables(self) -> dict[str, str]:
        """Return the pattern of the CSV file by split; the key '' is one file for all splits."""
        return {'': self.table} if isinstance(self.table, str) else dict(self.table)

    @property
    def table_of_labels(self) -> str:
        """Return the pattern of the table that states the labels; '' if `table` does."""
        return self.labels.get('table', '')

    @property
    def lists(self) -> dict[str, str]:
        """Return the text file that lists the images of each split."""
        return {} if 'column' in self.splits else dict(self.splits)

    @property
    def split_names(self) -> list[str]:
        """Return the splits that the layout describes, by default only train."""
        named = self.splits if '' in self.tables else self.tables
        return [split for split in SPLITS if split in named] or ['train']

    @property
    def columns(self) -> list[str]:
        """Return the columns that the CSV file must have, except columns of labels."""
        names = [*COLUMN.findall(self.image), self.patient, self.study, self.view, self.sex]
        names += [self.projection, self.age, self.splits.get('column', ''), *self.where]
        names.append(self.labels.get('key' if self.table_of_labels else 'column', ''))
        given = {'', 'split'} if self.table else {''}  # `split` is filled in
        return [name for name in dict.fromkeys(names) if name not in given]


def open_layout(name: str) -> Layout:
    """Read and check a shipped layout by its name, or the YAML file at a path."""
    file = Path(name) if name.endswith(LAYOUT_SUFFIX) else SHIPPED / f'{name}{LAYOUT_SUFFIX}'
    try:
        given = load_yaml(file.read_text('utf-8'), as_text=True)
    except (OSError, ValueError) as error:
        reason = f'cannot read the layout {file}: {" ".join(str(error).split())} ({QUOTES})'
        raise ValueError(f'DATA.DATASET: {reason}') from error

    def demand(holds: object, key: str, allowed: str) -> None:
        if not holds:
            raise ValueError(f'{file}: {key} must be {allowed}, got {given.get(key)!r:.200}')

    if not isinstance(given, dict):
        raise ValueError(f'{file}: a layout must have keys such as table and image')
    _refuse_unknown(str(file), given, [entry.name for entry in fields(Layout)[1:]])
    demand('image' in given, 'image', 'given')
    for key, value in given.items():
        if key in KEYS and isinstance(value, dict):
            _refuse_unknown(f'{file}: {key}', value, KEYS[key] or [*value])
            cells = _lists_of_cells(key, value)
            texts = [v for name, v in value.items() if name not in {*cells, *LISTS}]
            listed = [cell for several in cells.values() for cell in _listed(several)]
            texts += listed + [text for name in LISTS for text in _listed(value.get(name, []))]
            demand(all(isinstance(text, str) for text in texts), key, f'text or lists ({QUOTES})')
            is_clear = key == 'where' or len(listed) == len({*listed})
            demand(is_clear, key, 'a mapping that lists each cell once')
        else:
            holds = isinstance(value, str) and key in ('table', 'views', *{*given} - {*KEYS})
            demand(holds, key, f'{"a mapping" if key in KEYS else "text"} ({QUOTES})')
    layout = Layout(file, **given)
    _check_values(layout, demand)
    return layout


def _check_values(layout: Layout, demand: Callable[[object, str, str], None]) -> None:
    """Refuse values that do not fit each other; `demand` takes what holds, the key and a rule."""
    demand(layout.boxes in ('true', 'false'), 'boxes', 'true or false')
    for key, names in (
        ('table', layout.tables),
        ('splits', layout.lists),
        ('labels', {'': layout.table_of_labels}),
    ):
        holds = all(_is_pattern(name) for name in names.values() if name)
        allowed = f'paths below the data folder, with {LONGEST} characters and one ** at most'
        demand(holds, key, allowed)
    demand(re.fullmatch(r'(\.\w+)?', layout.suffix), 'suffix', 'a suffix such as .png')
    holds = IMAGE.fullmatch(layout.image) is not None
    demand(holds, 'image', 'a path with {columns}, and * for folders before them')
    if not layout.table:
        names = COLUMN.findall(layout.image)
        holds = '*' not in layout.image and len(names) == len({*names})
        demand(holds, 'image', 'without *, and with each column once, if there is no table')
        missing = ', '.join(name for name in layout.columns if name not in names)
        demand(not missing, 'image', f'a path with {{{missing}}}, because there is no table')
        demand(not layout.lists, 'splits', 'a column and its cells, if there is no table')
    has_splits = layout.split_names != ['train'] and not layout.lists
    holds = not layout.table or '{split}' not in layout.image or has_splits
    demand(holds, 'image', 'without {split}, which needs a table or a cell for each split')
    holds = not isinstance(layout.views, str) or layout.views in ('', *VIEWS)
    demand(holds, 'views', f'one of {", ".join(VIEWS)}, or a mapping from them to cells')
    holds = 'column' in layout.labels or not {*OF_LISTS} & {*layout.labels}
    demand(holds, 'labels', 'with the column that separator, names and leave_out belong to')
    holds = ('table' in layout.labels) == ('key' in layout.labels)
    holds = holds and not {'table', 'leave_out'} <= {*layout.labels}
    demand(holds, 'labels', 'with both table and key, without leave_out, or with neither')
    holds = not layout.splits or ('' in layout.tables and set(layout.splits) != {'column'})
    demand(holds, 'splits', 'for a layout with one table, and must name train, valid or test')


def _lists_of_cells(key: str, mapping: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a mapping that list cells of the table, and not files or names."""
    if key in ('table', 'rename') or (key == 'splits' and 'column' not in mapping):
        return {}
    if key == 'where':
        return mapping
    return {name: cells for name, cells in mapping.items() if name not in NOT_CELLS}


def _is_pattern(name: str) -> bool:
    """Return whether files below a folder can be found by a pattern in little time."""
    return is_below(name) and len(name) <= LONGEST and name.count('**') <= 1


def _refuse_unknown(place: str, keys: Iterable[str], allowed: Sequence[str]) -> None:
    for key in keys:
        if key not in allowed:
            raise ValueError(f'{place}: unknown key {key}; allowed: {", ".join(allowed)}')


def _files(config: Config, root: Path) -> list[Path]:
    layout = open_layout(config.DATA.DATASET)
    names = [*layout.tables.values(), *layout.lists.values(), layout.table_of_labels]
    return [file for name in filter(None, names) for file in sorted(root.glob(name))]


@register_dataset(
    LAYOUT_SUFFIX,
    *sorted(file.stem for file in SHIPPED.glob(f'*{LAYOUT_SUFFIX}')),
    labelled=True,
    tables=_files,
    splits=lambda config: open_layout(config.DATA.DATASET).split_names,
    layout=lambda config: open_layout(config.DATA.DATASET).file,
)
def read_layout(
    config: Config,
    root: str | Path,
    split: str,
    *,
    labels: Sequence[str] = (),
    optional: bool = False,
    look_up: str = 'first',
    on_fault: OnFault = refuse,
) -> Records | None:
    """Read and check one split of a data set that a layout describes; see `read_mimic`.

    Returns:
        Records in the order of the table. `path` and `file` are the image files, relative to the
        data folder. None if an optional split is absent, if its images are (see `lacks_images`), or
        if no row can be used.
    """
    layout, root = open_layout(config.DATA.DATASET), Path(root)
    images = open_images(root)
    own = split if split in layout.tables else ''
    is_there = {part: not name or any(root.glob(name)) for part, name in layout.tables.items()}
    if optional and not (split in layout.split_names and is_there[own]):
        return None
    if split not in layout.split_names:
        raise ValueError(
            f'{layout.file} has no split {split}, only {", ".join(layout.split_names)}: describe '
            f'it there, or choose patients to score: {command_of("scripts/folds.py")}'
        )
    tables = {
        part: _read_rows(layout, root, images, part=part, labels=labels, on_fault=on_fault)
        for part in layout.tables
        if part == own or is_there[part]
    }
    _refuse_shared_patients(layout, tables)
    table = tables[own]
    source = _open_labels(layout, root, table, labels) if len(table) else table
    if not len(source):  # the reason has been reported
        return None
    # The rows of all splits are read, so that a misspelt label is found in whatever split it is.
    values = _read_labels(layout, source, labels)
    is_wanted = (table[SPLIT] == split).to_numpy(bool)
    table.cells = table.cells[is_wanted]
    if source is table:
        values = values[is_wanted]
    else:
        values = values[rows_of_labels(table, source, [layout.labels['key']], NAME)]
    if not len(table):
        table.fault('empty split', f'it has no usable row of the split {split}')
        return None
    values = _one_row_per_image(layout, table, values)
    if not len(table):
        return None
    files = table[NAME]
    if suffix := config.DATA.IMAGE_SUFFIX or layout.suffix:
        files = files.map(lambda file: os.path.splitext(file)[0] + suffix)
    if '*' in layout.image:
        files = _locate(layout.image, files, images, on_fault)
    study = table[PATIENT] + '/' + table[layout.study] if layout.study else files
    records = Records(
        root=root,
        csv=table.file.relative_to(root).as_posix() if layout.table else '',
        row=table.row,
        sample=table.row,
        path=files.to_numpy(object),
        file=files.to_numpy(object),
        patient=table[PATIENT].to_numpy(object),
        study=study.to_numpy(object),
        **_describe(layout, table),
        labels=values,
        label_names=tuple(labels),
    )
    if optional and lacks_images(records, images, split, look_up, on_fault):
        return None
    return existing_records(records, images, look_up, on_fault)


def _read_rows(
    layout: Layout,
    root: Path,
    images: ImageSource,
    *,
    part: str,
    labels: Sequence[str],
    on_fault: OnFault,
) -> Table:
    """Read a table and add the columns NAME, PATIENT and SPLIT (NaN for rows of no split)."""
    if layout.table:
        table = Table(find_file(root, layout.tables[part], hint=str(layout.file)), on_fault)
    else:
        table = _table_of_paths(layout, images, on_fault)
    own = () if layout.table_of_labels else labels
    table.require(*layout.columns, labels=_columns_of_labels(layout, own))
    if not len(table):
        return table
    others = _leave_out(layout, table)
    if not len(table):
        return table
    split = pd.Series(part or 'train', table.cells.index, object)
    if column := layout.splits.get('column'):
        cells = _by_cell({name: layout.splits.get(name, []) for name in SPLITS})
        split[:] = table.map(column, cells, 'value of the split', dtype=object)
    name = _names_of_images(layout, table.cells, split)
    if layout.lists:
        known = {*name, *_names_of_images(layout, others, '')}
        split = name.map(_read_lists(layout, root, known, on_fault))
    patient = table[layout.patient] if layout.patient else name
    name = COLUMN.split(layout.image)[0] + name if layout.table else table[PATH]
    table.cells = table.cells.assign(**{NAME: name, PATIENT: patient, SPLIT: split})
    columns = COLUMN.findall(layout.image)
    table.titles[NAME] = f'column{"s" * (len(columns) > 1)} {", ".join(map(repr, columns))}'
    inside = [is_below(text) for text in name.fillna('')]
    table.keep(NAME, inside, 'name of an image', 'is no path below the folder')
    has_patient = (table[PATIENT] != '').to_numpy(bool)
    table.keep(layout.patient, has_patient, 'missing patient', 'names no patient')
    _report_gaps(layout, table)
    return table


def _table_of_paths(layout: Layout, images: ImageSource, on_fault: OnFault) -> Table:
    """Return a table whose rows are the images and whose columns are read from their paths.

    An image whose path does not have the form of the layout is a fault.
    """
    names = COLUMN.findall(layout.image)
    start, *texts, end = map(re.escape, COLUMN.split(layout.image)[::2])
    # A lookahead finds the first place of the text after a column and is never tried again; this
    # finds the same as a plain pattern, which would take years for some names.
    columns = (f'(?=(?P<c{i}>[^/]+?){text})(?P=c{i}){text}' for i, text in enumerate(texts))
    form = re.compile(f'{start}{"".join(columns)}([^/]+?){end}{SUFFIX_PATTERN}?')
    files = images.below()
    found = {file: match for file in files if (match := form.fullmatch(file))}
    others = [file for file in files if file not in found]
    if others or not files:
        shown = ', '.join(others[:EXAMPLES]) + ', ...' * (len(others) > EXAMPLES)
        detail = (
            f'{images.path}: {len(others):,} of {len(files):,} images do not have a path of the '
            f'form {layout.image} ({layout.file}): {shown}'
        )
        on_fault(Fault('path of another form', detail if files else f'{images.path} has no image'))
    rows = [match.groups() for match in found.values()]
    cells = pd.DataFrame(rows, columns=names, dtype=object).assign(**{PATH: [*found]})
    return Table(layout.file, on_fault, cells=cells)


def _leave_out(layout: Layout, table: Table) -> pd.DataFrame:
    """Drop the rows that `where` and `leave_out` exclude, report their number, and return them."""
    keep = np.full(len(table), True)
    for column, cells in layout.where.items():
        keep &= table[column].isin(_listed(cells)).to_numpy(bool)
    if words := {word.casefold() for word in _listed(layout.labels.get('leave_out', []))}:
        codes, cells = pd.factorize(table[layout.labels['column']].to_numpy(object))
        listed = (_names_in_cell(cell, layout.labels.get('separator', '')) for cell in cells)
        good = [words.isdisjoint(map(str.casefold, names)) for names in listed]
        keep &= np.array(good, bool)[codes]
    others, table.cells = table.cells[~keep], table.cells[keep]
    if len(others) and len(table):
        detail = (
            f'{layout.file} leaves out {len(others):,} of {len(keep):,} rows (where, leave_out)'
        )
        table.fault('rows left out', detail, severity='note')
    elif len(others):
        names = [*layout.where, *filter(None, [layout.labels.get('column')])]
        found = (f'{name!r}: {_most_frequent(others[name])}' for name in names)
        detail = f'where and leave_out of {layout.file} select no row; there are {"; ".join(found)}'
        table.fault('no row is selected', detail)
    return others


def _names_of_images(layout: Layout, cells: pd.DataFrame, split: pd.Series | str) -> pd.Series:
    """Return the path of the image of each row [N], from the first column in its pattern on."""
    pieces = COLUMN.split(layout.image)[1:]  # columns and text in turn
    cells, name = cells.assign(split=split), pd.Series('', cells.index, object)
    for column, text in zip(pieces[::2], pieces[1::2], strict=True):
        name += cells[column] + text
    return name


def _report_gaps(layout: Layout, table: Table) -> None:
    """Report that patients or views are unknown, and cells of the view column without a meaning."""
    if not layout.patient:
        detail = f'{layout.file} has no key patient, so each image counts as its own patient'
        detail += ' and splits may share patients'
        table.fault('unknown patients', detail, severity='warning')
    if not layout.view and layout.views not in [*VIEWS]:
        detail = f'{layout.file} has no key view, so no image is frontal: give the column, or'
        table.fault('unknown view', f'{detail} {VIEWS_HINT}', severity='warning')
    unknown = table[layout.view][~table[layout.view].isin(_view_cells(layout))]
    if layout.view and len(unknown):
        detail = f'column {layout.view!r}: views of {layout.file} has no {_most_frequent(unknown)}'
        table.fault('unknown view', f'{detail}: these images have no view', severity='warning')


def _most_frequent(cells: pd.Series) -> str:
    """Describe the most frequent cells with their counts."""
    counts = cells.value_counts()
    more = f', and {len(counts) - EXAMPLES} others' if len(counts) > EXAMPLES else ''
    shown = (f'{cell!r} (rows: {count:,})' for cell, count in counts.head(EXAMPLES).items())
    return ', '.join(shown) + more


def _read_lists(layout: Layout, root: Path, known: set[str], on_fault: OnFault) -> dict[str, str]:
    """Map each image to its split, from the text files that list one image per line."""
    found: dict[str, str] = {}
    for split, pattern in layout.lists.items():
        file = find_file(root, pattern, hint=str(layout.file))
        try:
            lines = file.read_text('utf-8').splitlines()
        except (OSError, ValueError) as error:
            raise ValueError(f'{file} cannot be read: {error}; save it as UTF-8') from error
        for number, line in enumerate(lines, start=1):
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
    """Report and drop the rows of patients who are already in another split of the tables."""
    every = pd.concat(
        pd.DataFrame({'patient': table[PATIENT], 'split': table[SPLIT], 'place': table.places()})
        for table in tables.values()
    ).dropna()
    first = every.drop_duplicates('patient').set_index('patient')
    column = layout.patient or layout.columns[0]
    for table in tables.values():
        other = first.reindex(table[PATIENT])
        good = (table[SPLIT].isna() | table[SPLIT].eq(other['split'].array)).to_numpy()
        for position in np.flatnonzero(~good).tolist():
            patient, place = table[PATIENT].iloc[position], other.iloc[position]
            detail = (
                f'column {column!r}: {patient!r} is in the split {table[SPLIT].iloc[position]} and '
                f'in {place["split"]} ({place["place"]}); all images of a patient must be in one '
                'split'
            )
            table.fault('patient in two splits', detail, position)
        table.cells = table.cells[good]


def _open_labels(layout: Layout, root: Path, table: Table, labels: Sequence[str]) -> Table:
    """Read the table that states the labels of the images in `table`, which may be the same."""
    if not (labels and layout.table_of_labels):
        return table
    file = find_file(root, layout.table_of_labels, hint=str(layout.file))
    source, key = Table(file, table.on_fault), layout.labels['key']
    listed = filter(None, [layout.labels.get('column')])
    source.require(key, *listed, labels=_columns_of_labels(layout, labels))
    source.keep_first(key, 'duplicate row of labels')
    return source


def _columns_of_labels(layout: Layout, labels: Sequence[str]) -> list[str]:
    """Return the columns that the labels have of their own."""
    own = () if 'column' in layout.labels else labels
    return [name for label in own for name in _names_in_file(layout, label)]


def _names_in_file(layout: Layout, label: str) -> list[str]:
    """Return the names that a label has in the file."""
    return [theirs for theirs, name in layout.rename.items() if name == label] or [label]


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _by_cell(cells: Mapping[str, str | Sequence[str]]) -> dict[str, str]:
    """Invert a mapping of a layout: from each cell to the key that lists it."""
    return {cell: name for name, several in cells.items() for cell in _listed(several)}


def _view_cells(layout: Layout) -> dict[str, str]:
    """Return the meaning of the cells of the view column, as keys of VIEWS."""
    return _by_cell(layout.views) if isinstance(layout.views, dict) else VIEW_CELLS


def _read_labels(layout: Layout, table: Table, labels: Sequence[str]) -> np.ndarray:
    """Read the labels as [N, K] float32: 1, 0, -1 uncertain, NaN blank."""
    if 'column' in layout.labels:
        columns, names = _read_listed_labels(layout, table, labels)
    else:
        columns, names = _read_label_columns(layout, table, labels), {*table.cells}
    for name in layout.rename:
        if name not in names:
            detail = f'rename of {layout.file} has {name!r}, which does not occur here'
            table.fault('unused rename', detail, severity='warning')
    return np.array(columns, np.float32).reshape(len(labels), len(table)).T


def _read_label_columns(layout: Layout, table: Table, labels: Sequence[str]) -> list[np.ndarray]:
    """Read labels, each [N], that have their own columns."""
    marks = {name: cells for name, cells in layout.labels.items() if name in MARKS}
    cells = {cell: MARKS[mark] for cell, mark in _by_cell(marks).items()}
    cells = {'': BLANK} | cells if cells else CELLS
    columns = []
    for label in labels:
        names = _names_in_file(layout, label)
        values = [table.map(name, cells, 'value of a label') for name in names]
        columns.append(any_of(np.stack(values, axis=1)))
    return columns


def _read_listed_labels(
    layout: Layout, table: Table, labels: Sequence[str]
) -> tuple[list[np.ndarray], set[str]]:
    """Read labels, each [N], that one column lists; return them with all names in that column.

    A label is positive in the rows that list it and negative in the others, but blank in rows that
    list nothing.
    """
    column, separator = layout.labels['column'], layout.labels.get('separator', '')
    rows = [_names_in_cell(cell, separator) for cell in table[column]]
    lists = pd.Series(
        [{layout.rename.get(name, name) for name in row} for row in rows], dtype=object
    )
    lists.index = table.cells.index
    if labels:
        _check_lists(layout, table, labels, lists)
    is_blank = ~lists.map(bool).to_numpy(bool)
    columns = [np.where(is_blank, BLANK, [label in names for names in lists]) for label in labels]
    return columns, set().union(*rows)


def _check_lists(layout: Layout, table: Table, labels: Sequence[str], lists: pd.Series) -> None:
    """Report lists whose names are not those of the layout or the wanted labels.

    Args:
        layout: Layout.
        table: Table with the lists.
        labels: Names of the wanted labels.
        lists: Set of the names that each row lists, [N].
    """
    column = layout.labels['column']
    counts = Counter(name for names in lists for name in names)
    allowed = {layout.rename.get(name, name) for name in _listed(layout.labels.get('names', []))}
    for name in sorted({*counts} - allowed if allowed else ()):
        good = ~lists.map(lambda names, name=name: name in names).to_numpy(bool)
        problem = f'lists {name!r}, which is not in the names of {layout.file}'
        table.check(column, good, 'value of a label', problem)
    known = allowed or {*counts}
    for label in labels:
        if label not in known:
            there = ', '.join(sorted(known))
            table.fault('missing label', f'no label {label} (see DATA.LABELS); there are: {there}')
    # The layout that names all labels has been checked by its author.
    wanted = [*labels, *(name for label in labels for name in _names_in_file(layout, label))]
    others = {name: count for name, count in counts.items() if name not in allowed}
    if warning := similar_warning(wanted, others):
        detail = f'column {column!r}: {warning}; see rename in {layout.file}'
        table.fault(SIMILAR, detail, severity='warning')
    is_other = lists.map(lambda names: bool(names) and names.isdisjoint({*labels, NO_FINDING}))
    is_other = is_other.to_numpy(bool)
    if not allowed and is_other.mean() > MANY_ROWS:
        detail = (
            f'column {column!r}: {is_other.sum():,} of {len(table):,} rows list neither a label of '
            f'DATA.LABELS nor {NO_FINDING}, such as {_most_frequent(table[column][is_other])}; '
            f'check separator and rename in {layout.file}'
        )
        table.fault('rows without a label', detail, severity='warning')
    words = sorted(word for word in counts if word.casefold() in UNKNOWN and word not in labels)
    if words:
        detail = (
            f'column {column!r} lists {", ".join(map(repr, words))}, and the other labels of these '
            f'images count as negative: are they unknown? Then give leave_out in {layout.file}'
        )
        table.fault('words for unknown labels', detail, severity='warning')


def _names_in_cell(cell: str, separator: str) -> set[str]:
    """Split a cell such as A|B or ['a', 'b'] into labels; without a separator it is one label."""
    cell = cell.strip()
    if cell[:1] == '[' and cell[-1:] == ']':
        cell = cell[1:-1]
    parts = cell.split(separator) if separator else [cell]
    names = (part.strip().strip('\'"').strip() for part in parts)
    return {name for name in names if name.casefold() not in NO_NAMES}


def _one_row_per_image(layout: Layout, table: Table, values: np.ndarray) -> np.ndarray:
    """Keep the first row of each image, and return the labels [images, K] from all its rows.

    A finding in any row of an image counts, or with readers, in any of the rows of one reader, and
    then the majority of the readers.
    """
    is_first = ~table[NAME].duplicated().to_numpy()
    if is_first.all():  # also a consensus, which has no reader
        return values
    if layout.majority_vote:
        reader = layout.majority_vote
        table.require(reader)
        table.check(reader, (table[reader] != '').to_numpy(), 'missing reader', 'names no reader')
        values = values[: len(table)]
        votes, images = _any_row(values, [table[NAME], table[reader]])
        values = _vote(votes, images)
    elif layout.boxes == 'true':
        values = _any_row(values, [table[NAME]])[0]
    else:
        values = values[is_first]
        remedy = '; if each reader has a row, the layout names their column as majority_vote, and '
        remedy += 'if each box has one, it states boxes: true'
        table.keep_first(NAME, 'duplicate image', remedy=remedy)
    table.cells = table.cells[~table[NAME].duplicated()]
    return values


def _any_row(values: np.ndarray, keys: list[pd.Series]) -> tuple[np.ndarray, np.ndarray]:
    """Combine the labels [N, K] of rows with equal keys, and return the first key of each group.

    Positive outranks uncertain, which outranks negative, as in `any_of`.
    """
    ranks = pd.DataFrame(np.select([values == mark for mark in RANKS], range(len(RANKS)), -1))
    ranks = ranks.groupby([key.to_numpy() for key in keys], sort=False).max()
    labels = np.array([*RANKS, BLANK], np.float32)[ranks.to_numpy(int)]
    return labels, ranks.index.get_level_values(0).to_numpy()


def _vote(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Combine the labels [N, K] of the readers of an image [N] by majority; a tie is uncertain."""
    positive, negative, uncertain = (
        pd.DataFrame(values == mark).groupby(image, sort=False).sum().to_numpy()
        for mark in MARKS.values()
    )
    conditions = [positive > negative, negative > positive, positive + negative + uncertain > 0]
    return np.select(conditions, [POSITIVE, NEGATIVE, UNCERTAIN], BLANK).astype(np.float32)


def _locate(pattern: str, files: pd.Series, images: ImageSource, on_fault: OnFault) -> pd.Series:
    """Replace the `*` folders in names of files by the folders in which the files are.

    The name of a file that is not found keeps its `*`.
    """
    start = pattern.rpartition('*')[0]
    wanted, places = files.str.rpartition('*/')[2], {}
    is_named = set(wanted)
    depths = {name.count('/') + 1 for name in is_named}  # a cell may be a path
    for file in images.below():
        parts = file.split('/')
        endings = {depth: '/'.join(parts[-depth:]) for depth in depths if depth <= len(parts)}
        depth = next((depth for depth, name in endings.items() if name in is_named), 0)
        if not depth or not fnmatchcase('/'.join(parts[:-depth]), f'{start}*'):
            continue
        name = endings[depth]
        if places.setdefault(name, file) != file:
            detail = f'{images.path}: {file} and {places[name]} have the same name'
            on_fault(Fault('image in two folders', detail, file=file))
    found = [places.get(name, file) for name, file in zip(wanted, files, strict=True)]
    return pd.Series(found, index=files.index, dtype=object)


def _describe(layout: Layout, table: Table) -> dict[str, np.ndarray]:
    """Read the view, projection, sex and age of each row, as in `Records`."""
    names = np.full(len(table), layout.views if isinstance(layout.views, str) else '', object)
    if layout.view:
        names = table[layout.view].map(_view_cells(layout)).fillna('').to_numpy(object)
    view, ap_pa = np.array([VIEWS.get(name, ('', '')) for name in names], object).reshape(-1, 2).T
    if layout.projection:
        is_known = (view == 'frontal') & table[layout.projection].isin(['AP', 'PA']).to_numpy(bool)
        ap_pa = np.where(is_known, table[layout.projection], ap_pa)
    sexes = {cell: SEXES[cell.lower()] for cell in table[layout.sex] if cell.lower() in SEXES}
    sexes |= _by_cell(layout.sexes)
    ages = {cell: _years(match) for cell in table[layout.age] if (match := AGE.fullmatch(cell))}
    allowed = f'F, M, Female, Male, Other, Unknown, empty, or a cell in sexes of {layout.file}'
    sex = table.map(layout.sex, sexes, 'value of the sex', allowed=allowed, dtype=object)
    allowed = 'years such as 61, 061Y, 85 or more, months such as 006M, or empty'
    age = table.map(layout.age, {'': np.nan} | ages, 'value of the age', allowed=allowed)
    return {'view': view, 'ap_pa': ap_pa, 'sex': sex, 'age': age}


def _years(match: re.Match[str]) -> float:
    # A greater age, such as NIH's 412, is a typing error and counts as unknown.
    years = float(match[1]) / PER_YEAR[match[2]]
    return years if years <= OLDEST else np.nan

"""Known data sets: functions from the folder of a data set, as unpacked, to its table.

A function returns one row per image with the columns of CheXpert's form: `Path`, the labels, and as
far as they are known `Split`, `Patient`, `Study`, `Sex`, `Age`, `Frontal/Lateral` and `AP/PA`
(docs/howto/datasets.md). It may also return a table for each split. To add a data set, write one
function and its line in FUNCTIONS, or a file with a function `read` (DATA.DATASET my_set.py).

The index of a table has the number of each row, which determines random numbers of its image, and
the name of the index is the file that these rows are in. Tables of `open_table` have both. Warnings
of a function (`warnings.warn`) become warnings of the run.
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from config import import_by_name
from data.images.image_source import open_images
from data.images.views import POSITIONS
from data.tables.identity import look_up_names
from data.tables.labels import CELLS
from data.tables.records import OLDEST, OTHER_VIEW
from data.tables.table import Table, find_file
from data.tables.table_files import open_text, refuse_other_contents, text_cells
from data.tables.table_warnings import NO_LABELS
from data.tables.unknown import known_cells

SEXES = {'f': 'Female', 'female': 'Female', 'w': 'Female', 'm': 'Male', 'male': 'Male'}
SEXES |= {'': 'Unknown', 'o': 'Unknown', 'other': 'Unknown'}
AGE = re.compile(r'(\d+(?:\.\d*)?) ?([YMWD]?)(?: or more|\+)?', re.ASCII)  # 61, 061Y, 85 or more
PER_YEAR = {'': 1.0, 'Y': 1.0, 'M': 12.0, 'W': 52.18, 'D': 365.25}
# Words in the names of files on Hugging Face's hub, and their beginnings.
HUB_SPLIT = re.compile(
    r'(?<![a-z])'
    '(train|training|val|valid|validation|dev|test|testing|eval|evaluation)'
    '(?![a-z])'
)
HUB_SPLITS = {'tr': 'train', 'va': 'valid', 'de': 'valid', 'te': 'test', 'ev': 'test'}
NO_NAMES = ('', 'nan', 'null', 'na', 'n/a')  # texts in a list that name no label
HINT = 'DATA.DATA_PATH'
NIH_LABELS = (
    'Atelectasis Cardiomegaly Effusion Infiltration Mass Nodule Pneumonia Pneumothorax '
    'Consolidation Edema Emphysema Fibrosis Pleural_Thickening Hernia'
).split()
MIMIC_SPLITS = {'validate': 'valid'}
OF_TEST = 'test-set-labeled'  # radiologists' labels of test studies, without patients (2.1.0)


def nih(root: Path, image_suffix: str = '') -> pd.DataFrame:
    """NIH ChestX-ray14 (Wang et al. 2017, arXiv:1705.02315), with images in one or 12 folders."""
    table = open_table(root, 'Data_Entry_2017*.csv')
    names = table['Image Index']
    lists = {'train': 'train_val_list.txt', 'test': 'test_list.txt'}
    made = pd.DataFrame(
        {
            'Path': locate(root, names, 'images', image_suffix),
            'Split': listed_splits(root, names, lists),
            'Patient': table['Patient ID'],
            'Study': table['Follow-up #'],
            'Sex': sexes(table['Patient Gender']),
            'Age': ages(table['Patient Age']),
        }
    )
    labels = listed(table['Finding Labels'], '|', [*NIH_LABELS, 'No Finding'])
    return made.join(views(table['View Position'])).join(labels)


def vindr(root: Path) -> dict[str, pd.DataFrame]:
    """VinDr-CXR (Nguyen et al. 2022, arXiv:2012.15029): the majority of three radiologists."""
    made = {}
    for split in ('train', 'test'):
        table = open_table(root, f'annotations/image_labels_{split}.csv')
        names = [name for name in table if name not in ('image_id', 'rad_id')]
        labels = majority(table, 'image_id', names).rename(columns={'No finding': 'No Finding'})
        path = f'{split}/' + table['image_id'][labels.index] + '.dicom'
        made[split] = labels.assign(Path=path, Patient=path).join(views(path, 'PA'))
    return made


def rsna(root: Path) -> pd.DataFrame:
    """RSNA Pneumonia Detection Challenge 2018 (Shih et al. 2019): a row for each box."""
    table = open_table(root, 'stage_2_train_labels.csv')
    values = label_values(table, ['Target'])['Target'].groupby(table['patientId']).transform('max')
    image = table['patientId'].drop_duplicates() + '.dcm'
    path = 'stage_2_train_images/' + image
    made = pd.DataFrame({'Path': path, 'Patient': image, 'Pneumonia': values[image.index]})
    return made.join(views(path, 'frontal'))


def padchest(root: Path) -> pd.DataFrame:
    """PadChest (Bustos et al. 2020, arXiv:1901.07441). The table has no ages."""
    table = open_table(root, 'PADCHEST_chest_x_ray_images_labels_160K*.csv*')
    labels = listed(table['Labels'], ',').rename(columns={'normal': 'No Finding'})
    unknown = ('exclude', 'suboptimal study', 'unchanged')  # the list is not complete
    names = [name for name in labels if name.casefold() in unknown]
    left_out = (labels[names] == 1).any(axis=1)
    if left_out.any():
        words = ', '.join(unknown)
        text = f'{left_out.sum():,} of {len(table):,} rows are left out ({words})'
        warnings.warn(text, stacklevel=1)
    made = pd.DataFrame(
        {
            'Path': table['ImageDir'] + '/' + table['ImageID'],
            'Patient': table['PatientID'],
            'Study': table['StudyID'],
            'Sex': sexes(table['PatientSex_DICOM']),
        }
    )
    made = made.join(views(table['Projection'])).join(labels.drop(columns=names))
    return made[~left_out]


def brax(root: Path) -> pd.DataFrame:
    """BRAX (Reis et al. 2022, doi:10.1038/s41597-022-01608-8), with CheXpert's observations."""
    table = open_table(root, 'master_spreadsheet_update.csv')
    theirs = {'PngPath': 'Path', 'PatientID': 'Patient', 'AccessionNumber': 'Study'}
    made = table.rename(columns=theirs).join(views(table['ViewPosition']))
    return made.assign(Sex=sexes(table['PatientSex']), Age=ages(table['PatientAge']))


def chexpert_plus(root: Path, image_suffix: str = '') -> pd.DataFrame:
    """CheXpert Plus (Chambon et al. 2024, arXiv:2405.19538): labels by CheXbert from reports."""
    table = open_table(root, 'df_chexpert_plus_*.csv')
    names = table['path_to_image']
    labels = join_labels(
        table, open_table(root, 'chexbert_labels/report_fixed.json'), ['path_to_image']
    )
    view = table['frontal_lateral'].where(table['frontal_lateral'] != 'Frontal', table['ap_pa'])
    view = view.where(view.isin(['AP', 'PA', 'Lateral']), table['frontal_lateral'])
    made = pd.DataFrame(
        {
            'Path': locate(root, names, '', image_suffix or '.png'),
            'Split': table['split'],
            'Patient': table['deid_patient_id'],
            'Study': table['patient_report_date_order'],
            'Sex': sexes(table['sex']),
            'Age': ages(table['age']),
            'race': table['race'],
            'ethnicity': table['ethnicity'],
        }
    )
    return made.join(views(view)).join(labels)


def mimic(root: Path, labeller: str = 'chexpert') -> pd.DataFrame:
    """MIMIC-CXR-JPG (Johnson et al. 2019, arXiv:1901.07042) with the labels of DATA.LABELLER.

    Sex and age are not in these files. Images of studies without labels are left out.
    """
    table = mimic_images(root)
    kinds = ['metadata', *labeller.replace('radiologist', OF_TEST).split('+')]
    metadata, of_all, *of_test = (
        open_table(root, f'mimic-cxr-*-{kind}.csv', f'mimic-cxr-*-{kind}.csv.gz') for kind in kinds
    )
    position = join(table, metadata[['dicom_id', 'ViewPosition']], ['dicom_id'])['ViewPosition']
    labels = join_labels(table, of_all, ['subject_id', 'study_id'])
    is_test = table['Split'] == 'test'
    for theirs in of_test:
        labels[is_test] = join_labels(table[is_test], theirs, ['study_id'])[labels.columns]
    made = table[['Path', 'Split']].join(views(position)).join(labels)
    return made[labels.iloc[:, 0] != NO_LABELS]


def mimic_images(root: Path) -> pd.DataFrame:
    """Return the images that MIMIC-CXR-JPG lists, with and without labels, by Path and Split."""
    table = open_table(root, 'mimic-cxr-*-split.csv', 'mimic-cxr-*-split.csv.gz')
    study = 'files/p' + table['subject_id'].str[:2] + '/p' + table['subject_id']
    path = study + '/s' + table['study_id'] + '/' + table['dicom_id'] + '.jpg'
    return table.assign(Path=path, Split=table['split'].replace(MIMIC_SPLITS))


FUNCTIONS = {
    'brax': brax,
    'chexpert_plus': chexpert_plus,
    'mimic-cxr': mimic,
    'nih': nih,
    'padchest': padchest,
    'rsna': rsna,
    'vindr': vindr,
}


# ---- what functions are made of


def open_table(root: Path, *patterns: str) -> pd.DataFrame:
    """Read the one file that matches a pattern, as text cells (`data.tables.table_files`).

    The index has the numbers of the rows, and its name is the path of the file below the root.
    """
    file = find_file(Path(root), *patterns, hint=HINT)
    return Table(file).texts().rename_axis(file.relative_to(root).as_posix())


def images_below(root: Path) -> pd.Series:
    """Return the paths of all image files below a folder, sorted."""
    return pd.Series(open_images(root).below(), dtype=object)


def hub(root: Path) -> pd.DataFrame:
    """Return the columns of the Parquet files of a data set of Hugging Face's hub, without images.

    `Path` names the images in them (`data.images.hub`). Without a column `Split`, the names of the
    files say it: train if they say nothing. A column whose cells are numbers of classes becomes a
    column of 1 and 0 for each class, with the name of the column in front if another one has such a
    class, too.

    Raises:
        ValueError: If the files have different columns or classes, or if the rows of a file with
            `test` or `valid` in its name say another split.
    """
    tables: dict[str, pd.DataFrame] = {}
    for path in sorted(Path(root).rglob('*.parquet')):
        file = path.relative_to(root).as_posix()
        if any(part.startswith('.') for part in file.split('/')):
            continue
        images = import_by_name('data.images.hub:image_names')(root, file)
        if not images:
            continue
        # A row with an image counts, also if all its other cells are empty.
        table = Table(path).texts().reindex(range(len(images)), fill_value='')
        kinds = import_by_name('data.images.hub:class_names')(root, file)
        counts = Counter([*table, *chain.from_iterable(kinds.values())])
        for column, names in kinds.items():
            try:
                marks = _marks_of_classes(table[column], names)
            except ValueError as error:
                raise ValueError(f'{path}: {error}') from error
            marks.columns = [f'{column} {name}' if counts[name] > 1 else name for name in names]
            table = table.drop(columns=column).join(marks)
        words = HUB_SPLIT.findall(file.lower()) or ['train']
        split = HUB_SPLITS[words[-1][:2]]
        if 'Split' not in table:
            table['Split'] = split
        elif split != 'train' and (others := {*table['Split']} - {split, ''}):
            # A data set that the hub knows as train alone may have all splits in this column.
            raise ValueError(
                f'{path}: its name says {split}, but its column Split says {min(others)!r}'
            )
        tables[file] = table.assign(Path=images)
    if not tables:
        raise ValueError(f'{root}: there is no Parquet file with images')
    _refuse_other_columns(root, tables)
    return pd.concat(tables.values(), ignore_index=True)


def locate(root: Path, names: pd.Series, folder: str = '', suffix: str = '') -> pd.Series:
    """Return the paths of image files that lie in unknown folders; names not found stay as is.

    Args:
        root: Folder of the data set.
        names: Names, which may have folders.
        folder: Beginning of the paths of the images, such as 'images'.
        suffix: Suffix of the files, if it is not that of the names.
    """
    if suffix:
        names = names.map(lambda name: str(Path(name).with_suffix(suffix)))
    wanted, places = {*names}, {}
    depths = {name.count('/') + 1 for name in wanted}
    for file in images_below(root):
        parts = file.split('/')
        for depth in depths:
            name = '/'.join(parts[-depth:])
            if name in wanted and file.startswith(folder) and places.setdefault(name, file) != file:
                raise ValueError(f'{root}: {file} and {places[name]} have the same name')
    return names.map(lambda name: places.get(name, name))


def listed_splits(root: Path, names: pd.Series, files: Mapping[str, str]) -> pd.Series:
    """Return the split of each image from text files with an image per line, '' for no split."""
    splits: dict[str, str] = {}
    known = {*names}
    for split, pattern in files.items():
        file = find_file(Path(root), pattern, hint=HINT)
        try:
            refuse_other_contents(file)
            with open_text(file) as text:
                lines = text.read().splitlines()
        except ValueError as error:
            raise ValueError(f'{file} cannot be read: {error}') from error
        for number, line in enumerate(lines, start=1):
            name = line.strip()
            if name and name not in known:
                raise ValueError(f'{file}: line {number}: {name} has no row in the table')
            if name and splits.setdefault(name, split) != split:
                raise ValueError(f'{file}: line {number}: {name} is also in {files[splits[name]]}')
    return names.map(lambda name: splits.get(name, ''))


def listed(cells: pd.Series, separator: str, names: Sequence[str] = ()) -> pd.DataFrame:
    """Return a column of 1 and 0 for each label that cells such as A|B or ['a', 'b'] list.

    A cell that lists nothing is blank, NaN in all columns.

    Args:
        cells: Texts.
        separator: Text between labels; '' if a cell is one label.
        names: All labels that may occur. Any other is an error, and all have a column.
    """
    cells = text_cells(cells)
    codes, texts = pd.factorize(cells.to_numpy(object))
    words = pd.Series(texts, dtype=object).str.strip()
    words = words.str.replace(r'\A\[(.*)\]\Z', r'\1', regex=True, flags=re.DOTALL)
    if separator:
        words = words.str.split(separator, regex=False).explode()
    words = words.str.strip().str.strip('\'"').str.strip()
    words = words[~words.str.casefold().isin(NO_NAMES)]
    columns = [*names] or sorted(words.unique())
    if len(others := words[~words.isin(columns)]):
        row = f'{cells.index.name}, row {int(cells.index[(codes == others.index[0]).argmax()]) + 2}'
        allowed = f'is not one of {", ".join(columns)}'
        raise ValueError(f'{row}: column {cells.name!r}: {others.iloc[0]!r} {allowed}')
    marks = pd.get_dummies(words, dtype=np.float32).groupby(level=0).max()
    marks = marks.reindex(columns=columns, fill_value=np.float32(0)).reindex(range(len(texts)))
    return marks.take(codes).set_axis(cells.index)


def label_values(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return columns of labels as 1, 0, -1 and NaN; another cell is an error with its row."""
    checked = Table(str(table.index.name), cells=table)
    checked.require(labels=names)
    values = {name: checked.map(name, CELLS, 'value of a label') for name in names}
    return pd.DataFrame(values, table.index)


def majority(
    table: pd.DataFrame, image: str, names: Sequence[str], reader: str = 'rad_id'
) -> pd.DataFrame:
    """Return the labels of most readers of each image, in its first row; a tie is uncertain.

    Each row is the vote of a reader; of several rows of a reader, one positive is enough. A table
    without a column of readers has one row for each image.
    """
    values = label_values(table, names)
    keys = [table[name] for name in (image, reader) if name in table]
    votes = values.groupby(keys, sort=False).max()
    positive, negative, known = (
        part.groupby(level=0, sort=False).sum() for part in (votes == 1, votes == 0, votes.notna())
    )
    labels = np.select([positive > negative, negative > positive, known > 0], [1, 0, -1], np.nan)
    return pd.DataFrame(labels, table[image].drop_duplicates().index, names)


def join(table: pd.DataFrame, other: pd.DataFrame, on: Sequence[str]) -> pd.DataFrame:
    """Return the row of another table for each row, found by columns with names of both.

    Names are compared in their canonical form (`data.tables.identity`).

    Raises:
        ValueError: If a row is not found.
    """
    place = _places(table, other, on)
    if (place < 0).any():
        name = table[on[-1]][place < 0].iloc[0]
        raise ValueError(
            f'{other.index.name} has no row of {(place < 0).sum()} rows, such as {name}'
        )
    return other.drop(columns=[*on]).iloc[place].set_axis(table.index)


def join_labels(table: pd.DataFrame, other: pd.DataFrame, on: Sequence[str]) -> pd.DataFrame:
    """Return the labels of each row as `join`; rows that have none get NO_LABELS and a warning."""
    place = _places(table, other, on)
    labels = other.drop(columns=[name for name in ('subject_id', 'study_id', *on) if name in other])
    if len(missing := table[on[-1]][place < 0]):
        warnings.warn(
            f'{len(missing):,} of {len(table):,} rows have no row in {other.index.name} and are '
            f'left out, such as row {int(missing.index[0]) + 2}',
            stacklevel=2,
        )
    labels = labels.iloc[place].set_axis(table.index)
    labels.loc[place < 0] = NO_LABELS
    return labels


def views(cells: pd.Series, view: str = '') -> pd.DataFrame:
    """Return the columns Frontal/Lateral and AP/PA for cells such as PA, or for one view of all."""
    if view:
        cells = pd.Series(view, cells.index)
    words = text_cells(cells).str.strip().str.upper().replace('AP_HORIZONTAL', 'AP')
    made = pd.DataFrame({'Frontal/Lateral': words.map(POSITIONS).str.capitalize()}, cells.index)
    return made.fillna(OTHER_VIEW).assign(**{'AP/PA': words.where(words.isin(['AP', 'PA']), '')})


def sexes(cells: pd.Series) -> pd.Series:
    """Return Female, Male or Unknown for the usual letters and words; other cells stay."""
    known = pd.Series(known_cells(text_cells(cells)), cells.index, object)
    return known.map(lambda cell: SEXES.get(cell.strip().lower(), cell))


def ages(cells: pd.Series) -> pd.Series:
    """Return years for cells such as 61, 061Y, 006M or 85 or more; other cells stay.

    A greater age than OLDEST, such as NIH's 412, is a typing error and counts as unknown.
    """

    def years(cell: str) -> str:
        match = AGE.fullmatch(cell)
        if not match:
            return cell
        age = float(match[1]) / PER_YEAR[match[2]]
        return repr(age) if age <= OLDEST else ''

    return pd.Series(known_cells(text_cells(cells)), cells.index, object).map(years)


def _places(table: pd.DataFrame, other: pd.DataFrame, on: Sequence[str]) -> np.ndarray:
    """Return the position of each row in another table, -1 for none."""
    for frame in (table, other):
        if absent := [name for name in on if name not in frame]:
            found = ', '.join(map(str, frame))
            place = frame.index.name or 'a table'
            raise ValueError(f'{place}: there is no column {absent[0]} to join by; found: {found}')
    wanted, known = (
        reduce(lambda a, b: a + '/' + b, (text_cells(frame[name]) for name in on))
        for frame in (table, other)
    )
    if known.duplicated().any():
        name, row = known[known.duplicated()].iloc[0], int(known.index[known.duplicated()][0]) + 2
        raise ValueError(f'{other.index.name}, row {row}: {name} already has a row')
    return look_up_names(wanted, known, str(other.index.name))


def _refuse_other_columns(root: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Refuse files whose columns differ: cells of a missing one would be blank, so negative."""
    first, *others = tables
    for file in others:
        differing = [
            f'only {one} has {", ".join(map(repr, names))}'
            for one, two in ((first, file), (file, first))
            if (names := [name for name in tables[one] if name not in tables[two]])
        ]
        if differing:
            raise ValueError(
                f'{root}: its files must have the same columns and classes, but '
                f'{"; ".join(differing)}. Names of classes are in the metadata of a file (features '
                'of `datasets`). Move files of another kind to a folder of their own'
            )


def _marks_of_classes(cells: pd.Series, names: Sequence[str]) -> pd.DataFrame:
    """Return a column of 1 and 0 for each class, from cells with its number or a list of numbers.

    An empty cell, and the number -1, have no class: they are blank in all columns.
    """
    marks = {}
    for cell in cells.unique():
        try:
            classes = json.loads(cell or '-1')
        except ValueError:
            classes = cell
        classes = classes if isinstance(classes, list) else [classes]
        if wrong := [number for number in classes if number not in range(-1, len(names))]:
            raise ValueError(
                f'column {cells.name!r}: {wrong[0]!r} is not a number of {len(names)} classes'
            )
        marks[cell] = ['' if -1 in classes else int(k in classes) for k in range(len(names))]
    return pd.DataFrame([marks[cell] for cell in cells], cells.index, [*names], dtype=object)

"""Groups of patients and images, for scores by group."""

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.chexpert import SEXES
from data.records import OLDEST, Records
from data.table import KEYS, MAX_COLUMNS, MAX_RATIO, MIN_LIMIT, Table, refuse_bomb

UNKNOWN = 'unknown'  # name of the group of images that are in no group
SUBJECT = 'subject_id'  # of MIMIC-IV: the number of a patient without the p of the folder's name
PATIENT_COLUMNS = ('PATIENT', 'Patient', 'patient', 'patient_id', SUBJECT)
SEX_COLUMNS = ('GENDER', 'gender', 'SEX', 'Sex')
AGE_COLUMNS = ('AGE_AT_CXR', 'anchor_age', 'AGE', 'Age')
AGE_BANDS = [0, 40, 60, 80]  # first ages in years; the last band has no upper end
STANDARD_GROUPS = ('Sex', 'Age', 'View')
MOST_GROUPS = 50  # in one column
MAX_ROWS = 2**20  # that are read of an Excel file


def all_groups(
    records: Records, columns: Sequence[str], demographics: str = ''
) -> dict[str, np.ndarray]:
    """Return the `standard_groups` and `group_columns` of images.

    Sex and age come from the demographics file if the records have neither (`add_demographics`).
    """
    records = add_demographics(records, demographics)
    more = group_columns(records, columns, demographics=demographics)
    return standard_groups(records) | more


def standard_groups(records: Records) -> dict[str, np.ndarray]:
    """Return the sex, age band and view of each image as text, '' if unknown.

    Age 0 counts as unknown, because CheXpert's patients are adults and 0 is a missing age there.

    Returns:
        Arrays [N] by column: 'Sex'; 'Age', such as '40-59' or '80 and over'; and 'View', which is
        'Lateral', 'Frontal', or 'Frontal AP' with a projection.
    """
    frontal = np.array([f'Frontal {name}'.strip() for name in records.ap_pa], object)
    frontal = np.where(records.view == 'frontal', frontal, '')
    bands = [f'{start}-{end - 1}' for start, end in zip(AGE_BANDS, AGE_BANDS[1:], strict=False)]
    names = np.array([*bands, f'{AGE_BANDS[-1]} and over'], object)
    band = names[np.searchsorted(AGE_BANDS, np.nan_to_num(records.age), side='right') - 1]
    return {
        'Sex': np.where(records.sex == 'Unknown', '', records.sex),
        'Age': np.where(np.isnan(records.age) | (records.age == 0), '', band),
        'View': np.where(records.view == 'lateral', 'Lateral', frontal),
    }


def group_columns(
    records: Records, columns: Sequence[str], *, demographics: str = ''
) -> dict[str, np.ndarray]:
    """Return the text of each image in further columns, '' for an empty or missing cell.

    A column is read from the CSV file of the records, by row, or else from the demographics file,
    by patient. Patients who are not in the demographics file have ''.

    Args:
        records: Records of N images.
        columns: Names of columns.
        demographics: CSV or Excel file (.xlsx) in the data folder with one row per patient, such as
            CheXpert's (PATIENT, GENDER, AGE_AT_CXR, PRIMARY_RACE, ETHNICITY).

    Returns:
        Text [N] by column, in the given order.

    Raises:
        ValueError: If a column is in neither file or does not form groups, or if the demographics
            do not fit the records.
    """
    if not columns or not len(records):
        return {name: np.array([], object) for name in columns}
    found, own, more = {}, _own_cells(records), pd.DataFrame()
    if demographics and not set(columns) <= set(own):
        more = read_demographics(records, demographics).cells
    for name in columns:
        if name in (*STANDARD_GROUPS, *KEYS, *records.label_names):
            names = ', '.join(STANDARD_GROUPS)
            raise ValueError(f'EVAL.GROUPS must not contain labels or {names}, got {name!r}')
        if name not in own and name not in more:
            there = ', '.join((*own, *more)) or 'none'
            raise ValueError(
                f'EVAL.GROUPS: there is no column {name!r}; found: {there}. A file of DATA.'
                'DEMOGRAPHICS or --demographics may add columns'
            )
        if name in own:
            values = own[name]
        else:
            values = _by_patient(more, name, demographics).reindex(records.patient)
        found[name] = values.fillna('').to_numpy(object)
        count = len(set(found[name]) - {''})
        if count > MOST_GROUPS:
            raise ValueError(
                f'EVAL.GROUPS: {name!r} has {count} values, at most {MOST_GROUPS} are allowed'
            )
    return found


def read_demographics(records: Records, name: str) -> Table:
    """Read the demographics file in the folder of the records; its patients become 'patient'."""
    file = records.root / name
    is_excel = file.suffix == '.xlsx' and file.is_file()
    table = read_excel(file) if is_excel else Table(file)
    table.require(PATIENT_COLUMNS)
    key = next(column for column in PATIENT_COLUMNS if column in table)
    example = records.patient[0]
    if key == SUBJECT and example.startswith('p'):
        table.cells[key] = 'p' + table[key].str.removeprefix('p')
    if not table[key].str.startswith(example.rstrip('0123456789')).any():
        raise ValueError(f'{file}: no cell of the column {key!r} is a patient such as {example}')
    table.cells = table.cells.rename(columns={key: 'patient'})
    return table


def add_demographics(records: Records, demographics: str) -> Records:
    """Return records with the sex and age of the demographics file, if they have neither.

    The columns are the first of SEX_COLUMNS and AGE_COLUMNS that exist. MIMIC-CXR-JPG states
    neither, and the file `patients.csv` of MIMIC-IV states `gender` and `anchor_age`.
    """
    is_known = (records.sex != 'Unknown').any() or not np.isnan(records.age).all()
    if not demographics or is_known or not len(records):
        return records
    table, found = read_demographics(records, demographics), {}
    if sex := [column for column in SEX_COLUMNS if column in table]:
        cells = SEXES | {'F': 'Female', 'M': 'Male'}
        table.cells[sex[0]] = table.map(sex[0], cells, 'value of the sex', dtype=object)
        sexes = _by_patient(table.cells, sex[0], demographics).reindex(records.patient)
        found['sex'] = sexes.fillna('Unknown').to_numpy(object)
    if age := [column for column in AGE_COLUMNS if column in table]:
        table.cells[age[0]] = table.numbers(age[0], 'value of the age', most=OLDEST)
        ages = _by_patient(table.cells, age[0], demographics).reindex(records.patient)
        found['age'] = ages.to_numpy(float)
    return replace(records, **found)


def _own_cells(records: Records) -> pd.DataFrame:
    """Return the cells of the CSV file for each record; no column for a folder of images."""
    if not records.csv:
        return pd.DataFrame()
    return Table(records.root / records.csv).cells.loc[records.row]


def _by_patient(table: pd.DataFrame, column: str, file: str) -> pd.Series:
    """Return the values of a column of the demographics, indexed by patient."""
    pairs = table.drop_duplicates(['patient', column]).set_index('patient')[column]
    again = pairs.index[pairs.index.duplicated()]
    if len(again):
        raise ValueError(f'DATA.DEMOGRAPHICS {file}: {again[0]} has several values of {column!r}')
    return pairs


def read_excel(file: Path) -> Table:
    """Read the first sheet of an Excel file as text; a whole number has no decimal point.

    Not by pandas.read_excel, which has no limit of columns: 80 KB can take minutes and all memory.
    """
    limit = max(MIN_LIMIT, MAX_RATIO * file.stat().st_size)
    try:
        from openpyxl import load_workbook

        with zipfile.ZipFile(file) as archive:
            refuse_bomb(sum(entry.file_size for entry in archive.infolist()), limit)
        sheet = load_workbook(file, read_only=True, data_only=True).worksheets[0]
        sheet.reset_dimensions()  # the file states them, and they may be wrong
        rows = sheet.iter_rows(max_row=MAX_ROWS, max_col=MAX_COLUMNS, values_only=True)
        filled = {
            number: [*map(_cell_text, row)]
            for number, row in enumerate(rows, -1)  # the header is in front of row 0
            if row.count(None) < len(row)
        }
        header = [name.strip() for name in filled.pop(min(filled))]
        if not filled:
            raise ValueError('there is no row below the header')
    except Exception as error:  # a damaged file makes openpyxl raise almost anything
        text = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValueError(f'{file} cannot be read (with openpyxl): {text}') from error
    cells = pd.DataFrame.from_dict(filled, 'index', object, header)
    is_named = (cells.columns != '') & ~cells.columns.duplicated()
    table = Table(file, cells=cells.loc[:, is_named])
    table.has_rows = True  # so that messages name them
    return table


def _cell_text(cell: Any) -> str:
    """Return the cell of an Excel file as text."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return '' if cell is None else str(cell)

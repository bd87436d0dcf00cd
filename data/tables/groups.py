"""Groups of patients and images, for scores by group."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from data.tables.chexpert import SEXES
from data.tables.identity import look_up_names, patient_forms, patient_name
from data.tables.records import OLDEST, Records
from data.tables.table import KEYS, Table
from data.tables.unknown import NOBODY, known_cells

UNKNOWN = 'unknown'  # name of the images that are in no group of a column
# View of frontal images that are neither AP nor PA, as far as it is known: of no known view.
UNPROJECTED = 'Frontal of unknown projection'
PATIENT_COLUMNS = ('PATIENT', 'Patient', 'patient', 'patient_id', 'subject_id')
SEX_COLUMNS = ('GENDER', 'gender', 'SEX', 'Sex')
AGE_COLUMNS = ('AGE_AT_CXR', 'anchor_age', 'AGE', 'Age')
AGE_BANDS = [0, 40, 60, 80]  # first ages in years; the last band has no upper end
STANDARD_GROUPS = ('Sex', 'Age', 'View')
FRONTAL = {'AP': 'Frontal AP', 'PA': 'Frontal PA'}  # projection -> view
MOST_GROUPS = 50  # in one column


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

    Age 0 counts as unknown, because CheXpert's patients are adults and 0 is a missing age there. An
    unknown sex is that of other images of the patient, and an unknown age that of other images of
    the study, if these have one value.

    Returns:
        Arrays [N] by column: 'Sex'; 'Age', such as '40-59' or '80 and over'; and 'View', which is
        'Lateral', 'Frontal AP', 'Frontal PA', or UNPROJECTED.
    """
    frontal = np.array([FRONTAL.get(name, UNPROJECTED) for name in records.ap_pa], object)
    frontal = np.where(records.view == 'frontal', frontal, '')
    bands = [f'{start}-{end - 1}' for start, end in zip(AGE_BANDS, AGE_BANDS[1:], strict=False)]
    names = np.array([*bands, f'{AGE_BANDS[-1]} and over'], object)
    sex = _shared(np.where(records.sex == 'Unknown', None, records.sex), records.patient)
    age = _shared(np.where(records.age == 0, np.nan, records.age), records.study)
    band = names[np.searchsorted(AGE_BANDS, age.fillna(0), side='right') - 1]
    return {
        'Sex': sex.fillna('').to_numpy(object),
        'Age': np.where(age.isna(), '', band),
        'View': np.where(records.view == 'lateral', 'Lateral', frontal),
    }


def _shared(values: np.ndarray, of: np.ndarray) -> pd.Series:
    """Return values [N], where unknown the only known one of the same patient or study `of` [N]."""
    series = pd.Series(values)
    pairs = pd.DataFrame({'of': of, 'value': series})[series.notna()].drop_duplicates()
    single = pairs[~pairs['of'].duplicated(keep=False)].set_index('of')['value']
    return series.fillna(pd.Series(of, dtype=object).map(single))


def members(values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mask [N] of the images of each group of a column, in `natural_order`.

    Images whose group is unknown ('') are UNKNOWN, unless the column knows the group of none.
    """
    if not any(values):
        return {}
    named = np.where(values == '', UNKNOWN, values)
    return {name: named == name for name in sorted({*named}, key=natural_order)}


def is_unknown(names: str | np.ndarray) -> np.ndarray:
    """Return whether names of groups say that the group is unknown."""
    return np.isin(names, ('', UNKNOWN, UNPROJECTED))


def natural_order(name: str) -> list[tuple[float, str]]:
    """Return a sort key that orders numbers in a name by value: '5-9' before '10-14'.

    UNKNOWN is the last.
    """
    if name == UNKNOWN:
        return [(float('inf'), '')]
    parts = re.findall(r'\d+|\D+', name)
    return [(int(part), '') if part.isdecimal() else (-1, part) for part in parts]


def group_columns(
    records: Records, columns: Sequence[str], *, demographics: str = ''
) -> dict[str, np.ndarray]:
    """Return the text of each image in further columns, '' for an empty, missing or unknown cell.

    A column is that of the table of the records, if it was read (`Records.groups`), or else that of
    the demographics file, by patient. Patients who are not in that file have ''.

    Args:
        records: Records of N images.
        columns: Names of columns.
        demographics: Table in the data folder with one row per patient, such as
            CheXpert's (PATIENT, GENDER, AGE_AT_CXR, PRIMARY_RACE, ETHNICITY).

    Returns:
        Text [N] by column, in the given order.

    Raises:
        ValueError: If a column is in neither file or does not form groups, or if the demographics
            do not fit the records.
    """
    if not columns or not len(records):
        return {name: np.array([], object) for name in columns}
    found, more = {}, pd.DataFrame()
    if demographics and not set(columns) <= set(records.group_names):
        more = read_demographics(records, demographics).cells
    for name in columns:
        if name in (*STANDARD_GROUPS, *KEYS, *records.label_names):
            names = ', '.join(STANDARD_GROUPS)
            raise ValueError(f'EVAL.GROUPS must not contain labels or {names}, got {name!r}')
        if name in records.group_names:
            found[name] = records.groups[:, records.group_names.index(name)]
        elif name in more:
            values = _by_patient(records, more, name, demographics)
            found[name] = values.fillna('').to_numpy(object)
        else:
            there = ', '.join((*records.group_names, *records.other_names, *more)) or 'none'
            raise ValueError(
                f'EVAL.GROUPS: there is no column {name!r}; found: {there}. A file of DATA.'
                'DEMOGRAPHICS or --demographics may add columns'
            )
        found[name] = known_cells(found[name])
        count = len(set(found[name]) - {''})
        if count > MOST_GROUPS:
            raise ValueError(
                f'EVAL.GROUPS: {name!r} has {count} values, at most {MOST_GROUPS} are allowed'
            )
    return found


def read_demographics(records: Records, name: str) -> Table:
    """Read the demographics file in the folder of the records; its patients become 'patient'."""
    table = Table(records.root / name)
    table.require(PATIENT_COLUMNS)
    key = next(column for column in PATIENT_COLUMNS if column in table)
    table.empty_unknown(*table.cells)
    table.empty_unknown(key, also=NOBODY)
    table.cells = table.cells[table[key] != ''].rename(columns={key: 'patient'})
    table.add(patient=[*map(patient_name, table['patient'])])
    ours, theirs = ({re.sub(r'\d+', '0', form) for form in {*patient_forms(names)}} for names in
                    (records.patient, table['patient']))  # fmt: skip
    if ours.isdisjoint(theirs):
        example = records.patient[0]
        raise ValueError(
            f'{table.file}: no cell of the column {key!r} is a patient such as {example}'
        )
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
        sexes = _by_patient(records, table.cells, sex[0], demographics)
        found['sex'] = sexes.fillna('Unknown').to_numpy(object)
    if age := [column for column in AGE_COLUMNS if column in table]:
        table.cells[age[0]] = table.numbers(age[0], 'value of the age', most=OLDEST)
        ages = _by_patient(records, table.cells, age[0], demographics)
        found['age'] = ages.to_numpy(float)
    return replace(records, **found)


def _by_patient(records: Records, table: pd.DataFrame, column: str, file: str) -> pd.Series:
    """Return the values of a column of the demographics for each record, NaN if unknown.

    Of several rows of a patient, those whose value is unknown do not count.
    """
    is_known = ~table[column].isin(['', 'Unknown']) & table[column].notna()
    pairs = table[is_known].drop_duplicates(['patient', column])
    again = pairs['patient'][pairs['patient'].duplicated()]
    if len(again):
        raise ValueError(
            f'DATA.DEMOGRAPHICS {file}: {again.iloc[0]} has several values of {column!r}'
        )
    codes, patients = pd.factorize(records.patient)
    wanted = [*map(patient_name, patients)]
    place = look_up_names(wanted, pairs['patient'], f'DATA.DEMOGRAPHICS {file}')
    values = np.append(pairs[column].astype(object).to_numpy(), np.nan)  # the last one for -1
    return pd.Series(values[place][codes], dtype=object)

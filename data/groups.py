"""Groups of patients and images: sex, age bands, views, and any column of a CSV."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from data.chexpert import Records
from data.labels import LABELS, cell_error
from data.tables import describe_columns, read_table

PATIENT_COLUMNS = ('PATIENT', 'Patient', 'patient', 'patient_id')
DIGITS = '0123456789'
STANDARD_GROUPS = ('Sex', 'Age', 'View')
NO_GROUPS = ('Path', 'Study', *LABELS)
MOST_GROUPS = 50  # of one column
OPTIONS = ('EVAL.GROUPS', 'DATA.DEMOGRAPHICS')


def standard_groups(records: Records, age_bands: Sequence[int]) -> dict[str, np.ndarray]:
    """Sex, age band and view of each image, as text that is '' where unknown.

    Age 0 counts as unknown: CheXpert's patients are adults, and 0 stands for a missing age there.

    Args:
        records: the images.
        age_bands: where the bands begin, in years, ascending; the last has no end.

    Returns:
        'Sex'; 'Age' such as '40-59' or '80 and over'; 'View': 'Lateral', or 'Frontal' with its
        projection where it has one ('Frontal AP').
    """
    frontal = np.array([f'Frontal {name}'.strip() for name in records.ap_pa], object)
    frontal = np.where(records.view == 'frontal', frontal, '')
    return {
        'Sex': np.where(records.sex == 'Unknown', '', records.sex),
        'Age': _bands(records.age, age_bands),
        'View': np.where(records.view == 'lateral', 'Lateral', frontal),
    }


def group_columns(
    records: Records,
    columns: Sequence[str],
    *,
    demographics: str = '',
    options: tuple[str, str] = OPTIONS,
) -> dict[str, np.ndarray]:
    """Each image's text in further columns, '' where there is none.

    A column is taken from the records' own CSV, by row, or else from the demographics file, by
    patient; patients that are not in that file have ''.

    Args:
        records: the images.
        columns: names of columns.
        demographics: a CSV inside the data's folder with one row a patient, such as CheXpert's
            (PATIENT, GENDER, AGE_AT_CXR, PRIMARY_RACE, ETHNICITY) saved as CSV; '' for none.
        options: what errors call the two options that name columns and demographics.

    Returns:
        Column -> [N] text, in the order asked for.

    Raises:
        ValueError: if a column is in neither file or holds no groups, or if the demographics do not
            fit.
    """
    _refuse_names(columns, options[0])
    if not columns or not len(records):
        return {name: np.array([], object) for name in columns}
    own, more = _own_table(records), None
    found = {}
    for name in columns:
        if name in own:
            found[name] = own[name].to_numpy(object)
        else:
            if demographics and more is None:
                more = _read_demographics(records, demographics, options[1])
            if more is None or name not in more:
                raise ValueError(_describe_missing(name, records, own, demographics, more, options))
            values = _one_value_each(more[name], str(records.root / demographics))
            found[name] = values.reindex(records.patient, fill_value='').to_numpy(object)
        _refuse_many(name, found[name], options[0])
    return found


def _bands(ages: np.ndarray, age_bands: Sequence[int]) -> np.ndarray:
    ends = [f'{start}-{end - 1}' for start, end in zip(age_bands, age_bands[1:], strict=False)]
    names = np.array([f'under {age_bands[0]}', *ends, f'{age_bands[-1]} and over'], object)
    band = names[np.searchsorted(age_bands, np.nan_to_num(ages), side='right')]
    return np.where(np.isnan(ages) | (ages == 0), '', band)


def _refuse_names(columns: Sequence[str], option: str) -> None:
    for name in columns:
        if name in STANDARD_GROUPS:
            raise ValueError(
                f'{option}: {name!r} is always a group; name none of {", ".join(STANDARD_GROUPS)}'
            )
        if name in NO_GROUPS:
            raise ValueError(f'{option}: {name!r} names images or a label, no groups')


def _refuse_many(name: str, values: np.ndarray, option: str) -> None:
    groups = sorted(set(values) - {''})
    if len(groups) > MOST_GROUPS:
        raise ValueError(
            f'{option}: {name!r} has {len(groups)} different values, such as '
            f'{describe_columns(groups[:3])}; allowed are columns of at most {MOST_GROUPS}'
        )


def _own_table(records: Records) -> pd.DataFrame:
    """The records' own CSV, a row a record; nothing for a folder of images."""
    if not records.csv:
        return pd.DataFrame()
    table = read_table(records.root / records.csv)
    if 'Study' in table and 'Path' not in table:
        return table.set_index('Study', drop=False).loc[records.study]
    return table.loc[records.row]


def _read_demographics(records: Records, name: str, option: str) -> pd.DataFrame:
    """The demographics, indexed by (row of the file, patient)."""
    file = records.root / name
    if file.suffix.lower() in ('.xlsx', '.xls'):
        raise ValueError(f'{option}: {file} is a spreadsheet: export it as CSV')
    table = read_table(file)
    keys = [column for column in PATIENT_COLUMNS if column in table]
    if not keys:
        raise ValueError(
            f'{file}: no column of patients ({", ".join(PATIENT_COLUMNS)}); '
            f'found: {describe_columns(table)}'
        )
    patients, example = table[keys[0]], records.patient[0]
    form = re.compile(re.escape(example.rstrip(DIGITS)) + f'[{DIGITS}]+')
    foreign = [form.fullmatch(name) is None for name in patients]
    if any(foreign):
        problem = f'is no name of a patient such as {example}'
        raise cell_error(str(file), patients, foreign.index(True), problem)
    return table.set_index(patients, append=True)


def _one_value_each(column: pd.Series, source: str) -> pd.Series:
    """Patient -> value, of a column that is indexed by (row of the file, patient)."""
    rows, patients = (column.index.get_level_values(level) for level in (0, 1))
    pairs = pd.DataFrame({'row': rows, 'patient': patients, 'value': column.to_numpy()})
    pairs = pairs.drop_duplicates(['patient', 'value'])
    again = pairs['patient'].duplicated()
    if again.any():
        patient = pairs['patient'][again].iloc[0]
        first, second, *_ = pairs[pairs['patient'] == patient].itertuples()
        raise ValueError(
            f'{source}: {patient} has {column.name!r} {first.value!r} in row {first.row + 2} and '
            f'{second.value!r} in row {second.row + 2} (the header is row 1)'
        )
    return pairs.set_index('patient')['value']


def _describe_missing(
    name: str,
    records: Records,
    own: pd.DataFrame,
    demographics: str,
    more: pd.DataFrame | None,
    options: tuple[str, str],
) -> str:
    tables = {records.csv or 'a folder of images': own}
    if more is not None:
        tables[demographics] = more
    there = []
    for source, table in tables.items():
        columns = [column for column in table if column not in (*STANDARD_GROUPS, *NO_GROUPS)]
        there.append(f'{source} has {describe_columns(columns) or "none"}')
    hint = '' if demographics else f'; {options[1]} may name a CSV with more'
    return f'{options[0]}: no column {name!r}; {"; ".join(there)}{hint}'

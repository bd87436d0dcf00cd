"""Groups: sex, age bands and views as text; further columns by row or by patient."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from csv_files import HEADER, PREFIX, image_path, read, row, touch, write

from data.labels import LABELS
from data.records import MOST_GROUPS, Records, group_columns, read_csv, read_folder, standard_groups

BANDS = [0, 40, 60, 80]


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Patients 1 to 4, the first with two images; a column `Site` of their CSV."""
    images = [(1, 1, 'A'), (1, 2, 'A'), (2, 1, 'B'), (3, 1, ''), (4, 1, '=1+1')]
    rows = [row(image_path(patient, study), Site=site) for patient, study, site in images]
    return read(tmp_path, rows, ['Site', *HEADER])


def demographics(records: Records, *lines: str, name: str = 'demo.csv') -> str:
    (records.root / name).write_text('\n'.join(lines) + '\n')
    return name


# ---- sex, age, view


@pytest.mark.parametrize(
    'age, band',
    [
        ('1', '0-39'),
        ('39', '0-39'),
        ('39.9', '0-39'),
        ('40', '40-59'),
        ('59.5', '40-59'),
        ('60', '60-79'),
        ('80', '80 and over'),
        ('105', '80 and over'),
        ('0', ''),
        ('0.0', ''),
    ],
)
def test_age_falls_into_its_band_and_0_is_unknown(tmp_path: Path, age: str, band: str) -> None:
    records = read(tmp_path, [row(image_path(1), Age=age)])
    assert standard_groups(records, BANDS)['Age'].tolist() == [band]


def test_bands_begin_where_the_option_says(tmp_path: Path) -> None:
    rows = [row(image_path(i), Age=str(age)) for i, age in enumerate((17, 18, 64, 65))]
    groups = standard_groups(read(tmp_path, rows), [18, 65])
    assert groups['Age'].tolist() == ['under 18', '18-64', '18-64', '65 and over']


def test_sex_and_view_are_named_and_empty_where_unknown(tmp_path: Path) -> None:
    lateral = image_path(6, view='view2_lateral')
    projections = ['AP', 'PA', 'LL', 'RL', '']
    rows = [
        *(row(image_path(i), **{'AP/PA': name}) for i, name in enumerate(projections)),
        row(lateral, Sex='Unknown', **{'AP/PA': ''}),
        row(lateral.replace('06', '07'), Sex='Male', **{'AP/PA': 'PA'}),
    ]
    groups = standard_groups(read(tmp_path, rows), BANDS)
    assert list(groups) == ['Sex', 'Age', 'View']
    assert groups['Sex'].tolist() == ['Female'] * 5 + ['', 'Male']
    frontal = ['Frontal AP', 'Frontal PA', 'Frontal LL', 'Frontal RL', 'Frontal']
    assert groups['View'].tolist() == [*frontal, 'Lateral', 'Lateral']


def test_what_a_file_of_labels_or_a_folder_does_not_tell_is_unknown(tmp_path: Path) -> None:
    files = image_path(1, folder='train'), image_path(1, 1, 'view2_lateral', folder='train')
    touch(tmp_path, *files)
    write(tmp_path / 'test.csv', [{'Study': f'{PREFIX}/patient00001/study1'}], ['Study', *LABELS])
    groups = standard_groups(read_csv(tmp_path, 'test.csv'), BANDS)
    assert {name: values.tolist() for name, values in groups.items()} == {
        'Sex': ['', ''],
        'Age': ['', ''],
        'View': ['Frontal', 'Lateral'],
    }
    (tmp_path / 'test.csv').unlink()
    folder = standard_groups(read_folder(tmp_path, allow_all_images=False), BANDS)
    assert [values.tolist() for values in folder.values()] == [['', '']] * 3


# ---- columns of the records' own CSV


def test_own_column_follows_rows_through_selections_and_empty_lines(records: Records) -> None:
    assert group_columns(records, ['Site'])['Site'].tolist() == ['A', 'A', 'B', '', '=1+1']
    some = records.select(np.array([4, 0, 2]))
    assert group_columns(some, ['Site'])['Site'].tolist() == ['=1+1', 'A', 'B']
    csv_file = records.root / 'train.csv'
    lines = csv_file.read_text().splitlines()
    csv_file.write_text('\n'.join([*lines[:3], '', *lines[3:]]) + '\n')
    again = read_csv(records.root, 'train.csv')
    assert again.row.tolist() == [0, 1, 3, 4, 5]
    assert group_columns(again, ['Site'])['Site'].tolist() == ['A', 'A', 'B', '', '=1+1']


def test_columns_come_in_the_order_asked_for_and_none_is_none(records: Records) -> None:
    found = group_columns(records, ['AP/PA', 'Site', 'Frontal/Lateral'])
    assert list(found) == ['AP/PA', 'Site', 'Frontal/Lateral']
    assert found['AP/PA'].tolist() == ['AP'] * 5
    assert group_columns(records, []) == {}
    none = group_columns(records.select(records.row < 0), ['Site'], demographics='absent.csv')
    assert none['Site'].tolist() == []


def test_file_of_studies_gives_its_column_to_every_image(tmp_path: Path) -> None:
    touch(
        tmp_path,
        image_path(2, folder='test'),
        image_path(2, 1, 'view2_lateral', folder='test'),
        image_path(1, folder='test'),
    )
    studies = [
        {'Study': f'CheXpert-v1.0/test/patient{i:05d}/study1', 'Site': site}
        for i, site in ((2, 'two'), (1, 'one'))
    ]
    write(tmp_path / 'test.csv', studies, ['Study', 'Site', *LABELS])
    records = read_csv(tmp_path, 'test.csv')
    assert group_columns(records, ['Site'])['Site'].tolist() == ['two', 'two', 'one']
    last = records.select(np.array([2, 1]))
    assert group_columns(last, ['Site'])['Site'].tolist() == ['one', 'two']


# ---- columns of the demographics, by patient


@pytest.mark.parametrize('key', ['PATIENT', 'Patient', 'patient', 'patient_id'])
def test_demographics_are_joined_by_patient(records: Records, key: str) -> None:
    name = demographics(
        records,
        f'GENDER,{key},PRIMARY_RACE,ETHNICITY',
        'F,patient00004,"Black or African American, ""mixed""",N/A',
        'M,patient00001,White,',
        'M,patient99999,Asian,Unknown',
        ',,,',
        'F,patient00002,,NA',
    )
    found = group_columns(records, ['PRIMARY_RACE', 'Site', 'ETHNICITY'], demographics=name)
    race = ['White', 'White', '', '', 'Black or African American, "mixed"']
    assert found['PRIMARY_RACE'].tolist() == race
    assert found['ETHNICITY'].tolist() == ['', '', 'NA', '', 'N/A']
    assert found['Site'].tolist() == ['A', 'A', 'B', '', '=1+1']


def test_demographics_of_other_patients_alone_leave_all_unknown(records: Records) -> None:
    name = demographics(records, 'PATIENT,RACE', 'patient99999,Asian')
    assert group_columns(records, ['RACE'], demographics=name)['RACE'].tolist() == [''] * 5


def test_own_column_goes_before_the_demographics(records: Records) -> None:
    name = demographics(records, 'PATIENT,Site', 'patient00001,elsewhere')
    found = group_columns(records, ['Site'], demographics=name)
    assert found['Site'].tolist() == ['A', 'A', 'B', '', '=1+1']


def test_join_agrees_with_a_loop_over_the_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 60, 300)
    records = read(tmp_path, [row(image_path(p, i)) for i, p in enumerate(patients)])
    known = rng.permutation(80)[:50]
    races = dict(zip(known, rng.choice(['White', 'Asian', 'Other', ''], 50), strict=True))
    lines = [f'patient{patient:05d},{race}' for patient, race in races.items()]
    name = demographics(records, 'PATIENT,RACE', *lines)
    order = rng.permutation(300)
    found = group_columns(records.select(order), ['RACE'], demographics=name)
    assert found['RACE'].tolist() == [races.get(patient, '') for patient in patients[order]]
    assert set(found['RACE']) == {'White', 'Asian', 'Other', ''} and set(known) - set(patients)


def test_patient_given_twice_is_refused_only_where_the_wanted_value_differs(
    records: Records,
) -> None:
    name = demographics(
        records,
        'PATIENT,RACE,AGE',
        'patient00002,Asian,30',
        'patient00001,White,40',
        '',
        'patient00002,Asian,31',
    )
    found = group_columns(records, ['RACE'], demographics=name)
    assert found['RACE'].tolist() == ['White', 'White', 'Asian', '', '']
    with pytest.raises(ValueError) as error:
        group_columns(records, ['AGE'], demographics=name)
    assert str(error.value) == (
        f"{records.root / name}: patient00002 has 'AGE' '30' in row 2 and '31' in row 5 "
        '(the header is row 1)'
    )


def test_column_that_is_nowhere_is_named_with_those_that_are_there(records: Records) -> None:
    name = demographics(records, 'PATIENT,RACE,AGE', 'patient00002,Asian,30')
    own = 'train.csv has Site, Frontal/Lateral, AP/PA'
    with pytest.raises(ValueError) as error:
        group_columns(records, ['Site', 'Race'], demographics=name)
    message = str(error.value)
    assert message == (f"EVAL.GROUPS: no column 'Race'; {own}; demo.csv has PATIENT, RACE, AGE")
    with pytest.raises(ValueError) as error:
        group_columns(records, ['RACE'])
    hint = 'DATA.DEMOGRAPHICS may name a CSV with more'
    assert str(error.value) == f"EVAL.GROUPS: no column 'RACE'; {own}; {hint}"


def test_groups_that_every_report_has_and_columns_that_are_none_are_refused(
    records: Records,
) -> None:
    def message(*columns: str, **options) -> str:
        with pytest.raises(ValueError) as error:
            group_columns(records, columns, **options)
        return str(error.value)

    for name in ('Sex', 'Age', 'View'):
        wanted = f'EVAL.GROUPS: {name!r} is always a group; name none of Sex, Age, View'
        assert message('Site', name) == wanted
    for name in ('Path', 'Study', 'Edema', 'No Finding'):
        assert message(name) == f'EVAL.GROUPS: {name!r} names images or a label, no groups'
    none = records.select(records.row < 0)
    with pytest.raises(ValueError, match="EVAL.GROUPS: 'Age' is always a group"):
        group_columns(none, ['Age'])


def test_a_column_of_too_many_values_is_refused(tmp_path: Path) -> None:
    rows = [row(image_path(i), Site=f's{i:03d}') for i in range(MOST_GROUPS + 1)]
    records = read(tmp_path, [*rows, row(image_path(99), Site='')], ['Site', *HEADER])
    with pytest.raises(ValueError) as error:
        group_columns(records, ['Site'])
    assert str(error.value) == (
        "EVAL.GROUPS: 'Site' has 51 different values, such as s000, s001, s002; allowed are "
        'columns of at most 50'
    )
    fewer = records.select(records.row != 7)  # 50, and one that is empty
    assert len(set(group_columns(fewer, ['Site'])['Site'])) == 51
    table = [f'patient{i:05d},{i}' for i in range(MOST_GROUPS + 1)]
    name = demographics(records, 'PATIENT,Weight', *table)
    with pytest.raises(ValueError, match="'Weight' has 51 different values"):
        group_columns(records, ['Weight'], demographics=name)


def test_errors_name_the_options_of_the_caller(records: Records) -> None:
    (records.root / 'demo.xlsx').write_bytes(b'PK')
    messages = []
    for column, name in (('RACE', ''), ('Age', ''), ('RACE', 'demo.xlsx')):
        with pytest.raises(ValueError) as error:
            group_columns(records, [column], demographics=name, options=('--groups', '--extra'))
        messages.append(str(error.value))
    assert messages[0].startswith("--groups: no column 'RACE'; ")
    assert messages[0].endswith('; --extra may name a CSV with more')
    assert messages[1].startswith("--groups: 'Age' is always a group")
    assert messages[2].startswith('--extra: ')
    assert not any('EVAL.' in line or 'DATA.' in line for line in messages)


def test_demographics_that_do_not_fit_are_refused(records: Records) -> None:
    def message(name: str) -> str:
        with pytest.raises(ValueError) as error:
            group_columns(records, ['RACE'], demographics=name)
        assert str(records.root / name) in str(error.value)
        return str(error.value)

    (records.root / 'CHEXPERT DEMO.xlsx').write_bytes(b'PK')
    assert 'is a spreadsheet: export it as CSV' in message('CHEXPERT DEMO.xlsx')
    assert 'no such CSV file' in message('absent.csv')
    demographics(records, 'Person,RACE', 'patient00001,White')
    assert 'no column of patients (PATIENT, Patient, patient, patient_id)' in message('demo.csv')
    assert message('demo.csv').endswith('found: Person, RACE')
    for value in ('1', '00001', 'Patient00001', 'patient', ''):
        demographics(records, 'PATIENT,RACE', 'patient00001,White', f'{value},Asian')
        expected = f"row 3 (the header is row 1), column 'PATIENT': {value!r} is no name of"
        assert expected in message('demo.csv')
    demographics(records, 'PATIENT,RACE', 'patient00001,White,extra')
    assert 'more fields than the header' in message('demo.csv')
    (records.root / 'demo.csv').write_bytes(b'PATIENT,RACE\npatient00001,\xff\xfe\n')
    assert 'is not a readable CSV file' in message('demo.csv')


def test_importing_groups_does_not_import_torch() -> None:
    code = "import sys, data.groups; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, '-c', code], cwd=root).returncode == 0

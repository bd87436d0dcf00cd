"""Unknown is no value: one list of words, in the columns of all tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_files import HEADER, read, row, touch, write
from tiny import config_with
from xray_splits import LOGGER, make_config, write_split

from data.tables.chexpert import open_data_set
from data.tables.groups import add_demographics, group_columns, standard_groups
from data.tables.known_sets import ages, sexes
from data.tables.predictions import read_label_file
from data.tables.reading import read_split
from data.tables.splits import split_holdout
from data.tables.unknown import is_unknown_word, known_cells
from evaluation.intervals import Resamples

WORDS = 'nan|NaN|none|None|unknown|UNKNOWN|Unknown |-|--|?|#N/A|N/A|n.a.|NULL||  |U|UNK|unk.'
WORDS += '|not available|Not_Available|<NA>|NaT|(unknown)|—|－|–|...|#REF!|#DIV/0!|Unbekannt'
WORDS += '|k.A.|\\N|XXX|NaN NaN|不明|#NV|#WERT!|#¡REF!|keine Angabe|Ignorado|unkown'
WORDS += '|Patient unknown|P-nan|ANONYMOUS|ｕｎｋｎｏｗｎ|\u200bunknown|\ufeff'
WORDS += '|not on file|no_patient_id|No MRN on record|ohne Name|N.N.|無し'
KNOWN = '0|1|007|-1|117.0|P-17|a|Nancy|unknown1|no|other|A-|+|-5|U2|ref|name|Una|n|1-2|patient'
KNOWN += '|no device|No. 12|not smoking|without|Sin'


@pytest.mark.parametrize('word', WORDS.split('|'))
def test_words_for_unknown(word: str) -> None:
    assert is_unknown_word(word)


@pytest.mark.parametrize('cell', KNOWN.split('|'))
def test_other_cells_are_values(cell: str) -> None:
    assert not is_unknown_word(cell)


def rows_of(*cells: tuple[str, str, str]) -> list[dict[str, str]]:
    """Rows with a path, a patient and a study."""
    return [row(path, Patient=patient, Study=study) for path, patient, study in cells]


def read_patients(root: Path, cells, **options):
    faults: list = []
    options = {'look_up': 'none', 'on_fault': faults.append} | options
    return read(root, rows_of(*cells), ['Patient', 'Study', *HEADER], **options), faults


def test_images_of_unknown_patients_are_patients_of_their_own(tmp_path: Path) -> None:
    cells = [(f'{n}_frontal.png', word, '1') for n, word in enumerate(WORDS.split('|'))]
    cells += [('a_frontal.png', '7', '1'), ('b_frontal.png', '7', '1'), ('c_frontal.png', '-1', '')]
    records, faults = read_patients(tmp_path, cells)
    count = len(cells) - 3
    assert len(records) == len(cells) and len({*records.patient}) == count + 2
    assert records.patient[-3:].tolist() == ['7', '7', 'c_frontal.png']
    (fault,) = faults
    assert fault.severity == 'warning' and fault.kind == 'rows without a patient'
    assert f'{count + 1} of {len(cells)} rows name no patient, such as row 2' in fault.detail
    assert records.doubts == (), 'those of a data set alone'
    train, held_out = split_holdout(records, 0.3)
    assert 0 < len(held_out) < count and len(train) + len(held_out) == len(cells)
    drawn = Resamples(records.patient, resamples=1, seed=0).weights(records.patient)
    assert len({*drawn.counts[:, 1]}) > 1, 'they are not drawn together'


def test_unknown_patients_have_the_one_in_their_path_if_it_names_one(tmp_path: Path) -> None:
    cells = [(f'data/patient0000{n // 2}/study1/{n}_frontal.png', 'nan', '') for n in range(4)]
    records, faults = read_patients(tmp_path, cells)
    assert records.patient.tolist() == ['patient00000'] * 2 + ['patient00001'] * 2
    assert 'rows without a patient' not in {fault.kind for fault in faults}


@pytest.mark.parametrize('word', ['unknown', 'N/A', '-1', ' '])
def test_images_of_unknown_studies_are_studies_of_their_own(tmp_path: Path, word: str) -> None:
    cells = [(f'{n}_frontal.png', '7', word) for n in range(3)] + [('3_frontal.png', '7', '2')]
    records, _ = read_patients(tmp_path, cells)
    names = [f'{n}_frontal.png' for n in range(3)]
    assert records.study.tolist() == [*names, '7/2']
    # Also where the paths name the patients, and there is no column of them.
    folder = 'X/patient00001/study1'
    cells = [(f'{folder}/{n}_frontal.png', '', word) for n in range(2)]
    records = read(tmp_path, rows_of(*cells), ['Study', *HEADER], look_up='none')
    assert records.study.tolist() == [f'{folder}/{n}_frontal.png' for n in range(2)]


def test_data_without_any_patient_are_told_once(tmp_path: Path) -> None:
    for words in (['nan', '?'], ['0_frontal.png', '1_frontal.png']):
        cells = [(f'{n}_frontal.png', word, '') for n, word in enumerate(words)]
        _, faults = read_patients(tmp_path, cells)
        assert [fault.kind for fault in faults] == ['unknown patients']


def test_the_images_of_a_study_have_one_unknown_patient(tmp_path: Path) -> None:
    for name in ('a/1_frontal.png', 'a/2_frontal.png', 'b/3_frontal.png'):
        touch(tmp_path, name)
    (tmp_path / 'train.csv').write_text('Study,Patient\na,unknown\nb,?\n')
    data_set = open_data_set(config_with(DATA__DATASET='chexpert'), tmp_path)
    records = data_set.read('train')
    assert records.patient.tolist() == ['a', 'a', 'b']
    assert '2 of 2 rows name no patient' in records.doubts[0]


def test_a_name_of_many_images_is_doubted(tmp_path: Path) -> None:
    """A word for unknown of another language, or a number such as 9999, is not on the list."""
    cells = [(f'{n}_frontal.png', 'ei tiedossa' if n < 60 else str(n), '') for n in range(200)]
    _, faults = read_patients(tmp_path, cells)
    (fault,) = faults
    assert fault.severity == 'warning'
    assert "60 of 200 rows are of the patient 'ei tiedossa'" in fault.detail


@pytest.mark.parametrize('word', ['n/a', 'NONE', '--', 'Unknown ', 'not available', '？'])
def test_sex_age_view_projection_and_groups_have_one_list(tmp_path: Path, word: str) -> None:
    path = 'X/patient00001/study1/view1_frontal.png'
    about = dict.fromkeys(['Sex', 'Age', 'Frontal/Lateral', 'AP/PA', 'ward'], word)
    header = [*HEADER, 'ward']
    records = read(tmp_path, [row(path, **about)], header, look_up='none', groups=['ward'])
    assert (records.sex[0], records.view[0], records.ap_pa[0]) == ('Unknown', 'frontal', '')
    assert np.isnan(records.age[0])
    assert group_columns(records, ['ward'])['ward'].tolist() == ['']
    assert sexes(pd.Series([word, 'f'])).tolist() == ['Unknown', 'Female']
    assert ages(pd.Series([word, '061Y'])).tolist() == ['', '61.0']
    with pytest.raises(ValueError, match='row 2 .*neither a view.*Frontal, Lateral or Other'):
        read(tmp_path, [row('a/patient1/study1/x.png', **about)], header, look_up='none')


def test_words_of_own_groups_that_count_as_unknown_are_named(tmp_path: Path) -> None:
    """Patients without a device may be a group, which `none` does not name."""
    words = ['none', 'None', 'tube', 'none', '']
    rows = [
        row(f'X/patient0000{n}/study1/view1_frontal.png', device=word)
        for n, word in enumerate(words)
    ]
    faults: list = []
    options = {'look_up': 'none', 'groups': ['device'], 'on_fault': faults.append}
    records = read(tmp_path, rows, [*HEADER, 'device'], **options)
    assert group_columns(records, ['device'])['device'].tolist() == ['', '', 'tube', '', '']
    (fault,) = faults
    assert fault.severity == 'warning'
    assert "3 cells of 'device' ('none', 'None') count as unknown" in fault.detail


def test_the_sex_of_a_patient_and_the_age_of_a_study_need_one_row(tmp_path: Path) -> None:
    """A value that differs within the patient or the study stays unknown where it is not stated."""
    rows, wanted = [], []
    for name, sex, age, sex_known, band in [
        ('1/study1/view1', '', '', 'Female', '60-79'),
        ('1/study1/view2', 'Female', '70', 'Female', '60-79'),
        ('1/study2/view1', 'unknown', '0', 'Female', ''),
        ('2/study1/view1', 'Male', '39', 'Male', '0-39'),
        ('2/study1/view2', 'Female', '41', 'Female', '40-59'),
        ('2/study1/view3', '', '', '', ''),
        ('3/study1/view1', '', '0', '', '80 and over'),
        ('3/study1/view2', '', '90', '', '80 and over'),
        ('4/study1/view1', '', '', '', ''),
    ]:
        rows.append(row(f'X/patient0000{name}_frontal.png', Sex=sex, Age=age))
        wanted.append((sex_known, band))
    groups = standard_groups(read(tmp_path, rows, look_up='none'))
    assert [*zip(groups['Sex'], groups['Age'], strict=True)] == wanted


def test_cells_of_labels_have_no_words_for_unknown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 2 .*'Edema': 'unknown' is not allowed"):
        read(tmp_path, [row('X/patient00001/study1/view1_frontal.png', Edema='unknown')])


def test_unknown_demographics_are_nobodys(tmp_path: Path) -> None:
    write_split(tmp_path, 'train', 4)
    table = pd.read_csv(tmp_path / 'train.csv', dtype=str, keep_default_na=False)
    table.drop(columns=['Sex', 'Age']).to_csv(tmp_path / 'train.csv', index=False)
    names = ['train/patient00000', 'patient00001', 'patient00001', 'patient00002']
    rows = [f'{name},{sex},50,{ward}' for name, sex, ward in zip(
        [*names, 'unknown', 'nan', 'nan'], ['F', 'unknown', 'M', 'U', 'M', 'F', 'M'],
        ['A', '?', 'B', 'N/A', 'C', 'D', 'E'], strict=True)]  # fmt: skip
    (tmp_path / 'who.csv').write_text('\n'.join(['patient,gender,anchor_age,ward', *rows]))
    records = read_split(make_config(tmp_path), 'train', LOGGER)
    records = add_demographics(records, 'who.csv')
    first = np.unique(records.patient, return_index=True)[1]
    assert records.sex[first].tolist() == ['Female', 'Male', 'Unknown', 'Unknown']
    wards = group_columns(records, ['ward'], demographics='who.csv')['ward']
    assert wards[first].tolist() == ['A', 'B', '', '']


def test_the_report_has_the_number_of_images_of_unknown_patients(tmp_path: Path) -> None:
    cells = [
        ('0_frontal.png', '7', ''),
        ('1_frontal.png', 'unknown', ''),
        ('2_frontal.png', '', ''),
    ]
    header = ['Patient', 'Study', *HEADER]
    write(tmp_path / 'train.csv', rows_of(*cells), header)
    records = open_data_set(config_with(DATA__DATASET='chexpert'), tmp_path).read(
        'train', look_up='none'
    )
    assert '2 of 3 rows name no patient' in records.doubts[0]
    labels = read_label_file(tmp_path / 'train.csv')
    assert labels.records.doubts == records.doubts
    assert labels.records.patient.tolist() == ['7', '1_frontal.png', '2_frontal.png']


def test_known_cells_keep_their_texts() -> None:
    cells = ['a ', 'nan', '007', '', '-1']
    assert known_cells(cells).tolist() == ['a ', '', '007', '', '-1']
    assert known_cells(cells, also=('-1',)).tolist() == ['a ', '', '007', '', '']

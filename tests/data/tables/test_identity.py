"""One patient under several spellings: compared in every place where patients are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_files import read, row
from tiny import VIT, config_with, finished_run, run_script
from xray_splits import LOGGER, make_config, write_split

from data.build import build_loader
from data.data_finetune import patient_leaks
from data.loader import Loaders
from data.tables.folds import folds_of
from data.tables.groups import add_demographics
from data.tables.identity import (
    canonical,
    look_up_names,
    one_spelling,
    other_spellings,
    patient_forms,
    shared_patients,
)
from data.tables.predictions import read_label_file
from data.tables.reading import read_split
from data.tables.splits import split_holdout, take_subset, unlabelled_records

SPELLINGS = """117|117.0|000117|117 |117\u00a0|p117|P117|'117|p-117"""
# Kinds that tables of other programs have.
SPELLINGS += '|117.00|117,0|１１７|\ufeff117|Patient 117|PATIENT_00117|#117|"117"|117\x00'
THOUSANDS = "1234567|1,234,567|1 234 567|1\u00a0234\u202f567|1'234'567|1’234’567|P1,234,567"
THOUSANDS += '|1.234.567|1,234,567.0|patient 1 234 567|001,234,567'


@pytest.mark.parametrize('name', SPELLINGS.split('|'))
def test_spellings_of_a_number_have_one_form(name: str) -> None:
    """Each part of a path is compared alone."""
    assert canonical(name) == '117'
    assert canonical(f'{name}/study01/View1.PNG') == canonical('P-117/1/view1.png')


@pytest.mark.parametrize('name', THOUSANDS.split('|'))
def test_marks_between_thousands_do_not_count(name: str) -> None:
    assert canonical(name) == '1234567'


IN_FOLDERS = 'p10000032|P10000032|10000032|p10/p10000032|files/p10/p10000032|files/p10000032'
IN_FOLDERS += '|mimic-cxr-jpg/2.0.0/files/p10/p10000032/|10/10000032|files\\p10\\p10000032'
IN_FOLDERS += '|p10/10000032|10,000,032|train/p10000032'


def test_folders_above_a_patient_do_not_count() -> None:
    assert {*patient_forms(IN_FOLDERS.split('|'))} == {'10000032'}
    chexpert = ['patient00007', 'train/patient00007', 'CheXpert-v1.0-small/train/patient00007', '7']
    assert {*patient_forms(chexpert)} == {'7'}
    # Folders that may tell patients apart.
    others = ['p1', 'a/p1', 'b/p1', 'p11/p10000032', 'p10000032', 'train/1', 'test/1', '1/10000032']
    assert len({*patient_forms(others)}) == len(others)


@pytest.mark.parametrize(
    'a, b',
    [('1', '1,000'), ('1', '1 000'), ('1,000', '1,001'), ('12,34', '1234'), ('1,2345', '12345'),
     ('1-234', '1234'), ('117', '1170'), ('117', '117.5'), ('117', '117a'), ('a117', 'b117'),
     ('0', ''), ('p', 'q'),
     ('1.17E+02', '117'), ('p10/s1', 'p1/s10'), ('x/1.png', 'x/01.png'), ('117-1', '117-2')],
)  # fmt: skip
def test_different_names_stay_different(a: str, b: str) -> None:
    assert canonical(a) != canonical(b)


def test_a_name_is_found_by_itself_or_else_by_another_spelling() -> None:
    found = look_up_names(['2', '01', 'x', '1.0', '2'], ['1', '02', 'y', '2'], 'F')
    assert found.tolist() == [3, 0, -1, 0, 3]
    # A name that is somebody's own is nobody's other spelling.
    assert look_up_names(['1', '01'], ['1', '3'], 'F').tolist() == [0, -1]
    with pytest.raises(ValueError, match="F: '007' may be each of '7', '07'"):
        look_up_names(['007'], ['7', '07'], 'F')
    assert look_up_names(['a'], [], 'F').tolist() == [-1]
    assert look_up_names(['1', 'x'], ['1'], 'F').tolist() == [0, -1]


def test_patients_of_two_splits_are_found_under_both_spellings() -> None:
    splits = {'train': ['a', '117', 'b'], 'valid': ['c'], 'test': ['000117', 'b']}
    (line,) = shared_patients(splits)
    assert '2 patient(s)' in line and "train and test, for example '000117' and '117'" in line
    assert other_spellings(['1', 'a', '01', '1', 'P1']) == [('1', '01'), ('1', 'P1')]


def loaders_of(root: Path, is_pretrain: bool, *options: object) -> Loaders:
    return build_loader(make_config(root, *options), LOGGER, is_pretrain)


@pytest.fixture
def spelt(tmp_path: Path) -> Path:
    """Data whose patients have numbers, and other spellings of two of them in valid.csv."""
    for split, patients in (('train', 20), ('valid', 4)):
        write_split(tmp_path, split, patients)
        table = pd.read_csv(tmp_path / f'{split}.csv', dtype=str, keep_default_na=False)
        numbers = table['Path'].str.extract(r'patient0*(\d+)/')[0].replace('', '0')
        if split == 'valid':
            numbers = numbers.replace({'1000': '7.0', '1001': '000008'})
        table.assign(Patient=numbers).to_csv(tmp_path / f'{split}.csv', index=False)
    return tmp_path


@pytest.mark.parametrize('is_pretrain', [True, False])
def test_a_patient_in_two_splits_is_refused_in_every_stage(spelt: Path, is_pretrain: bool) -> None:
    with pytest.raises(ValueError, match=r"2 patient.*train and valid.*'7' and '7.0'.*SHARED"):
        loaders_of(spelt, is_pretrain)
    loaders = loaders_of(spelt, is_pretrain, 'DATA.ALLOW_SHARED_PATIENTS', True)
    if not is_pretrain:
        assert any("'7' and '7.0'" in line for line in patient_leaks(loaders))
    for name in ('train', 'valid'):  # fold files of one's own
        shutil.copy(spelt / 'train.csv', spelt / f'{name}_0.csv')
    options = ['DATA.TRAIN_CSV', str(spelt / 'train_0.csv')]
    options += ['DATA.VALID_CSV', str(spelt / 'valid_0.csv')]
    with pytest.raises(ValueError, match='20 patient.*both train and valid'):
        loaders_of(spelt, is_pretrain, *options)


def test_the_check_shows_both_spellings(spelt: Path, tmp_path: Path) -> None:
    file = tmp_path.parent / 'problems.csv'
    words = ['--data-path', spelt, '--output', file, '--workers', 1, '--opts']
    for allowed, severity in (('False', 'error'), ('True', 'warning')):
        run_script('check_data', *words, 'DATA.ALLOW_SHARED_PATIENTS', allowed)
        found = pd.read_csv(file).query('kind == "patient in two splits"')
        details = ['7.0 of valid is also in train as 7', '000008 of valid is also in train as 8']
        assert found['detail'].tolist() == details
        assert set(found['severity']) == {severity}


def test_the_report_says_it_in_its_first_lines(spelt: Path, tmp_path: Path) -> None:
    data = {'TRAIN_IMAGES': 0, 'ALLOW_SHARED_PATIENTS': True}
    more = {'DATA': data, 'TRAIN': {'EPOCHS': 1}, 'EVAL': {'RESAMPLES': 0}}
    more['REPORT'] = {'WRITE': True, 'MAPS': 0}
    folder = finished_run('finetune', spelt, tmp_path / 'out', model=VIT, **more)
    report = json.loads((folder / 'report.json').read_text())
    (line,) = [line for line in report['headline']['alerts'] if 'both' in line]
    assert line == report['alerts'][0] and "'7' and '7.0'" in line
    page = (folder / 'report.html').read_text()
    assert page.index('patient(s) are in both') < page.index('To cite this number')


def records_of(root: Path, patients: list[str]):
    rows = [row(f'{n}/view1_frontal.jpg', Patient=name) for n, name in enumerate(patients)]
    faults: list = []
    options = {'look_up': 'none', 'on_fault': faults.append}
    return read(root, rows, ['Patient', *row('')], **options), faults


def test_two_spellings_in_one_table_are_a_warning_and_never_apart(tmp_path: Path) -> None:
    names = [f'{number:03d}' for number in range(40)] + [f'{number}.0' for number in range(40)]
    records, faults = records_of(tmp_path, names)
    (fault,) = [fault for fault in faults if 'spelling' in fault.kind]
    assert fault.severity == 'warning' and "'000' in row 2 and '0.0' in row 42" in fault.detail

    def count(patients: np.ndarray) -> int:
        return len({*map(canonical, patients)})

    parts = [part.patient for part in split_holdout(records, 0.3)]
    parts += [records.patient[folds_of(records.patient, 3) == number] for number in range(3)]
    parts.append(take_subset(records, fraction=0.5, images=0, seed=0).patient)
    assert len(parts[-1]) == 40
    for patients in parts:
        assert count(patients) == len(patients) / 2
    config = config_with(DATA__TRAIN_IMAGES=5, DATA__VIEWS='all')
    chosen = take_subset(records, fraction=1, images=5, seed=0)
    assert count(unlabelled_records(config, records).patient) == 40 - count(chosen.patient)


@pytest.mark.parametrize(
    'names, wanted',
    [
        ('1,234|1234|1 234|1234.0|1234,0|1\u00a0234|１２３４|1234 ', '1 234'),
        ('p10/p10000032|files/p10/p10000032|10000032|p10000032|10000032.0', '10000032'),
        ("'7|7|7.0|7 ", "'7"),
        ('a|a |\ufeffa', 'a'),
    ],
)
def test_spellings_that_cannot_be_two_patients_are_one(tmp_path: Path, names: str, wanted) -> None:
    """One unit of the bootstrap and of counts, with a note."""
    names = names.split('|')
    records, faults = records_of(tmp_path, [*names, 'other'])
    assert {*records.patient} == {wanted, 'other'}
    (fault,) = [fault for fault in faults if 'spelling' in fault.kind]
    assert fault.severity == 'note' and '1 patient(s) are spelt in several ways' in fault.detail


def test_spellings_that_may_be_two_patients_remain_two(tmp_path: Path) -> None:
    names = ['007', '7', 'P7', 'aB', 'ab', '1', '1,000', 'a/p1', 'b/p1', '1.5', '15', 'S7']
    assert one_spelling(names).tolist() == names
    records, _ = records_of(tmp_path, names)
    assert records.patient.tolist() == names


def test_numbers_of_studies_have_one_spelling(tmp_path: Path) -> None:
    cells = [('7', '1'), ('7.0', '1.0'), ('7', '1,000'), ('8', '1.0'), ('7', '01')]
    rows = [
        row(f'{n}_frontal.png', Patient=who, Study=study) for n, (who, study) in enumerate(cells)
    ]
    records = read(tmp_path, rows, ['Patient', 'Study', *row('')], look_up='none')
    assert records.study.tolist() == ['7/1', '7/1', '7/1,000', '8/1', '7/01']


def test_spellings_of_a_study_of_one_patient_are_told_as_those_of_a_patient_are(tmp_path) -> None:
    """Also of a label file, whose report shows them: each counts as a study, or as a patient."""
    cells = [('7', '1'), ('7', '01'), ('7', 'S1'), ('7', 'study 1'), ('8', '1'), ('8', '2')]
    cells += [('9', '1'), ('009', '01')]
    rows = [
        row(f'{n}_frontal.png', Patient=who, Study=study) for n, (who, study) in enumerate(cells)
    ]
    faults: list = []
    options = {'look_up': 'none', 'on_fault': faults.append}
    records = read(tmp_path, rows, ['Patient', 'Study', *row('')], **options)
    assert len({*records.study}) == len(cells)
    told = [fault.detail for fault in faults if 'spelling' in fault.kind]
    assert told[0].startswith("1 patient(s) may be spelt in two ways, such as '9' in row 8 and")
    wanted = "3 studies of a patient may be spelt in two ways, such as '7/1' in row 2 and '7/01' in"
    assert told[1].startswith(wanted) and len(told) == 2
    file = tmp_path / 'labels.csv'
    pd.DataFrame(rows).reindex(columns=['Patient', 'Study', *row('')]).to_csv(file, index=False)
    assert {*told} <= {*read_label_file(file).records.doubts}


def test_numbers_in_scientific_notation_are_a_warning(tmp_path: Path) -> None:
    _, faults = records_of(tmp_path, ['1.23457E+11', '9,8E+10', '7', '12e5'])
    (fault,) = [fault for fault in faults if fault.kind == 'scientific notation']
    assert fault.severity == 'warning' and '2 name(s)' in fault.detail


def test_images_studies_and_patients_are_left_out_in_every_stage(tmp_path: Path, log) -> None:
    write_split(tmp_path, 'train', 20)
    write_split(tmp_path, 'valid', 4)
    before = read_split(make_config(tmp_path), 'train', LOGGER)
    listed = tmp_path / 'list.csv'
    image, other = before.path[2], before.file[5]
    rows = [f'{image},,', f'{other.replace("patient0", "Patient")},,', ',patient00007/study1,']
    rows += [',,P-8', ',1,9.0', 'nobody.png,,', ',,1001']
    listed.write_text('\n'.join(['Path,Study,Patient', *rows]))
    options = ['DATA.LEAVE_OUT', str(listed)]
    for is_pretrain in (True, False):
        whole, less = (loaders_of(tmp_path, is_pretrain, *more) for more in ([], options))
        gone = {image, before.path[5], *before.path[14:20]}
        for name in ('train', 'holdout', 'valid'):
            a, b = (getattr(loaders, name) for loaders in (whole, less))
            if a is not None:
                want = [path for path in a.dataset.records.path if path not in gone]
                want = [path for path in want if 'patient01001' not in path]
                assert b.dataset.records.path.tolist() == want
    assert '8 images of train are left out' in log.text
    assert '2 images of valid are left out' in log.text
    listed.write_text('Patient\nnobody\n')
    for is_pretrain in (True, False):
        with pytest.raises(ValueError, match=r'LEAVE_OUT.*none of the 1'):
            loaders_of(tmp_path, is_pretrain, *options)


# Lists that would leave nothing out: of one patient, or with rows that name nobody.
NO_LISTS = [
    'name\nx\n',
    'patient00007',
    'patient00007\n',
    'patient\n7\n',
    '',
    'Path;Patient;why\n;;copy\n',
]
NO_LISTS += ['Patient\nunknown\n', 'Path,Patient\n,7\nN/A,\n', '7']


@pytest.mark.parametrize('text', NO_LISTS)
@pytest.mark.parametrize('is_pretrain', [True, False])
def test_a_list_that_is_not_understood_is_refused(tmp_path, text: str, is_pretrain: bool) -> None:
    write_split(tmp_path, 'train', 20)
    write_split(tmp_path, 'valid', 4)
    (tmp_path / 'list.csv').write_text(text)
    words = r'list\.csv.*(file or Path or Study or Patient|row \d .*is empty)'
    with pytest.raises(ValueError, match=words):
        loaders_of(tmp_path, is_pretrain, 'DATA.LEAVE_OUT', str(tmp_path / 'list.csv'))


def test_names_that_are_not_found_are_listed_in_every_command(tmp_path: Path, log, capsys) -> None:
    root, listed = tmp_path / 'data', tmp_path / 'list.csv'
    write_split(root, 'train', 20)
    write_split(root, 'valid', 4)
    rows = [',,files/patient00003', ',,P-7777', 'nobody.png,,', ',7/9,', ',,1001']
    listed.write_text('\n'.join(['Path,Study,Patient', *rows]))
    told = "3 of the 5 listed names are not in these data: image 'nobody.png', study '7/9', "
    told += "patient 'P-7777'"
    options = ['DATA.LEAVE_OUT', str(listed)]
    for is_pretrain in (True, False):
        log.clear()
        loaders_of(root, is_pretrain, *options)
        assert told in log.text
    words = ['--data-path', root, '--opts', *options]
    for command in (['--table', tmp_path / 't.csv'], ['--output', tmp_path / 'counts']):
        log.clear()
        assert run_script('describe_data', *command, *words) == 0
        assert told in log.text
    problems = tmp_path / 'problems.csv'
    run_script('check_data', '--output', problems, '--workers', 1, *words)
    (fault,) = pd.read_csv(problems).query('kind == "DATA.LEAVE_OUT" and severity == "warning"')[
        'detail'
    ]
    assert told in fault
    listed.write_text('Patient\n7777\n')
    for command in (['--table', tmp_path / 't.csv'], ['--output', tmp_path / 'counts']):
        assert run_script('describe_data', *command, *words) == 2
        assert 'none of the 1 listed names' in capsys.readouterr().err


def test_leaving_a_shared_patient_out_is_enough(spelt: Path) -> None:
    (spelt / 'list.csv').write_text('Patient\n7\n8\n')
    loaders = loaders_of(spelt, False, 'DATA.LEAVE_OUT', str(spelt / 'list.csv'))
    train, valid = ({*each.dataset.records.patient} for each in (loaders.train, loaders.valid))
    assert not {'7', '8', '7.0', '000008'} & (train | valid)
    assert valid == {'1002', '1003'}


def test_demographics_are_joined_by_either_spelling(spelt: Path) -> None:
    """As a spreadsheet writes the numbers of the patients, in the file of MIMIC-IV's form."""
    rows = [f"'{number:04d},{'FM'[number % 2]},{30 + number}" for number in range(20)]
    (spelt / 'patients.csv').write_text('\n'.join(['subject_id,gender,anchor_age', *rows]))
    table = pd.read_csv(spelt / 'train.csv', dtype=str, keep_default_na=False)
    table.drop(columns=['Sex', 'Age']).to_csv(spelt / 'train.csv', index=False)
    config = make_config(spelt, 'DATA.ALLOW_SHARED_PATIENTS', True)
    records = add_demographics(read_split(config, 'train', LOGGER), 'patients.csv')
    assert records.age.tolist() == [30 + int(name) for name in records.patient]
    assert set(records.sex) == {'Female', 'Male'}
    rows[3] = rows[3].replace("'0003", '7')
    (spelt / 'patients.csv').write_text('\n'.join(['subject_id,gender,anchor_age', *rows]))
    records = read_split(config, 'train', LOGGER)
    assert add_demographics(records, 'patients.csv').age[14] == 33, 'its own name comes first'
    (spelt / 'patients.csv').write_text('subject_id,gender\n7,W\n')
    with pytest.raises(ValueError, match="patients.csv.*'gender'.*'W'"):
        add_demographics(records, 'patients.csv')


@pytest.mark.parametrize('name', ['MRN1234', 'MRN: 1234', 'Subject ID 1234', 'patient no. 1234'])
def test_words_before_the_number_of_a_patient_do_not_count(name: str) -> None:
    assert canonical(name) == canonical('1234') != canonical('A1234')

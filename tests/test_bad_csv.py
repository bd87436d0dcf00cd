"""CSV files that are refused: what is wrong and where, in words."""

from pathlib import Path

import pytest
from csv_files import HEADER, image_path, message, read, row, touch

from data.records import read_csv


@pytest.mark.parametrize(
    'column, value, allowed',
    [
        ('Sex', 'male', 'Male, Female, Unknown'),
        ('Sex', '', 'Male, Female, Unknown'),
        ('Age', '-1', 'numbers from 0'),
        ('Age', 'nan', 'numbers from 0'),
        ('Age', '', 'numbers from 0'),
        ('Age', '1e9', 'numbers from 0'),
        ('Frontal/Lateral', 'frontal', 'Frontal, Lateral'),
        ('AP/PA', 'XX', 'AP, PA, LL, RL, empty'),
        ('Edema', '2.0', '1.0, 1, 0.0, 0, -1.0, -1, empty'),
        ('Support Devices', 'NA', '1.0, 1, 0.0, 0, -1.0, -1, empty'),
    ],
)
def test_bad_cell_is_named(tmp_path: Path, column: str, value: str, allowed: str) -> None:
    rows = [row(image_path(patient)) for patient in range(1, 6)]
    rows[3][column] = rows[4][column] = value
    assert message(tmp_path, rows) == (
        f'ROOT/train.csv, row 5 (the header is row 1), column {column!r}: {value!r} is not allowed '
        f'(allowed: {allowed})'
    )


def test_row_of_a_bad_cell_counts_empty_lines(tmp_path: Path) -> None:
    read(tmp_path, [row(image_path(1)), row(image_path(2), Edema='3')][:1])
    with open(tmp_path / 'train.csv', 'a') as file:
        file.write('\n\n' + image_path(2) + ',Male,1,Frontal,AP' + ',3' * 14 + '\n')
    with pytest.raises(ValueError, match='row 5 .*No Finding'):
        read_csv(tmp_path, 'train.csv')


def test_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    assert len(message(tmp_path, [row(image_path(1), Edema='x' * 5000)])) < 500


@pytest.mark.parametrize('column', [*HEADER[1:5], 'Edema', 'Support Devices'])
def test_missing_column_is_named_with_those_found(tmp_path: Path, column: str) -> None:
    header = [name for name in HEADER if name != column]
    text = message(tmp_path, [row(image_path(1))], header)
    assert text == f'ROOT/train.csv: missing column: {column}; found: {", ".join(header)}'


def test_missing_path_column_is_named(tmp_path: Path) -> None:
    text = message(tmp_path, [row(image_path(1))], HEADER[1:])
    assert text.startswith('ROOT/train.csv: missing column: Path (or Study); found: Sex, Age')


def test_column_given_twice_is_refused(tmp_path: Path) -> None:
    text = message(tmp_path, [row(image_path(1))], [*HEADER, 'Edema'])
    assert text == 'ROOT/train.csv: column given twice: Edema'


def test_duplicate_path_is_refused_with_both_rows(tmp_path: Path) -> None:
    rows = [row(image_path(patient)) for patient in (1, 2, 3, 2)]
    assert message(tmp_path, rows) == (
        f"ROOT/train.csv, row 5 (the header is row 1), column 'Path': {image_path(2)!r} is given "
        'in row 3 already'
    )


def test_two_paths_of_one_file_are_refused(tmp_path: Path) -> None:
    rows = [row(image_path(1)), row(image_path(1, folder='CheXpert-v1.0/train'))]
    assert 'is given in row 2 already' in message(tmp_path, rows)
    rows = [row(image_path(1)), row(image_path(1).replace('.jpg', '.png'))]
    touch(tmp_path, 'train/patient00001/study1/view1_frontal.tif')
    assert 'is given in row 2 already' in message(tmp_path, rows, image_suffix='.tif')


@pytest.mark.parametrize(
    'path',
    [
        '../train/patient00001/study1/view1_frontal.jpg',
        'CheXpert/../../patient00001/study1/view1_frontal.jpg',
        'CheXpert/train/patient00001/study1/..',
        '/etc/patient00001/study1/view1_frontal.jpg',
        'CheXpert//etc/patient00001/study1/view1_frontal.jpg',
    ],
)
def test_path_that_leaves_the_root_is_refused(tmp_path: Path, path: str) -> None:
    assert message(tmp_path, [row(image_path(1)), row(path)]) == (
        f"ROOT/train.csv, row 3 (the header is row 1), column 'Path': {path!r} leaves the data "
        'root: only relative paths without .. are allowed'
    )


@pytest.mark.parametrize(
    'path',
    [
        '',
        'a.jpg',
        'CheXpert/train/study1/view1_frontal.jpg',
        'CheXpert/patient1/a.jpg',
        'CheXpert/train/patient1/study1',
        'CheXpert/train/patient1/study1/',
        'CheXpert/xpatient1/study1/view1_frontal.jpg',
    ],
)
def test_path_without_patient_and_study_is_refused(tmp_path: Path, path: str) -> None:
    assert message(tmp_path, [row(image_path(1)), row(path)]) == (
        f"ROOT/train.csv, row 3 (the header is row 1), column 'Path': {path!r} is not of the form "
        'FOLDER/.../patient00001/study1/view1_frontal.jpg'
    )


def test_file_that_is_no_csv_of_this_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / 'train.csv'
    line = image_path(1) + ',Male,1,Frontal,AP' + ',' * 14
    header = ','.join(HEADER)
    for content, expected in (
        ('', 'is not a readable CSV file'),
        (f'{header}\n', 'has no rows'),
        (f'{header}\n\n\n', 'has no rows'),
        (f'{header}\n{line},1\n', 'the rows have more fields than the header'),
        (f'{header}\n{line}\n{line},1\n', 'is not a readable CSV file.*line 3'),
        (f'{header}\n{line}\n{line[:-14]}', r'row 3 \(.*: 5 fields, the header has 19; is the fil'),
        (f'{header}\n{line}\n"{line}', 'is not a readable CSV file'),
        ('\x89PNG\r\n'.encode('latin-1'), 'is not a readable CSV file'),
    ):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=expected) as error:
            read_csv(tmp_path, 'train.csv')
        assert str(file) in str(error.value)


def test_quoted_commas_are_not_taken_for_a_cut_off_file(tmp_path: Path) -> None:
    rows = [{**row(image_path(1)), 'note': 'a,b'}, {**row(image_path(2)), 'note': ''}]
    assert len(read(tmp_path, rows, [*HEADER, 'note'])) == 2


def test_missing_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no such CSV file: .*/valid.csv'):
        read_csv(tmp_path, 'valid.csv')


def test_the_folder_below_that_has_the_csv_is_named(tmp_path: Path) -> None:
    read(tmp_path / 'CheXpert-v1.0-small', [row(image_path(1))])
    with pytest.raises(ValueError, match=r'\.\*_CSV\): .*/CheXpert-v1.0-small has one$'):
        read_csv(tmp_path, 'train.csv')

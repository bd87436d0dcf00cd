"""Reading CheXpert's CSV files and folders of images; views, hold-out, subsets."""

import csv
import hashlib
import logging
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.chexpert import (
    Records,
    read_csv,
    read_folder,
    select_views,
    split_holdout,
    take_subset,
)
from data.labels import LABELS

HEADER = ['Path', 'Sex', 'Age', 'Frontal/Lateral', 'AP/PA', *LABELS]
PREFIX = 'CheXpert-v1.0-small/train'


def image_path(patient: int, study: int = 1, view: str = 'view1_frontal', folder=PREFIX) -> str:
    return f'{folder}/patient{patient:05d}/study{study}/{view}.jpg'


def row(path: str, **cells: str) -> dict[str, str]:
    view = 'Lateral' if 'lateral' in path else 'Frontal'
    given = {'Path': path, 'Sex': 'Female', 'Age': '50', 'Frontal/Lateral': view, 'AP/PA': 'AP'}
    return {**given, **dict.fromkeys(LABELS, ''), **cells}


def write(file: Path, rows: list[dict[str, str]], header: list[str] = HEADER) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, 'w', newline='') as out:
        writer = csv.DictWriter(out, header, extrasaction='ignore', lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    return file


def touch(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def read(root: Path, rows: list[dict[str, str]], header: list[str] = HEADER, **options) -> Records:
    write(root / 'train.csv', rows, header)
    for cells in rows:
        path = cells['Path']
        if path.startswith('CheXpert') and '..' not in path and '//' not in path:
            touch(root, path.partition('/')[2])
    return read_csv(root, 'train.csv', **options)


def message(root: Path, rows: list[dict[str, str]], header: list[str] = HEADER, **options) -> str:
    with pytest.raises(ValueError) as error:
        read(root, rows, header, **options)
    assert str(root / 'train.csv') in str(error.value)
    return str(error.value).replace(str(root), 'ROOT')


def many(num_patients: int, seed: int = 0) -> list[dict[str, str]]:
    """Patients with one to three studies of one or two views, in a mixed order."""
    rng = np.random.default_rng(seed)
    paths = [
        image_path(patient, study, view)
        for patient in range(num_patients)
        for study in range(1, rng.integers(2, 5))
        for view in ('view1_frontal', 'view2_lateral')[: rng.integers(1, 3)]
    ]
    return [row(paths[i]) for i in rng.permutation(len(paths))]


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return read(tmp_path, many(200))


# ---- what is read


def test_reads_every_field_by_name_whatever_the_order_of_columns(tmp_path: Path) -> None:
    rows = [
        row(image_path(1), Sex='Male', Age='0', Edema='1.0', Fracture='-1'),
        row(image_path(1, 2, 'view2_lateral'), Sex='Unknown', Age='90', **{'AP/PA': ''}),
        row(image_path(64540, 12), Age='61.5', **{'AP/PA': 'LL', 'No Finding': '1', 'Edema': '0'}),
    ]
    header = ['extra', *reversed(HEADER)]
    records = read(tmp_path, [{**cells, 'extra': 'x,"y"'} for cells in rows], header)
    assert len(records) == 3 and records.csv == 'train.csv' and records.root == tmp_path
    assert records.row.tolist() == [0, 1, 2]
    assert records.path.tolist() == [cells['Path'] for cells in rows]
    assert records.file.tolist() == [
        'train/patient00001/study1/view1_frontal.jpg',
        'train/patient00001/study2/view2_lateral.jpg',
        'train/patient64540/study12/view1_frontal.jpg',
    ]
    assert records.patient.tolist() == ['patient00001', 'patient00001', 'patient64540']
    assert records.study.tolist() == [
        f'{PREFIX}/patient00001/study1',
        f'{PREFIX}/patient00001/study2',
        f'{PREFIX}/patient64540/study12',
    ]
    assert records.view.tolist() == ['frontal', 'lateral', 'frontal']
    assert records.sex.tolist() == ['Male', 'Unknown', 'Female']
    assert records.age.tolist() == [0, 90, 61.5]
    assert records.ap_pa.tolist() == ['AP', '', 'LL']
    expected = np.full((3, len(LABELS)), np.nan, np.float32)
    expected[0, 5], expected[0, 12], expected[2, 0], expected[2, 5] = 1, -1, 1, 0
    np.testing.assert_array_equal(records.labels, expected)
    assert records.labels.dtype == np.float32


def test_byte_order_mark_windows_line_ends_and_empty_lines_do_not_matter(tmp_path: Path) -> None:
    plain = read(tmp_path, [row(image_path(1), Edema='1.0'), row(image_path(2))])
    lines = (tmp_path / 'train.csv').read_text().splitlines()
    text = '\r\n'.join([lines[0], lines[1], '', lines[2], '', ''])
    (tmp_path / 'train.csv').write_bytes(b'\xef\xbb\xbf' + text.encode())
    records = read_csv(tmp_path, 'train.csv')
    assert records.path.tolist() == plain.path.tolist()
    np.testing.assert_array_equal(records.labels, plain.labels)
    assert records.row.tolist() == [0, 2]


def test_select_takes_positions_or_a_mask_in_all_fields(records: Records) -> None:
    some = records.select(np.array([5, 2]))
    assert some.row.tolist() == [5, 2] and some.path.tolist() == list(records.path[[5, 2]])
    assert some.labels.shape == (2, len(LABELS)) and some.root == records.root
    assert records.select(records.row < 3).row.tolist() == [0, 1, 2]


def test_counts_of_the_real_csv(nih1000: Path) -> None:
    for name, size in (('train.csv', 800), ('valid.csv', 200)):
        records = read_csv(nih1000, name)
        with open(nih1000 / name, newline='') as file:
            rows = list(csv.DictReader(file))
        assert len(records) == len(rows) == size
        for k, label in enumerate(LABELS):
            counts = Counter(float(cells[label]) if cells[label] else None for cells in rows)
            values = records.labels[:, k]
            found = {value: int((values == value).sum()) for value in (1.0, 0.0, -1.0)}
            assert found == {value: counts[value] for value in found}, label
            assert np.isnan(values).sum() == counts[None], label
        assert Counter(records.sex) == Counter(cells['Sex'] for cells in rows)
        assert records.age.sum() == sum(float(cells['Age']) for cells in rows)
        assert all((nih1000 / file).is_file() for file in records.file)
    patients = [set(read_csv(nih1000, name).patient) for name in ('train.csv', 'valid.csv')]
    assert not patients[0] & patients[1]


def test_full_size_csv_is_read_with_one_image_on_disk(tmp_path: Path) -> None:
    num_rows = 223_414
    cells = ',Male,{},Frontal,AP,,,1.0,,-1.0,0.0,,,,,1.0,,,\n'
    with open(tmp_path / 'train.csv', 'w') as file:
        file.write(','.join(HEADER) + '\n')
        for i in range(num_rows):
            file.write(image_path(i // 4, i % 4) + cells.format(i % 91))
    touch(tmp_path, 'train/patient00000/study0/view1_frontal.jpg')
    records = read_csv(tmp_path, 'train.csv')
    assert len(records) == num_rows and len(set(records.patient)) == 55_854
    assert np.nansum(records.labels, axis=0).tolist() == [
        {2: num_rows, 4: -num_rows, 10: num_rows}.get(k, 0) for k in range(14)
    ]
    assert records.age[-1] == (num_rows - 1) % 91


# ---- which file a path means


def test_prefix_may_differ_from_the_folder_or_be_there_or_be_absent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger('test')
    rule = {}
    for case, folder, on_disk in (
        ('other', 'CheXpert-v1.0/train', 'train'),
        ('kept', 'CheXpert-v1.0/train', 'CheXpert-v1.0/train'),
        ('absent', 'train', 'train'),
    ):
        root = tmp_path / case
        write(root / 'train.csv', [row(image_path(1, folder=folder))])
        touch(root, image_path(1, folder=on_disk))
        caplog.clear()
        with caplog.at_level(logging.INFO):
            records = read_csv(root, 'train.csv', logger=logger)
        assert records.file.tolist() == [image_path(1, folder=on_disk)]
        assert len(caplog.messages) == 1 and 'patient' not in caplog.text
        rule[case] = caplog.messages[0]
    assert rule['other'] == 'train.csv: 1 images; file = DATA_PATH / Path without its first part'
    assert rule['kept'] == rule['absent'] == 'train.csv: 1 images; file = DATA_PATH / Path as it is'


def test_only_the_first_row_of_each_prefix_is_looked_up(tmp_path: Path) -> None:
    rows = [row(image_path(1)), row(image_path(2)), row(image_path(3, folder='CheXpert/b'))]
    write(tmp_path / 'train.csv', rows)
    touch(tmp_path, image_path(1, folder='train'))
    with pytest.raises(ValueError, match='images not found') as error:
        read_csv(tmp_path, 'train.csv')
    assert str(tmp_path / image_path(3, folder='b')) in str(error.value)
    touch(tmp_path, image_path(3, folder='b'))
    assert len(read_csv(tmp_path, 'train.csv')) == 3


def test_missing_first_image_names_the_paths_tried(tmp_path: Path) -> None:
    write(tmp_path / 'train.csv', [row(image_path(1))])
    with pytest.raises(ValueError, match='DATA.IMAGE_SUFFIX if the images') as error:
        read_csv(tmp_path, 'train.csv')
    for tried in (image_path(1, folder='train'), image_path(1)):
        assert str(tmp_path / tried) in str(error.value)


def test_image_suffix_replaces_the_suffix_of_the_paths(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / 'train.csv', [row(image_path(1))])
    touch(tmp_path, 'train/patient00001/study1/view1_frontal.png')
    with caplog.at_level(logging.INFO):
        records = read_csv(
            tmp_path, 'train.csv', image_suffix='.png', logger=logging.getLogger('test')
        )
    assert records.file.tolist() == ['train/patient00001/study1/view1_frontal.png']
    assert records.path.tolist() == [image_path(1)]
    assert caplog.messages[0].endswith('its suffix replaced by .png')
    for suffix in ('png', '.', '/../x', '.png/'):
        with pytest.raises(ValueError, match='DATA.IMAGE_SUFFIX must be like'):
            read_csv(tmp_path, 'train.csv', image_suffix=suffix)


# ---- what is refused


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


# ---- label files


def test_labels_by_path_without_description_take_the_view_from_the_name(tmp_path: Path) -> None:
    rows = [row(image_path(1), Edema='1'), row(image_path(2, 1, 'view3_lateral'))]
    records = read(tmp_path, rows, ['Path', *LABELS])
    assert records.view.tolist() == ['frontal', 'lateral']
    assert records.sex.tolist() == ['Unknown'] * 2 and records.ap_pa.tolist() == [''] * 2
    assert np.isnan(records.age).all() and records.labels[0, 5] == 1
    rows.append(row(image_path(3, 1, 'scan')))
    assert "row 4 (the header is row 1), column 'Path'" in message(
        tmp_path, rows, ['Path', *LABELS]
    )
    assert 'names no view: expected a name such as view1_frontal.jpg' in message(
        tmp_path, rows, ['Path', *LABELS]
    )


def studies(root: Path, names: list[str], **cells: str) -> Records:
    write(
        root / 'test.csv',
        [{**row(''), 'Study': name, **cells} for name in names],
        ['Study', *LABELS],
    )
    return read_csv(root, 'test.csv')


def test_labels_by_study_are_those_of_all_its_images(tmp_path: Path) -> None:
    touch(
        tmp_path,
        'test/patient00009/study1/view2_lateral.jpg',
        'test/patient00009/study1/view1_frontal.JPG',
        'test/patient00009/study1/.hidden_frontal.jpg',
        'test/patient00009/study1/notes.txt',
        'test/patient00009/study11/view1_frontal.jpg',
        'test/patient00002/study1/view1_frontal.png',
    )
    names = [
        'CheXpert-v1.0/test/patient00009/study1',
        'CheXpert-v1.0/test/patient00002/study1',
    ]
    records = studies(tmp_path, names, Edema='1.0')
    assert records.path.tolist() == [
        f'{names[0]}/view1_frontal.JPG',
        f'{names[0]}/view2_lateral.jpg',
        f'{names[1]}/view1_frontal.png',
    ]
    assert records.file.tolist() == [path.partition('/')[2] for path in records.path]
    assert records.study.tolist() == [names[0], names[0], names[1]]
    assert records.patient.tolist() == ['patient00009', 'patient00009', 'patient00002']
    assert records.view.tolist() == ['frontal', 'lateral', 'frontal']
    assert records.row.tolist() == [0, 1, 2] and records.labels[:, 5].tolist() == [1, 1, 1]


def test_study_file_lists_converted_images_alone(tmp_path: Path) -> None:
    folder = 'test/patient00001/study1'
    touch(tmp_path, f'{folder}/view1_frontal.jpg', f'{folder}/view1_frontal.PNG')
    studies(tmp_path, [f'CheXpert/{folder}'])
    records = read_csv(tmp_path, 'test.csv', image_suffix='.png')
    assert records.file.tolist() == [f'{folder}/view1_frontal.PNG']


def test_bad_studies_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, 'test/patient00001/study1/view1_frontal.jpg')
    (tmp_path / 'test/patient00001/study2').mkdir()
    good = 'CheXpert/test/patient00001/study1'
    for names, expected in (
        ([good, f'{good[:-1]}2'], r"row 3 .*'Study'.*study2' has no image .* below .*study2"),
        ([good, f'{good[:-1]}3'], r"row 3 .*'Study'.*study3' has no image .* below .*study3"),
        ([good, good], "row 3 .*'Study'.*study1' is given in row 2 already"),
        ([good, '../patient00001/study1'], 'row 3 .* leaves the data root'),
        ([good, 'x'], 'row 3 .* is not of the form FOLDER/.../patient00001/study1$'),
        ([f'{good[:-1]}4'], 'images not found; tried '),
    ):
        with pytest.raises(ValueError, match=expected):
            studies(tmp_path, names)


# ---- views, hold-out, subsets


def test_select_views(records: Records) -> None:
    frontal, lateral = select_views(records, 'frontal'), select_views(records, 'lateral')
    assert set(frontal.view) == {'frontal'} and set(lateral.view) == {'lateral'}
    assert sorted([*frontal.row, *lateral.row]) == records.row.tolist()
    assert len(select_views(records, 'all')) == len(records)
    with pytest.raises(ValueError, match='none of the .* images is lateral .*DATA.VIEWS'):
        select_views(frontal, 'lateral')


@pytest.mark.parametrize('fraction, held_out', [(0.02, 4), (0.021, 5), (0.5, 100), (0, 0)])
def test_holdout_takes_the_rounded_up_share_of_the_patients(
    records: Records, fraction: float, held_out: int
) -> None:
    train, holdout = split_holdout(records, fraction)
    assert len(set(holdout.patient)) == held_out
    assert not set(holdout.patient) & set(train.patient)
    assert sorted([*train.row, *holdout.row]) == records.row.tolist()
    assert (np.diff(train.row) > 0).all() and (np.diff(holdout.row) > 0).all()


def test_share_is_not_rounded_up_by_floating_point(tmp_path: Path) -> None:
    assert math.ceil(0.07 * 100) == 8
    records = read(tmp_path, [row(image_path(patient)) for patient in range(100)])
    assert len(split_holdout(records, 0.07)[1]) == 7
    assert len(take_subset(records, fraction=0.07, images=0, seed=0)) == 7


def test_holdout_patients_depend_on_their_names_alone(records: Records) -> None:
    held_out = set(split_holdout(records, 0.1)[1].patient)
    mixed = records.select(np.random.default_rng(1).permutation(len(records)))
    assert set(split_holdout(mixed, 0.1)[1].patient) == held_out
    train, holdout = split_holdout(records, 0.1)
    for views in ('frontal', 'lateral'):
        subset = take_subset(select_views(train, views), fraction=0.5, images=0, seed=3)
        assert not set(subset.patient) & held_out
        assert set(select_views(holdout, views).patient) <= held_out
    # The same from one version to the next, or pre-training and fine-tuning would disagree.
    names = sorted(
        set(records.patient),
        key=lambda name: hashlib.blake2b(name.encode(), key=b'holdout').digest(),
    )
    assert held_out == set(names[:20])


def test_holdout_of_everybody_is_refused(records: Records) -> None:
    with pytest.raises(ValueError, match='DATA.HOLDOUT_FRACTION 0.999 leaves none of the 200'):
        split_holdout(records, 0.999)


def test_subsets_are_nested_by_patient_and_seeded(records: Records) -> None:
    drawn = {}
    for seed in range(5):
        larger = set(records.row)
        for fraction in (0.5, 0.1, 0.05, 0.01):
            subset = take_subset(records, fraction=fraction, images=0, seed=seed)
            patients = set(subset.patient)
            assert len(patients) == math.ceil(fraction * 200)
            assert set(subset.row) == {r for r, p in enumerate(records.patient) if p in patients}
            assert set(subset.row) < larger and (np.diff(subset.row) > 0).all()
            larger = set(subset.row)
            drawn[seed, fraction] = tuple(sorted(patients))
    assert len({drawn[seed, 0.05] for seed in range(5)}) == 5


def test_number_of_images_is_exact_nested_and_by_patient(records: Records) -> None:
    everything = take_subset(records, fraction=1, images=len(records), seed=1)
    assert everything.row.tolist() == records.row.tolist()
    smaller: set[int] = set()
    for images in range(1, 60):
        subset = take_subset(records, fraction=1, images=images, seed=1)
        assert len(subset) == images and (np.diff(subset.row) > 0).all()
        assert smaller < set(subset.row)
        smaller = set(subset.row)
        whole = Counter(records.patient)
        cut = [p for p, count in Counter(subset.patient).items() if count < whole[p]]
        assert len(cut) <= 1
    patients = set(take_subset(records, fraction=0.1, images=0, seed=1).patient)
    assert set(take_subset(records, fraction=1, images=20, seed=1).patient) <= patients


def test_no_subset_is_all_records(records: Records) -> None:
    assert take_subset(records, fraction=1.0, images=0, seed=0) is records


@pytest.mark.parametrize(
    'fraction, images, problem',
    [
        (0.5, 10, 'not both: got DATA.TRAIN_FRACTION 0.5, DATA.TRAIN_IMAGES 10'),
        (0, 0, 'above 0 and at most 1: got DATA.TRAIN_FRACTION 0'),
        (1.5, 0, 'above 0 and at most 1: got DATA.TRAIN_FRACTION 1.5'),
        (1, 10_000, 'images to choose from: got .*DATA.TRAIN_IMAGES 10000'),
        (1, -1, 'images to choose from: got .*DATA.TRAIN_IMAGES -1'),
    ],
)
def test_impossible_subset_is_refused(
    records: Records, fraction: float, images: int, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        take_subset(records, fraction=fraction, images=images, seed=0)


# ---- folders without labels


def test_folder_lists_visible_images_sorted(tmp_path: Path) -> None:
    touch(
        tmp_path,
        'b.PNG',
        'a/z.jpg',
        'a/deep/er/x.jpeg',
        'a/notes.txt',
        'a/labels.csv',
        '.hidden/x.png',
        'a/.x.png',
        'c/patient00007/study2/view1_frontal.jpg',
        'c/patient00007/y.jpg',
    )
    (tmp_path / 'a' / 'again.jpg').symlink_to(tmp_path / 'b.PNG')
    (tmp_path / 'again').symlink_to(tmp_path / 'a')
    records = read_folder(tmp_path, allow_all_images=False)
    files = [
        'a/deep/er/x.jpeg',
        'a/z.jpg',
        'b.PNG',
        'c/patient00007/study2/view1_frontal.jpg',
        'c/patient00007/y.jpg',
    ]
    assert records.file.tolist() == records.path.tolist() == files
    assert records.patient.tolist() == [*files[:3], 'patient00007', 'patient00007']
    assert records.study.tolist() == [*files[:3], 'c/patient00007/study2', files[4]]
    assert records.labels is None and records.csv == '' and records.row.tolist() == [0, 1, 2, 3, 4]
    assert records.select(np.array([1])).labels is None
    train, holdout = split_holdout(records, 0.25)
    assert len(train) + len(holdout) == 5 and len(set(holdout.patient)) == 1


@pytest.mark.parametrize('name', ['train.csv', 'valid.csv', 'below/valid.csv'])
def test_folder_with_scored_images_is_refused_unless_allowed(tmp_path: Path, name: str) -> None:
    touch(tmp_path, 'a.png', name)
    with pytest.raises(ValueError, match=f'{name} is there: .*DATA.ALLOW_ALL_IMAGES True'):
        read_folder(tmp_path, allow_all_images=False)
    assert read_folder(tmp_path, allow_all_images=True).file.tolist() == ['a.png']


def test_real_folder_is_refused_unless_allowed(nih1000: Path) -> None:
    with pytest.raises(ValueError, match='DATA.ALLOW_ALL_IMAGES'):
        read_folder(nih1000, allow_all_images=False)
    assert len(read_folder(nih1000, allow_all_images=True)) == 1000
    assert len(read_folder(nih1000 / 'train', allow_all_images=False)) == 800


def test_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, 'outside/x.png', 'root/a.png')
    root = tmp_path / 'root'
    for link, target in (('b.png', 'outside/x.png'), ('c', 'outside')):
        (root / link).symlink_to(tmp_path / target)
        with pytest.raises(ValueError, match=f'{link} is a link that leaves the data root'):
            read_folder(root, allow_all_images=False)
        (root / link).unlink()
    (tmp_path / 'alias').symlink_to(root)
    assert read_folder(tmp_path / 'alias', allow_all_images=False).file.tolist() == ['a.png']


def test_empty_or_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no image below .* .png, .jpg'):
        read_folder(tmp_path, allow_all_images=False)
    with pytest.raises(ValueError, match='DATA.DATA_PATH is no folder: .*/none'):
        read_folder(tmp_path / 'none', allow_all_images=False)

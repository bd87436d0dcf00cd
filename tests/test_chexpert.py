"""Reading CheXpert's CSV files: fields, the image that a path means, files of labels alone."""

import csv
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from csv_files import HEADER, PREFIX, image_path, message, read, row, touch, write

from data.labels import LABELS
from data.records import Records, read_csv

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


@pytest.mark.slow
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

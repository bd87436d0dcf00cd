"""Readers of CSV files and folders: values, paths, splits, groups, and faults that users meet."""

import hashlib
import math
import re
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from csv_files import HEADER, image_path, message, read, row, touch, write
from tiny import config_with

from config import default_config
from data.tables.chexpert import read_csv
from data.tables.folder import read_folder
from data.tables.given_folders import read_images
from data.tables.groups import MOST_GROUPS, group_columns
from data.tables.labels import LABELS
from data.tables.records import Records, select_views
from data.tables.splits import (
    describe_subset,
    split_holdout,
    split_patients,
    take_subset,
    training_records,
    unlabelled_records,
)
from data.tables.table import Table

REPORT = 'The heart, which is large, is seen.\nNo effusion, no pneumothorax, no edema'


@pytest.mark.parametrize('names', [('x/{}.png',), ('0001_{}.png',), ('5{}',), ('5a4f{}', '7b{}c')])
def test_a_report_of_several_lines_is_no_row_and_a_swallowed_row_is_refused(tmp_path, names):
    rows = [f'{name.format(number)},1,' for number in range(3) for name in names]
    lines = [f'{row}"{REPORT}"\n' for row in rows]
    (tmp_path / 'x.csv').write_text(''.join(['file,label,report\n', *lines]))
    table = Table(tmp_path / 'x.csv')
    assert len(table) == len(rows) and set(table['report']) == {REPORT}
    lines[1] = lines[1].replace('edema"', 'edema')
    lines[2] = lines[2].replace('"The', '"The "').replace('edema"', 'edema')
    (tmp_path / 'x.csv').write_text(''.join(['file,label,report\n', *lines[:2], rows[2], 'x"\n']))
    with pytest.raises(ValueError, match=r"row 3.*'report'.*looks like a row"):
        Table(tmp_path / 'x.csv')


def test_reads_every_field_by_name_whatever_the_order_of_columns(tmp_path: Path) -> None:
    rows = [
        row(image_path(1), Sex='Male', Age='0', Edema='1.0', Fracture='-1', Pneumonia='-1.0'),
        row(image_path(1, 2, 'view2_lateral'), Sex='Unknown', Age='90', **{'AP/PA': ''}),
        row(
            image_path(64540, 12),
            Age='61.5',
            **{'AP/PA': 'LL', 'No Finding': '1', 'Edema': '0'},
            Fracture='0.0',
        ),
    ]
    header = ['extra', *reversed(HEADER)]
    records = read(tmp_path, [{**cells, 'extra': 'x,"y"'} for cells in rows], header)
    assert len(records) == 3 and records.csv == 'train.csv' and records.root == tmp_path
    assert records.row.tolist() == [0, 1, 2]
    assert records.path.tolist() == [cells['Path'] for cells in rows]
    assert records.file.tolist() == [path.partition('/')[2] for path in records.path]
    assert records.patient.tolist() == ['patient00001', 'patient00001', 'patient64540']
    assert records.study.tolist() == [path.rpartition('/')[0] for path in records.path]
    assert records.view.tolist() == ['frontal', 'lateral', 'frontal']
    assert records.sex.tolist() == ['Male', 'Unknown', 'Female']
    assert records.age.tolist() == [0, 90, 61.5]
    assert records.ap_pa.tolist() == ['AP', '', 'LL']
    expected = np.full((3, len(LABELS)), np.nan, np.float32)
    expected[0, [5, 7, 12]], expected[2, [0, 5, 12]] = [1, -1, -1], [1, 0, 0]
    np.testing.assert_array_equal(records.labels, expected)
    assert records.labels.dtype == np.float32


def test_a_missing_image_says_below_which_folder_it_was_looked_for(tmp_path: Path) -> None:
    data, tables = tmp_path / 'data', tmp_path / 'tables'
    data.mkdir()
    tables.mkdir()
    write(tables / 'mine.csv', [row(image_path(1))])
    first = re.escape(str(data / image_path(1).partition('/')[2]))
    below = r'looked for below DATA\.DATA_PATH, not beside the table; see DATA\.DATA_PATH'
    with pytest.raises(ValueError, match=rf'mine\.csv, row 2 .*{first} does not exist .*{below}'):
        read_csv(data, str(tables / 'mine.csv'))
    first = re.escape(str(tables / image_path(1).partition('/')[2]))
    with pytest.raises(ValueError, match=rf'{first} .*looked for below the folder of the table'):
        read_images(str(tables / 'mine.csv'))  # as predict.py and features.py do


@pytest.mark.parametrize('on_disk', ['train', 'CheXpert-v1.0/train'])
def test_the_prefix_of_a_path_may_differ_from_the_folder(tmp_path: Path, on_disk: str) -> None:
    write(tmp_path / 'train.csv', [row(image_path(1, folder='CheXpert-v1.0/train'))])
    touch(tmp_path, image_path(1, folder=on_disk))
    records = read_csv(tmp_path, 'train.csv')
    assert records.file.tolist() == [image_path(1, folder=on_disk)]


def test_images_beside_folders_of_patients_are_looked_up_with_them(tmp_path: Path) -> None:
    paths = [image_path(1, folder='').lstrip('/'), 'beside_frontal.jpg']
    touch(tmp_path, paths[0])
    rows = [row(path, Patient=str(number)) for number, path in enumerate(paths)]
    assert read(tmp_path, rows, [*HEADER, 'Patient']).path.tolist() == paths
    assert 'beside_frontal.jpg' in message(tmp_path, rows[::-1], [*HEADER, 'Patient'])


def test_the_first_image_of_each_folder_of_patients_must_exist(tmp_path: Path) -> None:
    rows = [row(image_path(1)), row(image_path(2)), row(image_path(3, folder='CheXpert/valid'))]
    write(tmp_path / 'train.csv', rows)
    touch(tmp_path, image_path(1, folder='train'))
    with pytest.raises(ValueError, match='row 4.*valid'):
        read_csv(tmp_path, 'train.csv')


def test_image_suffix_replaces_the_suffix_of_the_paths(tmp_path: Path) -> None:
    write(tmp_path / 'train.csv', [row(image_path(1))])
    touch(tmp_path, 'train/patient00001/study1/view1_frontal.png')
    records = read_csv(tmp_path, 'train.csv', image_suffix='.png')
    assert records.file.tolist() == ['train/patient00001/study1/view1_frontal.png']
    assert records.path.tolist() == [image_path(1)]
    with pytest.raises(ValueError, match='DATA.IMAGE_SUFFIX'):
        read_csv(tmp_path, 'train.csv', image_suffix='/../x')


def test_labels_by_path_without_description_take_the_view_from_the_name(tmp_path: Path) -> None:
    rows = [row(image_path(1), Edema='1'), row(image_path(2, 1, 'view3_lateral'))]
    records = read(tmp_path, rows, ['Path', *LABELS])
    assert records.view.tolist() == ['frontal', 'lateral']
    assert records.sex.tolist() == ['Unknown'] * 2 and records.ap_pa.tolist() == [''] * 2
    assert np.isnan(records.age).all() and records.labels[0, 5] == 1
    rows.append(row(image_path(3, 1, 'scan')))
    assert 'row 4' in message(tmp_path, rows, ['Path', *LABELS])


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
    names = ['CheXpert-v1.0/test/patient00009/study1', 'CheXpert-v1.0/test/patient00002/study1']
    rows = [{'Study': name, 'Edema': '1.0'} for name in names]
    write(tmp_path / 'test.csv', rows, ['Study', *LABELS])
    records = read_csv(tmp_path, 'test.csv')
    assert records.path.tolist() == [
        f'{names[0]}/view1_frontal.JPG',
        f'{names[0]}/view2_lateral.jpg',
        f'{names[1]}/view1_frontal.png',
    ]
    assert records.file.tolist() == [path.partition('/')[2] for path in records.path]
    assert records.study.tolist() == [names[0], names[0], names[1]]
    assert records.patient.tolist() == ['patient00009', 'patient00009', 'patient00002']
    assert records.view.tolist() == ['frontal', 'lateral', 'frontal']
    assert records.row.tolist() == [0, 0, 1] and records.sample.tolist() == [0, 1, 2]
    assert records.labels[:, 5].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    'column, value',
    [
        ('Sex', 'male'),
        ('Age', '-1'),
        ('Age', '1954'),  # a year of birth
        ('Edema', '2.0'),
        ('Path', '../train/patient00001/study1/view1_frontal.jpg'),
        ('Path', 'CheXpert/train/study1/view1_frontal.jpg'),
    ],
)
def test_bad_cell_is_named_by_row_and_column(tmp_path: Path, column: str, value: str) -> None:
    rows = [row(image_path(patient)) for patient in range(1, 6)]
    rows[3][column] = rows[4][column] = value
    text = message(tmp_path, rows)
    assert all(part in text for part in ('train.csv', 'row 5', repr(column), repr(value)))


TOP = ','.join(HEADER)
LINE = image_path(1) + ',Male,1,Frontal,AP' + ',' * 14


@pytest.mark.parametrize(
    'content, part',
    [
        ('', ''),
        (f'{TOP}\n{LINE}\n{LINE[:-14]}', 'row 3'),  # a truncated file
        (f'{TOP}\n{LINE}'.replace('Male', 'M\xe4le'), ''),  # in Latin-1
        (f'{TOP}\n{LINE}'.replace('Path', 'File'), 'Path'),
        (f'{TOP}\n{LINE}'.replace('Edema', 'Oedema'), 'Edema'),
        (f'{TOP},Edema\n{LINE},', 'Edema'),
    ],
)
def test_file_that_is_not_such_a_table_is_refused(tmp_path: Path, content, part: str) -> None:
    touch(tmp_path, image_path(1, folder='train'))
    file = tmp_path / 'train.csv'
    file.write_bytes(content.encode('latin-1'))
    with pytest.raises(ValueError, match=f'{file}.*{part}'):
        read_csv(tmp_path, 'train.csv')


def test_folder_lists_visible_images_sorted(tmp_path: Path) -> None:
    files = ['a/deep/x.jpeg', 'b.PNG', 'c/patient00007/study2/view1_frontal.jpg']
    touch(tmp_path, *files, 'a/notes.txt', 'a/labels.csv', '.hidden/x.png', 'a/.x.png')
    (tmp_path / 'a' / 'again.jpg').symlink_to(tmp_path / 'b.PNG')
    (tmp_path / 'again').symlink_to(tmp_path / 'a')
    records = read_folder(tmp_path, allow_all_images=False)
    assert records.file.tolist() == records.path.tolist() == files
    assert records.patient.tolist() == [*files[:2], 'patient00007']
    assert records.study.tolist() == [*files[:2], 'c/patient00007/study2']
    assert records.labels is None and records.csv == '' and records.row.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ('name', 'shown'),
    [
        ('test/b.png', 'test'),
        ('stage_2_test_images/b.dcm', 'stage_2_test_images'),
        ('x/Validation/b.png', 'x/Validation'),
        ('test_labels.csv', 'test_labels.csv'),
        ('groundtruth.csv', 'groundtruth.csv'),
        ('gt/val.json', 'gt/val.json'),
        ('my-split.tsv', 'my-split.tsv'),
        ('BBox_List_2017.csv', 'DATA.DATASET nih'),
        ('PLUS/chexbert_labels/impression_fixed.json', 'DATA.DATASET chexpert_plus'),
        ('below/mimic-cxr-2.0.0-split.csv', 'DATA.DATASET mimic-cxr'),
    ],
)
def test_folder_with_scored_images_is_refused_unless_allowed(tmp_path, name, shown) -> None:
    touch(tmp_path, 'a.png', name)
    with pytest.raises(ValueError, match=rf'{shown}.*DATA\.ALLOW_ALL_IMAGES'):
        read_folder(tmp_path, allow_all_images=False)
    assert 'a.png' in read_folder(tmp_path, allow_all_images=True).file


def test_a_folder_of_chexpert_names_its_data_set(tmp_path: Path) -> None:
    """Also beside folders of scored images, which come first."""
    touch(tmp_path, 'test/patient1/a.png', 'a.png', 'labels_of_test.csv', 'train.csv')
    with pytest.raises(ValueError, match=r'train\.csv.* use DATA\.DATASET chexpert'):
        read_folder(tmp_path, allow_all_images=False)


def test_the_folder_of_the_test_images_alone_is_refused(tmp_path: Path) -> None:
    for name, is_refused in (('test', True), ('train', False), ('latest', False)):
        touch(tmp_path / name, 'a.png')
        with pytest.raises(ValueError, match=str(tmp_path / name)) if is_refused else nullcontext():
            read_folder(tmp_path / name, allow_all_images=False)


@pytest.fixture(scope='module')
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """200 patients with one to three studies of one or two views, in a mixed order."""
    rng = np.random.default_rng(0)
    paths = [
        image_path(patient, study, view)
        for patient in range(200)
        for study in range(1, rng.integers(2, 5))
        for view in ('view1_frontal', 'view2_lateral')[: rng.integers(1, 3)]
    ]
    root = tmp_path_factory.mktemp('records')
    return read(root, [row(paths[i]) for i in rng.permutation(len(paths))])


def test_select_views(records: Records) -> None:
    frontal, lateral = select_views(records, 'frontal'), select_views(records, 'lateral')
    assert set(frontal.view) == {'frontal'} and set(lateral.view) == {'lateral'}
    assert sorted([*frontal.row, *lateral.row]) == records.row.tolist()
    assert len(select_views(records, 'all')) == len(records)
    with pytest.raises(ValueError, match='DATA.VIEWS'):
        select_views(frontal, 'lateral')


def test_holdout_is_the_rounded_up_share_of_patients_by_a_hash_of_their_names(records) -> None:
    names = sorted(
        set(records.patient), key=lambda p: hashlib.blake2b(p.encode(), key=b'holdout').digest()
    )
    mixed = records.select(np.random.default_rng(1).permutation(len(records)))
    for these in (records, mixed):
        train, holdout = split_holdout(these, 0.021)
        assert set(holdout.patient) == set(names[:5]) == set(names) - set(train.patient)
        assert sorted([*train.row, *holdout.row]) == sorted(these.row)
    assert len(split_holdout(records, 0)[1]) == 0
    with pytest.raises(ValueError, match='DATA.HOLDOUT_FRACTION'):
        split_holdout(records, 0.999)


def test_internal_patients_are_held_out_and_choose_nothing(records: Records) -> None:
    config = default_config()
    config.DATA.HOLDOUT_FRACTION = 0.2
    before = split_holdout(records, 0.2)
    parts = {}
    for share in (0.0, 0.001, 0.25, 0.5):
        config.EVAL.INTERNAL_SHARE = share
        parts[share] = split_patients(config, records)
        train, holdout, internal = ({*part.patient} for part in parts[share])
        assert train == {*before[0].patient} and holdout | internal == {*before[1].patient}
        assert not holdout & internal
        assert len(internal) == math.ceil(share * len({*before[1].patient}))
    assert parts[0.0][1].path.tolist() == before[1].path.tolist()
    assert {*parts[0.25][2].patient} < {*parts[0.5][2].patient}
    for share, held_out in ((0.999, 0.2), (0.5, 0.0), (0.5, 0.001)):
        config.EVAL.INTERNAL_SHARE, config.DATA.HOLDOUT_FRACTION = share, held_out
        with pytest.raises(ValueError, match='EVAL.INTERNAL_SHARE .* DATA.HOLDOUT_FRACTION'):
            split_patients(config, records)


def test_subsets_are_nested_exact_and_by_patient(records: Records) -> None:
    drawn = set()
    for seed in range(3):
        larger = set(records.row)
        for fraction in (0.5, 0.1, 0.05):
            subset = take_subset(records, fraction=fraction, images=0, seed=seed)
            patients = set(subset.patient)
            assert len(patients) == math.ceil(fraction * 200)
            assert set(subset.row) == {r for r, p in enumerate(records.patient) if p in patients}
            assert set(subset.row) < larger and (np.diff(subset.row) > 0).all()
            larger = set(subset.row)
        drawn.add(tuple(sorted(patients)))
    assert len(drawn) == 3
    smaller, whole = set(), Counter(records.patient)
    for images in range(1, 40):
        subset = take_subset(records, fraction=1, images=images, seed=1)
        assert len(subset) == images and smaller < set(subset.row)
        smaller = set(subset.row)
        cut = [p for p, count in Counter(subset.patient).items() if count < whole[p]]
        assert len(cut) <= 1
    assert take_subset(records, fraction=1.0, images=0, seed=0) is records
    with pytest.raises(ValueError, match='DATA.TRAIN_IMAGES'):
        take_subset(records, fraction=1, images=10_000, seed=0)


def test_a_task_without_policies_learns_from_the_images_with_a_target(tmp_path: Path) -> None:
    values = [{'No Finding': '1.0'}, {'Pleural Effusion': '1.0'}, {'Edema': '1.0'}]
    uncertain = {'Pleural Effusion': '-1.0'}
    cells = [*values, uncertain, *values]
    effusion = read(tmp_path, [row(image_path(i), **cells[i]) for i in range(len(cells))])
    for images, rows in ((0, [0, 1, 4, 5]), (3, None)):
        config = config_with(DATA__TASK='effusion', DATA__TRAIN_IMAGES=images, DATA__VIEWS='all')
        found = training_records(config, effusion)
        assert {*found.row} <= {0, 1, 4, 5} and len(found) == (images or 4)
        assert rows is None or found.row.tolist() == rows


@pytest.fixture
def grouped(tmp_path: Path) -> Records:
    """Patients 1 to 4, the first with two images; their CSV file has a column `Site`."""
    images = [(1, 1, 'A'), (1, 2, 'A'), (2, 1, 'B'), (3, 1, ''), (4, 1, 'C')]
    rows = [row(image_path(patient, study), Site=site) for patient, study, site in images]
    return read(tmp_path, rows, ['Site', *HEADER], groups=['Site'])


def groups_of(records: Records, columns: list[str], *demographics: str) -> dict[str, list[str]]:
    if demographics:
        (records.root / 'demo.csv').write_text('\n'.join(demographics) + '\n')
    found = group_columns(records, columns, demographics='demo.csv' if demographics else '')
    return {name: values.tolist() for name, values in found.items()}


def test_groups_come_from_the_own_file_by_row_or_from_demographics_by_patient(grouped) -> None:
    assert groups_of(grouped.select(np.array([4, 0, 2])), ['Site']) == {'Site': ['C', 'A', 'B']}
    lines = [
        'GENDER,PATIENT,RACE,AGE,Site',
        'F,patient00004,"Black, ""mixed""",50,x',
        'M,patient00001,White,40,x',
        ',,,,',
        'M,patient99999,Asian,31,x',
        'F,patient00002,,31,x',
        'F,patient00002,,30,x',
    ]
    found = groups_of(grouped, ['RACE', 'Site'], *lines)
    assert list(found) == ['RACE', 'Site'], 'the own column takes precedence'
    assert found['RACE'] == ['White', 'White', '', '', 'Black, "mixed"']
    assert found['Site'] == ['A', 'A', 'B', '', 'C']
    with pytest.raises(ValueError, match="DATA.DEMOGRAPHICS.*'AGE'"):
        groups_of(grouped, ['AGE'], *lines)
    unknown = groups_of(grouped, ['RACE'], 'PATIENT,RACE', 'patient00001,Unknown', 'patient00003,A')
    assert unknown == {'RACE': ['', '', '', 'A', '']}


def test_columns_and_demographics_that_do_not_fit_are_refused(grouped, tmp_path) -> None:
    for column in ('Race', 'Sex', 'Edema'):
        with pytest.raises(ValueError, match=f"EVAL.GROUPS.*'{column}'"):
            groups_of(grouped, ['Site', column])
    for key, patient in (('Person', 'patient00001'), ('PATIENT', 'X-1')):
        with pytest.raises(ValueError, match=r'demo\.csv.*PATIENT'):
            groups_of(grouped, ['RACE'], f'{key},RACE', f'{patient},White')
    rows = [row(image_path(i), Site=f's{i:03d}') for i in range(MOST_GROUPS + 1)]
    with pytest.raises(ValueError, match="EVAL.GROUPS.*'Site'"):
        groups_of(read(tmp_path / 'many', rows, ['Site', *HEADER], groups=['Site']), ['Site'])


@pytest.mark.parametrize('images', [1, 4, 9])
def test_no_image_of_a_labelled_patient_counts_as_unlabelled(records, images):
    """Also if DATA.TRAIN_IMAGES takes only some of the patient's images."""
    config = config_with(DATA__TRAIN_IMAGES=images, DATA__VIEWS='all')
    labelled = training_records(config, records)
    left = set(records.patient) - set(labelled.patient)
    assert set(unlabelled_records(config, records).patient) == left


def test_a_part_of_the_training_images_is_described_by_its_options():
    assert describe_subset(config_with()) == ''
    found = describe_subset(config_with(DATA__TRAIN_IMAGES=9, DATA__TRAIN_FRACTION=0.07))
    images, patients = found.split(', ')
    assert images == '9 of the images: DATA.TRAIN_IMAGES'
    assert patients == '7 % of the patients: DATA.TRAIN_FRACTION'

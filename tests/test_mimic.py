"""MIMIC-CXR-JPG: hand-written folders by value, every refusal in words, phantoms read back."""

import csv
import gzip
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.labels import LABELS
from data.records import read_mimic, select_views

ROOT = Path(__file__).resolve().parents[1]
NAN = float('nan')
# As the published label files order them.
OBSERVATIONS = (
    'Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,'
    'Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices'
).split(',')

Tables = dict[str, list[list[str]]]


def labels_of(subject: str, study: str, **values: str) -> list[str]:
    cells = {name.replace('_', ' '): value for name, value in values.items()}
    return [subject, study, *(cells.get(name, '') for name in OBSERVATIONS)]


def tables() -> Tables:
    """Four studies of three training patients, one validation and one test study."""
    images = [  # image, patient, study, ViewPosition, split
        ('aa-1', '10000032', '50414267', 'PA', 'train'),
        ('aa-2', '10000032', '50414267', 'LATERAL', 'train'),
        ('bb-1', '10000032', '53189527', 'AP', 'train'),
        ('vv-1', '10003000', '55000001', 'PA', 'validate'),
        ('cc-1', '12000764', '57375967', 'LL', 'train'),
        ('cc-2', '12000764', '57375967', '', 'train'),
        ('cc-3', '12000764', '57375967', 'AP AXIAL', 'train'),
        ('cc-4', '12000764', '57375967', 'RL', 'train'),
        ('tt_1', '19999999', '59999999', 'AP', 'test'),
        ('dd-1', '13000001', '58000000', 'AP', 'train'),
    ]
    metadata = [['dicom_id', 'subject_id', 'study_id', 'Rows', 'ViewPosition', 'Note']]
    metadata += [[d, p, s, '3056', view, 'CHEST (PA, LAT)'] for d, p, s, view, _ in images[::-1]]
    split = [['dicom_id', 'study_id', 'subject_id', 'split']]
    split += [[d, s, p, name] for d, p, s, _, name in images]
    labels = [
        ['subject_id', 'study_id', *OBSERVATIONS],
        labels_of('12000764', '57375967', Edema='-1.0', Lung_Opacity='1.0', Fracture='0.0'),
        labels_of('10000032', '50414267', No_Finding='1.0'),
        labels_of('10000032', '53189527', Pleural_Effusion='1', Atelectasis='-1', Pneumonia='0'),
        labels_of('19999999', '59999999', Support_Devices='1.0'),
        labels_of('10003000', '55000001', Cardiomegaly='1.0'),
        labels_of('17777777', '51111111', Pneumothorax='1.0'),
    ]
    negbio = [list(row) for row in labels]
    negbio[1][2 + OBSERVATIONS.index('Edema')] = '1.0'
    return {'metadata': metadata, 'split': split, 'chexpert': labels, 'negbio': negbio}


def write(root: Path, files: Tables, *, zipped: bool = False, version: str = '2.0.0') -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for kind, rows in files.items():
        name = f'mimic-cxr-{version}-{kind}.csv' + ('.gz' if zipped else '')
        with (gzip.open if zipped else open)(root / name, 'wt', newline='') as out:
            csv.writer(out, lineterminator='\n').writerows(rows)
    touch(root, 'files/p10/p10000032/s50414267/aa-1.jpg')
    touch(root, 'files/p10/p10003000/s55000001/vv-1.jpg')
    touch(root, 'files/p19/p19999999/s59999999/tt_1.jpg')
    return root


def touch(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()


def refusal(root: Path, files: Tables, split: str = 'train', labeller: str = 'chexpert') -> str:
    write(root, files)
    with pytest.raises(ValueError) as error:
        read_mimic(root, split, labeller=labeller)
    return str(error.value).replace(str(root), 'ROOT')


@pytest.mark.parametrize('zipped, version', [(False, '2.0.0'), (True, '2.1.0')])
def test_a_folder_is_read_as_written(tmp_path: Path, zipped: bool, version: str) -> None:
    root = write(tmp_path / 'mimic', tables(), zipped=zipped, version=version)
    records = read_mimic(root, 'train', labeller='chexpert')
    first, second = 'files/p10/p10000032/s50414267', 'files/p10/p10000032/s53189527'
    third = 'files/p12/p12000764/s57375967'
    assert records.root == root
    assert records.csv == f'mimic-cxr-{version}-split.csv' + ('.gz' if zipped else '')
    assert records.row.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert records.study.tolist() == [first, first, second, *[third] * 4]
    names = ['aa-1', 'aa-2', 'bb-1', 'cc-1', 'cc-2', 'cc-3', 'cc-4']
    paths = [f'{study}/{name}.jpg' for study, name in zip(records.study, names, strict=True)]
    assert records.path.tolist() == records.file.tolist() == paths
    assert records.patient.tolist() == ['p10000032'] * 3 + ['p12000764'] * 4
    lateral = 'lateral'
    assert records.view.tolist() == ['frontal', lateral, 'frontal', lateral, '', '', lateral]
    assert records.ap_pa.tolist() == ['PA', '', 'AP', '', '', '', '']
    assert records.sex.tolist() == ['Unknown'] * 7
    assert np.isnan(records.age).all() and records.age.dtype == np.float64
    expected = pd.DataFrame(NAN, index=range(7), columns=LABELS)
    expected.loc[[0, 1], 'No Finding'] = 1
    expected.loc[2, ['Pleural Effusion', 'Atelectasis', 'Pneumonia']] = [1, -1, 0]
    expected.loc[[3, 4, 5, 6], ['Edema', 'Lung Opacity', 'Fracture']] = [-1, 1, 0]
    np.testing.assert_array_equal(records.labels, expected.to_numpy(np.float32))
    assert records.labels.dtype == np.float32


def test_each_split_and_labeller_has_its_own_rows_and_labels(tmp_path: Path) -> None:
    root = write(tmp_path, tables())
    valid = read_mimic(root, 'validate', labeller='chexpert')
    test = read_mimic(root, 'test', labeller='chexpert')
    assert (valid.row.tolist(), test.row.tolist()) == ([3], [8])
    assert valid.file.tolist() == ['files/p10/p10003000/s55000001/vv-1.jpg']
    assert np.flatnonzero(valid.labels[0] == 1).tolist() == [LABELS.index('Cardiomegaly')]
    assert np.flatnonzero(test.labels[0] == 1).tolist() == [LABELS.index('Support Devices')]
    edema = LABELS.index('Edema')
    for labeller, value in (('chexpert', -1), ('negbio', 1)):
        labels = read_mimic(root, 'train', labeller=labeller).labels
        assert labels[3:, edema].tolist() == [value] * 4


def test_images_of_other_views_are_in_all_views_alone(tmp_path: Path) -> None:
    records = read_mimic(write(tmp_path, tables()), 'train', labeller='chexpert')
    assert select_views(records, 'frontal').row.tolist() == [0, 2]
    assert select_views(records, 'lateral').row.tolist() == [1, 4, 7]
    assert select_views(records, 'all').row.tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_the_log_says_what_is_read_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = write(tmp_path, tables())
    read_mimic(root, 'train', labeller='negbio', logger=logging.getLogger('mimic'))
    assert caplog.messages == [
        'mimic-cxr-2.0.0-split.csv, train: 7 images; '
        'file = DATA_PATH / files/pNN/pSUBJECT/sSTUDY/DICOM.jpg; '
        'labels of mimic-cxr-2.0.0-negbio.csv; without a row in it and left out: 1 images of 1 '
        "studies; neither frontal nor lateral: 2 (1 empty, 1 'AP AXIAL')"
    ]


def test_converted_images_keep_their_paths(tmp_path: Path) -> None:
    root = write(tmp_path, tables())
    touch(root, 'files/p10/p10000032/s50414267/aa-1.png')
    records = read_mimic(root, 'train', labeller='chexpert', image_suffix='.png')
    assert records.file[1] == 'files/p10/p10000032/s50414267/aa-2.png'
    assert records.path[1] == 'files/p10/p10000032/s50414267/aa-2.jpg'


def test_rows_count_empty_lines(tmp_path: Path) -> None:
    files = tables()
    files['split'].insert(2, ['', '', '', ''])
    records = read_mimic(write(tmp_path, files), 'train', labeller='chexpert')
    assert records.row.tolist() == [0, 2, 3, 5, 6, 7, 8]
    assert records.path[1] == 'files/p10/p10000032/s50414267/aa-2.jpg'


@pytest.mark.parametrize(
    'kind, row, column, value, problem',
    [
        ('split', 3, 'subject_id', '1000003x', 'allowed: digits'),
        ('split', 3, 'subject_id', '10000032.0', 'allowed: digits'),
        ('split', 4, 'study_id', '', 'allowed: digits'),
        ('split', 4, 'study_id', '../../s1', 'allowed: digits'),
        ('split', 4, 'study_id', '٣', 'allowed: digits'),
        ('split', 2, 'dicom_id', '../aa-1', 'allowed: letters, digits, - and _'),
        ('split', 2, 'dicom_id', '..', 'allowed: letters, digits, - and _'),
        ('split', 2, 'dicom_id', 'aa-1\n', 'allowed: letters, digits, - and _'),
        ('split', 5, 'split', 'valid', 'allowed: train, validate, test'),
        ('chexpert', 2, 'Edema', '2.0', 'allowed: 1.0, 1, 0.0, 0, -1.0, -1, empty'),
        ('chexpert', 7, 'Support Devices', 'nan', 'allowed: 1.0, 1, 0.0, 0, -1.0, -1, empty'),
    ],
)
def test_a_bad_cell_is_named(
    tmp_path: Path, kind: str, row: int, column: str, value: str, problem: str
) -> None:
    files = tables()
    files[kind][row - 1][files[kind][0].index(column)] = value
    assert refusal(tmp_path, files) == (
        f'ROOT/mimic-cxr-2.0.0-{kind}.csv, row {row} (the header is row 1), column {column!r}: '
        f'{value!r} is not allowed ({problem})'
    )


@pytest.mark.parametrize(
    'kind, row, column, again',
    [('split', 8, 'dicom_id', 2), ('metadata', 9, 'dicom_id', 3), ('chexpert', 5, 'study_id', 2)],
)
def test_a_repeated_id_is_named_with_both_rows(
    tmp_path: Path, kind: str, row: int, column: str, again: int
) -> None:
    files = tables()
    place = files[kind][0].index(column)
    value = files[kind][row - 1][place] = files[kind][again - 1][place]
    assert refusal(tmp_path, files) == (
        f'ROOT/mimic-cxr-2.0.0-{kind}.csv, row {row} (the header is row 1), column {column!r}: '
        f'{value!r} is given in row {again} already'
    )


@pytest.mark.parametrize(
    'kind, row, column, wanted, split_row',
    [
        ('metadata', 11, 'subject_id', '10000032', 2),
        ('metadata', 7, 'study_id', '57375967', 6),
        ('chexpert', 4, 'subject_id', '10000032', 4),
    ],
)
def test_files_that_disagree_are_refused(
    tmp_path: Path, kind: str, row: int, column: str, wanted: str, split_row: int
) -> None:
    files = tables()
    files[kind][row - 1][files[kind][0].index(column)] = '99'
    assert refusal(tmp_path, files) == (
        f'ROOT/mimic-cxr-2.0.0-{kind}.csv, row {row} (the header is row 1), column {column!r}: '
        f"'99' is {wanted!r} in row {split_row} of the split file"
    )


def test_an_image_without_metadata_is_refused(tmp_path: Path) -> None:
    files = tables()
    del files['metadata'][9]  # of aa-2
    assert refusal(tmp_path, files) == (
        "ROOT/mimic-cxr-2.0.0-split.csv, row 3 (the header is row 1), column 'dicom_id': 'aa-2' "
        'has no row in mimic-cxr-2.0.0-metadata.csv'
    )


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    files = tables()
    files['split'][3][3] = 'test'
    assert refusal(tmp_path, files) == (
        "ROOT/mimic-cxr-2.0.0-split.csv, row 4 (the header is row 1), column 'subject_id': "
        "'10000032' is in the split 'train', too"
    )


def test_a_split_without_images_or_labels_is_refused(tmp_path: Path) -> None:
    files = tables()
    del files['split'][4], files['chexpert'][4]
    assert refusal(tmp_path, files, 'validate') == (
        "ROOT/mimic-cxr-2.0.0-split.csv, column 'split': no row is 'validate'"
    )
    assert refusal(tmp_path, files, 'test') == (
        'ROOT/mimic-cxr-2.0.0-chexpert.csv has no row for any study of the split in '
        'mimic-cxr-2.0.0-split.csv'
    )


@pytest.mark.parametrize('kind', ['metadata', 'split', 'chexpert', 'negbio'])
def test_a_file_that_is_missing_or_there_twice_is_named(tmp_path: Path, kind: str) -> None:
    labeller = kind if kind in ('chexpert', 'negbio') else 'chexpert'
    keys = 'DATA.DATA_PATH, DATA.LABELLER' if labeller == kind else 'DATA.DATA_PATH'
    files = tables()
    rows = files.pop(kind)
    text = (
        f'ROOT must hold exactly one mimic-cxr-*-{kind}.csv or mimic-cxr-*-{kind}.csv.gz, found: '
    )
    assert refusal(tmp_path, files, labeller=labeller) == f'{text}none (see {keys})'
    write(tmp_path, {kind: rows}, zipped=True)
    name = f'mimic-cxr-2.0.0-{kind}.csv'
    twice = refusal(tmp_path, {kind: rows}, labeller=labeller)
    assert twice == f'{text}{name}, {name}.gz (see {keys})'


def test_a_missing_image_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    root = write(tmp_path, tables())
    first = root / 'files/p10/p10000032/s50414267/aa-1.jpg'
    first.unlink()
    assert read_mimic(root, 'train', labeller='chexpert', optional=True) is None
    with pytest.raises(ValueError, match=f'split.csv: image not found: {first} .*IMAGE_SUFFIX'):
        read_mimic(root, 'train', labeller='chexpert')
    with pytest.raises(ValueError, match=f'DATA.DATA_PATH is no folder: {root}/nowhere'):
        read_mimic(root / 'nowhere', 'train', labeller='chexpert')


@pytest.mark.parametrize('kind', ['metadata', 'split', 'chexpert'])
def test_a_missing_or_repeated_column_is_named(tmp_path: Path, kind: str) -> None:
    column = {'metadata': 'ViewPosition', 'split': 'split', 'chexpert': 'Edema'}[kind]
    files = tables()
    header = files[kind][0]
    place = header.index(column)
    header[place] = 'other'
    source = f'ROOT/mimic-cxr-2.0.0-{kind}.csv: '
    text = refusal(tmp_path, files)
    assert text == f'{source}missing column: {column}; found: {", ".join(header)}'
    header[place] = column
    for row in files[kind]:
        row.append(row[place])
    assert refusal(tmp_path, files) == f'{source}column given twice: {column}'


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, tables(), zipped=True)

    def broken(change, kind: str = 'chexpert') -> str:
        file = root / f'mimic-cxr-2.0.0-{kind}.csv.gz'
        whole = file.read_bytes()
        file.write_bytes(change(whole))
        with pytest.raises(ValueError) as error:
            read_mimic(root, 'train', labeller='chexpert')
        file.write_bytes(whole)
        assert str(file) in str(error.value)
        return str(error.value).replace(str(file), 'FILE')

    def rewritten(change):
        return lambda whole: gzip.compress(change(gzip.decompress(whole)))

    assert 'FILE is not a readable CSV file' in broken(lambda whole: whole[:-20])
    assert 'FILE is not a readable CSV file' in broken(lambda whole: b'no gzip')
    assert 'FILE is not a readable CSV file' in broken(rewritten(lambda text: b''))
    assert 'FILE is not a readable CSV file' in broken(rewritten(lambda text: text + b'\xff'))
    assert broken(rewritten(lambda text: text.split(b'\n')[0])) == 'FILE has no rows'
    assert broken(rewritten(lambda text: text[:-9]), 'split') == (
        'FILE, row 11 (the header is row 1): 3 fields, the header has 4; is the file cut off?'
    )
    assert broken(rewritten(lambda text: text.replace(b',train', b',1,1,1')), 'split') == (
        'FILE: the rows have more fields than the header'
    )


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, tables())
    with pytest.raises(ValueError, match="split must be one of train, validate, test, got 'valid'"):
        read_mimic(root, 'valid', labeller='chexpert')
    with pytest.raises(ValueError, match="LABELLER must be one of chexpert, negbio, got 'vis'"):
        read_mimic(root, 'train', labeller='vis')
    with pytest.raises(ValueError, match="IMAGE_SUFFIX must be like '.png'.* got '/../x'"):
        read_mimic(root, 'train', labeller='chexpert', image_suffix='/../x')

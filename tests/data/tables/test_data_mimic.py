"""MIMIC-CXR-JPG: hand-written folders by value, and faults named by file, row and column."""

import csv
import gzip
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_files import touch
from tiny import config_with
from xray_splits import LOGGER

from data.tables.chexpert import open_data_set
from data.tables.labels import LABELS
from data.tables.records import Records
from data.tables.table import refuse

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


def read(root: Path, split: str, *, labeller: str = 'chexpert', **options) -> Records | None:
    config = config_with(DATA__DATASET='mimic-cxr', DATA__LABELLER=labeller)
    return open_data_set(config, root).read(split, **{'labels': LABELS, **options})


def write(root: Path, files: Tables, *, zipped: bool = False, version: str = '2.0.0') -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for kind, rows in files.items():
        name = f'mimic-cxr-{version}-{kind}.csv' + ('.gz' if zipped else '')
        with (gzip.open if zipped else open)(root / name, 'wt', newline='') as out:
            csv.writer(out, lineterminator='\n').writerows(rows)
    touch(
        root,
        'files/p10/p10000032/s50414267/aa-1.jpg',
        'files/p10/p10003000/s55000001/vv-1.jpg',
        'files/p19/p19999999/s59999999/tt_1.jpg',
    )
    return root


@pytest.mark.parametrize('zipped, version', [(False, '2.0.0'), (True, '2.1.0')])
def test_a_folder_is_read_as_written(tmp_path: Path, zipped: bool, version: str) -> None:
    root = write(tmp_path / 'mimic', tables(), zipped=zipped, version=version)
    records = read(root, 'train')
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


def test_each_split_and_labeller_has_its_own_rows_and_labels(tmp_path: Path, log) -> None:
    root = write(tmp_path, tables())
    valid = read(root, 'valid')
    test = read(root, 'test')
    assert (valid.row.tolist(), test.row.tolist()) == ([3], [8])
    assert valid.file.tolist() == ['files/p10/p10003000/s55000001/vv-1.jpg']
    assert np.flatnonzero(valid.labels[0] == 1).tolist() == [LABELS.index('Cardiomegaly')]
    assert np.flatnonzero(test.labels[0] == 1).tolist() == [LABELS.index('Support Devices')]
    edema = LABELS.index('Edema')
    for labeller, value in (('chexpert', -1), ('negbio', 1)):
        records = read(root, 'train', labeller=labeller, on_fault=partial(refuse, logger=LOGGER))
        assert records.labels[3:, edema].tolist() == [value] * 4
    assert '1 of 10 rows have no row in mimic-cxr-2.0.0-chexpert.csv' in log.text
    assert '2 of 7 images are neither frontal nor lateral' in log.text
    assert not any(patient in log.text for patient in ('10000032', '13000001', '50414267'))


def test_radiologists_may_label_the_test_split(tmp_path: Path) -> None:
    """Their file of version 2.1.0 has no patients, and other studies than the labeller's."""
    files = tables()
    row = labels_of('', '59999999', Edema='1.0', Fracture='0.0')[1:]
    files['test-set-labeled'] = [['study_id', *OBSERVATIONS], row]
    root = write(tmp_path, files)
    test = read(root, 'test', labeller='negbio+radiologist', labels=('Edema', 'Support Devices'))
    np.testing.assert_array_equal(test.labels, [[1, NAN]])
    with_labeller = read(root, 'test', labels=('Edema', 'Support Devices'))
    np.testing.assert_array_equal(with_labeller.labels, [[NAN, 1]])
    train = [read(root, 'train', labeller=name) for name in ('negbio', 'negbio+radiologist')]
    np.testing.assert_array_equal(train[0].labels, train[1].labels)


def test_a_missing_image_folder_or_label_file_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, tables())
    first = root / 'files/p10/p10000032/s50414267/aa-1.jpg'
    first.unlink()
    assert read(root, 'train', optional=True) is None
    with pytest.raises(ValueError, match=f'{first}.*DATA.IMAGE_SUFFIX'):
        read(root, 'train')
    (root / 'mimic-cxr-2.0.0-negbio.csv').unlink()
    for path, labeller in ((root / 'nowhere', 'chexpert'), (root, 'negbio')):
        with pytest.raises(ValueError, match=f'{path}.*DATA.DATA_PATH'):
            read(path, 'train', labeller=labeller)


def test_numbers_that_a_spreadsheet_has_written_are_the_same_studies(tmp_path: Path) -> None:
    files = tables()
    for row in files['chexpert'][1:]:
        row[:2] = [f'{row[0]}.0', f"'{row[1]}"]
    plain, spelt = (write(tmp_path / name, f) for name, f in (('a', tables()), ('b', files)))
    np.testing.assert_array_equal(read(plain, 'train').labels, read(spelt, 'train').labels)
    files['chexpert'].append(['10000032 ', '050414267', *[''] * 14])  # again
    with pytest.raises(ValueError, match=r'chexpert.*50414267'):
        read(write(tmp_path / 'c', files), 'train')

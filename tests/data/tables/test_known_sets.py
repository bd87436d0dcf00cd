"""Known data sets: hand-written files by value, and faults by name."""

from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_files import touch
from phantom_layouts import nih_phantom, plus_phantom
from tiny import VIT, config_with, finished_run, run_script
from xray_splits import LOGGER, make_config, samples_of

from data.build import build_loader
from data.packing import Settings, pack, read_source
from data.tables.chexpert import open_data_set
from data.tables.known_sets import ages, join, listed, sexes, views
from data.tables.labels import LABELS
from data.tables.records import Records
from evaluation.report.document import SCORES_FILE
from sweeps.long_table import read_table

NAN = np.nan
NIH = """Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,\
View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]
00000001_000.png,Cardiomegaly|Emphysema,0,1,057Y,M,PA,2682,2749,0.143,0.143
00000001_001.png,No Finding,1,1,58,M,PA,2894,2729,0.143,0.143
00000002_000.png,Pleural_Thickening,0,2,81,F,AP,2500,2048,0.168,0.168
00000003_000.png,Hernia|Nodule|Mass,0,3,412,F,PA,2582,2991,0.143,0.143
00000003_001.png,Effusion,1,3,75,F,AP,2582,2991,0.143,0.143
"""
FOLDERS = {'00000001': 'images_001', '00000002': 'images_001', '00000003': 'images_012'}


def nih(root: Path, table: str = NIH, **lists: str) -> Path:
    """A folder as NIH's is unpacked; the images are empty files."""
    root.mkdir(exist_ok=True)
    (root / 'Data_Entry_2017_v2020.csv').write_text(table)
    given = {'train_val': '00000001_000.png\n00000001_001.png\n00000002_000.png\n'}
    given |= {'test': '00000003_000.png\n00000003_001.png\n'} | lists
    (root / 'train_val_list.txt').write_text(given['train_val'])
    (root / 'test_list.txt').write_text(given['test'])
    names = [line.partition(',')[0] for line in NIH.splitlines()[1:]]
    touch(root, *(f'{FOLDERS[name[:8]]}/images/{name}' for name in names))
    return root


def read(root: Path, name: str, split: str, labels: tuple[str, ...] = (), **options) -> Records:
    suffix = options.pop('image_suffix', '')
    config = config_with(DATA__DATASET=name, DATA__IMAGE_SUFFIX=suffix)
    return open_data_set(config, root).read(split, labels=labels, **options)


def check(records: Records, **expected: list) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(records, name), values, name)


def test_nih_is_read_as_written(tmp_path: Path) -> None:
    root = nih(tmp_path)
    labels = ('Cardiomegaly', 'Pleural_Thickening', 'Emphysema', 'No Finding')
    train = read(root, 'nih', 'train', labels)
    assert train.csv == 'Data_Entry_2017_v2020.csv'
    assert train.labels.dtype == np.float32 and train.label_names == labels
    names = ['00000001_000.png', '00000001_001.png', '00000002_000.png']
    files = [f'images_001/images/{name}' for name in names]
    check(train, row=[0, 1, 2], file=files, path=files, view=['frontal'] * 3)
    check(train, patient=['1', '1', '2'], study=['1/0', '1/1', '2/0'], ap_pa=['PA', 'PA', 'AP'])
    check(train, sex=['Male', 'Male', 'Female'], age=[57, 58, 81])
    check(train, labels=[[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]])
    test = read(root, 'nih', 'test', ('Mass', 'Effusion'))
    check(test, row=[3, 4], labels=[[1, 0], [0, 1]], age=[NAN, 75])
    assert test.file[0] == 'images_012/images/00000003_000.png'
    assert read(root, 'nih', 'valid', optional=True) is None


@pytest.mark.parametrize(
    ('table', 'lists', 'parts'),
    [
        (NIH, {'test': '00000003_000.png\n00000003_001.png\n00000001_000.png\n'},
         ['test_list.txt', 'line 3', '00000001_000.png', 'train_val_list.txt']),
        (NIH, {'test': '00000003_000.png\n00000009_000.png\n'},
         ['test_list.txt', 'line 2', '00000009_000.png']),
        (NIH.replace('Hernia|', 'Hernja|'), {},
         ['Data_Entry_2017_v2020.csv, row 5', "'Finding Labels'", "'Hernja'"]),
        (NIH.replace('057Y', '57Q'), {}, ['row 2', "'Age'", "'57Q'"]),
        (NIH.replace('00000001_001', '00000001_000'), {'train_val': '00000001_000.png\n'},
         ['row 3', "'Path'", 'row 2']),
        (NIH.replace('00000002_000.png', '../2.png'), {'train_val': '../2.png\n'},
         ['row 4', "'Path'"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, table: str, lists: dict, parts: list[str]) -> None:
    root = nih(tmp_path, table, **lists)
    with pytest.raises(ValueError) as error:
        read(root, 'nih', 'train', ('Hernia',))
    assert all(part in str(error.value) for part in parts), error.value


def test_a_list_that_is_no_text_file_is_refused(tmp_path: Path) -> None:
    file = nih(tmp_path) / 'train_val_list.txt'
    file.write_bytes(b'\xff\xd8\xff\xe0')
    with pytest.raises(ValueError, match=r'train_val_list\.txt'):
        read(tmp_path, 'nih', 'train')


def test_a_list_may_begin_with_a_byte_order_mark_and_have_windows_line_ends(tmp_path: Path) -> None:
    root = nih(tmp_path)
    names = '\ufeff00000001_000.png\r\n00000001_001.png\r\n00000002_000.png'
    (root / 'train_val_list.txt').write_bytes(names.encode())
    assert read(root, 'nih', 'train').row.tolist() == [0, 1, 2]


def test_fine_tuning_scores_nihs_official_test_split_alone(tmp_path: Path) -> None:
    nih_phantom(tmp_path, num_train=24, num_valid=2, num_test=6, size=40)
    options = ('DATA.DATASET', 'nih', 'DATA.LABELS', ['Effusion', 'Edema'])
    loaders = build_loader(make_config(tmp_path, *options), LOGGER, is_pretrain=False)
    listed = (tmp_path / 'test_list.txt').read_text().split()
    assert [Path(path).name for path in loaders.test.dataset.records.path] == listed
    table = pd.read_csv(tmp_path / 'Data_Entry_2017_v2020.csv').set_index('Image Index')
    truth = table.loc[listed, 'Finding Labels'].str.get_dummies('|')[['Effusion', 'Edema']]
    np.testing.assert_array_equal(loaders.test.dataset.targets, truth)
    assert loaders.valid is None


def test_chexpert_plus_becomes_a_report_from_files_and_packed(tmp_path: Path) -> None:
    """The download has reports over several lines, `.jpg` in the table and `.png` on the disk."""
    root, store = tmp_path / 'plus', tmp_path / 'store'
    plus_phantom(root, 'PNG/PNG', num_train=40, num_valid=20, num_test=1, size=40)
    words = ['--output', tmp_path / 'out', '--opts', 'DATA.DATASET', 'chexpert_plus']
    assert run_script('check_data', '--data-path', root, *words) == 0
    pack(read_source(root, dataset='chexpert_plus'), store, Settings(size=None, square=False))
    splits = []
    for place in (root, store):
        config = make_config(place, 'DATA.DATASET', 'chexpert_plus')
        loaders = build_loader(config, LOGGER, is_pretrain=False)
        splits.append([samples_of(loader, 0) for loader in (loaders.train, loaders.valid)])
    for sample, same in zip(chain(*splits[0]), chain(*splits[1]), strict=True):
        for value, other in zip(sample, same, strict=True):
            np.testing.assert_array_equal(value, other)
    data = {'DATASET': 'chexpert_plus', 'TRAIN_IMAGES': 0}
    more = {'TRAIN': {'EPOCHS': 1}, 'REPORT': {'WRITE': True, 'MAPS': 0}}
    more['EVAL'] = {'GROUPS': ['race', 'ethnicity'], 'RESAMPLES': 0}
    folder = finished_run('finetune', store, tmp_path / 'run', model=VIT, DATA=data, **more)
    paths = pd.read_csv(folder / 'predictions_valid.csv')['Path']
    assert paths[0] == 'PNG/PNG/valid/patient80001/study1/view1_frontal.png'
    groups = {*read_table(folder / SCORES_FILE)['group']}
    columns = {group.partition(':')[0] for group in groups if group}
    assert columns == {'Sex', 'Age', 'View', 'race', 'ethnicity'}
    assert {'race: Asian', 'race: White, non-Hispanic'} <= groups


def write(root: Path, name: str, text: str, *images: str) -> Path:
    """A table below a folder, and empty files for its images."""
    touch(root, name, *images)
    (root / name).write_text(text)
    return root


VINDR = """image_id,rad_id,Cardiomegaly,Nodule/Mass,No finding
aa,R1,1,0,0
bb,R8,0,0,1
aa,R2,1,1,0
aa,R3,0,0,0
bb,R9,0,0,1
bb,R10,0,1,0
"""


def test_the_majority_of_vindrs_radiologists_labels_an_image(tmp_path: Path) -> None:
    files = ['train/aa.dicom', 'train/bb.dicom', 'test/cc.dicom']
    write(tmp_path, 'annotations/image_labels_train.csv', VINDR, *files)
    test = 'image_id,Cardiomegaly,Nodule/Mass,No finding\ncc,0,1,0\n'
    write(tmp_path, 'annotations/image_labels_test.csv', test)
    labels = ('Cardiomegaly', 'Nodule/Mass', 'No Finding')
    train = read(tmp_path, 'vindr', 'train', labels)
    assert train.csv == 'annotations/image_labels_train.csv'
    check(train, row=[0, 1], file=files[:2], patient=files[:2], labels=[[1, 0, 0], [0, 0, 1]])
    check(train, view=['frontal'] * 2, ap_pa=['PA'] * 2)
    check(read(tmp_path, 'vindr', 'test', labels), file=files[2:], labels=[[0, 1, 0]])
    (tmp_path / 'train/aa.png').touch()
    png = read(tmp_path, 'vindr', 'train', image_suffix='.png')
    check(png, file=['train/aa.png', 'train/bb.png'], path=files[:2])
    assert png.labels.shape == (2, 0)


def test_padchest_is_read_as_written(tmp_path: Path) -> None:
    table = (
        ',ImageID,ImageDir,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,Labels\n'
        "0,a.png,0,S1,P1,1930,F,PA,\"['pleural effusion', 'loc right ']\"\n"
        '1,b.png,0,S1,P1,1930,F,L,"[\'normal\']"\n'
        "2,c.png,54,S2,P2,,None,AP_horizontal,\"['COPD signs',  'pleural effusion']\"\n"
        '3,d.png,54,S3,P3,1980,M,COSTAL,\n'
        "4,e.png,54,S4,P4,1980,M,PA,\"['Exclude', 'pleural effusion']\"\n"
    )
    files = ['0/a.png', '0/b.png', '54/c.png', '54/d.png']
    write(tmp_path, 'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv', table, *files)
    records = read(tmp_path, 'padchest', 'train', ('pleural effusion', 'No Finding'))
    check(records, file=files, study=['P1/S1', 'P1/S1', 'P2/S2', 'P3/S3'])
    check(records, view=['frontal', 'lateral', 'frontal', ''], ap_pa=['PA', '', 'AP', ''])
    check(records, sex=['Female', 'Female', 'Unknown', 'Male'])
    check(records, labels=[[1, 0], [0, 1], [1, 0], [NAN, NAN]])
    check(records, age=[NAN] * 4)  # the first column of the table has no name and is no age


def test_brax_is_read_as_written(tmp_path: Path) -> None:
    table = (
        'DicomPath,PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,ViewPosition,'
        f'{",".join(LABELS)}\n'
        f'x,images/1.png,id1,M,85 or more,A1,PA,{",".join(["1.0", "", "-1.0"] + ["0.0"] * 11)}\n'
        f'y,images/2.png,id2,F,40,A2,RL,{"," * 13}\n'
    )
    write(tmp_path, 'master_spreadsheet_update.csv', table, 'images/1.png', 'images/2.png')
    records = read(tmp_path, 'brax', 'train', LABELS)
    check(records, patient=['id1', 'id2'], study=['id1/A1', 'id2/A2'], age=[85, 40])
    check(records, view=['frontal', 'lateral'])
    check(records, labels=[[1, NAN, -1, *[0] * 11], [NAN] * 14])


def test_the_boxes_of_an_rsna_image_are_one_row(tmp_path: Path) -> None:
    table = 'patientId,x,y,width,height,Target\nu1,,,,,0\nu2,1,2,3,4,1\nu2,5,6,7,8,1\n'
    files = ['stage_2_train_images/u1.dcm', 'stage_2_train_images/u2.dcm']
    write(tmp_path, 'stage_2_train_labels.csv', table, *files)
    records = read(tmp_path, 'rsna', 'train', ('Pneumonia',))
    check(records, file=files, labels=[[0], [1]], view=['frontal'] * 2)


def test_cells_of_an_own_data_frame_may_be_typed() -> None:
    """pandas.read_csv gives NaN for empty cells and numbers, and not texts as open_table does."""
    findings = pd.Series(['Edema', np.nan, None, 'Mass'], dtype=object)
    made = listed(findings, '|')
    assert made['Mass'].fillna(-1).tolist() == [0, -1, -1, 1]
    assert made['Edema'].fillna(-1).tolist() == [1, -1, -1, 0]
    assert listed(pd.Series([1, 2]), '').columns.tolist() == ['1', '2']
    assert ages(pd.Series([61, 35.5, np.nan])).tolist() == ['61.0', '35.5', '']
    assert sexes(pd.Series(['w', 'M', np.nan])).tolist() == ['Female', 'Male', 'Unknown']
    stated = views(pd.Series(['lat', np.nan, 'PA']))
    assert stated['Frontal/Lateral'].tolist() == ['Lateral', 'Other', 'Frontal']


def test_a_join_by_typed_cells_and_without_the_column() -> None:
    table = pd.DataFrame({'id': [117, 118]})
    other = pd.DataFrame({'id': ['0118', '117'], 'patient': ['b', 'a']})
    assert join(table, other, ['id'])['patient'].tolist() == ['a', 'b']
    with pytest.raises(ValueError, match='no column file to join by; found: id, patient'):
        join(table.assign(file='x'), other, ['file'])

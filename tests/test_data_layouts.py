"""Data sets that a YAML file describes: hand-written files by value, and faults by name."""

import json
import os
from functools import partial
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from csv_files import touch
from phantom_layouts import nih_phantom, plus_phantom
from sklearn.metrics import roc_auc_score
from tiny import LABELS_DECIDE, VIT, config_with, finished_run, run_script
from xray_splits import LOGGER

from config import default_config
from data.fingerprint import describe_data
from data.labels import LABELS
from data.layouts import open_layout, read_layout
from data.loader import Loaders
from data.packing import Settings, pack, read_source
from data.records import Records
from data.table import refuse
from engine.run_record import run_changes
from evaluation.report import SCORES_FILE
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
MINE = """\
table: export.csv
image: xrays/{file}
patient: who
sex: sex
age: years
view: projection
views: {PA: [pa], lateral: [lat]}
labels: {column: findings, separator: ;}
rename: {enlarged heart: Cardiomegaly, normal: No Finding}
splits: {column: part, train: [a, b], valid: c, test: d}
"""
EXPORT = """file,who,sex,years,projection,findings,part
x/1.png,P1,F,61,pa,effusion; enlarged heart,a
x/2.png,P1,F,61,lat,normal,a
y/3.png,P2,,,oblique,,b
y/4.png,P3,male,0.5,pa,normal,c
y/5.png,P4,u,030Y,pa,effusion,d
"""


def nih(root: Path, table: str = NIH, **lists: str) -> Path:
    """A folder in NIH's layout; the images are empty files."""
    root.mkdir(exist_ok=True)
    (root / 'Data_Entry_2017_v2020.csv').write_text(table)
    given = {'train_val': '00000001_000.png\n00000001_001.png\n00000002_000.png\n'}
    given |= {'test': '00000003_000.png\n00000003_001.png\n'} | lists
    (root / 'train_val_list.txt').write_text(given['train_val'])
    (root / 'test_list.txt').write_text(given['test'])
    names = [line.partition(',')[0] for line in NIH.splitlines()[1:]]
    touch(root, *(f'{FOLDERS[name[:8]]}/images/{name}' for name in names))
    return root


def read(root: Path, layout: str, split: str, labels: tuple[str, ...] = (), **options) -> Records:
    suffix = options.pop('image_suffix', '')
    config = config_with(DATA__DATASET=layout, DATA__IMAGE_SUFFIX=suffix)
    return read_layout(config, root, split, labels=labels, **options)


def described(root: Path, text: str = MINE, table: str = EXPORT) -> str:
    """A data set of the user below a folder; returns the path of its layout."""
    touch(root / 'xrays', *(line.partition(',')[0] for line in table.splitlines()[1:]))
    (root / 'export.csv').write_text(table)
    (root / 'mine.yaml').write_text(text)
    return str(root / 'mine.yaml')


def test_nih_is_read_as_written(tmp_path: Path) -> None:
    root = nih(tmp_path)
    labels = ('Cardiomegaly', 'Pleural_Thickening', 'Emphysema', 'No Finding')
    train = read(root, 'nih', 'train', labels)
    assert train.csv == 'Data_Entry_2017_v2020.csv' and train.row.tolist() == [0, 1, 2]
    names = ['00000001_000.png', '00000001_001.png', '00000002_000.png']
    assert train.file.tolist() == [f'images_001/images/{name}' for name in names]
    assert train.path.tolist() == train.file.tolist()
    assert train.patient.tolist() == ['1', '1', '2']
    assert train.study.tolist() == ['1/0', '1/1', '2/0']
    assert train.view.tolist() == ['frontal'] * 3 and train.ap_pa.tolist() == ['PA', 'PA', 'AP']
    assert train.sex.tolist() == ['Male', 'Male', 'Female'] and train.age.tolist() == [57, 58, 81]
    assert train.labels.dtype == np.float32 and train.label_names == labels
    assert train.labels.tolist() == [[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    test = read(root, 'nih', 'test', ('Mass', 'Effusion'))
    assert test.row.tolist() == [3, 4] and test.labels.tolist() == [[1, 0], [0, 1]]
    assert np.isnan(test.age[0]) and test.age[1] == 75
    assert test.file[0] == 'images_012/images/00000003_000.png'
    assert read(root, 'nih', 'valid', optional=True) is None


def test_a_file_of_the_user_is_read_without_a_line_of_python(tmp_path: Path) -> None:
    name = described(tmp_path)
    labels = ('Cardiomegaly', 'effusion', 'No Finding')
    train = read(tmp_path, name, 'train', labels)
    assert train.file.tolist() == ['xrays/x/1.png', 'xrays/x/2.png', 'xrays/y/3.png']
    assert train.patient.tolist() == ['P1', 'P1', 'P2']
    assert train.study.tolist() == train.file.tolist()
    assert train.view.tolist() == ['frontal', 'lateral', '']
    assert train.ap_pa.tolist() == ['PA', '', '']
    assert train.sex.tolist() == ['Female', 'Female', 'Unknown']
    np.testing.assert_array_equal(train.age, [61, 61, NAN])
    np.testing.assert_array_equal(train.labels, [[1, 1, 0], [0, 0, 1], [NAN] * 3])
    valid, test = (read(tmp_path, name, split, labels) for split in ('valid', 'test'))
    assert valid.row.tolist() == [3] and valid.age.tolist() == [0.5]
    assert test.labels.tolist() == [[0, 1, 0]] and test.age.tolist() == [30]


def test_columns_of_labels_have_the_cells_that_the_file_names(tmp_path: Path) -> None:
    text = (
        'table: export.csv\nimage: xrays/{file}\n'
        'labels: {positive: [yes, "1"], negative: no, uncertain: maybe}\n'
        'rename: {heart: Cardiomegaly, Nodule: Lung Lesion, Mass: Lung Lesion}\n'
    )
    table = 'file,heart,Nodule,Mass\n1.png,yes,no,1\n2.png,maybe,maybe,no\n3.png,,,no\n4.png,no,,\n'
    name = described(tmp_path, text, table)
    records = read(tmp_path, name, 'train', ('Cardiomegaly', 'Lung Lesion'))
    np.testing.assert_array_equal(records.labels, [[1, 1], [-1, -1], [NAN, 0], [0, NAN]])
    assert records.patient.tolist() == ['1.png', '2.png', '3.png', '4.png']
    with pytest.raises(ValueError, match='mine.yaml.*folds.py'):
        read(tmp_path, name, 'valid')


def test_an_edited_layout_is_noticed_when_a_run_resumes(tmp_path: Path) -> None:
    config = default_config()
    config.DATA.DATASET = described(tmp_path)
    record = read(tmp_path, config.DATA.DATASET, 'train')

    def describe() -> dict:
        dataset = SimpleNamespace(parts={'': SimpleNamespace(records=record)})
        return describe_data(config, Loaders(train=SimpleNamespace(dataset=dataset)))

    before = describe()
    assert set(before['files']) == {'export.csv', 'DATA.DATASET'}
    described(tmp_path, MINE.replace('enlarged heart', 'wide heart'))
    (change,) = run_changes({'data': before}, {'data': describe()})
    assert change == 'data: DATA.DATASET (3 -> 3 images)'


@pytest.mark.parametrize(
    ('table', 'lists', 'parts'),
    [
        (NIH, {'test': '00000003_000.png\n00000003_001.png\n00000001_000.png\n'},
         ['test_list.txt', 'line 3', '00000001_000.png']),
        (NIH, {'test': '00000003_000.png\n00000009_000.png\n'},
         ['test_list.txt', 'line 2', '00000009_000.png']),
        (NIH, {'train_val': '00000001_000.png\n', 'test': '00000001_001.png\n'},
         ['Data_Entry_2017_v2020.csv, row 3', "'Patient ID'", 'test', 'train', 'row 2 of Data']),
        (NIH.replace('Hernia|', 'Hernja|'), {},
         ['Data_Entry_2017_v2020.csv, row 5', "'Finding Labels'", "'Hernja'", 'nih.yaml']),
        (NIH.replace('057Y', '?'), {}, ['row 2', "'Patient Age'", '006M']),
        (NIH.replace('00000001_001', '00000001_000'), {'train_val': '00000001_000.png\n'},
         ['row 3', "'Image Index'", 'row 2']),
        (NIH.replace('00000002_000.png', '../2.png'), {'train_val': '../2.png\n'},
         ['row 4', "'Image Index'"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, table: str, lists: dict, parts: list[str]) -> None:
    root = nih(tmp_path, table, **lists)
    with pytest.raises(ValueError) as error:
        read(root, 'nih', 'train', ('Hernia',))
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize('kind', ['pipe', 'device', 'no text'])
def test_a_list_that_is_no_text_file_is_refused(tmp_path: Path, kind: str) -> None:
    file = nih(tmp_path) / 'train_val_list.txt'
    file.unlink()
    if kind == 'pipe':
        os.mkfifo(file)
        os.close(os.open(file, os.O_RDWR | os.O_NONBLOCK))
    elif kind == 'device':
        file.symlink_to('/dev/zero')
    else:
        file.write_bytes(b'\xff\xfe')
    with pytest.raises(ValueError, match=r'train_val_list\.txt'):
        read(tmp_path, 'nih', 'train')


@pytest.mark.parametrize(
    ('old', 'new', 'key'),
    [
        ('patient: who', 'patients: who', 'unknown key patients; allowed: table, image, suffix'),
        ('table: export.csv', '', 'table'),
        ('table: export.csv', 'table: {dev: export.csv}', 'table'),
        ('{file}', 'x.png', 'image'),
        ('lateral: [lat]', 'oblique: [lat]', 'views: unknown key oblique; allowed: frontal'),
        ('column: part, train: [a, b], valid: c, test: d', 'column: part', 'splits'),
        ('xrays/{file}', '{file}', 'quotes'),
        ('lateral: [lat]', 'lateral: [pa, lat]', 'views'),
        ('valid: c', 'valid: [b, c]', 'splits'),
        ('column: findings, separator: ;', "positive: ['1', 'y'], negative: ['0', '1']", 'labels'),
        ('separator: ;', 'separator: ;, table: ../labels.csv, key: file', 'labels'),
        ('table: export.csv', 'table: ../other/export.csv', 'table'),
        ('table: export.csv', 'table: /etc/hostname', 'table'),
        ('table: export.csv', "table: '**/**/**/export.csv'", 'table'),
        ('{column: part, train: [a, b], valid: c, test: d}', '{train: a/../../b.txt}', 'splits'),
        ('patient: who', 'patient: &a who\nstudy: *a', 'quotes'),
        ('patient: who', 'where: X-ray', 'where'),
        ('patient: who', 'where: {modality: {a: b}}', 'where'),
    ],
)
def test_a_faulty_layout_names_its_file_and_key(
    tmp_path: Path, old: str, new: str, key: str
) -> None:
    assert old in MINE
    name = described(tmp_path, MINE.replace(old, new))
    with pytest.raises(ValueError, match='mine.yaml') as error:
        open_layout(name)
    assert key in str(error.value)


def faults_of(root: Path, text: str, table: str, *labels: str) -> dict[str, tuple[str, str]]:
    """Return the kinds of the faults of three splits, with severity and detail."""
    name, faults = described(root, text, table), []
    for split in ('train', 'valid', 'test'):
        read(root, name, split, labels, on_fault=faults.append)
    return {fault.kind: (fault.severity, fault.detail) for fault in faults}


def test_parts_of_a_layout_without_effect_are_reported(tmp_path: Path) -> None:
    found = faults_of(tmp_path, MINE, EXPORT, 'effusion', 'Cardiomegaly')
    assert list(found) == ['unknown view'] and "'oblique' (rows: 1)" in found['unknown view'][1]
    text = MINE.replace('patient: who\n', '').replace('separator: ;', "separator: '|'")
    text = text.replace('[pa]', '[PA]').replace('normal:', 'Normal:')
    found = faults_of(tmp_path, text, EXPORT, 'effusion')
    kinds = {'unknown view', 'rows without a label', 'unused rename', 'unknown patients'}
    kinds.add('name like a label')  # 'effusion;enlarged heart'
    assert {kind: each for kind, (each, _) in found.items()} == dict.fromkeys(kinds, 'warning')
    detail = found['rows without a label'][1]
    assert "'effusion; enlarged heart' (rows: 1)" in detail and '3 of 5' in detail
    assert "'pa' (rows: 3), 'oblique'" in found['unknown view'][1]


def test_other_codes_of_the_sex_are_mapped(tmp_path: Path) -> None:
    table = EXPORT.replace(',F,', ',w,')
    found = faults_of(tmp_path, MINE, table)
    assert 'sexes' in found['value of the sex'][1]
    name = described(tmp_path, MINE + 'sexes: {Female: [w, x]}\n', table)
    assert read(tmp_path, name, 'train').sex.tolist() == ['Female', 'Female', 'Unknown']
    assert read(tmp_path, name, 'valid').sex.tolist() == ['Male']


def test_fine_tuning_scores_nihs_official_test_split(tmp_path: Path) -> None:
    nih_phantom(tmp_path / 'nih', num_train=24, num_valid=2, num_test=6, size=40)
    findings = ['Effusion', 'Edema', 'Infiltration', 'Hernia']
    data = {'DATASET': 'nih', 'LABELS': findings, 'TRAIN_IMAGES': 0}
    more = {'DATA': data, 'MODEL': LABELS_DECIDE, 'TRAIN': {'EPOCHS': 1}}
    more['EVAL'] = {'LEVEL': 'image', 'RESAMPLES': 20}
    folder = finished_run('finetune', tmp_path / 'nih', tmp_path / 'out', model=VIT, **more)
    predictions = pd.read_csv(folder / 'predictions_test.csv')
    listed = (tmp_path / 'nih' / 'test_list.txt').read_text().split()
    assert [Path(path).name for path in predictions['Path']] == listed
    assert predictions.columns.tolist() == ['Path', *findings]
    table = pd.read_csv(tmp_path / 'nih' / 'Data_Entry_2017_v2020.csv').set_index('Image Index')
    truth = table.loc[listed, 'Finding Labels'].str.get_dummies('|').reindex(columns=findings)
    scores = json.loads((folder / 'scores.json').read_text())['test']['last']
    for name in ('Effusion', 'Edema'):
        wanted = roc_auc_score(truth[name], predictions[name])
        assert scores['auroc'][name] == pytest.approx(wanted)
    assert not (folder / 'predictions_valid.csv').exists()


def test_chexpert_plus_becomes_a_report_from_files_and_packed(tmp_path: Path) -> None:
    """The download has reports over several lines, `.jpg` in the table and `.png` on the disk."""
    root, store = tmp_path / 'plus', tmp_path / 'store'
    plus_phantom(root, 'PNG/PNG', num_train=40, num_valid=20, num_test=1, size=40)
    words = ['--output', tmp_path / 'out', '--opts', 'DATA.DATASET', 'chexpert_plus']
    assert run_script('check_data', '--data-path', root, *words) == 0
    pack(read_source(root, dataset='chexpert_plus'), store, Settings(size=None, square=False))
    data = {'DATASET': 'chexpert_plus', 'TRAIN_IMAGES': 0}
    more = {'TRAIN': {'EPOCHS': 1}, 'REPORT': {'WRITE': True, 'MAPS': 0}}
    more['EVAL'] = {'GROUPS': ['race', 'ethnicity'], 'RESAMPLES': 0}
    predictions = []
    for place in (root, store):
        out = tmp_path / f'of_{place.name}'
        folder = finished_run('finetune', place, out, model=VIT, DATA=data, **more)
        predictions.append(pd.read_csv(folder / 'predictions_valid.csv'))
        groups = {*read_table(folder / SCORES_FILE)['group']}
        columns = {group.partition(':')[0] for group in groups if group}
        assert columns == {'Sex', 'Age', 'View', 'race', 'ethnicity'}
    pd.testing.assert_frame_equal(*predictions)
    assert predictions[0]['Path'][0] == 'PNG/PNG/valid/patient80001/study1/view1_frontal.png'
    assert {'race: Asian', 'race: White, non-Hispanic'} <= groups


def test_labels_of_another_table_are_found_by_a_key(tmp_path: Path, caplog) -> None:
    text = MINE.replace('separator: ;', 'separator: ;, table: labels.jsonl, key: file')
    name = described(tmp_path, text, EXPORT.replace(',findings', ',report'))
    lines = [('y/4.png', 'normal'), ('x/2.png', None), ('x/1.png', 'effusion; enlarged heart')]
    rows = [json.dumps({'file': file, 'findings': text, 'n': 1.0}) for file, text in lines]
    (tmp_path / 'labels.jsonl').write_text('\n'.join(rows))
    labels = ('Cardiomegaly', 'effusion')
    train = read(tmp_path, name, 'train', labels, on_fault=partial(refuse, logger=LOGGER))
    assert train.file.tolist() == ['xrays/x/1.png', 'xrays/x/2.png'] and train.csv == 'export.csv'
    np.testing.assert_array_equal(train.labels, [[1, 1], [NAN, NAN]])
    assert '1 of 3 rows have no row in labels.jsonl' in caplog.text and 'y/3.png' in caplog.text
    assert len(read(tmp_path, name, 'train')) == 3  # without labels
    for text in (rows[0] + '\n' + rows[0], '[1]', rows[0] + '\n{', '[' * 10**5):
        (tmp_path / 'labels.jsonl').write_text(text)
        with pytest.raises(ValueError, match=r'labels\.jsonl'):
            read(tmp_path, name, 'train', labels)


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
    assert train.file.tolist() == files[:2] and train.patient.tolist() == files[:2]
    assert train.labels.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert train.csv == 'annotations/image_labels_train.csv' and train.row.tolist() == [0, 1]
    assert set(train.view) == {'frontal'} and set(train.ap_pa) == {'PA'}
    test = read(tmp_path, 'vindr', 'test', labels)
    assert test.file.tolist() == files[2:] and test.labels.tolist() == [[0, 1, 0]]
    (tmp_path / 'train/aa.png').touch()
    png = read(tmp_path, 'vindr', 'train', image_suffix='.png')
    assert png.file.tolist() == ['train/aa.png', 'train/bb.png'] and png.labels.shape == (2, 0)


def test_equal_votes_are_uncertain_and_blank_cells_are_none(tmp_path: Path) -> None:
    text = 'table: export.csv\nimage: xrays/{file}\nmajority_vote: reader\n'
    table = 'file,reader,Mass,Edema\n1.png,A,1,\n1.png,B,0,\n2.png,A,-1,0\n2.png,B,,\n3.png,A,,1\n'
    name = described(tmp_path, text, table)
    records = read(tmp_path, name, 'train', ('Mass', 'Edema'))
    np.testing.assert_array_equal(records.labels, [[-1, NAN], [-1, 0], [NAN, 1]])


BOXES = """file,reader,finding
1.png,R1,Mass
1.png,R2,Mass
1.png,R3,Mass
1.png,R1,Edema
1.png,R2,Edema
1.png,R3,Fracture
2.png,R1,Mass
2.png,R1,Mass
2.png,R1,Mass
2.png,R2,none
2.png,R3,none
"""


@pytest.mark.parametrize(
    ('key', 'expected'),
    [
        ('majority_vote: reader', [[1, 1, 0], [0, 0, 0]]),
        ('boxes: true', [[1, 1, 1], [1, 0, 0]]),
        ('majority_vote: rad_id', 'no column rad_id'),
        ('', r'row 3.*row 2.*majority_vote.*boxes'),
    ],
)
def test_each_reader_of_a_table_of_boxes_has_one_vote(tmp_path: Path, key, expected) -> None:
    text = f'table: export.csv\nimage: xrays/{{file}}\nlabels: {{column: finding}}\n{key}\n'
    name, labels = described(tmp_path, text, BOXES), ('Mass', 'Edema', 'Fracture')
    if isinstance(expected, list):
        assert read(tmp_path, name, 'train', labels).labels.tolist() == expected
        return
    with pytest.raises(ValueError, match=rf'export\.csv.*{expected}'):
        read(tmp_path, name, 'train', labels)


@pytest.mark.parametrize('separator', ['|', ''])
@pytest.mark.parametrize('cell', ['', ' ', '[]', '[ ]', "['']", '[nan]', '\u00a0', 'NaN'])
def test_a_list_of_nothing_says_nothing(tmp_path: Path, cell: str, separator: str) -> None:
    labels = '{column: finding, separator: "|"}' if separator else '{column: finding}'
    text = f'table: export.csv\nimage: xrays/{{file}}\nlabels: {labels}\n'
    name = described(tmp_path, text, f'file,finding\n1.png,{cell}\n2.png,Mass\n')
    np.testing.assert_array_equal(read(tmp_path, name, 'train', ('Mass',)).labels, [[NAN], [1]])


def test_lists_that_say_that_labels_are_unknown_are_left_out_or_warned_of(tmp_path: Path) -> None:
    text = 'table: export.csv\nimage: xrays/{file}\nviews: PA\npatient: file\n'
    labels = 'labels: {column: finding, separator: "|"%s}\n'
    table = 'file,finding\n1.png,Mass| exclude\n2.png,Mass\n3.png,Unchanged\n4.png,Edema\n'
    name, faults = described(tmp_path, text + labels % '', table), []
    read(tmp_path, name, 'train', ('Mass', 'Edema'), on_fault=faults.append)
    (fault,) = [fault for fault in faults if fault.kind == 'words for unknown labels']
    assert fault.severity == 'warning' and "'Unchanged', 'exclude'" in fault.detail
    text += labels % ', leave_out: [exclude, unchanged]'
    records = read(tmp_path, described(tmp_path, text, table), 'train', ('Mass', 'Edema'))
    assert records.row.tolist() == [1, 3] and records.labels.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize('rows', [4, 400])
def test_other_spellings_of_a_listed_label_give_a_warning(tmp_path: Path, rows: int) -> None:
    """Whatever their share; layouts that give all names have an error instead."""
    text = 'table: export.csv\nimage: xrays/{file}\nviews: PA\npatient: file\n'
    labels = 'labels: {column: finding, separator: "|"%s}\nrename: {normal: No Finding}\n'
    cells = ['Edema|edema?', 'no edema', 'Mass', 'Edema.|Mass'] + ['normal', 'Edema'] * rows
    table = 'file,finding\n' + ''.join(f'{n}.png,{cell}\n' for n, cell in enumerate(cells))
    name, faults = described(tmp_path, text + labels % '', table), []
    wanted = 'No Finding', 'Edema'
    read(tmp_path, name, 'train', wanted, on_fault=faults.append)
    (fault,) = [fault for fault in faults if fault.kind == 'name like a label']
    assert fault.severity == 'warning'
    for spelling in ('edema?', 'no edema', 'Edema.'):
        assert f'{spelling!r} (Edema, rows: 1)' in fault.detail
    allowed = ', names: ["edema?", "no edema", Mass, "Edema.", normal, Edema]'
    name = described(tmp_path, text + labels % allowed, table)
    faults.clear()
    read(tmp_path, name, 'train', wanted, on_fault=faults.append)
    assert 'name like a label' not in {fault.kind for fault in faults}


def test_padchest_is_read_as_written(tmp_path: Path) -> None:
    table = (
        ',ImageID,ImageDir,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,Labels\n'
        "0,a.png,0,S1,P1,1930,F,PA,\"['pleural effusion', 'loc right ']\"\n"
        '1,b.png,0,S1,P1,1930,F,L,"[\'normal\']"\n'
        "2,c.png,54,S2,P2,,None,AP_horizontal,\"['COPD signs',  'pleural effusion']\"\n"
        '3,d.png,54,S3,P3,1980,M,COSTAL,\n'
    )
    files = ['0/a.png', '0/b.png', '54/c.png', '54/d.png']
    write(tmp_path, 'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv', table, *files)
    records = read(tmp_path, 'padchest', 'train', ('pleural effusion', 'No Finding'))
    assert records.file.tolist() == files
    assert records.study.tolist() == ['P1/S1', 'P1/S1', 'P2/S2', 'P3/S3']
    assert records.view.tolist() == ['frontal', 'lateral', 'frontal', '']
    assert records.ap_pa.tolist() == ['PA', '', 'AP', '']
    assert records.sex.tolist() == ['Female', 'Female', 'Unknown', 'Male']
    expected = [[1, 0], [0, 1], [1, 0], [NAN, NAN]]
    np.testing.assert_array_equal(records.labels, expected)


def test_brax_is_read_as_written(tmp_path: Path) -> None:
    table = (
        'DicomPath,PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,ViewPosition,'
        f'{",".join(LABELS)}\n'
        f'x,images/1.png,id1,M,85 or more,A1,PA,{",".join(["1.0", "", "-1.0"] + ["0.0"] * 11)}\n'
        f'y,images/2.png,id2,F,40,A2,RL,{"," * 13}\n'
    )
    write(tmp_path, 'master_spreadsheet_update.csv', table, 'images/1.png', 'images/2.png')
    records = read(tmp_path, 'brax', 'train', LABELS)
    assert records.age.tolist() == [85, 40] and records.view.tolist() == ['frontal', 'lateral']
    assert records.patient.tolist() == ['id1', 'id2'] and records.study[0] == 'id1/A1'
    np.testing.assert_array_equal(records.labels[0], [1, NAN, -1, *[0] * 11])
    assert np.isnan(records.labels[1]).all()


def test_the_boxes_of_an_rsna_image_are_one_row(tmp_path: Path) -> None:
    table = 'patientId,x,y,width,height,Target\nu1,,,,,0\nu2,1,2,3,4,1\nu2,5,6,7,8,1\n'
    files = ['stage_2_train_images/u1.dcm', 'stage_2_train_images/u2.dcm']
    write(tmp_path, 'stage_2_train_labels.csv', table, *files)
    records = read(tmp_path, 'rsna', 'train', ('Pneumonia',))
    assert records.file.tolist() == files and records.labels.tolist() == [[0], [1]]
    assert set(records.view) == {'frontal'}


def test_where_selects_the_rows_of_a_table(tmp_path: Path) -> None:
    """Cells of other rows are not looked at, and official lists may name their images."""
    text = """\
        table: {test: m*.csv}
        image: images/{folder}/{file}
        patient: patient
        views: frontal
        labels: {column: finding, separator: /, names: [Pneumonia, none]}
        where: {modality: X-ray}
        """
    lines = ['folder,file,patient,modality,finding']
    for number in range(6):
        write(tmp_path, f'images/a{number}/x.png', '')
        lines.append(f'a{number},x.png,p{number},X-ray,{"Pneumonia" if number % 2 else "none"}')
    lines += ['a9,volume.nii,p9,CT,Pneumonia', 'a9,volume.nii,p9,CT,?']  # without an image file
    write(tmp_path, 'metadata.csv', '\n'.join(lines))
    layout = str(write(tmp_path, 'covid.yaml', dedent(text)) / 'covid.yaml')
    records = read(tmp_path, layout, 'test', ('Pneumonia',))
    assert records.labels[:, 0].tolist() == [0, 1] * 3 and records.row.tolist() == [*range(6)]
    names = ''.join(f'a{number}/x.png\n' for number in range(6)) + 'a9/volume.nii\n'
    write(tmp_path, 'all.txt', names)
    text = text.replace('{test: m*.csv}', 'metadata.csv')
    write(tmp_path, 'covid.yaml', f'{dedent(text)}splits: {{test: all.txt}}\n')
    assert len(read(tmp_path, layout, 'test')) == 6

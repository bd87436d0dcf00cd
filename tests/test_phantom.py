"""Phantom X-rays: reproducible files in the layouts of CheXpert, MIMIC-CXR-JPG and NIH."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.labels import LABELS
from data.phantom import LAYOUTS, SPLITS, Subject, draw, make_phantom
from scripts.make_phantom import main, parse_args

SMALL = {'num_train': 5, 'num_valid': 2, 'num_test': 2, 'size': 40}


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob('*'))
        if file.is_file()
    }


@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_files_depend_on_the_seed_and_not_on_the_number_of_workers(layout, tmp_path) -> None:
    for name, seed, workers in (('a', 1, 1), ('b', 1, 2), ('c', 2, 1)):
        make_phantom(
            tmp_path / name / 'phantom', seed=seed, workers=workers, layout=layout, **SMALL
        )
    first, second, other = (digests(tmp_path / name) for name in 'abc')
    assert first == second
    drawn = {first[name] for name in first if not name.endswith('.txt')}  # NIH's lists of names
    assert drawn.isdisjoint(other.values())


def test_csv_rows_name_the_images_with_chexperts_columns_and_cells(tmp_path) -> None:
    make_phantom(tmp_path / 'phantom', seed=3, **SMALL)
    for split in ('train', 'valid', 'test'):
        table = pd.read_csv(tmp_path / 'phantom' / f'{split}.csv')
        assert tuple(table.columns[5:]) == LABELS
        cells = table[list(LABELS)].to_numpy().ravel()
        allowed = {-1.0, 0.0, 1.0} if split == 'train' else {0.0, 1.0}
        assert set(cells[~np.isnan(cells)]) <= allowed
        assert split == 'train' or not np.isnan(cells).any()
        for path in table['Path']:
            with Image.open(tmp_path / path) as image:
                assert image.mode == 'L' and max(image.size) == 40


def test_both_layouts_contain_the_same_images_and_labels(tmp_path) -> None:
    make_phantom(tmp_path / 'chexpert', seed=4, **SMALL)
    make_phantom(tmp_path / 'mimic', seed=4, **SMALL, layout='mimic-cxr')
    images = [
        sorted(value for name, value in digests(tmp_path / name).items() if name.endswith('.jpg'))
        for name in ('chexpert', 'mimic')
    ]
    assert images[0] == images[1]
    labels = pd.read_csv(tmp_path / 'mimic' / 'mimic-cxr-2.0.0-chexpert.csv.gz')
    metadata = pd.read_csv(tmp_path / 'mimic' / 'mimic-cxr-2.0.0-metadata.csv.gz')
    assert set(labels['study_id']) == set(metadata['study_id'])
    assert set(labels.columns) == {'subject_id', 'study_id', *LABELS}


def test_nihs_layout_has_the_frontal_images_of_chexperts(tmp_path) -> None:
    make_phantom(tmp_path / 'chexpert', seed=4, **SMALL)
    make_phantom(tmp_path / 'nih', seed=4, **SMALL, layout='nih')
    tables = [pd.read_csv(tmp_path / 'chexpert' / f'{split}.csv') for split in SPLITS]
    table = pd.concat(tables, ignore_index=True)
    table = table[table['Frontal/Lateral'] == 'Frontal'].reset_index(drop=True)
    table['patient'] = table['Path'].str.extract(r'patient(\d+)')[0].astype(int)
    entry = pd.read_csv(tmp_path / 'nih' / 'Data_Entry_2017_v2020.csv')
    assert entry['Patient ID'].tolist() == table['patient'].tolist()
    assert entry['Patient Age'].tolist() == table['Age'].tolist()
    assert entry['Patient Gender'].tolist() == table['Sex'].str[0].tolist()
    assert entry['View Position'].tolist() == table['AP/PA'].tolist()
    listed = [set(cell.split('|')) for cell in entry['Finding Labels']]
    theirs = {'Effusion': 'Pleural Effusion', 'Edema': 'Edema', 'Infiltration': 'Lung Opacity'}
    for finding, label in theirs.items():
        assert [finding in names for names in listed] == (table[label] == 1).tolist()
    lesions = [bool({'Mass', 'Nodule'} & names) for names in listed]
    assert lesions == (table['Lung Lesion'] == 1).tolist()
    assert not any({'Mass', 'Nodule'} <= names for names in listed)
    assert all(names == {'No Finding'} or 'No Finding' not in names for names in listed)
    lists = [
        (tmp_path / 'nih' / f'{n}_list.txt').read_text().split() for n in ('train_val', 'test')
    ]
    assert [len(names) for names in lists] == [(table['patient'] < 90001).sum(), 2]
    assert lists[0] + lists[1] == entry['Image Index'].tolist()
    modes = set()
    for path, name in zip(table['Path'], entry['Image Index'], strict=True):
        (file,) = (tmp_path / 'nih').glob(f'images_*/images/{name}')
        with Image.open(tmp_path / path) as jpeg, Image.open(file) as png:
            modes.add(png.mode)
            difference = np.asarray(jpeg, float) - np.asarray(png.convert('L'), float)
            assert np.abs(difference).mean() < 5  # JPEG alone loses a little
    assert modes == {'L', 'RGBA'}


def test_a_sign_changes_the_image_only_where_it_is() -> None:
    subject = Subject('Male', 50, 'PA', 7, 7)
    healthy, effusion = (
        draw({'Pleural Effusion': severity}, subject, np.random.default_rng(1), size=120)
        for severity in (0, 1)
    )
    upper, lower = np.array_split(healthy != effusion, 2)
    assert lower.mean() > 0.05 > upper.mean()


def test_the_script_writes_a_phantom_once_and_keeps_other_folders(tmp_path, capsys) -> None:
    folder, sheet = tmp_path / 'phantom', tmp_path / 'sheet.png'
    words = ['--train', '3', '--valid', '1', '--test', '1', '--size', '40', '--workers', '1']
    words += ['--output', str(folder)]
    assert main(parse_args([*words, '--contact-sheet', str(sheet)])) == 0
    first = digests(tmp_path)
    assert sheet.is_file() and 'phantom/phantom.json' in first
    assert main(parse_args(words)) == 0
    assert 'drew 0' in capsys.readouterr().out
    assert main(parse_args([*words, '--seed', '5'])) == 2
    assert str(folder) in capsys.readouterr().err
    assert digests(tmp_path) == first

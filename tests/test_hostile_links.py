"""Paths and links of images that lead out of the data's folder; folders with odd entries."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from csv_files import row, touch, write
from PIL import Image

from data.labels import LABELS
from data.loader import image_reader
from data.packing import Settings, pack
from data.phantom import make_phantom_mimic
from data.records import read_csv, read_folder, read_mimic


def outside(folder: Path) -> Path:
    pixels = np.arange(1600, dtype=np.uint8).reshape(40, 40)
    file = folder / 'outside' / 'patient00001' / 'study1' / 'view1_frontal.png'
    file.parent.mkdir(parents=True)
    Image.fromarray(pixels).save(file)
    return file


@pytest.mark.parametrize('link', ['the folder of all', 'a patient', 'an image', 'a second image'])
def test_links_of_images_in_a_csv_do_not_leave_the_root(link: str, tmp_path: Path) -> None:
    file, root = outside(tmp_path), tmp_path / 'CheXpert'
    study = root / 'train' / 'patient00001' / 'study1'
    paths = ['CheXpert/train/patient00001/study1/view1_frontal.png']
    if link == 'the folder of all':
        root.mkdir()
        (root / 'train').symlink_to(tmp_path / 'outside')
    elif link == 'a patient':
        (root / 'train').mkdir(parents=True)
        (root / 'train' / 'patient00001').symlink_to(tmp_path / 'outside' / 'patient00001')
    else:
        study.mkdir(parents=True)
        name = 'view1_frontal.png' if link == 'an image' else 'view2_frontal.png'
        (study / name).symlink_to(file)
    if link == 'a second image':
        Image.open(file).save(study / 'view1_frontal.png')
        paths += [paths[0].replace('view1', 'view2')]
    write(root / 'train.csv', [row(path) for path in paths])
    with pytest.raises(ValueError, match='is a link that leaves the data root') as error:
        records = read_csv(root, 'train.csv')
        image_reader(records)(0)
        image_reader(records)(len(records) - 1)
    assert str(root) in str(error.value)


def test_links_of_studies_do_not_leave_the_root(tmp_path: Path) -> None:
    outside(tmp_path)
    root = tmp_path / 'CheXpert'
    touch(root, 'test/patient00002/study1/view1_frontal.png')
    (root / 'test' / 'patient00001').symlink_to(tmp_path / 'outside' / 'patient00001')
    rows = [{'Study': f'CheXpert/test/patient0000{i}/study1'} for i in (2, 1)]
    header = ['Study', *LABELS]
    write(root / 'test.csv', [dict.fromkeys(LABELS, '') | cells for cells in rows], header)
    with pytest.raises(ValueError, match='patient00001/study1 is a link that leaves the data root'):
        read_csv(root, 'test.csv')


def test_links_inside_the_root_are_followed(tmp_path: Path) -> None:
    file = outside(tmp_path / 'CheXpert')
    (tmp_path / 'CheXpert' / 'train').symlink_to(tmp_path / 'CheXpert' / 'outside')
    (tmp_path / 'elsewhere').symlink_to(tmp_path / 'CheXpert')
    path = 'CheXpert/train/patient00001/study1/view1_frontal.png'
    write(tmp_path / 'CheXpert' / 'train.csv', [row(path)])
    records = read_csv(tmp_path / 'elsewhere', 'train.csv')
    assert np.array_equal(image_reader(records)(0), Image.open(file))


@pytest.mark.parametrize('first', [True, False])
def test_links_of_mimic_do_not_leave_the_root(first: bool, tmp_path: Path) -> None:
    root = tmp_path / 'mimic'
    make_phantom_mimic(root, num_train=3, num_valid=1, num_test=1, size=48)
    records = read_mimic(root, 'train', labeller='chexpert')
    image = root / records.file[0 if first else 1]
    moved = tmp_path / 'moved.jpg'
    image.rename(moved)
    image.symlink_to(moved)
    with pytest.raises(ValueError, match=f'{image.name} is a link that leaves the data root'):
        image_reader(read_mimic(root, 'train', labeller='chexpert'))(1)


def test_a_folder_with_odd_entries_is_listed(tmp_path: Path) -> None:
    deep = tmp_path / 'root'
    for _ in range(300):
        deep = deep / 'deep'
    deep.mkdir(parents=True)
    Image.new('L', (20, 20)).save(deep / 'x.png')
    os.mkfifo(tmp_path / 'root' / 'pipe.png')
    (tmp_path / 'root' / 'loop').symlink_to('loop')
    (tmp_path / 'root' / 'gone.txt').symlink_to('/nowhere')
    depth = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(250)
        records = read_folder(tmp_path / 'root', allow_all_images=False)
    finally:
        sys.setrecursionlimit(depth)
    assert records.file.tolist() == ['deep/' * 300 + 'x.png']


def test_a_link_to_an_image_elsewhere_is_not_packed(tmp_path: Path) -> None:
    file, root = outside(tmp_path), tmp_path / 'CheXpert'
    study = root / 'train' / 'patient00001' / 'study1'
    study.mkdir(parents=True)
    Image.open(file).save(study / 'view1_frontal.png')
    (study / 'view2_frontal.png').symlink_to(file)
    path = 'CheXpert/train/patient00001/study1/view1_frontal.png'
    write(root / 'train.csv', [row(path), row(path.replace('view1', 'view2'))])
    with pytest.raises(ValueError, match='view2_frontal.png is a link that leaves the data root'):
        pack(root, tmp_path / 'store', Settings(16, True), skip_bad=True)

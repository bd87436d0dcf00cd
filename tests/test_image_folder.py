"""Folders of images without labels."""

import re
from pathlib import Path

import numpy as np
import pytest
from csv_files import touch

from data.records import read_folder, split_holdout


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
    with pytest.raises(ValueError, match=f'{name} is there: .*DATA.ALLOW_ALL_IMAGES True') as error:
        read_folder(tmp_path, allow_all_images=False)
    assert '--data-path' not in str(error.value), 'there is no folder train'
    (tmp_path / 'train').mkdir()
    with pytest.raises(ValueError, match=f'alone with --data-path {tmp_path / "train"}, use'):
        read_folder(tmp_path, allow_all_images=False)
    assert read_folder(tmp_path, allow_all_images=True).file.tolist() == ['a.png']


def test_real_folder_is_refused_unless_allowed(nih1000: Path) -> None:
    part = f'take those to train on alone with --data-path {nih1000 / "train"}, use DATA.DATASET'
    with pytest.raises(ValueError, match=f'{part} chexpert, or set DATA.ALLOW_ALL_IMAGES'):
        read_folder(nih1000, allow_all_images=False)
    assert len(read_folder(nih1000, allow_all_images=True)) == 1000
    assert len(read_folder(nih1000 / 'train', allow_all_images=False)) == 800


def test_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, 'outside/x.png', 'root/a.png')
    root = tmp_path / 'root'
    for link, target in (('b.png', 'outside/x.png'), ('c', 'outside')):
        (root / link).symlink_to(tmp_path / target)
        hint = '; copy or hard-link the pictures, or make the whole data folder the link'
        message = f'{link} is a link that leaves the data root {root}{hint}'
        with pytest.raises(ValueError, match=re.escape(message)):
            read_folder(root, allow_all_images=False)
        (root / link).unlink()
    (tmp_path / 'alias').symlink_to(root)
    assert read_folder(tmp_path / 'alias', allow_all_images=False).file.tolist() == ['a.png']


def test_empty_or_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no image below .* .png, .jpg'):
        read_folder(tmp_path, allow_all_images=False)
    with pytest.raises(ValueError, match='DATA.DATA_PATH is no folder: .*/none'):
        read_folder(tmp_path / 'none', allow_all_images=False)

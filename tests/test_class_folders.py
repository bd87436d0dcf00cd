"""Layouts without a table: folders whose names say the class, the split and the patient."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import get_config
from data.layouts import open_layout, read_layout
from data.records import task_of

NAMES = ['NORMAL', 'PNEUMONIA', 'COVID']
SPLITS = """
image: '{set}/{class}/{patient}_{number}'
patient: patient
views: frontal
labels: {column: class}
splits: {column: set, train: train, valid: val, test: test}
"""
FILES = [
    *(f'train/{name}/p{i}_{k}.png' for i, name in enumerate(NAMES * 7) for k in range(2)),
    *(f'val/{name}/v{i}_0.jpeg' for i, name in enumerate(NAMES[:2] * 2)),
    'test/COVID/odd name#1_0.PNG',
]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = tmp_path / 'data'
    for number, file in enumerate(FILES):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        grey = np.random.default_rng(number).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(grey).save(root / file)
    (root / 'train' / '.hidden.png').write_bytes(b'')
    (root / 'train' / 'readme.txt').write_text('no image')
    return root


def config_of(tmp_path: Path, text: str = SPLITS, **options: object) -> Namespace:
    (tmp_path / 'folders.yaml').write_text(text)
    given = {'DATASET': str(tmp_path / 'folders.yaml'), 'LABELS': NAMES, 'TASK': 'single_label'}
    (tmp_path / 'c.yaml').write_text(json.dumps({'DATA': given | options}))
    return get_config(Namespace(cfg=str(tmp_path / 'c.yaml')))


def test_classes_splits_and_patients_come_from_the_paths(folders, tmp_path) -> None:
    config = config_of(tmp_path)
    train, valid, test = (
        read_layout(config, folders, split, labels=NAMES) for split in ('train', 'valid', 'test')
    )
    assert train.file.tolist() == sorted(file for file in FILES if file.startswith('train/'))
    assert train.csv == '' and set(train.view) == {'frontal'}
    assert len(set(train.patient)) == 21, 'the two images of a patient belong together'
    classes = np.array([NAMES.index(file.split('/')[1]) for file in train.file])
    np.testing.assert_array_equal(task_of(config).scored(train), np.eye(3)[classes])
    np.testing.assert_array_equal(valid.labels.sum(axis=0), [2, 2, 0])
    assert test.file.tolist() == ['test/COVID/odd name#1_0.PNG']
    assert test.patient.tolist() == ['odd name#1']


def test_images_with_another_path_or_of_a_patient_of_another_split_are_named(folders, tmp_path):
    normal = folders / 'val' / 'NORMAL'
    (normal / 'v0_0.jpeg').rename(normal / 'p0_0.jpeg')
    with pytest.raises(ValueError, match=r"val/NORMAL/p0_0\.jpeg.*'p0'.*train/NORMAL/p0_0\.png"):
        read_layout(config_of(tmp_path), folders, 'valid', labels=NAMES)
    Image.new('L', (9, 9)).save(folders / 'train' / 'NORMAL' / 'scan.png')
    with pytest.raises(ValueError, match=r'1 of 48 images.*folders\.yaml.*train/NORMAL/scan\.png'):
        read_layout(config_of(tmp_path), folders, 'train', labels=NAMES)


@pytest.mark.parametrize(
    'old, new, key',
    [
        ("'{set}/{class}/{patient}_{number}'", "'*/{class}/{patient}'", 'image'),
        ("'{set}/{class}/{patient}_{number}'", "'{set}/{class}/{class}'", 'image'),
        ('patient: patient', 'patient: person', 'person'),
        ('{column: set, train: train, valid: val, test: test}', '{train: list.txt}', 'splits'),
    ],
)
def test_a_layout_without_a_table_that_cannot_work_is_refused(tmp_path, old, new, key) -> None:
    assert old in SPLITS
    (tmp_path / 'folders.yaml').write_text(SPLITS.replace(old, new))
    with pytest.raises(ValueError, match=f'folders.yaml: .*{key}'):
        open_layout(str(tmp_path / 'folders.yaml'))


def test_a_name_with_many_ways_to_be_divided_is_soon_divided_or_refused(tmp_path: Path) -> None:
    text = "image: '{a}{b}-{c}-{d}-{e}-{f}-{g}-{h}-end'\nviews: frontal\nlabels: {column: a}"
    config = config_of(tmp_path, text, LABELS=['x', '-'])
    for name in ('xy----2---3-4-5-6-7', '-' * 200):
        root, faults = tmp_path / name[:20], []
        root.mkdir()
        for end in ('-end', '-'):
            (root / f'{name}{end}.png').touch()
        records = read_layout(config, root, 'train', labels=['x', '-'], on_fault=faults.append)
        assert records.file.tolist() == [f'{name}-end.png']
        assert 'path of another form' in [fault.kind for fault in faults]

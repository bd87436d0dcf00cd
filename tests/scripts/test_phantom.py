"""Phantom X-rays: reproducible files in the layout of CheXpert."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import config_with

from data.tables.chexpert import open_data_set
from data.tables.labels import LABELS
from scripts.make_phantom import main, parse_args
from scripts.phantom import draw_image, make_phantom
from system.pages import are_synthetic

SMALL = {'num_train': 5, 'num_valid': 2, 'num_test': 2, 'size': 40}


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob('*'))
        if file.is_file()
    }


def test_the_files_depend_on_the_seed_and_not_on_the_number_of_workers(tmp_path) -> None:
    for name, seed, workers in (('a', 1, 1), ('b', 1, 2), ('c', 2, 1)):
        make_phantom(tmp_path / name / 'phantom', seed=seed, workers=workers, **SMALL)
    first, second, other = (digests(tmp_path / name) for name in 'abc')
    assert first == second
    assert set(first.values()).isdisjoint(other.values())


def test_the_script_writes_a_phantom_once_and_keeps_other_folders(tmp_path, capsys) -> None:
    folder = tmp_path / 'phantom'
    words = ['--train', '3', '--valid', '1', '--test', '1', '--size', '40', '--workers', '1']
    words += ['--output', str(folder)]
    assert main(parse_args(words)) == 0
    first = digests(tmp_path)
    assert 'phantom/phantom.json' in first
    assert main(parse_args(words)) == 0
    assert 'drew 0' in capsys.readouterr().out
    assert main(parse_args([*words, '--seed', '5'])) == 2
    assert str(folder) in capsys.readouterr().err
    assert digests(tmp_path) == first


@pytest.mark.parametrize('name', ['mine', 'Phantom_1'])
def test_phantoms_are_known_as_such_whatever_their_folder_is_called(tmp_path, name: str) -> None:
    make_phantom(tmp_path / name, workers=1, **SMALL)
    (tmp_path / name).rename(tmp_path / 'renamed')
    config = config_with(DATA__DATASET='chexpert')
    records = open_data_set(config, tmp_path / 'renamed').read('train', labels=LABELS)
    assert are_synthetic(records.path)
    assert all((tmp_path / 'renamed' / file).is_file() for file in records.file)


def test_single_images_of_a_physical_phantom_do_not_make_real_data_synthetic() -> None:
    assert not are_synthetic(['patient00001/a.jpg', 'patient00002/b.jpg', 'quality/phantom.jpg'])


@pytest.mark.parametrize('view', ['Frontal', 'Lateral'])
def test_every_finding_is_visible(tmp_path, view: str) -> None:
    def draw(severities: np.ndarray) -> np.ndarray:
        row = ('image.png', 'Male', 60, 'PA', 1, 1, 1, view)
        draw_image((tmp_path, (0, 0, 200), row, severities))
        return np.asarray(Image.open(tmp_path / 'image.png'), float)

    healthy = draw(np.zeros(len(LABELS)))
    for label, severities in zip(LABELS[1:], 0.8 * np.eye(len(LABELS))[1:], strict=True):
        changed = np.abs(draw(severities) - healthy) > 10
        assert changed.mean() > 0.001, label

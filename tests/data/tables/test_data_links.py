"""Links in a data folder are followed; the text of a path may not leave the folder."""

from pathlib import Path

import numpy as np
import pytest
from csv_files import touch
from phantom_layouts import nih_phantom
from tiny import run_script
from xray_splits import LOGGER, make_config

from data.images.store_manifest import read_manifest
from data.tables.folder import read_folder
from data.tables.reading import read_split
from data.tables.records import images_of
from scripts.phantom import make_phantom
from scripts.phantom_mimic import make_mimic_phantom
from system.files import is_below


@pytest.mark.parametrize('layout', ['chexpert', 'mimic-cxr', 'nih'])
def test_images_behind_links_are_read_and_packed(layout: str, tmp_path: Path) -> None:
    root, shared = tmp_path / 'root', tmp_path / 'shared'
    root.mkdir()
    sizes = {'num_train': 6, 'num_valid': 3, 'num_test': 3, 'size': 32, 'seed': 1}
    make = {'chexpert': make_phantom, 'mimic-cxr': make_mimic_phantom, 'nih': nih_phantom}
    make[layout](shared, **sizes)
    for place in shared.iterdir():
        (root / place.name).symlink_to(place)  # folders of images, and tables
    config = make_config(root, 'DATA.DATASET', layout, 'DATA.LABELS', ['Edema'])
    records = read_split(config, 'train', LOGGER)
    assert np.asarray(images_of(records).reader(records.file)(1)).std() > 0
    words = ['--data-path', root, '--size', 16, '--workers', 1, '--output', tmp_path / 'packed']
    assert run_script('pack', *words, *(['--dataset', 'nih'] if layout == 'nih' else [])) == 0
    assert read_manifest(tmp_path / 'packed')['left_out'] == {}


def test_a_folder_to_which_links_lead_is_listed_once(tmp_path: Path) -> None:
    root, shared = tmp_path / 'root', tmp_path / 'shared'
    touch(tmp_path, 'shared/p/x.png', 'shared/q/deep/y.png', 'root/a.png', 'root/own/b.png')
    (root / 'one.png').symlink_to(shared / 'p' / 'x.png')
    (root / 'p').symlink_to(shared / 'p')
    (root / 'q').symlink_to(shared / 'q')
    (root / 'again').symlink_to(root / 'own')  # which is listed itself
    (shared / 'q' / 'deep' / 'up').symlink_to(shared / 'q')  # a circle
    (shared / 'q' / 'back').symlink_to(root)
    (root / 'gone.png').symlink_to(shared / 'gone.png')
    files = ['a.png', 'one.png', 'own/b.png', 'p/x.png', 'q/deep/y.png']
    assert read_folder(root, allow_all_images=False).file.tolist() == files


OUTSIDE = ['', '/etc/x', '..', '../x', 'a/../x', 'a/..', './x', 'a//x', 'a\0']


@pytest.mark.parametrize('name', OUTSIDE)
def test_a_path_that_leaves_its_folder_is_refused_by_its_text(name: str) -> None:
    """Tables, layouts and stores call this; their own tests look at the messages."""
    assert not is_below(name) and is_below('a/..b/x..png')

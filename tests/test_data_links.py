"""Data sets behind links: all tools read them if DATA.ALLOW_LINKS names the images' folder."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tiny import run_script
from xray_splits import LOGGER, make_config

from data.phantom import make_phantom
from data.reading import read_split
from data.records import images_of
from data.store import read_about


class Linked(NamedTuple):
    layout: str
    root: Path  # folder with the tables and links to the images
    shared: Path  # folder with the images


@pytest.fixture(scope='module', params=['chexpert', 'mimic-cxr', 'nih'])
def linked(request, tmp_path_factory: pytest.TempPathFactory) -> Linked:
    root, shared = (tmp_path_factory.mktemp(name) for name in ('root', 'shared'))
    sizes = {'num_train': 6, 'num_valid': 3, 'num_test': 3, 'size': 32, 'seed': 1}
    make_phantom(shared / 'all', layout=request.param, **sizes)
    for place in (shared / 'all').iterdir():
        if place.is_dir():
            (root / place.name).symlink_to(place)
        else:
            place.rename(root / place.name)
    return Linked(request.param, root, shared)


def test_images_behind_links_are_read_if_they_are_allowed(linked: Linked) -> None:
    options = ['DATA.DATASET', linked.layout, 'DATA.LABELS', ['Edema'], 'DATA.ALLOW_LINKS']
    records = read_split(make_config(linked.root, *options, str(linked.shared)), 'train', LOGGER)
    assert records.links == str(linked.shared)
    pixels = np.asarray(images_of(records).reader(records.file)(1))
    assert pixels.std() > 0
    with pytest.raises(ValueError, match='DATA.ALLOW_LINKS'):
        read_split(make_config(linked.root, *options, ''), 'train', LOGGER)
    with pytest.raises(ValueError, match='DATA.ALLOW_LINKS'):
        read_split(make_config(linked.root, *options, linked.root.name), 'train', LOGGER)


def test_tools_read_images_behind_links(
    linked: Linked, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dataset = ['--dataset', 'nih'] if linked.layout == 'nih' else []
    words = ['--data-path', linked.root, '--size', 16, '--workers', 1, *dataset, '--output']
    assert run_script('pack', *words, tmp_path / 'refused') == 2
    assert 'DATA.ALLOW_LINKS' in capsys.readouterr().err
    assert run_script('pack', *words, tmp_path / 'packed', '--allow-links', linked.shared) == 0
    assert read_about(tmp_path / 'packed')['left_out'] == {}
    words = ['--data-path', linked.root, '--workers', 1, '--output', tmp_path / 'problems.csv']
    options = ['DATA.DATASET', linked.layout, 'DATA.LABELS', "['Edema']", 'DATA.FOLD', '0/2']
    words += ['--opts', *options, 'DATA.ALLOW_LINKS']
    assert run_script('check_data', *words, linked.shared) == 0
    assert run_script('check_data', *words, '') == 1
    assert 'DATA.ALLOW_LINKS' in (tmp_path / 'problems.csv').read_text()
    words = ['--data-path', linked.root, '--output', tmp_path / 'counts', '--opts']
    words += [*options, 'DATA.ALLOW_LINKS', linked.shared]
    assert run_script('describe_data', *words) == 0

"""A reader of data sets in one file of Python: pre-training, fine-tuning, and packed."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from xray_splits import LOGGER, make_config, samples_of, xray

from config import OPTIONS
from data.build import build_loader
from data.fingerprint import describe_data
from data.tables.chexpert import DATASETS
from scripts.pack import main as pack_main
from scripts.pack import parse_args as pack_args

FILE = 'images.jsonl'
OTHER = 'deep/other.png'  # an image that no line names


@pytest.fixture(autouse=True)
def option_with_reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The name and the file of the reader stand in its option, as in config.py."""
    monkeypatch.setitem(OPTIONS['DATA.DATASET'].parts, 'lines', 'json_lines')
    yield
    DATASETS.pop('lines', None)
    sys.modules.pop('json_lines', None)


@pytest.fixture(params=['files', 'store'])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The data set as files, or packed with the sizes of its images."""
    root, lines = tmp_path / 'files', []
    (root / 'deep').mkdir(parents=True)
    for number in range(24):
        name, part = f'deep/{number}.png', 'train' if number < 20 else 'valid'
        xray(36 + number % 5, 40, seed=number).save(root / name)
        line = {'file': name, 'who': f'P{number // 2}', 'part': part}
        lines.append(json.dumps(line | {'Frontal/Lateral': 'Frontal', 'Edema': f'{number % 2}'}))
    (root / FILE).write_text('\n'.join(lines))
    Image.new('L', (40, 40)).save(root / OTHER)
    if request.param == 'files':
        return root
    words = ['--data-path', str(root), '--dataset', 'lines', '--size', 'native']
    assert pack_main(pack_args([*words, '--output', str(tmp_path / 'store')])) == 0
    return tmp_path / 'store'


def config_of(place: Path):
    return make_config(place, 'DATA.DATASET', 'lines', 'DATA.LABELS', ['Edema'])


def test_pre_training_reads_the_files_or_a_store(place: Path) -> None:
    loaders = build_loader(config_of(place), LOGGER, is_pretrain=True)
    images = [loader.dataset.records for loader in loaders[:2]]
    assert [len(records) for records in images] == [16, 4]
    assert not {*images[0].patient} & {*images[1].patient}
    sample = samples_of(loaders.train, 0)[0][0]
    same = samples_of(build_loader(config_of(place.parent / 'files'), LOGGER, True).train, 0)[0][0]
    assert torch.equal(sample, same)
    described = describe_data(config_of(place), loaders)
    assert described['images'] == 20 and FILE in described['files']


def test_fine_tuning_reads_the_files_or_a_store(place: Path) -> None:
    loaders = build_loader(config_of(place), LOGGER, is_pretrain=False)
    assert loaders.test is None and len(loaders.valid.dataset) == 4
    assert loaders.valid.dataset.targets.ravel().tolist() == [0, 1, 0, 1]
    assert OTHER not in {*loaders.train.dataset.records.file, *loaders.valid.dataset.records.file}

"""Cross-validation by patient (DATA.FOLD): each image is scored once, and trains in no stage."""

import hashlib
from pathlib import Path

import pytest
import torch
from xray_splits import LOGGER, make_config, write_split

from data.build import build_loader

PARTS = 3


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training images of 24 patients; valid.csv names some of them, and must not be read."""
    root = tmp_path_factory.mktemp('folds')
    write_split(root, 'train', 24)
    (root / 'valid.csv').write_bytes((root / 'train.csv').read_bytes()[:2000])
    return root


def part_of(patient: str) -> int:
    digest = hashlib.blake2b(patient.encode(), key=b'fold').digest()
    return int.from_bytes(digest, 'big') % PARTS


def patients_of(loader: torch.utils.data.DataLoader) -> set[str]:
    return {*loader.dataset.records.patient}


def loaders_of(data: Path, part: int, *options: object, is_pretrain: bool = False):
    config = make_config(data, 'DATA.FOLD', f'{part}/{PARTS}', *options)
    return build_loader(config, LOGGER, is_pretrain)


def test_parts_are_scored_once_and_hold_out_and_subset_come_from_the_others(data: Path) -> None:
    everyone = {f'patient{number:05d}' for number in range(24)}
    scored = []
    for part in range(PARTS):
        whole, half = loaders_of(data, part), loaders_of(data, part, 'DATA.TRAIN_FRACTION', 0.5)
        own = patients_of(whole.valid)
        assert own == {name for name in everyone if part_of(name) == part}
        assert patients_of(whole.train) | patients_of(whole.holdout) == everyone - own
        assert not patients_of(whole.train) & patients_of(whole.holdout)
        assert patients_of(half.train) < patients_of(whole.train)
        assert patients_of(half.holdout) == patients_of(whole.holdout)
        scored += whole.valid.dataset.records.path.tolist()
    assert len(scored) == len(set(scored)) == 48


def test_pretraining_never_sees_the_scored_part_whatever_else_its_file_names(
    data: Path, tmp_path: Path
) -> None:
    write_split(tmp_path, 'train', 40)  # the 24 patients above, and 16 others
    for part in range(PARTS):
        own = patients_of(loaders_of(data, part).valid)
        more = loaders_of(tmp_path, part, is_pretrain=True)
        assert own and not own & (patients_of(more.train) | patients_of(more.holdout))


def test_a_part_without_images_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match='DATA.FOLD'):
        build_loader(make_config(data, 'DATA.FOLD', '7/999'), LOGGER, is_pretrain=True)

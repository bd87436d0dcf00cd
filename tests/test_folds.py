"""Cross-validation by patient (DATA.FOLD): each image is scored once, and trains in no stage."""

import hashlib
import json
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from xray_splits import LOGGER, make_config, write_split

from data import build_loader
from data.records import write_predictions

ROOT = Path(__file__).resolve().parents[1]
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


def test_the_predictions_of_all_parts_are_scored_as_one_file(data: Path, tmp_path: Path) -> None:
    rng, tables = np.random.default_rng(0), []
    for part in range(PARTS):
        records = loaders_of(data, part).valid.dataset.records
        file = tmp_path / f'{part}.csv'
        values = rng.random((len(records), 1)).round(3)
        write_predictions(file, values, paths=records.path, labels=['Edema'], source={})
        tables.append(file.read_text().splitlines(keepends=True))
    whole = tmp_path / 'all.csv'
    whole.write_text(''.join(tables[0] + tables[1][1:] + tables[2][1:]))
    script = runpy.run_path(str(ROOT / 'scripts/evaluate.py'))
    words = ['--predictions', whole, '--labels', data / 'train.csv', '--output', tmp_path / 'out']
    words += ['--views', 'all', '--level', 'image', '--resamples', 0]
    assert script['main'](script['parse_args']([*map(str, words)])) == 0
    truth = pd.read_csv(data / 'train.csv').set_index('Path')['Edema'].fillna(0)
    found = pd.read_csv(whole).set_index('Path')['Edema'].reindex(truth.index)
    known = truth >= 0
    (label,) = [
        label
        for label in json.loads((tmp_path / 'out/report.json').read_text())['sets'][0]['labels']
        if label['label'] == 'Edema'
    ]
    wanted = roc_auc_score(truth[known], found[known])
    assert label['scores']['auroc']['value'] == pytest.approx(wanted, abs=1e-9)


def test_a_part_without_images_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match='DATA.FOLD'):
        build_loader(make_config(data, 'DATA.FOLD', '7/999'), LOGGER, is_pretrain=True)

"""Cross-validation by patient: each image is scored once, and trains in no stage."""

import hashlib
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from phantom_layouts import nih_phantom
from tiny import ROOT, run_script
from torch.utils.data import DataLoader
from xray_splits import LOGGER, make_config, write_split

from data.build import build_loader
from data.tables.folds import fold_files, folds_of, write_folds
from data.tables.reading import read_split
from data.tables.records import Records

PARTS = 3


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training images of 24 patients and their folds; valid.csv must not be read."""
    root = tmp_path_factory.mktemp('folds')
    write_split(root, 'train', 24)
    (root / 'valid.csv').write_bytes((root / 'train.csv').read_bytes()[:2000])
    words = ['--data-path', root, '--folds', PARTS, '--output', root / 'folds']
    assert run_script('folds', *map(str, words)) == 0
    return root


def part_of(patient: str) -> int:
    digest = hashlib.blake2b(patient.encode(), key=b'fold').digest()
    return int.from_bytes(digest, 'big') % PARTS


def patients_of(loader: DataLoader) -> set[str]:
    return {*loader.dataset.records.patient}


def tables_of(folder: Path, part: int) -> list[str]:
    train, valid = fold_files(folder, part)
    return ['DATA.TRAIN_CSV', str(train), 'DATA.VALID_CSV', str(valid)]


def loaders_of(data: Path, part: int, *options: object, is_pretrain: bool = False):
    config = make_config(data, *tables_of(data / 'folds', part), *options)
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
        more = loaders_of(data, part, is_pretrain=True)
        assert patients_of(more.train) | patients_of(more.holdout) == everyone - own
        scored += whole.valid.dataset.records.path.tolist()
    assert len(scored) == len(set(scored)) == 48


def test_a_row_keeps_the_number_that_its_random_numbers_depend_on(data: Path) -> None:
    whole = read_split(make_config(data), 'train', LOGGER)
    sample = dict(zip(whole.path, whole.sample, strict=True))
    for part in range(PARTS):
        for split in ('train', 'valid'):
            config = make_config(data, *tables_of(data / 'folds', part))
            records = read_split(config, split, LOGGER)
            assert records.sample.tolist() == [sample[path] for path in records.path]


@pytest.mark.parametrize('study', ['frozen', 'heads', 'main_model', 'real_xrays', 'which_start'])
def test_the_committed_studies_have_these_folds(study: str) -> None:
    files = sorted((ROOT / 'docs/results' / study).rglob('seed*.parquet'))
    table = pd.read_parquet(files[0])
    table = table[table['row'] == table['row'][0]]
    assert len(table) == 1000
    patient = table['Path'].str.extract(r'(patient\d+)')[0].to_numpy(object)
    assert table['fold'].tolist() == folds_of(patient, 5).tolist()


def test_the_committed_predictions_of_a_study_take_at_most_five_megabytes() -> None:
    results = ROOT / 'docs/results'
    sizes: Counter[str] = Counter()
    for file in results.rglob('seed*.parquet'):
        sizes[file.relative_to(results).parts[0]] += file.stat().st_size
    assert len(sizes) >= 7 and max(sizes.values()) <= 5e6
    assert not [*results.rglob('predictions.*')]


def test_the_folds_of_a_known_data_set_are_tables_with_its_labels(tmp_path: Path) -> None:
    root = tmp_path / 'nih'
    nih_phantom(root, num_train=9, num_valid=1, num_test=3, size=40)
    options = ['DATA.DATASET', 'nih', 'DATA.LABELS', ['Edema']]

    def read(split: str, folder: Path, part: int) -> Records:
        config = make_config(root, *options, *tables_of(folder, part))
        return read_split(config, split, LOGGER)

    config = make_config(root, *options)
    whole = read_split(config, 'train', LOGGER)
    write_folds(config, tmp_path, PARTS)
    scored = []
    for part in range(PARTS):
        train, valid = (read(split, tmp_path, part) for split in ('train', 'valid'))
        assert set(valid.patient) == set(whole.patient[folds_of(whole.patient, PARTS) == part])
        assert not set(train.patient) & set(valid.patient)
        assert len(train) + len(valid) == len(whole)
        scored += valid.row.tolist()
    assert sorted(scored) == whole.row.tolist()
    # Folds of a table of all splits that replaces that of the data set.
    table = tmp_path / 'table.csv'
    words = ['--data-path', root, '--table', table, '--opts', *options[:3], "['Edema']"]
    assert run_script('describe_data', *words) == 0
    write_folds(make_config(root, *options, 'DATA.TRAIN_CSV', str(table)), tmp_path / 'of', 2)
    assert 0 < len(read('valid', tmp_path / 'of', 0)) < len(whole)
    file = tmp_path / 'valid_0.csv'
    file.write_text(file.read_text().replace('.png', '_none.png'))
    with pytest.raises(ValueError, match='valid_0.csv.*none.png'):
        read('valid', tmp_path, 0)


def test_an_empty_fold_and_tables_of_other_folds_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='999 folds'):
        write_folds(make_config(data), tmp_path, 999)
    write_folds(make_config(data), tmp_path, 3)
    write_folds(make_config(data), tmp_path, 3)
    with pytest.raises(ValueError, match='train_0.csv'):
        write_folds(make_config(data), tmp_path, 2)
    with pytest.raises(ValueError, match='DATA.DATASET folder has no table'):
        write_folds(make_config(data / 'train', 'DATA.DATASET', 'folder'), tmp_path, 3)

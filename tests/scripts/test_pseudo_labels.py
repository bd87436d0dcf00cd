"""Pseudo-labels: permitted patients, and the labels of training."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mistakes import edit, linked
from phantom_layouts import nih_phantom
from xray_splits import LOGGER, make_config

from data.build import build_loader
from data.tables.labels import LABELS
from scripts.phantom import make_phantom
from scripts.phantom_mimic import make_mimic_phantom

NAN = np.nan


@pytest.fixture(scope='module')
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp('data')
    sizes = {'num_train': 20, 'num_valid': 3, 'num_test': 3, 'size': 32, 'seed': 0}
    make_phantom(folder / 'CheXpert-phantom', **sizes)
    make_mimic_phantom(folder / 'mimic', **sizes)
    return {'files': folder / 'CheXpert-phantom', 'mimic': folder / 'mimic'}


@pytest.fixture
def root(roots: dict[str, Path]) -> Path:
    return roots['files']


def loaders_of(root: Path, *options: object):
    name = 'mimic-cxr' if root.name == 'mimic' else 'chexpert'
    options = ('DATA.DATASET', name, 'DATA.TRAIN_FRACTION', 0.5, 'DATA.UNCERTAIN', 'ones', *options)
    return build_loader(make_config(root, *options), LOGGER, is_pretrain=False)


def parts_of(root: Path, *options: object) -> tuple:
    """Return labelled, held-out and other records as in loaders without pseudo-labels."""
    loaders = loaders_of(root, 'EVAL.PREDICT_TRAIN', True, *options)
    whole, labelled = loaders.whole.dataset.records, loaders.train.dataset
    others = whole.select(~np.isin(whole.patient.astype(str), labelled.records.patient.astype(str)))
    return labelled, loaders.holdout.dataset.records, others


def write(file: Path, paths, values: np.ndarray) -> Path:
    table = pd.DataFrame(values, columns=list(LABELS))
    table.insert(0, 'Path', list(paths))
    table.to_csv(file, index=False)
    return file


@pytest.mark.parametrize('layout', ['files', 'mimic'])
def test_the_values_of_the_file_are_learned_with_the_labels_of_the_subset(layout, roots, tmp_path):
    root = roots[layout]
    labelled, held_out, others = parts_of(root)
    assert min(len(labelled), len(held_out), len(others)) > 3
    rng = np.random.default_rng(0)
    values = rng.choice([0.0, 0.25, 1.0, NAN], (len(others), len(LABELS)))
    values[[0, 2]] = NAN  # rows without a value are not used for training
    order = rng.permutation(len(others))
    file = write(tmp_path / 'p.csv', others.path[order], values[order])
    loaders = loaders_of(root, 'DATA.PSEUDO_LABELS', str(file))
    train, count = loaders.train.dataset, len(labelled)
    kept = np.delete(np.arange(len(others)), [0, 2])
    assert train.records.path.tolist() == [*labelled.records.path, *others.path[kept]]
    np.testing.assert_array_equal(train.targets[:count], labelled.targets)
    np.testing.assert_array_equal(train.targets[count:], values[kept])
    assert train.targets.dtype == np.float32
    assert np.isnan(train.records.labels[count:]).all()
    assert loaders.holdout.dataset.records.path.tolist() == held_out.path.tolist()


def test_the_labels_outside_the_subset_are_never_learned(root: Path, tmp_path: Path) -> None:
    """Two data sets with contradicting labels for these patients have the same targets."""
    _, _, others = parts_of(root)
    values = np.random.default_rng(0).choice([0.0, 1.0, NAN], (len(others), len(LABELS)))
    file = write(tmp_path / 'p.csv', others.path, values)
    other = linked(root, tmp_path / 'other' / root.name)
    hidden = set(others.path)

    def contradict(rows: list[list[str]]) -> None:
        first = rows[0].index(LABELS[0])
        for row in rows[1:]:
            if row[0] in hidden:
                row[first:] = ['0.0' if cell == '1.0' else '1.0' for cell in row[first:]]

    edit(other / 'train.csv', contradict)
    options = 'DATA.PSEUDO_LABELS', str(file), 'DATA.SAMPLER', 'weighted'
    first, second = (loaders_of(place, *options).train.dataset for place in (root, other))
    assert first.records.path.tolist() == second.records.path.tolist()
    np.testing.assert_array_equal(first.targets, second.targets)
    np.testing.assert_array_equal(first.records.labels, second.records.labels)


def test_a_file_of_studies_may_name_images_without_a_folder_of_a_patient(tmp_path: Path) -> None:
    root, file = tmp_path / 'nih', tmp_path / 'p.csv'
    nih_phantom(root, num_train=20, num_valid=3, num_test=3, size=32, seed=0)
    findings = ['DATA.DATASET', 'nih', 'DATA.LABELS', ['Edema'], 'MODEL.NUM_CLASSES', 1]
    labelled, _, others = parts_of(root, *findings)
    pd.DataFrame({'Study': others.path, 'Edema': 1.0}).to_csv(file, index=False)
    targets = loaders_of(root, *findings, 'DATA.PSEUDO_LABELS', str(file)).train.dataset.targets
    assert len(others) > 3 and targets[len(labelled) :].tolist() == [[1.0]] * len(others)


def test_a_binary_task_takes_its_own_column(root: Path, tmp_path: Path) -> None:
    task = ['DATA.TASK', 'any_finding', 'MODEL.NUM_CLASSES', 1]
    labelled, _, others = parts_of(root, *task)
    values = np.linspace(0, 1, len(others))
    table = pd.DataFrame({'Path': others.path, 'Any Finding': values})
    table.to_csv(tmp_path / 'p.csv', index=False)
    options = [*task, 'DATA.PSEUDO_LABELS', str(tmp_path / 'p.csv')]
    targets = loaders_of(root, *options).train.dataset.targets
    np.testing.assert_allclose(targets[len(labelled) :, 0], values)
    (tmp_path / 'p.json').write_text('{"task": "observations"}')
    with pytest.raises(ValueError, match='any_finding'):
        loaders_of(root, *options)


def test_rows_that_may_not_have_pseudo_labels_raise_an_error(root: Path, tmp_path: Path) -> None:
    views = ['DATA.VIEWS', 'frontal', 'EVAL.VIEWS', 'all']
    labelled, held_out, others = parts_of(root, *views)
    frontal, lateral = (others.path[others.view == view] for view in ('frontal', 'lateral'))
    valid, test = (pd.read_csv(root / f'{split}.csv') for split in ('valid', 'test'))
    file = tmp_path / 'p.csv'
    unknown = 'CheXpert-phantom/train/patient99999/study1/view1_frontal.jpg'
    own = held_out.path[0], labelled.records.path[1], lateral[0]
    for path in (*own, valid['Path'][0], test['Path'][0], unknown):
        write(file, [*frontal[:2], path], np.ones((3, len(LABELS))))
        with pytest.raises(ValueError, match=f'DATA.PSEUDO_LABELS {file}, row 4 '):
            loaders_of(root, *views, 'DATA.PSEUDO_LABELS', str(file))


@pytest.mark.parametrize('cells', [['-1'] * 14, [''] * 14])
def test_a_file_without_usable_values_raises_an_error(cells, root, tmp_path) -> None:
    file = tmp_path / 'p.csv'
    _, _, others = parts_of(root)
    write(file, others.path[:1], np.array([cells]))
    with pytest.raises(ValueError, match=str(file)):
        loaders_of(root, 'DATA.PSEUDO_LABELS', str(file))


def test_values_of_a_label_with_three_classes_are_classes(root: Path, tmp_path: Path) -> None:
    """A share such as 0.9 would be learned as a negative."""
    file = tmp_path / 'p.csv'
    _, _, others = parts_of(root)
    values = np.random.default_rng(0).choice([0.0, 1.0, NAN], (len(others), len(LABELS)))
    values[3, LABELS.index('Edema')] = 0.9
    write(file, others.path, values)

    def targets(policy: str) -> np.ndarray:
        options = 'DATA.PSEUDO_LABELS', str(file), 'DATA.UNCERTAIN_BY_LABEL', {'Edema': policy}
        return loaders_of(root, *options).train.dataset.targets

    np.testing.assert_array_equal(targets('ones')[-len(others) :], values.astype(np.float32))
    with pytest.raises(ValueError, match=rf'DATA.PSEUDO_LABELS {file}, row 5 .*Edema'):
        targets('multiclass')

"""Describing a data set: against a loop over its rows; what is printed, saved and drawn."""

import csv
import logging
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_files import HEADER, image_path, row, write
from matplotlib.figure import Figure
from phantom_layouts import mimic_phantom
from PIL import Image
from tiny import config_with, run_script

from config import Config
from data.describe import (
    TARGETS,
    UNITS,
    build_description,
    read_sets,
)
from data.figures import encode_figure, plot_examples
from data.folds import fold_files, folds_of, write_folds
from data.groups import all_groups
from data.labels import LABELS, NO_FINDING
from data.reading import read_split
from data.records import Records
from data.splits import split_patients

K = len(LABELS)
KIND_OF_CELL = {'1.0': 'positive', '-1.0': 'uncertain', '0.0': 'negative', '': 'blank'}


def options(root: Path, **changes: object) -> Config:
    return config_with(DATA__DATA_PATH=str(root), **{'DATA__DATASET': 'chexpert', **changes})


def cells_of(rng: np.random.Generator, share: tuple[float, ...] = (0.2, 0.2, 0.3, 0.3)) -> dict:
    return dict(zip(LABELS, rng.choice(list(KIND_OF_CELL), K, p=share), strict=True))


@pytest.fixture(scope='module')
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three files: studies of one to three images whose labels may differ; no images."""
    rng, tmp_path = np.random.default_rng(0), tmp_path_factory.mktemp('mixed')
    number = 0
    for name, num_patients in (('train', 30), ('valid', 12), ('test', 15)):
        rows = []
        for patient in range(num_patients):
            for study in range(1, rng.integers(2, 4)):
                same = cells_of(rng)
                for view in range(1, rng.integers(2, 5)):
                    kind = rng.choice(['frontal', 'lateral'])
                    path = image_path(number + patient, study, f'view{view}_{kind}', f'X/{name}')
                    cells = same if rng.random() < 0.7 else cells_of(rng)
                    sex = rng.choice(['Female', 'Male', 'Unknown'])
                    age = str(rng.choice([0, 25, 45, 65, 85]))
                    site = rng.choice(['north', 'south', ''])
                    rows.append({**row(path, Sex=sex, Age=age, Site=site), **cells})
        number += num_patients
        write(tmp_path / f'{name}.csv', rows, ['Site', *HEADER])
    return tmp_path


# ---- counts


def test_counts_agree_with_a_loop_over_the_rows(mixed: Path) -> None:
    description = build_description(
        options(mixed, DATA__HOLDOUT_FRACTION=0.0, EVAL__GROUPS=['Site'])
    )
    bands = {'0': 'unknown', '25': '0-39', '45': '40-59', '65': '60-79', '85': '80 and over'}
    members = defaultdict(lambda: (set(), set(), set()))
    for split in ('train', 'valid', 'test'):
        with open(mixed / f'{split}.csv', newline='') as file:
            for cells in csv.DictReader(file):
                frontal = cells['Frontal/Lateral'] == 'Frontal'
                groups = {
                    'All': 'All',
                    'Sex': cells['Sex'].replace('Unknown', 'unknown'),
                    'Age': bands[cells['Age']],
                    'View': 'Frontal AP' if frontal else 'Lateral',
                    'Site': cells['Site'] or 'unknown',
                } | {label: KIND_OF_CELL[cells[label]] for label in LABELS}
                study = cells['Path'].rpartition('/')[0]
                units = cells['Path'], study, study.rpartition('/')[0]
                for group in groups.items():
                    for found, unit in zip(members[(split, *group)], units, strict=True):
                        found.add(unit)
    table = description.counts.set_index(['split', 'column', 'group'])[[*UNITS]]
    found = dict(zip(table.index, map(tuple, table.to_numpy().tolist()), strict=True))
    assert found == {key: tuple(map(len, units)) for key, units in members.items()}


def tables_of(folder: Path, part: int) -> dict[str, str]:
    train, valid = fold_files(folder, part)
    return {'DATA__TRAIN_CSV': str(train), 'DATA__VALID_CSV': str(valid)}


def test_the_sets_are_those_of_a_run_with_folds_and_an_internal_split(mixed: Path) -> None:
    whole = read_sets(options(mixed, DATA__HOLDOUT_FRACTION=0.0))['train']
    shares = {'DATA__HOLDOUT_FRACTION': 0.3, 'EVAL__INTERNAL_SHARE': 0.5}
    write_folds(options(mixed), mixed / 'folds', 3, logging.getLogger())
    config = options(mixed, **tables_of(mixed / 'folds', 1), **shares)
    is_scored = folds_of(whole.patient, 3) == 1
    parts = split_patients(config, whole.select(~is_scored))
    expected = dict(zip(('train', 'holdout', 'internal'), parts, strict=True))
    expected['valid'] = whole.select(is_scored)
    sets = read_sets(config)
    assert list(sets) == [*expected, 'test']
    for name, records in expected.items():
        assert len(records) and sets[name].path.tolist() == records.path.tolist()


# ---- training targets


def test_targets_of_the_images_that_are_trained_on(mixed: Path) -> None:
    changes = {
        'DATA__UNCERTAIN': 'multiclass',
        'DATA__UNCERTAIN_BY_LABEL': {'Edema': 'ones_smooth'},
    }
    config = options(mixed, DATA__HOLDOUT_FRACTION=0.0, DATA__BLANK='ignore', **changes)
    table = build_description(config).targets.set_index('label')
    with open(mixed / 'train.csv', newline='') as file:
        rows = [cells for cells in csv.DictReader(file) if cells['Frontal/Lateral'] == 'Frontal']
    for label in LABELS:
        counts = Counter(KIND_OF_CELL[cells[label]] for cells in rows)
        expected = dict.fromkeys([*TARGETS, 'left out'], 0)
        expected |= {k: counts[k] for k in ('positive', 'negative')}
        expected['soft' if label == 'Edema' else 'third class'] = counts['uncertain']
        expected['negative' if label == 'No Finding' else 'left out'] += counts['blank']
        kinds = [*TARGETS, 'left out']
        assert {name: table.loc[label, name] for name in kinds} == expected, label


# ---- the script


def test_the_label_table_of_the_mimic_study_has_its_known_counts(tmp_path: Path, capsys) -> None:
    """Of 5 images, one is lateral; of the others, one has a finding and one No Finding."""
    rows, labels = [], []
    for number, split in enumerate(['train'] * 40 + ['validate'] * 10 + ['test'] * 5):
        ids = {'dicom_id': f'd{number}', 'study_id': 500 + number, 'subject_id': 10_000 + number}
        rows.append(ids | {'split': split, 'ViewPosition': 'AP' if number % 5 else 'LATERAL'})
        kind = number % 5
        known = {'Edema': [1, '', 1, '', -1][kind], NO_FINDING: 1 if kind == 1 else ''}
        labels.append(ids | dict.fromkeys(LABELS, '') | known)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        image = tmp_path / f'files/p10/p{10_000 + number}/s{500 + number}/d{number}.jpg'
        image.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(image)
    for kind, table in (('split', rows), ('metadata', rows), ('negbio', labels)):
        pd.DataFrame(table).to_csv(tmp_path / f'mimic-cxr-2.0.0-{kind}.csv', index=False)
    config = 'configs/study_mae_resnet/simmim_finetune__resnet18__img224__mae_resnet.yaml'
    words = ['--data-path', tmp_path, '--output', tmp_path / 'out', '--cfg', config]
    opts = ['DATA.HOLDOUT_FRACTION', 0, 'DATA.TRAIN_IMAGES', 10]

    def run(*more: object) -> list[pd.DataFrame]:
        assert run_script('describe_data', *words, '--examples', 2, '--opts', *opts, *more) == 0
        return [pd.read_csv(tmp_path / 'out' / f'{name}.csv') for name in ('targets', 'images')]

    targets, images = run()
    kinds = ['positive', 'negative', 'total', 'left out']
    counts = targets.set_index('split')[kinds]
    of_sample = images[images['sub-sample']]
    assert set(of_sample['split']) == {'train'} and len(of_sample) == 10
    positive = int(of_sample['Any Finding'].sum())
    assert counts.T.to_dict('list') == {
        'train': [8, 24, 32, 0],
        'valid': [2, 6, 8, 0],
        'test': [1, 3, 4, 0],
        'full': [10, 30, 40, 0],
        'sub-sample': [positive, 10 - positive, 10, 0],
    }
    assert images.columns.tolist() == ['image', 'Any Finding', 'split', 'sub-sample']
    svg = (tmp_path / 'out' / 'examples.svg').read_text()
    assert re.findall(r'>(Any Finding|No Finding|Edema)<', svg) == ['Any Finding', 'No Finding']
    targets, images = run('DATA.TASK', 'any_finding')
    assert targets.set_index('split').loc['full', kinds].tolist() == [10, 10, 20, 20]
    assert images['Any Finding'].isna().sum() == 22


# ---- figures


def images_of(figure: Figure) -> list[tuple[str, np.ndarray]]:
    """Return the title and the pixels of each image of a figure."""
    shown = [axis for axis in figure.axes if axis.images]
    return [
        (axis.get_title(loc='left').replace('\n', ' '), np.asarray(axis.images[0].get_array()))
        for axis in shown
    ]


@pytest.fixture(scope='module')
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Records]:
    """Images whose lowest rows have a grey level of 10 times the number of the patient."""
    root = tmp_path_factory.mktemp('pictures')
    rows = []
    for patient in range(1, 8):
        for study in (1, 2):
            path = image_path(patient, study, folder='X/train').replace('.jpg', '.png')
            labels = {
                'Edema': '1.0' if patient % 2 else '',
                'Fracture': '1.0' if patient == 2 else '0',
            }
            rows.append(row(path, **labels))
            pixels = np.full((40, 30), 10 * patient, np.uint8)
            pixels[:20] += np.uint8(study)
            file = root / path.partition('/')[2]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    write(root / 'train.csv', rows, HEADER)
    records = next(iter(read_sets(options(root, DATA__HOLDOUT_FRACTION=0.0)).values()))
    return root, records


def test_examples_are_positive_images_of_different_patients(pictures) -> None:
    shown = images_of(plot_examples(pictures[1], 3, seed=0))
    assert [title for title, _ in shown] == ['Edema', '', '', 'Fracture']
    patients = [int(pixels[-1, 0]) // 10 for _, pixels in shown]
    assert set(patients[:3]) < {1, 3, 5, 7} and len(set(patients[:3])) == 3
    assert patients[3] == 2
    again = images_of(plot_examples(pictures[1], 3, seed=0))
    assert all((a == b).all() for (_, a), (_, b) in zip(shown, again, strict=True))
    with pytest.raises(ValueError, match='--examples'):
        plot_examples(replace(pictures[1], labels=0 * pictures[1].labels), 3, seed=0)


def test_figures_are_reproducible_and_name_no_patient(pictures) -> None:
    first, second = (encode_figure(plot_examples(pictures[1], 2, seed=1)) for _ in range(2))
    assert first == second and set(first) == {'.png', '.svg'}
    svg = first['.svg'].decode()
    assert 'Not for clinical use' in svg
    texts = re.findall(r'<text[^>]*>([^<]*)</text>', svg)
    assert 'Edema' in texts and not re.search(r'patient\d|study\d|view\d', svg)


def test_mimic_has_sex_and_age_by_its_demographics(tmp_path: Path) -> None:
    sizes = {'num_train': 12, 'num_valid': 3, 'num_test': 3, 'size': 32}
    mimic_phantom(tmp_path, **sizes)
    (metadata,) = tmp_path.glob('*-metadata.csv.gz')
    subjects = sorted(set(pd.read_csv(metadata)['subject_id']))
    table = pd.DataFrame({'subject_id': subjects, 'anchor_age': range(30, 30 + len(subjects))})
    table['gender'] = ['F', 'M'] * (len(subjects) // 2)
    table.to_csv(tmp_path / 'patients.csv', index=False)
    changes = {'DATA__DATASET': 'mimic-cxr', 'DATA__HOLDOUT_FRACTION': 0.0}
    without = build_description(options(tmp_path, **changes))
    counts = without.counts[without.counts['column'].isin(['Sex', 'Age'])]
    assert set(counts['group']) == {'unknown'}
    found = build_description(options(tmp_path, DATA__DEMOGRAPHICS='patients.csv', **changes))
    counts = found.counts.query('split == "train" and column == "Sex"')
    images = pd.read_csv(metadata).merge(table)
    (split,) = tmp_path.glob('*-split.csv.gz')
    images = images[images['dicom_id'].isin(pd.read_csv(split).query('split == "train"').dicom_id)]
    sexes = images['gender'].map({'F': 'Female', 'M': 'Male'})
    assert dict(counts[['group', 'images']].to_numpy()) == Counter(sexes)
    records = read_split(options(tmp_path, **changes), 'train', logging.getLogger())
    groups = all_groups(records, [], 'patients.csv')  # of a report
    assert Counter(groups['Sex']) == Counter(sexes)
    assert (groups['Age'] == '0-39').sum() == (images['anchor_age'] < 40).sum() > 0
    table['gender'] = 'W'
    table.to_csv(tmp_path / 'patients.csv', index=False)
    with pytest.raises(ValueError, match='patients.csv.*gender'):
        build_description(options(tmp_path, DATA__DEMOGRAPHICS='patients.csv', **changes))

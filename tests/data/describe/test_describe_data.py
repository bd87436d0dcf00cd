"""Describing a data set: its numbers against a loop over its rows, and by the script."""

import csv
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_files import HEADER, image_path, row, write
from PIL import Image
from tiny import ROOT, config_with, run_script

from config import Config
from data.describe.description import (
    SETS,
    TARGETS,
    UNITS,
    build_description,
    patient_table,
    save_description,
)
from data.describe.observations import MEANINGS
from data.tables.labels import LABELS, NO_FINDING

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


def test_counts_agree_with_a_loop_over_the_rows(mixed: Path) -> None:
    description = build_description(
        options(mixed, DATA__HOLDOUT_FRACTION=0.0, EVAL__GROUPS=['Site'])
    )
    bands = {'0': 'unknown', '25': '0-39', '45': '40-59', '65': '60-79', '85': '80 and over'}
    members = defaultdict(lambda: (set(), set(), set()))
    for split in ('train', 'valid', 'test'):
        with open(mixed / f'{split}.csv', newline='') as file:
            rows = [*csv.DictReader(file)]
        for cells in rows:
            study = cells['Path'].rpartition('/')[0]
            patient = study.rpartition('/')[0]
            # Values of the other images of the patient, and of the study.
            sexes = {row['Sex'] for row in rows if row['Path'].startswith(f'{patient}/')}
            ages = {row['Age'] for row in rows if row['Path'].startswith(f'{study}/')}
            sex = {*sexes} - {'Unknown'} if cells['Sex'] == 'Unknown' else {cells['Sex']}
            age = {*ages} - {'0'} if cells['Age'] == '0' else {cells['Age']}
            frontal = cells['Frontal/Lateral'] == 'Frontal'
            groups = {
                'All': 'All',
                'Sex': [*sex][0] if len(sex) == 1 else 'unknown',
                'Age': bands[[*age][0]] if len(age) == 1 else 'unknown',
                'View': 'Frontal AP' if frontal else 'Lateral',
                'Site': cells['Site'] or 'unknown',
            } | {label: KIND_OF_CELL[cells[label]] for label in LABELS}
            units = cells['Path'], study, patient
            for group in groups.items():
                for found, unit in zip(members[(split, *group)], units, strict=True):
                    found.add(unit)
    table = description.counts.set_index(['split', 'column', 'group'])[[*UNITS]]
    found = dict(zip(table.index, map(tuple, table.to_numpy().tolist()), strict=True))
    assert found == {key: tuple(map(len, units)) for key, units in members.items()}


@pytest.mark.parametrize('unknown', [{'Sex': 'Unknown'}, {'Age': ''}, {'Sex': '', 'Age': ''}])
def test_ages_count_the_images_of_a_split_without_sex_or_age(unknown, tmp_path: Path) -> None:
    for number, (split, cells) in enumerate({'train': {}, 'test': unknown}.items()):
        rows = [row(image_path(9 * number + n, folder=f'X/{split}'), **cells) for n in range(4)]
        write(tmp_path / f'{split}.csv', rows)
    ages = build_description(options(tmp_path, DATA__HOLDOUT_FRACTION=0.0)).ages
    sex, age = ('unknown' if name in unknown else known for name, known in
                (('Sex', 'Female'), ('Age', '40-59')))  # fmt: skip
    lines = ages[['split', 'age', 'sex', 'images']].to_numpy().tolist()
    assert lines == [['train', '40-59', 'Female', 4], ['test', age, sex, 4]]


def test_the_table_of_patients_has_each_group_of_each_split(mixed: Path, tmp_path: Path) -> None:
    description = build_description(
        options(mixed, DATA__HOLDOUT_FRACTION=0.0, EVAL__GROUPS=['Site'])
    )
    counts = description.counts.set_index(['split', 'column', 'group'])
    table = {line.pop(''): line for line in patient_table(description)}
    assert [*table][:3] == ['patients', 'studies', 'images']
    names = [name for name in description.counts['column'].unique() if name not in LABELS]
    assert {*[name.partition(': ')[0] for name in [*table][3:]]} == {*names} - {'All'}
    for (split, column, group), line in counts.iterrows():
        if column not in (*LABELS, 'All'):
            share = line['images'] / counts.loc[(split, 'All', 'All'), 'images']
            cell = table[f'{column}: {group}'][SETS[split]]
            assert cell == f'{line["images"]:,} ({share:.1%})'
    source = 'sex and age come from patients.csv where the data set has neither'
    save_description(replace(description, notes=[source]), tmp_path)
    pages = [(tmp_path / f'{name}.md').read_text() for name in ('patients', 'targets')]
    assert all(source in page for page in pages)
    assert ['targets: DATA.VIEWS' in page for page in pages] == [False, True]
    shown = sum(cell != '0' for line in [*table.values()][3:] for cell in line.values())
    assert shown == sum(column not in (*LABELS, 'All') for _, column, _ in counts.index)


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


def test_the_label_table_of_the_mimic_study_has_its_known_counts(tmp_path: Path, only_svg) -> None:
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

    assert run_script('describe_data', *words, '--examples', 2, '--opts', *opts) == 0
    targets, images = (
        pd.read_csv(tmp_path / 'out' / f'{name}.csv') for name in ('targets', 'images')
    )
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
    shares = targets.set_index('split')['positive share'].to_dict()
    assert shares == {'train': 0.25, 'valid': 0.25, 'test': 0.25, 'full': 0.25,
                      'sub-sample': positive / 10}  # fmt: skip
    assert images.columns.tolist() == ['image', 'Any Finding', 'split', 'sub-sample']
    label_table = (tmp_path / 'out' / 'targets.md').read_text().splitlines()
    assert label_table[0] == (
        '| set | label | images | 0 | share of 0 | 1 | share of 1 | left out |'
    )
    zeros = 10 - positive
    sample = f'10 | {zeros} | {zeros}0.0% | {positive} | {positive}0.0% | 0'
    assert label_table[2:7] == [
        '| full set | Any Finding | 40 | 30 | 75.0% | 10 | 25.0% | 0 |',
        f'| sub-sample | Any Finding | {sample} |',
        '| train | Any Finding | 32 | 24 | 75.0% | 8 | 25.0% | 0 |',
        '| validation | Any Finding | 8 | 6 | 75.0% | 2 | 25.0% | 0 |',
        '| test | Any Finding | 4 | 3 | 75.0% | 1 | 25.0% | 0 |',
    ]
    assert (
        r'full set & Any Finding & 40 & 30 & 75.0\% &'
        in (tmp_path / 'out' / 'targets.tex').read_text()
    )
    patients = (tmp_path / 'out' / 'patients.md').read_text()
    assert patients.startswith(
        '|  | train | validation | test |\n| --- | --- | --- | --- |\n'
        '| patients | 40 | 10 | 5 |\n| studies | 40 | 10 | 5 |\n| images | 40 | 10 | 5 |\n'
        '| View: Frontal AP | 32 (80.0%) | 8 (80.0%) | 4 (80.0%) |\n'
    ), 'without sex and age, which MIMIC-CXR-JPG does not have'
    assert patients.splitlines()[6] == '| View: Lateral | 8 (20.0%) | 2 (20.0%) | 1 (20.0%) |'
    assert r'images & 40 & 10 & 5 \\' in (tmp_path / 'out' / 'patients.tex').read_text()
    meanings = (tmp_path / 'out' / 'observations.md').read_text()
    assert meanings.count('\n| ') == 1 + len(LABELS) and 'Fleischner' in meanings
    assert {*MEANINGS} == {*LABELS}
    page = (ROOT / 'docs/explanation/policies.md').read_text()
    assert '\n'.join(f'| {name} | {text} |' for name, text in MEANINGS.items()) in page
    svg = (tmp_path / 'out' / 'examples.svg').read_text()
    texts = re.findall(r'<text[^>]*>([^<]*)</text>', svg)
    assert [text for text in texts if 'Finding' in text] == ['Any Finding', 'No Finding']
    assert not re.search(r'p10\d|s5\d\d|d\d+', ' '.join(texts)), 'a figure names no patient'

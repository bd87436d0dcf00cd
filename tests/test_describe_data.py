"""Describing a data set: against a loop over its rows; what is printed, saved and drawn."""

import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_files import HEADER, image_path, row, write
from grades import GRADES, add
from tiny import ROOT, config_with, run_script

from config import Config
from data.describe import (
    KINDS,
    TABLES,
    TARGETS,
    build_description,
    format_description,
    plot_groups,
)
from data.labels import LABELS
from data.phantom import make_phantom

K = len(LABELS)
KIND_OF_CELL = {'1.0': 'positive', '-1.0': 'uncertain', '0.0': 'negative', '': 'blank'}


def options(root: Path, **changes: object) -> Config:
    return config_with(DATA__DATA_PATH=str(root), DATA__DATASET='chexpert', **changes)


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
    expected = Counter()
    rank = {'blank': 0, 'negative': 1, 'uncertain': 2, 'positive': 3}
    for split in ('train', 'valid', 'test'):
        studies = {}
        with open(mixed / f'{split}.csv', newline='') as file:
            for cells in csv.DictReader(file):
                frontal = cells['Frontal/Lateral'] == 'Frontal'
                places = {
                    'All': 'All',
                    'Sex': cells['Sex'].replace('Unknown', 'unknown'),
                    'Age': bands[cells['Age']],
                    'View': 'Frontal AP' if frontal else 'Lateral',
                    'Site': cells['Site'] or 'unknown',
                }
                for place in places.items():
                    study = (place, cells['Path'].rpartition('/')[0])
                    for label in LABELS:
                        kind = KIND_OF_CELL[cells[label]]
                        expected[(split, 'image', *place, label, kind)] += 1
                        studies.setdefault((study, label), []).append(kind)
        for ((place, _), label), kinds in studies.items():
            expected[(split, 'study', *place, label, max(kinds, key=rank.get))] += 1
    found = {
        (*index, kind): count
        for kind in KINDS
        for index, count in description.counts.set_index(
            ['split', 'level', 'column', 'group', 'label']
        )[kind].items()
        if count
    }
    assert found == dict(expected)


def test_shares_of_the_splits(mixed: Path) -> None:
    description = build_description(options(mixed, DATA__HOLDOUT_FRACTION=0.1))
    table = description.splits.set_index('split')
    assert table['patients'].tolist() == [27, 3, 12, 15]
    np.testing.assert_allclose(table['of all patients'], np.array([27, 3, 12, 15]) / 57)
    for split in ('valid', 'test'):
        with open(mixed / f'{split}.csv', newline='') as file:
            paths = [cells['Path'] for cells in csv.DictReader(file)]
        assert table.loc[split, 'images'] == len(paths)
        assert table.loc[split, 'studies'] == len({path.rpartition('/')[0] for path in paths})
        assert table.loc[split, 'lateral'] == sum('lateral' in path for path in paths)
    for unit in ('images', 'studies'):
        np.testing.assert_allclose(table[f'of all {unit}'], table[unit] / table[unit].sum())
    assert (table['frontal'] + table['lateral'] == table['images']).all()


def test_ages_by_sex_agree_with_a_loop_over_the_rows(mixed: Path) -> None:
    description = build_description(options(mixed, DATA__HOLDOUT_FRACTION=0.0))
    expected = Counter()
    for split in ('train', 'valid', 'test'):
        with open(mixed / f'{split}.csv', newline='') as file:
            for cells in csv.DictReader(file):
                if cells['Age'] != '0':
                    expected[(split, cells['Sex'], int(cells['Age']))] += 1
    assert {tuple(row[:3]): row[3] for row in description.ages.values.tolist()} == dict(expected)


def test_stanfords_demographics_file_gives_race(mixed: Path) -> None:
    columns = ['PATIENT', 'GENDER', 'AGE_AT_CXR', 'PRIMARY_RACE', 'ETHNICITY']
    rows = [['patient00001', 'Female', 67, 'White', 'Non-Hispanic/Non-Latino']]
    pd.DataFrame(rows, columns=columns).to_excel(mixed / 'demo.xlsx', index=False)
    counts = build_description(options(mixed, DATA__DEMOGRAPHICS='demo.xlsx')).counts
    groups = counts[(counts['column'] == 'PRIMARY_RACE') & (counts['split'] == 'train + holdout')]
    assert set(groups['group']) == {'White', 'unknown'}


def test_the_figure_of_groups_shows_the_counts(mixed: Path, monkeypatch) -> None:
    """Ages, images by view, and the prevalence of each label by sex, against pandas."""
    monkeypatch.setattr('data.describe._png', lambda figure: figure)
    description = build_description(options(mixed, DATA__HOLDOUT_FRACTION=0.0))
    ages, views, by_sex, *_ = plot_groups(description).axes
    table = pd.read_csv(mixed / 'train.csv')
    heights = [bar.get_height() for group in ages.containers for bar in group]
    assert sum(heights) == (table['Age'] > 0).sum()
    sizes = table['Frontal/Lateral'].value_counts()
    names = [text.get_text() for text in views.get_yticklabels()]
    assert dict(zip(names, [bar.get_width() for bar in views.patches], strict=True)) == {
        'Frontal AP': sizes['Frontal'],
        'Lateral': sizes['Lateral'],
    }
    female, labels = table[table['Sex'] == 'Female'], list(LABELS)
    [line] = [line for line in by_sex.lines if line.get_label() == f'Female ({len(female)})']
    expected = 100 * (female[labels] == 1).mean()
    assert list(line.get_ydata()) == labels
    np.testing.assert_allclose(np.asarray(line.get_xdata(), float), expected)
    unknown = replace(description, ages=description.ages[:0])
    assert not plot_groups(unknown).axes[0].patches


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


def test_targets_of_a_binary_task(mixed: Path) -> None:
    changes = {'DATA__VIEWS': 'all', 'DATA__TASK': 'effusion', 'DATA__HOLDOUT_FRACTION': 0.0}
    config = options(mixed, **changes)
    table = build_description(config).targets.set_index('split')
    assert list(table.index) == ['train', 'valid', 'test']
    for split, found in table.iterrows():
        with open(mixed / f'{split}.csv', newline='') as file:
            rows = list(csv.DictReader(file))
        positive = sum(cells['Pleural Effusion'] == '1.0' for cells in rows)
        negative = sum(
            cells['Pleural Effusion'] != '1.0' and cells['No Finding'] == '1.0' for cells in rows
        )
        assert (found['positive'], found['negative']) == (positive, negative)
        rest = len(rows) - positive - negative
        assert rest > 0 and found['soft'] == 0
        # Images that say nothing are no training images, and are not scored.
        assert found['left out'] == (0 if split == 'train' else rest)


# ---- the script


def test_the_script_saves_tables_and_a_figure(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (mixed / 'some.yaml').write_text('DATA:\n  UNCERTAIN: zeros\n')
    (mixed / 'demo.csv').write_text('PATIENT,RACE\npatient00001,White\n')
    out = tmp_path / 'new' / 'out'

    def run(*options: str) -> int:
        return run_script('describe_data', '--data-path', mixed, '--output', out, *options)

    more = ['DATA.BLANK', 'ignore', 'EVAL.GROUPS', "['RACE', 'Site']", 'DATA.DEMOGRAPHICS']
    assert run('--cfg', str(mixed / 'some.yaml'), '--opts', *more, 'demo.csv') == 0
    saved = json.loads((out / 'description.json').read_text())
    assert {record['policy'] for record in saved['targets']} == {'zeros'}
    assert {r['group'] for r in saved['counts'] if r['column'] == 'RACE'} == {'White', 'unknown'}
    for name in TABLES:
        with open(out / f'{name}.csv', newline='') as file:
            rows = list(csv.DictReader(file))
        assert rows == [{k: str(v) for k, v in record.items()} for record in saved[name]]
    assert (out / 'labels.png').stat().st_size > 10_000
    capsys.readouterr()
    assert run('--opts', 'EVAL.GROUPS', "['Race']") == 2
    assert 'EVAL.GROUPS' in capsys.readouterr().err


@pytest.mark.parametrize('task', ['regression', GRADES])
def test_numbers_are_refused_and_not_counted_as_marks(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    add(monkeypatch)
    with pytest.raises(ValueError, match=f'DATA.TASK must be .* not numbers.* got {task!r}'):
        build_description(options(mixed, DATA__TASK=task, DATA__LABELS=['Edema']))


def test_mimic_is_found_and_counted_without_its_images(tmp_path: Path) -> None:
    sizes = {'num_train': 12, 'num_valid': 3, 'num_test': 3, 'size': 32}
    make_phantom(tmp_path / 'all', layout='mimic-cxr', **sizes)
    (tmp_path / 'tables').mkdir()
    for file in (tmp_path / 'all').glob('mimic-cxr-*'):
        shutil.copy(file, tmp_path / 'tables')
    words = ['--data-path', tmp_path / 'tables', '--output', tmp_path / 'out']
    assert run_script('describe_data', *words, '--opts', 'DATA.TASK', 'any_finding') == 0
    saved = json.loads((tmp_path / 'out' / 'description.json').read_text())
    files = (tmp_path / 'all').glob('mimic-cxr-*-split.csv*')
    wanted = pd.concat(map(pd.read_csv, files))['split'].value_counts()
    found = {record['split']: record['images'] for record in saved['splits']}
    assert found['train'] + found['holdout'] == wanted['train']
    assert found['valid'] == wanted['validate'] and found['test'] == wanted['test']
    assert {(r['split'], r['label']) for r in saved['targets']} == {
        (split, 'Any Finding') for split in ('train', 'holdout', 'valid', 'test')
    }


def test_the_label_table_of_a_study_counts_the_targets_of_each_split(tmp_path: Path) -> None:
    sizes = {'num_train': 60, 'num_valid': 20, 'num_test': 3, 'size': 32}
    make_phantom(tmp_path / 'data', layout='mimic-cxr', **sizes)
    words = ['--data-path', tmp_path / 'data', '--output', tmp_path / 'out', '--cfg']
    words += [ROOT / 'configs/study_mae_resnet/simmim_finetune__resnet18__img224__mae_resnet.yaml']
    assert run_script('describe_data', *words, '--opts', 'DATA.HOLDOUT_FRACTION', '0') == 0
    found = pd.read_csv(tmp_path / 'out' / 'targets.csv').set_index('split')
    split, metadata, labels = (
        pd.read_csv(next((tmp_path / 'data').glob(f'mimic-cxr-*-{kind}.csv*')))
        for kind in ('split', 'metadata', 'negbio')
    )
    images = split.merge(metadata[['dicom_id', 'ViewPosition']]).merge(labels)
    images = images[images['ViewPosition'].isin(['AP', 'PA'])]
    findings = [label for label in LABELS if label != 'No Finding']
    for own, name in (('train', 'train'), ('valid', 'validate'), ('test', 'test')):
        part = images[images['split'] == name]
        positive = (part[findings] == 1).any(axis=1).sum()
        negative = ((part['No Finding'] == 1) & ~(part[findings] == 1).any(axis=1)).sum()
        assert found.loc[own, ['positive', 'negative']].tolist() == [positive, negative]
        share = positive / (positive + negative)
        assert found.loc[own, 'positive share'] == pytest.approx(share)
        assert found.loc[own, 'negative share'] == pytest.approx(1 - share)


def test_a_folder_without_labels_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ['--data-path', tmp_path, '--output', tmp_path / 'out']
    assert run_script('describe_data', *words) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error and 'DATA.DATASET' in error


def test_an_output_that_cannot_be_written_is_named_and_nothing_is_left(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture, full_disk
) -> None:
    def run(output: Path) -> int:
        return run_script('describe_data', '--data-path', mixed, '--output', output)

    (tmp_path / 'file').write_text('')
    assert run(tmp_path / 'file') == 2
    assert str(tmp_path / 'file') in capsys.readouterr().err
    with full_disk():
        assert run(tmp_path / 'out') == 2
    assert str(tmp_path / 'out' / 'counts.csv') in capsys.readouterr().err
    assert not list((tmp_path / 'out').iterdir())


def test_labels_without_a_mention_are_named_once_a_table(tmp_path: Path) -> None:
    rows = [row(image_path(patient), Edema='1.0', Fracture='0.0') for patient in range(9)]
    write(tmp_path / 'train.csv', rows, HEADER)
    description = build_description(options(tmp_path, DATA__BLANK='ignore'))
    blocks = format_description(description).split('\n\n')
    tables = [block.splitlines() for block in blocks if ' level\n' in block]
    assert len(tables) == 6
    for lines in tables:
        assert [line.split()[0] for line in lines[2:4]] == ['Edema', 'Fracture']
        below = ' '.join(lines[4:])
        assert [name in below for name in LABELS] == [
            name not in ('Edema', 'Fracture') for name in LABELS
        ]
    assert set(description.counts['label']) == set(LABELS)

"""The data check: planted faults are found, each once, and nothing else; the script."""

import csv
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csv_files import write
from mistakes import edit
from PIL import Image
from planted_faults import AGE, LABEL, SEX, Plant, plant_all, plant_in_rows

import data.check


def test_nothing_is_found_in_clean_phantoms(clean_phantom: Path, check: Callable) -> None:
    assert check(clean_phantom) == (0, [])


def test_every_planted_fault_is_found_and_nothing_else(
    spoilt: Path, tmp_path: Path, check: Callable
) -> None:
    plant = plant_all(spoilt, tmp_path / 'outside.png')
    code, found = check(spoilt)
    assert code == 1
    assert sorted(found, key=str) == sorted(plant.expected, key=str)
    assert plant.count >= 30
    assert len({kind for kind, *_ in found}) >= 30


def test_real_x_rays_hold_one_picture_twice(nih1000: Path, check: Callable) -> None:
    file = 'train/patient02658/study2/view1_frontal.png'  # as study 1, to the byte
    assert check(nih1000) == (0, [('same pixels', 'train.csv', 313, file)])


@pytest.mark.slow
def test_every_fault_planted_in_real_x_rays_is_found(
    nih1000: Path, tmp_path: Path, check: Callable, capsys: pytest.CaptureFixture
) -> None:
    root = Path(shutil.copytree(nih1000, tmp_path / nih1000.name))
    before = check(root)[1]
    plant = plant_all(root, tmp_path / 'outside.png')
    found = check(root)[1]
    assert sorted(found, key=str) == sorted([*plant.expected, *before], key=str)
    assert plant.count >= 30
    assert 'images/s' in capsys.readouterr().out


def test_the_list_does_not_depend_on_the_number_of_workers(
    spoilt: Path, tmp_path: Path, script: Callable[..., int]
) -> None:
    plant = Plant(spoilt)
    plant_in_rows(plant)
    plant.write(b'')
    lists = [tmp_path / f'{workers}.csv' for workers in (1, 3)]
    for output in lists:
        assert script('--data-path', spoilt, '--output', output, '--workers', output.stem) == 1
    assert lists[0].read_bytes() == lists[1].read_bytes()


def test_cells_cannot_become_formulas(spoilt: Path, check: Callable, tmp_path: Path) -> None:
    header, first = (spoilt / 'train.csv').read_text().splitlines()[:2]
    cells = first.split(',')
    write(spoilt / 'test.csv', [dict(zip(header.split(','), ['=A1+1', *cells[1:]], strict=True))])
    assert check(spoilt)[1] == [('form of a path', 'test.csv', 2, "'=A1+1")]
    assert "'=A1+1" in (tmp_path / 'lists' / 'problems.csv').read_text()


def test_the_summary_counts_and_has_three_examples(
    spoilt: Path, check: Callable, capsys: pytest.CaptureFixture
) -> None:
    def change(rows: list[list[str]]) -> None:
        for cells in rows[1:6]:
            cells[SEX] = 'a\x1b[2J'

    edit(spoilt / 'train.csv', change)
    Image.new('L', (80, 80)).save(spoilt / 'a\x1b[2J.png')
    assert len(check(spoilt)[1]) == 6
    printed = capsys.readouterr().out
    assert 'error: value of the sex: 5\n' in printed
    assert [f'row {n}:' in printed for n in range(2, 7)] == [True] * 3 + [False] * 2
    assert '\x1b' not in printed
    assert re.search(r'errors 5, warnings \d+, notes 1\n', printed)


def test_a_file_of_studies_is_checked(spoilt: Path, check: Callable) -> None:
    with (spoilt / 'valid.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    studies = sorted({cells['Path'].rsplit('/', 1)[0] for cells in rows})
    labels = {name: '' for name in list(rows[0])[5:]}
    header = ['Study', *labels]
    named = [{'Study': study, **labels} for study in studies]
    write(spoilt / 'valid.csv', named, header)
    assert check(spoilt) == (0, [])
    first = spoilt / studies[0].partition('/')[2]
    Path(next(first.iterdir())).rename(first / 'noview.jpg')
    named[1] |= {'Edema': 'x'}
    gone = {'Study': f'{studies[0].rsplit("/", 1)[0]}/study88', **labels}
    write(spoilt / 'valid.csv', [*named, named[2], gone], header)
    assert sorted(check(spoilt)[1]) == [
        ('duplicate row', 'valid.csv', len(named) + 2, studies[2]),
        ('missing image', 'valid.csv', len(named) + 3, gone['Study']),
        ('value of a label', 'valid.csv', 3, studies[1]),
        ('value of the view', 'valid.csv', 2, studies[0]),
    ]


def test_faults_of_whole_files(spoilt: Path, check: Callable) -> None:
    (spoilt / 'train.csv').write_bytes(b'Path,\0')
    (spoilt / 'valid.csv').unlink()
    (spoilt / 'other.csv').write_text('')
    assert check(spoilt, '--test-csv', 'other.csv', '--dataset', 'chexpert')[1] == [
        ('unreadable CSV', 'train.csv', None, ''),
        ('missing file', 'valid.csv', None, ''),
        ('empty CSV', 'other.csv', None, ''),
    ]


def test_faults_in_mimic(clean_mimic: Path, tmp_path: Path, check: Callable) -> None:
    assert check(clean_mimic) == (0, [])
    root = Path(shutil.copytree(clean_mimic, tmp_path / 'MIMIC'))
    split, metadata, labels = (
        next(root.glob(f'mimic-cxr-*-{kind}.csv*')) for kind in ('split', 'metadata', 'chexpert')
    )
    tables = {
        file: pd.read_csv(file, dtype=str, na_filter=False) for file in (split, metadata, labels)
    }
    images, others, cells = tables.values()
    ids = images.loc[images['split'] == 'train', 'dicom_id'].tolist()
    several = images['study_id'].duplicated(keep=False) & (images.index > 5)
    last = int(np.argmax(several))
    assert several[last]
    file = 'files/p{0:.2}/p{0}/s{1}/{2}.jpg'.format
    gone = file(*images.loc[1, ['subject_id', 'study_id', 'dicom_id']])
    (root / gone).unlink()
    images.loc[len(images)] = images.loc[0]
    images.loc[len(images)] = images.loc[0].replace({'train': 'no split', ids[0]: 'new'})
    images.loc[len(images)] = images.loc[0].replace({ids[0]: '../x'})
    others.loc[0, 'study_id'] = '1'
    others = others[others['dicom_id'] != ids[2]]
    study = images.loc[last, 'study_id']
    cells.loc[0, 'Edema'] = '3'
    place = cells.index[cells['study_id'] == study][0]
    cells = cells.drop(index=place)
    for path, table in zip(tables, (images, others, cells), strict=True):
        table.to_csv(path, index=False)
    found = check(root)[1]
    expected = [
        ('duplicate row', split.name, len(images) - 1, ids[0]),
        ('value of the split', split.name, len(images), 'new'),
        ('form of an id', split.name, len(images) + 1, '../x'),
        ('ids that differ', metadata.name, 2, ids[0]),
        ('missing row', split.name, 4, ids[2]),
        ('value of a label', labels.name, 2, cells['study_id'].iloc[0]),
        ('missing image', split.name, 3, gone),
    ]
    first = images.index[images['study_id'] == study][0]
    expected.append(('study without labels', split.name, first + 2, images.loc[first, 'dicom_id']))
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize(
    'arguments, part',
    [
        (['--data-path', 'nowhere'], 'no folder: nowhere'),
        (['--output', '{root}/x.csv'], 'must lie outside'),
        (['--opts', 'DATA.NO', '1'], 'DATA.NO'),
        (['--image-suffix', 'png'], 'DATA.IMAGE_SUFFIX'),
        (['--labeller', 'me'], 'DATA.LABELLER'),
    ],
)
def test_wrong_calls_end_with_2(
    clean_phantom: Path, tmp_path: Path, script: Callable, capsys: pytest.CaptureFixture,
    arguments: list[str], part: str,
) -> None:  # fmt: skip
    given = [argument.format(root=clean_phantom) for argument in arguments]
    assert script('--data-path', clean_phantom, '--output', tmp_path / 'p.csv', *given) == 2
    assert part in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_check_that_is_stopped_leaves_the_older_list(
    clean_phantom: Path, tmp_path: Path, script: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / 'p.csv').write_text('older')
    monkeypatch.setattr(data.check, 'look_at_all', stop)
    assert script('--data-path', clean_phantom, '--output', tmp_path / 'p.csv') == 130
    assert [path.read_text() for path in tmp_path.iterdir()] == ['older']


def test_a_wrong_row_does_not_hide_others(spoilt: Path, check: Callable) -> None:
    def change(rows: list[list[str]]) -> None:
        rows[0][SEX] = 'Gender'
        for cells in rows[1:]:
            cells[LABEL] = '7'
            cells[AGE] = ''

    edit(spoilt / 'train.csv', change)
    num_rows = len((spoilt / 'train.csv').read_text().splitlines()) - 1
    counts = Counter(kind for kind, *_ in check(spoilt)[1])
    assert counts == {
        'missing column': 1,
        'value of a label': num_rows,
        'value of the age': num_rows,
    }

"""The phantom in MIMIC-CXR-JPG's layout: read back, deterministic, refused where it should be."""

import gzip
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_mimic import OBSERVATIONS, touch

from data.labels import LABELS
from data.phantom import make_phantom, make_phantom_mimic, make_rows
from data.records import read_mimic, select_views, split_holdout, take_subset

ROOT = Path(__file__).resolve().parents[1]

SMALL = {'num_train': 60, 'num_valid': 6, 'num_test': 5, 'seed': 3}


@pytest.fixture(scope='module')
def phantom_mimic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('phantom') / 'MIMIC-phantom'
    make_phantom_mimic(folder, size=32, **SMALL)
    return folder


def drawn_rows(split: str) -> pd.DataFrame:
    """CheXpert's rows with the same seed, with the number of patient and study."""
    rows = make_rows(SMALL[f'num_{split}'], split, SMALL['seed'])
    return rows.assign(patient=rows['Path'].str.split('/').str[2].str[-5:].astype(int))


def test_the_phantom_read_back_is_what_chexperts_rows_say(phantom_mimic: Path) -> None:
    offset = 0
    for split, name in (('train', 'train'), ('valid', 'validate'), ('test', 'test')):
        rows = drawn_rows(split)
        records = read_mimic(phantom_mimic, name, labeller='chexpert')
        kept = rows.iloc[records.row - offset]
        study = rows['Path'].str.rsplit('/', n=1).str[0]
        if split == 'train':  # the last study has no label row
            assert len(rows) >= 100
            assert len(rows) - len(records) == (study == study.iloc[-1]).sum()
            assert 0 < (records.view == '').sum() < 0.1 * len(records)
        else:
            assert len(rows) == len(records) and (records.view != '').all()
        np.testing.assert_array_equal(records.labels, kept[list(LABELS)].to_numpy(np.float32))
        patients = [f'p{10_000_000 + 100 * number}' for number in kept['patient']]
        assert records.patient.tolist() == patients
        known = records.view != ''
        assert (records.view[known] == kept['Frontal/Lateral'].str.lower()[known]).all()
        assert (
            pd.factorize(records.study)[0].tolist() == pd.factorize(study[kept.index])[0].tolist()
        )
        assert all((phantom_mimic / file).is_file() for file in records.file)
        offset += len(rows)
    assert len(list(phantom_mimic.rglob('*.jpg'))) == offset


def test_the_phantoms_pictures_are_chexperts(phantom_mimic: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'CheXpert-phantom'
    make_phantom(folder, size=32, **SMALL | {'num_train': 3})
    records = read_mimic(phantom_mimic, 'train', labeller='chexpert')
    paths = make_rows(3, 'train', SMALL['seed'])['Path'].str.partition('/')[2]
    assert len(paths) > 3
    for path, file in zip(paths, records.file[: len(paths)], strict=True):
        assert (folder / path).read_bytes() == (phantom_mimic / file).read_bytes()
    with Image.open(phantom_mimic / records.file[0]) as image:
        assert image.format == 'JPEG' and max(image.size) == 32


def test_the_phantoms_files_have_the_published_columns(phantom_mimic: Path) -> None:
    def header(kind: str) -> list[str]:
        with gzip.open(phantom_mimic / f'mimic-cxr-2.0.0-{kind}.csv.gz', 'rt') as file:
            return file.readline().strip().split(',')

    assert header('chexpert') == header('negbio') == ['subject_id', 'study_id', *OBSERVATIONS]
    assert header('split') == ['dicom_id', 'study_id', 'subject_id', 'split']
    assert header('metadata') == ['dicom_id', 'subject_id', 'study_id', 'ViewPosition']
    positions = pd.read_csv(phantom_mimic / 'mimic-cxr-2.0.0-metadata.csv.gz')['ViewPosition']
    assert set(positions.dropna()) == {'AP', 'PA', 'LATERAL', 'LL'} and positions.isna().any()


def test_negbio_differs_in_a_few_uncertain_and_negative_cells(phantom_mimic: Path) -> None:
    ours, theirs = (
        np.nan_to_num(read_mimic(phantom_mimic, 'train', labeller=name).labels, nan=9)
        for name in ('chexpert', 'negbio')
    )
    changed = ours != theirs
    assert 0.15 < changed[ours == -1].mean() < 0.35 and (theirs[changed & (ours == -1)] == 1).all()
    assert 0.01 < changed[ours == 0].mean() < 0.12 and (theirs[changed & (ours == 0)] == 9).all()
    assert not changed[(ours == 1) | (ours == 9)].any()


def test_subsets_and_holdout_are_by_patient_nested_and_seeded(tmp_path: Path) -> None:
    make_phantom_mimic(tmp_path, rows=4000, num_valid=1, num_test=1, size=0, seed=1)
    split = pd.read_csv(tmp_path / 'mimic-cxr-2.0.0-split.csv.gz', dtype=str).iloc[0]
    patient, study = f'p{split.subject_id}', f's{split.study_id}'
    touch(tmp_path, f'files/p10/{patient}/{study}/{split.dicom_id}.jpg')
    records = read_mimic(tmp_path, 'train', labeller='chexpert')
    train, holdout = split_holdout(records, 0.1)
    assert not set(train.patient) & set(holdout.patient)
    train = select_views(train, 'frontal')
    subsets = {
        (count, seed): take_subset(train, fraction=1, images=count, seed=seed)
        for count in (100, 1000, 2000)
        for seed in (0, 1)
    }
    for (count, _), subset in subsets.items():
        assert len(subset) == count
        # All images of each patient but perhaps of one.
        whole = pd.Series(train.patient).value_counts()
        part = pd.Series(subset.patient).value_counts()
        assert (part < whole[part.index]).sum() <= 1
    rows = {key: set(subset.row.tolist()) for key, subset in subsets.items()}
    assert rows[100, 0] < rows[1000, 0] < rows[2000, 0]
    again = take_subset(train, fraction=1, images=1000, seed=0)
    assert set(again.row.tolist()) == rows[1000, 0] != rows[1000, 1]


def test_a_finished_phantom_is_kept_and_another_layout_refused(
    phantom_mimic: Path, tmp_path: Path
) -> None:
    made = make_phantom_mimic(phantom_mimic, size=32, **SMALL)
    found = json.loads((phantom_mimic / 'phantom.json').read_text())
    assert made['drawn'] == 0 and made['images'] == found['images']
    with pytest.raises(ValueError, match='another folder'):
        make_phantom(phantom_mimic, size=32, **SMALL)
    with pytest.raises(ValueError, match='another folder'):
        make_phantom_mimic(phantom_mimic, size=32, **SMALL | {'seed': 4})
    with pytest.raises(ValueError, match='size must be 0 or between .* 5000'):
        make_phantom_mimic(tmp_path / 'x', size=5000)
    make_phantom_mimic(tmp_path / 'again', size=0, **SMALL)
    first, again = (
        {file.name: file.read_bytes() for file in folder.glob('*.gz')}
        for folder in (phantom_mimic, tmp_path / 'again')
    )
    assert first == again and len(first) == 4


def test_the_script_writes_either_layout(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    script = runpy.run_path(str(ROOT / 'scripts/make_phantom.py'))
    options = ['--train', '2', '--valid', '1', '--test', '0', '--size', '32', '--workers', '1']
    layout = ['--layout', 'mimic-cxr']
    given = ['--output', str(tmp_path / 'm'), *options, *layout]
    assert script['main'](script['parse_args'](given)) == 0
    assert 'rows train 5, validate 2, test 0' in capsys.readouterr().out
    assert len(read_mimic(tmp_path / 'm', 'validate', labeller='negbio')) == 2
    given = ['--output', str(tmp_path / 'c'), *options]
    assert script['main'](script['parse_args'](given)) == 0
    assert (tmp_path / 'c/train.csv').is_file()
    with pytest.raises(SystemExit):
        script['parse_args']([*given, *layout, '--contact-sheet', 'sheet.png'])
    assert '--contact-sheet needs --layout chexpert' in capsys.readouterr().err


def test_reading_needs_no_torch() -> None:
    code = "import sys, data.mimic, data.phantom_mimic; sys.exit('torch' in sys.modules)"
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-c', code]
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0

"""docs/howto/own_data.md: its lines of pandas make of a flat export what the project reads."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import ROOT, run_script

from data.chexpert import read_csv
from data.labels import LABELS

PAGE = ROOT / 'docs' / 'howto' / 'own_data.md'
NUM_PATIENTS = 20
FINDINGS = ('effusion|enlarged heart', 'normal', 'effusion', '')
NAMES = {'Pleural Effusion': 'effusion', 'Cardiomegaly': 'enlarged heart', 'No Finding': 'normal'}


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """A made-up export in the current folder: of every patient two images, some cells blank."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / 'export' / 'images').mkdir(parents=True)
    rows = []
    for i in range(2 * NUM_PATIENTS):
        pixels = rng.integers(0, 256, (70, 80), dtype=np.uint8)
        Image.fromarray(pixels).save(f'export/images/x{i}.png')
        person = i % NUM_PATIENTS
        sex, age = ('F', 'M', '')[person % 3], '' if person == 4 else 30 + person
        rows.append((f'x{i}.png', f'P-{900 - person}', sex, age, FINDINGS[i % 4]))
    table = pd.DataFrame(rows, columns=['file', 'patient', 'sex', 'age', 'findings'])
    table.to_csv('export/table.csv', index=False)
    return table


def test_the_page_makes_a_data_set_of_a_flat_export(export, capsys):
    (block,) = re.findall(r'^```python\n(.*?)^```', PAGE.read_text(encoding='utf-8'), re.M | re.S)
    exec(compile(block, str(PAGE), 'exec'), {})
    splits = {name: read_csv('MyHospital', f'{name}.csv') for name in ('train', 'valid', 'test')}
    patients = {name: set(records.patient) for name, records in splits.items()}
    assert {name: len(each) for name, each in patients.items()} == {
        'train': NUM_PATIENTS * 8 // 10, 'valid': NUM_PATIENTS // 10, 'test': NUM_PATIENTS // 10,
    }  # fmt: skip
    assert len(set.union(*patients.values())) == NUM_PATIENTS
    origin = {Path('export/images', file).stat().st_ino: file for file in export['file']}
    rows, seen = export.set_index('file'), set()
    for name, records in splits.items():
        for i, file in enumerate(records.file):
            assert file.startswith(f'{name}/') and records.view[i] == 'frontal'
            source = origin[Path('MyHospital', file).stat().st_ino]  # a hard link
            row = rows.loc[source]
            seen.add((source, records.patient[i], row['patient']))
            sex = {'F': 'Female', 'M': 'Male', '': 'Unknown'}[row['sex']]
            assert (records.sex[i], records.age[i]) == (sex, row['age'] or 0)
            for label, value in zip(LABELS, records.labels[i], strict=True):
                if label in NAMES:
                    assert value == (NAMES[label] in row['findings'].split('|'))
                else:
                    assert np.isnan(value)
    assert len(seen) == len(export)
    assert len({pair[1:] for pair in seen}) == NUM_PATIENTS, 'a number is one patient'
    words = ['--data-path', 'MyHospital', '--output', 'problems.csv', '--workers', '1']
    assert run_script('check_data', *words) == 0
    assert 'errors 0, ' in capsys.readouterr().out

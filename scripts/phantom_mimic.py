"""Synthetic chest X-rays in the layout of MIMIC-CXR-JPG: CheXpert's phantom with other names."""

import json
import shutil
from pathlib import Path

import pandas as pd

from data.tables.labels import LABELS
from scripts.phantom import SETTINGS_FILE, SPLITS, make_phantom
from system.files import replace_file

LAYOUT = {'layout': 'mimic-cxr'}
DRAWN = 'phantom'  # folder of the phantom before its files are renamed


def make_mimic_phantom(output: str | Path, **options: float) -> dict:
    """Write a phantom in the layout of MIMIC-CXR-JPG 2.0.0 into a folder.

    Both labellers agree, and there are no demographics, as in MIMIC-CXR-JPG itself.

    Args:
        output: Empty or absent folder, or the folder of a finished phantom of this layout.
        options: Options of `make_phantom`.

    Returns:
        The same as `make_phantom`.

    Raises:
        ValueError: If an option is not allowed, or if the folder has other contents.
    """
    root = Path(output).resolve()
    file = root / SETTINGS_FILE
    found = json.loads(file.read_text()) if file.is_file() else {}
    if found.get('layout') == LAYOUT['layout']:
        return found | {'drawn': 0}
    if root.exists() and any(root.iterdir()):
        raise ValueError(f'{root} must be empty, absent or a phantom in the layout of MIMIC-CXR')
    made = make_phantom(root / DRAWN, **options)
    tables = [pd.read_csv(root / DRAWN / f'{split}.csv').assign(split=split) for split in SPLITS]
    table = pd.concat(tables, ignore_index=True)
    numbers = table['Path'].str.extract(r'/patient(\d+)/study(\d+)/').astype(int)
    table['subject_id'] = (10_000_000 + 100 * numbers[0]).astype(str)
    table['study_id'] = (50_000_000 + 100 * numbers[0] + numbers[1]).astype(str)
    # The names of the images tell every later tool that they are phantoms (`are_synthetic`).
    table['dicom_id'] = [f'phantom-{number:08x}' for number in range(len(table))]
    table['ViewPosition'] = table['AP/PA'].fillna('LATERAL')
    table['split'] = table['split'].replace('valid', 'validate')
    patients, studies = table['subject_id'], table['study_id']
    folders = 'files/p' + patients.str[:2] + '/p' + patients + '/s' + studies + '/'
    for path, name in zip(table['Path'], folders + table['dicom_id'] + '.jpg', strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / path).rename(root / name)
    shutil.rmtree(root / DRAWN)
    labels = table.drop_duplicates('study_id')[['subject_id', 'study_id', *sorted(LABELS)]]
    files = {
        'metadata': table[['dicom_id', 'subject_id', 'study_id', 'ViewPosition']],
        'split': table[['dicom_id', 'study_id', 'subject_id', 'split']],
        'chexpert': labels,
        'negbio': labels,
    }
    for kind, rows in files.items():
        rows.to_csv(root / f'mimic-cxr-2.0.0-{kind}.csv.gz', index=False)
    replace_file(file, json.dumps(made | LAYOUT, indent=1) + '\n')
    return made

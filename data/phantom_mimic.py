"""Synthetic chest X-rays in MIMIC-CXR-JPG's layout: the pictures and labels of data/phantom.py."""

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd

from data.labels import LABELS
from data.phantom import SETTINGS_FILE, SIZES, draw_all, finished
from data.phantom_rows import FIRST_PATIENT, SPLITS, sample_rows

SPLIT_NAMES = {'train': 'train', 'valid': 'validate', 'test': 'test'}
VERSION = '2.0.0'
IDS = ['dicom_id', 'subject_id', 'study_id']
NO_POSITION = 0.04  # share of training images whose ViewPosition is empty
# NegBio's labels: CheXpert's, but for these shares of the uncertain and of the negative ones.
UNCERTAIN_TO_POSITIVE, NEGATIVE_TO_BLANK = 0.25, 0.05


def make_phantom_mimic(
    output: str | Path,
    *,
    num_train: int = 700,
    num_valid: int = 100,
    num_test: int = 300,
    seed: int = 0,
    workers: int = 1,
    size: int = 390,
    rows: int | None = None,
) -> dict:
    """Write the CSV files and images of a MIMIC-CXR-JPG of phantoms into a folder.

    With the same arguments, pictures and CheXpert's labels are those of `make_phantom`, image by
    image. A few training images have no ViewPosition; from 100 training images on, the last
    training study has no row in the label files.

    Args:
        output: folder, empty or absent.
        num_train: patients (about 3.5 images each).
        num_valid: patients (one study, about 1.2 images each).
        num_test: as `num_valid`.
        seed: of everything.
        workers: processes that draw; what they draw does not depend on their number.
        size: long side of the images in pixels; 0 writes the CSV files alone.
        rows: exact number of training images, in place of `num_train`.

    Returns:
        What phantom.json holds, and 'drawn' (images drawn by this call) and 'seconds'.

    Raises:
        ValueError: if the folder holds anything but this very phantom, finished.
    """
    if size and not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f'size must be 0 or between {SIZES[0]} and {SIZES[1]}, got {size}')
    start, output = time.perf_counter(), Path(output).resolve()
    patients = {'train': None if rows else num_train, 'validate': num_valid, 'test': num_test}
    settings = {'layout': 'mimic-cxr', 'patients': patients, 'rows': rows}
    settings |= {'seed': seed, 'size': size}
    if (found := finished(output, settings)) is not None:
        return found | {'drawn': 0, 'seconds': time.perf_counter() - start}
    output.mkdir(parents=True, exist_ok=True)
    tables, images = [], 0
    for split in SPLITS:
        limit = rows if split == 'train' else None
        table = sample_rows(patients[SPLIT_NAMES[split]], split, seed, limit, output.name)
        tables.append(_with_names(table, split, seed, output.name))
        if size:
            images += draw_all(tables[-1], output, (SPLITS.index(split), seed, size), workers)
    _write_files(pd.concat(tables, ignore_index=True), output, seed)
    counts = {SPLIT_NAMES[split]: len(t) for split, t in zip(SPLITS, tables, strict=True)}
    done = settings | {'images': counts}
    temporary = output / (SETTINGS_FILE + '.tmp')
    temporary.write_text(json.dumps(done, indent=1) + '\n')
    os.replace(temporary, output / SETTINGS_FILE)
    return done | {'drawn': images, 'seconds': time.perf_counter() - start}


def _with_names(table: pd.DataFrame, split: str, seed: int, name: str) -> pd.DataFrame:
    """Add MIMIC-CXR-JPG's columns, and put its paths in place of CheXpert's."""
    patient = FIRST_PATIENT[split] + table['index']
    table['subject_id'] = (10_000_000 + 100 * patient).astype(str)
    table['study_id'] = (50_000_000 + 100 * patient + table['study']).astype(str)
    table['dicom_id'] = [_dicom_id(seed, path.partition('/')[2]) for path in table['Path']]
    table['split'] = SPLIT_NAMES[split]
    lateral = np.where(table['study'] % 2, 'LATERAL', 'LL')
    frontal = table['Frontal/Lateral'] == 'Frontal'
    position = np.where(frontal, table['projection'], lateral)
    missing = np.random.default_rng([6, SPLITS.index(split), seed]).random(len(table)) < NO_POSITION
    table['ViewPosition'] = np.where(missing & (split == 'train'), '', position)
    table['Path'] = (
        f'{name}/files/p' + table['subject_id'].str[:2] + '/p' + table['subject_id']
        + '/s' + table['study_id'] + '/' + table['dicom_id'] + '.jpg'
    )  # fmt: skip
    return table


def _dicom_id(seed: int, path: str) -> str:
    """Five groups of eight hexadecimal digits, as MIMIC-CXR-JPG's files are named."""
    digits = hashlib.blake2b(f'{seed} {path}'.encode(), digest_size=20).hexdigest()
    return '-'.join(digits[start : start + 8] for start in range(0, 40, 8))


def _write_files(table: pd.DataFrame, output: Path, seed: int) -> None:
    _write(table[[*IDS, 'ViewPosition']], output, 'metadata')
    _write(table[['dicom_id', 'study_id', 'subject_id', 'split']], output, 'split')
    studies = table.drop_duplicates('study_id')
    train = studies.index[studies['split'] == 'train']
    if (table['split'] == 'train').sum() >= 100:
        studies = studies.drop(train[-1])
    studies = studies[['subject_id', 'study_id', *sorted(LABELS)]]
    _write(studies, output, 'chexpert')
    labels = studies[sorted(LABELS)].to_numpy()
    draws = np.random.default_rng([7, seed]).random(labels.shape)
    labels = np.where((labels == -1) & (draws < UNCERTAIN_TO_POSITIVE), 1, labels)
    labels = np.where((labels == 0) & (draws < NEGATIVE_TO_BLANK), np.nan, labels)
    _write(studies.assign(**dict(zip(sorted(LABELS), labels.T, strict=True))), output, 'negbio')


def _write(table: pd.DataFrame, output: Path, kind: str) -> None:
    compression = {'method': 'gzip', 'mtime': 0}  # the same bytes each time
    file = output / f'mimic-cxr-{VERSION}-{kind}.csv.gz'
    table.to_csv(file, index=False, compression=compression)

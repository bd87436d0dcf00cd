"""All that is wrong in the CSV files of MIMIC-CXR-JPG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data.check_findings import Findings
from data.check_tables import Folder, Split, TableCheck, are_there, mark_missing
from data.labels import LABELS
from data.mimic import ID_FORMS, SPLITS, find_table
from data.packed import Store


def check_mimic(
    pictures: Folder | Store, *, labeller: str, image_suffix: str, blank: str, findings: Findings
) -> list[Split]:
    """Find all that is wrong in the three files, but in the pictures themselves.

    Args:
        pictures: the folder of the files, or the store.
        labeller: whose labels, as DATA.LABELLER.
        image_suffix: as DATA.IMAGE_SUFFIX.
        blank: as DATA.BLANK.
        findings: where all that is wrong goes.

    Returns:
        The rows of each split whose pictures are there, each picture once.
    """
    root = Path(pictures.path)
    images = _open(root, 'split', ['split', *ID_FORMS], findings)
    metadata = _open(root, 'metadata', ['ViewPosition', *ID_FORMS], findings)
    labels = _open(root, labeller, ['subject_id', 'study_id', *LABELS], findings)
    values = None if labels is None else labels.labels()
    if images is None or not images.has('split', *ID_FORMS):
        return []
    good = _check_images(images)
    rows = images.table[good]
    place = np.flatnonzero(good)
    if metadata is not None:
        same = ('subject_id', 'study_id')
        _compare(images, place, metadata, key='dicom_id', same=same, missing='missing row')
    if labels is not None:
        each = place[~rows['study_id'].duplicated().to_numpy()]
        same = ('subject_id',)
        _compare(images, each, labels, key='study_id', same=same, missing='study without labels')
        _check_classes(labels, values, rows, blank=blank)
    return _splits(images.name, rows, pictures, suffix=image_suffix or '.jpg', findings=findings)


def _open(root: Path, kind: str, columns: Sequence[str], findings: Findings) -> TableCheck | None:
    """The file of this kind; None if it cannot be read."""
    try:
        name = find_table(root, kind).name
    except ValueError as error:
        findings.add('missing file', str(error))
        return None
    check = TableCheck(root, name, findings)
    if check.table is None:
        return None
    check.columns(columns)
    return check


def _check_images(images: TableCheck) -> np.ndarray:  # [N] bool
    """Which rows of the split file can be used."""
    good = images.cells('split', 'value of the split', SPLITS)
    for name, (form, allowed) in ID_FORMS.items():
        texts = [text for text in images.table[name].unique() if form.fullmatch(text)]
        good &= images.cells(name, 'form of an id', texts, allowed=allowed)
    return good & images.firsts('dicom_id', 'duplicate id')


def _compare(
    images: TableCheck,
    positions: np.ndarray,
    other: TableCheck,
    *,
    key: str,
    same: Sequence[str],
    missing: str,
) -> None:
    """Look up rows of the split file in another file: a row must be there, and its ids the same."""
    if not other.has(key, *same):
        return
    unique = np.flatnonzero(other.firsts(key, 'duplicate id'))
    rows = images.table.iloc[positions]
    place = pd.Index(other.table[key].iloc[unique]).get_indexer(rows[key])
    for position in positions[place < 0].tolist():
        text = images.table[key].iloc[position]
        images.add(missing, f'{key} {text} has no row in {other.name}', position)
    there = positions[place >= 0]
    for position, found in zip(there.tolist(), unique[place[place >= 0]].tolist(), strict=True):
        for name in same:
            wanted, text = images.table[name].iloc[position], other.table[name].iloc[found]
            if wanted != text:
                row = int(images.table.index[position]) + 2
                detail = f'{name} is {text}, in row {row} of {images.name} {wanted}'
                other.add('ids that differ', detail, found)


def _check_classes(
    labels: TableCheck, values: np.ndarray, rows: pd.DataFrame, *, blank: str
) -> None:
    """Look for labels of one class in each split of the rows, study by study."""
    if not labels.has('study_id'):
        return
    for name in SPLITS:
        studies = rows['study_id'][rows['split'] == name]
        mine = labels.table['study_id'].isin(studies).to_numpy()
        if mine.any():
            labels.classes(name, values[mine], blank=blank)


def _splits(
    csv: str, rows: pd.DataFrame, pictures: Folder | Store, *, suffix: str, findings: Findings
) -> list[Split]:
    folders = 'files/p' + rows['subject_id'].str[:2] + '/p' + rows['subject_id']
    files = folders + '/s' + rows['study_id'] + '/' + rows['dicom_id'] + suffix
    splits = []
    for name in SPLITS:
        mine = (rows['split'] == name).to_numpy()
        row = rows.index.to_numpy()[mine] + 2
        patients = ('p' + rows['subject_id'][mine]).to_numpy(object)
        split = Split(name, csv, row, files[mine].to_numpy(object), patients)
        if name == 'test' and mine.any() and not are_there(pictures, split.file).any():
            findings.add('split without pictures', f'none of the {mine.sum()} of {name}', csv=csv)
        elif mine.any():
            splits.append(mark_missing(split, pictures, findings))
    return splits

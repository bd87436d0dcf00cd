"""MIMIC-CXR-JPG's CSV files and images as the records of data/chexpert.py."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data.chexpert import Records, exists
from data.images import refuse_link_out
from data.labels import LABELS, cell_error, map_cells, read_labels
from data.packed import is_store, open_store, packed_records
from data.tables import read_table, refuse_duplicates, require_columns

SPLITS = {name: name for name in ('train', 'validate', 'test')}
LABELLERS = ('chexpert', 'negbio')
# ViewPosition -> view; any other, or none, is neither frontal nor lateral.
VIEWS = {
    'AP': 'frontal',
    'PA': 'frontal',
    'LATERAL': 'lateral',
    'LL': 'lateral',
    'RL': 'lateral',
    'XTABLE LATERAL': 'lateral',
}
# What the parts of a path may hold.
NUMBER = re.compile(r'\d+', re.ASCII)
ID_FORMS = {
    'subject_id': (NUMBER, 'digits'),
    'study_id': (NUMBER, 'digits'),
    'dicom_id': (re.compile(r'[\w-]+', re.ASCII), 'letters, digits, - and _'),
}


def read_mimic(
    data_path: str | Path,
    split: str,
    *,
    labeller: str,
    image_suffix: str = '',
    optional: bool = False,
    logger: logging.Logger | None = None,
) -> Records | None:
    """Read and check a split of MIMIC-CXR-JPG.

    The folder holds mimic-cxr-*-split.csv, -metadata.csv and -<labeller>.csv, each as it is or as
    .gz, and files/p10/p10000032/s50414267/<dicom_id>.jpg. Views other than frontal and lateral are
    ''. Sex and age are unknown: these files do not have them. Images of studies that the label
    file lacks are left out. Of the images only the first is looked up on disk.

    Args:
        data_path: the folder, or a packed store of it.
        split: 'train', 'validate' or 'test'.
        labeller: whose labels, 'chexpert' or 'negbio'.
        image_suffix: what replaces '.jpg', such as '.png'; '' keeps it.
        optional: whether the split's images may be absent.
        logger: told, in one line, where images and labels come from and what is left out.

    Returns:
        Records in the order of the split file; `row` is its 0-based row. None for an optional split
        whose first image is not there.

    Raises:
        ValueError: if anything is not as it should be, naming file, row and column.
    """
    _check_names(split, labeller, image_suffix)
    root = Path(data_path)
    split_file, metadata_file, label_file = (
        find_table(root, kind) for kind in ('split', 'metadata', labeller)
    )
    images = _read_split(split_file, split)
    images['ViewPosition'] = _read_positions(images, split_file, metadata_file)
    labelled, labels = _with_labels(images, split_file, label_file)
    left_out = _describe_left_out(images, labelled, label_file)
    images = labelled
    studies = 'files/p' + images['subject_id'].str[:2] + '/p' + images['subject_id']
    studies += '/s' + images['study_id']
    paths = studies + '/' + images['dicom_id']
    files = (paths + (image_suffix or '.jpg')).to_numpy(object)
    store = open_store(root) if is_store(root) else None
    if not exists(store or root, files[0]):
        if optional:
            return None
        raise ValueError(
            f'{split_file}: image not found: {root / files[0]} '
            '(see DATA.DATA_PATH, and DATA.IMAGE_SUFFIX if the images were converted)'
        )
    if store is None:
        refuse_link_out(root, root / files[0])
    view = np.array([VIEWS.get(name, '') for name in images['ViewPosition']], object)
    if logger is not None:
        logger.info(
            f'{split_file.name}, {split}: {len(images)} images; file = DATA_PATH / '
            f'files/pNN/pSUBJECT/sSTUDY/DICOM{image_suffix or ".jpg"}; '
            f'{left_out}; '
            f'{_describe_other_views(images["ViewPosition"][view == ""])}'
        )
    records = Records(
        root=root,
        csv=split_file.name,
        row=images.index.to_numpy(),
        path=(paths + '.jpg').to_numpy(object),
        file=files,
        patient=('p' + images['subject_id']).to_numpy(object),
        study=studies.to_numpy(object),
        view=view,
        sex=np.full(len(images), 'Unknown', object),
        age=np.full(len(images), np.nan),
        ap_pa=np.where(view == 'frontal', images['ViewPosition'], '').astype(object),
        labels=labels,
    )
    return records if store is None else packed_records(records, store, logger)


def named_images(data_path: str | Path, *, image_suffix: str = '') -> set[str]:
    """The files that `read_mimic` gives for all splits, by the labels of all labellers there."""
    root = Path(data_path)
    splits = read_table(find_table(root, 'split'))['split'].unique()
    labellers = [name for name in LABELLERS if list(root.glob(f'mimic-cxr-*-{name}.csv*'))]
    named = set()
    for labeller in labellers or LABELLERS:
        for split in splits:
            options = {'labeller': labeller, 'image_suffix': image_suffix}
            named.update(read_mimic(root, split, **options).file)
    return named


def _check_names(split: str, labeller: str, image_suffix: str) -> None:
    if split not in SPLITS:
        raise ValueError(f'split must be one of {", ".join(SPLITS)}, got {split!r}')
    if labeller not in LABELLERS:
        raise ValueError(f'DATA.LABELLER must be one of {", ".join(LABELLERS)}, got {labeller!r}')
    if image_suffix and not re.fullmatch(r'\.\w+', image_suffix):
        raise ValueError(f"DATA.IMAGE_SUFFIX must be like '.png', or empty, got {image_suffix!r}")


def find_table(root: Path, kind: str) -> Path:
    """The one file of this kind, whatever its version."""
    if not root.is_dir():
        raise ValueError(f'DATA.DATA_PATH is no folder: {root}')
    names = [f'mimic-cxr-*-{kind}.csv', f'mimic-cxr-*-{kind}.csv.gz']
    found = sorted(file for name in names for file in root.glob(name))
    if len(found) != 1:
        keys = 'DATA.DATA_PATH, DATA.LABELLER' if kind in LABELLERS else 'DATA.DATA_PATH'
        raise ValueError(
            f'{root} must hold exactly one {" or ".join(names)}, found: '
            f'{", ".join(file.name for file in found) or "none"} (see {keys})'
        )
    return found[0]


def _read_table(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    table = read_table(file)
    require_columns(table, columns, file)
    return table[list(columns)]


def _read_split(file: Path, split: str) -> pd.DataFrame:
    """The rows of this split, after a check of all; the index counts the file's rows."""
    table, source = _read_table(file, [*ID_FORMS, 'split']), str(file)
    for name, (form, allowed) in ID_FORMS.items():
        bad = [form.fullmatch(value) is None for value in table[name]]
        if any(bad):
            problem = f'is not allowed (allowed: {allowed})'
            raise cell_error(source, table[name], bad.index(True), problem)
    refuse_duplicates(table['dicom_id'], source)
    splits = map_cells(table['split'], SPLITS, source, dtype=object)
    first = table.drop_duplicates('subject_id').set_index('subject_id')['split']
    elsewhere = splits != first.loc[table['subject_id']].to_numpy()
    if elsewhere.any():
        position = int(np.argmax(elsewhere))
        problem = f'is in the split {first[table["subject_id"].iloc[position]]!r}, too'
        raise cell_error(source, table['subject_id'], position, problem)
    if split not in first.to_numpy():
        raise ValueError(f"{file}, column 'split': no row is {split!r}")
    return table[splits == split].copy()


def _read_positions(images: pd.DataFrame, split_file: Path, file: Path) -> np.ndarray:
    """ViewPosition of each image."""
    metadata = _read_table(file, [*ID_FORMS, 'ViewPosition'])
    place = _look_up(images, metadata, file, key='dicom_id', same=('subject_id', 'study_id'))
    if (place < 0).any():
        problem = f'has no row in {file.name}'
        raise cell_error(str(split_file), images['dicom_id'], int(np.argmin(place)), problem)
    return metadata['ViewPosition'].to_numpy()[place]


def _with_labels(
    images: pd.DataFrame, split_file: Path, file: Path
) -> tuple[pd.DataFrame, np.ndarray]:
    """The images whose studies have a row in the label file, and their labels [N, K]."""
    table = _read_table(file, ['subject_id', 'study_id', *LABELS])
    labels = read_labels(table, str(file))
    place = _look_up(images, table, file, key='study_id', same=('subject_id',))
    if (place < 0).all():
        raise ValueError(f'{file} has no row for any study of the split in {split_file.name}')
    return images[place >= 0], labels[place[place >= 0]]


def _look_up(
    images: pd.DataFrame, table: pd.DataFrame, file: Path, *, key: str, same: Sequence[str]
) -> np.ndarray:  # [N]
    """Position of each image's row in a table of one row a key; -1 where there is none.

    Args:
        images: what is looked up.
        table: where.
        file: the table's, for messages.
        key: the column by which.
        same: columns in which the two rows must agree.
    """
    refuse_duplicates(table[key], str(file))
    place = pd.Index(table[key]).get_indexer(images[key])
    for name in same:
        wanted = images[name].to_numpy()
        wrong = (place >= 0) & (table[name].to_numpy()[place] != wanted)
        if wrong.any():
            position = int(np.argmax(wrong))
            problem = (
                f'is {wanted[position]!r} in row {images.index[position] + 2} of the split file'
            )
            raise cell_error(str(file), table[name], int(place[position]), problem)
    return place


def _describe_left_out(images: pd.DataFrame, kept: pd.DataFrame, label_file: Path) -> str:
    num_studies = images['study_id'].nunique() - kept['study_id'].nunique()
    return (
        f'labels of {label_file.name}; without a row in it and left out: '
        f'{len(images) - len(kept)} images of {num_studies} studies'
    )


def _describe_other_views(positions: pd.Series) -> str:
    counts = positions.value_counts().head(5).items()
    named = ', '.join(f'{count} {repr(name) if name else "empty"}' for name, count in counts)
    return f'neither frontal nor lateral: {len(positions)}' + (f' ({named})' if named else '')

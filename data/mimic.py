"""Read MIMIC-CXR-JPG."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from config import Config
from data.chexpert import labels_of, records_of
from data.image_source import open_images
from data.labels import LABELS
from data.records import Records, existing_records, lacks_images, register_dataset
from data.table import IDS, OnFault, Table, find_file, refuse, rows_of, rows_of_labels
from data.views import POSITIONS

# MIMIC-CXR-JPG: the values of its split column.
MIMIC_SPLITS = {'train': 'train', 'validate': 'valid', 'test': 'test'}
OF_TEST = (
    'test-set-labeled'  # radiologists' labels of test studies, without subject_id (from 2.1.0)
)


def read_mimic(
    config: Config,
    root: str | Path,
    split: str,
    *,
    labels: Sequence[str] = LABELS,
    optional: bool = False,
    look_up: str = 'first',
    on_fault: OnFault = refuse,
) -> Records | None:
    """Read and check a split of MIMIC-CXR-JPG with the labels of DATA.LABELLER; see `read_csv`.

    The folder holds mimic-cxr-*-split.csv, -metadata.csv and -<labeller>.csv (or .csv.gz), and the
    images files/p10/p10000032/s50414267/<dicom_id>.jpg. With '+radiologist', the labels of test
    are those of mimic-cxr-*-test-set-labeled.csv. Sex and age are unknown, because these files do
    not contain them. Images of studies without a row in the label file are excluded.

    Returns:
        Records in the order of the split file; `row` is the 0-based row of this file. None for an
        optional split without its images (see `lacks_images`), or if no row can be used.
    """
    table = _read_images(config, root, on_fault)
    # The last kind are the labels of test, and the third those of the other splits.
    kind = _kinds(config.DATA.LABELLER)[-1 if split == 'test' else 2]
    metadata, of_studies = (Table(_mimic_file(root, each), on_fault) for each in ('metadata', kind))
    metadata.require(*IDS, 'ViewPosition')
    key = ['study_id'] if kind == OF_TEST else ['subject_id', 'study_id']
    of_studies.require(*key, labels=labels)
    table.cells = table.cells[table['own split'] == split]
    place = rows_of(table, metadata, IDS)
    table.keep('dicom_id', place >= 0, 'missing row', f'has no row in {metadata.file.name}')
    position = metadata['ViewPosition'].to_numpy(object)[place[place >= 0]]
    table.cells = table.cells.assign(position=position)
    place = rows_of_labels(table, of_studies, key, 'dicom_id')
    if not len(table):
        detail = f'no image of the split {split!r} has a row in {of_studies.file.name}'
        table.fault('missing row', detail)
        return None
    view = table['position'].map(POSITIONS).fillna('')
    if others := (view == '').sum():
        detail = f'{others:,} of {len(view):,} images are neither frontal nor lateral'
        table.fault('other views', detail, severity='note')
    columns = {'Frontal/Lateral': view.str.capitalize()}
    columns['AP/PA'] = np.where(view == 'frontal', table['position'], '')
    table.cells = table.cells.assign(**columns)
    values = labels_of(of_studies, labels)[place]
    images = open_images(root)
    records = replace(records_of(table, ()), labels=values, label_names=tuple(labels))
    if optional and lacks_images(records, images, split, look_up, on_fault):
        return None
    return existing_records(records, images, look_up, on_fault)


def named_images(config: Config, root: Path) -> dict[str, str]:
    """Return the image files of MIMIC-CXR-JPG with their split, with and without labels."""
    table = _read_images(config, root, refuse)
    return dict(zip(table['file'], table['own split'], strict=True))


def _read_images(config: Config, root: str | Path, on_fault: OnFault) -> Table:
    """Read the list of images, and add their split, patient, study, path and file."""
    table = Table(_mimic_file(root, 'split'), on_fault)
    table.require(*IDS, 'split')
    for name in IDS:
        good = table[name].str.fullmatch(r'[A-Za-z0-9_-]+')
        table.keep(name, good, 'form of an id', 'is not made of letters, digits, - and _')
    table.keep_first('dicom_id', 'duplicate id')
    split = table.map('split', MIMIC_SPLITS, 'value of the split', dtype=object)
    patient = 'p' + table['subject_id']
    study = 'files/' + patient.str[:3] + '/' + patient + '/s' + table['study_id']
    image = study + '/' + table['dicom_id']
    file = image + (config.DATA.IMAGE_SUFFIX or '.jpg')
    columns = {'own split': split, 'patient': patient, 'study': study}
    table.cells = table.cells.assign(path=image + '.jpg', file=file, **columns)
    return table


def _mimic_file(root: str | Path, kind: str) -> Path:
    """Find the MIMIC-CXR file of a kind, such as 'split', of any version."""
    pattern = f'mimic-cxr-*-{kind}.csv'
    return find_file(Path(root), pattern, f'{pattern}.gz', hint='DATA.DATA_PATH, DATA.LABELLER')


def _mimic_tables(config: Config, root: str | Path) -> list[Path]:
    return [_mimic_file(root, kind) for kind in _kinds(config.DATA.LABELLER)]


def _kinds(labeller: str) -> list[str]:
    """Return the kinds of files for a value of DATA.LABELLER."""
    labeller, _, radiologist = labeller.partition('+')
    return ['split', 'metadata', labeller, *([OF_TEST] if radiologist else [])]


register_dataset('mimic-cxr', labelled=True, tables=_mimic_tables, splits=None)(read_mimic)

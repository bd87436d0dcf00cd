"""Read folders of images without labels, unless some of the images are to be scored."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.images.image_source import IMAGE_SUFFIXES, TABLE_SUFFIXES, open_images
from data.images.store_manifest import STORE_FILE
from data.tables.chexpert import DATASETS, PATIENT_PART, DataSet
from data.tables.identity import STUDY
from data.tables.records import Records, existing_records
from data.tables.table import Fault, OnFault, Table, refuse

# Patterns of tables and lists -> the data set to which they belong.
TABLES = {
    **dict.fromkeys(('train.csv', 'valid.csv', 'test.csv'), 'chexpert'),
    'mimic-cxr-*': 'mimic-cxr',
    'Data_Entry_2017*.csv': 'nih',
    'BBox_List_2017*': 'nih',
    'train_val_list.txt': 'nih',
    'test_list.txt': 'nih',
    'annotations/image_labels_train.csv': 'vindr',
    'annotations/image_labels_test.csv': 'vindr',
    'stage_2_train_labels.csv': 'rsna',
    'PADCHEST_chest_x_ray_images_labels_160K*.csv*': 'padchest',
    'master_spreadsheet_update.csv': 'brax',
    'df_chexpert_plus_*.csv': 'chexpert_plus',
    'chexbert_labels/*_fixed.json': 'chexpert_plus',
}
MIMIC_TABLES = 'mimic-cxr-*-split.csv*'  # pattern of the table of splits
MOST_KINDS = 8  # suffixes in a warning
# Beginnings of words in names of folders with images to be scored, and of further words in names of
# tables that show that some images are.
SCORED_FOLDERS = re.compile(r'(?<![a-z])(test|valid|val(?![a-z])|holdout)')
SCORED_TABLES = re.compile(
    r'(?<![a-z])(train|test|valid|val(?![a-z])|holdout|splits?(?![a-z])|ground)'
)


@DATASETS.register('folder', 'imagenet')  # 'imagenet' is SimMIM's name for a folder of images
class ImageFolder(DataSet):
    """All images of a folder, without labels and tables, which are all of train."""

    labelled = False

    def read(self, split: str, *, on_fault: OnFault = refuse, **options: Any) -> Records | None:
        if split != 'train':
            return None
        allow_all_images = self.config.DATA.ALLOW_ALL_IMAGES
        return read_folder(self.root, allow_all_images=allow_all_images, on_fault=on_fault)

    def own_table(self, split: str, **options: Any) -> Table | None:
        raise ValueError(f'DATA.DATASET {self.config.DATA.DATASET} has no table')


def read_folder(
    data_path: str | Path, *, allow_all_images: bool, on_fault: OnFault = refuse
) -> Records:
    """List every image below a folder or in a packed store, sorted, as records without labels.

    Images that were left out when the store was packed are excluded. Unless `allow_all_images` is
    set, a folder with tables or folders of scored images is a fault (see `signs_of_scores`).
    """
    root, images = Path(data_path), open_images(data_path)
    files, others = images.scan()
    for file in () if allow_all_images else signs_of_scores(root, files, others):
        known = data_set_of(file)
        table = f', a table of {known} that is not read' if known else ''
        advice = f'use DATA.DATASET {known}, or ' if known else ''
        detail = (
            f'the folder has {root / file}{table}, so some of its images are scored later: {advice}'
            'train on the folder of the training images alone, or set DATA.ALLOW_ALL_IMAGES True'
        )
        on_fault(Fault('folder with scores', detail, file=file))
    unread = [file for file in others if not file.lower().endswith(TABLE_SUFFIXES)]
    if unread:
        kinds = Counter(os.path.splitext(file)[1].lower() or 'no suffix' for file in unread)
        counts = [f'{kind} {count:,}' for kind, count in kinds.most_common(MOST_KINDS)]
        if len(kinds) > MOST_KINDS:
            counts.append(f'and {len(kinds) - MOST_KINDS} other suffixes')
        detail = (
            f'{root}: {len(unread):,} of {len(files) + len(unread):,} files are not read: '
            f'{", ".join(counts)}, such as {unread[0]}'
        )
        on_fault(Fault('files that are not read', detail, file=unread[0], severity='warning'))
    if not files:
        detail = f'no image was found below {root} (looked for {", ".join(IMAGE_SUFFIXES)})'
        on_fault(Fault('missing image', detail))
    size, paths = len(files), pd.Series(files, dtype=object)
    records = Records(
        root=root,
        csv='',
        row=np.arange(size),
        sample=np.arange(size),
        path=paths.to_numpy(),
        file=paths.to_numpy(),
        patient=paths.str.extract(PATIENT_PART)[0].fillna(paths).to_numpy(object),
        study=paths.str.extract(STUDY)['study'].fillna(paths).to_numpy(object),
        view=np.full(size, '', object),
        sex=np.full(size, 'Unknown', object),
        age=np.full(size, np.nan),
        ap_pa=np.full(size, '', object),
        labels=None,
    )
    if not images.left_out:
        return records
    return existing_records(records, images, 'all', on_fault)


def data_set_of(table: str) -> str:
    """Return the data set to which a table belongs by its name; '' if it is unknown."""
    found = (name for form, name in TABLES.items() if fnmatch(f'/{table}', f'*/{form}'))
    return next(found, '')


def signs_of_scores(root: Path, images: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the folders and tables among files below a root that show that images are scored.

    These are tables of known data sets, and folders of images and tables with names such as test.
    """
    folders = dict.fromkeys(map(os.path.dirname, images))
    found = ['.'] if SCORED_FOLDERS.fullmatch(root.resolve().name.lower()) else []
    found += [folder for folder in folders if SCORED_FOLDERS.search(folder.lower())][:1]
    for file in others:
        name = os.path.basename(file).lower()
        is_table = name.endswith(TABLE_SUFFIXES) and (
            SCORED_TABLES.search(name) or data_set_of(file)
        )
        if is_table or file == STORE_FILE:  # only a store that holds scored images names itself
            found.append(file)
    # The first one is reported; a table of a known data set tells what to do.
    return sorted(found, key=lambda file: not data_set_of(file))

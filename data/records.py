"""Records: the images of a table with their labels, patients and views."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from data.image_source import ImageSource, open_images
from data.labels import BLANK, CELLS, LABELS, MARKS, Cells
from data.names import PATIENT_AND_BELOW, STUDY, views_in_names
from data.store import BAD_FILE
from data.table import LARGEST, Fault, OnFault, Table

DESCRIPTION = ('Sex', 'Age', 'Frontal/Lateral', 'AP/PA')  # optional columns
OLDEST = 120  # years; the highest age of a patient
SEXES = {'Male': 'Male', 'Female': 'Female', 'Unknown': 'Unknown', '': 'Unknown'}
VIEW_CELLS = {'Frontal': 'frontal', 'Lateral': 'lateral', '': ''}
PROJECTIONS = {name: name for name in ('AP', 'PA', 'LL', 'RL', '')}
VIEWS_HINT = "'views: frontal' in the layout, if all images are frontal"


@dataclass(frozen=True, eq=False)
class Records:
    """One row per image, in a fixed order; the arrays of text are object arrays."""

    root: Path
    csv: str  # name of the CSV file; '' for a folder of images
    row: np.ndarray  # [N] int64, 0-based row of the CSV file; images of a study may share it
    sample: np.ndarray  # [N] int64, a number of the image, which determines random numbers
    path: np.ndarray  # [N] path in the CSV
    file: np.ndarray  # [N] path relative to root
    patient: np.ndarray  # [N]
    study: np.ndarray  # [N] part of `path` that names the study
    view: np.ndarray  # [N] 'frontal', 'lateral', or '' for other and unknown views
    sex: np.ndarray  # [N] 'Male', 'Female', 'Unknown'
    age: np.ndarray  # [N] float64 in years, NaN if unknown
    ap_pa: np.ndarray  # [N] 'AP', 'PA', 'LL', 'RL', ''
    labels: np.ndarray | None  # [N, K] float32: 1, 0, -1 uncertain, NaN blank
    label_names: tuple[str, ...] = LABELS  # [K]
    image_root: Path | None = None  # folder or store with the images if it is not root

    def __len__(self) -> int:
        return len(self.row)

    def select(self, indices: np.ndarray) -> 'Records':
        """Select records by their positions, in the given order, or by a boolean mask [N]."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: v[indices] for name, v in values.items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays)


def select_views(records: Records, views: str) -> Records:
    """Select the images of the views 'frontal', 'lateral' or 'all'."""
    if views == 'all':
        return records
    keep = records.view == views
    if len(records) and not keep.any():
        hint = '' if records.view.any() else f'; their view is unknown: see {VIEWS_HINT}'
        raise ValueError(
            f'{records.root / records.csv}: none of the {len(records)} images is {views} '
            f'(DATA.VIEWS, EVAL.VIEWS){hint}'
        )
    return records.select(keep)


def images_of(records: Records) -> ImageSource:
    """Open the images of the records."""
    return open_images(records.image_root or records.root)


def add_studies(table: Table) -> None:
    """Add the columns 'study' and 'patient', which are extracted from the names of the rows."""
    parts = table[table.key].str.extract(STUDY)
    good = parts['image'].str.len() > 1 if table.key == 'Path' else parts['image'] == ''
    image = '/IMAGE.jpg' if table.key == 'Path' else ''
    problem = f'is not of the form FOLDER/patient00001/study1{image}'
    table.cells = table.cells.assign(study=parts['study'], patient=parts['patient'])
    table.keep(table.key, good.to_numpy(bool), 'form of a path', problem)


def lacks_images(
    records: Records,
    images: ImageSource,
    split: str,
    *,
    look_up: str,
    on_fault: OnFault,
    logger: logging.Logger | None = None,
) -> bool:
    """Return whether an optional split is skipped for lack of its images, and warn if it is.

    With `look_up` 'first' the first image decides; with 'all', every image must be missing. The
    arguments are those of `existing_records`.
    """
    files = records.file[:1] if look_up == 'first' else records.file
    if look_up == 'none' or any(map(images.exists, files)):
        return False
    what = 'its first image does not exist'
    if look_up == 'all':
        what = f'none of its {len(files):,} images exists'
    detail = f'the split {split!r} is skipped and not scored, because {what} below {images.path}'
    csv_file = str(records.root / records.csv) if records.csv else ''
    on_fault(Fault('missing split', detail, csv_file, file=files[0], severity='warning'))
    if logger is not None:
        logger.warning(f'{records.csv}: {detail}' if records.csv else detail)
    return True


def existing_records(
    records: Records,
    images: ImageSource,
    look_up: str,
    on_fault: OnFault,
    logger: logging.Logger | None = None,
) -> Records:
    """Select the records whose images exist, and report each missing image.

    Args:
        records: Records of N images.
        images: Store or folder with the images.
        look_up: 'all', 'none', or 'first': the first image of each folder such as `train/`. In a
            store, all images are looked up.
        on_fault: Function that receives each fault.
        logger: Logger for the number of images that a store lacks.
    """
    if look_up == 'none':
        return records
    hint = '(see DATA.DATA_PATH, and DATA.IMAGE_SUFFIX if the images were converted)'
    csv_file = str(records.root / records.csv) if records.csv else ''
    keep = np.full(len(records), True)
    parts = pd.Series(records.file, dtype=object).str.replace(PATIENT_AND_BELOW, '', regex=True)
    wanted = (look_up == 'all') | ~parts.duplicated().to_numpy()
    for position in images.to_look_up(records.file, wanted).tolist():
        file = records.file[position]
        place = (csv_file, int(records.row[position]) + 2 if csv_file else None, file)
        if file in images.left_out:
            on_fault(Fault('left out of the store', images.left_out[file], *place, 'warning'))
            keep[position] = False
        elif not images.has_image(file):
            detail = f'the image {images.path / file} does not exist {hint}'
            on_fault(Fault('missing image', detail, *place))
            keep[position] = False
    left_out = sum(file in images.left_out for file in records.file) if images.left_out else 0
    if logger is not None and left_out:
        logger.warning(
            f'{records.csv}: {left_out} images could not be read when the store was packed and are '
            f'excluded, see {images.path / BAD_FILE}'
        )
    return records if keep.all() else records.select(keep)


def labels_of(table: Table, labels: Sequence[str], cells: Cells = MARKS) -> np.ndarray:
    """Read labels, [N, K] float32: 1, 0, -1 uncertain, NaN blank; or numbers, NaN where empty."""
    kind = 'value of a label'
    if cells.column:
        classes = {label: number for number, label in enumerate(labels)} | {'': np.nan}
        own = table.map(cells.column, classes, kind)[:, None]
        return np.where(np.isnan(own), BLANK, own == np.arange(len(labels))).astype(np.float32)
    if cells.numbers:
        columns = [table.numbers(label, kind, least=-LARGEST) for label in labels]
    else:
        columns = [table.map(label, CELLS, kind) for label in labels]
    stacked = np.array(columns, np.float32).reshape(len(labels), len(table))
    return np.ascontiguousarray(stacked.T)


def records_of(table: Table, labels: Sequence[str], cells: Cells = MARKS) -> Records:
    """Build the records of a table to which path, file, patient and study have been added."""
    view = table.map('Frontal/Lateral', VIEW_CELLS, 'value of the view', dtype=object)
    names = ('path', 'file', 'patient', 'study')
    return Records(
        root=table.file.parent,
        csv=table.file.name,
        row=table.row,
        sample=table.row,
        **{name: table[name].to_numpy(object) for name in names},
        view=np.where(view == '', views_in_names(table['path']), view),
        sex=table.map('Sex', SEXES, 'value of the sex', dtype=object),
        age=table.numbers('Age', 'value of the age', most=OLDEST),
        ap_pa=table.map('AP/PA', PROJECTIONS, 'value of the projection', dtype=object),
        labels=labels_of(table, labels, cells),
        label_names=tuple(labels),
    )

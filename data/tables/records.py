"""Records: images with labels, patients and views, and the task of a run."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from config import Config, default_config, selected_part
from data.images.image_source import ImageSource, open_images
from data.tables.table import Fault, OnFault

PATIENT_AND_BELOW = re.compile(r'(?:patient|p)\d+/.*')
LEFT_OUT = 'left out of the store'  # kind of a fault
OTHER_VIEW = 'Other'  # cell of an image that is neither frontal nor lateral, or of unknown view
OLDEST = 120  # years; the highest age of a patient
VIEWS_HINT = 'the column Frontal/Lateral'


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
    label_names: tuple[str, ...] = ()  # [K]
    # Further columns that were asked for, [N, G] text, their names, and the names of all others.
    groups: np.ndarray | None = None
    group_names: tuple[str, ...] = ()
    other_names: tuple[str, ...] = ()
    image_root: Path | None = None  # folder or store with the images if it is not root
    doubts: tuple[str, ...] = ()  # sentences about the table that a report shows (DOUBTS)
    left_out: np.ndarray | None = None  # [N] bool, images that DATA.LEAVE_OUT lists
    num_left_out: int = 0  # of them in the whole split
    found_names: frozenset[tuple[str, str]] = frozenset()  # (kind, name) in DATA.LEAVE_OUT of them
    digest: str = ''  # SHA-256 of a table that a function made

    def __len__(self) -> int:
        return len(self.row)

    def select(self, indices: np.ndarray) -> 'Records':
        """Select records by their positions, in the given order, or by a boolean mask [N]."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: v[indices] for name, v in values.items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays)

    def kept(self) -> 'Records':
        """Select the records that DATA.LEAVE_OUT does not list."""
        return self if self.left_out is None else self.select(~self.left_out)


def task_of(config: Config) -> Any:
    """Return the task of a config, a `data.tasks.Task`, from the file that DATA.TASK names."""
    return selected_part(config, 'DATA.TASK')(config)


def make_task(name: str, **options: Any) -> Any:
    """Return a task outside a run, with options of the section DATA such as LABELS and BLANK."""
    config = default_config()
    config.DATA.update(TASK=name, **options)
    return task_of(config)


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


def lacks_images(
    records: Records, images: ImageSource, split: str, look_up: str, on_fault: OnFault
) -> bool:
    """Return whether an optional split is skipped for lack of its images, and report it if it is.

    With `look_up` 'first' the first image decides; with 'all', every image must be missing. The
    arguments are those of `existing_records`.
    """
    files = records.file[:1] if look_up == 'first' else records.file
    # One image is proof enough that the images of the split are there. A split without a usable row
    # has other faults.
    if look_up == 'none' or not len(files) or any(map(images.exists, files)):
        return False
    what = 'its first image does not exist'
    if look_up == 'all':
        what = f'none of its {len(files):,} images exists'
    detail = f'the split {split!r} is skipped and not scored, because {what} below {images.path}'
    csv_file = str(records.root / records.csv) if records.csv else ''
    on_fault(Fault('missing split', detail, csv_file, file=files[0], severity='warning'))
    return True


def existing_records(
    records: Records,
    images: ImageSource,
    look_up: str,
    on_fault: OnFault,
    hint: str = '',
) -> Records:
    """Select the records whose images exist, and report each missing image, or that none exists.

    Args:
        records: Records of N images.
        images: Store or folder with the images.
        look_up: 'all', 'none', or 'first': the first image of each folder such as `train/`. In a
            store, all images are looked up.
        on_fault: Function that receives each fault.
        hint: What may help if an image is missing.
    """
    if look_up == 'none':
        return records
    csv_file = str(records.root / records.csv) if records.csv else ''
    # A run may read a table from elsewhere; a script that is given a table alone has no DATA_PATH.
    start = 'the folder of the table'
    if csv_file and Path(csv_file).parent != records.root:
        start = 'DATA.DATA_PATH, not beside the table'
    look = f'images are looked for below {start}; ' if csv_file else ''
    hint = f'({look}see DATA.DATA_PATH, and DATA.IMAGE_SUFFIX if the images were converted){hint}'
    keep = np.full(len(records), True)
    missing: list[Fault] = []
    wanted = np.full(len(records), look_up == 'all')
    # Looking up every file takes long on a network drive, and one of each folder already shows a
    # wrong DATA_PATH or suffix.
    seen: set[str] = set()
    previous = None
    for position, file in enumerate(records.file.tolist()):
        folder = file[: file.rfind('/') + 1]
        if folder == previous:
            continue
        above_patient = PATIENT_AND_BELOW.sub('', folder)
        if above_patient not in seen:
            seen.add(above_patient)
            wanted[position] = True
        previous = folder
    for position in images.lacking(records.file, wanted):
        file = records.file[position]
        place = (csv_file, int(records.row[position]) + 2 if csv_file else None, file)
        keep[position] = False
        if file in images.left_out:
            on_fault(Fault(LEFT_OUT, images.left_out[file], *place, 'warning'))
        else:
            detail = f'the image {images.path / file} does not exist {hint}'
            missing.append(Fault('missing image', detail, *place))
    if len(missing) > 1 and not keep.any():
        detail = f'none of the {len(missing):,} images exists. The first: {missing[0].detail}'
        missing = [replace(missing[0], kind='missing images', detail=detail)]
    for fault in missing:
        on_fault(fault)
    return records if keep.all() else records.select(keep)


def csv_names(config: Config) -> dict[str, str]:
    """Return the path of the CSV file of each split, relative to the data folder."""
    data = config.DATA
    return {'train': data.TRAIN_CSV, 'valid': data.VALID_CSV, 'test': data.TEST_CSV}

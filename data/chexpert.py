"""CheXpert's CSV files and image folders as checked records; views, splits, subsets."""

import hashlib
import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from data.images import refuse_link_out
from data.labels import LABELS, cell_error, map_cells, read_labels
from data.packed import Store, is_store, open_store, packed_records
from data.tables import read_table, refuse_duplicates, require_columns

SCORED_FILES = ('train.csv', 'valid.csv')  # a folder with one of them holds images to be scored
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.dcm')

# Columns that describe an image. A label file may lack them, all together.
DESCRIPTION = ('Sex', 'Age', 'Frontal/Lateral', 'AP/PA')
SEXES = {name: name for name in ('Male', 'Female', 'Unknown')}
VIEW_CELLS = {'Frontal': 'frontal', 'Lateral': 'lateral'}
PROJECTIONS = {name: name for name in ('AP', 'PA', 'LL', 'RL', '')}
MAX_PATH = 4096  # characters; longer ones no system opens, and only take time
AGE = re.compile(r'\d{1,3}(\.\d+)?', re.ASCII)

_PART = r'(?!\.\.?(?:/|\Z))[^/\0-\x1f\x7f]+'
_STUDY_FORM = rf'(?P<study>(?P<prefix>(?:{_PART}/)*?)(?P<patient>patient\d+)/study\d+)'
STUDY_PATH = re.compile(_STUDY_FORM)
IMAGE_PATH = re.compile(rf'{_STUDY_FORM}(?:/{_PART})+')
VIEW_NAME = re.compile(r'_(frontal|lateral)\.[^./]+\Z')
PATIENT_PART = re.compile(r'(?:\A|/)(patient\d+)/')


@dataclass(frozen=True, eq=False)
class Records:
    """One row an image, in a fixed order; the arrays of text are object arrays."""

    root: Path
    csv: str  # the file's name; '' for a folder of images
    row: np.ndarray  # [N] int64, sample id: the CSV's 0-based row (of `Study` files: the image's)
    path: np.ndarray  # [N] as in the CSV
    file: np.ndarray  # [N] relative to root
    patient: np.ndarray  # [N]
    study: np.ndarray  # [N] the part of `path` that names the study
    view: np.ndarray  # [N] 'frontal', 'lateral'; '' in a folder of images
    sex: np.ndarray  # [N] 'Male', 'Female', 'Unknown'
    age: np.ndarray  # [N] float64, NaN where unknown
    ap_pa: np.ndarray  # [N] 'AP', 'PA', 'LL', 'RL', ''
    labels: np.ndarray | None  # [N, K] float32: 1, 0, -1 uncertain, NaN blank

    def __len__(self) -> int:
        return len(self.row)

    def select(self, indices: np.ndarray) -> 'Records':
        """The records at these positions (or where this mask is true), in that order."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: v[indices] for name, v in values.items() if isinstance(v, np.ndarray)}
        return replace(self, **arrays)


def read_csv(
    data_path: str | Path,
    csv_name: str,
    *,
    image_suffix: str = '',
    logger: logging.Logger | None = None,
    check_files: bool = True,
) -> Records:
    """Read and check a CSV in CheXpert's layout, beside its images or in a packed store.

    A row is an image (`Path`) or a study (`Study`: its images are those below that folder). In a
    `Study` file, or without the columns of `DESCRIPTION`, views come from file names and the rest
    is unknown. Of each prefix (what precedes a patient's folder) the first image is looked up;
    in a store every image is, and those that it was packed without are left out.

    Args:
        data_path: the folder that holds the CSV and the images, or a store of it.
        csv_name: the CSV's name inside `data_path`.
        image_suffix: what replaces the suffix of the paths, such as '.png'; '' keeps it.
        logger: told, in one line, how paths become files.
        check_files: False looks up none; `file` is then the path as the CSV has it.

    Raises:
        ValueError: if anything is not as it should be, naming file, row and column.
    """
    root, source = Path(data_path), str(Path(data_path) / csv_name)
    if image_suffix and not re.fullmatch(r'\.\w+', image_suffix):
        raise ValueError(f"DATA.IMAGE_SUFFIX must be like '.png', or empty, got {image_suffix!r}")
    if not Path(source).is_file():
        below = [folder for folder in sorted(root.glob('*')) if os.path.isfile(folder / csv_name)]
        hint = f': {below[0]} has one' if below else ''
        raise ValueError(f'no such CSV file: {source} (see DATA.DATA_PATH and DATA.*_CSV){hint}')
    table = read_table(Path(source))
    described = any(name in table for name in DESCRIPTION) and 'Path' in table
    wanted = [*(DESCRIPTION if described else ()), *LABELS]
    require_columns(table, wanted, Path(source), one_of=('Path', 'Study'))
    store = open_store(root) if is_store(root) else None
    by_study = 'Path' not in table
    if by_study:
        table = _expand_studies(table, store or root, source, image_suffix)
    paths = table['Path']
    parts = match_paths(paths, IMAGE_PATH, source)
    suffix = '' if by_study else image_suffix  # a study's images are listed as they are
    rule = PathRule(False, suffix)
    if check_files:
        rule = PathRule.decide(paths, parts['prefix'], store or root, source, suffix)
    files = np.array([rule.file(path) for path in paths], object)
    refuse_duplicates(paths, source, files)
    if logger is not None:
        logger.info(f'{csv_name}: {len(table)} images; {rule.describe()}')
    records = Records(
        root=root,
        csv=csv_name,
        row=np.arange(len(table)) if by_study else table.index.to_numpy(),
        path=paths.to_numpy(),
        file=files,
        patient=parts['patient'].to_numpy(),
        study=parts['study'].to_numpy(),
        **_read_description(table, source),
        labels=read_labels(table, source),
    )
    return packed_records(records, store, logger) if store and check_files else records


def read_folder(
    data_path: str | Path, *, allow_all_images: bool, logger: logging.Logger | None = None
) -> Records:
    """List every image below a folder or in a packed store, sorted, as records without labels.

    Hidden files and folders are passed over; so are links to what the folder holds itself.  What
    a store was packed without is left out.

    Raises:
        ValueError: if there is no image, if a link leaves the folder, or if it holds train.csv or
            valid.csv (then it holds images to be scored later) without `allow_all_images`.
    """
    root = Path(data_path)
    if not root.is_dir():
        raise ValueError(f'DATA.DATA_PATH is no folder: {root}')
    store = open_store(root) if is_store(root) else None
    refused = () if allow_all_images else SCORED_FILES
    if store is None:
        files = sorted(_images_below(root, '', IMAGE_SUFFIXES, refused=refused))
    elif refused and store.about['scored']:
        names = ' or '.join(refused)
        raise _refuse_scored(f'{root} was packed from a folder with {names}, or got labels since')
    else:
        files = sorted([*store.files, *store.left_out])
    if not files:
        raise ValueError(f'no image below {root} (looked for {", ".join(IMAGE_SUFFIXES)})')
    paths, size = np.array(files, object), len(files)
    records = Records(
        root=root,
        csv='',
        row=np.arange(size),
        path=paths,
        file=paths,
        patient=np.array([(PATIENT_PART.search(f) or {1: f})[1] for f in files], object),
        study=np.array([(IMAGE_PATH.match(f) or {'study': f})['study'] for f in files], object),
        view=np.full(size, '', object),
        **_unknown(size),
        labels=None,
    )
    return records if store is None else packed_records(records, store, logger)


def select_views(records: Records, views: str) -> Records:
    """Keep the images of these views: 'frontal', 'lateral' or 'all'."""
    if views == 'all':
        return records
    keep = records.view == views
    if len(records) and not keep.any():
        raise ValueError(
            f'{records.root / records.csv}: none of the {len(records)} images is {views} '
            '(DATA.VIEWS, EVAL.VIEWS)'
        )
    return records.select(keep)


def split_holdout(records: Records, fraction: float) -> tuple[Records, Records]:
    """Split off a fraction of the patients, the same ones whatever the seed.

    Call it on all records of the CSV: views and subsets are chosen afterwards, so that they do not
    change who is held out.

    Returns:
        (train, holdout): holdout has the first `fraction` of all patients, rounded up, in the
        order of a hash of their names.
    """
    rank, num_patients = _patient_order(records.patient, key='holdout')
    num_held_out = _share(fraction, num_patients)
    if num_held_out >= num_patients:
        raise ValueError(
            f'DATA.HOLDOUT_FRACTION {fraction} leaves none of the {num_patients} patients of '
            f'{records.csv} to train on'
        )
    return records.select(rank >= num_held_out), records.select(rank < num_held_out)


def take_subset(records: Records, *, fraction: float, images: int, seed: int) -> Records:
    """Keep a share of the patients, or a number of images; a smaller subset lies in a larger one.

    Args:
        records: those to choose from; their order is kept.
        fraction: DATA.TRAIN_FRACTION, share of the patients, rounded up; 1 for all.
        images: DATA.TRAIN_IMAGES, images of the first patients, the last one's in part; 0 for all.
        seed: draws the order of the patients.
    """
    if images == 0 and fraction == 1:
        return records
    given = f'got DATA.TRAIN_FRACTION {fraction}, DATA.TRAIN_IMAGES {images}'
    if images and fraction != 1:
        raise ValueError(f'give a fraction or a number of images, not both: {given}')
    if not 0 < fraction <= 1:
        raise ValueError(f'the fraction must be above 0 and at most 1: {given}')
    if not 0 <= images <= len(records):
        raise ValueError(f'there are {len(records)} images to choose from: {given}')
    rank, num_patients = _patient_order(records.patient, key=str(seed))
    if images:
        return records.select(np.sort(np.argsort(rank, kind='stable')[:images]))
    return records.select(rank < _share(fraction, num_patients))


def match_paths(paths: pd.Series, form: re.Pattern, source: str) -> pd.DataFrame:
    """Patient, study and prefix of each path; refuses paths that are not of the form."""
    matches = [form.fullmatch(path) if len(path) <= MAX_PATH else None for path in paths]
    if None in matches:
        position = matches.index(None)
        path = paths.iloc[position]
        if path.startswith('/') or '//' in path or '..' in path.split('/'):
            problem = 'leaves the data root: only relative paths without .. are allowed'
        else:
            image = '' if form is STUDY_PATH else '/view1_frontal.jpg'
            problem = f'is not of the form FOLDER/.../patient00001/study1{image}'
        raise cell_error(source, paths, position, problem)
    names = ['patient', 'study', 'prefix']
    return pd.DataFrame([match.group(*names) for match in matches], columns=names, dtype=object)


@dataclass(frozen=True)
class PathRule:
    """How a path of the CSV becomes a file below the root."""

    drop_first_part: bool
    suffix: str

    @classmethod
    def decide(
        cls, paths: pd.Series, prefixes: pd.Series, root: Path | Store, source: str, suffix: str
    ) -> 'PathRule':
        """Take the rule under which the first path of each prefix is there."""
        first = paths[~prefixes.duplicated().to_numpy()]
        tried = []
        for rule in (cls(True, suffix), cls(False, suffix)):
            files = [rule.file(path) for path in first]
            missing = [file for file in files if not exists(root, file)]
            if not missing:
                if not isinstance(root, Store):
                    for file in files:
                        refuse_link_out(root, root / file)
                return rule
            tried.append(os.path.join(root, missing[0]))
        raise ValueError(
            f'{source}: images not found; tried {" and ".join(tried)} '
            '(see DATA.DATA_PATH, and DATA.IMAGE_SUFFIX if the images were converted)'
        )

    def file(self, path: str) -> str:
        file = path.partition('/')[2] if self.drop_first_part else path
        return os.path.splitext(file)[0] + self.suffix if self.suffix else file

    def describe(self) -> str:
        kept = 'without its first part' if self.drop_first_part else 'as it is'
        suffix = f', its suffix replaced by {self.suffix}' if self.suffix else ''
        return f'file = DATA_PATH / Path {kept}{suffix}'


def _expand_studies(
    table: pd.DataFrame, root: Path | Store, source: str, image_suffix: str
) -> pd.DataFrame:
    """Turn rows of studies into rows of their images; the index stays the study's row."""
    studies = table['Study']
    prefixes = match_paths(studies, STUDY_PATH, source)['prefix']
    rule = PathRule.decide(studies, prefixes, root, source, suffix='')
    refuse_duplicates(studies, source)
    suffixes = (image_suffix.lower(),) if image_suffix else IMAGE_SUFFIXES
    images = []
    for position, study in enumerate(studies):
        place = rule.file(study)
        found = _images_of_study(root, place, suffixes)
        if not found:
            problem = f'has no image ({", ".join(suffixes)}) below {os.path.join(root, place)}'
            raise cell_error(source, studies, position, problem)
        images.append([study + file[len(place) :] for file in found])
    return table[list(LABELS)].assign(Path=images).explode('Path')


def exists(root: Path | Store, file: str) -> bool:
    """Whether a folder, or a store, holds this file."""
    return root.exists(file) if isinstance(root, Store) else os.path.exists(root / file)


def _images_of_study(root: Path | Store, place: str, suffixes: tuple[str, ...]) -> list[str]:
    if isinstance(root, Store):
        return [file for file in root.below(place) if file.lower().endswith(suffixes)]
    if not os.path.isdir(root / place):
        return []
    refuse_link_out(root, root / place)
    return sorted(_images_below(root, place, suffixes))


def _images_below(
    root: Path, place: str, suffixes: tuple[str, ...], refused: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yield the images below `root / place` as paths relative to the root."""
    places = [place]
    while places:
        place = places.pop()
        with os.scandir(root / place) as entries:
            visible = [entry for entry in entries if not entry.name.startswith('.')]
        for entry in visible:
            file = f'{place}/{entry.name}' if place else entry.name
            if entry.name in refused:
                raise _refuse_scored(f'{root / file} is there', root)
            is_image = entry.name.lower().endswith(suffixes)
            if entry.is_symlink():
                if is_image or os.path.isdir(root / file):
                    refuse_link_out(root, root / file)
            elif entry.is_dir():
                places.append(file)
            elif is_image and entry.is_file():
                yield file


def _refuse_scored(reason: str, root: Path | None = None) -> ValueError:
    part = f'--data-path {root / "train"}' if root and (root / 'train').is_dir() else ''
    return ValueError(
        f'{reason}: this folder holds images that are scored later; '
        f'{f"take those to train on alone with {part}, " if part else ""}'
        'use DATA.DATASET chexpert, or set DATA.ALLOW_ALL_IMAGES True'
    )


def _read_description(table: pd.DataFrame, source: str) -> dict[str, np.ndarray]:
    """View, sex, age and projection; from the file's name and unknown where not described."""
    if DESCRIPTION[0] not in table:
        return {'view': views_from_names(table['Path'], source), **_unknown(len(table))}
    ages = {text: float(text) for text in table['Age'].unique() if AGE.fullmatch(text)}
    return {
        'view': map_cells(table['Frontal/Lateral'], VIEW_CELLS, source, dtype=object),
        'sex': map_cells(table['Sex'], SEXES, source, dtype=object),
        'age': map_cells(table['Age'], ages, source, allowed='numbers from 0'),
        'ap_pa': map_cells(table['AP/PA'], PROJECTIONS, source, dtype=object),
    }


def _unknown(size: int) -> dict[str, np.ndarray]:
    return {
        'sex': np.full(size, 'Unknown', object),
        'age': np.full(size, np.nan),
        'ap_pa': np.full(size, '', object),
    }


def views_from_names(paths: pd.Series, source: str) -> np.ndarray:
    views = [VIEW_NAME.search(path) for path in paths]
    if None in views:
        problem = 'names no view: expected a name such as view1_frontal.jpg or view2_lateral.jpg'
        raise cell_error(source, paths, views.index(None), problem)
    return np.array([view[1] for view in views], object)


def _patient_order(patients: np.ndarray, *, key: str) -> tuple[np.ndarray, int]:
    """Rank of each record's patient under a keyed hash of the name, and the number of patients."""
    codes, names = pd.factorize(patients)
    hashes = [hashlib.blake2b(os.fsencode(name), key=key.encode()).digest() for name in names]
    order = sorted(range(len(names)), key=hashes.__getitem__)
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return rank[codes], len(names)


def _share(fraction: float, count: int) -> int:
    """The fraction of the count, rounded up; 0.07 of 100 is 7, though floats give a little more."""
    return math.ceil(fraction * count * (1 - 1e-12))

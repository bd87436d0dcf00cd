"""Checking a whole data set: everything that is wrong with it, not only the first fault.

What the readers refuse at the first fault is found row by row (`data.check_tables` and the layouts'
`data.check_chexpert`, `data.check_mimic`); every picture that a CSV names is read
(`data.check_pictures`); then splits are compared by patient, by file and by pixels.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.check_chexpert import check_csv
from data.check_findings import Findings
from data.check_mimic import check_mimic
from data.check_pictures import DIGEST_BYTES, look_at_all
from data.check_tables import Folder, Split
from data.packed import STORE_FILE, Store, file_problems, is_store, read_about


@dataclass(frozen=True)
class Layout:
    """What the data set is, in the terms of the options of DATA."""

    dataset: str  # 'chexpert', 'mimic-cxr', 'folder'
    csv_names: Mapping[str, str]  # split -> its file; of 'chexpert'
    optional: tuple[str, ...] = ()  # of these files, those that may be absent
    image_suffix: str = ''
    labeller: str = 'chexpert'  # of 'mimic-cxr'
    blank: str = 'negative'  # what a label is that is not mentioned
    allow_all_images: bool = False  # of 'folder'


@dataclass(frozen=True)
class Checked:
    """What was gone through."""

    rows: dict[str, int]  # CSV and split -> rows whose picture is there
    pictures: int
    seconds: float  # for the pictures


@dataclass(frozen=True)
class _Named:
    """The pictures of all splits, each file once, in the order of the rows that name it first."""

    files: np.ndarray  # [N]
    split: np.ndarray  # [N] int, of the first row
    row: np.ndarray  # [N] of the first row

    def place(self, position: int, splits: list[Split]) -> dict[str, str | int | None]:
        """Where a picture is named first, as a finding has it."""
        csv = splits[self.split[position]].csv
        row = int(self.row[position]) if csv else None
        return {'csv': csv, 'row': row, 'file': self.files[position]}


def check_data(root: Path, layout: Layout, findings: Findings, *, workers: int) -> Checked:
    """Go through a data set or a packed store of it.

    Args:
        root: the folder, or the store.
        layout: how it is to be read.
        findings: where all that is wrong goes.
        workers: processes that read pictures.

    Raises:
        ValueError: if the store is not finished.
    """
    pictures = _open(root, layout, findings)
    if pictures is None:
        return Checked({}, 0, 0.0)
    splits = [split for split in _read_splits(pictures, layout, findings) if len(split.row)]
    if not splits:
        return Checked({}, 0, 0.0)
    _check_patients(splits, findings)
    named = _check_files(splits, findings)
    if layout.dataset != 'folder':
        for file in sorted(set(pictures.files).difference(named.files)):
            findings.add('picture that no CSV names', 'no row of a CSV file names it', file=file)
    if isinstance(pictures, Folder):
        _add_links(pictures.links, named.files, findings)
    start = time.perf_counter()
    digests = _look(root, splits, named, findings, workers=workers)
    seconds = time.perf_counter() - start
    _check_pixels(digests, splits, named, findings)
    rows = {f'{split.csv} {split.name}'.strip(): len(split.row) for split in splits}
    return Checked(rows, len(named.files), seconds)


def _open(root: Path, layout: Layout, findings: Findings) -> Folder | Store | None:
    is_folder = layout.dataset == 'folder'
    if not is_store(root):
        pictures = Folder(root, findings)
        scored = pictures.scored
    else:
        try:
            about = read_about(root)
        except ValueError as error:
            findings.add('damaged store', str(error))
            return None
        problems = file_problems(root, about)
        for text in problems:
            findings.add('damaged store', text)
        if problems:
            return None
        pictures = Store(root)
        scored = [STORE_FILE] if about['scored'] else []
    if is_folder and not layout.allow_all_images:
        for file in scored:
            findings.add('folder with scores', 'it holds pictures to be scored later', file=file)
    return pictures


def _read_splits(pictures: Folder | Store, layout: Layout, findings: Findings) -> list[Split]:
    options = {'image_suffix': layout.image_suffix, 'findings': findings}
    if layout.dataset == 'folder':
        return _all_images(pictures, findings)
    options |= {'blank': layout.blank}
    if layout.dataset == 'mimic-cxr':
        return check_mimic(pictures, labeller=layout.labeller, **options)
    splits = []
    for split, name in layout.csv_names.items():
        if split in layout.optional and not (Path(pictures.path) / name).exists():
            continue
        found = check_csv(split, name, pictures, **options)
        splits += [] if found is None else [found]
    return splits


def _all_images(pictures: Folder | Store, findings: Findings) -> list[Split]:
    if isinstance(pictures, Store):
        for file, problem in pictures.left_out.items():
            findings.add('left out of the store', problem, file=file)
    if not pictures.files:
        findings.add('missing picture', f'there is no picture below {pictures.path}')
    files = np.array(pictures.files, object)
    # Every file is a patient of its own: without splits they are not compared.
    return [Split('', '', np.arange(len(files)), files, files)]


def _check_patients(splits: list[Split], findings: Findings) -> None:
    codes, names = pd.factorize(np.concatenate([split.patient for split in splits]))
    owners = np.repeat(np.arange(len(splits)), [len(split.row) for split in splits])
    rows = np.concatenate([split.row for split in splits])
    counts = pd.DataFrame({'patient': codes, 'split': owners, 'row': rows})
    counts = counts.groupby(['patient', 'split'])['row'].agg(['size', 'first']).reset_index()
    for code, group in counts[counts['patient'].duplicated(keep=False)].groupby('patient'):
        places = ', '.join(
            f'{splits[p.split].name} ({p.size} rows of {splits[p.split].csv}, the first {p.first})'
            for p in group.itertuples()
        )
        last = group.iloc[-1]
        csv, row = splits[last['split']].csv, int(last['first'])
        findings.add('patient in two splits', f'{names[code]} is in {places}', csv=csv, row=row)


def _check_files(splits: list[Split], findings: Findings) -> _Named:
    """The pictures, each once; those that a second split names are found."""
    codes, files = pd.factorize(np.concatenate([split.file for split in splits]))
    owners = np.repeat(np.arange(len(splits)), [len(split.row) for split in splits])
    rows = np.concatenate([split.row for split in splits])
    firsts = np.unique(codes, return_index=True)[1]
    named = _Named(files, owners[firsts], rows[firsts])
    for position in np.flatnonzero(owners != named.split[codes]).tolist():
        split, first = splits[owners[position]], named.place(codes[position], splits)
        detail = f'row {first["row"]} of {first["csv"]} names it, too'
        place = {'csv': split.csv, 'row': int(rows[position]), 'file': first['file']}
        findings.add('picture in two splits', detail, **place)
    return named


def _add_links(links: Mapping[str, str], files: np.ndarray, findings: Findings) -> None:
    """The links out of the folder that no picture is read through: those have findings then."""
    if not links:
        return
    read = set(files) | {parent.as_posix() for f in files for parent in PurePosixPath(f).parents}
    for file, text in links.items():
        if file not in read:
            findings.add('link that leaves the folder', text, file=file)


def _look(
    root: Path, splits: list[Split], named: _Named, findings: Findings, *, workers: int
) -> np.ndarray:  # [N] bytes
    digests = np.zeros(len(named.files), f'S{DIGEST_BYTES}')
    looks = look_at_all(root, named.files, workers=workers)
    interval = 0.5 if sys.stderr.isatty() else 30  # a log gets a line now and then
    bar = tqdm(looks, desc='check', total=len(digests), unit='image', mininterval=interval)
    for position, look in enumerate(bar):
        digests[position] = look.digest
        for kind, detail in look.problems:
            findings.add(kind, detail, **named.place(position, splits))
    return digests


def _check_pixels(
    digests: np.ndarray, splits: list[Split], named: _Named, findings: Findings
) -> None:
    """Find pictures with the pixels of an earlier one, if possible of one of another split."""
    order = np.argsort(digests, kind='stable')
    order = order[digests[order] != b'']
    starts = np.flatnonzero(digests[order][1:] != digests[order][:-1]) + 1
    for group in np.split(order, starts):
        firsts = {}  # split -> the first picture of the group in it
        for position in group.tolist():
            own = int(named.split[position])
            others = [first for split, first in firsts.items() if split != own]
            if firsts:
                earlier = named.place(min(others, default=firsts.get(own)), splits)
                row = f' (row {earlier["row"]} of {earlier["csv"]})' if earlier['csv'] else ''
                kind = 'same pixels in two splits' if others else 'same pixels'
                detail = f'the pixels are those of {earlier["file"]}{row}'
                findings.add(kind, detail, **named.place(position, splits))
            firsts.setdefault(own, position)

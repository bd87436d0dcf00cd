"""Check a whole data set: find everything that is wrong with it, not only the first fault.

The CSV files are read by the readers of `data.records`, which here collect their faults. Every
image is decoded, and splits are compared by patient, by file and by pixels.
"""

import csv
import hashlib
import os
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import pandas as pd
from PIL import Image, ImageChops
from tqdm import tqdm

from config import Config
from data.images import FORMATS, full_size, load_image
from data.labels import LABELS, UNCERTAIN, scored_targets
from data.packing import start_worker
from data.records import DATASETS, Fault, Folder, Records, Table, open_images, views_in_names
from data.store import Store, is_store, open_store

COLUMNS = ('severity', 'kind', 'csv', 'row', 'file', 'detail')
SEVERITIES = ('error', 'warning', 'note')
EXAMPLES = 3  # of each kind, in the summary

CHUNK_IMAGES = 32
DIGEST_BYTES = 16
MIN_SIDE, MAX_SIDE = 64, 10_000  # in pixels
MAX_ASPECT = 3
FEW_LEVELS = 16  # an X-ray has more grey levels
COLOUR_MODES = ('P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr')
COLOUR_LEVELS = 8  # difference between channels that JPEG alone can cause


class Findings:
    """Writes each fault as a row of a CSV file, and keeps counts and examples of each kind."""

    def __init__(self, out: TextIO) -> None:
        self._writer = csv.writer(out, lineterminator='\n')
        self._writer.writerow(COLUMNS)
        self._seen: set[Fault] = set()
        self.kinds: Counter[tuple[str, str]] = Counter()  # (severity, kind) -> how many
        self._examples: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, fault: Fault) -> None:
        """Add a fault; the same fault is added once."""
        if fault in self._seen:
            return
        self._seen.add(fault)
        row, name = fault.row or '', Path(fault.csv).name
        cells = [fault.severity, fault.kind, name, row, fault.file, fault.detail]
        self._writer.writerow(cells)
        kind = (fault.severity, fault.kind)
        self.kinds[kind] += 1
        if len(self._examples[kind]) < EXAMPLES:
            place = f'{name}, row {row}' if row else name
            self._examples[kind].append(': '.join(filter(None, (place, fault.file, fault.detail))))

    def count(self, severity: str) -> int:
        """How many faults there are of a severity."""
        return sum(count for (own, _), count in self.kinds.items() if own == severity)

    def describe(self) -> str:
        """Counts by kind, and the first examples of each."""
        lines = []
        for kind in sorted(self.kinds, key=lambda kind: SEVERITIES.index(kind[0])):
            lines.append(f'{": ".join(kind)}: {self.kinds[kind]:,}')
            lines += [f'    {example}' for example in self._examples[kind]]
        totals = (f'{severity}s {self.count(severity):,}' for severity in SEVERITIES)
        return '\n'.join([*lines, ', '.join(totals)])


@contextmanager
def written(path: Path) -> Iterator[Findings]:
    """Findings that are written to a file, which appears when the list is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.tmp')
    try:
        with open(temporary, 'w', newline='', encoding='utf-8', errors='backslashreplace') as out:
            yield Findings(out)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Checked:
    """What was checked."""

    rows: dict[str, int]  # split -> images that exist
    images: int
    seconds: float  # for the images


def check_data(
    config: Config, findings: Findings, *, optional: Sequence[str], workers: int
) -> Checked:
    """Check the data set of a config, which may be a packed store.

    Args:
        config: Run configuration; its DATA section says how the data set is read.
        findings: Collects everything that is wrong.
        optional: The splits that may be absent.
        workers: Number of processes that read images.

    Raises:
        ValueError: If the store is not finished.
    """
    root, dataset = Path(config.DATA.DATA_PATH), DATASETS[config.DATA.DATASET]
    packed = is_store(root)
    try:
        images = open_images(root)
    except ValueError as error:
        findings.add(Fault('damaged store', str(error)))
        return Checked({}, 0, 0.0)
    splits = {}
    for split in ('train', 'valid', 'test'):
        options = {'optional': split in optional, 'look_up': 'all', 'on_fault': findings.add}
        records = dataset.read(config, root, split, logger=None, **options)
        if records is not None and len(records):
            splits[split] = records
            if dataset.labelled:
                _check_labels(split, records, findings, blank=config.DATA.BLANK)
    if not splits:
        return Checked({}, 0, 0.0)
    named = _name_images(splits)
    if dataset.labelled:
        _compare_splits(splits, named, findings)
        _find_unnamed(images, set(named['file']), findings)
    unique = named.drop_duplicates('file').reset_index(drop=True)
    start = time.perf_counter()
    looks = look_at_all(root if packed else images.path, unique['file'], workers=workers)
    digests = _report_looks(looks, unique, findings)
    seconds = time.perf_counter() - start
    _compare_pixels(digests, unique, findings)
    return Checked({name: len(part) for name, part in splits.items()}, len(unique), seconds)


# ---- Records


def _name_images(splits: Mapping[str, Records]) -> pd.DataFrame:
    """One row per record of all splits: split, csv, row (None in a folder), file, patient."""
    tables = []
    for split, records in splits.items():
        columns = {'file': records.file, 'patient': records.patient}
        table = pd.DataFrame({**columns, 'row': _csv_rows(records)}, dtype=object)
        tables.append(table.assign(split=split, csv=records.csv))
    return pd.concat(tables, ignore_index=True)


def _csv_rows(records: Records) -> np.ndarray:  # [N] object
    """The row of the CSV file of each record, the header being row 1; None in a folder."""
    if not records.csv:
        return np.full(len(records), None, object)
    table = Table(records.root / records.csv, lambda fault: None)
    if 'Study' not in table or 'Path' in table:
        return (records.row + 2).astype(object)
    rows = dict(zip(table['Study'], table.cells.index + 2, strict=True))
    return np.array([rows[study] for study in records.study], object)


def _check_labels(split: str, records: Records, findings: Findings, *, blank: str) -> None:
    """Labels of one class, labels that differ within a study, views unlike the file names."""
    csv_file, wrong = str(records.root / records.csv), np.isinf(records.labels)
    labels = np.where(wrong, UNCERTAIN, records.labels)
    targets = scored_targets(labels, task='observations', blank=blank)
    for k, label in enumerate(LABELS):
        for name, value in (('positive', 1), ('negative', 0)):
            if not wrong[:, k].all() and not (targets[:, k] == value).any():
                detail = f'{label}: no {name} in the {len(records):,} images of {split}'
                kind = f'label without a {name}'
                findings.add(Fault(kind, detail, csv_file, severity='warning'))
    codes = pd.factorize(records.study)[0]
    first = np.unique(codes, return_index=True)[1][codes]  # first image of each record's study
    same = (labels == labels[first]) | (np.isnan(labels) & np.isnan(labels[first]))
    differ = ~same & ~wrong & ~wrong[first]
    rows, views = _csv_rows(records), views_in_names(records.path)
    seen = set()
    for place in np.flatnonzero(differ.any(axis=1)).tolist():
        if codes[place] not in seen:  # one fault per study
            seen.add(codes[place])
            names = ', '.join(np.array(LABELS)[differ[place]])
            detail = f'from row {rows[first[place]]}: {names}'
            options = (csv_file, rows[place], records.path[place], 'warning')
            findings.add(Fault('labels of a study differ', detail, *options))
    unlike = (views != '') & (records.view != '') & (views != records.view)
    for place in np.flatnonzero(unlike).tolist():
        detail = f'the view is {records.view[place]}, the name says {views[place]}'
        options = (csv_file, rows[place], records.path[place], 'warning')
        findings.add(Fault('view unlike the name', detail, *options))


def _compare_splits(splits: Mapping[str, Records], named: pd.DataFrame, findings: Findings) -> None:
    """Find the patients and the files of two splits."""
    for one, other in combinations(splits, 2):
        first, second = (named[named['split'] == split] for split in (one, other))
        if splits[one].csv != splits[other].csv:  # else the reader has compared them
            shared = second[second['patient'].isin(first['patient'])].drop_duplicates('patient')
            for entry in shared.itertuples():
                row = first['row'][first['patient'] == entry.patient].iloc[0]
                detail = f'{entry.patient} of {other} is in row {row} of {one}, too'
                findings.add(Fault('patient in two splits', detail, entry.csv, entry.row))
        rows = first.set_index('file')['row']
        for entry in second[second['file'].isin(first['file'])].itertuples():
            detail = f'row {rows[entry.file]} of {one} names it, too'
            findings.add(Fault('image in two splits', detail, entry.csv, entry.row, entry.file))


def _find_unnamed(images: Store | Folder, named: set[str], findings: Findings) -> None:
    """Find images that no CSV file names. Links matter only if a CSV file names them."""
    if isinstance(images, Folder):
        faults: list[Fault] = []
        files = Folder(images.path, faults.append).below()
        for fault in faults:
            if fault.kind != 'link that leaves the folder':
                findings.add(fault)
    else:
        files = images.files
    for file in sorted(set(files) - named):
        detail = 'no usable row of a CSV file names it'
        findings.add(Fault('image that no CSV names', detail, file=file, severity='note'))


# ---- Images


class Look(NamedTuple):
    """What was found in one image."""

    digest: bytes  # of its pixels; b'' if they cannot be used
    problems: list[tuple[str, str, str]]  # kind, detail, severity


def look_at_all(root: Path, files: Sequence[str], *, workers: int) -> Iterator[Look]:
    """Look at the images of a folder or a packed store, in order.

    An image that ends the process that reads it is unusable.

    Args:
        root: The folder or the store.
        files: Relative to it.
        workers: Number of processes.
    """
    files, done = list(files), 0
    while done < len(files):
        pool = ProcessPoolExecutor(workers, initializer=start_worker)
        try:
            rest = files[done:]
            for look in pool.map(partial(look_at, root), rest, chunksize=CHUNK_IMAGES):
                yield look
                done += 1
        except BrokenProcessPool:
            suspects = files[done : done + CHUNK_IMAGES]
            for file in suspects:
                yield _look_alone(root, file)
            done += len(suspects)
        finally:
            pool.shutdown(cancel_futures=True)


def look_at(root: Path, file: str) -> Look:
    """Look at one image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow warns of odd metadata
            image, problems = _read(root, file)
            levels = _levels(image)
    except (ValueError, OSError, SyntaxError, MemoryError) as error:
        return Look(b'', [('unusable image', str(error) or repr(error), 'error')])
    problems += _size_problems(*full_size(image))
    count = _count_levels(levels)
    if count < FEW_LEVELS:
        problems.append(('few grey levels', f'the image has only {count} grey levels', 'warning'))
    if image.mode == 'F' and levels.dtype == np.uint8:
        detail = 'the file has more than 8 bits per pixel but only 8 bits of grey levels'
        problems.append(('bit depth', detail, 'warning'))
    return Look(_digest(levels), problems)


def _look_alone(root: Path, file: str) -> Look:
    with ProcessPoolExecutor(1, initializer=start_worker) as pool:
        try:
            return pool.submit(look_at, root, file).result()
        except BrokenProcessPool:
            detail = 'reading it ended the process (memory?)'
            return Look(b'', [('unusable image', detail, 'error')])


def _report_looks(
    looks: Iterator[Look], unique: pd.DataFrame, findings: Findings
) -> np.ndarray:  # [N] bytes
    digests = np.zeros(len(unique), f'S{DIGEST_BYTES}')
    interval = 0.5 if sys.stderr.isatty() else 30  # a log gets a line now and then
    bar = tqdm(looks, desc='check', total=len(unique), unit='image', mininterval=interval)
    for position, look in enumerate(bar):
        digests[position], entry = look.digest, unique.loc[position]
        for kind, detail, severity in look.problems:
            findings.add(Fault(kind, detail, entry['csv'], entry['row'], entry['file'], severity))
    return digests


def _compare_pixels(digests: np.ndarray, unique: pd.DataFrame, findings: Findings) -> None:
    """Find images with the pixels of an earlier one, if possible of another split."""
    groups = unique.assign(digest=list(digests))[digests != b''].groupby('digest', sort=False)
    for _, group in groups:
        firsts: dict[str, tuple] = {}  # split -> its first image of the group
        for entry in group.itertuples() if len(group) > 1 else ():
            others = [first for split, first in firsts.items() if split != entry.split]
            if firsts:
                earlier = (others or list(firsts.values()))[0]
                row = f' (row {earlier.row} of {earlier.csv})' if earlier.csv else ''
                kind = 'same pixels in two splits' if others else 'same pixels'
                detail = f'the pixels are those of {earlier.file}{row}'
                severity = 'error' if others else 'warning'
                findings.add(Fault(kind, detail, entry.csv, entry.row, entry.file, severity))
            firsts.setdefault(entry.split, entry)


def _read(root: Path, file: str) -> tuple[Image.Image, list[tuple[str, str, str]]]:
    """An image and what is odd about its colours, which are unknown for a packed one."""
    if not is_store(root):
        return load_image(root / file, root), _colour_problems(root / file)
    store = _store(str(root))
    return store.image(int(store.position([file])[0])), []


@lru_cache(1)
def _store(path: str) -> Store:
    return open_store(path)


def _colour_problems(path: Path) -> list[tuple[str, str, str]]:
    if path.suffix.lower() == '.dcm':
        return []
    with Image.open(path, formats=FORMATS) as image:
        if image.mode not in COLOUR_MODES:
            return []
        red, green, blue = image.convert('RGB').split()
    pairs = ((red, green), (green, blue))
    apart = max(ImageChops.difference(*pair).getextrema()[1] for pair in pairs)
    if apart <= COLOUR_LEVELS:
        return []
    return [('colour', f'colour channels differ by up to {apart} levels', 'warning')]


def _size_problems(height: int, width: int) -> list[tuple[str, str, str]]:
    short, long = sorted((height, width))
    found = {
        'small image': (short < MIN_SIDE, f'a side is under {MIN_SIDE}'),
        'large image': (long > MAX_SIDE, f'a side is over {MAX_SIDE}'),
        'narrow image': (
            long > MAX_ASPECT * short,
            f'one side is over {MAX_ASPECT} times the other',
        ),
    }
    size = f'{width} x {height} px'
    return [(k, f'{size}: {why}', 'warning') for k, (holds, why) in found.items() if holds]


def _levels(image: Image.Image) -> np.ndarray:  # [H, W] uint8 or uint16
    """The same numbers for the same grey levels, whatever the bit depth of the file."""
    pixels = np.asarray(image)
    if image.mode == 'L':
        return pixels
    levels = np.rint(np.clip(pixels, 0, 255) * np.float32(257)).astype(np.uint16)
    # Levels of 8 bits, stretched to 16, are multiples of 257.
    return levels if (levels % 257).any() else (levels // 257).astype(np.uint8)


def _count_levels(levels: np.ndarray) -> int:
    if levels.dtype == np.uint8:
        return np.count_nonzero(Image.fromarray(levels).histogram())
    return np.count_nonzero(np.bincount(levels.ravel(), minlength=2**16))


def _digest(levels: np.ndarray) -> bytes:
    digest = hashlib.blake2b(np.ascontiguousarray(levels).data, digest_size=DIGEST_BYTES)
    digest.update(repr((levels.shape, levels.dtype.str)).encode())
    return digest.digest()

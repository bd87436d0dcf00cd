"""Check a whole data set: find everything that is wrong with it, not only the first fault.

The CSV files are read by the readers of `data.records`, which here collect their faults. Every
image is decoded, and splits are compared by patient and by pixels.
"""

import hashlib
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from config import Config
from data.images import COLOUR_LEVELS, colour_difference, load_image
from data.labels import label_columns, scored_targets
from data.packing import start_worker
from data.records import DATASETS, Fault, Folder, Records, open_images
from data.store import Store
from engine.files import allow_open_files

COLUMNS = ('kind', 'detail', 'csv', 'row', 'file', 'severity')  # the fields of a fault
SEVERITIES = ('error', 'warning', 'note')
EXAMPLES = 3  # of each kind, in the summary

CHUNK_IMAGES = 32
DIGEST_BYTES = 16
FEW_LEVELS = 16  # an X-ray has more grey levels


class Findings:
    """The faults of a data set, each once."""

    def __init__(self) -> None:
        self.faults: dict[Fault, None] = {}

    def add(self, fault: Fault) -> None:
        """Add a fault; the same fault is added once."""
        self.faults.setdefault(fault)

    def table(self) -> pd.DataFrame:
        """One row per fault, with the name of the CSV file and not its folder."""
        table = pd.DataFrame([astuple(fault) for fault in self.faults], columns=COLUMNS)
        table = table.astype({'row': 'Int64'})
        table['csv'] = [Path(name).name for name in table['csv']]
        return table[['severity', 'kind', 'csv', 'row', 'file', 'detail']]

    def count(self, severity: str) -> int:
        """How many faults there are of a severity."""
        return sum(fault.severity == severity for fault in self.faults)

    def describe(self) -> str:
        """Counts by kind, and the first examples of each."""
        lines, table = [], self.table()
        for severity in SEVERITIES:
            for kind, group in table[table['severity'] == severity].groupby('kind'):
                lines.append(f'{severity}: {kind}: {len(group):,}')
                for entry in group.head(EXAMPLES).itertuples():
                    row = '' if pd.isna(entry.row) else f'row {entry.row}'
                    parts = filter(None, (entry.csv, row, entry.file, entry.detail))
                    lines.append(f'    {": ".join(parts)}')
        totals = (f'{severity}s {self.count(severity):,}' for severity in SEVERITIES)
        return '\n'.join([*lines, ', '.join(totals)])


@dataclass(frozen=True)
class Checked:
    """What was checked."""

    rows: dict[str, int]  # split -> images that exist
    images: int
    seconds: float  # for the images


def check_data(
    config: Config, findings: Findings, *, optional: tuple[str, ...], workers: int
) -> Checked:
    """Check the data set of a config, which may be a packed store, and collect all that is wrong.

    The splits in `optional` may be absent.
    """
    root, dataset, splits = Path(config.DATA.DATA_PATH), DATASETS[config.DATA.DATASET], {}
    for split in ('train', 'valid', 'test'):
        options = {'look_up': 'all', 'logger': None, 'on_fault': findings.add}
        options['labels'] = label_columns(config.DATA.LABELS)
        try:
            records = dataset.read(config, root, split, optional=split in optional, **options)
        except ValueError as error:  # the folder or the store as a whole
            findings.add(Fault('unreadable data set', str(error)))
            continue
        if records is not None and len(records):
            splits[split] = records
            if dataset.labelled:
                _check_labels(split, records, findings, blank=config.DATA.BLANK)
    if not splits:
        return Checked({}, 0, 0.0)
    images = open_images(root)
    named = pd.concat(
        pd.DataFrame({'file': part.file, 'patient': part.patient, 'split': split, 'csv': part.csv})
        for split, part in splits.items()
    )
    if dataset.labelled:
        _compare_patients(named, findings)
        _find_unnamed(images, set(named['file']), findings)
    unique = named.drop_duplicates('file')
    start = time.perf_counter()
    digests = _look_at_all(images, unique, findings, workers)
    seconds = time.perf_counter() - start
    _compare_pixels(unique.assign(digest=digests), findings)
    return Checked({name: len(part) for name, part in splits.items()}, len(unique), seconds)


def look_at(images: Store | Folder, file: str) -> tuple[bytes, str, str]:
    """Read an image; return a digest of its pixels (b'' if it is unusable), a kind and a detail.

    The digest is of grey levels that are rounded to 8 bits, so that it does not depend on the form
    of the file. The kind is '' if nothing is wrong.
    """
    try:
        if isinstance(images, Store):
            image = images.image(int(images.position([file])[0]))
        else:
            image = load_image(images.path / file, images.path)
    except ValueError as error:
        return b'', 'unusable image', str(error)
    levels = np.rint(np.clip(np.asarray(image), 0, 255)).astype(np.uint8)
    digest = hashlib.blake2b(repr(levels.shape).encode(), digest_size=DIGEST_BYTES)
    digest.update(np.ascontiguousarray(levels).data)
    count = np.count_nonzero(np.bincount(levels.ravel()))
    if count < FEW_LEVELS:
        return digest.digest(), 'few grey levels', f'the image has only {count} grey levels'
    if isinstance(images, Folder):
        levels_apart = colour_difference(images.path / file)
        if levels_apart > COLOUR_LEVELS:
            detail = f'the colour channels differ by up to {levels_apart} levels'
            return digest.digest(), 'colour image', detail
    return digest.digest(), '', ''


def _check_labels(split: str, records: Records, findings: Findings, *, blank: str) -> None:
    """Find labels of one class, and studies whose images differ in labels."""
    csv_file = str(records.root / records.csv)
    names = records.label_names
    targets = scored_targets(records.labels, task='observations', blank=blank, names=names)
    for k, label in enumerate(names):
        for name, value in (('positive', 1), ('negative', 0)):
            if not (targets[:, k] == value).any():
                kind = f'label without a {name}'
                detail = f'{label}: no {name} in the {len(records):,} images of {split}'
                findings.add(Fault(kind, detail, csv_file, severity='warning'))
    labels = pd.DataFrame(records.labels, columns=names)
    counts = labels.groupby(records.study).nunique(dropna=False)
    for study, differs in (counts[(counts > 1).any(axis=1)] > 1).iterrows():
        detail, kind = ', '.join(differs[differs].index), 'labels of a study differ'
        findings.add(Fault(kind, detail, csv_file, file=study, severity='warning'))


def _compare_patients(named: pd.DataFrame, findings: Findings) -> None:
    places = named.drop_duplicates(['patient', 'split'])
    first = places.drop_duplicates('patient').set_index('patient')['split']
    for entry in places[places.duplicated('patient')].itertuples():
        detail = f'{entry.patient} of {entry.split} is also in {first[entry.patient]}'
        findings.add(Fault('patient in two splits', detail, entry.csv, file=entry.file))


def _find_unnamed(images: Store | Folder, named: set[str], findings: Findings) -> None:
    """Find images that no CSV file names. Links matter only if a CSV file names them."""
    if isinstance(images, Folder):
        images = Folder(images.path, lambda fault: None)
    files = images.below() if isinstance(images, Folder) else images.files
    for file in sorted(set(files) - named):
        detail = 'no usable row of a CSV file names it'
        findings.add(Fault('image that no CSV names', detail, file=file, severity='note'))


def _look_at_all(
    images: Store | Folder, unique: pd.DataFrame, findings: Findings, workers: int
) -> list[bytes]:
    digests = []
    allow_open_files(workers)
    with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
        looks = pool.map(partial(look_at, images), unique['file'], chunksize=CHUNK_IMAGES)
        bar = tqdm(looks, desc='check', total=len(unique), unit='image')
        try:
            for (digest, kind, detail), entry in zip(bar, unique.itertuples(), strict=True):
                digests.append(digest)
                if kind:
                    severity = 'warning' if digest else 'error'
                    findings.add(Fault(kind, detail, entry.csv, None, entry.file, severity))
        except BrokenProcessPool:
            detail = 'a process was killed (out of memory?) at this image or one of the next ones'
            file = unique['file'].iloc[len(digests)]
            findings.add(Fault('images that were not checked', detail, file=file))
    return digests + [b''] * (len(unique) - len(digests))


def _compare_pixels(images: pd.DataFrame, findings: Findings) -> None:
    """Find images with the pixels of an earlier one."""
    images = images[images['digest'] != b'']
    first = images.drop_duplicates('digest').set_index('digest')
    for entry in images[images.duplicated('digest')].itertuples():
        earlier = first.loc[entry.digest]
        is_leak = entry.split != earlier['split']
        kind = 'same pixels in two splits' if is_leak else 'same pixels'
        detail = f'the pixels are those of {earlier["file"]}'
        severity = 'error' if is_leak else 'warning'
        findings.add(Fault(kind, detail, entry.csv, None, entry.file, severity))

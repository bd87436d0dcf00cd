"""Check a whole data set and list all its faults.

The readers collect the faults of the CSV files. Every image is decoded, and the
splits are compared by patient and by pixels.
"""

import hashlib
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.spatial import cKDTree
from tqdm import tqdm

from config import Config
from data.images.files import CONTRADICTION, grey_levels
from data.images.image_source import ImageSource, open_images
from data.packing import start_worker
from data.tables.chexpert import open_data_set
from data.tables.identity import patient_forms
from data.tables.labels import evaluation_targets
from data.tables.reading import mark_left_out
from data.tables.records import Records, task_of
from data.tables.table import Fault
from system.files import allow_open_files

LOOKS = ['file', 'split', 'patient', 'digest', 'thumbnail']  # columns of `Checked.looks`
COLUMNS = ['severity', 'kind', 'csv', 'row', 'file', 'detail']  # of a fault, in the list
SEVERITIES = ('error', 'warning', 'note')
EXAMPLES = 3  # of each kind, in the summary

CHUNK_IMAGES = 32
DIGEST_BYTES = 16
FEW_LEVELS = 16  # an X-ray has more grey levels
SAME_PATIENT, SAME_PIXELS = 'patient in two splits', 'same pixels in two splits'
SAME_LOOK = ('same X-ray in two splits', 'same X-ray in two sources')
THUMBNAIL = 8
LEAST_DEVIATION = 0.004  # of the ranks in a thumbnail, so that noise does not fill it
# Largest difference between two thumbnails of one X-ray. For 600 real X-rays of 256 px, thumbnails
# changed by up to 0.20 at half or a quarter of the size, in JPEG files of quality 50, at 0.7 times
# the brightness, at gamma 0.6, equalised or inverted. Those of 7,000 different X-rays differed by
# 0.30 or more. At 1.3 times the brightness (cut off at white), 316 of 600 changed by more.
SAME_XRAY = 0.25


class Findings:
    """The faults of a data set, without repetitions.

    Attributes:
        source: Name of the current source, which is put before the names of CSV files and images.
    """

    def __init__(self) -> None:
        self.source = ''
        self.faults: dict[Fault, None] = {}

    def add(self, fault: Fault) -> None:
        """Add a fault unless it has been added before."""
        names = {'csv': Path(fault.csv).name, 'file': fault.file}
        names = {k: os.path.join(self.source, name) if name else '' for k, name in names.items()}
        self.faults.setdefault(replace(fault, **names))

    def table(self) -> pd.DataFrame:
        """Return a table with one row per fault; CSV files are named without their folder."""
        columns = {name: [getattr(fault, name) for fault in self.faults] for name in COLUMNS}
        return pd.DataFrame(columns, dtype=object).astype({'row': 'Int64'})

    def count(self, severity: str) -> int:
        """Count the faults of a severity."""
        return sum(fault.severity == severity for fault in self.faults)

    def describe(self) -> str:
        """List the kinds of faults with their counts and first examples."""
        lines, table = [], self.table()
        for severity in SEVERITIES:
            kinds = table[table['severity'] == severity].groupby('kind', sort=False)
            for kind, group in kinds:  # in the order of discovery, so that causes come first
                lines.append(f'{severity}: {kind}: {len(group):,}')
                for entry in group.head(EXAMPLES).itertuples():
                    row = '' if pd.isna(entry.row) else f'row {entry.row}'
                    parts = filter(None, (entry.csv, row, entry.file, entry.detail))
                    lines.append(f'    {": ".join(parts)}')
        totals = (f'{severity}s {self.count(severity):,}' for severity in SEVERITIES)
        return '\n'.join([*lines, ', '.join(totals)])


@dataclass(frozen=True)
class Checked:
    """What was checked of a data set."""

    rows: dict[str, int]  # number of existing images by split
    looks: pd.DataFrame  # file, split, patient, digest and thumbnail (or None) of each image
    read: tuple[Records, ...] = ()  # records of the splits, with the images that are left out


def list_duplicates(checked: dict[str, Checked], findings: Findings) -> pd.DataFrame:
    """Return the table of `find_duplicates` by source, and add its X-rays as warnings."""
    duplicates = find_duplicates({name: each.looks for name, each in checked.items()})
    for entry in duplicates[duplicates['why'].isin(SAME_LOOK)].itertuples():
        detail = f'{entry.same_as} shows the same X-ray'
        findings.add(Fault(entry.why, detail, '', None, entry.file, 'warning'))
    return duplicates


def find_duplicates(looks: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Find images that are also in another split or source, and patients in two splits.

    X-rays are compared by their thumbnails. A training image is listed if a scored split of any
    source contains the X-ray, if an earlier source trains on it, or if its patient is also in a
    scored split of its source. An image of valid is listed if its X-ray or its patient is also in
    test. Without the listed images, one copy of each X-ray remains, no scored X-ray is trained on,
    and each patient of a source is in one split.

    Args:
        looks: `Checked.looks` by source; the name of a single data set is ''.

    Returns:
        Table for DATA.LEAVE_OUT with the columns `file`, `same_as` (an image that remains) and
        `why`. The names of images begin with the name of their source.
    """
    images = pd.concat(
        part.assign(file=[os.path.join(name, file) for file in part['file']], source=number)
        for number, (name, part) in enumerate(looks.items())
    )
    found = [pd.DataFrame(columns=['file', 'same_as', 'why'])]
    for (source, split), own in images.groupby(['source', 'split']):
        is_own = images['source'] == source
        if split == 'train':
            kept = (images['split'] != 'train') | (images['source'] < source)
            found.append(_same_look(own, images[kept]))
            found.append(_same_patient(own, images[is_own & (images['split'] != 'train')]))
        elif split == 'valid':
            kept = images[is_own & (images['split'] == 'test')]
            found += [_same_look(own, kept), _same_patient(own, kept)]
    return pd.concat(found, ignore_index=True).drop_duplicates('file', ignore_index=True)


def _same_look(images: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """List the images that look like one of the others."""
    images, others = images.dropna(), others.dropna()
    if not (len(images) and len(others)):
        return pd.DataFrame()
    tree, thumbnails = cKDTree(np.stack(others['thumbnail'])), np.stack(images['thumbnail'])
    both = np.stack([thumbnails, -thumbnails], axis=1)  # as it is, and inverted: [N, 2, F]
    distances, places = tree.query(both, p=np.inf, distance_upper_bound=SAME_XRAY)
    nearest = distances.argmin(axis=1)[:, None]
    same = np.take_along_axis(distances, nearest, axis=1)[:, 0] < np.inf
    places = np.take_along_axis(places, nearest, axis=1)[:, 0]
    images, others = images[same], others.iloc[places[same]]
    is_own, is_copy = (
        images[key].to_numpy() == others[key].to_numpy() for key in ('source', 'digest')
    )
    why = np.select([is_own & is_copy, is_own], [SAME_PIXELS, SAME_LOOK[0]], SAME_LOOK[1])
    return pd.DataFrame({'file': images['file'], 'same_as': others['file'].to_numpy(), 'why': why})


def _same_patient(images: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """List the images of patients who also have one of the others."""
    forms, own = (patient_forms(part['patient']) for part in (others, images))
    first = others.assign(form=forms).drop_duplicates('form').set_index('form')['file']
    is_same = np.isin(own, first.index.to_numpy(object))
    images, same_as = images[is_same], first.loc[own[is_same]].to_numpy()
    return pd.DataFrame({'file': images['file'], 'same_as': same_as, 'why': SAME_PATIENT})


def check_data(
    config: Config,
    findings: Findings,
    *,
    optional: tuple[str, ...],
    workers: int,
    labelled: bool = True,
) -> Checked:
    """Check the data set of a config, which may be a packed store, and collect all faults.

    Splits in `optional` may be absent. Labels are only read if `labelled` is set.
    """
    data_set, splits, whole = open_data_set(config), {}, []
    task, num_errors = task_of(config), findings.count('error')
    listed: set[str] = set()  # files that the tables name
    options = {'labels': task.columns if labelled else ()}
    for split in ('train', 'valid', 'test'):
        try:
            read = partial(data_set.read, split, optional=split in optional, **options)
            records = named = read(look_up='all', on_fault=findings.add)
            if records is not None and not len(records):  # labels can be checked without images
                named = read(look_up='none', on_fault=findings.add)
        except ValueError as error:  # concerns the whole folder or store
            findings.add(Fault('unreadable data set', str(error)))
            continue
        if records is not None and len(records):
            listed |= {*records.file}
            records = mark_left_out(config, records, findings.source)
            whole.append(records)
            if records.num_left_out:
                detail = f'{records.num_left_out:,} images of {split} are left out'
                findings.add(Fault('DATA.LEAVE_OUT', detail, records.csv, severity='note'))
            splits |= {split: kept} if len(kept := records.kept()) else {}
        if named is not None and len(named) and data_set.labelled and labelled:
            _check_labels(split, named, findings, blank=config.DATA.BLANK)
            if task.exclusive:
                try:
                    task.scored(named)
                except ValueError as error:
                    findings.add(Fault('several classes', str(error)))
    if not splits:
        if findings.count('error') == num_errors:
            findings.add(Fault('no images', f'{data_set.root}: no split has an image'))
        return Checked({}, pd.DataFrame(columns=LOOKS), (*whole,))
    images = open_images(data_set.root)
    named = pd.concat(
        pd.DataFrame({'file': part.file, 'patient': part.patient, 'split': split, 'csv': part.csv})
        for split, part in splits.items()
    )
    if data_set.labelled:
        _compare_patients(named, findings, config.DATA.ALLOW_SHARED_PATIENTS)
        _find_unnamed(images, listed, findings)
    unique = named.drop_duplicates('file')
    digests, thumbnails = _look_at_all(images, unique, findings, workers)
    unique = unique.assign(digest=digests, thumbnail=thumbnails)
    _compare_pixels(unique, findings)
    rows = {name: len(part) for name, part in splits.items()}
    looks = named[['file', 'split', 'patient']].merge(unique[['file', 'digest', 'thumbnail']])
    return Checked(rows, looks, (*whole,))


def look_at(images: ImageSource, file: str) -> tuple[bytes, str, str, np.ndarray | None]:
    """Read an image to find faults and copies of it.

    Returns:
        Digest of the grey levels, rounded to 8 bits so that it does not depend on the file format;
        b'' if the image is unusable. Kind of the fault; '' for none. Detail of the fault.
        Thumbnail, the mean ranks of the grey levels in THUMBNAIL x THUMBNAIL areas, scaled to mean
        0 and deviation 1; None for few grey levels. Size, brightness, contrast, gamma and
        equalisation hardly change it, and an inverted image has its negative.
    """
    try:
        image = images.reader([file])(0)
    except ValueError as error:
        return b'', 'unusable image', str(error), None
    levels = grey_levels(image)
    digest = hashlib.blake2b(repr(levels.shape).encode(), digest_size=DIGEST_BYTES)
    digest.update(np.ascontiguousarray(levels).data)
    counts = np.array(Image.fromarray(levels).histogram())
    count = np.count_nonzero(counts)
    if count < FEW_LEVELS:
        detail = f'the image has only {count} grey levels'
        return digest.digest(), 'few grey levels', detail, None
    ranks = (np.cumsum(counts) - counts / 2) / levels.size  # of each level, from 0 to 1
    small = Image.fromarray(ranks.astype(np.float32)[levels])
    small = np.asarray(small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).ravel()
    small = (small - small.mean()) / max(small.std(), LEAST_DEVIATION)
    if levels := images.colour_levels(file, image):
        detail = f'the colour channels differ by up to {levels} levels'
        return digest.digest(), 'colour image', detail, small
    if detail := image.info.get(CONTRADICTION):
        return digest.digest(), 'contradictory header', detail, small
    return digest.digest(), '', '', small


def _check_labels(split: str, records: Records, findings: Findings, *, blank: str) -> None:
    """Report labels with one class only, and studies whose images have different labels."""
    csv_file = str(records.root / records.csv)
    names = records.label_names
    targets = evaluation_targets(records.labels, blank, names)
    for name, value in (('positive', 1), ('negative', 0)):
        lacking = [names[k] for k in np.flatnonzero(~(targets == value).any(axis=0))]
        if lacking:
            detail = f'{", ".join(lacking)}: no {name} in {split} (images: {len(records):,})'
            findings.add(Fault(f'labels without a {name}', detail, csv_file, severity='warning'))
    study, studies = pd.factorize(records.study, sort=True)
    labels = np.nan_to_num(records.labels, nan=np.inf)  # blank is a value, too
    first = labels[np.unique(study, return_index=True)[1]]
    image, label = np.nonzero(labels != first[study])
    differs = np.zeros(first.shape, bool)
    differs[study[image], label] = True
    for number in np.flatnonzero(differs.any(axis=1)):
        detail = ', '.join(names[k] for k in np.flatnonzero(differs[number]))
        kind = 'labels of a study differ'
        findings.add(Fault(kind, detail, csv_file, file=studies[number], severity='warning'))


def _compare_patients(named: pd.DataFrame, findings: Findings, is_allowed: bool) -> None:
    """Report patients in two splits, also under two spellings, with their first image."""
    places = named.assign(form=patient_forms(named['patient'])).drop_duplicates(['form', 'split'])
    first = places.drop_duplicates('form').set_index('form')
    for entry in places[places.duplicated('form')].itertuples():
        other = first.loc[entry.form]
        spelt = f' as {other["patient"]}' if other['patient'] != entry.patient else ''
        detail = f'{entry.patient} of {entry.split} is also in {other["split"]}{spelt}'
        severity = 'warning' if is_allowed else 'error'
        findings.add(Fault(SAME_PATIENT, detail, entry.csv, None, entry.file, severity))


def _find_unnamed(images: ImageSource, named: set[str], findings: Findings) -> None:
    """Report images that no CSV file names."""
    for file in sorted({*images.below()} - {*images.left_out} - named):
        detail = 'no usable row of a CSV file names it'
        findings.add(Fault('image that no CSV names', detail, file=file, severity='note'))


def _look_at_all(
    images: ImageSource, unique: pd.DataFrame, findings: Findings, workers: int
) -> tuple[list[bytes], list[np.ndarray | None]]:
    """Look at all images in parallel, and return their digests and thumbnails."""
    digests, thumbnails = [], []
    allow_open_files(workers)
    with ProcessPoolExecutor(workers, initializer=start_worker) as pool:
        looks = pool.map(partial(look_at, images), unique['file'], chunksize=CHUNK_IMAGES)
        bar = tqdm(looks, desc='check', total=len(unique), unit='image', disable=None)
        try:
            looked = zip(bar, unique.itertuples(), strict=True)
            for (digest, kind, detail, thumbnail), entry in looked:
                digests.append(digest)
                thumbnails.append(thumbnail)
                if kind:
                    severity = 'warning' if digest else 'error'
                    findings.add(Fault(kind, detail, entry.csv, None, entry.file, severity))
        except BrokenProcessPool:
            detail = 'a worker process was killed (out of memory?) at or soon after this image'
            file = unique['file'].iloc[len(digests)]
            findings.add(Fault('images that were not checked', detail, file=file))
    rest = len(unique) - len(digests)
    return digests + [b''] * rest, thumbnails + [None] * rest


def _compare_pixels(images: pd.DataFrame, findings: Findings) -> None:
    """Report images with the same pixels as an earlier image."""
    images = images[images['digest'] != b'']
    first = {entry.digest: entry for entry in images.drop_duplicates('digest').itertuples()}
    for entry in images[images.duplicated('digest')].itertuples():
        earlier = first[entry.digest]
        is_leak = entry.split != earlier.split
        kind = SAME_PIXELS if is_leak else 'same pixels'
        detail = f'{earlier.file} has the same pixels'
        severity = 'error' if is_leak else 'warning'
        findings.add(Fault(kind, detail, entry.csv, None, entry.file, severity))

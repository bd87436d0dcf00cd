"""Files of features: parts, from which an interrupted call continues, and the result.

A part holds the features of PART_IMAGES consecutive images. The batches of a part do not depend on
the other parts, so that a continued call computes the same bits as an uninterrupted one.
"""

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data.noted_images import is_skipped
from system.files import atomic_writer, replace_file

PART_IMAGES = 512
LOCK_FILE, RECORD_FILE = 'lock', 'parts.json'


class Parts:
    """The parts of a job in a folder.

    Args:
        folder: Folder of the parts, which no other process uses at the same time.
        count: Number of images.
        record: What determines the features, by name. A part is only used for the same record.

    Raises:
        ValueError: If the folder has parts of another record, or other files.
    """

    def __init__(self, folder: Path, count: int, record: Mapping[str, object]) -> None:
        self.folder, self.count = folder, count
        found, file = {path.name for path in folder.iterdir()} - {LOCK_FILE}, folder / RECORD_FILE
        if found and file.name not in found:
            raise ValueError(f'{folder} contains {min(found)}, which is not a part of features')
        if found - {file.name}:
            _refuse_other(file, record)
        replace_file(file, json.dumps(record, indent=2) + '\n')

    def __len__(self) -> int:
        return -(-self.count // PART_IMAGES)

    def images(self, number: int) -> range:
        """Return the positions of the images of a part."""
        return range(number * PART_IMAGES, min((number + 1) * PART_IMAGES, self.count))

    def batches(self, number: int, size: int) -> list[list[int]]:
        """Return the positions of the images in each batch of a part."""
        images = self.images(number)
        return [list(images[first : first + size]) for first in range(0, len(images), size)]

    def missing(self) -> list[int]:
        """Return the parts to compute; those with skipped images, which may be repaired, too."""
        return [number for number in range(len(self)) if not self._is_complete(number)]

    def write(self, number: int, features: np.ndarray, notes: Sequence[str]) -> None:
        """Write the features of all images of a part, and a note about each image."""
        with atomic_writer(self._file(number)) as file:
            np.savez(file, features=features, notes=np.array(notes, str))

    def notes(self) -> list[str]:
        """Return the notes about all images."""
        return [note for number in range(len(self)) for note in self._read(number, 'notes')]

    def features(self) -> Iterator[np.ndarray]:
        """Yield the features of each part, without those of skipped images."""
        for number in range(len(self)):
            used = [not is_skipped(note) for note in self._read(number, 'notes')]
            yield self._read(number, 'features')[used]

    def remove(self) -> None:
        """Remove the folder with all parts."""
        shutil.rmtree(self.folder)

    def _file(self, number: int) -> Path:
        return self.folder / f'{number:06d}.npz'

    def _is_complete(self, number: int) -> bool:
        if not self._file(number).is_file():
            return False
        return not any(map(is_skipped, self._read(number, 'notes')))

    def _read(self, number: int, name: str) -> np.ndarray:
        try:
            with np.load(self._file(number)) as arrays:
                return arrays[name]
        except (zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f'{self._file(number)} is damaged: remove it ({error})') from error


def write_npz(path: Path, features: Iterator[np.ndarray], names: Mapping[str, np.ndarray]) -> None:
    """Write an NPZ file with `features` [N, ...], one part after another, and arrays of text [N].

    The features need not fit into the memory.
    """
    first = next(features)
    count = len(next(iter(names.values())))
    header = {'descr': first.dtype.str, 'fortran_order': False, 'shape': (count, *first.shape[1:])}
    with atomic_writer(path) as file, zipfile.ZipFile(file, 'w') as archive:
        with archive.open(zipfile.ZipInfo('features.npy'), 'w', force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(entry, header)
            entry.write(first.tobytes())
            for part in features:
                entry.write(part.tobytes())
        for name, values in names.items():
            with archive.open(zipfile.ZipInfo(f'{name}.npy'), 'w', force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.array(values, str), allow_pickle=False)


def write_table(
    path: Path, features: Iterator[np.ndarray], names: Mapping[str, np.ndarray]
) -> None:
    """Write a CSV or Parquet table with the columns of `names`, and f0, f1, ..."""
    values = np.concatenate(list(features))
    columns = pd.DataFrame(values, columns=[f'f{k}' for k in range(values.shape[1])])
    table = pd.concat([pd.DataFrame(dict(names)), columns], axis=1)
    with atomic_writer(path) as file:
        if path.suffix.lower() == '.csv':
            options = {'lineterminator': '\n', 'errors': 'surrogateescape'}
            table.to_csv(file, index=False, mode='wb', **options)
        else:
            table.to_parquet(file, engine='pyarrow', index=False)


def _refuse_other(file: Path, record: Mapping[str, object]) -> None:
    """Raise a ValueError if the record of the parts in a folder is another one."""
    try:
        before = json.loads(file.read_text('utf-8'))
    except ValueError as error:
        raise ValueError(f'{file} is not valid JSON ({error})') from error
    other = [name for name in record if before.get(name) != record[name]]
    if other:
        raise ValueError(
            f'{file.parent} has parts of a call with other {", ".join(other)}: repeat that '
            'call, remove the folder, or choose another --output'
        )

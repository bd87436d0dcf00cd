"""Files of features: NPZ, CSV and Parquet."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from system.files import atomic_writer


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

"""Joined predictions as files: one compact Parquet file for each seed, which is written once.

`seedN.parquet` has one line for each row of the sweep and image: `row`, `fold`, the image (`Path`)
or study (`Study`), and for each label the number of images of the fold whose prediction is lower.
These whole numbers take about a byte, and the ranks follow from them. What is known of the runs is
in the metadata of the same file, so that it cannot be of other predictions.
"""

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import rankdata

from data.tables.predictions import Predictions, read_predictions
from data.tables.table import KEYS, Table
from evaluation.run_facts import KNOWN, Known, checked
from system.files import replace_file

ROW, FOLD = 'row', 'fold'
SEED_FILE = re.compile(r'seed(\d+)\.parquet')


def seed_files(folder: Path) -> dict[Path, int]:
    """Return the files of joined predictions in a folder and those below it, and their seeds."""
    found = {file: SEED_FILE.fullmatch(file.name) for file in sorted(folder.rglob('seed*.parquet'))}
    return {file: int(match[1]) for file, match in found.items() if match}


def save_ranks(
    folder: Path,
    files: Mapping[tuple[str, int], Sequence[Path]],
    known: Mapping[str, Mapping[int, Sequence[Known]]],
) -> None:
    """Add joined predictions to the files of their seeds.

    Rows that a file contains are replaced, and its others stay. A file that would not change is not
    written.

    Args:
        folder: Folder of the files.
        files: (row, seed) -> predictions of its folds, see `join_ranks`.
        known: Row -> seed -> what is known of the run of each fold.

    Raises:
        ValueError: If other rows or seeds have other labels.
    """
    made: dict[Path, pa.Table] = {}
    for seed in sorted({seed for _, seed in files}):
        rows = [row for row, other in files if other == seed]
        lines = [join_ranks(files[row, seed]).assign(**{ROW: row}) for row in rows]
        parts = {row: known[row][seed] for row in rows}
        path = folder / f'seed{seed}.parquet'
        if path.is_file():
            earlier = _read(path)
            others = earlier.to_pandas()
            lines.append(others[~others[ROW].isin(rows)])
            parts = _known_of(path, earlier.schema) | parts
        lines = [table for table in lines if len(table)]
        columns = [[*table] for table in lines]
        if other := [names for names in columns if {*names} != {*columns[0]}]:
            raise ValueError(f'{path}: rows have different columns, {columns[0]} and {other[0]}')
        made[path] = ranks_table(pd.concat(lines), parts)
    schemas = {path: _read_schema(path) for path in seed_files(folder)}
    _check_columns(schemas | {path: table.schema for path, table in made.items()})
    folder.mkdir(parents=True, exist_ok=True)
    for path, table in made.items():
        if not (path.is_file() and _read(path).equals(table, check_metadata=True)):
            write_ranks(path, table)


def join_ranks(files: Sequence[Path]) -> pd.DataFrame:
    """Join predictions of several folds: fold, name and, for each label, how many are lower.

    Predictions are compared within their fold, because those of different models have no common
    scale. Equal ones have the same number.

    Raises:
        ValueError: If an image is in two folds, or the folds have different labels.
    """
    folds = [read_predictions(file) for file in files]
    if len({(fold.key, fold.labels) for fold in folds}) > 1:
        raise ValueError(f'{files[0]} and the files of the other folds have different labels')
    names = np.concatenate([fold.names for fold in folds])
    if len(set(names)) < len(names):
        name = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f'{name} is in two of the folds that begin with {files[0]}')
    lower = [rankdata(fold.probabilities, method='min', axis=0) - 1 for fold in folds]
    table = pd.DataFrame(np.concatenate(lower), columns=folds[0].labels)
    table.insert(0, folds[0].key, names)
    table.insert(0, FOLD, np.repeat(np.arange(len(folds)), [len(fold.names) for fold in folds]))
    return table


def ranks_table(lines: pd.DataFrame, known: Mapping[str, Sequence[Known]]) -> pa.Table:
    """Return the table of a seed from lines of `join_ranks` with a column of their row.

    Args:
        lines: Lines in any order.
        known: Row -> what is known of the run of each fold.
    """
    key = next(name for name in KEYS if name in lines)
    labels = [name for name in lines if name not in (ROW, FOLD, key)]
    # Sorted like this, equal or similar values are next to each other.
    lines = lines.sort_values([ROW, FOLD, key])
    types = {ROW: pa.string(), FOLD: pa.uint16(), key: pa.string()}
    types |= dict.fromkeys(labels, pa.uint32())
    arrays = [pa.array(lines[name].to_numpy(), kind) for name, kind in types.items()]
    runs: dict[str, int] = {}  # what is known of a run -> its number, because folds know the same
    rows = {
        row: [runs.setdefault(json.dumps(part._asdict()), len(runs)) for part in parts]
        for row, parts in sorted(known.items())
        if any(part != Known() for part in parts)
    }
    content = json.dumps({'rows': rows, 'runs': [*map(json.loads, runs)]})
    return pa.table(arrays, pa.schema(types.items(), {KNOWN: content} if rows else None))


def write_ranks(path: Path, table: pa.Table) -> None:
    """Write the table of a seed as compactly as this order of lines allows."""
    file = io.BytesIO()
    options = {'compression': 'zstd', 'compression_level': 19}
    # Nobody selects row groups by their limits, and the types need no second description.
    options |= {'write_statistics': False, 'store_schema': False}
    with pq.ParquetWriter(file, table.schema, **options) as writer:
        writer.write_table(table, row_group_size=len(table))
        writer.add_key_value_metadata(table.schema.metadata or {})
    replace_file(path, file.getvalue())


def read_ranks(folder: Path, names: Collection[str]) -> dict[str, dict[int, Predictions]]:
    """Return row -> seed -> joined predictions, for rows with these names, of all files of a study.

    A prediction is the mean rank in its fold, of equal ones, minus a half, divided by the number of
    images of the fold. It has four digits.

    Raises:
        ValueError: If there are no files, they have different columns, or two files have the same
            row and seed.
    """
    files = seed_files(folder)
    if not files:
        raise ValueError(f'{folder} has no seed*.parquet, which `ablate.py join` writes')
    _check_columns({file: _read_schema(file) for file in files})
    first: dict[tuple[str, int], Path] = {}
    found: dict[str, dict[int, Predictions]] = {}
    for file, seed in files.items():
        lines = _read(file).to_pandas()
        for row in lines[ROW].unique():
            other = first.setdefault((row, seed), file)
            if other != file:
                raise ValueError(f'{other} and {file} both have {row} with seed {seed}')
        for row, own in _ranked(lines[lines[ROW].isin(names)]).groupby(ROW):
            table = Table(f'{file}, {row}', cells=own.drop(columns=[ROW, FOLD]))
            # All columns are labels, also those that only DATA.LABELS names.
            found.setdefault(row, {})[seed] = read_predictions(table, labels=[*table.cells])
    return {row: dict(sorted(found[row].items())) for row in sorted(found)}


def read_joined_known(folder: Path) -> dict[str, dict[int, list[Known]]]:
    """Return row -> seed -> what is known of the run of each fold, of joined predictions."""
    known: dict[str, dict[int, list[Known]]] = {}
    for file, seed in seed_files(folder).items():
        for row, parts in _known_of(file, _read_schema(file)).items():
            known.setdefault(row, {})[seed] = parts
    return known


def _ranked(lines: pd.DataFrame) -> pd.DataFrame:
    """Return lines with ranks in (0, 1), sorted by name."""
    key = next(name for name in KEYS if name in lines)
    labels = [name for name in lines if name not in (ROW, FOLD, key)]
    folds = lines.groupby([ROW, FOLD])
    size = folds[ROW].transform('size').to_numpy()[:, None]
    ranks = (folds[labels].rank().to_numpy() - 0.5) / size
    values, positions = np.unique(ranks, return_inverse=True)
    rounded = np.array([float(f'{value:.4g}') for value in values])
    ranks = pd.DataFrame(rounded[positions].reshape(ranks.shape), lines.index, labels)
    return pd.concat([lines[[ROW, FOLD, key]], ranks], axis=1).sort_values(key)


def _known_of(file: Path, schema: pa.Schema) -> dict[str, list[Known]]:
    """Return row -> what is known of the run of each fold, from the metadata of a file."""
    try:
        content = (schema.metadata or {}).get(KNOWN.encode())
        if content is None:
            return {}
        told = json.loads(content)
        runs = [*map(checked, told['runs'])]
        return {row: [runs[number] for number in parts] for row, parts in told['rows'].items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f'{file} does not describe joined predictions: {error!r}') from error


def _check_columns(schemas: Mapping[Path, pa.Schema]) -> None:
    """Refuse files without a needed column, or with other columns than the first one."""
    first = next(iter(schemas))
    for file, schema in schemas.items():
        names = {*schema.names}
        if not ({ROW, FOLD} <= names and names & {*KEYS}):
            raise ValueError(f'{file} must have columns {ROW}, {FOLD} and {" or ".join(KEYS)}')
        if names != {*schemas[first].names}:
            raise ValueError(
                f'{first} and {file} have different columns, {schemas[first].names} and '
                f'{schema.names}'
            )


def _read(file: Path) -> pa.Table:
    with _naming(file), pq.ParquetFile(file) as opened:
        return opened.read()


def _read_schema(file: Path) -> pa.Schema:
    with _naming(file):
        return pq.read_schema(file)


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Name a file that cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f'{file} has no joined predictions: {error}') from error

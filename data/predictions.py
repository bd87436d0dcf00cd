"""Prediction files: `predictions_<split>.csv` with its JSON, and reading anyone's of that form."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.chexpert import IMAGE_SUFFIXES
from data.labels import LABELS, TASKS, cell_error, map_cells
from data.tables import (
    describe_columns,
    plain_cell,
    read_table,
    refuse_duplicates,
    require_columns,
    safe_cell,
)

KEYS = ('Path', 'Study')  # columns of names: of images, or of studies
KNOWN_LABELS = tuple(dict.fromkeys(label for names in TASKS.values() for label in names))
# A patient's folder and a study's in it: CheXpert's patient00001/study1, MIMIC-CXR's p1.../s5...
STUDY = re.compile(r'(?:\A|(?<=/))(?P<patient>patient\d+|p\d+)/(?:study|s)\d+(?=/|\Z)', re.ASCII)
SUFFIX = re.compile(rf'(?:{"|".join(map(re.escape, IMAGE_SUFFIXES))})\Z', re.IGNORECASE)
NUMBER = re.compile(r'(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?', re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of images or studies, a row each."""

    file: Path
    key: str  # 'Path' or 'Study': what a row is
    row: np.ndarray  # [N] the file's 0-based row
    names: np.ndarray  # [N] as in the file
    labels: tuple[str, ...]  # in the order of KNOWN_LABELS
    probabilities: np.ndarray  # [N, K] in [0, 1]; NaN where empty, if that is allowed
    ignored: tuple[str, ...]  # the file's other columns


def write_predictions(
    path: str | Path,
    probabilities: np.ndarray,
    *,
    paths: Sequence[str],
    labels: Sequence[str],
    source: dict[str, Any],
) -> None:
    """Write one row an image, and `source` (checkpoint, data, views...) as JSON beside it.

    Either file is written whole or not at all.

    Args:
        path: the CSV; the JSON has the same name with `.json`.
        probabilities: [N, K] in [0, 1], written with 9 significant digits; NaN as an empty cell.
        paths: [N] as in the data set's CSV.
        labels: [K] names of the columns, in order.
        source: what made the file.
    """
    table = pd.DataFrame(probabilities, columns=list(labels))
    table.insert(0, 'Path', [safe_cell(path) for path in paths])
    # A file's name need not be UTF-8: then its bytes are written as they are.
    rows = table.to_csv(index=False, float_format='%.9g').encode('utf-8', 'surrogateescape')
    _replace(Path(path).with_suffix('.json'), (json.dumps(source, indent=1) + '\n').encode())
    _replace(Path(path), rows)


def read_predictions(path: str | Path, *, allow_empty: bool = False) -> Predictions:
    """Read and check a CSV of `Path` or `Study` and labels by name, columns in any order.

    Args:
        path: the CSV.
        allow_empty: whether cells may be empty.

    Raises:
        ValueError: naming file, row and column, if a name comes twice (as `normalise_name` sees
            it), a cell is no number from 0 to 1, or the file is not such a table.
    """
    file, source = Path(path), str(path)
    table = read_table(file)
    labels = tuple(label for label in KNOWN_LABELS if label in table)
    require_columns(table, labels, file, one_of=KEYS)
    if not labels:
        raise ValueError(
            f'{source}: no column of a label ({", ".join(KNOWN_LABELS)}); '
            f'found: {describe_columns(table)}'
        )
    key = next(key for key in KEYS if key in table)
    table[key] = table[key].map(plain_cell)  # as write_predictions was given them
    unique_names(table[key], source)
    columns = [_read_probabilities(table[label], source, allow_empty) for label in labels]
    return Predictions(
        file=file,
        key=key,
        row=table.index.to_numpy(),
        names=table[key].to_numpy(object),
        labels=labels,
        probabilities=np.stack(columns, axis=1),
        ignored=tuple(name for name in table.columns if name != key and name not in labels),
    )


def predictions_for(
    file: str | Path, paths: Sequence[str], labels: Sequence[str] = LABELS
) -> np.ndarray:
    """A file's probabilities for these images, an image its study's where the file is of studies.

    Args:
        file: see `read_predictions`.
        paths: [N] of images; what precedes a patient's folder and the suffix may differ.
        labels: [K] wanted.

    Returns:
        [N, K] float32, NaN where the file has no such row or column.

    Raises:
        ValueError: for a bad file, one of another task (by the JSON beside it), or if two of the
            paths are the same to `normalise_name`.
    """
    predictions = read_predictions(file)
    check_task(file, 'observations')
    return look_up(predictions, row_names(predictions, paths), labels).astype(np.float32)


def check_task(file: str | Path, task: str) -> None:
    """Refuse predictions that are of another DATA.TASK, by the JSON beside them."""
    beside = Path(file).with_suffix('.json')
    found = _read_task(beside) if beside.is_file() else None
    if found not in (None, task):
        raise ValueError(f'{file}: predictions of DATA.TASK {found!r}, needed are {task!r}')


def row_names(predictions: Predictions, paths: Sequence[str]) -> list[str]:
    """The normalised name that each image's row has in the predictions: its own or its study's."""
    names = unique_names(pd.Series(paths, dtype=object, name='Path'), 'the images to look up')
    return [study_name(name) for name in names] if predictions.key == 'Study' else list(names)


def look_up(predictions: Predictions, names: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Probabilities [N, K] of the rows of these normalised names, NaN where there is none."""
    own = pd.Index([normalise_name(name) for name in predictions.names])
    rows = own.get_indexer(pd.Index(names, dtype=object))
    found = np.full((len(names), len(labels)), np.nan)
    for k, label in enumerate(labels):
        if label in predictions.labels:
            column = predictions.probabilities[:, predictions.labels.index(label)]
            found[:, k] = np.where(rows >= 0, column[rows], np.nan)
    return found


def normalise_name(name: str) -> str:
    """A name without what precedes the patient's folder and without an image's suffix.

    'CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg' becomes
    'patient64541/study1/view1_frontal', MIMIC-CXR's 'files/p10/p10000032/s50414267/x.jpg'
    'p10000032/s50414267/x'. A name without a patient's folder keeps all but its suffix.
    """
    match = STUDY.search(name)
    name = name[match.start() :] if match else name
    return SUFFIX.sub('', name.rstrip('/'))


def study_name(name: str) -> str:
    """The normalised name of an image's study; the name itself where it has none."""
    match = STUDY.search(name)
    return match[0] if match else name


def unique_names(names: pd.Series, source: str) -> np.ndarray:
    """[N] normalised; an empty one, or two that are the same, are a ValueError with their rows."""
    normalised = np.array([normalise_name(name) for name in names], object)
    if (normalised == '').any():
        raise cell_error(source, names, int(np.argmax(normalised == '')), 'is no name')
    refuse_duplicates(names, source, normalised)
    return normalised


def _read_probabilities(column: pd.Series, source: str, allow_empty: bool) -> np.ndarray:
    numbers = {text: float(text) for text in column.unique() if NUMBER.fullmatch(text)}
    allowed = {text: number for text, number in numbers.items() if number <= 1}
    described = 'numbers from 0 to 1'
    if allow_empty:
        allowed[''], described = np.nan, f'{described}, or empty'
    return map_cells(column, allowed, source, allowed=described)


def _read_task(file: Path) -> object:
    """DATA.TASK in the JSON beside predictions; None where it is not said."""
    try:
        source = json.loads(file.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f'{file} is not readable JSON: {error}') from error
    return source.get('task') if isinstance(source, dict) else None


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""Read and write predictions, and read label files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import OPTIONS, REGISTRIES
from data.tables.chexpert import add_studies, make_records
from data.tables.identity import image_name, look_up_names, study_name
from data.tables.labels import LABELS
from data.tables.records import Records, make_task, select_views
from data.tables.table import KEYS, Fault, Table, refuse
from data.tables.table_warnings import DOUBTS, label_warnings
from system.files import replace_files

LARGEST = float(np.finfo(np.float32).max)  # of a score that is no probability
HINT = ' (evaluate.py --scores any ranks other numbers)'
FAULT = 'value of a prediction'  # kind of fault
SUM_ERROR = 0.01  # of the probabilities of all classes, which may be rounded to few digits


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of a model for images or studies, one row each."""

    file: Path
    key: str  # 'Path' if a row is an image, 'Study' if it is a study
    row: np.ndarray  # [N] 0-based row of the file
    names: np.ndarray  # [N] names of images or studies in the file
    labels: tuple[str, ...]  # findings in CheXpert's order, then others in the order of the file
    probabilities: np.ndarray  # [N, K] in [0, 1]; NaN where empty, if that is allowed
    trained_views: str = ''  # DATA.VIEWS of the training, if the JSON file next to it says so


@dataclass(frozen=True, eq=False)
class LabelTable:
    """The labels of a CSV file."""

    file: Path
    key: str  # 'Path' if a row is an image, 'Study' if it is a study
    task: str
    views: str  # views of the images that are scored
    records: Records  # one per row of the file: an image of these views, or a study
    labels: tuple[str, ...]
    targets: np.ndarray  # [N, K] 1, 0, or NaN where not scored
    missing: tuple[str, ...]  # labels without a column in the file

    def __len__(self) -> int:
        return len(self.records)


def row_names(names: Sequence[str], key: str = 'Path') -> pd.Index:
    """Return names of images (or 'Study': of studies) without folders above the patient, suffixes.

    Rows of two files are matched by them and their other spellings, see `rows_of`.
    """
    short = study_name if key == 'Study' else image_name
    return pd.Index([short(name) for name in names], dtype=object)


def rows_of(wanted: Sequence[str], known: Sequence[str], key: str, file: str | Path) -> np.ndarray:
    """Return the row of each image (or 'Study': its study) in a file with the known names; or -1.

    Raises:
        ValueError: If a name may be each of several.
    """
    return look_up_names(row_names(wanted, key), row_names(known, key), str(file))


def write_predictions(
    path: str | Path,
    probabilities: np.ndarray,
    *,
    paths: Sequence[str],
    labels: Sequence[str],
    source: dict[str, Any],
) -> None:
    """Write predictions as a CSV file, and their source as a JSON file; either both or none.

    Args:
        path: Path of the CSV file; the JSON file has the same name with the suffix `.json`.
        probabilities: Probabilities [N, K] in [0, 1], written with 9 significant digits; NaN
            becomes an empty cell.
        paths: Paths [N] of the images in the CSV file of the data set.
        labels: Names [K] of the columns.
        source: Checkpoint, data, views and other facts about the predictions.
    """
    table = pd.DataFrame(probabilities, columns=list(labels))
    # The JSON file keeps what the numbers mean; a table alone would not tell its task.
    table.insert(0, 'Path', list(paths))
    source = {'labels': list(labels)} | source
    # The bytes of a file name that is not UTF-8 are written unchanged.
    rows = table.to_csv(index=False, float_format='%.9g').encode('utf-8', 'surrogateescape')
    about = json.dumps(source, indent=1) + '\n'
    replace_files({Path(path): rows, Path(path).with_suffix('.json'): about})


def read_predictions(
    path: str | Path | Table,
    *,
    task: str = '',
    allow_empty: bool = False,
    labels: Sequence[str] = (),
    any_scores: bool = False,
) -> Predictions:
    """Read and check a CSV file with a column `Path` or `Study` and one column per label.

    A column is a label if a task, the JSON file next to the CSV file or `labels` names it.

    Args:
        path: Path of the CSV file, or its cells.
        task: DATA.TASK that the JSON file must name, if it names one; '' accepts any task.
        allow_empty: Whether cells may be empty.
        labels: Names of further labels (DATA.LABELS).
        any_scores: Whether cells may be any numbers. They are scaled to [0, 1], which keeps their
            order.

    Raises:
        ValueError: If a name occurs twice (see `row_names`), if a cell is not a number from 0
            to 1, if the probabilities of all classes do not add up to 1, or if the file has no such
            columns.
    """
    table = path if isinstance(path, Table) else Table(path)
    description = _read_description(table.file.with_suffix('.json'), is_required=bool(task))
    told = description.get('task')
    if task and told not in (None, task):
        raise ValueError(f'{table.file}: the predictions are of DATA.TASK {told!r}, not {task!r}')
    if not task:
        is_task = isinstance(told, str) and told in OPTIONS['DATA.TASK'].parts
        task = told if is_task else 'observations'
    exclusive = REGISTRIES['DATA.TASK'][task].exclusive

    # The columns that are labels, in the order of the result.
    names = dict.fromkeys([] if exclusive else standard_labels())
    names |= dict.fromkeys([*description.get('labels', []), *labels])
    names = [name for name in names if name not in KEYS]
    found = tuple(name for name in names if name in table)
    table.require(KEYS, names)
    _check_names(table)

    limits = {'least': -LARGEST, 'most': LARGEST} if any_scores else {'most': 1}
    columns = [
        table.numbers(name, FAULT, **limits, can_be_empty=allow_empty, hint=HINT) for name in found
    ]
    if any_scores:
        low, high = np.nanmin(columns), np.nanmax(columns)
        columns = [(column - low) / ((high - low) or 1) for column in columns]
    elif exclusive and len(found) == len(names):
        is_wrong = np.abs(np.sum(columns, axis=0) - 1) > SUM_ERROR  # False for NaN
        problem = f'has probabilities of {", ".join(found)} whose sum is not 1'
        table.check(table.key, ~is_wrong, FAULT, problem)
    return Predictions(
        file=table.file,
        key=table.key,
        row=table.row,
        names=table[table.key].to_numpy(object),
        labels=found,
        probabilities=np.stack(columns, axis=1),
        trained_views=str(description.get('trained_views', '')),
    )


def _read_description(file: Path, *, is_required: bool) -> dict[str, Any]:
    """Read the JSON file next to predictions; {} if there is none.

    Another file that happens to have this name is an error if the description is required, and
    otherwise ignored.
    """
    if not file.is_file():
        return {}
    try:
        description = json.loads(file.read_bytes())
        names = description.get('labels', [])
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise TypeError(f'labels must be a list of names, got {names!r:.100}')
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        if is_required:
            raise ValueError(f'{file} does not describe predictions: {error}') from error
        return {}
    return description


def standard_labels() -> list[str]:
    """Return the labels of all tasks that DATA.LABELS does not choose or may leave out."""
    return [label for name in OPTIONS['DATA.TASK'].parts for label in make_task(name).labels]


def look_up(
    predictions: Predictions, paths: Sequence[str], labels: Sequence[str] = LABELS
) -> np.ndarray:
    """Look up the probabilities of images, or of their studies in a file of studies.

    Args:
        predictions: Predictions of a model.
        paths: Paths [N] of images, which are matched by `rows_of`.
        labels: Names [K] of labels.

    Returns:
        Probabilities [N, K], NaN for a missing row or column.
    """
    key = predictions.key
    # Matched by normalised names, because copies of a data set have other folders and suffixes.
    rows = rows_of(paths, predictions.names, key, predictions.file)
    found = np.full((len(paths), len(labels)), np.nan)
    for k, label in enumerate(labels):
        if label in predictions.labels:
            column = predictions.probabilities[:, predictions.labels.index(label)]
            found[:, k] = np.where(rows >= 0, column[rows], np.nan)
    return found


def read_complete(
    file: str | Path, paths: Sequence[str], labels: Sequence[str], *, task: str = ''
) -> np.ndarray:  # [N, K]
    """Read the probabilities of images (see `look_up`), and refuse a file that lacks one."""
    found = look_up(read_predictions(file, task=task, labels=labels), paths, labels)
    if lacking := int(np.isnan(found).any(axis=1).sum()):
        raise ValueError(f'{file} lacks predictions of {lacking} of the {len(paths)} images')
    return found


def read_label_file(
    path: str | Path,
    *,
    task: str = 'observations',
    blank: str = 'negative',
    views: str = 'all',
    labels: Sequence[str] = (),
    groups: Sequence[str] = (),
) -> LabelTable:
    """Read and check a CSV file with a column `Path` or `Study` and one column per label.

    The columns of `DESCRIPTION` are optional; a missing view is taken from the name of the image.

    Args:
        path: Path of the CSV file.
        task: DATA.TASK; 'observations' does not need the columns of all labels.
        blank: Target of a label that is not mentioned (DATA.BLANK).
        views: Views of the images that are kept: 'frontal', 'lateral' or 'all'.
        labels: Names of the labels (DATA.LABELS).
        groups: Names of further columns to keep, if they exist.
    """
    doubts: list[str] = []

    def on_fault(fault: Fault) -> None:
        refuse(fault)
        if fault.kind in DOUBTS:
            doubts.append(fault.detail)

    table, made = Table(path, on_fault), make_task(task, LABELS=labels, BLANK=blank)
    missing = tuple(label for label in made.columns if label not in table)
    table.require(KEYS, *([made.columns] if made.has_policies else missing))
    _check_names(table)
    add_studies(table)
    table.add(path=table[table.key], file=table[table.key])
    records = make_records(table, made.columns, groups)
    about = label_warnings(records.labels, records.label_names, records.path)
    records = replace(records, doubts=(*doubts, *(detail for _, detail in about)))
    if views != 'all' and table.key == 'Path':
        table.check('Path', records.view != '', 'value of the view', 'names no view')
        records = select_views(records, views)
    columns = [k for k, label in enumerate(made.labels) if label not in missing]
    labels, targets = tuple(made.labels[k] for k in columns), made.scored(records)[:, columns]
    return LabelTable(table.file, table.key, task, views, records, labels, targets, missing)


def _check_names(table: Table) -> None:
    """Report empty names, and names that are equal after normalisation."""
    names = row_names(table[table.key], table.key).to_numpy()
    table.check(table.key, names != '', 'form of a path', 'is not a name')
    table.keep_first(table.key, 'duplicate path', names)

"""Labels from a CSV of images or of studies, without the images; predictions matched to them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from data.chexpert import AGE, DESCRIPTION, PROJECTIONS, SEXES, VIEW_CELLS, VIEW_NAME, Records
from data.labels import (
    CELLS,
    LABELS,
    UNCERTAIN,
    cell_error,
    evaluation_targets,
    map_cells,
    task_labels,
    task_targets,
)
from data.predictions import (
    KEYS,
    STUDY,
    Predictions,
    normalise_name,
    study_name,
    unique_names,
)
from data.tables import describe_columns, read_table, require_columns
from evaluation.cases import Cases
from evaluation.metrics import study_level

SHOWN = 3  # names that a message gives as examples
SUCH_AS = ', such as row '  # ends a note: rows of the file, which name no patient in a log
FORMS = {
    'Path': 'FOLDER/patient00001/study1/view1_frontal.jpg or FOLDER/p10000032/s50414267/IMAGE.jpg',
    'Study': 'FOLDER/patient00001/study1 or FOLDER/p10000032/s50414267',
}


@dataclass(frozen=True, eq=False)
class LabelTable:
    """A CSV of labels."""

    file: Path
    key: str  # 'Path' or 'Study': what a row is
    task: str
    views: str  # of the images that are scored
    records: Records  # a row a row of the file: of an image, of these views
    labels: tuple[str, ...]
    targets: np.ndarray  # [N, K] 1, 0, or NaN where not to be scored
    missing: tuple[str, ...]  # observations that the file has no column of

    def __len__(self) -> int:
        return len(self.records)


def read_label_file(
    path: str | Path, *, task: str = 'observations', blank: str = 'negative', views: str = 'all'
) -> LabelTable:
    """Read and check labels: `Path` or `Study`, then observations by name, in any order.

    Columns Sex, Age, Frontal/Lateral and AP/PA are read where they are there; a view that is not
    given comes from the image's name.

    Args:
        path: the CSV.
        task: DATA.TASK; the binary ones need all observations.
        blank: DATA.BLANK, what a label that is not mentioned counts as.
        views: 'frontal', 'lateral' or 'all': of a file of images, the rows that are kept.

    Raises:
        ValueError: if anything is not as it should be, naming file, row and column.
    """
    file, source = Path(path), str(path)
    table = read_table(file)
    missing = tuple(label for label in LABELS if label not in table)
    known = [name for name in (*DESCRIPTION, *LABELS) if name in table]
    require_columns(table, known, file, one_of=KEYS)
    if len(missing) == len(LABELS) or (missing and task != 'observations'):
        raise ValueError(
            f'{source}: no column of {", ".join(missing)} (task {task}); '
            f'found: {describe_columns(table)}'
        )
    key = next(key for key in KEYS if key in table)
    records = _read_records(table, key, file)
    if views != 'all' and key == 'Path':
        unknown = records.view == ''
        if unknown.any():
            problem = f'names no view, and views {views} are asked for'
            raise cell_error(source, table[key], int(np.argmax(unknown)), problem)
        if not (records.view == views).any():
            raise ValueError(f'{source}: none of the {len(records)} images is {views}')
        records = records.select(records.view == views)
    if task == 'observations':
        columns = [k for k, label in enumerate(LABELS) if label not in missing]
        labels = tuple(LABELS[k] for k in columns)
        targets = evaluation_targets(records.labels, blank=blank)[:, columns]
    else:
        labels, targets = task_labels(task), task_targets(records.labels, task)
    return LabelTable(file, key, task, views, records, labels, targets, missing)


def match(
    predictions: Predictions,
    table: LabelTable,
    *,
    name: str,
    level: str,
    complete: bool = True,
    groups: Callable[[Records], Mapping[str, np.ndarray]] | None = None,
) -> tuple[Cases, list[str]]:
    """Bring predictions and labels together by the names of their images or studies.

    Where only the labels are of studies, an image gets its study's; where only the predictions
    are, likewise. The cases then are images (`Cases.at_level` makes studies of them), and so a
    study whose images have different labels counts, as everywhere, with the greatest that is known.

    Args:
        predictions: of one model.
        table: the labels.
        name: of the cases.
        level: that they will be scored at; 'image' needs labels and predictions of images.
        complete: whether each labelled row must have a prediction.
        groups: makes the cases' groups of their records.

    Returns:
        The cases, and a line on whatever of the two files is not scored.

    Raises:
        ValueError: if no label or no row is in both files, if labelled rows have no prediction, or
            if the level or the views do not go with these files.
    """
    _check_kinds(predictions, table, level)
    labels = tuple(label for label in table.labels if label in predictions.labels)
    if not labels:
        raise ValueError(
            f'{predictions.file} and {table.file} share no label: predicted are '
            f'{", ".join(predictions.labels)}, labelled for the task {table.task} '
            f'{", ".join(table.labels)}'
        )
    of_predictions, of_table, notes = _pair_rows(predictions, table, complete)
    records = table.records.select(of_table)
    if table.key == 'Study' and predictions.key == 'Path':
        names = predictions.names[of_predictions]
        records = replace(records, path=names, view=_views(names))
    columns = [predictions.labels.index(label) for label in labels]
    kept = [table.labels.index(label) for label in labels]
    uncertain = None
    if table.task == 'observations':
        uncertain = records.labels[:, [LABELS.index(label) for label in labels]] == UNCERTAIN
    cases = Cases(
        name=name,
        labels=labels,
        path=records.path,
        study=records.study,
        patient=records.patient,
        probabilities=predictions.probabilities[of_predictions][:, columns],
        targets=table.targets[of_table][:, kept],
        groups=groups(records) if groups else {},
        uncertain=uncertain,
    )
    notes += _describe_columns(predictions, table)
    if level == 'study':
        notes += _describe_differing(cases, table)
    return cases, notes


def describe_examples(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')


def _such_as(rows: np.ndarray) -> str:
    """The first few of these 0-based rows, as an editor of the file counts them."""
    return SUCH_AS + describe_examples([str(row + 2) for row in rows])


def _read_records(table: pd.DataFrame, key: str, file: Path) -> Records:
    source, names = str(file), table[key]
    unique_names(names, source)
    matches = [_match_name(name, key) for name in names]
    if None in matches:
        problem = f'is not of the form {FORMS[key]}'
        raise cell_error(source, names, matches.index(None), problem)
    ages = {text: float(text) for text in table.get('Age', ()) if AGE.fullmatch(text)}
    view = _read_optional(table, 'Frontal/Lateral', VIEW_CELLS, source, unknown='')
    labels = np.full((len(table), len(LABELS)), np.nan, np.float32)
    for k, label in enumerate(LABELS):
        if label in table:
            labels[:, k] = map_cells(table[label], CELLS, source)
    return Records(
        root=file.parent,
        csv=file.name,
        row=table.index.to_numpy(),
        path=names.to_numpy(object),
        file=names.to_numpy(object),
        patient=np.array([match['patient'] for match in matches], object),
        study=np.array([match.string[: match.end()] for match in matches], object),
        view=np.where(view == '', _views(names), view),
        sex=_read_optional(table, 'Sex', SEXES, source, unknown='Unknown'),
        age=_read_optional(table, 'Age', ages, source, unknown=np.nan).astype(float),
        ap_pa=_read_optional(table, 'AP/PA', PROJECTIONS, source, unknown=''),
        labels=labels,
    )


def _match_name(name: str, key: str) -> re.Match | None:
    """The study in the name of an image or of a study; None where it is no such name."""
    match = STUDY.search(name)
    rest = name[match.end() :] if match else ''
    is_of_kind = len(rest) > 1 if key == 'Path' else not rest
    return match if is_of_kind else None


def _read_optional(
    table: pd.DataFrame,
    column: str,
    meanings: Mapping[str, str | float],
    source: str,
    *,
    unknown: str | float,
) -> np.ndarray:
    """[N] object; unknown where the cell is empty or the column is not there."""
    if column not in table:
        return np.full(len(table), unknown, object)
    allowed = 'empty, numbers from 0' if column == 'Age' else ''
    meanings = {**meanings, '': unknown}
    return map_cells(table[column], meanings, source, dtype=object, allowed=allowed)


def _views(names: Sequence[str]) -> np.ndarray:
    """'frontal' or 'lateral' as the images' names say it, '' where they do not."""
    found = [VIEW_NAME.search(name) for name in names]
    return np.array([view[1] if view else '' for view in found], object)


def _check_kinds(predictions: Predictions, table: LabelTable, level: str) -> None:
    of_studies = [part.file for part in (predictions, table) if part.key == 'Study']
    if level == 'image' and of_studies:
        raise ValueError(f'level image needs rows of images (Path), {of_studies[0]} has studies')
    if table.views != 'all' and predictions.key == 'Study':
        raise ValueError(
            f'views {table.views} can be chosen among images only, {predictions.file} has studies: '
            'its views are those that the model was given'
        )


def _pair_rows(
    predictions: Predictions, table: LabelTable, complete: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows of both that belong together, [M] each, and what is left out of either.

    The key is the name of the study where one of them has studies, else that of the image.
    """
    by_study = 'Study' in (predictions.key, table.key)
    given = _row_keys(predictions.names, by_study and predictions.key == 'Path')
    wanted = _row_keys(table.records.path, by_study and table.key == 'Path')
    if table.key == 'Path':  # a study's prediction may serve several images
        of_table, of_predictions = np.arange(len(wanted)), given.get_indexer(wanted)
    else:
        of_table, of_predictions = wanted.get_indexer(given), np.arange(len(given))
        of_table[(of_table >= 0) & ~_is_of_views(predictions, table, of_table >= 0)] = -1
    paired = (of_predictions >= 0) & (of_table >= 0)
    of_predictions, of_table = of_predictions[paired], of_table[paired]
    if not len(of_table):
        raise ValueError(
            f'{predictions.file} and {table.file} have no row in common: predicted are '
            f'{describe_examples(predictions.names)}; '
            f'labelled are {describe_examples(table.records.path)}'
        )
    notes = []
    unlabelled = np.setdiff1d(np.arange(len(given)), of_predictions)
    if len(unlabelled):
        notes.append(_describe_unlabelled(predictions, table, unlabelled))
    unpredicted = np.setdiff1d(np.arange(len(wanted)), of_table)
    # Studies of which only images of other views are predicted are not asked for.
    other_views = wanted[unpredicted].isin(given)
    if other_views.any():
        notes.append(
            f'{table.file}: {other_views.sum()} of {len(wanted)} studies have no {table.views} '
            'image among the predictions and are left out'
            f'{_such_as(table.records.row[unpredicted[other_views]])}'
        )
    if not other_views.all():
        problem = _describe_unpredicted(predictions, table, unpredicted[~other_views])
        if complete:
            raise ValueError(problem)
        notes.append(problem)
    return of_predictions, of_table, notes


def _row_keys(names: Sequence[str], of_study: bool) -> pd.Index:
    return pd.Index([(study_name if of_study else normalise_name)(name) for name in names])


def _is_of_views(predictions: Predictions, table: LabelTable, labelled: np.ndarray) -> np.ndarray:
    """[N] whether an image is of the views asked for; those that are labelled must name theirs."""
    if table.views == 'all':
        return np.full(len(labelled), True)
    views = _views(predictions.names)
    unknown = labelled & (views == '')
    if unknown.any():
        raise ValueError(
            f'{predictions.file}: {predictions.names[np.argmax(unknown)]!r} names no view, and '
            f'views {table.views} are asked for'
        )
    return views == table.views


def _describe_unlabelled(predictions: Predictions, table: LabelTable, rows: np.ndarray) -> str:
    of_views = '' if table.views == 'all' else f' of {table.views} views'
    return (
        f'{predictions.file}: {len(rows)} of {len(predictions.names)} rows have no labelled row'
        f'{of_views} in {table.file} and are ignored{_such_as(predictions.row[rows])}'
    )


def _describe_unpredicted(predictions: Predictions, table: LabelTable, rows: np.ndarray) -> str:
    records = table.records.select(rows)
    examples = [
        f'{path} (row {row + 2})' for path, row in zip(records.path, records.row, strict=True)
    ]
    views, hint = set(records.view), ''
    others = {'frontal', 'lateral'} - views
    if table.key == 'Path' and len(views) == len(others) == 1:
        hint = f'; all of these are {views.pop()}: views {others.pop()} leave them out'
    return (
        f'{predictions.file} has no prediction for {len(rows)} of the {len(table)} labelled rows '
        f'of {table.file}, such as {describe_examples(examples)}{hint}'
    )


def _describe_columns(predictions: Predictions, table: LabelTable) -> list[str]:
    """What is not scored for want of a column in either file."""
    notes = []
    if table.missing:
        notes.append(f'{table.file}: no column of {", ".join(table.missing)}: not scored')
    unpredicted = [label for label in table.labels if label not in predictions.labels]
    if unpredicted:
        notes.append(f'{predictions.file}: no column of {", ".join(unpredicted)}: not scored')
    if predictions.ignored:
        columns = ', '.join(map(repr, predictions.ignored))
        notes.append(f'{predictions.file}: columns that are no labels and are ignored: {columns}')
    return notes


def _describe_differing(cases: Cases, table: LabelTable) -> list[str]:
    _, greatest, names = study_level(cases.probabilities, cases.targets, cases.study)
    _, least, _ = study_level(cases.probabilities, -cases.targets, cases.study)
    differ = (greatest != -least) & ~np.isnan(greatest)
    if not differ.any():
        return []
    studies = names[differ.any(axis=1)]
    records = table.records
    rows = records.row[np.isin(records.study.astype(str), studies)]
    return [
        f'{table.file}: {len(studies)} studies have images with different labels, and count with '
        f'the greatest{_such_as(rows)}'
    ]

"""The cases that are scored: probabilities, targets, patients and groups, one row per image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pandas as pd

from data.labels import LABELS, UNCERTAIN
from data.records import (
    LabelTable,
    Predictions,
    Records,
    normalise_name,
    study_name,
    views_in_names,
)
from evaluation.metrics import study_level

SHOWN = 3  # rows that a message gives as examples
SUCH_AS = ', such as row '  # before the row numbers at the end of a note


@dataclass(frozen=True, eq=False)
class Cases:
    """The rows of one set (a split, or a file of predictions); text is in object arrays.

    Attributes:
        name: Name of the set.
        labels: Label names.
        path: [N] image, or study, as in the CSV.
        study: [N] study of each row.
        patient: [N] patient of each row.
        probabilities: [N, K] in [0, 1].
        targets: [N, K] 1, 0, or NaN where the label is not scored.
        groups: Column ('Sex', 'Age' bands, 'View', ...) -> [N] text, '' where unknown.
        uncertain: [N, K] True where a label is left out as uncertain; None if nowhere.
    """

    name: str
    labels: tuple[str, ...]
    path: np.ndarray
    study: np.ndarray
    patient: np.ndarray
    probabilities: np.ndarray
    targets: np.ndarray
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    uncertain: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.path)

    def select(self, indices: np.ndarray) -> 'Cases':
        """The rows at these positions (or where this mask is true), in that order."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        arrays = {name: v[indices] for name, v in values.items() if isinstance(v, np.ndarray)}
        groups = {name: values[indices] for name, values in self.groups.items()}
        return replace(self, **arrays, groups=groups)

    def at_level(self, level: str, how: str = 'max') -> 'Cases':
        """Combine the images of each study into one row.

        Args:
            level: 'study', or 'image' for the unchanged cases.
            how: 'max' or 'mean' of the probabilities over the images of a study. A target is the
                greatest known one, and uncertain if one is uncertain and none is known. Text comes
                from the first image of the study.
        """
        if level == 'image':
            return self
        probabilities, targets, names = study_level(
            self.probabilities, self.targets, self.study, how
        )
        first = self.select(np.unique(self.study.astype(str), return_index=True)[1])
        uncertain = self.uncertain
        if uncertain is not None:
            highest, *_ = study_level(uncertain, self.targets, self.study)
            uncertain = (highest > 0) & np.isnan(targets)
        return replace(
            first,
            path=names.astype(object),
            probabilities=probabilities,
            targets=targets,
            uncertain=uncertain,
        )

    def count_uncertain(self) -> dict[str, int]:
        """Number of rows left out as uncertain, for the labels that have any."""
        if self.uncertain is None:
            return {}
        counts = self.uncertain.sum(axis=0).tolist()
        return {label: count for label, count in zip(self.labels, counts, strict=True) if count}


def match(
    predictions: Predictions,
    table: LabelTable,
    *,
    name: str,
    level: str,
    complete: bool = True,
    groups: Callable[[Records], Mapping[str, np.ndarray]] | None = None,
) -> tuple[Cases, list[str]]:
    """Match predictions and labels by the names of their images or studies.

    If only the labels are of studies, each image gets the labels of its study, and if only the
    predictions are, each image gets the prediction of its study.

    Args:
        predictions: Predictions of one model.
        table: The labels.
        name: Name of the cases.
        level: Level to score at; 'image' needs labels and predictions of images.
        complete: Whether each labelled row must have a prediction.
        groups: Function from records to the groups of the cases.

    Returns:
        The cases, and notes about what is not scored.

    Raises:
        ValueError: If the files have no label or no row in common, if labelled rows have no
            prediction, or if these files cannot be scored at this level or with these views.
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
        records = replace(records, path=names, view=views_in_names(names))
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
    """The first few of these 0-based rows, counted as in an editor."""
    return SUCH_AS + describe_examples([str(row + 2) for row in rows])


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
    """Matching rows of both, [M] each, and notes about the other rows.

    Rows are matched by study if either file has studies, and otherwise by image.
    """
    by_study = 'Study' in (predictions.key, table.key)
    given = _row_keys(predictions.names, by_study and predictions.key == 'Path')
    wanted = _row_keys(table.records.path, by_study and table.key == 'Path')
    if table.key == 'Path':  # a study's prediction may serve several images
        of_table, of_predictions = np.arange(len(wanted)), given.get_indexer(wanted)
    else:
        of_table, of_predictions = wanted.get_indexer(given), np.arange(len(given))
        of_table[(of_table >= 0) & ~_is_of_wanted_view(predictions, table, of_table >= 0)] = -1
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
    # Studies with predictions for other views only are left out.
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


def _is_of_wanted_view(
    predictions: Predictions, table: LabelTable, labelled: np.ndarray
) -> np.ndarray:
    """[N] whether an image has the wanted view, which the names of labelled images must show."""
    if table.views == 'all':
        return np.full(len(labelled), True)
    views = views_in_names(predictions.names)
    unknown = labelled & (views == '')
    if unknown.any():
        raise ValueError(
            f'{predictions.file}: {predictions.names[np.argmax(unknown)]!r} contains no view, but '
            f'views {table.views} are wanted'
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
        f'of {table.file}, for example {describe_examples(examples)}{hint}'
    )


def _describe_columns(predictions: Predictions, table: LabelTable) -> list[str]:
    """Notes about labels that are not scored because a file has no column for them."""
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
        f'{table.file}: {len(studies)} studies have images with different labels; the greatest '
        f'label of each is used{_such_as(rows)}'
    ]

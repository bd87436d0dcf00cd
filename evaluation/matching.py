"""Match files of predictions with files of labels, by the names of images or studies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from config import load_yaml
from data.images.views import views_in_names
from data.tables.labels import NEGATIVE, POSITIVE, UNCERTAIN, check_name
from data.tables.predictions import LabelTable, Predictions, row_names, rows_of
from data.tables.records import Records
from data.tasks import TASKS
from evaluation.cases import Cases

SHOWN = 3  # number of example names in a message
# The findings of several label sets, each with its labels: a line is a finding.
LABEL_SETS = Path(__file__).with_name('label_sets.yaml')


@dataclass(frozen=True)
class SharedLabel:
    """A finding that two label sets share; in each set, one positive label of several is enough."""

    name: str
    predicted: tuple[str, ...]
    labelled: tuple[str, ...]

    @property
    def made_of(self) -> str:
        """Name the predictions and labels of other names that it stands for; '' for none."""
        kinds = {'predicted': self.predicted, 'labelled': self.labelled}
        others = {kind: ' or '.join(names) for kind, names in kinds.items()}
        return '; '.join(f'{kind} {text}' for kind, text in others.items() if text != self.name)


def match(
    predictions: Predictions,
    table: LabelTable,
    *,
    name: str,
    level: str,
    complete: bool = True,
    groups: Callable[[Records], Mapping[str, np.ndarray]] | None = None,
) -> tuple[Cases, list[str]]:
    """Match predictions and labels by the names of images or studies.

    If only the labels or only the predictions belong to studies, each image gets the labels or the
    prediction of its study.

    Args:
        predictions: Predictions of one model.
        table: Labels of the images or studies.
        name: Name of the resulting set.
        level: Level of the scores. 'image' requires labels and predictions of images.
        complete: Whether each labelled row must have a prediction.
        groups: Function from records to the groups of the cases.

    Returns:
        The cases, and notes about rows and labels that are not scored.

    Raises:
        ValueError: If the files have no label or no row in common, if labelled rows have no
            prediction, or if the files do not support this level or these views.
    """
    _require_images(predictions, table, level)
    labels = tuple(label for label in table.labels if label in predictions.labels)
    if not labels:
        raise ValueError(
            f'{predictions.file} ({", ".join(predictions.labels)}) and {table.file} (task '
            f'{table.task}: {", ".join(table.labels)}) have no label in common'
        )
    uncertain, task = None, TASKS[table.task]
    if task.exclusive and {*predictions.labels} != {*table.labels}:
        raise ValueError(
            f'{predictions.file} has the classes {", ".join(predictions.labels)}, but {table.file} '
            f'is read with {", ".join(table.labels)}: they must be the same'
        )
    of_predictions, of_table, notes = _pair_rows(predictions, table, complete)
    records = table.records.select(of_table)
    if table.key == 'Study' and predictions.key == 'Path':
        names = predictions.names[of_predictions]
        records = replace(records, path=names, view=views_in_names(names))
    columns = [predictions.labels.index(label) for label in labels]
    kept = [table.labels.index(label) for label in labels]
    if task.has_policies:
        columns_read = [records.label_names.index(label) for label in labels]
        uncertain = records.labels[:, columns_read] == UNCERTAIN
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
        exclusive=task.exclusive,
    )
    if table.missing:
        notes.append(f'{table.file} has no column {", ".join(table.missing)}, which is not scored')
    return cases, notes


def label_set(name: str) -> tuple[str, ...]:
    """Return the labels of a label set in LABEL_SETS."""
    return tuple(dict.fromkeys(label for labels in _read_label_sets(name) for label in labels))


def shared_labels(predicted: str, labelled: str) -> list[SharedLabel]:
    """Return the findings that the label set of a model and the label set of the data share.

    A finding has the name of its predicted label, or of its label in the data if several labels are
    predicted for it.
    """
    shared = []
    for ours, theirs in zip(_read_label_sets(predicted), _read_label_sets(labelled), strict=True):
        if ours and theirs:
            names = next((names for names in (ours, theirs) if len(names) == 1), ours)
            shared.append(SharedLabel(' or '.join(names), ours, theirs))
    return shared


def _read_label_sets(name: str) -> list[tuple[str, ...]]:
    """Read the labels of a label set for each finding (line) of LABEL_SETS."""
    rows = load_yaml(LABEL_SETS.read_text('utf-8'))
    check_name('--label-sets', name, list(dict.fromkeys(key for row in rows for key in row)))
    found = [row.get(name, []) for row in rows]
    return [(labels,) if isinstance(labels, str) else tuple(labels) for labels in found]


def share_labels(
    predictions: Predictions, table: LabelTable, shared: Sequence[SharedLabel]
) -> tuple[Predictions, LabelTable, str]:
    """Reduce predictions and labels to the findings that both contain.

    The probability of a finding with several labels is their maximum. The finding is present if one
    of these labels is present. Otherwise it is not scored if one of these labels is not scored, and
    it is uncertain if one of them is uncertain. The last result is a note that lists the remaining
    labels.

    Raises:
        ValueError: If there is no common finding.
    """
    both = [
        label
        for label in shared
        if {*label.predicted} <= {*predictions.labels} and {*label.labelled} <= {*table.labels}
    ]
    if not both:
        raise ValueError(
            f'{predictions.file} ({", ".join(predictions.labels)}) and {table.file} '
            f'({", ".join(table.labels)}) have no finding in common'
        )
    marks = np.where(np.isnan(table.targets), UNCERTAIN, table.targets)
    probabilities, targets, values = [], [], []
    for label in both:
        columns = [predictions.labels.index(name) for name in label.predicted]
        probabilities.append(predictions.probabilities[:, columns].max(axis=1))
        several = marks[:, [table.labels.index(name) for name in label.labelled]]
        kinds = (POSITIVE, UNCERTAIN, NEGATIVE)  # in the order of precedence
        has_kind = [(several == kind).any(axis=1) for kind in kinds]
        combined = np.select(has_kind, kinds, np.nan).astype(np.float32)
        targets.append(np.where(combined == UNCERTAIN, np.float32(np.nan), combined))
        columns = [table.records.label_names.index(name) for name in label.labelled]
        is_uncertain = (table.records.labels[:, columns] == UNCERTAIN).any(axis=1)
        values.append(np.where(is_uncertain, combined, targets[-1]))
    names = tuple(label.name for label in both)
    predicted = {name for label in both for name in label.predicted}
    labelled = {name for label in both for name in label.labelled}
    left_out = (
        ', '.join(name for name in entry.labels if name not in used) or 'none'
        for entry, used in ((predictions, predicted), (table, labelled))
    )
    note = '{}: labels without a counterpart are left out: predictions of {}; labels of {}'
    return (
        replace(predictions, labels=names, probabilities=np.stack(probabilities, axis=1)),
        replace(
            table,
            records=replace(table.records, labels=np.stack(values, axis=1), label_names=names),
            labels=names,
            targets=np.stack(targets, axis=1),
            missing=(),
        ),
        note.format(predictions.file, *left_out),
    )


def _require_images(predictions: Predictions, table: LabelTable, level: str) -> None:
    """Refuse files of studies where only images have the wanted level or views."""
    of_studies = [entry.file for entry in (predictions, table) if entry.key == 'Study']
    if level == 'image' and of_studies:
        raise ValueError(f'level image requires images (Path), but {of_studies[0]} has studies')
    if table.views != 'all' and predictions.key == 'Study':
        raise ValueError(
            f'views {table.views} requires images (Path), but {predictions.file} has studies'
        )


def _pair_rows(
    predictions: Predictions, table: LabelTable, complete: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Match the rows of both files, by study if either file has studies, otherwise by image.

    Returns row indices [M] of predictions and of labels, and notes about the unmatched rows.
    """
    key = 'Study' if 'Study' in (predictions.key, table.key) else 'Path'
    given, wanted = predictions.names, table.records.path
    if table.key == 'Path':  # the prediction of a study may belong to several images
        of_table = np.arange(len(wanted))
        of_predictions = rows_of(wanted, given, key, predictions.file)
    else:
        of_predictions = _of_wanted_views(predictions, table.views)
        of_table = rows_of(given[of_predictions], wanted, key, table.file)
    paired = (of_predictions >= 0) & (of_table >= 0)
    of_predictions, of_table = of_predictions[paired], of_table[paired]
    if not len(of_table):
        raise ValueError(
            f'{predictions.file} ({_examples(predictions.names)}) and {table.file} '
            f'({_examples(table.records.path)}) have no row in common'
        )
    notes = _other_spellings(given[of_predictions], wanted[of_table], key, predictions, table)
    of_views = '' if table.views == 'all' else f' of {table.views} views'
    if ignored := len(given) - len(set(of_predictions)):
        notes.append(
            f'{predictions.file}: {ignored} of {len(given)} rows have no labelled row{of_views} in '
            f'{table.file} and are ignored'
        )
    unpredicted = np.setdiff1d(np.arange(len(wanted)), of_table)
    has_other_views = rows_of(wanted[unpredicted], given, key, predictions.file) >= 0
    if has_other_views.any():
        notes.append(
            f'{table.file}: {has_other_views.sum()} of {len(wanted)} studies have no prediction'
            f'{of_views} and are left out'
        )
    unpredicted = unpredicted[~has_other_views]
    missing = table.records.path[unpredicted]
    if complete and len(missing):
        absent = table.records.view[unpredicted]
        predicted = {*table.records.view[of_table]}
        hint = ''
        for view, other in (('lateral', 'frontal'), ('frontal', 'lateral')):
            if predicted == {other} and (count := (absent == view).sum()):
                hint = f'. {count} of them are {view}: --views {other} leaves them out'
        raise ValueError(
            f'{predictions.file} has no prediction for {len(missing)} of the {len(table)} labelled '
            f'rows{of_views} of {table.file}: {_examples(missing)}{hint}'
        )
    return of_predictions, of_table, notes


def _other_spellings(
    given: Sequence[str],
    wanted: Sequence[str],
    key: str,
    predictions: Predictions,
    table: LabelTable,
) -> list[str]:
    """Say that rows were matched whose names are spelt in two ways, such as 117 and 000117."""
    differ = row_names(given, key) != row_names(wanted, key)
    if not differ.any():
        return []
    first = int(np.argmax(differ))
    return [
        f'{differ.sum()} of {len(differ)} names are spelt in two ways, such as {given[first]!r} in '
        f'{predictions.file} and {wanted[first]!r} in {table.file}: they count as the same'
    ]


def _of_wanted_views(predictions: Predictions, wanted: str) -> np.ndarray:
    """Return the rows of the images with these views, which the file names must contain."""
    if wanted == 'all':
        return np.arange(len(predictions.names))
    views = views_in_names(predictions.names)
    if (views == '').any():
        unknown = predictions.names[np.argmax(views == '')]
        raise ValueError(
            f'{predictions.file}: views {wanted} cannot be selected, because the name {unknown!r} '
            'does not contain a view'
        )
    return np.flatnonzero(views == wanted)


def _examples(names: Sequence[str]) -> str:
    """List the first few names for a message."""
    return ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')

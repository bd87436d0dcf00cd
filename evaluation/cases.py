"""Cases to score: probabilities, targets, patients and groups, with one row per image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from data.tables.groups import is_unknown
from data.tables.labels import COMPETITION_LABELS, UNCERTAIN
from data.tables.records import Records
from evaluation.metrics import count_classes, labels_of_mean, study_level


@dataclass(frozen=True, eq=False)
class Cases:
    """The rows of one set, which is a split or a file of predictions. Text has the dtype object.

    Attributes:
        name: Name of the set.
        labels: Label names.
        path: Image or study of each row as in the CSV file, [N].
        study: Study of each row, [N].
        patient: Patient of each row, [N].
        probabilities: Probabilities, [N, K].
        targets: 1, 0, or NaN where the label is not scored, [N, K].
        groups: Column ('Sex', 'Age' bands, 'View', ...) -> group of each row, [N], '' if unknown.
        uncertain: Mask of labels that are not scored because they are uncertain, [N, K], or None.
        exclusive: Whether the labels are classes, of which each row has one.
        made_of: Label -> labels of other names that it stands for, as text.
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
    exclusive: bool = False
    made_of: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.path)

    def of_label(self, label: str) -> tuple[np.ndarray, np.ndarray]:  # [N], [N]
        """Return the probabilities and targets of one label."""
        column = self.labels.index(label)
        return self.probabilities[:, column], self.targets[:, column]

    def strongest_image(self, name: str, label: str) -> int:
        """Return the row of the image with this path, or of a study's highest-scoring image."""
        images = np.flatnonzero((self.path == name) | (self.study == name))
        return int(images[np.argmax(self.of_label(label)[0][images])])

    def has_both_classes(self) -> np.ndarray:  # [K] bool
        """Return whether each label has positive and negative rows."""
        return (self.targets == 1).any(axis=0) & (self.targets == 0).any(axis=0)

    def count_classes(self) -> dict[str, dict[str, Any]]:
        """Count the rows of each class, see `metrics.count_classes`."""
        return count_classes(self.targets, self.labels, exclusive=self.exclusive)

    def views(self) -> np.ndarray | None:  # [N]
        """Return the view of each row, '' if unknown; None if the column is missing.

        A frontal image without AP or PA has no known view.
        """
        views = self.groups.get('View')
        return None if views is None else np.where(is_unknown(views), '', views)

    def several_views(self) -> np.ndarray | None:  # [N]
        """Return the `views`, or None if all rows have the same known one."""
        views = self.views()
        has_one = views is not None and all(views) and len({*views}) == 1
        return None if has_one else views

    def mean_labels(self) -> dict[str, tuple[str, ...]]:
        """Return the labels of each mean: 'labels' (`labels_of_mean`) and 'five'.

        'five' are CheXpert's five tasks if all of them are in 'labels', and otherwise no label.
        """
        counted = labels_of_mean(self.count_classes())
        has_five = {*COMPETITION_LABELS} <= {*counted}
        return {'five': COMPETITION_LABELS if has_five else (), 'labels': counted}

    def with_labels(self, wanted: Sequence[bool]) -> 'Cases':
        """Select the labels for which `wanted` [K] is true."""
        columns = np.flatnonzero(wanted)
        return replace(
            self,
            labels=tuple(self.labels[k] for k in columns),
            probabilities=self.probabilities[:, columns],
            targets=self.targets[:, columns],
            uncertain=None if self.uncertain is None else self.uncertain[:, columns],
        )

    def select(self, indices: np.ndarray) -> 'Cases':
        """Select rows by a boolean mask, or by indices in the order of the indices."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        arrays = {name: v[indices] for name, v in values.items() if isinstance(v, np.ndarray)}
        groups = {name: values[indices] for name, values in self.groups.items()}
        return replace(self, **arrays, groups=groups)

    def in_order_of(self, paths: Sequence[str]) -> 'Cases':
        """Select the rows with these paths, in the order of the paths."""
        places = {path: row for row, path in enumerate(self.path)}
        return self.select(np.array([places[path] for path in paths], dtype=int))

    def at_level(self, level: str) -> 'Cases':
        """Combine the images of each study into one row if the level is 'study'.

        The probability is the largest one, and the target is the largest known target. It is
        uncertain if at least one image is uncertain and no target is known. Paths and groups come
        from the first image of the study, but the view names those of all images, and is unknown if
        that of one image is.
        """
        if level == 'image':
            return self
        probabilities, targets, names = study_level(
            self.probabilities, self.targets, self.study, exclusive=self.exclusive
        )
        # Sorted by name, which is also the order of `study_level`.
        _, rows, study = np.unique(self.study.astype(str), return_index=True, return_inverse=True)
        first = self.select(rows)
        uncertain = self.uncertain
        if uncertain is not None:
            # 1 if any image of the study is uncertain, by the same rule as for probabilities.
            highest, *_ = study_level(uncertain, self.targets, self.study)
            uncertain = (highest > 0) & np.isnan(targets)
        groups = first.groups
        of_images = self.views()
        if of_images is not None and len(names) < len(self):
            views, view = np.unique(of_images.astype(str), return_inverse=True)
            has_view = np.zeros((len(names), len(views)), bool)
            has_view[study, view] = True
            has_view[has_view[:, views == ''].any(axis=1)] = False
            # Studies with the same views have the same number, and their views are joined once.
            numbers = has_view @ 2 ** np.arange(len(views))
            _, some, which = np.unique(numbers, return_index=True, return_inverse=True)
            joined = [' and '.join(views[present]) for present in has_view[some]]
            groups = groups | {'View': np.array(joined, object)[which]}
        return replace(
            first,
            groups=groups,
            path=names.astype(object),
            probabilities=probabilities,
            targets=targets,
            uncertain=uncertain,
        )

    def count_uncertain(self) -> dict[str, int]:
        """Count the uncertain rows of each label that has any."""
        if self.uncertain is None:
            return {}
        counts = self.uncertain.sum(axis=0).tolist()
        return {label: count for label, count in zip(self.labels, counts, strict=True) if count}


def cases_of(
    records: Records,
    task: Any,
    probabilities: np.ndarray,
    *,
    name: str,
    targets: np.ndarray | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
) -> Cases:
    """Return the cases of records and probabilities [N, K], with the task's targets by default."""
    return Cases(
        name=name,
        labels=task.labels,
        path=records.path,
        study=records.study,
        patient=records.patient,
        probabilities=probabilities,
        targets=task.scored(records) if targets is None else targets,
        groups=groups or {},
        uncertain=records.labels == UNCERTAIN if task.has_policies else None,
        exclusive=task.exclusive,
    )


def choose_cases(
    probabilities: np.ndarray, targets: np.ndarray, threshold: float, count: int
) -> dict[str, list[int]]:
    """Choose the most confident correct and wrong predictions of one label.

    Args:
        probabilities: Probabilities, [N]. NaN is never chosen.
        targets: 1 or 0, [N]. NaN is never chosen.
        threshold: Lowest probability that is predicted positive. Nothing is chosen if it is NaN.
        count: Largest number of cases of each kind.

    Returns:
        Kind -> row indices, the most confident first.
    """
    positive, negative = probabilities >= threshold, probabilities < threshold
    kinds = {
        'true positive': (positive & (targets == 1), -probabilities),
        'false positive': (positive & (targets == 0), -probabilities),
        'true negative': (negative & (targets == 0), probabilities),
        'false negative': (negative & (targets == 1), probabilities),
    }
    chosen = {}
    for kind, (is_kind, order) in kinds.items():
        # A stable order: equal probabilities must not change the figures of a report.
        rows = np.flatnonzero(is_kind)
        chosen[kind] = rows[np.argsort(order[rows], kind='stable')][:count].tolist()
    return chosen

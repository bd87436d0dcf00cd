"""The cases that are scored: probabilities, targets, patients and groups, one row per image."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np

from evaluation.metrics import study_level


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

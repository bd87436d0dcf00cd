"""What is scored: probabilities and targets, a row an image or a study, and whom they are of."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np

from evaluation.metrics import study_level


@dataclass(frozen=True, eq=False)
class Cases:
    """The rows of one set (a split, or a file of predictions); arrays of text are object arrays."""

    name: str
    labels: tuple[str, ...]
    path: np.ndarray  # [N] the image, or the study, as in the CSV
    study: np.ndarray  # [N]
    patient: np.ndarray  # [N]
    probabilities: np.ndarray  # [N, K] in [0, 1]
    targets: np.ndarray  # [N, K] 1, 0, or NaN where the label is not to be scored
    # Column -> [N] text, '' where unknown: 'Sex', 'Age' (bands), 'View', and what was asked for.
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    uncertain: np.ndarray | None = None  # [N, K] True where left out as uncertain; None: nowhere

    def __len__(self) -> int:
        return len(self.path)

    def select(self, indices: np.ndarray) -> 'Cases':
        """The rows at these positions (or where this mask is true), in that order."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        arrays = {name: v[indices] for name, v in values.items() if isinstance(v, np.ndarray)}
        groups = {name: values[indices] for name, values in self.groups.items()}
        return replace(self, **arrays, groups=groups)

    def at_level(self, level: str, how: str = 'max') -> 'Cases':
        """One row a study in place of one an image.

        Args:
            level: 'study', or 'image' (the cases as they are).
            how: 'max' or 'mean' of the probabilities over a study's images; a target is the
                greatest that is known, and uncertain where one is and none is known. Text comes
                from the study's first image.
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
        """The rows left out as uncertain, for the labels that have any."""
        if self.uncertain is None:
            return {}
        counts = self.uncertain.sum(axis=0).tolist()
        return {label: count for label, count in zip(self.labels, counts, strict=True) if count}

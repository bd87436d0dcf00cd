"""A task that is no part of the package: grades 0 to 3, with a column for each.

This file and a line at DATA.TASK, which `conftest.py` adds, are all that it needs.
"""

from typing import Any

import numpy as np
from torch import Tensor

from data.tables.labels import POSITIVE
from data.tasks import TASKS, Task

STEPS = 3


@TASKS.register('grades')
class Grades(Task):
    """Learn whether a grade reaches each step from 1 to STEPS. DATA.LABELS has its name."""

    activation = 'none'
    takes_names = True
    least_names = 1

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(f'{name} from {k}' for name in self.names[:1] for k in range(1, STEPS + 1))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(f'{name} {k}' for name in self.names[:1] for k in range(STEPS + 1))

    def scored(self, records: Any) -> np.ndarray:
        is_grade = records.labels == POSITIVE  # [N, STEPS + 1]
        reached = is_grade[:, ::-1].cumsum(axis=1)[:, -2::-1]  # [N, STEPS]
        return np.where(is_grade.any(axis=1, keepdims=True), reached, np.nan).astype('f4')

    def logits(self, outputs: Tensor) -> Tensor:
        """Return logits [B, K] that do not rise from one step to the next."""
        return outputs.unflatten(1, (-1, STEPS)).cummin(dim=2).values.flatten(1)

"""A task that is no part of the package: grades 0 to 3 in columns of numbers.

This file and a line at DATA.TASK, which `conftest.py` adds, are all that it needs.
"""

from typing import Any

import numpy as np
from torch import Tensor

from data.labels import Cells
from data.tasks import TASKS, Task

STEPS = 3


@TASKS.register('grades')
class Grades(Task):
    """Learn whether the grade reaches each step from 1 to STEPS; empty cells are left out."""

    losses = ('bce',)
    activation = 'none'
    takes_names = True
    least_names = 1

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(f'{name} from {k}' for name in self.names for k in range(1, STEPS + 1))

    @property
    def cells(self) -> Cells:
        return Cells(numbers=True)

    def scored(self, records: Any) -> np.ndarray:
        grades = records.labels[:, :, None]
        reached = grades >= np.arange(1, STEPS + 1)
        return np.where(np.isnan(grades), np.nan, reached).reshape(len(grades), -1).astype('f4')

    def logits(self, outputs: Tensor) -> Tensor:
        """Return logits [B, K] that do not rise from one step to the next."""
        return outputs.unflatten(1, (-1, STEPS)).cummin(dim=2).values.flatten(1)

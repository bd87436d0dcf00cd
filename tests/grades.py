"""A kind of predictions that is no part of the package: grades 0 to 3 in columns of numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from config import OPTIONS
from data.labels import Cells
from data.tasks import FINDINGS, TASKS, Task
from evaluation.families import FAMILIES
from models.outputs import OUTPUTS

GRADES, STEPS = 'grades', 3


class Grades(Task):
    """Learn whether the grade reaches each step from 1 to STEPS; empty cells are left out."""

    kind = GRADES
    losses = ('bce',)
    takes_names = True
    least_names = 1

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(f'{name} from {k}' for name in self.names for k in range(1, STEPS + 1))

    @property
    def columns(self) -> tuple[str, ...]:
        return self.names

    @property
    def cells(self) -> Cells:
        return Cells(numbers=True)

    def scored(self, records: Any) -> np.ndarray:
        grades = records.labels[:, :, None]
        reached = grades >= np.arange(1, STEPS + 1)
        return np.where(np.isnan(grades), np.nan, reached).reshape(len(grades), -1).astype('f4')


def in_order(outputs: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Return logits [B, K] that do not rise from one step to the next."""
    return outputs.unflatten(1, (-1, STEPS)).cummin(dim=2).values.flatten(1)


def add(patch: pytest.MonkeyPatch) -> None:
    """Add all that a new kind needs: a task, the outputs and the family."""
    option = OPTIONS['DATA.TASK']
    patch.setitem(OPTIONS, 'DATA.TASK', replace(option, parts={**option.parts, GRADES: __name__}))
    patch.setitem(TASKS, GRADES, Grades)
    patch.setitem(OUTPUTS, GRADES, replace(OUTPUTS[FINDINGS], scores=in_order, activation='none'))
    patch.setitem(FAMILIES, GRADES, FAMILIES[FINDINGS])

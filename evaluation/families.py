"""What each kind of predictions needs in evaluation: its scores and its linear model.

To add a kind of predictions, add one instance of `Family` to FAMILIES under the `kind` of its task.
How outputs become predictions is in `models.outputs`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from config import Config
from data.tasks import CLASSES, FINDINGS, task_of
from evaluation.classes import CLASS_METRICS, class_table, describe_classes
from evaluation.metrics import SplitScores, describe_scores, score_table
from evaluation.tuning import LinearFit, fit_logistic, fit_softmax
from models.outputs import OUTPUTS


@dataclass(frozen=True)
class Family:
    """The metrics and the linear model of one kind of predictions.

    Attributes:
        table: Function (predictions [N, K], targets [N, K], studies [N], *, labels, level,
            aggregate) -> scores of a split.
        describe: Function from scores to one line.
        logged: Scores that are written for each epoch.
        fit_linear: Function that fits a linear model of features, such as
            `evaluation.tuning.fit_logistic`. Its outputs are scores (`models.outputs.Outputs`).
    """

    table: Callable[..., dict[str, Any]]
    describe: Callable[[SplitScores], str]
    logged: tuple[str, ...]
    fit_linear: LinearFit


MEANS_AND_AREAS = ('mean_of_five', 'mean_of_defined', 'auroc')
FAMILIES = {
    FINDINGS: Family(
        table=score_table,
        describe=describe_scores,
        logged=MEANS_AND_AREAS,
        fit_linear=fit_logistic,
    ),
    CLASSES: Family(
        table=class_table,
        describe=describe_classes,
        logged=(*CLASS_METRICS, *MEANS_AND_AREAS),
        fit_linear=fit_softmax,
    ),
}


def family_of(config: Config) -> Family:
    """Return the metrics and the linear model of the task of a config."""
    return FAMILIES[task_of(config).kind]


def score(config: Config, outputs: np.ndarray, loader: DataLoader) -> dict[str, Any]:
    """Compute the scores of one split, with its loss and its views.

    Args:
        config: Run configuration.
        outputs: Outputs of the model [N, K], as `models.outputs.Outputs` defines them.
        loader: Loader of the split.
    """
    dataset, kind = loader.dataset, OUTPUTS[task_of(config).kind]
    found = family_of(config).table(
        kind.predictions(outputs),
        dataset.targets,
        dataset.records.study,
        labels=task_of(config).labels,
        level=config.EVAL.LEVEL,
        aggregate=config.EVAL.AGGREGATE,
    )
    loss = kind.loss(torch.from_numpy(outputs), torch.from_numpy(dataset.targets))
    return found | {'loss': loss.item(), 'views': config.EVAL.VIEWS or config.DATA.VIEWS}

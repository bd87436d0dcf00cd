"""How the outputs of a classifier become predictions, for each kind of task.

To add a kind of predictions, add one instance of `Outputs` to OUTPUTS under the `kind` of its task,
and an entry to `evaluation.families.FAMILIES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit, log_softmax, logit

from data.tasks import CLASSES, FINDINGS
from models.losses import masked_bce, masked_cross_entropy, positive_logits

SMALLEST_PROBABILITY = 1e-12  # lower limit of a mean probability before it becomes a logit


@dataclass(frozen=True)
class Outputs:
    """Functions from the outputs of a model to predictions.

    A score is what a metric could rank by and a loss can use: a logit or a log-probability. Several
    scores of an image, of test-time views or of models, have the score of their mean prediction.

    Attributes:
        scores: (outputs [B, O], number K of labels) -> scores [B, K].
        predictions: Scores [N, K] -> predictions [N, K] float64.
        inverse: Predictions -> scores.
        loss: Plain loss of scores [B, K] and targets [B, K].
        loss_name: Name of the plain loss.
        activation: Name in exports of the function from outputs to predictions, or 'none'.
        problem_type: Name of the kind in transformers.
    """

    scores: Callable[[torch.Tensor, int], torch.Tensor]
    predictions: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    loss_name: str
    activation: str
    problem_type: str

    def mean(self, scores: Sequence[np.ndarray]) -> np.ndarray:
        """Return the score of the mean prediction. A single score does not change."""
        if len(scores) == 1:
            return scores[0]
        return self.inverse(np.mean([self.predictions(each) for each in scores], axis=0))


def _logit(probabilities: np.ndarray) -> np.ndarray:
    return logit(np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY))


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.clip(probabilities, SMALLEST_PROBABILITY, 1))


OUTPUTS = {
    FINDINGS: Outputs(
        scores=positive_logits,
        predictions=lambda scores: expit(scores.astype(np.float64)),
        inverse=_logit,
        loss=masked_bce,
        loss_name='binary cross-entropy',
        activation='sigmoid',
        problem_type='multi_label_classification',
    ),
    CLASSES: Outputs(
        scores=lambda outputs, num_labels: outputs.log_softmax(dim=1),
        predictions=lambda scores: np.exp(log_softmax(scores.astype(np.float64), axis=1)),
        inverse=_log,
        loss=masked_cross_entropy,
        loss_name='cross-entropy',
        activation='softmax',
        problem_type='single_label_classification',
    ),
}

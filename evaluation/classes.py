"""Scores of single-label predictions, for which each case has one of several classes.

The decision is the class with the highest probability, the first of equal ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.cases import Cases
from evaluation.metrics import (
    CLASS_METRICS,
    Decisions,
    describe_scores,
    few_of_classes,
    score_table,
    study_level,
    summaries,
)


def confusion_matrices(
    probabilities: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> np.ndarray:  # [R, K, K]
    """Compute weighted confusion matrices.

    Args:
        probabilities: Probabilities of the classes, [N, K].
        targets: One-hot targets, [N, K]; rows of NaN are not counted.
        weights: Weights of the cases, [R, N].
    """
    known, num_classes = ~np.isnan(targets).any(axis=1), targets.shape[1]
    truth, decision = np.nan_to_num(targets).argmax(axis=1), probabilities.argmax(axis=1)
    # One number per cell of the matrix, [N], so that all weights [R, N] are summed at once.
    code = truth * num_classes + decision
    cells = [
        weights[:, known & (code == cell)].sum(axis=1, dtype=np.float64)
        for cell in range(num_classes**2)
    ]
    return np.stack(cells, axis=1).reshape(len(weights), num_classes, num_classes)


def score_classes(rows: Cases, weights: np.ndarray) -> dict[str, Any]:
    """Return the part `classes` of a set in the report: counts, decisions, and metrics.

    The first of the weights [1 + R, N] are ones, followed by the weights of the bootstrap, which
    are left out if a class has few cases: there are no intervals then.
    """
    matrices = confusion_matrices(rows.probabilities, rows.targets, weights)
    few = few_of_classes(matrices[0].sum(axis=1).astype(int), rows.labels)
    decisions = Decisions(matrices[:1] if few else matrices)
    scores = {name: entry.compute(decisions) for name, entry in CLASS_METRICS.items()}
    return {
        'labels': list(rows.labels),
        'n': int(matrices[0].sum()),
        'few': few,
        'confusion': matrices[0].astype(int).tolist(),
        'scores': summaries(scores),
    }


def class_table(
    probabilities: np.ndarray,
    targets: np.ndarray,
    studies: Sequence[str],
    *,
    labels: Sequence[str],
    level: str,
) -> dict[str, Any]:
    """Compute CLASS_METRICS, and the `score_table` of each class against the others."""
    options = {'labels': labels, 'level': level, 'exclusive': True}
    table = score_table(probabilities, targets, studies, **options)
    if level == 'study':
        probabilities, targets, _ = study_level(probabilities, targets, studies, exclusive=True)
    matrices = confusion_matrices(probabilities, targets, np.ones((1, len(targets))))
    decisions = Decisions(matrices)
    return table | {name: float(m.compute(decisions)[0]) for name, m in CLASS_METRICS.items()}


def describe_split(scores: Mapping[str, Any]) -> str:
    """Format the result of `evaluation.inference.score`, of any task, in one line."""
    named = {m.title.lower(): scores[name] for name, m in CLASS_METRICS.items() if name in scores}
    if not named:
        return describe_scores(scores)
    own = ', '.join(f'{title} {value:.4f}' for title, value in named.items())
    return f'{own}; one class against the others: {describe_scores(scores)}'

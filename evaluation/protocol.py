"""How cases are scored, and the form of a score."""

from dataclasses import dataclass

import numpy as np

from evaluation.intervals import interval

FEW_POSITIVES = 20  # below this a score is marked


@dataclass(frozen=True)
class Protocol:
    """How cases are scored."""

    level: str = 'study'  # or 'image'
    aggregate: str = 'max'  # or 'mean', over a study's images
    views: str = 'all'  # of the images, for display
    threshold: str = 'youden'  # rule of evaluation.thresholds
    sensitivity: float = 0.9  # wanted, where the rule asks for it
    resamples: int = 1000
    seed: int = 0


def as_score(
    point: dict[str, np.ndarray], samples: dict[str, np.ndarray] | None, metric: str
) -> dict[str, float]:
    """{'value', 'low', 'high'}: a point estimate and the percentile interval of its resamples."""
    low, high = interval(samples[metric]) if samples else (np.nan, np.nan)
    return {'value': float(point[metric][0]), 'low': low, 'high': high}

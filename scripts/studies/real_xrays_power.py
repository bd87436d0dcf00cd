"""Simulate which differences in AUROC the design of docs/studies/real_xrays.md can detect.

For each design it prints the share of trials that find a difference. The score of an image is
normal. Most of its variance is shared by two methods, a part is a method's own, and the rest is a
seed's. A difference is found if the intervals over images (DeLong) and over seeds (Student's t)
exclude 0, the former with the level of the first step of Holm's correction.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.stats import norm, t

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation.intervals import components, variance_of_mean

SHARED, OWN = 0.75, 0.1  # of the variance of a score
SEEDS, TRIALS, LEVEL = 3, 400, 0.05
DIFFERENCES = (0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05)


def finds(rng: np.random.Generator, targets: np.ndarray, areas: tuple, comparisons: int) -> bool:
    """Whether one trial finds that the second method is better than the first."""
    means = np.sqrt(2) * norm.ppf(areas)
    shared, *own = (np.sqrt(part) * rng.normal(size=targets.size) for part in (SHARED, OWN, OWN))
    parts = []
    for _ in range(SEEDS):
        scores = [
            mean * targets
            + shared
            + each
            + np.sqrt(1 - SHARED - OWN) * rng.normal(size=targets.size)
            for mean, each in zip(means, own, strict=True)
        ]
        of_seed = [components(values, targets) for values in scores]
        parts.append([after - before for before, after in zip(*of_seed, strict=True)])
    differences = [wins.mean() / len(losses) for wins, losses in parts]
    wins, losses = (np.mean(column, axis=0) for column in zip(*parts, strict=True))
    mean, spread = np.mean(differences), np.std(differences, ddof=1) / np.sqrt(SEEDS)
    p_value = 2 * norm.sf(mean / np.sqrt(variance_of_mean(wins, losses)))
    return p_value < LEVEL / comparisons and mean > t.isf(LEVEL / 2, SEEDS - 1) * spread


def main() -> None:
    rng = np.random.default_rng(0)
    for positives, area in ((500, 0.85), (500, 0.75), (96, 0.75)):
        targets = np.repeat([1.0, 0.0], [positives, 1000 - positives])
        for comparisons in (6, 12, 54):
            shares = (
                np.mean([finds(rng, targets, (area, area + d), comparisons) for _ in range(TRIALS)])
                for d in DIFFERENCES
            )
            found = ', '.join(f'{d}: {s:.2f}' for d, s in zip(DIFFERENCES, shares, strict=True))
            print(f'{positives} positives, AUROC {area}, {comparisons} comparisons: {found}')


if __name__ == '__main__':
    main()

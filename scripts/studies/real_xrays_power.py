"""Simulate which differences in AUROC the design of docs/studies/real_xrays.md can detect.

For each design it prints the share of trials that find a difference. The score of an image is
normal: most of its variance is shared by two methods, and the rest is a method's own. Each seed
moves the whole model: it changes the difference between the two methods on all images, with the
median standard deviation that the finished study has. A difference is found if the intervals over
images (DeLong) and over seeds (Student's t) exclude 0, the former with the level of the first step
of Holm's correction.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm, t

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation.intervals import components, variance_of_mean

TABLE = Path(__file__).resolve().parents[2] / 'docs/results/real_xrays/real_xrays_Pneumonia.csv'
SHARED, OWN = 5 / 6, 1 / 6  # of the variance of a score
TRIALS, LEVEL, POWER = 400, 0.05, 0.8
DIFFERENCES = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1)
COMPARISONS = (6, 123)  # the primary ones, and all
SEEDS = (3, 10)


def observed_deviations(table: pd.DataFrame) -> pd.Series:
    """Return the median standard deviation of a difference between seeds for each mode.

    The table is the one of scripts/fold_table.py. Its intervals over seeds give the deviations.
    """
    compared = table[table['seeds_low'].notna()]
    half = (compared['seeds_high'] - compared['seeds_low']) / 2
    deviations = half * np.sqrt(compared['seeds']) / t.isf(LEVEL / 2, compared['seeds'] - 1)
    modes = compared['row'].str.extract('^(linear|knn)_')[0].fillna('fine-tuning')
    return deviations.groupby(modes).median()


def finds(
    rng: np.random.Generator, targets: np.ndarray, *, area: float, difference: float, moves: float
) -> np.ndarray:  # [SEEDS, COMPARISONS] bool
    """Whether a trial finds that the second method is better, by number of seeds and comparisons.

    `moves` is the standard deviation of the difference between seeds.
    """
    shared, *own = (np.sqrt(part) * rng.normal(size=targets.size) for part in (SHARED, OWN, OWN))
    parts = []
    for moved in difference + moves * rng.normal(size=max(SEEDS)):
        areas = np.clip((area, area + moved), 0.01, 0.99)
        means = np.sqrt(2) * norm.ppf(areas)
        of_seed = [
            components(mean * targets + shared + each, targets)
            for mean, each in zip(means, own, strict=True)
        ]
        parts.append([after - before for before, after in zip(*of_seed, strict=True)])
    found = []
    for seeds in SEEDS:
        differences = [wins.mean() / len(losses) for wins, losses in parts[:seeds]]
        wins, losses = (np.mean(column, axis=0) for column in zip(*parts[:seeds], strict=True))
        mean, error = np.mean(differences), np.std(differences, ddof=1) / np.sqrt(seeds)
        p_value = 2 * norm.sf(mean / np.sqrt(variance_of_mean(wins, losses)))
        over_seeds = mean > t.isf(LEVEL / 2, seeds - 1) * error
        found.append([over_seeds and p_value < LEVEL / number for number in COMPARISONS])
    return np.array(found)


def main() -> None:
    rng = np.random.default_rng(0)
    deviations = observed_deviations(pd.read_csv(TABLE))
    designs = [(500, 0.85, mode) for mode in deviations.index]
    designs += [(500, 0.75, 'fine-tuning'), (96, 0.75, 'fine-tuning')]
    for positives, area, mode in designs:
        targets = np.repeat([1.0, 0.0], [positives, 1000 - positives])
        options = {'area': area, 'moves': deviations[mode]}
        trials = [
            [finds(rng, targets, difference=each, **options) for _ in range(TRIALS)]
            for each in DIFFERENCES
        ]
        shares = np.mean(trials, axis=1)  # [differences, SEEDS, COMPARISONS]
        print(f'{positives} positives, AUROC {area}, {mode} (SD of seeds {deviations[mode]:.3f})')
        for s, seeds in enumerate(SEEDS):
            for c, number in enumerate(COMPARISONS):
                enough = np.flatnonzero(shares[:, s, c] >= POWER)
                least = f'{DIFFERENCES[enough[0]]:g}' if enough.size else f'above {DIFFERENCES[-1]}'
                found = ' '.join(f'{share:.2f}' for share in shares[:, s, c])
                print(f'  {seeds} seeds, {number} comparisons: {least} ({found})')


if __name__ == '__main__':
    main()

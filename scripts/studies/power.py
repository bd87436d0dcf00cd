"""Simulate which differences in AUROC a study on 1,000 labelled X-rays can detect.

python scripts/studies/power.py  # real_xrays
python scripts/studies/power.py --pairs swin_1/scratch_swin_1 --seeds 10 --comparisons 2

For each design it prints the share of trials that find a difference. The score of an image is
normal: most of its variance is shared by two methods, and the rest is a method's own. Each seed
moves the whole model: it changes the difference between the two methods on all images, with the
standard deviation that the study docs/studies/real_xrays.md observed for a pair of rows, or by
default with the median of all pairs of a mode. A difference is found if the intervals over images
(DeLong) and over seeds (Student's t) exclude 0, the former with the level of the first step of
Holm's correction.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm, t

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation.intervals import components, variance_of_mean

TABLE = Path(__file__).resolve().parents[2] / 'docs/results/real_xrays/real_xrays_Pneumonia.csv'
SHARED, OWN = 5 / 6, 1 / 6  # of the variance of a score
LEVEL, POWER = 0.05, 0.8
DIFFERENCES = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--pairs', nargs='+', default=[], metavar='ROW/ROW', help='pairs; default: all, by mode')
    add('--seeds', nargs='+', type=int, default=[3, 10], help='numbers of seeds')
    add('--differences', nargs='+', type=float, default=DIFFERENCES, help='true differences')
    add('--trials', type=int, default=400, help='simulated studies for each difference')
    add('--comparisons', nargs='+', type=int, default=[6, 123], help='sizes of the family of Holm')
    return parser.parse_args(argv)


def observed_deviations(table: pd.DataFrame, pairs: Sequence[str] = ()) -> pd.Series:
    """Return standard deviations of a difference between seeds: of pairs, or the median of a mode.

    The table is the one of scripts/fold_table.py. Its intervals over seeds give the deviations.

    Raises:
        ValueError: If the rows of a pair 'ROW/ROW' are not compared in the table.
    """
    compared = table[table['seeds_low'].notna()]
    seeds = compared['by_seed'].str.split().str.len()
    half = (compared['seeds_high'] - compared['seeds_low']) / 2
    deviations = half * np.sqrt(seeds) / t.isf(LEVEL / 2, seeds - 1)
    if pairs:
        deviations.index = compared['row'] + '/' + compared['against']
        if unknown := [pair for pair in pairs if pair not in deviations]:
            raise ValueError(f'--pairs: the rows must be compared in {TABLE}, got {unknown[0]!r}')
        return deviations[[*pairs]]
    modes = compared['row'].str.extract('^(linear|knn)_')[0].fillna('fine-tuning')
    return deviations.groupby(modes).median()


def finds(
    rng: np.random.Generator,
    targets: np.ndarray,
    *,
    area: float,
    difference: float,
    moves: float,
    seeds: Sequence[int],
    comparisons: Sequence[int],
) -> np.ndarray:  # [number of `seeds`, number of `comparisons`] bool
    """Whether a trial finds that the second method is better.

    Args:
        rng: Random generator.
        targets: [N], 1 or 0.
        area: AUROC of the first method.
        difference: True difference in AUROC.
        moves: Standard deviation of the difference between seeds.
        seeds: Numbers of seeds.
        comparisons: Numbers of comparisons that Holm's method corrects.
    """
    shared, *own = (np.sqrt(part) * rng.normal(size=targets.size) for part in (SHARED, OWN, OWN))
    parts = []
    for moved in difference + moves * rng.normal(size=max(seeds)):
        areas = np.clip((area, area + moved), 0.01, 0.99)
        means = np.sqrt(2) * norm.ppf(areas)
        of_seed = [
            components(mean * targets + shared + each, targets)
            for mean, each in zip(means, own, strict=True)
        ]
        parts.append([after - before for before, after in zip(*of_seed, strict=True)])
    found = []
    for count in seeds:
        differences = [wins.mean() / len(losses) for wins, losses in parts[:count]]
        wins, losses = (np.mean(column, axis=0) for column in zip(*parts[:count], strict=True))
        mean, error = np.mean(differences), np.std(differences, ddof=1) / np.sqrt(count)
        p_value = 2 * norm.sf(mean / np.sqrt(variance_of_mean(wins, losses)))
        over_seeds = mean > t.isf(LEVEL / 2, count - 1) * error
        found.append([over_seeds and p_value < LEVEL / number for number in comparisons])
    return np.array(found)


def main(args: argparse.Namespace) -> int:
    rng = np.random.default_rng(0)
    deviations = observed_deviations(pd.read_csv(TABLE), args.pairs)
    designs = [(500, 0.85, name) for name in deviations.index]
    if not args.pairs:
        designs += [(500, 0.75, 'fine-tuning'), (96, 0.75, 'fine-tuning')]
    families = {'seeds': args.seeds, 'comparisons': args.comparisons}
    for positives, area, name in designs:
        targets = np.repeat([1.0, 0.0], [positives, 1000 - positives])
        options = {'area': area, 'moves': deviations[name], **families}
        trials = [
            [finds(rng, targets, difference=each, **options) for _ in range(args.trials)]
            for each in args.differences
        ]
        shares = np.mean(trials, axis=1)  # [differences, seeds, comparisons]
        print(f'{positives} positives, AUROC {area}, {name} (SD of seeds {deviations[name]:.4f})')
        for s, seeds in enumerate(args.seeds):
            for c, number in enumerate(args.comparisons):
                enough = np.flatnonzero(shares[:, s, c] >= POWER)
                most = max(args.differences)
                least = f'{args.differences[enough[0]]:g}' if enough.size else f'above {most:g}'
                found = ' '.join(f'{share:.2f}' for share in shares[:, s, c])
                print(f'  {seeds} seeds, {number} comparisons: {least} ({found})')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

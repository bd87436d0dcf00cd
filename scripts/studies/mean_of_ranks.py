"""Compare the mean of the ranks of MAE and of ImageNet features with each of them.

python scripts/studies/mean_of_ranks.py PREDICTIONS LABELS TABLE

PREDICTIONS: folder of joined predictions of which_start.yaml. LABELS: CSV file with the labels of
all images. TABLE: CSV file to write, with the columns of the tables of ablate.py. Joined
predictions are ranks within a fold already, and their mean needs no labels. Exploratory, without
correction. Not for clinical use.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pandas as pd

from evaluation.model_comparison import MISSING
from sweeps.files import load_sweep
from sweeps.folds import read_joined
from sweeps.long_table import Scored, enough_resamples, score_runs
from sweeps.tables import compare
from system.files import replace_file

SCORE = 'auroc_within_views:Pneumonia'
MAE = 'linear_mae'
OTHERS = {'mean_of_ranks64': 'imagenet64', 'mean_of_ranks256': 'imagenet256'}
SWEEP = Path(__file__).with_name('which_start.yaml')


def means_of_ranks(runs: list[Scored], shares: list[str]) -> list[Scored]:
    """Return a row for each of OTHERS, share and seed that both of its rows have."""
    by_name = {(run.row, run.seed): run for run in runs}
    made = []
    for share in shares:
        for name, other in OTHERS.items():
            for seed in sorted({run.seed for run in runs}):
                pair = [by_name.get((f'{row}_{share}', seed)) for row in (MAE, other)]
                if None in pair:
                    continue
                first, second = (run.images for run in pair)
                if [*first.path] != [*second.path]:
                    raise ValueError(f'seed {seed}: {MAE} and {other} have other images')
                ranks = (first.probabilities + second.probabilities) / 2
                images = replace(first, probabilities=ranks)
                made.append(Scored(f'{name}_{share}', seed, images))
    return made


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('predictions', type=Path, help='folder of joined predictions')
    parser.add_argument('labels', type=Path, help='CSV file with the labels of all images')
    parser.add_argument('table', type=Path, help='CSV file to write')
    args = parser.parse_args(words)
    shares = [*dict.fromkeys(row.subset for row in load_sweep(SWEEP, 'all').rows)]
    names = [f'{row}_{share}' for row in (MAE, *OTHERS.values()) for share in shares]
    runs = [*read_joined(args.predictions, args.labels, names, chosen={}, seeds=sys.maxsize)]
    runs += means_of_ranks(runs, shares)
    pairs = [
        (f'{name}_{share}', f'{row}_{share}')
        for share in shares
        for name, other in OTHERS.items()
        for row in (MAE, other)
    ]
    drawn = score_runs(runs, [SCORE], resamples=enough_resamples(len(pairs)))
    subsets = {f'{name}_{share}': share for share in shares for name in OTHERS}
    lines = [
        line | {'p_holm': None, 'verdict': MISSING}
        for line in compare(drawn, pairs, SCORE, subsets=subsets)
    ]
    replace_file(args.table, pd.DataFrame(lines).to_csv(index=False).encode())
    print(args.table)


if __name__ == '__main__':
    main()

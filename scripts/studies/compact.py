"""Write the joined predictions of a seed, or of some of its rows, as a compact file, once.

python scripts/studies/compact.py OUT/results/which_start/seed20 docs/results/which_start/vit_seed20

Copies runs.csv, tuning.csv and predictions.json beside it. Ranks have four digits, which float32
keeps.
"""

import shutil
import sys
from pathlib import Path

import pandas as pd

source, target = map(Path, sys.argv[1:])
table = pd.read_csv(source / 'predictions.csv.gz', dtype={'row': str, 'Path': str})
labels = [*table.columns[3:]]
texts = pd.read_csv(source / 'predictions.csv.gz', dtype=str)[labels]
table = table.astype(dict.fromkeys(labels, 'float32'))
assert all((table[name].map('{:.4g}'.format) == texts[name]).all() for name in labels)
if target.exists():
    sys.exit(f'error: {target} exists, and predictions are written once')
target.mkdir(parents=True)
table.sort_values(['row', 'Path']).to_parquet(
    target / 'predictions.parquet', compression='zstd', compression_level=19, index=False
)
for name in ('runs.csv', 'tuning.csv', 'predictions.json'):
    if (source / name).is_file():  # older predictions have no record of their runs
        shutil.copy(source / name, target / name)

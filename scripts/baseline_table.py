"""Write the table and the figure of scripts/baseline.sh, with a pixel baseline for each share.

python scripts/baseline_table.py --output OUT --seeds 1
"""

import argparse
import copy
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sweeps.comparison import MEANS
from sweeps.files import ROOT, load_sweep
from sweeps.plots import plot_subsets
from sweeps.results import collect, save_collected
from sweeps.tables import sweep_markdown, write_sweep_table


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', type=Path, required=True, help='output of scripts/baseline.sh')
    parser.add_argument('--seeds', type=int, default=1, help='seeds 0 to N - 1')
    return parser.parse_args()


def floor_row(scratch: dict, output: Path) -> dict:
    """Return a row with the logistic regressions on pixels that the runs of a row have scored."""
    row = copy.deepcopy(scratch) | {'method': 'pixels', 'name': f'pixels_{scratch["subset"]}'}
    row |= {'against': '', 'compared': {}, 'over_patients': {}}
    for entry in row['seeds']:
        if figures := entry['finetune']['figures']:
            folder = output / f'simmim_finetune/{scratch["run"]}_seed{entry["seed"]}'
            scores = json.loads((folder / 'scores.json').read_text())[figures['split']]
            floor = scores['pixel_floor']
            means = {name: floor[name] for name in MEANS if name in floor}
            figures['scores'] = means | floor['auroc']
    return row


def main(args: argparse.Namespace) -> int:
    sweep = load_sweep(ROOT / 'scripts/comparison/baseline.yaml')
    collected = collect(sweep, range(args.seeds), args.output)
    rows = collected['rows']
    rows += [floor_row(row, args.output) for row in rows if row['method'] == 'scratch']
    rows.sort(key=lambda row: float(row['subset']))
    save_collected(collected, args.output)
    write_sweep_table(collected, args.output)
    plot_subsets(args.output / 'baseline_shares.png', collected)
    print(sweep_markdown(collected))
    print(f'{args.output}/baseline.md, .csv, .json, baseline_shares.png')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

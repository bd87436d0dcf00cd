"""Print the results of the demo, and save them as demo.json.

python scripts/demo_table.py DIR              one demo
python scripts/demo_table.py FILE FILE ...    demo.json of several seeds, with mean differences

A file may also contain a list of these results, as docs/results/demo.json.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.labels import COMPETITION_LABELS
from logger import read_metrics
from sweeps.row_comparison import compare_rows
from sweeps.table_format import markdown_table, shown
from system.files import replace_file

SCORE = 'mean_of_five'
RUNS = {'pre-trained': 'pretrained', 'random weights': 'random'}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    help_text = 'folder of a demo, or several files demo.json'
    parser.add_argument('paths', nargs='+', type=Path, metavar='DIR', help=help_text)
    return parser.parse_args()


def pretraining(folder: Path) -> dict[str, float]:
    """Return the held-out masked L1 in grey levels of the model and of trivial predictors."""
    records = read_metrics(folder / 'runs/simmim_pretrain/demo/metrics.jsonl')
    return {
        'before training': records[0]['holdout_l1_grey'],
        'after training': records[-1]['holdout_l1_grey'],
        'mean of visible pixels': records[-1]['holdout_l1_grey_mean'],
        'linear interpolation': records[-1]['holdout_l1_grey_linear'],
    }


def scores_on_test(folder: Path) -> dict[str, dict]:
    """Return the scores of the probes and of the pixel floor on the test split."""
    tables = {}
    for name, tag in RUNS.items():
        table = json.loads((folder / f'runs/simmim_finetune/{tag}/scores.json').read_text())['test']
        tables[name] = table['selected']
    tables['pixel floor'] = table['pixel_floor']
    return tables


def print_one(folder: Path) -> None:
    losses, scores = pretraining(folder), scores_on_test(folder)
    print('\nHeld-out masked L1 on the hidden pixels (0 to 255 grey levels, lower is better)')
    for name, value in losses.items():
        print(f'  {name:<24}{value:8.2f}')
    first = scores['pre-trained']
    print(
        f'\nAUROC on the synthetic test split (n = {first["rows"]}, {first["level"]} level, '
        f'{first["views"]} views, higher is better)'
    )
    print(f'  {"":<24}' + ''.join(f'{name:>16}' for name in scores))
    rows = {label: [t['auroc'][label] for t in scores.values()] for label in COMPETITION_LABELS}
    rows['mean of these five'] = [t[SCORE] for t in scores.values()]
    defined = 14 - len(first['undefined'])
    rows[f'mean of {defined} labels'] = [t['mean_of_defined'] for t in scores.values()]
    for name, values in rows.items():
        print(f'  {name:<24}' + ''.join(f'{shown(value, ".4f"):>16}' for value in values))
    print('  Synthetic images: these scores say nothing about patients. Not for clinical use.')
    images = sorted(
        folder.glob('runs/simmim_pretrain/demo/reconstructions/*.png'),
        key=lambda path: path.stat().st_mtime,
    )
    print('\nImages')
    for path in (*images[:1], *images[-1:], folder / 'contact_sheet.png'):
        print(f'  {path}')
    seed = int((folder / 'seed').read_text())
    result = {'seed': seed, 'held_out_l1_grey': losses, 'test': scores}
    replace_file(folder / 'demo.json', json.dumps(result, indent=1) + '\n')


def print_several(files: list[Path]) -> None:
    """Print the mean-of-five AUROC of each demo, and the paired differences over all demos."""
    found = [json.loads(file.read_text()) for file in files]
    results = [result for part in found for result in (part if isinstance(part, list) else [part])]
    names = [*results[0]['test']]
    rows = []
    for result in results:
        _, *errors = result['held_out_l1_grey'].values()
        row = {'seed': str(result['seed'])}
        row['held-out L1: after, mean, linear'] = ', '.join(f'{error:.1f}' for error in errors)
        row |= {name: shown(result['test'][name][SCORE], '.4f') for name in names}
        rows.append(row)
    print(markdown_table(rows))
    print(f"Mean of {len(results)} seeds, 95 % interval by Student's t over the seeds")
    table = {
        name: {
            number: {SCORE: np.array([result['test'][name][SCORE]])}
            for number, result in enumerate(results)
        }
        for name in names
    }
    pairs = [(names[0], other) for other in names[1:]]
    for (first, other), part in zip(pairs, compare_rows(table, pairs, SCORE), strict=True):
        low, high = part['over_seeds'].values()
        print(f'{first} minus {other}: {part["difference"]:+.4f} ({low:+.4f} to {high:+.4f})')


def main(args: argparse.Namespace) -> int:
    if len(args.paths) == 1 and args.paths[0].is_dir():
        print_one(args.paths[0])
    else:
        print_several(args.paths)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

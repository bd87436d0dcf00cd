"""Print the demo's results from the files that its steps wrote, and save them as demo.json.

python scripts/demo_table.py DIR
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.labels import COMPETITION_LABELS
from logger import read_metrics

RUNS = {'pre-trained': 'pretrained', 'from scratch': 'scratch'}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help="the demo's folder")
    return parser.parse_args()


def pretraining(folder: Path) -> dict[str, float]:
    """Held-out masked L1 in grey levels before and after pre-training, and the trivial ones."""
    records = read_metrics(folder / 'runs/simmim_pretrain/demo/metrics.jsonl')
    first, last = records[0], records[-1]
    return {
        'before training': first['holdout_l1_grey'],
        'after training': last['holdout_l1_grey'],
        'mean of visible pixels': last['holdout_l1_grey_mean'],
        'linear interpolation': last['holdout_l1_grey_linear'],
    }


def test_scores(folder: Path) -> dict[str, dict]:
    """Scores on the test split: the selected checkpoints' and the pixel floor's."""
    files = {name: f'runs/simmim_finetune/{tag}/scores.json' for name, tag in RUNS.items()}
    tables = {name: json.loads((folder / file).read_text()) for name, file in files.items()}
    scores = {
        name: table['test'].get('selected', table['test']['last']) for name, table in tables.items()
    }
    floor = json.loads((folder / 'pixel_floor.json').read_text())['test']
    return scores | {'pixel floor': floor}


def main(args: argparse.Namespace) -> int:
    losses, scores = pretraining(args.folder), test_scores(args.folder)
    print('\nHeld-out masked L1 on the hidden pixels (0 to 255 grey levels, lower is better)')
    for name, value in losses.items():
        print(f'  {name:<24}{value:8.2f}')
    first = scores['pre-trained']
    print(
        f'\nAUROC on the synthetic test split (n = {first["rows"]}, {first["level"]} '
        f'level, {first["views"]} views, higher is better)'
    )
    print(f'  {"":<24}' + ''.join(f'{name:>14}' for name in scores))
    for label in COMPETITION_LABELS:
        values = [table['auroc'][label] for table in scores.values()]
        print(f'  {label:<24}' + ''.join(f'{_show(value):>14}' for value in values))
    for key, name in (
        ('mean_of_five', 'mean of these five'),
        ('mean_of_defined', 'mean of all 14'),
    ):
        values = [table[key] for table in scores.values()]
        print(f'  {name:<24}' + ''.join(f'{_show(value):>14}' for value in values))
    print('  Synthetic pictures: these scores say nothing about patients. Not for clinical use.')
    pictures = sorted(args.folder.glob('runs/simmim_pretrain/demo/reconstructions/*.png'))
    print('\nPictures')
    for path in (*pictures[:1], *pictures[-1:], args.folder / 'contact_sheet.png'):
        print(f'  {path}')
    result = {'held_out_l1_grey': losses, 'test': scores}
    (args.folder / 'demo.json').write_text(json.dumps(result, indent=1) + '\n')
    return 0


def _show(value: float | None) -> str:
    return 'n/a' if value is None else f'{value:.4f}'


if __name__ == '__main__':
    sys.exit(main(parse_args()))

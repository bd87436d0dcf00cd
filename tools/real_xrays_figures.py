"""Draw the figure of the X-rays of NIH in docs/results/real_xrays/trials.md.

python tools/real_xrays_figures.py --results docs/results/real_xrays

It shows the table of Pneumonia that scripts/ablate.py wrote to the folder of results.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sweeps.plots import COLOURS, MARKERS, add_note, drawing
from system.tool import Paragraphs

SHARES = ('0.1', '0.5', '1')
MODES = {'': 'Fine-tuning', 'linear_': 'Linear probe', 'knn_': 'k-NN'}
METHODS = {
    'simmim': 'SimMIM',
    'mae': 'MAE',
    'moco': 'MoCo v2',
    'simclr': 'SimCLR',
    'byol': 'BYOL',
    'swav': 'SwAV',
    'scratch': 'no pre-training',
    'random': 'no pre-training',
    'pixels': 'pixels',
}


def draw_shares(path: Path, scores: pd.DataFrame, score: str) -> None:
    """Draw AUROC by labelled share for fine-tuning, linear probe and k-NN."""
    numbers = {title: number for number, title in enumerate(dict.fromkeys(METHODS.values()))}
    with drawing(path, 3.2) as figure:
        panels = figure.subplots(1, len(MODES), sharey=True)
        for axis, (mode, title) in zip(panels, MODES.items(), strict=True):
            names = [name for name in METHODS if f'{mode}{name}_1' in scores.index]
            if mode == 'linear_':
                names.append('pixels')
            for number, name in enumerate(names):
                prefix = '' if name == 'pixels' else mode
                rows = scores.reindex([f'{prefix}{name}_{share}' for share in SHARES])
                shift = 0.08 * (number - (len(names) - 1) / 2)
                positions = [tick + shift for tick in range(3)]
                draw_line(axis, positions, rows, METHODS[name], numbers[METHODS[name]])
            axis.set_title(title, fontsize=10)
            axis.set_xticks(range(3), ['10 %', '50 %', '100 %'])
            axis.grid(axis='y')
        panels[0].set_ylabel(f'AUROC, {score}')
        panels[1].set_xlabel('labelled training images')
        handles = {
            text: line
            for axis in panels
            for line, text in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        columns = 4 if max(map(len, handles), default=0) < 16 else 2
        figure.legend(handles.values(), handles, ncols=columns, loc='outside upper center')
        add_note(figure, 'Mean of the seeds. Bars: 95 % over patients.')


def draw_line(axis: Axes, positions: list, rows: pd.DataFrame, label: str, number: int) -> None:
    bars = [rows['value'] - rows['low'], rows['high'] - rows['value']]
    style = {'color': COLOURS[number % len(COLOURS)], 'marker': MARKERS[number % len(MARKERS)]}
    axis.errorbar(positions, rows['value'], bars, markersize=4, linewidth=0.8, label=label, **style)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    parser.add_argument('--results', type=Path, required=True, help='folder of the results')
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    scores = pd.read_csv(args.results / 'real_xrays_Pneumonia.csv')
    scores = scores.drop_duplicates('row').set_index('row')
    draw_shares(args.results / 'shares_Pneumonia.png', scores, 'Pneumonia')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

"""Draw the figures of docs/results.md.

python tools/real_xrays_figures.py --results docs/results/real_xrays

They show the tables that scripts/ablate.py wrote to the folder of results.
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
ENCODERS = {
    'simmim': 'ViT, SimMIM',
    'scratch': 'ViT, no pre-training',
    'random': 'ViT, no pre-training',
    'swin': 'Swin, SimMIM',
    'scratch_swin': 'Swin, no pre-training',
    'random_swin': 'Swin, no pre-training',
}
EPOCHS = {0: ('scratch', 'linear_random'), 5: ('epochs5', 'linear_epochs5')}
EPOCHS |= {20: ('epochs20', 'linear_epochs20'), 60: ('simmim', 'linear_simmim')}
EPOCHS |= {150: ('epochs150', 'linear_epochs150')}


def draw_shares(path: Path, scores: pd.DataFrame, score: str, titles: dict[str, str]) -> None:
    """Draw AUROC by labelled share for fine-tuning, linear probe and k-NN.

    `titles` maps the names of rows to those in the legend.
    """
    numbers = {title: number for number, title in enumerate(dict.fromkeys(titles.values()))}
    with drawing(path, 3.2) as figure:
        panels = figure.subplots(1, len(MODES), sharey=True)
        for axis, (mode, title) in zip(panels, MODES.items(), strict=True):
            names = [name for name in titles if f'{mode}{name}_1' in scores.index]
            if mode == 'linear_' and 'pixels' in titles:
                names.append('pixels')
            for number, name in enumerate(names):
                prefix = '' if name == 'pixels' else mode
                rows = scores.reindex([f'{prefix}{name}_{share}' for share in SHARES])
                shift = 0.08 * (number - (len(names) - 1) / 2)
                positions = [tick + shift for tick in range(3)]
                draw_line(axis, positions, rows, titles[name], numbers[titles[name]])
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


def draw_epochs(path: Path, scores: pd.DataFrame, runs: pd.DataFrame, score: str) -> None:
    """Draw AUROC with all labels, and the held-out error, by epochs of SimMIM's pre-training."""
    with drawing(path, 2.8) as figure:
        left, right = figure.subplots(1, 2)
        for number, title in enumerate(('fine-tuning', 'linear probe')):
            rows = {epochs: f'{pair[number]}_1' for epochs, pair in EPOCHS.items()}
            rows = {epochs: row for epochs, row in rows.items() if row in scores.index}
            draw_line(left, [*map(str, rows)], scores.loc[[*rows.values()]], title, number)
        left.set_ylabel(f'AUROC, {score}')
        left.legend(loc='lower right')
        for epochs, (name, _) in EPOCHS.items():
            errors = runs.filter(regex=f'^real_xrays_{name}_seed', axis=0)
            if epochs and len(errors):
                positions = [str(epochs)] * len(errors)
                right.plot(positions, errors['holdout_l1_grey'], 'o', color=COLOURS[0])
                right.plot(positions, errors['linear'], '_', color=COLOURS[1], markersize=12)
        right.plot([], 'o', color=COLOURS[0], label='SimMIM, one point per seed')
        right.plot([], '_', color=COLOURS[1], label='linear interpolation')
        right.legend(loc='center right')
        right.set_ylim(bottom=0)
        right.set_ylabel('held-out error (grey levels)')
        for axis in (left, right):
            axis.set_xlabel('epochs of pre-training')
            axis.grid(axis='y')
        add_note(
            figure,
            'Left: all labels, mean of the seeds, bars: 95 % over patients; 0: no pre-training. '
            'Right: under the masks of pre-training.',
        )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    parser.add_argument('--results', type=Path, required=True, help='folder of the results')
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    runs = pd.read_csv(args.results / 'predictions/runs.csv', index_col='run')
    for score in ('Pneumonia', 'mean'):
        scores = pd.read_csv(args.results / f'real_xrays_{score}.csv')
        scores = scores.drop_duplicates('row').set_index('row')
        draw_shares(args.results / f'shares_{score}.png', scores, score, METHODS)
        draw_shares(args.results / f'encoders_{score}.png', scores, score, ENCODERS)
        if score == 'Pneumonia':
            draw_epochs(args.results / f'epochs_{score}.png', scores, runs, score)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

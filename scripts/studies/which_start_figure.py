"""Draw the figure of docs/studies/which_start.md: score by number of labelled patients.

python scripts/studies/which_start_figure.py RESULTS FIGURE

RESULTS: folder of which_start_tables.sh, with secondary_SHARE for each share of the labels.
FIGURE: .png, .pdf or .svg file. Letters are readable where a page shows it 400 pixels wide.
Lines are means over seeds of frozen features, and of the ResNet from scratch. Dots are the same
starts with all weights trained, where they were run. Bands are 95 % over patients, of three starts:
those of the others are about as wide.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd
from sklearn.isotonic import isotonic_regression

from sweeps.plots import COLOURS, GREY, drawing
from system.pages import NOT_FOR_CLINICAL_USE

TABLE = 'which_start_auroc_within_views_Pneumonia.csv'
SHARES = ('0.05', '0.1', '0.25', '0.5', '1')
# Of 682 patients, one fifth is scored, and one fifth of the others is held out.
PATIENTS = 682 * 0.8 * 0.8
BLACK, LIGHT_BLUE, GREEN, BLUE, ORANGE = (COLOURS[place] for place in (0, 2, 3, 4, 5))
LINES = {  # method -> name at the end of its line, colour of its network, style
    'linear_mae': ('MAE on X-rays', BLUE, '-'),
    'linear_simmim': ('SimMIM on X-rays', LIGHT_BLUE, '-'),
    'imagenet256': ('ImageNet, 256 px', ORANGE, '-'),
    'imagenet64': ('ImageNet, 64 px', ORANGE, '--'),
    'lite0_random64': ('random CNN, 64 px', ORANGE, ':'),
    'resnet18': ('ResNet from scratch', GREEN, '-'),
    'linear_moco': ('MoCo, 3 seeds', GREEN, '--'),
    'pixels': ('pixels, no network', BLACK, ':'),
}
DOTS = {'mae': BLUE, 'simmim': LIGHT_BLUE, 'imagenet': ORANGE, 'moco': GREEN}  # fine-tuned
BANDS = ('linear_mae', 'imagenet256', 'resnet18')
GAP = 0.055  # between names, as a share of the height


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('results', type=Path, help='folder of which_start_tables.sh')
    parser.add_argument('figure', type=Path, help='.png, .pdf or .svg file')
    args = parser.parse_args(words)
    tables = [pd.read_csv(args.results / f'secondary_{share}' / TABLE) for share in SHARES]
    table = pd.concat(tables).drop_duplicates('row').set_index('row')
    patients = [float(share) * PATIENTS for share in SHARES]
    with drawing(args.figure, 4.4, 4.2) as figure:
        axis = figure.subplots()
        axis.set_xscale('log')
        ends = []
        for method, (_, colour, style) in LINES.items():
            scored = table.loc[[f'{method}_{share}' for share in SHARES]]
            if method in BANDS:  # all of them would hide each other
                ends_of_band = scored['low'], scored['high']
                axis.fill_between(patients, *ends_of_band, color=colour, alpha=0.15, linewidth=0)
            axis.plot(patients, scored['value'], color=colour, linestyle=style, linewidth=2)
            ends.append(scored['value'].iloc[-1])
        beside = [number * 0.94 for number in patients]  # no dot looks like the end of a line
        for method, colour in DOTS.items():
            values = table['value'].reindex([f'{method}_{share}' for share in SHARES])
            axis.plot(beside, values, 'o', color=colour, markeredgecolor='white')
        axis.set_xticks(patients, [f'{number:.0f}' for number in patients])
        axis.minorticks_off()
        axis.margins(x=0)
        axis.grid(axis='y')
        axis.set_xlabel('patients with labels')
        axis.set_title('AUROC of Pneumonia within views', loc='left', fontsize=10)
        low, high = axis.get_ylim()
        order, gap = np.argsort(ends, kind='stable'), GAP * (high - low)
        steps = gap * np.arange(len(ends))
        heights = isotonic_regression(np.array(ends)[order] - steps) + steps
        for place, height in zip(order, heights, strict=True):
            name, colour, _ = [*LINES.values()][place]
            line = {'arrowstyle': '-', 'color': colour, 'linewidth': 0.8, 'relpos': (0, 0.5)}
            axis.annotate(
                name,
                (1, ends[place]),
                (1.06, height),
                xycoords=axis.get_yaxis_transform(),
                textcoords=axis.get_yaxis_transform(),
                color=colour,
                verticalalignment='center',
                arrowprops=line | {'shrinkA': 0, 'shrinkB': 0},
                annotation_clip=False,
            )
        figure.supxlabel(
            f'Dots: fine-tuned. Bands: 95 %. {NOT_FOR_CLINICAL_USE}',
            fontsize=9,
            color=GREY,
        )
    print(args.figure)


if __name__ == '__main__':
    main()

"""Put the reconstructions of several pre-trainings side by side, under names or those of the runs.

python scripts/show_reconstructions.py [NAME=]RUN_FOLDER [NAME=]RUN_FOLDER ... --output FILE.png

The newest file reconstructions/epoch_N.png of each run is shown. The held-out images are the same
for runs on the same data with the same held-out patients.
"""

import argparse
import re
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from system.pages import FONT, FONT_WIDTH, TALLEST, WIDTH, new_figure, page_files, split_pages
from system.tool import tool

COLUMNS = 2
DPI = 300  # keeps the pixels of the files, which are shown at half of their size


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('runs', nargs='+', metavar='[NAME=]RUN_FOLDER')
    parser.add_argument('--output', required=True, type=Path, metavar='FILE.png')
    return parser.parse_args()


def newest(run: Path) -> Path:
    """Return the reconstructions of the last epoch of a run."""
    files = [*run.glob('reconstructions/epoch_*.png')]
    if not files:
        raise ValueError(
            f'{run} has no file reconstructions/epoch_*.png: it has not finished an epoch, or its '
            'method predicts no pixels'
        )
    return max(files, key=lambda file: int(re.sub(r'\D', '', file.stem)))


def name_and_folder(word: str) -> tuple[str, Path]:
    """Return the name and the folder of NAME=FOLDER, or the name of a folder and the folder."""
    name, _, folder = word.partition('=')
    return (name, Path(folder)) if folder and not Path(word).is_dir() else ('', Path(word))


@tool
def main(args: argparse.Namespace) -> int:
    runs = [name_and_folder(word) for word in args.runs]
    images = [Image.open(newest(folder)) for _, folder in runs]
    width = WIDTH / COLUMNS
    letters = round(FONT_WIDTH * width)
    names = [name or folder.name.replace('_', '_ ') for name, folder in runs]
    titles = [textwrap.fill(name, letters).replace('_ ', '_') for name in names]  # breaks after a _
    height = 0.15 * (1 + max(title.count('\n') + 1 for title in titles))
    height += width * max(image.height / image.width for image in images)
    pages = split_pages([*zip(titles, images, strict=True)], COLUMNS * int(TALLEST / height))
    figures = {}
    for file, page in zip(page_files(args.output, len(pages)), pages, strict=True):
        rows, columns = -(-len(page) // COLUMNS), min(COLUMNS, len(page))
        figure = new_figure(rows * height, columns * width)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, (title, image) in zip(axes, page, strict=False):
            axis.imshow(image)
            axis.set_title(title, fontsize=FONT)
        figures[file] = figure
    for file, figure in figures.items():  # when all images are read
        figure.savefig(file, dpi=DPI)
        print(file)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

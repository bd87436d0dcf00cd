"""Put the reconstructions of several pre-trainings side by side, under the names of their runs.

python scripts/show_reconstructions.py RUN_FOLDER RUN_FOLDER ... --output FILE.png

The newest file reconstructions/epoch_N.png of each run is shown. The held-out images are the same
for runs on the same data with the same held-out patients.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from matplotlib.figure import Figure
from PIL import Image

from system.tool import tool

DPI = 110  # that of the files, so that their pixels are not resampled much


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('runs', type=Path, nargs='+', metavar='RUN_FOLDER')
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


@tool
def main(args: argparse.Namespace) -> int:
    images = [Image.open(newest(run)) for run in args.runs]
    width = sum(image.width for image in images) / DPI
    height = max(image.height for image in images) / DPI + 0.4
    figure = Figure((width, height), layout='constrained', dpi=DPI)
    for axis, image, run in zip(
        figure.subplots(1, len(images), squeeze=False)[0], images, args.runs, strict=True
    ):
        axis.imshow(image)
        axis.set_axis_off()
        axis.set_title(run.name, fontsize=14)
    figure.savefig(args.output)
    print(args.output)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

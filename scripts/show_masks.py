"""Draw an X-ray under masks of every type, or of some, with several unit sizes and ratios.

python scripts/show_masks.py --image FILE --output FILE.png [--size 192 --patch 4 --opts KEY VALUE]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import check_values, default_config
from data.images.files import load_image
from data.loader import sample_rng
from data.masking import MASKS, MaskGenerator, average_distance
from data.transforms import FILTERS, centre_crop
from evaluation.reconstruction import pixel_mask
from system.pages import (
    FONT,
    NOTE,
    SMALL,
    WIDTH,
    new_figure,
    note_on_images,
    page_files,
    split_pages,
)
from system.tool import tool

HIDDEN_COLOUR = np.array([38, 70, 108])
MOST_COLUMNS = 6
DPI = 200


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--image', required=True, help='file of an X-ray')
    add('--output', required=True, type=Path, help='.png file to write')
    add('--size', type=int, default=192, help='side of the model input in pixels')
    add('--patch', type=int, default=4, help='side of a token in pixels')
    add('--units', type=int, nargs='+', default=[16, 32], help='sides of a mask unit in pixels')
    add('--ratios', type=float, nargs='+', default=[0.3, 0.6, 0.8], help='shares of hidden units')
    add('--types', nargs='+', choices=MASKS, default=[*MASKS], help='types of masks')
    add('--seed', type=int, default=0, help='seed of the masks')
    add('--opts', nargs='+', default=[], metavar='KEY VALUE', help='options of masks, in pairs')
    return parser.parse_args()


def cover(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:  # [S, S, 3] uint8
    """Return the image with all hidden tokens in one colour."""
    hidden = pixel_mask(mask, len(pixels) // len(mask))[..., None]
    return np.where(hidden, HIDDEN_COLOUR, pixels[..., None]).round().astype(np.uint8)


def draw_grid(
    pixels: np.ndarray, columns: Sequence[tuple[int, float]], args: argparse.Namespace
) -> Figure:
    """Draw a row per mask type, a column per (unit size, ratio), and the image on the left.

    The mean distance from hidden to visible pixels of each mask is printed.
    """
    side = WIDTH / (MOST_COLUMNS + 1.1)
    config = default_config()
    config.merge_from_list(args.opts)
    check_values(config, 'simmim')
    height = 0.3 + NOTE + len(args.types) * (side + 0.4)
    figure = new_figure(height, side * (len(columns) + 1.1))
    grid = figure.add_gridspec(len(args.types), len(columns) + 1)
    original = _add_image(figure, grid[:, 0], np.repeat(pixels[..., None], 3, axis=2) / 255)
    original.set_title(f'X-ray,\n{args.size} px', fontsize=SMALL)
    for row, mask_type in enumerate(args.types):
        options = MASKS.options_of(mask_type, config)
        for column, (unit, ratio) in enumerate(columns, start=1):
            generator = MaskGenerator(args.size, unit, args.patch, ratio, mask_type, options)
            mask = generator(sample_rng(args.seed, 0, column))
            ax = _add_image(figure, grid[row, column], cover(pixels, mask))
            total = (args.size // unit) ** 2
            distance = average_distance(mask[None], args.patch)
            print(f'{mask_type}, {unit} px, ratio {ratio:g}: AvgDist {distance:.2f} px')
            ax.set_xlabel(f'{generator.count} of {total}:\n{mask.mean():.1%} hidden', fontsize=7)
            if row == 0:
                ax.set_title(f'{unit} px,\nratio {ratio:g}', fontsize=SMALL)
            if column == 1:
                ax.set_ylabel(mask_type, fontsize=FONT, fontweight='bold')
    figure.supxlabel(note_on_images([args.image]), fontsize=SMALL)
    return figure


def _add_image(figure: Figure, cell: SubplotSpec, image: np.ndarray) -> Axes:
    ax = figure.add_subplot(cell, xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.imshow(image, interpolation='nearest')
    return ax


@tool
def main(args: argparse.Namespace) -> int:
    pixels = centre_crop(load_image(args.image), args.size, FILTERS['bilinear'][0])
    columns = [(unit, ratio) for unit in args.units for ratio in args.ratios]
    pages = split_pages(columns, MOST_COLUMNS)
    figures = [draw_grid(pixels, page, args) for page in pages]  # refuses what no mask can have
    args.output.parent.mkdir(parents=True, exist_ok=True)
    files = page_files(args.output, len(pages))
    for file, figure, page in zip(files, figures, pages, strict=True):
        figure.savefig(file, dpi=DPI)
        shown = ', '.join(f'{unit} px at {ratio}' for unit, ratio in page)
        print(f'{file}: {", ".join(args.types)}; units and ratios: {shown}')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

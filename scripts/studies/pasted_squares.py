"""Paste squares into the X-rays of examples/, so that it is known where a model must look.

python scripts/studies/pasted_squares.py DIR

Writes DIR/Set in CheXpert's layout, in which a white rectangle is called Edema and a black one
Pneumonia, and DIR/boxes.csv with their places.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd
from PIL import Image

from data.images.image_source import open_images
from data.tables.labels import LABELS
from system.tool import tool

XRAYS = Path(__file__).resolve().parents[2] / 'examples/xrays'
VALID = 60  # the last images
COLUMNS = slice(8, 56)  # of 64, so that height and width differ
HEIGHT, WIDTH = 14, 11  # of a rectangle
SHARE = 0.5  # of the images with each of them
GREY = {'Edema': 255, 'Pneumonia': 0}
BOX = ['Path', 'Label', 'x', 'y', 'width', 'height', 'image_height', 'image_width']


def paste(folder: Path, number: int, seed: int = 0) -> None:
    """Write this number of images with rectangles, and their tables."""
    files = pd.read_csv(XRAYS / 'train.csv')['Path'].str.partition('/')[2].tolist()[:number]
    read, rng = open_images(XRAYS).reader(files), np.random.default_rng(seed)
    rows: dict[str, list[dict]] = {'train': [], 'valid': []}
    boxes = []
    for place in range(number):
        pixels = np.array(read(place))[:, COLUMNS]
        split = 'valid' if place >= number - VALID else 'train'
        path = f'Set/{split}/patient{place:05d}/study1/view1_frontal.png'
        cells = dict.fromkeys(LABELS, 0.0)
        for label, grey in GREY.items():
            if rng.random() < SHARE:
                y = int(rng.integers(pixels.shape[0] - HEIGHT))
                x = int(rng.integers(pixels.shape[1] - WIDTH))
                pixels[y : y + HEIGHT, x : x + WIDTH] = grey
                cells[label] = 1.0
                boxes.append((path, label, x, y, WIDTH, HEIGHT, *pixels.shape))
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / path)
        about = {'Path': path, 'Sex': 'Unknown', 'Age': 50}
        rows[split].append(about | {'Frontal/Lateral': 'Frontal', 'AP/PA': 'AP'} | cells)
    for split, found in rows.items():
        pd.DataFrame(found).to_csv(folder / 'Set' / f'{split}.csv', index=False)
    pd.DataFrame(boxes, columns=BOX).to_csv(folder / 'boxes.csv', index=False)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, metavar='DIR')
    parser.add_argument('--images', type=int, default=800, help='number (%(default)s)')
    return parser.parse_args(arguments)


@tool
def main(args: argparse.Namespace) -> int:
    paste(args.folder, args.images)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

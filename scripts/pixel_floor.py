"""Score the pixel floor (64 x 64 pixels, PCA, logistic regression) on a config's own splits.

python scripts/pixel_floor.py --cfg configs/... --data-path DIR [--opts ...] --output FOLDER
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import build_parser, get_config
from data import build_loader
from data.loader import image_reader
from engine.files import replace_file
from evaluation.metrics import describe_scores, score_probabilities
from evaluation.probes import pixel_floor
from logger import create_logger, json_safe

SIDE_PX = 64


def parse_args() -> argparse.Namespace:
    return build_parser('finetune').parse_args()


def pixels(records) -> np.ndarray:
    """All images of a split, [N, SIDE_PX * SIDE_PX] in [0, 1]."""
    images = map(image_reader(records), range(len(records)))
    small = [np.asarray(image.resize((SIDE_PX, SIDE_PX)), np.float32) for image in images]
    return np.stack(small).reshape(len(small), -1) / 255


def main(args: argparse.Namespace) -> int:
    config = get_config(args)
    folder = Path(config.OUTPUT)
    folder.mkdir(parents=True, exist_ok=True)
    loaders = build_loader(config, create_logger(folder, name='pixel_floor'), is_pretrain=False)
    train, table = loaders.train.dataset, {}
    train_pixels = pixels(train.records)
    for split in ('valid', 'test'):
        loader = getattr(loaders, split)
        if loader is None:
            continue
        records, targets = loader.dataset.records, loader.dataset.targets
        probabilities = pixel_floor(train_pixels, train.targets, pixels(records))
        scores = score_probabilities(config, probabilities, targets, records.study)
        table[split] = scores | {'views': config.EVAL.VIEWS or config.DATA.VIEWS, 'loss': np.nan}
        print(f'{split}: {describe_scores(table[split])}')
    replace_file(folder / 'pixel_floor.json', json.dumps(json_safe(table), indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

"""Splits of X-rays, two views a patient; a config that loads them, and the samples loaded."""

import logging
from pathlib import Path

import numpy as np
import torch
from csv_files import image_path, row, write
from PIL import Image

from config import default_config
from data.tables.labels import LABELS
from system.device import to_device

LOGGER = logging.getLogger('xray_splits')
CYCLE = ('1.0', '0.0', '-1.0', '')


def xray(height: int = 90, width: int = 110, seed: int = 0) -> Image.Image:
    """A smooth grey image with noise."""
    noise = np.random.RandomState(seed).randint(0, 40, (height, width))
    slope = np.linspace(0, 200, width)[None] * np.linspace(0.3, 1, height)[:, None]
    return Image.fromarray((slope + noise).astype(np.uint8))


def cells_of(number: int, cycle: tuple[str, ...] = CYCLE) -> list[str]:
    """The label cells of an image; Fracture is blank throughout."""
    cells = [cycle[(3 * number // 2 + k) % 4] for k in range(14)]
    cells[LABELS.index('Fracture')] = ''
    return cells


def write_split(root: Path, split: str, num_patients: int, cycle: tuple[str, ...] = CYCLE) -> None:
    """A CSV of two images a patient, frontal and lateral, and the images, all different."""
    first = {'train': 0, 'valid': 1000, 'test': 2000}[split]  # patient
    rows = []
    for number in range(2 * num_patients):
        view = ('view1_frontal', 'view2_lateral')[number % 2]
        path = image_path(first + number // 2, 1, view, folder=split).replace('.jpg', '.png')
        cells = dict(zip(LABELS, cells_of(number, cycle), strict=True))
        rows.append(row(f'Set/{path}', **{'AP/PA': 'AP' if number % 2 == 0 else ''}, **cells))
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.RandomState(number).randint(0, 256, (36 + number % 5, 40))
        Image.fromarray(noise.astype(np.uint8)).save(root / path)
    write(root / f'{split}.csv', rows)


def make_config(data_path: Path, *options):
    config = default_config()
    config.merge_from_list(
        ['DATA.DATA_PATH', str(data_path), 'DATA.DATASET', 'chexpert', 'DATA.BATCH_SIZE', 4]
        + ['DATA.IMG_SIZE', 64, 'DATA.MASK_PATCH_SIZE', 16, 'DATA.NUM_WORKERS', 0]
        + ['DATA.HOLDOUT_FRACTION', 0.2, 'DATA.VIEWS', 'all', 'MODEL.IN_CHANS', 1]
        + ['DATA.UNCERTAIN', 'ignore', 'MODEL.NUM_CLASSES', 14, 'AUG.AUTO_AUGMENT', 'none']
    )
    config.merge_from_list(list(options))
    config.freeze()
    return config


def samples_of(loader, *epochs: int, first_batch: int = 0) -> list[tuple[torch.Tensor, ...]]:
    """The samples of these epochs one by one, in order."""
    samples = []
    for epoch in epochs:
        loader.batch_sampler.set_epoch(epoch, first_batch)
        for batch in loader:
            samples += list(zip(*to_device(batch, torch.device('cpu')), strict=True))
    return samples

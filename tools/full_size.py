"""Measure the tools around training at CheXpert's size, with pictures that cost no space.

python tools/full_size.py make DIR [--images 223648]
python tools/full_size.py measure DIR OUT [--code REPO ...] [--only NAME ...]

`make` writes train.csv, valid.csv and predictions.csv with as many patients, studies and views as
CheXpert has, and hard links of a few pictures at the names of the images. `measure` runs commands
of one or more checkouts in turns, and prints the CPU seconds and the largest memory of each with
all its processes.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.tables.labels import LABELS
from system.tool import ROOT, Paragraphs, at_least, tool

NAME = 'CheXpert-v1.0-small'
IMAGES_PER_PATIENT = 223_414 / 64_540  # of CheXpert's training split
LATERAL = 32_387 / 223_414  # share of the images
PICTURES, SIZE_PX = 64, (48, 40)
VALID_IMAGES, FIRST_VALID_PATIENT = 234, 64_541
POLL_SECONDS = 0.1
READ = """
import logging, sys
from config import default_config
from data.data_simmim import build_loader_simmim
config = default_config()
config.DATA.DATASET, config.DATA.DATA_PATH = 'chexpert', sys.argv[1]
build_loader_simmim(config, logging.getLogger())
"""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    parser.add_argument('command', choices=('make', 'measure'))
    parser.add_argument('data', type=Path, metavar='DIR', help='folder of the data')
    parser.add_argument('output', type=Path, nargs='?', default=Path(), metavar='OUT')
    parser.add_argument('--images', type=at_least(1000), default=223_648, help='number of images')
    checkouts = 'checkouts to compare (default: this one)'
    parser.add_argument('--code', type=Path, nargs='+', default=[ROOT], help=checkouts)
    parser.add_argument('--only', nargs='+', metavar='NAME', help='only these measurements')
    return parser.parse_args(arguments)


def make_table(split: str, count: int, first: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return the rows of a split in CheXpert's form; `first` is the number of the first patient."""
    patient = np.sort(rng.integers(0, max(1, int(count / IMAGES_PER_PATIENT)), count))
    number = pd.Series(patient).groupby(patient).cumcount().to_numpy()  # of the patient's image
    # Every second image of a patient begins a new study.
    is_lateral = (number % 2 == 1) & (rng.random(count) < 2 * LATERAL)
    view = np.where(is_lateral, 'lateral', 'frontal')
    names = [
        f'{NAME}/{split}/patient{first + p:05d}/study{n // 2 + 1}/view{n % 2 + 1}_{v}.jpg'
        for p, n, v in zip(patient, number, view, strict=True)
    ]
    table = pd.DataFrame({'Path': names, 'Sex': np.where(patient % 5 < 3, 'Male', 'Female')})
    table['Age'] = 20 + patient % 70
    table['Frontal/Lateral'] = np.where(is_lateral, 'Lateral', 'Frontal')
    table['AP/PA'] = np.where(is_lateral, '', np.where(patient % 6, 'AP', 'PA'))
    for label in LABELS:
        drawn = rng.choice(['', '1.0', '0.0', '-1.0'], count, p=[0.6, 0.2, 0.15, 0.05])
        table[label] = np.where((label == 'No Finding') & (drawn != '1.0'), '', drawn)
    return table


def make(root: Path, images: int) -> None:
    """Write the tables and the pictures, and predictions of a model that knows a little."""
    rng = np.random.default_rng(0)
    (root / NAME).mkdir(parents=True)
    for number in range(PICTURES):
        pixels = rng.integers(0, 256, SIZE_PX[::-1], np.uint8)
        Image.fromarray(pixels).save(root / f'picture_{number}.jpg')
    sizes = {'train': (images - VALID_IMAGES, 1), 'valid': (VALID_IMAGES, FIRST_VALID_PATIENT)}
    for split, (count, first) in sizes.items():
        table = make_table(split, count, first, rng)
        table.to_csv(root / NAME / f'{split}.csv', index=False)
        for row, path in enumerate(table['Path']):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(root / f'picture_{row % PICTURES}.jpg', root / path)
        if split == 'train':
            known = table[[*LABELS]].replace('', '0').astype(float)
            table[[*LABELS]] = 1 / (1 + np.exp(-known - rng.normal(size=known.shape)))
            predictions = table[['Path', *LABELS]]
            predictions.to_csv(root / 'predictions.csv', index=False, float_format='%.9g')


def commands(data: Path, output: Path) -> dict[str, list[str]]:
    root = str(data / NAME)
    predictions = ['--predictions', str(data / 'predictions.csv'), '--output', str(output)]
    return {
        'import torch': ['-c', 'import torch'],
        'import main_simmim': ['-c', 'import main_simmim'],
        'read the table': ['-c', READ, root],
        'check_data.py': ['scripts/check_data.py', '--data-path', root, '--output',
                          str(output / 'problems.csv')],
        'evaluate.py': ['scripts/evaluate.py', *predictions, '--labels', f'{root}/train.csv'],
    }  # fmt: skip


def memory_of(group: int) -> int:
    """Return the resident bytes of all processes of a process group."""
    total = 0
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = stat.read_text().rpartition(')')[2].split()
        except OSError:  # it has ended
            continue
        total += int(fields[21]) * resource.getpagesize() * (int(fields[2]) == group)
    return total


@tool
def main(args: argparse.Namespace) -> int:
    if args.command == 'make':
        make(args.data, args.images)
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    for name, words in commands(args.data.absolute(), args.output.absolute()).items():
        for code in args.code if not args.only or name in args.only else ():
            start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
            options = {'stdout': subprocess.DEVNULL, 'cwd': code, 'start_new_session': True}
            process, peak = subprocess.Popen([sys.executable, *words], **options), 0
            while process.poll() is None:
                peak = max(peak, memory_of(process.pid))
                time.sleep(POLL_SECONDS)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            found = {'name': name, 'code': str(code), 'exit': process.returncode}
            found |= {'cpu_s': round(cpu, 1), 'wall_s': round(time.monotonic() - start, 1)}
            print(json.dumps(found | {'peak_mib': peak >> 20}), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

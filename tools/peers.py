"""Compare the input pipeline and the bootstrap with those of other libraries, on one core.

python tools/peers.py input --data-path DIR [--store STORE]
python tools/peers.py bootstrap [--cases 10000]

`input` decodes an image, crops a part of random size to --size, flips and normalises it; ours also
draws a mask. `bootstrap` computes an AUROC and its interval from 1,000 resamples of patients, each
with one image, because the others resample rows. The cases take turns in one process with one
thread, and the table has CPU time. monai, lightly-train, torchmetrics and confidenceinterval are
compared if they are installed, in an environment of your own.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import GREY_STATISTICS
from evaluation.intervals import Resamples
from evaluation.metrics import label_scores, summary
from system.tool import Paragraphs, at_least, tool
from tools.benchmark import digits, input_cases

AREA, RATIO = (0.67, 1.0), (3 / 4, 4 / 3)  # of the crops
LEVELS = [2.5, 97.5]  # percentiles of the interval
IMAGES = 512  # of each turn
(MEAN,), (STD,) = GREY_STATISTICS

Case = Callable[[], object]


class Images(Dataset):
    """Image files that a function opens and a transform prepares."""

    def __init__(self, files: list[str], load: Callable, transform: Callable) -> None:
        self.files, self.load, self.transform = files, load, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.load(self.files[index]))


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    commands = parser.add_subparsers(dest='command', required=True)
    add = commands.add_parser('input', help='time per image').add_argument
    add('--data-path', required=True, metavar='DIR', help='folder with train.csv and 8-bit images')
    add('--store', metavar='STORE', help='the same data packed by scripts/pack.py')
    add('--size', default=192, type=at_least(1), metavar='PX', help='side of the crops')
    add('--batch-size', default=64, type=at_least(1), metavar='N', help='images per batch')
    add('--rounds', default=5, type=at_least(1), metavar='N', help='turns of each case')
    add = commands.add_parser('bootstrap', help='time per interval').add_argument
    add('--cases', default=10_000, type=at_least(100), metavar='N', help='number of patients')
    add('--resamples', default=1000, type=at_least(200), metavar='N', help='number of resamples')
    add('--rounds', default=5, type=at_least(1), metavar='N', help='turns of each case')
    return parser.parse_args(arguments)


def open_grey(file: str) -> Image.Image:
    with Image.open(file) as image:
        return image.convert('L')


def decode_grey(file: str) -> torch.Tensor:
    return decode_image(file, ImageReadMode.GRAY)


def peers_of_input(files: list[str], size: int) -> dict[str, Dataset]:
    """Return the data sets of the installed libraries, which give grey images [1, S, S]."""
    shared = [
        v2.RandomResizedCrop(size, scale=AREA, ratio=RATIO, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([MEAN], [STD]),
    ]
    of_pil = [*shared[:2], v2.ToImage(), *shared[2:]]
    found = {
        'torchvision v2, PIL': Images(files, open_grey, v2.Compose(of_pil)),
        'torchvision v2, tensors': Images(files, decode_grey, v2.Compose(shared)),
    }
    if find_spec('monai'):
        from monai import data, transforms

        data.set_track_meta(False)
        side = open_grey(files[0]).width
        steps = [
            transforms.LoadImage(reader='PILReader', image_only=True, ensure_channel_first=True),
            # It has no crop of random shape: sides from the smallest to the whole image.
            transforms.RandSpatialCrop(int(side * AREA[0] ** 0.5), side, random_size=True),
            transforms.Resize((size, size), mode='bilinear'),
            transforms.RandFlip(prob=0.5, spatial_axis=1),
            transforms.NormalizeIntensity(subtrahend=255 * MEAN, divisor=255 * STD),
        ]
        found['MONAI'] = data.Dataset(files, transforms.Compose(steps))
    if find_spec('lightly_train'):
        found['lightly-train'] = Images(files, lambda file: file, lightly_view(size))
    return found


def lightly_view(size: int) -> Callable[[str], torch.Tensor]:
    """Return the reading and the view of lightly-train, with what is not compared switched off."""
    from lightly_train._data.file_helpers import ImageMode, open_image_numpy
    from lightly_train._transforms.transform import (
        NormalizeArgs,
        RandomFlipArgs,
        RandomResizedCropArgs,
    )
    from lightly_train._transforms.view_transform import ViewTransform, ViewTransformArgs

    chosen = {
        'image_size': (size, size),
        'random_resized_crop': RandomResizedCropArgs(min_scale=AREA[0]),
        'random_flip': RandomFlipArgs(),
        'normalize': NormalizeArgs(mean=(MEAN,), std=(STD,)),
    }
    view = ViewTransform(
        ViewTransformArgs(**dict.fromkeys(ViewTransformArgs.model_fields) | chosen)
    )
    return lambda file: view({'image': open_image_numpy(Path(file), ImageMode.UNCHANGED)})['image']


def cases_of_input(args: argparse.Namespace) -> dict[str, Case]:
    """Return cases that read about IMAGES images."""
    cases = input_cases(args)
    names = {'files': 'ours, files', 'store': 'ours, packed', 'published': "SimMIM's code"}
    found = {names[name]: cases[name] for name in names if name in cases}
    files = sorted(map(str, Path(args.data_path).rglob('*.png')))
    for name, dataset in peers_of_input(files, args.size).items():
        loader = DataLoader(dataset, args.batch_size, shuffle=True)
        batches = chain.from_iterable(repeat(loader))
        found[name] = lambda batches=batches: read(batches, args)
    return found


def read(batches: Iterator[torch.Tensor], args: argparse.Namespace) -> int:
    """Read as many batches as `benchmark.input_cases` does."""
    return sum(len(next(batches)) for _ in range(IMAGES // args.batch_size + 1))


def cases_of_bootstrap(args: argparse.Namespace) -> dict[str, Case]:
    """Return cases that compute (low, high) of an AUROC."""
    rng = np.random.default_rng(0)
    count, resamples = args.cases, args.resamples
    targets = (rng.random(count) < 0.1).astype(np.float64)
    values = 1 / (1 + np.exp(-rng.normal(targets, 1)))
    patients = [f'{number:09}' for number in range(count)]

    def ours() -> list[float]:
        weights = Resamples(patients, resamples=resamples, seed=0).weights(patients)
        options = {'threshold': None, 'weights': weights, 'names': ['auroc']}
        found = summary(label_scores(values, targets, **options)['auroc'])
        return [found['low'], found['high']]

    def sklearn() -> np.ndarray:
        draws = np.random.Generator(np.random.Philox(0))  # those of `Resamples`
        drawn = (draws.integers(count, size=count) for _ in range(resamples))
        return np.percentile([roc_auc_score(targets[rows], values[rows]) for rows in drawn], LEVELS)

    cases = {'ours': ours, 'scikit-learn, loop': sklearn}
    if find_spec('torchmetrics'):
        from torchmetrics.classification import BinaryAUROC
        from torchmetrics.wrappers import BootStrapper

        def torchmetrics() -> torch.Tensor:
            quantile = torch.tensor(LEVELS) / 100
            options = {'quantile': quantile, 'sampling_strategy': 'multinomial'}
            metric = BootStrapper(BinaryAUROC(), resamples, **options)
            metric.update(torch.from_numpy(values), torch.from_numpy(targets).long())
            return metric.compute()['quantile']

        cases['torchmetrics, BootStrapper'] = torchmetrics
    if find_spec('confidenceinterval'):
        import confidenceinterval

        def percentile() -> tuple[float, float]:
            options = {'method': 'bootstrap_percentile', 'n_resamples': resamples}
            return confidenceinterval.roc_auc_score(targets, values, **options)[1]

        cases['confidenceinterval'] = percentile
    return cases


def measure(cases: dict[str, Case], rounds: int) -> dict[str, np.ndarray]:
    """Return the CPU seconds of each case in each round; a first turn does not count."""
    seconds = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, case in cases.items():
            start = time.process_time()
            case()
            seconds[name].append(time.process_time() - start)
    return {name: np.array(found[1:]) for name, found in seconds.items()}


@tool
def main(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    is_input = args.command == 'input'
    cases = cases_of_input(args) if is_input else cases_of_bootstrap(args)
    if not is_input:
        for name, case in cases.items():
            print(f'{name}: interval from {" to ".join(f"{float(end):.4f}" for end in case())}')
    found = measure(cases, args.rounds)
    work = args.batch_size * (IMAGES // args.batch_size + 1) if is_input else 1
    ours = next(iter(found.values()))
    print('| case | ms (range) | times ours (range) |\n| --- | ---: | ---: |')
    for name, seconds in found.items():
        columns = 1000 * seconds / work, seconds / ours
        shown = [
            f'{digits(np.median(c))} ({digits(c.min())} to {digits(c.max())})' for c in columns
        ]
        print(f'| {name} | {shown[0]} | {shown[1]} |')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

r"""Measure the input pipeline and training steps against the published way.

python scripts/benchmark.py input --data-path DIR [--store STORE] [--size 192] [--json FILE]
python scripts/benchmark.py train --cfg CFG --batch-size 128 [--steps 20] [--json FILE] \
    [--opts KEY VALUE]

`input` reads the same images through SimMIM's pipeline, rebuilt from torchvision, and through this
project's pipeline from image files and from a packed store, in one process with one thread. `train`
runs pre-training steps on random images: the published way is eager float16 autocast on a GPU and
eager float32 on a CPU; ours is the config's own precision, attention and compilation. Repeats of
all cases alternate, so that a slow moment of the machine affects every case.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config, default_config, get_config
from data import build_loader
from data.masking import mask_generator
from engine.device import autocast, synchronized_time
from engine.files import replace_file
from models.build import build_model
from optimizer import build_optimizer

LOGGER = logging.getLogger('benchmark')
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PUBLISHED = 'published'

Case = Callable[[], int]  # does a piece of work and returns the number of images


class PublishedDataset(Dataset):
    """SimMIM's images and masks: PIL, torchvision's transforms and the global random state."""

    def __init__(self, files: list[Path], config: Config) -> None:
        self.files, self.masks = files, mask_generator(config)
        crop = {'scale': (0.67, 1.0), 'ratio': (3 / 4, 4 / 3)}
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(config.DATA.IMG_SIZE, **crop),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(*IMAGENET),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, np.ndarray]:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert('RGB')), self.masks()


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    add = commands.add_parser('input', help='images per second of each input pipeline').add_argument
    add('--data-path', required=True, metavar='DIR', help='folder of train.csv and images')
    add('--store', metavar='STORE', help='the same data packed by scripts/pack.py')
    add('--size', default=192, type=int, metavar='PX', help='side of the crops')
    _add_common(add, batch_size=64, repeats=5)
    add = commands.add_parser('train', help='images per second of training steps').add_argument
    add('--cfg', required=True, metavar='FILE', help='YAML file of main_simmim.py')
    add('--steps', default=20, type=int, metavar='N', help='optimizer steps of a repeat')
    add('--opts', default=[], nargs='+', action='extend', metavar='KEY VALUE', help='options')
    _add_common(add, batch_size=128, repeats=3)
    return parser.parse_args(arguments)


def _add_common(add: Callable, *, batch_size: int, repeats: int) -> None:
    add('--batch-size', default=batch_size, type=int, metavar='N', help='images per batch')
    add('--repeats', default=repeats, type=int, metavar='N', help='repeats of each case')
    add('--json', type=Path, metavar='FILE', help='also write the table as JSON')


def input_cases(args: argparse.Namespace) -> dict[str, Case]:
    """Return the published pipeline and ours, each reading some batches per call."""
    torch.set_num_threads(1)
    roots = {'files': args.data_path} | ({'store': args.store} if args.store else {})
    cases, count = {}, 512 // args.batch_size + 1
    for name, root in roots.items():
        config = _input_config(root, args)
        loader = build_loader(config, LOGGER, is_pretrain=True).train
        if name == 'files':
            records = loader.dataset.records
            files = [Path(records.root) / str(file) for file in records.file]
            published = DataLoader(
                PublishedDataset(files, config), config.DATA.BATCH_SIZE, shuffle=True
            )
            cases[PUBLISHED] = _reading(_forever(published), count)
        cases[name] = _reading(_forever(loader), count)
    return cases


def _input_config(root: str, args: argparse.Namespace) -> Config:
    config = default_config()
    is_labelled = (Path(root) / 'train.csv').is_file()
    config.merge_from_list(
        ['DATA.DATASET', 'chexpert' if is_labelled else 'folder', 'DATA.DATA_PATH', root]
        + ['DATA.IMG_SIZE', args.size, 'DATA.BATCH_SIZE', args.batch_size, 'MODEL.IN_CHANS', 1]
        + ['DATA.NUM_WORKERS', 0, 'DATA.VIEWS', 'all', 'DATA.PIN_MEMORY', False]
    )
    return config


def _forever(loader: DataLoader) -> Iterator[tuple]:
    """Yield the batches of epoch after epoch."""
    for epoch in range(10**6):
        if hasattr(loader.batch_sampler, 'set_epoch'):
            loader.batch_sampler.set_epoch(epoch, first_batch=0)
        yield from loader


def _reading(batches: Iterator[tuple], count: int) -> Case:
    return lambda: sum(len(next(batches)[0]) for _ in range(count))


def training_cases(args: argparse.Namespace) -> dict[str, Case]:
    """Return training steps the published way and as configured, on the same random images."""
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    cases = {}
    for name in (PUBLISHED, 'ours'):
        eager = ['MODEL.ATTENTION', 'eager', 'TRAIN.COMPILE', 'none']
        opts = [*args.opts, *(eager if name == PUBLISHED else [])]
        config = get_config(
            argparse.Namespace(cfg=args.cfg, opts=opts, batch_size=args.batch_size, stage='simmim')
        )
        cases[name] = _training(config, device, args.steps, is_published=name == PUBLISHED)
    return cases


def _training(config: Config, device: torch.device, steps: int, *, is_published: bool) -> Case:
    torch.manual_seed(config.SEED)
    model = build_model(config, is_pretrain=True).to(device).train()
    optimizer = build_optimizer(config, model, LOGGER, is_pretrain=True)
    scaler = torch.amp.GradScaler(enabled=is_published and device.type == 'cuda')
    is_compiled = config.TRAIN.COMPILE == 'max' or (
        config.TRAIN.COMPILE == 'auto' and device.type == 'cuda'
    )
    forward = torch.compile(model) if is_compiled else model
    count, size = config.DATA.BATCH_SIZE, config.DATA.IMG_SIZE
    rng, draw_mask = np.random.default_rng(config.SEED), mask_generator(config)
    images = torch.randn(count, config.MODEL.IN_CHANS, size, size).to(device)
    masks = torch.from_numpy(np.stack([draw_mask(rng) for _ in range(count)])).to(device)
    half = torch.autocast('cuda', torch.float16, enabled=device.type == 'cuda')

    def train() -> int:
        for _ in range(steps):
            optimizer.zero_grad()
            with half if is_published else autocast(config, device):
                loss = forward(images, masks)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.TRAIN.CLIP_GRAD or 1e9)
            scaler.step(optimizer)
            scaler.update()
        return steps * len(images)

    return train


def measure(cases: dict[str, Case], repeats: int) -> list[dict]:
    """Return the rate of each case and its ratio to the published way, medians over repeats."""
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    rates = {name: [] for name in cases}
    for turn in tqdm(range(repeats + 1), unit='repeat', disable=None):
        for name, case in cases.items():
            start = synchronized_time(device)
            images = case()
            seconds = synchronized_time(device) - start
            if turn:  # the first turn warms up
                rates[name].append(images / seconds)
    return [
        {
            'case': name,
            'images_per_second': float(np.median(found)),
            'lowest': min(found),
            'highest': max(found),
            'ratio': float(np.median(np.divide(found, rates[PUBLISHED]))),
        }
        for name, found in rates.items()
    ]


def print_table(rows: list[dict]) -> None:
    """Print the rows as a Markdown table."""
    print('| case | images/s (range) | ratio to published |\n| --- | --- | --- |')
    for row in rows:
        rate = f'{row["images_per_second"]:.0f} ({row["lowest"]:.0f} to {row["highest"]:.0f})'
        print(f'| {row["case"]} | {rate} | {row["ratio"]:.2f} |')


def main(args: argparse.Namespace) -> int:
    try:
        cases = (input_cases if args.command == 'input' else training_cases)(args)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    rows = measure(cases, args.repeats)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    print(f'{where}, {time.strftime("%Y-%m-%d")}, PyTorch {torch.__version__}\n')
    print_table(rows)
    if args.json:
        replace_file(args.json, json.dumps({'device': where, 'rows': rows}, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

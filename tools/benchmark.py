"""Compare the speed of the input pipeline and of training steps with SimMIM's published code.

python tools/benchmark.py input --data-path DIR [--store STORE] [--size 192]
python tools/benchmark.py train --cfg CFG --batch-size 128 [--steps 20] [--opts KEY VALUE]
    [--change KEY VALUE]

`input` reads the same images through SimMIM's pipeline, rebuilt from torchvision, and through this
project's pipeline from image files and from a packed store, in one process with one thread. `train`
runs training steps on random images. The case `published` computes with our layers in the way of
SimMIM's code: eager float16 autocast with a gradient scaler on a GPU and eager float32 on a CPU,
plain attention, one gather of relative biases for each block, AdamW that is not fused, and a loss
that is read after every step. Ours is the training loop with the precision and compilation of
the config, and `changed` the same with the options of --change. The cases take turns, so that a
slow moment of the machine affects all of them.
"""

import argparse
import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config, default_config, get_config, selected_part
from data.build import build_loader
from data.data_contrastive import ViewsTransform
from data.masking import mask_generator
from engine import loop
from engine.launch import set_determinism
from engine.preflight import endless_batches, synchronized_time
from engine.run import Run
from engine.train_state import TrainState
from evaluation.model_comparison import t_interval
from logger import ScalarLog
from models import swin_transformer, vision_transformer
from models.build import build_model
from models.contrastive import build_contrastive
from models.encoder import attend
from models.relative_position import gather_bias
from optimizer import build_optimizer
from system.device import allow_tf32, local_device, to_device
from system.tool import Paragraphs, tool

LOGGER = logging.getLogger('benchmark')
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PUBLISHED = 'published'

Case = Callable[..., int]  # processes images (of N steps, in training) and returns their number


class PublishedDataset(Dataset):
    """Images and masks as in SimMIM: PIL, torchvision's transforms and the global random state."""

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    commands = parser.add_subparsers(dest='command', required=True)
    add = commands.add_parser('input', help='images per second of each input pipeline').add_argument
    add('--data-path', required=True, metavar='DIR', help='folder with train.csv and images')
    add('--store', metavar='STORE', help='the same data packed by scripts/pack.py')
    add('--size', default=192, type=int, metavar='PX', help='side of the crops')
    _add_common(add, batch_size=64)
    add = commands.add_parser('train', help='images per second of training steps').add_argument
    add('--cfg', required=True, metavar='FILE', help='YAML file of the stage')
    stages = ['simmim', 'contrastive', 'finetune']
    add('--stage', default='simmim', choices=stages, help='stage of the YAML file')
    add('--steps', default=20, type=int, metavar='N', help='optimizer steps per repeat')
    add('--opts', default=[], nargs='+', action='extend', metavar='KEY VALUE', help='options')
    more = 'options of one more case'
    add('--change', default=[], nargs='+', action='extend', metavar='KEY VALUE', help=more)
    _add_common(add, batch_size=128)
    return parser.parse_args(arguments)


def _add_common(add: Callable, *, batch_size: int) -> None:
    add('--batch-size', default=batch_size, type=int, metavar='N', help='images per batch')
    add('--repeats', default=5, type=int, metavar='N', help='repeats of each case (default: 5)')


def input_cases(args: argparse.Namespace) -> dict[str, Case]:
    """Return the published pipeline and ours as cases that read some batches per call."""
    torch.set_num_threads(1)
    roots = {'files': args.data_path} | ({'store': args.store} if args.store else {})
    cases, num_batches = {}, 512 // args.batch_size + 1
    for name, root in roots.items():
        is_labelled = (Path(root) / 'train.csv').is_file()
        config = default_config()
        config.merge_from_list(
            ['DATA.DATASET', 'chexpert' if is_labelled else 'folder', 'DATA.DATA_PATH', root]
            + ['DATA.IMG_SIZE', args.size, 'DATA.BATCH_SIZE', args.batch_size, 'MODEL.IN_CHANS', 1]
            + ['DATA.NUM_WORKERS', 0, 'DATA.VIEWS', 'all', 'DATA.PIN_MEMORY', False]
        )
        loader = build_loader(config, LOGGER, is_pretrain=True).train
        if name == 'files':
            records = loader.dataset.records
            files = [Path(records.root) / str(file) for file in records.file]
            published = DataLoader(
                PublishedDataset(files, config), config.DATA.BATCH_SIZE, shuffle=True
            )
            cases[PUBLISHED] = _reading(endless_batches(published), num_batches)
        cases[name] = _reading(endless_batches(loader), num_batches)
    return cases


def _reading(batches: Iterator[tuple], num_batches: int) -> Case:
    cpu = torch.device('cpu')  # normalises what our workers send as grey levels
    return lambda: sum(len(to_device(next(batches), cpu)[0]) for _ in range(num_batches))


def training_cases(args: argparse.Namespace) -> dict[str, Case]:
    """Return training steps of the published code and of ours, on the same random images."""
    cases = {
        PUBLISHED: published_steps(training_config(args, []), args.stage, args.steps),
        'ours': our_steps(training_config(args, []), args.stage, args.steps),
    }
    if args.change:
        changed = training_config(args, args.change)
        cases['changed'] = our_steps(changed, args.stage, args.steps)
    return cases


def training_config(args: argparse.Namespace, opts: list) -> Config:
    """Return the config of a run without gradient accumulation."""
    opts = [*args.opts, *opts, 'TRAIN.ACCUMULATION_STEPS', 1]
    return get_config(
        argparse.Namespace(cfg=args.cfg, opts=opts, batch_size=args.batch_size, stage=args.stage)
    )


def published_steps(config: Config, stage: str, steps: int) -> Case:
    """Return a case of steps as in SimMIM's code."""

    @cache
    def begin() -> tuple:
        device = local_device()
        set_determinism(config.TRAIN.DETERMINISTIC)
        model, loss_fn = build_task(config, stage)
        model = model.to(device).train()
        optimizer = build_optimizer(config, model, LOGGER, stage != 'finetune')
        if isinstance(optimizer, AdamW):
            optimizer = AdamW([group | {'fused': None} for group in optimizer.param_groups])
        scaler = torch.amp.GradScaler(enabled=device.type == 'cuda')
        return model, loss_fn, optimizer, scaler, random_batch(config, stage, device)

    def train(steps: int = steps) -> int:
        model, loss_fn, optimizer, scaler, batch = begin()
        allow_tf32(False)
        on_gpu = batch[0].is_cuda
        for _ in range(steps):
            model.begin_step()
            optimizer.zero_grad()
            with torch.autocast('cuda', torch.float16, enabled=on_gpu), published_layers():
                loss = loss_fn(model, batch)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), config.TRAIN.CLIP_GRAD or 1e9)
            scaler.step(optimizer)
            scaler.update()
            loss.item()
        return steps * len(batch[0])

    return train


@contextlib.contextmanager
def published_layers() -> Iterator[None]:
    """Use plain attention, and gather the relative biases of each block, as in SimMIM's code."""

    def gather(attention: Sequence[nn.Module]) -> list[torch.Tensor]:
        return [
            gather_bias(module.relative_position_bias_table, module.relative_position_index)
            for module in attention
        ]

    with (
        patch.object(swin_transformer, 'gather_biases', gather),
        patch.object(vision_transformer, 'gather_biases', gather),
        patch.object(vision_transformer, 'attend_fused', attend),
    ):
        yield


def our_steps(config: Config, stage: str, steps: int) -> Case:
    """Return a case of steps of the training loop as configured."""

    @cache
    def begin() -> tuple:
        run = begin_run(config, stage)
        return run, random_batch(config, stage, local_device()), count()

    def train(steps: int = steps) -> int:
        (run, state, loss_fn), batch, numbers = begin()
        allow_tf32(config.AMP_TF32)  # of the whole process, and another case may set it
        for _ in range(steps):
            loop.train_one_batch(run, state, batch, loss_fn, next(numbers))
        return steps * len(batch[0])

    return train


def begin_run(
    config: Config, stage: str, num_batches: int = 10**5
) -> tuple[Run, TrainState, loop.LossFunction]:
    """Begin a run without data for `loop.train_one_batch`."""
    folder = Path(tempfile.mkdtemp())
    set_determinism(config.TRAIN.DETERMINISTIC)
    run = Run(config, stage, folder, local_device(), LOGGER, ScalarLog(folder, enabled=False))
    model, loss_fn = build_task(config, stage)
    state = loop.begin(run, model.train(), range(num_batches))
    loop.wrap_model(run, state)
    return run, state, loss_fn


def build_task(config: Config, stage: str) -> tuple[nn.Module, loop.LossFunction]:
    """Build the model of a stage and its loss function for batches of `random_batch`."""
    torch.manual_seed(config.SEED)
    if stage == 'contrastive':
        return build_contrastive(config, total_steps=10**6), lambda model, views: model(*views)
    if stage == 'simmim':
        return build_model(config), lambda model, batch: model(*batch)
    bce = functional.binary_cross_entropy_with_logits
    return build_model(config, is_pretrain=False), lambda model, batch: bce(
        model(batch[0]).float(), batch[1]
    )


def random_batch(config: Config, stage: str, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Draw smooth, learnable images with masks, views or targets from the seed of the config."""
    rng, generator = np.random.default_rng(config.SEED), torch.Generator().manual_seed(config.SEED)
    count, channels, size = config.DATA.BATCH_SIZE, config.MODEL.IN_CHANS, config.DATA.IMG_SIZE

    def draw(size: int) -> torch.Tensor:
        coarse = torch.randn(count, channels, 12, 12, generator=generator)
        return functional.interpolate(coarse, size, mode='bicubic')

    if stage == 'contrastive':
        num_views = selected_part(config, 'CONTRASTIVE.METHOD').num_views(config)
        batch = tuple(draw(size) for size, _ in ViewsTransform(config, num_views).views)
    elif stage == 'simmim':
        masks = mask_generator(config)
        batch = draw(size), torch.from_numpy(np.stack([masks(rng) for _ in range(count)]))
    else:
        targets = torch.rand(count, config.MODEL.NUM_CLASSES, generator=generator).round()
        batch = draw(size), targets
    return to_device(batch, device)


def measure(cases: dict[str, Case], repeats: int) -> list[dict]:
    """Measure each case, with its ratio to the published code, as medians over repeats.

    The first turn builds, compiles and warms up. Its duration is reported, and it counts for the
    peak of the memory, from which the memory of other cases is subtracted. `ratio_interval` is the
    95 % interval of the geometric mean of the ratios, by Student's t.
    """
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    rates, firsts, kept, peaks = {name: [] for name in cases}, {}, {}, {}
    for turn in tqdm(range(repeats + 1), unit='repeat', disable=None):
        for name, case in cases.items():
            if device.type == 'cuda':
                torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start = synchronized_time(device)
            images = case()
            seconds = synchronized_time(device) - start
            if turn:
                rates[name].append(images / seconds)
                peak = torch.cuda.max_memory_allocated() - before + kept[name]
                peaks[name] = max(peak, peaks[name])
            else:
                firsts[name], kept[name] = seconds, torch.cuda.memory_allocated() - before
                peaks[name] = torch.cuda.max_memory_allocated() - before
    rows = []
    for name, found in rates.items():
        ratios = np.divide(found, rates[PUBLISHED])
        interval = np.exp(t_interval(np.log(ratios))) if name != PUBLISHED else np.ones(2)
        rows.append(
            {
                'case': name,
                'images_per_second': float(np.median(found)),
                'lowest': min(found),
                'highest': max(found),
                'ratio': float(np.median(ratios)),
                'ratio_interval': interval.tolist(),
                'first_turn_seconds': firsts[name],
                'peak_gib': peaks[name] / 2**30,
            }
        )
    return rows


def print_table(rows: list[dict]) -> None:
    """Print the rows as a Markdown table."""
    print('| case | images/s (range) | ratio to published (95 %) |\n| --- | --- | --- |')
    for row in rows:
        rate, low, high = (digits(row[key]) for key in ('images_per_second', 'lowest', 'highest'))
        bounds = ' to '.join(map(digits, row['ratio_interval']))
        print(f'| {row["case"]} | {rate} ({low} to {high}) | {digits(row["ratio"])} ({bounds}) |')


def digits(value: float) -> str:
    """Format a number with at least three significant digits."""
    return f'{value:,.0f}' if value >= 100 else f'{value:#.3g}'


@tool
def main(args: argparse.Namespace) -> int:
    cases = (input_cases if args.command == 'input' else training_cases)(args)
    rows = measure(cases, args.repeats)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    print(f'{where}, {time.strftime("%Y-%m-%d")}, PyTorch {torch.__version__}\n')
    print_table(rows)
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

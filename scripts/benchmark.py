r"""Measure how fast pictures become batches, or training steps are, beside the published way.

python scripts/benchmark.py input --data-path DIR [--store STORE] [--workers 0 1 2 4] \
    [--needs 3000] [--size 192] [--seconds 5] [--json FILE]
python scripts/benchmark.py train --cfg configs/... [--stage finetune] --batch-size 128 256 \
    [--baseline] [--levers] [--data-path DIR] [--steps 20] [--warmup 5] [--rounds 3] [--json FILE] \
    [--opts KEY VALUE]
python scripts/benchmark.py table FILE... --output DIR
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.input_benchmark import (
    as_rows,
    format_rates,
    format_stages,
    measure,
    one_thread,
    read_records,
    save_rows,
)
from data.input_sources import Setting, file_sources, store_sources
from speed.command import benchmark_training, write_tables
from speed.measure import FIRST_STEPS
from speed.results import format_tables
from speed.steps import STAGES


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    _add_input(commands.add_parser('input', help='images per second of each way to read them'))
    _add_train(commands.add_parser('train', help='images per second of training steps'))
    _add_table(commands.add_parser('table', help='table and figure of what train wrote'))
    return parser.parse_args(arguments)


def _add_input(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--data-path', required=True, metavar='DIR', help='train.csv and images, or images alone')
    add('--store', metavar='STORE', help='the same packed by scripts/pack.py')
    add('--workers', default=[0, 1, 2, 4], nargs='+', type=_workers, metavar='N', help='processes')
    add('--needs', default=3000, type=_positive, metavar='N', help='images/s that the model takes')
    add('--size', default=192, type=_count, metavar='PX', help='side of the crops')
    add('--batch-size', default=64, type=_count, metavar='N', help='images in a batch')
    add('--seconds', default=5, type=_positive, metavar='S', help='of a repeat of each case')
    add('--repeats', default=3, type=_count, metavar='N', help='of each case')
    add('--json', metavar='FILE', help='also write a line of JSON for each case')


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--cfg', required=True, metavar='CFG', help='YAML file of options; needs no data')
    add('--stage', default='pretrain', choices=list(STAGES), help='which training')
    add('--batch-size', required=True, nargs='+', type=_count, metavar='N', help='images in a step')
    add('--steps', default=20, type=_count, metavar='N', help='timed in each round')
    add('--warmup', default=5, type=_warmup, metavar='N', help='steps before them, at least 2')
    add('--rounds', default=3, type=_count, metavar='N', help='turns of each case')
    add('--baseline', action='store_true', help='also the same model in the published way')
    add(
        '--levers',
        action='store_true',
        help='also what leads from it to ours, one by one; compiled with MODEL.ATTENTION',
    )
    add('--data-path', default='', metavar='DIR', help='also ours with this data, loader included')
    add('--json', metavar='FILE', help='also write a line of JSON for each case')
    add('--opts', default=[], nargs='+', action='extend', metavar='KEY VALUE', help='options')


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('files', nargs='+', metavar='FILE', help='of train --json')
    parser.add_argument('--output', required=True, metavar='DIR', help='table and figure go there')


def measure_input(args: argparse.Namespace) -> None:
    one_thread()
    on_gpu = torch.cuda.is_available()
    device = torch.device('cuda' if on_gpu else 'cpu')
    setting = Setting(args.size, args.batch_size, device)
    records = read_records(args.data_path)
    sources = file_sources(records, setting)
    print(f'{args.data_path}: {len(records)} images')
    if args.store:
        packed = read_records(args.store)
        sources += store_sources(packed, setting)
        print(f'{args.store}: {len(packed)} images')
    cases = measure(
        sources,
        workers=args.workers,
        seconds=args.seconds,
        repeats=args.repeats,
        progress=lambda turns: tqdm(turns, unit='case', disable=None),
    )
    rows = as_rows(cases, needs=args.needs)
    name = torch.cuda.get_device_name() if on_gpu else 'the CPU: not measured on a GPU'
    print(
        f'{os.cpu_count()} cores, one thread a process; crops of {args.size} px in batches of '
        f'{args.batch_size}, finished on {name}\n\n{format_rates(rows)}\n\n'
        f'microseconds an image, one process:\n{format_stages(rows)}'
    )
    if args.json:
        save_rows(rows, args.json)


def measure_training(args: argparse.Namespace) -> int:
    rows = benchmark_training(
        args,
        sys.argv,
        say=print,
        progress=lambda turns: tqdm(turns, unit='turn', disable=None),
    )
    print(f'\n{format_tables(rows)}')
    return int(any(row['error'] for row in rows))


def make_tables(args: argparse.Namespace) -> None:
    for path in write_tables(args.files, args.output):
        print(path)


COMMANDS = {'input': measure_input, 'train': measure_training, 'table': make_tables}


def main(args: argparse.Namespace) -> int:
    try:
        return COMMANDS[args.command](args) or 0
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float('inf'):
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _warmup(text: str) -> int:
    value = int(text)
    if value < FIRST_STEPS:
        raise ValueError
    return value


def _workers(text: str) -> int:
    return 0 if text == '0' else _count(text)


if __name__ == '__main__':
    sys.exit(main(parse_args()))

r"""Measure how fast pictures become batches, beside the published pipeline in the same run.

python scripts/benchmark.py input --data-path DIR [--store STORE] [--workers 0 1 2 4] \
    [--needs 3000] [--size 192] [--seconds 5] [--json FILE]
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


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    add = commands.add_parser(
        'input', help='images per second of each way to read them'
    ).add_argument
    add('--data-path', required=True, metavar='DIR', help='train.csv and images, or images alone')
    add('--store', metavar='STORE', help='the same packed by scripts/pack.py')
    add('--workers', default=[0, 1, 2, 4], nargs='+', type=_workers, metavar='N', help='processes')
    add('--needs', default=3000, type=_positive, metavar='N', help='images/s that the model takes')
    add('--size', default=192, type=_count, metavar='PX', help='side of the crops')
    add('--batch-size', default=64, type=_count, metavar='N', help='images in a batch')
    add('--seconds', default=5, type=_positive, metavar='S', help='of a repeat of each case')
    add('--repeats', default=3, type=_count, metavar='N', help='of each case')
    add('--json', metavar='FILE', help='also write a line of JSON for each case')
    return parser.parse_args(arguments)


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


COMMANDS = {'input': measure_input}


def main(args: argparse.Namespace) -> int:
    try:
        COMMANDS[args.command](args)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


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


def _workers(text: str) -> int:
    return 0 if text == '0' else _count(text)


if __name__ == '__main__':
    sys.exit(main(parse_args()))

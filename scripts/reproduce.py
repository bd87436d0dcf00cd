"""Repeat a finished training run and report whether it gives the same results.

python scripts/reproduce.py RUN_DIR [--data-path DIR] [--output OUT] [--tolerance 0.001]

The run in the folder RUN_DIR is repeated in another folder from its config.yaml and pre-trained
weights, with the same number of processes and threads. If config.yaml contains relative paths, call
the script where the run was started. Afterwards the script prints the differences in code,
packages, machine, data and weights, and compares the metrics of each epoch, the scores and the
weights, but not the timings.

Exit code: 0 if identical or within the tolerance; 1 if different; 2 if the runs cannot be compared.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import build_parser, get_config
from engine.run_record import (
    OPTIONS_FILE,
    RECORD_FILE,
    ROOT,
    processes_of,
    read_record,
    run_changes,
)
from logger import read_metrics
from system.files import BEST_CHECKPOINT, checkpoint_name
from system.tool import tool
from utils import read_checkpoint

TIMINGS = ('seconds', 'data_seconds', 'images_per_second')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    add = parser.add_argument
    add('run_dir', type=Path, help='folder of the run')
    add('--data-path', help='new folder of the data (default: as in the run)')
    add('--pretrained', help='new path of the pre-trained weights (default: as in the run)')
    add('--output', type=Path, help='folder to keep the repeated run in (default: remove it)')
    add(
        '--tolerance',
        type=float,
        default=0.0,
        metavar='X',
        help='allowed difference of a metric, relative for values above 1; above 0 the weights '
        'may differ (default: 0, everything must be identical)',
    )
    args = parser.parse_args(argv)
    if not 0 <= args.tolerance < math.inf:  # also refuses nan
        parser.error(f'--tolerance must be 0 or greater, got {args.tolerance}')
    return args


@tool
def main(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        return reproduce(args, args.output or Path(scratch))


def reproduce(args: argparse.Namespace, output: Path) -> int:
    """Repeat the run below `output`, print the differences, and return the exit code."""
    record = read_record(args.run_dir)
    if record is None or not record.get('finished'):
        raise ValueError(f'{args.run_dir / RECORD_FILE} does not describe a finished run')
    flags = repeat_flags(args, record, output)
    config = get_config(build_parser(record['stage']).parse_args(flags))
    folder = Path(config.OUTPUT) / config.MODEL.NAME / config.TAG
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f'--output: {folder} already contains a run; choose another folder')
    repeat(record, flags)
    changes = run_changes(record, read_record(folder))
    if len({(start.get('code'), start.get('data')) for start in record['starts']}) > 1:
        changes.append('the original run resumed with other code or data')
    if len({start['processes'] for start in record['starts'] if 'processes' in start}) > 1:
        changes.append('the original run resumed with another number of processes')
    for change in changes:
        print(f'changed: {change}')
    if not changes:
        print('code, packages, machine, data and pre-trained weights are unchanged')
    last = checkpoint_name(config.TRAIN.EPOCHS - 1)
    return report(compare(args.run_dir, folder, (last, BEST_CHECKPOINT)), args.tolerance)


def repeat_flags(args: argparse.Namespace, record: dict[str, Any], output: Path) -> list[str]:
    """Return the command-line flags that repeat the run."""
    resumed_from = str(record['starts'][0].get('resumed_from') or '')
    if resumed_from == Path(resumed_from).name:  # the run's own checkpoint: repeat the whole run
        resumed_from = ''
    flags = ['--cfg', str(args.run_dir / OPTIONS_FILE), '--output', str(output)]
    flags += ['--resume', os.path.expanduser(resumed_from)]
    flags += ['--data-path', args.data_path] if args.data_path else []
    return flags + (['--pretrained', args.pretrained] if args.pretrained else [])


def repeat(record: dict[str, Any], flags: list[str]) -> None:
    """Run the main script with the number of processes and threads of the original run."""
    command, processes = [sys.executable], processes_of(record)
    if processes > 1:
        command += ['-m', 'torch.distributed.run', '--standalone']
        command += ['--nproc_per_node', str(processes)]
    command += [str(ROOT / f'main_{record["stage"]}.py'), *flags]
    threads = record['environment'].get('threads')
    variables = {'OMP_NUM_THREADS': str(threads)} if threads else {}
    code = subprocess.run(command, env=os.environ | variables, check=False).returncode
    if code:
        raise ValueError(f'the repeated run ended with exit code {code}; see its last lines')


def compare(before: Path, after: Path, checkpoints: tuple[str, ...]) -> dict[str, float]:
    """Return the largest difference of each metric and of the weights in each checkpoint."""
    old, new = (dict(_results(folder, checkpoints)) for folder in (before, after))
    if not old:
        raise ValueError(f'{before} contains neither metrics nor weights')
    differences: dict[str, float] = {}
    for key in {**old, **new}:
        name, amount = key[0], difference(old.get(key), new.get(key))
        differences[name] = max(amount, differences.get(name, 0.0))
    return differences


def difference(old: Any, new: Any) -> float:
    """Return the difference of two values, relative to the first value if that is above 1.

    Values that cannot be subtracted differ by infinity.
    """
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            return math.inf
        if torch.equal(old, new):
            return 0.0
        return (old.double() - new.double()).abs().nan_to_num(math.inf).max().item()
    if type(old) is type(new) and (old == new or (old != old and new != new)):
        return 0.0
    if not all(isinstance(value, int | float) for value in (old, new)):
        return math.inf
    amount = abs(old - new) / max(1, abs(old))
    return amount if math.isfinite(amount) else math.inf


def report(differences: dict[str, float], tolerance: float) -> int:
    """Print all differences and the verdict, and return 1 if one exceeds the tolerance."""
    for name, amount in sorted(differences.items(), key=lambda item: -item[1]):
        if amount:
            print(f'differs: {name}: {amount:.3g}')
    if not any(differences.values()):
        print('the same: all metrics, scores and weights are identical')
        return 0
    judged = [
        amount
        for name, amount in differences.items()
        if not (tolerance and name.startswith('weights ')) or math.isinf(amount)
    ]
    beyond = sum(amount > tolerance for amount in judged)
    verdict = f'not the same: {beyond} of {len(judged)} differ' if beyond else 'the same'
    print(f'{verdict} (tolerance {tolerance:g})')
    return 1 if beyond else 0


def _results(folder: Path, checkpoints: tuple[str, ...]) -> Iterator[tuple[tuple[str, str], Any]]:
    """Yield ((name, epoch or entry), value) for every metric, score and weight of a run."""
    metrics, scores = folder / 'metrics.jsonl', folder / 'scores.json'
    for record in read_metrics(metrics) if metrics.is_file() else ():
        for name, value in _flat(record).items():
            if name not in TIMINGS:
                yield (name, f'epoch {record["epoch"]}'), value
    if scores.is_file():
        for name, value in _flat(json.loads(scores.read_bytes())).items():
            yield (name, 'scores'), value
    for checkpoint in checkpoints:
        if (folder / checkpoint).is_file():
            for key, value in read_checkpoint(folder / checkpoint)['model'].items():
                yield (f'weights of {checkpoint}', key), value


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of nested dictionaries, with names such as 'test selected auroc Edema'."""
    return pd.json_normalize(values, sep=' ').to_dict('records')[0]


if __name__ == '__main__':
    sys.exit(main(parse_args()))

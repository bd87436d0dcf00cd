"""Repeat a finished training run and report whether it gives the same results.

python scripts/reproduce.py RUN_DIR [--data-path DIR] [--output OUT] [--tolerance 0.001]

RUN_DIR is the folder of the run. The run is repeated from its config.yaml and its pre-trained
weights, with as many processes and threads, in its own folder; nothing in RUN_DIR changes. Call
the script where the run was started if its config contains relative paths. The script first prints
how code, packages, machine, data and weights differ from those of the run. It then compares the
metrics of each epoch, the scores and the weights, but not the timings.

Exit code 0: identical, or within the tolerance; 1: different; 2: the runs cannot be compared.
"""

import argparse
import contextlib
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from config import Config, build_parser, get_config  # noqa: E402
from data import build_loader  # noqa: E402
from engine.run_record import (  # noqa: E402
    OPTIONS_FILE,
    RECORD_FILE,
    code_version,
    describe_data,
    environment,
    read_record,
    run_changes,
    weights_checksum,
)
from logger import read_metrics  # noqa: E402
from utils import BEST_CHECKPOINT, checkpoint_name, place_of, read_checkpoint  # noqa: E402

TIMINGS = ('seconds', 'data_seconds', 'images_per_second')
QUIET = logging.getLogger('reproduce')
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('run_dir', type=Path, help='folder of the run')
    parser.add_argument('--data-path', help='folder of the data now; default: that of the run')
    parser.add_argument('--pretrained', help='file of the weights now; default: that of the run')
    parser.add_argument(
        '--output', type=Path, help='keep the repeated run below this folder; default: remove it'
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=0.0,
        metavar='X',
        help='a metric may differ by X, above 1 by X times its value; with X above 0 the weights '
        'may differ (default: 0, everything must be identical)',
    )
    return parser.parse_args(argv)


def finished_record(folder: Path) -> dict[str, Any]:
    """Read the `run.json` of a finished run.

    Raises:
        ValueError: If the folder does not hold a finished run.
    """
    record = read_record(folder)
    if record is None:
        raise ValueError(f'{folder / RECORD_FILE} does not exist: no run was trained there')
    missing = {'stage', 'processes', 'environment', 'data', 'starts'} - set(record)
    if missing:
        raise ValueError(f'{folder / RECORD_FILE} lacks {", ".join(sorted(missing))}')
    if record.get('finished') is None:
        raise ValueError(f'{folder}: the run is not finished; the command that started it resumes')
    return record


def repeat_flags(folder: Path, record: dict[str, Any], output: Path, args: Any) -> list[str]:
    """The command-line flags of the main that repeat the run."""
    resumed_from = str(record['starts'][0].get('resumed_from') or '')
    if resumed_from == BEST_CHECKPOINT or place_of(resumed_from):  # its own: repeat all of it
        resumed_from = ''
    elif resumed_from and resumed_from == Path(resumed_from).name:
        resumed_from = str(folder / resumed_from)
    flags = ['--cfg', str(folder / OPTIONS_FILE), '--output', str(output)]
    flags += ['--resume', os.path.expanduser(resumed_from)]
    flags += ['--data-path', args.data_path] if args.data_path is not None else []
    return flags + (['--pretrained', args.pretrained] if args.pretrained is not None else [])


def input_changes(record: dict[str, Any], config: Config) -> list[str]:
    """How code, machine, data and weights differ from those of the run."""
    stage, gpus = record['stage'], min(record['processes'], torch.cuda.device_count())
    loaders = build_loader(config, QUIET, stage != 'finetune', contrastive=stage == 'contrastive')
    now = {
        'code': code_version(),
        'environment': environment(
            gpus=map(torch.cuda.get_device_name, range(gpus)),
            threads=record['environment'].get('threads'),
        ),
        'data': describe_data(config, loaders),
    }
    if config.PRETRAINED:
        now['pretrained'] = weights_checksum(config.PRETRAINED)
    changes = run_changes(record, now)
    if len({(start.get('code'), start.get('data')) for start in record['starts']}) > 1:
        changes.append('the run itself resumed with other code or data')
    return changes


def repeat(record: dict[str, Any], flags: list[str]) -> None:
    """Run the main to its end, with as many processes and threads as the run had."""
    command, processes = [sys.executable], record['processes']
    if processes > 1:
        command += ['-m', 'torch.distributed.run', '--standalone']
        command += ['--nproc_per_node', str(processes)]
    command += [str(ROOT / f'main_{record["stage"]}.py'), *flags]
    threads = record['environment'].get('threads')
    variables = {'OMP_NUM_THREADS': str(threads)} if threads else {}
    code = subprocess.run(command, env=os.environ | variables, check=False).returncode
    if code:
        raise ValueError(f'the repeated run ended with exit code {code}; see its last lines')


def compare(before: Path, after: Path, last_epoch: int) -> dict[str, float]:
    """The largest difference of each metric, relative above 1, and of the weights in each file.

    Values that cannot be subtracted differ by infinity.
    """
    differences: dict[str, float] = {}
    readers = {'metrics.jsonl': _metrics, 'scores.json': _scores}
    readers |= dict.fromkeys([checkpoint_name(last_epoch), BEST_CHECKPOINT], _weights)
    for name, read in readers.items():
        if not (before / name).is_file():
            continue
        old = read(before / name)
        new = read(after / name) if (after / name).is_file() else {}
        for key in {**old, **new}:
            metric = key[-1]
            amount = difference(old.get(key), new.get(key))
            differences[metric] = max(amount, differences.get(metric, 0.0))
    if not differences:
        raise ValueError(f'{before} holds no metrics and no weights to compare')
    return differences


def difference(old: Any, new: Any) -> float:
    """The difference of two values, as a fraction of the first one where that is above 1."""
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


def main(args: argparse.Namespace) -> int:
    try:
        if not 0 <= args.tolerance < math.inf:
            raise ValueError(f'--tolerance must be a number from 0 on, got {args.tolerance}')
        with _output_folder(args.output) as output:
            return _reproduce(args, output)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def _reproduce(args: argparse.Namespace, output: Path) -> int:
    record = finished_record(args.run_dir)
    flags = repeat_flags(args.run_dir, record, output, args)
    config = get_config(build_parser(record['stage']).parse_args(flags))
    for key, path in {'PRETRAINED': config.PRETRAINED, 'MODEL.RESUME': config.MODEL.RESUME}.items():
        if path and '://' not in path and not Path(path).is_file():
            raise ValueError(f'{key} {path}, from which the run started, does not exist')
    folder = Path(config.OUTPUT) / config.MODEL.NAME / config.TAG
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f'--output: {folder} already holds a run; choose another folder')
    for change in (changes := input_changes(record, config)):
        print(f'differs from the run: {change}')
    if not changes:
        print('code, packages, machine, data and pre-trained weights are those of the run')
    sys.stdout.flush()
    repeat(record, flags)
    differences = compare(args.run_dir, folder, config.TRAIN.EPOCHS - 1)
    for name, amount in sorted(differences.items(), key=lambda item: -item[1]):
        if amount:
            print(f'differs: {name}: {amount:.3g}')
    if not any(differences.values()):
        print('the same: all metrics, scores and weights are identical')
        return 0
    judged = {
        name: amount
        for name, amount in differences.items()
        if not (args.tolerance and name.startswith('weights ')) or math.isinf(amount)
    }
    beyond = sum(amount > args.tolerance for amount in judged.values())
    verdict = f'not the same: {beyond} of {len(judged)} differ' if beyond else 'the same'
    print(f'{verdict} (tolerance {args.tolerance:g})')
    return 1 if beyond else 0


@contextlib.contextmanager
def _output_folder(output: Path | None) -> Iterator[Path]:
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


def _metrics(path: Path) -> dict[tuple, Any]:
    return {
        (record['epoch'], name): value
        for record in read_metrics(path)
        for name, value in _flat(record)
        if name not in TIMINGS
    }


def _scores(path: Path) -> dict[tuple, Any]:
    return {(name,): value for name, value in _flat(json.loads(path.read_bytes()))}


def _weights(path: Path) -> dict[tuple, Any]:
    model = read_checkpoint(path)['model']
    return {(key, f'weights of {path.name}'): value for key, value in model.items()}


def _flat(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """Names such as 'test selected auroc Edema' with the values that are not dictionaries."""
    if not isinstance(value, dict):
        yield name.strip(), value
        return
    for key, item in value.items():
        yield from _flat(item, f'{name} {key}')


if __name__ == '__main__':
    sys.exit(main(parse_args()))

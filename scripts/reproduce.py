"""Repeat a finished training run and say whether the same comes out.

python scripts/reproduce.py RUN_DIR [--data-path DIR] [--output OUT] [--tolerance 0.001]

RUN_DIR is the folder of the run. It is repeated from its config.yaml and its pre-trained weights,
with as many processes and threads, never interrupted, in a folder of its own; nothing in RUN_DIR is
changed. Call it where the run was started if its config names relative paths. What differs in code,
programs, machine and data is said before the start; then the figures of each epoch, the weights
and the scores are compared, all but those of time.

Exit code 0: the same, bit for bit, or within the tolerance; 1: not the same; 2: no comparison.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from config import Config, build_parser, get_config  # noqa: E402
from data import build_loader  # noqa: E402
from engine.run_record import (
    RECORD_FILE,
    code_changes,
    code_version,
    data_changes,
    describe_data,
    environment,
    environment_changes,
    read_record,
    weights_checksum,
)
from logger import read_metrics  # noqa: E402
from utils import BEST_CHECKPOINT, checkpoint_name, place_of, read_checkpoint

STAGES = ('simmim', 'contrastive', 'finetune')
TIMING = ('seconds', 'data_seconds', 'images_per_second')
SHOWN = 5  # names in the verdict
QUIET = logging.getLogger('reproduce')
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False


@dataclass(frozen=True)
class Difference:
    """The greatest difference of one figure, or of the weights in one file."""

    name: str
    amount: float = 0.0  # inf: there is nothing to subtract
    scaled: float = 0.0  # as a part of the figure where that is above 1
    place: str = ''
    of_weights: bool = False

    def __str__(self) -> str:
        amount = f'{self.amount:.3g}' if math.isfinite(self.amount) else 'another value, or none'
        return f'{self.name}: {amount}' + (f' ({self.place})' if self.place else '')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('run_dir', type=Path, help='folder of the run')
    parser.add_argument('--data-path', help='where the data lie now; default: as in the run')
    parser.add_argument('--pretrained', help='where the weights lie now; default: as in the run')
    parser.add_argument(
        '--output', type=Path, help='keep the repeat below this folder; default: it is removed'
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=0.0,
        metavar='X',
        help='a figure or score may differ by X, above 1 by X times its value; with X above 0 the '
        'weights need not agree (default: 0, all bit for bit)',
    )
    return parser.parse_args(argv)


def finished_record(folder: Path) -> dict[str, Any]:
    """The `run.json` of a finished run.

    Raises:
        ValueError: saying why the run cannot be repeated.
    """
    record, path = read_record(folder), folder / RECORD_FILE
    if record is None:
        raise ValueError(f'{path} is not there: {folder} is no folder of a run that trained')
    missing = [
        k for k in ('stage', 'processes', 'environment', 'data', 'starts') if k not in record
    ]
    if missing or record['stage'] not in STAGES or not record['starts']:
        raise ValueError(f'{path} does not say how the run was started: it was changed')
    if record.get('finished') is None:
        times = [str(start.get('time')) for start in record['starts']]
        raise ValueError(
            f'{folder}: the run is not finished ({len(times)} start(s), the last at {times[-1]}): '
            'there is nothing to compare with yet; the command that started it goes on with it'
        )
    return record


def options_of(
    folder: Path, record: dict[str, Any], output: Path, args: argparse.Namespace
) -> list[str]:
    """The flags of the repeat's main."""
    begun_from = str(record['starts'][0].get('resumed_from') or '')
    if begun_from in (BEST_CHECKPOINT, '') or place_of(begun_from):  # its own: all is repeated
        begun_from = ''
    elif begun_from == Path(begun_from).name:  # brought into its folder
        begun_from = str(folder / begun_from)
    words = ['--cfg', str(folder / 'config.yaml'), '--output', str(output)]
    words += ['--resume', os.path.expanduser(begun_from)]
    words += ['--data-path', args.data_path] if args.data_path is not None else []
    return words + (['--pretrained', args.pretrained] if args.pretrained is not None else [])


def check_weights(config: Config, folder: Path) -> None:
    """Refuse where a checkpoint that the run began with is gone."""
    for key, path in {'PRETRAINED': config.PRETRAINED, 'MODEL.RESUME': config.MODEL.RESUME}.items():
        if path and '://' not in path and not Path(path).is_file():
            hint = ', or say with --pretrained where it is' if key == 'PRETRAINED' else ''
            raise ValueError(
                f'{folder}: the run began with {key} {path}, and there is no such file: '
                f'put it back{hint}'
            )


def input_changes(record: dict[str, Any], config: Config) -> list[str]:
    """How what the repeat starts from differs from what the run started from."""
    count = min(record['processes'], torch.cuda.device_count())
    stage = record['stage']
    kind = {'is_pretrain': stage != 'finetune', 'contrastive': stage == 'contrastive'}
    loaders = build_loader(config, QUIET, **kind)
    now = {
        'code': code_version(),
        'processes': record['processes'],
        'environment': environment(
            gpus=map(torch.cuda.get_device_name, range(count)),
            threads=record['environment'].get('threads'),
        ),
        'data': describe_data(config, loaders),
    }
    changes = [
        *code_changes(record, now),
        *environment_changes(record, now),
        *data_changes(record, now),
    ]
    weights = record.get('pretrained')
    if weights and weights != weights_checksum(config.PRETRAINED):
        changes.append(f'PRETRAINED: {config.PRETRAINED} holds other weights')
    first, *later = record['starts']
    if any((s.get('code'), s.get('data')) != (first.get('code'), first.get('data')) for s in later):
        changes.append('the run itself went on with other code or data than it began with')
    return changes


def repeat(record: dict[str, Any], words: list[str]) -> None:
    """Run the main to its end, with as many processes and threads."""
    command, processes = [sys.executable], record['processes']
    if processes > 1:
        command += ['-m', 'torch.distributed.run', '--standalone']
        command += ['--nproc_per_node', str(processes)]
    command += [str(ROOT / f'main_{record["stage"]}.py'), *words]
    threads = record['environment'].get('threads')
    variables = {'OMP_NUM_THREADS': str(threads)} if threads else {}
    code = subprocess.run(command, env=os.environ | variables, check=False).returncode
    if code:
        raise ValueError(f'the repeat ended with exit code {code}: its last lines say why')


def compare(before: Path, after: Path, last_epoch: int) -> list[Difference]:
    """The greatest difference of each figure, score and file of weights; the greatest first."""
    compared = {
        'metrics.jsonl': _compare_epochs,
        'scores.json': _compare_scores,
        checkpoint_name(last_epoch): _compare_weights,
        BEST_CHECKPOINT: _compare_weights,
    }
    differences = []
    for name, compare_files in compared.items():
        was, is_now = ((folder / name).is_file() for folder in (before, after))
        if was and is_now:
            differences += compare_files(before / name, after / name)
        elif was:
            differences.append(Difference(name, math.inf, math.inf, 'the repeat has none'))
        elif is_now:
            print(f'not compared: {name}, which {before} no longer has')
    return sorted(differences, key=lambda difference: -difference.scaled)


def verdict(differences: list[Difference], tolerance: float) -> tuple[str, int]:
    """The last line, and the exit code."""
    if not differences:
        raise ValueError('there is nothing to compare: the run has no figures and no weights')
    compared = 'figures and weights' if any(d.of_weights for d in differences) else 'figures alone'
    if not any(d.amount for d in differences):
        return f'the same, bit for bit ({compared})', 0
    judged = [d for d in differences if not (tolerance and d.of_weights) or math.isinf(d.amount)]
    beyond = [d for d in judged if not d.scaled <= tolerance]
    if not beyond:
        return f'the same within {tolerance:g} (figures alone)', 0
    names = ', '.join(d.name for d in beyond[:SHOWN]) + (', ...' if len(beyond) > SHOWN else '')
    beside = f' by more than {tolerance:g}' if tolerance else ''
    return f'not the same: {len(beyond)} of {len(judged)} differ{beside}: {names}', 1


def main(args: argparse.Namespace) -> int:
    try:
        if not args.tolerance >= 0 or math.isinf(args.tolerance):
            raise ValueError(f'--tolerance must be a number from 0, got {args.tolerance}')
        with _folder_for(args.output) as output:
            return _reproduce(args, output)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def _reproduce(args: argparse.Namespace, output: Path) -> int:
    record = finished_record(args.run_dir)
    words = options_of(args.run_dir, record, output, args)
    config = get_config(build_parser(record['stage']).parse_args(words))
    check_weights(config, args.run_dir)
    folder = Path(config.OUTPUT) / config.MODEL.NAME / config.TAG
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f'--output: {folder} holds a run already; choose another folder')
    changes = input_changes(record, config)
    for change in changes:
        print(f'differs from the run: {change}')
    if not changes:
        print('code, programs, machine, data and pre-trained weights are those of the run')
    if 'with changes' in record.get('code', ''):
        print('the code of the run had changes that are in no commit: they are not compared')
    sys.stdout.flush()  # before what the repeat prints
    repeat(record, words)
    differences = compare(args.run_dir, folder, config.TRAIN.EPOCHS - 1)
    print(f'compared: {len(differences)} figures, scores and files of weights')
    for difference in differences:
        if difference.amount:
            print(f'differs: {difference}')
    line, code = verdict(differences, args.tolerance)
    print(line)
    return code


@contextlib.contextmanager
def _folder_for(output: Path | None) -> Iterator[Path]:
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


def _compare_epochs(before: Path, after: Path) -> list[Difference]:
    """Of `metrics.jsonl`, without the figures of time."""
    epochs = [
        {
            f'epoch {record["epoch"]}': {k: v for k, v in _flat(record) if k not in TIMING}
            for record in read_metrics(path)
        }
        for path in (before, after)
    ]
    return _figures(*epochs)


def _compare_scores(before: Path, after: Path) -> list[Difference]:
    tables = []
    for path in (before, after):
        try:
            tables.append({path.name: dict(_flat(json.loads(path.read_bytes())))})
        except (ValueError, RecursionError) as error:
            raise ValueError(f'{path} cannot be read: {error}') from error
    return _figures(*tables)


def _compare_weights(before: Path, after: Path) -> list[Difference]:
    old, new = (read_checkpoint(path)['model'] for path in (before, after))
    return [_weights(f'weights of {before.name}', old, new)]


def _flat(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """Names such as 'test selected auroc Edema', and the values that are no dictionaries."""
    if not isinstance(value, dict):
        yield name.strip(), value
        return
    for key, item in value.items():
        yield from _flat(item, f'{name} {key}')


def _figures(
    before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]
) -> list[Difference]:
    """The greatest difference of each figure over all places."""
    greatest: dict[str, Difference] = {}
    for place in {**before, **after}:
        old, new = before.get(place, {}), after.get(place, {})
        for name in {**old, **new}:
            found = _difference(name, old.get(name), new.get(name), place)
            if name not in greatest or found.scaled > greatest[name].scaled:
                greatest[name] = found
    return list(greatest.values())


def _difference(name: str, old: Any, new: Any, place: str) -> Difference:
    values = (old, new)
    if type(old) is type(new) and (old == new or (old != old and new != new)):  # NaN is not itself
        return Difference(name)
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return Difference(name, math.inf, math.inf, place)
    amount = abs(old - new)
    return Difference(name, amount, amount / max(1, abs(old)), place)


def _weights(
    name: str, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]
) -> Difference:
    """The greatest difference of any entry; none where all have the same bits."""
    greatest = Difference(name, of_weights=True)
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if old is None or new is None or (old.shape, old.dtype) != (new.shape, new.dtype):
            return Difference(name, math.inf, math.inf, key, of_weights=True)
        if not torch.equal(*(part.reshape(-1).view(torch.uint8) for part in (old, new))):
            amount = (old.double() - new.double()).abs().nan_to_num(math.inf).max().item()
            if amount > greatest.amount:
                greatest = Difference(name, amount, amount, key, of_weights=True)
    return greatest


if __name__ == '__main__':
    sys.exit(main(parse_args()))

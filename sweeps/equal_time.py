"""A sweep of methods again, each pre-trained for as long as the reference was measured to take."""

import json
from pathlib import Path
from statistics import median
from typing import NamedTuple

import yaml

from config_merge import load_yaml
from data.store_files import replace_file
from logger import read_metrics
from provenance import is_finished
from sweeps.costs import epoch_seconds, machines
from sweeps.rows import Sweep, run_folder
from sweeps.run_options import load_config

EPOCHS, WARMUP = 'TRAIN.EPOCHS', 'TRAIN.WARMUP_EPOCHS'


class Pace(NamedTuple):
    """How a method was pre-trained.

    Attributes:
        seconds: of an epoch, the median over epochs and seeds.
        epochs: of the run.
        warmup: epochs of it.
        machine: see `sweeps.costs.machines`.
    """

    seconds: float
    epochs: int
    warmup: int
    machine: tuple[str, ...]


def measure(sweep: Sweep, seeds: list[int], output: str | Path) -> dict[str, Pace]:
    """The pace of each method that is pre-trained.

    Raises:
        ValueError: if the sweep is none of methods, or if a pre-training is not finished, has no
            measured seconds, ran on several machines, or on another machine or for other epochs
            than another.
    """
    if not sweep.subsets:
        raise ValueError(f'{sweep.path} is no sweep of methods')
    paces: dict[str, Pace] = {}
    first: tuple[str, ...] = ()
    for name, row in sweep.methods.items():
        if row.pretrain is None:
            continue
        folders = [run_folder(output, row.pretraining, row, seed) for seed in seeds]
        paces[name] = pace = _pace(folders)
        first = first or pace.machine
        if pace.machine != first:
            raise ValueError(
                f'{folders[0]} ran on {", ".join(pace.machine)}, others on {", ".join(first)}: '
                'their times do not compare'
            )
    return paces


def equal_epochs(pace: Pace, reference: Pace) -> tuple[int, int]:
    """Epochs that take as long as those of the reference, to the nearest, and the warm-up's share.

    Raises:
        ValueError: if that is less than one epoch.
    """
    epochs = reference.epochs * reference.seconds / pace.seconds
    if epochs < 1:
        raise ValueError(
            f'an epoch takes {pace.seconds:.1f} s, longer than all {reference.epochs} of the '
            f'reference ({reference.epochs * reference.seconds:.1f} s)'
        )
    return round(epochs), round(pace.warmup * round(epochs) / pace.epochs)


def write_equal_time(sweep: Sweep, seeds: list[int], output: str | Path) -> Path:
    """Write `<sweep>_equal_time.yaml` into the output folder; equal epochs keep their runs.

    Raises:
        ValueError: naming the method, see `measure` and `equal_epochs`.
    """
    paces, own = measure(sweep, seeds, output), sweep.reference.method
    comments = [
        f'Written by scripts/equal_time.py: each pre-training takes as long as that of {own}.',
        f'Seconds of an epoch, the median over epochs and seeds {", ".join(map(str, seeds))}, on',
        f'{", ".join(paces[own].machine)}:',
    ]
    content = json.loads(json.dumps(load_yaml(sweep.path.read_text(encoding='utf-8'))))
    entries = dict(zip(sweep.methods, content['methods'].values(), strict=True))
    for name, row in sweep.methods.items():
        entries[name]['run'] = row.run.removesuffix(f'_{row.subset}')
        if name not in paces:
            continue
        pace = paces[name]
        try:
            epochs, warmup = equal_epochs(pace, paces[own])
        except ValueError as error:
            raise ValueError(f'{sweep.path}: method {name}: {error}') from error
        entries[name]['pretrain_options'] = row.pretrain | {EPOCHS: epochs, WARMUP: warmup}
        if epochs != pace.epochs:
            del entries[name]['run']  # another run than that of equal images
        comments.append(f'  {name}: {pace.seconds:.2f} ({pace.epochs} epochs, here {epochs})')
    subsets = dict.fromkeys(row.subset for row in sweep.rows)
    content['title'] = f'{sweep.title}, equal time of pre-training'
    content['methods'] = entries
    content[sweep.subsets] = dict(zip(subsets, content[sweep.subsets].values(), strict=True))
    path = Path(output) / f'{sweep.name}_equal_time.yaml'
    text = ''.join(f'# {line}\n' for line in comments)
    text += yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=1000)
    replace_file(path, text.encode())
    return path


def _pace(folders: list[Path]) -> Pace:
    """Of the runs of one pre-training, one a seed."""
    seconds, others = [], set()
    for folder in folders:
        if not is_finished(folder):
            raise ValueError(f'{folder} is not finished')
        measured = epoch_seconds(read_metrics(folder / 'metrics.jsonl'))
        if not measured:
            raise ValueError(f'{folder}/metrics.jsonl: no epoch has its seconds')
        seconds += measured
        first, *later = machines(folder)
        if later:
            every = '; then on '.join(', '.join(machine) for machine in (first, *later))
            raise ValueError(f'{folder} ran on {every}: its times do not compare')
        train = load_config(folder).TRAIN
        others.add((train.EPOCHS, train.WARMUP_EPOCHS, first))
    if len(others) > 1:
        raise ValueError(
            f'{folders[0].parent}: runs of {folders[0].name} and its other seeds differ in epochs '
            f'or machine: {"; ".join(map(str, sorted(others)))}'
        )
    return Pace(median(seconds), *others.pop())

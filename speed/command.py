"""The benchmark of training steps: from its arguments to lines of JSON, tables and a figure."""

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from data.store_files import replace_file
from device import local_device
from provenance import code_version, environment, without_home
from speed.cases import list_cases
from speed.measure import flops_per_image, matrix_rate, measure
from speed.plot import plot_rates
from speed.results import Row, as_rows, format_tables, read_rows, save_rows
from speed.steps import Setting

TABLE_FILE, FIGURE_FILE = 'training_speed.md', 'training_speed.png'


def benchmark_training(
    args: Namespace,
    command: Sequence[str],
    *,
    say: Callable[[str], None],
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Row]:
    """Measure each batch size; with `args.json` the file has what is done so far.

    Args:
        args: cfg, stage, opts, batch_size (several), steps, warmup, rounds, baseline, levers,
            data_path, json.
        command: that was given.
        say: takes lines about what is measured.
        progress: wraps what is gone through, as tqdm does.

    Raises:
        ValueError: if the config is not possible, or the file cannot be written.
    """
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise ValueError(f'--json: there is no folder for {args.json}')
    device = local_device()
    settings = [
        Setting(args.cfg, args.stage, args.opts, size, device, args.data_path)
        for size in args.batch_size
    ]
    config = settings[0].run().config
    which = {'baseline': args.baseline, 'levers': args.levers, 'data': bool(args.data_path)}
    cases, notes = list_cases(config, device, **which)
    flops = flops_per_image(settings[0])
    machine = describe_machine(device)
    for line in [_header(machine), *notes]:
        say(line)
    facts = machine | {
        'config': without_home(args.cfg),
        'opts': [*map(without_home, args.opts)],
        'stage': args.stage,
        'model': model_name(args.cfg),
        'image_size_px': config.DATA.IMG_SIZE,
        'seed': config.SEED,
        'steps': args.steps,
        'warmup': args.warmup,
        'commit': code_version(),
        'command': [Path(command[0]).name, *map(without_home, command[1:])],
    }
    rows = []
    for setting in settings:
        counts = {'steps': args.steps, 'warmup': args.warmup, 'rounds': args.rounds}
        measured = measure(setting, cases, **counts, progress=progress)
        types = {one.dtype for one in measured if one.rates}
        rates = {dtype: matrix_rate(device, dtype) for dtype in types}
        own = facts | {'batch_size': setting.batch_size}
        rows += as_rows(measured, own, flops_per_image=flops, matrix_rates=rates)
        if args.json:
            with _writing():
                save_rows(rows, args.json)
    return rows


def write_tables(files: Sequence[str], output: str) -> list[Path]:
    """Tables and figure of measured cases; returns what was written into the folder.

    Raises:
        ValueError: naming file and line of what is no measured case, or what cannot be written.
    """
    rows, folder = read_rows(files), Path(output)
    with _writing():
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / TABLE_FILE, format_tables(rows).encode())
        plot_rates(folder / FIGURE_FILE, rows)
    return [folder / TABLE_FILE, folder / FIGURE_FILE]


def describe_machine(device: torch.device) -> Row:
    """Device and versions."""
    on_gpu = device.type == 'cuda'
    threads = torch.get_num_threads()
    name = environment(gpus=[], threads=threads)['cpu']
    return {
        'device': torch.cuda.get_device_name(device) if on_gpu else name,
        'device_type': device.type,
        'threads': threads,
        'torch': torch.__version__,
        'cuda': torch.version.cuda if on_gpu else None,
        'triton': _version('triton'),
    }


def model_name(cfg: str) -> str:
    """swin_base of simmim_pretrain__swin_base__img192_window6__100ep.yaml; else the file's name."""
    parts = Path(cfg).stem.split('__')
    return parts[1] if len(parts) == 4 else Path(cfg).stem


def _header(machine: Row) -> str:
    on_gpu = machine['device_type'] == 'cuda'
    name = machine['device'] if on_gpu else f'the CPU ({machine["device"]}): not measured on a GPU'
    versions = (f'{key} {machine[key]}' for key in ('torch', 'cuda', 'triton') if machine[key])
    return f'{name}; {machine["threads"]} thread(s); {", ".join(versions)}'


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f'{error.filename} cannot be written ({error.strerror})') from error

"""Check and measure this project on one GPU: bash scripts/gpu_check.sh [OUT].

Each part runs in its own process with a time limit, and a failed part does not stop the others. The
checks run first, several at a time, while the compiler fills its cache. Then the measurements run
one at a time. On a CPU everything is tiny. OUT/gpu_check.json and OUT/gpu_check.md are updated
after each part.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from config import Config
from data.packing import Settings, pack, read_source
from data.phantom import make_phantom
from engine.run_record import ROOT, code_version, environment
from logger import read_metrics
from scripts import benchmark
from system.files import locked, replace_file

ON_GPU = torch.cuda.is_available()
TINY = 'swin_nano__demo/simmim_pretrain__swin_nano__img64_window4__demo'
CONFIGS = {  # name -> (config on a GPU, config on a CPU)
    'swin': (
        'swin_base__chexpert_800ep/simmim_pretrain__swin_base__img192_window6__chexpert_800ep',
        TINY,
    ),
    'vit': (
        'vit_base__chexpert_800ep/simmim_pretrain__vit_base__img224__chexpert_800ep',
        'vit_nano__demo/simmim_pretrain__vit_nano__img64__demo',
    ),
    'finetune': (
        'swin_base__chexpert_800ep/simmim_finetune__swin_base__img224_window7__chexpert_800ep',
        'swin_nano__demo/simmim_finetune__swin_nano__img64_window4__demo',
    ),
    'mae': (
        'vit_base__mae_800ep/simmim_pretrain__vit_base__img224__mae_800ep',
        'vit_nano__methods_demo/simmim_pretrain__vit_nano__img64__mae_demo',
    ),
    'contrastive': (
        'resnet18__contrastive_100ep/contrastive_pretrain__resnet18__img224__moco_100ep',
        'resnet18__demo/contrastive_pretrain__resnet18__img64__moco_demo',
    ),
    'small': (
        'swin_tiny__chexpert_100ep/simmim_pretrain__swin_tiny__img192_window6__chexpert_100ep',
        TINY,
    ),
}
LARGEST = 512  # batch with which the published step of Swin-B needs 51 GiB
# A run that is compiled although it is short.
MAIN = """
import sys
import main_simmim
from engine import compilation, launch
compilation.PAYS_FROM = 0
sys.exit(launch.launch('simmim', main_simmim.main, sys.argv[1:]))
"""


def training_args(name: str, batch_size: int, *opts: object) -> argparse.Namespace:
    """Return arguments of `benchmark` for an entry of CONFIGS."""
    stage = name if name in ('finetune', 'contrastive') else 'simmim'
    if stage == 'contrastive' and ON_GPU:
        opts = ('MODEL.TIMM.NAME', 'resnet50', *opts)
    if name == 'swin' and not ON_GPU:  # transformers needs stages at least as large as a window
        opts = ('MODEL.SWIN.WINDOW_SIZE', 2, *opts)
    cfg, steps = f'configs/{CONFIGS[name][0 if ON_GPU else 1]}.yaml', 10 if ON_GPU else 1
    size = batch_size if ON_GPU else 16
    return argparse.Namespace(cfg=cfg, stage=stage, batch_size=size, opts=list(opts), steps=steps)


class HuggingFaceSwin(nn.Module):
    """SwinForMaskedImageModeling of transformers with the size of a config."""

    def __init__(self, config: Config) -> None:
        from transformers import SwinConfig, SwinForMaskedImageModeling

        super().__init__()
        swin = config.MODEL.SWIN
        keys = ('EMBED_DIM', 'DEPTHS', 'NUM_HEADS', 'PATCH_SIZE', 'WINDOW_SIZE')
        options = {key.lower(): swin[key] for key in keys} | {'drop_path_rate': 0.0}
        options |= {'image_size': config.DATA.IMG_SIZE, 'num_channels': config.MODEL.IN_CHANS}
        stride = swin.PATCH_SIZE * 2 ** (len(swin.DEPTHS) - 1)
        self.model = SwinForMaskedImageModeling(SwinConfig(**options, encoder_stride=stride))
        self.no_weight_decay = self.no_weight_decay_keywords = set

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return self.model(images, bool_masked_pos=masks.flatten(1).bool()).loss


def run_steps(folder: Path, name: str, batch_size: int) -> dict:
    """Measure training steps of the published code and ours, and for Swin those of transformers."""
    args = training_args(name, batch_size)
    cases = benchmark.training_cases(args)
    if (name, batch_size) == ('swin', 128):
        config = benchmark.training_config(args, [])
        cases['transformers'] = benchmark.published_steps(config, 'simmim', 1, HuggingFaceSwin)
    rows = benchmark.measure(cases, repeats=5 if ON_GPU else 1)
    found = {'rows': rows, 'waits_for_gpu': waits_for_gpu(cases['ours'])}
    return found | {'kernels': {key: kernels(case) for key, case in cases.items()}}


def compile_steps(folder: Path, name: str, batch_size: int) -> dict:
    """Fill the compiler's cache. The largest batches take turns, because two may not fit."""
    is_large = batch_size == LARGEST
    lock = locked(folder.parent / 'large.lock', wait=True)
    with lock if is_large else contextlib.nullcontext():
        start = time.perf_counter()
        benchmark.training_cases(training_args(name, batch_size))['ours']()
        return {'values': {'first turn, s': time.perf_counter() - start}}


def kernels(case: benchmark.Case) -> list[tuple[str, float]]:
    """Return the slowest kernels (operators on a CPU) and their shares of the time."""
    kind, key = ('CUDA', 'device') if ON_GPU else ('CPU', 'cpu')
    activity = getattr(torch.profiler.ProfilerActivity, kind)
    with torch.profiler.profile(activities=[activity]) as profile:
        case()
    times = {e.key[:80]: getattr(e, f'self_{key}_time_total') for e in profile.key_averages()}
    most = sorted(times, key=times.get, reverse=True)[:12]
    total = sum(times.values()) or 1.0  # without a profiler of the GPU there are no kernels
    return [(name, times[name] / total) for name in most]


def waits_for_gpu(case: benchmark.Case) -> str:
    """Return the traceback of a call that waits for the GPU, or '' if there is none."""
    if ON_GPU:
        torch.cuda.set_sync_debug_mode('error')
    try:
        case()
    except RuntimeError as error:
        if 'synchroniz' not in str(error):
            raise
        return traceback.format_exc(limit=-4)
    finally:
        if ON_GPU:
            torch.cuda.set_sync_debug_mode('default')
    return ''


def run_tests(folder: Path, words: list[str]) -> dict:
    """Run tests and return the counts and the values that they record."""
    report, device = folder / 'report.xml', 'cuda' if ON_GPU else 'cpu'
    command = [sys.executable, '-m', 'pytest', '-q', '--all', f'--junitxml={report}']
    command += ['-p', 'no:cacheprovider', '--device', device, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    cases = list(ElementTree.parse(report).iter('testcase'))
    count = {
        kind: len(list(ElementTree.parse(report).iter(kind))) for kind in ('failure', 'skipped')
    }
    values = {p.get('name'): json.loads(p.get('value')) for c in cases for p in c.iter('property')}
    error = done.stdout[-6000:] if done.returncode else ''
    return {'values': {'tests': len(cases), **count, **values}, 'error': error}


def wait_for_data(folder: Path) -> dict:
    """Train about 300 steps from a packed store of phantoms, and return the waiting time."""
    patients, epochs, size, batch, workers = (
        (1200, 10, 256, 128, 8) if ON_GPU else (16, 2, 80, 8, 1)
    )
    phantom, store, output = folder / 'phantom', folder / 'store', folder / 'out'
    make_phantom(phantom, num_train=patients, num_valid=2, num_test=2, seed=0, size=size)
    pack(read_source(phantom), store, Settings(size=size))
    command = ['-c', MAIN, '--cfg', training_args('swin', batch).cfg, '--data-path', store]
    command += ['--output', output, '--tag', 'x', '--batch-size', batch, '--accumulation-steps', 1]
    command += ['--opts', 'TRAIN.EPOCHS', epochs, 'TRAIN.WARMUP_EPOCHS', 1, 'DATA.VIEWS', 'all']
    command += ['EVAL.EVERY', epochs, 'SAVE_FREQ', epochs, 'DATA.NUM_WORKERS', workers]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
    rows = read_metrics(output / 'simmim_pretrain' / 'x' / 'metrics.jsonl')
    rows = [row for row in rows if row['epoch'] > 0]  # the first epoch starts workers and compiles
    waited, whole = (sum(row[key] for row in rows) for key in ('data_seconds', 'seconds'))
    rates = [round(row['images_per_second']) for row in rows]
    return {'values': {'share of time': waited / whole, 'images/s of epochs': rates}}


def parts() -> tuple[dict[str, Callable], dict[str, Callable]]:
    """Return the parts that run in parallel, and the parts that run alone."""
    runs, golden = 'tests/test_gpu_runs.py', ['models', 'training'] if ON_GPU else ['training']
    golden = [f'tests/test_parity_{name}.py' for name in golden]
    tests = {
        'a: GPU tests': ['-m', 'gpu', 'tests/test_gpu_steps.py'],
        'b: recorded numbers': [*golden, '-k', 'gives_recorded or short_training'],
        'b: loss curves': [runs, '-k', 'float32'],
        'g: waiting for the GPU': [runs, '-k', 'waits'],
        'h: SIGTERM and resume': [runs, '-k', 'stopped'],
        'i: two processes': [runs, '-k', 'two_processes'],
    }
    steps = [('c', 'swin', 128), ('c', 'vit', 128), ('d', 'finetune', 128), ('e', 'mae', 128)]
    steps += [('e', 'contrastive', 128)]
    if ON_GPU:
        steps += [('c', name, size) for size in (256, LARGEST) for name in ('swin', 'vit')]
    together, alone = {}, {}
    for letter, name, size in sorted(steps, key=lambda step: step[2] != LARGEST):
        if ON_GPU:  # the largest first, because they take turns
            part = partial(compile_steps, name=name, batch_size=size)
            together[f'{letter}: compile {name} {size}'] = part
    together |= {name: partial(run_tests, words=words) for name, words in tests.items()}
    for letter, name, size in steps:
        alone[f'{letter}: {name} {size}'] = partial(run_steps, name=name, batch_size=size)
    alone['f: waiting for data'] = wait_for_data
    return together, alone


def run_part(name: str, root: Path, seconds: float) -> dict:
    """Run a part in a separate process and return the result."""
    folder, start = Path(tempfile.mkdtemp(dir=root)), time.monotonic()
    if seconds < 5:
        return {'error': 'no time was left'}
    command = ['timeout', '--kill-after=5', f'{seconds:.0f}', sys.executable, __file__]
    command += ['--part', name, '--output', str(folder)]
    cache = {'TORCHINDUCTOR_CACHE_DIR': str(root / 'compiled')}
    with (folder / 'log.txt').open('w+', errors='replace') as log:
        done = subprocess.run(
            command, cwd=ROOT, env=cache | os.environ, stdout=log, stderr=log, check=False
        )
        log.seek(0)
        late = f'\nstopped after {seconds:.0f} s' if done.returncode in (124, 137) else ''
        found = {'error': log.read()[-6000:] + late}
    if (folder / 'result.json').is_file():
        found = json.loads((folder / 'result.json').read_text('utf-8'))
    return found | {'seconds': time.monotonic() - start}


def table(found: dict) -> str:
    """Return the results of all parts as Markdown."""
    where = ', '.join(found['environment']['gpus']) or 'no GPU: this says nothing about speed'
    lines = [f'{where}; torch {torch.__version__}, commit {found["commit"]}, {found["date"]}', '']
    lines += ['| part | case | images/s (range) | to published (95 %) | peak GiB | first turn s |']
    lines += ['| --- | --- | ---: | ---: | ---: | ---: |']
    others = ['', '| part | found | s |', '| --- | --- | ---: |']
    for name, part in found['parts'].items():
        for row in part.get('rows', []):
            (low, high), rates = row['ratio_interval'], [row[k] for k in ('lowest', 'highest')]
            lines.append(
                f'| {name} | {row["case"]} | {row["images_per_second"]:.0f} ({rates[0]:.0f} to '
                f'{rates[1]:.0f}) | {row["ratio"]:.2f} ({low:.2f} to {high:.2f}) | '
                f'{row["peak_gib"]:.1f} | {row["first_turn_seconds"]:.0f} |'
            )
        words = [
            f'{key} {value}' for key, value in part.get('values', {}).items() if key != 'losses'
        ]
        words += ['waits for the GPU'] * bool(part.get('waits_for_gpu'))
        if error := part.get('error', '').strip():
            words = [f'FAILED: {error.splitlines()[-1]}']
        others.append(f'| {name} | {", ".join(words)[:400]} | {part.get("seconds", 0):.0f} |')
    return '\n'.join(lines + others) + '\n'


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('--output', required=True, type=Path, metavar='OUT', help='output folder')
    add('--only', nargs='+', default=[''], metavar='X', help='letters of parts, such as a c')
    late = 'time limit; parts that have not begun by then are skipped'
    add('--minutes', default=9.2, type=float, metavar='N', help=late)
    add('--part', help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> int:
    together, alone = parts()
    if args.part:
        result = (together | alone)[args.part](args.output)
        replace_file(args.output / 'result.json', json.dumps(result))
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    query = ['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader']
    gpus = subprocess.check_output(query, text=True).splitlines() if ON_GPU else []
    found = {'commit': code_version(), 'date': time.strftime('%Y-%m-%d'), 'parts': {}}
    found['environment'] = environment(gpus=gpus, threads=torch.get_num_threads())
    end = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as root:
        for group, share, workers in ((together, 0.6, 5 if ON_GPU else 2), (alone, 0.2, 1)):
            names = [name for name in group if name.startswith(tuple(args.only))]

            def run(name: str, limit: float = 60 * args.minutes * share) -> dict:
                return run_part(name, Path(root), min(limit, end - time.monotonic()))

            with ThreadPoolExecutor(workers) as pool:
                for name, part in zip(names, pool.map(run, names), strict=True):
                    found['parts'][name] = part
                    replace_file(args.output / 'gpu_check.json', json.dumps(found, indent=1))
                    replace_file(args.output / 'gpu_check.md', table(found))
                    print(f'{name}: {part["seconds"]:.0f} s', flush=True)
    print(table(found))
    return int(any(part.get('error') for part in found['parts'].values()))


if __name__ == '__main__':
    sys.exit(main(parse_args()))

"""Check and measure this project on one GPU, in calls of at most 9 minutes.

bash tools/gpu_check.sh OUT --only a b f g h i j    checks, while the compiler fills its cache
bash tools/gpu_check.sh OUT --only c d e            steps, which find the compiled code in OUT

Each part runs in its own process with a time limit, and a failed part does not stop the others.
Checks run several at a time, and measurements run alone. On a CPU everything is tiny.
OUT/gpu_check.json and OUT/gpu_check.md are updated after each part, and keep the parts of earlier
calls at the same commit on the same machine.
"""

import argparse
import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.autograd import DeviceType

from config import Config
from data.packing import Settings, pack, read_source
from engine.run_record import ROOT, code_version, environment
from logger import read_metrics
from scripts.phantom import make_phantom
from system.device import describe_precision, local_device
from system.files import replace_file
from tools import benchmark

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
        'resnet18__contrastive_100ep/contrastive_pretrain__resnet18__img224__simclr_100ep',
        'resnet18__demo/contrastive_pretrain__resnet18__img64__simclr_demo',
    ),
    'small': (
        'swin_tiny__chexpert_100ep/simmim_pretrain__swin_tiny__img192_window6__chexpert_100ep',
        TINY,
    ),
}
CLASSES = {  # class of kernels -> regular expression of their names; the first that fits
    'attention': 'window_attention|fmha|flash|sdpa|scaled_dot_product',
    'matrix products': 'nvjet|gemm|cutlass|cublas|splitK|wgrad|dgrad|fprop|addmm|aten::b?mm',
    'optimizer and norm of gradients': 'multi_tensor|adam|lpnorm|foreach',
    'normalisation': 'layer_norm|batch_norm',
    'GELU': 'gelu',
    'sums': 'reduce_kernel|aten::sum',
    'copies and casts': 'memcpy|Memset|copy|clone|cat',
    'other': '',
}
MEASURED = {'swin': 'c', 'vit': 'c', 'finetune': 'd', 'mae': 'e', 'contrastive': 'e'}
BATCH_SIZE = 128
AT_ONCE = 5 if ON_GPU else 2  # the five largest parts together need about 76 GB
ALONE = 'cdef'  # letters of the parts that measure time
SECONDS_ON_GPU = 65
SECONDS_PER_PART = SECONDS_ON_GPU if ON_GPU else 10  # left to each of the parts that run alone


def training_args(name: str, batch_size: int, *opts: object) -> argparse.Namespace:
    """Return arguments of `benchmark` for an entry of CONFIGS."""
    stage = name if name in ('finetune', 'contrastive') else 'simmim'
    if stage == 'contrastive' and ON_GPU:
        opts = ('MODEL.TIMM.NAME', 'resnet50', *opts)
    cfg, steps = f'configs/{CONFIGS[name][0 if ON_GPU else 1]}.yaml', 10 if ON_GPU else 1
    size = batch_size if ON_GPU else 16
    return argparse.Namespace(
        cfg=cfg, stage=stage, batch_size=size, opts=list(opts), change=[], steps=steps
    )


def run_steps(folder: Path, name: str) -> dict:
    """Measure training steps of the published code and ours."""
    args = training_args(name, BATCH_SIZE)
    return measure(benchmark.training_cases(args), benchmark.training_config(args, []))


def measure(cases: dict[str, benchmark.Case], config: Config) -> dict:
    """Measure the cases in turns, and say with what the steps of 'ours' computed."""
    with recorded(benchmark.LOGGER) as lines:
        rows = benchmark.measure(cases, repeats=5 if ON_GPU else 1)
    compiled = any(' was compiled ' in line for line in lines)
    compiled &= not any(' is not compiled' in line for line in lines)
    precision = describe_precision(config, local_device()).removeprefix('precision ')
    found = {'rows': rows, 'values': {'compiled': compiled, 'precision': precision}, 'log': lines}
    found |= {'waits_for_gpu': waits_for_gpu(cases['ours']), 'kernels': {}, 'kernel_classes': {}}
    for key, case in cases.items():
        of_two = kernels(partial(case, 2))
        steps = [(name, time / 2, count / 2) for name, (time, count) in of_two.items()]
        found['kernels'][key] = steps
        found['kernel_classes'][key] = classes(of_two)
    return found


def classes(kernels: dict[str, tuple[float, int]]) -> dict[str, tuple[float, float]]:
    """Return milliseconds and launches of a step for each class of kernels of two steps."""
    found = {name: (0.0, 0.0) for name in CLASSES}
    for kernel, (microseconds, count) in kernels.items():
        name = next(name for name, words in CLASSES.items() if re.search(words, kernel))
        milliseconds, launches = found[name]
        found[name] = milliseconds + microseconds / 2000, launches + count / 2
    return found


@contextlib.contextmanager
def recorded(logger: logging.Logger) -> Iterator[list[str]]:
    """Collect the messages of a logger, such as whether the model was compiled."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def compile_steps(folder: Path, name: str) -> dict:
    """Fill the compiler's cache."""
    start = time.perf_counter()
    with recorded(benchmark.LOGGER) as lines:
        benchmark.training_cases(training_args(name, BATCH_SIZE))['ours'](1)
    return {'values': {'first turn, s': time.perf_counter() - start}, 'log': lines}


def kernels(case: benchmark.Case) -> dict[str, tuple[float, int]]:
    """Return microseconds and launches of kernels (operators on a CPU), the slowest first."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] * ON_GPU
    with torch.profiler.profile(activities=kinds) as profile:
        case()
    key = f'self_{"device" if ON_GPU else "cpu"}_time_total'
    kind = DeviceType.CUDA if ON_GPU else DeviceType.CPU
    # Without annotations such as "Optimizer.step", which contain kernels.
    times, launches = Counter(), Counter()
    for event in profile.key_averages():
        if event.device_type == kind and not event.is_user_annotation:
            times[event.key[:80]] += getattr(event, key)
            launches[event.key[:80]] += event.count
    return {name: (time, launches[name]) for name, time in times.most_common()}


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
    """Train for an epoch of about 300 steps from packed stores, and return the waiting time.

    The stores are links to one store of phantoms, so that an epoch is as long as with real data.
    """
    patients, copies, size, batch, workers = (
        (1200, 12, 256, 128, 8) if ON_GPU else (16, 2, 80, 8, 1)
    )
    phantom, store, output, cfg = (folder / name for name in ('phantom', 'store', 'out', 'f.yaml'))
    make_phantom(phantom, num_train=patients, num_valid=2, num_test=2, seed=0, size=size)
    pack(read_source(phantom), store, Settings(size=size))
    sources = [{'name': f's{i}', 'dataset': 'chexpert', 'path': f's{i}'} for i in range(copies)]
    for source in sources:
        shutil.copytree(store, folder / source['path'], copy_function=os.link)
    base = str(ROOT / training_args('swin', batch).cfg)
    cfg.write_text(json.dumps({'BASE': [base], 'DATA': {'SOURCES': sources}}), 'utf-8')
    command = ['main_simmim.py', '--cfg', cfg, '--data-path', folder, '--output', output]
    command += ['--tag', 'x', '--batch-size', batch, '--accumulation-steps', 1]
    command += ['--opts', 'TRAIN.EPOCHS', 2, 'TRAIN.WARMUP_EPOCHS', 1, 'DATA.VIEWS', 'all']
    command += ['EVAL.EVERY', 2, 'SAVE_FREQ', 2, 'DATA.NUM_WORKERS', workers]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
    row = read_metrics(output / 'simmim_pretrain' / 'x' / 'metrics.jsonl')[-1]
    waited, whole, rate = (row[key] for key in ('data_seconds', 'seconds', 'images_per_second'))
    steps = round(rate * whole / batch)  # of the second epoch; the first starts workers, compiles
    return {'values': {'share of time': waited / whole, 'images/s': round(rate), 'steps': steps}}


def parts() -> dict[str, Callable[[Path], dict]]:
    """Return all parts by name: functions that receive a folder and return the result."""
    runs, golden = (
        'tests/engine/test_gpu_runs.py',
        ['models', 'training'] if ON_GPU else ['training'],
    )
    golden = [f'tests/parity/test_parity_{name}.py' for name in golden]
    tests = {
        'a: GPU tests': [
            '-m',
            'gpu',
            'tests/engine/test_gpu_steps.py',
            'tests/models/test_window_kernel.py',
        ],
        'b: recorded numbers': [*golden, '-k', 'gives_recorded or short_training'],
        'b: loss curves': [runs, '-k', 'float32'],
        'g: waiting for the GPU': [runs, '-k', 'waits'],
        'h: SIGTERM and resume': [runs, '-k', 'stopped'],
        'i: two processes': [runs, '-k', 'two_processes'],
        'a: contrastive steps': [runs, '-k', 'contrastive_steps'],
    }
    found = {name: partial(run_tests, words=words) for name, words in tests.items()}
    for name, letter in MEASURED.items():
        found[f'j: compile {name}'] = partial(compile_steps, name=name)
        found[f'{letter}: {name}'] = partial(run_steps, name=name)
    return found | {'f: waiting for data': wait_for_data}


def run_part(name: str, root: Path, seconds: float) -> dict:
    """Run a part in a separate process and return the result."""
    start = time.monotonic()
    if seconds < 5:
        return {'error': 'no time was left', 'seconds': 0.0}
    folder = Path(tempfile.mkdtemp())
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
    shutil.rmtree(folder)
    return found | {'seconds': time.monotonic() - start}


def run_parts(names: list[str], root: Path, *, minutes: float) -> Iterator[tuple[str, dict]]:
    """Run parts within a time, and yield the name and result of each.

    Parts that run together leave `SECONDS_PER_PART` to each part that runs alone, and so does each
    of these to its successors.
    """
    start = time.monotonic()
    alone = [name for name in names if name[0] in ALONE]
    together = [name for name in names if name not in alone]

    def run(name: str) -> dict:
        later = len(alone)
        if name in alone:
            later -= alone.index(name) + 1
        begun = time.monotonic() - start
        seconds = 60 * minutes - SECONDS_PER_PART * later - begun
        return run_part(name, root, seconds) | {'begun': begun}

    for group, workers in ((together, AT_ONCE), (alone, 1)):
        with ThreadPoolExecutor(workers) as pool:
            yield from zip(group, pool.map(run, group), strict=True)


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
    add('--minutes', default=9.0, type=float, metavar='N', help=late)
    add('--part', help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def earlier(path: Path, found: dict) -> dict:
    """Return the parts of an earlier call at the same commit on the same machine."""
    before = json.loads(path.read_text('utf-8')) if path.is_file() else {}
    same = all(before.get(key) == found[key] for key in ('commit', 'environment'))
    return before['parts'] if same else {}


def main(args: argparse.Namespace) -> int:
    if args.part:
        result = parts()[args.part](args.output)
        replace_file(args.output / 'result.json', json.dumps(result))
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    query = ['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader']
    gpus = subprocess.check_output(query, text=True).splitlines() if ON_GPU else []
    found = {'commit': code_version(), 'date': time.strftime('%Y-%m-%d')}
    found['environment'] = environment(gpus=gpus, threads=torch.get_num_threads())
    path = args.output / 'gpu_check.json'
    found['parts'] = earlier(path, found)
    names = [name for name in parts() if name.startswith(tuple(args.only))]
    failed = False
    running = run_parts(names, args.output.resolve(), minutes=args.minutes)
    for name, part in running:
        failed |= bool(part.get('error'))
        found['parts'][name] = part
        replace_file(path, json.dumps(found, indent=1))
        replace_file(args.output / 'gpu_check.md', table(found))
        print(f'{name}: {part["seconds"]:.0f} s', flush=True)
    print(table(found))
    return int(failed)


if __name__ == '__main__':
    sys.exit(main(parse_args()))

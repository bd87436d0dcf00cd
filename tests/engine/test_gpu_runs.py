"""Whole steps and runs on a GPU: precision, waiting, resuming, and two processes.

`pytest --device cpu` runs them at tiny sizes without one. tools/gpu_check.py reports what they
record.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tiny import ROOT

from engine import loop
from logger import read_metrics
from models.contrastive import METHODS
from scripts.phantom import make_phantom
from tools import benchmark
from tools.gpu_check import CONFIGS, ON_GPU, TINY, training_args, waits_for_gpu
from utils import read_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
SMALL_CONTRASTIVE = 'configs/resnet18__demo/contrastive_pretrain__resnet18__img64__{}_demo.yaml'
EAGER = ['TRAIN.COMPILE', 'none']
# Processes that share a GPU exchange through gloo.
MAIN = """
import sys
import torch.distributed as dist
import main_simmim
from engine import launch
join = dist.init_process_group
dist.init_process_group = lambda backend, **options: join('gloo', **options)
sys.exit(launch.launch('simmim', main_simmim.main, sys.argv[1:]))
"""


def losses(*opts: object, seed: int = 0) -> torch.Tensor:
    """Losses of a Swin on eight batches, again and again, without drop path."""
    steps = 200 if ON_GPU else 6
    args = training_args('small', 64, 'TRAIN.EPOCHS', 1, 'TRAIN.WARMUP_EPOCHS', 0, 'SEED', seed)
    config = benchmark.training_config(args, ['MODEL.DROP_PATH_RATE', 0.0, *opts])
    run, state, loss_fn = benchmark.begin_run(config, 'simmim', num_batches=steps)
    batches = []
    for number in range(8):
        config = config.clone()
        config.defrost()
        config.SEED = number
        batches.append(benchmark.random_batch(config, 'simmim', run.device))
    for i in range(steps):
        loop.train_one_batch(run, state, batches[i % 8], loss_fn, i)
    return torch.stack(state.progress.waiting_losses).float().cpu()


def test_losses_are_as_near_to_float32_as_those_of_eager_bfloat16(record_property) -> None:
    """The spread of eager bfloat16 is its distance from float32, step by step, over three seeds."""
    curves, apart = {}, {'eager': [], 'ours': []}
    for seed in range(3 if ON_GPU else 1):
        exact = losses(*EAGER, 'AMP_OPT_LEVEL', 'O0', seed=seed)
        curves[f'float32, seed {seed}'] = exact.tolist()
        for name, opts in {'eager': EAGER, 'ours': []}.items():
            found = losses(*opts, 'AMP_ON_CPU', 'always', seed=seed)
            curves[f'{name}, seed {seed}'] = found.tolist()
            apart[name].append((found - exact).abs())
    means = {name: float(torch.stack(each).mean()) for name, each in apart.items()}
    record_property('mean distance from float32', json.dumps(means))
    record_property('losses', json.dumps(curves))
    assert exact[-8:].mean() < exact[:8].mean() or not ON_GPU
    assert means['ours'] <= 1.5 * means['eager']


@pytest.mark.parametrize('name', [name for name in CONFIGS if name != 'small'])
def test_no_step_of_a_full_size_model_waits(name: str) -> None:
    case = benchmark.training_cases(training_args(name, 16, 'TRAIN.COMPILE', 'none'))['ours']
    case()
    assert not waits_for_gpu(case)


@pytest.mark.parametrize('method', METHODS)
def test_compiled_contrastive_steps_learn_like_plain_ones(method: str, monkeypatch, caplog) -> None:
    cfg, curves = SMALL_CONTRASTIVE.format(method), []
    for how in ('none', 'auto'):
        opts = ['AMP_OPT_LEVEL', 'O0', 'TRAIN.COMPILE', how, 'CONTRASTIVE.BN_GROUPS', 1]
        args = argparse.Namespace(cfg=cfg, stage='contrastive', batch_size=16, opts=opts)
        config = benchmark.training_config(args, [])
        run, state, loss_fn = benchmark.begin_run(config, 'contrastive', num_batches=100)
        batch = benchmark.random_batch(config, 'contrastive', run.device)
        with caplog.at_level('INFO', benchmark.LOGGER.name):
            for i in range(10):
                loop.train_one_batch(run, state, batch, loss_fn, i)
        curves.append(torch.stack(state.progress.waiting_losses).cpu())
    assert (' was compiled ' in caplog.text) == ON_GPU
    torch.testing.assert_close(*curves, rtol=0.02, atol=0.0)


@pytest.fixture(scope='module')
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, count = tmp_path_factory.mktemp('data') / 'phantom', 40 if ON_GPU else 8
    make_phantom(folder, num_train=count, num_valid=2, num_test=2, size=80, seed=0)
    return folder


def command(data: Path, output: Path, *opts: object) -> list[str]:
    """A short pre-training of a small Swin."""
    cfg = f'configs/{TINY}.yaml'
    opts = [*opts, 'TRAIN.WARMUP_EPOCHS', 0, 'TRAIN.ACCUMULATION_STEPS', 1, 'DATA.NUM_WORKERS', 0]
    words = ['--cfg', cfg, '--data-path', data, '--output', output, '--tag', 'x', '--opts', *opts]
    return [sys.executable, '-c', MAIN, *map(str, words)]


def train(command: list[str], **more: str) -> None:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def folder_of(output: Path) -> Path:
    return output / 'simmim_pretrain' / 'x'


def difference(first: Path, second: Path, epochs: int) -> float:
    """The greatest difference of two runs' weights, as a share of the greatest weight."""
    name = f'ckpt_epoch_{epochs - 1}.pth'
    got, want = (read_checkpoint(folder_of(path) / name)['model'] for path in (first, second))
    gaps = [(got[key].double() - want[key].double()).abs().max() for key in want]
    return float(max(gaps) / max(value.double().abs().max() for value in want.values()))


def stop_in_the_second_epoch(command: list[str], output: Path) -> None:
    log = folder_of(output) / 'log_rank0.txt'
    with (output.parent / f'{output.name}.txt').open('w') as console:
        process = subprocess.Popen(command, cwd=ROOT, stdout=console, stderr=console)
        while process.poll() is None and not (log.exists() and 'Train: [2/' in log.read_text()):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75


def test_a_run_stopped_and_resumed_ends_like_others(small, tmp_path, record_property) -> None:
    """With compiled steps. On a GPU, next to the distances of whole runs from each other.

    Rounding in another order makes these distances chaotic, so three of each kind are averaged.
    """
    epochs, times = (20, 3) if ON_GPU else (2, 1)
    opts = ['TRAIN.EPOCHS', epochs, 'DATA.BATCH_SIZE', 8, 'MODEL.DROP_PATH_RATE', 0.1]
    opts += ['PRINT_FREQ', 1, 'EVAL.EVERY', epochs]
    whole, found = tmp_path / 'whole', {}
    train(command(small, whole, *opts))

    def again(output: Path) -> float:
        train(command(small, output, *opts))
        return difference(whole, output, epochs)

    def stopped(output: Path) -> float:
        stop_in_the_second_epoch(command(small, output, *opts), output)
        return again(output)

    with ThreadPoolExecutor() as pool:
        for kind in [stopped] + [again] * ON_GPU:
            folders = [tmp_path / f'{kind.__name__}{i}' for i in range(times)]
            found[kind.__name__] = pool.map(kind, folders)
    found = {name: list(distances) for name, distances in found.items()}
    record_property('difference from whole', json.dumps(found))
    apart = sum(found.get('again', [])) / times
    assert sum(found['stopped']) / times <= 2 * apart + (1e-6 if ON_GPU else 0)


def test_two_processes_on_one_device_train_like_one(small, tmp_path, record_property) -> None:
    opts = ['TRAIN.EPOCHS', 1, 'AMP_OPT_LEVEL', 'O0', 'TRAIN.COMPILE', 'none']
    train(command(small, tmp_path / 'one', *opts, 'DATA.BATCH_SIZE', 8))
    two = command(small, tmp_path / 'two', *opts, 'DATA.BATCH_SIZE', 4)
    group = {'WORLD_SIZE': '2', 'LOCAL_RANK': '0', 'MASTER_ADDR': '127.0.0.1'}
    group['MASTER_PORT'] = str(20000 + os.getpid() % 20000)
    with ThreadPoolExecutor() as pool:
        for rank in [pool.submit(train, two, RANK=rank, **group) for rank in '01']:
            rank.result()
    rows = [read_metrics(folder_of(tmp_path / name) / 'metrics.jsonl') for name in ('one', 'two')]
    one, two = ([row['loss'] for row in each if 'loss' in row] for each in rows)
    weights = difference(tmp_path / 'one', tmp_path / 'two', 1)
    record_property('difference', json.dumps({'loss': [one[-1], two[-1]], 'weights': weights}))
    assert two == pytest.approx(one, rel=1e-4)

"""What --check makes of figures: memory, disk and time, and the table of what was found."""

import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import ROOT, tiny_config

from config import Config, default_config
from engine import preflight
from engine import preflight as preflight_costs
from engine.launch import Run
from engine.train_state import TrainState
from engine.preflight import (
    Bench,
    Costs,
    Finding,
    Findings,
    Times,
    Trial,
    amount,
    checkpoint_bytes,
    duration,
    merge,
    slowest,
    table,
)
from models import build_model
from optimizer import build_optimizer


def configured(cfg: Path) -> Config:
    config = default_config()
    config.merge_from_file(cfg)
    return config


def state_of(cfg: Path, **options: object) -> TrainState:
    """Where a run of this config would start: 7 micro-batches an epoch."""
    config = configured(cfg)
    model = build_model(config, is_pretrain=True)
    optimizer = build_optimizer(config, model, logging.getLogger(), is_pretrain=True)
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    return TrainState(model, optimizer, None, scaler, 7, **options)


def costs_of(cfg: Path, *, stage: str = 'simmim', device: str = 'cpu', **options: object) -> Costs:
    run = Run(configured(cfg), stage, cfg.parent, torch.device(device), logging.getLogger(), None)
    return Costs(run, state_of(cfg, **options), Findings(), trains=True)


@pytest.mark.parametrize('optimizer', ['adamw', 'sgd'])
def test_bytes_of_a_checkpoint_are_those_that_it_will_hold(optimizer, tmp_path):
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', TRAIN={'OPTIMIZER': {'NAME': optimizer}})
    state = state_of(cfg)
    expected = checkpoint_bytes(state)
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    saved = state.contents(configured(cfg), [], finished=True)
    moments = [value for state in saved['optimizer']['state'].values() for value in state.values()]
    tensors = [*saved['model'].values(), *moments]
    assert expected == sum(v.numel() * v.element_size() for v in tensors if v is not None)


# Beside those kept: one that is being written, and in fine-tuning the best.
@pytest.mark.parametrize(
    ('stage', 'options', 'count'),
    [
        ('simmim', {}, 10 + 1),
        ('finetune', {}, 10 + 2),
        ('simmim', {'SAVE_FREQ': 4}, 4 + 1),  # after epochs 0, 4, 8 and 9
        ('simmim', {'SAVE_KEEP': 3}, 3 + 1),
        ('simmim', {'SAVE_KEEP': 30}, 10 + 1),
        ('simmim', {'TRAIN': {'SAVE_EVERY_STEPS': 3}}, 10 + 13 + 1),  # 40 steps
        ('simmim', {'TRAIN': {'SAVE_EVERY_MINUTES': 10}}, 10 + 6 + 1),  # an hour
    ],
)
def test_checkpoints_that_the_disk_must_hold(stage, options, count, tmp_path):
    train = {'EPOCHS': 10} | options.pop('TRAIN', {})
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', TRAIN=train, **options)
    costs = costs_of(cfg, stage=stage, accumulation=2)
    costs.disk(3600.0)
    assert f'up to {count} checkpoints of ' in costs.findings.found[0].found


def test_a_disk_that_would_be_nearly_full(tmp_path, monkeypatch):
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', TRAIN={'EPOCHS': 1, 'WARMUP_EPOCHS': 0})
    costs = costs_of(cfg)
    needed = 2 * checkpoint_bytes(costs.state) + 2**19 + 7 / 3 * 2**9
    for share, status in ((0.5, 'ok'), (0.97, 'warning'), (1.01, 'problem')):
        free = SimpleNamespace(free=needed / share)
        monkeypatch.setattr(shutil, 'disk_usage', lambda path, free=free: free)
        costs.disk(math.nan)
        assert costs.findings.found[-1].status == status


@pytest.mark.parametrize(
    ('available', 'status', 'largest'),
    [(300, 'ok', 11), (225, 'warning', 7), (200, 'problem', 6), (40, 'problem', 0)],
)
def test_memory_on_the_line_through_two_batches(available, status, largest, tmp_path, monkeypatch):
    """MB: 20 an image and 60 for all else; 8 images are asked for."""
    monkeypatch.setattr(preflight_costs, 'available_memory', lambda *_: available * 10**6)
    costs = costs_of(tiny_config(tmp_path / 'run.yaml', 'simmim'), device='cuda')
    costs.memory(Trial((4, 8), (140 * 10**6, 220 * 10**6), 1.0, 1.0), 8)
    finding = costs.findings.found[0]
    assert finding.status == status
    assert f'at most about {largest} would fit' in finding.found
    assert finding.found.startswith('220 MB of ')
    advice = f'take --batch-size {largest} and' if largest else 'take a smaller model, or'
    assert (advice in finding.advice) == (status != 'ok')


@pytest.mark.parametrize('available', [200, 40])
def test_memory_too_small_for_the_images_to_compare(available, tmp_path, monkeypatch):
    """More micro-batches of fewer images are another loss; so much is needed without any image."""
    monkeypatch.setattr(preflight_costs, 'available_memory', lambda *_: available * 10**6)
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim')
    costs = costs_of(cfg, stage='contrastive', device='cuda')
    costs.memory(Trial((4, 8), (140 * 10**6, 220 * 10**6), 1.0, 1.0), 8)
    advice = costs.findings.found[0].advice
    assert '--accumulation-steps' not in advice
    assert advice.endswith('a smaller model, or --use-checkpoint')
    assert ('more processes' in advice) == (available == 200)


# Memory in pieces may overflow before all of it is used.
@pytest.mark.parametrize(('available', 'largest'), [(150, 4), (900, 15)])
def test_a_batch_that_does_not_fit_the_gpu(available, largest, tmp_path, monkeypatch):
    """Then a half of it is tried, and what fits is told from that."""
    monkeypatch.setattr(preflight_costs, 'available_memory', lambda *_: available * 10**6)
    costs = costs_of(tiny_config(tmp_path / 'run.yaml', 'simmim'), device='cuda')
    bench = Bench(costs.run, costs.state, None)

    def peak(state: TrainState, batch: tuple[torch.Tensor, ...]) -> int:
        if len(batch[0]) > 5:
            raise torch.OutOfMemoryError
        return (60 + 20 * len(batch[0])) * 10**6

    monkeypatch.setattr(bench, '_peak', peak)
    trial = bench.trial((torch.zeros(16, 1),))
    assert trial.images == (2, 4)
    costs.memory(trial, 16)
    finding = costs.findings.found[0]
    assert finding.status == 'problem'
    assert finding.found.startswith(f'16 images overflow it: 380 MB of {available} MB:')
    assert f'at most about {largest} would fit (by steps over 2 and 4)' in finding.found


@pytest.mark.parametrize(('overlap', 'expected'), [(True, 10 * 0.3), (False, 10 * 0.5)])
def test_the_slower_of_loader_and_model_sets_the_pace(overlap, expected, tmp_path):
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', TRAIN={'EPOCHS': 3})
    costs = costs_of(cfg, epoch=2)
    times = Times(step=0.2, scored=0.1, read=0.3, images=4, overlap=overlap)
    validation = 5 * (0.3 if overlap else 0.4)
    assert costs.time(times, 10, 5) == pytest.approx(expected + validation)
    costs.speed(times)
    waits = '33%' if overlap else '60%'
    assert (
        f'loader 3.3 images/s, model 5.0: the model waits {waits}' in costs.findings.found[1].found
    )
    other = replace(times, step=0.5, read=0.1)
    assert slowest([times, other]) == replace(times, step=0.5, read=0.3)
    assert slowest([times, None]) is None


def test_the_worst_of_all_ranks_is_shown():
    ok, bad = Finding('disk', 'ok', 'fits'), Finding('disk', 'problem', 'too small', 'do')
    other = Finding('step', 'ok', 'fine')
    assert merge([[ok, other], [bad]]) == [
        Finding('disk', 'problem', 'rank 1: too small', 'do'), other,
    ]  # fmt: skip
    assert merge([[bad], [ok]]) == [bad]


def test_the_table_is_aligned_and_no_wider_than_a_hundred_columns():
    lines = table([
        Finding('device', 'ok', 'one GPU'),
        Finding('shared memory', 'warning', 'little ' * 30, 'take more ' * 20),
    ]).splitlines()  # fmt: skip
    assert lines[0] == 'ok       device         one GPU'
    assert lines[1].startswith('warning  shared memory  little little')
    assert all(len(line) <= 100 and line[:24].isspace() for line in lines[2:])
    assert [line[24:29] for line in lines[2:]] == ['littl', 'littl', '-> ta', '   ta', '   ta']


def test_amounts_and_durations_in_words():
    assert [amount(v) for v in (0, 1500, 150_000, 2.34e9, 1.2e12)] == [
        '0.0 kB', '1.5 kB', '150 kB', '2.3 GB', '1.2 TB',
    ]  # fmt: skip
    assert [duration(v) for v in (0.24, 90, 7200)] == ['0.2 seconds', '1.5 minutes', '2.0 hours']


def test_the_file_system_of_a_path():
    assert preflight.file_system(Path('/proc/self')) == 'proc'
    kinds = {line.split()[2] for line in Path('/proc/mounts').read_text().splitlines()}
    assert preflight.file_system(ROOT) in kinds

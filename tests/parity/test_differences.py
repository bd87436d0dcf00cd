"""Behaviour that differs from SimMIM, in whole runs."""

import contextlib
import importlib
import json
import logging
import math
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from one_epoch import five_batches, one_epoch
from PIL import Image
from tiny import ROOT, arguments, finished_run, run_folder, run_main, tiny_config
from torch import nn

from config import build_parser, default_config
from data.augmentation import TrainTransform
from data.transforms import EvalTransform
from engine import loop
from engine.launch import Process, setup_run
from logger import read_metrics
from models.model import Model
from system import distributed
from utils import read_checkpoint

pytestmark = pytest.mark.usefixtures('few_cases_select')

MODULES = sorted(
    path
    for form in ('*.py', 'data/**/*.py', 'models/**/*.py', 'evaluation/**/*.py')
    for path in ROOT.glob(form)
)


@pytest.fixture(scope='module')
def trained(phantom, tmp_path_factory) -> Path:
    """A finished run of 2 epochs in a folder for each stage. Tests work on copies."""
    root = tmp_path_factory.mktemp('trained')
    for stage in ('simmim', 'finetune'):
        finished_run(stage, phantom, root / stage)
    return root


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / 'copies'))


def test_accumulation_clips_once_logs_the_mean_and_uses_the_rest(tmp_path):
    """Five micro-batches two by two: three updates, the last from one micro-batch alone."""
    batches, weight, losses, norms = five_batches(), np.array([1.0, 2.0, 3.0]), [], []
    for group in ((0, 1), (2, 3), (4,)):
        gradient = np.zeros(3)
        for i in group:
            x = batches[i][0].double().numpy()
            losses.append(np.mean((x @ weight) ** 2))
            gradient += 2 * x.T @ (x @ weight) / len(x) / len(group)
        norms.append(np.linalg.norm(gradient))
        weight = weight - 0.1 * gradient * min(1, 5.0 / norms[-1])
    assert max(norms) > 5 > min(norms), 'clipping must matter'
    keys = {'TRAIN__ACCUMULATION_STEPS': 2, 'TRAIN__CLIP_GRAD': 5.0}
    figures, state, updates = one_epoch(tmp_path, batches, **keys)
    np.testing.assert_allclose(state.model.weight[0].detach(), weight, rtol=1e-5)
    assert figures['loss'] == pytest.approx(np.mean(losses), rel=1e-5)
    assert figures['grad_norm'] == pytest.approx(np.mean(norms), rel=1e-5)
    assert updates == [1, 3, 4]


def test_elements_of_the_gradient_are_clipped_after_its_norm(tmp_path):
    x = np.array([[4.0, -2.0, 0.5]])
    _, state, _ = one_epoch(
        tmp_path, [(torch.tensor(x).float(),)], TRAIN__CLIP_GRAD=2.0, TRAIN__CLIP_VALUE=1.0
    )
    weight = np.array([1.0, 2.0, 3.0])
    gradient = 2 * x[0] * (x[0] @ weight)
    gradient = np.clip(gradient * 2 / np.linalg.norm(gradient), -1, 1)
    assert np.abs(gradient).max() == 1 > np.abs(gradient).min()
    np.testing.assert_allclose(state.model.weight[0].detach(), weight - 0.1 * gradient, rtol=1e-5)


class Wrapped(Model):
    """Stands for DistributedDataParallel and records which forward passes exchange gradients."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.exchanging, self.exchanges = module, True, []

    @contextlib.contextmanager
    def no_sync(self):
        self.exchanging = False
        yield
        self.exchanging = True

    def forward(self, x):
        self.exchanges.append(self.exchanging)
        return self.module(x)


def test_ranks_exchange_gradients_once_per_update(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.TrainState, 'parallel', property(lambda state: state.model))
    keys = {'TRAIN__ACCUMULATION_STEPS': 2}
    _, state, _ = one_epoch(tmp_path, five_batches(), wrap=Wrapped, **keys)
    assert state.model.exchanges == [False, True, False, True, True]


def test_log_has_reduced_figures_and_enough_digits_and_waits_when_it_prints(
    tmp_path, monkeypatch, caplog
):
    """Two ranks, of which the other's loss is 1 larger; a rate that six decimals would hide."""
    calls = []

    def with_other_rank(values):
        calls.append(len(values))
        return 2 * values + 1

    monkeypatch.setattr(distributed, 'all_reduce_sum', with_other_rank)
    monkeypatch.setattr(distributed, 'world_size', lambda: 2)
    batches, own = five_batches(), torch.tensor([[1.0, 2.0, 3.0]])
    with caplog.at_level(logging.INFO, 'one_epoch'):
        figures, _, _ = one_epoch(tmp_path, batches, rate=1.2345e-9, PRINT_FREQ=3)
    losses = [((x @ own.T) ** 2).mean().item() + 0.5 for (x,) in batches]
    assert figures['loss'] == pytest.approx(np.mean(losses), rel=1e-5)
    lines = [m for m in caplog.messages if m.startswith('Train: ')]
    assert [re.search(r'\[(\d)/5\]', line)[1] for line in lines] == ['1', '4', '5']
    assert all(' lr 1.2345e-09\t' in line for line in lines)
    assert f'loss {losses[3]:.4f} ({np.mean(losses[:4]):.4f})' in lines[1]
    assert calls == [1, 3, 1]


def test_dump_and_checkpoint_hold_what_was_asked_for_and_the_dump_repeats_the_run(
    trained, tmp_path
):
    output = trained / 'simmim'
    folder = run_folder(output, 'simmim')
    dump = (folder / 'config.yaml').read_text()
    asked = yaml.safe_load(dump)
    assert (asked['OUTPUT'], asked['TAG']) == (str(output), 'default')
    assert (asked['TRAIN']['BASE_LR'], asked['TRAIN']['WARMUP_LR']) == (0.05, 1e-4)
    assert (asked['MODEL']['RESUME'], asked['TRAIN']['START_EPOCH']) == ('', 0)
    names = ['ckpt_epoch_0.pth', 'ckpt_epoch_1.pth']  # none within an epoch
    assert sorted(path.name for path in folder.glob('*.pth')) == names
    last = read_checkpoint(folder / 'ckpt_epoch_1.pth')
    assert last['config'] == dump
    cfg = str(folder / 'config.yaml')
    assert run_main('simmim', ['--cfg', cfg, '--output', str(tmp_path)]) == 0
    again = read_checkpoint(run_folder(tmp_path, 'simmim') / 'ckpt_epoch_1.pth')
    assert all(torch.equal(value, last['model'][key]) for key, value in again['model'].items())


def test_a_resumed_run_learns_at_the_rate_of_its_config(phantom, copied):
    output = copied / 'simmim'
    opts = ('--opts', 'TRAIN.EPOCHS', '3', 'TRAIN.BASE_LR', '0.02', 'TRAIN.MIN_LR', '0.001')
    opts += ('TRAIN.WEIGHT_DECAY', '0.01')
    assert run_main('simmim', arguments(output / 'simmim.yaml', phantom, output, *opts)) == 0
    folder = run_folder(output, 'simmim')
    saved = read_checkpoint(folder / 'ckpt_epoch_2.pth')
    assert [group['weight_decay'] for group in saved['optimizer']['param_groups']] == [0.01, 0.0]
    assert 'TRAIN.WEIGHT_DECAY: 0.05 -> 0.01' in (folder / 'log_rank0.txt').read_text()
    num_batches = saved['num_batches']
    base, floor, total = 0.02 * 8 / 512, 0.001 * 8 / 512, 3 * num_batches
    want = floor + (base - floor) / 2 * (1 + math.cos(math.pi * (total - 1) / total))
    records = read_metrics(folder / 'metrics.jsonl')
    assert [record['epoch'] for record in records] == [-1, 0, 1, 2]
    assert records[-1]['lr'] == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize('stage', ['simmim', 'finetune'])
def test_eval_of_nothing_is_refused_and_does_not_train(stage, phantom, tmp_path, capsys):
    cfg = tiny_config(tmp_path / 'run.yaml', stage)
    assert run_main(stage, arguments(cfg, phantom, tmp_path, '--eval')) == 2
    assert '--eval' in capsys.readouterr().out
    assert list(tmp_path.rglob('*.pth')) == []


def test_eval_takes_the_given_checkpoint_without_training_data(phantom, copied, tmp_path):
    """Also where the run's folder has a newer and a best one."""
    data = Path(shutil.copytree(phantom, tmp_path / phantom.name))
    (data / 'train.csv').unlink()
    output = copied / 'finetune'
    folder = run_folder(output, 'finetune')
    first, before = folder / 'ckpt_epoch_0.pth', sorted(folder.glob('*.pth'))
    assert folder / 'ckpt_epoch_1.pth' in before
    words = ('--eval', '--resume', str(first))
    assert run_main('finetune', arguments(output / 'finetune.yaml', data, output, *words)) == 0
    source = json.loads((folder / 'predictions_valid_eval.json').read_text())
    assert source['checkpoint'] == str(first)
    assert list(json.loads((folder / 'scores_eval.json').read_text())['valid']) == ['given']
    assert sorted(folder.glob('*.pth')) == before


def test_eval_refuses_weights_without_the_classifier(phantom, copied, tmp_path, refused):
    encoder = run_folder(copied / 'simmim', 'simmim') / 'ckpt_epoch_1.pth'
    argv = arguments(copied / 'finetune' / 'finetune.yaml', phantom, tmp_path / 'new', '--eval')
    refused('finetune', [*argv, '--pretrained', str(encoder)], encoder)


def log_of_setup(folder: Path, *opts: str) -> str:
    """Set up a run that does not train, and return its log."""
    cfg = tiny_config(folder / 'run.yaml', 'simmim')
    words = arguments(cfg, folder, folder, '--eval')
    process = Process()
    args = build_parser('simmim').parse_args(words + (['--opts', *opts] if opts else []))
    args.command = ['main_simmim.py', *words]
    with process.lock:
        setup_run(args, process)
        process.run.scalars.close()
    return (process.run.folder / 'log_rank0.txt').read_text()


def test_level_o2_is_logged_as_o1(tmp_path):
    log = log_of_setup(tmp_path, 'AMP_OPT_LEVEL', 'O2')
    assert any('O2' in line and 'O1' in line for line in log.splitlines())


def test_the_seed_sets_all_three_global_generators(tmp_path):
    def draws(seed: str) -> tuple[float, ...]:
        log_of_setup(tmp_path, 'SEED', seed)
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    first = draws('3')
    assert draws('3') == first
    assert all(a != b for a, b in zip(draws('4'), first, strict=True))


def test_small_images_are_cropped_and_resized_like_large_ones():
    config = default_config()
    config.merge_from_list(['DATA.IMG_SIZE', 32, 'AUG.COLOR_JITTER', 0.0, 'AUG.REPROB', 0.0])
    slope = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1)))

    def levels(transform: TrainTransform | EvalTransform, seed: int = 0) -> float:
        image = transform(slope, np.random.default_rng(seed)).to('cpu')
        return np.ptp(image[0].numpy()) * transform.normalize.scale[0]

    assert levels(EvalTransform(config)) == pytest.approx(252 * 224 / 256, abs=9)
    drawn = [levels(TrainTransform(config), seed) for seed in range(50)]
    assert min(drawn) < 252 * 0.4 and max(drawn) > 252 * 0.9, 'of crops of 0.08 to 1'


def test_modules_hold_no_logger_and_no_device():
    for path in MODULES:
        name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        held = vars(importlib.import_module(name.removesuffix('.__init__'))).values()
        assert not any(isinstance(v, logging.Logger | torch.device) for v in held), name

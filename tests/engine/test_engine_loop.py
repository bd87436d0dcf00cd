"""Training: steps by hand, non-finite losses, bit-exact resume, and several processes as one."""

import contextlib
import itertools
import math
import os
import pty
import re
import shutil
import socket
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from one_epoch import five_batches, one_epoch
from same_runs import (
    LAST,
    TIMING,
    assert_same_weights,
    final_state,
    last_metrics,
    untimed_curves,
)
from timm.scheduler import CosineLRScheduler
from tiny import (
    DEADLINE,
    MAE,
    SWIN,
    VIT,
    arguments,
    config_with,
    finished_run,
    killed_in_step_7,
    run_folder,
    run_main,
    start_torchrun,
    tiny_config,
    torchrun,
)
from yacs.config import CfgNode

import main_simmim
from engine.clock import Clock
from engine.loop import total_steps
from engine.parallel import share_batch_norm
from engine.train_state import Progress, WrappedModel
from logger import read_metrics
from system import distributed
from utils import read_checkpoint, save_checkpoint

RESNET = {'TYPE': 'timm', 'IN_CHANS': 1, 'DROP_PATH_RATE': 0.1, 'TIMM': {'NAME': 'resnet10t'}}


def assert_same_end(resumed: Path, whole: Path) -> None:
    """Two runs have the same weights, metrics and curves, bit for bit."""
    assert_same_weights(final_state(resumed), final_state(whole))
    assert last_metrics(resumed) == last_metrics(whole)
    assert untimed_curves(resumed) == untimed_curves(whole)


def test_the_bar_shows_the_newest_loss_in_80_columns(tmp_path, monkeypatch) -> None:
    """The loss of a batch whose log line is not due. The clock of tqdm moves 2 s with each look."""
    clock, (reader, writer) = itertools.count(step=2), pty.openpty()
    termios.tcsetwinsize(writer, (24, 80))
    monkeypatch.setattr('tqdm.std.time', lambda: next(clock))
    with open(writer, 'w') as console, monkeypatch.context() as patch:
        patch.setattr(sys, 'stdout', console)
        _, state, _ = one_epoch(tmp_path, five_batches(), rate=0.01, PRINT_FREQ=1000)
    text = b''
    with contextlib.suppress(OSError):  # the end of what was written to a closed terminal
        while part := os.read(reader, 10_000):
            text += part
    os.close(reader)
    shown = [line for line in text.decode().split('\r') if 'loss' in line]
    losses = [re.search(r'loss ([\d.]+)', line)[1] for line in shown]
    assert len(dict.fromkeys(losses)) == 5 and losses[-1] == f'{state.progress.last_loss:.4f}'
    assert all(len(line) <= 80 and len(line.split('|')[1]) >= 20 for line in shown)


@pytest.mark.parametrize(('bad', 'print_freq'), [(math.nan, 1), (math.inf, 100)])
def test_a_non_finite_loss_stops_with_its_epoch_batch_and_rate(tmp_path, bad, print_freq) -> None:
    """Batch 4 of epoch 8, from 1, has 38 batches before it, and its rate is that of batch 37."""
    batches = five_batches()
    batches[3] = (torch.full((4, 3), bad),)
    with pytest.raises(FloatingPointError, match=r'epoch 8, batch 4\b.* 3\.7000e-05;'):
        one_epoch(tmp_path, batches, rate=lambda step: step * 1e-6, PRINT_FREQ=print_freq)


def infinite_gradient(model: torch.nn.Module, batch: tuple) -> torch.Tensor:
    """Its value is finite, and for batches of sevens its gradient is 0 * inf."""
    loss = (model(batch[0]) ** 2).mean()
    return loss + (model(batch[0]) * 0).abs().sqrt().mean() if batch[0][0, 0] == 7 else loss


def test_a_non_finite_gradient_stops_at_its_step(tmp_path) -> None:
    batches = [(torch.full((4, 3), float(i == 5) * 6 + 1),) for i in range(9)]
    keys = {'TRAIN__ACCUMULATION_STEPS': 2, 'TRAIN__CLIP_GRAD': 5.0, 'PRINT_FREQ': 7}
    with pytest.raises(FloatingPointError, match=r'epoch 8, batch 6\b'):
        one_epoch(tmp_path, batches, infinite_gradient, rate=0.001, **keys)


@pytest.mark.parametrize(('has_scaler', 'bad_batch'), [(True, None), (False, 1)])
def test_norms_of_steps_that_the_scaler_skips_are_not_counted(has_scaler, bad_batch) -> None:
    norms = enumerate(torch.tensor([1.0, math.inf, 3.0]), start=1)
    progress = Progress(waiting_losses=[*torch.ones(3)], waiting_norms=[*norms])
    assert progress.flush(overflow_is_handled=has_scaler) == bad_batch
    assert not has_scaler or progress.mean_norm() == 2


def test_losses_are_means_over_the_ranks(monkeypatch) -> None:
    monkeypatch.setattr(distributed, 'world_size', lambda: 2)
    monkeypatch.setattr(distributed, 'all_reduce_sum', lambda losses: losses + torch.tensor(4.0))
    progress = Progress(waiting_losses=[*torch.tensor([1.0, 3.0])])
    progress.flush(overflow_is_handled=False)
    assert (progress.mean_loss(), progress.last_loss) == (3.0, 3.5), 'of (1 + 4)/2 and (3 + 4)/2'


def test_each_logged_value_counts_its_own_batches() -> None:
    logged = [{'a': 1.0}, {}, {'a': 3.0, 'b': 5.0}]
    waiting = [{name: torch.tensor(value) for name, value in each.items()} for each in logged]
    progress = Progress(waiting_losses=[*torch.ones(3)], waiting_logged=waiting)
    progress.flush(overflow_is_handled=False)
    assert progress.mean_logged() == {'a': 2, 'b': 5}
    resumed = Progress(**progress.numbers())
    resumed.waiting_losses, resumed.waiting_logged = [torch.tensor(1.0)], [{'b': torch.tensor(7.0)}]
    resumed.flush(overflow_is_handled=False)
    assert resumed.mean_logged() == {'a': 2, 'b': 6} and resumed.last_logged == {'b': 7}


@pytest.mark.slow
def test_no_checkpoint_is_saved_after_a_non_finite_loss(phantom, tmp_path, monkeypatch) -> None:
    loss, calls = main_simmim.reconstruction_loss, []

    def breaks_in_the_second_epoch(model: torch.nn.Module, batch: tuple) -> torch.Tensor:
        calls.append(0)
        return loss(model, batch) * (math.nan if len(calls) > 7 else 1)

    monkeypatch.setattr(main_simmim, 'reconstruction_loss', breaks_in_the_second_epoch)
    sections = {'TRAIN': {'SAVE_EVERY_STEPS': 1}, 'PRINT_FREQ': 1000, 'EVAL': {'HOLDOUT_IMAGES': 2}}
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', **sections)
    assert run_main('simmim', arguments(cfg, phantom, tmp_path)) == 2
    saved = {path.name for path in run_folder(tmp_path, 'simmim').glob('ckpt_*')}
    assert 'ckpt_epoch_0.pth' in saved
    assert not any(name.startswith('ckpt_epoch_1') for name in saved)


@pytest.fixture(scope='module')
def whole(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config and run folder of a run with a checkpoint after every step."""
    root = tmp_path_factory.mktemp('whole')
    train = {'SAVE_EVERY_STEPS': 1, 'LR_SCHEDULER': {'NAME': 'onecycle'}}
    cfg = tiny_config(root / 'run.yaml', 'simmim', TRAIN=train, EVAL={'HOLDOUT_IMAGES': 2})
    assert run_main('simmim', arguments(cfg, phantom, root)) == 0
    return cfg, run_folder(root, 'simmim')


def test_a_killed_run_resumes_bit_for_bit(whole, phantom, tmp_path) -> None:
    """Mid-epoch, with accumulation, drop path, cycled momentum, masks and a shorter last step."""
    cfg, folder = whole
    killed_in_step_7('simmim', arguments(cfg, phantom, tmp_path))
    killed = run_folder(tmp_path, 'simmim')
    assert read_checkpoint(killed / 'ckpt_epoch_1_step_2.pth')['num_batches'] % 2 == 1
    assert not (killed / 'ckpt_epoch_1.pth').exists()
    assert run_main('simmim', arguments(cfg, phantom, tmp_path)) == 0
    assert_same_end(killed, folder)
    assert [record['epoch'] for record in read_metrics(killed / 'metrics.jsonl')] == [-1, 0, 1]


def test_terms_that_a_loss_gets_within_an_epoch_are_means_of_its_rest(whole, phantom, tmp_path):
    cfg, folder = whole
    more = ['--resume', str(folder / 'ckpt_epoch_1_step_2.pth')]  # four of seven batches
    more += ['--opts', 'PRINT_FREQ', '1', 'MODEL.SIMMIM.LOSS', '{l1: 1.0, l2: 1.0}']
    assert run_main('simmim', arguments(cfg, phantom, tmp_path, *more)) == 0
    resumed = run_folder(tmp_path, 'simmim')
    for name in ('loss_l1', 'loss_l2'):
        values = [value for _, value in untimed_curves(resumed)[f'step/{name}']]
        assert len(values) == 3
        assert last_metrics(resumed)[name] == pytest.approx(np.mean(values))


@pytest.fixture(scope='module')
def two_terms(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config and run folder of an epoch whose loss has two terms."""
    root = tmp_path_factory.mktemp('terms')
    model = SWIN | {'SIMMIM': {'LOSS': {'l1': 1.0, 'l2': 1.0}}}
    train = {'EPOCHS': 1, 'SAVE_EVERY_STEPS': 1}
    folder = finished_run('simmim', phantom, root, model=model, TRAIN=train, PRINT_FREQ=1)
    return root / 'simmim.yaml', folder


@pytest.mark.parametrize(
    ('loss', 'shown', 'is_old'),
    [
        ('l1', [], False),
        ('{l2: 1.0, frequency: 0.1}', ['loss_l2', 'loss_frequency'], False),
        ('{l1: 2.0, l2: 1.0}', ['loss_l1', 'loss_l2'], False),
        ('{l1: 1.0, l2: 1.0}', ['loss_l1', 'loss_l2'], True),
    ],
)
def test_terms_of_a_loss_that_changes_within_an_epoch_are_means_of_their_batches(  # noqa: PLR0913
    loss, shown, is_old, two_terms, phantom, tmp_path
) -> None:
    """Two of four steps have other terms, also after a checkpoint that counts no terms."""
    cfg, folder = two_terms
    saved = read_checkpoint(folder / 'ckpt_epoch_0_step_2.pth')
    if is_old:
        del saved['progress']['logged_counts']
    save_checkpoint(tmp_path / 'given.pth', saved)
    more = ['--resume', str(tmp_path / 'given.pth'), '--opts', 'MODEL.SIMMIM.LOSS', loss]
    assert run_main('simmim', arguments(cfg, phantom, tmp_path, *more)) == 0
    resumed = run_folder(tmp_path, 'simmim')
    rows = untimed_curves(resumed)
    assert [tag for tag in rows if tag.startswith('step/loss_') and tag != 'step/loss_ema'] == [
        f'step/{name}' for name in shown
    ]
    record, before = last_metrics(resumed), untimed_curves(folder)
    for name in ('loss_l1', 'loss_l2', 'loss_frequency'):
        values = [value for step, value in before.get(f'step/{name}', []) if step < 4]
        values += [value for _, value in rows.get(f'step/{name}', [])]
        assert record.get(name) == (pytest.approx(np.mean(values)) if values else None), name


def test_curves_go_on_with_batches_of_another_size(whole, phantom, tmp_path) -> None:
    """An epoch then has fewer batches, so the position in the run alone would fall."""
    cfg, folder = whole
    resumed = run_folder(tmp_path, 'simmim')
    shutil.copytree(folder, resumed)
    for path in resumed.glob('ckpt_epoch_1*'):
        path.unlink()
    more = ['--batch-size', '8', '--accumulation-steps', '1']
    assert run_main('simmim', arguments(cfg, phantom, tmp_path, *more)) == 0
    (before, after), batches = map(untimed_curves, (folder, resumed)), 7
    for tag, rows in after.items():
        first = batches if tag.startswith('step/') else 1
        assert [row for row in rows if row[0] < first] == [r for r in before[tag] if r[0] < first]
        steps = [step for step, _ in rows]
        assert steps == sorted({*steps}) and steps[-1] >= first


@pytest.mark.slow
@pytest.mark.parametrize(
    ('stage', 'model', 'method'),
    [
        ('simmim', MAE, ''),
        ('finetune', VIT, ''),
        ('finetune', RESNET | {'TIMM': {'NAME': 'resnet10t', 'CHANNELS_LAST': True}}, ''),
        ('contrastive', SWIN, 'moco'),
        ('contrastive', SWIN, 'byol'),
    ],
)
def test_each_stage_resumes_bit_for_bit(stage, model, method, phantom, tmp_path) -> None:
    sections = {'TRAIN': {'SAVE_EVERY_STEPS': 2}}
    if method:
        sections['CONTRASTIVE'] = {'METHOD': method, 'QUEUE_SIZE': 32}
        sections['EVAL'] = {'HOLDOUT_IMAGES': 8}
    cfg = tiny_config(tmp_path / 'run.yaml', stage, model, **sections)
    assert run_main(stage, arguments(cfg, phantom, tmp_path / 'whole')) == 0
    whole = run_folder(tmp_path / 'whole', stage)
    stop = str(whole / 'ckpt_epoch_1_step_2.pth')
    assert run_main(stage, arguments(cfg, phantom, tmp_path / 'resumed', '--resume', stop)) == 0
    folder = run_folder(tmp_path / 'resumed', stage)
    assert_same_weights(final_state(folder), final_state(whole))
    assert last_metrics(folder) == last_metrics(whole)
    if stage == 'finetune':
        assert (folder / 'scores.json').read_text() == (whole / 'scores.json').read_text()


@pytest.mark.parametrize(
    ('model', 'options'),
    [
        pytest.param(SWIN, {'FREEZE_PROTOTYPES_STEPS': 6}, id='killed while frozen'),
        pytest.param(
            VIT,
            {'FREEZE_PROTOTYPES_STEPS': 5, 'FIRST_CROP_AREA': [0.5, 1.0]},
            id='killed after the last frozen step',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            RESNET,
            {'FREEZE_PROTOTYPES_STEPS': 7, 'LOCAL_SIZE': 24, 'WEAK_VIEW': True, 'BLUR': 0.9},
            id='batch norm, smaller crops and other views',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_swav_with_frozen_prototypes_and_small_crops_is_killed_and_resumes_bit_for_bit(
    model, options, phantom, tmp_path
) -> None:
    """The kill is in the 7th of 8 steps, after a checkpoint of the 5th."""
    options = {'METHOD': 'swav', 'NUM_PROTOTYPES': 8, 'LOCAL_CROPS': 2} | options
    sections = {'CONTRASTIVE': options, 'AUG': {'CROP_AREA': [0.3, 1.0]}}
    sections |= {'TRAIN': {'SAVE_EVERY_STEPS': 5}, 'EVAL': {'HOLDOUT_IMAGES': 8}}
    cfg = tiny_config(tmp_path / 'run.yaml', 'contrastive', model, **sections)
    killed_in_step_7('contrastive', arguments(cfg, phantom, tmp_path / 'killed'))
    killed = run_folder(tmp_path / 'killed', 'contrastive')
    assert (killed / 'ckpt_epoch_1_step_1.pth').exists() and not (killed / LAST).exists()
    for folder in ('killed', 'whole'):
        assert run_main('contrastive', arguments(cfg, phantom, tmp_path / folder)) == 0
    assert_same_end(killed, run_folder(tmp_path / 'whole', 'contrastive'))


def test_a_checkpoint_of_simmim_continues_after_its_epoch(phantom, tmp_path, refused) -> None:
    model = SWIN | {'DROP_PATH_RATE': 0.0}  # SimMIM saves no random states
    data = {'HOLDOUT_FRACTION': 0.0}
    whole = finished_run('simmim', phantom, tmp_path / 'whole', model=model, DATA=data)
    saved = read_checkpoint(whole / 'ckpt_epoch_0.pth')
    assert saved.keys() >= {'model', 'lr_scheduler', 'max_accuracy'}
    options = yaml.safe_load(saved['config'])
    del options['DATA']['HOLDOUT_FRACTION']
    theirs = {key: saved[key] for key in ('model', 'optimizer', 'max_accuracy', 'epoch')}
    schedule = CosineLRScheduler(torch.optim.SGD([torch.ones(1)], lr=1.0), 10, t_in_epochs=False)
    theirs['lr_scheduler'] = schedule.state_dict()
    torch.save(theirs | {'config': CfgNode(options)}, tmp_path / 'theirs.pth')
    cfg, start = tmp_path / 'whole' / 'simmim.yaml', str(tmp_path / 'theirs.pth')
    argv = arguments(cfg, phantom, tmp_path, '--resume', start)
    refused('simmim', [*argv, '--opts', 'DATA.HOLDOUT_FRACTION', '0.2'], 'HOLDOUT_FRACTION')
    assert run_main('simmim', argv) == 0
    assert_same_weights(final_state(run_folder(tmp_path, 'simmim')), final_state(whole))


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        (['--batch-size', '3'], ''),
        (['--opts', 'MODEL.SWIN.EMBED_DIM', '16'], '--pretrained'),
        (
            ['--opts', 'MODEL.SIMMIM.TARGET', 'hog', 'MODEL.SIMMIM.TARGET_SIZE', '8'],
            '; MODEL.SIMMIM.TARGET: pixels -> hog',
        ),
        ([], ''),  # weights alone
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(  # noqa: PLR0913
    more, words, whole, phantom, tmp_path, refused
) -> None:
    cfg, folder = whole
    path, saved = tmp_path / 'given.pth', read_checkpoint(folder / 'ckpt_epoch_0_step_1.pth')
    save_checkpoint(path, saved if more else {'model': saved['model']})
    refused('simmim', arguments(cfg, phantom, tmp_path, '--resume', str(path), *more), path, words)


def assert_close(got: object, want: object, key: str) -> None:
    if isinstance(want, dict):
        for name, value in want.items():
            assert_close(got[name], value, f'{key} {name}')
    elif want is None:  # an undefined score
        assert got is None, key
    else:
        assert got == pytest.approx(want, abs=1e-5, rel=1e-5), key


@pytest.mark.slow
def test_two_nodes_equal_one_node_with_two_processes(phantom, tmp_path) -> None:
    """The commands of docs/howto/slurm.md, one for each node, on one machine."""
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', EVAL={'HOLDOUT_IMAGES': 2})
    two = tmp_path / 'nodes'
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    meeting = ['--nnodes', '2', '--master_addr', '127.0.0.1', '--master_port', port]
    argv = arguments(cfg, phantom, two, '--batch-size', '2')
    nodes = [
        start_torchrun('simmim', argv, [*meeting, '--node_rank', str(k), '--nproc_per_node', '1'])
        for k in range(2)
    ]
    for node in nodes:
        out, err = node.communicate(timeout=DEADLINE)
        assert node.returncode == 0, out + err
    one = tmp_path / 'one'
    done = torchrun('simmim', arguments(cfg, phantom, one, '--batch-size', '2'), processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = run_folder(one, 'simmim'), run_folder(two, 'simmim')
    assert_same_weights(final_state(two), final_state(one))
    assert last_metrics(two) == last_metrics(one)


@pytest.mark.slow
@pytest.mark.parametrize(('stage', 'model'), [('simmim', SWIN), ('finetune', VIT)])
def test_two_ranks_equal_one(stage, model, phantom, tmp_path) -> None:
    """Weights, metrics and predictions; with accumulation and a split of a single image."""
    data = Path(shutil.copytree(phantom, tmp_path / phantom.name))
    header, row, *_ = (phantom / 'test.csv').read_text().splitlines()
    (data / 'test.csv').write_text(f'{header}\n{row}\n')
    # The gradient of L1 jumps where a prediction meets its target, which rounding may decide.
    model = model | {'DROP_PATH_RATE': 0.0, 'SIMMIM': {'LOSS': 'l2'}}
    sections = {'TRAIN': {'SAVE_EVERY_STEPS': 3}, 'EVAL': {'HOLDOUT_IMAGES': 3}}
    cfg = tiny_config(tmp_path / 'run.yaml', stage, model, **sections)
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert run_main(stage, arguments(cfg, data, one)) == 0
    done = torchrun(stage, arguments(cfg, data, two, '--batch-size', '2'), processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Grad strides' not in done.stderr
    one, two = run_folder(one, stage), run_folder(two, stage)

    for key, value in final_state(one)['model'].items():
        np.testing.assert_allclose(final_state(two)['model'][key], value, rtol=0, atol=1e-5)
    for got, want in zip(*(read_metrics(f / 'metrics.jsonl') for f in (two, one)), strict=True):
        for key in set(want) - TIMING:
            assert_close(got[key], want[key], key)
    if stage == 'finetune':
        for split in ('valid', 'test'):
            got, want = (
                np.genfromtxt(f / f'predictions_{split}.csv', delimiter=',', skip_header=1)
                for f in (two, one)
            )
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
        return
    # One process resumes what two have begun, in the middle of an epoch.
    argv = arguments(cfg, data, tmp_path, '--resume', str(two / 'ckpt_epoch_0_step_3.pth'))
    assert run_main(stage, argv) == 0
    for key, value in final_state(run_folder(tmp_path, stage))['model'].items():
        np.testing.assert_allclose(final_state(one)['model'][key], value, rtol=0, atol=1e-5)


def test_processes_on_cpus_train_no_batch_norm(monkeypatch) -> None:
    monkeypatch.setattr(distributed, 'world_size', lambda: 2)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match='BatchNorm1d.* one process, or on GPUs'):
        share_batch_norm(model, torch.device('cpu'))
    model[1].requires_grad_(False)
    share_batch_norm(model, torch.device('cpu'))


def test_gradients_are_clipped_in_their_own_scale(tmp_path, monkeypatch) -> None:
    """A gradient scaler, as for float16, changes no step."""
    scaler, keys = torch.amp.GradScaler, {'TRAIN__CLIP_GRAD': 0.5}
    _, want, _ = one_epoch(tmp_path, five_batches(), **keys)
    monkeypatch.setattr(torch.amp, 'GradScaler', lambda *_, **__: scaler('cpu', init_scale=2.0**10))
    _, got, _ = one_epoch(tmp_path, five_batches(), **keys)
    assert got.scaler.is_enabled()
    torch.testing.assert_close(got.module.weight, want.module.weight)


class Around(WrappedModel):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


@pytest.mark.parametrize('keeps', [True, False])
@pytest.mark.parametrize('accumulation', [1, 2])
def test_gradients_end_with_their_step_unless_a_wrapper_accumulates_them(
    accumulation, keeps, tmp_path
) -> None:
    """A parameter that a step does not use must not decay, as it would with a gradient of 0."""

    def wrap(model: torch.nn.Module) -> Around:
        wrapped = Around(model)
        wrapped.keeps_gradients = keeps
        return wrapped

    keys = {'TRAIN__ACCUMULATION_STEPS': accumulation}
    _, state, _ = one_epoch(tmp_path, five_batches(), wrap=wrap, **keys)
    assert (state.module.weight.grad is not None) == (keeps and accumulation > 1)


@pytest.mark.parametrize(('accumulation', 'steps'), [(0, 5), (1, 5), (2, 3)])
def test_the_steps_of_a_run_count_accumulated_batches_once(accumulation, steps) -> None:
    config = config_with(TRAIN__EPOCHS=4, TRAIN__ACCUMULATION_STEPS=accumulation)
    assert total_steps(config, range(5)) == 4 * steps


def test_the_log_has_the_speed_of_all_processes(tmp_path, monkeypatch, log) -> None:
    """Two processes with batches of 128 images, each of which takes half a second."""
    monkeypatch.setattr(Clock, 'mean_batch', lambda self: 0.5)
    monkeypatch.setattr(distributed, 'world_size', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: 2**30)  # not of this CPU
    one_epoch(tmp_path, five_batches(), PRINT_FREQ=2)
    lines = [line for line in log.messages if line.startswith('Train: ')]
    assert len(lines) == 3 and all(line.endswith('\t512 images/s') for line in lines)

"""Training: steps by hand, non-finite losses, bit-exact resume, and several processes as one."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from one_epoch import five_batches, one_epoch
from tiny import MAE, SWIN, VIT, arguments, run_folder, run_main, tiny_config, torchrun

import main_simmim
from engine import distributed, loop
from engine.train_state import Progress
from logger import read_metrics
from utils import read_checkpoint, save_checkpoint

TIMING = {'seconds', 'data_seconds', 'images_per_second'}


def final_state(folder: Path) -> dict:
    return read_checkpoint(folder / 'ckpt_epoch_1.pth')


def assert_same_weights(got: dict, want: dict) -> None:
    """Weights and moments of the optimizer are equal bit for bit."""
    assert got['model'].keys() == want['model'].keys()
    for key, value in want['model'].items():
        assert torch.equal(got['model'][key], value), key
    for index, moments in want['optimizer']['state'].items():
        for name, value in moments.items():
            assert torch.equal(got['optimizer']['state'][index][name], value), (index, name)


def last_metrics(folder: Path) -> dict:
    values = read_metrics(folder / 'metrics.jsonl')[-1]
    return {key: value for key, value in values.items() if key not in TIMING}


def dies_in_step(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = loop._optimizer_step, []

    def counted(*args: object) -> None:
        calls.append(0)
        if len(calls) == number:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(loop, '_optimizer_step', counted)


# Non-finite losses


@pytest.mark.parametrize(('bad', 'print_freq'), [(math.nan, 1), (math.inf, 100)])
def test_a_non_finite_loss_stops_with_its_epoch_and_batch(tmp_path, bad, print_freq) -> None:
    batches = five_batches()
    batches[3] = (torch.full((4, 3), bad),)
    with pytest.raises(FloatingPointError, match=r'epoch 7, batch 3\b.*2\.5000e-05'):
        one_epoch(tmp_path, batches, rate=2.5e-5, PRINT_FREQ=print_freq)


def infinite_gradient(model: torch.nn.Module, batch: tuple) -> torch.Tensor:
    """Its value is finite, and for batches of sevens its gradient is 0 * inf."""
    loss = (model(batch[0]) ** 2).mean()
    return loss + (model(batch[0]) * 0).abs().sqrt().mean() if batch[0][0, 0] == 7 else loss


def test_a_non_finite_gradient_stops_at_its_step(tmp_path) -> None:
    batches = [(torch.full((4, 3), float(i == 5) * 6 + 1),) for i in range(9)]
    keys = {'TRAIN__ACCUMULATION_STEPS': 2, 'TRAIN__CLIP_GRAD': 5.0, 'PRINT_FREQ': 7}
    with pytest.raises(FloatingPointError, match=r'epoch 7, batch 5\b'):
        one_epoch(tmp_path, batches, infinite_gradient, rate=0.001, **keys)


def test_a_skipped_step_leaves_no_trace(tmp_path) -> None:
    batches, keys = five_batches(), {'TRAIN__ACCUMULATION_STEPS': 2, 'TRAIN__ON_NAN': 'skip'}
    bad = [*batches[:3], (torch.full((4, 3), math.nan),), batches[4]]
    figures, state, updates = one_epoch(tmp_path, bad, PRINT_FREQ=2, **keys)
    want, without, _ = one_epoch(tmp_path, [*batches[:2], batches[4]], **keys)
    for key, value in without.module.state_dict().items():  # buffers included
        assert torch.equal(state.module.state_dict()[key], value), key
    assert (figures['loss'], figures['grad_norm']) == (want['loss'], want['grad_norm'])
    assert (figures['skipped_steps'], want['skipped_steps']) == (1, 0)
    assert updates == [1, 3, 4], 'the schedule continues'


def test_too_many_skipped_steps_stop_the_run(tmp_path) -> None:
    batches = [(torch.full((4, 3), math.nan),)] * 5
    with pytest.raises(FloatingPointError, match='TRAIN.NAN_LIMIT 2'):
        one_epoch(tmp_path, batches, TRAIN__ON_NAN='skip', TRAIN__NAN_LIMIT=2)


def test_sudden_large_gradients_are_logged(tmp_path, caplog) -> None:
    batches = [(torch.ones(4, 3),)] * 40
    batches[30] = (torch.full((4, 3), 4.0),)  # 16 times the gradient
    one_epoch(tmp_path, batches, rate=0.0)
    (line,) = [r.message for r in caplog.records if r.levelname == 'WARNING']
    assert '16 times' in line


def test_norms_of_steps_that_the_scaler_skips_are_not_counted() -> None:
    def progress() -> Progress:
        norms, losses = torch.tensor([1.0, math.inf, 3.0]).unbind(), torch.ones(3).unbind()
        return Progress(waiting_losses=list(losses), waiting_norms=list(enumerate(norms, start=1)))

    with_scaler = progress()
    assert with_scaler.flush(overflow_is_handled=True) is None
    assert with_scaler.mean_norm() == 2
    assert progress().flush(overflow_is_handled=False) == 1


@pytest.mark.slow
def test_no_checkpoint_is_saved_after_a_non_finite_loss(phantom, tmp_path, monkeypatch) -> None:
    loss, calls = main_simmim.reconstruction_loss, []

    def breaks_in_the_second_epoch(model: torch.nn.Module, batch: tuple) -> torch.Tensor:
        calls.append(0)
        return loss(model, batch) * (math.nan if len(calls) > 7 else 1)

    monkeypatch.setattr(main_simmim, 'reconstruction_loss', breaks_in_the_second_epoch)
    sections = {'TRAIN': {'SAVE_EVERY_STEPS': 1}, 'PRINT_FREQ': 1000}
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', **sections)
    assert run_main('simmim', arguments(cfg, phantom, tmp_path)) == 2
    saved = {path.name for path in run_folder(tmp_path, 'simmim').glob('ckpt_*')}
    assert 'ckpt_epoch_0.pth' in saved
    assert not any(name.startswith('ckpt_epoch_1') for name in saved)


# Resuming


def test_a_killed_run_resumes_bit_for_bit(phantom, tmp_path, monkeypatch) -> None:
    """In the middle of an epoch, with accumulation, drop path, masks and a shorter last step."""
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', TRAIN={'SAVE_EVERY_STEPS': 2})
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'whole')) == 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        dies_in_step(7, patch)
        run_main('simmim', arguments(cfg, phantom, tmp_path / 'killed'))
    killed, whole = (run_folder(tmp_path / name, 'simmim') for name in ('killed', 'whole'))
    assert (killed / 'ckpt_epoch_1_step_2.pth').exists()
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'killed')) == 0
    assert read_checkpoint(killed / 'ckpt_epoch_1_step_2.pth')['num_batches'] % 2 == 1
    assert_same_weights(final_state(killed), final_state(whole))
    assert [record['epoch'] for record in read_metrics(killed / 'metrics.jsonl')] == [-1, 0, 1]
    assert last_metrics(killed) == last_metrics(whole)


RESUMED = [('simmim', SWIN), ('simmim', MAE), ('finetune', VIT)]


@pytest.mark.slow
@pytest.mark.parametrize(('stage', 'model'), RESUMED, ids=['swin', 'mae', 'finetune'])
def test_training_resumes_bit_for_bit_from_any_step(stage, model, phantom, tmp_path) -> None:
    cfg = tiny_config(tmp_path / 'run.yaml', stage, model, TRAIN={'SAVE_EVERY_STEPS': 1})
    assert run_main(stage, arguments(cfg, phantom, tmp_path / 'whole')) == 0
    whole = run_folder(tmp_path / 'whole', stage)
    stops = sorted(whole.glob('ckpt_epoch_*_step_*.pth'))
    assert len(stops) == 8
    for number, stop in enumerate([stops[1], stops[3], whole / 'ckpt_epoch_0.pth', stops[6]]):
        output = tmp_path / f'from_{number}'
        assert run_main(stage, arguments(cfg, phantom, output, '--resume', str(stop))) == 0
        folder = run_folder(output, stage)
        assert_same_weights(final_state(folder), final_state(whole))
        assert last_metrics(folder) == last_metrics(whole)
        if stage == 'finetune':
            got, want = (json.loads((f / 'scores.json').read_text()) for f in (folder, whole))
            assert got == want


@pytest.fixture(scope='module')
def every_step(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config and run folder of a run with a checkpoint after every step."""
    root = tmp_path_factory.mktemp('every_step')
    cfg = tiny_config(root / 'run.yaml', 'simmim', TRAIN={'SAVE_EVERY_STEPS': 1})
    assert run_main('simmim', arguments(cfg, phantom, root)) == 0
    return cfg, run_folder(root, 'simmim')


@pytest.mark.slow
def test_rates_and_lengths_are_those_of_the_config(every_step, phantom, tmp_path) -> None:
    cfg, folder = every_step
    opts = ('--opts', 'TRAIN.EPOCHS', '3', 'TRAIN.WEIGHT_DECAY', '0.01')
    argv = arguments(cfg, phantom, tmp_path, '--resume', str(folder / 'ckpt_epoch_1.pth'), *opts)
    assert run_main('simmim', argv) == 0
    folder = run_folder(tmp_path, 'simmim')
    groups = read_checkpoint(folder / 'ckpt_epoch_2.pth')['optimizer']['param_groups']
    assert [group['weight_decay'] for group in groups] == [0.01, 0.0]
    log = (folder / 'log_rank0.txt').read_text()
    assert 'TRAIN.EPOCHS: 2 -> 3' in log and 'TRAIN.WEIGHT_DECAY: 0.05 -> 0.01' in log


def without(*keys: str):
    def change(saved: dict) -> dict:
        return {key: value for key, value in saved.items() if key not in keys}

    return change


REFUSED = {
    'other length': (without(), ['--batch-size', '3']),
    'other model': (without(), ['--opts', 'MODEL.SWIN.EMBED_DIM', '16']),
    'weights alone': (without('optimizer', 'epoch'), []),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    kind, every_step, phantom, tmp_path, refused
) -> None:
    change, more = REFUSED[kind]
    cfg, folder = every_step
    path = tmp_path / 'given.pth'
    save_checkpoint(path, change(read_checkpoint(folder / 'ckpt_epoch_0_step_1.pth')))
    argv = arguments(cfg, phantom, tmp_path / 'out', '--resume', str(path), *more)
    refused('simmim', argv, path)


@pytest.mark.slow
def test_the_same_command_with_resume_does_not_restart(
    every_step, phantom, tmp_path, monkeypatch
) -> None:
    cfg, folder = every_step
    first = shutil.copy(folder / 'ckpt_epoch_0_step_2.pth', tmp_path / 'first.pth')
    argv = arguments(cfg, phantom, tmp_path, '--resume', str(first))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        dies_in_step(4, patch)
        run_main('simmim', argv)
    first.unlink()
    argv[-1] = os.path.relpath(first)
    assert run_main('simmim', argv) == 0
    run = run_folder(tmp_path, 'simmim')
    assert f'resumed from {run / "ckpt_epoch_1_step_1.pth"}' in (run / 'log_rank0.txt').read_text()
    assert_same_weights(final_state(run), final_state(folder))


# Several processes


def assert_close(got: object, want: object, key: str) -> None:
    if isinstance(want, dict):
        for name, value in want.items():
            assert_close(got[name], value, f'{key} {name}')
    elif want is None:  # an undefined score
        assert got is None, key
    else:
        assert got == pytest.approx(want, abs=1e-5, rel=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ('stage', 'model'),
    [('simmim', SWIN), ('simmim', MAE), ('finetune', VIT)],
    ids=['swin', 'mae', 'finetune'],
)
def test_two_ranks_equal_one(stage, model, phantom, tmp_path) -> None:
    """Gradients, weights, metrics and predictions; with accumulation and uncertain labels."""
    model = model | {'DROP_PATH_RATE': 0.0}
    cfg = tiny_config(tmp_path / 'run.yaml', stage, model, TRAIN={'SAVE_EVERY_STEPS': 1})
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert run_main(stage, arguments(cfg, phantom, one)) == 0
    done = torchrun(stage, arguments(cfg, phantom, two, '--batch-size', '2'), processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = run_folder(one, stage), run_folder(two, stage)

    first = [read_checkpoint(f / 'ckpt_epoch_0_step_1.pth')['optimizer'] for f in (one, two)]
    for index, moments in first[0]['state'].items():  # after one step: 0.1 times the gradient
        gradient, other = moments['exp_avg'], first[1]['state'][index]['exp_avg']
        np.testing.assert_allclose(other, gradient, rtol=0, atol=1e-5 * gradient.abs().max())
    for key, value in final_state(one)['model'].items():
        np.testing.assert_allclose(final_state(two)['model'][key], value, rtol=0, atol=1e-5)
    for got, want in zip(*(read_metrics(f / 'metrics.jsonl') for f in (two, one)), strict=True):
        for key in set(want) - TIMING:
            assert_close(got[key], want[key], key)
    if stage == 'finetune':
        got, want = (
            np.genfromtxt(f / 'predictions_valid.csv', delimiter=',', skip_header=1)[:, 1:]
            for f in (two, one)
        )
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.fixture(scope='module')
def two_ranks(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two processes with a checkpoint after every step, and nothing drawn by rank."""
    root = tmp_path_factory.mktemp('two')
    train = {'SAVE_EVERY_STEPS': 1, 'ACCUMULATION_STEPS': 1, 'WARMUP_EPOCHS': 0}
    cfg = tiny_config(
        root / 'run.yaml',
        'simmim',
        SWIN | {'DROP_PATH_RATE': 0.0},
        TRAIN=train | {'LR_SCHEDULER': {'NAME': 'step'}},
        DATA={'TRAIN_IMAGES': 32},
    )
    done = torchrun('simmim', arguments(cfg, phantom, root), 2)
    assert done.returncode == 0, done.stdout + done.stderr
    return cfg, run_folder(root, 'simmim')


@pytest.mark.slow
def test_one_process_resumes_a_run_of_two(
    two_ranks, phantom, tmp_path, refused, monkeypatch
) -> None:
    """It accumulates over two batches; three processes cannot keep the images of a step."""
    cfg, folder = two_ranks
    argv = arguments(cfg, phantom, tmp_path, '--resume', str(folder / 'ckpt_epoch_0_step_2.pth'))
    assert run_main('simmim', argv) == 0
    want, got = final_state(folder), final_state(run_folder(tmp_path, 'simmim'))
    assert (want['accumulation'], got['accumulation']) == (1, 2)
    assert (want['num_batches'], got['num_batches']) == (4, 8)
    for key, value in want['model'].items():
        torch.testing.assert_close(got['model'][key], value, rtol=1e-4, atol=1e-5)
    rates = [each['optimizer']['param_groups'][0]['lr'] for each in (want, got)]
    assert rates[0] == pytest.approx(rates[1])
    with monkeypatch.context() as patch:
        patch.setattr(distributed, 'world_size', lambda: 3)
        argv = arguments(cfg, phantom, tmp_path / '3', '--resume', argv[-1])
        refused('simmim', argv, '--accumulation-steps')


@pytest.mark.slow
def test_gradients_may_be_exchanged_in_half_precision(phantom, tmp_path) -> None:
    """After the first step of AdamW the first moment is 0.1 times the gradient."""
    train = {'SAVE_EVERY_STEPS': 1, 'EPOCHS': 1, 'WARMUP_EPOCHS': 0, 'CLIP_GRAD': 0.0}
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', SWIN | {'DROP_PATH_RATE': 0.0}, TRAIN=train)
    gradients = {}
    for kind in ('float32', 'bfloat16'):
        options = ['--batch-size', '2', '--opts', 'TRAIN.GRADIENT_EXCHANGE', kind]
        done = torchrun('simmim', arguments(cfg, phantom, tmp_path / kind, *options), processes=2)
        assert done.returncode == 0, done.stdout + done.stderr
        saved = read_checkpoint(run_folder(tmp_path / kind, 'simmim') / 'ckpt_epoch_0_step_1.pth')
        gradients[kind] = [10 * one['exp_avg'] for one in saved['optimizer']['state'].values()]
    for exact, rounded in zip(*gradients.values(), strict=True):
        # 0.1 and 10 are not powers of 2, so the rounding is not exact.
        torch.testing.assert_close(rounded, rounded.bfloat16().float(), rtol=1e-6, atol=0)
        scale = exact.abs().max()
        torch.testing.assert_close(rounded, exact, rtol=2**-7, atol=2**-7 * scale)


@pytest.mark.slow
def test_splits_with_fewer_images_than_ranks_are_scored(phantom, tmp_path) -> None:
    data = tmp_path / 'data'
    shutil.copytree(phantom, data)
    for split in ('valid', 'test'):
        path = data / f'{split}.csv'
        path.write_text(''.join(path.read_text().splitlines(keepends=True)[:2]))
    train = {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', VIT, TRAIN=train)
    done = torchrun('finetune', arguments(cfg, data, tmp_path / 'out'), processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = run_folder(tmp_path / 'out', 'finetune')
    for split in ('valid', 'test', 'holdout'):
        assert (folder / f'predictions_{split}.csv').is_file(), split

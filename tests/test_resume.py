"""A run that stops after any optimizer step goes on as if it had never stopped."""

import json
import os
from pathlib import Path

import pytest
import torch
from tiny import SWIN, VIT, arguments, run_folder, run_main, tiny_config

from engine import loop as training_step
from logger import read_metrics
from utils import read_checkpoint

CASES = [('simmim', SWIN), ('finetune', VIT)]


def final_state(folder: Path) -> dict:
    return read_checkpoint(folder / 'ckpt_epoch_1.pth')


def assert_same_weights(got: dict, want: dict) -> None:
    assert got['model'].keys() == want['model'].keys()
    for key, value in want['model'].items():
        assert torch.equal(got['model'][key], value), key
    for index, moments in want['optimizer']['state'].items():
        for name, value in moments.items():
            assert torch.equal(got['optimizer']['state'][index][name], value), (index, name)


@pytest.mark.slow
@pytest.mark.parametrize(('stage', 'model'), CASES)
def test_every_step_is_a_place_to_go_on_from(stage, model, phantom, tmp_path):
    cfg = tiny_config(tmp_path / 'run.yaml', stage, model, TRAIN={'SAVE_EVERY_STEPS': 1})
    assert run_main(stage, arguments(cfg, phantom, tmp_path / 'whole')) == 0
    whole = run_folder(tmp_path / 'whole', stage)
    stops = sorted(whole.glob('ckpt_epoch_*_step_*.pth'))
    steps = {read_checkpoint(stop)['batch'] for stop in stops}
    num_batches = read_checkpoint(stops[0])['num_batches']
    assert num_batches in steps, 'the last, shorter group of micro-batches is a step too'
    assert num_batches % 2 == 1, 'the last group must be shorter for this test to mean something'
    assert len(stops) == 2 * ((num_batches + 1) // 2)
    for number, stop in enumerate([*stops, whole / 'ckpt_epoch_0.pth']):
        output = tmp_path / f'from_{number}'
        assert run_main(stage, arguments(cfg, phantom, output, '--resume', str(stop))) == 0
        folder = run_folder(output, stage)
        assert_same_weights(final_state(folder), final_state(whole))
        got, want = (read_metrics(f / 'metrics.jsonl')[-1] for f in (folder, whole))
        timing = ('seconds', 'data_seconds', 'images_per_second')
        assert {k: v for k, v in got.items() if k not in timing} == {
            k: v for k, v in want.items() if k not in timing
        }


@pytest.mark.parametrize(('stage', 'model'), CASES)
def test_a_killed_run_goes_on_by_itself(stage, model, phantom, tmp_path, monkeypatch):
    cfg = tiny_config(tmp_path / 'run.yaml', stage, model, TRAIN={'SAVE_EVERY_STEPS': 2})
    assert run_main(stage, arguments(cfg, phantom, tmp_path / 'whole')) == 0
    step, calls = training_step._optimizer_step, []

    def dies_in_the_fifth_step(*args):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(training_step, '_optimizer_step', dies_in_the_fifth_step)
    with pytest.raises(KeyboardInterrupt):
        run_main(stage, arguments(cfg, phantom, tmp_path / 'killed'))
    monkeypatch.setattr(training_step, '_optimizer_step', step)
    assert run_main(stage, arguments(cfg, phantom, tmp_path / 'killed')) == 0
    killed, whole = (run_folder(tmp_path / name, stage) for name in ('killed', 'whole'))
    assert_same_weights(final_state(killed), final_state(whole))
    epochs = [record['epoch'] for record in read_metrics(killed / 'metrics.jsonl')]
    assert epochs == [-1, 0, 1]
    if stage == 'finetune':
        got, want = ((f / 'scores.json').read_text() for f in (killed, whole))
        assert json.loads(got) == json.loads(want)


def test_resuming_takes_rates_and_lengths_from_the_config_and_says_so(phantom, tmp_path):
    """SPEC D17: the saved schedule and groups do not come back."""
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim')
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'out')) == 0
    opts = ('--opts', 'TRAIN.EPOCHS', '3', 'TRAIN.WEIGHT_DECAY', '0.01')
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'out', *opts)) == 0
    folder = run_folder(tmp_path / 'out', 'simmim')
    groups = read_checkpoint(folder / 'ckpt_epoch_2.pth')['optimizer']['param_groups']
    assert [group['weight_decay'] for group in groups] == [0.01, 0.0]
    log = (folder / 'log_rank0.txt').read_text()
    assert 'changed since the checkpoint: TRAIN.EPOCHS: 2 -> 3' in log
    assert 'changed since the checkpoint: TRAIN.WEIGHT_DECAY: 0.05 -> 0.01' in log


@pytest.mark.slow
def test_an_explicit_checkpoint_wins_over_the_newest(phantom, tmp_path):
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim')
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'out')) == 0
    folder = run_folder(tmp_path / 'out', 'simmim')
    first = str(folder / 'ckpt_epoch_0.pth')
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'out', '--resume', first)) == 0
    assert f'resumed from {first}: epoch 1' in (folder / 'log_rank0.txt').read_text()


def test_going_on_inside_an_epoch_of_another_length_is_refused(phantom, tmp_path, capsys):
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', TRAIN={'SAVE_EVERY_STEPS': 1})
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'out')) == 0
    stop = run_folder(tmp_path / 'out', 'simmim') / 'ckpt_epoch_0_step_1.pth'
    more = ('--resume', str(stop), '--batch-size', '3')
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'other', *more)) == 2
    assert 'an epoch now has' in capsys.readouterr().out


@pytest.mark.slow
def test_the_same_command_with_a_checkpoint_goes_on_and_does_not_begin_with_it_again(
    phantom, tmp_path, monkeypatch
):
    """The checkpoint of another run, and one of its own, from which it has gone on meanwhile."""
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', TRAIN={'SAVE_EVERY_STEPS': 1})
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'out')) == 0
    folder = run_folder(tmp_path / 'out', 'simmim')
    first = folder / 'ckpt_epoch_0_step_2.pth'
    whole = final_state(folder)
    other = run_folder(tmp_path / 'other', 'simmim')
    step = training_step._optimizer_step
    for output in ('other', 'out'):
        argv, calls = arguments(cfg, phantom, tmp_path / output, '--resume', str(first)), []

        def dies_in_the_fourth_step(*args, calls=calls):
            calls.append(0)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return step(*args)

        monkeypatch.setattr(training_step, '_optimizer_step', dies_in_the_fourth_step)
        with pytest.raises(KeyboardInterrupt):
            run_main('simmim', argv)
        monkeypatch.setattr(training_step, '_optimizer_step', step)
        first.rename(tmp_path / 'away')  # as SAVE_KEEP might have removed it
        # Written in another way it is the same file.
        argv = arguments(cfg, phantom, tmp_path / output, '--resume', os.path.relpath(first))
        assert run_main('simmim', argv) == 0
        (tmp_path / 'away').rename(first)
    for run in (other, folder):
        log = (run / 'log_rank0.txt').read_text()
        begun = f'the run began with {os.path.relpath(first)}'
        assert f'{begun}: it goes on from ckpt_epoch_1_step_1.pth' in log
        assert_same_weights(final_state(run), whole)


@pytest.mark.slow
def test_fewer_epochs_than_are_done_are_refused(phantom, tmp_path, capsys, monkeypatch):
    train = {'EPOCHS': 3, 'SAVE_EVERY_STEPS': 2}
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', TRAIN=train)
    monkeypatch.setattr('same_run.is_finished', lambda folder: False)  # as if it were stopped
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'out')) == 0
    fewer = ('--opts', 'TRAIN.EPOCHS', '2')
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'out', *fewer)) == 2
    said = '{} epochs and {} micro-batches are done, more than TRAIN.EPOCHS 2'
    assert said.format(3, 0) in capsys.readouterr().out
    folder = run_folder(tmp_path / 'out', 'simmim')
    for path in folder.glob('ckpt_epoch_*.pth*'):
        if '_2_step_' not in path.name:
            path.unlink()
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'out', *fewer)) == 2
    assert said.format(2, 7) in capsys.readouterr().out

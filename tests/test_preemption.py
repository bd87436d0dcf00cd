"""A run that is asked to stop finishes its step, saves, says so and goes on as if never stopped."""

import math
import os
import signal
from types import SimpleNamespace

import pytest
from test_resume import assert_same_weights, final_state
from tiny import arguments, run_folder, run_main, tiny_config

import main_finetune
import main_simmim
from engine import launch as preemption
from engine.launch import EXIT_PREEMPTED
from utils import read_checkpoint


@pytest.fixture(scope='module')
def whole(phantom, tmp_path_factory):
    """A run of each stage that nobody stopped."""
    root = tmp_path_factory.mktemp('whole')
    for stage in ('simmim', 'finetune'):
        cfg = tiny_config(root / f'{stage}.yaml', stage)
        assert run_main(stage, arguments(cfg, phantom, root)) == 0
    return root


def at_call(number, action, function):
    """The function, with the action before its call of this number."""
    calls = []

    def wrapped(*args):
        calls.append(0)
        if len(calls) == number:
            action()
        return function(*args)

    return wrapped


def send(*signals):
    def action():
        for number in signals:
            os.kill(os.getpid(), number)

    return action


OTHERS = [pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGUSR1, signal.SIGINT)]


@pytest.mark.parametrize('number', [signal.SIGTERM, *OTHERS])
def test_a_signal_stops_after_the_step_and_the_same_command_goes_on(
    number, phantom, whole, tmp_path, monkeypatch, capfd
):
    loss = main_simmim.reconstruction_loss
    command = arguments(whole / 'simmim.yaml', phantom, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(main_simmim, 'reconstruction_loss', at_call(3, send(number), loss))
        assert run_main('simmim', command) == EXIT_PREEMPTED == 75
    folder = run_folder(tmp_path, 'simmim')
    saved = {path.name for path in folder.glob('ckpt_*.pth')}
    assert saved == {'ckpt_epoch_0_step_2.pth'}, 'micro-batches 3 and 4 are the second step'
    name = signal.Signals(number).name
    assert f'stopped by {name} and saved in epoch 0, step 2 of' in capfd.readouterr().out
    assert signal.getsignal(number) != getattr(preemption.Interruptions, '_receive', None)
    assert run_main('simmim', command) == 0
    assert_same_weights(final_state(folder), final_state(run_folder(whole, 'simmim')))


@pytest.mark.slow
def test_a_signal_in_the_validation_saves_the_epoch_whatever_the_frequency(
    phantom, whole, tmp_path, monkeypatch
):
    predict, command = main_finetune.predict, arguments(whole / 'finetune.yaml', phantom, tmp_path)
    more = ('--opts', 'TRAIN.EPOCHS', '3', 'SAVE_FREQ', '5')
    with monkeypatch.context() as patch:
        patch.setattr(main_finetune, 'predict', at_call(3, send(signal.SIGTERM), predict))
        assert run_main('finetune', [*command, *more]) == EXIT_PREEMPTED
    folder = run_folder(tmp_path, 'finetune')
    assert read_checkpoint(folder / 'ckpt_epoch_1.pth')['finished']
    assert math.isfinite(read_checkpoint(folder / 'ckpt_epoch_1.pth')['best_score'])
    assert run_main('finetune', [*command, *more]) == 0
    whole_run = tmp_path / 'whole'
    command = arguments(whole / 'finetune.yaml', phantom, whole_run, *more)
    assert run_main('finetune', command) == 0
    got, want = (
        read_checkpoint(run_folder(root, 'finetune') / 'ckpt_epoch_2.pth')
        for root in (tmp_path, whole_run)
    )
    assert_same_weights(got, want)
    assert got['best_score'] == want['best_score']


def test_the_second_interrupt_stops_at_once(phantom, whole, tmp_path, monkeypatch):
    action = send(signal.SIGINT, signal.SIGINT)
    loss = at_call(3, action, main_simmim.reconstruction_loss)
    monkeypatch.setattr(main_simmim, 'reconstruction_loss', loss)
    with pytest.raises(KeyboardInterrupt):
        run_main('simmim', arguments(whole / 'simmim.yaml', phantom, tmp_path))
    assert not list(run_folder(tmp_path, 'simmim').glob('ckpt_*'))


def test_a_checkpoint_is_written_every_so_many_minutes(phantom, whole, tmp_path, monkeypatch):
    seconds = iter(range(0, 6000, 100))  # at each look
    clock = SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr(preemption, 'time', clock)
    more = ('--opts', 'TRAIN.SAVE_EVERY_MINUTES', '3.0')
    command = arguments(whole / 'simmim.yaml', phantom, tmp_path, *more)
    assert run_main('simmim', command) == 0
    folder = run_folder(tmp_path, 'simmim')
    names = sorted(path.name for path in folder.glob('ckpt_epoch_*_step_*.pth'))
    assert names == [f'ckpt_epoch_{e}_step_{s}.pth' for e in (0, 1) for s in (2, 4)]
    assert_same_weights(final_state(folder), final_state(run_folder(whole, 'simmim')))


def test_a_signal_in_the_last_validation_leaves_the_scores_to_the_next_start(
    phantom, whole, tmp_path, monkeypatch
):
    predict, command = main_finetune.predict, arguments(whole / 'finetune.yaml', phantom, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(main_finetune, 'predict', at_call(3, send(signal.SIGTERM), predict))
        assert run_main('finetune', command) == EXIT_PREEMPTED
    folder = run_folder(tmp_path, 'finetune')
    assert not (folder / 'scores.json').exists()
    assert run_main('finetune', command) == 0
    assert_same_weights(final_state(folder), final_state(run_folder(whole, 'finetune')))
    want = run_folder(whole, 'finetune') / 'scores.json'
    assert (folder / 'scores.json').read_text() == want.read_text()

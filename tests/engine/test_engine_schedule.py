"""When checkpoints are saved, which of them is the best, and where training continues."""

import contextlib
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from one_epoch import Linear
from tiny import config_with

from config import Config
from engine.interruptions import Preempted
from engine.run import Run
from engine.saving import Saver
from engine.train_state import Progress, TrainState
from logger import ScalarLog
from utils import read_checkpoint

LOGGER = logging.getLogger('test')
BEST = 'ckpt_best.pth'


class Requests:
    """Stands for `Interruptions`: what is asked for, and what was called."""

    def __init__(self) -> None:
        self.asked = (False, False)
        self.signal = ''
        self.waits, self.num_saved = [], 0

    def due(self, *, wait: bool) -> tuple[bool, bool]:
        self.waits.append(wait)
        return self.asked

    def saved(self) -> None:
        self.num_saved += 1


def new_state(num_batches: int = 7, accumulation: int = 2, **values: object) -> TrainState:
    model = Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    updates = []
    scheduler = SimpleNamespace(step_update=updates.append, updates=updates)
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    return TrainState(model, optimizer, scheduler, scaler, num_batches, accumulation, **values)


def new_saver(folder: Path, **keys: object) -> tuple[Saver, Requests]:
    requests, scalars = Requests(), ScalarLog(folder, enabled=False)
    run = Run(config_with(**keys), 'finetune', folder, torch.device('cpu'), LOGGER, scalars)
    return Saver(run, requests), requests


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


def test_epochs_are_saved_by_save_freq_and_at_the_end_and_the_best_always(tmp_path) -> None:
    saver, requests = new_saver(tmp_path, SAVE_FREQ=3, TRAIN__EPOCHS=6)
    state = new_state()
    scores = [0.5, 0.7, 0.6, math.nan, None, 0.7]
    best_epochs = [0, 1, 1, 1, 1, 1]
    num_regular = [1, 1, 1, 2, 2, 3]
    for epoch, score in enumerate(scores):
        with torch.no_grad():
            state.model.weight.fill_(epoch)
        state.batch = 7
        saver.after_epoch(state, score)
        saver.close()
        regular = [f'ckpt_epoch_{number}.pth' for number in (0, 3, 5) if number <= epoch]
        assert files(tmp_path) == [BEST, *regular]
        best = read_checkpoint(tmp_path / BEST)
        assert best['epoch'] == best_epochs[epoch] and best['finished']
        assert (best['model']['weight'] == best_epochs[epoch]).all()
        assert best['best_score'] == scores[best_epochs[epoch]]
        assert requests.num_saved == num_regular[epoch], 'the best does not delay a regular one'
        assert requests.waits[-1], 'a signal during the validation counts'
        state.next_epoch()
    for number in (0, 3, 5):
        saved = read_checkpoint(tmp_path / f'ckpt_epoch_{number}.pth')
        assert saved['epoch'] == number and saved['finished']
        assert (saved['model']['weight'] == number).all()


@pytest.mark.parametrize('every, due', [(3, [3, 6]), (0, [])])
def test_steps_are_counted_over_epochs(tmp_path, every, due) -> None:
    """Seven batches in steps of two are four steps; the last one has a single batch."""
    saver, requests = new_saver(tmp_path, TRAIN__SAVE_EVERY_STEPS=every)
    state, found = new_state(), []
    for number in range(8):
        state.epoch, step = divmod(number, 4)
        state.batch = min(2 * step + 2, 7)
        if saver.is_due(state):
            found.append(number + 1)
            saver.save_step(state)
    saver.close()
    assert found == due
    assert requests.waits == 2 * [False, False, False, True]
    assert files(tmp_path) == ['ckpt_epoch_0_step_3.pth', 'ckpt_epoch_1_step_2.pth'][: len(due)]
    for path in tmp_path.glob('*.pth'):
        assert not read_checkpoint(path)['finished']


def test_a_request_saves_and_a_signal_also_stops(tmp_path) -> None:
    (saver, requests), state = new_saver(tmp_path), new_state(epoch=2, batch=4)
    requests.asked = (False, True)
    assert saver.is_due(state)
    saver.save_step(state)
    requests.asked = (True, False)
    state.batch = 6
    assert saver.is_due(state)
    with pytest.raises(Preempted, match=r'another process, saved in epoch 3, step 3 of 4'):
        saver.save_step(state)
    assert files(tmp_path) == ['ckpt_epoch_2_step_2.pth', 'ckpt_epoch_2_step_3.pth']
    requests.signal, state.epoch = 'SIGTERM', 3
    with pytest.raises(Preempted, match='stopped by SIGTERM'):
        saver.after_epoch(state, None)
    assert read_checkpoint(tmp_path / 'ckpt_epoch_3.pth')['finished']


def test_the_figures_of_an_epoch_by_hand() -> None:
    progress = Progress()
    assert progress.flush(overflow_is_handled=False) is None
    assert math.isnan(progress.mean_loss()) and math.isnan(progress.mean_norm())
    for losses, norms in (([4.0, 2.0], [(2, 6.0)]), ([1.0], [(1, 2.0)])):
        progress.waiting_losses += [torch.tensor(loss) for loss in losses]
        progress.waiting_norms += [(end, torch.tensor(norm)) for end, norm in norms]
        assert progress.flush(overflow_is_handled=False) is None
    ema = 0.98 * (0.98 * 4 + 0.02 * 2) + 0.02 * 1
    assert progress.numbers() == pytest.approx(
        {'loss_sum': 7, 'num_losses': 3, 'norm_sum': 8, 'num_norms': 2, 'loss_ema': ema,
         'last_loss': 1, 'last_norm': 2, 'seconds': 0, 'data_seconds': 0, 'run_batches': 0}
    )  # fmt: skip
    assert (progress.mean_loss(), progress.mean_norm()) == (7 / 3, 4)
    following = progress.next_epoch()
    assert following.loss_ema == progress.loss_ema and following.num_losses == 0


def resumed(saved, state, *, finished, processes=1, size=4, **keys) -> Config:
    """Restore `state` from a checkpoint of `saved`, which had `size` images in a batch."""
    options = {'TRAIN__OPTIMIZER__NAME': 'sgd', 'DATA__BATCH_SIZE': size}
    rng = [{'torch': torch.get_rng_state()}] * processes
    contents = saved.contents(config_with(**options), rng, finished=finished)
    config = config_with(**(options | keys))
    state.restore(contents, config, source='c.pth', logger=LOGGER)
    return config


@pytest.mark.parametrize(
    'finished, batch, position',
    [(True, 7, (4, 0)), (False, 0, (3, 0)), (False, 4, (3, 4)), (False, 7, (3, 7))],
)
def test_training_continues_where_the_checkpoint_ended(finished, batch, position) -> None:
    state, saved = new_state(), new_state(epoch=3, batch=batch, best_score=0.7)
    saved.progress.loss_sum, saved.progress.num_losses = 6.0, 3
    resumed(saved, state, finished=finished)
    assert (state.epoch, state.batch) == position
    assert state.scheduler.updates == [position[0] * 7 + position[1] - 1]
    assert (state.best_score, state.source) == (0.7, 'c.pth')
    assert state.progress.loss_sum == (0 if finished else 6)
    assert torch.equal(state.model.weight, saved.model.weight)


@pytest.mark.parametrize('before, num_batches, now', [(4, 14, 8), (7, 14, 14), (4, 15, 8)])
def test_a_step_may_be_split_into_more_batches_within_an_epoch(before, num_batches, now) -> None:
    """28 images: 7 batches of 4 in steps of two are 14 batches of 2 in steps of four.

    Of 30 images, batches of 4 leave out two.
    """
    state = new_state(num_batches, accumulation=4)
    resumed(new_state(epoch=1, batch=before), state, finished=False, DATA__BATCH_SIZE=2)
    assert (state.epoch, state.batch) == (1, now)


@pytest.mark.parametrize(
    'now, size',
    [((8, 2), 4), ((7, 1), 4), ((14, 2), 2), ((11, 4), 2)],
    ids=['more data', 'smaller steps', 'smaller batches', 'less data in small batches'],
)
def test_other_steps_or_data_are_refused_within_an_epoch_alone(now, size) -> None:
    with pytest.raises(ValueError, match=r'c\.pth.* or resume from the end of an epoch'):
        resumed(new_state(epoch=1, batch=4), new_state(*now), finished=False, DATA__BATCH_SIZE=size)
    resumed(new_state(epoch=1, batch=7), new_state(*now), finished=True, DATA__BATCH_SIZE=size)


def test_more_epochs_than_the_run_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r'4 epochs and 0 batches.*TRAIN.EPOCHS 3'):
        resumed(new_state(epoch=3), new_state(), finished=True, TRAIN__EPOCHS=3)
    state, begun = (new_state(accumulation=1, **at) for at in ({}, {'epoch': 3, 'batch': 1}))
    with pytest.raises(ValueError, match=r'3 epochs and 1 batches.*TRAIN.EPOCHS 3'):
        resumed(begun, state, finished=False, TRAIN__EPOCHS=3)
    state = new_state()
    assert state.is_done(resumed(new_state(epoch=2), state, finished=True, TRAIN__EPOCHS=3))


@pytest.mark.parametrize(
    'processes, size, accumulation, is_refused',
    [(1, 4, 2, False), (1, 4, 1, True), (2, 8, 2, False), (2, 4, 4, True), (1, 8, 1, True)],
)
def test_a_loss_that_compares_images_keeps_their_number(
    processes, size, accumulation, is_refused, log
) -> None:
    """A checkpoint of batches of 4 images a process, two a step."""
    saved = new_state(epoch=1)
    keys = {'finished': True, 'processes': processes, 'DATA__BATCH_SIZE': size}
    resumed(saved, new_state(accumulation=accumulation), **keys)
    is_larger_or_smaller = 4 * processes * 2 != size * accumulation
    assert any('learning rates' in line for line in log.messages) == is_larger_or_smaller
    refusal = pytest.raises(ValueError, match=r'c\.pth: a step had .* compares the images')
    with refusal if is_refused else contextlib.nullcontext():
        resumed(saved, new_state(accumulation=accumulation, compares_images=True), **keys)


@pytest.mark.parametrize(
    'epochs, select_on, kept', [(9, 'auto', True), (9, 'valid', False), (3, 'valid', True)]
)
def test_the_best_score_counts_until_another_score_selects(epochs, select_on, kept) -> None:
    """A run that has nothing left to train keeps its selection."""
    state, saved = new_state(), new_state(epoch=2, best_score=0.7)
    keys = {'TRAIN__EPOCHS': epochs, 'EVAL__SELECT_ON': select_on}
    resumed(saved, state, finished=True, **keys)
    assert state.best_score == (0.7 if kept else -math.inf)


def test_a_resume_names_changed_options_and_those_that_are_gone_once_each(log) -> None:
    options = {'TRAIN__OPTIMIZER__NAME': 'sgd'}
    rng = [{'torch': torch.get_rng_state()}]
    saved = new_state(epoch=1).contents(config_with(**options), rng, finished=True)
    saved['config'] = saved['config'].replace('AUG:\n', 'AUG:\n  FORMER: 3\n')
    new_state().restore(saved, config_with(**options, SEED=4), source='c.pth', logger=LOGGER)
    assert [line for line in log.messages if 'SEED' in line or 'FORMER' in line] == [
        'options of the checkpoint that no longer exist: AUG.FORMER',
        'changed since the checkpoint: SEED: 0 -> 4',
    ]

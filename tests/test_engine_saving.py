"""Saving in the background: exact copies, nothing lost on a full disk, and when a run stops."""

import errno
import gc
import logging
import math
import os
import signal
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_engine_loop import assert_same_weights, final_state
from tiny import arguments, run_folder, run_main, tiny_config

import main_finetune
import main_simmim
from engine import interruptions, saving
from engine.launch import EXIT_PREEMPTED
from engine.saving import CheckpointWriter, copy_state
from utils import find_newest_checkpoint, read_checkpoint, save_checkpoint

LOGGER = logging.getLogger('test')
BEST = 'ckpt_best.pth'


def state(value: float) -> dict:
    return {'model': {'weight': torch.full((100,), value)}}


def epoch(number: int) -> str:
    return f'ckpt_epoch_{number}.pth'


def on_disk(folder: Path) -> dict[str, float]:
    """The checkpoints with the first of their weights."""
    return {p.name: float(read_checkpoint(p)['model']['weight'][0]) for p in folder.glob('*.pth')}


def warnings(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in log.records if record.levelno >= logging.WARNING]


class Disk:
    """Replaces `save_checkpoint`: it can be full, and can wait."""

    def __init__(self) -> None:
        self.full: set[str] | bool = False  # for all files, or for these names
        self.free = threading.Event()
        self.free.set()
        self.tried = []
        self.copies = []  # weak references to what is written

    def write(self, path: Path, state: dict) -> None:
        self.tried.append(path.name)
        self.copies.append(weakref.ref(state['model']['weight']))
        assert self.free.wait(30)
        if self.full is True or (self.full and path.name in self.full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_checkpoint(path, state)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    replacement = Disk()
    monkeypatch.setattr(saving, 'save_checkpoint', replacement.write)
    return replacement


@pytest.fixture
def writer(tmp_path: Path, log: pytest.LogCaptureFixture) -> CheckpointWriter:
    return CheckpointWriter(tmp_path, LOGGER, keep=0)


# The writer


def test_the_file_has_the_state_at_the_time_of_saving(writer, disk, tmp_path) -> None:
    disk.free.clear()
    contents = state(1.0) | {'optimizer': {'state': {0: {'step': torch.ones(())}}, 'lr': [0.1]}}
    writer.save(epoch(1), contents)
    contents['model']['weight'].fill_(2.0)
    contents['model']['other'] = torch.zeros(1)
    contents['optimizer']['state'][0]['step'] += 1
    contents['optimizer']['lr'][0] = 0.2
    writer.poll()  # never waits
    assert not list(tmp_path.glob('*.pth'))
    disk.free.set()
    writer.close()
    saved = read_checkpoint(tmp_path / epoch(1))
    assert saved['optimizer'] == {'state': {0: {'step': torch.ones(())}}, 'lr': [0.1]}
    assert list(saved['model']) == ['weight'] and (saved['model']['weight'] == 1.0).all()


def test_the_file_of_a_copy_is_that_of_the_original_byte_for_byte(writer, tmp_path) -> None:
    large = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    model = OrderedDict(
        weight=large,
        tied=large.detach(),
        part=large[3:5, 7:],
        turned=large.t(),
        widened=torch.arange(3.0).expand(1000, 3),
        trained=torch.nn.Parameter(torch.ones(5)),
        half=torch.ones(3, dtype=torch.bfloat16),
        empty=torch.zeros(0, 4),
        no_dimension=torch.tensor(7),
    )
    model._metadata = OrderedDict([('', {'version': 1})])
    contents = {'model': model, 'rng': [{'torch': torch.get_rng_state()}], 'betas': (0.9, 0.95)}
    weights = copy_state(contents)['model']
    assert weights._metadata == model._metadata
    assert weights['tied'].data_ptr() == weights['weight'].data_ptr() != large.data_ptr()
    for key, value in model.items():
        assert torch.equal(weights[key], value), key
    model['trained'] = model['trained'].detach()
    writer.save(epoch(1), contents)
    writer.close()
    save_checkpoint(tmp_path / 'alike.pth', contents)
    assert (tmp_path / epoch(1)).read_bytes() == (tmp_path / 'alike.pth').read_bytes()


@pytest.mark.gpu
def test_copies_from_the_gpu_are_in_pinned_memory() -> None:
    weight = torch.arange(1e6, device='cuda').view(1000, 1000)
    contents = {'weight': weight, 'turned': weight.t(), 'half': weight[:2].bfloat16()}
    expected = {key: value.cpu() for key, value in contents.items()}
    copied = copy_state(contents)
    weight.zero_()
    for key, value in copied.items():
        assert value.device.type == 'cpu' and value.is_pinned(), key
        assert torch.equal(value, expected[key]), key


def test_a_save_waits_for_the_one_before_and_frees_its_copy(writer, disk, tmp_path) -> None:
    disk.free.clear()
    writer.save(epoch(1), state(1.0))
    second = threading.Thread(target=writer.save, args=(epoch(2), state(2.0)))
    second.start()
    assert disk.tried in ([], [epoch(1)])
    disk.free.set()
    second.join(30)
    writer.close()
    gc.collect()
    assert [copy() for copy in disk.copies] == [None, None]
    assert on_disk(tmp_path) == {epoch(1): 1.0, epoch(2): 2.0}


def test_a_failed_write_is_warned_of_once_and_repeated(
    writer, disk, tmp_path, log, monkeypatch
) -> None:
    disk.full = True
    writer.save(epoch(2), state(2.0))
    writer.flush()
    (warning,) = warnings(log)
    assert str(tmp_path / epoch(2)) in warning and os.strerror(errno.ENOSPC) in warning
    writer.poll()
    assert disk.tried == [epoch(2)]  # RETRY_SECONDS are not over
    monkeypatch.setattr(saving, 'RETRY_SECONDS', 0.0)
    writer._retry_at = 0.0
    for _ in range(3):
        writer.poll()
        writer.flush()
    assert disk.tried.count(epoch(2)) >= 3 and len(warnings(log)) == 1
    disk.full = False
    writer.close()
    assert on_disk(tmp_path) == {epoch(2): 2.0}


def test_a_later_checkpoint_replaces_a_waiting_one_but_not_the_best(writer, disk, tmp_path) -> None:
    disk.full = True
    for value in (1.0, 2.0):
        writer.save(BEST, state(value))
        writer.save(epoch(int(value)), state(value + 10))
    writer.flush()
    with pytest.raises(ValueError, match=f'{BEST}.*{epoch(2)}'):
        writer.close()
    disk.full = False
    writer.close()
    assert on_disk(tmp_path) == {BEST: 2.0, epoch(2): 12.0}


def test_old_checkpoints_are_removed_once_the_new_one_exists(tmp_path, disk, log) -> None:
    (tmp_path / f'{epoch(7)}.tmp').write_bytes(b'half')
    writer = CheckpointWriter(tmp_path, LOGGER, keep=2)
    assert not list(tmp_path.iterdir())
    for number in (1, 2, 3):
        writer.save(epoch(number), state(number), best=True)
    writer.flush()
    assert on_disk(tmp_path) == {BEST: 3.0, epoch(2): 2.0, epoch(3): 3.0}
    disk.full = True
    writer.save(epoch(4), state(4.0))
    writer.flush()
    assert on_disk(tmp_path) == {BEST: 3.0, epoch(2): 2.0, epoch(3): 3.0}


def test_a_run_that_resumed_from_an_older_checkpoint_keeps_its_own(tmp_path, log) -> None:
    for number in (4, 20):
        save_checkpoint(tmp_path / epoch(number), state(number))
    writer = CheckpointWriter(tmp_path, LOGGER, keep=1)
    writer.save(epoch(5), state(5.0))
    writer.close()
    assert on_disk(tmp_path) == {epoch(5): 5.0, epoch(20): 20.0}
    assert find_newest_checkpoint(tmp_path).name == epoch(20)


# Runs that are asked to stop


@pytest.fixture(scope='module')
def whole(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each stage that was not interrupted."""
    root = tmp_path_factory.mktemp('whole')
    for stage in ('simmim', 'finetune'):
        cfg = tiny_config(root / f'{stage}.yaml', stage)
        assert run_main(stage, arguments(cfg, phantom, root)) == 0
    return root


def at_call(number: int, action: Callable, function: Callable) -> Callable:
    """The function, with the action before its call of this number."""
    calls = []

    def wrapped(*args: object) -> object:
        calls.append(0)
        if len(calls) == number:
            action()
        return function(*args)

    return wrapped


def send(*signals: signal.Signals) -> Callable:
    def action() -> None:
        for number in signals:
            os.kill(os.getpid(), number)

    return action


@pytest.mark.slow
def test_a_signal_stops_after_the_step_and_the_same_command_resumes(
    phantom, whole, tmp_path, monkeypatch
) -> None:
    loss = main_simmim.reconstruction_loss
    command = arguments(whole / 'simmim.yaml', phantom, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(main_simmim, 'reconstruction_loss', at_call(3, send(signal.SIGUSR1), loss))
        assert run_main('simmim', command) == EXIT_PREEMPTED == 75
    folder = run_folder(tmp_path, 'simmim')
    # Batches 3 and 4 are the second step.
    assert [path.name for path in folder.glob('ckpt_*.pth')] == ['ckpt_epoch_0_step_2.pth']
    assert run_main('simmim', command) == 0
    assert_same_weights(final_state(folder), final_state(run_folder(whole, 'simmim')))


@pytest.mark.slow
def test_a_signal_during_validation_saves_the_epoch_with_its_score(
    phantom, whole, tmp_path, monkeypatch
) -> None:
    predict, command = main_finetune.predict, arguments(whole / 'finetune.yaml', phantom, tmp_path)
    more = ('--opts', 'SAVE_FREQ', '5')
    with monkeypatch.context() as patch:
        patch.setattr(main_finetune, 'predict', at_call(3, send(signal.SIGTERM), predict))
        assert run_main('finetune', [*command, *more]) == EXIT_PREEMPTED
    folder = run_folder(tmp_path, 'finetune')
    saved = read_checkpoint(folder / 'ckpt_epoch_1.pth')
    assert saved['finished'] and math.isfinite(saved['best_score'])
    assert not (folder / 'scores.json').exists()
    assert run_main('finetune', [*command, *more]) == 0
    reference = run_folder(whole, 'finetune')
    assert_same_weights(final_state(folder), final_state(reference))
    assert (folder / 'scores.json').read_text() == (reference / 'scores.json').read_text()


@pytest.mark.slow
def test_a_second_interrupt_stops_at_once(phantom, whole, tmp_path, monkeypatch) -> None:
    action = send(signal.SIGINT, signal.SIGINT)
    loss = at_call(3, action, main_simmim.reconstruction_loss)
    monkeypatch.setattr(main_simmim, 'reconstruction_loss', loss)
    with pytest.raises(KeyboardInterrupt):
        run_main('simmim', arguments(whole / 'simmim.yaml', phantom, tmp_path))
    assert not list(run_folder(tmp_path, 'simmim').glob('ckpt_*'))


@pytest.mark.slow
def test_checkpoints_are_written_by_the_clock(phantom, whole, tmp_path, monkeypatch) -> None:
    seconds = iter(range(0, 6000, 100))  # at each look
    monkeypatch.setattr(interruptions, 'time', SimpleNamespace(monotonic=lambda: next(seconds)))
    more = ('--opts', 'TRAIN.SAVE_EVERY_MINUTES', '3.0')
    assert run_main('simmim', arguments(whole / 'simmim.yaml', phantom, tmp_path, *more)) == 0
    folder = run_folder(tmp_path, 'simmim')
    names = sorted(path.name for path in folder.glob('ckpt_epoch_*_step_*.pth'))
    assert names == [f'ckpt_epoch_{e}_step_{s}.pth' for e in (0, 1) for s in (2, 4)]

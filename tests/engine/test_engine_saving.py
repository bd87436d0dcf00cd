"""Saving in the background: exact copies, nothing lost on a full disk, and when a run stops."""

import errno
import logging
import math
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mistakes import no_space
from same_runs import assert_same_weights, final_state
from tiny import VIT, arguments, run_folder, run_main, tiny_config
from torch import multiprocessing

import main_finetune
from engine import interruptions, saving
from engine.interruptions import Interruptions, Preempted
from engine.saving import CheckpointWriter
from system.tool import EXIT_PREEMPTED
from utils import read_checkpoint, save_checkpoint

LOGGER = logging.getLogger('test')
BEST = 'ckpt_best.pth'


def state(value: float) -> dict:
    return {'model': {'weight': torch.full((100,), value)}}


def epoch(number: int) -> str:
    return f'ckpt_epoch_{number}.pth'


def on_disk(folder: Path) -> dict[str, float]:
    """The checkpoints with the first of their weights."""
    return {p.name: float(read_checkpoint(p)['model']['weight'][0]) for p in folder.glob('*.pth')}


class Disk:
    """Replaces `save_checkpoint`: it can be full, and can wait."""

    def __init__(self) -> None:
        self.full = False
        self.free = threading.Event()
        self.free.set()

    def write(self, path: Path, state: dict) -> None:
        assert self.free.wait(30)
        if self.full:
            no_space()
        save_checkpoint(path, state)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    replacement = Disk()
    monkeypatch.setattr(saving, 'save_checkpoint', replacement.write)
    return replacement


@pytest.fixture
def writer(tmp_path: Path) -> CheckpointWriter:
    return CheckpointWriter(tmp_path, LOGGER, keep=0)


def test_the_file_has_the_state_at_the_time_of_saving(writer, disk, tmp_path) -> None:
    disk.free.clear()
    contents = state(1.0) | {'optimizer': {'state': {0: {'step': torch.ones(())}}, 'lr': [0.1]}}
    writer.save([epoch(1)], contents)
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


def test_failed_writes_repeat_after_a_minute(writer, disk, tmp_path, caplog, monkeypatch) -> None:
    seconds = [1000.0]
    monkeypatch.setattr(saving, 'time', SimpleNamespace(monotonic=lambda: seconds[-1]))
    disk.full = True
    writer.save([epoch(2)], state(2.0))
    writer.flush()
    assert str(tmp_path / epoch(2)) in caplog.text
    assert os.strerror(errno.ENOSPC) in caplog.text
    with pytest.raises(ValueError, match=epoch(2)):
        writer.close()
    disk.full = False
    for now, written in ((1059.9, {}), (1060.0, {epoch(2): 2.0})):
        seconds.append(now)
        writer.poll()
        writer.flush()
        assert on_disk(tmp_path) == written


def test_a_later_checkpoint_replaces_a_waiting_one_but_not_the_best(writer, disk, tmp_path) -> None:
    disk.full = True
    for value in (1.0, 2.0):
        writer.save([BEST], state(value))
        writer.save([epoch(int(value))], state(value + 10))
    writer.save([BEST], state(3.0))  # replaces no checkpoint that a run resumes from
    disk.full = False
    writer.close()
    assert on_disk(tmp_path) == {BEST: 3.0, epoch(2): 12.0}


def test_old_checkpoints_are_removed_once_the_new_one_exists(tmp_path, disk) -> None:
    (tmp_path / f'{epoch(7)}.tmp').write_bytes(b'half')
    writer = CheckpointWriter(tmp_path, LOGGER, keep=2)
    assert not list(tmp_path.iterdir())
    for number in (1, 2, 3):
        writer.save([BEST, epoch(number)], state(number))
    writer.flush()
    kept = {BEST: 3.0, epoch(2): 2.0, epoch(3): 3.0}
    assert on_disk(tmp_path) == kept
    disk.full = True
    writer.save([epoch(4)], state(4.0))
    writer.flush()
    assert on_disk(tmp_path) == kept


def test_a_second_interrupt_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Interruptions() as requests:
        assert requests.due(wait=False) == (False, False)
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.due(wait=False) == (True, False)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail('it went on')


def after_the_last_step(rank: int, folder: Path) -> None:
    """Rank 1 receives a signal. Each rank that stops makes a file."""
    store = f'file://{folder / "store"}'
    dist.init_process_group('gloo', init_method=store, rank=rank, world_size=2)
    signal.signal(signal.SIGTERM, lambda *_: (folder / f'stopped{rank}').touch())
    with Interruptions() as requests:
        assert requests.due(wait=True) == (False, False)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        assert not (folder / f'stopped{rank}').exists()
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_signal_after_the_last_step_stops_all_ranks(tmp_path) -> None:
    multiprocessing.spawn(after_the_last_step, (tmp_path,), nprocs=2)
    assert sorted(path.name for path in tmp_path.glob('stopped*')) == ['stopped0', 'stopped1']


def test_a_signal_that_has_stopped_the_training_is_not_raised_again() -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append('again'))
    with pytest.raises(Preempted, match='saved'), Interruptions() as requests:
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.due(wait=True) == (True, False)
        raise Preempted('saved')
    signal.signal(signal.SIGTERM, before)
    assert received == []


def test_checkpoints_are_saved_by_the_clock(monkeypatch) -> None:
    seconds = [1000.0]
    monkeypatch.setattr(interruptions, 'time', SimpleNamespace(monotonic=lambda: seconds[-1]))
    requests = Interruptions(save_minutes=3.0)
    for now, is_due in ((1179, False), (1180, True)):
        seconds.append(now)
        assert requests.due(wait=False) == (False, is_due)
    requests.saved()
    assert requests.due(wait=False) == (False, False)


@pytest.mark.slow
def test_a_signal_in_validation_saves_the_epoch_and_score(phantom, tmp_path, monkeypatch) -> None:
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', VIT, SAVE_FREQ=5)
    assert run_main('finetune', arguments(cfg, phantom, tmp_path / 'whole')) == 0
    command = arguments(cfg, phantom, tmp_path / 'stopped')
    predict, calls = main_finetune.predict, []

    def interrupted(*args: object) -> object:
        calls.append(0)
        if len(calls) == 3:  # before training, and after each epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(*args)

    with monkeypatch.context() as patch:
        patch.setattr(main_finetune, 'predict', interrupted)
        assert run_main('finetune', command) == EXIT_PREEMPTED == 75
    folder, whole = (run_folder(tmp_path / name, 'finetune') for name in ('stopped', 'whole'))
    saved = read_checkpoint(folder / 'ckpt_epoch_1.pth')
    assert saved['finished'] and math.isfinite(saved['best_score'])
    assert not (folder / 'scores.json').exists()
    assert run_main('finetune', command) == 0
    assert_same_weights(final_state(folder), final_state(whole))
    assert (folder / 'scores.json').read_text() == (whole / 'scores.json').read_text()

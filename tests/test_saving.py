"""The background writer of checkpoints: right copies, nothing lost on a full disk, all in words."""

import errno
import gc
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine import saving
from engine.saving import CheckpointWriter, copy_state
from utils import find_newest_checkpoint, read_checkpoint, save_checkpoint

LOGGER = logging.getLogger('test')
BEST = 'ckpt_best.pth'


def state(value: float) -> dict:
    return {'model': {'weight': torch.full((100,), value)}}


def epoch(number: int) -> str:
    return f'ckpt_epoch_{number}.pth'


def on_disk(folder: Path) -> dict[str, float]:
    """The checkpoints and the first of their weights."""
    return {p.name: float(read_checkpoint(p)['model']['weight'][0]) for p in folder.glob('*.pth')}


def messages(log: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [record.message for record in log.records if record.levelno >= level]


class Disk:
    """Stands in for writing: it can be full, and can wait."""

    def __init__(self) -> None:
        self.full: set[str] | bool = False  # for all, or for these names
        self.error = errno.ENOSPC
        self.free = threading.Event()
        self.free.set()
        self.tried = []
        self.copies = []  # weak: of what was to be written

    def write(self, path: Path, state: dict) -> None:
        self.tried.append(path.name)
        self.copies.append(weakref.ref(state['model']['weight']))
        assert self.free.wait(30)
        if self.full is True or (self.full and path.name in self.full):
            raise OSError(self.error, os.strerror(self.error))
        save_checkpoint(path, state)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    stand_in = Disk()
    monkeypatch.setattr(saving, 'save_checkpoint', stand_in.write)
    return stand_in


@pytest.fixture
def writer(tmp_path: Path, log: pytest.LogCaptureFixture) -> CheckpointWriter:
    return CheckpointWriter(tmp_path, LOGGER, keep=0)


def poll_until(writer: CheckpointWriter, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        writer.poll()


def test_what_is_written_is_the_state_at_the_time_of_saving(writer, disk, tmp_path, log) -> None:
    disk.free.clear()
    contents = state(1.0) | {'optimizer': {'state': {0: {'step': torch.ones(())}}, 'lr': [0.1]}}
    writer.save(epoch(1), contents)
    contents['model']['weight'].fill_(2.0)
    contents['model']['other'] = torch.zeros(1)
    contents['optimizer']['state'][0]['step'] += 1
    contents['optimizer']['state'][1] = {}
    contents['optimizer']['lr'][0] = 0.2
    writer.poll()
    assert not messages(log) and not list(tmp_path.glob('*.pth'))
    disk.free.set()
    poll_until(writer, lambda: bool(messages(log)))
    assert messages(log) == [f'saved {tmp_path / epoch(1)}']
    saved = read_checkpoint(tmp_path / epoch(1))
    assert saved['optimizer'] == {'state': {0: {'step': torch.ones(())}}, 'lr': [0.1]}
    assert list(saved['model']) == ['weight'] and (saved['model']['weight'] == 1.0).all()
    assert not writer.failed
    writer.close()
    assert len(messages(log)) == 1


def test_the_file_is_the_one_that_is_written_without_a_copy(writer, tmp_path) -> None:
    """Byte for byte: shared, strided, empty and scalar tensors, and the order of everything."""
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
    contents |= {'best_score': -float('inf'), 'config': 'SEED: 1\n', 'none': None, 'done': True}
    copied = copy_state(contents)
    assert copied['model']._metadata == model._metadata
    weights = copied['model']
    assert weights['tied'].data_ptr() == weights['weight'].data_ptr() != large.data_ptr()
    for key, value in model.items():
        assert torch.equal(weights[key], value), key
        assert weights[key].stride() == value.stride() and not weights[key].requires_grad
    model['trained'] = model['trained'].detach()
    writer.save(epoch(1), contents)
    writer.flush()
    written, alike = tmp_path / epoch(1), tmp_path / 'alike.pth'
    save_checkpoint(alike, contents)
    assert written.read_bytes() == alike.read_bytes()
    assert written.stat().st_size < 40_000


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
    assert copied['turned'].data_ptr() == copied['weight'].data_ptr()


def test_a_save_waits_for_the_one_before(writer, disk, tmp_path) -> None:
    disk.free.clear()
    writer.save(epoch(1), state(1.0))
    second = threading.Thread(target=writer.save, args=(epoch(2), state(2.0)))
    second.start()
    assert disk.tried in ([], [epoch(1)])
    disk.free.set()
    second.join(30)
    writer.close()
    assert disk.tried == [epoch(1), epoch(2)]
    assert on_disk(tmp_path) == {epoch(1): 1.0, epoch(2): 2.0}


def test_a_written_copy_is_let_go(writer, disk) -> None:
    gc.disable()
    try:
        writer.save(epoch(1), state(1.0))
        writer.flush()
        assert disk.copies[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_cannot_be_written_is_warned_of_once_and_tried_again(
    writer, disk, tmp_path, log, monkeypatch, number
) -> None:
    writer.save(epoch(1), state(1.0))
    writer.flush()
    disk.full, disk.error = True, number
    writer.save(epoch(2), state(2.0))
    assert not writer.failed  # not yet known
    writer.flush()
    assert writer.failed
    (warning,) = messages(log, logging.WARNING)
    start = f'{tmp_path / epoch(2)}: the checkpoint cannot be written (['
    assert warning.startswith(start) and os.strerror(number) in warning
    assert f'{epoch(1)} is still there; it is kept in memory and tried again every 60 s' in warning
    for _ in range(3):
        writer.poll()
    assert disk.tried == [epoch(1), epoch(2)]  # 60 s are not over
    monkeypatch.setattr(saving, 'RETRY_SECONDS', 0.0)
    writer._retry_at = 0.0
    poll_until(writer, lambda: disk.tried.count(epoch(2)) >= 4)
    assert len(messages(log, logging.WARNING)) == 1
    disk.full = False
    poll_until(writer, lambda: not writer.failed)
    assert messages(log)[-1] == f'saved {tmp_path / epoch(2)}'
    writer.close()
    assert on_disk(tmp_path) == {epoch(1): 1.0, epoch(2): 2.0}


def test_the_warning_says_what_is_there_to_go_on_from(writer, disk, tmp_path, log) -> None:
    disk.full = True
    writer.save(epoch(1), state(1.0))
    writer.flush()
    assert 'there is no other yet' in messages(log)[-1]
    save_checkpoint(tmp_path / BEST, state(0.0))
    writer.save(BEST, state(2.0))
    writer.flush()
    assert 'the one before of this name is still there' in messages(log)[-1]


def test_with_space_back_the_one_that_waits_is_written_before_the_next(
    writer, disk, tmp_path, log
) -> None:
    disk.full = True
    writer.save(epoch(1), state(1.0))
    writer.flush()
    disk.full = False
    writer.save(epoch(2), state(2.0))
    writer.close()
    assert disk.tried == [epoch(1), epoch(1), epoch(2)]
    assert on_disk(tmp_path) == {epoch(1): 1.0, epoch(2): 2.0}


def test_a_later_checkpoint_takes_the_place_of_one_that_waits(writer, disk, tmp_path, log) -> None:
    disk.full = True
    gc.disable()
    try:
        writer.save(epoch(1), state(1.0))
        writer.flush()
        assert disk.copies[0]() is not None
        writer.save(epoch(2), state(2.0))
        assert disk.copies[0]() is None
    finally:
        gc.enable()
    given_up = f'{tmp_path / epoch(1)} is given up: {epoch(2)} takes its place'
    assert given_up in messages(log, logging.WARNING)
    writer.flush()
    disk.full = False
    writer.close()
    assert not writer.failed
    assert on_disk(tmp_path) == {epoch(2): 2.0}


def test_no_later_epoch_takes_the_place_of_the_best(writer, disk, tmp_path, log) -> None:
    disk.full = {BEST}
    writer.save(BEST, state(1.0))
    writer.flush()
    assert writer.failed
    for number in (1, 2):
        writer.save(epoch(number), state(2.0))
        writer.flush()
        assert not writer.failed  # the newest is on disk
    with pytest.raises(ValueError, match=r'ckpt_best\.pth: the checkpoint cannot be written'):
        writer.close()
    disk.full = False
    writer.close()
    assert on_disk(tmp_path) == {BEST: 1.0, epoch(1): 2.0, epoch(2): 2.0}


def test_a_better_best_takes_the_place_of_the_best_and_epochs_wait(writer, disk, tmp_path) -> None:
    disk.full = True
    for value in (1.0, 2.0, 3.0):
        writer.save(epoch(1), state(value))
        writer.save(BEST, state(value + 10))
    writer.flush()
    assert sorted(writer._waiting) == [BEST, epoch(1)]
    disk.full = False
    writer.close()
    assert on_disk(tmp_path) == {BEST: 13.0, epoch(1): 3.0}


def test_close_tries_once_more_and_then_names_the_file(writer, disk, tmp_path) -> None:
    disk.full = True
    writer.save(epoch(1), state(1.0))
    with pytest.raises(ValueError) as caught:
        writer.close()
    assert str(caught.value) == (
        f'{tmp_path / epoch(1)}: the checkpoint cannot be written '
        '([Errno 28] No space left on device)'
    )
    assert disk.tried == [epoch(1)] * 2


def test_other_errors_are_not_taken_for_a_full_disk(writer) -> None:
    writer.save(epoch(1), {'model': {}, 'extra': threading.Lock()})
    with pytest.raises(TypeError, match='pickle'):
        writer.flush()


def test_old_checkpoints_go_once_the_new_one_is_there(tmp_path, disk, log) -> None:
    (tmp_path / f'.{epoch(7)}.tmp').write_bytes(b'half')
    writer = CheckpointWriter(tmp_path, LOGGER, keep=2)
    assert not list(tmp_path.iterdir())  # before: it may be what fills the disk
    for number in (1, 2, 3):
        writer.save(epoch(number), state(number))
        writer.save(BEST, state(number))
    writer.flush()
    assert on_disk(tmp_path) == {BEST: 3.0, epoch(2): 2.0, epoch(3): 3.0}
    assert f'removed {epoch(1)}: SAVE_KEEP is 2' in messages(log)
    disk.full = True
    writer.save(epoch(4), state(4.0))
    writer.flush()
    assert on_disk(tmp_path) == {BEST: 3.0, epoch(2): 2.0, epoch(3): 3.0}


def test_a_run_that_went_on_from_an_older_checkpoint_keeps_its_own(tmp_path, log) -> None:
    for number in (4, 20):
        save_checkpoint(tmp_path / epoch(number), state(number))
    writer = CheckpointWriter(tmp_path, LOGGER, keep=1)
    writer.save(epoch(5), state(5.0))
    writer.close()
    assert on_disk(tmp_path) == {epoch(5): 5.0, epoch(20): 20.0}
    assert find_newest_checkpoint(tmp_path).name == epoch(20)


def test_what_cannot_be_removed_is_warned_of(writer, tmp_path, log, monkeypatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(saving, 'prune', refuse)
    writer.save(epoch(1), state(1.0))
    writer.close()
    saved, warning = messages(log)
    assert saved == f'saved {tmp_path / epoch(1)}'
    assert warning.startswith('old checkpoints cannot be removed') and 'denied' in warning

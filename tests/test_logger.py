"""Log files per rank, metrics that stay valid JSON, and both on a full disk."""

import json
import logging
import math
import socket
import sys
import time
from types import SimpleNamespace

import pytest
from curves import curves
from mistakes import no_space
from PIL import Image
from tiny import config_with
from torch.utils.tensorboard import SummaryWriter

import logger as module
from engine.metric_writers import TensorBoard
from logger import DETAIL, WRITERS, ScalarLog, create_logger, read_metrics


def test_every_rank_writes_a_file_and_only_rank_0_writes_to_the_console(tmp_path, capsys):
    create_logger(tmp_path, 0, name='first').info('from rank 0')
    create_logger(tmp_path, 1, name='second').info('from rank 1')
    shown = capsys.readouterr().out
    assert 'from rank 0' in shown and 'from rank 1' not in shown
    assert 'INFO from rank 1' in (tmp_path / 'log_rank1.txt').read_text()


def test_the_console_wraps_lines_and_never_an_error(tmp_path, capsys):
    line = 'a warning about ' + ', '.join(f'/data/study{i}/view1_frontal.jpg' for i in range(9))
    log = create_logger(tmp_path, 0, name='lines')
    log.warning(line)
    log.error(line)
    log.info('long\tfields', extra=DETAIL | {'short': 'short'})
    *wrapped, error, short = capsys.readouterr().out.splitlines()
    assert max(map(len, wrapped)) <= 100 and len(wrapped) > 1
    assert ' '.join(map(str.strip, wrapped)).endswith(f'WARNING {line}')
    assert error.endswith(f'ERROR {line}') and short.endswith(' short')
    written = (tmp_path / 'log_rank0.txt').read_text().splitlines()
    assert written[0].endswith(line) and written[2].endswith('long\tfields')


def test_a_record_is_valid_json_and_in_tensorboard_whatever_its_values(tmp_path):
    scalars = ScalarLog(tmp_path)
    record = {'epoch': 3, 'loss': 0.25, 'norm': math.nan, 'auroc': {'a': 0.5, 'b': None}}
    scalars.write_epoch(record)
    scalars.write_step({'lr': 0.5}, 40)
    scalars.close()
    assert json.loads((tmp_path / 'metrics.jsonl').read_text()) == record | {'norm': None}
    found = curves(tmp_path)
    assert math.isnan(found.pop('epoch/norm')[0][1])
    by_epoch = {'epoch/loss': [(3, 0.25)], 'epoch/auroc/a': [(3, 0.5)]}
    assert found == by_epoch | {'step/lr': [(40, 0.5)]}


def train(scalars: ScalarLog, first: int, loss: float, end: int = 12) -> None:
    """Write as the loop does: three epochs of 4 batches, from batch `first` of the run on."""
    scalars.forget_from(first // 4 if first else -1, first)
    if not first:
        scalars.write_epoch({'epoch': -1, 'loss': loss})
    for step in range(first, end):
        scalars.write_step({'loss': loss}, step)
        if step % 4 == 3:
            scalars.write_epoch({'epoch': step // 4, 'loss': loss})


@pytest.mark.parametrize('seconds', [60, 0, -3600], ids=['later', 'in one second', 'clock behind'])
def test_a_resumed_run_repeats_nothing_and_loses_nothing(seconds, tmp_path, monkeypatch):
    """Within an epoch, at its end with nothing left to train, and again from an earlier one."""
    epochs, steps, now = {}, {}, 1_700_000_000
    for first, loss in ((0, 1.0), (6, 2.0), (12, 3.0), (4, 4.0)):
        now += seconds
        monkeypatch.setattr(time, 'time', lambda now=now: now)
        scalars = ScalarLog(tmp_path)  # the one before was not closed: its process was killed
        train(scalars, first, loss)
        with scalars.path.open('a') as file:
            file.write('{"epoch": 3, "lo')  # the process was killed here
        epochs |= dict.fromkeys(range(first // 4 if first else -1, 3), loss)
        steps |= dict.fromkeys(range(first, 12), loss)
        found = curves(tmp_path)
        assert found == {'epoch/loss': [*epochs.items()], 'step/loss': [*steps.items()]}
    scalars.forget_from(3, 12)
    records = read_metrics(tmp_path / 'metrics.jsonl')
    assert {record['epoch']: record['loss'] for record in records} == epochs
    assert len(records) == len(epochs)


def test_curves_follow_those_of_another_writer_whose_clock_was_ahead(tmp_path, monkeypatch):
    """Files of PyTorch's writer, also of one that counts as newest by the digits of its number."""
    for number, now in ((1, 1_900_000_000), (2, 1_899_999_999)):
        with monkeypatch.context() as patch:
            patch.setattr(time, 'time', lambda now=now: now)
            with SummaryWriter(str(tmp_path / 'tensorboard' / 'step')) as writer:
                writer.add_scalar('step/loss', number, 12 + number)
    scalars = ScalarLog(tmp_path)
    train(scalars, 12, 7.0, end=16)
    assert curves(tmp_path)['step/loss'] == [(step, 7.0) for step in range(12, 16)]


def test_weights_and_biases_receives_each_row_once(tmp_path, monkeypatch):
    """Of a run that is killed between an epoch and its image, and then resumes before it."""
    rows, refused = {}, []

    class FakeRun:
        """Merges what is logged at one number, which may not fall, as W&B does."""

        id, offline = 'id', True

        def __init__(self) -> None:
            self.step = max(rows, default=-1) + 1

        def define_metric(self, *_, **__) -> None:
            pass

        def log(self, values: dict, step: int) -> None:
            if step < self.step or rows.get(step, {}).keys() & values.keys() - {'epoch'}:
                refused.append((step, values))
            self.step = step
            rows.setdefault(step, {}).update(values)

    fake = SimpleNamespace(init=lambda **_: FakeRun(), Settings=dict, Image=str)
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    for first, end in ((0, 8), (6, 12), (12, 12)):
        scalars = ScalarLog(tmp_path, config=config_with(LOGGER=['wandb']))
        train(scalars, first, float(first), end)
    scalars.write_image('map', tmp_path / 'map.png', 3)
    assert not refused
    for axis, numbers in (('epoch', range(-1, 3)), ('step', range(12))):
        sent = [row for row in rows.values() if f'{axis}/loss' in row]
        assert [row[axis] for row in sent] == [*numbers]
    assert [row['epoch'] for row in rows.values() if 'epoch/map' in row] == [3]


@pytest.mark.parametrize('line', ['{', '7', '{"loss": 1.0}', '{"epoch": null}'])
def test_a_line_that_is_not_a_record_is_refused_by_file_and_number(line, tmp_path):
    path = tmp_path / 'metrics.jsonl'
    text = f'{{"epoch": 0}}\n{line}\n'
    path.write_text(text)
    with pytest.raises(ValueError, match='metrics.jsonl, line 2'):
        read_metrics(path)
    scalars = ScalarLog(tmp_path)
    with pytest.raises(ValueError, match='metrics.jsonl, line 2'):
        scalars.forget_from(1, 0)
    scalars.close()
    assert path.read_text() == text


def test_metrics_wait_for_space_and_keep_their_order(tmp_path, monkeypatch, log):
    scalars = ScalarLog(tmp_path, logger=logging.getLogger('records'))
    for epoch in range(6):
        with monkeypatch.context() as patch:
            if epoch in (1, 2, 4):
                patch.setattr(module, 'open', no_space, raising=False)
            scalars.write_epoch({'epoch': epoch, 'loss': float(epoch)})
    scalars.close()
    assert [r['epoch'] for r in read_metrics(scalars.path)] == list(range(6))
    (warning,) = log.messages
    assert str(scalars.path) in warning and 'No space left' in warning


def test_a_log_on_a_full_disk_does_not_end_the_run(tmp_path, capfd):
    path = tmp_path / 'log_rank0.txt'
    path.symlink_to('/dev/full')  # every write fails: No space left on device
    log = create_logger(tmp_path, 0, name='full')
    for number in range(3):
        log.info(f'line {number}')
    captured = capfd.readouterr()
    assert captured.err.count('No space left on device') == 1
    assert path.name in captured.err and 'Traceback' not in captured.err
    create_logger(tmp_path / '..', 5, name='full')  # closes the file without an error


@pytest.mark.slow
def test_weights_and_biases_offline_has_curves_images_and_files_and_resumes(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb', reason='needs the package wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setattr(socket, 'gethostname', lambda: 'name-of-this-computer')
    Image.new('L', (4, 4)).save(tmp_path / 'map.png')
    (tmp_path / 'report.html').write_text('<p>report</p>')
    config = config_with(LOGGER=['wandb'], SEED=7)
    for epoch in (0, 1):  # the second one is the resumed run
        scalars = ScalarLog(tmp_path, config=config)
        scalars.write_epoch({'epoch': epoch, 'loss': 0.5 + epoch, 'auroc': {'a': None, 'b': 0.75}})
        scalars.write_image('maps/edema', tmp_path / 'map.png', epoch)
        scalars.write_file(tmp_path / 'report.html')
        scalars.close(0 if epoch else 75)
        wandb.teardown()  # as at the end of a process; until then, a file may lack its last records

    name = (tmp_path / 'wandb_id.txt').read_text().split()[0]
    files = sorted((tmp_path / 'wandb').glob(f'offline-run-*/run-{name}.wandb'))
    assert len(files) == 2, 'both have the id of the run'
    for epoch, file in enumerate(files):
        sent = file.read_bytes()  # records of protobuf, in which text is readable
        assert all(text in sent for text in (b'epoch/loss', f'{0.5 + epoch}'.encode(), b'0.75'))
        assert b'epoch/maps/edema' in sent and b'report.html' in sent
        assert b'pytest' not in sent and b'name-of-this-computer' not in sent


def test_a_program_that_is_missing_or_fails(tmp_path, monkeypatch, log):
    class Failing(TensorBoard):
        def write_scalars(self, scalars, step):
            raise ConnectionError('the server is away')

    config = config_with(LOGGER=['tensorboard', 'wandb'])
    monkeypatch.setitem(WRITERS, 'wandb', Failing)
    scalars = ScalarLog(tmp_path, config=config, logger=logging.getLogger('records'))
    for epoch in (0, 1):
        scalars.write_epoch({'epoch': epoch, 'loss': 1.0})
    scalars.close()
    (warning,) = log.messages
    assert 'LOGGER wandb' in warning and 'the server is away' in warning
    assert [r['epoch'] for r in read_metrics(scalars.path)] == [0, 1]

    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(ValueError, match='LOGGER wandb needs the package'):
        ScalarLog(tmp_path, config=config)

"""Logs and records on a disk that is full, or in a folder that is gone."""

import json
import logging
import os
import subprocess
from pathlib import Path

import pytest

from logger import ScalarLog, create_logger, read_metrics


class FullDisk:
    """Refuses to open files for appending while it is full; a little may be written before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
        self.full, self.error, self.open = False, error, open
        import logger

        monkeypatch.setattr(logger, 'open', self._open, raising=False)

    def _open(self, path: Path, mode: str = 'r', **options: object) -> object:
        file = self.open(path, mode, **options)
        if self.full and 'a' in mode:
            file = _Partly(file, self.error)
        return file


class _Partly:
    """A file whose first write takes three bytes, and the others none."""

    def __init__(self, file: object, error: OSError) -> None:
        self.file, self.error, self.room = file, error, 3

    def __enter__(self) -> '_Partly':
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        if not self.room:
            raise self.error
        written = self.file.write(data[: self.room])
        self.room = 0
        return written


@pytest.mark.parametrize('rank', [0, 1])
def test_a_log_on_a_full_disk_goes_on_later(rank: int, tmp_path: Path, monkeypatch, capsys) -> None:
    disk = FullDisk(monkeypatch, OSError(28, 'No space left on device'))
    log = create_logger(tmp_path, rank, name=f'full{rank}')
    log.info('first')
    disk.full = True
    for i in range(5):
        log.info(f'full {i}')
    disk.full = False
    log.info('last')
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert shown.count('cannot be written (No space left on device)') == 1
    assert 'Logging error' not in shown and 'Traceback' not in shown
    lines = (tmp_path / f'log_rank{rank}.txt').read_text().splitlines()
    said = [line.rpartition('INFO ')[2] for line in lines if 'cannot be written' not in line]
    assert said == ['first', *(f'full {i}' for i in range(5)), 'last']


def test_a_log_whose_folder_is_gone_ends_no_run(tmp_path: Path, capsys) -> None:
    folder = tmp_path / 'run'
    folder.mkdir()
    log, scalars = create_logger(folder, 0, name='gone'), ScalarLog(folder)
    for path in sorted(folder.rglob('*'), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    log.info('one')
    scalars.write_epoch({'epoch': 0})
    log.info('two')
    folder.mkdir()
    log.info('three')
    scalars.write_epoch({'epoch': 1})
    scalars.close()
    captured = capsys.readouterr()
    assert captured.out.count('cannot be written (No such file or directory)') == 1
    assert 'Logging error' not in captured.out + captured.err
    text = (folder / 'log_rank0.txt').read_text()
    assert text.index('INFO one') < text.index('INFO two') < text.index('INFO three')
    assert [record['epoch'] for record in read_metrics(folder / 'metrics.jsonl')] == [0, 1]


def test_records_wait_for_room_and_come_in_order(tmp_path: Path, monkeypatch, caplog) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    disk = FullDisk(monkeypatch, OSError(122, 'Disk quota exceeded'))
    scalars = ScalarLog(tmp_path, logger=logging.getLogger('records'))
    for epoch in range(6):
        disk.full = epoch in (1, 2, 4)
        scalars.write_epoch({'epoch': epoch, 'loss': float(epoch)})
        scalars.write_step({'loss': float(epoch)}, epoch)
    scalars.close()
    assert [r['epoch'] for r in read_metrics(tmp_path / 'metrics.jsonl')] == [0, 1, 2, 3, 4, 5]
    board = EventAccumulator(str(tmp_path / 'tensorboard'))
    board.Reload()
    for tag in ('epoch/loss', 'step/loss'):
        assert [event.value for event in board.Scalars(tag)] == [0, 1, 2, 3, 4, 5]
    told = [record.message for record in caplog.records]
    assert len(told) == 2 and all('Disk quota exceeded' in line for line in told)


def test_closing_says_what_is_still_unwritten(tmp_path: Path, monkeypatch, caplog) -> None:
    disk = FullDisk(monkeypatch, OSError(28, 'No space left on device'))
    scalars = ScalarLog(tmp_path, logger=logging.getLogger('lost'))
    disk.full = True
    scalars.write_epoch({'epoch': 0})
    scalars.close()
    assert 'metrics.jsonl: the last' in caplog.records[-2].message
    assert 'bytes could not be written' in caplog.records[-1].message
    scalars.close()
    assert len(caplog.records) == 4


def test_a_disk_that_is_really_full(tmp_path: Path, capsys) -> None:
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip('no file system can be mounted here')
    try:
        log, scalars = create_logger(tmp_path, 0, name='tmpfs'), ScalarLog(tmp_path)
        filler = tmp_path / 'filler'
        with pytest.raises(OSError), filler.open('wb', buffering=0) as file:
            for _ in range(100):
                file.write(bytes(4096))
                os.fsync(file.fileno())
        for epoch in range(200):
            scalars.write_epoch({'epoch': epoch, 'text': 'x' * 100})
            log.info(f'epoch {epoch}')
        filler.unlink()
        scalars.close()
        log.info('end')
        assert [r['epoch'] for r in read_metrics(tmp_path / 'metrics.jsonl')] == list(range(200))
        text = (tmp_path / 'log_rank0.txt').read_text()
        assert [f'INFO epoch {i}\n' in text for i in range(200)] == [True] * 200
        captured = capsys.readouterr()
        assert captured.out.count('No space left') == 1
        assert 'Traceback' not in captured.out + captured.err
    finally:
        create_logger('/tmp', 1, name='tmpfs')
        subprocess.run(['umount', str(tmp_path)], check=True)


@pytest.mark.parametrize('line', ['{"epoch": 1', '[]', '{"loss": 1}', 'nul\0', '[' * 5000])
def test_a_damaged_record_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / 'metrics.jsonl'
    file.write_text(json.dumps({'epoch': 0}) + f'\n{line}\n' + json.dumps({'epoch': 2}) + '\n')
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r'metrics\.jsonl, line 2: it is no record'):
        ScalarLog(tmp_path).forget_from(1)
    assert file.read_bytes() == before

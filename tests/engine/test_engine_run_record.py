"""run.json and config.yaml: starts, data fingerprint, end, and when a folder holds another run."""

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from mistakes import linked, no_space
from tiny import VIT, arguments, config_with, killed_in_step_7, run_folder, run_main, tiny_config

from config import config_text, default_config
from data.fingerprint import describe_data
from data.loader import Loaders
from data.tables.chexpert import read_csv
from engine import run_record as module
from engine.run_folder import refuse_another_run
from engine.run_record import RunRecord, is_finished, read_record, without_home

LOGGER = logging.getLogger('test')
DATA = {'fingerprint': 'a', 'files': {'train.csv': '1', 'valid.csv': '2'}, 'images': 8}
FACTS = {'stage': 'simmim', 'command': ['main_simmim.py', '--cfg', 'a.yaml'], 'code': 'c0ffee'}
FACTS |= {'seed': 3, 'processes': 2, 'precision': 'float32', 'environment': {'gpus': ['H200'] * 2}}


def describe(*records, config=None, **splits):
    names = dict(zip(('train', 'holdout'), records, strict=False)) | splits
    parts = {k: {'': SimpleNamespace(records=r)} for k, r in names.items()}
    loaders = {k: SimpleNamespace(dataset=SimpleNamespace(parts=p)) for k, p in parts.items()}
    return describe_data(config or default_config(), Loaders(**loaders))


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.parametrize('home, shown', [(None, '/data/a'), ('/', '/data/a'), ('/data', '~/a')])
def test_the_home_folder_is_not_recorded_and_may_be_missing(home, shown, monkeypatch):
    """A container may run under a user without an entry, whose home folder is '/' or none."""
    if home:
        monkeypatch.setenv('HOME', home)
    else:
        monkeypatch.delenv('HOME')
        monkeypatch.setattr(os, 'getuid', lambda: 987_654_321)
    assert without_home('/data/a') == shown
    assert without_home('https://example.org/a') == 'https://example.org/a'


def test_the_fingerprint_covers_the_bytes_of_tables_and_the_names_of_images(eight, tmp_path):
    records = read_csv(eight, 'train.csv')
    about = describe(records)
    assert about['files'] == {'train.csv': sha256(eight / 'train.csv')}
    assert about['images'] == 8
    again = read_csv(linked(eight, tmp_path / 'other' / 'place'), 'train.csv')
    assert describe(again) == about, 'another folder'
    assert describe(again.select([5, 4, 3, 2, 1, 0]), again.select([7, 6, 5])) == about
    fewer = describe(records.select([0, 1, 2, 3, 4, 5, 6]))
    assert fewer['images'] == 7 and fewer['fingerprint'] != about['fingerprint']


def test_the_fingerprint_of_fine_tuning_covers_what_it_reads_besides(eight, tmp_path):
    root = linked(eight, tmp_path / 'a')
    (root / 'race.csv').write_text('PATIENT,RACE\n')
    (tmp_path / 'made.csv').write_text('Path,Edema\n')
    config, train = default_config(), read_csv(root, 'train.csv')
    config.DATA.DEMOGRAPHICS, config.EVAL.GROUPS = 'race.csv', ['RACE']
    config.DATA.UNCERTAIN_BY_LABEL['Edema'] = 'self_train'
    config.DATA.SELF_TRAIN_PREDICTIONS = str(tmp_path / 'made.csv')
    assert {*describe(train, config=config)['files']} == {'train.csv'}
    about = describe(train, config=config, valid=read_csv(root, 'valid.csv'))
    wanted = {name: sha256(root / name) for name in ('race.csv', 'train.csv', 'valid.csv')}
    made = {'DATA.SELF_TRAIN_PREDICTIONS': sha256(tmp_path / 'made.csv')}
    assert about['files'] == wanted | made


class Process:
    """One start of a run, with its own clock."""

    def __init__(self, folder, monkeypatch, **changes):
        self.seconds = 100.0
        monkeypatch.setattr(module.time, 'monotonic', lambda: self.seconds)
        self.record = RunRecord(folder, FACTS | {'data': DATA} | changes, LOGGER)

    def train(self, checkpoint=None, *, seconds=10, finish=False):
        self.record.begin(checkpoint)
        self.seconds += seconds
        if finish:
            self.record.finish()
        self.record.save()


def test_a_run_in_three_starts(tmp_path, monkeypatch, log):
    assert read_record(tmp_path) is None
    Process(tmp_path, monkeypatch).train(seconds=10)
    first = read_record(tmp_path)
    assert {key: first[key] for key in FACTS} == FACTS
    assert (first['data'], first['seconds'], first['finished']) == (DATA, 10, None)
    Process(tmp_path, monkeypatch, processes=1).train(tmp_path / 'ckpt_epoch_4.pth', seconds=5)
    Process(tmp_path, monkeypatch).train('/else/ckpt_epoch_7.pth', seconds=2.5, finish=True)
    record = read_record(tmp_path)
    assert not log.messages
    resumed = [start['resumed_from'] for start in record['starts']]
    assert resumed == [None, 'ckpt_epoch_4.pth', '/else/ckpt_epoch_7.pth']
    assert record['starts'][0] == first['starts'][0]
    assert (record['processes'], record['seconds']) == (2, 17.5), 'the first start counts'
    assert [start['processes'] for start in record['starts']] == [2, 1, 2]
    assert is_finished(tmp_path)
    Process(tmp_path, monkeypatch).record.begin('ckpt_epoch_9.pth', done=True)
    assert read_record(tmp_path)['finished'] == record['finished'], 'nothing is left to train'
    Process(tmp_path, monkeypatch).record.begin('ckpt_epoch_9.pth')
    assert not is_finished(tmp_path), 'it is trained for longer'


def test_resuming_with_other_code_or_data_is_one_warning(tmp_path, monkeypatch, log):
    Process(tmp_path, monkeypatch).train()
    files = {'train.csv': '9', 'valid.csv': '2', 'new.csv': '2'}
    changes = {'code': 'decaf', 'data': {'fingerprint': 'b', 'files': files, 'images': 9}}
    Process(tmp_path, monkeypatch, **changes).train('ckpt_epoch_0.pth')
    (warning,) = log.messages
    assert all(part in warning for part in ('c0ffee -> decaf', 'train.csv', 'new.csv', '8', '9'))
    assert 'valid.csv' not in warning
    record = read_record(tmp_path)
    assert (record['code'], record['data']) == (FACTS['code'], DATA)
    assert (record['starts'][1]['code'], record['starts'][1]['data']) == ('decaf', 'b')


@pytest.mark.parametrize('text', ['{"stage": "simm', '[' * 10**5], ids=['short', 'deep'])
def test_a_damaged_record_is_replaced(text, tmp_path, monkeypatch):
    (tmp_path / 'run.json').write_text(text)
    with pytest.raises(ValueError, match=r'run\.json'):
        read_record(tmp_path)
    assert not is_finished(tmp_path)
    Process(tmp_path, monkeypatch).train('ckpt_epoch_0.pth', finish=True)
    assert len(read_record(tmp_path)['starts']) == 1 and is_finished(tmp_path)


def test_a_full_disk_is_a_warning_and_the_files_are_written_later(tmp_path, monkeypatch, log):
    process = Process(tmp_path, monkeypatch)
    process.record.options = config_text(default_config())
    with monkeypatch.context() as patch:
        patch.setattr(module, 'replace_file', no_space)
        process.record.begin(None)
    for name, message in zip(('run.json', 'config.yaml'), log.messages, strict=True):
        assert str(tmp_path / name) in message
    assert list(tmp_path.iterdir()) == []
    process.record.finish()
    process.record.save()
    assert is_finished(tmp_path)
    assert (tmp_path / 'config.yaml').read_text() == process.record.options


def test_a_finished_run_may_be_trained_longer(tmp_path):
    (tmp_path / 'run.json').write_text(json.dumps({'finished': '2026-01-01T00:00:00+00:00'}))
    refuse_another_run(tmp_path, config_with(SEED=4))  # without config.yaml nothing is known
    (tmp_path / 'config.yaml').write_text(config_text(default_config()))
    refuse_another_run(tmp_path, config_with(SEED=4, TRAIN__EPOCHS=301))
    for epochs in (299, 300):
        with pytest.raises(ValueError, match='SEED'):
            refuse_another_run(tmp_path, config_with(SEED=4, TRAIN__EPOCHS=epochs))
    (tmp_path / 'ckpt_epoch_0.pth').touch()
    other = {'EVAL__INTERNAL_SHARE': 0.5}  # patients who chose the checkpoint would be scored
    for options in (other, other | {'TRAIN__EPOCHS': 301}):
        with pytest.raises(ValueError, match='INTERNAL_SHARE'):
            refuse_another_run(tmp_path, config_with(**options))
    (tmp_path / 'run.json').write_text('{"finished": null}')
    refuse_another_run(tmp_path, config_with(SEED=4))
    with pytest.raises(ValueError, match='INTERNAL_SHARE'):
        refuse_another_run(tmp_path, config_with(**other))
    with pytest.raises(ValueError, match='QK_SCALE'):
        refuse_another_run(tmp_path, config_with(MODEL__SWIN__QK_SCALE=2.0))


ADDRESS, ELSEWHERE = 'https://example.invalid/a.pth', 'https://example.invalid/b.pth'


def folder_started_from(weights, folder, **record):
    """The folder of a run that started from these weights and has a checkpoint."""
    record = {'starts': [{'resumed_from': None}], 'finished': None} | record
    if weights != ADDRESS:
        record['pretrained'] = module.weights_checksum(weights)
    (folder / 'run.json').write_text(json.dumps(record))
    (folder / 'config.yaml').write_text(config_text(config_with(PRETRAINED=weights)))
    (folder / 'ckpt_epoch_0.pth').touch()
    return folder


@pytest.mark.parametrize(
    'started, now, is_refused, finished',
    [
        ('first.pth::teacher', 'moved.pth::teacher', False, None),
        ('first.pth::teacher', 'first.pth::student', True, None),
        ('first.pth', 'other.pth', True, '2026-01-01T00:00:00+00:00'),
        ('first.pth', '', True, None),
        (ADDRESS, ADDRESS, False, '2026-01-01T00:00:00+00:00'),
        (ADDRESS, ELSEWHERE, True, None),
    ],
)
def test_a_run_that_started_from_other_weights_is_refused(  # noqa: PLR0913
    started, now, is_refused, finished, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ('first', 'moved', 'other'):
        Path(f'{name}.pth').write_bytes(b'other' if name == 'other' else b'weights')
    folder = folder_started_from(started, tmp_path, finished=finished)
    refusal = pytest.raises(ValueError, match='PRETRAINED')
    with refusal if is_refused else contextlib.nullcontext():
        refuse_another_run(folder, config_with(PRETRAINED=now))


def test_weights_count_for_a_probe_and_not_where_they_are_unknown(tmp_path):
    (tmp_path / 'first.pth').write_bytes(b'weights')
    folder = folder_started_from(str(tmp_path / 'first.pth'), tmp_path)
    refuse_another_run(folder, config_with(MODEL__RESUME=str(folder / 'ckpt_epoch_0.pth')))
    probe = config_with(FINETUNE__MODE='linear_probe', TRAIN__EPOCHS=301)
    with pytest.raises(ValueError, match='PRETRAINED'):  # it would be fitted on random weights
        refuse_another_run(folder, probe)
    starts = [{'resumed_from': '/else/a.pth'}]  # what that checkpoint started from is not known
    folder_started_from(str(tmp_path / 'first.pth'), tmp_path, starts=starts)
    refuse_another_run(folder, config_with(PRETRAINED=ADDRESS))


def test_a_run_does_not_begin_again_next_to_checkpoints(tmp_path):
    (tmp_path / 'config.yaml').write_text(config_text(default_config()))
    restarted = config_with(TRAIN__AUTO_RESUME=False)
    refuse_another_run(tmp_path, restarted)
    (tmp_path / 'ckpt_epoch_0.pth').touch()
    refuse_another_run(tmp_path, default_config())
    refuse_another_run(tmp_path, config_with(TRAIN__AUTO_RESUME=False, MODEL__RESUME='a.pth'))
    with pytest.raises(ValueError, match='AUTO_RESUME'):
        refuse_another_run(tmp_path, restarted)


def test_a_killed_run_is_recorded_and_its_folder_is_kept_for_it(
    phantom, tmp_path, monkeypatch, refused
):
    monkeypatch.setenv('HOME', str(tmp_path))
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', VIT, EVAL={'HOLDOUT_IMAGES': 2})
    argv = arguments(cfg, phantom, tmp_path / 'out')
    killed_in_step_7('simmim', argv)
    folder = run_folder(tmp_path / 'out', 'simmim')
    assert not is_finished(folder) and len(read_record(folder)['starts']) == 1
    assert run_main('simmim', argv) == 0
    record = read_record(folder)
    assert [start['resumed_from'] for start in record['starts']] == [None, 'ckpt_epoch_0.pth']
    words = ['--cfg', '~/run.yaml', '--data-path', str(phantom), '--output', '~/out']
    assert record['command'][1:] == words
    assert record['data']['files'] == {'train.csv': sha256(phantom / 'train.csv')}
    text = (folder / 'run.json').read_text()
    assert str(tmp_path) not in text and 'patient' not in text

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}

    before = files()
    refused('simmim', [*argv, '--opts', 'DATA.MASK_RATIO', '0.3'], folder, 'DATA.MASK_RATIO')
    assert files() == before
    # A run without epochs left keeps the options that it was trained with.
    assert run_main('simmim', [*argv, '--opts', 'DATA.BATCH_SIZE', '2']) == 0
    assert files()[folder / 'config.yaml'] == before[folder / 'config.yaml']
    assert is_finished(folder)

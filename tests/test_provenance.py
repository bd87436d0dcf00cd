"""run.json: what a run was started with, the fingerprint of its data, its starts and its end."""

import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mistakes import edit, linked
from packed_data import packed
from tiny import ROOT, VIT, arguments, run_folder, run_main, tiny_config

import data.store
from config import default_config
from data import Loaders
from data.packing import Settings
from data.phantom import make_phantom_mimic
from data.records import read_csv, read_folder, read_mimic
from engine import loop as engine
from engine import loop as training_step
from engine import run_record as provenance
from engine.launch import Preempted
from engine.run_record import (
    RunRecord,
    describe_data,
    environment,
    environment_changes,
    is_finished,
    read_record,
    weights_checksum,
)

LOGGER = logging.getLogger('test')
DATA = {'fingerprint': 'a', 'files': {'train.csv': '1', 'valid.csv': '2'}, 'images': 8}
FACTS = {
    'stage': 'simmim',
    'command': ['main_simmim.py', '--cfg', 'a.yaml'],
    'code': 'c0ffee',
    'seed': 3,
    'processes': 2,
    'environment': {'gpus': ['H200', 'H200'], 'packages': {}},
}


def loader(records):
    return SimpleNamespace(dataset=SimpleNamespace(records=records))


def describe(*records, config=None, **splits):
    names = dict(zip(('train', 'holdout'), records, strict=False)) | splits
    loaders = Loaders(**{name: loader(part) for name, part in names.items()})
    return describe_data(config or default_config(), loaders)


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def messages(log, level=logging.WARNING):
    return [record.message for record in log.records if record.levelno >= level]


# The fingerprint -------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_tables_bytes_and_of_the_images_names(eight, tmp_path):
    records = read_csv(eight, 'train.csv')
    about = describe(records)
    assert about['files'] == {'train.csv': sha256(eight / 'train.csv')}
    assert about['images'] == 8
    same = linked(eight, tmp_path / 'other' / 'place')
    again = read_csv(same, 'train.csv')
    assert describe(again) == about, 'another root'
    assert describe(again.select([5, 4, 3, 2, 1, 0]), again.select([7, 6, 5])) == about
    fewer = describe(records.select([0, 1, 2, 3, 4, 5, 6]))
    assert (fewer['files'], fewer['images']) == (about['files'], 7)
    assert fewer['fingerprint'] != about['fingerprint']


@pytest.mark.parametrize('row, column, value', [(1, 5, '-1.0'), (8, 2, '99'), (3, 1, 'Unknown')])
def test_one_cell_changes_the_fingerprint(row, column, value, eight, tmp_path):
    other = linked(eight, tmp_path / eight.name)

    def change(rows):
        assert rows[row][column] != value
        rows[row][column] = value

    edit(other / 'train.csv', change)
    before, after = (describe(read_csv(root, 'train.csv')) for root in (eight, other))
    assert before['images'] == after['images']
    assert before['fingerprint'] != after['fingerprint']
    assert after['files'] == {'train.csv': sha256(other / 'train.csv')} != before['files']


def test_of_a_folder_the_images_names_count_and_no_image_is_opened(eight, tmp_path):
    root = linked(eight, tmp_path / 'a')
    records = [read_folder(root, allow_all_images=True)]
    before = describe(*records)
    assert before['files'] == {}
    assert before['images'] == len(records[0]) > 8
    image = root / records[0].file[3]
    image.rename(image.with_name('view9_frontal.jpg'))
    records.append(read_folder(root, allow_all_images=True))
    after = describe(records[1])
    assert after['images'] == before['images']
    assert after['fingerprint'] != before['fingerprint']
    for file in root.rglob('*.jpg'):
        file.unlink()
    assert describe(records[1]) == after
    assert describe(records[0]) == before


def test_of_a_store_the_checksums_count(eight, tmp_path):
    stores = [packed(eight, tmp_path / f'size{size}', Settings(size=size)) for size in (32, 40)]
    plain, *abouts = (describe(read_csv(root, 'train.csv')) for root in (eight, *stores))
    for store, about in zip(stores, abouts, strict=True):
        files = {**plain['files'], 'store.json': sha256(store / 'store.json')}
        assert (about['files'], about['images']) == (files, 8)
    assert len({about['fingerprint'] for about in (plain, *abouts)}) == 3


def test_every_table_of_mimic_counts(tmp_path):
    make_phantom_mimic(tmp_path, num_train=3, num_valid=2, num_test=2, size=32, seed=0)
    config = default_config()
    config.DATA.DATASET = 'mimic-cxr'
    about = describe(read_mimic(tmp_path, 'train', labeller='chexpert'), config=config)
    names = {path.name for path in tmp_path.glob('mimic-cxr-*')}
    assert set(about['files']) == {name for name in names if 'negbio' not in name}
    assert len(about['files']) == 3


def test_what_fine_tuning_reads_besides_counts_and_only_then(eight, tmp_path):
    root = linked(eight, tmp_path / 'a')
    (root / 'race.csv').write_text('PATIENT,RACE\n')
    (tmp_path / 'made.csv').write_text('Path,Edema\n')
    config, train = default_config(), read_csv(root, 'train.csv')
    config.DATA.DEMOGRAPHICS, config.EVAL.GROUPS = 'race.csv', ['RACE']
    config.DATA.UNCERTAIN_BY_LABEL['Edema'] = 'self_train'
    config.DATA.SELF_TRAIN_PREDICTIONS = str(tmp_path / 'made.csv')
    assert set(describe(train, config=config)['files']) == {'train.csv'}
    about = describe(train, config=config, valid=read_csv(root, 'valid.csv'))
    assert about['files'] == {
        'DATA.SELF_TRAIN_PREDICTIONS': sha256(tmp_path / 'made.csv'),
        'race.csv': sha256(root / 'race.csv'),
        'train.csv': sha256(root / 'train.csv'),
        'valid.csv': sha256(root / 'valid.csv'),
    }


# The file --------------------------------------------------------------------------------------


class Process:
    """One start of a run, on a clock of its own."""

    def __init__(self, folder, monkeypatch, **changes):
        self.seconds = 100.0
        monkeypatch.setattr(provenance.time, 'monotonic', lambda: self.seconds)
        self.record = RunRecord(folder, FACTS | {'data': DATA} | changes, LOGGER)

    def train(self, checkpoint=None, *, seconds=10, finish=False):
        self.record.begin(checkpoint)
        self.seconds += seconds
        if finish:
            self.record.finish()
        self.record.close()


def test_a_run_in_three_starts(tmp_path, monkeypatch, log):
    assert read_record(tmp_path) is None
    assert not is_finished(tmp_path)
    Process(tmp_path, monkeypatch).train(seconds=10)
    first = read_record(tmp_path)
    assert {key: first[key] for key in FACTS} == FACTS
    assert (first['data'], first['seconds'], first['finished']) == (DATA, 10, None)
    assert not is_finished(tmp_path)
    Process(tmp_path, monkeypatch, processes=1).train(tmp_path / 'ckpt_epoch_4.pth', seconds=5)
    Process(tmp_path, monkeypatch).train('/else/ckpt_epoch_7.pth', seconds=2.5, finish=True)
    record = read_record(tmp_path)
    assert messages(log) == []
    assert [start['resumed_from'] for start in record['starts']] == [
        None, 'ckpt_epoch_4.pth', '/else/ckpt_epoch_7.pth'
    ]  # fmt: skip
    assert record['starts'][0] == first['starts'][0]
    assert (record['processes'], record['seconds']) == (2, 17.5), 'what it began with stays'
    assert [start['processes'] for start in record['starts']] == [2, 1, 2]
    assert all(start['gpus'] == ['H200', 'H200'] for start in record['starts'])
    assert is_finished(tmp_path)
    Process(tmp_path, monkeypatch).record.begin('ckpt_epoch_9.pth', done=True)
    again = read_record(tmp_path)
    assert again['finished'] == record['finished'], 'nothing is left to train'
    assert 'processes' not in again['starts'][3]
    Process(tmp_path, monkeypatch).record.begin('ckpt_epoch_9.pth')
    assert not is_finished(tmp_path), 'it is trained for longer'


def test_a_run_that_begins_anew_keeps_nothing(tmp_path, monkeypatch, log):
    Process(tmp_path, monkeypatch).train(finish=True)
    Process(tmp_path, monkeypatch, code='other', data=DATA | {'fingerprint': 'b'}).train()
    record = read_record(tmp_path)
    assert (record['code'], record['data']['fingerprint'], record['seconds']) == ('other', 'b', 10)
    assert len(record['starts']) == 1
    assert messages(log) == []


@pytest.mark.parametrize(
    'changes, parts',
    [
        ({'code': 'decaf'}, ['code: c0ffee -> decaf']),
        (
            {'data': {'fingerprint': 'b', 'files': {'train.csv': '9', 'new.csv': '2'},
                      'images': 9}},
            ['train.csv is another file', 'valid.csv is no longer read', 'new.csv was not read',
             '8 images -> 9'],
        ),
        ({'data': DATA | {'fingerprint': 'b'}}, ['data: other images']),
        ({'code': 'decaf', 'data': DATA | {'fingerprint': 'b'}}, ['decaf', 'other images']),
    ],
)  # fmt: skip
def test_going_on_with_other_code_or_data_is_one_warning(
    changes, parts, tmp_path, monkeypatch, log
):
    Process(tmp_path, monkeypatch).train()
    Process(tmp_path, monkeypatch, **changes).train('ckpt_epoch_0.pth')
    (warning,) = messages(log)
    assert all(part in warning for part in parts), warning
    assert warning.count(';') == len(parts) - 1
    record = read_record(tmp_path)
    assert (record['code'], record['data']) == (FACTS['code'], DATA)
    last = record['starts'][1]
    expected = {**FACTS, 'data': DATA, **changes}
    assert (last['code'], last['data']) == (expected['code'], expected['data']['fingerprint'])


@pytest.mark.parametrize(
    'text',
    [
        '', '{"stage": "simm', '[]', '3', '\xff', '[' * 100_000, '{"starts": {}}',
        '{"starts": [3]}', '{"seconds": "10"}', '{"data": null}', '{"finished": 1}',
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_a_damaged_record_is_begun_anew_with_a_warning(text, tmp_path, monkeypatch, log):
    (tmp_path / 'run.json').write_text(text, encoding='latin-1')
    with pytest.raises(ValueError, match=r'run\.json'):
        read_record(tmp_path)
    assert not is_finished(tmp_path)
    Process(tmp_path, monkeypatch).train('ckpt_epoch_0.pth', finish=True)
    (warning,) = messages(log)
    assert str(tmp_path / 'run.json') in warning and 'begun anew' in warning
    record = read_record(tmp_path)
    assert len(record['starts']) == 1 and is_finished(tmp_path)
    assert record['data'] == DATA


def test_a_full_disk_is_warned_of_and_written_to_later(tmp_path, monkeypatch, log):
    def full(path, data):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(data.store_files, 'replace_file', full)
        process = Process(tmp_path, monkeypatch)
        process.record.begin(None)
        assert messages(log) == [f'{tmp_path}/run.json cannot be written (No space left on device)']
        assert read_record(tmp_path) is None
    process.record.finish()
    process.record.close()
    assert is_finished(tmp_path)


def test_what_only_evaluates_or_repeats_a_step_writes_nothing(tmp_path):
    for record in (RunRecord(), RunRecord(tmp_path, dict(FACTS), LOGGER)):
        record.begin(None)  # the latter was told of no data
        record.finish()
        record.close()
    assert list(tmp_path.iterdir()) == []


def test_importing_needs_no_torch():
    code = 'import sys, provenance; print(sorted({"torch", "pandas"} & set(sys.modules)))'
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == '[]\n'


def test_the_environment_and_how_two_differ():
    here = environment(gpus=['NVIDIA H200'], threads=2)
    assert here['python'] == '.'.join(map(str, sys.version_info[:3]))
    assert here['packages']['torch'] == provenance.metadata.version('torch')
    wanted = (ROOT / 'requirements.txt').read_text().splitlines()
    assert len(here['packages']) == len(wanted)
    assert None not in here['packages'].values()
    before = {'environment': here, 'processes': 1}
    assert environment_changes(before, before) == []
    packages = here['packages'] | {'timm': '0.1'}
    there = here | {'gpus': [], 'packages': packages}
    assert environment_changes(before, {'environment': there, 'processes': 1}) == [
        'gpus: NVIDIA H200 -> none',
        f'package timm: {here["packages"]["timm"]} -> 0.1',
    ]


# Runs ------------------------------------------------------------------------------------------


def test_a_killed_run_that_went_on(phantom, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))  # its name is the user's
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', VIT, TRAIN={'SAVE_EVERY_STEPS': 2})
    argv = arguments(cfg, phantom, tmp_path / 'out')
    folder, calls = run_folder(tmp_path / 'out', 'finetune'), []
    step = training_step._optimizer_step

    def dies_in_the_fifth_step(*args):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(training_step, '_optimizer_step', dies_in_the_fifth_step)
    with pytest.raises(KeyboardInterrupt):
        run_main('finetune', argv)
    killed = read_record(folder)
    assert (killed['finished'], len(killed['starts'])) == (None, 1)
    monkeypatch.setattr(training_step, '_optimizer_step', step)
    assert run_main('finetune', argv) == 0
    record = read_record(folder)
    assert is_finished(folder)
    assert [start['resumed_from'] for start in record['starts']] == [
        None, 'ckpt_epoch_0.pth'
    ]  # fmt: skip
    assert record['starts'][0] == killed['starts'][0]
    assert record['command'] == [
        'main_finetune.py', '--cfg', '~/run.yaml', '--data-path', str(phantom), '--output', '~/out'
    ]  # fmt: skip
    names = ('train.csv', 'valid.csv', 'test.csv')
    assert record['data']['files'] == {name: sha256(phantom / name) for name in sorted(names)}
    assert (record['stage'], record['seed'], record['processes']) == ('finetune', 0, 1)
    assert record['environment']['gpus'] == []
    assert record['seconds'] > killed['seconds'] == 0
    text = (folder / 'run.json').read_text()
    assert str(tmp_path) not in text and 'patient' not in text
    before = (folder / 'run.json').read_bytes()
    assert run_main('finetune', [*argv, '--eval']) == 0
    assert (folder / 'run.json').read_bytes() == before


def test_a_run_that_fails_or_is_stopped_is_not_finished(eight, tmp_path, monkeypatch):
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', VIT, DATA={'TRAIN_IMAGES': 0})
    argv = arguments(cfg, eight, tmp_path / 'out')
    folder = run_folder(tmp_path / 'out', 'simmim')
    for error, code in ((Preempted('stopped'), 75), (ValueError('no'), 2)):

        def ends(*args, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(engine, 'train_one_epoch', ends)
            assert run_main('simmim', argv) == code
        record = read_record(folder)
        assert record['finished'] is None
        assert record['seconds'] > 0
        assert record['data']['images'] == 8


@pytest.mark.parametrize('mode', ['knn', 'linear_probe'])
def test_a_probe_writes_a_record_and_the_weights_it_is_of(mode, phantom, tmp_path):
    import torch

    from config import get_config
    from models import build_model

    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', VIT, FINETUNE={'MODE': mode})
    config = get_config(SimpleNamespace(cfg=str(cfg), stage='finetune'))
    torch.manual_seed(0)
    torch.save({'model': build_model(config, False).state_dict()}, tmp_path / 'w.pth')
    weights = str(tmp_path / 'w.pth')
    argv = arguments(cfg, phantom, tmp_path / 'out', '--pretrained', weights)
    assert run_main('finetune', argv) == 0
    folder = run_folder(tmp_path / 'out', 'finetune')
    record = read_record(folder)
    assert is_finished(folder)
    assert record['pretrained'] == sha256(weights)
    assert [start['resumed_from'] for start in record['starts']] == [None]
    scores = json.loads((folder / 'scores.json').read_text())
    assert set(scores) == {'valid', 'test'}


def test_only_a_file_has_a_checksum(tmp_path):
    (tmp_path / 'a').write_bytes(os.urandom(10))
    assert weights_checksum(str(tmp_path / 'a')) == sha256(tmp_path / 'a')
    assert weights_checksum('') is None
    assert weights_checksum('https://example.org/a.pth') is None

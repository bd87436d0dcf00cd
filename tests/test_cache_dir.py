"""DATA.CACHE_DIR: a run reads its store from a copy on the node, and names the source."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import yaml
from packed_data import contents, copied, flip_bit, make_data, packed
from tiny import arguments, run_folder, run_main, tiny_config, torchrun
from xray_splits import LOGGER, make_config

import data.store
from data import build_loader
from data.packing import Settings, append
from data.records import data_root
from data.store import open_store
from logger import read_metrics

TIMES = {'seconds', 'data_seconds', 'images_per_second'}


@pytest.fixture(scope='module')
def store(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(phantom, tmp_path_factory.mktemp('drive') / 'store', Settings(32))


def root_of(store: Path, cache: Path) -> Path:
    return Path(data_root(make_config(store, 'DATA.CACHE_DIR', str(cache)), LOGGER))


def figures(folder: Path) -> list[dict]:
    lines = read_metrics(folder / 'metrics.jsonl')
    return [{key: line[key] for key in line.keys() - TIMES} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['simmim', 'finetune'])
def test_runs_read_the_copy_and_name_the_source(stage: str, store: Path, tmp_path: Path) -> None:
    source, cache = copied(store, tmp_path / 'source'), tmp_path / 'node' / 'cache'
    cfg = tiny_config(tmp_path / 'run.yaml', stage, REPORT={'MAPS': 0}, EVAL={'RESAMPLES': 0})
    option = ['--opts', 'DATA.CACHE_DIR', str(cache), 'REPORT.WRITE']
    runs = {'plain': [], 'first': [*option, 'True'], 'second': [*option, 'False']}
    for name, options in runs.items():
        if name == 'second':  # nothing of the pictures is read from the source again
            flip_bit(source / 'pixels_00000.bin', 77)
            (source / 'train.csv').unlink()
        assert run_main(stage, arguments(cfg, source, tmp_path / name, *options)) == 0
    runs = {name: run_folder(tmp_path / name, stage) for name in runs}
    (copy,) = cache.iterdir()
    assert contents(copy) == contents(store)
    assert figures(runs['first']) == figures(runs['second']) == figures(runs['plain']) != []
    logs = {name: (folder / 'log_rank0.txt').read_text() for name, folder in runs.items()}
    lines = [re.findall(r'cop(?:ying|ied) .*', log) for log in logs.values()]
    assert lines[0] == lines[2] == []
    assert lines[1][0] == f'copying {source} to {copy}, or waiting for another process that does'
    assert re.fullmatch(rf'copied 0.00 GB of {source} to {copy} in \S+ s', lines[1][1])
    for folder in (runs['first'], runs['second']):
        options = yaml.safe_load((folder / 'config.yaml').read_text())['DATA']
        assert (options['DATA_PATH'], options['CACHE_DIR']) == (str(source), str(cache))
        for page in folder.glob('report.html'):
            text = page.read_text()
            assert str(source) in text and str(copy) not in text
    assert (runs['first'] / 'report.html').exists() == (stage == 'finetune')


@pytest.mark.parametrize('dataset', ['folder', 'chexpert'])
def test_every_loader_reads_the_copy(dataset: str, store: Path, tmp_path: Path) -> None:
    options = ['DATA.DATASET', dataset, 'DATA.ALLOW_ALL_IMAGES', True]
    config = make_config(store, *options, 'DATA.CACHE_DIR', str(tmp_path), 'DATA.TEST_CSV', 'no')
    for is_pretrain in (True, False)[: 1 + (dataset == 'chexpert')]:
        loaders = [loader for loader in build_loader(config, LOGGER, is_pretrain) if loader]
        roots = {Path(loader.dataset.records.root) for loader in loaders}
        assert len(loaders) == 3 and roots == set(tmp_path.iterdir())


@pytest.mark.slow
def test_of_two_ranks_one_copies(store: Path, tmp_path: Path) -> None:
    cfg, cache = tiny_config(tmp_path / 'run.yaml', 'simmim'), tmp_path / 'cache'
    option = ['--opts', 'DATA.CACHE_DIR', str(cache)]
    done = torchrun('simmim', arguments(cfg, store, tmp_path / 'out', *option), processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    logs = [path.read_text() for path in run_folder(tmp_path / 'out', 'simmim').glob('log_rank*')]
    assert len(logs) == 2 and sum(log.count('copied ') for log in logs) == 1
    assert contents(next(cache.iterdir())) == contents(store)


@pytest.mark.parametrize('stage', ['simmim', 'finetune'])
def test_a_folder_that_is_no_store_is_refused(phantom: Path, tmp_path: Path, stage, refused):
    cfg, option = tiny_config(tmp_path / 'run.yaml', stage), ['--opts', 'DATA.CACHE_DIR', 'cache']
    words = f'DATA.DATA_PATH {phantom} is none: pack it with scripts/pack.py'
    refused(stage, arguments(cfg, phantom, tmp_path / 'out', *option), 'DATA.CACHE_DIR', words)


def test_a_cache_that_cannot_be_written_is_named(store: Path, tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match=rf'DATA.CACHE_DIR: cannot copy {store} to .*/file/store-'):
        root_of(store, tmp_path / 'file')


def test_stores_of_one_name_share_a_cache(store: Path, tmp_path: Path) -> None:
    other = packed(make_data(tmp_path / 'data'), tmp_path / 'other' / 'store')
    first, second = root_of(store, tmp_path / 'cache'), root_of(other, tmp_path / 'cache')
    assert (contents(first), contents(second)) == (contents(store), contents(other))
    assert root_of(copied(store, tmp_path / 'again' / 'store'), tmp_path / 'cache') == first


def test_adding_to_a_store_leaves_the_copy_that_a_run_reads(tmp_path: Path) -> None:
    data, cache = make_data(tmp_path / 'data'), tmp_path / 'cache'
    grown = packed(data, tmp_path / 'store', csv_names=['train.csv'])
    old = root_of(grown, cache)
    before = contents(old)
    append(data, grown, 'valid.csv')
    new = root_of(grown, cache)
    assert new != old and contents(old) == before and contents(new) == contents(grown)
    assert len(open_store(new)) == len(open_store(old)) + 2


def test_a_whole_copy_is_only_read(store: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments, **options):
        raise PermissionError('read-only')

    copy = root_of(store, tmp_path)
    monkeypatch.setattr(data.store_files, 'locked', fail)
    assert root_of(store, tmp_path) == copy
    (copy / 'train.csv').unlink()
    with pytest.raises(ValueError, match='DATA.CACHE_DIR: cannot copy .*read-only'):
        root_of(store, tmp_path)


def test_what_a_broken_off_copy_left_makes_room(store: Path, tmp_path: Path, monkeypatch) -> None:
    target, needed = root_of(store, tmp_path), []
    (target / 'pixels_00000.bin').rename(target / 'pixels_00000.bin.tmp')
    (target / 'names_00000.npy.tmp').touch()

    def look(folder: Path, size: int) -> None:
        needed.append(size)
        assert not list(folder.glob('*.tmp'))

    monkeypatch.setattr(data.store_files, 'check_space', look)
    assert contents(root_of(store, tmp_path)) == contents(store)
    assert needed == [(store / 'pixels_00000.bin').stat().st_size]


def test_after_a_failure_no_further_file_is_copied(tmp_path: Path, monkeypatch) -> None:
    begun, stopped = [], Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, **options) -> None:
            super().shutdown(wait=False, **options)
            stopped.set()
            super().shutdown(wait)

    def copy_file(source: Path, *rest) -> None:
        begun.append(source.name)
        if len(begun) == 1:
            raise ValueError(f'{source} is spoilt')
        assert stopped.wait(60)

    source = packed(make_data(tmp_path / 'data', 30), tmp_path / 'source')
    monkeypatch.setattr(data.store_files, 'COPY_THREADS', 1)
    monkeypatch.setattr(data.store_files, 'ThreadPoolExecutor', Pool)
    monkeypatch.setattr(data.store_files, 'copy_file', copy_file)
    with pytest.raises(ValueError, match='is spoilt'):
        root_of(source, tmp_path / 'cache')
    assert len(begun) <= 2 < len(open_store(source).about['files'])
    shutil.rmtree(tmp_path / 'cache')

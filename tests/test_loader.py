"""Batches: the same samples whatever the workers, ranks and restarts; loaders and errors."""

import os
import pickle
import re
import signal
import warnings
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from xray_splits import LOGGER, make_config, samples_of, write_split

import data.loader
from data import Loaders, build_loader
from data.loader import XrayDataset, make_loader
from data.masking import MaskGenerator
from data.records import read_csv
from data.transforms import PretrainTransform
from engine import distributed


def assert_same(got, wanted) -> None:
    assert len(got) == len(wanted) > 0
    for a, b in zip(got, wanted, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def on_rank(monkeypatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(distributed, 'rank', lambda: rank)
    monkeypatch.setattr(distributed, 'world_size', lambda: world_size)


# Samples do not depend on who loads them -----------------------------------------------------


@pytest.fixture(params=[True, False], ids=['pretrain', 'finetune'])
def is_pretrain(request) -> bool:
    return request.param


def train_loader(data_path: Path, is_pretrain: bool, *options):
    augment = ['AUG.COLOR_JITTER', 0.4, 'AUG.REPROB', 0.5, 'DATA.INTERPOLATION', 'random']
    return build_loader(make_config(data_path, *augment, *options), LOGGER, is_pretrain).train


def test_number_of_workers_changes_no_sample(data_path, is_pretrain):
    wanted = samples_of(train_loader(data_path, is_pretrain), 0, 1)
    got = samples_of(train_loader(data_path, is_pretrain, 'DATA.NUM_WORKERS', 2), 0, 1)
    assert_same(got, wanted)


def test_number_of_ranks_changes_no_sample(data_path, is_pretrain, monkeypatch):
    wanted = samples_of(train_loader(data_path, is_pretrain), 0, 1)
    ranks = []
    for rank in (0, 1):
        on_rank(monkeypatch, rank, 2)
        loader = train_loader(data_path, is_pretrain, 'DATA.BATCH_SIZE', 2)
        ranks.append(samples_of(loader, 0, 1))
    got = []
    for first in range(0, len(ranks[0]), 2):
        got += ranks[0][first : first + 2] + ranks[1][first : first + 2]
    assert_same(got, wanted)


def test_a_restart_inside_an_epoch_changes_no_sample(data_path, is_pretrain):
    wanted = samples_of(train_loader(data_path, is_pretrain), 0, 1)
    per_epoch = len(wanted) // 2
    restarted = train_loader(data_path, is_pretrain, 'DATA.NUM_WORKERS', 1)
    got = samples_of(restarted, 1, first_batch=3)
    assert_same(got, wanted[per_epoch + 3 * 4 :])


def test_workers_that_stay_follow_a_broken_off_epoch(data_path):
    loader = train_loader(data_path, True, 'DATA.NUM_WORKERS', 2)
    loader.batch_sampler.set_epoch(0)
    next(iter(loader))
    wanted = samples_of(train_loader(data_path, True), 1)
    assert_same(samples_of(loader, 1), wanted)


def test_the_position_in_a_subset_changes_no_sample(data_path):
    transform = PretrainTransform(make_config(data_path), MaskGenerator(64, 16, 4, 0.6))
    records = read_csv(data_path, 'train.csv')
    whole = XrayDataset(records, transform, seed=3)
    part = XrayDataset(records.select(np.array([5, 9, 30])), transform, seed=3)
    for position, row in enumerate((5, 9, 30)):
        assert_same([part[2, position]], [whole[2, row]])


@pytest.mark.parametrize('what', ['seed', 'epoch', 'image'])
def test_another_seed_epoch_or_image_is_drawn_otherwise(data_path, what):
    transform = PretrainTransform(make_config(data_path), MaskGenerator(64, 16, 4, 0.6))
    records = read_csv(data_path, 'train.csv')
    first = XrayDataset(records, transform, seed=0)[0, 0]
    seed, epoch, image = (int(what == name) for name in ('seed', 'epoch', 'image'))
    other = XrayDataset(records, transform, seed=seed)[epoch, image]
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_loading_neither_reads_nor_moves_global_random_states(data_path, is_pretrain):
    loaded = []
    for seed in (0, 1):
        torch.manual_seed(seed), np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        loader = train_loader(data_path, is_pretrain, 'DATA.NUM_WORKERS', seed)
        loaded.append(samples_of(loader, 0))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
    assert_same(*loaded)


# Loaders and errors --------------------------------------------------------------------------


def test_absent_loaders_are_none():
    assert set(Loaders()) == {None}


@pytest.mark.parametrize('cuda', [True, False])
@pytest.mark.parametrize('pin', [True, False])
def test_memory_is_pinned_where_asked_for_and_there_is_cuda(monkeypatch, cuda, pin):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    FakeDataset = namedtuple('FakeDataset', 'seed')
    dataset = FakeDataset(0)
    loader = make_loader(dataset, batch_size=1, shuffle=False, num_workers=0, pin_memory=pin)
    assert loader.pin_memory == (cuda and pin)


def test_only_a_check_is_silent_about_workers(data_path, monkeypatch):
    """Its table has a line for them."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0}, raising=False)
    said = []
    for checks in (True, False):
        config = make_config(data_path, 'DATA.NUM_WORKERS', 3, 'CHECK_MODE', checks)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            build_loader(config, LOGGER, is_pretrain=True)
        said.append(any('will create 3 worker' in str(warning.message) for warning in caught))
    assert said == [False, True]


# torch waits 5 s for a worker that failed.
@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_missing_image_names_csv_row_and_path(tmp_path, workers):
    write_split(tmp_path, 'train', 3)
    missing = tmp_path / 'train/patient00001/study1/view2_lateral.png'
    missing.unlink()
    config = make_config(tmp_path, 'DATA.NUM_WORKERS', workers, 'DATA.HOLDOUT_FRACTION', 0.0)
    config.defrost()
    config.DATA.BATCH_SIZE = 6
    loader = build_loader(config, LOGGER, is_pretrain=True).train
    # Header, two rows of patient 0, one of patient 1: row 5 of the file.
    message = f'{tmp_path / "train.csv"}, row 5 (the header is row 1): there is no image {missing}'
    with pytest.raises(ValueError, match=re.escape(message)):
        next(iter(loader))


def test_a_spawned_worker_has_the_files_names_and_rows_and_no_other_text(data_path, tmp_path):
    records = read_csv(data_path, 'train.csv').select(np.array([5, 9, 30]))
    transform = PretrainTransform(make_config(data_path), MaskGenerator(64, 16, 4, 0.6))
    dataset = XrayDataset(records, transform, seed=3)
    sent = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert_same([sent[2, 1]], [dataset[2, 1]])
    assert [sent.records.file[i] for i in range(len(sent))] == records.file.tolist()
    assert [name for name, v in vars(sent.records).items() if isinstance(v, np.ndarray)] == ['row']
    broken = XrayDataset(replace(records, root=tmp_path), transform, seed=3)
    wanted = rf'{tmp_path}/train.csv, row 11 .* no image {tmp_path}/{records.file[1]}'
    with pytest.raises(ValueError, match=wanted):
        pickle.loads(pickle.dumps(broken))[0, 1]  # noqa: S301


def test_an_unreadable_image_names_csv_row_path_and_reason(tmp_path):
    write_split(tmp_path, 'valid', 3)
    bad = tmp_path / 'valid/patient00002/study1/view1_frontal.png'
    bad.write_bytes(b'not a picture')
    loaders = build_loader(make_config(tmp_path, 'EVAL_MODE', True), LOGGER, is_pretrain=False)
    message = f'valid.csv, row 6 (the header is row 1): image {bad} cannot be read: cannot identify'
    with pytest.raises(ValueError, match=re.escape(message)):
        list(loaders.valid)


class Blocked(Dataset):
    """Which signals the process that loads has blocked."""

    seed = 0

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[int]:
        return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))


@pytest.mark.skipif(not data.loader.CAN_WAIT, reason='signals cannot be waited for here')
def test_a_worker_is_born_with_signals_blocked(monkeypatch):
    """Before its first line of ours a signal to all processes would end it."""
    monkeypatch.setattr(data.loader, '_leave_signals_to_the_run', None)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    loader = make_loader(Blocked(), batch_size=4, shuffle=False, num_workers=1, pin_memory=False)
    loader.multiprocessing_context = 'fork'
    (blocked,) = loader
    assert set(data.loader.STOPS) <= {int(number[0]) for number in blocked}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before

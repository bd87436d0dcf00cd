"""Batches: the same samples whatever the workers, ranks and restarts; errors."""

import gc
import itertools
import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny import DEADLINE, wait_until
from torch.utils.data import DataLoader, Dataset
from xray_splits import LOGGER, make_config, samples_of

from config import default_config
from data import loader as loader_module
from data.build import build_loader
from data.data_finetune import inverse_frequency_weights
from data.loader import EpochSampler, epoch_order, make_loader, sample_rng, weighted_order
from data.tables.reading import log_loading
from engine.causes import explain
from system.tool import usable_cpus

NAN = float('nan')
WEIGHTS = np.arange(1, 24.0) ** 2


def loader_config(batch_size: int = 4, workers: int = 0) -> SimpleNamespace:
    options = SimpleNamespace(BATCH_SIZE=batch_size, NUM_WORKERS=workers, PIN_MEMORY=False)
    return SimpleNamespace(DATA=options)


def assert_same(got, wanted) -> None:
    assert len(got) == len(wanted) > 0
    for a, b in zip(got, wanted, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(params=[True, False], ids=['pretrain', 'finetune'])
def is_pretrain(request) -> bool:
    return request.param


def train_loader(data_path: Path, is_pretrain: bool, *options):
    augment = ['AUG.COLOR_JITTER', 0.4, 'AUG.REPROB', 0.5, 'DATA.INTERPOLATION', 'random']
    augment += ['AUG.RANDAUGMENT', [2, 15]]
    return build_loader(make_config(data_path, *augment, *options), LOGGER, is_pretrain).train


def test_number_of_workers_changes_no_sample(data_path, is_pretrain):
    """Nor does a restart inside an epoch."""
    wanted = samples_of(train_loader(data_path, is_pretrain), 0, 1)
    with_workers = train_loader(data_path, is_pretrain, 'DATA.NUM_WORKERS', 2)
    assert_same(samples_of(with_workers, 0, 1), wanted)
    restarted = train_loader(data_path, is_pretrain, 'DATA.NUM_WORKERS', 1)
    got = samples_of(restarted, 1, first_batch=3)
    assert_same(got, wanted[len(wanted) // 2 + 3 * 4 :])


def test_loading_neither_reads_nor_changes_global_random_states(data_path):
    loaded = []
    for seed in (0, 1):
        torch.manual_seed(seed), np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        loader = train_loader(data_path, False, 'DATA.NUM_WORKERS', seed)
        loaded.append(samples_of(loader, 0))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
    assert_same(*loaded)


def test_the_streams_of_samples_and_orders_are_distinct_and_frozen():
    keys = itertools.product(range(4), range(4), range(40), range(2))
    assert len({sample_rng(*key).random() for key in keys}) == 4 * 4 * 40 * 2
    orders = {tuple(epoch_order(seed, epoch, 20)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert sample_rng(3, 4, 5).random(2).tolist() == [0.5191493916058771, 0.38280174378527]
    assert epoch_order(3, 4, 8).tolist() == [6, 3, 7, 2, 4, 5, 0, 1]
    assert weighted_order(3, 4, np.arange(1, 9.0)).tolist() == [5, 4, 5, 3, 6, 6, 6, 2]


def batches(*, epoch: int = 0, **options) -> list[list[tuple[int, ...]]]:
    sampler = EpochSampler(**({'num_images': 23, 'batch_size': 4, 'seed': 0} | options))
    sampler.set_epoch(epoch, 0)
    return list(sampler)


def test_an_epoch_visits_each_image_once_but_for_the_dropped_rest():
    got = batches(shuffle=True, epoch=3)
    assert [len(batch) for batch in got] == [4] * 5
    assert {epoch for batch in got for epoch, _ in batch} == {3}
    indices = [index for batch in got for _, index in batch]
    assert len(set(indices)) == 20 and set(indices) <= set(range(23))
    assert indices != sorted(indices)


@pytest.mark.parametrize('weights', [None, WEIGHTS], ids=['uniform', 'weighted'])
def test_ranks_share_the_global_batches_of_one_process(weights):
    options = {'shuffle': True, 'epoch': 2, 'weights': weights}
    single = batches(**options, batch_size=4)
    ranks = [batches(**options, batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == single


@pytest.mark.parametrize('weights', [None, WEIGHTS], ids=['uniform', 'weighted'])
def test_each_epoch_and_each_seed_has_an_order_of_its_own(weights):
    orders = set()
    for seed, epoch in itertools.product(range(3), repeat=2):
        got = batches(shuffle=True, weights=weights, seed=seed, epoch=epoch)
        orders.add(tuple(index for batch in got for _, index, *_ in batch))
    assert len(orders) == 9


def test_evaluation_takes_every_image_once_in_order_and_stays_in_epoch_0():
    ranks = [
        batches(shuffle=False, epoch=5, rank=rank, world_size=2, batch_size=4) for rank in (0, 1)
    ]
    assert [len(batch) for batch in ranks[0]] == [4, 4, 4]
    assert [len(batch) for batch in ranks[1]] == [4, 4, 3]
    for rank in (0, 1):
        got = sum(ranks[rank], [])
        assert got == [(0, index) for index in range(rank, 23, 2)]


def test_too_few_images_for_a_batch_are_refused_with_the_counts():
    with pytest.raises(ValueError, match='DATA.BATCH_SIZE'):
        EpochSampler(7, batch_size=4, shuffle=True, seed=0, world_size=2)


def test_weights_are_the_mean_of_inverse_class_sizes_over_known_labels():
    targets = np.array(
        [
            [1, 0, NAN],
            [0, 0, 2],
            [0.5, 0, 0.7],  # positive, negative, positive
            [0.49, 1, 2],
            [0, NAN, NAN],
            [NAN, NAN, NAN],
        ]
    )
    want = [
        (1 / 2 + 1 / 3) / 2,
        (1 / 3 + 1 / 3 + 1 / 2) / 3,
        (1 / 2 + 1 / 3 + 1) / 3,
        (1 / 3 + 1 + 1 / 2) / 3,
        1 / 3,
    ]
    np.testing.assert_allclose(inverse_frequency_weights(targets), [*want, np.mean(want)])


def test_each_class_is_drawn_equally_often():
    classes = np.repeat([0, 1, 2], [90, 7, 3])
    weights = inverse_frequency_weights(np.eye(3)[classes], one_hot=True)
    np.testing.assert_allclose(np.bincount(classes, weights), 1)


def test_draws_are_in_proportion_to_the_weights():
    drawn = np.concatenate([weighted_order(0, epoch, WEIGHTS) for epoch in range(2000)])
    counts = np.bincount(drawn, minlength=23)
    assert len(counts) == 23
    assert chisquare(counts, WEIGHTS / WEIGHTS.sum() * len(drawn)).pvalue > 1e-3


def test_an_image_that_is_drawn_twice_is_augmented_twice(data_path):
    loader = train_loader(data_path, False, 'DATA.SAMPLER', 'weighted')
    samples = samples_of(loader, 0)
    images = {image.numpy().tobytes() for image, _, _ in samples}
    assert len(images) == len(samples) > len({int(index) for _, _, index in samples})


class Sends(Dataset):
    """Each image is what a function makes of its number."""

    seed = 0

    def __init__(self, make: Callable[[int], object] = int) -> None:
        self.make = make

    def __len__(self) -> int:
        return 16

    def __getitem__(self, key: tuple[int, int]) -> object:
        return self.make(key[1])


@pytest.mark.parametrize('cuda', [True, False])
def test_memory_is_pinned_only_with_cuda(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    config = loader_config()
    config.DATA.PIN_MEMORY = True
    assert make_loader(Sends(), config, shuffle=False).pin_memory == cuda


def test_workers_may_open_more_files_than_the_soft_limit_allows(monkeypatch):
    """A worker sends each tensor as an open file."""
    monkeypatch.setattr('data.loader.BATCH_SECONDS', 20)
    dataset = Sends(lambda index: [torch.zeros(2)] * 4)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/dev/fd')) + 14, hard))
    try:
        loader = make_loader(dataset, loader_config(2, workers=2), shuffle=False)
        assert len(list(loader)) == 8
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_few_open_files_for_the_workers_are_an_error(monkeypatch):
    monkeypatch.setattr(resource, 'getrlimit', lambda kind: (64, 80))
    monkeypatch.setattr(resource, 'setrlimit', lambda kind, limits: None)
    assert make_loader(Sends(), loader_config(2), shuffle=False)
    with pytest.raises(ValueError, match='DATA.NUM_WORKERS.* 80:'):
        make_loader(Sends(), loader_config(2, workers=2), shuffle=False)


def sends_nothing(index: int) -> int:
    return index if index < 8 else threading.Event().wait()


def cannot_be_pickled(index: int) -> dict:
    class Local(dict):
        """Pickle does not find this class, so that the worker can print the error only."""

    return Local(index=index)


@pytest.mark.parametrize('make', [sends_nothing, cannot_be_pickled])
def test_a_worker_that_sends_no_batch_ends_the_run(make, monkeypatch, capfd) -> None:
    monkeypatch.setattr('data.loader.BATCH_SECONDS', 2)
    loader = make_loader(Sends(make), loader_config(2, workers=2), shuffle=False)
    with pytest.raises(RuntimeError) as error:
        list(loader)
    code, line = explain(error.value)
    assert code == 2 and 'a worker of the loader hangs, or could not send a batch' in line
    assert ('Local' in capfd.readouterr().err) == (make is cannot_be_pickled)
    del loader, error
    gc.collect()
    # Older versions of PyTorch end the workers without waiting for them.
    wait_until(lambda: multiprocessing.active_children() == [], 'the end of the workers')


def test_a_killed_worker_ends_the_run() -> None:
    before = {child.pid for child in multiprocessing.active_children()}
    loader = make_loader(Sends(), loader_config(1, workers=2), shuffle=False)
    batches = iter(loader)
    next(batches)
    worker = next(c for c in multiprocessing.active_children() if c.pid not in before)
    with pytest.raises(RuntimeError) as error:
        os.kill(worker.pid, signal.SIGKILL)
        list(batches)
    # PyTorch's handler raises again whenever a worker ends, until the loader is gone.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    code, line = explain(error.value)
    del batches, loader, error
    gc.collect()
    signal.signal(signal.SIGCHLD, handler)
    assert code == 2 and 'a worker of the loader ended' in line and 'DATA.NUM_WORKERS' in line


def test_a_connection_that_ends_within_a_batch_is_a_lost_worker(monkeypatch) -> None:
    def lost(self: DataLoader) -> Iterator[int]:
        yield 1
        raise ConnectionResetError(104, 'Connection reset by peer')

    loader = make_loader(Sends(), loader_config(), shuffle=False)
    monkeypatch.setattr(DataLoader, '__iter__', lost)
    with pytest.raises(RuntimeError) as error:
        list(loader)
    assert explain(error.value)[0] == 2


def test_a_worker_prints_its_errors_but_not_that_the_main_process_hung_up(monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(sys, '__excepthook__', lambda kind, *_: shown.append(kind))
    for error in (BrokenPipeError(), EOFError(), KeyError(), OSError()):
        loader_module._ignore_lost_connection(type(error), error, None)
    assert shown == [KeyError, OSError]


SIGNALS = (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def signal_the_group(index: int) -> int:
    """In one of the workers, tell all processes of the group."""
    if index == 3:
        for number in SIGNALS:
            os.killpg(0, number)
    return index


def load_under_signals(folder: Path) -> None:
    """The main process of a group: two epochs of batches, also with signals as workers start."""
    os.setsid()
    output = os.open(folder / 'output', os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 2)
    sys.stderr = os.fdopen(2, 'w')
    for number in SIGNALS:
        signal.signal(number, lambda number, _: os.write(2, f'received {number}\n'.encode()))
    os.register_at_fork(after_in_child=lambda: [os.kill(os.getpid(), number) for number in SIGNALS])
    loader = make_loader(Sends(signal_the_group), loader_config(1, workers=2), shuffle=True)
    first = [int(batch) for batch in loader]
    workers = {child.pid for child in multiprocessing.active_children()}
    second = [int(batch) for batch in loader]
    assert sorted(first) == sorted(second) == list(range(16)), (first, second)
    assert workers == {child.pid for child in multiprocessing.active_children()}
    (folder / 'workers').write_text(' '.join(map(str, workers)))


def test_signals_to_the_group_end_no_worker_and_the_main_process_leaves_none(tmp_path) -> None:
    """As when a cluster stops a job, or a terminal is closed, also while the workers start."""
    main = multiprocessing.get_context('fork').Process(target=load_under_signals, args=(tmp_path,))
    main.start()
    main.join(DEADLINE)
    main.kill()
    output = (tmp_path / 'output').read_text()
    assert main.exitcode == 0, output
    workers = (tmp_path / 'workers').read_text().split()
    assert len(workers) == 2 and not any(Path(f'/proc/{pid}').exists() for pid in workers)
    lines = [line for line in output.splitlines() if line.startswith('received')]
    assert len(lines) == len({*lines}) * 2 == 8, 'the main process in both epochs, and no worker'
    assert 'Traceback' not in output


def test_usable_cores_follow_the_affinity_of_the_process() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ('wanted', 'cores', 'processes', 'workers'),
    [(8, 64, 8, 8), (8, 16, 8, 2), (8, 3, 8, 1), (0, 4, 1, 0), (9, 16, 8, 9), (7, 2, 1, 7)],
)
def test_the_default_of_workers_is_limited_to_the_share_of_the_cores_and_others_are_kept(
    wanted: int, cores: int, processes: int, workers: int, monkeypatch, caplog, tmp_path: Path
) -> None:
    monkeypatch.setattr('system.tool.usable_cpus', lambda: cores)
    monkeypatch.setattr('data.tables.reading.usable_cpus', lambda: cores)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', str(processes))
    assert make_loader(Sends(), loader_config(2, wanted), shuffle=False).num_workers == workers
    config = default_config()
    config.DATA.NUM_WORKERS, config.DATA.DATA_PATH = wanted, str(tmp_path)
    with caplog.at_level(logging.INFO):
        log_loading(config, logging.getLogger())
    is_more = wanted > max(1, cores // processes)
    assert [record.levelno for record in caplog.records] == [
        logging.INFO if workers < wanted else logging.WARNING
    ] * is_more

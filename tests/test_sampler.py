"""The order of an epoch and its batches: whole, seeded, shared out over ranks, gone on with."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chisquare

from data.loader import (
    EpochSampler,
    XrayDataset,
    epoch_order,
    inverse_frequency_weights,
    make_loader,
    occurrences,
    sample_rng,
    weighted_order,
)

NAN = float('nan')
WEIGHTS = np.arange(1, 24.0) ** 2


def batches(*, epoch: int = 0, first_batch: int = 0, **options) -> list[list[tuple[int, ...]]]:
    sampler = EpochSampler(**({'num_images': 23, 'batch_size': 4, 'seed': 0} | options))
    sampler.set_epoch(epoch, first_batch)
    return list(sampler)


def test_an_epoch_visits_each_image_once_but_for_the_dropped_rest():
    got = batches(shuffle=True, epoch=3)
    assert [len(batch) for batch in got] == [4] * 5
    assert {epoch for batch in got for epoch, _ in batch} == {3}
    indices = [index for batch in got for _, index in batch]
    assert len(set(indices)) == 20 and set(indices) <= set(range(23))
    assert indices != sorted(indices)


def test_the_order_depends_on_seed_and_epoch_alone():
    assert batches(shuffle=True, epoch=1) == batches(shuffle=True, epoch=1)
    orders = [
        [index for batch in batches(shuffle=True, epoch=epoch, seed=seed) for _, index in batch]
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(map(tuple, orders))) == 4


@pytest.mark.parametrize('weights', [None, WEIGHTS], ids=['uniform', 'weighted'])
@pytest.mark.parametrize('world_size', [2, 3])
def test_ranks_share_the_global_batches_of_one_process(world_size, weights):
    options = {'shuffle': True, 'epoch': 2, 'weights': weights}
    single = batches(**options, batch_size=2 * world_size)
    ranks = [
        batches(**options, batch_size=2, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == single


def test_evaluation_takes_every_image_once_in_order_and_stays_in_epoch_0():
    ranks = [
        batches(shuffle=False, epoch=5, rank=rank, world_size=2, batch_size=4) for rank in (0, 1)
    ]
    assert [len(batch) for batch in ranks[0]] == [4, 4, 4]
    assert [len(batch) for batch in ranks[1]] == [4, 4, 3]
    for rank in (0, 1):
        got = sum(ranks[rank], [])
        assert got == [(0, index) for index in range(rank, 23, 2)]


@pytest.mark.parametrize('shuffle', [True, False])
def test_length_is_that_of_a_whole_epoch_wherever_it_begins(shuffle):
    sampler = EpochSampler(23, batch_size=4, shuffle=shuffle, seed=0)
    whole = len(list(sampler))
    sampler.set_epoch(0, first_batch=2)
    assert len(sampler) == whole == (5 if shuffle else 6)
    assert len(list(sampler)) == whole - 2


def test_too_few_images_for_a_batch_are_refused_with_the_counts():
    with pytest.raises(ValueError, match='7 training images do not fill .*BATCH_SIZE 4 x 2 proc'):
        EpochSampler(7, batch_size=4, shuffle=True, seed=0, world_size=2)
    assert len(EpochSampler(8, batch_size=4, shuffle=True, seed=0, world_size=2)) == 1
    assert len(EpochSampler(7, batch_size=4, shuffle=False, seed=0, world_size=2)) == 1


# Weighted epochs -----------------------------------------------------------------------------


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


def test_weights_of_many_images_are_those_counted_one_by_one():
    rng = np.random.default_rng(0)
    targets = rng.choice([0, 1, 2, NAN, 0.3, 0.8], size=(60, 5)).astype(np.float32)
    targets[::9] = NAN
    values = [[None if t != t else t if t == 2 else t >= 0.5 for t in row] for row in targets]
    sizes = [Counter(row[k] for row in values) for k in range(5)]
    want = [
        np.mean([1 / sizes[k][value] for k, value in enumerate(row) if value is not None])
        for row in values
        if any(value is not None for value in row)
    ]
    known = np.isfinite(targets).any(axis=1)
    got = inverse_frequency_weights(targets)
    np.testing.assert_allclose(got[known], want, rtol=1e-12)
    np.testing.assert_allclose(got[~known], np.mean(want), rtol=1e-12)
    assert known.sum() == 53


def test_without_any_known_label_all_images_weigh_the_same():
    assert inverse_frequency_weights(np.full((3, 2), NAN)).tolist() == [1, 1, 1]


def test_draws_are_in_proportion_to_the_weights():
    drawn = np.concatenate([weighted_order(0, epoch, WEIGHTS) for epoch in range(2000)])
    counts = np.bincount(drawn, minlength=23)
    assert len(counts) == 23
    assert chisquare(counts, WEIGHTS / WEIGHTS.sum() * len(drawn)).pvalue > 1e-3


def test_a_rare_finding_is_drawn_as_often_as_its_absence():
    targets = (np.arange(10_000) % 50 == 0).astype(np.float32)[:, None]
    order = weighted_order(3, 0, inverse_frequency_weights(targets))
    assert abs(targets[order].mean() - 0.5) < 4 * 0.5 / 100


def test_weighted_order_is_a_function_of_seed_epoch_and_weights_with_a_stream_of_its_own():
    orders = {
        tuple(weighted_order(seed, epoch, WEIGHTS)) for seed in range(4) for epoch in range(4)
    }
    assert len(orders) == 16
    assert all(len(order) == 23 and min(order) >= 0 and max(order) < 23 for order in orders)
    np.testing.assert_array_equal(weighted_order(1, 2, WEIGHTS), weighted_order(1, 2, WEIGHTS))
    np.testing.assert_array_equal(weighted_order(1, 2, WEIGHTS), weighted_order(1, 2, 7 * WEIGHTS))
    draws = (weighted_order(1, 2, np.ones(10_000)) + 0.5) / 10_000
    others = [sample_rng(1, 2, index).random(10_000) for index in range(3)]
    order_bits = np.random.Philox(key=[1, 2], counter=[0, 0, 1, 0])
    others += [np.random.Generator(order_bits).random(10_000), epoch_order(1, 2, 10_000)]
    for other in others:
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.04


def test_occurrences_count_what_came_before():
    order = np.random.default_rng(1).integers(0, 9, 50)
    want = [list(order[:i]).count(image) for i, image in enumerate(order)]
    assert occurrences(order).tolist() == want and max(want) > 5


def test_weighted_batches_number_the_draws_of_an_image_over_all_ranks():
    ranks = [
        batches(shuffle=True, weights=WEIGHTS, epoch=4, batch_size=2, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    keys = [key for parts in zip(*ranks, strict=True) for part in parts for key in part]
    assert len(keys) == 20 and {epoch for epoch, _, _ in keys} == {4}
    before = Counter()
    for _, image, occurrence in keys:
        assert occurrence == before[image]
        before[image] += 1
    assert max(before.values()) > 1


def test_a_weighted_epoch_goes_on_where_it_stopped():
    whole = batches(shuffle=True, weights=WEIGHTS, epoch=1)
    assert batches(shuffle=True, weights=WEIGHTS, epoch=1, first_batch=2) == whole[2:]
    assert len(whole) == 5
    indices, others = (
        [index for _, index, _ in sum(batches(shuffle=True, weights=WEIGHTS, epoch=epoch), [])]
        for epoch in (1, 2)
    )
    assert indices != others


# What an image goes through each time it is drawn ---------------------------------------------


class FakeRecords(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.row)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory) -> XrayDataset:
    """23 times one image, from row 100 on; a sample is its first random number."""
    root = tmp_path_factory.mktemp('xrays')
    Image.linear_gradient('L').save(root / 'image.png')
    records = FakeRecords(root=root, file=['image.png'] * 23, row=np.arange(100, 123))
    return XrayDataset(
        records, lambda image, rng: rng.random(), seed=5, targets=np.zeros((23, 1), np.float32)
    )


def draws_of(dataset, *, epoch: int = 0, first_batch: int = 0, workers: int = 0, weights=WEIGHTS):
    """(row, first random number) of every sample, in order."""
    loader = make_loader(
        dataset,
        batch_size=4,
        shuffle=True,
        num_workers=workers,
        pin_memory=False,
        weights=weights,
    )
    loader.batch_sampler.set_epoch(epoch, first_batch)
    return [
        (100 + int(index), float(draw))
        for draws, _, indices in loader
        for draw, index in zip(draws, indices, strict=True)
    ]


def test_an_image_drawn_again_is_drawn_otherwise(dataset):
    draws = draws_of(dataset)
    rows = Counter(row for row, _ in draws)
    assert max(rows.values()) > 2
    assert len({draw for _, draw in draws}) == len(draws) == 20


def test_streams_of_an_image_do_not_overlap():
    draws = [sample_rng(0, 0, 7, occurrence).random(50) for occurrence in range(20)]
    assert len(set(np.concatenate(draws))) == 1000


def test_samples_are_those_of_uniform_epochs_where_an_image_comes_first(dataset):
    uniform = draws_of(dataset, epoch=3, weights=None)
    streams = {
        row: np.random.Generator(np.random.Philox(key=[5, 3], counter=[0, row, 0, 0])).random()
        for row in range(100, 123)
    }
    assert len(uniform) == 20
    assert all(draw == streams[row] for row, draw in uniform)
    seen = set()
    for row, draw in draws_of(dataset, epoch=3):
        assert (draw == streams[row]) == (row not in seen)
        seen.add(row)


def test_workers_and_restarts_change_no_weighted_sample(dataset):
    whole = draws_of(dataset, epoch=1)
    assert draws_of(dataset, epoch=1, workers=2) == whole
    assert draws_of(dataset, epoch=1, first_batch=3) == whole[12:]


def test_uniform_epochs_name_no_occurrence():
    want = [(2, index) for index in epoch_order(0, 2, 23).tolist()]
    assert sum(batches(shuffle=True, epoch=2), []) == want[:20]

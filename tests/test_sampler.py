"""The order of an epoch and its batches: whole, seeded, shared out over ranks, gone on with."""

import pytest

from data.loader import EpochSampler


def batches(*, epoch: int = 0, first_batch: int = 0, **options) -> list[list[tuple[int, int]]]:
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


@pytest.mark.parametrize('world_size', [2, 3])
def test_ranks_share_the_global_batches_of_one_process(world_size):
    single = batches(shuffle=True, epoch=2, batch_size=2 * world_size)
    ranks = [
        batches(shuffle=True, epoch=2, batch_size=2, rank=rank, world_size=world_size)
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

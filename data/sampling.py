"""What chance decides: a generator per sample and an order per epoch, each from its key alone."""

import numpy as np


def sample_rng(seed: int, epoch: int, index: int, occurrence: int = 0) -> np.random.Generator:
    """The generator of one sample: the same whatever worker, rank or restart asks for it.

    Counter-based (Philox): epoch and seed are its key, the sample's index and occurrence lie in
    the counter, so the streams of two samples never overlap.  Draws are made in a fixed order:
    crop, flip, mask, then what fine-tuning adds.

    Args:
        seed: SEED of the config, 0 or greater.
        epoch: epoch, from 0.
        index: stable number of the image (its row in the CSV), 0 or greater.
        occurrence: how often the epoch has had the image before.
    """
    bits = np.random.Philox(key=[seed, epoch], counter=[0, index, 0, occurrence])
    return np.random.Generator(bits)


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order in which an epoch visits its images, a permutation [length] of their positions."""
    bits = np.random.Philox(key=[seed, epoch], counter=[0, 0, 1, 0])  # 1: no sample's stream
    return np.random.Generator(bits).permutation(length)


def weighted_order(seed: int, epoch: int, weights: np.ndarray) -> np.ndarray:
    """An epoch's images drawn with replacement, each in proportion to its weight.

    Args:
        seed: SEED of the config.
        epoch: epoch, from 0.
        weights: [N], 0 or greater.

    Returns:
        [N] positions.
    """
    bits = np.random.Philox(key=[seed, epoch], counter=[0, 0, 2, 0])  # 2: neither of the above
    ends = np.cumsum(weights, dtype=np.float64)
    draws = np.random.Generator(bits).random(len(ends)) * ends[-1]
    return np.searchsorted(ends, draws, side='right')


def occurrences(order: np.ndarray) -> np.ndarray:
    """How often each entry of an order came up before, [N]."""
    by_image = np.argsort(order, kind='stable')
    ordered = order[by_image]
    counts = np.empty_like(order)
    counts[by_image] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return counts


def inverse_frequency_weights(targets: np.ndarray) -> np.ndarray:
    """Weight of each image: how rare its labels are.

    The mean over an image's known labels of 1 / (images with the same value of that label): with
    one label each of its values is drawn equally often.

    Args:
        targets: [N, K], positive from 0.5 on; a third class (2) is a value of its own; NaN where
            unknown.

    Returns:
        [N]; an image of which nothing is known gets the mean weight of the others.
    """
    known = ~np.isnan(targets)
    values = np.where(targets > 1, 2, targets >= 0.5)
    shares = np.zeros(targets.shape)
    for value in range(3):
        same = known & (values == value)
        shares += same / np.maximum(same.sum(axis=0), 1)
    num_known = known.sum(axis=1)
    weights = shares.sum(axis=1) / np.maximum(num_known, 1)
    unknown = num_known == 0
    weights[unknown] = 1.0 if unknown.all() else weights[~unknown].mean()
    return weights

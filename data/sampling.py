"""What chance decides: a generator per sample and an order per epoch, each from its key alone."""

import numpy as np


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample: the same whatever worker, rank or restart asks for it.

    Counter-based (Philox): epoch and seed are its key, the sample's index lies in the counter, so
    the streams of two samples never overlap.  Draws are made in a fixed order: crop, flip, mask,
    then what fine-tuning adds.

    Args:
        seed: SEED of the config, 0 or greater.
        epoch: epoch, from 0.
        index: stable number of the image (its row in the CSV), 0 or greater.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, index, 0, 0]))


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order in which an epoch visits its images, a permutation [length] of their positions."""
    bits = np.random.Philox(key=[seed, epoch], counter=[0, 0, 1, 0])  # 1: no sample's stream
    return np.random.Generator(bits).permutation(length)

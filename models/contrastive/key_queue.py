"""MoCo's queue: the keys of the last batches, of all processes."""

import torch
from torch import nn

from models.contrastive.gather import gather_rows


def check_queue_size(size: int, global_batch: int) -> None:
    """See that the queue holds whole batches.

    Raises:
        ValueError: if its size is no multiple of the images that enter it at once.
    """
    if size < 1 or size % global_batch:
        raise ValueError(
            f'queue_size {size} must be a multiple of the {global_batch} images of a batch (batch '
            'size times processes)'
        )


class KeyQueue(nn.Module):
    """Ring of keys; new ones take the place of the oldest.

    It is the same on all processes.  At first it holds zeros, which are like no query (cosine 0);
    random keys, as in MoCo's own code, would have to be agreed on between processes.

    Attributes:
        keys: [size, D], of length 1.
        pointer: where the next key goes.

    Source: He et al. 2020, arXiv:1911.05722.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer('keys', torch.zeros(size, dim))
        self.register_buffer('pointer', torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor) -> None:
        """Put in [B, D] of each process, those of rank 0 first.

        Raises:
            ValueError: if the queue's size is no multiple of the keys of all processes.
        """
        keys, size = gather_rows(keys), len(self.keys)
        check_queue_size(size, len(keys))
        # A tensor, so that nothing waits for the device; it wraps around if batches change size.
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
        self.keys.index_copy_(0, places, keys.to(self.keys.dtype))
        self.pointer.copy_((self.pointer + len(keys)) % size)

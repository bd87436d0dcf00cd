"""The process group: rank, number of processes, and gathering; everything works on one process too.

When one process of a run ends, the others end within 40 s: the broken connection raises an
error in the next collective operation, and torchrun kills the rest of a group 30 s after asking it
to stop. A process that hangs, or whose
network is cut silently, is waited for TRAIN.RANK_TIMEOUT_MINUTES.
"""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def init_process_group(device: torch.device, timeout_minutes: float) -> None:
    """Join the group that torchrun's environment describes; do nothing without one.

    The backend is NCCL on CUDA and gloo on the CPU.

    Args:
        device: Device of this process.
        timeout_minutes: A collective operation that takes longer raises an error.
    """
    if 'WORLD_SIZE' not in os.environ or dist.is_initialized():
        return
    backend = 'nccl' if device.type == 'cuda' else 'gloo'
    timeout = timedelta(minutes=timeout_minutes)
    store, number, size = next(dist.rendezvous('env://', timeout=timeout))
    # torchrun keeps its store when it restarts the processes of a node, with the addresses of those
    # that ended; so each start uses its own keys.
    store = dist.PrefixStore(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0'), store)
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)


def destroy_process_group() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def gather(value: Any) -> list[Any]:
    """Every rank's value (any picklable object), in the order of the ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum over ranks of each element, as a new tensor."""
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total

"""The process group: who am I, how many are we, and gathering; right answers on one process too."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def init_process_group(device: torch.device) -> None:
    """Join the group that torchrun's environment describes; without one, do nothing.

    NCCL on CUDA, gloo on CPU.
    """
    if 'WORLD_SIZE' in os.environ and not dist.is_initialized():
        backend = 'nccl' if device.type == 'cuda' else 'gloo'
        dist.init_process_group(backend, timeout=timedelta(minutes=30))


def destroy_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def gather(value: Any) -> list[Any]:
    """Every rank's value (any picklable object), in the order of ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, element by element; the argument is left as it was."""
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total

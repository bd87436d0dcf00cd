"""The process group: rank, number of processes, and gathering; everything works on one process too.

When one process of a run fails, the others end within 40 s: the broken connection raises an error
in the next collective operation, `launch.Failures.watch` notices the recorded failure, on all
nodes, and torchrun kills the rest of its node's processes 30 s after asking them to stop. A process
that hangs, or whose network is cut silently, is waited for TRAIN.RANK_TIMEOUT_MINUTES.
"""

import os
import time
import uuid
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def init_process_group(device: torch.device, timeout_minutes: float) -> None:
    """Join the group that torchrun's environment describes; do nothing without one.

    The backend is NCCL on CUDA and gloo on the CPU. A collective operation that takes longer than
    `timeout_minutes` raises an error.
    """
    if 'WORLD_SIZE' not in os.environ or dist.is_initialized():
        return
    backend = 'nccl' if device.type == 'cuda' else 'gloo'
    timeout = timedelta(minutes=timeout_minutes)
    store, number, size = next(dist.rendezvous('env://', timeout=timeout))
    if int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)):
        store = dist.PrefixStore(_agree_on_prefix(store, number, size, timeout), store)
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


def _agree_on_prefix(store: dist.Store, number: int, size: int, timeout: timedelta) -> str:
    """A prefix for the keys of the store that only this start of the group uses.

    torchrun keeps its store when it restarts the processes, with the addresses of those that ended,
    and counts the restarts of each node alone. Rank 0 therefore invents a prefix and answers all
    who ask for it, also those of an earlier start, which nobody reads.
    """
    own = uuid.uuid4().hex
    if number > 0:
        store.set(f'asks/{number}', own)
        prefix = store.get(f'answer/{own}').decode()
        store.set(f'has/{prefix}/{number}', '')
        return prefix
    end = time.monotonic() + timeout.total_seconds()
    missing = set(range(1, size))
    while missing:
        for other in missing:
            if store.check([f'asks/{other}']):
                store.set(f'answer/{store.get(f"asks/{other}").decode()}', own)
        missing = {other for other in missing if not store.check([f'has/{own}/{other}'])}
        if time.monotonic() > end:
            raise dist.DistStoreError(f'timed out waiting for the ranks {sorted(missing)}')
        time.sleep(0.02)
    return own

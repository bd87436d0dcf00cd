"""Process group: rank, number of processes and collective operations, also for a single process.

When one process of a run fails, the others end within 40 s: the broken connection raises an error
in the next collective operation, and torchrun kills the other processes of its node 30 s after
asking them to stop. If a process hangs, or its node dies silently, the others wait for
TRAIN.RANK_TIMEOUT_MINUTES, and without a limit during `run_on_main`.
"""

import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from threadpoolctl import threadpool_limits

T = TypeVar('T')
NO_LIMIT = timedelta(days=365)
GROUP = ('WORLD_SIZE', 'RANK', 'MASTER_ADDR', 'MASTER_PORT')  # what a process needs to find others


def init_process_group(device: torch.device, timeout_minutes: float) -> None:
    """Join the process group that torchrun's environment describes, if there is one.

    Args:
        device: Device of this process. CUDA uses NCCL and the CPU gloo.
        timeout_minutes: Minutes after which a collective operation raises an error.

    Raises:
        ValueError: If the environment has a part of what torchrun sets.
    """
    if dist.is_initialized() or not _has_group():
        return
    backend = 'nccl' if device.type == 'cuda' else 'gloo'
    timeout = timedelta(minutes=timeout_minutes)
    store, number, size = next(dist.rendezvous('env://', timeout=timeout))
    # After a restart, torchrun's store still has the addresses of the processes that have ended.
    if int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)):
        store = dist.PrefixStore(_agree_on_prefix(store, number, size, timeout), store)
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)


def destroy_process_group() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process is rank 0."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def gather(value: Any) -> list[Any]:
    """Return the (picklable) values of all ranks, in the order of the ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Return the value of rank 0 on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def run_on_main(function: Callable[[], T]) -> T:
    """Return the result of a long computation of rank 0 on every rank.

    The others wait as long as it takes. Rank 0 uses the threads of all processes of its node.
    """
    if not dist.is_initialized():
        return function()
    # The group of the run would give up after its timeout, so a group without one waits.
    group, values = dist.new_group(backend='gloo', timeout=NO_LIMIT), [None]
    if is_main():
        threads = torch.get_num_threads() * int(os.environ.get('LOCAL_WORLD_SIZE', '1'))
        with threadpool_limits(threads):
            values = [function()]
    dist.broadcast_object_list(values, src=0, group=group)
    dist.destroy_process_group(group)
    return values[0]


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, elementwise."""
    if not dist.is_initialized():
        return values
    # all_reduce works in place, and the caller keeps its values.
    total = values.clone()
    dist.all_reduce(total)
    return total


def _has_group() -> bool:
    """Return whether torchrun started this process, and not something that left a part behind."""
    found = [name for name in ('WORLD_SIZE', 'RANK') if os.environ.get(name)]
    missing = [name for name in GROUP if not os.environ.get(name)]
    if found and missing:
        raise ValueError(
            f'the environment has {", ".join(found)}, as for several processes, but no '
            f'{", ".join(missing)}: unset {" ".join(found)}, or start with torchrun'
        )
    return bool(found)


def _agree_on_prefix(store: dist.Store, number: int, size: int, timeout: timedelta) -> str:
    """Agree on a key prefix in torchrun's store that only this start of the group uses.

    When torchrun restarts the processes, its store keeps the addresses of the previous ones, and
    each node counts restarts separately. Rank 0 therefore chooses a random prefix and answers every
    request in the store. Answers to requests of an earlier start are never read.
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

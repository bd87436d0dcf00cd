"""The process group: who am I, how many are we, and gathering; right answers on one process too.

When one process of a run ends, whatever the cause, the others end within END_SECONDS: the broken
connection is an error in the next exchange (gloo; NCCL between nodes), a failure that the process
could still record is noticed by `failures.Failures.watch`, and torchrun kills what is left of a
group 30 s after it asked it to end.  A process that stands still, or whose network is cut without
a word, is waited for TRAIN.RANK_TIMEOUT_MINUTES, the longest that an exchange may take; gloo has no
keepalive that could tell earlier.
"""

import os
import time
import uuid
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

END_SECONDS = 40


def init_process_group(device: torch.device, timeout_minutes: float) -> None:
    """Join the group that torchrun's environment describes; without one, do nothing.

    NCCL on CUDA, gloo on CPU; an exchange that takes longer than the timeout is an error.
    """
    if 'WORLD_SIZE' in os.environ and not dist.is_initialized():
        backend = 'nccl' if device.type == 'cuda' else 'gloo'
        timeout = timedelta(minutes=timeout_minutes)
        store, number, size = next(dist.rendezvous('env://', timeout=timeout))
        if int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)):
            store = dist.PrefixStore(_agree_on_part(store, number, size, timeout), store)
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)


def _agree_on_part(store: dist.Store, number: int, size: int, timeout: timedelta) -> str:
    """A name for the part of the store that only this start of the group writes to.

    torchrun keeps its store over restarts, with the addresses of processes that have ended, which
    new ones would try to reach. So rank 0 invents a name, and answers all who ask until they have
    it; what processes of an earlier start asked is answered, too, and read by nobody.
    """
    own = uuid.uuid4().hex
    if number > 0:
        store.set(f'asks/{number}', own)
        part = store.get(f'answer/{own}').decode()
        store.set(f'has/{part}/{number}', '')
        return part
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

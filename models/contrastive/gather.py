"""Rows of all processes, with gradient; the argument itself on one process."""

import torch
import torch.distributed as dist

import distributed


class _GatherRows(torch.autograd.Function):
    """Each process's rows take part in every process's loss: their gradients are added up."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> torch.Tensor:
        total = distributed.all_reduce_sum(grad.contiguous())
        return total.chunk(distributed.world_size())[distributed.rank()]


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """[B, ...] of each process to [processes * B, ...] in the order of ranks, on every process.

    B must be the same everywhere.  The gradient is that of the sum of all processes' losses.
    """
    return rows if distributed.world_size() == 1 else _GatherRows.apply(rows.contiguous())

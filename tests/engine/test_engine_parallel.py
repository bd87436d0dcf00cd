"""The exchange of gradients between two processes."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from engine.parallel import wrap_parallel

SHARES = torch.tensor([[1 + 2**-12, -3.0, 0.1], [2.0, 5 + 2**-9, 0.3]])  # images of two processes


def save_gradients(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder / "s"}', rank=rank, world_size=2)
    found = {}
    for exchange in ('float32', 'bfloat16'):
        layer = nn.Linear(3, 1, bias=False)
        nn.init.zeros_(layer.weight)
        model = wrap_parallel(layer, torch.device('cpu'), exchange)
        model(SHARES[rank : rank + 1]).sum().backward()
        found[exchange] = layer.weight.grad[0].clone()
    torch.save(found, folder / f'{rank}.pth')
    dist.barrier()
    os._exit(0)  # the end of the process group hung once, in PyTorch 2.8


def test_gradients_are_exchanged_in_float32_or_rounded_to_bfloat16(tmp_path: Path) -> None:
    """The gradient of a linear layer is its input, of which the processes take the mean."""
    multiprocessing.start_processes(save_gradients, args=(tmp_path,), nprocs=2, start_method='fork')
    ranks = [torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1)]
    for rank in ranks:
        torch.testing.assert_close(rank['float32'], SHARES.mean(dim=0), rtol=0, atol=0)
        halves = SHARES.bfloat16() / 2
        wanted = (halves[0] + halves[1]).float()
        torch.testing.assert_close(rank['bfloat16'], wanted, rtol=0, atol=0)
        assert (rank['bfloat16'] != rank['float32']).any()

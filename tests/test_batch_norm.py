"""Batch norm over processes: theirs together are PyTorch's over all values."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from engine.parallel import share_batch_norm
from system import distributed

EXACT = {'rtol': 1e-10, 'atol': 1e-12}


class Ranks:
    """Threads in place of processes: each has a number, and sums are over all of them."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = count
        self.own = threading.local()
        self.barrier = threading.Barrier(count, timeout=30)
        self.values: list[Tensor | None] = [None] * count
        monkeypatch.setattr(distributed, 'world_size', lambda: count)
        monkeypatch.setattr(distributed, 'rank', lambda: self.own.rank)
        monkeypatch.setattr(distributed, 'all_reduce_sum', self.sum)

    def sum(self, values: Tensor) -> Tensor:
        self.values[self.own.rank] = values
        self.barrier.wait()
        total = torch.stack(self.values).sum(0)
        self.barrier.wait()
        return total

    def run(self, function: Callable) -> list:
        """What the function gives for each rank."""

        def one(rank: int) -> object:
            self.own.rank = rank
            return function(rank)

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(one, range(self.count)))


def values(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 + 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def step(norm: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Output, gradients and running statistics after a step in training."""
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(grad)
    parameters = {name: p.grad for name, p in norm.named_parameters()}
    return {'y': y.detach(), 'x': x.grad, **parameters, **dict(norm.named_buffers())}


NORMS = {
    '1d': (lambda: nn.BatchNorm1d(3, momentum=0.3), (6, 3)),
    '2d': (lambda: nn.BatchNorm2d(3, eps=0.1), (6, 3, 4, 4)),
    "timm's with activation": (lambda: BatchNormAct2d(3, act_layer=nn.SiLU), (6, 3, 4, 4)),
}


@pytest.mark.parametrize('split', [[3, 3], [2, 0, 4]], ids=str)
@pytest.mark.parametrize('kind', NORMS)
def test_ranks_together_are_one(kind: str, split: list[int], monkeypatch) -> None:
    """Two steps, with as many images on each rank or not; gradients of weights add up."""
    make, shape = NORMS[kind]
    one = make().double()
    for parameter in one.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    several = [copy.deepcopy(one) for _ in split]
    ranks = Ranks(len(split), monkeypatch)
    for norm in several:
        share_batch_norm(norm)
        assert [*norm.state_dict()] == [*one.state_dict()]
    for seed in (0, 2):
        x, grad = values(*shape, seed=seed), values(*shape, seed=seed + 1)
        want = step(one, x, grad)
        shares = [tensor.split(split) for tensor in (x, grad)]
        got = ranks.run(lambda rank, shares=shares: step(several[rank], *(s[rank] for s in shares)))
        for key, value in want.items():
            parts = [part[key] for part in got]
            if key in ('y', 'x'):
                torch.testing.assert_close(torch.cat(parts), value, **EXACT)
            elif key in ('weight', 'bias'):
                torch.testing.assert_close(sum(parts), value, **EXACT)
            else:
                for part in parts:
                    torch.testing.assert_close(part, value, **EXACT, msg=key)
    fresh = values(*shape, seed=9)
    torch.testing.assert_close(several[0].eval()(fresh), one.eval()(fresh), **EXACT)


def test_other_kinds_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match='BatchNorm3d'):
        share_batch_norm(nn.Sequential(nn.BatchNorm3d(2)))

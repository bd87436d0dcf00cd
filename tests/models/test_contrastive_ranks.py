"""Contrastive methods in two processes, without batch norm: they are one with the whole batch.

Their encoders are compiled.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from small_contrastive import BUILD, assert_same_state, build, sgd, views
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from engine.compilation import compile_encoder
from engine.parallel import BUFFER_OPTION


def run_rank(rank: int, world_size: int, folder: Path) -> None:
    """Three steps of each method on this process's share of the batch, written to a file."""
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    torch.set_num_threads(1)
    store = f'file://{folder / "store"}'
    dist.init_process_group('gloo', init_method=store, rank=rank, world_size=world_size)
    results, graphs, compile_with = {}, [], torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward  # Inductor would take minutes

    torch.compile = lambda function, **_: compile_with(function, backend=backend, fullgraph=True)
    for name in BUILD:
        graphs.clear()
        torch._dynamo.reset()
        method = build(name)
        compile_encoder(method)
        wrapped = DistributedDataParallel(
            method, gradient_as_bucket_view=True, **{BUFFER_OPTION: False}
        )
        results[name] = three_steps(
            name, wrapped, lambda view: view.chunk(world_size)[rank].contiguous()
        )
        assert graphs, 'the encoders are compiled'
    torch.save(results, folder / f'rank{rank}.pth')
    dist.destroy_process_group()


def three_steps(name: str, model: nn.Module, share: Callable) -> dict:
    """Losses, gradients of each step, and the state after them."""
    inner = getattr(model, 'module', model)
    optimizer, losses, gradients = sgd(inner), [], []
    for step in range(3):
        inner.begin_step()
        loss = model(*map(share, views(name, step)))
        loss.backward()
        losses.append(loss.item())
        gradients.append(
            {k: p.grad.clone() for k, p in inner.named_parameters() if p.requires_grad}
        )
        optimizer.step()
        optimizer.zero_grad()
    return {'losses': losses, 'gradients': gradients, 'state': inner.state_dict()}


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    """Losses on average, gradients, and all that is kept: the queue in the order of ranks."""
    multiprocessing.spawn(run_rank, args=(2, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f'rank{r}.pth', weights_only=True) for r in range(2)]
    for name in BUILD:
        want = three_steps(name, build(name), lambda view: view)
        both = [rank[name] for rank in ranks]
        losses = np.mean([each['losses'] for each in both], axis=0)
        np.testing.assert_allclose(losses, want['losses'], rtol=1e-10)
        for each in both:
            for got, gradient in zip(each['gradients'], want['gradients'], strict=True):
                assert_same_state(got, gradient, rtol=1e-8, atol=1e-12)
            assert_same_state(each['state'], want['state'], rtol=1e-8, atol=1e-12)

"""Compiled steps: same numbers, compiled once, and runs that continue."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from same_runs import assert_same_weights, final_state
from tiny import VIT, arguments, config_with, run_folder, run_main, tiny_config
from torch import nn
from torch.distributed import GradBucket

from engine import loop
from engine.compilation import Compiled
from engine.parallel import wrap_parallel
from engine.train_state import TrainState
from system import distributed

CPU = torch.device('cpu')
LOGGER = logging.getLogger('compilation')


@pytest.fixture
def graphs(monkeypatch) -> list[torch.fx.GraphModule]:
    """The graphs that a test compiles, without Inductor, which would take minutes."""
    found, compile_with = [], torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, 'compile', lambda m, **_: compile_with(m, backend=backend))
    return found


@pytest.mark.parametrize(
    ('how', 'device', 'stage', 'processes', 'is_compiled'),
    [
        ('auto', 'cuda', 'simmim', 2, True),
        ('auto', 'cuda of 7.5', 'simmim', 1, False),
        ('auto', 'cpu', 'simmim', 1, False),
        ('none', 'cuda', 'simmim', 1, False),
        ('overlap', 'cuda', 'simmim', 2, True),
        ('overlap', 'cuda', 'contrastive', 2, False),
        ('auto', 'cuda', 'contrastive', 1, True),
        ('auto', 'cuda', 'contrastive', 2, False),  # only the encoder
    ],
)
def test_auto_compiles_on_a_gpu(how, device, stage, processes, is_compiled, monkeypatch) -> None:
    device, _, old = device.partition(' of ')
    capability = (7, 5) if old else (8, 0)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: capability)
    monkeypatch.setattr(distributed, 'world_size', lambda: processes)
    monkeypatch.setattr(loop, 'wrap_parallel', lambda model, *_: model)
    run = SimpleNamespace(config=config_with(TRAIN__COMPILE=how), device=torch.device(device))
    run.stage, run.logger = stage, LOGGER
    model = nn.Sequential()
    model.encoder, model.features = nn.Linear(3, 4), len
    state = SimpleNamespace(model=model, module=None)
    with torch._dynamo.config.patch(optimize_ddp=how != 'overlap'):
        loop.wrap_model(run, state)
        divides = torch._dynamo.config.optimize_ddp
    assert isinstance(state.model, Compiled) == is_compiled
    if is_compiled:
        assert state.model.graphs == (how == 'auto')
    if is_compiled or model.features != len:
        assert divides == (how == 'overlap')
    assert (model.features != len) == (stage == 'contrastive' and processes == 2)


@pytest.mark.slow
def test_a_compiled_run_gives_the_same_weights_and_compiles_once(
    phantom, tmp_path, monkeypatch, graphs
) -> None:
    """With drop path, accumulation and scoring after each of two epochs."""
    monkeypatch.setattr(loop, 'COMPILED_DEVICES', ('cpu', 'cuda'))
    sections = {'DATA': {'TRAIN_IMAGES': 12}, 'EVAL': {'HOLDOUT_IMAGES': 2}}
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', VIT, **sections)
    options = ['--opts', 'TRAIN.COMPILE', 'none']
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'eager', *options)) == 0
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'compiled')) == 0
    assert len(graphs) == 1, 'one graph of the whole model, compiled once'
    first, second = (
        final_state(run_folder(tmp_path / name, 'simmim')) for name in ('eager', 'compiled')
    )
    assert_same_weights(second, first)


def test_a_model_that_cannot_be_compiled_is_trained_uncompiled(monkeypatch) -> None:
    """Autocast caches cast weights, which must not be without a gradient or of an old graph."""

    def fail(module: nn.Module, mode: str, dynamic: bool) -> nn.Module:
        def call(*inputs: torch.Tensor) -> torch.Tensor:
            module(*inputs).sum().backward()
            raise RuntimeError('after a whole step')

        return call

    monkeypatch.setattr(torch, 'compile', fail)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    compiled = Compiled(layers, graphs=True, logger=LOGGER)
    gradients, images = [], torch.randn(5, 3)
    for called in (compiled, layers):
        layers.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            loss = called(images).float().square().sum()
        loss.backward()
        gradients.append([parameter.grad for parameter in layers.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize(('keeps_gradients', 'pieces'), [(False, 1), (True, 1), (False, 2)])
def test_processes_exchange_each_gradient_once_outside_of_the_compiled_model(
    keeps_gradients: bool, pieces: int, tmp_path, monkeypatch, graphs
) -> None:
    """With accumulation, as one graph or one a bucket; the weights are those of plain training."""
    # 96 bytes of the last layer fill the first bucket.
    monkeypatch.setattr(torch.distributed, '_DEFAULT_FIRST_BUCKET_BYTES', 64)
    monkeypatch.setattr(distributed, 'world_size', lambda: 2)  # the group below has one process
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4))
    model = copy.deepcopy(plain)
    batches, exchanged = torch.randn(3, 2, 8, 6), []
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        wrapped = wrap_parallel(Compiled(model, graphs=keeps_gradients, logger=LOGGER), CPU)
        state = SimpleNamespace(model=wrapped, parallel=wrapped)

        def exchange(_: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
            exchanged.append(bucket.buffer().numel())
            done = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        wrapped.register_comm_hook(None, exchange)
        steps = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, plain)]
        with torch._dynamo.config.patch(optimize_ddp=pieces > 1):
            for first, second in batches:
                with wrapped.no_sync():
                    wrapped(first).square().mean().backward()
                wrapped(second).square().mean().backward()
                (plain(first).square().mean() + plain(second).square().mean()).backward()
                for optimizer in steps:
                    optimizer.step()
                assert TrainState.keeps_gradients.fget(state) == keeps_gradients
                steps[0].zero_grad(set_to_none=not keeps_gradients)
                steps[1].zero_grad()
    finally:
        torch.distributed.destroy_process_group()
    assert len(graphs) == pieces
    assert sum(exchanged) == len(batches) * sum(each.numel() for each in plain.parameters())
    torch.testing.assert_close(dict(model.named_parameters()), dict(plain.named_parameters()))


def test_gradients_accumulate_outside_of_cuda_graphs(monkeypatch) -> None:
    """A graph is recorded in the second step and replayed in the third; then zeros are in place."""
    model, calls = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)]), []

    def call(inputs: torch.Tensor) -> torch.Tensor:
        calls.append(inputs)
        return model[0](inputs)

    monkeypatch.setattr(torch, 'compile', lambda *_, **__: call)
    compiled = Compiled(model, graphs=True, logger=LOGGER)
    images = torch.randn(5, 3)
    loss = compiled(images).sum()
    assert len(calls) == 4
    places = [parameter.grad for parameter in model[0].parameters()]
    assert not torch.cat([each.flatten() for each in places]).any()
    loss.backward()
    torch.testing.assert_close(places[0], images.sum(0).expand(4, 3))
    assert all(parameter.grad is None for parameter in model[1].parameters())


def test_a_lack_of_memory_is_not_taken_for_a_failed_compilation(monkeypatch) -> None:
    def call(*_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(torch, 'compile', lambda *_, **__: call)
    compiled = Compiled(nn.Linear(3, 4), graphs=True, logger=LOGGER)
    with pytest.raises(torch.OutOfMemoryError):
        compiled(torch.randn(5, 3))

"""Compiled steps: same numbers, compiled once, and runs that continue."""

import argparse
import logging

import pytest
import torch
from tiny import VIT, arguments, run_folder, run_main, tiny_config
from torch import nn

from config import build_parser, get_config
from engine import compilation
from engine.compilation import PAYS_FROM, Compiled, training_flops
from models import build_model
from scripts import benchmark
from utils import read_checkpoint

CPU = torch.device('cpu')
LOGGER = logging.getLogger('compilation')


def test_flops_of_a_step_are_the_published_ones() -> None:
    """SimMIM's count for Swin-B is for 3 channels, which add less than a percent."""
    cfg = 'configs/swin_base__chexpert_800ep/'
    cfg += 'simmim_pretrain__swin_base__img192_window6__chexpert_800ep.yaml'
    config = get_config(build_parser('simmim').parse_args(['--cfg', cfg, '--data-path', 'x']))
    with torch.device('meta'):
        inputs = torch.empty(7, 1, 192, 192), torch.empty(7, 48, 48)
        assert training_flops(build_model(config), inputs) / 1e9 == pytest.approx(68, rel=0.02)


def test_auto_compiles_long_runs() -> None:
    layer = nn.Linear(1000, 1000, device='meta')
    inputs = (torch.empty(5, 1000, device='meta'),)
    assert training_flops(layer, inputs) == 6e6
    enough = round(PAYS_FROM / 6e6)
    for num_images, pays in ((enough - 1, False), (enough + 1, True)):
        compiled = Compiled(layer, 'auto', num_images=num_images, graphs=True, logger=LOGGER)
        assert compiled._pays(inputs) is pays


@pytest.mark.slow
def test_a_compiled_run_gives_the_same_weights_and_compiles_once(
    phantom, tmp_path, monkeypatch
) -> None:
    """With drop path, accumulation and scoring after each of two epochs."""
    sections = {'DATA': {'TRAIN_IMAGES': 12}, 'EVAL': {'HOLDOUT_IMAGES': 2}}
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', VIT, **sections)
    graphs, compile_with = [], torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        graphs.append(graph)
        return graph.forward  # Inductor would take minutes

    monkeypatch.setattr(torch, 'compile', lambda m, **_: compile_with(m, backend=backend))
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'eager')) == 0
    options = ['--opts', 'TRAIN.COMPILE', 'max']
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'compiled', *options)) == 0
    assert len(graphs) == 1, 'one graph of the whole model, compiled once'
    first, second = (
        read_checkpoint(run_folder(tmp_path / name, 'simmim') / 'ckpt_epoch_1.pth')['model']
        for name in ('eager', 'compiled')
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


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
    compiled = Compiled(layers, 'max', num_images=1, graphs=True, logger=LOGGER)
    gradients, images = [], torch.randn(5, 3)
    for called in (compiled, layers):
        layers.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            loss = called(images).float().square().sum()
        loss.backward()
        gradients.append([parameter.grad for parameter in layers.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize(('groups', 'is_compiled'), [(1, True), (8, False)])
def test_groups_of_batch_norm_are_not_compiled(groups: int, is_compiled: bool) -> None:
    """Each group would be another copy of the encoder in the graph."""
    cfg = 'configs/resnet18__demo/contrastive_pretrain__resnet18__img64__moco_demo.yaml'
    opts = ['TRAIN.COMPILE', 'max', 'CONTRASTIVE.BN_GROUPS', groups]
    args = argparse.Namespace(cfg=cfg, stage='contrastive', batch_size=16, opts=opts)
    _, state, _ = benchmark.begin_run(benchmark.training_config(args, []), 'contrastive')
    assert isinstance(state.model, Compiled) == is_compiled


def test_gradients_accumulate_outside_of_cuda_graphs(monkeypatch) -> None:
    """A graph is recorded in the second step and replayed in the third; then zeros are in place."""
    model, calls = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)]), []

    def call(inputs: torch.Tensor) -> torch.Tensor:
        calls.append(inputs)
        return model[0](inputs)

    monkeypatch.setattr(torch, 'compile', lambda *_, **__: call)
    compiled = Compiled(model, 'max', num_images=1, graphs=True, logger=LOGGER)
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
    compiled = Compiled(nn.Linear(3, 4), 'max', num_images=1, graphs=True, logger=LOGGER)
    with pytest.raises(torch.OutOfMemoryError):
        compiled(torch.randn(5, 3))


def test_trying_a_step_restores_random_state_gradients_and_statistics() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[0].bias.requires_grad_(False)  # like the weights of a momentum encoder
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with compilation._restoring(model, CPU):
        model(torch.randn(5, 3)).sum().backward()
        assert model[1].num_batches_tracked == 1 and model[0].weight.grad is not None
        with torch.no_grad():
            model[0].bias += 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())

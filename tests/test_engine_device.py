"""Precision of a run, and compiled steps: same numbers, compiled once, and runs that continue."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from tiny import SWIN, VIT, arguments, run_folder, run_main, tiny_config, torchrun
from torch import nn

from config import build_parser, default_config, get_config
from engine import device as module
from engine.device import (
    PAYS_FROM,
    Compiled,
    autocast_dtype,
    describe_precision,
    training_flops,
    wrap,
)
from models import build_model
from utils import read_checkpoint

CPU = torch.device('cpu')
LOGGER = logging.getLogger('compilation')
COMPILE = torch.compile
MAX = ['--opts', 'TRAIN.COMPILE', 'max']


# Precision


@pytest.mark.parametrize(
    ('level', 'on_cpu', 'has', 'dtype'),
    [
        ('O1', False, True, None),
        ('O1', True, True, torch.bfloat16),
        ('O2', True, True, torch.bfloat16),
        ('O1', True, False, None),
        ('O0', True, True, None),
    ],
)
def test_precision_on_a_cpu(level, on_cpu, has, dtype, monkeypatch) -> None:
    monkeypatch.setattr(module, 'cpu_has_bf16', lambda: has)
    options = SimpleNamespace(AMP_OPT_LEVEL=level, AMP_ON_CPU=on_cpu)
    assert autocast_dtype(options, CPU) is dtype
    line = describe_precision(options, CPU)
    assert level in line and ('bfloat16' if dtype else 'float32') in line
    with module.autocast(options, CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is (dtype or torch.float32)


# Compilation


def weights(output, stage) -> dict[str, torch.Tensor]:
    return read_checkpoint(run_folder(output, stage) / 'ckpt_epoch_1.pth')['model']


def lines(output, stage) -> list[str]:
    log = (run_folder(output, stage) / 'log_rank0.txt').read_text()
    return re.findall(r'(?:INFO|WARNING) (TRAIN\.COMPILE.*)', log)


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: object) -> None:
    """Compile with `backend` instead of Inductor, which takes minutes."""
    monkeypatch.setattr(
        torch, 'compile', lambda module, mode, dynamic: COMPILE(module, backend=backend)
    )


@pytest.mark.parametrize(
    ('name', 'config', 'gflops'),
    [
        ('swin_base', 'simmim_pretrain__swin_base__img192_window6__chexpert_800ep', 68),
        ('vit_base', 'simmim_pretrain__vit_base__img224__chexpert_800ep', 105),
    ],
)
def test_flops_of_a_step_are_the_published_ones(name, config, gflops) -> None:
    """The published counts are for 3 channels, which add less than a percent."""
    cfg = f'configs/{name}__chexpert_800ep/{config}.yaml'
    config = get_config(build_parser('simmim').parse_args(['--cfg', cfg, '--data-path', 'x']))
    patch, size = config.MODEL[config.MODEL.TYPE.upper()].PATCH_SIZE, config.DATA.IMG_SIZE
    with torch.device('meta'):
        simmim = build_model(config)
        inputs = torch.empty(7, 1, size, size), torch.empty(7, *[size // patch] * 2)
    assert training_flops(simmim, inputs) / 1e9 == pytest.approx(gflops, rel=0.02)


def test_auto_compiles_long_runs() -> None:
    layer = nn.Linear(1000, 1000, device='meta')
    inputs = (torch.empty(5, 1000, device='meta'),)
    assert training_flops(layer, inputs) == 6e6
    enough = round(PAYS_FROM / 6e6)
    for num_images, pays in ((enough - 1, False), (enough + 1, True)):
        compiled = Compiled(layer, 'auto', num_images=num_images, graphs=True, logger=LOGGER)
        assert compiled._pays(inputs) is pays


@pytest.mark.parametrize(
    ('how', 'on_cpu', 'on_gpu'),
    [('none', False, False), ('auto', False, True), ('max', True, True)],
)
def test_what_is_compiled(how, on_cpu, on_gpu) -> None:
    config, layer = default_config(), nn.Linear(1, 1)
    config.TRAIN.COMPILE = how
    for device, wrapped in ((CPU, on_cpu), (torch.device('meta'), on_gpu)):
        called = wrap(config, layer, device, num_images=1, graphs=True, logger=LOGGER)
        assert isinstance(called, Compiled) == wrapped
        assert (called.module if wrapped else called) is layer


@pytest.mark.slow
@pytest.mark.parametrize(('stage', 'model'), [('simmim', SWIN), ('finetune', VIT)])
def test_a_compiled_run_gives_the_same_weights_and_compiles_once(
    stage, model, phantom, tmp_path, monkeypatch
) -> None:
    """With drop path, accumulation and scoring after each of two epochs."""
    cfg, graphs = tiny_config(tmp_path / 'run.yaml', stage, model), []
    assert run_main(stage, arguments(cfg, phantom, tmp_path / 'eager')) == 0

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        graphs.append(graph)
        return graph.forward

    use_backend(monkeypatch, backend)
    assert run_main(stage, arguments(cfg, phantom, tmp_path / 'compiled', *MAX)) == 0
    assert len(graphs) == 1, 'one graph of the whole model, compiled once'
    first, second = (weights(tmp_path / name, stage) for name in ('eager', 'compiled'))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert 'compiled in' in lines(tmp_path / 'compiled', stage)[0]


def broken_gradient(graph: torch.fx.GraphModule, inputs: list) -> object:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            return graph(*args)

        @staticmethod
        def backward(ctx, *grads):
            raise RuntimeError('the backward pass does not compile')

    return lambda *args: (Broken.apply(*args)[0].clone(),)


@pytest.mark.slow
def test_a_run_continues_if_compiling_fails(phantom, tmp_path, monkeypatch) -> None:
    message = 'the backward pass does not compile'
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim')
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'eager')) == 0
    use_backend(monkeypatch, broken_gradient)
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'fault', *MAX)) == 0
    (line,) = lines(tmp_path / 'fault', 'simmim')
    assert 'not compiled' in line and message in line
    first, second = (weights(tmp_path / name, 'simmim') for name in ('eager', 'fault'))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_uncompiled_model_has_all_gradients_under_autocast(monkeypatch) -> None:
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


def test_trying_a_step_restores_random_state_gradients_and_statistics() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[0].bias.requires_grad_(False)  # like the weights of a momentum encoder
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with module._restoring(model, CPU):
        model(torch.randn(5, 3)).sum().backward()
        assert model[1].num_batches_tracked == 1 and model[0].weight.grad is not None
        with torch.no_grad():
            model[0].bias += 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_two_compiled_ranks_equal_one_that_is_not_compiled(phantom, tmp_path) -> None:
    """With Inductor, and gradients of accumulated batches exchanged once."""
    model = SWIN | {'DROP_PATH_RATE': 0.0}
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', model)
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'one')) == 0
    options = ['--batch-size', '2', *MAX]
    done = torchrun('simmim', arguments(cfg, phantom, tmp_path / 'two', *options), processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'compiled in' in lines(tmp_path / 'two', 'simmim')[0]
    first, second = (weights(tmp_path / name, 'simmim') for name in ('one', 'two'))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=1e-5)

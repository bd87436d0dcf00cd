"""Compiled steps: whether a run is long enough, the same numbers, no recompiling, and failing."""

import logging
import re

import pytest
import torch
from compilers import record_graphs, use_backend
from tiny import SWIN, VIT, arguments, run_folder, run_main, tiny_config, torchrun
from torch import nn

from config import build_parser, default_config, get_config
from engine import device as compilation
from engine.device import PAYS_FROM, Compiled, training_flops, wrap
from models import build_model
from utils import read_checkpoint

CPU = torch.device('cpu')
LOGGER = logging.getLogger('compilation')
CONFIGS = {
    'swin_base': 'simmim_pretrain__swin_base__img192_window6__chexpert_800ep',
    'vit_base': 'simmim_pretrain__vit_base__img224__chexpert_800ep',
}


def weights(output, stage, epoch=1) -> dict[str, torch.Tensor]:
    return read_checkpoint(run_folder(output, stage) / f'ckpt_epoch_{epoch}.pth')['model']


def lines(output, stage) -> list[str]:
    log = (run_folder(output, stage) / 'log_rank0.txt').read_text()
    return re.findall(r'(?:INFO|WARNING) (TRAIN\.COMPILE.*)', log)


@pytest.mark.parametrize(('model', 'gflops'), [('swin_base', 68), ('vit_base', 105)])
def test_flops_of_a_step_are_the_published_ones(model, gflops) -> None:
    """Measured elsewhere with 3 channels, which add less than a percent."""
    cfg = f'configs/{model}__chexpert_800ep/{CONFIGS[model]}.yaml'
    config = get_config(build_parser('simmim').parse_args(['--cfg', cfg, '--data-path', 'x']))
    patch, size = config.MODEL[config.MODEL.TYPE.upper()].PATCH_SIZE, config.DATA.IMG_SIZE
    with torch.device('meta'):
        simmim = build_model(config)
        inputs = torch.empty(7, 1, size, size), torch.empty(7, *[size // patch] * 2)
    assert training_flops(simmim, inputs) / 1e9 == pytest.approx(gflops, rel=0.02)


def test_auto_compiles_on_a_gpu_from_so_many_flops_on(caplog) -> None:
    """The device stands for a GPU: any but the CPU."""
    caplog.set_level(logging.INFO)
    layer = nn.Linear(1000, 1000, device='meta')
    inputs = (torch.empty(5, 1000, device='meta'),)
    assert training_flops(layer, inputs) == 6e6
    enough = round(PAYS_FROM / 6e6)
    for num_images, pays in ((enough - 1, False), (enough + 1, True)):
        compiled = Compiled(layer, 'auto', num_images=num_images, graphs=True, logger=LOGGER)
        assert compiled._pays(inputs) is pays
    assert re.findall('not compiled, the run is too short', caplog.text) == [
        'not compiled, the run is too short'
    ]


def test_what_is_wrapped() -> None:
    config, layer = default_config(), nn.Linear(1, 1)
    for how, on_cpu, on_gpu in (('none', 0, 0), ('auto', 0, 1), ('max', 1, 1)):
        config.TRAIN.COMPILE = how
        for device, wrapped in ((CPU, on_cpu), (torch.device('meta'), on_gpu)):
            called = wrap(config, layer, device, num_images=1, graphs=True, logger=LOGGER)
            assert isinstance(called, Compiled) == wrapped
            assert (called.module if wrapped else called) is layer


@pytest.mark.parametrize(
    ('stage', 'model'),
    [pytest.param('simmim', SWIN, marks=pytest.mark.slow), ('finetune', VIT)],
)
def test_a_compiled_run_is_the_same_run_and_compiles_once(
    stage, model, phantom, tmp_path, monkeypatch
) -> None:
    """Two epochs with drop path, accumulation and scoring after each."""
    cfg = tiny_config(tmp_path / 'run.yaml', stage, model)
    assert run_main(stage, arguments(cfg, phantom, tmp_path / 'eager')) == 0
    graphs = record_graphs(monkeypatch)
    options = ['--opts', 'TRAIN.COMPILE', 'max']
    assert run_main(stage, arguments(cfg, phantom, tmp_path / 'compiled', *options)) == 0
    assert len(graphs) == 1, 'one graph of the whole model, compiled once'
    first, second = (weights(tmp_path / name, stage) for name in ('eager', 'compiled'))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert re.fullmatch(
        r'TRAIN\.COMPILE max: compiled in \d+ s', *lines(tmp_path / 'compiled', stage)
    )


@pytest.mark.parametrize(
    ('how', 'graphs', 'device', 'mode'),
    [
        ('auto', True, 'cuda', 'default'),
        ('max', True, 'cuda', 'max-autotune'),
        # CUDA graphs write a gradient that is not used up over.
        ('max', False, 'cuda', 'max-autotune-no-cudagraphs'),
        ('max', True, 'cpu', 'default'),
    ],
)
def test_modes(how, graphs, device, mode) -> None:
    compiled = Compiled(nn.Linear(1, 1), how, num_images=1, graphs=graphs, logger=LOGGER)
    assert compiled._mode(torch.device(device)) == mode


@pytest.mark.parametrize('how', ['auto', 'max'])
def test_what_is_not_compiled_has_all_its_gradients_in_autocast(how, monkeypatch) -> None:
    """Autocast keeps what it casts: weights without gradient, or of a graph that is gone."""

    def fail(module: nn.Module, mode: str, dynamic: bool) -> nn.Module:
        def call(*inputs: torch.Tensor) -> torch.Tensor:
            module(*inputs).sum().backward()
            raise RuntimeError('after a whole step')

        return call

    monkeypatch.setattr(torch, 'compile', fail)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    compiled = Compiled(layers, how, num_images=1, graphs=True, logger=LOGGER)
    gradients, images = [], torch.randn(5, 3)
    for called in (compiled, layers):
        layers.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            loss = called(images).float().square().sum()
        loss.backward()
        gradients.append([parameter.grad for parameter in layers.parameters()])
    assert all(map(torch.equal, *gradients))


def no_compiler(module: nn.Module, mode: str, dynamic: bool) -> None:
    raise RuntimeError('torch.compile is not supported here\nsecond line')


def broken_backend(module: torch.fx.GraphModule, inputs: list) -> None:
    raise ImportError('no Triton')


def broken_gradient(module: torch.fx.GraphModule, inputs: list) -> object:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            return module(*args)

        @staticmethod
        def backward(ctx, *grads):
            raise RuntimeError('the backward pass does not compile')

    return lambda *args: (Broken.apply(*args)[0].clone(),)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        (no_compiler, 'RuntimeError: torch.compile is not supported here'),
        (broken_backend, 'raised: ImportError: no Triton'),
        (broken_gradient, 'RuntimeError: the backward pass does not compile'),
    ],
)
def test_a_run_goes_on_where_compiling_fails(
    fault, message, phantom, tmp_path, monkeypatch
) -> None:
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim')
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'eager')) == 0
    if fault is no_compiler:
        monkeypatch.setattr(torch, 'compile', fault)
    else:
        use_backend(monkeypatch, fault)
    options = ['--opts', 'TRAIN.COMPILE', 'max']
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'fault', *options)) == 0
    (line,) = lines(tmp_path / 'fault', 'simmim')
    assert line.startswith('TRAIN.COMPILE max: not compiled, ') and message in line
    first, second = (weights(tmp_path / name, 'simmim') for name in ('eager', 'fault'))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_trying_leaves_no_trace() -> None:
    """Random states, gradients and running statistics are as they were."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[0].bias.requires_grad_(False)  # as a momentum encoder's
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with compilation._leaving_no_trace(model, CPU):
        model(torch.randn(5, 3)).sum().backward()
        assert model[1].num_batches_tracked == 1 and model[0].weight.grad is not None
        with torch.no_grad():
            model[0].bias += 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_two_ranks_compile_and_equal_one_that_does_not(phantom, tmp_path) -> None:
    """By Inductor, with gradients of accumulated micro-batches exchanged once."""
    model = SWIN | {'DROP_PATH_RATE': 0.0}
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim', model)
    assert run_main('simmim', arguments(cfg, phantom, tmp_path / 'one')) == 0
    options = ['--batch-size', '2', '--opts', 'TRAIN.COMPILE', 'max']
    done = torchrun('simmim', arguments(cfg, phantom, tmp_path / 'two', *options), processes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'compiled in' in lines(tmp_path / 'two', 'simmim')[0]
    first, second = (weights(tmp_path / name, 'simmim') for name in ('one', 'two'))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=1e-5)

"""Training steps on a GPU: nothing waits for the device, and fast steps learn like plain ones."""

import itertools
import logging
from pathlib import Path

import pytest
import torch
from tiny import MAE, SWIN, VIT, tiny_config

from config import Config, build_parser, get_config
from engine import loop
from engine.run import Run
from logger import ScalarLog
from models import build_model
from system.device import local_device, to_device
from tools.gpu_check import kernels, waits_for_gpu

pytestmark = pytest.mark.gpu
WIDE_SWIN = SWIN | {'SWIN': SWIN['SWIN'] | {'EMBED_DIM': 16}}  # the kernel for windows needs this
MODELS = {'swin': WIDE_SWIN, 'vit': VIT, 'mae': MAE}


class Batches:
    """Two random batches in turns, as often as the loop wants them."""

    def __init__(self, model: torch.nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        side = 32 // model.patch_size
        masks = torch.zeros(4, side, side, dtype=torch.int64)
        masks[:, ::2] = 1
        images = torch.randn(2, 4, 1, 32, 32, generator=generator)
        self.batches = [to_device((each, masks), local_device()) for each in images]

    def __len__(self) -> int:
        return 1000


def config_of(folder: Path, model: dict, *options: str) -> Config:
    cfg = tiny_config(folder / 'run.yaml', 'simmim', model)
    argv = ['--cfg', str(cfg), '--data-path', str(folder), *options]
    return get_config(build_parser('simmim').parse_args(argv))


def training(folder: Path, model: dict, drop_path: float = 0.0, **options: object):
    """Return a function that makes a step and returns its loss."""
    pairs = [str(word) for pair in options.items() for word in pair]
    config = config_of(folder, model | {'DROP_PATH_RATE': drop_path}, '--opts', *pairs)
    logger = logging.getLogger('gpu')
    run = Run(config, 'simmim', folder, local_device(), logger, ScalarLog(folder, enabled=False))
    torch.manual_seed(0)
    module = build_model(config, is_pretrain=True)
    batches = Batches(module)
    state = loop.begin(run, module, batches)
    loop.wrap_model(run, state)
    count = itertools.count()

    def step() -> torch.Tensor:
        i = next(count)
        batch = batches.batches[i % 2]
        loop.train_one_batch(run, state, batch, lambda model, batch: model(*batch), i)
        return state.progress.waiting_losses[-1]

    return step


@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize('compiled', ['none', 'auto'])
def test_no_step_waits_for_the_device(compiled: str, model: str, tmp_path) -> None:
    step = training(tmp_path, MODELS[model], **{'TRAIN.COMPILE': compiled})
    for _ in range(4):
        step()
    losses = []
    assert not waits_for_gpu(lambda: losses.extend(step() for _ in range(4)))
    assert torch.stack(losses).isfinite().all()


@pytest.mark.parametrize('accumulation', [1, 2])
def test_compiled_steps_learn_like_plain_ones(accumulation: int, tmp_path) -> None:
    losses = []
    for how in ('none', 'auto'):
        opts = {'TRAIN.COMPILE': how, 'TRAIN.ACCUMULATION_STEPS': accumulation}
        step = training(tmp_path, WIDE_SWIN, **opts, **{'TRAIN.WARMUP_EPOCHS': 0})
        losses.append([step().item() for _ in range(20)])
    is_compiled = torch.cuda.is_available()
    assert any('window_attention' in name for name in kernels(step)) == is_compiled
    with torch.profiler.profile() as profile:
        step()
    assert ('cudaGraphLaunch' in {event.key for event in profile.key_averages()}) == is_compiled
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert all(sum(each[-2:]) < 0.9 * sum(each[:2]) for each in losses)


@pytest.mark.parametrize('compiled', ['none', 'auto'])
def test_every_step_drops_other_paths(compiled: str, tmp_path) -> None:
    """A CUDA graph that is replayed must draw new random numbers. The weights hardly change."""
    opts = {'TRAIN.COMPILE': compiled, 'TRAIN.BASE_LR': 1e-12, 'TRAIN.WARMUP_EPOCHS': 0}
    step = training(tmp_path, WIDE_SWIN, drop_path=0.5, **opts)
    losses = [step().item() for _ in range(12)][::2]  # of the same images
    assert len({*losses}) == len(losses)


def test_an_exported_model_does_not_need_the_kernel(tmp_path) -> None:
    """Other programs have no such operator."""
    model = build_model(config_of(tmp_path, WIDE_SWIN), is_pretrain=True).to(local_device()).eval()
    images, masks = (each.to(local_device()) for each in Batches(model).batches[0])
    with torch.autocast(local_device().type, torch.bfloat16):
        exported = torch.export.export(model, (images, masks.long()))
    assert 'window_attention' not in str(exported.graph)

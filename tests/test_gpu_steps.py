"""What only a GPU shows of fast steps: the kernel runs, nothing waits, memory, the same numbers."""

import logging
from pathlib import Path

import pytest
import torch
from models.kernel_check import settle_attention
from speed.cases import Case, Published
from speed.steps import OwnSteps, Setting, build_steps
from test_speed_cases import GPU
from tiny import MAE, SWIN, VIT, tiny_config

from engine.device import autocast_dtype
from engine.loop import train_one_batch
from models import build_model
from models.swin_transformer import SwinTransformerBlock

pytestmark = pytest.mark.gpu
# Heads of 16 channels, which the kernel needs, and windows with a shift.
WIDE_SWIN = SWIN | {'SWIN': SWIN['SWIN'] | {'EMBED_DIM': 32, 'NUM_HEADS': [2, 4]}}
QUIET = {'PRINT_FREQ': 1000}  # a line of the log waits for the device


def setting(folder: Path, model: dict, batch_size: int = 4, **options: object) -> Setting:
    cfg = tiny_config(folder / 'run.yaml', 'simmim', model | {'DROP_PATH_RATE': 0.0}, **QUIET)
    pairs = [str(word) for pair in options.items() for word in pair]
    return Setting(str(cfg), 'pretrain', pairs, batch_size, GPU)


def losses(steps: OwnSteps, count: int) -> list[float]:
    found = []
    for _ in range(count):
        steps()
        found.append(steps.loss.item())
    return found


@pytest.mark.parametrize('level', ['O0', 'O1'])
def test_the_kernel_is_not_replaced(level: str, tmp_path, caplog) -> None:
    run = setting(tmp_path, WIDE_SWIN, **{'AMP_OPT_LEVEL': level}).run(
        {'MODEL.ATTENTION': 'triton'}
    )
    model = build_model(run.config).to(GPU)
    settle_attention(model, autocast_dtype(run.config, GPU), logging.getLogger('gpu'))
    assert caplog.messages == []
    blocks = [m for m in model.modules() if isinstance(m, SwinTransformerBlock)]
    assert blocks and all(block.attn.attention == 'triton' for block in blocks)


@pytest.mark.parametrize('model', [WIDE_SWIN, VIT, MAE], ids=['swin', 'vit', 'mae'])
@pytest.mark.parametrize('compiled', ['none', 'auto', 'max'])
def test_no_step_waits_for_the_device(compiled: str, model: dict, tmp_path) -> None:
    steps = build_steps(setting(tmp_path, model), Case('x', options={'TRAIN.COMPILE': compiled}))
    losses(steps, 3)
    torch.cuda.set_sync_debug_mode('error')
    try:
        for _ in range(5):
            steps()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert steps.loss.isfinite()


@pytest.mark.parametrize('accumulation', [1, 2])
@pytest.mark.parametrize('way', ['sdpa', 'triton', 'max'])
def test_fast_steps_learn_as_written_out_ones_do(way: str, accumulation: int, tmp_path) -> None:
    ways = {'eager': {'MODEL.ATTENTION': 'eager', 'TRAIN.COMPILE': 'none'}}
    ways['sdpa'] = ways['eager'] | {'MODEL.ATTENTION': 'sdpa'}
    ways['triton'] = ways['eager'] | {'MODEL.ATTENTION': 'triton'}
    ways['max'] = ways['eager'] | {'TRAIN.COMPILE': 'max'}
    found = []
    for name in ('eager', way):
        steps = build_steps(setting(tmp_path, WIDE_SWIN), Case(name, options=ways[name]))
        steps.state.accumulation = accumulation
        found.append(losses(steps, 20))
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert found[0][-1] < found[0][0]


def test_memory_is_not_above_the_published_codes(tmp_path) -> None:
    peaks = []
    for case in (
        Case('published', Published(torch.float16, waits=True, fused=False)),
        Case('ours', options={'TRAIN.COMPILE': 'none'}),
    ):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        steps = build_steps(setting(tmp_path, WIDE_SWIN, batch_size=256), case)
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            steps()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del steps
    assert peaks[1] <= peaks[0]


def test_a_step_of_each_precision(tmp_path) -> None:
    for dtype in (torch.float16, torch.bfloat16, None):
        steps = build_steps(setting(tmp_path, VIT), Case('p', Published(dtype, False, False)))
        steps()
        assert steps.loss.isfinite() and steps.loss.is_cuda and steps.dtype == dtype
    own = build_steps(setting(tmp_path, VIT), Case('ours'))
    assert train_one_batch(own.run, own.state, next(own.batches), own.loss_fn, 0) is True

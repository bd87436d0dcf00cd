"""Compiled training steps: whether they pay, and going on without them where compiling fails."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from config import Config
from engine import distributed
from engine.files import in_one_line

# ==== device: Where a run computes and in what precision.


def local_device() -> torch.device:
    """The CUDA device of this process (torchrun's LOCAL_RANK), or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device('cpu')
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
    torch.cuda.set_device(device)
    return device


def autocast_dtype(config: Any, device: torch.device) -> torch.dtype | None:
    """Type that matrix products run in under O1 and O2; None for float32.

    On the CPU that is float32, but with AMP_ON_CPU where it has instructions for bfloat16.
    """
    if config.AMP_OPT_LEVEL == 'O0':
        return None
    if device.type == 'cpu':
        return torch.bfloat16 if config.AMP_ON_CPU and cpu_has_bf16() else None
    return (
        torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    )


@cache
def cpu_has_bf16(cpuinfo: Path = Path('/proc/cpuinfo')) -> bool:
    """Whether the x86 CPU multiplies bfloat16 by instructions of its own (AVX-512 BF16, AMX)."""
    try:
        words = cpuinfo.read_text().split()
    except OSError:
        return False
    return not {'avx512_bf16', 'amx_bf16'}.isdisjoint(words)


def autocast(config: Any, device: torch.device) -> contextlib.AbstractContextManager:
    """Context of the forward pass."""
    return autocast_to(autocast_dtype(config, device), device)


def autocast_to(
    dtype: torch.dtype | None, device: torch.device
) -> contextlib.AbstractContextManager:
    """Context in which matrix products run in `dtype`; None: in float32."""
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def describe_precision(config: Any, device: torch.device) -> str:
    """One line for the log; it says so where a level is accepted but means another."""
    dtype = autocast_dtype(config, device)
    line = f'precision {config.AMP_OPT_LEVEL}: {f"autocast to {dtype}" if dtype else "float32"}'
    wanted = config.AMP_ON_CPU and config.AMP_OPT_LEVEL != 'O0' and device.type == 'cpu'
    if wanted and dtype is None:
        line += ' (AMP_ON_CPU: this CPU has no instructions for bfloat16)'
    if config.AMP_OPT_LEVEL == 'O2':
        line += ' (O2 means O1: apex.amp no longer exists, and PyTorch has one level)'
    return line


def to_device(batch: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(item.to(device, non_blocking=True) for item in batch)


@torch.no_grad()
def throughput(
    config: Any, model: nn.Module, inputs: tuple[torch.Tensor, ...], device: torch.device
) -> float:
    """Images per second of the forward pass on one batch: 50 passes to warm up, 30 timed."""
    model.to(device).eval()
    inputs = to_device(inputs, device)
    for num_passes in (50, 30):
        start = synchronized_time(device)
        for _ in range(num_passes):
            with autocast(config, device):
                model(*inputs)
        seconds = synchronized_time(device) - start
    return num_passes * len(inputs[0]) / seconds


def synchronized_time(device: torch.device) -> float:
    """Seconds by a clock that is read once the device has done all its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


# ==== compilation: Compiled training steps: whether they pay, and going on without them where compiling fails.

# Training FLOPs of a process from which 'auto' compiles: 10 minutes at 63 TFLOP/s, which SimMIM's
# own code reaches on an H200 (Swin-B, batch 128). About half of that is saved, and compiling took
# 91 s there. By the config alone, so that a run computes the same way after a restart.
PAYS_FROM = 4e16
MODES = {'auto': 'default', 'max': 'max-autotune'}  # of torch.compile
WITHOUT_GRAPHS = 'max-autotune-no-cudagraphs'


class Compiled(nn.Module):
    """Calls a model, which is compiled at the first call if that pays.

    Evaluation goes by `TrainState.module`, which is never compiled.

    Args:
        module: what is called: the model, or DistributedDataParallel around it.
        how: TRAIN.COMPILE, 'auto' or 'max'.
        num_images: that this process trains on in the whole run.
        graphs: whether CUDA graphs are possible: each gradient is of one backward pass alone.
        logger: gets one line on what was done.
    """

    def __init__(
        self,
        module: nn.Module,
        how: str,
        *,
        num_images: int,
        graphs: bool,
        logger: logging.Logger,
    ) -> None:
        super().__init__()
        self.module = module
        self.how = how
        self.num_images = num_images
        self.graphs = graphs
        self.logger = logger
        self.call: Callable[..., torch.Tensor] | None = None

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.call is None:
            self.call = self._compile(inputs) if self._pays(inputs) else self.module
        return self.call(*inputs)

    def _pays(self, inputs: tuple[torch.Tensor, ...]) -> bool:
        if self.how == 'max':
            return True
        flops = training_flops(self.module, inputs) * self.num_images
        if flops < PAYS_FROM:
            self.logger.info(
                f'TRAIN.COMPILE auto: not compiled, the run is too short to pay it back '
                f'({flops:.1e} FLOPs, from {PAYS_FROM:.0e} on)'
            )
        return flops >= PAYS_FROM

    def _compile(self, inputs: tuple[torch.Tensor, ...]) -> Callable[..., torch.Tensor]:
        """The compiled module, tried forward and backward; itself where any process failed."""
        start, problem, device = time.perf_counter(), '', inputs[0].device
        try:
            compiled = torch.compile(self.module, mode=self._mode(device), dynamic=False)
            with _leaving_no_trace(self.module, device):
                compiled(*inputs).sum().backward()
        except Exception as error:  # whatever stops a compiler, the run needs none
            problem = in_one_line(error)
        failed = torch.tensor(float(bool(problem)), device=device)
        if distributed.all_reduce_sum(failed).item():
            problem = problem or 'another process failed'
            self.logger.warning(f'TRAIN.COMPILE {self.how}: not compiled, {problem}')
            return self.module
        seconds = time.perf_counter() - start
        self.logger.info(f'TRAIN.COMPILE {self.how}: compiled in {seconds:.0f} s')
        return compiled

    def _mode(self, device: torch.device) -> str:
        if device.type != 'cuda':
            return 'default'
        return MODES[self.how] if self.how == 'auto' or self.graphs else WITHOUT_GRAPHS


def wrap(config: Config, module: nn.Module, device: torch.device, **kwargs: Any) -> nn.Module:
    """What training calls: `module` itself, or Compiled around it, as TRAIN.COMPILE says."""
    how = config.TRAIN.COMPILE
    # On a CPU it gains little: docs/explanation/speed.md.
    if how == 'none' or (how == 'auto' and device.type == 'cpu'):
        return module
    return Compiled(module, how, **kwargs)


def training_flops(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """FLOPs of a training step for one image: three times those of the forward pass.

    More than are made where layers are frozen; those of a kernel of ours are not counted.
    """
    was_training = module.training
    module.eval()  # nothing random is drawn
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*(each[:1] for each in inputs))
    torch.clear_autocast_cache()  # of weights that were cast here, without gradient
    module.train(was_training)
    return 3.0 * counter.get_total_flops()


def changed_by_forward(module: nn.Module) -> list[torch.Tensor]:
    """What a training step may change before the optimizer does: buffers, and slow copies."""
    frozen = (parameter for parameter in module.parameters() if not parameter.requires_grad)
    return [*module.buffers(), *frozen]


@contextlib.contextmanager
def _leaving_no_trace(module: nn.Module, device: torch.device) -> Iterator[None]:
    """What a forward pass may change is as before, then; no gradient and no cast weight is kept."""
    changing = [(tensor, tensor.clone()) for tensor in changed_by_forward(module)]
    quiet = isinstance(module, DistributedDataParallel)
    devices = [device] if device.type == 'cuda' else []
    with torch.random.fork_rng(devices), module.no_sync() if quiet else contextlib.nullcontext():
        try:
            yield
        finally:
            module.zero_grad(set_to_none=True)
            torch.clear_autocast_cache()
            with torch.no_grad():
                for tensor, before in changing:
                    tensor.copy_(before)

"""Device, precision, throughput and compilation of a model."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from config import PROBES, Config
from engine import distributed
from engine.files import in_one_line

# TRAIN.COMPILE 'auto' compiles if a process trains with at least this many FLOPs. They take 10
# minutes at the 63 TFLOP/s that SimMIM's own code reaches on an H200 (Swin-B, batch 128). Compiling
# took 91 s and saves about half of the time. The decision depends only on the config, so that a run
# computes in the same way after a restart.
PAYS_FROM = 4e16


def local_device() -> torch.device:
    """Select the CUDA device of this process (torchrun's LOCAL_RANK), or the CPU without CUDA.

    This also disables TF32, which PyTorch allows for convolutions by default.
    """
    # PyTorch 2.6 only has these switches. Newer versions cannot read them once the newer are set.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if not torch.cuda.is_available():
        return torch.device('cpu')
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
    torch.cuda.set_device(device)
    return device


def to_device(batch: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Copy a batch to the device."""
    return tuple(item.to(device, non_blocking=True) for item in batch)


def autocast_dtype(config: Config, device: torch.device) -> torch.dtype | None:
    """Return the data type of autocast under AMP_OPT_LEVEL O1 and O2; None for float32.

    On a CPU, AMP_ON_CPU decides. Probes always use float32, because their features are computed
    only once and rounding to bfloat16 changed AUROCs by up to 0.004.
    """
    if config.AMP_OPT_LEVEL == 'O0' or config.FINETUNE.MODE in PROBES:
        return None
    if device.type == 'cpu':
        wanted = {'always': True, 'never': False, 'auto': cpu_computes_bfloat16()}
        return torch.bfloat16 if wanted[config.AMP_ON_CPU] else None
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def cpu_computes_bfloat16() -> bool:
    """Return whether the CPU has instructions for matrix products in bfloat16.

    Without them, PyTorch computes these products more slowly than those in float32.
    """
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def views_of(images: torch.Tensor, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield the test-time views [B, C, S, S] of a batch one at a time, to save device memory.

    The images are [B, C, S, S] for a single view, or [B, T, C, S, S] for T views.
    """
    for view in images.unbind(1) if images.ndim == 5 else [images]:
        yield view.to(device, non_blocking=True)


def autocast(config: Config, device: torch.device) -> contextlib.AbstractContextManager:
    """Return the autocast context of a forward pass."""
    dtype = autocast_dtype(config, device)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def describe_precision(config: Config, device: torch.device) -> str:
    """Return a log line about the precision inside and outside autocast."""
    dtype = autocast_dtype(config, device)
    switches = {'convolutions': torch.backends.cudnn, 'matrix products': torch.backends.cuda.matmul}
    plain = ', '.join(
        f'{name} in {"TF32" if device.type == "cuda" and switch.allow_tf32 else "float32"}'
        for name, switch in switches.items()
    )
    line = f'precision {config.AMP_OPT_LEVEL}: '
    line += f'autocast to {dtype}, outside it {plain}' if dtype else plain
    if device.type == 'cpu' and config.AMP_ON_CPU == 'auto' and config.AMP_OPT_LEVEL != 'O0':
        line += (
            f' (AMP_ON_CPU auto: this CPU has {"" if cpu_computes_bfloat16() else "no "}bfloat16)'
        )
    if config.AMP_OPT_LEVEL == 'O2':
        line += ' (O2 is treated as O1: apex.amp no longer exists, and PyTorch has only one level)'
    return line


@torch.no_grad()
def throughput(
    config: Config, model: nn.Module, inputs: tuple[torch.Tensor, ...], device: torch.device
) -> float:
    """Measure images per second of the forward pass in 30 passes, after 50 for warm-up."""
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
    """Wait until the device is idle and return the seconds of a monotonic clock."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


class Compiled(nn.Module):
    """Compiles a model at the first call if the run is long enough.

    The model is used uncompiled if compilation fails. Evaluation uses `TrainState.module`, which is
    never compiled.

    Args:
        module: Model, or DistributedDataParallel around the model.
        how: TRAIN.COMPILE, 'auto' or 'max'.
        num_images: Number of images that this process trains on in the whole run.
        graphs: Whether CUDA graphs are possible, because each gradient comes from a single backward
            pass.
        logger: Receives one line about the decision.
    """

    def __init__(
        self, module: nn.Module, how: str, *, num_images: int, graphs: bool, logger: logging.Logger
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
                f'TRAIN.COMPILE auto: the model is not compiled, because the run is short '
                f'({flops:.1e} FLOPs; compilation pays from {PAYS_FROM:.0e})'
            )
        return flops >= PAYS_FROM

    def _compile(self, inputs: tuple[torch.Tensor, ...]) -> Callable[..., torch.Tensor]:
        """Compile and try a forward and backward pass. All processes make the same decision."""
        start, problem, device = time.perf_counter(), '', inputs[0].device
        try:
            compiled = torch.compile(self.module, mode=self._mode(device), dynamic=False)
            with _restoring(self.module, device):
                compiled(*inputs).sum().backward()
        except Exception as error:  # compilers raise any error, and the run works without them
            problem = in_one_line(error)
        failed = torch.tensor(float(bool(problem)), device=device)
        if distributed.all_reduce_sum(failed).item():
            problem = problem or 'compilation failed in another process'
            self.logger.warning(f'TRAIN.COMPILE {self.how}: the model is not compiled: {problem}')
            return self.module
        seconds = time.perf_counter() - start
        self.logger.info(f'TRAIN.COMPILE {self.how}: the model was compiled in {seconds:.0f} s')
        return compiled

    def _mode(self, device: torch.device) -> str:
        """Return the mode of torch.compile."""
        if self.how == 'auto' or device.type != 'cuda':
            return 'default'
        return 'max-autotune' if self.graphs else 'max-autotune-no-cudagraphs'


def training_flops(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Estimate the FLOPs of a training step per image as three times the forward pass.

    Models with frozen layers need fewer.
    """
    was_training = module.training
    module.eval()  # so that no random numbers are drawn
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*(each[:1] for each in inputs))
    torch.clear_autocast_cache()  # the cached weights were cast without a gradient
    module.train(was_training)
    return 3.0 * counter.get_total_flops()


def copy_buffers(module: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Copy the tensors that a forward pass may change: buffers and frozen weights."""
    frozen = (parameter for parameter in module.parameters() if not parameter.requires_grad)
    return [(tensor, tensor.clone()) for tensor in (*module.buffers(), *frozen)]


@torch.no_grad()
def restore_buffers(copies: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Restore the tensors from the copies of `copy_buffers`."""
    for tensor, before in copies:
        tensor.copy_(before)


@contextlib.contextmanager
def _restoring(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore buffers, random state and gradients after a forward and backward pass."""
    copies = copy_buffers(module)
    is_parallel = isinstance(module, DistributedDataParallel)
    no_sync = module.no_sync() if is_parallel else contextlib.nullcontext()
    with torch.random.fork_rng([device] if device.type == 'cuda' else []), no_sync:
        try:
            yield
        finally:
            module.zero_grad(set_to_none=True)
            torch.clear_autocast_cache()
            restore_buffers(copies)

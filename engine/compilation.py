"""Compilation of a model with torch.compile, if the run is long enough."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from system import distributed
from system.files import in_one_line

# TRAIN.COMPILE 'auto' compiles if a process trains with at least this many FLOPs. They take 8
# minutes at the 82 TFLOP/s that the published way reaches on an H100 (Swin-B, batch 128). Compiling
# takes one to three minutes there, and compiled steps take a third to a half of the time. The
# decision depends only on the config, so that a run computes in the same way after a restart.
PAYS_FROM = 4e16


class Compiled(nn.Module):
    """Compiles a model at the first call if the run is long enough.

    The model is used uncompiled if compilation fails, but a lack of memory of the GPU is raised,
    because the uncompiled model usually needs more. Evaluation uses `TrainState.module`, which is
    never compiled.

    Args:
        module: Model, or DistributedDataParallel around the model.
        how: TRAIN.COMPILE, 'auto' or 'max'.
        num_images: Number of images that this process trains on in the whole run.
        graphs: Whether CUDA graphs are possible: on a GPU, in one process.
        logger: Receives one line about the decision.

    Attributes:
        keeps_gradients: Whether gradients that accumulate must stay where they are, because CUDA
            graphs are used.
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
        self.keeps_gradients = False

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
        """Compile and try forward and backward passes. All processes make the same decision."""
        start, problem, device = time.perf_counter(), '', inputs[0].device
        try:
            compiled = torch.compile(self.module, mode=self._mode(device), dynamic=False)
            with _restoring(self.module, device):
                for _ in range(3 if self.graphs else 1):  # warm up, record graphs, replay them
                    self.module.zero_grad(set_to_none=True)
                    outputs = compiled(*inputs)  # kept for backward, as in training
                    outputs.sum().backward()
                    del outputs
                learned = [each for each in self.module.parameters() if each.grad is not None]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise any error, and the run works without them
            problem = in_one_line(error)
        failed = torch.tensor(float(bool(problem)), device=device)
        if distributed.all_reduce_sum(failed).item():
            problem = problem or 'compilation failed in another process'
            self.logger.warning(f'TRAIN.COMPILE {self.how}: the model is not compiled: {problem}')
            return self.module
        if self.graphs:  # a graph overwrites its results, so gradients are added to other tensors
            self.keeps_gradients = True
            for parameter in learned:
                parameter.grad = torch.zeros_like(parameter)
        seconds = time.perf_counter() - start
        self.logger.info(f'TRAIN.COMPILE {self.how}: the model was compiled in {seconds:.0f} s')
        return compiled

    def _mode(self, device: torch.device) -> str:
        """Return the mode of torch.compile."""
        if device.type != 'cuda':
            return 'default'
        if self.how == 'auto':
            return 'reduce-overhead' if self.graphs else 'default'
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
    """Restore buffers, random state and gradients after forward and backward passes."""
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

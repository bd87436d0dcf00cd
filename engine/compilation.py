"""Compilation of a model with torch.compile (TRAIN.COMPILE)."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from engine.run import Run
from engine.train_state import WrappedModel
from system import distributed
from system.files import in_one_line

COMPILED_FROM = (8, 0)  # compute capability that recent versions of Triton need; a T4 has 7.5


def compiled(run: Run, model: nn.Module) -> nn.Module:
    """Return the compiled model, or the model itself if it cannot be compiled."""
    exchanges = run.stage == 'contrastive' and distributed.world_size() > 1
    alone = model.encoder if exchanges else model  # what the other processes do not affect
    overlaps = run.config.TRAIN.COMPILE == 'overlap'
    reason = ''
    if any(isinstance(part, nn.SyncBatchNorm) for part in alone.modules()):
        reason = 'the processes exchange statistics of batch norms in the forward pass'
    elif run.device.type == 'cuda' and torch.cuda.get_device_capability() < COMPILED_FROM:
        reason = 'Triton needs a GPU of compute capability 8.0 or higher'
    if reason:
        run.logger.info(f'TRAIN.COMPILE: the model is not compiled, because {reason}')
        return model
    # Dynamo divides the graph at the buckets of a DistributedDataParallel around it, which then
    # exchanges each bucket while the backward pass of the next piece computes.
    torch._dynamo.config.optimize_ddp = overlaps
    if exchanges:
        compile_encoder(model)
        run.logger.info('TRAIN.COMPILE: only the encoder, since the processes exchange features')
        return model
    return Compiled(model, graphs=run.device.type == 'cuda' and not overlaps, logger=run.logger)


def compile_encoder(method: nn.Module) -> None:
    """Compile the encoders of a contrastive method, in place, at their first calls.

    There are no CUDA graphs: the features of one view would be overwritten by the next view.
    An encoder that cannot be compiled runs uncompiled, which PyTorch logs.
    """
    torch._dynamo.config.suppress_errors = True
    method.features = torch.compile(method.features, dynamic=False)


class Compiled(WrappedModel):
    """Compiles a model at the first call.

    The model is used uncompiled if compilation fails, but a lack of memory of the GPU is raised,
    because the uncompiled model usually needs more. Evaluation uses `TrainState.module`, which is
    never compiled.

    Args:
        module: Model. DistributedDataParallel is around the compiled model, not inside: its
            exchange of gradients would divide the graph, and CUDA graphs could not be used.
        graphs: Whether CUDA graphs are used, on a GPU.
        logger: Receives one line about the result.

    Attributes:
        keeps_gradients: Whether CUDA graphs are used, into whose gradients others are added.
    """

    def __init__(self, module: nn.Module, *, graphs: bool, logger: logging.Logger) -> None:
        super().__init__(module)
        self.graphs = graphs
        self.logger = logger
        self.call: Callable[..., torch.Tensor] | None = None

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.call is None:
            self.call = self._compile(inputs)
        return self.call(*inputs)

    def _compile(self, inputs: tuple[torch.Tensor, ...]) -> Callable[..., torch.Tensor]:
        """Compile and try forward and backward passes. All processes make the same decision."""
        start, problem, device = time.perf_counter(), '', inputs[0].device
        try:
            mode = 'reduce-overhead' if self.graphs else 'default'
            compiled = torch.compile(self.module, mode=mode, dynamic=False)
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
            self.logger.warning(f'TRAIN.COMPILE: the model is not compiled: {problem}')
            return self.module
        if self.graphs:
            # PyTorch runs parts of a model without CUDA graphs silently.
            if skipped := torch._dynamo.utils.counters['inductor']['cudagraph_skips']:
                self.logger.warning(
                    f'TRAIN.COMPILE: {skipped} parts of the model run without CUDA graphs'
                )
            # A graph overwrites its results, so gradients are added to other tensors.
            self.keeps_gradients = True
            for parameter in learned:
                parameter.grad = torch.zeros_like(parameter)
        seconds = time.perf_counter() - start
        self.logger.info(f'TRAIN.COMPILE: the model was compiled in {seconds:.0f} s')
        return compiled


@contextlib.contextmanager
def _restoring(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore buffers, random state and gradients after forward and backward passes."""
    # A forward pass may change buffers and, as averages of weights do, frozen weights.
    frozen = (parameter for parameter in module.parameters() if not parameter.requires_grad)
    copies = [(tensor, tensor.clone()) for tensor in (*module.buffers(), *frozen)]
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        try:
            yield
        finally:
            module.zero_grad(set_to_none=True)
            torch.clear_autocast_cache()
            with torch.no_grad():
                for tensor, before in copies:
                    tensor.copy_(before)

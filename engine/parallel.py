"""Training in several processes: DistributedDataParallel, and batch norm over all processes."""

import inspect

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from config import Config
from system import distributed

# Whether rank 0 sends its buffers before each forward pass; older versions have the second name.
BUFFER_OPTION = 'forward_sync_buffers'
if BUFFER_OPTION not in inspect.signature(DistributedDataParallel).parameters:
    BUFFER_OPTION = 'broadcast_buffers'


def wrap_parallel(config: Config, model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model in DistributedDataParallel if there are several processes.

    With TRAIN.GRADIENT_EXCHANGE 'bfloat16', gradients are rounded to bfloat16 and summed in it.
    Batch norms use the statistics of all processes: PyTorch's SyncBatchNorm on GPUs, and
    `share_batch_norm` on CPUs.
    """
    if distributed.world_size() == 1:
        return model
    if device.type == 'cuda':
        model = convert_sync_batchnorm(model)
    else:
        share_batch_norm(model)
    model = DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == 'cuda' else None,
        gradient_as_bucket_view=True,
        **{BUFFER_OPTION: False},
    )
    for parameter in model.parameters():
        if parameter.ndim == 4 and parameter.requires_grad:
            parameter.register_hook(_contiguous_strides)
    if config.TRAIN.GRADIENT_EXCHANGE == 'bfloat16':
        model.register_comm_hook(None, bf16_compress_hook)
    return model


def share_batch_norm(model: nn.Module) -> None:
    """Make the batch norms of a model use the statistics of all processes in training.

    PyTorch's SyncBatchNorm only works on GPUs. The modules are changed in place, so that
    parameters, buffers, hooks and state-dict keys stay the same. Every process must call them
    equally often. With gradient accumulation the statistics cover one batch of all processes, not
    the whole step.

    Raises:
        ValueError: If the model has an unsupported kind of batch norm.
    """
    for name, module in model.named_modules():
        if type(module) in SHARED:
            module.__class__ = SHARED[type(module)]
        elif isinstance(module, BATCH_NORMS) and not isinstance(module, _SharedStatistics):
            raise ValueError(
                f'{name} is a {type(module).__name__}, which cannot share its statistics between '
                'processes: train in one process'
            )


def _contiguous_strides(gradient: Tensor) -> Tensor:
    """Give the gradient of a convolution the strides that DistributedDataParallel expects.

    Gradients of 1x1 convolutions may have the strides of channels_last, and PyTorch warns of this.
    """
    return gradient.flatten().view(gradient.shape)


class _SumOverProcesses(torch.autograd.Function):
    """Sums a tensor over processes, and sums the gradients in the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return distributed.all_reduce_sum(x)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        return distributed.all_reduce_sum(grad)


class _SharedStatistics:
    """Mixin for a batch norm that uses the statistics of all processes in training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        x = self._normalise(x)
        return self.act(self.drop(x)) if isinstance(self, BatchNormAct2d) else x

    @torch.compiler.disable
    def _normalise(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, ...] with statistics over all processes, including gradients."""
        dims = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)  # broadcasts [C]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        count = distributed.all_reduce_sum(values.new_tensor(x.numel() / x.shape[1]))
        mean = _SumOverProcesses.apply(values.sum(dims)) / count
        centred = values - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().sum(dims)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


SHARED = {
    kind: type(f'Shared{kind.__name__}', (_SharedStatistics, kind), {})
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d)
}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

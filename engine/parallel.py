"""A model in several processes: DistributedDataParallel, and batch norm over all processes."""

import warnings

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from config import Config
from engine import distributed


def wrap_parallel(config: Config, model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model in DistributedDataParallel if there are several processes.

    Gradients are exchanged in buckets during the backward pass. With TRAIN.GRADIENT_EXCHANGE
    'bfloat16' they are rounded to that type and summed in it. Batch norms use the statistics of
    all processes: PyTorch's SyncBatchNorm on GPUs, and `share_batch_norm` on CPUs.
    """
    if distributed.world_size() == 1:
        return model
    if device.type == 'cuda':
        model = convert_sync_batchnorm(model)
    else:
        share_batch_norm(model)
    with warnings.catch_warnings():  # older versions of PyTorch lack the argument's new name
        warnings.filterwarnings('ignore', message='`broadcast_buffers` is deprecated')
        model = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == 'cuda' else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    if config.TRAIN.GRADIENT_EXCHANGE == 'bfloat16':
        model.register_comm_hook(None, bf16_compress_hook)
    return model


def share_batch_norm(model: nn.Module) -> None:
    """Make the batch norms of a model use the statistics of all processes in training.

    PyTorch's SyncBatchNorm does this only on GPUs. The modules are changed in place, so parameters,
    buffers, hooks and state-dict keys stay. Every process must run them equally often. Under
    gradient accumulation the statistics are those of one batch of all processes, not of the whole
    step.

    Raises:
        ValueError: If the model has another kind of batch norm.
    """
    for name, module in model.named_modules():
        if type(module) in SHARED:
            module.__class__ = SHARED[type(module)]
        elif isinstance(module, BATCH_NORMS) and not isinstance(module, _SharedStatistics):
            raise ValueError(
                f'{name} is a {type(module).__name__}, which cannot use the statistics of several '
                'processes: train in one process'
            )


class _Normalise(torch.autograd.Function):
    """Batch norm with the mean and variance of each channel over all processes.

    Processes may have different numbers of values. There is one exchange in each direction: value
    counts, means and squared deviations forward, and the sums of the gradient and of its product
    with the normalised values backward.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the normalised x [B, C, ...], and mean, biased variance and count, each [C]."""
        values, shape, dims = _at_least_float32(x), *_channel_shape(x)
        own = values.new_zeros(3, x.shape[1])  # mean, sum of squared deviations, count
        if x.numel():
            variance, mean = torch.var_mean(values, dims, correction=0)
            num_values = x.numel() // x.shape[1]
            own = torch.stack([mean, variance * num_values, torch.full_like(mean, num_values)])
        rows = own.new_zeros(distributed.world_size(), *own.shape)
        rows[distributed.rank()] = own
        means, deviations, counts = distributed.all_reduce_sum(rows).unbind(1)  # [processes, C]
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        variance = (deviations + counts * (means - mean).square()).sum(0) / count
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, scale, count)
        y = (values - mean.view(shape)) * scale.view(shape)
        if weight is not None:
            y = y * weight.view(shape) + bias.view(shape)
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        shape, dims = _channel_shape(x)
        grad = _at_least_float32(grad)
        normal = (_at_least_float32(x) - mean.view(shape)) * scale.view(shape)
        sums = torch.stack([grad.sum(dims), (grad * normal).sum(dims)])  # of this process
        shared = distributed.all_reduce_sum(sums) / count
        if weight is not None:
            scale = scale * weight
        inner = grad - shared[0].view(shape) - normal * shared[1].view(shape)
        parameters = (None, None) if weight is None else (sums[1], sums[0])
        return (inner * scale.view(shape)).to(x.dtype), *parameters, None


class _SharedStatistics:
    """Mixed into a batch norm of PyTorch or timm: in training it uses shared statistics."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return self.activate(self._normalise(x))

    def activate(self, x: Tensor) -> Tensor:
        return x

    @torch.compiler.disable
    def _normalise(self, x: Tensor) -> Tensor:
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = self.momentum
                if share is None:
                    share = 1 / self.num_batches_tracked.float()
                unbiased = variance * count / (count - 1).clamp(min=1)
                self.running_mean += share * (mean - self.running_mean)
                self.running_var += share * (unbiased - self.running_var)
        return y


class SharedBatchNorm1d(_SharedStatistics, nn.BatchNorm1d):
    """BatchNorm1d over all processes."""


class SharedBatchNorm2d(_SharedStatistics, nn.BatchNorm2d):
    """BatchNorm2d over all processes."""


class SharedBatchNormAct2d(_SharedStatistics, BatchNormAct2d):
    """timm's batch norm with activation, over all processes."""

    def activate(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))


SHARED = {
    nn.BatchNorm1d: SharedBatchNorm1d,
    nn.BatchNorm2d: SharedBatchNorm2d,
    BatchNormAct2d: SharedBatchNormAct2d,
}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def _channel_shape(x: Tensor) -> tuple[list[int], list[int]]:
    """Return the shape that broadcasts [C] over x [B, C, ...], and all axes but the channels'."""
    return [1, -1] + [1] * (x.ndim - 2), [axis for axis in range(x.ndim) if axis != 1]


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

"""Batch norm whose statistics are those of the images on all processes.

On GPUs this is PyTorch's SyncBatchNorm, which does not support the CPU. For CPU processes (gloo)
the classes below compute the same.
"""

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from engine import distributed

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def share_batch_norm(model: nn.Module) -> None:
    """Let all batch norms of a model use the statistics of all processes in training.

    Parameters, buffers and state-dict keys do not change. Every process must run the batch norms
    equally often. With gradient accumulation, the statistics are those of one batch of all
    processes, not of the whole step.

    Raises:
        ValueError: If a batch norm on the CPU has a type without a shared version.
    """
    if next(model.parameters()).device.type == 'cuda':
        convert_sync_batchnorm(model)
        return
    for name, module in model.named_modules():
        if type(module) in SHARED:
            module.__class__ = SHARED[type(module)]
        elif isinstance(module, BATCH_NORMS) and not isinstance(module, _SharedStatistics):
            raise ValueError(
                f'{name} is a {type(module).__name__}, whose statistics cannot be shared by '
                'several CPU processes: train in one process'
            )


class _Normalise(torch.autograd.Function):
    """Batch norm over all processes, which may hold different numbers of values per channel.

    Each direction exchanges one sum per channel: counts, means and squared deviations forward, the
    gradient and its product with the normalised values backward.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalise [B, C, ...]; also return mean, biased variance and count, [C] each."""
        values, shape, dims = _precise(x), *_axes(x)
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
        shape, dims = _axes(x)
        grad = _precise(grad)
        normal = (_precise(x) - mean.view(shape)) * scale.view(shape)
        sums = torch.stack([grad.sum(dims), (grad * normal).sum(dims)])  # of this process
        shared = distributed.all_reduce_sum(sums) / count
        if weight is not None:
            scale = scale * weight
        inner = grad - shared[0].view(shape) - normal * shared[1].view(shape)
        parameters = (None, None) if weight is None else (sums[1], sums[0])
        return (inner * scale.view(shape)).to(x.dtype), *parameters, None


class _SharedStatistics:
    """Mixin for a batch norm of PyTorch or timm: in training, all processes share statistics."""

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
    pass


class SharedBatchNorm2d(_SharedStatistics, nn.BatchNorm2d):
    pass


class SharedBatchNormAct2d(_SharedStatistics, BatchNormAct2d):
    def activate(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))


SHARED = {
    nn.BatchNorm1d: SharedBatchNorm1d,
    nn.BatchNorm2d: SharedBatchNorm2d,
    BatchNormAct2d: SharedBatchNormAct2d,
}


def _axes(x: Tensor) -> tuple[list[int], list[int]]:
    """Shape that broadcasts a channel's value over x [B, C, ...], and all axes but the channels."""
    return [1, -1] + [1] * (x.ndim - 2), [axis for axis in range(x.ndim) if axis != 1]


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

"""Batch norm over processes: the statistics of a step are those of the images of all of them."""

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

import distributed


class _Normalise(torch.autograd.Function):
    """Batch norm whose mean and variance are those of all processes' values of a channel.

    Processes may have different numbers of values. One exchange each way, sums of a channel: of
    value counts, means and squared deviations forward, of the gradient and of its product with
    the normalised values backward. PyTorch's SyncBatchNorm does the same, on GPUs alone.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, C, ...] to the same shape; and mean, biased variance and count, [C] each."""
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


class _OverProcesses:
    """Put before a batch norm of PyTorch or timm: in training its statistics are shared."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return self.finish(self._normalise(x))

    def finish(self, x: Tensor) -> Tensor:
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


class SharedBatchNorm1d(_OverProcesses, nn.BatchNorm1d):
    pass


class SharedBatchNorm2d(_OverProcesses, nn.BatchNorm2d):
    pass


class SharedBatchNormAct2d(_OverProcesses, BatchNormAct2d):
    def finish(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))


SHARED = {
    nn.BatchNorm1d: SharedBatchNorm1d,
    nn.BatchNorm2d: SharedBatchNorm2d,
    BatchNormAct2d: SharedBatchNormAct2d,
}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def share_batch_norm(model: nn.Module) -> None:
    """Let the batch norms of a model take their statistics over all processes, in training.

    They are changed in place: parameters, buffers, hooks and state-dict keys stay. Every process
    must run them equally often. Under gradient accumulation the statistics are those of one
    micro-batch of all processes, not of the whole step, and the running ones move at each
    micro-batch: N processes with a micro-batch of B are one with N * B, but two micro-batches
    are not one of twice the size.

    Raises:
        ValueError: if there is a kind of batch norm that cannot.
    """
    for name, module in model.named_modules():
        if type(module) in SHARED:
            module.__class__ = SHARED[type(module)]
        elif isinstance(module, BATCH_NORMS) and not isinstance(module, _OverProcesses):
            raise ValueError(
                f'{name} is a {type(module).__name__}, whose statistics cannot be taken over '
                'several processes: train in one'
            )


def _axes(x: Tensor) -> tuple[list[int], list[int]]:
    """Shape of a channel's values beside x [B, C, ...], and all axes but the channels'."""
    return [1, -1] + [1] * (x.ndim - 2), [axis for axis in range(x.ndim) if axis != 1]


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

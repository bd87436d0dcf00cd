"""Batch norm with separate statistics for groups of a batch, in one pass of the model."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class GroupedBatchNorm(nn.Module):
    """Batch norm that normalises consecutive groups of a batch separately, as on several GPUs.

    It is equal to a pass of the batch norm `norm` for each group, one after the other, and has the
    same state-dict keys. It exchanges nothing with other processes. In evaluation it is `norm`.

    Args:
        norm: Batch norm whose weights, running statistics and activation (timm) are used.
        groups: Number of groups, a divisor of the batch size.

    Source: He et al. 2020, arXiv:1911.05722, section 3.3.
    """

    def __init__(self, norm: _BatchNorm, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.eps = norm.eps
        self.momentum = norm.momentum
        self.weight = norm.weight
        self.bias = norm.bias
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.drop = getattr(norm, 'drop', nn.Identity())  # timm's BatchNormAct2d
        self.act = getattr(norm, 'act', nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate, [B, C, ...] -> [B, C, ...]."""
        if not self.training:
            x = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
            return self.act(self.drop(x))
        # Statistics of bfloat16 are computed in float32, as batch norm does.
        groups = x.unflatten(0, (self.groups, -1))  # [G, B / G, C, ...]
        groups = groups.to(torch.promote_types(x.dtype, torch.float32))
        axes = [axis for axis in range(1, groups.ndim) if axis != 2]
        var, mean = torch.var_mean(groups, dim=axes, keepdim=True, correction=0)  # [G, 1, C, ...]
        self._update(mean.detach().flatten(1), var.detach().flatten(1), x.numel() // mean.numel())
        scale = self.weight.view(1, -1, *[1] * (x.ndim - 2))
        offset = self.bias.view(scale.shape)
        normalised = (groups - mean) * torch.rsqrt(var + self.eps) * scale + offset
        return self.act(self.drop(normalised.to(x.dtype).flatten(0, 1)))

    @torch.no_grad()
    def _update(self, means: Tensor, variances: Tensor, count: int) -> None:
        """Move the running statistics as G passes would, from statistics [G, C] of `count` values.

        Each pass keeps 1 - momentum of what was there before, so that the last group counts most.
        """
        kept = 1 - self.momentum
        ages = torch.arange(self.groups - 1, -1, -1, device=means.device, dtype=means.dtype)
        shares = (self.momentum * kept**ages)[:, None]
        variances = variances * (count / (count - 1))  # running variances are unbiased
        for running, values in ((self.running_mean, means), (self.running_var, variances)):
            running.mul_(kept**self.groups).add_((shares * values).sum(0).to(running.dtype))
        self.num_batches_tracked += self.groups


def normalise_in_groups(module: nn.Module, groups: int) -> None:
    """Replace all batch norms below `module` by `GroupedBatchNorm`, with the same parameters."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, GroupedBatchNorm(child, groups))
        else:
            normalise_in_groups(child, groups)

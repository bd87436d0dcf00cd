"""Losses of contrastive and clustering pre-training, over the images of all processes.

They are written out here because each is a few lines, while lightly, which has them too, brings
PyTorch Lightning and Hydra along.

Each is a mean over this process's images, whose number must be the same on every process: the
mean over processes, which DistributedDataParallel takes of the gradients, is then that of the
whole batch.  All are computed in float32, also under autocast (float64 stays).
"""

import functools
from collections.abc import Callable

import torch
from torch.nn import functional as F

import distributed
from models.contrastive.gather import gather_rows


def at_least_float32(z: torch.Tensor) -> torch.Tensor:
    """Half precision to float32; other types as they are."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


def unit(z: torch.Tensor) -> torch.Tensor:
    """Vectors [..., D] divided by their length, in float32."""
    return F.normalize(at_least_float32(z), dim=-1)


def in_float32(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Call a function of tensors, then settings, without autocast, on float32 tensors."""

    @functools.wraps(function)
    def wrapped(*values: torch.Tensor | float, **settings: float) -> torch.Tensor:
        with torch.autocast(values[0].device.type, enabled=False):
            values = [at_least_float32(v) if isinstance(v, torch.Tensor) else v for v in values]
            return function(*values, **settings)

    return wrapped


@in_float32
def nt_xent(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> torch.Tensor:
    """SimCLR: each view is to find the other of its image among all other views of the batch.

    Args:
        z1: [B, D], first views of this process's images; normalised here.
        z2: [B, D], second views.
        temperature: divides the cosines.

    Returns:
        Scalar: mean cross-entropy of this process's 2 B views, each against the 2 N - 1 other
        views of all N images of the processes.

    Source: Chen et al. 2020, arXiv:2002.05709, algorithm 1.
    """
    own = unit(torch.cat([z1, z2]))  # [2B, D]
    every = gather_rows(own)  # [2N, D], this process's rows from `first` on
    first = distributed.rank() * len(own)
    places = first + torch.arange(len(own), device=own.device)
    logits = own @ every.T / temperature  # [2B, 2N]
    logits = logits.scatter(1, places[:, None], -torch.inf)  # no view is compared with itself
    return F.cross_entropy(logits, places.roll(len(z1)))


@in_float32
def info_nce(
    q: torch.Tensor, k: torch.Tensor, queue: torch.Tensor, temperature: float
) -> torch.Tensor:
    """MoCo: each query is to find its key among the keys of earlier batches.

    Args:
        q: [B, D], queries; normalised here.
        k: [B, D], the key of each; normalised here. No gradient flows into it.
        queue: [K, D], keys of length 1. No gradient flows into it.
        temperature: divides the cosines.

    Returns:
        Scalar: mean cross-entropy over 1 + K keys.

    Source: He et al. 2020, arXiv:1911.05722, algorithm 1.
    """
    q, k = unit(q), unit(k.detach())
    positive = (q * k).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, q @ queue.detach().T], dim=1) / temperature  # [B, 1 + K]
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device))


@in_float32
def byol_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """BYOL, one direction: squared distance of unit vectors, 2 - 2 cos.

    Args:
        prediction: [B, D].
        target: [B, D]. No gradient flows into it.

    Returns:
        Scalar in [0, 4], the mean over the batch.

    Source: Grill et al. 2020, arXiv:2006.07733, equation 2.
    """
    return (2 - 2 * (unit(prediction) * unit(target.detach())).sum(dim=1)).mean()


@in_float32
def sinkhorn(scores: torch.Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> torch.Tensor:
    """Soft assignments of samples to prototypes that use all prototypes about equally.

    Args:
        scores: [..., B, K], cosines of this process's samples and the prototypes.
        epsilon: the smaller, the harder the assignments.
        iterations: in each, prototypes then samples are normalised; the more, the more equally.

    Returns:
        [..., B, K] without gradient: a sample's shares sum to 1, a prototype's over the samples of
        all processes to about samples / K.

    Source: Caron et al. 2020, arXiv:2006.09882, appendix A; Cuturi 2013, arXiv:1306.0895.
    """
    shares = ((scores.detach() - 1) / epsilon).exp()  # a cosine less 1: nothing overflows
    for _ in range(iterations):
        shares = shares / distributed.all_reduce_sum(shares.sum(dim=-2, keepdim=True))
        shares = shares / shares.sum(dim=-1, keepdim=True)
    return shares


@in_float32
def swav_loss(
    scores: torch.Tensor, *, num_global: int, temperature: float, epsilon: float
) -> torch.Tensor:
    """SwAV: the assignment of each global crop is predicted from every other crop of the image.

    Args:
        scores: [V, B, K], cosines of V crops of B images and the prototypes; global crops first.
        num_global: crops whose assignments are targets.
        temperature: of the predictions, divides the cosines.
        epsilon: of the assignments, see sinkhorn.

    Returns:
        Scalar: mean cross-entropy over images and pairs of crops.

    Source: Caron et al. 2020, arXiv:2006.09882, equations 2 and 6.
    """
    num_views, num_images, _ = scores.shape
    targets = sinkhorn(scores[:num_global], epsilon=epsilon)  # [G, B, K]
    predictions = F.log_softmax(scores / temperature, dim=-1)
    costs = -torch.einsum('gbk,vbk->gv', targets, predictions) / num_images  # [G, V]
    itself = torch.eye(num_global, num_views, dtype=torch.bool, device=scores.device)
    return costs.masked_fill(itself, 0.0).sum() / (num_global * (num_views - 1))

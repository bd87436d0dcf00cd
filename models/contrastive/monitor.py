"""Whether embeddings collapse: how far they spread, and over how many dimensions."""

import torch
from torch.nn import functional as F


@torch.no_grad()
def feature_spread(z: torch.Tensor) -> torch.Tensor:
    """Mean standard deviation of unit vectors over the batch, times sqrt(D).

    Args:
        z: [B, D], of any length.

    Returns:
        Scalar: 1 where they point in all directions alike, 0 where all point in one.

    Source: Chen & He 2021, arXiv:2011.10566, section 4.1.
    """
    directions = F.normalize(z.float(), dim=1)
    return directions.std(dim=0, correction=0).mean() * z.shape[1] ** 0.5


@torch.no_grad()
def effective_rank(z: torch.Tensor) -> torch.Tensor:
    """Exponential of the entropy of the singular values, as shares of their sum.

    Args:
        z: [B, D].

    Returns:
        Scalar from 1 (all rows are multiples of one) to min(B, D).

    Source: Roy & Vetterli 2007, The effective rank, EUSIPCO.
    """
    singular = torch.linalg.svdvals(z.float())
    shares = singular / singular.sum().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.special.entr(shares).sum().exp()

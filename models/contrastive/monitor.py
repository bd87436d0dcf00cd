"""Whether embeddings collapse: how far they spread, and over how many dimensions."""

import torch
from torch.nn import functional as F

# Below these all images look alike to the encoder: of directions all over, the spread is 1; along a
# single line, the rank is 1.
LEAST_SPREAD = 0.05
LEAST_RANK = 2.0


def collapse(spread: float, rank: float, *, greatest_rank: int) -> str:
    """What there is to say where spread or rank are too low, else ''.

    Args:
        spread: see feature_spread.
        rank: see effective_rank; of features less their mean.
        greatest_rank: what it can be, by the number of images and the width; nothing is said where
            it is too low for features of any kind.
    """
    collapsed = spread < LEAST_SPREAD or rank < LEAST_RANK
    if not collapsed or greatest_rank <= LEAST_RANK:
        return ''
    return (
        f'the features have collapsed (spread below {LEAST_SPREAD} or effective rank below '
        f'{LEAST_RANK:g}): lower TRAIN.BASE_LR, or take larger batches'
    )


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

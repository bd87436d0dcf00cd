"""Collapse of features, in which all images get the same or a few features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.run import Run
from logger import DETAIL

# Below these values the features have collapsed. A spread of 1 means that they point in all
# directions, and a rank of 1 means that they lie on one line.
LEAST_SPREAD = 0.05
LEAST_RANK = 2.0


def held_out_figures(run: Run, loss: float, z: Tensor, epoch: int) -> dict[str, float]:
    """Return and log the held-out loss and how far features spread, and warn of a collapse.

    Args:
        run: Run.
        loss: Mean loss on the held-out patients.
        z: Features of the held-out images without augmentation, over all processes, [N, F]. The
            effective rank uses their deviations from the mean.
        epoch: Finished epoch, -1 before training.
    """
    spread, rank = float(feature_spread(z)), float(effective_rank(z - z.mean(dim=0)))
    most = min(len(z) - 1, z.shape[1])
    run.logger.info(
        f'holdout loss {loss:.4f}, feature spread {spread:.3f}, '
        f'effective rank {rank:.1f} of {most}',
        extra=DETAIL if epoch >= 0 else None,
    )
    has_collapsed = spread < LEAST_SPREAD or rank < LEAST_RANK
    if has_collapsed and (epoch >= 0 or run.config.EVAL_MODE):  # not before training
        run.logger.warning('the features have collapsed: lower TRAIN.BASE_LR or use larger batches')
    return {
        'holdout_loss': loss,
        'holdout_feature_spread': spread,
        'holdout_effective_rank': rank,
    }


@torch.no_grad()
def effective_rank(z: Tensor) -> Tensor:
    """Compute the exponential of the entropy of the normalised singular values.

    Args:
        z: Vectors, [B, D].

    Returns:
        Scalar from 1 (all vectors are parallel) to min(B, D).

    Source: Roy & Vetterli 2007, The effective rank, EUSIPCO.
    """
    singular = torch.linalg.svdvals(z.float())
    shares = singular / singular.sum().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.special.entr(shares).sum().exp()


@torch.no_grad()
def feature_spread(z: Tensor) -> Tensor:
    """Compute the mean standard deviation of the normalised vectors over the batch, times sqrt(D).

    Args:
        z: Vectors of any length, [B, D].

    Returns:
        Scalar that is 1 for vectors in uniformly random directions and 0 if all have the same one.

    Source: Chen & He 2021, arXiv:2011.10566, section 4.1.
    """
    directions = F.normalize(z.float(), dim=1)
    return directions.std(dim=0, correction=0).mean() * z.shape[1] ** 0.5

"""Collapse of features, in which all images get the same or a few features."""

from torch import Tensor

from engine.run_record import Run
from logger import DETAIL
from models.contrastive import effective_rank, feature_spread

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

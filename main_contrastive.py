"""Pre-train MoCo v2, SimCLR, BYOL or SwAV on unlabelled chest X-rays.

torchrun --nproc_per_node N main_contrastive.py --cfg configs/... --data-path DIR [--opts KEY VALUE]
"""

from config import build_parser

if __name__ == '__main__':  # --help is answered before torch is imported, which takes seconds
    build_parser('contrastive').parse_args()

import math
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data import build_loader
from data.fingerprint import describe_data
from engine.launch import launch
from engine.loop import LossFunction
from engine.run_record import Run
from engine.stage import run_stage
from logger import DETAIL
from models.contrastive import (
    METHODS,
    MomentumMethod,
    build_contrastive,
    effective_rank,
    feature_spread,
    features,
)
from models.pretrained import fit_pretrained
from system import distributed
from system.device import autocast, to_device

# Below these values the features have collapsed. A spread of 1 means that they point in all
# directions, and a rank of 1 means that they lie on one line.
LEAST_SPREAD = 0.05
LEAST_RANK = 2.0


def views_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the loss of the views of B images, each [B, C, S, S]."""
    return model(*batch)


class HeldOutViews:
    """Computes the loss on views of held-out patients, and warns if the features collapse.

    The views are the same in all epochs. Feature spread and effective rank are computed over all
    processes, from the encoder's features of the images without augmentation. The effective rank
    uses the deviations of the features from their mean.
    """

    def __init__(self, loader: DataLoader | None) -> None:
        self.loader = loader

    def __call__(self, run: Run, model: nn.Module, epoch: int) -> dict[str, Any]:
        if self.loader is None:
            return {}
        losses, z = self._score(run, model)
        values = {
            'holdout_loss': sum(losses) / len(losses),
            'holdout_feature_spread': float(feature_spread(z)),
            'holdout_effective_rank': float(effective_rank(z - z.mean(dim=0))),
            'holdout_images_compared': len(z) * distributed.world_size() // len(losses),
        }
        loss, spread, rank, compared = values.values()
        options = run.config.CONTRASTIVE
        chance = METHODS[options.METHOD].chance_loss(options, compared)
        if chance is not None:
            values['holdout_loss_chance'] = chance
        most = min(len(z) - 1, z.shape[1])
        run.logger.info(
            f'holdout loss {loss:.4f}, feature spread {spread:.3f}, '
            f'effective rank {rank:.1f} of {most}',
            extra=DETAIL if epoch >= 0 else None,
        )
        has_collapsed = spread < LEAST_SPREAD or rank < LEAST_RANK
        if has_collapsed and (epoch >= 0 or run.config.EVAL_MODE):  # not before training
            run.logger.warning(
                'the features have collapsed: lower TRAIN.BASE_LR or use larger batches'
            )
        return values

    @torch.no_grad()
    def _score(self, run: Run, model: nn.Module) -> tuple[list[float], Tensor]:
        """Return the loss of each batch and the features [N, F] of all images, over all ranks."""
        model.eval()
        losses, rows = [], []
        for batch in self.loader:
            image, *views = to_device(batch, run.device)
            with autocast(run.config, run.device):
                losses.append(float(model(*views)))
                rows.append(features(model.encoder, image).float().cpu())
        gathered = distributed.gather((losses, torch.cat(rows)))
        return sum((each for each, _ in gathered), []), torch.cat([each for _, each in gathered])


def main(run: Run) -> int:
    run = replace(run, fit_weights=fit_pretrained)
    config, logger = run.config, run.logger
    if config.CHECK_MODE and distributed.world_size() > 1:
        raise ValueError('--check: contrastive pre-training can only be checked in one process')
    num_views = METHODS[config.CONTRASTIVE.METHOD].num_views(config)
    loaders = build_loader(config, logger, is_pretrain=True, num_views=num_views)
    after_epoch = HeldOutViews(loaders.holdout)

    def build() -> tuple[nn.Module, LossFunction]:
        steps = math.ceil(len(loaders.train) / max(1, config.TRAIN.ACCUMULATION_STEPS))
        model = build_contrastive(config, total_steps=config.TRAIN.EPOCHS * steps)
        if isinstance(model, MomentumMethod):
            momentum = float(model.momentum())
            logger.info(f'momentum of the averaged encoder {momentum:.6g} (CONTRASTIVE.MOMENTUM)')
        return model, views_loss

    run.record.describe(config, lambda: describe_data(config, loaders))
    return run_stage(run, loaders._asdict(), build=build, after_epoch=after_epoch)


if __name__ == '__main__':
    sys.exit(launch('contrastive', main))

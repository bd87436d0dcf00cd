"""Pre-train MoCo v2, SimCLR, BYOL or SwAV on unlabelled chest X-rays.

torchrun --nproc_per_node N main_contrastive.py --cfg configs/... --data-path DIR [--opts KEY VALUE]
"""

import math
import sys
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from data import Loaders, build_loader
from engine import distributed
from engine.device import autocast, throughput, to_device
from engine.launch import launch
from engine.loop import LossFunction, fit
from engine.preflight import preflight
from engine.run_record import Run
from models.contrastive import (
    build_contrastive,
    collapse,
    effective_rank,
    feature_spread,
    features,
    warn_of_other_batch,
)
from utils import checkpoint_to_evaluate, load_weights, read_checkpoint, trained_config


def views_loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return model(*batch)


class HeldOutViews:
    """After each epoch: the loss of held-out patients' views, and whether the features collapse.

    Views are the same in all epochs. Spread and rank are of what the encoder makes of the images
    without augmentation, over all processes; the rank is of how they differ from their mean.
    """

    def __init__(self, loader: DataLoader | None) -> None:
        self.loader = loader

    def __call__(self, run: Run, model: nn.Module, epoch: int) -> dict[str, Any]:
        if self.loader is None:
            return {}
        losses, z = self._score(run, model)
        figures = {
            'holdout_loss': sum(losses) / len(losses),
            'holdout_feature_spread': float(feature_spread(z)),
            'holdout_effective_rank': float(effective_rank(z - z.mean(dim=0))),
            'holdout_images_compared': len(z) * distributed.world_size() // len(losses),
        }
        loss, spread, rank, _ = figures.values()
        most = min(len(z) - 1, z.shape[1])
        line = f'loss {loss:.4f}, feature spread {spread:.3f}, effective rank {rank:.1f} of {most}'
        run.logger.info(f'holdout {line}')
        problem = collapse(spread, rank, greatest_rank=most)
        if problem and epoch >= 0:  # -1: nothing is learned
            run.logger.warning(problem)
        return figures

    @torch.no_grad()
    def _score(self, run: Run, model: nn.Module) -> tuple[list[float], torch.Tensor]:
        """Losses of the batches, and features [N, F] of the images, of all processes."""
        model.eval()
        losses, rows = [], []
        for batch in self.loader:
            image, *views = to_device(batch, run.device)
            with autocast(run.config, run.device):
                losses.append(float(model(*views)))
                rows.append(features(model.encoder, image).float().cpu())
        gathered = distributed.gather((losses, torch.cat(rows)))
        return sum((each for each, _ in gathered), []), torch.cat([each for _, each in gathered])


def build_training(run: Run, loaders: Loaders) -> tuple[nn.Module, LossFunction]:
    """What is trained, and by which loss."""
    train, num_images = run.config.TRAIN, len(loaders.train.dataset)
    steps = train.EPOCHS * math.ceil(len(loaders.train) / max(1, train.ACCUMULATION_STEPS))
    sizes = {'total_steps': steps, 'num_images': num_images}
    return build_contrastive(run.config, **sizes, logger=run.logger), views_loss


def main(run: Run) -> int | None:
    config, logger = run.config, run.logger
    loaders = build_loader(config, logger, is_pretrain=True, contrastive=True)
    model, loss_fn = build_training(run, loaders)
    after_epoch = HeldOutViews(loaders.holdout)
    if config.THROUGHPUT_MODE:
        batch = next(iter(loaders.train))
        logger.info(f'throughput {throughput(config, model, batch, run.device):.1f} images/s')
    elif config.CHECK_MODE:
        if distributed.world_size() > 1:  # it tries steps of each process by itself
            raise ValueError('--check: contrastive pre-training is checked in a single process')
        return preflight(run, model, loaders, loss_fn)
    elif config.EVAL_MODE:
        if loaders.holdout is None:
            share = config.DATA.HOLDOUT_FRACTION
            raise ValueError(f'--eval: DATA.HOLDOUT_FRACTION {share} holds out too few images')
        checkpoint = checkpoint_to_evaluate(config, run.folder)
        load_weights(checkpoint, model.to(run.device), logger)
        trained, states = trained_config(checkpoint), read_checkpoint(checkpoint).get('rng')
        if trained and isinstance(states, list):
            warn_of_other_batch(config, trained, processes=len(states), logger=logger)
        after_epoch(run, model, 0)
    else:
        run.record.describe(config, loaders)
        fit(run, model, loaders.train, loss_fn, after_epoch=after_epoch)


if __name__ == '__main__':
    sys.exit(launch('contrastive', main))

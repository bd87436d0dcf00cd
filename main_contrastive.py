"""Pre-train MoCo v2, SimCLR, BYOL or SwAV on unlabelled chest X-rays.

torchrun --nproc_per_node N main_contrastive.py --cfg configs/... --data-path DIR [--opts KEY VALUE]
"""

import sys

from system.start import check_command

if __name__ == '__main__':
    check_command('contrastive')  # before PyTorch is imported

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from config import module_of_option, selected_part
from data.data_contrastive import build_loader_contrastive
from data.fingerprint import describe_data, hash_patients
from engine.launch import launch
from engine.loop import evaluate, fit, total_steps
from engine.run import Run
from evaluation.collapse import held_out_figures
from models.contrastive import MomentumMethod, build_contrastive, features
from system import distributed
from system.device import autocast, to_device


def views_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the loss of the views of B images, each [B, C, S, S]."""
    return model(*batch)


class HeldOutViews:
    """Computes the loss on views of held-out patients, and warns if the features collapse.

    The views are the same in all epochs.
    """

    def __init__(self, loader: DataLoader | None) -> None:
        self.loader = loader

    def __call__(self, run: Run, model: nn.Module, epoch: int) -> dict[str, Any]:
        if self.loader is None:
            return {}
        losses, z = self._score(run, model)
        values = held_out_figures(run, sum(losses) / len(losses), z, epoch)
        compared = len(z) * distributed.world_size() // len(losses)
        values['holdout_images_compared'] = compared
        options = run.config.CONTRASTIVE
        chance = selected_part(run.config, 'CONTRASTIVE.METHOD').chance_loss(options, compared)
        return values if chance is None else values | {'holdout_loss_chance': chance}

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
    """Pre-train, or do what --eval, --throughput or --check asks for. Returns the exit code."""
    config, logger = run.config, run.logger
    if config.CHECK_MODE and distributed.world_size() > 1:
        raise ValueError('--check: contrastive pre-training can only be checked in one process')
    num_views = selected_part(config, 'CONTRASTIVE.METHOD').num_views(config)
    loaders = build_loader_contrastive(config, logger, num_views)
    run.record.describe(config, lambda: describe_data(config, loaders))
    run.lineage.patients = hash_patients(config, loaders)
    model = build_contrastive(config, total_steps=total_steps(config, loaders.train))
    if isinstance(model, MomentumMethod):
        logger.info(f'momentum of the averaged encoder {float(model.momentum()):.6g}')
    validate = HeldOutViews(loaders.holdout)
    if config.EVAL.PROBE_EVERY:
        validate = module_of_option('EVAL.PROBE_EVERY').OnlineProbe(config, logger, validate)

    if config.EVAL_MODE:
        evaluate(run, model, loaders.holdout, validate)
        return 0
    if config.THROUGHPUT_MODE:
        return module_of_option('THROUGHPUT_MODE').log_throughput(run, model, loaders._asdict())
    if config.CHECK_MODE:
        return module_of_option('CHECK_MODE').preflight(run, model, loaders._asdict(), views_loss)

    fit(run, model, loaders.train, views_loss, after_epoch=validate)
    return 0


if __name__ == '__main__':
    sys.exit(launch('contrastive', main))

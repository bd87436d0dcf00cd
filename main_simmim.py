"""Pre-train SimMIM or MAE on unlabelled chest X-rays.

torchrun --nproc_per_node N main_simmim.py --cfg configs/... --data-path DIR [--opts KEY VALUE ...]
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
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
from evaluation.reconstruction import (
    TRIVIAL_PREDICTORS,
    Reconstruction,
    hidden_error,
    pixel_mask,
    plot_reconstructions,
)
from models import build_model
from utils import checkpoint_to_evaluate, load_weights

NUM_PICTURES = 6  # rows of reconstructions/epoch_N.png
TOLD = '_given_patch_statistics'  # ends the names of figures that no other run's compare with


def reconstruction_loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    images, masks = batch
    return model(images, masks)


@torch.no_grad()
def reconstruct(run: Run, model: nn.Module, loader: DataLoader) -> Iterator[Reconstruction]:
    """The held-out images of this rank, one by one, reconstructed under their fixed masks."""
    model.eval()
    for batch in loader:
        images, masks, scales, offsets = (item.cpu().numpy() for item in batch)
        with autocast(run.config, run.device):
            predictions = model.reconstruct(*to_device(batch[:2], run.device)).float().cpu().numpy()
        hidden = (pixel_mask(mask, model.patch_size) for mask in masks)
        yield from map(Reconstruction, images, hidden, predictions, scales, offsets)


class HeldOutReconstruction:
    """Masked L1 on the held-out patients after each epoch, beside that of the trivial predictors.

    `holdout` hides what the run hides, `reference` always the same (data.data_simmim), by
    which runs with other masks or losses can be compared. A model of normalised patches is told
    mean and deviation of what it cannot see: its figures have names of their own.
    """

    def __init__(self, loaders: dict[str, DataLoader]) -> None:
        self.loaders = loaders
        self.trivial_sums = {}  # they do not change from epoch to epoch

    def __call__(self, run: Run, model: nn.Module, epoch: int) -> dict[str, Any]:
        figures, own = {}, TOLD if model.target.uses_true_statistics else ''
        for name, loader in self.loaders.items():
            sums, pictures = self._sums(run, model, name, loader)
            for predictor, (normalised, grey, num_pixels) in sums.items():
                suffix = own if predictor == 'model' else f'_{predictor}'
                figures[f'{name}_l1{suffix}'] = float(normalised / num_pixels)
                figures[f'{name}_l1_grey{suffix}'] = float(grey / num_pixels)
            line = describe(name, figures, own)
            run.logger.info(line)
            if name == 'holdout' and distributed.is_main() and epoch >= 0:
                path = run.folder / 'reconstructions' / f'epoch_{epoch}.png'
                try:
                    plot_reconstructions(path, pictures, f'epoch {epoch}, {line}')
                except OSError as error:  # a full disk: training goes on
                    run.logger.warning(f'{path} cannot be written ({error.strerror})')
        return figures

    def _sums(
        self, run: Run, model: nn.Module, name: str, loader: DataLoader
    ) -> tuple[dict[str, np.ndarray], list[Reconstruction]]:
        """Errors summed over all ranks by predictor, and the first pictures of this rank."""
        sums, pictures = {'model': np.zeros(3)}, []
        if name not in self.trivial_sums:
            sums |= {key: np.zeros(3) for key in TRIVIAL_PREDICTORS}
        for item in reconstruct(run, model, loader):
            for key in sums:
                trivial = TRIVIAL_PREDICTORS.get(key)
                guess = trivial(item.image, item.hidden) if trivial else item.prediction
                sums[key] += hidden_error(item, guess)
            pictures += [item] if len(pictures) < NUM_PICTURES else []
        sums = {key: sum(distributed.gather(value)) for key, value in sums.items()}
        self.trivial_sums.setdefault(name, {k: v for k, v in sums.items() if k != 'model'})
        return sums | self.trivial_sums[name], pictures


def describe(name: str, figures: dict[str, float], suffix: str = '') -> str:
    """One line: the model's error in both units beside the trivial predictors'."""
    trivial = ', '.join(f'{k} {figures[f"{name}_l1_grey_{k}"]:.2f}' for k in TRIVIAL_PREDICTORS)
    return (
        f'{name} masked L1{suffix.replace("_", " ")}: {figures[f"{name}_l1{suffix}"]:.4f} '
        f'normalised, {figures[f"{name}_l1_grey{suffix}"]:.2f} of 255 grey levels '
        f'(trivial: {trivial})'
    )


def build_training(run: Run, loaders: Loaders) -> tuple[nn.Module, LossFunction]:
    """What is trained, and by which loss."""
    return build_model(run.config, is_pretrain=True), reconstruction_loss


def main(run: Run) -> int | None:
    config, logger = run.config, run.logger
    loaders = build_loader(config, logger, is_pretrain=True)
    model, loss_fn = build_training(run, loaders)
    held_out = {'holdout': loaders.holdout, 'reference': loaders.reference}
    after_epoch = HeldOutReconstruction({k: v for k, v in held_out.items() if v is not None})
    if config.THROUGHPUT_MODE:
        batch = next(iter(loaders.train))
        logger.info(f'throughput {throughput(config, model, batch, run.device):.1f} images/s')
    elif config.CHECK_MODE:
        return preflight(run, model, loaders, loss_fn)
    elif config.EVAL_MODE:
        if loaders.holdout is None:
            share = config.DATA.HOLDOUT_FRACTION
            raise ValueError(f'--eval: DATA.HOLDOUT_FRACTION must be above 0, got {share}')
        load_weights(checkpoint_to_evaluate(config, run.folder), model.to(run.device), logger)
        after_epoch(run, model, -1)
    else:
        run.record.describe(config, loaders)
        fit(run, model, loaders.train, loss_fn, after_epoch=after_epoch)


if __name__ == '__main__':
    sys.exit(launch('simmim', main))

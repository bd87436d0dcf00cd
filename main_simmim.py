"""Pre-train SimMIM or MAE on unlabelled chest X-rays.

torchrun --nproc_per_node N main_simmim.py --cfg configs/... --data-path DIR [--opts KEY VALUE ...]
"""

from config import build_parser

if __name__ == '__main__':  # --help is answered before torch is imported, which takes seconds
    build_parser('simmim').parse_args()

import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data import Loaders, build_loader
from engine import distributed
from engine.device import autocast, to_device
from engine.launch import launch
from engine.loop import LossFunction
from engine.run_record import Run
from engine.stage import run_stage
from evaluation.reconstruction import (
    TRIVIAL_PREDICTORS,
    Reconstruction,
    hidden_error,
    pixel_mask,
    plot_reconstructions,
)
from logger import DETAIL
from models import build_model

NUM_IMAGES = 6  # rows of reconstructions/epoch_N.png
IN_TENSORBOARD = 40  # of these files at most, each of which takes a megabyte
# Suffix of values that other runs cannot be compared with.
GIVEN_STATISTICS = '_given_patch_statistics'


def reconstruction_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    images, masks = batch
    return model(images, masks)


class HeldOutReconstruction:
    """Masked L1 on the held-out patients, next to that of trivial predictors.

    `holdout` uses the run's own masks and `reference` one fixed set of masks (data.data_simmim), so
    that runs with other masks or losses can be compared. A model of normalised patches is given the
    mean and deviation of the patches it cannot see; its values have their own names.
    """

    def __init__(self, loaders: Loaders) -> None:
        splits = {'holdout': loaders.holdout, 'reference': loaders.reference}
        self.loaders = {name: loader for name, loader in splits.items() if loader is not None}
        self.trivial_sums = {}  # by loader; they are the same after every epoch

    def __call__(self, run: Run, model: nn.Module, epoch: int) -> dict[str, Any]:
        values, results = {}, {}
        own = GIVEN_STATISTICS if model.target.uses_true_statistics else ''
        for name, loader in self.loaders.items():
            if loader not in results:  # holdout and reference may have the same masks
                results[loader] = self._sums(run, model, loader)
            sums, examples = results[loader]
            for predictor, (normalised, grey, num_pixels) in sums.items():
                suffix = own if predictor == 'model' else f'_{predictor}'
                values[f'{name}_l1{suffix}'] = float(normalised / num_pixels)
                values[f'{name}_l1_grey{suffix}'] = float(grey / num_pixels)
            line = describe(name, values, own)
            run.logger.info(line, extra=DETAIL if epoch >= 0 else None)
            if name == 'holdout' and distributed.is_main() and epoch >= 0:
                path = run.folder / 'reconstructions' / f'epoch_{epoch}.png'
                try:
                    plot_reconstructions(path, examples, f'epoch {epoch}, {line}')
                    done, epochs = epoch + 1, run.config.TRAIN.EPOCHS
                    if done % math.ceil(epochs / IN_TENSORBOARD) == 0 or done == epochs:
                        run.scalars.write_image('reconstructions', path, epoch)
                except OSError as error:  # a full disk does not stop training
                    run.logger.warning(f'{path} cannot be written ({error.strerror})')
        return values

    def _sums(
        self, run: Run, model: nn.Module, loader: DataLoader
    ) -> tuple[dict[str, np.ndarray], list[Reconstruction]]:
        """Return errors summed over all ranks by predictor, and the first images of this rank."""
        sums, examples = {'model': np.zeros(3)}, []
        if loader not in self.trivial_sums:
            sums |= {key: np.zeros(3) for key in TRIVIAL_PREDICTORS}
        for item in reconstruct(run, model, loader):
            for key in sums:
                trivial = TRIVIAL_PREDICTORS.get(key)
                guess = trivial(item.image, item.hidden) if trivial else item.prediction
                sums[key] += hidden_error(item, guess)
            examples += [item] if len(examples) < NUM_IMAGES else []
        sums = {key: sum(distributed.gather(value)) for key, value in sums.items()}
        self.trivial_sums.setdefault(loader, {k: v for k, v in sums.items() if k != 'model'})
        return sums | self.trivial_sums[loader], examples


@torch.no_grad()
def reconstruct(run: Run, model: nn.Module, loader: DataLoader) -> Iterator[Reconstruction]:
    """Reconstruct the held-out images of this rank, one by one, with their fixed masks."""
    model.eval()
    for batch in loader:
        images, masks, scales, offsets = (item.cpu().numpy() for item in batch)
        with autocast(run.config, run.device):
            predictions = model.reconstruct(*to_device(batch[:2], run.device)).float().cpu().numpy()
        hidden = (pixel_mask(mask, model.patch_size) for mask in masks)
        yield from map(Reconstruction, images, hidden, predictions, scales, offsets)


def describe(name: str, values: dict[str, float], suffix: str = '') -> str:
    """Return one line with the model's error in both units next to the trivial predictors'."""
    trivial = ', '.join(f'{k} {values[f"{name}_l1_grey_{k}"]:.2f}' for k in TRIVIAL_PREDICTORS)
    return (
        f'{name} masked L1{suffix.replace("_", " ")}: {values[f"{name}_l1{suffix}"]:.4f}, '
        f'{values[f"{name}_l1_grey{suffix}"]:.2f} of 255 grey levels (trivial: {trivial})'
    )


def main(run: Run) -> int:
    config, logger = run.config, run.logger
    loaders = build_loader(config, logger, is_pretrain=True)
    after_epoch = HeldOutReconstruction(loaders)

    def build() -> tuple[nn.Module, LossFunction]:
        return build_model(config, is_pretrain=True), reconstruction_loss

    return run_stage(run, loaders, build=build, after_epoch=after_epoch)


if __name__ == '__main__':
    sys.exit(launch('simmim', main))

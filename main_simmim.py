"""Pre-train SimMIM or MAE on unlabelled chest X-rays.

torchrun --nproc_per_node N main_simmim.py --cfg configs/... --data-path DIR [--opts KEY VALUE ...]
"""

from config import build_parser

if __name__ == '__main__':  # --help is answered before torch is imported, which takes seconds
    build_parser('simmim').parse_args()

import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data import Loaders, build_loader
from data.fingerprint import describe_data
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
from models.pretrained import fit_pretrained
from system import distributed
from system.device import autocast, to_device

NUM_IMAGES = 6  # rows of reconstructions/epoch_N.png
IN_TENSORBOARD = 40  # at most this many reconstruction images, because each takes a megabyte
# Suffix of values that cannot be compared with other runs.
GIVEN_STATISTICS = '_given_patch_statistics'


def reconstruction_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the loss of images [B, C, S, S] with masks [B, h, w]."""
    return model(*batch)


class HeldOutReconstruction:
    """Computes the masked L1 of the model and of trivial predictors on the held-out patients.

    `holdout` uses the masks of the run. `reference` uses one fixed set of masks (data.data_simmim),
    so that runs with different masks or losses can be compared. With DATA.SOURCES, both are means
    over the images of all sources, and each source also has its own value, `holdout_<source>`. A
    model that predicts normalised patches receives the true mean and deviation of the hidden
    patches, so its values carry the suffix GIVEN_STATISTICS.
    """

    def __init__(self, loaders: Loaders) -> None:
        splits = {'holdout': loaders.holdout, 'reference': loaders.reference}
        self.loaders = {name: loader for name, loader in splits.items() if loader is not None}
        self.trivial_sums = {}  # loader -> sums, computed once because they never change

    def __call__(self, run: Run, model: nn.Module, epoch: int) -> dict[str, Any]:
        values, results = {}, {}
        own = GIVEN_STATISTICS if model.target.uses_true_statistics else ''
        for name, loader in self.loaders.items():
            if loader not in results:  # holdout and reference may share a loader
                results[loader] = self._sums(run, model, loader)
            by_source, examples = results[loader]
            values |= mean_errors(name, sum(by_source.values()), own)
            line = describe(name, values, own)
            lines = [line]
            for source in filter(None, by_source):
                values |= mean_errors(f'{name}_{source}', by_source[source], own)
                lines.append(describe(f'{name}_{source}', values, own))
            for text in lines:
                run.logger.info(text, extra=DETAIL if epoch >= 0 else None)
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
        """Return the errors of each source, summed over all ranks, and images of this rank.

        The errors have the shape [P, 3]. The first row belongs to the model and the others to
        the trivial predictors.
        """
        dataset, is_first = loader.dataset, loader not in self.trivial_sums
        sums = {source: np.zeros((1, 3)) for source in dataset.parts}
        trivial = {source: np.zeros((len(TRIVIAL_PREDICTORS), 3)) for source in dataset.parts}
        examples = {source: [] for source in dataset.parts}
        keys = itertools.chain.from_iterable(loader.batch_sampler)
        for item, (_, index) in zip(reconstruct(run, model, loader), keys, strict=True):
            source, _ = dataset.place(index)
            sums[source] += hidden_error(item, item.prediction)
            if is_first:
                guesses = (guess(item.image, item.hidden) for guess in TRIVIAL_PREDICTORS.values())
                trivial[source] += [hidden_error(item, guess) for guess in guesses]
            if len(examples[source]) < NUM_IMAGES:
                examples[source].append(item)
        sums = _over_ranks(sums)
        if is_first:
            self.trivial_sums[loader] = _over_ranks(trivial)
        before = self.trivial_sums[loader]
        sums = {source: np.concatenate([each, before[source]]) for source, each in sums.items()}
        # The sources take turns, so that each one is shown.
        shown = itertools.chain.from_iterable(itertools.zip_longest(*examples.values()))
        return sums, [item for item in shown if item][:NUM_IMAGES]


def _over_ranks(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add up the errors of each source over all ranks."""
    gathered = distributed.gather(sums)
    return {source: sum(each[source] for each in gathered) for source in sums}


@torch.no_grad()
def reconstruct(run: Run, model: nn.Module, loader: DataLoader) -> Iterator[Reconstruction]:
    """Yield the reconstruction of each held-out image of this rank under its fixed mask."""
    model.eval()
    for batch in loader:
        images, masks, scales, offsets = (item.cpu().numpy() for item in batch)
        with autocast(run.config, run.device):
            predictions = model.reconstruct(*to_device(batch[:2], run.device)).float().cpu().numpy()
        hidden = (pixel_mask(mask, model.patch_size) for mask in masks)
        yield from map(Reconstruction, images, hidden, predictions, scales, offsets)


def mean_errors(name: str, sums: np.ndarray, suffix: str) -> dict[str, float]:
    """Compute the mean errors of the model and of the trivial predictors.

    The sums [P, 3] are the normalised error, the error in grey levels and the number of pixels, for
    the model and then for each trivial predictor. `name` is the prefix of the names of all values,
    and `suffix` the suffix for the model.
    """
    suffixes = [suffix, *(f'_{predictor}' for predictor in TRIVIAL_PREDICTORS)]
    values = {}
    for (normalised, grey, num_pixels), end in zip(sums, suffixes, strict=True):
        values[f'{name}_l1{end}'] = float(normalised / num_pixels)
        values[f'{name}_l1_grey{end}'] = float(grey / num_pixels)
    return values


def describe(name: str, values: dict[str, float], suffix: str = '') -> str:
    """Return a log line with the model's error in both units and the trivial predictors' errors."""
    trivial = ', '.join(f'{k} {values[f"{name}_l1_grey_{k}"]:.2f}' for k in TRIVIAL_PREDICTORS)
    return (
        f'{name} masked L1{suffix.replace("_", " ")}: {values[f"{name}_l1{suffix}"]:.4f}, '
        f'{values[f"{name}_l1_grey{suffix}"]:.2f} of 255 grey levels (trivial: {trivial})'
    )


def main(run: Run) -> int:
    run = replace(run, fit_weights=fit_pretrained)
    config, logger = run.config, run.logger
    loaders = build_loader(config, logger, is_pretrain=True)
    after_epoch = HeldOutReconstruction(loaders)

    def build() -> tuple[nn.Module, LossFunction]:
        return build_model(config, is_pretrain=True), reconstruction_loss

    run.record.describe(config, lambda: describe_data(config, loaders))
    return run_stage(run, loaders._asdict(), build=build, after_epoch=after_epoch)


if __name__ == '__main__':
    sys.exit(launch('simmim', main))

"""Validation of masked pre-training: the reconstruction error on held-out patients, and figures."""

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from data.loader import Loaders
from engine.run import Run
from evaluation.collapse import held_out_figures
from evaluation.reconstruction import (
    TRIVIAL_PREDICTORS,
    Reconstruction,
    hidden_error,
    pixel_mask,
    plot_reconstructions,
)
from logger import DETAIL
from system import distributed
from system.device import autocast, to_device

NUM_IMAGES = 6  # rows of reconstructions/epoch_N.png
IN_TENSORBOARD = 40  # at most this many reconstruction images, because each takes a megabyte
# Suffix of values that cannot be compared with other runs.
GIVEN_STATISTICS = '_given_patch_statistics'


class HeldOutReconstruction:
    """Computes the masked L1 of the model and of trivial predictors on the held-out patients.

    `holdout` uses the masks of the run. `reference` uses one fixed set of masks (data.data_simmim),
    so that runs with different masks or losses can be compared. With DATA.SOURCES, both are means
    over the images of all sources, and each source also has its own value, `holdout_<source>`. A
    model that predicts normalised patches receives the true mean and deviation of the hidden
    patches, so its values carry the suffix GIVEN_STATISTICS. The error of a target other than an
    image, also of the trivial predictors, is in the units of the target.
    """

    def __init__(self, loaders: Loaders) -> None:
        splits = {'holdout': loaders.holdout, 'reference': loaders.reference}
        self.loaders = {name: loader for name, loader in splits.items() if loader is not None}
        # loader -> errors of the trivial predictors on each image, which never change.
        self.trivial: dict[DataLoader, list[list[np.ndarray]]] = {}

    def __call__(self, run: Run, model: nn.Module, epoch: int) -> dict[str, Any]:
        if model.target is None:
            return self._without_target(run, model, epoch)
        values, results = {}, {}
        for name, loader in self.loaders.items():
            is_new = loader not in results  # holdout and reference may share a loader
            if is_new:
                results[loader] = self._sums(run, model, loader)
            by_source, examples = results[loader]
            errors = {name: sum(by_source.values())}
            errors |= {f'{name}_{source}': sums for source, sums in by_source.items() if source}
            for key, sums in errors.items():
                values |= mean_errors(key, sums, model.target)
            lines = [describe(key, values, model.target) for key in errors]
            title = lines[0]
            if loader is self.loaders.get('reference') and name != 'reference':
                lines[0] += '; reference masks: the same'
            for line in lines if is_new else ():
                run.logger.info(line, extra=DETAIL if epoch >= 0 else None)
            is_shown = epoch >= 0 or run.config.EVAL_MODE
            if name == 'holdout' and distributed.is_main() and is_shown and examples:
                _write_figure(run, examples, epoch, title)
        return values

    @torch.no_grad()
    def _without_target(self, run: Run, model: nn.Module, epoch: int) -> dict[str, float]:
        """Return the loss of a method without target, and whether its features collapse."""
        if 'holdout' not in self.loaders:
            return {}
        model.eval()
        losses, rows = [], []
        for batch in self.loaders['holdout']:
            images, masks = to_device(batch[:2], run.device)
            with autocast(run.config, run.device):
                losses.append(float(model(images, masks)) * len(images))
                rows.append(model.held_out_features(images).float().cpu())
        # Sums and not means are gathered, because ranks may have different numbers of images.
        gathered = distributed.gather((losses, torch.cat(rows)))
        z = torch.cat([features for _, features in gathered])
        loss = sum(sum(losses) for losses, _ in gathered) / len(z)
        return held_out_figures(run, loss, z, epoch)

    def _sums(
        self, run: Run, model: nn.Module, loader: DataLoader
    ) -> tuple[dict[str, np.ndarray], list[Reconstruction]]:
        """Return the errors of each source, summed over all ranks, and images of this rank.

        The errors have the shape [P, 3]. The first row belongs to the model and the others to
        the trivial predictors.
        """
        dataset, trivial = loader.dataset, self.trivial.setdefault(loader, [])
        sums = {source: np.zeros((1 + len(TRIVIAL_PREDICTORS), 3)) for source in dataset.parts}
        examples = {source: [] for source in dataset.parts}
        # The sampler repeats its order, which tells the source of each image.
        keys = itertools.chain.from_iterable(loader.batch_sampler)
        items = zip(reconstruct(run, model, loader), keys, strict=True)
        for number, (item, (_, index)) in enumerate(items):
            if number == len(trivial):
                guesses = (guess(item.image, item.hidden) for guess in TRIVIAL_PREDICTORS.values())
                trivial.append([hidden_error(item, item.measured(guess)) for guess in guesses])
            source, _ = dataset.place(index)
            sums[source] += [hidden_error(item, item.prediction), *trivial[number]]
            if item.target_of is None and len(examples[source]) < NUM_IMAGES:
                examples[source].append(item)
        # The sources take turns, so that each one is shown.
        shown = itertools.chain.from_iterable(itertools.zip_longest(*examples.values()))
        gathered = distributed.gather(sums)
        sums = {source: sum(of_rank[source] for of_rank in gathered) for source in sums}
        return sums, [item for item in shown if item][:NUM_IMAGES]


@torch.no_grad()
def reconstruct(run: Run, model: nn.Module, loader: DataLoader) -> Iterator[Reconstruction]:
    """Yield the prediction for each held-out image of this rank under its fixed mask."""
    model.eval()
    is_image = model.target.is_image
    # Images are compared in grey levels, features such as HOG in their own units.
    predict = model.reconstruct if is_image else model.predict
    target_of = None if is_image else partial(_target_of, model.target)
    # image [C, S, S], mask [h, w], scale and offset [C]: see `HoldoutTransform`.
    for batch in loader:
        given = to_device(batch, run.device)
        with autocast(run.config, run.device):
            predictions = predict(*given[:2]).float().cpu().numpy()
        images, masks, scales, offsets = (item.cpu().numpy() for item in given)
        hidden = (pixel_mask(mask, model.patch_size) for mask in masks)
        for item in zip(images, hidden, predictions, scales, offsets, strict=True):
            yield Reconstruction(*item, target_of)


@torch.no_grad()
def _target_of(target: Any, image: np.ndarray) -> np.ndarray:
    return target.of(torch.from_numpy(image)[None])[0].numpy()


def _write_figure(run: Run, examples: list[Reconstruction], epoch: int, title: str) -> None:
    folder = run.folder / 'reconstructions'
    try:
        if run.config.EVAL_MODE:
            plot_reconstructions(folder / 'eval.png', examples, title)
            return
        path = folder / f'epoch_{epoch}.png'
        plot_reconstructions(path, examples, f'epoch {epoch}, {title}')
        done, epochs = epoch + 1, run.config.TRAIN.EPOCHS
        if done % math.ceil(epochs / IN_TENSORBOARD) == 0 or done == epochs:
            run.scalars.write_image('reconstructions', path, epoch)
    except OSError as error:  # a full disk does not stop training
        run.logger.warning(f'{folder} cannot be written ({error.strerror})')


def mean_errors(name: str, sums: np.ndarray, target: Any) -> dict[str, float]:
    """Compute the mean errors of the model and of the trivial predictors.

    The sums [P, 3] are those of `hidden_error`, for the model and then for each trivial predictor.
    `name` is the prefix of the names of all values. Errors of images are in normalised units and in
    grey levels, and other errors in the units of the target.
    """
    values = {}
    ends = [_model_suffix(target), *(f'_{predictor}' for predictor in TRIVIAL_PREDICTORS)]
    for (error, grey, count), end in zip(sums, ends, strict=True):
        if target.is_image:
            values[f'{name}_l1{end}'] = float(error / count)
            values[f'{name}_l1_grey{end}'] = float(grey / count)
        else:
            values[f'{name}_l1_{target.name}{end}'] = float(error / count)
    return values


def describe(name: str, values: dict[str, float], target: Any) -> str:
    """Return a log line with the model's error and the trivial predictors' errors."""
    suffix = _model_suffix(target)
    unit = '_grey' if target.is_image else f'_{target.name}'
    form = '.2f' if target.is_image else '.4f'
    trivial = ', '.join(f'{k} {values[f"{name}_l1{unit}_{k}"]:{form}}' for k in TRIVIAL_PREDICTORS)
    error = f'{values[f"{name}_l1{unit}{suffix}"]:{form}}'
    if target.is_image:
        error = f'{values[f"{name}_l1{suffix}"]:.4f}, {error} of 255 grey levels'
        return f'{name} masked L1{suffix.replace("_", " ")}: {error} (trivial: {trivial})'
    return f'{name} masked L1 of {target.name}: {error} (trivial: {trivial})'


def _model_suffix(target: Any) -> str:
    return GIVEN_STATISTICS if target.uses_true_statistics else ''

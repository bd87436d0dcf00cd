"""Load a classifier from a checkpoint, predict, and score a split."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from config import module_of_option, selected_part
from data.loader import sample_rng
from data.tables.records import task_of
from evaluation.metrics import score_table
from models.build import build_saved_model
from models.kept_patches import num_kept, num_patches
from models.losses import default_loss
from system import distributed
from system.device import autocast
from utils import load_model_state, read_checkpoint

MASK_SEED = 0  # of the patches that EVAL.MASK_RATIO drops; the same for all runs


def load_classifier(
    config: Any, path: str | Path, device: torch.device, logger: logging.Logger
) -> nn.Module:
    """Build the model of the config and load the weights of a checkpoint.

    The checkpoint determines the number of outputs per label: one, or three (policy 'multiclass').
    Weights of another model raise a ValueError that names the entries.
    """
    state, num_labels = read_checkpoint(path)['model'], config.MODEL.NUM_CLASSES
    # The weights tell whether uncertain was a third class: the head has a row per output.
    has_three = len(state.get('head.weight', ())) == 3 * num_labels
    num_outputs = 3 * num_labels if has_three else num_labels
    model = build_saved_model(config, state, path, is_pretrain=False, num_outputs=num_outputs)
    load_model_state(model, state, str(path), logger)
    return model.to(device)


@torch.no_grad()
def predict(
    config: Any, device: torch.device, model: nn.Module, loader: DataLoader
) -> np.ndarray:  # [N, K]
    """Compute the logits [N, K] of a split (`Task`) in the order of the records, on every rank.

    With EVAL.MASK_RATIO the model reads the patches of `kept_patches`. A logit that is not finite
    raises a ValueError that names the image.
    """
    model.eval()
    task, parts = task_of(config), []
    patient = patient_inputs(config, loader.dataset)
    for images, _, index in loader:
        kept = kept_patches(config, loader.dataset, index.cpu().numpy())
        inputs = () if kept is None else (kept.to(device),)
        more = {} if patient is None else {'patient': patient[index.cpu()].to(device)}
        with autocast(config, device):
            outputs = model(images.to(device, non_blocking=True), *inputs, **more)
        # Float32 from here on, because probabilities that tie in half precision change the AUROC.
        parts.append((index.cpu().numpy(), task.logits(outputs.float()).cpu().numpy()))
    logits = np.full((len(loader.dataset), len(task.labels)), np.nan, np.float32)
    # Each image has its own row, so the order of the ranks does not matter.
    for rank_parts in distributed.gather(parts):
        for index, values in rank_parts:
            logits[index] = values
    require_finite(logits, loader.dataset)
    return logits


def patient_inputs(config: Any, dataset: Dataset) -> torch.Tensor | None:  # [N, P]
    """Return what the head reads of the patient of each image, or None if it reads images alone."""
    if not selected_part(config, 'MODEL.HEAD').takes_patient:
        return None
    # Images outside a data set have no records, but perhaps a table of patients.
    records = dataset.patients if hasattr(dataset, 'patients') else dataset.records
    numbers = module_of_option('MODEL.PATIENT.INPUTS').patient_numbers
    return torch.from_numpy(numbers(config, records))


def score(config: Any, logits: np.ndarray, loader: DataLoader) -> dict[str, Any]:
    """Compute the scores of the logits [N, K] of one split, with their loss and their views.

    The loss is the default of the task, whatever the loss of the training is.
    """
    dataset, task = loader.dataset, task_of(config)
    found = score_table(
        task.probabilities(logits),
        dataset.targets,
        dataset.records.study,
        labels=task.labels,
        level=config.EVAL.LEVEL,
        exclusive=task.exclusive,
    )
    # Always the same loss, so that runs with different training losses can be compared.
    loss_fn = default_loss(task, dataset.targets)
    loss = loss_fn(torch.from_numpy(logits), torch.from_numpy(dataset.targets))
    return found | {'loss': loss.item(), 'views': config.EVAL.VIEWS or config.DATA.VIEWS}


def kept_patches(config: Any, dataset: Dataset, index: np.ndarray) -> torch.Tensor | None:
    """Draw the positions [B, V] of the patches that scoring reads; None if it reads all of them.

    They only depend on the row of an image in its CSV file, and not on the seed of the run, the
    batch or the process. All runs therefore see the same patches of an image.

    Args:
        config: Options of the run, of which EVAL.MASK_RATIO is the share that is dropped.
        dataset: Data set with `records`.
        index: Positions of the images in the data set, [B].
    """
    ratio, count = config.EVAL.MASK_RATIO, num_patches(config)
    if not ratio:
        return None
    # One permutation per image; its first entries are the patches that stay.
    orders = [
        sample_rng(MASK_SEED, 0, int(row)).permutation(count)
        for row in dataset.records.sample[index]
    ]
    return torch.from_numpy(np.stack(orders)[:, : num_kept(count, ratio)])


def require_finite(values: np.ndarray, dataset: Dataset, *, start: int = 0) -> None:
    """Raise a ValueError with the name of the first image whose output is not finite.

    `values` [N, ...] has one row per image of the dataset, which has `records` or `files`, from the
    image at position `start` on.
    """
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if not bad.size:
        return
    records = getattr(dataset, 'records', None)
    path = (dataset.files if records is None else records.path)[start + bad[0]]
    source = '' if records is None else f'{records.root / records.csv}: '
    raise ValueError(
        f'{source}the model returns NaN or infinity for {bad.size} of {len(values)} images, first '
        f'for {path}: the weights are damaged, or half precision overflows; try --amp-opt-level O0'
    )

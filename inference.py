"""What a classifier says about images: logits over a loader, from one checkpoint or several."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit, logit
from torch import nn
from torch.utils.data import DataLoader

import distributed
from device import autocast
from models import build_model
from models.losses import positive_logits
from utils import load_model_state, read_checkpoint

SMALLEST_PROBABILITY = 1e-12  # of a mean of probabilities that goes back to a logit


def load_classifier(
    config: Any, path: str | Path, device: torch.device, logger: logging.Logger
) -> nn.Module:
    """The model of the config with a checkpoint's weights.

    The checkpoint decides between one and three outputs a label (policy 'multiclass'): the policy
    is a matter of training, so its config need not be at hand to score it.

    Raises:
        ValueError: naming the entries, if it is a checkpoint of another model.
    """
    state = read_checkpoint(path)['model']
    num_labels = config.MODEL.NUM_CLASSES
    given = len(state['head.weight']) if 'head.weight' in state else num_labels
    known = (num_labels, 3 * num_labels)
    num_outputs = given if given in known else num_labels  # another count is refused by name below
    model = build_model(config, is_pretrain=False, num_outputs=num_outputs)
    load_model_state(model, state, str(path), logger)
    return model.to(device)


@torch.no_grad()
def predict(
    config: Any, device: torch.device, model: nn.Module, loader: DataLoader
) -> np.ndarray:  # [N, K]
    """Logits of a split in the order of its records, on every rank.

    Of a label with three outputs it is that of the softmax over positive and negative; of an image
    in several views that of the mean probability.
    """
    model.eval()
    num_labels, parts = config.MODEL.NUM_CLASSES, []
    for images, _, index in loader:
        views = images.to(device, non_blocking=True)
        views = views if views.ndim == 5 else views[:, None]  # [B, T, C, S, S]
        with autocast(config, device):
            outputs = model(views.flatten(0, 1))
        logits = positive_logits(outputs.float(), num_labels)
        logits = logits.reshape(*views.shape[:2], num_labels).cpu().numpy()
        parts.append((index.numpy(), mean_logits(logits.swapaxes(0, 1))))
    logits = np.full((len(loader.dataset), num_labels), np.nan, np.float32)
    for rank_parts in distributed.gather(parts):
        for index, values in rank_parts:
            logits[index] = values
    return logits


def mean_logits(logits: Sequence[np.ndarray]) -> np.ndarray:
    """Logit of the mean probability of several predictions of one shape; one stays as it is."""
    if len(logits) == 1:
        return logits[0]
    mean = np.mean([expit(values.astype(np.float64)) for values in logits], axis=0)
    return logit(np.clip(mean, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY))

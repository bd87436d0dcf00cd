"""Fit the weights that PRETRAINED names to a model of this project."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from config import Config, default_config
from data.transforms import statistics
from models.convert import (
    PATCH_WEIGHT,
    PROCESSOR,
    Report,
    Statistics,
    convert,
    convert_timm,
    first_weight,
    from_huggingface,
    is_huggingface,
    processor_statistics,
    published_statistics,
)
from models.timm_classifier import TimmClassifier
from utils import data_options


def fit_pretrained(
    config: Config, checkpoint: dict[str, Any], model: nn.Module
) -> tuple[dict[str, Tensor], Report]:
    """Convert a checkpoint's weights to entries that the model can load.

    The checkpoint may be of SimMIM or of this project, of either stage, a supervised one, or one of
    transformers' Swin and ViT; for a timm model, see `convert_timm`.

    Args:
        config: Run configuration; PRETRAINED is the path of the file.
        checkpoint: Contents of the file, as `utils.read_checkpoint` returns them.
        model: The model that receives the weights.

    Returns:
        The entries under the model's names, and a report on every entry.

    Raises:
        ValueError: If entries are missing or do not fit.
    """
    state, target_stats = checkpoint['model'], Statistics(*statistics(config))
    of_timm, no_place = isinstance(model, TimmClassifier), []
    trained = data_options(checkpoint)
    if is_huggingface(state):
        state, no_place = from_huggingface(state)
        trained = _processor_options(config.PRETRAINED, state[PATCH_WEIGHT].shape[1])
    if of_timm and not trained:
        trained = published_statistics(state, model)
    first_layer = first_weight(model) if of_timm else PATCH_WEIGHT
    source_stats = _source_statistics(state, trained, first_layer)
    by_image = 'image' in (config.DATA.NORMALIZE, trained.get('NORMALIZE'))
    if by_image:
        source_stats, target_stats = _neutral(source_stats), _neutral(target_stats)
    fit, target = (convert_timm, model) if of_timm else (convert, model.state_dict())
    converted, report = fit(state, target, source_stats=source_stats, target_stats=target_stats)
    report.left_over += no_place
    if by_image and report.folded:
        report.remarks.append("DATA.NORMALIZE 'image': plain sums over channels, no statistics")
    elif source_stats != target_stats and not report.folded:
        report.remarks.append(f'pixels are normalised with {target_stats}, were {source_stats}')
    return converted, report


def _processor_options(path: str, num_channels: int) -> dict[str, list[float]]:
    """Return MEAN and STD from the file that transformers writes next to the weights, if any."""
    file = Path(path).with_name(PROCESSOR)
    if not file.is_file():
        return {}
    try:
        return processor_statistics(json.loads(file.read_text('utf-8')), num_channels)
    except (OSError, ValueError) as error:
        raise ValueError(f'{file} cannot be used ({error})') from error


def _source_statistics(
    state: dict[str, Tensor], trained: dict[str, Any], first_layer: str
) -> Statistics:
    """Return the mean and deviation that a checkpoint's training images were normalised with.

    Args:
        state: Weights of the checkpoint.
        trained: Options of DATA that are known of it.
        first_layer: Key of the weights that read the image; '' if it is not known.
    """
    config = default_config()
    for key in (first_layer, f'encoder.{first_layer}'):
        if key in state and state[key].ndim == 4:
            config.MODEL.IN_CHANS = state[key].shape[1]
    config.DATA.MEAN, config.DATA.STD = trained.get('MEAN', []), trained.get('STD', [])
    return Statistics(*statistics(config))


def _neutral(stats: Statistics) -> Statistics:
    return Statistics((0.0,) * len(stats.mean), (1.0,) * len(stats.std))

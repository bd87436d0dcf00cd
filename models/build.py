"""Build the model that the configuration selects. An option names the file of each part."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from config import refuse_unless, selected_part
from models.classifier_heads import ClassifierHead
from utils import name_damaged, same_entries


def build_model(
    config: Any,
    is_pretrain: bool = True,
    *,
    num_outputs: int | None = None,
    total_steps: int = 1,
) -> nn.Module:
    """Build the model of a training stage.

    Args:
        config: Run configuration, checked by `config.check_config`.
        is_pretrain: Whether to build the model of masked pre-training (MODEL.PRETRAIN) instead of
            the encoder with a classification head.
        num_outputs: Number of outputs of the classification head. None derives the number from the
            labels; 0 builds no head, for contrastive pre-training.
        total_steps: Number of optimizer steps of masked pre-training, for methods with a schedule.
    """
    encoder = selected_part(config, 'MODEL.TYPE')
    if is_pretrain:
        return selected_part(config, 'MODEL.PRETRAIN').from_config(config, total_steps=total_steps)
    if num_outputs is None:
        num_outputs = selected_part(config, 'DATA.TASK')(config).num_outputs
    model = encoder(**encoder.constructor_arguments(config), num_classes=num_outputs)
    if num_outputs and not isinstance(model.head, ClassifierHead) and config.MODEL.HEAD == 'linear':
        raise ValueError(
            f'MODEL.TYPE {config.MODEL.TYPE!r} must build its head with '
            'models.classifier_heads.build_classifier_head'
        )
    # An encoder that ignores MODEL.HEAD would train another model than the config says.
    is_allowed = not num_outputs or type(model.head) is selected_part(config, 'MODEL.HEAD')
    refuse_unless(
        is_allowed, config, 'MODEL.HEAD', f"'linear' with MODEL.TYPE {config.MODEL.TYPE!r}"
    )
    return model


def build_saved_model(
    config: Any, state: dict[str, Tensor], source: str | Path, **options: Any
) -> nn.Module:
    """Build the model of a checkpoint after comparing all shapes on the meta device.

    The comparison needs no memory, so the options of a downloaded or damaged checkpoint cannot
    allocate a huge model. `options` are passed to `build_model`.
    """
    # Meta tensors have shapes without values: a config that asks for terabytes costs nothing.
    with name_damaged(source), torch.device('meta'):
        without_memory = build_model(config, **options)
    same_entries(without_memory, state, source)
    return build_model(config, **options)

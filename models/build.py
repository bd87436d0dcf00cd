"""Builds the model that the configuration selects.

Importing this module fills the registries: a new encoder or contrastive method is one new file and
one line here.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import models.contrastive
import models.mae
import models.swin_transformer
import models.timm_classifier
import models.vision_transformer  # noqa: F401
from models.encoder import ENCODERS
from models.losses import count_outputs
from models.simmim import PRETRAINING
from utils import name_damaged, same_entries


def build_model(
    config: Any, is_pretrain: bool = True, *, num_outputs: int | None = None
) -> nn.Module:
    """Build the model of a stage; `config.check_config` has checked the options.

    With `is_pretrain` it is the model of masked pre-training (MODEL.PRETRAIN), otherwise the
    encoder with a classification head of `num_outputs`. None derives them from the labels, and 0
    means no head, as contrastive pre-training needs it.
    """
    encoder = ENCODERS[config.MODEL.TYPE]
    if is_pretrain:
        return PRETRAINING[config.MODEL.PRETRAIN].from_config(config)
    num_outputs = count_outputs(config) if num_outputs is None else num_outputs
    return encoder(**encoder.constructor_arguments(config), num_classes=num_outputs)


def build_saved_model(
    config: Any, state: dict[str, Tensor], source: str | Path, **options: Any
) -> nn.Module:
    """Build the model of a checkpoint, once a model that takes no memory has the same sizes.

    The options of a checkpoint could ask for any amount of memory. `options`: see `build_model`.
    """
    with name_damaged(source), torch.device('meta'):
        without_memory = build_model(config, **options)
    same_entries(without_memory, state, source)
    return build_model(config, **options)

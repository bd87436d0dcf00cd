"""Builds the model that the configuration selects.

Importing this module fills the registries: a new encoder or contrastive method is one new file and
one line here.
"""

from typing import Any

from torch import nn

import models.contrastive
import models.mae
import models.swin_transformer
import models.timm_classifier
import models.vision_transformer  # noqa: F401
from models.encoder import ENCODERS
from models.losses import count_outputs
from models.simmim import PRETRAINING


def build_model(
    config: Any, is_pretrain: bool = True, *, num_outputs: int | None = None
) -> nn.Module:
    """Build the model of a stage; `config.check_config` has checked the options.

    Args:
        config: Run configuration.
        is_pretrain: Whether to build the model of masked pre-training (MODEL.PRETRAIN), or the
            encoder with a classification head.
        num_outputs: Outputs of the head; None derives them from the labels. 0 means no head, as
            contrastive pre-training needs it.
    """
    encoder = ENCODERS[config.MODEL.TYPE]
    if is_pretrain:
        return PRETRAINING[config.MODEL.PRETRAIN].from_config(config)
    num_outputs = count_outputs(config) if num_outputs is None else num_outputs
    return encoder(**encoder.constructor_arguments(config), num_classes=num_outputs)

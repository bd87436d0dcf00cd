"""Build the loaders of a stage."""

import logging

from config import Config
from data.data_finetune import build_loader_finetune
from data.data_simmim import build_loader_simmim
from data.loader import Loaders


def build_loader(config: Config, logger: logging.Logger, is_pretrain: bool) -> Loaders:
    """Build the loaders of masked pre-training or of fine-tuning."""
    if is_pretrain:
        return build_loader_simmim(config, logger)
    return build_loader_finetune(config, logger)

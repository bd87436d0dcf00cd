"""Build the loaders of a stage."""

import logging
import warnings

from config import Config
from data.data_contrastive import build_loader_contrastive
from data.data_finetune import build_loader_finetune
from data.data_simmim import build_loader_simmim
from data.loader import Loaders
from data.reading import log_store
from data.sources import source_configs


def build_loader(
    config: Config,
    logger: logging.Logger,
    is_pretrain: bool,
    *,
    num_views: tuple[int, int] | None = None,
) -> Loaders:
    """Build the loaders of pre-training, of contrastive pre-training or of fine-tuning.

    Contrastive pre-training needs the numbers of global views and of small crops of each image.
    """
    if not (config.DATA.DATA_PATH or config.DATA.SOURCES):
        raise ValueError('DATA.DATA_PATH is empty: give the folder of the data with --data-path')
    # PyTorch warns at each pass; the table of --check reports the number of workers once.
    warnings.filterwarnings('ignore', message='This DataLoader will create')
    for own in source_configs(config).values():
        log_store(own, logger)
    if num_views:
        return build_loader_contrastive(config, logger, num_views)
    if is_pretrain:
        return build_loader_simmim(config, logger)
    return build_loader_finetune(config, logger)

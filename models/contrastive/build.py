"""Contrastive methods from the config."""

import logging
from typing import Any

import distributed
from models.build import build_model
from models.contrastive.key_queue import check_queue_size
from models.contrastive.methods import METHODS, ContrastiveMethod

MOST_PROTOTYPES = 2  # times the images of a batch, of which each takes part of one at least


def build_contrastive(
    config: Any, *, total_steps: int, num_images: int, logger: logging.Logger
) -> ContrastiveMethod:
    """The method of CONTRASTIVE.METHOD around the encoder of the config.

    Args:
        config: all options.
        total_steps: optimizer steps of the run, for BYOL's momentum.
        num_images: of an epoch.
        logger: warned of settings that will hardly work.

    Raises:
        ValueError: if CONTRASTIVE.QUEUE_SIZE is no multiple of the images of a batch, or so large
            that every image meets its own key of the last epoch.
    """
    options = config.CONTRASTIVE
    batch = config.DATA.BATCH_SIZE * distributed.world_size()
    if options.METHOD == 'moco':
        _check_queue(config, batch, num_images)
    if options.METHOD == 'swav' and options.NUM_PROTOTYPES > MOST_PROTOTYPES * batch:
        logger.warning(
            f'CONTRASTIVE.NUM_PROTOTYPES {options.NUM_PROTOTYPES} for batches of {batch} images: '
            f'few are met in each, and what they are assigned is noise; take at most '
            f'{MOST_PROTOTYPES * batch}, or larger batches'
        )
    own = {
        'moco': {'queue_size': options.QUEUE_SIZE},
        'simclr': {},
        'byol': {'total_steps': total_steps},
        'swav': {
            'num_prototypes': options.NUM_PROTOTYPES,
            'freeze_steps': options.FREEZE_PROTOTYPES_STEPS,
        },
    }
    common = {key: options[key.upper()] for key in ('dim', 'temperature', 'momentum')}
    given = {key: value for key, value in common.items() if value is not None}
    encoder = build_model(config, is_pretrain=False, num_outputs=0)
    return METHODS[options.METHOD](encoder, **given, **own[options.METHOD])


def _check_queue(config: Any, batch: int, num_images: int) -> None:
    size, own = config.CONTRASTIVE.QUEUE_SIZE, config.DATA.BATCH_SIZE
    try:
        check_queue_size(size, batch)
    except ValueError as error:
        raise ValueError(
            f'CONTRASTIVE.QUEUE_SIZE {size}, DATA.BATCH_SIZE {own}: {error}'
        ) from error
    if size + batch > num_images:
        raise ValueError(
            f'CONTRASTIVE.QUEUE_SIZE {size} and the {batch} images of a batch must be at most the '
            f'{num_images} training images: every image would have its own key of the last epoch '
            'among those it is to be told from (take far fewer: of K keys and N images, one in '
            '2 N^2 / K^2 images meets its own)'
        )

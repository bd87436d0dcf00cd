"""Contrastive methods from the config."""

import logging
from inspect import signature
from typing import Any

import distributed
from models.build import build_model
from models.contrastive.key_queue import check_queue_size
from models.contrastive.methods import METHODS, ContrastiveMethod

# Prototypes for each image of a batch. Its images are shared out equally among all prototypes: with
# many more prototypes than images, most get parts of images that are not like them.
MOST_PROTOTYPES = 2
COMPARE_BATCH = ('simclr', 'swav')  # MoCo compares with its queue, BYOL each image with itself


def build_contrastive(
    config: Any, *, total_steps: int, num_images: int, logger: logging.Logger
) -> ContrastiveMethod:
    """The method of CONTRASTIVE.METHOD around the encoder of the config.

    Its arguments are the options of the same names, where these have values.

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
    method = METHODS[options.METHOD]
    values = {key.lower(): value for key, value in options.items() if value is not None}
    values['total_steps'] = total_steps
    taken = {name: values[name] for name in signature(method).parameters if name in values}
    return method(build_model(config, is_pretrain=False, num_outputs=0), **taken)


def warn_of_other_batch(
    config: Any, trained: Any, *, processes: int, logger: logging.Logger
) -> None:
    """Say it where a loss is of more or fewer images in a batch than in the run that trained.

    Args:
        config: all options.
        trained: those of the run that trained.
        processes: of that run.
        logger: warned.
    """
    before, now = trained.DATA.BATCH_SIZE, config.DATA.BATCH_SIZE
    world_size = distributed.world_size()
    if config.CONTRASTIVE.METHOD in COMPARE_BATCH and before * processes != now * world_size:
        logger.warning(
            f'the run of the checkpoint compared {before} x {processes} images (DATA.BATCH_SIZE x '
            f'processes), not {now} x {world_size}: the loss does not compare with those of the run'
        )


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

"""Contrastive methods from the config."""

from typing import Any

import distributed
from models.build import build_model
from models.contrastive.key_queue import check_queue_size
from models.contrastive.methods import METHODS, ContrastiveMethod


def build_contrastive(config: Any, *, total_steps: int) -> ContrastiveMethod:
    """The method of CONTRASTIVE.METHOD around the encoder of the config.

    Args:
        config: all options.
        total_steps: optimizer steps of the run, for BYOL's momentum.

    Raises:
        ValueError: if CONTRASTIVE.QUEUE_SIZE is no multiple of the images of a batch.
    """
    options = config.CONTRASTIVE
    own = {
        'moco': {'queue_size': options.QUEUE_SIZE},
        'simclr': {},
        'byol': {'total_steps': total_steps},
        'swav': {
            'num_prototypes': options.NUM_PROTOTYPES,
            'freeze_steps': options.FREEZE_PROTOTYPES_STEPS,
        },
    }
    if options.METHOD == 'moco':
        _check_queue(config)
    common = {key: options[key.upper()] for key in ('dim', 'temperature', 'momentum')}
    given = {key: value for key, value in common.items() if value is not None}
    encoder = build_model(config, is_pretrain=False, num_outputs=0)
    return METHODS[options.METHOD](encoder, **given, **own[options.METHOD])


def _check_queue(config: Any) -> None:
    size, batch = config.CONTRASTIVE.QUEUE_SIZE, config.DATA.BATCH_SIZE
    try:
        check_queue_size(size, batch * distributed.world_size())
    except ValueError as error:
        raise ValueError(
            f'CONTRASTIVE.QUEUE_SIZE {size}, DATA.BATCH_SIZE {batch}: {error}'
        ) from error

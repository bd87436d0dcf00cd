"""What contrastive pre-training (main_contrastive.py) asks of the options."""

from collections.abc import Iterator
from typing import Any

# CONTRASTIVE.METHOD -> the keys of CONTRASTIVE that it reads beside METHOD, DIM and BLUR.
READS = {
    'moco': ('TEMPERATURE', 'MOMENTUM', 'QUEUE_SIZE'),
    'simclr': ('TEMPERATURE',),
    'byol': ('MOMENTUM',),
    'swav': (
        *('TEMPERATURE', 'NUM_PROTOTYPES', 'FREEZE_PROTOTYPES_STEPS'),
        *('LOCAL_CROPS', 'LOCAL_CROP_AREA', 'LOCAL_SIZE'),
    ),
}
OWN = ('TEMPERATURE', 'MOMENTUM')  # without a value that of the method; it must read one's value


def contrastive_demands(config: Any) -> Iterator[tuple[str, bool, str]]:
    """Key, whether its value will do, and what is allowed: one after another."""
    options, method = config.CONTRASTIVE, config.CONTRASTIVE.METHOD
    for key in OWN:
        allowed = f'None with CONTRASTIVE.METHOD {method!r}, which does not read it'
        yield f'CONTRASTIVE.{key}', options[key] is None or key in READS[method], allowed
    allowed = 'at least 2: images are compared with each other'
    yield 'DATA.BATCH_SIZE', config.DATA.BATCH_SIZE > 1, allowed
    area = options.LOCAL_CROP_AREA
    ordered = len(area) == 2 and 0 < area[0] <= area[1]
    yield 'CONTRASTIVE.LOCAL_CROP_AREA', ordered, '[low, high] with 0 < low <= high'
    if method == 'swav' and options.LOCAL_CROPS and options.LOCAL_SIZE:
        allowed = f'0 (DATA.IMG_SIZE) for this encoder of MODEL.TYPE {config.MODEL.TYPE!r}'
        yield 'CONTRASTIVE.LOCAL_SIZE', _takes_size(config, options.LOCAL_SIZE), allowed


def _takes_size(config: Any, size: int) -> bool:
    """Whether the encoder takes images of this side beside those of DATA.IMG_SIZE."""
    if config.MODEL.TYPE != 'timm':
        return size == config.DATA.IMG_SIZE
    from models.timm_classifier import find_layout  # imports torch

    timm = config.MODEL.TIMM
    try:
        layout = find_layout(timm.NAME, img_size=size, in_chans=timm.IN_CHANS)
    except ValueError:  # it has no place for so small a picture
        return False
    return 'img_size' not in layout.options or size == config.DATA.IMG_SIZE

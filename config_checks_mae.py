"""What MODEL.PRETRAIN 'mae' asks of the other options in pre-training."""

from collections.abc import Iterator
from typing import Any


def mae_demands(config: Any) -> Iterator[tuple[str, bool, str]]:
    """Key, whether its value will do, and what is allowed: one after another."""
    from config import default_config

    vit, mae, default = config.MODEL.VIT, config.MODEL.MAE, default_config().MODEL.SIMMIM
    yield 'MODEL.TYPE', config.MODEL.TYPE == 'vit', "'vit' with MODEL.PRETRAIN 'mae'"
    allowed = "False with MODEL.PRETRAIN 'mae': visible patches alone are no grid"
    for key in ('USE_RPB', 'USE_SHARED_RPB'):
        yield f'MODEL.VIT.{key}', not vit[key], allowed
    allowed = "True (or USE_APE) with MODEL.PRETRAIN 'mae': where a patch was must be known"
    yield 'MODEL.VIT.USE_SINCOS', vit.USE_SINCOS or vit.USE_APE, allowed
    for key, value in default.items():
        allowed = f"{value!r}, the default, with MODEL.PRETRAIN 'mae', which does not read it"
        if key == 'TARGET':
            allowed += ' (MODEL.MAE.NORM_PIX_LOSS True predicts normalised patches)'
        yield f'MODEL.SIMMIM.{key}', config.MODEL.SIMMIM[key] == value, allowed
    width = mae.DECODER_EMBED_DIM
    yield 'MODEL.MAE.DECODER_EMBED_DIM', width % 4 == 0, 'a multiple of 4, for its positions'
    allowed = f'a divisor of MODEL.MAE.DECODER_EMBED_DIM, {width}'
    yield 'MODEL.MAE.DECODER_NUM_HEADS', width % mae.DECODER_NUM_HEADS == 0, allowed

"""Model from config, and the one mapping from config to encoder arguments."""

from typing import Any

from torch import nn

from config import encoder_node, mask_units
from data.labels import multiclass_labels
from models.mae import MAE
from models.simmim import SimMIM, SwinTransformerForSimMIM, VisionTransformerForSimMIM
from models.swin_transformer import SwinTransformer
from models.timm_classifier import TimmClassifier, timm_kwargs
from models.vision_transformer import VisionTransformer

# MODEL.TYPE -> (classifier, the same encoder with hidden patches, if there is one)
ENCODERS = {
    'swin': (SwinTransformer, SwinTransformerForSimMIM),
    'vit': (VisionTransformer, VisionTransformerForSimMIM),
    'timm': (TimmClassifier, None),
}


def build_model(
    config: Any, is_pretrain: bool = True, *, num_outputs: int | None = None
) -> nn.Module:
    """SimMIM or MAE around the encoder (pre-training), or the encoder with a classification head.

    Args:
        config: all options.
        is_pretrain: the stage.
        num_outputs: of the classification head; None: as many as the options need.

    Raises:
        ValueError: if MODEL.TYPE, a SimMIM option or the encoder's geometry is not possible.
    """
    if config.MODEL.TYPE not in ENCODERS:
        raise ValueError(f'MODEL.TYPE must be one of {sorted(ENCODERS)}, got {config.MODEL.TYPE!r}')
    classifier, masked_encoder = ENCODERS[config.MODEL.TYPE]
    if not is_pretrain:
        num_outputs = count_outputs(config) if num_outputs is None else num_outputs
        return classifier(**encoder_kwargs(config), num_classes=num_outputs)
    if masked_encoder is None:
        raise ValueError("MODEL.TYPE must be 'swin' or 'vit' to hide patches, got 'timm'")
    if config.MODEL.PRETRAIN == 'mae':
        return _build_mae(config)
    options, size = config.MODEL.SIMMIM, config.DATA.IMG_SIZE
    return SimMIM(
        masked_encoder(**encoder_kwargs(config)),
        head=options.HEAD,
        loss=options.LOSS,
        loss_pixels=options.LOSS_PIXELS,
        target=options.TARGET,
        target_cell=size // (options.TARGET_SIZE or size),
        mask_patch_size=config.DATA.MASK_PATCH_SIZE,
        use_checkpoint=config.TRAIN.USE_CHECKPOINT,
    )


def _build_mae(config: Any) -> MAE:
    # Nothing is pooled here: the encoder ends in its norm, however the classifier reads it.
    options = encoder_kwargs(config) | {'use_mean_pooling': False, 'num_classes': 0}
    decoder = {key.lower(): value for key, value in config.MODEL.MAE.items()}
    units, hidden = mask_units(config)
    encoder = VisionTransformer(**options)
    return MAE(
        encoder,
        num_visible=encoder.grid_size**2 * (units - hidden) // units,
        attention=config.MODEL.ATTENTION,
        **decoder,
    )


def count_outputs(config: Any) -> int:
    """Outputs of the head: one per label, three where uncertain is a class of any label."""
    multiclass = multiclass_labels(config.DATA.UNCERTAIN, config.DATA.UNCERTAIN_BY_LABEL)
    return config.MODEL.NUM_CLASSES * (3 if multiclass.any() else 1)


def encoder_kwargs(config: Any) -> dict[str, Any]:
    """Keyword arguments of the encoder: its own config keys in lower case, and the common ones."""
    if config.MODEL.TYPE == 'timm':
        return timm_kwargs(config)
    return {
        'img_size': config.DATA.IMG_SIZE,
        'in_chans': config.MODEL.IN_CHANS,
        'drop_rate': config.MODEL.DROP_RATE,
        'drop_path_rate': config.MODEL.DROP_PATH_RATE,
        'use_checkpoint': config.TRAIN.USE_CHECKPOINT,
        'checkpoint_keeps': config.TRAIN.CHECKPOINT_KEEPS,
        'attention': config.MODEL.ATTENTION,
        **{key.lower(): value for key, value in encoder_node(config).items()},
    }

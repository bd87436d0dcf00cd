"""Count the operations of pre-training, for comparisons of methods at equal compute."""

import math

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from config import Config
from data.masking import mask_generator
from models.build import build_model
from models.contrastive import METHODS, build_contrastive
from models.encoder import eager_attention

IMAGES = 2  # the least for batch normalisation


def gflop_per_image(config: Config, stage: str) -> float:
    """Count the GFLOP of the forward and backward pass of an image in pre-training.

    The pass is made in training mode on a CPU, with random weights and blank images. Convolutions
    and matrix products are counted, and a multiplication and an addition count as two operations.

    Args:
        config: Options of pre-training.
        stage: 'simmim' (SimMIM and MAE) or 'contrastive'.

    Source: torch.utils.flop_counter.
    """
    size, channels = config.DATA.IMG_SIZE, config.MODEL.IN_CHANS

    def images(side: int) -> torch.Tensor:
        return torch.zeros(IMAGES, channels, side, side)

    with torch.random.fork_rng([]):
        if stage == 'contrastive':
            model, options = build_contrastive(config, total_steps=1), config.CONTRASTIVE
            num_global, num_local = METHODS[options.METHOD].num_views(config)
            inputs = num_global * [images(size)] + num_local * [images(options.LOCAL_SIZE or size)]
        else:
            model, draw = build_model(config, is_pretrain=True), mask_generator(config)
            masks = [draw(np.random.default_rng(i)) for i in range(IMAGES)]
            inputs = [images(size), torch.from_numpy(np.stack(masks))]
        with eager_attention(model), flop_counter() as counter:
            model(*inputs).backward()
    return counter.get_total_flops() / IMAGES / 1e9


def flop_counter() -> FlopCounterMode:
    """Return torch's counter, with its own rule for the gradients of convolutions."""
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _convolution_backward(
    grad: torch.Size,
    x: torch.Size,
    weight: torch.Size,
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: object,
    needed: list[bool],
    **_: object,
) -> int:
    """Count the operations of the gradients of a convolution's input and weights.

    Each is as much as the forward pass: every weight is used once for each image and place. torch
    2.11's own count ignores the groups.
    """
    places = math.prod((x if transposed else grad)[2:])
    return 2 * x[0] * places * math.prod(weight) * sum(needed[:2])

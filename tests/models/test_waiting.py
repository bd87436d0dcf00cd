"""A step of pre-training reads no value of a tensor: a GPU would have to be waited for."""

import numpy as np
import pytest
import torch
from transfers import mae_config, make_config

from data.masking import mask_generator
from models import build_model

CONFIGS = {
    'swin': lambda **options: make_config('swin', 1, **options),
    'vit': lambda **options: make_config('vit', 1, **options),
    'mae': mae_config,
}
OPTIONS = {
    **{'MODEL__DROP_RATE': 0.1, 'MODEL__DROP_PATH_RATE': 0.2, 'DATA__MASK_PATCH_SIZE': 8},
    **{'MODEL__VIT__USE_MEAN_POOLING': True, 'MODEL__SWIN__APE': True},
}


@pytest.mark.parametrize('target', ['pixels', 'normalised'])
@pytest.mark.parametrize('name', CONFIGS)
def test_a_step_needs_no_value(name: str, target: str) -> None:
    """Tensors of the meta device have shapes and no values: whatever asks for one raises.

    All parameters have gradients, or DistributedDataParallel would stop at the second step.
    """
    config = CONFIGS[name](**OPTIONS)
    config.MODEL.MAE.NORM_PIX_LOSS = target == 'normalised'
    config.MODEL.SIMMIM.TARGET = 'patch_normalised' if target == 'normalised' else 'pixels'
    with torch.device('meta'):
        model = build_model(config).train()
        side = model.encoder.grid_size
        images, masks = torch.empty(3, 1, 32, 32), torch.empty(3, side, side, dtype=torch.int64)
    loss = model(images, masks)
    loss.backward()
    assert loss.shape == () and loss.is_meta
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(('ratio', 'unit'), [(0.05, 8), (0.6, 16), (0.75, 8)])
def test_the_model_expects_the_visible_patches_of_the_masks(ratio: float, unit: int) -> None:
    config = mae_config(DATA__MASK_RATIO=ratio, DATA__MASK_PATCH_SIZE=unit, DATA__IMG_SIZE=80)
    masks = mask_generator(config)
    with torch.device('meta'):
        model = build_model(config)
    rng = np.random.default_rng(0)
    assert {int((masks(rng) == 0).sum()) for _ in range(5)} == {model.num_visible}

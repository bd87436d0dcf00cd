"""Logits are float32 in evaluation, independent of the encoder's precision."""

import pytest
import torch
from tiny import SWIN, VIT
from torch.nn import functional as F

from config import default_config
from models import build_model

TIMM = {'TYPE': 'timm', 'DROP_PATH_RATE': 0.0, 'IN_CHANS': 1, 'TIMM': {'NAME': 'resnet18'}}


@pytest.mark.parametrize('options', [SWIN, VIT, TIMM], ids=lambda options: options['TYPE'])
def test_only_training_rounds_logits_under_autocast(options: dict) -> None:
    config = default_config()
    for key, value in options.items():
        if isinstance(value, dict):
            config.MODEL[key].update(value)
        else:
            config.MODEL[key] = value
    config.DATA.IMG_SIZE = 32
    model = build_model(config, is_pretrain=False).eval()
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        features, logits = model.forward_features(images).float(), model(images)
        assert model.train()(images).dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, F.linear(features, model.head.weight, model.head.bias))

"""Logits are float32 in evaluation, whatever the encoder computes in."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny import SWIN, VIT
from torch.nn import functional as F

from config import default_config
from models import build_model
from models.encoder import ClassifierHead

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


def test_images_do_not_tie() -> None:
    """In bfloat16 2,000 images have some hundred logits, and their area is another."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 64, generator=generator)
    head = ClassifierHead(64, 1)
    torch.nn.init.constant_(head.bias, -4)
    logits = F.linear(features, head.weight, head.bias)
    noise = torch.randn(2000, 1, generator=generator)
    labels = (logits + noise > -3).numpy()
    wanted = roc_auc_score(labels, logits.detach().numpy())
    found = {}
    for training in (False, True):
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            scores = head.train(training)(features).float().numpy()
        found[training] = len(np.unique(scores)), abs(roc_auc_score(labels, scores) - wanted)
    assert found[False][0] > 1990 and found[False][1] == 0
    assert found[True][0] < 500 and found[True][1] > 0

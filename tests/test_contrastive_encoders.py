"""Which encoders contrastive methods take, and the features that they get of them."""

import numpy as np
import pytest
import timm
import torch
from test_contrastive_methods import BUILD, VIT
from torch import nn

from models.contrastive import features
from models.timm_classifier import TimmClassifier
from models.vision_transformer import VisionTransformer

CONVNEXT = {'in_chans': 1, 'num_classes': 0}
TAKEN = {
    'classifier': lambda: TimmClassifier('convnext_atto', img_size=64, **CONVNEXT),
}
WITH_HEAD = {
    'ours': lambda: VisionTransformer(**VIT, num_classes=3),
    'classifier': lambda: TimmClassifier('resnet10t', 32, 1, num_classes=3),
}


@pytest.mark.parametrize('kind', TAKEN)
def test_the_norm_after_pooling_is_part_of_the_features_and_learns(kind):
    """What timm calls the head of a ConvNeXt is its pooling and a layer norm; values by NumPy."""
    torch.manual_seed(0)
    given, images = TAKEN[kind](), torch.randn(2, 1, 64, 64)
    model = BUILD['simclr'](given).eval()
    with torch.no_grad():
        got = features(model.encoder, images)
        pooled = model.encoder.forward_features(images).double().mean(dim=(2, 3)).numpy()
        if kind == 'classifier':
            assert torch.equal(got, given.forward_features(images))
    centred = pooled - pooled.mean(axis=1, keepdims=True)
    want = centred / np.sqrt(centred.var(axis=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    twin = timm.create_model('convnext_atto', **CONVNEXT).eval()
    twin.load_state_dict(model.encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(got, twin(images))
    model.train()(images, images.flip(-1)).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize('name', BUILD)
@pytest.mark.parametrize('kind', WITH_HEAD)
def test_an_encoder_with_a_classification_head_is_refused(name: str, kind: str):
    encoder: nn.Module = WITH_HEAD[kind]()
    with pytest.raises(ValueError, match='num_classes=0'):
        BUILD[name](encoder)

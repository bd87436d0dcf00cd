"""Saliency maps against closed forms and brute force, the check, and the figures."""

import logging
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import make_cases
from PIL import Image
from scipy.stats import spearmanr
from tiny import tiny_config
from torch import nn
from torch.nn import functional as F

from config import get_config
from data.build import build_loader
from evaluation.cases import choose_cases
from evaluation.saliency import (
    enlarge,
    grad_cam,
    label_maps,
    lacks_maps,
    map_title,
    plot_map,
    randomised_check,
    write_maps,
)
from models import build_model
from models.swin_transformer import SwinTransformer
from models.vision_transformer import VisionTransformer

SIZE = 32
SWIN = {'img_size': SIZE, 'patch_size': 2, 'in_chans': 1, 'num_classes': 3, 'embed_dim': 8,
        'depths': [2, 2], 'num_heads': [1, 2], 'window_size': 4}  # fmt: skip
VIT = {'img_size': SIZE, 'patch_size': 4, 'in_chans': 1, 'num_classes': 3, 'embed_dim': 16,
       'depth': 3, 'num_heads': 2}  # fmt: skip


def build(kind: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    if kind == 'swin':
        model = SwinTransformer(**SWIN | options)
    else:
        pools = {'vit': True, 'vit_class_token': False}[kind]
        model = VisionTransformer(**VIT | {'use_mean_pooling': pools} | options)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter) * (1 if parameter.ndim > 1 else 0.1)
    return model


def random_images(count: int, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(2))


KINDS = ('swin', 'vit', 'vit_class_token')


def test_linear_model_on_pooled_features_gives_its_own_weights():
    """For the score w . mean(A), the map is max(w . A, 0) divided by its maximum."""
    conv, head = nn.Conv2d(1, 5, 3, padding=1), nn.Linear(5, 2)
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    images = random_images(4, 6)
    features = conv(images).detach().numpy()
    expected = np.einsum('f,bfhw->bhw', head.weight[1].detach().numpy(), features).clip(0)
    expected /= expected.max(axis=(1, 2), keepdims=True)
    found = enlarge(grad_cam(model, images, lambda outputs: outputs[:, 1], layer=conv), images)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_grad_cam_of_an_encoder_equals_finite_differences(kind):
    """The weight of a feature is the change of the score if the feature rises everywhere."""
    model, images = build(kind).double().eval(), random_images(1).double()
    target, kept = model.saliency_layer(), []

    @torch.no_grad()
    def score(hook: Callable[..., torch.Tensor | None]) -> float:
        handle = target.register_forward_hook(hook)
        outputs = model(images)
        handle.remove()
        return float(outputs[0, 2])

    score(lambda *call: kept.append(call[-1].clone()))
    tokens, first = kept[0], int(kind != 'swin')
    weights = torch.zeros(tokens.shape[2], dtype=torch.float64)
    for feature in range(len(weights)):
        change = torch.zeros_like(tokens)
        change[:, first:, feature] = 1e-6
        above, below = (score(lambda *_, x=tokens + sign * change: x) for sign in (1, -1))
        weights[feature] = (above - below) / 2e-6
    assert weights.abs().max() > 1e-2
    side = math.isqrt(tokens.shape[1])
    expected = (tokens[0, first:] @ weights).relu().view(1, 1, side, side).float()
    expected = F.interpolate(expected, (SIZE, SIZE), mode='bilinear')[:, 0]
    expected /= expected.max()
    found = enlarge(grad_cam(model, images, lambda outputs: outputs[:, 2]), images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ('kind', 'size', 'cells'), [('swin', 32, 8), ('swin', 16, 8), ('swin', 8, 0), ('vit', 24, 0)]
)
def test_maps_have_the_deepest_grid_with_enough_cells(kind, size, cells):
    """At 16 px, the last stage of the Swin has 4 x 4 tokens and the first one 8 x 8."""
    model = build(kind, img_size=size)
    assert lacks_maps(model) == (cells == 0)
    if cells:
        images = random_images(2, size)
        maps = grad_cam(model, images, lambda outputs: outputs[:, 2])
        assert maps.shape == (2, cells, cells)
        maps = enlarge(maps, images)
        assert maps.shape == (2, size, size) and (maps.amax((1, 2)) == 1).any()


@pytest.mark.parametrize('kind', ['swin', 'vit'])
@pytest.mark.parametrize('outputs', [3, 9])
def test_the_attention_of_a_head_is_shown_where_its_tokens_lie(kind, outputs):
    model, images = build(kind, num_classes=outputs, head='attention').eval(), random_images(2)
    config = SimpleNamespace(MODEL=SimpleNamespace(NUM_CLASSES=3))
    found = label_maps(config, model, images, 1)
    assert found.shape == (2, 8, 8)
    with torch.no_grad():
        tokens = model.forward_tokens(images)
        attention, _ = model.head.attend(tokens)
    output = {3: 1, 9: 4}[outputs]  # with three classes, the second one is positive
    shares = attention[:, :, output].mean(dim=1).view(2, 1, 8, 8)
    wanted = F.interpolate(shares, (SIZE, SIZE), mode='bilinear')[:, 0]
    wanted /= wanted.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(enlarge(found, images), wanted)
    assert map_title(model) == 'attention of the head' and map_title(build(kind)) == 'Grad-CAM'
    assert not lacks_maps(model)
    assert lacks_maps(build('swin', img_size=8, head='attention'))


def test_the_check_is_spearmans_correlation_with_ties():
    rng = np.random.default_rng(0)
    first, second = torch.from_numpy(rng.integers(0, 4, (2, 3, 5, 5)).astype(np.float32))
    trained, images = nn.Identity(), random_images(3, 5)
    expected = [
        spearmanr(a.flatten(), b.flatten()).statistic for a, b in torch.stack((first, second), 1)
    ]

    def maps(model: nn.Module, _images: torch.Tensor) -> torch.Tensor:
        return first if model is trained else second

    state = torch.get_rng_state()
    found = randomised_check(trained, nn.Identity, images, maps)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == pytest.approx(np.mean(expected), abs=1e-12)


def test_the_most_confident_cases_of_each_kind_are_chosen():
    rng = np.random.default_rng(0)
    probabilities, targets = rng.random(60).round(1), rng.integers(0, 2, 60).astype(float)
    probabilities[3], targets[[5, 6]] = np.nan, np.nan
    found = choose_cases(probabilities, targets, 0.4, 5)
    for kind, indices in found.items():
        right, called = kind.split()
        sign = -1 if called == 'positive' else 1
        truth = float((called == 'positive') == (right == 'true'))
        rows = [
            (sign * p, i)
            for i, (p, t) in enumerate(zip(probabilities, targets, strict=True))
            if t == truth and (p >= 0.4 if called == 'positive' else p < 0.4)
        ]
        assert indices == [i for _, i in sorted(rows)[:5]], kind
        assert len(indices) == 5
    assert list(found) == ['true positive', 'false positive', 'true negative', 'false negative']


def test_the_image_shows_the_xray_and_the_map_over_it(tmp_path: Path):
    saliency = np.zeros((64, 64))
    saliency[:32, :32] = 1
    plot_map(tmp_path / 'maps/a.png', np.full((64, 64), 100, np.uint8), saliency)
    pixels = np.asarray(Image.open(tmp_path / 'maps/a.png').convert('RGB')).astype(int)
    assert 400 <= pixels.shape[1] <= 500
    shown = np.flatnonzero((pixels == 100).all(axis=2).sum(axis=0) > 50)
    left, right = np.split(shown, np.flatnonzero(np.diff(shown) > 1)[:1] + 1)
    plain = (pixels == 100).all(axis=2)
    rows = np.flatnonzero(plain[:, left[0]])
    assert plain[rows[0] : rows[-1] + 1, left].all()  # the X-ray contains only grey
    assert plain[:, right].sum() == pytest.approx(0.75 * plain[:, left].sum(), rel=0.05)
    hot = np.array([240, 249, 33]) * 0.75 + 100 * 0.25  # plasma's last colour, 75 % opaque
    inside = pixels[rows[0] + 10 : rows[0] + 90, right[0] + 10 : right[0] + 90]
    np.testing.assert_allclose(inside, np.broadcast_to(hot, inside.shape), atol=2)


@pytest.mark.parametrize('weight, has_signal', [(0.0, False), (1.0, True)])
def test_a_constant_map_has_no_signal(phantom: Path, tmp_path: Path, weight, has_signal) -> None:
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', REPORT={'MAPS': 1})
    opts = ['DATA.DATA_PATH', str(phantom)]
    config = get_config(Namespace(cfg=str(cfg), opts=opts, stage='finetune'))
    dataset = build_loader(config, logging.getLogger(), is_pretrain=False).valid.dataset
    torch.manual_seed(0)
    model = build_model(config, is_pretrain=False)
    torch.nn.init.normal_(model.head.weight, std=weight)
    labels, records = dataset.targets[:, :1], dataset.records
    named = {'labels': ('No Finding',), 'path': records.path, 'study': records.study}
    cases, thresholds = make_cases(labels * 0.5, labels, **named), {'No Finding': 0.3}
    found = write_maps(config, model, dataset, cases, thresholds=thresholds, folder=tmp_path)
    assert {entry['has_signal'] for entry in found['maps']} == {has_signal}

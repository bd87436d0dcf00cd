"""Label losses and gradients against explicit sums, torch and torchvision."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from tiny import config_with
from torch import nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from data.tables.labels import LABELS, positive_logits
from models.losses import (
    build_label_loss,
    class_weights,
    masked_asymmetric,
    masked_bce,
    positive_weights,
)

NAN = float('nan')
every_loss = pytest.mark.parametrize(
    'name', ['bce', 'weighted_bce', 'focal', 'asymmetric', 'multiclass bce', 'multiclass focal']
)


def build(name, targets=None):
    kind, _, of_classes = name.partition(' ')
    config = config_with(LOSS__NAME=of_classes or kind)
    for label in ('Edema', 'Fracture') if of_classes else ():
        config.DATA.UNCERTAIN_BY_LABEL[label] = 'multiclass'
    targets = make_targets(100) if targets is None else targets
    return build_label_loss(config, targets.numpy())


def make_targets(num_images: int, seed: int = 9) -> torch.Tensor:
    """Draw targets [N, 14]: a third negative, a third positive, a sixth soft, a sixth unknown."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(6, (num_images, 14), generator=generator)
    targets = torch.rand(num_images, 14, generator=generator)
    targets[kinds < 2] = 0
    targets[(kinds == 2) | (kinds == 3)] = 1
    targets[kinds == 4] = NAN
    return targets


def make_outputs(name: str, num_images: int) -> torch.Tensor:
    torch.manual_seed(num_images)
    return 3 * torch.randn(num_images, 42 if name.startswith('multiclass') else 14)


def test_equals_torch_on_the_known_entries_rescaled() -> None:
    torch.manual_seed(1)
    logits = torch.randn(9, 14)
    targets = (torch.rand(9, 14) < 0.3).float()
    targets[torch.rand(9, 14) < 0.4] = NAN
    known = ~targets.isnan()
    assert 0 < known.sum() < known.numel()
    want = nn.BCEWithLogitsLoss()(logits[known], targets[known]) * known.sum() / known.numel()
    torch.testing.assert_close(masked_bce(logits, targets), want)


@every_loss
def test_gradient_accumulation_gives_the_loss_of_the_whole_batch(name):
    loss, outputs, targets = build(name), make_outputs(name, 8), make_targets(8)
    targets[:4, :9] = NAN  # the first half has far fewer known targets
    halves = [loss(outputs[i : i + 4], targets[i : i + 4]) for i in (0, 4)]
    torch.testing.assert_close(sum(halves) / 2, loss(outputs, targets))
    assert loss(outputs, targets) > 0.01


@every_loss
def test_outputs_for_unknown_labels_do_not_matter(name):
    loss, outputs, targets = build(name), make_outputs(name, 8), make_targets(8)
    other, unknown = outputs.clone(), targets.isnan()
    other.reshape(8, 14, -1)[unknown] = 1e4
    other.requires_grad_()
    value = loss(other, targets)
    value.backward()
    assert torch.equal(value.detach(), loss(outputs, targets))
    slopes = other.grad.reshape(8, 14, -1)
    assert (slopes[unknown] == 0).all()
    has_gradient = (slopes[~unknown] != 0).any(dim=1)
    assert has_gradient.float().mean() > 0.8, 'that of clipped negatives is 0'


@every_loss
def test_extreme_logits_have_finite_losses_and_gradients(name):
    loss, targets = build(name), make_targets(40)
    outputs = (make_outputs(name, 40).sign() * 200).requires_grad_()
    value = loss(outputs, targets)
    value.backward()
    assert value.isfinite() and value > 1
    assert outputs.grad.isfinite().all() and outputs.grad.any()


@every_loss
def test_losses_are_computed_in_float32(name):
    loss, outputs = build(name), make_outputs(name, 200).bfloat16()
    targets = make_targets(200)
    want = loss(outputs.float(), targets)
    with torch.autocast('cpu', torch.bfloat16):
        got = loss(outputs.requires_grad_(), targets)
    got.backward()
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert outputs.grad.isfinite().all()


def test_positive_weight_is_negatives_over_positives_soft_ones_by_their_value():
    columns = [
        [1, 0, 0, 0],  # 3 to 1
        [0.75, 0.25, NAN, 1],  # 1 to 2
        [0, 0, NAN, 0],  # no positives
        [1, 1, 1, NAN],  # no negatives
        [NAN, NAN, NAN, NAN],
    ]
    got = positive_weights(np.array(columns, np.float32).T)
    assert got.tolist() == [3.0, 0.5, 1.0, 1.0, 1.0]
    assert got.dtype == np.float32


def test_class_weights_are_scikit_learns_and_1_for_a_class_without_images():
    classes = np.array([0, 0, 0, 1, 3, 3])
    targets = np.full((7, 4), NAN)
    targets[:6] = np.eye(4)[classes]
    wanted = compute_class_weight('balanced', classes=np.unique(classes), y=classes)
    np.testing.assert_allclose(class_weights(targets), np.insert(wanted, 2, 1.0), rtol=1e-6)


def test_weighted_bce_is_torchs_with_weights_of_the_training_targets():
    torch.manual_seed(5)
    training = (torch.rand(50, 14) < 0.2).float()
    logits, targets = make_outputs('weighted', 20), make_targets(20)
    got = build('weighted_bce', training)(logits, targets)
    pos_weight = (50 - training.sum(0)) / training.sum(0)
    entries = nn.BCEWithLogitsLoss(pos_weight=pos_weight, reduction='none')(logits, targets)
    torch.testing.assert_close(got, entries.nansum() / 280)
    assert not torch.isclose(got, masked_bce(logits, targets), rtol=0.1)


def asymmetric(logits, targets):
    """Compute the formula of the papers for each entry in float64."""
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    shifted = np.maximum(p - 0.05, 0)
    targets = np.asarray(targets, np.float64)
    return -targets * np.log(p) - (1 - targets) * shifted**4 * np.log(1 - shifted)


def test_focal_loss_is_torchvisions():
    logits, targets = make_outputs('focal', 30), make_targets(30)
    targets = targets.where(targets.isnan(), targets.round())
    got = build('focal')(logits, targets)
    entries = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2)
    torch.testing.assert_close(got, entries.nansum() / targets.numel())


def test_asymmetric_loss_and_gradients_equal_the_formula():
    logits, targets = make_outputs('asymmetric', 30), make_targets(30)
    loss = build('asymmetric')(logits.requires_grad_(), targets)
    loss.backward()
    points = logits.detach().double().numpy()
    entries = asymmetric(points, targets)
    assert loss.item() == pytest.approx(np.nansum(entries) / 420, rel=1e-5)
    step = 1e-5
    rise = asymmetric(points + step, targets) - asymmetric(points - step, targets)
    want = np.nan_to_num(rise / (2 * step * 420))
    np.testing.assert_allclose(logits.grad.numpy(), want, rtol=2e-3, atol=1e-8)


def test_a_negative_without_exponent_has_the_loss_of_its_shifted_probability():
    """At exponent 0 the loss is -log(1 - q), which is 0 where p is below the clip."""
    logits = torch.linspace(-8, 8, 33)[:, None]
    p = torch.sigmoid(logits.double())
    exponents = {'gamma_pos': 0.0, 'gamma_neg': 0.0}
    for clip in (0.0, 0.05, 0.3):
        got = [
            masked_asymmetric(logit[None], torch.zeros(1, 1), **exponents, clip=clip).item()
            for logit in logits
        ]
        wanted = -torch.log1p(-(p - clip).clamp(min=0))
        np.testing.assert_allclose(got, wanted[:, 0], rtol=1e-5, atol=1e-7)
        if not clip:
            plain = masked_asymmetric(logits, torch.zeros_like(logits), **exponents)
            assert plain.item() == pytest.approx(np.mean(got), rel=1e-6)


def test_labels_with_three_classes_use_cross_entropy_and_others_two_outputs():
    outputs, targets = make_outputs('multiclass', 60).requires_grad_(), make_targets(60)
    three = [LABELS.index('Edema'), LABELS.index('Fracture')]
    targets[:, three] = torch.tensor([0.0, 1.0, 2.0, NAN]).repeat(15)[:, None]
    loss = build('multiclass bce')(outputs, targets)
    loss.backward()
    classes, want = outputs.detach().reshape(60, 14, 3), 0.0
    for k in range(14):
        known = ~targets[:, k].isnan()
        scores, truth = classes[known, k], targets[known, k]
        if k in three:
            want += F.cross_entropy(scores, truth.long(), reduction='sum')
        else:
            logits = scores[:, 1] - scores[:, 0]
            want += F.binary_cross_entropy_with_logits(logits, truth, reduction='sum')
    torch.testing.assert_close(loss.detach(), want / (60 * 14))
    slopes = outputs.grad.reshape(60, 14, 3)
    others = [k for k in range(14) if k not in three]
    assert (slopes[:, others, 2] == 0).all()
    assert ((slopes[:, three, 2] != 0) == ~targets[:, three].isnan()).all()


def test_focal_loss_of_three_classes_is_that_of_the_softmax():
    """(1 - p)^2 -log(p): for logits log(1, 2, 5), p is 1/8, 2/8 and 5/8."""
    focal = build('multiclass focal')
    outputs = torch.tensor([1.0, 2.0, 5.0]).log().repeat(3, 14)
    targets = torch.full((3, 14), NAN)
    targets[:, LABELS.index('Edema')] = torch.tensor([0.0, 1.0, 2.0])
    wanted = sum((1 - p) ** 2 * -math.log(p) for p in (1 / 8, 2 / 8, 5 / 8)) / (3 * 14)
    assert focal(outputs, targets).item() == pytest.approx(wanted, rel=1e-6)
    # The other labels have the focal loss of two classes, p = 2/3 of positive and negative.
    targets[:, LABELS.index('Edema')], targets[:, 0] = NAN, torch.tensor([1.0, 0.0, NAN])
    wanted = (math.log(3 / 2) / 9 + 4 / 9 * math.log(3)) / (3 * 14)
    assert focal(outputs, targets).item() == pytest.approx(wanted, rel=1e-6)


def test_positive_logits_are_the_softmax_over_positive_and_negative():
    outputs = make_outputs('multiclass', 20)
    got = positive_logits(outputs, 14)
    want = outputs.reshape(20, 14, 3)[..., :2].softmax(dim=-1)[..., 1]
    torch.testing.assert_close(got.sigmoid(), want)
    assert got[3, 5] == outputs[3, 16] - outputs[3, 15]
    assert positive_logits(outputs, 42) is outputs

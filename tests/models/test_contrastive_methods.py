"""MoCo v2, SimCLR, BYOL and SwAV as models: state, gradients and options."""

import copy
import math
from functools import partial

import pytest
import torch
from small_contrastive import BATCH, BUILD, Convolution, assert_same_state, build, sgd, views
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional as F

from models.contrastive import (
    BYOL,
    MoCo,
    SimCLR,
    SwAV,
    byol_loss,
    info_nce,
    nt_xent,
    swav_loss,
)
from models.grouped_batch_norm import normalise_in_groups
from models.timm_classifier import TimmClassifier


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: list[torch.Tensor]
) -> None:
    """Train one step as the engine does."""
    model.begin_step()
    model(*batch).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def test_losses_equal_the_definitions_of_the_methods():
    """At the first step, the momentum copies are equal. MoCo's loss is in the test of its queue."""
    a, b = views('byol', 0)
    simclr, byol = build('simclr'), build('byol')
    want = nt_xent(simclr.project(a), simclr.project(b), 0.1)
    torch.testing.assert_close(simclr(a, b), want)
    predicted = [byol.predictor(byol.project(view)) for view in (a, b)]
    want = byol_loss(predicted[0], byol.project(b)) + byol_loss(predicted[1], byol.project(a))
    torch.testing.assert_close(byol(a, b), want)
    swav, crops = build('swav', local_crops=6), views('swav', 0)
    prototypes = F.normalize(swav.prototypes.weight, dim=1)
    z = torch.stack([F.normalize(swav.project(crop), dim=1) for crop in crops])
    want = swav_loss(z @ prototypes.T, num_global=2, temperature=0.1, epsilon=0.05)
    torch.testing.assert_close(swav(*crops), want)


def weights_of(*modules: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])


def test_mocos_queue_has_unit_keys_of_the_momentum_encoder():
    """The momentum encoder is updated before it computes keys, and the loss uses older keys."""
    model, twin = build('moco'), []
    optimizer = sgd(model)
    for step in range(5):
        a, b = views('moco', step)
        online = weights_of(model.encoder, model.projector)
        slow = weights_of(model.momentum_encoder, model.momentum_projector)
        filled = torch.cat([torch.zeros(24, 6).double(), *twin])[-24:]
        model.begin_step()
        loss = model(a, b)
        keys = F.normalize(model.momentum_project(b), dim=1)
        torch.testing.assert_close(loss, info_nce(model.project(a), keys, filled, 0.07))
        twin.append(keys)
        now = weights_of(model.momentum_encoder, model.momentum_projector)
        torch.testing.assert_close(now, 0.8 * slow + 0.2 * online, rtol=1e-10, atol=1e-14)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    state = model.queue.keys.roll(-int(model.queue.pointer), dims=0)
    torch.testing.assert_close(state, torch.cat(twin[-3:]))


def test_byols_target_after_k_steps():
    """Momentum k belongs to the k-th update, at the start of step k + 1."""
    model = build('byol')
    optimizer, online, num_steps = sgd(model), [], 6
    for step in range(num_steps):
        train_step(model, optimizer, views('byol', step))
        online.append(model.encoder.layer.weight.detach().clone())
    torch.manual_seed(0)
    target = Convolution().double().layer.weight.detach()
    for k in range(num_steps - 1):
        momentum = 1 - 0.2 * (math.cos(math.pi * k / 10) + 1) / 2
        target = momentum * target + (1 - momentum) * online[k]
    got = model.momentum_encoder.layer.weight
    torch.testing.assert_close(got, target, rtol=1e-10, atol=1e-14)


def test_copies_are_equal_at_the_first_step_whatever_was_loaded():
    """The copies include the running statistics of batch norm."""
    encoder, loaded = (TimmClassifier('resnet10t', 32, 1, num_classes=0) for _ in range(2))
    with torch.no_grad():
        loaded(torch.randn(4, 1, 32, 32))  # running statistics change in training
    model = BUILD['byol'](encoder)
    model.whole_encoder.load_state_dict(loaded.state_dict())
    model.encoder_loaded()
    assert_same_state(model.momentum_encoder.state_dict(), loaded.encoder.state_dict())
    model.begin_step()
    assert_same_state(model.momentum_encoder.state_dict(), loaded.encoder.state_dict())


@pytest.mark.parametrize('name', BUILD)
def test_only_trained_parameters_get_gradients(name):
    """DistributedDataParallel needs all gradients, and the optimizer must not move a copy."""
    model = build(name)
    if name == 'swav':
        model.freeze_prototypes_steps = 0
    train_step(model, sgd(model), views(name, 0))
    model(*views(name, 1)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad != key.startswith('momentum_'), key
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, key
        else:
            assert parameter.grad is None, key


def test_prototypes_learn_after_the_first_steps_and_keep_length_1():
    model = build('swav', freeze_prototypes_steps=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    directions = [F.normalize(model.prototypes.weight.detach().clone(), dim=1)]
    for step in range(4):
        model.begin_step()
        model(*views('swav', step)).backward()
        lengths = model.prototypes.weight.norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(5, dtype=torch.float64))
        assert (model.prototypes.weight.grad.abs().sum() > 0) == (step >= 2)
        optimizer.step()
        optimizer.zero_grad()
        directions.append(F.normalize(model.prototypes.weight.detach().clone(), dim=1))
    moved = [(b - a).abs().max() > 1e-12 for a, b in zip(directions, directions[1:], strict=False)]
    assert moved == [False, False, True, True]


@pytest.mark.parametrize('steps', [100, 440, 3000])
@pytest.mark.parametrize('name', ['moco', 'byol'])
def test_a_short_run_forgets_the_initial_weights(name: str, steps: int) -> None:
    """The product of all momenta leaves about 1 % of the initial weights."""
    method = {'moco': MoCo, 'byol': partial(BYOL, total_steps=steps, hidden=12)}[name]
    default = {'moco': MoCo, 'byol': BYOL}[name].default_momentum(steps)
    model, left = method(Convolution(), momentum=default), 1.0
    for step in range(steps):
        model.step.fill_(step + 1)
        left *= float(model.momentum())
    published = {'moco': 0.999**steps, 'byol': 0.996 ** (steps / 2)}[name]
    assert left == pytest.approx(min(0.01, published), rel=0.1)
    assert type(model).default_momentum(73_100) == {'moco': 0.999, 'byol': 0.996}[name]


class Normalised(Convolution):
    """An encoder whose features depend on the other images of the batch by batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(7)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(images)).tanh().mean(dim=(2, 3))


def test_mocos_groups_have_their_own_batch_norm_and_keys_change_groups() -> None:
    """The reference applies batch norm to each group in the order given by the seed."""
    torch.manual_seed(0)
    model = MoCo(Normalised(), dim=6, queue_size=24, bn_groups=4).double().train()
    a, b = views('moco', 0)

    def of_groups(images: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(images, model.encoder.layer.weight, model.encoder.layer.bias)
        norm, z = model.encoder.norm, torch.empty(BATCH, 7, dtype=torch.float64)
        for rows in order.view(4, 2):
            y = F.batch_norm(x[rows], None, None, norm.weight, norm.bias, training=True)
            z[rows] = y.tanh().mean(dim=(2, 3))
        return model.projector(z)

    torch.manual_seed(1)
    order = torch.randperm(BATCH)
    assert not torch.equal(order, torch.arange(BATCH))
    queries, keys = of_groups(a, torch.arange(BATCH)), of_groups(b, order)
    want = info_nce(queries, keys, torch.zeros(24, 6).double(), 0.07)
    torch.manual_seed(1)
    torch.testing.assert_close(model(a, b), want)
    torch.testing.assert_close(model.queue.keys[:BATCH], F.normalize(keys, dim=1))


@pytest.mark.parametrize('norm', [nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d])
def test_one_pass_with_grouped_batch_norm_equals_a_pass_for_each_group(norm: type) -> None:
    """Outputs, gradients, running statistics, and outputs in evaluation."""
    torch.manual_seed(0)
    passes = nn.Sequential(norm(5)).double()
    nn.init.normal_(passes[0].weight)
    together = copy.deepcopy(passes)
    normalise_in_groups(together, 3)
    assert passes.state_dict().keys() == together.state_dict().keys()
    x = torch.randn(12, 5, *[4] * (norm is not nn.BatchNorm1d) * 2, dtype=torch.float64)
    weights = torch.randn_like(x)
    for _ in range(2):
        want = torch.cat([passes(group) for group in x.chunk(3)])
        torch.testing.assert_close(together(x), want)
    (want * weights).sum().backward()
    (together(x) * weights).sum().backward()
    for group in x.chunk(3):
        passes(group)  # `together` has also seen the images three times
    for one, other in zip(passes.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(together.state_dict(), passes.state_dict())
    torch.testing.assert_close(together.eval()(x), passes.eval()(x))


def layers(head: nn.Sequential) -> list[tuple]:
    """Describe each layer: (inputs, outputs, has bias), 'relu', or channels of a batch norm."""
    described = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            described.append((layer.in_features, layer.out_features, layer.bias is not None))
        else:
            described.append('relu' if isinstance(layer, nn.ReLU) else layer.num_features)
    return described


@pytest.mark.parametrize(
    ('method', 'projector'),
    [
        (MoCo, [(7, 7, True), 'relu', (7, 128, True)]),
        (SimCLR, [(7, 7, False), 7, 'relu', (7, 128, False), 128]),
        (partial(BYOL, total_steps=1), [(7, 4096, False), 4096, 'relu', (4096, 256, True)]),
        (SwAV, [(7, 2048, False), 2048, 'relu', (2048, 128, True)]),
    ],
)
def test_projectors_are_the_papers(method, projector):
    assert layers(method(Convolution()).projector) == projector

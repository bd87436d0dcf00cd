"""Masked encoders, reconstruction heads and losses, and the layers for the optimizer."""

import numpy as np
import pytest
import torch
from torch import nn
from transfers import make_config, make_model

from models.reconstruction_losses import LOSSES, Term, term_values
from models.simmim import SimMIM

both_encoders = pytest.mark.parametrize('kind', ['swin', 'vit'])


def small(kind: str, is_pretrain: bool = True, **options: object) -> nn.Module:
    """Build a model with stride 8 for 32 px images, in which every part affects the output."""
    return make_model(make_config(kind, 1, **options), is_pretrain=is_pretrain)


def half_hidden(model: nn.Module, images: int = 2) -> torch.Tensor:
    side = model.encoder.grid_size
    mask = torch.zeros(images, side, side, dtype=torch.int64)
    mask[:, ::2, 1:] = 1
    return mask


def hidden_pixels(model: nn.Module, mask: torch.Tensor) -> torch.Tensor:
    patch = np.ones((1, model.patch_size, model.patch_size), dtype=np.int64)
    return torch.from_numpy(np.kron(mask.numpy(), patch)).bool().unsqueeze(1)


@both_encoders
def test_mlp_head_is_two_convolutions_with_gelu_between(kind: str) -> None:
    model = small(kind, MODEL__SIMMIM__HEAD='mlp')
    width = model.encoder.num_features
    state = model.state_dict()
    shapes = {key: list(state[key].shape) for key in state if key.startswith('decoder.')}
    assert shapes == {
        'decoder.0.weight': [width, width, 1, 1],
        'decoder.0.bias': [width],
        'decoder.2.weight': [64, width, 1, 1],
        'decoder.2.bias': [64],
    }
    x, mask = torch.randn(1, 1, 32, 32), half_hidden(model, 1)
    with torch.no_grad():
        token = model.encoder(x, mask)[0, :, 1, 2].double()
        hidden = state['decoder.0.weight'][..., 0, 0].double() @ token + state['decoder.0.bias']
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        want = state['decoder.2.weight'][..., 0, 0].double() @ hidden + state['decoder.2.bias']
        got = model.reconstruct(x, mask)[0, 0, 8:16, 16:24]
    torch.testing.assert_close(got.flatten().double(), want, rtol=1e-4, atol=1e-5)


@both_encoders
def test_hidden_pixels_do_not_reach_the_features(kind: str) -> None:
    model = small(kind).eval()
    mask = half_hidden(model)
    hidden = hidden_pixels(model, mask)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        features = model.encoder(x, mask)
        assert torch.equal(model.encoder(x.masked_fill(hidden, 1e6), mask), features)
        changed = model.encoder(x.masked_fill(~hidden, 3.0), mask)
        assert not torch.allclose(changed, features, atol=1e-3)
        model.encoder.mask_token.normal_()  # no constant shift: the norms remove one
        assert not torch.allclose(model.encoder(x, mask), features, atol=1e-3)


@both_encoders
def test_loss_is_float32_under_autocast(kind: str) -> None:
    model = small(kind)
    x, mask = torch.randn(2, 1, 32, 32), half_hidden(model)
    full = model(x, mask)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        reconstruction = model.reconstruct(x, mask)
        loss = model(x, mask)
    assert reconstruction.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    hidden = hidden_pixels(model, mask).float()
    want = ((reconstruction.double() - x).abs() * hidden).sum() / (hidden.sum() + 1e-5)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert loss.item() == pytest.approx(full.item(), rel=0.02)
    assert loss.item() != full.item()  # autocast was on


@both_encoders
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    """With dropout and stochastic depth, the second forward pass must draw the same numbers."""
    gradients = []
    for use_checkpoint in (False, True):
        options = {'MODEL__DROP_RATE': 0.2, 'MODEL__DROP_PATH_RATE': 0.5}
        model = small(kind, TRAIN__USE_CHECKPOINT=use_checkpoint, **options).train()
        calls = []
        blocks = [m for name, m in model.named_modules() if name.split('.')[-2:-1] == ['blocks']]
        for block in blocks:
            block.norm1.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(5)
        model(torch.randn(4, 1, 32, 32), half_hidden(model, 4)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        recomputed = len(calls) - len(blocks)
        assert recomputed == (len(blocks) if use_checkpoint else 0)
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-7)


@both_encoders
def test_wrong_sizes_are_named(kind: str) -> None:
    model, classifier = small(kind), small(kind, is_pretrain=False)
    mask = half_hidden(model)
    with pytest.raises(AssertionError, match='40'):
        model(torch.zeros(2, 1, 32, 40), mask)
    with pytest.raises(AssertionError, match='64'):
        classifier(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match='mask'):
        model(torch.zeros(2, 1, 32, 32), mask[:, :-1])


def test_layer_ids_follow_the_depth_of_swin() -> None:
    options = {'MODEL__SWIN__APE': True, 'MODEL__SWIN__DEPTHS': [2, 2]}
    model = small('swin', is_pretrain=False, **options)
    assert model.get_num_layers() == 4
    want = {
        'patch_embed.norm.weight': 0,
        'mask_token': 0,
        'layers.0.blocks.0.attn.qkv.weight': 1,
        'layers.0.blocks.1.norm1.bias': 2,
        'layers.0.downsample.reduction.weight': 2,
        'layers.1.blocks.0.mlp.fc1.weight': 3,
        'layers.1.blocks.1.attn.relative_position_bias_table': 4,
        'norm.weight': 5,
        'head.weight': 5,
        'absolute_pos_embed': 5,
        'token': 5,  # a part of the name mask_token is not mask_token
        't': 5,
    }
    assert {name: model.get_layer_id(name) for name in want} == want


@pytest.mark.parametrize('channels', [1, 2])
def test_a_reconstruction_of_another_shape_is_not_broadcast(channels):
    image, weight = torch.zeros(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
    with pytest.raises(ValueError, match=rf'\[2, {channels}, 8, 8\]'):
        term_values({'l1': Term(1.0, LOSSES['l1'])}, image[:, :channels], image, weight)


@pytest.mark.parametrize('head', [nn.Identity(), nn.Upsample(scale_factor=4)])
@pytest.mark.parametrize('use', ['loss', 'reconstruct'])
def test_a_head_that_returns_another_shape_is_named(head: nn.Module, use: str) -> None:
    model = small('swin')
    model.decoder = head
    with pytest.raises(ValueError, match=r'MODEL.SIMMIM.HEAD.*\[2, 1, 32, 32\]'):
        getattr(model, use)(torch.zeros(2, 1, 32, 32), half_hidden(model))


def test_a_model_without_options_has_simmims_loss_and_head() -> None:
    model = small('swin')
    plain = SimMIM(model.encoder)
    plain.load_state_dict(model.state_dict())
    x, mask = torch.randn(2, 1, 32, 32), half_hidden(model)
    assert torch.equal(plain.eval()(x, mask), model.eval()(x, mask))

"""The published way computes the same model: outputs, loss and gradients, to rounding."""

import copy

import pytest
import torch
from tiny import SWIN, VIT
from torch import nn

from config import default_config
from models import build_model
from models.swin_transformer import BasicLayer
from speed.published import as_published

IMAGES = 2
OTHER = {'IN_CHANS': 3, 'APE': True, 'PATCH_NORM': False, 'QKV_BIAS': False, 'QK_SCALE': 0.7}
BARE = {'USE_SHARED_RPB': False, 'INIT_VALUES': None, 'USE_MEAN_POOLING': True}
MODELS = {
    'swin': SWIN,  # 16 x 16 and 8 x 8 tokens in windows of 4: shift and mask in both stages
    'swin, other options': SWIN | {'SWIN': SWIN['SWIN'] | OTHER},
    'swin, one window': SWIN | {'SWIN': SWIN['SWIN'] | {'WINDOW_SIZE': 16}},
    'vit, shared bias': VIT,
    'vit, own bias': VIT | {'VIT': VIT['VIT'] | {'USE_RPB': True, 'USE_SHARED_RPB': False}},
    'vit, both': VIT | {'VIT': VIT['VIT'] | {'USE_RPB': True, 'QKV_BIAS': False, 'USE_APE': True}},
    'vit, no bias': VIT | {'VIT': VIT['VIT'] | BARE},
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    """Our losses go down to float32; here all is compared in float64."""
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pair(
    model: dict, *, is_pretrain: bool, simmim: dict | None = None
) -> tuple[nn.Module, nn.Module]:
    """The same model in float64 as it is, and the published way; every parameter has a say."""
    config = default_config()
    data = {'IMG_SIZE': 32, 'MASK_PATCH_SIZE': 8}
    sections = {'MODEL': model | {'NUM_CLASSES': 14, 'DROP_PATH_RATE': 0.0, 'SIMMIM': simmim or {}}}
    config.merge_from_other_cfg(sections | {'DATA': data})
    torch.manual_seed(0)
    own = build_model(config, is_pretrain=is_pretrain)
    for parameter in own.parameters():
        nn.init.normal_(parameter, std=0.3)
    return own, as_published(copy.deepcopy(own))


def results(model: nn.Module, *, is_pretrain: bool) -> dict[str, torch.Tensor]:
    """Output, and the gradient of each parameter and of the images."""
    torch.manual_seed(1)
    images = torch.randn(IMAGES, model.in_chans, 32, 32, requires_grad=True)
    inputs = [images]
    if is_pretrain:
        side = model.encoder.grid_size
        inputs.append(torch.rand(IMAGES, side // 2, side // 2).lt(0.6).long())
        inputs[1] = inputs[1].repeat_interleave(2, 1).repeat_interleave(2, 2)
    output = model(*inputs)
    (output * torch.randn_like(output)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {'output': output, 'images': images.grad, **gradients}


def assert_same(own: nn.Module, published: nn.Module, *, is_pretrain: bool) -> None:
    wanted, got = (results(model, is_pretrain=is_pretrain) for model in (own, published))
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        scale = value.abs().max()
        assert scale > 0, name
        assert (got[name] - value).abs().max() <= 1e-10 * scale, name


@pytest.mark.parametrize('is_pretrain', [True, False], ids=['pretrain', 'finetune'])
@pytest.mark.parametrize('name', MODELS)
def test_outputs_and_gradients_are_those_of_the_model(name, is_pretrain):
    own, published = pair(MODELS[name], is_pretrain=is_pretrain)
    assert_same(own, published, is_pretrain=is_pretrain)


@pytest.mark.parametrize('model', [SWIN, VIT], ids=['swin', 'vit'])
def test_the_state_dict_stays(model):
    own, published = pair(model, is_pretrain=True)
    assert list(published.state_dict()) == list(own.state_dict())
    assert [name for name, _ in published.named_parameters()] == [
        name for name, _ in own.named_parameters()
    ]
    own.load_state_dict(published.state_dict())


@pytest.mark.parametrize('simmim', [
    {'LOSS': 'l2'}, {'LOSS_PIXELS': 'all'}, {'TARGET_SIZE': 16}, {'TARGET': 'patch_normalised'},
    {'HEAD': 'inverse_swin_nano'},
], ids=str)  # fmt: skip
def test_what_only_ours_has_stays_ours(simmim):
    assert_same(*pair(SWIN, is_pretrain=True, simmim=simmim), is_pretrain=True)


def test_nothing_of_how_ours_computes_is_left(monkeypatch):
    """Our own attention, blocks and stages, and their gathered biases, are not called."""
    _, published = pair(SWIN, is_pretrain=True)
    wanted = results(published, is_pretrain=True)['output']
    published.zero_grad()

    def refuse(*args, **kwargs):
        raise AssertionError

    for module in published.modules():
        kind = type(module)
        if kind.__module__.startswith('models.'):
            for name, method in vars(kind).items():
                if callable(method) and not name.startswith('__') and name != 'of':
                    monkeypatch.setattr(kind, name, refuse)
    assert torch.equal(results(published, is_pretrain=True)['output'], wanted)


@pytest.mark.parametrize('uses', [True, False])
def test_blocks_are_computed_again_where_that_is_asked_for(uses):
    own, _ = pair(SWIN, is_pretrain=False)
    published = as_published(copy.deepcopy(own), use_checkpoint=uses)
    calls = []
    layer = next(module for module in published.modules() if isinstance(module, BasicLayer))
    layer.blocks[0].attn.register_forward_hook(lambda *_: calls.append(1))
    assert_same(own, published, is_pretrain=False)
    assert len(calls) == 1 + uses

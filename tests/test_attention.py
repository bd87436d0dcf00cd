"""Ways to compute attention and to save memory: the same numbers, and what each costs."""

import copy
import logging

import pytest
import torch
from models.kernel_check import settle_attention
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.relative_position import attend, resolve, written_out
from models.simmim import SimMIM, SwinTransformerForSimMIM, VisionTransformerForSimMIM
from models.swin_transformer import SwinTransformer
from models.vision_transformer import VisionTransformer

SWIN = {
    'img_size': 32, 'patch_size': 2, 'in_chans': 1, 'embed_dim': 8, 'depths': (2, 2),
    'num_heads': (1, 2), 'window_size': 4, 'drop_path_rate': 0.0,
}  # fmt: skip
VIT = {'img_size': 32, 'patch_size': 8, 'in_chans': 1, 'embed_dim': 16, 'depth': 2,
       'num_heads': 2}  # fmt: skip
MODELS = {
    'swin': lambda **keys: SimMIM(SwinTransformerForSimMIM(**SWIN, **keys)),
    'vit_shared': lambda **keys: SimMIM(
        VisionTransformerForSimMIM(**VIT, use_ape=False, use_shared_rpb=True, **keys)
    ),
    'swin_classifier': lambda **keys: SwinTransformer(**SWIN, num_classes=3, **keys),
    'vit_both': lambda **keys: VisionTransformer(
        **VIT, num_classes=3, use_rpb=True, use_shared_rpb=True, init_values=0.1, **keys
    ),
    'vit_none': lambda **keys: VisionTransformer(**VIT, num_classes=3, **keys),
}


def randomised(name: str, **keys: object) -> nn.Module:
    """Of the same weights each time, in float64; none of them is zero."""
    model = MODELS[name](**keys).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def results(model: nn.Module) -> list[torch.Tensor]:
    """Output, and the gradient of every parameter."""
    torch.manual_seed(1)
    inputs = [torch.randn(3, 1, 32, 32, dtype=torch.float64)]
    if isinstance(model, SimMIM):
        side = model.encoder.grid_size
        inputs.append((torch.rand(3, side, side) < 0.5).long())
    output = model(*inputs)
    (output * torch.randn_like(output)).sum().backward()
    return [output.detach(), *(parameter.grad for parameter in model.parameters())]


def assert_same(model: nn.Module, other: nn.Module, tolerance: float = 1e-10) -> None:
    for got, want in zip(results(model), results(other), strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('name', MODELS)
def test_fused_kernels_give_what_is_written_out(name: str) -> None:
    assert_same(randomised(name, attention='sdpa'), randomised(name, attention='eager'))


@pytest.mark.parametrize('name', MODELS)
def test_ways_of_attention_have_the_same_state_dict(name: str) -> None:
    fused, eager = (randomised(name, attention=kind).state_dict() for kind in ('sdpa', 'eager'))
    assert fused.keys() == eager.keys()


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('shape', [(2, 3, 5, 4), (2, 6, 3, 5, 4)])
@pytest.mark.parametrize('by_window', [False, True])
def test_attend_is_the_formula(shape: tuple, by_window: bool, fused: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, *shape, dtype=torch.float64)
    by_window = by_window and len(shape) == 5
    bias = torch.randn(*shape[1 if by_window else -3 : -2], 5, 5, dtype=torch.float64)
    got = attend(q, k, v, bias=bias, scale=0.3, fused=fused)
    want = torch.empty_like(v)
    for index in torch.cartesian_prod(*map(torch.arange, shape[:-2])):
        at = tuple(index.tolist())
        logits = 0.3 * q[at] @ k[at].T + bias[at[-bias.ndim + 2 :]]
        weights = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        want[at] = weights @ v[at]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_auto_takes_the_fused_kernel_for_a_vit_on_a_gpu_alone() -> None:
    gpu, cpu = torch.device('cuda'), torch.device('cpu')
    ways = [resolve('auto', device, in_windows=w) for device in (cpu, gpu) for w in (True, False)]
    assert ways == ['eager', 'eager', 'eager', 'sdpa']
    assert resolve('sdpa', cpu, in_windows=True) == 'sdpa'


def test_written_out_holds_until_it_is_left(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(
        F, 'scaled_dot_product_attention', lambda *args, **keys: calls.append(1) or args[2]
    )
    model = MODELS['vit_none'](attention='sdpa')
    with pytest.raises(KeyError), written_out(model):
        model(torch.zeros(1, 1, 32, 32))
        raise KeyError
    assert calls == []
    model(torch.zeros(1, 1, 32, 32))
    assert len(calls) == 2


def flops(model: nn.Module) -> tuple[int, int]:
    """Of linear layers, and of the products inside attention, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        results(model)
    by_kind = counter.get_flop_counts()['Global']
    linear = sum(n for kind, n in by_kind.items() if str(kind) in ('aten.mm', 'aten.addmm'))
    return linear, sum(n for kind, n in by_kind.items() if 'bmm' in str(kind))


@pytest.mark.parametrize('name', ['swin_classifier', 'vit_both'])
def test_what_is_kept_is_not_computed_again(name: str) -> None:
    plain = randomised(name)
    models = {
        keeps: randomised(name, use_checkpoint=True, checkpoint_keeps=keeps)
        for keeps in ('nothing', 'products')
    }
    for model in models.values():
        assert_same(model, copy.deepcopy(plain), tolerance=1e-12)
    (linear, inner), nothing, products = map(flops, (plain, *models.values()))
    assert products[0] == linear, 'linear layers are kept'
    assert nothing[0] > 1.2 * linear
    assert products[1] == nothing[1] == pytest.approx(4 / 3 * inner), 'attention is computed again'


def swin_with_kernel(monkeypatch, kernel, **keys: object) -> SwinTransformer:
    from models import window_kernel

    monkeypatch.setattr(window_kernel, 'window_attention', kernel)
    return MODELS['swin_classifier'](attention='triton', **keys)


def as_written_out(qkv, bias, order, mask, *, scale, factor=1.0):
    """What the kernel is to compute."""
    from models.swin_transformer import WindowAttention

    attn = WindowAttention(qkv.shape[2] // 3, 4, bias.shape[0], qk_scale=scale)
    inverse = order.argsort()
    x = attn._attend(qkv[:, order], bias * factor, mask, fused=False)
    return x[:, inverse]


def missing(*_: object, **__: object) -> None:
    raise RuntimeError('the kernel needs the package triton\nsecond line')


@pytest.mark.parametrize(
    ('kernel', 'line'),
    [
        (as_written_out, None),
        (missing, 'RuntimeError: the kernel needs the package triton'),
        (lambda *a, **k: as_written_out(*a, **k, factor=1.1), 'ArithmeticError: its output is off'),
    ],
)
def test_a_kernel_that_fails_or_errs_is_not_used(kernel, line, monkeypatch, caplog) -> None:
    model = swin_with_kernel(monkeypatch, kernel, drop_rate=0.5)
    settle_attention(model, None, logging.getLogger('attention'))
    ways = {block.attn.attention for layer in model.layers for block in layer.blocks}
    if line is None:
        assert (ways, caplog.messages) == ({'triton'}, [])
    else:
        assert ways == {'eager'}
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith('MODEL.ATTENTION triton: eager in its place, ' + line)
    assert all(m.training for m in model.modules())


def test_the_kernel_is_for_training_alone(monkeypatch) -> None:
    """Scores and maps are the same where it does not run, such as on a CPU."""
    model = swin_with_kernel(monkeypatch, missing)
    model.eval()(torch.zeros(1, 1, 32, 32))
    with pytest.raises(RuntimeError, match='needs the package triton'):
        model.train()(torch.zeros(1, 1, 32, 32))

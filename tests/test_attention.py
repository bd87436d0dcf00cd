"""All implementations of attention and checkpointing give the same results; their cost."""

import pytest
import torch
from torch import nn

from models.encoder import attend
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
    """Build a float64 model with fixed non-zero weights."""
    model = MODELS[name](**keys).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def results(model: nn.Module) -> list[torch.Tensor]:
    """Return the output and the gradients of all parameters."""
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
def test_fused_attention_equals_eager_attention(name: str) -> None:
    assert_same(randomised(name, attention='sdpa'), randomised(name, attention='eager'))


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize(
    'shape, by_window', [((2, 3, 5, 4), False), ((2, 6, 3, 5, 4), False), ((2, 6, 3, 5, 4), True)]
)
def test_attention_is_the_formula(shape: tuple, by_window: bool, fused: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, *shape, dtype=torch.float64)
    bias = torch.randn(*shape[1 if by_window else -3 : -2], 5, 5, dtype=torch.float64)
    got = attend(
        q, k, v, bias=bias, scale=0.3, attention='sdpa' if fused else 'eager', in_windows=False
    )
    want = torch.empty_like(v)
    for index in torch.cartesian_prod(*map(torch.arange, shape[:-2])):
        at = tuple(index.tolist())
        logits = 0.3 * q[at] @ k[at].T + bias[at[-bias.ndim + 2 :]]
        weights = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        want[at] = weights @ v[at]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

"""Plain and fused attention are the formula, and give the same in a whole ViT."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from models import vision_transformer
from models.encoder import attend, attend_fused
from models.vision_transformer import VisionTransformer

VIT = {'img_size': 32, 'patch_size': 8, 'in_chans': 1, 'embed_dim': 16, 'depth': 2,
       'num_heads': 2, 'num_classes': 3}  # fmt: skip
BIASES = {
    'shared': {'use_ape': False, 'use_shared_rpb': True},
    'both': {'use_rpb': True, 'use_shared_rpb': True, 'init_values': 0.1},
    'none': {},
}


def results(model: nn.Module) -> list[torch.Tensor]:
    """Return the output and the gradients of all parameters, with fixed non-zero weights."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    output = model(torch.randn(3, 1, 32, 32, dtype=torch.float64))
    (output * torch.randn_like(output)).sum().backward()
    return [output.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize('bias', BIASES)
def test_a_vit_with_fused_attention_gives_the_same(bias: str, monkeypatch) -> None:
    """As on a GPU."""
    model = VisionTransformer(**VIT | BIASES[bias]).double()
    plain = results(model)
    model.zero_grad(set_to_none=True)
    monkeypatch.setattr(vision_transformer, 'attend', attend_fused)
    for got, want in zip(results(model), plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    'compute, shape, by_window',
    [
        (attend_fused, (2, 3, 5, 4), False),
        (attend, (2, 3, 5, 4), False),
        (attend, (2, 6, 3, 5, 4), False),
        (attend, (2, 6, 3, 5, 4), True),
    ],
)
def test_attention_is_the_formula(compute: Callable, shape: tuple, by_window: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, *shape, dtype=torch.float64)
    bias = torch.randn(*shape[1 if by_window else -3 : -2], 5, 5, dtype=torch.float64)
    got = compute(q, k, v, bias=bias, scale=0.3)
    want = torch.empty_like(v)
    for index in torch.cartesian_prod(*map(torch.arange, shape[:-2])):
        at = tuple(index.tolist())
        logits = 0.3 * q[at] @ k[at].T + bias[at[-bias.ndim + 2 :]]
        weights = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        want[at] = weights @ v[at]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

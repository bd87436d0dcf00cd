"""Heads of classifiers: precision in evaluation, attention over tokens, and checkpoints."""

import numpy as np
import pytest
import torch
from tiny import SWIN, VIT
from torch import nn

from config import check_config, default_config
from models import build_model
from models.classifier_heads import AttentionHead
from models.weights.convert import Statistics, convert

TIMM = {'TYPE': 'timm', 'DROP_PATH_RATE': 0.0, 'IN_CHANS': 1, 'TIMM': {'NAME': 'resnet18'}}


def built(options: dict, head: str = 'linear', **more: object) -> nn.Module:
    """Build a tiny classifier in evaluation mode."""
    config = default_config()
    for key, value in (options | more).items():
        if isinstance(value, dict):
            config.MODEL[key].update(value)
        else:
            config.MODEL[key] = value
    config.DATA.IMG_SIZE, config.DATA.MASK_PATCH_SIZE, config.MODEL.HEAD = 32, 8, head
    check_config(config)
    torch.manual_seed(0)
    return build_model(config, is_pretrain=False).eval()


def images() -> torch.Tensor:
    return torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ('options', 'head'),
    [(SWIN, 'linear'), (VIT, 'linear'), (TIMM, 'linear'), (SWIN, 'attention'), (VIT, 'attention')],
)
def test_only_training_rounds_logits_under_autocast(options: dict, head: str) -> None:
    model = built(options, head)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        features = model.forward_tokens if head == 'attention' else model.forward_features
        inputs, logits = features(images()).float(), model(images())
        is_rounded = model.train()(images()).dtype == torch.bfloat16
        assert is_rounded == (head == 'linear')
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model.head.logits(inputs))


@pytest.mark.parametrize('options', [SWIN, VIT], ids=lambda options: options['TYPE'])
def test_each_output_reads_the_tokens_that_its_query_attends_to(options: dict) -> None:
    """Against a loop over images, outputs and heads."""
    head = built(options, 'attention').head
    width = head.weight.shape[1]
    for parameter in (head.query, head.key_value.weight, head.bias):
        nn.init.normal_(parameter)
    tokens = torch.randn(2, 5, width)
    wanted = torch.zeros(2, len(head.weight))
    size = width // head.num_heads
    with torch.no_grad():
        for b, k in np.ndindex(*wanted.shape):
            keys, values = head.key_value(head.norm(tokens[b])).split(width, dim=1)  # [L, F]
            parts = []
            for part in range(head.num_heads):
                own = slice(part * size, (part + 1) * size)
                shares = (keys[:, own] @ head.query[k, own] / size**0.5).softmax(dim=0)
                parts.append(shares @ values[:, own])
            wanted[b, k] = torch.cat(parts) @ head.weight[k] + head.bias[k]
        torch.testing.assert_close(head(tokens), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('width, number', [(48, 1), (96, 1), (200, 2), (768, 12), (1024, 16)])
def test_an_attention_head_has_64_features_or_the_next_larger_divisor(width, number) -> None:
    assert AttentionHead(width, 14).num_heads == number


def test_tokens_are_those_of_the_patches_and_all_weights_learn() -> None:
    """DistributedDataParallel rejects weights without a gradient, such as an unused norm."""
    for options, count in ((SWIN, 64), (VIT, 16)):
        model = built(options, 'attention').train()
        assert model.forward_tokens(images()).shape == (3, count, model.num_features)
        nn.init.normal_(model.head.key_value.weight)
        model(images()).sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('options', [SWIN, VIT], ids=lambda options: options['TYPE'])
def test_another_kind_of_head_is_new(options: dict) -> None:
    """A linear head has a weight of the same shape, which means something else."""
    linear, attention = built(options), built(options, 'attention')
    stats = Statistics((0.5,), (0.25,))
    given = {'source_stats': stats, 'target_stats': stats, 'other_head': 'another'}
    for source, target in ((linear, attention), (attention, linear)):
        state, report = convert(source.state_dict(), target, **given)
        heads = {key for key in target.state_dict() if key.startswith('head.')}
        assert heads <= {*report.new} and not heads & {*state}
        assert {key for key in source.state_dict() if key.startswith('head.')} <= {*report.unused}

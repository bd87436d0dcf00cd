"""The masked binary cross-entropy against written-out sums and torch's own."""

import math

import pytest
import torch
from torch import nn

from models.losses import masked_bce

NAN = float('nan')


def test_hand_made_entries_sum_over_known_and_divide_by_all() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 50.0]])
    targets = torch.tensor([[1.0, 0.0], [NAN, NAN]])
    want = (math.log(2) + math.log(1 + math.exp(2))) / 4
    assert masked_bce(logits, targets).item() == pytest.approx(want, rel=1e-6)


def test_equals_torch_where_all_targets_are_known() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 14), torch.rand(7, 14)  # smoothed targets too
    want = nn.BCEWithLogitsLoss()(logits, targets)
    torch.testing.assert_close(masked_bce(logits, targets), want)


def test_equals_torch_on_the_known_entries_rescaled() -> None:
    torch.manual_seed(1)
    logits = torch.randn(9, 14)
    targets = (torch.rand(9, 14) < 0.3).float()
    targets[torch.rand(9, 14) < 0.4] = NAN
    known = ~targets.isnan()
    assert 0 < known.sum() < known.numel()
    want = nn.BCEWithLogitsLoss()(logits[known], targets[known]) * known.sum() / known.numel()
    torch.testing.assert_close(masked_bce(logits, targets), want)


def test_gradient_is_that_of_known_entries_and_zero_elsewhere() -> None:
    torch.manual_seed(2)
    logits = torch.randn(5, 3, requires_grad=True)
    targets = torch.tensor([1.0, 0.0, NAN]).repeat(5, 1)
    masked_bce(logits, targets).backward()
    probabilities = logits.detach().sigmoid()
    want = (probabilities - targets.nan_to_num()) / 15
    want[:, 2] = 0
    torch.testing.assert_close(logits.grad, want)
    assert (logits.grad[:, :2] != 0).all()


def test_nothing_known_gives_zero_loss_and_gradient() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = masked_bce(logits, torch.full((2, 3), NAN))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(2, 3))


def test_micro_batches_average_to_the_whole_batch() -> None:
    torch.manual_seed(3)
    logits, targets = torch.randn(8, 4), torch.rand(8, 4)
    targets[:3, :3] = NAN  # the first half knows far less
    halves = [masked_bce(logits[i : i + 4], targets[i : i + 4]) for i in (0, 4)]
    torch.testing.assert_close(sum(halves) / 2, masked_bce(logits, targets))


def test_low_precision_logits_are_handled_in_float32() -> None:
    torch.manual_seed(4)
    logits, targets = torch.randn(300, 14).bfloat16(), torch.rand(300, 14)
    loss = masked_bce(logits, targets.bfloat16())
    want = nn.BCEWithLogitsLoss()(logits.double(), targets.bfloat16().double())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)

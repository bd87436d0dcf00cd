"""Contrastive losses against the formulas of the papers in NumPy, and monitored quantities."""

import math

import numpy as np
import pytest
import torch

from evaluation.collapse import effective_rank, feature_spread
from models.contrastive import byol_loss, info_nce, nt_xent, sinkhorn, swav_loss


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw random vectors of different lengths, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 3


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / math.sqrt((a * a).sum()) / math.sqrt((b * b).sum()))


def test_nt_xent_is_simclrs_algorithm():
    temperature, z1, z2 = 0.5, rows(4, 6), rows(4, 6, seed=1)
    z = [v for pair in zip(z1.numpy(), z2.numpy(), strict=True) for v in pair]  # 2k-1, 2k

    def cost(i: int, j: int) -> float:
        others = [math.exp(cosine(z[i], z[k]) / temperature) for k in range(8) if k != i]
        return -math.log(math.exp(cosine(z[i], z[j]) / temperature) / sum(others))

    want = sum(cost(2 * k, 2 * k + 1) + cost(2 * k + 1, 2 * k) for k in range(4)) / 8
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(want, rel=1e-12)


def test_info_nce_is_mocos_algorithm():
    q, k, queue = rows(3, 5), rows(3, 5, seed=1), rows(7, 5, seed=2)
    queue = queue / queue.norm(dim=1, keepdim=True)
    costs = []
    for query, key in zip(q.numpy(), k.numpy(), strict=True):
        positive = math.exp(cosine(query, key) / 0.07)
        negative = [math.exp(cosine(query, old) / 0.07) for old in queue.numpy()]
        costs.append(-math.log(positive / (positive + sum(negative))))
    assert info_nce(q, k, queue, 0.07).item() == pytest.approx(np.mean(costs), rel=1e-12)


def test_byol_loss_is_the_distance_of_unit_vectors():
    prediction, target = rows(5, 4), rows(5, 4, seed=1)
    costs = []
    for p, t in zip(prediction.numpy(), target.numpy(), strict=True):
        p, t = p / math.sqrt((p * p).sum()), t / math.sqrt((t * t).sum())
        costs.append(((p - t) ** 2).sum())
    assert byol_loss(prediction, target).item() == pytest.approx(np.mean(costs), rel=1e-12)


def numpy_sinkhorn(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Compute SwAV's pseudo-code (arXiv:2006.09882, appendix A), [B, K] -> [B, K]."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    num_prototypes, num_images = q.shape
    r, c = np.full(num_prototypes, 1 / num_prototypes), np.full(num_images, 1 / num_images)
    for _ in range(iterations):
        q *= (r / q.sum(axis=1))[:, None]
        q *= (c / q.sum(axis=0))[None, :]
    return (q / q.sum(axis=0, keepdims=True)).T


def cosines(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.tanh(rows(*shape, seed=seed))


def test_sinkhorn_neither_overflows_nor_vanishes():
    """The cosines are -1 or 1, and epsilon is half of SwAV's, in float32."""
    scores = torch.tensor([[1.0, -1.0], [1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    shares = sinkhorn(scores, epsilon=0.025)
    assert shares.isfinite().all()
    torch.testing.assert_close(shares.sum(1), torch.ones(4))


def test_swav_predicts_each_global_crops_assignment_from_every_other_crop():
    num_global, num_views, temperature = 2, 5, 0.1
    scores = cosines(num_views, 6, 4)
    costs = []
    for g in range(num_global):
        q = numpy_sinkhorn(scores[g].numpy(), 0.05, 3)
        for v in range(num_views):
            if v == g:
                continue
            for b in range(6):
                x = scores[v, b].numpy() / temperature
                log_p = x - math.log(sum(math.exp(s) for s in x))
                costs.append(-sum(q[b, k] * log_p[k] for k in range(4)))
    got = swav_loss(scores, num_global=num_global, temperature=temperature, epsilon=0.05)
    assert got.item() == pytest.approx(np.mean(costs), rel=1e-9)


def test_targets_get_no_gradient():
    def gradients(loss, *inputs):
        inputs = [each.requires_grad_() for each in inputs]
        return torch.autograd.grad(loss(*inputs), inputs, allow_unused=True)

    of_q, of_k, of_queue = gradients(
        lambda q, k, queue: info_nce(q, k, queue, 0.07), rows(3, 5), rows(3, 5), rows(4, 5)
    )
    assert of_q.abs().sum() > 0
    assert of_k is None and of_queue is None
    of_prediction, of_target = gradients(byol_loss, rows(3, 5), rows(3, 5, seed=1))
    assert of_prediction.abs().sum() > 0
    assert of_target is None
    assert not sinkhorn(cosines(3, 4).requires_grad_()).requires_grad


CALLS = {
    'nt_xent': lambda a, b: nt_xent(a, b, 0.1),
    'info_nce': lambda a, b: info_nce(a, b, b, 0.07),
    'byol_loss': byol_loss,
    'sinkhorn': lambda a, b: sinkhorn(a / 16),
    'swav_loss': lambda a, b: swav_loss(
        torch.stack([a, b]) / 16, num_global=2, temperature=0.1, epsilon=0.05
    ),
}


@pytest.mark.parametrize('name', CALLS)
def test_under_autocast_losses_are_those_of_float32(name):
    """The losses are bit-identical for the same bfloat16 inputs."""
    a, b = rows(6, 16).bfloat16(), rows(6, 16, seed=1).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        got = CALLS[name](a, b)
    assert got.dtype == torch.float32
    assert torch.equal(got, CALLS[name](a.float(), b.float()))


def test_spread_of_known_embeddings():
    """The spread is 0 for one direction and 1 for both directions of every axis."""
    assert feature_spread(torch.tensor([[1.0, 2.0]]) * torch.arange(1.0, 9)[:, None]) < 1e-6
    axes = torch.cat([torch.eye(5), -torch.eye(5)]) * 7
    assert feature_spread(axes).item() == pytest.approx(1)
    halves = torch.tensor([[3.0, 4.0], [3.0, -4.0]])  # standard deviations 0 and 0.8
    assert feature_spread(halves).item() == pytest.approx(0.4 * math.sqrt(2))


def test_effective_rank_of_known_matrices():
    assert effective_rank(torch.eye(6)).item() == pytest.approx(6, rel=1e-5)
    outer = torch.outer(torch.arange(1.0, 9), torch.tensor([1.0, -2.0, 3.0]))
    assert effective_rank(outer).item() == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(4, 3)).item() == 1
    shares = np.array([0.5, 0.3, 0.2])
    want = math.exp(-(shares * np.log(shares)).sum())
    orthogonal, _ = torch.linalg.qr(rows(5, 3).float())
    matrix = orthogonal * torch.tensor([5.0, 3.0, 2.0])
    assert effective_rank(matrix).item() == pytest.approx(want, rel=1e-5)

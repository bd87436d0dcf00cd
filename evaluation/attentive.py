"""Attentive probe: an attention head on all tokens of a frozen encoder.

The mean over the tokens discards where a finding lies. An attention head finds it, and shows how
much of a label the frozen tokens contain (arXiv:2202.03026, section 4; arXiv:2401.08541).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.tuning import Choice, patient_folds
from models.losses import masked_bce

RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # learning rates of AdamW
EPOCHS, BATCH_SIZE = 30, 64
WEIGHT_DECAY = 0.05


def fit_attention_head(
    make_head: Callable[[], nn.Module],
    tokens: np.ndarray,
    targets: np.ndarray,
    patients: np.ndarray,
    *,
    device: torch.device,
    seed: int = 0,
) -> tuple[nn.Module, list[Choice]]:
    """Train a head on all images, with the learning rate that cross-validation chooses.

    All labels share the rate, because they share weights. The criterion is the mean of their
    out-of-fold log losses. Training takes EPOCHS epochs with half a cosine of the rate.

    Args:
        make_head: Function that builds the head with initial weights.
        tokens: Tokens of each image, [N, L, F].
        targets: Targets [N, K] in [0, 1], NaN where unknown.
        patients: Patient of each image, [N].
        device: Where to train.
        seed: Seed of the initial weights and the order of the images.

    Returns:
        The head, and for each label the rate and its out-of-fold log loss.
    """
    fold, given = patient_folds(targets, patients), torch.from_numpy(tokens)
    known = torch.from_numpy(targets)

    def train(rows: np.ndarray, rate: float) -> nn.Module:
        return _train(make_head, given[rows], known[rows], rate=rate, device=device, seed=seed)

    losses = []
    for rate in RATES:
        logits = np.zeros(targets.shape)
        for number in np.unique(fold):
            own = fold == number
            if not own.all():
                logits[own] = _predict(train(~own, rate), given[own], device)
        errors = np.logaddexp(0, logits) - targets * logits
        counts = (~np.isnan(errors)).sum(axis=0)
        losses.append(np.nansum(errors, axis=0) / np.maximum(counts, 1))
    best = int(np.argmin(np.mean(losses, axis=1)))
    head = train(np.ones(len(targets), bool), RATES[best])
    return head, [Choice(RATES[best], float(loss)) for loss in losses[best]]


def _train(
    make_head: Callable[[], nn.Module],
    tokens: Tensor,
    targets: Tensor,
    *,
    rate: float,
    device: torch.device,
    seed: int,
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = make_head().to(device).train()
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(tokens) // BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(tokens), generator=order).split(BATCH_SIZE):
            loss = masked_bce(head(tokens[rows].to(device).float()), targets[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return head.eval()


@torch.no_grad()
def _predict(head: nn.Module, tokens: Tensor, device: torch.device) -> np.ndarray:  # [N, K]
    logits = [head(batch.to(device).float()).cpu() for batch in tokens.split(BATCH_SIZE)]
    return torch.cat(logits).double().numpy()

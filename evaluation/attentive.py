"""Attentive probe: an attention head on all tokens of a frozen encoder.

The mean over the tokens discards where a finding lies. An attention head finds it, and shows how
much of a label the frozen tokens contain (arXiv:2202.03026, section 4; arXiv:2401.08541).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.tuning import Choice, patient_folds
from models.losses import LabelLoss

RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # learning rates of AdamW
EPOCHS, BATCH_SIZE = 30, 64
WEIGHT_DECAY = 0.05


def fit_attention_head(
    make_head: Callable[[], nn.Module],
    tokens: np.ndarray,
    targets: np.ndarray,
    patients: np.ndarray,
    *,
    loss_fn: LabelLoss,
    device: torch.device,
    seed: int = 0,
) -> tuple[nn.Module, Choice]:
    """Train a head on all images, with the learning rate that cross-validation chooses.

    All labels share the rate, because they share weights. The criterion is the loss of the
    out-of-fold outputs. Training takes EPOCHS epochs with half a cosine of the rate.

    Args:
        make_head: Function that builds the head with initial weights.
        tokens: Tokens of each image, [N, L, F].
        targets: Targets [N, K], NaN where unknown.
        patients: Patient of each image, [N].
        loss_fn: Loss of outputs [B, K] and targets [B, K].
        device: Where to train.
        seed: Seed of the initial weights and the order of the images.

    Returns:
        The head, and the rate with its out-of-fold loss.
    """
    fold, given = patient_folds(targets, patients), torch.from_numpy(tokens)
    known = torch.from_numpy(targets)

    def train(rows: np.ndarray, rate: float) -> nn.Module:
        options = {'loss_fn': loss_fn, 'rate': rate, 'device': device, 'seed': seed}
        return _train(make_head, given[rows], known[rows], **options)

    losses = []
    for rate in RATES:
        outputs = torch.zeros(targets.shape)
        for number in np.unique(fold):
            own = fold == number
            if not own.all():
                outputs[own] = _predict(train(~own, rate), given[own], device)
        losses.append(loss_fn(outputs, known).item())
    best = int(np.argmin(losses))
    return train(np.ones(len(targets), bool), RATES[best]), Choice(RATES[best], losses[best])


def _train(
    make_head: Callable[[], nn.Module],
    tokens: Tensor,
    targets: Tensor,
    *,
    loss_fn: LabelLoss,
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
            loss = loss_fn(head(tokens[rows].to(device).float()), targets[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return head.eval()


@torch.no_grad()
def _predict(head: nn.Module, tokens: Tensor, device: torch.device) -> Tensor:  # [N, K]
    return torch.cat([head(batch.to(device).float()).cpu() for batch in tokens.split(BATCH_SIZE)])

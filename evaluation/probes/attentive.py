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
    given, known = torch.from_numpy(tokens), torch.from_numpy(targets)
    # If the tokens do not fit on a GPU, each step copies its part, and the GPU waits for them.
    if device.type == 'cuda' and given.nbytes <= torch.cuda.mem_get_info(device)[0] / 2:
        given = given.to(device)
    truth = known.to(given.device)

    def train(used: np.ndarray, rate: float) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = make_head().to(device).train()
        order, rows = torch.Generator().manual_seed(seed), torch.from_numpy(np.flatnonzero(used))
        optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
        steps = EPOCHS * -(-len(rows) // BATCH_SIZE)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(EPOCHS):
            drawn = rows[torch.randperm(len(rows), generator=order)].to(given.device)
            for batch in drawn.split(BATCH_SIZE):
                outputs = head(given[batch].to(device).float())
                loss = loss_fn(outputs, truth[batch].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
        return head.eval()

    fold = patient_folds(targets, patients)
    losses = []
    for rate in RATES:
        outputs = torch.zeros(targets.shape)
        for number in np.unique(fold):
            in_fold = fold == number
            if not in_fold.all():
                outputs[in_fold] = _predict(
                    train(~in_fold, rate), given, np.flatnonzero(in_fold), device
                )
        losses.append(loss_fn(outputs, known).item())
    best = int(np.argmin(losses))
    return train(np.ones(len(targets), bool), RATES[best]), Choice(RATES[best], losses[best])


@torch.no_grad()
def _predict(
    head: nn.Module, tokens: Tensor, used: np.ndarray, device: torch.device
) -> Tensor:  # [N, K]
    parts = torch.from_numpy(used).to(tokens.device).split(BATCH_SIZE)
    return torch.cat([head(tokens[rows].to(device).float()).cpu() for rows in parts])

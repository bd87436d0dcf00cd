"""Multi-label losses that leave unknown targets out."""

import torch
from torch.nn import functional as F


def masked_bce(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy summed over known entries, divided by all (images x labels).

    With a divisor that does not depend on how many entries are known, the losses of equal
    micro-batches and ranks average to that of the whole batch.

    Args:
        logits: [B, K].
        targets: [B, K] in [0, 1]; NaN where unknown.

    Returns:
        Scalar, float32.
    """
    known = ~targets.isnan()
    loss = F.binary_cross_entropy_with_logits(
        logits.float(), targets.float().nan_to_num(), reduction='none'
    )  # [B, K]
    return loss.where(known, 0.0).sum() / loss.numel()

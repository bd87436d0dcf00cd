"""Multi-label losses that leave unknown targets out.

Each is a sum over known entries divided by all (images x labels), computed in float32.  With a
divisor that does not depend on how many entries are known, the losses of equal micro-batches and
ranks average to that of the whole batch.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

LabelLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
TINY = torch.finfo(torch.float32).tiny


def build_label_loss(
    config: Any, targets: np.ndarray, *, multiclass: np.ndarray | None = None
) -> LabelLoss:
    """The loss that LOSS.NAME and the label policies choose.

    Args:
        config: the config.
        targets: [N, K] of the training images, NaN where unknown; they give the positive weights.
        multiclass: [K] bool, which labels have the policy 'multiclass'; None: none has.

    Returns:
        (outputs of the model, targets [B, K]) -> scalar.  Outputs are [B, K], or [B, 3K] where a
        label has the policy 'multiclass'.

    Raises:
        ValueError: if LOSS.NAME is unknown.
    """
    loss = config.LOSS
    if multiclass is not None and multiclass.any():
        return partial(masked_multiclass, multiclass=torch.from_numpy(multiclass))
    if loss.NAME == 'bce':
        return masked_bce
    if loss.NAME == 'weighted_bce':
        weights = torch.from_numpy(positive_weights(targets))
        return partial(masked_bce, positive_weight=weights)
    if loss.NAME == 'focal':
        focal = {'gamma_pos': loss.GAMMA, 'gamma_neg': loss.GAMMA, 'alpha': loss.ALPHA}
        return partial(masked_asymmetric, **focal)
    if loss.NAME == 'asymmetric':
        asymmetric = {'gamma_pos': loss.GAMMA_POS, 'gamma_neg': loss.GAMMA_NEG, 'clip': loss.CLIP}
        return partial(masked_asymmetric, **asymmetric)
    names = "'bce', 'weighted_bce', 'focal', 'asymmetric'"
    raise ValueError(f'LOSS.NAME must be one of {names}, got {loss.NAME!r}')


def masked_bce(
    logits: torch.Tensor, targets: torch.Tensor, positive_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Binary cross-entropy.

    Args:
        logits: [B, K].
        targets: [B, K] in [0, 1]; NaN where unknown.
        positive_weight: [K], factor of a label's positive term; None: 1.

    Returns:
        Scalar, float32.
    """
    if positive_weight is not None:
        positive_weight = positive_weight.to(logits.device, non_blocking=True)
    loss = F.binary_cross_entropy_with_logits(
        logits.float(), targets.float().nan_to_num(), reduction='none', pos_weight=positive_weight
    )
    return _over_known(loss, targets)


def masked_asymmetric(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    gamma_pos: float,
    gamma_neg: float,
    clip: float = 0.0,
    alpha: float | None = None,
) -> torch.Tensor:
    """Asymmetric loss; with equal exponents and without clip, the focal loss.

    With p the probability and q = max(p - clip, 0), a target y in [0, 1] costs
    -y alpha (1 - p)^gamma_pos log(p) - (1 - y) (1 - alpha) q^gamma_neg log(1 - q): a soft target
    costs what hard ones cost on average.  The gradient is that of the whole formula, as in the
    sources' analyses: it flows through the powers, too.

    Args:
        logits: [B, K].
        targets: [B, K] in [0, 1]; NaN where unknown.
        gamma_pos: exponent of positives.
        gamma_neg: exponent of negatives.
        clip: probability up to which a negative costs nothing.
        alpha: weight of positives, and 1 - alpha that of negatives; None: both 1.

    Returns:
        Scalar, float32; without exponents, clip and alpha masked_bce to the last bit.

    Source: Lin et al. 2017, arXiv:1708.02002; Ridnik et al. 2021, arXiv:2009.14119.
    """
    if alpha is None and gamma_pos == gamma_neg == clip == 0:
        return masked_bce(logits, targets)
    logits, soft = logits.float(), targets.float().nan_to_num()
    # TINY: the slope of a power at 0 may be infinite.
    missed = (-logits).sigmoid().clamp(min=TINY)  # 1 - p
    shifted = (logits.sigmoid() - clip).clamp(min=TINY)  # q
    log_clip = logits.new_full((), math.log(clip) if clip else -math.inf)
    log_rest = torch.logaddexp(F.logsigmoid(-logits), log_clip).clamp(max=0)  # log(1 - q)
    positive = missed**gamma_pos * F.logsigmoid(logits)
    negative = shifted**gamma_neg * log_rest
    if alpha is not None:
        positive, negative = alpha * positive, (1 - alpha) * negative
    return _over_known(-soft * positive - (1 - soft) * negative, targets)


def masked_multiclass(
    outputs: torch.Tensor, targets: torch.Tensor, *, multiclass: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy over negative, positive and uncertain for some labels, binary for the others.

    Args:
        outputs: [B, 3K], see positive_logits.
        targets: [B, K], NaN where unknown; 0, 1 or 2 (uncertain) where a label has three classes,
            in [0, 1] elsewhere.
        multiclass: [K] bool, the labels with three classes.

    Returns:
        Scalar, float32.
    """
    outputs, clean = outputs.float(), targets.float().nan_to_num()
    three = F.cross_entropy(outputs.reshape(-1, 3), clean.long().flatten(), reduction='none')
    two = F.binary_cross_entropy_with_logits(
        positive_logits(outputs, targets.shape[1]), clean, reduction='none'
    )
    multiclass = multiclass.to(outputs.device, non_blocking=True)
    return _over_known(torch.where(multiclass, three.view_as(two), two), targets)


def positive_logits(outputs: torch.Tensor, num_labels: int) -> torch.Tensor:
    """The logits whose sigmoid is the probability of each label.

    Args:
        outputs: [B, K], returned as it is, or [B, 3K] = [B, K, 3]: negative, positive, uncertain.
        num_labels: K.

    Returns:
        [B, K]; of three classes that of the softmax over positive and negative alone.
    """
    if outputs.shape[1] == num_labels:
        return outputs
    classes = outputs.reshape(-1, num_labels, 3)
    return classes[..., 1] - classes[..., 0]


def positive_weights(targets: np.ndarray) -> np.ndarray:
    """Negatives over positives of each label.

    Args:
        targets: [N, K] in [0, 1], soft ones counted by their value; NaN where unknown.

    Returns:
        [K] float32; 1 for a label without positives or without negatives.
    """
    positives = np.nansum(targets, axis=0, dtype=np.float64)
    negatives = np.nansum(1 - targets, axis=0, dtype=np.float64)
    both = (positives > 0) & (negatives > 0)
    weights = np.divide(negatives, positives, out=np.ones_like(positives), where=both)
    return weights.astype(np.float32)


def _over_known(losses: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return losses.where(~targets.isnan(), 0.0).sum() / losses.numel()

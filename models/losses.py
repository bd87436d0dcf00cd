"""Losses of fine-tuning that ignore unknown targets.

Each loss is the sum over all known targets divided by (images x labels), in float32; for classes
the sum over all images with a class divided by the number of images. The divisor does not depend on
how many targets are known. The losses of equally large batches or ranks therefore average to the
loss of the whole batch.

To add a loss, write one function with `@register_loss`. It takes the training targets [N, K], the
names [K] of the labels, and as keyword arguments options of its own, such as LOSS.CIRCLE.MARGIN of
'circle'. It returns a function (outputs, targets [B, K]) -> scalar.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from config import REGISTRIES, refuse_unless, selected_part
from data.tables.labels import positive_logits

LabelLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LABEL_LOSSES = REGISTRIES['LOSS.NAME']
FOCAL_GAMMA = 2.0  # exponent of Lin et al. 2017
# Exponents, and the probability below which a negative has no loss, of Ridnik et al. 2021.
ASYMMETRIC = {'gamma_pos': 0.0, 'gamma_neg': 4.0, 'clip': 0.05}
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class LossOfLabels:
    """An entry of LABEL_LOSSES.

    Attributes:
        build: Function (targets [N, K], names of the labels, **options) -> loss.
        exclusive: Whether it is for classes, of which an image has one.
    """

    build: Callable[..., LabelLoss]
    exclusive: bool = False

    def check(self, config: Any, stage: str | None) -> None:
        """Check that the loss suits the task."""
        exclusive = selected_part(config, 'DATA.TASK').exclusive
        names = [name for name, loss in LABEL_LOSSES.items() if loss.exclusive == exclusive]
        allowed = f'one of {names} with DATA.TASK {config.DATA.TASK!r}'
        refuse_unless(stage is None or self.exclusive == exclusive, config, 'LOSS.NAME', allowed)


def register_loss(name: str, *, exclusive: bool = False) -> Callable:
    """Return a decorator that registers a function (targets, labels, **options) -> loss."""

    def add(build: Callable[..., LabelLoss]) -> Callable[..., LabelLoss]:
        LABEL_LOSSES.register(name)(LossOfLabels(build, exclusive))
        return build

    return add


def build_label_loss(config: Any, targets: np.ndarray) -> LabelLoss:
    """Return the loss function (outputs, targets [B, K]) -> scalar of a run.

    Args:
        config: Run configuration. If uncertain is a third class of any label, the model has outputs
            [B, 3K].
        targets: Targets of the training images, [N, K], NaN where unknown.
    """
    task, name = selected_part(config, 'DATA.TASK')(config), config.LOSS.NAME
    if task.third_class.any():
        third_class = torch.from_numpy(task.third_class)
        gamma = FOCAL_GAMMA if name == 'focal' else 0.0
        return partial(masked_multiclass, multiclass=third_class, gamma=gamma)
    options = LABEL_LOSSES.options_of(name, config)
    return LABEL_LOSSES[name].build(targets, task.labels, **options)


def default_loss(task: Any, targets: np.ndarray) -> LabelLoss:
    """Return the loss that the scores of a `Task` have, whatever the loss of the training is."""
    return LABEL_LOSSES[task.loss].build(targets, task.labels)


@register_loss('bce')
def _bce(targets: np.ndarray, labels: Sequence[str]) -> LabelLoss:
    return masked_bce


@register_loss('weighted_bce')
def _weighted_bce(targets: np.ndarray, labels: Sequence[str]) -> LabelLoss:
    return partial(masked_bce, positive_weight=torch.from_numpy(positive_weights(targets)))


@register_loss('focal')
def _focal(targets: np.ndarray, labels: Sequence[str]) -> LabelLoss:
    return partial(masked_asymmetric, gamma_pos=FOCAL_GAMMA, gamma_neg=FOCAL_GAMMA)


@register_loss('asymmetric')
def _asymmetric(targets: np.ndarray, labels: Sequence[str]) -> LabelLoss:
    return partial(masked_asymmetric, **ASYMMETRIC)


@register_loss('cross_entropy', exclusive=True)
def _cross_entropy(targets: np.ndarray, labels: Sequence[str]) -> LabelLoss:
    return masked_cross_entropy


@register_loss('weighted_cross_entropy', exclusive=True)
def _weighted_cross_entropy(targets: np.ndarray, labels: Sequence[str]) -> LabelLoss:
    return partial(masked_cross_entropy, class_weight=torch.from_numpy(class_weights(targets)))


def smoothed(targets: torch.Tensor, share: float, *, exclusive: bool) -> torch.Tensor:
    """Move targets [B, K] by a share towards 0.5, or those of classes towards 1 / K.

    Source: Szegedy et al. 2016, arXiv:1512.00567; for labels on their own as in timm's Mixup.
    """
    even = 1 / targets.shape[1] if exclusive else 0.5
    return targets * (1 - share) + share * even


def masked_bce(
    logits: torch.Tensor, targets: torch.Tensor, positive_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute the binary cross-entropy.

    Args:
        logits: Logits, [B, K].
        targets: Targets in [0, 1], [B, K], NaN where unknown.
        positive_weight: Factor of the positive term for each label, [K]; None means 1.

    Returns:
        Loss, a float32 scalar.
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
) -> torch.Tensor:
    """Compute the asymmetric loss, which equals the focal loss for equal exponents and clip 0.

    For a target y in [0, 1], the probability p, and q = max(p - clip, 0), the loss is
    -y (1 - p)^gamma_pos log(p) - (1 - y) q^gamma_neg log(1 - q). The gradient also flows through
    the powers.

    Args:
        logits: Logits, [B, K].
        targets: Targets in [0, 1], [B, K], NaN where unknown.
        gamma_pos: Exponent for positives, at least 0.
        gamma_neg: Exponent for negatives, at least 0.
        clip: Probability in [0, 1) below which a negative has no loss.

    Returns:
        Loss, a float32 scalar.

    Source: Lin et al. 2017, arXiv:1708.02002; Ridnik et al. 2021, arXiv:2009.14119.
    """
    gammas = {'gamma_pos': gamma_pos, 'gamma_neg': gamma_neg}
    soft = targets.float().nan_to_num()
    losses = _asymmetric_losses(logits.float(), soft, **gammas, clip=clip)
    return _over_known(losses, targets)


def _asymmetric_losses(
    logits: torch.Tensor,
    soft: torch.Tensor,
    *,
    gamma_pos: float,
    gamma_neg: float,
    clip: float = 0.0,
) -> torch.Tensor:  # [B, K]
    """Compute the asymmetric loss of each target, see `masked_asymmetric`."""
    # The slope of a power can be infinite at 0, so values are at least TINY.
    # 1 - sigmoid(x) loses its digits for large x, but sigmoid(-x) keeps them.
    missed = (-logits).sigmoid().clamp(min=TINY)  # 1 - p
    shifted = (logits.sigmoid() - clip).clamp(min=TINY)  # q
    log_clip = logits.new_full((), math.log(clip) if clip else -math.inf)
    # 1 - q = (1 - p) + clip, at most 1, as a sum of logarithms that stays exact near p = 1.
    log_rest = torch.logaddexp(F.logsigmoid(-logits), log_clip).clamp(max=0)  # log(1 - q)
    positive = missed**gamma_pos * F.logsigmoid(logits)
    negative = shifted**gamma_neg * log_rest
    return -soft * positive - (1 - soft) * negative


def masked_multiclass(
    outputs: torch.Tensor, targets: torch.Tensor, *, multiclass: torch.Tensor, gamma: float = 0.0
) -> torch.Tensor:
    """Compute the focal loss of labels with three classes, and the binary one of the others.

    The focal loss of three classes is -(1 - p)^gamma log(p), where p is the softmax of the true
    class. With gamma 0 it is the cross-entropy.

    Args:
        outputs: Outputs of the model, [B, 3K], see `data.tables.labels.positive_logits`.
        targets: Targets, [B, K], NaN where unknown. They are 0, 1 or 2 (uncertain) for labels with
            three classes, and in [0, 1] for the others.
        multiclass: Mask of the labels with three classes, [K] bool.
        gamma: Exponent, at least 0.

    Source: Lin et al. 2017, arXiv:1708.02002.
    """
    outputs, clean = outputs.float(), targets.float().nan_to_num()
    # [B, 3K] -> [B * K, 3]: each label is a classification of its own.
    three = F.cross_entropy(outputs.reshape(-1, 3), clean.long().flatten(), reduction='none')
    logits = positive_logits(outputs, targets.shape[1])
    if gamma:
        # The slope of a power can be infinite at 0, so values are at least TINY.
        three = (-torch.expm1(-three)).clamp(min=TINY) ** gamma * three
        two = _asymmetric_losses(logits, clean, gamma_pos=gamma, gamma_neg=gamma)
    else:
        two = F.binary_cross_entropy_with_logits(logits, clean, reduction='none')
    multiclass = multiclass.to(outputs.device, non_blocking=True)
    return _over_known(torch.where(multiclass, three.view_as(two), two), targets)


def masked_cross_entropy(
    outputs: torch.Tensor, targets: torch.Tensor, class_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute the cross-entropy of the softmax.

    Args:
        outputs: Logits, [B, K].
        targets: One-hot targets, [B, K]; a row of NaN has no class.
        class_weight: Weight of the images of each class, [K]; None means 1.

    Returns:
        Loss, a float32 scalar: the sum over the images with a class divided by B.
    """
    # With one-hot targets only the term of the true class remains; rows of NaN become 0.
    losses = -targets.float().nan_to_num() * outputs.float().log_softmax(dim=1)
    if class_weight is not None:
        losses = losses * class_weight.to(outputs.device, non_blocking=True)
    return losses.sum() / len(losses)


def positive_weights(targets: np.ndarray) -> np.ndarray:
    """Return the ratio of negatives to positives for each label, [K]; 1 without both classes.

    Targets [N, K] are in [0, 1], NaN where unknown. A soft target y counts as y positives and
    1 - y negatives.
    """
    positives = np.nansum(targets, axis=0, dtype=np.float64)
    negatives = np.nansum(1 - targets, axis=0, dtype=np.float64)
    # A weight of 0 or infinity would remove the label or the other class from the loss.
    both = (positives > 0) & (negatives > 0)
    weights = np.divide(negatives, positives, out=np.ones_like(positives), where=both)
    return weights.astype(np.float32)


def class_weights(targets: np.ndarray) -> np.ndarray:
    """Return N / (K' x images of the class), [K] float32, for one-hot targets [N, K].

    N counts the images with a class and K' the classes that occur, so the mean weight of an image
    is 1. Rows of NaN have no class, and the weight of a class without images is 1. This is
    scikit-learn's 'balanced' weight.
    """
    counts = np.nansum(targets, axis=0, dtype=np.float64)
    present = counts > 0
    weights = np.ones(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights.astype(np.float32)


def _over_known(losses: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum the losses of known targets and divide by the number of all targets."""
    return losses.where(~targets.isnan(), 0.0).sum() / losses.numel()

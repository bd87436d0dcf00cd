"""Terms of the loss of masked pre-training, which compare predictions with their target.

To add a term, register a function (predictions, targets, hidden, **options) -> scalar:

    predictions: [B, T, H, W] float32. Visible cells have the values of the target, so that no term
        sees what is predicted for them, not even one that mixes places, such as a spectrum.
    targets: [B, T, H, W] float32.
    hidden: [B, 1, H, W] float32, 1 for cells that count and 0 for others. With
        MODEL.SIMMIM.LOSS_PIXELS 'all' every cell counts.
    options: The options of the term, such as MODEL.SIMMIM.FREQUENCY.ALPHA of 'frequency'.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from config import REGISTRIES

LOSSES = REGISTRIES['MODEL.SIMMIM.LOSS']


class Term(NamedTuple):
    """A term of a loss, and its weight in the sum."""

    weight: float
    distance: Callable[[Tensor, Tensor, Tensor], Tensor]


def loss_terms(config: Any) -> dict[str, Term]:
    """Return the terms of MODEL.SIMMIM.LOSS by name. A single name has the weight 1."""
    loss = config.MODEL.SIMMIM.LOSS
    weights = {loss: 1.0} if isinstance(loss, str) else loss
    return {
        name: Term(weight, partial(LOSSES[name], **LOSSES.options_of(name, config)))
        for name, weight in weights.items()
    }


def term_values(
    terms: Mapping[str, Term], predictions: Tensor, targets: Tensor, hidden: Tensor
) -> Tensor:
    """Compute each term without its weight, [number of terms] float32.

    Args:
        terms: Terms by name.
        predictions: [B, T, H, W].
        targets: [B, T, H, W].
        hidden: [B, 1, H, W], 1 for cells that count and 0 for others. If none counts, the values
            are 0.

    Raises:
        ValueError: If predictions and targets have different shapes, which would be broadcast, or
            if a term does not return a scalar.
    """
    if predictions.shape != targets.shape:
        shapes = f'{[*predictions.shape]} and {[*targets.shape]}'
        raise ValueError(f'predictions and targets must have one shape, got {shapes}')
    # Sums over many pixels need float32, also under autocast.
    hidden, targets = hidden.float(), targets.float()
    predictions = torch.where(hidden.bool(), predictions.float(), targets)
    values = [term.distance(predictions, targets, hidden) for term in terms.values()]
    for name, value in zip(terms, values, strict=True):
        if value.ndim:
            raise ValueError(
                f'MODEL.SIMMIM.LOSS {name!r} must return a scalar, got the shape {[*value.shape]}'
            )
    return torch.stack(values)


def mean_over_hidden(errors: Tensor, hidden: Tensor) -> Tensor:
    """Return the mean of errors [B, T, H, W] over the cells that count and all T values.

    It is SimMIM's loss ||y_M - x_M||_1 / Omega(x_M), where M are the hidden pixels and Omega counts
    values; SimMIM adds 1e-5 to their number.
    """
    return (errors * hidden).sum() / (hidden.sum() + 1e-5) / errors.shape[1]


@LOSSES.register('l1')
def l1(predictions: Tensor, targets: Tensor, hidden: Tensor) -> Tensor:
    """Compute the mean absolute error, as in SimMIM."""
    return mean_over_hidden(F.l1_loss(predictions, targets, reduction='none'), hidden)


@LOSSES.register('l2')
def l2(predictions: Tensor, targets: Tensor, hidden: Tensor) -> Tensor:
    """Compute the mean squared error."""
    return mean_over_hidden(F.mse_loss(predictions, targets, reduction='none'), hidden)


@LOSSES.register('smooth_l1')
def smooth_l1(predictions: Tensor, targets: Tensor, hidden: Tensor) -> Tensor:
    """Compute the mean error that is quadratic below 1 and linear above."""
    return mean_over_hidden(F.smooth_l1_loss(predictions, targets, reduction='none'), hidden)


@LOSSES.register('frequency')
def frequency(predictions: Tensor, targets: Tensor, hidden: Tensor, *, alpha: float) -> Tensor:
    """Compute the focal frequency loss of the image whose visible cells are filled in.

    It is the sum over all frequencies of w |F(prediction) - F(target)|^2, divided by the number of
    values that count. F is the orthonormal Fourier transform. The weight w of a frequency is its
    error |F(prediction) - F(target)|^alpha, divided by the largest one of the image and channel, so
    that frequencies with large errors count most. With alpha 0 it equals the mean squared error.

    Source: Jiang et al. 2021, arXiv:2012.12821.
    """
    spectrum = torch.fft.fft2(predictions - targets, norm='ortho')
    power = spectrum.real.square() + spectrum.imag.square()  # [B, T, H, W]
    if alpha:
        # The weights have no gradient, as in the published code.
        error = power.detach() ** (alpha / 2)
        largest = error.amax(dim=(2, 3), keepdim=True)
        power = power * error / largest.clamp(min=torch.finfo(error.dtype).tiny)
    return power.sum() / (hidden.sum() + 1e-5) / power.shape[1]


@LOSSES.register('gradient')
def gradient(predictions: Tensor, targets: Tensor, hidden: Tensor) -> Tensor:
    """Compute the mean absolute error of differences between neighbours, across and down.

    Visible cells are filled in. A difference counts if one of its two cells counts, so that the
    border of a hidden area also has to fit its surroundings.

    Source: the gradient difference loss of Mathieu et al. 2016, arXiv:1511.05440, with exponent 1
    and signed differences.
    """
    error, total, count = predictions - targets, 0.0, 0.0
    for axis in (2, 3):
        size = error.shape[axis] - 1
        pairs = torch.maximum(hidden.narrow(axis, 0, size), hidden.narrow(axis, 1, size))
        total = total + (error.diff(dim=axis).abs() * pairs).sum()
        count = count + pairs.sum()
    return total / (count + 1e-5) / error.shape[1]

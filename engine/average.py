"""An exponential moving average of the weights of a classifier, which is scored and saved.

With TRAIN.AVERAGE d, the average becomes d * average + (1 - d) * weights after each step. The
statistics of batch norms come from the trained model.

Source: Polyak & Juditsky 1992, Acceleration of stochastic approximation by averaging.
"""

import copy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from config import PROBES, Config, refuse_unless


def check(config: Config, stage: str | None) -> None:
    """Check that the stage trains a classifier in steps."""
    is_allowed = stage == 'finetune' and config.FINETUNE.MODE not in PROBES
    refuse_unless(is_allowed or stage is None, config, 'TRAIN.AVERAGE', '0 except in fine-tuning')


def average_weights(model: nn.Module, decay: float) -> None:
    """Give a model the hooks of training that make and update its submodule `scored`."""
    update = get_ema_multi_avg_fn(decay)

    def encoder_loaded() -> None:
        model.scored = None  # a second call must not copy the copy of the first
        model.scored = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def after_step(_state: Any) -> None:
        average = model.scored
        weights = dict(model.named_parameters())
        names = [name for name, _ in average.named_parameters()]
        update([*average.parameters()], [weights[name] for name in names], 0)
        buffers = dict(model.named_buffers())
        for name, buffer in average.named_buffers():
            buffer.copy_(buffers[name])

    model.encoder_loaded, model.after_step = encoder_loaded, after_step

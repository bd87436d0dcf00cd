"""One epoch of the engine over five batches of a linear layer, for sums by hand."""

import logging
from types import SimpleNamespace

import torch
from tiny import config_with
from torch import nn

from engine.loop import train_one_epoch
from engine.run import Run
from engine.train_state import TrainState
from logger import ScalarLog
from models.model import Model


class Linear(Model, nn.Linear):
    """A linear layer with the hooks of training."""

    def __init__(self, *sizes: int) -> None:
        nn.Linear.__init__(self, *sizes, bias=False)
        self.scored = None


class Keys(list):
    """A batch sampler whose batches are of one image each."""

    def set_epoch(self, epoch: int, first_batch: int) -> None:
        self[:] = [[(epoch, index)] for index in range(first_batch, 9)]


class Batches(list):
    """Stands for a loader."""

    batch_sampler = Keys()


def squares(model: nn.Module, batch: tuple[torch.Tensor]) -> torch.Tensor:
    return (model(batch[0]) ** 2).mean()


def one_epoch(
    tmp_path,
    batches,
    loss_fn=squares,
    *,
    rate=0.1,
    wrap=lambda model: model,
    seconds=0.0,
    epoch=7,
    first_batch=0,
    **keys,
):
    """Train a linear layer (weights 1, 2, 3; SGD) for an epoch; returns (figures, state, steps).

    `rate` is a number, or a function of the batch of the run.
    """
    config = config_with(**keys)
    model = Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
    rate_of = rate if callable(rate) else lambda step: rate
    optimizer, updates = torch.optim.SGD(model.parameters(), lr=rate_of(0)), []

    def step_update(step: int) -> None:
        updates.append(step)
        optimizer.param_groups[0]['lr'] = rate_of(step)

    scheduler = SimpleNamespace(step_update=step_update)
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    state = TrainState(
        wrap(model), optimizer, scheduler, scaler, len(batches),
        accumulation=max(1, config.TRAIN.ACCUMULATION_STEPS), epoch=epoch, batch=first_batch,
    )  # fmt: skip
    state.progress.seconds = seconds
    logger = logging.getLogger('one_epoch')
    scalars = ScalarLog(tmp_path, enabled=False)
    run = Run(config, 'simmim', tmp_path, torch.device('cpu'), logger, scalars)
    saver = SimpleNamespace(is_due=lambda state: False)
    figures = train_one_epoch(run, state, Batches(batches[first_batch:]), loss_fn, saver)
    return figures, state, [step - epoch * len(batches) for step in updates]


def five_batches() -> list[tuple[torch.Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(4, 3),) for _ in range(5)]

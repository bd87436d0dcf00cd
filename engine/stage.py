"""What every main does with its model: evaluate, measure the throughput, check, or train."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from data import Loaders
from engine.device import throughput
from engine.loop import LossFunction, fit
from engine.preflight import preflight
from engine.run_record import Run


def run_stage(
    run: Run,
    loaders: Loaders,
    *,
    build: Callable[[], tuple[nn.Module, LossFunction | None]],
    evaluate: Callable[[], None],
    convert: Callable[..., Any],
    after_epoch: Callable[..., dict[str, Any]] | None = None,
    train: Callable[[nn.Module, LossFunction | None], None] | None = None,
    example: Callable[[], tuple[Tensor, ...]] | None = None,
) -> int:
    """Do what the flags --eval, --throughput and --check ask for, or else train.

    Args:
        run: The run.
        loaders: Batches of all splits.
        build: Returns the model and the loss of a batch; None if nothing is trained.
        evaluate: Evaluates a checkpoint.
        convert: Fits pre-trained weights to the model; see `utils.load_pretrained`.
        after_epoch: Evaluates the model; see `engine.loop.fit`.
        train: Trains the model, or fits a probe; by default `engine.loop.fit`.
        example: Returns a batch of inputs of the model; by default a training batch.
    """
    config = run.config
    if config.EVAL_MODE:
        evaluate()
        return 0
    model, loss_fn = build()
    if config.THROUGHPUT_MODE:
        inputs = example() if example else next(iter(loaders.train))
        rate = throughput(config, model, inputs, run.device)
        run.logger.info(f'throughput {rate:.1f} images/s')
        return 0
    if config.CHECK_MODE:
        return preflight(run, model, loaders, loss_fn, convert=convert)
    run.record.describe(config, loaders)
    if train:
        train(model, loss_fn)
    else:
        fit(run, model, loaders.train, loss_fn, after_epoch=after_epoch, convert=convert)
    return 0

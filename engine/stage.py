"""What every main does with its model: evaluate, measure the throughput, check, or train."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from data import Loaders
from engine.device import throughput
from engine.loop import LossFunction, fit
from engine.preflight import preflight
from engine.run_record import Run
from utils import checkpoint_to_evaluate, load_weights


def run_stage(
    run: Run,
    loaders: Loaders,
    *,
    build: Callable[[], tuple[nn.Module, LossFunction | None]],
    evaluate: Callable[[], None] | None = None,
    after_epoch: Callable[..., dict[str, Any]] | None = None,
    train: Callable[[nn.Module, LossFunction | None], None] | None = None,
    example: Callable[[], tuple[Tensor, ...]] | None = None,
) -> int:
    """Do what the flags --eval, --throughput and --check ask for, or else train.

    Args:
        run: The run.
        loaders: Batches of all splits.
        build: Returns the model and the loss of a batch; None if nothing is trained.
        evaluate: Evaluates a checkpoint; by default with `after_epoch`, on the held-out images.
        after_epoch: Evaluates the model; see `engine.loop.fit`.
        train: Trains the model, or fits a probe; by default `engine.loop.fit`.
        example: Returns a batch of inputs of the model; by default a training batch.

    Returns:
        The exit code.
    """
    config = run.config
    if config.EVAL_MODE and evaluate:
        evaluate()
        return 0
    if config.EVAL_MODE and loaders.holdout is None:
        share = config.DATA.HOLDOUT_FRACTION
        raise ValueError(f'--eval: DATA.HOLDOUT_FRACTION {share} holds out too few images')
    model, loss_fn = build()
    if config.EVAL_MODE:
        path = checkpoint_to_evaluate(config, run.folder)
        load_weights(path, model.to(run.device), run.logger)
        after_epoch(run, model, -1)
        return 0
    if config.THROUGHPUT_MODE:
        inputs = example() if example else next(iter(loaders.train))
        rate = throughput(config, model, inputs, run.device)
        run.logger.info(f'throughput {rate:.1f} images/s')
        return 0
    if config.CHECK_MODE:
        return preflight(run, model, loaders, loss_fn)
    run.record.describe(config, loaders)
    if train:
        train(model, loss_fn)
    else:
        fit(run, model, loaders.train, loss_fn, after_epoch=after_epoch)
    return 0

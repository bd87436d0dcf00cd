"""What every main does with its model: evaluate, measure the throughput, check, or train."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from data import Loaders
from engine.device import throughput
from engine.loop import LossFunction
from engine.preflight import preflight
from engine.run_record import Run


def run_stage(
    run: Run,
    loaders: Loaders,
    *,
    build: Callable[[], tuple[nn.Module, LossFunction | None]],
    evaluate: Callable[[], None],
    train: Callable[[nn.Module, LossFunction | None], None],
    example: Callable[[], tuple[Tensor, ...]],
    convert: Callable[..., Any],
) -> int:
    """Do what the flags --eval, --throughput and --check ask for, or else train.

    Args:
        run: The run.
        loaders: Batches of all splits.
        build: Returns the model and the loss of a batch; None if nothing is trained.
        evaluate: Evaluates a checkpoint.
        train: Trains the model, or fits a probe.
        example: Returns a batch of inputs of the model.
        convert: Fits pre-trained weights to the model; see `utils.load_pretrained`.

    Returns:
        The exit code.
    """
    config = run.config
    if config.EVAL_MODE:
        evaluate()
        return 0
    model, loss_fn = build()
    if config.THROUGHPUT_MODE:
        rate = throughput(config, model, example(), run.device)
        run.logger.info(f'throughput {rate:.1f} images/s')
        return 0
    if config.CHECK_MODE:
        return preflight(run, model, loaders, loss_fn, convert=convert)
    run.record.describe(config, loaders)
    train(model, loss_fn)
    return 0

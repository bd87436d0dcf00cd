"""Modes that every main shares: evaluate, measure the throughput, check, or train."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from data import Loaders
from data.store import is_store
from engine.device import throughput
from engine.files import NETWORK_SYSTEMS, file_system
from engine.loop import LossFunction, fit
from engine.preflight import preflight
from engine.run_record import Run
from utils import checkpoint_to_evaluate, load_model_state, read_checkpoint


def run_stage(
    run: Run,
    loaders: Loaders,
    *,
    build: Callable[[], tuple[nn.Module, LossFunction | None]],
    evaluate: Callable[[], None] | None = None,
    after_epoch: Callable[..., dict[str, Any]] | None = None,
    train: Callable[[nn.Module, LossFunction | None], None] | None = None,
    example: Callable[[], tuple[Tensor, ...]] | None = None,
    findings: Callable[[], list[tuple[str, str, str]]] | None = None,
) -> int:
    """Run the mode that --eval, --throughput or --check selects, or else train.

    Args:
        run: Run.
        loaders: Loaders of all splits.
        build: Function that returns the model and its loss function, which is None for a probe.
        evaluate: Function that evaluates a checkpoint. By default `after_epoch` evaluates it on the
            held-out images.
        after_epoch: Function that evaluates the model, see `engine.loop.fit`.
        train: Function that trains the model or fits a probe. The default is `engine.loop.fit`.
        example: Function that returns a batch of model inputs. The default is a training batch.
        findings: Function that returns further findings of --check: (check, found, advice or '').

    Returns:
        Exit code.
    """
    config = run.config
    _warn_of_network(run)
    if config.EVAL_MODE and evaluate:
        evaluate()
        return 0
    if config.EVAL_MODE and loaders.holdout is None:
        share = config.DATA.HOLDOUT_FRACTION
        raise ValueError(f'--eval: DATA.HOLDOUT_FRACTION {share} holds out too few images')
    model, loss_fn = build()
    if config.EVAL_MODE:
        path = checkpoint_to_evaluate(config, run.folder)
        weights = read_checkpoint(path)['model']
        load_model_state(model.to(run.device), weights, str(path), run.logger)
        after_epoch(run, model, -1)
        return 0
    if config.THROUGHPUT_MODE:
        inputs = example() if example else next(iter(loaders.train))
        rate = throughput(config, model, inputs, run.device)
        run.logger.info(f'throughput {rate:.1f} images/s')
        return 0
    if config.CHECK_MODE:
        return preflight(run, model, loaders, loss_fn, findings() if findings else ())
    run.record.describe(config, loaders)
    if train:
        train(model, loss_fn)
    else:
        fit(run, model, loaders.train, loss_fn, after_epoch=after_epoch)
    return 0


def _warn_of_network(run: Run) -> None:
    """Warn if every epoch reads a packed store over the network."""
    path, kind = run.config.DATA.DATA_PATH, file_system(run.config.DATA.DATA_PATH)
    if kind in NETWORK_SYSTEMS and is_store(path) and not run.config.DATA.CACHE_DIR:
        run.logger.warning(
            f'every epoch reads the store {path} from a network file system ({kind}): copy it once '
            'to a folder on the local disk with DATA.CACHE_DIR'
        )

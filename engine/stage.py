"""Modes that every main shares: evaluate, measure the throughput, check, or train."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from config import Config
from engine.loop import LossFunction, fit
from engine.preflight import Preflight, preflight
from engine.run_record import Run
from system.device import autocast, synchronized_time, to_device
from system.files import checkpoint_name
from utils import checkpoint_to_evaluate, load_model_state, read_checkpoint


def run_stage(
    run: Run,
    loaders: Mapping[str, DataLoader | None],
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
        loaders: Loaders by split, see `data.Loaders`.
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
    if config.EVAL_MODE and evaluate:
        evaluate()
        return 0
    if config.EVAL_MODE and loaders['holdout'] is None:
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
        inputs = example() if example else next(iter(loaders['train']))
        rate = throughput(config, model, inputs, run.device)
        run.logger.info(f'throughput {rate:.1f} images/s')
        if loss_fn is not None:
            run.logger.info(Preflight(run, model, loaders, loss_fn).training_time())
            run.logger.info('--check also tests reading, validation, memory and disk')
        return 0
    if config.CHECK_MODE:
        return preflight(run, model, loaders, loss_fn, findings() if findings else ())
    if train:
        train(model, loss_fn)
    else:
        fit(run, model, loaders['train'], loss_fn, after_epoch=after_epoch)
        last = run.folder / checkpoint_name(config.TRAIN.EPOCHS - 1)
        run.logger.info(f'next: fine-tune it with main_finetune.py --pretrained {last}')
    return 0


@torch.no_grad()
def throughput(
    config: Config, model: nn.Module, inputs: tuple[torch.Tensor, ...], device: torch.device
) -> float:
    """Measure images per second of the forward pass in 30 passes, after 50 for warm-up."""
    model.to(device).eval()
    inputs = to_device(inputs, device)
    for num_passes in (50, 30):
        start = synchronized_time(device)
        for _ in range(num_passes):
            with autocast(config, device):
                model(*inputs)
        seconds = synchronized_time(device) - start
    return num_passes * len(inputs[0]) / seconds

"""Fine-tune or probe an encoder for CheXpert's observations, or evaluate a fine-tuned one.

torchrun --nproc_per_node N main_finetune.py --cfg configs/... --data-path DIR --pretrained CKPT
"""

import sys
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from data import Loaders, build_loader
from data.labels import used_policies
from engine.device import throughput
from engine.launch import launch
from engine.loop import LossFunction, fit
from engine.preflight import preflight
from engine.run_record import Run
from evaluation.inference import load_classifier, predict
from evaluation.metrics import describe_scores, selection_score
from evaluation.probes import build_probe, freeze_encoder
from evaluation.run_report import FinalScores, check_scoring, score, warn_of_few_cases
from models import build_model
from models.losses import build_label_loss
from utils import (
    BEST_CHECKPOINT,
    checkpoint_name,
    checkpoint_to_evaluate,
    load_model_state,
    read_checkpoint,
)


def label_loss(run: Run, loader: DataLoader) -> LossFunction:
    """The loss of a batch; with 'last_layer' the encoder stays as in evaluation: no drop path."""
    targets = loader.dataset.targets
    multiclass = np.array([policy.third_class for policy in used_policies(run.config)], bool)
    loss_fn = build_label_loss(run.config, targets, multiclass=multiclass)
    is_frozen = run.config.FINETUNE.MODE == 'last_layer'

    def batch_loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        images, targets, _ = batch
        if is_frozen:
            model.eval()
        return loss_fn(model(images), targets)

    return batch_loss


class Selection:
    """Scores after each epoch on the split that selects the checkpoint, if there is one."""

    def __init__(self, loader: DataLoader | None, split: str) -> None:
        self.loader = loader
        self.split = split

    def __call__(self, run: Run, model: nn.Module, epoch: int) -> dict[str, Any]:
        if self.loader is None:
            return {}
        logits = predict(run.config, run.device, model, self.loader)
        scores = score(run.config, logits, self.loader)
        run.logger.info(f'{self.split}: {describe_scores(scores)}')
        chosen = selection_score(scores, run.config.EVAL.SELECT)
        figures = {f'{self.split}_{key}': scores[key] for key in ('loss', 'mean_of_five', 'auroc')}
        return figures | {'score': chosen}


def evaluate(run: Run, loaders: Loaders) -> None:
    """--eval: score one checkpoint, or the mean of those of EVAL.ENSEMBLE."""
    config = run.config
    paths = config.EVAL.ENSEMBLE or [checkpoint_to_evaluate(config, run.folder)]
    models = [load_classifier(config, path, run.device, run.logger) for path in paths]
    for path in paths:
        check_scoring(run, path)
    final = FinalScores(run, loaders)
    final.score('given', models)
    final.write(models, [str(path) for path in paths])


def build_training(run: Run, loaders: Loaders) -> tuple[nn.Module, LossFunction | None]:
    """What is trained, and by which loss; None for a probe: no step is made."""
    model = build_model(run.config, is_pretrain=False).to(run.device)
    if run.config.FINETUNE.MODE == 'last_layer':
        freeze_encoder(model)
    return model, label_loss(run, loaders.train) if loaders.plain is None else None


def main(run: Run) -> int | None:
    config, logger = run.config, run.logger
    loaders = build_loader(config, logger, is_pretrain=False)
    if config.EVAL_MODE:
        evaluate(run, loaders)
        return
    model, loss_fn = build_training(run, loaders)
    if config.THROUGHPUT_MODE:
        images, *_ = next(iter(loaders.valid))
        images = images[:, 0] if images.ndim == 5 else images  # one of the test-time views
        logger.info(f'throughput {throughput(config, model, (images,), run.device):.1f} images/s')
        return
    if config.CHECK_MODE:
        return preflight(run, model, loaders, loss_fn)
    run.record.describe(config, loaders)
    final, is_probe = FinalScores(run, loaders), loaders.plain is not None
    split = 'holdout' if is_probe else config.EVAL.SELECT_ON
    warn_of_few_cases(run, getattr(loaders, split), split)
    if is_probe:
        model, source = build_probe(run, model, loaders), config.FINETUNE.MODE
        final.score('selected', [model])
        final.write([model], [source])
        return
    if split == 'valid':
        logger.warning('EVAL.SELECT_ON valid: scores on valid are of a checkpoint chosen there')
    selection = Selection(getattr(loaders, split), split)
    state = fit(run, model, loaders.train, loss_fn, after_epoch=selection)
    model = state.module
    final.score('last', [model])
    source, best = checkpoint_name(config.TRAIN.EPOCHS - 1), run.folder / BEST_CHECKPOINT
    saved = read_checkpoint(best) if best.exists() else {}
    if saved.get('best_score') == state.best_score:  # else of a run that was not gone on with
        load_model_state(model, saved['model'], str(best), logger)
        final.score('selected', [model])
        source = best.name
    else:
        logger.warning(
            f'no selected checkpoint in {run.folder} (no score on {split}, or none better than '
            'that of the run it goes on from): the last one alone is scored'
        )
    final.write([model], [str(run.folder / source)])


if __name__ == '__main__':
    sys.exit(launch('finetune', main))

"""Fine-tune an encoder to CheXpert's 14 observations, or evaluate a fine-tuned one.

torchrun --nproc_per_node N main_finetune.py --cfg configs/... --data-path DIR --pretrained CKPT
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import nn
from torch.utils.data import DataLoader

import distributed
from data import build_loader
from data.labels import COMPETITION_LABELS, LABELS
from device import autocast, throughput
from engine import Run, fit, launch
from evaluation.metrics import describe_scores, score_table, selection_score
from evaluation.predictions import write_predictions
from logger import json_safe
from models import build_model
from models.losses import masked_bce
from utils import BEST_CHECKPOINT, checkpoint_to_evaluate, load_weights


def label_loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    images, targets, _ = batch
    return masked_bce(model(images), targets)


@torch.no_grad()
def predict(run: Run, model: nn.Module, loader: DataLoader) -> np.ndarray:
    """Logits [N, K] of a split in the order of its records, on every rank."""
    model.eval()
    parts = []
    for images, _, index in loader:
        with autocast(run.config, run.device):
            logits = model(images.to(run.device, non_blocking=True))
        parts.append((index.numpy(), logits.float().cpu().numpy()))
    logits = np.full((len(loader.dataset), len(LABELS)), np.nan, np.float32)
    for rank_parts in distributed.gather(parts):
        for index, values in rank_parts:
            logits[index] = values
    return logits


def score(run: Run, model: nn.Module, loader: DataLoader) -> tuple[dict[str, Any], np.ndarray]:
    """Scores of one split (`evaluation.metrics.score_table` and the loss), and probabilities."""
    logits, dataset, config = predict(run, model, loader), loader.dataset, run.config
    probabilities = expit(logits.astype(np.float64))
    scores = score_table(
        probabilities,
        dataset.targets,
        dataset.records.study,
        labels=LABELS,
        five=COMPETITION_LABELS,
        level=config.EVAL.LEVEL,
    )
    scores['loss'] = masked_bce(torch.from_numpy(logits), torch.from_numpy(dataset.targets)).item()
    scores['views'] = config.EVAL.VIEWS or config.DATA.VIEWS
    return scores, probabilities


class Selection:
    """Scores after each epoch on the split that selects the checkpoint, if there is one."""

    def __init__(self, loader: DataLoader | None, split: str) -> None:
        self.loader = loader
        self.split = split

    def __call__(self, run: Run, model: nn.Module, epoch: int) -> dict[str, Any]:
        if self.loader is None:
            return {}
        scores, _ = score(run, model, self.loader)
        run.logger.info(f'{self.split}: {describe_scores(scores)}')
        areas = np.array(list(scores['auroc'].values()))
        chosen = selection_score(areas, LABELS, COMPETITION_LABELS, run.config.EVAL.SELECT)
        figures = {f'{self.split}_{key}': scores[key] for key in ('loss', 'mean_of_five', 'auroc')}
        return figures | {'score': chosen}


def final_scores(
    run: Run, model: nn.Module, loaders: Any, checkpoints: dict[str, str | Path | None]
) -> None:
    """Score valid and test with each checkpoint (None: the model as it is).

    The last one's predictions are written; what --eval gives has names of its own.
    """
    table, suffix = {}, '_eval' if run.config.EVAL_MODE else ''
    splits = {name: getattr(loaders, name) for name in ('valid', 'test')}
    for name, checkpoint in checkpoints.items():
        if checkpoint is not None:
            load_weights(checkpoint, model, run.logger)
        for split, loader in splits.items():
            if loader is None:
                continue
            scores, probabilities = score(run, model, loader)
            run.logger.info(f'{split}, {name} checkpoint: {describe_scores(scores)}')
            table.setdefault(split, {})[name] = scores
            if distributed.is_main():
                records = loader.dataset.records
                write_predictions(
                    run.folder / f'predictions_{split}{suffix}.csv',
                    probabilities,
                    paths=records.path,
                    labels=LABELS,
                    source={
                        'checkpoint': name if checkpoint is None else str(checkpoint),
                        'run': run.config.TAG,
                        'csv': records.csv,
                        'views': scores['views'],
                        'rows': len(records),
                    },
                )
    file = run.folder / f'scores{suffix}.json'
    if distributed.is_main():
        file.write_text(json.dumps(json_safe(table), indent=1) + '\n', encoding='utf-8')
    run.logger.info(f'scores in {file}. Not for clinical use.')


def main(run: Run) -> None:
    config, logger = run.config, run.logger
    loaders = build_loader(config, logger, is_pretrain=False)
    model = build_model(config, is_pretrain=False).to(run.device)
    if config.THROUGHPUT_MODE:
        images, *_ = next(iter(loaders.valid))
        logger.info(f'throughput {throughput(config, model, (images,), run.device):.1f} images/s')
        return
    if config.EVAL_MODE:
        final_scores(run, model, loaders, {'given': checkpoint_to_evaluate(config, run.folder)})
        return
    split = config.EVAL.SELECT_ON
    if split == 'valid':
        logger.warning('EVAL.SELECT_ON valid: scores on valid are of a checkpoint chosen there')
    selection = Selection(getattr(loaders, split), split)
    model = fit(run, model, loaders.train, label_loss, after_epoch=selection)
    checkpoints, best = {'last': None}, run.folder / BEST_CHECKPOINT
    if best.exists():
        checkpoints['selected'] = best
    else:
        logger.warning(
            f'no selected checkpoint in {run.folder} (no score on {split}, or none better than '
            'that of the run it goes on from): the last one alone is scored'
        )
    final_scores(run, model, loaders, checkpoints)


if __name__ == '__main__':
    sys.exit(launch('finetune', main))

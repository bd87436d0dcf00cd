"""A probe of the encoder during pre-training: nearest neighbours, and the rank of the features.

Every EVAL.PROBE_EVERY epochs, the labels of each held-out patient are predicted from the features
of the other held-out patients. The labels come from the training table, so the probe needs no
other data, and no patient of the pre-training. It changes nothing of the training.

RankMe (Garrido et al. 2023, arXiv:2210.02885) is the effective rank of the features.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from config import Config, refuse_unless, selected_part
from data.loader import HOLDOUT_SEED, XrayDataset, make_loader
from data.tables.reading import read_split
from data.tables.records import task_of
from data.tables.splits import pretrain_records
from data.transforms import EvalTransform
from engine.run import Run
from evaluation.collapse import effective_rank
from evaluation.metrics import score_table
from evaluation.probes.build import PLAIN_NUM_NEIGHBOURS, extract_features, out_of_fold_votes
from evaluation.tuning import patient_folds
from logger import DETAIL
from system.device import autocast

MEANS = ('mean_of_five', 'mean_of_defined')
Validate = Callable[[Run, nn.Module, int], dict[str, Any]]


def check(config: Config, stage: str | None) -> None:
    """Check that held-out patients have labels, and that probes fall on validations."""
    key, data = 'EVAL.PROBE_EVERY', config.DATA
    refuse_unless(stage != 'finetune', config, key, '0 in fine-tuning, which has its own scores')
    labelled = not data.SOURCES and selected_part(config, 'DATA.DATASET').labelled
    has_labels = labelled and data.HOLDOUT_FRACTION > 0
    refuse_unless(
        has_labels, config, key, '0 without DATA.HOLDOUT_FRACTION of one labelled DATA.DATASET'
    )
    every = config.EVAL.EVERY
    refuse_unless(
        config.EVAL.PROBE_EVERY % every == 0, config, key, f'a multiple of EVAL.EVERY {every}'
    )


class OnlineProbe:
    """Adds the scores of the probe to those of a validation, `validate`."""

    def __init__(self, config: Config, logger: logging.Logger, validate: Validate) -> None:
        self.validate, self.task = validate, task_of(config)
        _, self.records = pretrain_records(config, read_split(config, 'train', logger))
        self.targets = self.task.scored(self.records)
        transform = EvalTransform(config, is_scored=False)
        dataset = XrayDataset(self.records, transform, seed=HOLDOUT_SEED, targets=self.targets)
        self.loader = make_loader(dataset, config, shuffle=False)

    def __call__(self, run: Run, model: nn.Module, epoch: int) -> dict[str, Any]:
        values, done = self.validate(run, model, epoch), epoch + 1
        if done % run.config.EVAL.PROBE_EVERY and done != run.config.TRAIN.EPOCHS:
            return values
        with autocast(run.config, run.device):
            features = extract_features(run, model.whole_encoder, self.loader)
        fold = patient_folds(self.targets, self.records.patient)
        counts = [PLAIN_NUM_NEIGHBOURS]
        (logits,) = out_of_fold_votes(features, self.targets, fold, counts, run.device)
        scores = score_table(
            self.task.probabilities(logits),
            self.targets,
            self.records.study,
            labels=self.task.labels,
            level=run.config.EVAL.LEVEL,
        )
        means = {name: scores[name] for name in MEANS if np.isfinite(scores.get(name, np.nan))}
        rank = float(effective_rank(torch.from_numpy(features).to(run.device)))
        shown = ', '.join(f'{name.replace("_", " ")} {mean:.4f}' for name, mean in means.items())
        run.logger.info(
            f'probe of {len(features)} held-out images: AUROC {shown}; '
            f'effective rank {rank:.1f} of {min(features.shape)}',
            extra=DETAIL if epoch >= 0 else None,
        )
        found = {f'probe_{name}': mean for name, mean in means.items()}
        return values | found | {'probe_rank': rank}

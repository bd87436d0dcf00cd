"""Probes: what an encoder's frozen features tell, by a linear layer or by nearest neighbours.

Features are computed once.  The grid of a probe is small, and its best point is chosen on held-out
training patients, never on what is scored.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import distributed
from data import Loaders
from data.labels import COMPETITION_LABELS, task_labels
from device import autocast
from engine import Run
from evaluation.metrics import auroc_per_label, selection_score
from inference import SMALLEST_PROBABILITY
from utils import load_pretrained

INVERSE_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # C of scikit-learn, features standardised
NUM_NEIGHBOURS = (5, 10, 20, 50, 100, 200)
KNN_TEMPERATURE = 0.07  # Wu et al. 2018, arXiv:1805.01978


class KnnClassifier(nn.Module):
    """Weighted vote of the nearest training images, by the cosine of their features.

    A neighbour of similarity s votes exp(s / 0.07) for its target; those whose target is unknown
    do not vote on that label.  The output is the logit of the share of positive votes.

    Source: Wu et al. 2018, arXiv:1805.01978.
    """

    def __init__(
        self, encoder: nn.Module, features: np.ndarray, targets: np.ndarray, num_neighbours: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_neighbours = min(num_neighbours, len(features))
        self.register_buffer('bank', F.normalize(torch.from_numpy(features), dim=1))  # [N, F]
        self.register_buffer('targets', torch.from_numpy(targets))  # [N, K]

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, K]
        return self.vote(self.encoder.forward_features(images))

    def vote(self, features: torch.Tensor) -> torch.Tensor:  # [B, K]
        """Logits for features [B, F]."""
        similarity = F.normalize(features.float(), dim=1) @ self.bank.T
        nearest = similarity.topk(self.num_neighbours, dim=1)
        weights = ((nearest.values - 1) / KNN_TEMPERATURE).exp()[..., None]  # [B, k, 1]
        targets = self.targets[nearest.indices]  # [B, k, K]
        known = ~targets.isnan()
        votes = (weights * targets.nan_to_num()).sum(dim=1)
        total = (weights * known).sum(dim=1)
        share = torch.where(total > 0, votes / total, 0.5).double()
        return torch.logit(share, eps=SMALLEST_PROBABILITY)


def freeze_encoder(model: nn.Module) -> None:
    """Leave the head alone to be trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith('head.'))


@torch.no_grad()
def extract_features(run: Run, model: nn.Module, loader: DataLoader) -> np.ndarray:  # [N, F]
    """What the head would see of each image, in the order of the records, on every rank."""
    model.eval()
    parts = []
    for images, _, index in loader:
        images = images[:, 0] if images.ndim == 5 else images  # the first of the test-time views
        with autocast(run.config, run.device):
            features = model.forward_features(images.to(run.device, non_blocking=True))
        parts.append((index.numpy(), features.float().cpu().numpy()))
    features = np.empty((len(loader.dataset), model.num_features), np.float32)
    for rank_parts in distributed.gather(parts):
        for index, values in rank_parts:
            features[index] = values
    return features


def build_probe(run: Run, model: nn.Module, loaders: Loaders) -> nn.Module:
    """The probe that FINETUNE.MODE names, on the encoder of PRETRAINED (or its random weights).

    Returns:
        The model with a fitted head ('linear_probe'), or a `KnnClassifier`.

    Raises:
        ValueError: if there are no held-out patients to choose the grid's point on.
    """
    config, logger = run.config, run.logger
    if loaders.holdout is None:
        raise ValueError(
            f'FINETUNE.MODE {config.FINETUNE.MODE!r} chooses its grid on held-out patients: '
            'DATA.HOLDOUT_FRACTION must be above 0'
        )
    if config.PRETRAINED:
        load_pretrained(config, model, logger)
    else:
        logger.warning('no --pretrained: the probe is of an encoder with random weights')
    features = extract_features(run, model, loaders.plain)
    held_out = extract_features(run, model, loaders.holdout)
    targets, labels = loaders.plain.dataset.targets, task_labels(config.DATA.TASK)
    best, best_score, options = None, -np.inf, _grid(config.FINETUNE.MODE)
    for option in options:
        if config.FINETUNE.MODE == 'knn':
            probe = KnnClassifier(model, features, targets, option).to(run.device)
            logits = probe.vote(torch.from_numpy(held_out).to(run.device)).cpu().numpy()
        else:
            probe = fit_linear_heads(features, targets, inverse_penalty=option)
            logits = held_out @ probe[0].T + probe[1]
        areas = auroc_per_label(logits, loaders.holdout.dataset.targets)
        score = selection_score(areas, labels, COMPETITION_LABELS, config.EVAL.SELECT)
        logger.info(f'{config.FINETUNE.MODE}, {option}: mean AUROC on held-out images {score:.4f}')
        if best is None or score > best_score:
            best, best_score = (option, probe), score
    logger.info(f'{config.FINETUNE.MODE}: chosen {best[0]} of {list(options)}')
    if config.FINETUNE.MODE == 'knn':
        return best[1]
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(best[1][0]))
        model.head.bias.copy_(torch.from_numpy(best[1][1]))
    return model


def fit_linear_heads(
    features: np.ndarray, targets: np.ndarray, *, inverse_penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression a label on standardised features, as weights of a linear layer.

    Args:
        features: [N, F].
        targets: [N, K] in [0, 1]; NaN where unknown. A soft target counts as both classes, each
            with its share.
        inverse_penalty: C of scikit-learn's LogisticRegression.

    Returns:
        weight [K, F] and bias [K] for the features as they are; zeros for a label without both
        classes.
    """
    mean, std = features.mean(axis=0), features.std(axis=0)
    std = np.where(std > 0, std, 1)
    standard = ((features - mean) / std).astype(np.float64)
    weight = np.zeros((targets.shape[1], features.shape[1]), np.float32)
    bias = np.zeros(targets.shape[1], np.float32)
    for k, target in enumerate(targets.T.astype(np.float64)):
        shares = {1: np.flatnonzero(target > 0), 0: np.flatnonzero(target < 1)}
        rows = np.concatenate([shares[1], shares[0]])
        classes = np.repeat([1, 0], [len(shares[1]), len(shares[0])])
        if np.unique(classes).size < 2:
            continue
        counts = np.where(classes == 1, target[rows], 1 - target[rows])
        model = LogisticRegression(C=inverse_penalty, max_iter=1000)
        model.fit(standard[rows], classes, sample_weight=counts)
        weight[k] = model.coef_[0] / std
        bias[k] = model.intercept_[0] - (model.coef_[0] / std) @ mean
    return weight, bias


def _grid(mode: str) -> tuple[float, ...]:
    return NUM_NEIGHBOURS if mode == 'knn' else INVERSE_PENALTIES

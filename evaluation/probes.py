"""Probes of frozen features: logistic regression and nearest neighbours.

Features are computed once. The best hyperparameter of a small grid is chosen on held-out training
patients with the metric of the run, never on the data that is finally scored.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data import Loaders
from engine import distributed
from engine.device import autocast, views_of
from engine.run_record import Run
from evaluation.inference import SMALLEST_PROBABILITY, mean_logits, require_finite
from evaluation.metrics import score_probabilities, selection_score
from evaluation.pixel_floor import weighted_pairs
from models.pretrained import fit_pretrained
from utils import load_pretrained

INVERSE_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # C for standardised features
NUM_NEIGHBOURS = (5, 10, 20, 50, 100, 200)
KNN_TEMPERATURE = 0.07  # Wu et al. 2018, arXiv:1805.01978
QUERIES = 256  # number of images that are compared with all training images at a time


class KnnClassifier(nn.Module):
    """Classify by a weighted vote of the training images with the most similar features.

    A neighbour with cosine similarity s votes for its target with weight exp(s / 0.07). Neighbours
    with an unknown target do not vote on that label. The output is the logit of the positive share.

    Source: Wu et al. 2018, arXiv:1805.01978.
    """

    def __init__(
        self, encoder: nn.Module, features: np.ndarray, targets: np.ndarray, num_neighbours: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_neighbours = num_neighbours
        self.register_buffer('bank', F.normalize(torch.from_numpy(features), dim=1))  # [N, F]
        self.register_buffer('targets', torch.from_numpy(targets))  # [N, K]

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, K]
        return self.votes(self.encoder.forward_features(images), [self.num_neighbours])[0]

    def votes(self, features: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:  # [G, B, K]
        """Compute the logits of features [B, F] for each number of neighbours, in float32."""
        counts = [min(count, len(self.bank)) for count in counts]
        with torch.autocast(features.device.type, enabled=False):
            chunks = features.float().split(QUERIES)
            return torch.cat([self._votes(chunk, counts) for chunk in chunks], dim=1)

    def _votes(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        similarity = F.normalize(features, dim=1) @ self.bank.T
        nearest = similarity.topk(max(counts), dim=1)  # the nearest first
        weights = ((nearest.values - 1) / KNN_TEMPERATURE).exp()[..., None]  # [B, k, 1]
        targets = self.targets[nearest.indices]  # [B, k, K]
        last = [count - 1 for count in counts]
        votes = (weights * targets.nan_to_num()).cumsum(dim=1)[:, last]  # [B, G, K]
        total = (weights * ~targets.isnan()).cumsum(dim=1)[:, last]
        share = torch.where(total > 0, votes / total, 0.5).double()
        return torch.logit(share, eps=SMALLEST_PROBABILITY).swapaxes(0, 1)


def freeze_encoder(model: nn.Module) -> None:
    """Freeze all parameters except those of the head."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith('head.'))


@torch.no_grad()
def extract_features(run: Run, model: nn.Module, loader: DataLoader) -> np.ndarray:  # [T, N, F]
    """Compute the features of each test-time view of each image, in order, on every rank.

    Raises:
        ValueError: If a feature is not finite. The message names the first such image.
    """
    model.eval()
    dataset = loader.dataset
    shape = dataset.transform.num_views, len(dataset), model.num_features
    features = np.zeros(shape, np.float32)
    for images, _, index in loader:
        for t, view in enumerate(views_of(images, run.device)):
            with autocast(run.config, run.device):
                values = model.forward_features(view)
            features[t, index.cpu().numpy()] = values.float().cpu().numpy()
    if distributed.world_size() > 1:  # each row is computed by one rank and is 0 on the others
        total = distributed.all_reduce_sum(torch.from_numpy(features).to(run.device))
        features = total.cpu().numpy()
    require_finite(features.swapaxes(0, 1), dataset)
    return features


def build_probe(run: Run, model: nn.Module, loaders: Loaders) -> nn.Module:
    """Fit the probe FINETUNE.MODE on the encoder of PRETRAINED, or on random weights.

    Args:
        run: Run with config, device, logger and record.
        model: Encoder with a linear head.
        loaders: Data loaders, of which `plain` and `holdout` are used.

    Returns:
        The model with a fitted head ('linear_probe'), or a `KnnClassifier` ('knn').

    Raises:
        ValueError: If the held-out patients lack a class of a label, or if features are not finite.
    """
    config, mode = run.config, run.config.FINETUNE.MODE
    if config.PRETRAINED:
        load_pretrained(config, model, run.logger, fit_pretrained)
    else:
        run.logger.warning(
            '--pretrained is not given, so the probe uses an encoder with random weights'
        )
    run.record.begin(None)
    _share_weights(model)
    features = extract_features(run, model, loaders.plain)[0]
    held_out = extract_features(run, model, loaders.holdout)
    targets, is_main = loaders.plain.dataset.targets, distributed.is_main()
    if mode == 'knn':
        probe = KnnClassifier(model, features, targets, max(NUM_NEIGHBOURS)).to(run.device)
        views = torch.from_numpy(held_out).to(run.device) if is_main else []
        votes = [probe.votes(view, NUM_NEIGHBOURS).cpu().numpy() for view in views]
        logits = mean_logits(votes) if is_main else []  # [G, N, K]
        probe.num_neighbours = NUM_NEIGHBOURS[_choose(run, loaders, NUM_NEIGHBOURS, logits)]
        return probe
    grid = INVERSE_PENALTIES
    heads = fit_linear_heads(features, targets, inverse_penalties=grid) if is_main else []
    logits = [mean_logits(held_out @ weight.T + bias) for weight, bias in heads]
    chosen = _choose(run, loaders, grid, logits)
    weight, bias = distributed.broadcast(heads[chosen] if is_main else None)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(bias))
    return model


def fit_linear_heads(
    features: np.ndarray, targets: np.ndarray, *, inverse_penalties: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Fit logistic regressions on standardised features and return them as linear layers.

    Newton's method needs about four steps per penalty. L-BFGS would need hundreds, because the
    variances of the features differ by orders of magnitude. A tolerance of 1e-6 for the gradient
    caused errors of up to 0.0006 in AUROCs.

    Args:
        features: Features, [N, F] float32.
        targets: Targets in [0, 1], [N, K], NaN where unknown. A soft target y counts as a positive
            with weight y and a negative with weight 1 - y.
        inverse_penalties: Values of C for LogisticRegression in ascending order.

    Returns:
        Weight [K, F] and bias [K] for the original features and each C; zeros for a label without
        both classes.
    """
    scaler = StandardScaler()
    standard = scaler.fit_transform(features.astype(np.float64))
    heads = [
        (np.zeros((targets.shape[1], features.shape[1])), np.zeros(targets.shape[1]))
        for _ in inverse_penalties
    ]
    for k, target in enumerate(targets.T):
        rows, classes, weights = weighted_pairs(target)
        if np.unique(classes).size < 2:
            continue
        known = standard[rows]
        model = LogisticRegression(solver='newton-cholesky', tol=1e-8, warm_start=True)
        for penalty, (weight, bias) in zip(inverse_penalties, heads, strict=True):
            model.set_params(C=penalty).fit(known, classes, sample_weight=weights)
            weight[k] = model.coef_[0] / scaler.scale_
            bias[k] = model.intercept_[0] - weight[k] @ scaler.mean_
    return [(weight.astype(np.float32), bias.astype(np.float32)) for weight, bias in heads]


def _share_weights(model: nn.Module) -> None:
    """Copy the weights of rank 0 to all ranks, whose seeds and random weights differ."""
    if distributed.world_size() > 1:
        for parameter in model.parameters():
            torch.distributed.broadcast(parameter.data, src=0)


def _choose(
    run: Run, loaders: Loaders, options: Sequence[float], logits: Sequence[np.ndarray]
) -> int:
    """Return the index of the option whose logits [N, K] of the held-out images score best.

    Only rank 0 needs to have the logits.
    """
    config, held_out = run.config, loaders.holdout.dataset
    mode = config.FINETUNE.MODE
    targets, studies = held_out.targets, held_out.records.study
    tables = distributed.broadcast(
        [
            score_probabilities(config, expit(values.astype(np.float64)), targets, studies)
            for values in logits
        ]
    )
    scores = [selection_score(table, config.EVAL.SELECT) for table in tables]
    if np.isnan(scores).any():
        raise ValueError(
            f'FINETUNE.MODE {mode!r} cannot be tuned with EVAL.SELECT {config.EVAL.SELECT!r}, '
            f'because the {len(held_out)} held-out images lack a class of '
            f'{", ".join(tables[0]["undefined"])}; increase DATA.HOLDOUT_FRACTION'
        )
    for option, score in zip(options, scores, strict=True):
        run.logger.info(
            f'{mode}, {option}: mean AUROC at {config.EVAL.LEVEL} level on held-out patients '
            f'{score:.4f}'
        )
    chosen = int(np.argmax(scores))
    run.logger.info(f'{mode}: selected {options[chosen]} from {list(options)}')
    if chosen in (0, len(options) - 1):
        run.logger.warning(f'{mode}: {options[chosen]} is at the edge of the grid {list(options)}')
    return chosen

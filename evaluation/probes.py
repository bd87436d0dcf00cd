"""Probes: what an encoder's frozen features tell, by a linear layer or by nearest neighbours.

Features are computed once.  The grid of a probe is small, and its best point is chosen on held-out
training patients, scored as the run is, never on what is scored in the end.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data import Loaders
from engine import distributed
from engine.device import autocast
from engine.launch import Run
from evaluation.inference import SMALLEST_PROBABILITY, mean_logits, refuse_undefined, views_of
from evaluation.metrics import selection_score
from evaluation.report import score_probabilities
from models.pretrained import fit_pretrained
from utils import load_pretrained

# ==== evaluation.pixel_floor: A floor that any trained model should beat: logistic regression on the pixels themselves.


def pixel_floor(
    train: np.ndarray,
    targets: np.ndarray,
    test: np.ndarray,
    *,
    num_components: int = 100,
    inverse_penalty: float = 0.01,
) -> np.ndarray:
    """Principal components of the pixels, whitened, and one logistic regression a label.

    Args:
        train: [N, P] pixels in [0, 1] (64 x 64 by custom).
        targets: [N, K], 1, 0, or NaN where unknown.
        test: [M, P].
        num_components: at most; never more than N.
        inverse_penalty: C of scikit-learn's LogisticRegression.

    Returns:
        [M, K] probabilities; 0.5 for a label that has not both classes in `targets`.
    """
    components = PCA(min(num_components, len(train)), whiten=True, svd_solver='full').fit(train)
    train, test = components.transform(train), components.transform(test)
    probabilities = np.full((len(test), targets.shape[1]), 0.5)
    for k in range(targets.shape[1]):
        known = ~np.isnan(targets[:, k])
        if np.unique(targets[known, k]).size == 2:
            model = LogisticRegression(C=inverse_penalty, max_iter=2000)
            model.fit(train[known], targets[known, k])
            probabilities[:, k] = model.predict_proba(test)[:, 1]
    return probabilities


# ==== probing: Probes: what an encoder's frozen features tell, by a linear layer or by nearest neighbours.
#
# Features are computed once.  The grid of a probe is small, and its best point is chosen on held-out
# training patients, scored as the run is, never on what is scored in the end.

INVERSE_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # C of scikit-learn, features standardised
NUM_NEIGHBOURS = (5, 10, 20, 50, 100, 200)
KNN_TEMPERATURE = 0.07  # Wu et al. 2018, arXiv:1805.01978
QUERIES = 256  # images compared with all others at a time
ROWS = 2**15  # of features, sent between processes at a time


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
        self.num_neighbours = num_neighbours
        self.register_buffer('bank', F.normalize(torch.from_numpy(features), dim=1))  # [N, F]
        self.register_buffer('targets', torch.from_numpy(targets))  # [N, K]

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, K]
        return self.vote(self.encoder.forward_features(images))

    def vote(self, features: torch.Tensor) -> torch.Tensor:  # [B, K]
        """Logits for features [B, F]."""
        return self.votes(features, [self.num_neighbours])[0]

    def votes(self, features: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:  # [G, B, K]
        """Logits for features [B, F] by each of these numbers of neighbours, in float32."""
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
    """Leave the head alone to be trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith('head.'))


@torch.no_grad()
def extract_features(run: Run, model: nn.Module, loader: DataLoader) -> np.ndarray:  # [T, N, F]
    """What the head would see of each view of each image, in their order, on every rank.

    Raises:
        ValueError: naming the first image for which it is not finite.
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
    if distributed.world_size() > 1:
        rows = features.reshape(-1, shape[-1])
        for start in range(0, len(rows), ROWS):  # a row is one rank's: the others add zeros
            part = rows[start : start + ROWS]
            total = distributed.all_reduce_sum(torch.from_numpy(part).to(run.device))
            part[:] = total.cpu().numpy()
    for values in features:
        refuse_undefined(values, dataset)
    return features


def build_probe(run: Run, model: nn.Module, loaders: Loaders) -> nn.Module:
    """The probe that FINETUNE.MODE names, on the encoder of PRETRAINED (or its random weights).

    Returns:
        The model with a fitted head ('linear_probe'), or a `KnnClassifier`.

    Raises:
        ValueError: if the grid's point cannot be chosen on held-out patients, a checkpoint is
            given to resume from, or features are not finite.
    """
    config, logger, mode = run.config, run.logger, run.config.FINETUNE.MODE
    _check_options(run, loaders)
    if config.PRETRAINED:
        load_pretrained(config, model, logger, fit_pretrained)
    else:
        logger.warning('no --pretrained: the probe is of an encoder with random weights')
    run.record.begin(None)
    _share_weights(model)
    features = extract_features(run, model, loaders.plain)[0]
    held_out = extract_features(run, model, loaders.holdout)
    targets, is_main = loaders.plain.dataset.targets, distributed.is_main()
    if mode == 'knn':
        probe = KnnClassifier(model, features, targets, max(NUM_NEIGHBOURS)).to(run.device)
        logits = _vote_for_views(probe, held_out, run.device) if is_main else []
        probe.num_neighbours = NUM_NEIGHBOURS[_choose(run, loaders, NUM_NEIGHBOURS, logits)]
        return probe
    penalties = INVERSE_PENALTIES
    heads = fit_linear_heads(features, targets, inverse_penalties=penalties) if is_main else []
    logits = [mean_logits(held_out @ weight.T + bias) for weight, bias in heads]
    chosen = _choose(run, loaders, penalties, logits)
    weight, bias = distributed.broadcast(heads[chosen] if is_main else None)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(bias))
    return model


def fit_linear_heads(
    features: np.ndarray, targets: np.ndarray, *, inverse_penalties: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logistic regressions on standardised features, as weights of a linear layer.

    What scikit-learn's LogisticRegression minimises, for all labels at once: a product with the
    features serves them all.  Steps are taken in the features' principal axes, each as long as
    the curvature along it is small, so that few are needed whatever the penalty.

    Args:
        features: [N, F] float32.
        targets: [N, K] in [0, 1]; NaN where unknown. A soft target counts as both classes, each
            with its share.
        inverse_penalties: C of LogisticRegression, one for each result.

    Returns:
        weight [K, F] and bias [K] for the features as they are; zeros for a label without both
        classes.
    """
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    standard = features - mean
    std = np.sqrt(np.einsum('nf,nf->f', standard, standard, dtype=np.float64) / len(standard))
    std = np.where(std > 0, std, 1).astype(np.float32)
    standard /= std
    known = ~np.isnan(targets)
    counts = known.sum(axis=0)
    share = np.nansum(targets, axis=0, dtype=np.float64) / np.maximum(counts, 1)
    fitted = (share > 0) & (share < 1)
    problem = _Logistic(standard, targets[:, fitted], (counts * share * (1 - share))[fitted])
    heads = []
    for penalty in inverse_penalties:
        weight = np.zeros((targets.shape[1], features.shape[1]), np.float32)
        bias = np.zeros(targets.shape[1], np.float32)
        if fitted.any():
            slopes, bias[fitted] = problem.minimum(penalty)
            weight[fitted] = slopes.T / std
            bias -= weight @ mean
        heads.append((weight, bias))
    return heads


class _Logistic:
    """Penalised logistic regressions of several labels on the same standardised features.

    Args:
        features: [N, F] float32.
        targets: [N, K] in [0, 1]; NaN where unknown.
        mass: [K], about the sum of p (1 - p), the curvature of a label's loss.
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray, mass: np.ndarray) -> None:
        self.features = features
        self.known = ~np.isnan(targets)
        self.targets = np.nan_to_num(targets).astype(np.float64)
        self.mass = mass
        second_moment = (features.T @ features).astype(np.float64) / len(features)
        variance, self.axes = np.linalg.eigh(second_moment)
        self.variance = np.maximum(variance, 0)

    def minimum(self, inverse_penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights [F, K] and biases [K]."""
        curvature = self.variance[:, None] * self.mass + 1 / inverse_penalty
        steps = np.vstack([curvature, self.mass]) ** -0.5  # [F + 1, K], the last of the biases

        def unfold(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            scaled = point.reshape(steps.shape) * steps
            return self.axes @ scaled[:-1], scaled[-1]

        def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
            weight, bias = unfold(point)
            logits = (self.features @ weight.astype(np.float32)).astype(np.float64) + bias
            losses = np.logaddexp(0, logits) - self.targets * logits
            error = (expit(logits) - self.targets) * self.known
            slope = self.features.T @ error.astype(np.float32) + weight / inverse_penalty
            gradient = np.vstack([self.axes.T @ slope, error.sum(axis=0)]) * steps
            penalty = (weight**2).sum() / (2 * inverse_penalty)
            return losses[self.known].sum() + penalty, gradient.ravel()

        # In these coordinates the curvature is about 1: a gradient is a distance to the minimum.
        options = {'gtol': 1e-3, 'ftol': 1e-10}
        found = minimize(loss, np.zeros(steps.size), jac=True, method='L-BFGS-B', options=options)
        return unfold(found.x)


def _check_options(run: Run, loaders: Loaders) -> None:
    """Refuse what a probe cannot do, and say what has no effect on it."""
    config, mode = run.config, run.config.FINETUNE.MODE
    if loaders.holdout is None:
        raise ValueError(
            f'FINETUNE.MODE {mode!r} chooses its grid on held-out patients: '
            'DATA.HOLDOUT_FRACTION must be above 0'
        )
    if config.MODEL.RESUME:
        raise ValueError(
            f'MODEL.RESUME {config.MODEL.RESUME}: there is nothing to resume with FINETUNE.MODE '
            f'{mode!r}; name the encoder to probe with --pretrained'
        )
    if config.EVAL.SELECT_ON == 'valid':
        run.logger.warning(
            f'EVAL.SELECT_ON valid has no effect with FINETUNE.MODE {mode}: its grid is chosen on '
            'held-out patients'
        )


def _share_weights(model: nn.Module) -> None:
    """Rank 0's weights on every rank: random ones differ, for each rank has its own seed."""
    if distributed.world_size() > 1:
        for parameter in model.parameters():
            torch.distributed.broadcast(parameter.data, src=0)


def _vote_for_views(
    probe: KnnClassifier, features: np.ndarray, device: torch.device
) -> list[np.ndarray]:
    """Logits [N, K] by each of NUM_NEIGHBOURS, of the mean over the views of features [T, N, F]."""
    views = [probe.votes(torch.from_numpy(view).to(device), NUM_NEIGHBOURS) for view in features]
    return list(mean_logits([view.cpu().numpy() for view in views]))


def _choose(
    run: Run, loaders: Loaders, options: Sequence[float], logits: Sequence[np.ndarray]
) -> int:
    """Position of the option whose logits [N, K] of the held-out images, on rank 0, are best."""
    config, held_out = run.config, loaders.holdout.dataset
    mode, scores, undefined = config.FINETUNE.MODE, [], []
    for values in logits:
        probabilities = expit(values.astype(np.float64))
        studies = held_out.records.study
        table = score_probabilities(config, probabilities, held_out.targets, studies)
        undefined = table['undefined']
        scores.append(selection_score(table, config.EVAL.SELECT))
    scores, undefined = distributed.broadcast((scores, undefined))
    if np.isnan(scores).any():
        raise ValueError(
            f'FINETUNE.MODE {mode!r} cannot choose its grid by EVAL.SELECT {config.EVAL.SELECT!r}: '
            f'the {len(held_out)} held-out images have not both classes of '
            f'{", ".join(undefined)}; raise DATA.HOLDOUT_FRACTION'
        )
    for option, score in zip(options, scores, strict=True):
        run.logger.info(
            f'{mode}, {option}: mean AUROC at {config.EVAL.LEVEL} level on held-out patients '
            f'{score:.4f}'
        )
    chosen = int(np.argmax(scores))
    run.logger.info(f'{mode}: chosen {options[chosen]} of {list(options)}')
    return chosen

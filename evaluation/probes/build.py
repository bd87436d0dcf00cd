"""Probes of frozen features: logistic regression, nearest neighbours, and an attention head.

FINETUNE.MODE 'pixels' fits the pixel baseline, which a trained model should beat: a regression on
the pixels of small images, without an encoder. 'metadata' fits one that sees no image at all
(`evaluation.probes.metadata`).

Features are computed once, for the training images that the share of labels leaves. The
hyperparameter of each label is chosen among them by cross-validation, and the probe is then fitted
to all of them (`evaluation.tuning`). Held-out patients are not used, so that the thresholds and
temperatures that are chosen on them later belong to images that the probe has not seen.

The features are the mean over the tokens of the last stage, which discards where a token lies. The
attentive probe (`evaluation.probes.attentive`) takes all tokens.
"""

import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from scipy.special import entr, log_expit
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from config import config_text
from data.loader import Loaders, XrayDataset, make_loader
from data.tables.metadata import NAMES
from data.tables.records import task_of
from engine.run import Run
from evaluation.inference import patient_inputs, require_finite
from evaluation.probes.attentive import RATES, fit_attention_head
from evaluation.probes.features import batch_features
from evaluation.probes.metadata import read_metadata
from evaluation.tuning import (
    INVERSE_PENALTIES,
    Choice,
    choose,
    choose_lowest,
    fit_linear,
    log_choices,
    patient_folds,
)
from models.classifier_heads import CLASSIFIER_HEADS, build_classifier_head
from models.losses import default_loss
from system import distributed
from system.downloads import LINEAGE
from system.files import BEST_CHECKPOINT
from utils import load_pretrained, save_checkpoint

NUM_NEIGHBOURS = (5, 10, 20, 50, 100, 200, 500, 1000)
PLAIN_NUM_NEIGHBOURS = 50  # for labels that a cross-validation cannot tune
SMALLEST_SHARE = 1e-12  # of votes, before it becomes a logit
KNN_TEMPERATURE = 0.07  # Wu et al. 2018, arXiv:1805.01978
EXCHANGED = 1024  # images whose features the processes exchange at a time
MIB = 2**20
# Side of the images of the pixel baseline, and its largest number of training images and of
# principal components.
SIDE_PX, MOST_IMAGES, MOST_COMPONENTS = 64, 20_000, 100
SAVED = ('linear_probe', 'attentive_probe')  # modes whose result is a head on the encoder
QUERIES = 256  # number of images that are compared with all training images at a time


class KnnClassifier(nn.Module):
    """Classify by a weighted vote of the training images with the most similar features.

    A neighbour with cosine similarity s votes for its target with weight exp(s / 0.07). Neighbours
    with an unknown target do not vote on that label. The output is the logit of the positive share.
    Each label has its own number of neighbours, [K]. For classes, which share it, the output is the
    logarithm of the share.

    Source: Wu et al. 2018, arXiv:1805.01978.
    """

    def __init__(
        self,
        encoder: nn.Module,
        features: np.ndarray,
        targets: np.ndarray,
        num_neighbours: Sequence[int],
        *,
        exclusive: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_neighbours, self.exclusive = num_neighbours, exclusive
        self.register_buffer('bank', F.normalize(torch.from_numpy(features), dim=1))  # [N, F]
        self.register_buffer('targets', torch.from_numpy(targets))  # [N, K]

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, K]
        counts = sorted({*self.num_neighbours})
        votes = self.votes(self.encoder.forward_features(images), counts)  # [G, B, K]
        columns = [votes[counts.index(count), :, k] for k, count in enumerate(self.num_neighbours)]
        logits = torch.stack(columns, dim=1)
        return F.logsigmoid(logits) if self.exclusive else logits

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
        weighted = weights * targets.nan_to_num(), weights * ~targets.isnan()  # [B, k, K]
        # On a GPU, a cumulative sum is not deterministic.
        votes, total = (
            torch.stack([values[:, :count].sum(1) for count in counts], 1) for values in weighted
        )  # [B, G, K]
        share = torch.where(total > 0, votes / total, 0.5).double()
        return torch.logit(share, eps=SMALLEST_SHARE).swapaxes(0, 1)


class LinearClassifier(nn.Module):
    """A linear layer on F numbers per case: pixels [B, 1, SIDE_PX, SIDE_PX] or metadata [B, F]."""

    def __init__(self, num_features: int, num_labels: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.head = nn.Linear(num_features, num_labels)

    def forward_features(self, inputs: torch.Tensor) -> torch.Tensor:  # [B, F]
        return inputs.flatten(1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:  # [B, K]
        return self.head(self.forward_features(inputs))


def extract_features(
    run: Run, model: nn.Module, loader: DataLoader, *, tokens: bool = False
) -> np.ndarray:
    """Compute the features [N, F] of each image, in order, on every rank; or its tokens [N, L, F].

    Raises:
        ValueError: If a feature is not finite; the message names the first such image. Also if the
            tokens do not fit into the memory.
    """
    model.eval()
    dataset, shape = loader.dataset, (model.num_features,)
    if tokens:
        shape = (model.output_side**2, model.num_features)
        _check_memory(4 * len(dataset) * math.prod(shape))
    features = np.zeros((len(dataset), *shape), np.float32)
    for images, _, index in loader:
        features[index.cpu().numpy()] = batch_features(model, images, run.device, tokens=tokens)
    if distributed.world_size() > 1:  # each row is computed by one rank and is 0 on the others
        for start in range(0, len(features), EXCHANGED):
            rows = torch.from_numpy(features[start : start + EXCHANGED])
            rows.copy_(distributed.all_reduce_sum(rows.to(run.device)))
    require_finite(features, dataset)
    return features


def _check_memory(needed: int) -> None:
    """Raise a ValueError if the tokens of all images would fill most of the machine's memory."""
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    given = MIB * int(os.environ.get('SLURM_MEM_PER_NODE', 0))  # to a job with --mem
    memory = min(memory, given or memory)
    if needed * int(os.environ.get('LOCAL_WORLD_SIZE', '1')) > memory / 2:
        raise ValueError(
            f'FINETUNE.MODE attentive_probe keeps {needed / 1e9:.1f} GB of tokens in memory per '
            f'process, and {memory / 1e9:.1f} GB are available: use fewer labelled images '
            '(DATA.TRAIN_IMAGES), or FINETUNE.MODE last_layer with MODEL.HEAD attention'
        )


def build_probe(run: Run, model: nn.Module, loaders: Loaders) -> tuple[nn.Module, dict[str, float]]:
    """Fit the probe FINETUNE.MODE on the encoder of PRETRAINED, random weights, or no encoder.

    Rank 0 chooses and fits, and the other ranks receive the result. The checkpoint of a model with
    a fitted head (SAVED) is BEST_CHECKPOINT, as that of a fine-tuning.

    Args:
        run: Run with config, device, folder, logger and record.
        model: Encoder with a head.
        loaders: Data loaders, of which `plain` is used. With 'pixels', all load small images then,
            and with 'metadata' the numbers of `evaluation.probes.metadata`.

    Returns:
        The model with a fitted head, a `KnnClassifier` ('knn') or a `LinearClassifier` ('pixels',
        'metadata'), and the chosen hyperparameter of each label.

    Raises:
        ValueError: If features are not finite.
    """
    config, task = run.config, task_of(run.config)
    mode, loader = config.FINETUNE.MODE, loaders.plain
    if mode == 'pixels':
        model = LinearClassifier(SIDE_PX**2, len(task.labels)).to(run.device)
        loader = small_images(run, loaders)
    elif mode == 'metadata':
        model = LinearClassifier(len(NAMES), len(task.labels)).to(run.device)
        read_metadata(run, loaders)
    elif config.PRETRAINED:
        weights = load_pretrained(config, model, run.logger)
        run.lineage.start_from(config.PRETRAINED, weights, run.logger)
    else:
        run.logger.warning(
            '--pretrained is not given, so the probe uses an encoder with random weights'
        )
    run.record.begin(None)
    if distributed.world_size() > 1:  # the seeds and random weights of the ranks differ
        for parameter in model.parameters():
            torch.distributed.broadcast(parameter.data, src=0)
    takes_tokens = mode == 'attentive_probe'
    features = extract_features(run, model, loader, tokens=takes_tokens)
    dataset = loader.dataset
    if (patient := patient_inputs(config, dataset)) is not None:
        standard = model.head.standard(patient.to(run.device)).cpu().numpy()
        features = np.concatenate([features, standard], axis=1)
    known = features, dataset.targets, dataset.records.patient
    targets = dataset.targets
    if takes_tokens:
        state, choice = distributed.run_on_main(lambda: _fit_attention(run, model, known))
        model.head.load_state_dict(state)
        probe, grid, choices = model, RATES, [choice] * targets.shape[1]
    elif mode == 'knn':
        choices = distributed.run_on_main(
            lambda: choose_neighbours(*known, run.device, exclusive=task.exclusive)
        )
        counts = [choice.value for choice in choices]
        probe = KnnClassifier(model, features, targets, counts, exclusive=task.exclusive)
        probe, grid = probe.to(run.device), NUM_NEIGHBOURS
    else:
        fit = fit_pixels if mode == 'pixels' else fit_linear_head
        weight, bias, choices = distributed.run_on_main(
            lambda: fit(*known, exclusive=task.exclusive)
        )
        with torch.no_grad():
            model.head.weight.copy_(torch.from_numpy(weight))
            model.head.bias.copy_(torch.from_numpy(bias))
        probe, grid = model, INVERSE_PENALTIES
    if mode in SAVED and distributed.is_main():
        contents = {'model': probe.state_dict(), 'config': config_text(config)}
        contents[LINEAGE] = run.lineage.contents()
        save_checkpoint(run.folder / BEST_CHECKPOINT, contents)
    chosen = dict(zip(task.labels, choices, strict=True))
    return probe, log_choices(run.logger, mode, chosen, grid)


def small_images(run: Run, loaders: Loaders) -> DataLoader:
    """Let all loaders read small images, and return a loader of training images.

    More than MOST_IMAGES training images are subsampled at equal distances.
    """
    for loader in filter(None, loaders):
        loader.dataset.transform = small_image
    every = loaders.plain.dataset
    rows = np.linspace(0, len(every) - 1, min(len(every), MOST_IMAGES)).round().astype(int)
    some = XrayDataset(
        every.records.select(rows), small_image, seed=run.config.SEED, targets=every.targets[rows]
    )
    return make_loader(some, run.config, shuffle=False)


def small_image(image: Image.Image, _rng: np.random.Generator) -> torch.Tensor:
    """Reduce an image to [1, SIDE_PX, SIDE_PX] in [0, 1], without preprocessing."""
    small = np.array(image.resize((SIDE_PX, SIDE_PX)), np.float32)
    return torch.from_numpy(small[None] / 255)


def fit_pixels(
    pixels: np.ndarray,
    targets: np.ndarray,
    patients: np.ndarray,
    *,
    exclusive: bool = False,
) -> tuple[np.ndarray, np.ndarray, list[Choice]]:
    """Fit a linear model on principal components of pixels [N, P], and return it as a linear layer.

    The number of components is at most half the number of images, and components without variance
    are dropped. There is no whitening, because it would amplify noise. The components keep where
    a pixel lies, which the mean over tokens of a probe does not.

    Other arguments are as in `evaluation.tuning.fit_linear`. Returns weight [K, P] and bias [K],
    which are 0 for a finding without both classes in the targets, in float32, and the choice of C
    for each label.
    """
    components = PCA(min(MOST_COMPONENTS, len(pixels) // 2), svd_solver='full')
    reduced = components.fit_transform(pixels)
    variances = components.explained_variance_
    kept = int((variances > np.finfo(variances.dtype).eps * variances[:1]).sum())
    weight, bias, choices = fit_linear(reduced[:, :kept], targets, patients, exclusive=exclusive)
    weight = weight @ components.components_[:kept]
    bias = bias - weight @ components.mean_
    return weight.astype(np.float32), bias.astype(np.float32), choices


def fit_linear_head(
    features: np.ndarray,
    targets: np.ndarray,
    patients: np.ndarray,
    *,
    exclusive: bool = False,
) -> tuple[np.ndarray, np.ndarray, list[Choice]]:
    """Fit a linear model on standardised features and return it as a linear layer.

    Arguments are as in `evaluation.tuning.fit_linear`. Returns weight [K, F] and bias [K] for the
    original features in float32, and the choice of C for each label.
    """
    scaler = StandardScaler()
    standard = scaler.fit_transform(features.astype(np.float64))
    weight, bias, choices = fit_linear(standard, targets, patients, exclusive=exclusive)
    weight = weight / scaler.scale_
    return weight.astype(np.float32), (bias - weight @ scaler.mean_).astype(np.float32), choices


def choose_neighbours(
    features: np.ndarray,
    targets: np.ndarray,
    patients: np.ndarray,
    device: torch.device,
    *,
    exclusive: bool = False,
) -> list[Choice]:
    """Choose the number of neighbours of each label, as `evaluation.tuning` chooses C.

    Classes share the number, so that their shares of the votes have the sum 1.
    """
    fold = patient_folds(targets, patients)
    logits = out_of_fold_votes(features, targets, fold, NUM_NEIGHBOURS, device)
    if exclusive:
        known = ~np.isnan(targets).any(axis=1)
        constant = entr(targets[known].mean(axis=0)).sum()
        losses = (-(targets * log_expit(values))[known].sum(axis=1).mean() for values in logits)
        options = {'constant': constant, 'plain': PLAIN_NUM_NEIGHBOURS}
        return [choose_lowest(NUM_NEIGHBOURS, losses, **options)] * targets.shape[1]
    return [
        choose(NUM_NEIGHBOURS, logits[..., k], target=target, fold=fold, plain=PLAIN_NUM_NEIGHBOURS)
        for k, target in enumerate(targets.T)
    ]


def out_of_fold_votes(
    features: np.ndarray,
    targets: np.ndarray,
    fold: np.ndarray,
    counts: Sequence[int],
    device: torch.device,
) -> np.ndarray:
    """Compute the logits [G, N, K] by neighbours of other folds, for each number of neighbours."""
    logits = np.zeros((len(counts), *targets.shape))
    for number in np.unique(fold):
        in_fold = fold == number
        if in_fold.all():
            continue
        others = KnnClassifier(nn.Identity(), features[~in_fold], targets[~in_fold], ()).to(device)
        votes = others.votes(torch.from_numpy(features[in_fold]).to(device), counts)
        logits[:, in_fold] = votes.cpu().numpy()
    return logits


def _fit_attention(
    run: Run, model: nn.Module, known: tuple[np.ndarray, ...]
) -> tuple[dict[str, torch.Tensor], Choice]:
    """Return the state of a fitted attention head on the CPU, and the choice."""
    task, targets = task_of(run.config), known[1]

    def make_head() -> nn.Module:
        outputs = len(model.head.weight)
        name = run.config.MODEL.HEAD
        options = CLASSIFIER_HEADS.options_of(name, run.config)
        return build_classifier_head(model.num_features, outputs, name, options)

    loss_fn = default_loss(task, targets)
    options = {'loss_fn': loss_fn, 'device': run.device, 'seed': run.config.SEED}
    head, choice = fit_attention_head(make_head, *known, **options)
    return {key: value.cpu() for key, value in head.state_dict().items()}, choice

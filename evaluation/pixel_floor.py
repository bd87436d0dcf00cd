"""Baseline for any trained model: logistic regressions on the pixels of small images."""

import numpy as np
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from config import Config
from data.loader import XrayDataset, make_loader
from engine import distributed

# Side of the images, largest number of training images and of principal components, and C of
# scikit-learn's LogisticRegression.
FLOOR_SIDE_PX, FLOOR_IMAGES, FLOOR_COMPONENTS, FLOOR_INVERSE_PENALTY = 64, 20_000, 100, 0.01


def read_pixels(
    config: Config, dataset: XrayDataset, limit: int = FLOOR_IMAGES
) -> tuple[np.ndarray, np.ndarray]:
    """Read small images without preprocessing, in order, on every rank.

    A data set with more than `limit` images is subsampled at equal distances.

    Returns:
        Pixels in [0, 1], [N, P], and targets [N, K].
    """
    rows = np.linspace(0, len(dataset) - 1, min(len(dataset), limit)).round().astype(int)
    small = XrayDataset(
        dataset.records.select(rows),
        _small_image,
        seed=config.SEED,
        targets=dataset.targets[rows],
        bad_images=dataset.bad_images,
    )
    # The tensors are copied, because each tensor from a worker keeps a file open.
    loader = make_loader(small, config, shuffle=False)
    batches = [[column.numpy().copy() for column in batch] for batch in loader]
    parts = [[np.concatenate(column) for column in zip(*batches, strict=True)]] if batches else []
    parts = [part for of_rank in distributed.gather(parts) for part in of_rank]
    pixels, targets, index = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(index, kind='stable')
    return pixels[order].astype(np.float32) / 255, targets[order]


def pixel_floor(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, int]:
    """Fit a logistic regression on principal components for each label.

    The number of components is at most half the number of images, and components without variance
    are dropped. There is no whitening, because it would amplify noise.

    Args:
        train: Pixels of the training images in [0, 1], [N, P].
        targets: Targets in [0, 1], [N, K], NaN where unknown. Soft targets are used as in
            `evaluation.probes.fit_linear_heads`. Values above 1 (a third class) count as unknown.
        test: Pixels of the images to score, [M, P].

    Returns:
        Probabilities [M, K], 0.5 for a label without both classes in `targets`, and the number of
        components.
    """
    components = PCA(min(FLOOR_COMPONENTS, len(train) // 2), svd_solver='full')
    reduced = components.fit_transform(train)
    variances = components.explained_variance_
    kept = int((variances > np.finfo(variances.dtype).eps * variances[:1]).sum())
    reduced, test = reduced[:, :kept], components.transform(test)[:, :kept]
    probabilities = np.full((len(test), targets.shape[1]), 0.5)
    for k, target in enumerate(np.where(targets > 1, np.nan, targets).T):
        rows, classes, weights = weighted_pairs(target)
        if kept and np.unique(classes).size == 2:
            model = LogisticRegression(C=FLOOR_INVERSE_PENALTY, max_iter=2000)
            model.fit(reduced[rows], classes, sample_weight=weights)
            probabilities[:, k] = model.predict_proba(test)[:, 1]
    return probabilities, kept


def weighted_pairs(target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, classes (0 or 1) and weights. A soft target gives one entry for each class."""
    positive, negative = np.flatnonzero(target > 0), np.flatnonzero(target < 1)  # False for NaN
    rows = np.concatenate([positive, negative])
    weights = np.concatenate([target[positive], 1 - target[negative]])
    return rows, np.repeat([1, 0], [positive.size, negative.size]), weights


def _small_image(image: Image.Image, _rng: np.random.Generator) -> np.ndarray:
    """Resize an image to FLOOR_SIDE_PX x FLOOR_SIDE_PX and flatten it to one uint8 row."""
    return np.array(image.resize((FLOOR_SIDE_PX, FLOOR_SIDE_PX))).ravel()

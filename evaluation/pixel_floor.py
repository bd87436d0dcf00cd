"""The pixel floor: logistic regressions on small images, a baseline for any trained model."""

import numpy as np
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from config import Config
from data.loader import XrayDataset, make_loader
from engine import distributed

# Of the pixel floor: side of the images, greatest number of training images and of components, and
# C of scikit-learn.
FLOOR_SIDE_PX, FLOOR_IMAGES, FLOOR_COMPONENTS, FLOOR_INVERSE_PENALTY = 64, 20_000, 100, 0.01


def read_pixels(
    config: Config, dataset: XrayDataset, limit: int = FLOOR_IMAGES
) -> tuple[np.ndarray, np.ndarray]:
    """Read the images of the pixel floor, on every rank, in order.

    Of more images than `limit`, as many at equal distances are read.

    Returns:
        Pixels [N, P] in [0, 1] of the images without preprocessing, and targets [N, K].
    """
    rows = np.linspace(0, len(dataset) - 1, min(len(dataset), limit)).round().astype(int)
    small = XrayDataset(
        dataset.records.select(rows),
        _small_image,
        seed=config.SEED,
        targets=dataset.targets[rows],
        bad_images=dataset.bad_images,
    )
    # Copies, because each tensor of a worker keeps a file open.
    loader = make_loader(small, config, shuffle=False)
    batches = [[column.numpy().copy() for column in batch] for batch in loader]
    parts = [[np.concatenate(column) for column in zip(*batches, strict=True)]] if batches else []
    parts = [part for of_rank in distributed.gather(parts) for part in of_rank]
    pixels, targets, index = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(index, kind='stable')
    return pixels[order].astype(np.float32) / 255, targets[order]


def pixel_floor(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, int]:
    """Fit logistic regressions on principal components: a baseline for any trained model.

    There are at most half as many components as images, and none without variance. They keep the
    scale of the pixels: whitening would scale noise up to the signal.

    Args:
        train: [N, P] pixels in [0, 1], usually of 64 x 64 images.
        targets: [N, K] in [0, 1]; NaN where unknown. Soft targets and values above 1 (a third
            class) are treated as in `evaluation.probes.fit_linear_heads`, and as unknown.
        test: [M, P].

    Returns:
        [M, K] probabilities, 0.5 for a label without both classes in `targets`; and the number of
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
    """Rows, classes 0 or 1, and weights; a soft target gives one row of each class."""
    positive, negative = np.flatnonzero(target > 0), np.flatnonzero(target < 1)  # False for NaN
    rows = np.concatenate([positive, negative])
    weights = np.concatenate([target[positive], 1 - target[negative]])
    return rows, np.repeat([1, 0], [positive.size, negative.size]), weights


def _small_image(image: Image.Image, _rng: np.random.Generator) -> np.ndarray:
    """An image of FLOOR_SIDE_PX x FLOOR_SIDE_PX as one row, uint8."""
    return np.array(image.resize((FLOOR_SIDE_PX, FLOOR_SIDE_PX))).ravel()

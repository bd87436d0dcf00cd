"""Baseline for any trained model: a linear model of the pixels of small images."""

import numpy as np
from PIL import Image
from sklearn.decomposition import PCA

from config import Config
from data.loader import XrayDataset, make_loader
from evaluation.tuning import Choice, fit_linear
from system import distributed

# Side of the images, and largest number of training images and of principal components.
FLOOR_SIDE_PX, FLOOR_IMAGES, FLOOR_COMPONENTS = 64, 20_000, 100


def read_pixels(
    config: Config, dataset: XrayDataset, limit: int = FLOOR_IMAGES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read small images without preprocessing, in order, on every rank.

    A data set with more than `limit` images is subsampled at equal distances.

    Returns:
        Pixels in [0, 1], [N, P], targets [N, K] and patients [N].
    """
    rows = np.linspace(0, len(dataset) - 1, min(len(dataset), limit)).round().astype(int)
    small = XrayDataset(
        dataset.records.select(rows),
        _small_image,
        seed=config.SEED,
        targets=dataset.targets[rows],
    )
    # The tensors are copied, because each tensor from a worker keeps a file open.
    loader = make_loader(small, config, shuffle=False)
    batches = [[column.numpy().copy() for column in batch] for batch in loader]
    parts = [[np.concatenate(column) for column in zip(*batches, strict=True)]] if batches else []
    parts = [part for of_rank in distributed.gather(parts) for part in of_rank]
    pixels, targets, index = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(index, kind='stable')
    return pixels[order].astype(np.float32) / 255, targets[order], small.records.patient


def pixel_floor(
    train: np.ndarray,
    targets: np.ndarray,
    patients: np.ndarray,
    test: np.ndarray,
    *,
    exclusive: bool = False,
) -> tuple[np.ndarray, int, list[Choice]]:
    """Fit a linear model on principal components, with its own C.

    The number of components is at most half the number of images, and components without variance
    are dropped. There is no whitening, because it would amplify noise. The components keep where
    a pixel lies, which the mean over tokens that `evaluation.probes` uses does not.

    Args:
        train: Pixels of the training images in [0, 1], [N, P].
        targets: Targets [N, K], NaN where unknown, as `evaluation.tuning.fit_linear` takes them.
        patients: Patients of the training images, [N].
        test: Pixels of the images to score, [M, P].
        exclusive: Whether the labels are classes.

    Returns:
        Logits [M, K], which are 0 for a finding without both classes in `targets`, the number of
        components, and the choice of C for each label.
    """
    components = PCA(min(FLOOR_COMPONENTS, len(train) // 2), svd_solver='full')
    reduced = components.fit_transform(train)
    variances = components.explained_variance_
    kept = int((variances > np.finfo(variances.dtype).eps * variances[:1]).sum())
    weight, bias, choices = fit_linear(reduced[:, :kept], targets, patients, exclusive=exclusive)
    return components.transform(test)[:, :kept] @ weight.T + bias, kept, choices


def _small_image(image: Image.Image, _rng: np.random.Generator) -> np.ndarray:
    """Resize an image to FLOOR_SIDE_PX x FLOOR_SIDE_PX and flatten it to one uint8 row."""
    return np.array(image.resize((FLOOR_SIDE_PX, FLOOR_SIDE_PX))).ravel()

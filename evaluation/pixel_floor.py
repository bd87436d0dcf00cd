"""A floor that any trained model should beat: logistic regression on the pixels themselves."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression


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

"""Targets of uncertain labels: one value for all images, a draw for each, or a prediction."""

import numpy as np

# Target of an uncertain label under 'multiclass': neither positive nor negative.
UNCERTAIN_CLASS = 2.0
# Policy -> the target of every uncertain label; NaN is left out of the loss.
# Source: Irvin et al. 2019, arXiv:1901.07031 (U-Zeros, U-Ones, U-Ignore, U-MultiClass).
FIXED = {'zeros': 0.0, 'ones': 1.0, 'ignore': np.nan, 'multiclass': UNCERTAIN_CLASS}
# Policy -> the range that each image's target is drawn from.
# Source: Pham et al. 2019, arXiv:1911.06475 (U-Zeros+LSR, U-Ones+LSR).
SMOOTH = {'zeros_smooth': (0.0, 0.3), 'ones_smooth': (0.55, 0.85)}
# 'self_train': what a model trained with 'ignore' predicts (Irvin et al. 2019, U-SelfTrained).
POLICIES = ('zeros', 'ones', 'ignore', *SMOOTH, 'multiclass', 'self_train')


def smooth_targets(policy: str, rows: np.ndarray, *, seed: int, label: int) -> np.ndarray:
    """Draw the targets of one label, each a function of (seed, row, label) alone.

    Args:
        policy: 'zeros_smooth' or 'ones_smooth'.
        rows: [N] sample ids, 0 or greater, in any order.
        seed: SEED of the config, 0 or greater.
        label: position in LABELS.

    Returns:
        [N], uniform over the policy's range.
    """
    if not len(rows):
        return np.empty(0)
    # Row r takes the r-th number of a stream that none of data/sampling.py meets (3).
    bits = np.random.Philox(key=[seed, label], counter=[0, 0, 3, 0]).random_raw(int(rows.max()) + 1)
    low, high = SMOOTH[policy]
    return low + (high - low) * ((bits[rows] >> np.uint64(11)) * 2.0**-53)


def predicted_targets(predictions: np.ndarray, rows: np.ndarray, *, name: str) -> np.ndarray:
    """The predictions of one label as targets.

    Args:
        predictions: [N] of the images where the label is uncertain.
        rows: [N] sample ids of these images, for messages.
        name: of the label, for messages.

    Raises:
        ValueError: at the first that is missing or no probability.
    """
    allowed = (predictions >= 0) & (predictions <= 1)
    if not allowed.all():
        first = int(np.argmin(allowed))
        raise ValueError(
            f'DATA.SELF_TRAIN_PREDICTIONS: for {name}, uncertain in row {rows[first] + 2} of the '
            f"training CSV (the header is row 1), 'self_train' needs a prediction from 0 to 1, "
            f'got {predictions[first]}'
        )
    return predictions

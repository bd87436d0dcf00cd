"""Bootstrap over patients: resamples that all scores share, and the intervals they give."""

from collections.abc import Sequence

import numpy as np


class Resamples:
    """Patients drawn with replacement, as many as there are; images of one stay together.

    The same draws serve every subset of the patients' rows (subgroups) and every model (paired
    differences). They depend on the seed and the set of patients, not on the order of rows.

    Args:
        patients: names, a row each; repetitions do not matter.
        resamples: number of draws R.
        seed: of a Philox stream.
    """

    def __init__(self, patients: Sequence[str], *, resamples: int, seed: int) -> None:
        names = sorted(set(patients))
        self._column = {name: column for column, name in enumerate(names)}
        rng = np.random.Generator(np.random.Philox(seed))
        # One byte: that one of many patients is drawn 256 times does not happen.
        self._counts = np.empty((resamples, len(names)), dtype=np.uint8)
        for counts in self._counts:
            drawn = rng.integers(len(names), size=len(names))
            counts[:] = np.bincount(drawn, minlength=len(names))

    def weights(self, patients: Sequence[str]) -> np.ndarray:
        """How often each resample holds the patients of these rows.

        Args:
            patients: [M] names, in any order, with repetitions.

        Returns:
            [R, M] uint8.
        """
        unknown = sorted(set(patients) - self._column.keys())
        if unknown:
            raise ValueError(f'patient {unknown[0]!r} is not one of those resampled')
        return self._counts.take([self._column[name] for name in patients], axis=1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of a score's resamples.

    Args:
        values: [R], NaN where a resample leaves the score undefined.

    Returns:
        2.5 and 97.5 percentile of the defined values; NaN if fewer than 95 % are defined.
    """
    defined = values[~np.isnan(values)]
    if not defined.size or defined.size / len(values) < 0.95:
        return float('nan'), float('nan')
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)

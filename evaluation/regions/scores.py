"""Scores of one map against the region of a case, and the maps that need no model.

A map has any number of cells and belongs to a part of the image, its view. It is enlarged
bilinearly to the image on which the region was drawn, and its values are scaled to [0, 1] unless
they are shares. Outside the view, where the model saw nothing, it has its lowest value.

Source of hit rate and IoU: Saporta et al. 2022, Nature Machine Intelligence 4, 867-878.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.tables.folds import folds_of
from evaluation.regions.regions import Size

LEVELS = 2**16  # to which values are rounded down to count the pixels above thresholds
BINS = 2**8  # of Otsu's histogram
# From these on, values are in the marked region; one is chosen on other patients.
THRESHOLDS = np.arange(1, 32) / 32
# Predicted shares keep their size, and those of a small region may all be far below 1/32.
SHARE_THRESHOLDS = np.concatenate([2.0 ** np.arange(-11, -5, 0.5), THRESHOLDS])
FOLDS = 5  # of patients, for the choice of the threshold
PRIOR_CELLS = 64  # along a side of the maps that need no model
CENTRE_SPREAD = 0.25  # standard deviation of the map of the centre, as a share of the side
RANDOM_CELLS = 8  # along a side of a random map


class View(NamedTuple):
    """The part of an image that a map shows, as shares of the height and width of the image."""

    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0


def shares_of(mask: np.ndarray, view: View, side: int) -> np.ndarray:  # [side * side]
    """Return the share of a mask [H, W] in each cell of a grid over a part of the image."""
    rows = _overlap(mask.shape[0], view.top, view.height, side)
    columns = _overlap(mask.shape[1], view.left, view.width, side)
    return (rows @ mask.astype(float) @ columns.T).ravel()


def _overlap(count: int, start: float, extent: float, side: int) -> np.ndarray:  # [side, count]
    """Return the share of each pixel in the cells along one axis; Pillow's box filter rounds it."""
    ends = (start + extent * np.arange(side + 1)[:, None] / side) * count
    pixels = np.arange(count)
    found = np.minimum(ends[1:], pixels + 1) - np.maximum(ends[:-1], pixels)
    found = found.clip(0)
    return found / found.sum(axis=1, keepdims=True)


def as_grid(mask: np.ndarray) -> np.ndarray:  # [PRIOR_CELLS, PRIOR_CELLS] int64
    """Return how much of each cell a mask covers, from 0 to LEVELS, so that sums are exact."""
    shares = shares_of(mask, View(), PRIOR_CELLS).reshape(PRIOR_CELLS, PRIOR_CELLS)
    return np.rint(shares * LEVELS).astype(np.int64)


@dataclass(frozen=True)
class PlacedMap:
    """A map [h, w] of any size, and the part of the image that it shows.

    With `is_share`, its values are predicted shares of the cells, and keep their size.
    """

    cells: np.ndarray
    view: View = View()
    is_share: bool = False

    def at(self, size: Size) -> np.ndarray:  # [H, W] float64
        """Enlarge or reduce the map to an image of this size, with values in [0, 1].

        A map with a single value everywhere is 0 everywhere, unless its values are shares.

        Raises:
            ValueError: If a value is not finite.
        """
        if not np.isfinite(self.cells).all():
            raise ValueError('the map has values that are NaN or infinite')
        found = self.cells.astype(np.float64)
        if not self.is_share:
            # Scaled before and after, because the size of the image may leave out the highest cell.
            found = _scaled(found)
        for axis in (0, 1):
            found = self._along(found, axis, size[axis])
        return found.clip(0, 1) if self.is_share else _scaled(found)

    def _along(self, values: np.ndarray, axis: int, length: int) -> np.ndarray:
        """Interpolate one axis linearly between the centres of cells."""
        count = values.shape[axis]
        start, extent = self.view[axis], self.view[axis + 2]
        places = (np.arange(length) + 0.5) / length  # centres of pixels
        inside = (places >= start) & (places < start + extent)
        cell = np.clip((places - start) / extent * count - 0.5, 0, count - 1).round(9)
        low = np.floor(cell).astype(int)
        shape = [1, 1]
        shape[axis] = -1
        weight = (cell - low).reshape(shape)
        found = np.take(values, low, axis)
        # In this form, equal neighbours give their value exactly.
        step = np.take(values, np.minimum(low + 1, count - 1), axis)
        step -= found
        step *= weight
        found += step
        found[(slice(None),) * axis + (~inside,)] = 0  # the lowest value, also of a scaled map
        return found


def _scaled(values: np.ndarray) -> np.ndarray:
    """Return values from 0, the lowest, to 1, the highest; all are 0 if they are equal."""
    # A power of 2 changes no value, and lets no difference leave the range of floating point.
    values = np.ldexp(values, -np.frexp(np.abs(values).max())[1])
    values -= values.min()
    return values / (values.max() or 1)


@dataclass(frozen=True)
class MapScores:
    """The scores of a map of a case with a region.

    Attributes:
        hit: 1 if the highest pixel lies in the region; of equally high ones, the share that does.
        iou: Intersection over union of the region and of the pixels above Otsu's threshold.
        ious: The same for each of the thresholds.
        mass: Share of the sum of the map that lies in the region.
        average_precision: Average precision over pixels, which needs no threshold.
        has_signal: Whether the map has more than one value. Otherwise it marks no region.
    """

    hit: float
    iou: float
    ious: np.ndarray
    mass: float
    average_precision: float
    has_signal: bool


def thresholds_of(placed: PlacedMap) -> np.ndarray:
    return SHARE_THRESHOLDS if placed.is_share else THRESHOLDS


def score_map(
    values: np.ndarray, region: np.ndarray, thresholds: np.ndarray = THRESHOLDS
) -> MapScores:
    """Score a map in [0, 1] against a region, both [H, W].

    Raises:
        ValueError: If the region has no pixel, so that no score is defined.
    """
    if not region.any():
        raise ValueError('a region without a pixel has no score')
    level = _levels(values)
    everything = np.bincount(level.ravel(), minlength=LEVELS)
    inside = np.bincount(level[region], minlength=LEVELS)
    precision = _average_precision(values, region)
    if values.max() == values.min():
        return MapScores(0.0, 0.0, np.zeros(len(thresholds)), 0.0, precision, has_signal=False)
    return MapScores(
        hit=float(region[values == values.max()].mean()),
        iou=float(_iou(everything, inside, [otsu(everything)])[0]),
        ious=_iou(everything, inside, thresholds),
        mass=float(values[region].sum(dtype=float) / values.sum(dtype=float)),
        average_precision=precision,
        has_signal=True,
    )


def marked(values: np.ndarray) -> np.ndarray:  # [H, W] bool
    """Return the pixels of a map in [0, 1] that Otsu's method marks; none without a signal."""
    if values.max() == values.min():
        return np.zeros(values.shape, bool)
    return values >= otsu(np.bincount(_levels(values).ravel(), minlength=LEVELS))


def otsu(everything: np.ndarray) -> float:
    """Return the value from which pixels are marked by Otsu's method.

    It is the end of one of BINS bins: the one that divides the values into two classes with the
    largest variance between them.

    Args:
        everything: Number of pixels of each of LEVELS levels.

    Source: Otsu 1979, IEEE Transactions on Systems, Man, and Cybernetics 9(1), 62-66.
    """
    counts = everything.reshape(BINS, -1).sum(axis=1).astype(float)
    sums = counts * np.arange(BINS)
    below, sum_below = np.cumsum(counts)[:-1], np.cumsum(sums)[:-1]
    above, sum_above = counts.sum() - below, sums.sum() - sum_below
    defined = (below > 0) & (above > 0)
    gap = np.zeros(BINS - 1)
    gap[defined] = sum_below[defined] / below[defined] - sum_above[defined] / above[defined]
    return float(np.argmax(below * above * gap**2) + 1) / BINS


def _levels(values: np.ndarray) -> np.ndarray:  # int32, of the shape of the values
    # A power of 2, so that rounding down to a level moves no value across a threshold.
    return np.minimum((values * LEVELS).astype(np.int32), LEVELS - 1)


def _iou(
    everything: np.ndarray, inside: np.ndarray, thresholds: Sequence[float]
) -> np.ndarray:  # [T]
    """Return the intersection over union at each threshold, from the pixels of each level."""
    first = np.ceil(np.asarray(thresholds) * LEVELS).astype(int)
    marked, both = (np.cumsum(counts[::-1])[::-1][first] for counts in (everything, inside))
    return both / (marked + inside.sum() - both)


def _average_precision(values: np.ndarray, region: np.ndarray) -> float:
    # The precision is averaged over the pixels of the region, each with its value as threshold.
    everything, inside = np.sort(values, axis=None), np.sort(values[region])
    marked, both = (part.size - np.searchsorted(part, inside) for part in (everything, inside))
    return float((both / marked).mean())


def iou_of_others(ious: np.ndarray, patients: np.ndarray) -> np.ndarray:  # [N]
    """Return the IoU of each case at the threshold that is best on other patients.

    The patients are divided into FOLDS folds. The threshold of a fold has the largest mean IoU on
    all other folds, and is the lowest of equal ones. It is NaN without other patients.

    Args:
        ious: IoU of each case of a label at each threshold, [N, T].
        patients: Patient of each case, [N].
    """
    fold, found = folds_of(patients, FOLDS), np.full(len(ious), np.nan)
    for number in np.unique(fold):
        own = fold == number
        if not own.all():
            found[own] = ious[own, np.argmax(ious[~own].mean(axis=0))]
    return found


class PositionPrior:
    """Where the regions of a label lie on other patients: the mean of their masks.

    Args:
        labels: Label of each case with a region, [N].
        patients: Patient of each case, [N].
        masks: Mask of each case on a grid, [N, h, w]; see `analysis.as_grid`.
    """

    def __init__(self, labels: Sequence[str], patients: Sequence[str], masks: np.ndarray) -> None:
        self.labels, self.patients = np.asarray(labels, object), np.asarray(patients, object)
        self.masks = masks
        self.sums = {label: masks[self.labels == label].sum(axis=0) for label in {*labels}}

    def of(self, label: str, patient: str) -> PlacedMap:
        """Return the map of a label for a patient, whose own images do not count."""
        own = (self.labels == label) & (self.patients == patient)
        # Divided by their number, the sum would be the mean, which has the same scores.
        return PlacedMap(self.sums[label] - self.masks[own].sum(axis=0))


def centre_map() -> PlacedMap:
    """Return a map that is highest in the centre of the image and falls to all sides."""
    places = (np.arange(PRIOR_CELLS) + 0.5) / PRIOR_CELLS - 0.5
    along = np.exp(-((places / CENTRE_SPREAD) ** 2) / 2)
    return PlacedMap(along[:, None] * along)


def random_map(path: str, label: str, seed: int) -> PlacedMap:
    """Return a map of random cells, which depends on the case and the seed alone."""
    return PlacedMap(case_rng(path, label, seed).random((RANDOM_CELLS, RANDOM_CELLS)))


def case_rng(path: str, label: str, seed: int) -> np.random.Generator:
    """Return the random generator of a case, which other cases do not change."""
    text = f'{seed}\0{path}\0{label}'.encode('utf-8', 'surrogateescape')
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'big')
    return np.random.Generator(np.random.Philox(key))

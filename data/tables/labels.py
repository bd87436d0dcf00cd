"""Define the names of labels, and the targets for uncertain and blank labels.

To add a policy for uncertain labels (DATA.UNCERTAIN), write one function with `@register_policy`.
Options of a policy, such as DATA.RANGES.FILE of 'ranges', are keyword arguments of its function.
"""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from config import REGISTRIES, OptionError

if TYPE_CHECKING:
    from torch import Tensor

NO_FINDING = 'No Finding'
SUPPORT_DEVICES = 'Support Devices'
LABELS = (
    NO_FINDING,
    'Enlarged Cardiomediastinum',
    'Cardiomegaly',
    'Lung Opacity',
    'Lung Lesion',
    'Edema',
    'Consolidation',
    'Pneumonia',
    'Atelectasis',
    'Pneumothorax',
    'Pleural Effusion',
    'Pleural Other',
    'Fracture',
    SUPPORT_DEVICES,
)
COMPETITION_LABELS = ('Atelectasis', 'Cardiomegaly', 'Consolidation', 'Edema', 'Pleural Effusion')

POSITIVE, NEGATIVE, UNCERTAIN, BLANK = 1.0, 0.0, -1.0, np.nan
# Target of an uncertain label that is a third class, neither positive nor negative.
UNCERTAIN_CLASS = 2.0
# Meaning of the cells of a CSV file.
CELLS = {
    '1.0': POSITIVE,
    '1': POSITIVE,
    '0.0': NEGATIVE,
    '0': NEGATIVE,
    '-1.0': UNCERTAIN,
    '-1': UNCERTAIN,
    '': BLANK,
}

# Two labels are one label if no image contradicts it, if this share of the images that state either
# label state both, and if these have so many cases of each class; fewer may agree by chance.
LEAST_COMMON, LEAST_OF_CLASS = 0.9, 5

POLICIES = REGISTRIES['DATA.UNCERTAIN']
BLANKS = REGISTRIES['DATA.BLANK']  # target of a label that is not mentioned
BLANKS.register('negative')(NEGATIVE)
BLANKS.register('ignore')(np.nan)


@dataclass(frozen=True)
class UncertainImages:
    """The input of a policy: the n training images for which one label is uncertain."""

    label: str
    rows: np.ndarray  # [n] sample ids, 0 or greater
    seed: int  # SEED of the config
    predictions: np.ndarray | None  # [n] probabilities, for policies that need them

    def uniform(self) -> np.ndarray:
        """Draw one number in [0, 1) per image, [n], which depends only on the seed, row and label.

        Row r takes the r-th number of the stream of its label. The 3 in the counter separates
        these streams from those in data/loader.py.
        """
        if not len(self.rows):
            return np.empty(0)
        label, number = self.label, len(LABELS)
        number = LABELS.index(label) if label in LABELS else number + zlib.crc32(label.encode())
        key = [self.seed, number]
        bits = np.random.Philox(key=key, counter=[0, 0, 3, 0]).random_raw(int(self.rows.max()) + 1)
        return (bits[self.rows] >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Policy:
    """A policy for uncertain labels."""

    targets: Callable[..., np.ndarray | float]  # NaN: excluded from the loss
    third_class: bool = False  # uncertain is a third class: three outputs per label
    needs_predictions: bool = False  # reads the file of DATA.SELF_TRAIN_PREDICTIONS


def register_policy(name: str, **facts: bool) -> Callable:
    """Return a decorator that registers (UncertainImages, **options) -> targets as a policy."""

    def add(function: Callable) -> Callable:
        POLICIES.register(name)(Policy(function, **facts))
        return function

    return add


# Irvin et al. 2019, arXiv:1901.07031: U-Zeros, U-Ones, U-Ignore, U-MultiClass, U-SelfTrained.


@register_policy('zeros')
def zeros(images: UncertainImages) -> float:
    """Treat uncertain labels as negative."""
    return NEGATIVE


@register_policy('ones')
def ones(images: UncertainImages) -> float:
    """Treat uncertain labels as positive."""
    return POSITIVE


@register_policy('ignore')
def ignore(images: UncertainImages) -> float:
    """Exclude uncertain labels from the loss."""
    return np.nan


@register_policy('zeros_smooth')
def zeros_smooth(images: UncertainImages) -> np.ndarray:
    """Draw targets from [0, 0.3] (Pham et al. 2019, arXiv:1911.06475, U-Zeros+LSR)."""
    return 0.3 * images.uniform()


@register_policy('ones_smooth')
def ones_smooth(images: UncertainImages) -> np.ndarray:
    """Draw targets from [0.55, 0.85] (Pham et al. 2019, arXiv:1911.06475, U-Ones+LSR)."""
    return 0.55 + (0.85 - 0.55) * images.uniform()


@register_policy('multiclass', third_class=True)
def multiclass(images: UncertainImages) -> float:
    """Treat uncertain labels as a third class next to negative and positive."""
    return UNCERTAIN_CLASS


@register_policy('self_train', needs_predictions=True)
def self_train(images: UncertainImages) -> np.ndarray:
    """Use the predictions of a model that was trained with the policy 'ignore'."""
    allowed = (images.predictions >= 0) & (images.predictions <= 1)
    if not allowed.all():
        first = int(np.argmin(allowed))
        raise ValueError(
            f'DATA.SELF_TRAIN_PREDICTIONS: {images.label} is uncertain in row '
            f'{images.rows[first] + 2} of the training CSV (or, if it lists studies, in its image '
            f'{images.rows[first] + 1}) and needs a prediction from 0 to 1, got '
            f'{images.predictions[first]}'
        )
    return images.predictions


def positive_logits(outputs: 'Tensor', num_labels: int) -> 'Tensor':
    """Return the logits [B, K] whose sigmoid is the probability of each label.

    Outputs [B, K] are returned unchanged. Outputs [B, 3K] are read as [B, K, 3] with the classes
    negative, positive and uncertain. The uncertain class is left out of the softmax.
    """
    if outputs.shape[1] == num_labels:
        return outputs
    classes = outputs.reshape(-1, num_labels, 3)
    return classes[..., 1] - classes[..., 0]


def evaluation_targets(labels: np.ndarray, blank: str, names: Sequence[str] = LABELS) -> np.ndarray:
    """Return the targets of the metrics, [N, K] float32, with NaN for uncertain labels."""
    return np.where(labels == UNCERTAIN, np.float32(np.nan), _fill_blank(labels, blank, names))


def training_targets(
    labels: np.ndarray,
    policies: Sequence[str],
    *,
    blank: str,
    rows: np.ndarray,
    seed: int = 0,
    predictions: np.ndarray | None = None,
    names: Sequence[str] = LABELS,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> np.ndarray:
    """Return the targets of the training loss, with a policy for each label.

    Args:
        labels: Labels [N, K]: 1 present, 0 absent, -1 uncertain, NaN not mentioned.
        policies: Names [K] of policies.
        blank: Target of NaN, 'negative' or 'ignore'. No Finding, which is never 0 in CheXpert, is
            negative in both cases.
        rows: Sample ids [N] (`Records.sample`), which determine random targets.
        seed: SEED of the config, which determines random targets.
        predictions: Probabilities [N, K] for policies that need them.
        names: Names [K] of the labels.
        options: Options of each policy by its name; None: their default values.

    Returns:
        Targets [N, K] float32. NaN is excluded from the loss, UNCERTAIN_CLASS is a third class.

    Raises:
        ValueError: If a policy or the blank rule is unknown, or if predictions are missing.
    """
    targets = _fill_blank(labels, blank, names)
    for k, name in enumerate(policies):
        policy, which = POLICIES[name], labels[:, k] == UNCERTAIN
        if policy.needs_predictions and predictions is None:
            raise ValueError(f'DATA.SELF_TRAIN_PREDICTIONS must name a file for {name!r}')
        predicted = predictions[which, k] if policy.needs_predictions else None
        images = UncertainImages(names[k], rows[which], seed, predicted)
        own = POLICIES.options_of(name) if options is None else options[name]
        values = policy.targets(images, **own)
        found = np.asarray(np.nan if values is None else values, float)
        usable = np.isnan(found) | ((found >= 0) & (found <= 1))
        if policy.third_class:
            usable |= found == UNCERTAIN_CLASS
        if values is None or not usable.all():
            bad = None if values is None else found[~usable].flat[0]
            third = f', or {UNCERTAIN_CLASS:g}' if policy.third_class else ''
            raise ValueError(
                f'the policy {name!r} (DATA.UNCERTAIN) must return targets from 0 to 1{third}, or '
                f'NaN to leave out a label, got {bad}'
            )
        targets[which, k] = values
    return targets


def same_labels(targets: np.ndarray, names: Sequence[str]) -> dict[str, str]:
    """Find labels that are one label under several names, so that a mean counts them once.

    Two labels are the same if they are equal, or one is the complement of the other, for all images
    that state both. How many that must be, LEAST_COMMON and LEAST_OF_CLASS say.

    Args:
        targets: 1, 0, or NaN where the label is not known, [N, K].
        names: Names of the labels, [K].

    Returns:
        Repeated label -> the label that counts: one of CheXpert's five if possible, otherwise the
        first finding, and No Finding last.
    """
    ranks = {NO_FINDING: 2} | dict.fromkeys(COMPETITION_LABELS, 0)
    columns = {name: targets[:, k] for k, name in enumerate(names)}
    counted: list[str] = []
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: ranks.get(name, 1)):
        equals = (known for known in counted if _is_same(columns[known], columns[name]))
        if original := next(equals, ''):
            found[name] = original
        else:
            counted.append(name)
    return found


def _is_same(first: np.ndarray, second: np.ndarray) -> bool:  # [N], [N]
    in_both = ~np.isnan(first) & ~np.isnan(second)
    in_either = ~np.isnan(first) | ~np.isnan(second)
    first, second = first[in_both], second[in_both]
    positives = (first == POSITIVE).sum()
    has_enough = min(positives, len(first) - positives) >= LEAST_OF_CLASS
    if not has_enough or len(first) < LEAST_COMMON * in_either.sum():
        return False
    return np.array_equal(first, second) or np.array_equal(first, 1 - second)


def describe_same(same_as: Mapping[str, str]) -> str:
    """Say which labels of `same_labels` count once; '' if none is repeated."""
    sentences = []
    for original in dict.fromkeys(same_as.values()):
        *others, last = [name for name in same_as if same_as[name] == original]
        sentences.append(
            f'{", ".join([original, *others])} and {last} are one label under several names (equal '
            f'or complementary), so a mean over labels counts it once, as {original}'
        )
    return '; '.join(sentences)


def file_name(label: str) -> str:
    """Return the name of a label in the form that is used in file names."""
    return re.sub(r'\W+', '_', label.lower())


def count_uncertain(labels: np.ndarray, names: Sequence[str] = LABELS) -> dict[str, int]:
    """Count the uncertain labels, which evaluation excludes; labels without any are not listed."""
    counts = (labels == UNCERTAIN).sum(axis=0)
    return {label: int(count) for label, count in zip(names, counts, strict=True) if count}


def _fill_blank(labels: np.ndarray, blank: str, names: Sequence[str]) -> np.ndarray:
    values = [NEGATIVE if name == NO_FINDING else BLANKS[blank] for name in names]
    return np.where(np.isnan(labels), np.array(values, np.float32), labels)


def check_name(key: str, name: str, allowed: Sequence[str] | Mapping[str, object]) -> None:
    """Raise an OptionError that names the option if a name is unknown."""
    if name not in allowed:
        raise OptionError(f'{key} must be one of {", ".join(allowed)}, got {name!r}')

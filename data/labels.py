"""Define the names of labels, the targets for uncertain and blank labels, and the tasks.

To add a policy for uncertain labels (DATA.UNCERTAIN), write one function with `@register_policy`.
To add a task (DATA.TASK), write one function with `@register_task`.
"""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import PROBES, Config, Registry, load_yaml, register_check, require

NO_FINDING = 'No Finding'
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
    'Support Devices',
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

LABEL_SETS = Path(__file__).with_name('label_sets.yaml')

POLICIES = Registry('DATA.UNCERTAIN')
TASKS = Registry('DATA.TASK')
BLANKS = Registry('DATA.BLANK')  # target of a label that is not mentioned
BLANKS.update(negative=NEGATIVE, ignore=np.nan)


@dataclass(frozen=True)
class UncertainImages:
    """The input of a policy: the n training images for which one label is uncertain."""

    label: str
    rows: np.ndarray  # [n] sample ids, 0 or greater
    seed: int  # SEED of the config
    predictions: np.ndarray | None  # [n] probabilities, for policies that need them


@dataclass(frozen=True)
class Policy:
    """A policy for uncertain labels."""

    targets: Callable[[UncertainImages], np.ndarray | float]  # NaN: excluded from the loss
    third_class: bool = False  # uncertain is a third class: three outputs per label
    needs_predictions: bool = False  # reads the file of DATA.SELF_TRAIN_PREDICTIONS


@dataclass(frozen=True)
class Task:
    """A task of fine-tuning: its labels and their targets."""

    labels: tuple[str, ...]
    # (labels [N, C], blank, names [C] of their columns) -> targets [N, K]
    scored: Callable[[np.ndarray, str, Sequence[str]], np.ndarray]
    # Whether policies give the training targets instead of `scored`, and DATA.LABELS is allowed.
    uses_policies: bool = False


@dataclass(frozen=True)
class SharedLabel:
    """A finding of two label sets; in each set, any of its labels stands for the finding."""

    name: str
    predicted: tuple[str, ...]
    labelled: tuple[str, ...]


def register_policy(name: str, **facts: bool) -> Callable:
    """Return a decorator that registers a function (UncertainImages) -> targets as a policy."""

    def add(function: Callable) -> Callable:
        POLICIES.register(name)(Policy(function, **facts))
        return function

    return add


def register_task(name: str, labels: Sequence[str], **facts: bool) -> Callable:
    """Return a decorator that registers a function as a task; see `Task.scored`."""

    def add(function: Callable) -> Callable:
        TASKS.register(name)(Task(tuple(labels), function, **facts))
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
    return 0.3 * _uniform(images)


@register_policy('ones_smooth')
def ones_smooth(images: UncertainImages) -> np.ndarray:
    """Draw targets from [0.55, 0.85] (Pham et al. 2019, arXiv:1911.06475, U-Ones+LSR)."""
    return 0.55 + (0.85 - 0.55) * _uniform(images)


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
            f'{images.rows[first] + 2} of the training CSV and needs a prediction from 0 to 1, '
            f'got {images.predictions[first]}'
        )
    return images.predictions


@register_task('observations', LABELS, uses_policies=True)
def evaluation_targets(labels: np.ndarray, blank: str, names: Sequence[str] = LABELS) -> np.ndarray:
    """Return the targets of the metrics, [N, K] float32, with NaN for uncertain labels."""
    return np.where(labels == UNCERTAIN, np.float32(np.nan), _fill_blank(labels, blank, names))


# In the binary tasks an observation takes precedence over No Finding: an image with both is
# positive (CheXpert's No Finding may occur together with Support Devices).


@register_task('any_finding', ('Any Finding',))
def any_finding_targets(labels: np.ndarray, blank: str, names: Sequence[str]) -> np.ndarray:
    """Score any of the 13 observations, with Support Devices, against No Finding.

    Source: Fradkin and Boxer 2023.
    """
    found = np.delete(labels == POSITIVE, LABELS.index(NO_FINDING), axis=1)
    return _against_no_finding(labels, found.any(axis=1))


@register_task('effusion', ('Pleural Effusion',))
def effusion_targets(labels: np.ndarray, blank: str, names: Sequence[str]) -> np.ndarray:
    """Score Pleural Effusion against No Finding."""
    return _against_no_finding(labels, labels[:, LABELS.index('Pleural Effusion')] == POSITIVE)


def training_targets(
    labels: np.ndarray,
    policies: Sequence[str],
    *,
    blank: str,
    rows: np.ndarray,
    seed: int = 0,
    predictions: np.ndarray | None = None,
    names: Sequence[str] = LABELS,
) -> np.ndarray:
    """Return the targets of the training loss for a task with policies.

    Args:
        labels: Labels [N, K]: 1 present, 0 absent, -1 uncertain, NaN not mentioned.
        policies: Names [K] of policies, see `label_policies`.
        blank: Target of NaN, 'negative' or 'ignore'. No Finding, which is never 0 in CheXpert, is
            negative in both cases.
        rows: Sample ids [N] (`Records.row`), which determine random targets.
        seed: SEED of the config, which determines random targets.
        predictions: Probabilities [N, K] for policies that need them.
        names: Names [K] of the labels.

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
        targets[which, k] = policy.targets(images)
    return targets


def scored_targets(
    labels: np.ndarray, *, task: str, blank: str, names: Sequence[str] = LABELS
) -> np.ndarray:
    """Return the targets of the metrics, [N, K] float32; a binary task also trains on them."""
    return find_task(task).scored(labels, blank, names)


def label_policies(
    uncertain: str, by_label: Mapping[str, str], labels: Sequence[str] = ()
) -> list[str]:
    """Return the name of the policy of each label; `labels` is DATA.LABELS."""
    columns = label_columns(labels)
    _check_name('DATA.UNCERTAIN', uncertain, POLICIES)
    for label, policy in by_label.items():
        _check_name('DATA.UNCERTAIN_BY_LABEL', label, columns)
        _check_name(f'DATA.UNCERTAIN_BY_LABEL[{label!r}]', policy, POLICIES)
    return [by_label.get(label, uncertain) for label in columns]


def used_policies(config: Config) -> list[Policy]:
    """Return the policy of each label in a config; [] for a task without policies."""
    if not find_task(config.DATA.TASK).uses_policies:
        return []
    data = config.DATA
    names = label_policies(data.UNCERTAIN, data.UNCERTAIN_BY_LABEL, data.LABELS)
    return [POLICIES[name] for name in names]


def any_of(values: np.ndarray) -> np.ndarray:  # [..., S] -> [...] float32
    """Combine labels of one finding: positive outranks uncertain, which outranks negative."""
    marks = (POSITIVE, UNCERTAIN, NEGATIVE)
    has = [(values == mark).any(axis=-1) for mark in marks]
    return np.select(has, marks, BLANK).astype(np.float32)


def label_set(name: str) -> tuple[str, ...]:
    """Return the labels of a label set in LABEL_SETS."""
    return tuple(dict.fromkeys(label for labels in _read_label_sets(name) for label in labels))


def shared_labels(predicted: str, labelled: str) -> list[SharedLabel]:
    """Return the findings that the label set of a model and the label set of the data share.

    A finding has the name of its predicted label, or of its label in the data if several labels are
    predicted for it.
    """
    shared = []
    for ours, theirs in zip(_read_label_sets(predicted), _read_label_sets(labelled), strict=True):
        if ours and theirs:
            names = next((names for names in (ours, theirs) if len(names) == 1), ours)
            shared.append(SharedLabel(' or '.join(names), ours, theirs))
    return shared


def _read_label_sets(name: str) -> list[tuple[str, ...]]:
    """Read the labels of a label set for each finding (line) of LABEL_SETS."""
    rows = load_yaml(LABEL_SETS.read_text('utf-8'))
    _check_name('--label-sets', name, list(dict.fromkeys(key for row in rows for key in row)))
    found = [row.get(name, []) for row in rows]
    return [(labels,) if isinstance(labels, str) else tuple(labels) for labels in found]


def file_name(label: str) -> str:
    """Return the name of a label in the form that is used in file names."""
    return re.sub(r'\W+', '_', label.lower())


def find_task(name: str) -> Task:
    """Return a task by its name; raise a ValueError if it is unknown."""
    _check_name('DATA.TASK', name, TASKS)
    return TASKS[name]


def task_labels(task: str, labels: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of the labels that a task learns; `labels` is DATA.LABELS."""
    return tuple(labels) or find_task(task).labels


def label_columns(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of labels that are read from a CSV file; `labels` is DATA.LABELS."""
    return tuple(labels) or LABELS


def count_uncertain(labels: np.ndarray, names: Sequence[str] = LABELS) -> dict[str, int]:
    """Count the uncertain labels, which evaluation excludes; labels without any are not listed."""
    counts = (labels == UNCERTAIN).sum(axis=0)
    return {label: int(count) for label, count in zip(names, counts, strict=True) if count}


@register_check
def check_label_options(config: Config, stage: str | None) -> None:
    """Check the options that depend on the label settings."""
    data, task = config.DATA, find_task(config.DATA.TASK)
    files = {file_name(label) for label in data.LABELS if isinstance(label, str)}
    holds = len(files) == len(data.LABELS) and not files & {'', 'path', 'study'}
    require(holds, config, 'DATA.LABELS', 'different names of columns other than Path and Study')
    holds = task.uses_policies or not data.LABELS
    require(holds, config, 'DATA.LABELS', f'[] with DATA.TASK {data.TASK!r}')
    names = label_policies(data.UNCERTAIN, data.UNCERTAIN_BY_LABEL, data.LABELS)
    if stage != 'finetune':
        return
    labels = task_labels(data.TASK, data.LABELS)
    allowed = f'left out, or {len(labels)}, the number of labels of DATA.TASK and DATA.LABELS'
    require(config.MODEL.NUM_CLASSES == len(labels), config, 'MODEL.NUM_CLASSES', allowed)
    holds = config.EVAL.SELECT != 'five' or set(COMPETITION_LABELS) <= set(labels)
    require(holds, config, 'EVAL.SELECT', "'auto' or 'all' if not all of the five are learned")
    if any(POLICIES[name].third_class for name in names):
        because = 'with a policy for which uncertain is a third class'
        require(task.uses_policies, config, 'DATA.TASK', f'a task with label policies {because}')
        require(config.LOSS.NAME == 'bce', config, 'LOSS.NAME', f"'bce' {because}")
        holds = config.FINETUNE.MODE not in PROBES
        require(holds, config, 'FINETUNE.MODE', f'a mode that trains the head {because}')
    if config.EVAL_MODE:
        return
    holds = data.SELF_TRAIN_PREDICTIONS or not any(POLICIES[n].needs_predictions for n in names)
    allowed = "predictions of the training images, see the policy 'self_train' in the docs"
    require(holds, config, 'DATA.SELF_TRAIN_PREDICTIONS', allowed)
    holds = data.TRAIN_FRACTION < 1 or data.TRAIN_IMAGES or not data.PSEUDO_LABELS
    allowed = 'below 1 (or DATA.TRAIN_IMAGES above 0) with DATA.PSEUDO_LABELS'
    require(holds, config, 'DATA.TRAIN_FRACTION', allowed)


def _uniform(images: UncertainImages) -> np.ndarray:
    """Draw one number in [0, 1) per image, [n], which depends only on the seed, row and label.

    Row r takes the r-th number of the stream of its label. The 3 in the counter separates these
    streams from those in data/loader.py.
    """
    if not len(images.rows):
        return np.empty(0)
    label = images.label
    number = LABELS.index(label) if label in LABELS else len(LABELS) + zlib.crc32(label.encode())
    key = [images.seed, number]
    bits = np.random.Philox(key=key, counter=[0, 0, 3, 0]).random_raw(int(images.rows.max()) + 1)
    return (bits[images.rows] >> np.uint64(11)) * 2.0**-53


def _against_no_finding(labels: np.ndarray, positive: np.ndarray) -> np.ndarray:  # [N, 1] float32
    """Return 1 for positive images, 0 for other images with No Finding, and NaN for the rest."""
    negative = labels[:, LABELS.index(NO_FINDING)] == POSITIVE
    targets = np.where(positive, POSITIVE, np.where(negative, NEGATIVE, np.nan))
    return targets.astype(np.float32)[:, None]


def _fill_blank(labels: np.ndarray, blank: str, names: Sequence[str]) -> np.ndarray:
    _check_name('DATA.BLANK', blank, BLANKS)
    values = [NEGATIVE if name == NO_FINDING else BLANKS[blank] for name in names]
    return np.where(np.isnan(labels), np.array(values, np.float32), labels)


def _check_name(key: str, name: str, allowed: Sequence[str] | Mapping[str, object]) -> None:
    if name not in allowed:
        raise ValueError(f'{key} must be one of {", ".join(allowed)}, got {name!r}')

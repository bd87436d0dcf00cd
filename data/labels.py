"""Label names, their order, and what an uncertain or blank mention becomes."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

# ==== data.policies: Targets of uncertain labels: one value for all images, a draw for each, or a prediction.

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


# ==== data.labels: Label names, their order, and what an uncertain or blank mention becomes.

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
CELLS = {
    '1.0': POSITIVE,
    '1': POSITIVE,
    '0.0': NEGATIVE,
    '0': NEGATIVE,
    '-1.0': UNCERTAIN,
    '-1': UNCERTAIN,
    '': BLANK,
}

# DATA.BLANK -> what a label that is not mentioned becomes.
BLANKS = {'negative': NEGATIVE, 'ignore': np.nan}
# DATA.TASK -> what is learned.
TASKS = {
    'observations': LABELS,
    'any_finding': ('Any Finding',),
    'effusion': ('Pleural Effusion',),
}


def read_labels(table: pd.DataFrame, source: str) -> np.ndarray:
    """Turn the label columns of a CSV, read as text, into numbers.

    Args:
        table: text cells; the index is the 0-based row of the file, its header not counted.
        source: the file, for messages.

    Returns:
        [N, K] float32 in the order of `LABELS`: 1, 0, -1 uncertain, NaN not mentioned.

    Raises:
        ValueError: if a cell holds anything else, naming file, row, column and value.
    """
    labels = np.empty((len(table), len(LABELS)), np.float32)
    for k, label in enumerate(LABELS):
        labels[:, k] = map_cells(table[label], CELLS, source)
    return labels


def map_cells(
    column: pd.Series,
    meanings: Mapping[str, float | str],
    source: str,
    *,
    dtype: type = float,
    allowed: str = '',
) -> np.ndarray:
    """Replace each text cell by its meaning; a cell without one is a ValueError that names it."""
    codes, values = pd.factorize(column.to_numpy())
    for code, value in enumerate(values):
        if value not in meanings:
            allowed = allowed or ', '.join(name or 'empty' for name in meanings)
            problem = f'is not allowed (allowed: {allowed})'
            raise cell_error(source, column, int(np.argmax(codes == code)), problem)
    return np.array([meanings[value] for value in values], dtype)[codes]


def cell_error(source: str, column: pd.Series, position: int, problem: str) -> ValueError:
    """The error for the cell at a position of a column, whose index counts the file's rows."""
    value, row = column.iloc[position], column.index[position] + 2
    shown = value if len(value) <= 200 else f'{value[:200]}...'
    return ValueError(
        f'{source}, row {row} (the header is row 1), column {column.name!r}: {shown!r} {problem}'
    )


def training_targets(
    labels: np.ndarray,
    *,
    uncertain: str,
    by_label: Mapping[str, str],
    blank: str,
    rows: np.ndarray | None = None,
    seed: int = 0,
    predictions: np.ndarray | None = None,
) -> np.ndarray:
    """Make the targets of the training loss.

    Args:
        labels: [N, K], 1 present, 0 absent, -1 uncertain, NaN not mentioned.
        uncertain: the policy of every label that `by_label` does not name.
        by_label: label -> policy.
        blank: 'negative' or 'ignore'; No Finding, never 0 in CheXpert, is negative either way.
        rows: [N] sample ids (Records.row); the smooth policies and 'self_train' need them.
        seed: with row and label the key of what the smooth policies draw.
        predictions: [N, K] probabilities for 'self_train', read where a label is uncertain.

    Returns:
        [N, K] float32 without -1; NaN where the label is not to be used, UNCERTAIN_CLASS where it
        is uncertain under 'multiclass'.

    Raises:
        ValueError: if a policy, a label or the blank rule is unknown, or if what a policy needs is
            missing.
    """
    targets = _fill_blank(labels, blank)
    for k, policy in enumerate(label_policies(uncertain, by_label)):
        which = labels[:, k] == UNCERTAIN
        if policy in FIXED:
            targets[which, k] = FIXED[policy]
        elif rows is None:
            raise ValueError(f'{LABELS[k]}: the policy {policy!r} needs the rows of the images')
        elif policy in SMOOTH:
            targets[which, k] = smooth_targets(policy, rows[which], seed=seed, label=k)
        elif predictions is None:
            raise ValueError(f"{LABELS[k]}: 'self_train' needs DATA.SELF_TRAIN_PREDICTIONS")
        else:
            targets[which, k] = predicted_targets(
                predictions[which, k], rows[which], name=LABELS[k]
            )
    return targets


def evaluation_targets(labels: np.ndarray, *, blank: str) -> np.ndarray:
    """Make the targets of the metrics, [N, K] float32: NaN where uncertain, whatever the policy."""
    return np.where(labels == UNCERTAIN, np.float32(np.nan), _fill_blank(labels, blank))


def count_uncertain(labels: np.ndarray) -> dict[str, int]:
    """Count the uncertain entries that evaluation leaves out, for the labels that have any."""
    counts = (labels == UNCERTAIN).sum(axis=0)
    return {label: int(count) for label, count in zip(LABELS, counts, strict=True) if count}


def label_policies(uncertain: str, by_label: Mapping[str, str]) -> list[str]:
    """The policy of each label, in the order of `LABELS`."""
    _check_name('DATA.UNCERTAIN', uncertain, POLICIES)
    for label, policy in by_label.items():
        _check_name('DATA.UNCERTAIN_BY_LABEL', label, LABELS)
        _check_name(f'DATA.UNCERTAIN_BY_LABEL[{label!r}]', policy, POLICIES)
    return [by_label.get(label, uncertain) for label in LABELS]


def multiclass_labels(uncertain: str, by_label: Mapping[str, str]) -> np.ndarray:
    """[K] bool: the labels for which uncertain is a class of its own."""
    return np.array([name == 'multiclass' for name in label_policies(uncertain, by_label)])


def scored_targets(labels: np.ndarray, *, task: str, blank: str) -> np.ndarray:
    """Targets of the metrics of any DATA.TASK: `evaluation_targets`, or `task_targets`."""
    if task == 'observations':
        return evaluation_targets(labels, blank=blank)
    return task_targets(labels, task)


def task_labels(task: str) -> tuple[str, ...]:
    """The names of what DATA.TASK learns."""
    _check_name('DATA.TASK', task, TASKS)
    return TASKS[task]


def task_targets(labels: np.ndarray, task: str) -> np.ndarray:
    """Make the targets of a binary task, in training and in evaluation alike.

    An observation goes before No Finding: an image with both is positive (CheXpert's No Finding
    may stand beside Support Devices).

    Args:
        labels: [N, K] as read; only what is marked present counts, so that no policy has a say.
        task: 'any_finding', one of the 13 observations (Support Devices included) against No
            Finding, or 'effusion', Pleural Effusion against No Finding.

    Returns:
        [N, 1] float32: 1, 0, NaN where the image says neither.

    Source of any_finding: Fradkin and Boxer 2023.
    """
    _check_name('DATA.TASK', task, [name for name in TASKS if name != 'observations'])
    present = labels == POSITIVE
    negative = present[:, LABELS.index(NO_FINDING)]
    if task == 'effusion':
        positive = present[:, LABELS.index('Pleural Effusion')]
    else:
        positive = np.delete(present, LABELS.index(NO_FINDING), axis=1).any(axis=1)
    targets = np.where(positive, POSITIVE, np.where(negative, NEGATIVE, np.nan))
    return targets.astype(np.float32)[:, None]


def check_two_classes(labels: np.ndarray, targets: np.ndarray) -> list[str]:
    """Refuse targets that the label policies, not the data, leave with one class.

    Args:
        labels: [N, K] as read.
        targets: [N, K] as `training_targets` made them; from 0.5 on they count as positive,
            UNCERTAIN_CLASS as neither.

    Returns:
        The labels with one class or none for want of data: no policy could give them two.

    Raises:
        ValueError: naming each label that another policy or blank rule would give two classes,
            what is left of it, and the keys to change.
    """
    for_want_of_data, refused = [], []
    for k, label in enumerate(LABELS):
        left = _count_classes(targets[:, k])
        if min(left) > 0:
            continue
        kinds = _count_kinds(labels[:, k])
        if _could_have_two_classes(kinds):
            refused.append(_describe_refusal(label, left, kinds))
        else:
            for_want_of_data.append(label)
    if refused:
        raise ValueError(f'the label policies leave one class only of {"; ".join(refused)}')
    return for_want_of_data


def _fill_blank(labels: np.ndarray, blank: str) -> np.ndarray:
    _check_name('DATA.BLANK', blank, BLANKS)
    values = np.full(len(LABELS), BLANKS[blank], np.float32)
    values[LABELS.index(NO_FINDING)] = NEGATIVE
    return np.where(np.isnan(labels), values, labels)


def _check_name(key: str, name: str, allowed: Iterable[str]) -> None:
    if name not in allowed:
        raise ValueError(f'{key} must be one of {", ".join(allowed)}, got {name!r}')


def _count_classes(targets: np.ndarray) -> tuple[int, int]:
    """Positive and negative targets of one label."""
    positive = (targets >= 0.5) & (targets != UNCERTAIN_CLASS)
    return int(positive.sum()), int((targets < 0.5).sum())


def _count_kinds(labels: np.ndarray) -> dict[str, int]:
    return {
        'positive': int((labels == POSITIVE).sum()),
        'negative': int((labels == NEGATIVE).sum()),
        'uncertain': int((labels == UNCERTAIN).sum()),
        'blank': int(np.isnan(labels).sum()),
    }


def _could_have_two_classes(kinds: Mapping[str, int]) -> bool:
    """Blank can become negative, uncertain either class: all pairs do but negative with blank."""
    has_positive = kinds['positive'] > 0 or kinds['uncertain'] > 0
    return has_positive and sum(count > 0 for count in kinds.values()) >= 2


def _describe_refusal(label: str, left: tuple[int, int], kinds: Mapping[str, int]) -> str:
    keys = []
    if kinds['uncertain']:
        keys += ['DATA.UNCERTAIN', 'DATA.UNCERTAIN_BY_LABEL']
    if kinds['blank'] and label != NO_FINDING:
        keys += ['DATA.BLANK']
    found = ', '.join(f'{count} {kind}' for kind, count in kinds.items())
    return (
        f'{label}: {left[0]} positive, {left[1]} negative targets left of {found} in the CSV; '
        f'change {" or ".join(keys)}'
    )

"""Tasks of fine-tuning (DATA.TASK): the columns, the targets that are learned, and the predictions.

To add a task, write one subclass of `Task` with `@TASKS.register` in a file of its own, and name
the file in `config.py` at DATA.TASK. Predictions are scored without torch, so this module does not
import it: functions of tensors use their methods.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from config import PROBES, REGISTRIES, Config, refuse_unless, value_at
from data.tables.labels import (
    LABELS,
    NO_FINDING,
    POLICIES,
    POSITIVE,
    check_name,
    evaluation_targets,
    file_name,
    positive_logits,
    training_targets,
)
from data.tables.records import task_of

if TYPE_CHECKING:
    from torch import Tensor

TASKS = REGISTRIES['DATA.TASK']


class Task(ABC):
    """The labels of a run, their targets, and what the outputs of a model mean.

    The records of its methods are `data.tables.records.Records`. By default each label has a
    probability of its own, the sigmoid of its logit.

    Attributes:
        config: Options of the run.
        loss: Value of LOSS.NAME if it is not set, and the loss that scores have.
        exclusive: Whether the labels are classes, of which an image has one. Their probabilities
            have the sum 1, and their scores also have metrics of the decisions between them.
        activation: Name, for users of exports, of the function from outputs to probabilities;
            'none' if it has no name.
        has_policies: Whether uncertain labels have policies in training and are never scored, and
            whether images without a target are kept.
        takes_names: Whether DATA.LABELS chooses the labels.
        least_names: Smallest number of names in DATA.LABELS.
    """

    loss: ClassVar[str] = 'bce'
    exclusive: ClassVar[bool] = False
    activation: ClassVar[str] = 'sigmoid'
    has_policies: ClassVar[bool] = False
    takes_names: ClassVar[bool] = False
    least_names: ClassVar[int] = 0

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def names(self) -> tuple[str, ...]:
        """Return DATA.LABELS."""
        return tuple(self.config.DATA.LABELS)

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """Return the names [K] of the predictions."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names [C] of the labels that are read (`Records.label_names`)."""
        return self.names or LABELS

    @property
    def policies(self) -> dict[str, str]:
        """Return label -> name of its policy for uncertain labels; {} without policies."""
        return {}

    @property
    def third_class(self) -> np.ndarray:  # [K] bool
        """Return whether uncertain is a third class of each label."""
        if not self.policies:
            return np.zeros(len(self.labels), bool)
        return np.array([POLICIES[name].third_class for name in self.policies.values()])

    @property
    def num_outputs(self) -> int:
        """Return the number of outputs: one per label, or three if uncertain is a class.

        It counts MODEL.NUM_CLASSES, because SimMIM's own configs build models for ImageNet.
        """
        return self.config.MODEL.NUM_CLASSES * (3 if self.third_class.any() else 1)

    @property
    def needs_predictions(self) -> bool:
        """Return whether a policy reads the file of DATA.SELF_TRAIN_PREDICTIONS."""
        return any(POLICIES[name].needs_predictions for name in self.policies.values())

    @staticmethod
    def check(config: Config, stage: str | None) -> None:
        """Check the options that depend on the task."""
        check_label_options(config, stage)

    @abstractmethod
    def scored(self, records: Any) -> np.ndarray:
        """Return the targets of the metrics, [N, K] float32, NaN where nothing is scored."""

    def learned(self, records: Any, predictions: np.ndarray | None = None) -> np.ndarray:
        """Return the targets of the training loss, [N, K] float32, NaN where nothing is learned.

        The predictions [N, K] are probabilities for the policies that need them.
        """
        return self.scored(records)

    def logits(self, outputs: 'Tensor') -> 'Tensor':
        """Return the logits [B, K] of the labels from the outputs of a model."""
        return positive_logits(outputs, len(self.labels))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the predictions of logits [N, K], in float64."""
        from scipy.special import expit  # slow to import

        return expit(logits.astype(np.float64))


@TASKS.register('observations')
class Observations(Task):
    """Learn each label on its own: the 14 observations, or the columns of DATA.LABELS."""

    has_policies = True
    takes_names = True

    @property
    def labels(self) -> tuple[str, ...]:
        return self.names or LABELS

    @property
    def policies(self) -> dict[str, str]:
        policy, by_label = self.config.DATA.UNCERTAIN, self.config.DATA.UNCERTAIN_BY_LABEL
        check_name('DATA.UNCERTAIN', policy, POLICIES)
        for label, own in by_label.items():
            check_name('DATA.UNCERTAIN_BY_LABEL', label, self.labels)
            check_name(f'DATA.UNCERTAIN_BY_LABEL[{label!r}]', own, POLICIES)
        return {label: by_label.get(label, policy) for label in self.labels}

    def scored(self, records: Any) -> np.ndarray:
        return evaluation_targets(records.labels, self.config.DATA.BLANK, records.label_names)

    def learned(self, records: Any, predictions: np.ndarray | None = None) -> np.ndarray:
        policies = [*self.policies.values()]
        return training_targets(
            records.labels,
            policies,
            blank=self.config.DATA.BLANK,
            rows=records.sample,
            seed=self.config.SEED,
            predictions=predictions,
            names=records.label_names,
            options={p: POLICIES.options_of(p, self.config) for p in policies},
        )


class AgainstNoFinding(Task):
    """Learn one finding against No Finding; images with neither are left out.

    An observation takes precedence over No Finding: an image with both is positive. CheXpert's No
    Finding may occur together with Support Devices.
    """

    @abstractmethod
    def is_positive(self, labels: np.ndarray) -> np.ndarray:
        """Return whether each image has the finding, [N] bool; the labels are [N, 14]."""

    def scored(self, records: Any) -> np.ndarray:
        negative = records.labels[:, LABELS.index(NO_FINDING)] == POSITIVE
        targets = np.where(self.is_positive(records.labels), 1, np.where(negative, 0, np.nan))
        return targets.astype(np.float32)[:, None]


@TASKS.register('any_finding')
class AnyFinding(AgainstNoFinding):
    """Learn any of the 13 observations, with Support Devices, against No Finding.

    Source: Fradkin and Boxer 2023.
    """

    labels = ('Any Finding',)

    def is_positive(self, labels: np.ndarray) -> np.ndarray:
        return np.delete(labels == POSITIVE, LABELS.index(NO_FINDING), axis=1).any(axis=1)


@TASKS.register('any_finding_or_none')
class AnyFindingOrNone(AnyFinding):
    """Learn any of the 13 observations; every other image is negative, and none is left out.

    This gives all images a label, as in the label table of Fradkin and Boxer 2023.
    """

    def scored(self, records: Any) -> np.ndarray:
        return self.is_positive(records.labels).astype(np.float32)[:, None]


@TASKS.register('effusion')
class Effusion(AgainstNoFinding):
    """Learn Pleural Effusion against No Finding."""

    labels = ('Pleural Effusion',)

    def is_positive(self, labels: np.ndarray) -> np.ndarray:
        return labels[:, LABELS.index('Pleural Effusion')] == POSITIVE


@TASKS.register('single_label')
class SingleLabel(Task):
    """Learn which one of the classes DATA.LABELS an image has; images without one are left out.

    The classes have one column each.
    """

    loss = 'cross_entropy'
    exclusive = True
    activation = 'softmax'
    takes_names = True
    least_names = 2

    @property
    def labels(self) -> tuple[str, ...]:
        return self.names

    def scored(self, records: Any) -> np.ndarray:
        """Return one-hot targets, [N, K] float32, and rows of NaN for images without a class.

        Raises:
            ValueError: If an image has several classes.
        """
        has_class = records.labels == POSITIVE
        count = has_class.sum(axis=1)
        if (count > 1).any():
            first = int(np.argmax(count > 1))
            names = ', '.join(np.array(self.labels, object)[has_class[first]])
            raise ValueError(
                f'{records.root / records.csv}: {records.path[first]} has the classes {names}, but '
                "with DATA.TASK 'single_label' an image has one class (see DATA.LABELS); "
                f'{(count > 1).sum()} of {len(count)} images have several'
            )
        return np.where(count[:, None] == 1, has_class, np.nan).astype(np.float32)

    def logits(self, outputs: 'Tensor') -> 'Tensor':
        return outputs.log_softmax(dim=1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        from scipy.special import log_softmax  # slow to import

        return np.exp(log_softmax(logits.astype(np.float64), axis=1))


def check_label_options(config: Config, stage: str | None) -> None:
    """Check the options that depend on the label settings."""
    data, task = config.DATA, task_of(config)
    files = {file_name(label) for label in data.LABELS if isinstance(label, str)}
    are_names = len(files) == len(data.LABELS) and not files & {'', 'path', 'study'}
    allowed = 'different names of columns other than Path and Study'
    refuse_unless(are_names, config, 'DATA.LABELS', allowed)
    of_task = f'with DATA.TASK {data.TASK!r}'
    refuse_unless(task.takes_names or not data.LABELS, config, 'DATA.LABELS', f'[] {of_task}')
    allowed = f'at least {task.least_names} name{"s" * (task.least_names > 1)} {of_task}'
    refuse_unless(len(data.LABELS) >= task.least_names, config, 'DATA.LABELS', allowed)
    needs_predictions = task.needs_predictions  # checks the names of the policies
    if not task.has_policies:
        policy = POLICIES[data.UNCERTAIN]
        is_plain = not (policy.third_class or policy.needs_predictions)
        refuse_unless(is_plain, config, 'DATA.UNCERTAIN', f'left out {of_task}')
        refuse_unless(
            not data.UNCERTAIN_BY_LABEL, config, 'DATA.UNCERTAIN_BY_LABEL', f'{{}} {of_task}'
        )
    if stage != 'finetune':
        return
    allowed = f'left out, or {len(task.labels)}, the number of labels of DATA.TASK and DATA.LABELS'
    refuse_unless(
        config.MODEL.NUM_CLASSES == len(task.labels), config, 'MODEL.NUM_CLASSES', allowed
    )
    if task.third_class.any():
        because = 'with a policy for which uncertain is a third class'
        has_classes = config.LOSS.NAME in ('bce', 'focal')
        refuse_unless(has_classes, config, 'LOSS.NAME', f"'bce' or 'focal' {because}")
        trains_head = config.FINETUNE.MODE not in PROBES
        refuse_unless(
            trains_head, config, 'FINETUNE.MODE', f'a mode that trains the head {because}'
        )
        for key in ('MODEL.LABEL_SMOOTHING', 'AUG.MIXUP', 'AUG.CUTMIX', 'AUG.CUTMIX_MINMAX'):
            refuse_unless(not value_at(config, key), config, key, f'0 or None {because}')
    if task.exclusive:
        refuse_unless(not data.PSEUDO_LABELS, config, 'DATA.PSEUDO_LABELS', f"'' {of_task}")
    if config.EVAL_MODE:
        return
    if needs_predictions:
        allowed = "predictions of the training images, see the policy 'self_train' in the docs"
        given = data.SELF_TRAIN_PREDICTIONS
        refuse_unless(given, config, 'DATA.SELF_TRAIN_PREDICTIONS', allowed)
    if data.PSEUDO_LABELS:
        allowed = 'below 1 (or DATA.TRAIN_IMAGES above 0) with DATA.PSEUDO_LABELS'
        has_subset = data.TRAIN_FRACTION < 1 or data.TRAIN_IMAGES
        refuse_unless(has_subset, config, 'DATA.TRAIN_FRACTION', allowed)

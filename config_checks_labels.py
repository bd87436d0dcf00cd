"""What the labels that fine-tuning learns from ask of the other options."""

from collections.abc import Iterator
from typing import Any


def label_demands(config: Any) -> Iterator[tuple[str, bool, str]]:
    """Key, whether its value will do, and what is allowed: one after another."""
    if not config.EVAL_MODE:
        yield from _file_demands(config.DATA)
    policies = {config.DATA.UNCERTAIN, *config.DATA.UNCERTAIN_BY_LABEL.values()}
    if 'multiclass' in policies:  # a loss over three classes, a head that is trained
        yield 'DATA.TASK', config.DATA.TASK == 'observations', "'observations' with 'multiclass'"
        yield 'LOSS.NAME', config.LOSS.NAME == 'bce', "'bce' with the policy 'multiclass'"
        allowed = "'full' or 'last_layer' with the policy 'multiclass'"
        yield 'FINETUNE.MODE', config.FINETUNE.MODE in ('full', 'last_layer'), allowed


def _file_demands(data: Any) -> Iterator[tuple[str, bool, str]]:
    """Files that take the place of labels."""
    needs_file = 'self_train' in (data.UNCERTAIN, *data.UNCERTAIN_BY_LABEL.values())
    allowed = (
        "a predictions file over the training images where a policy is 'self_train': train with "
        "'ignore' and EVAL.PREDICT_TRAIN True first, it writes predictions_train.csv"
    )
    is_named = bool(data.SELF_TRAIN_PREDICTIONS)
    yield 'DATA.SELF_TRAIN_PREDICTIONS', is_named or not needs_file, allowed
    is_subset = data.TRAIN_FRACTION < 1 or data.TRAIN_IMAGES > 0
    allowed = (
        'below 1 (or DATA.TRAIN_IMAGES above 0) with DATA.PSEUDO_LABELS: else no patient is '
        'left without labels'
    )
    yield 'DATA.TRAIN_FRACTION', is_subset or not data.PSEUDO_LABELS, allowed

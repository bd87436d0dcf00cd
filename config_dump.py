"""The options of a run as text, how two such texts differ, and which options decide training."""

from collections.abc import Iterator

import yaml
from yacs.config import CfgNode

from config_merge import load_yaml

# The options that leave it as it is what is trained: where things lie, how work is shared, what is
# saved and printed, and the sections of what is evaluated and reported.
FREE_OPTIONS = (
    'OUTPUT', 'MODEL.NAME', 'TAG', 'PRETRAINED', 'MODEL.RESUME', 'TRAIN.AUTO_RESUME',
    'TRAIN.START_EPOCH', 'DATA.DATA_PATH', 'DATA.CACHE_DIR', 'DATA.NUM_WORKERS', 'DATA.PIN_MEMORY',
    'DATA.SELF_TRAIN_PREDICTIONS', 'DATA.BATCH_SIZE', 'TRAIN.ACCUMULATION_STEPS', 'PRINT_FREQ',
    'SAVE_FREQ', 'SAVE_KEEP', 'TRAIN.SAVE_EVERY_STEPS', 'TRAIN.SAVE_EVERY_MINUTES',
    'TRAIN.RANK_TIMEOUT_MINUTES', 'EVAL_MODE', 'THROUGHPUT_MODE', 'CHECK_MODE', 'LOCAL_RANK',
)  # fmt: skip
REPORTED_SECTIONS = ('TEST', 'EVAL', 'REPORT')


def config_text(config: CfgNode) -> str:
    """The options as YAML that repeats the run as --cfg; BASE is empty, being merged already."""
    plain = config.clone()
    plain.defrost()
    plain.BASE = ['']
    return plain.dump(sort_keys=False)


def config_changes(before: str, after: str) -> list[str]:
    """The options that differ between two texts of config_text, a line each: 'KEY: old -> new'."""
    old, new = (dict(_flatten(_load(text))) for text in (before, after))
    return [f'{key}: {old.get(key)} -> {new.get(key)}' for key in _differing(old, new)]


def training_changes(before: str, after: str, defaults: str) -> list[str]:
    """Those of config_changes that decide what is trained; what `before` lacks was the default."""
    old, new, usual = (dict(_flatten(_load(text))) for text in (before, after, defaults))
    old |= {key: value for key, value in usual.items() if key not in old and value == new.get(key)}
    return [
        f'{key}: {old.get(key)} -> {new.get(key)}'
        for key in _differing(old, new)
        if key not in FREE_OPTIONS and key.partition('.')[0] not in REPORTED_SECTIONS
    ]


def has_more_epochs(before: str, after: str) -> bool:
    """Whether there is something left to train for a run that has all epochs of `before`."""
    old, new = (dict(_flatten(_load(text))).get('TRAIN.EPOCHS') for text in (before, after))
    return isinstance(old, int) and new > old


def as_trained(before: str, after: str) -> str:
    """The options `before`, with those of `after` for what is evaluated and reported."""
    reported = {key: value for key, value in _load(after).items() if key in REPORTED_SECTIONS}
    return yaml.safe_dump(_load(before) | reported, sort_keys=False)


def _differing(old: dict, new: dict) -> list[str]:
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def _load(text: str) -> dict:
    options = load_yaml(text)
    if not isinstance(options, dict):
        raise ValueError('it is no mapping of options to values')
    return options


def _flatten(node: dict, prefix: str = '') -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value

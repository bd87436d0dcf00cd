"""The options of a run as text, and how two such texts differ."""

from collections.abc import Iterator

import yaml
from yacs.config import CfgNode


def config_text(config: CfgNode) -> str:
    """The options as YAML that repeats the run as --cfg; BASE is empty, being merged already."""
    plain = config.clone()
    plain.defrost()
    plain.BASE = ['']
    return plain.dump(sort_keys=False)


def config_changes(before: str, after: str) -> list[str]:
    """The options that differ between two texts of config_text, a line each: 'KEY: old -> new'."""
    old, new = (dict(_flatten(yaml.safe_load(text))) for text in (before, after))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f'{key}: {old.get(key)} -> {new.get(key)}' for key in keys]


def _flatten(node: dict, prefix: str = '') -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value

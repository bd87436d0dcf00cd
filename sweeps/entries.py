"""Checks of what a sweep file says: names, keys, options, and the YAML files that it names."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from config import default_config
from config_merge import put
from sweeps.rows import MODEL_NAMES, changed_config

NAME = re.compile(r'[\w.-]+', re.ASCII)


def names_in(path: Path, section: str) -> list[str]:
    """Names in a section as they are written: YAML reads 1000_0.25 as a number, 10000.25.

    Raises:
        ValueError: if one is no name, or is there twice, be it as a number written in two ways.
    """
    root = yaml.compose(path.read_text(encoding='utf-8'), Loader=yaml.SafeLoader)
    found = [value for key, value in root.value if key.value == section]
    if len(found) > 1:
        raise ValueError(f'{path}: {section}: is there twice')
    names, values = [], []
    for key, _ in found[0].value:
        if not NAME.fullmatch(key.value):
            what = section.removesuffix('s')
            raise ValueError(
                f'{path}: a {what} must have a name of letters, digits, . _ -: {key.value!r}'
            )
        value = SafeConstructor().construct_object(key)
        if key.value in names or value in values:
            raise ValueError(f'{path}: {section} {key.value}: is there twice')
        names.append(key.value)
        values.append(value)
    return names


def check_file(file: Path, stage: str, where: str) -> None:
    if not file.is_file():
        raise ValueError(f'{where} there is no {file}')
    name = changed_config(file, stage).MODEL.NAME
    if name != MODEL_NAMES[stage]:
        raise ValueError(f'{file}: MODEL.NAME must be {MODEL_NAMES[stage]!r}, got {name!r}')


def check_options(options: Any, where: str) -> dict[str, Any]:
    """Options by key, of which each is there and can have its value."""
    refuse_others(options, None, f'{where}:')
    config = default_config()
    for key, value in options.items():
        put(config, key, value, where)
    return options


def refuse_others(entry: Any, allowed: set[str] | None, where: str) -> None:
    """Refuse what is no mapping, or has other keys than those that are allowed; None: any."""
    if not isinstance(entry, dict):
        raise ValueError(f'{where} must be keys and values, got {json.dumps(entry)}')
    if allowed is not None and (others := [key for key in entry if key not in allowed]):
        raise ValueError(f'{where} {others[0]!r} is not one of {sorted(allowed)}')

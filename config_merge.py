"""Merging YAML files, KEY VALUE pairs and flags into the config: keys, types, BASE chains."""

import difflib
import math
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

# What may stand where None may stand too.
OR_NONE = {
    'MODEL.SWIN.QK_SCALE': float,
    'MODEL.VIT.INIT_VALUES': float,
    'AUG.CUTMIX_MINMAX': list,
    'LOSS.ALPHA': float,
}
TYPE_NAMES = {
    bool: 'True or False',
    int: 'an integer',
    float: 'a finite number',
    str: 'text',
    list: 'a list',
    tuple: 'a list',
}


def merge_file(config: dict, path: Path, chain: tuple[Path, ...] = ()) -> None:
    """Merge a YAML file, after the files that its BASE names; chain is how BASE led here."""
    if path.resolve() in [above.resolve() for above in chain]:
        raise ValueError(f'BASE goes in a loop: {" -> ".join(map(str, (*chain, path)))}')
    values = _read_yaml(path, chain)
    base = values.get('BASE', [])
    if not isinstance(base, list) or not all(isinstance(name, str) for name in base):
        raise ValueError(f'BASE in {path} must be a list of paths like [base.yaml], got {base!r}')
    for name in filter(None, base):
        merge_file(config, path.parent / name, (*chain, path))
    merge_mapping(config, values, str(path))


def merge_mapping(config: dict, values: dict, source: str, prefix: str = '') -> None:
    """Merge nested keys; source (a file) stands in the messages."""
    for name, value in values.items():
        key = f'{prefix}{name}'
        current = _find(config, key, source)
        if _is_section(current) and isinstance(value, dict):
            merge_mapping(config, value, source, f'{key}.')
            continue
        if isinstance(value, str) and not isinstance(current, str):
            value = _literal(value)  # PyYAML reads 1e-4 as text
        put(config, key, value, source)


def merge_pairs(config: dict, pairs: list, source: str) -> None:
    """Merge [key, value, key, value, ...]; a value that is text is read as a Python literal."""
    if len(pairs) % 2:
        raise ValueError(f'{source} takes pairs of KEY VALUE, got {len(pairs)} words: {pairs}')
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        put(config, key, _literal(value) if isinstance(value, str) else value, source)


def put(config: dict, key: str, value: Any, source: str) -> None:
    """Set the value at a dotted key, of its default's type; an integer passes for a float."""
    current = _find(config, key, source)
    if _is_section(current):
        raise ValueError(f'{key} in {source} is a section of keys, got {value!r}')
    if _is_mapping(current):
        value = _mapping(key, value, source, type(current))
    elif not (value is None and key in OR_NONE):
        value = _typed(key, value, source, OR_NONE.get(key, type(current)))
    section, _, name = key.rpartition('.')
    setattr(_find(config, section, source) if section else config, name, value)


def _read_yaml(path: Path, chain: tuple[Path, ...]) -> dict:
    if not path.is_file():
        named = f', which BASE in {chain[-1]} names' if chain else ''
        raise ValueError(f'there is no config file {path}{named}')
    try:
        values = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} cannot be read as plain YAML: {error}') from error
    if values is None:
        raise ValueError(f'{path} is empty: a config file is a mapping of keys to values')
    if not isinstance(values, dict):
        raise ValueError(f'{path} must be a mapping of keys to values, got {values!r:.80}')
    return values


def _literal(text: str) -> Any:
    """What the text says as a Python literal, else the text itself."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _is_mapping(value: Any) -> bool:
    """Whether a value is a mapping whose names the user chooses."""
    return isinstance(value, dict) and value.is_new_allowed()


def _is_section(value: Any) -> bool:
    return isinstance(value, dict) and not value.is_new_allowed()


def _find(config: dict, key: str, source: str) -> Any:
    """The value at a dotted key."""
    node = config
    for name in str(key).split('.'):
        if not _is_section(node) or name not in node:
            raise ValueError(f'unknown key {key} in {source}{_close_keys(config, str(key))}')
        node = node[name]
    return node


def _close_keys(config: dict, key: str) -> str:
    keys = list(_all_keys(config))
    close = [known for known in keys if known.split('.')[-1] == key.split('.')[-1]]
    close += [known for known in difflib.get_close_matches(key, keys) if known not in close]
    return f'; did you mean {" or ".join(close[:3])}?' if close else ''


def _all_keys(node: dict, prefix: str = '') -> Iterator[str]:
    for name, value in node.items():
        if _is_section(value):
            yield from _all_keys(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}'


def _mapping(key: str, value: Any, source: str, node_type: type) -> dict:
    """The value as a node of its own, which takes the place of what stood there."""
    if not isinstance(value, dict) or not all(
        isinstance(text, str) for item in value.items() for text in item
    ):
        raise ValueError(f'{key} in {source} must be a mapping of text to text, got {value!r}')
    return node_type(dict(value), new_allowed=True)


def _typed(key: str, value: Any, source: str, kind: type) -> Any:
    typed = value
    if kind is float and type(value) is int:
        typed = float(value)
    elif kind in (list, tuple) and isinstance(value, (list, tuple)):
        typed = kind(value)
    if type(typed) is kind and (kind is not float or math.isfinite(typed)):
        return typed
    or_none = ' or None' if key in OR_NONE else ''
    hint = ''
    if kind is str:
        quoted = repr(str(value))
        hint = f'; as text it is {quoted}' if source != '--opts' else f'; as text it is "{quoted}"'
    raise ValueError(
        f'{key} in {source} must be {TYPE_NAMES[kind]}{or_none}, '
        f'got {value!r} ({type(value).__name__}){hint}'
    )

"""Merging YAML files, KEY VALUE pairs and flags into the config: keys, types, BASE chains."""

import difflib
import math
import os
import re
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
    'CONTRASTIVE.DIM': int,
    'CONTRASTIVE.TEMPERATURE': float,
    'CONTRASTIVE.MOMENTUM': float,
}
MAX_FILES = 100  # that BASE leads to
MAX_BYTES = 2**17  # of a file; one that names all keys has about 10,000
MAX_NODES = 10_000  # of a file: keys and values, each as often as aliases repeat it
MAX_TEXT = 4096  # characters of a value: as long as a path may be
MAX_INTEGER = 2**64
CONTROL = re.compile('[\0-\x1f\x7f]')
SHOWN = 200  # characters of a value in a message
TYPE_NAMES = {
    bool: 'True or False',
    int: 'an integer',
    float: 'a finite number',
    str: 'text',
    list: 'a list',
    tuple: 'a list',
}


def merge_file(config: dict, path: Path) -> None:
    """Merge a YAML file, after the files that its BASE names."""
    _merge_file(config, path, chain=(), read=[])


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
        words = _shown(pairs)
        raise ValueError(f'{source} takes pairs of KEY VALUE, got {len(pairs)} words: {words}')
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        put(config, key, _literal(value) if isinstance(value, str) else value, source)


def put(config: dict, key: str, value: Any, source: str) -> None:
    """Set the value at a dotted key, of its default's type; an integer passes for a float."""
    current = _find(config, key, source)
    if _is_section(current):
        raise ValueError(f'{key} in {source} is a section of keys, got {_shown(value)}')
    if _is_mapping(current):
        value = _mapping(key, value, source, type(current))
    elif not (value is None and key in OR_NONE):
        value = _typed(key, value, source, OR_NONE.get(key, type(current)))
    section, _, name = key.rpartition('.')
    setattr(_find(config, section, source) if section else config, name, value)


def value_at(config: dict, key: str) -> Any:
    """The value at a dotted key."""
    return _find(config, key, 'the config')


def load_yaml(text: str) -> Any:
    """Plain YAML as values; quick and small whatever the text is.

    Raises:
        ValueError: if it is no YAML, names a Python object, or is too large or too deep.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f'it has more than {MAX_BYTES:,} characters')
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_nodes(node, {}) > MAX_NODES:
            raise ValueError(f'it stands for more than {MAX_NODES:,} keys and values')
        return loader.construct_document(node)
    except Exception as error:  # '!!int x' and the like make PyYAML raise almost anything
        reason = ' '.join(str(error).split())
        raise ValueError(reason or type(error).__name__) from error


class _Loader(yaml.SafeLoader):
    """The safe loader, for integers that can be shown."""

    def construct_integer(self, node: yaml.Node) -> int:
        if len(node.value) > SHOWN:
            raise ValueError(f'an integer of {len(node.value):,} characters')
        return self.construct_yaml_int(node)


_Loader.add_constructor('tag:yaml.org,2002:int', _Loader.construct_integer)


def _count_nodes(node: yaml.Node, counts: dict[int, float]) -> float:
    """Nodes of a tree, those that aliases name each time; infinite if one is inside itself."""
    if id(node) not in counts:
        counts[id(node)] = math.inf
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in children for child in pair]
        counts[id(node)] = 1 + sum(_count_nodes(child, counts) for child in children)
    return counts[id(node)]


def _merge_file(config: dict, path: Path, *, chain: tuple[Path, ...], read: list[Path]) -> None:
    """Merge a file; chain is how BASE led here, `read` lists all files so far."""
    named = f', which BASE in {chain[-1]} names' if chain else ''
    if not os.path.isfile(path):
        raise ValueError(f'there is no config file {path}{named}')
    if path.resolve() in [above.resolve() for above in chain]:
        raise ValueError(f'BASE goes in a loop: {" -> ".join(map(str, (*chain, path)))}')
    read.append(path)
    if len(read) > MAX_FILES:
        raise ValueError(f'BASE in {read[0]} leads to more than {MAX_FILES} files')
    values = _read_yaml(path)
    base = values.get('BASE', [])
    if not isinstance(base, list) or not all(_is_text(name) for name in base):
        raise ValueError(
            f'BASE in {path} must be a list of paths like [base.yaml], got {_shown(base)}'
        )
    for name in filter(None, base):
        _merge_file(config, path.parent / name, chain=(*chain, path), read=read)
    merge_mapping(config, values, str(path))


def _read_yaml(path: Path) -> dict:
    try:
        with open(path, encoding='utf-8') as file:
            values = load_yaml(file.read(MAX_BYTES + 1))
    except (ValueError, OSError) as error:
        raise ValueError(f'{path} cannot be read as plain YAML: {error}') from error
    if values is None:
        raise ValueError(f'{path} is empty: a config file is a mapping of keys to values')
    if not isinstance(values, dict):
        raise ValueError(f'{path} must be a mapping of keys to values, got {_shown(values)}')
    return values


def _literal(text: str) -> Any:
    """What the text says as a Python literal, else the text itself."""
    if len(text) > MAX_TEXT:
        return text
    try:
        value = literal_eval(text)
        repr(value)  # messages show it; a ValueError for an integer of thousands of digits
        return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _is_text(value: Any) -> bool:
    """Whether it is text such as a name or a path may be."""
    return isinstance(value, str) and len(value) <= MAX_TEXT and not CONTROL.search(value)


def _shown(value: Any) -> str:
    """A value as messages show it, in one line."""
    text = repr(value)
    return text if len(text) <= SHOWN else f'{text[:SHOWN]}...'


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
            key = str(key)
            shown = key if _is_text(key) and len(key) <= SHOWN else _shown(key)
            raise ValueError(f'unknown key {shown} in {source}{_close_keys(config, key)}')
        node = node[name]
    return node


def _close_keys(config: dict, key: str) -> str:
    keys = list(_all_keys(config)) if len(key) <= SHOWN else []
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
        _is_text(text) for item in value.items() for text in item
    ):
        raise ValueError(
            f'{key} in {source} must be a mapping of text to text, got {_shown(value)}'
        )
    return node_type(dict(value), new_allowed=True)


def _typed(key: str, value: Any, source: str, kind: type) -> Any:
    typed = value
    if kind is float and type(value) is int and abs(value) <= MAX_INTEGER:
        typed = float(value)
    elif kind in (list, tuple) and isinstance(value, (list, tuple)):
        typed = kind(value)
    if type(typed) is kind and all(map(_is_usable, typed if kind in (list, tuple) else [typed])):
        return typed
    or_none = ' or None' if key in OR_NONE else ''
    hint = ''
    if type(typed) is kind and kind is not float:
        hint = f'; numbers end at 2**64, text at {MAX_TEXT} characters, none of them for control'
    elif kind is str:
        quoted = _shown(str(value))
        hint = f'; as text it is {quoted}' if source != '--opts' else f'; as text it is "{quoted}"'
    raise ValueError(
        f'{key} in {source} must be {TYPE_NAMES[kind]}{or_none}, '
        f'got {_shown(value)} ({type(value).__name__}){hint}'
    )


def _is_usable(value: Any) -> bool:
    """Whether a value, or a part of a list, is one that all can calculate with and show."""
    if isinstance(value, str):
        return _is_text(value)
    if type(value) is int:
        return abs(value) <= MAX_INTEGER
    return not isinstance(value, float) or math.isfinite(value)

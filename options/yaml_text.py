"""Read YAML as plain values, without aliases, repeated keys or numbers of YAML 1.1."""

import re
from collections.abc import Callable
from typing import Any

import yaml

YAML_LENGTH, YAML_DEPTH = 250_000, 20  # largest file in characters, and deepest nesting


class _UniqueKeys:
    """Refuses a key that a mapping of YAML has twice; PyYAML alone drops the first value."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()  # else refused below
        names = [str(key.value) for key, _ in pairs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f'line {node.start_mark.line + 1}: {twice!r} occurs twice')
        return super().construct_mapping(node, deep)


# libyaml reads a config about ten times as fast as the loader in Python.
class YamlLoader(_UniqueKeys, getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
    """Reads YAML as plain values."""


def _as_number(node_kind: str) -> Callable[[YamlLoader, yaml.ScalarNode], Any]:
    """Return a constructor that leaves numbers as text which only YAML 1.1 reads as others.

    It reads 0100 as 64 and 1:40 as 100. As text they are refused where a number is expected.
    """

    def construct(loader: YamlLoader, node: yaml.ScalarNode) -> Any:
        text = loader.construct_scalar(node)
        is_other = ':' in text or (node_kind == 'int' and re.match(r'[-+]?0[\d_]', text))
        return text if is_other else getattr(loader, f'construct_yaml_{node_kind}')(node)

    return construct


for _kind in ('int', 'float'):
    YamlLoader.add_constructor(f'tag:yaml.org,2002:{_kind}', _as_number(_kind))


class _TextLoader(_UniqueKeys, yaml.BaseLoader):
    """Reads the values of YAML as text."""


def load_yaml(text: str, *, as_text: bool = False) -> Any:
    """Read YAML text as plain values.

    Args:
        text: YAML text without aliases, which could make a short text fill the memory.
        as_text: Whether to leave all values as text, so that `yes` and `1.0` stay as written.

    Raises:
        ValueError: If the text is not YAML, is too long or too deep, or contains aliases, Python
            objects or a key that occurs twice in a mapping.
    """
    loader, depth = _TextLoader if as_text else YamlLoader, 0
    if len(text) > YAML_LENGTH:
        raise ValueError(f'{len(text):,} characters of YAML; {YAML_LENGTH:,} are allowed')
    try:
        for event in yaml.parse(text, loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(
                    f'*{event.anchor} is an alias; put text that begins with * in quotes'
                )
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > YAML_DEPTH:
                raise ValueError(f'more than {YAML_DEPTH} nested values')
        return yaml.load(text, loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f'this is not plain YAML: {" ".join(str(error).split())}') from error

"""The values of a run: read, merge and set them by dotted key."""

import difflib
import math
import re
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yacs.config import CfgNode
from yacs.config import CfgNode as CN

from options.declaration import OPTIONS
from options.legacy import LEGACY_KEYS
from options.yaml_text import load_yaml


class Config(CfgNode):
    """Root node of the options. Merging follows BASE and checks keys and types."""

    def merge_from_file(self, cfg_filename: str | Path) -> None:
        _merge_file(self, shipped_file(cfg_filename))

    def merge_from_list(self, cfg_list: list) -> None:
        if len(cfg_list) % 2:
            raise ValueError(f'{COMMAND_LINE} needs pairs of KEY VALUE, got {cfg_list}')
        _merge(self, dict(zip(cfg_list[::2], cfg_list[1::2], strict=True)), COMMAND_LINE)


DEFAULTS = Config()
COMMAND_LINE = '--opts'
ROOT = Path(__file__).resolve().parents[1]
NUM_SIMILAR = 3  # config files that a message names


def default_config() -> Config:
    """Return an unfrozen copy of the default options."""
    return DEFAULTS.clone()


def shipped_file(path: str | Path) -> Path:
    """Return the path of a config file, which may be given relative to this project.

    Raises:
        ValueError: If it does not exist. The message names shipped files that resemble it.
    """
    for file in (Path(path), ROOT / path):
        if file.exists() and not file.is_dir():  # it may be a pipe of the shell
            return file

    def likeness(name: str) -> float:
        common = set(re.findall('[a-z0-9]+', name)) & set(re.findall('[a-z0-9]+', wanted))
        return len(common) + difflib.SequenceMatcher(None, name, wanted).ratio()

    wanted = str(path).lower()
    names = [str(file.relative_to(ROOT)) for file in ROOT.glob('configs/*/*__*.yaml')]
    similar = sorted(names, key=likeness, reverse=True)[:NUM_SIMILAR]
    raise ValueError(f'there is no config file {path}; similar ones are {", ".join(similar)}')


def value_at(config: CfgNode, key: str) -> Any:
    """Return the value at a dotted key."""
    return _find(config, key, 'the config')


def given_keys(config: Config) -> list[tuple[str, str]]:
    """Return each key that a file or COMMAND_LINE has set, with its source, in their order."""
    return config.__dict__.get('_given', [])


def put(config: CfgNode, key: str, value: Any, source: str) -> None:
    """Set the value at a dotted key.

    Args:
        config: Options to change.
        key: Dotted key.
        value: Value of the default's type, or text that is a Python literal of this type, or a list
            or mapping of YAML. Integers are accepted for floats, and one allowed name for a list
            of names.
        source: Source of the value, for error messages.

    Raises:
        ValueError: If the key does not exist or the value has the wrong type.
    """
    found = _find(config, key, source)
    kind = OPTIONS[key].kind if key in OPTIONS else type(found)
    if _is_mapping(key) and isinstance(value, str) and value.startswith('{'):
        try:
            value = load_yaml(value)  # names need no quotes, and none may occur twice
        except ValueError as error:
            raise ValueError(f'{key} in {source} cannot be read: {error}') from error
    if key in OPTIONS and OPTIONS[key].weighted and isinstance(value, dict):
        value = {name: _as_type(weight, float) for name, weight in value.items()}
        kind = dict
    if kind is list and key in OPTIONS and value in OPTIONS[key].names:
        value = [value]  # one name stands for a list of it
    typed = _as_type(value, kind)
    if kind is dict and isinstance(typed, dict):
        typed = CN(dict(typed), new_allowed=True)
    elif not (
        (typed is None and key in OPTIONS and OPTIONS[key].or_none)
        # A section is no value, and an infinite number works nowhere.
        or (type(typed) is kind is not CfgNode and (kind is not float or math.isfinite(typed)))
    ):
        allowed = 'a section of keys' if kind is CfgNode else kind.__name__
        got = f'{value!r:.100} ({type(value).__name__})'
        raise ValueError(f'{key} in {source} must be {allowed}, got {got}')
    section, _, name = key.rpartition('.')
    setattr(value_at(config, section) if section else config, name, typed)


def _as_type(value: Any, kind: type) -> Any:
    """Convert text to a literal, integers to float and lists to tuple where `kind` needs it."""
    if isinstance(value, str):
        # A string option keeps text such as '1e-4' or 'None' as it is.
        literal = _literal(value)  # PyYAML reads 1e-4 as text
        value = literal if kind is not str or isinstance(literal, str) else value
    if kind is float and type(value) is int:
        return float(value)
    if kind in (list, tuple) and isinstance(value, (list, tuple)):
        return kind(value)
    return value


def _merge_file(config: Config, path: Path, parents: tuple[Path, ...] = ()) -> None:
    """Merge a YAML file after its BASE files. `parents` is the chain of files that include it."""
    chain = (*parents, path)
    if path.resolve() in [parent.resolve() for parent in parents]:
        raise ValueError(f'BASE files form a cycle: {" -> ".join(map(str, chain))}')
    try:
        options = read_options(path.read_text(encoding='utf-8'))
    except (ValueError, OSError) as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    put(config, 'BASE', options.get('BASE', ['']), str(path))
    names = config.BASE
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f'BASE in {path} must be a list of paths, got {names!r:.100}')
    for name in filter(None, names):
        _merge_file(config, path.parent / name, chain)
    _merge(config, options, str(path))


def _merge(config: Config, options: dict[str, Any], source: str) -> None:
    # Legacy keys are kept, because a later source may select their encoder.
    legacy = config.__dict__.setdefault('_legacy', {})
    legacy |= {key: value for key, value in options.items() if LEGACY_KEYS.get(key)}
    if any(key in LEGACY_KEYS.values() for key in options):
        legacy.clear()
    given = config.__dict__.setdefault('_given', [])
    for key, value in with_current_keys(legacy | options, config.MODEL.TYPE).items():
        put(config, key, value, source)
        given.append((key, source))


def _literal(text: Any) -> Any:
    """Return the value of text that is a Python literal or a list of YAML, or else the value."""
    if not isinstance(text, str):
        return text
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        return load_yaml(text) if text.startswith('[') else text
    except ValueError:
        return text


def _is_mapping(key: str) -> bool:
    """Return whether the value of an option may be a mapping, and not a section of options."""
    return key in OPTIONS and (OPTIONS[key].kind is dict or OPTIONS[key].weighted)


def _find(config: CfgNode, key: str, source: str) -> Any:
    """Return the value at a dotted key, or raise a ValueError with similar keys."""
    node = config
    for name in key.split('.'):
        if not isinstance(node, CfgNode) or name not in node:
            break
        node = node[name]
    else:
        return node
    known = [name for name, _ in flatten(config)]
    # The same name in another section is the most frequent mistake, then a wrong letter.
    close = {name for name in known if name.split('.')[-1] == key.split('.')[-1]}
    close |= {*difflib.get_close_matches(key, known)}
    ratios = {name: difflib.SequenceMatcher(None, key, name).ratio() for name in sorted(close)}
    best = sorted(ratios, key=ratios.get, reverse=True)[:2]
    question = f'; did you mean {" or ".join(best)}?' if best else ''
    raise ValueError(f'unknown key {key} in {source}{question}')


def read_options(text: str) -> dict[str, Any]:
    options = load_yaml(text)
    if not isinstance(options, dict):
        raise ValueError(f'options must be a mapping of keys to values, got {options!r:.100}')
    flat = dict(pairs := [*flatten(options)])
    if len(flat) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'{next(key for key in flat if keys.count(key) > 1)} is given twice')
    return flat


def flatten(node: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yield each option with its dotted key. The value of an option may be a mapping itself."""
    for name, value in node.items():
        key = f'{prefix}{name}'
        if isinstance(value, dict) and not _is_mapping(key):
            yield from flatten(value, f'{key}.')
        else:
            yield key, value


def with_current_keys(options: dict[str, Any], encoder: str) -> dict[str, Any]:
    """Replace LEGACY_KEYS. `encoder` is MODEL.TYPE, unless the options set it."""
    # SimMIM has a key for the channels of each encoder; only that of the selected encoder counts.
    encoder = options.get('MODEL.TYPE', encoder)
    current = {key: value for key, value in options.items() if key not in LEGACY_KEYS}
    channels = f'MODEL.{str(encoder).upper()}.IN_CHANS'
    if channels in LEGACY_KEYS and channels in options:
        current.setdefault(LEGACY_KEYS[channels], options[channels])
    return current

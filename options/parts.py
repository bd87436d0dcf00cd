"""The parts of the code that options select, each imported when it is used."""

from collections import UserDict
from collections.abc import Callable, Iterator
from functools import partial
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from yacs.config import CfgNode

from options.declaration import OPTIONS
from options.values import DEFAULTS, value_at

PACKAGE = __name__.removesuffix('options.parts')  # '' in the repository, 'simmim_xray.' in a wheel


def import_by_name(name: str) -> Any:
    """Import a module by its name in the repository, or an object of it by 'module:object'."""
    return resolve_name(PACKAGE + name)


class OptionError(ValueError):
    """An option has a wrong value. The message names the option, the value and the allowed ones."""


class Registry(UserDict):
    """The parts that an option selects, by their names.

    A module with parts registers them: `MASKS = REGISTRIES['DATA.MASK_TYPE']`, then
    `@MASKS.register('random')` before each part. The option names this module (`Option.parts`),
    which is imported when one of its parts is looked up. Iteration covers all names of the option,
    whether their modules are imported or not. If the selected part has a function
    `check(config, stage)`, `check_config` calls it.

    Args:
        key: Option that selects a part.

    Attributes:
        data: The parts whose modules are imported, by their names in `Option.parts`.
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def __iter__(self) -> Iterator[str]:
        return iter(OPTIONS[self.key].names)

    def __len__(self) -> int:
        return len(OPTIONS[self.key].names)

    def __contains__(self, value: Any) -> bool:
        option = OPTIONS[self.key]
        return value in self.data or option.part_name(value) in option.parts

    def get(self, value: str, default: Any = None) -> Any:
        """Return a part, or the default if the option has no such part."""
        return self[value] if value in self else default

    def __missing__(self, value: str) -> Any:
        """Import the module of a part; a path or an upper-case value has the name of its part."""
        option = OPTIONS[self.key]
        name = option.part_name(value)
        if name not in option.parts:
            raise OptionError(f'{self.key} must be {option.allowed}, got {value!r}')
        module = option.parts[name]
        import_by_name(module)
        assert name in self.data, f'{module} must register {name!r} as a part of {self.key}'
        return self.data[name]

    def options_of(self, value: str, config: CfgNode = DEFAULTS) -> dict[str, Any]:
        """Return the options of a part by their names in lower case; {} if it has none.

        They are those of the section beside the option that has the name of the part: MODEL.SWIN
        for the value 'swin' of MODEL.TYPE. Every part receives them as keyword arguments.

        Args:
            value: Value of the option that selects the part.
            config: Options of the run; without them, the default values.
        """
        name = OPTIONS[self.key].part_name(value).upper()
        section = '.'.join([*self.key.split('.')[:-1], name])
        keys = [option for option in OPTIONS if option.rpartition('.')[0] == section]
        return {option.rpartition('.')[2].lower(): value_at(config, option) for option in keys}

    def register(self, *names: str) -> Callable[[Any], Any]:
        """Return a decorator that adds a part under one or more names."""

        def add(part: Any) -> Any:
            parts = OPTIONS[self.key].parts
            for name in names:
                assert name in parts, f'add {name!r} and its module to the parts of {self.key}'
                assert name not in self.data, f'{self.key} {name!r} is registered twice'
                self.data[name] = part
            return part

        return add


REGISTRIES: dict[str, Registry] = {}


def make_registries() -> None:
    """Make a registry for each option that selects a part of the code."""
    REGISTRIES.update({key: Registry(key) for key, option in OPTIONS.items() if option.parts})


def selected_part(config: CfgNode, key: str, *, with_options: bool = False) -> Any:
    """Return the part that an option selects, or a list of parts if it names several.

    With `with_options`, a function or class already has the options of its section as arguments.
    """
    value, registry = value_at(config, key), REGISTRIES[key]
    if isinstance(value, list | dict):
        return [registry[name] for name in value]
    found = registry[value]
    return partial(found, **registry.options_of(value, config)) if with_options else found


def module_of_option(key: str) -> ModuleType:
    """Return the module that implements an option, which is imported when it is first used."""
    return import_by_name(OPTIONS[key].file)


def refuse_unless(is_allowed: bool, config: CfgNode, key: str, allowed: str) -> None:
    """Raise an OptionError with the key, value and allowed values, unless `is_allowed` is true."""
    if not is_allowed:
        value = value_at(config, key)
        shown = dict(value) if isinstance(value, dict) else value  # not as a CfgNode
        raise OptionError(f'{key} must be {allowed}, got {shown!r}')

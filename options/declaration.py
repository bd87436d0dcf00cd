"""How an option is declared: its default, meaning, allowed values, parts and effects."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from yacs.config import CfgNode
from yacs.config import CfgNode as CN


@dataclass(frozen=True)
class Option:
    """An option: its default value, its meaning and its allowed values.

    Args:
        default: Value unless a source sets another one; its type is the type of all values. {} is
            a mapping with names that the user chooses.
        meaning: What the option does, as plain sentences with units.
        one_of: Allowed values, or allowed elements of a list. (): all values of the type.
        parts: For an option that selects a part of the code, the module of each allowed value. It
            registers the part (`Registry`), and is imported when the part is used. A module for
            `suffix` is the one of all paths.
        file: Module that implements the option (`module_of_option`). If it has a function
            `check(config, stage)`, this checks values that switch something on.
        off: Values with which the file is not needed, besides the default.
        stage: Stages that use the option, 'simmim', 'contrastive' or 'finetune'. None: those of
            the section, or else all.
        within: Interval of the number, or of each number of a list, such as '[0, 1)'.
        or_none: Type of the values of an option that may also be None.
        suffix: Text that ends in this suffix, such as the path of a file, is allowed, too.
        any_case: Whether names may also be written in upper case.
        weighted: Whether the value may also be a mapping of the names to weights above 0.
        affects: One or more of EFFECTS. None: what the section affects, or else 'weights'.
    """

    default: Any
    meaning: str
    one_of: tuple = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    file: str = ''
    off: tuple = ()
    stage: str | tuple[str, ...] | None = None
    within: str = ''
    or_none: type | None = None
    suffix: str = ''
    any_case: bool = False
    weighted: bool = False
    affects: str | tuple[str, ...] | None = None

    @property
    def names(self) -> tuple:
        """Allowed values without paths; () if all values of the type are allowed."""
        return self.one_of or tuple(name for name in self.parts if name != self.suffix)

    @property
    def kind(self) -> type:
        """Type of the values other than None."""
        return self.or_none or type(self.default)

    @property
    def allowed(self) -> str:
        """Description of the allowed values; '' if all values of the type are allowed."""
        which = 'some of' if self.kind is list else 'one of'
        names = f'{which} {[*self.names]}' if self.names else ''
        path = f', or a path that ends in {self.suffix}' if self.suffix else ''
        weights = ', or a mapping of these names to weights above 0' if self.weighted else ''
        return names + path + weights + (f'a number in {self.within}' if self.within else '')

    def allows(self, value: Any) -> bool:
        """Return whether a value of the right type is allowed."""
        if value is None:
            return self.or_none is not None
        if self.weighted and isinstance(value, Mapping):
            return bool(value) and all(
                self._allows(name) and type(weight) is float and is_inside(weight, '(0, inf)')
                for name, weight in value.items()
            )
        return all(map(self._allows, value if isinstance(value, (list, tuple)) else [value]))

    def is_used_in(self, stage: str | None) -> bool:
        """Return whether a stage uses the option; None: whether all stages do."""
        return not self.stage or stage in self.stage

    def part_name(self, value: Any) -> Any:
        """Return the name of a value in `parts`: a path has the name `suffix`."""
        if self.suffix and str(value).endswith(self.suffix):
            return self.suffix
        return value.lower() if self.any_case else value

    def _allows(self, value: Any) -> bool:
        name = self.part_name(value)
        is_named = not self.names or name in (*self.names, self.suffix or None)
        return is_named and (not self.within or is_inside(value, self.within))


class Own(Option):
    """An option that SimMIM does not have."""


class Section(dict):
    """Options and sections by name, which are also attributes."""

    def __init__(self, affects: str = 'weights', stage: str | tuple[str, ...] = ()) -> None:
        """`affects` and `stage` are those of its options unless they say otherwise."""
        super().__init__()
        self.__dict__['affects'] = affects
        self.__dict__['stage'] = stage

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f'the options have no section or option {name}') from error

    __setattr__ = dict.__setitem__


def is_inside(value: Any, interval: str) -> bool:
    """Return whether a number, or each number of a list, lies in an interval like '[0, 1)'."""
    low, high = map(float, interval[1:-1].split(','))
    return all(
        type(number) in (int, float)
        and low <= number <= high
        and (number != low or interval[0] == '[')
        and (number != high or interval[-1] == ']')
        for number in (value if isinstance(value, (list, tuple)) else [value])
    )


OPTIONS: dict[str, Option] = {}  # by dotted key


def declare(options: dict[str, Any], node: CfgNode, section: str = '') -> None:
    """Add options to OPTIONS, and their default values to the node of their section."""
    for name, entry in options.items():
        key = f'{section}{name}'
        if isinstance(entry, Option):
            affects, stage = entry.affects, entry.stage
            if affects is None:
                affects = getattr(options, 'affects', 'weights')
            if stage is None:
                stage = getattr(options, 'stage', ())
            OPTIONS[key] = replace(entry, affects=_as_tuple(affects), stage=_as_tuple(stage))
            node[name] = CN(new_allowed=True) if entry.default == {} else entry.default
        else:
            node[name] = CN()
            declare(entry, node[name], f'{key}.')


def _as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value

"""Values of a report that remember their path: a number on the page names its place in it."""

import math
import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from markupsafe import Markup, escape

# Categories of characters that turn the letters around them, break lines or cannot be seen.
UNSEEN = ('Cc', 'Cf', 'Zl', 'Zp')
# Letters that run from right to left: a word of them, and words beside each other.
LEFTWARD_WORD = (
    '[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefe\U00010800-\U00010fff\U0001e800-\U0001efff]+'
)
LEFTWARD = re.compile(f'{LEFTWARD_WORD}(?: {LEFTWARD_WORD})*')
SCALARS = (str, int, float, bool, type(None))


class Codes(dict):
    """For `str.translate`: a character that is better not printed becomes its code."""

    def __missing__(self, code: int) -> int | str:
        is_unseen = unicodedata.category(chr(code)) in UNSEEN
        self[code] = f'[U+{code:04X}]' if is_unseen else code
        return self[code]


CODES = Codes()


def plain(value: object) -> object:
    """What JSON can hold, keys sorted: NumPy's types become Python's, NaN and infinity None."""
    if isinstance(value, dict):
        return {plain(str(key)): plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):  # half a surrogate pair (an undecodable path) has no UTF-8
        return value.encode('utf-8', 'replace').decode('utf-8')
    if not isinstance(value, SCALARS):
        raise ValueError(f'a report holds text, numbers, lists and dicts, not {value!r}')
    return value


class Node:
    """A value and the keys that lead to it; in a template it prints as an element with both."""

    __slots__ = ('_path', '_value')

    def __init__(self, value: object, path: tuple[str | int, ...] = ()) -> None:
        self._value, self._path = value, path

    def __getitem__(self, key: str | int) -> 'Node':
        return Node(self._value[key], (*self._path, key))

    def __iter__(self) -> Iterator['Node']:
        keys = self._value if isinstance(self._value, dict) else range(len(self._value))
        return (self[key] for key in keys)

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def __len__(self) -> int:
        return len(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return self._value == raw(other)

    __hash__ = None

    def __html__(self) -> Markup:
        """Text as text, counts as counts, every other number with three decimals."""
        if isinstance(self._value, str):
            return words(self._value)
        return self.show(decimal(self._value) if isinstance(self._value, float) else None)

    def __str__(self) -> str:
        raise TypeError(f'{dotted(self._path)}: print it as an element, or use a filter')

    def show(self, shown: str | None = None) -> Markup:
        """The number as `shown` (by default as a count), with its exact value and its path.

        The count of a list is its length.
        """
        value = len(self._value) if isinstance(self._value, list) else self._value
        if value is None:
            return self._element('', 'n/a', ' class="na"')
        return self._element(repr(value), shown or f'{value:,.0f}')

    def _element(self, value: str, shown: str, attributes: str = '') -> Markup:
        return Markup(f'<data value="{value}" data-path="{{}}"{attributes}>{{}}</data>').format(
            dotted(self._path), shown
        )


def words(node: Node | str) -> Markup:
    """Text whose direction does not reach beyond it; words from right to left stand by themselves.

    So the digits and signs of a sentence or a path stay where they were written.
    """
    parts = LEFTWARD.sub(r'<bdi>\g<0></bdi>', str(text(node)))
    return Markup('<bdi>{}</bdi>').format(Markup(parts))


def dotted(path: tuple[str | int, ...]) -> str:
    """Keys joined by dots; a dot inside a key is written %2E."""
    return '.'.join(str(key).replace('%', '%25').replace('.', '%2E') for key in path)


def raw(node: object) -> object:
    """The value itself."""
    return node._value if isinstance(node, Node) else node


def identifier(node: Node) -> str:
    """A name for an element that no other node has."""
    return '-'.join(str(key) for key in node._path)


def entries(node: Node, order: list[str] | None = None) -> list[tuple[str, Node]]:
    """Keys and values of a dict: the keys in `order` first, the others by name."""
    first = [key for key in order or [] if key in node]
    return [(key, node[key]) for key in dict.fromkeys([*first, *raw(node)])]


def decimal(value: float) -> str:
    """Three decimals."""
    return f'{value:.3f}'.replace('-', '\N{MINUS SIGN}')


def count(node: Node) -> Markup:
    """A number without decimals."""
    return node.show()


def probability(node: Node) -> Markup:
    """Three decimals; one that would look like 0 in powers of ten."""
    value = raw(node)
    return node.show(f'{value:.1e}') if value and abs(value) < 0.0005 else node.__html__()


def p_value(node: Node) -> Markup:
    """Three decimals, or '< 0.001'."""
    value = raw(node)
    return node.show('< 0.001' if value is not None and value < 0.001 else decimal(value or 0.0))


def is_known(node: Node) -> bool:
    """Whether there is a value (0 is one)."""
    return raw(node) is not None


def text(node: Node | str) -> Markup:
    """Text for an attribute of an element, where no other element can stand."""
    return escape(raw(node).translate(CODES))

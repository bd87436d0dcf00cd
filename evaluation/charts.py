"""Charts of the report as SVG, and the values that its templates print.

`Node` is a value of report.json together with its path. A number prints as an element with its
exact value and path, so every number on the page can be traced and sorted. Colours come from the
style sheet of the page. Every series differs from its neighbours in dash or marker, not in colour
alone.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

# Pixels of a panel: about 300 wide, so that the text stays legible on a phone.
SIDE, LEFT, RIGHT, TOP, BOTTOM = 236, 48, 14, 10, 44
UNDEFINED = 'not defined: one class only'
LONGEST_TITLE = 32  # letters next to an axis
STRIP = 38  # height of a row of a forest plot
MARKERS = ('circle', 'square', 'triangle')
SMALLEST_RANGE = 1e-6  # of probabilities that a calibration plot can separate
FEW_POINTS = 30  # up to this number, each point of a training curve gets a marker
UNIT = (0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
Series = tuple[Sequence[float | None], Sequence[float | None]]


class Node:
    """A value of the report with its path; a template prints it as an element with both."""

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
        """Escaped text, counts without decimals, and other numbers with three decimals."""
        if isinstance(self._value, str):
            return escape(self._value)
        return self.show(decimal(self._value) if isinstance(self._value, float) else None)

    def __str__(self) -> str:
        raise TypeError(f'{dotted(self._path)}: print it as an element, or use a filter')

    def show(self, shown: str | None = None) -> Markup:
        """The number as `shown` (by default as a count), with its exact value and its path.

        A list is shown as its length.
        """
        value = len(self._value) if isinstance(self._value, list) else self._value
        if value is None:
            return self._element('', 'n/a', ' class="na"')
        return self._element(repr(value), shown or f'{value:,.0f}')

    def _element(self, value: str, shown: str, attributes: str = '') -> Markup:
        return Markup(f'<data value="{value}" data-path="{{}}"{attributes}>{{}}</data>').format(
            dotted(self._path), shown
        )


def dotted(path: tuple[str | int, ...]) -> str:
    """Join keys by dots; a dot inside a key is written %2E."""
    return '.'.join(str(key).replace('%', '%25').replace('.', '%2E') for key in path)


def raw(node: object) -> object:
    """The value of a node."""
    return node._value if isinstance(node, Node) else node


def identifier(node: Node) -> str:
    """An element id that is unique to the node."""
    return '-'.join(str(key) for key in node._path)


def entries(node: Node, order: list[str] | None = None) -> list[tuple[str, Node]]:
    """Keys and values of a dict: first the keys in `order`, then the others by name."""
    first = [key for key in order or [] if key in node]
    return [(key, node[key]) for key in dict.fromkeys([*first, *raw(node)])]


def decimal(value: float) -> str:
    """Three decimals."""
    return f'{value:.3f}'.replace('-', '\N{MINUS SIGN}')


def count(node: Node) -> Markup:
    """A number without decimals."""
    return node.show()


def probability(node: Node) -> Markup:
    """Three decimals, or powers of ten if it would look like 0."""
    value = raw(node)
    return node.show(f'{value:.1e}') if value and abs(value) < 0.0005 else node.__html__()


def p_value(node: Node) -> Markup:
    """Three decimals, or '< 0.001'."""
    value = raw(node)
    return node.show('< 0.001' if value is not None and value < 0.001 else decimal(value or 0.0))


def is_known(node: Node) -> bool:
    """Whether the value is not null."""
    return raw(node) is not None


@dataclass(frozen=True)
class Axis:
    """A range and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    title: str = ''

    def share(self, value: float) -> float:
        """Position of a value: 0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low)

    def names(self) -> list[tuple[float, str]]:
        """The ticks and their text, with as many decimals as their step needs."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        style = 'g' if step >= 1e5 or decimals > 4 else f',.{decimals}f'
        return [(tick, f'{tick:{style}}'.replace('-', '\N{MINUS SIGN}')) for tick in self.ticks]


def nice_axis(values: Iterable[float], title: str = '', *, exact: bool = False) -> Axis:
    """An axis over these values with round ticks.

    Args:
        values: Values that it must contain.
        title: Title with the unit.
        exact: Whether the axis ends at the values instead of the next ticks.
    """
    values = list(values) or [0.0, 1.0]
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    magnitude = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(s * magnitude for s in (1, 2, 5, 10, 20) if (high - low) / (s * magnitude) <= 5.001)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    if exact:
        first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    ticks = tuple(float(f'{i * step:.12g}') for i in range(first, last + 1))
    return Axis(low, high, ticks, title) if exact else Axis(ticks[0], ticks[-1], ticks, title)


class Panel:
    """A chart with a frame: data coordinates in, SVG out."""

    def __init__(self, x: Axis, y: Axis) -> None:
        self.x, self.y = x, y
        self.parts: list[Markup] = []
        self._frame()

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        return LEFT + SIDE * self.x.share(x), TOP + SIDE * (1 - self.y.share(y))

    def line(self, xs: Sequence[float | None], ys: Sequence[float | None], style: str) -> None:
        """A line through the points, interrupted where a value is missing."""
        points = [
            None if x is None or y is None else tuple(round(v, 1) for v in self.place(x, y))
            for x, y in zip(xs, ys, strict=True)
        ]
        pieces, pen = [], 'M'
        for point in _corners(points):
            if point is not None:
                pieces.append(f'{pen}{point[0]:g} {point[1]:g}')
            pen = 'M' if point is None else 'L'
        self.parts.append(Markup('<path class="{}" d="{}"/>').format(style, ''.join(pieces)))

    def marks(self, xs: Sequence, ys: Sequence, style: str, *, marker: str) -> None:
        """A marker at each known point."""
        for x, y in zip(xs, ys, strict=True):
            if x is not None and y is not None:
                self.parts.append(_mark(*self.place(x, y), marker, style))

    def svg(self, key: str, title: str, description: str) -> Markup:
        """The finished chart; `key` must be unique on the page."""
        return Markup(
            '<svg class="panel" viewBox="0 0 {} {}" role="img" aria-labelledby="{}-t {}-d">'
            '<title id="{}-t">{}</title><desc id="{}-d">{}</desc>{}</svg>'
        ).format(
            *(LEFT + SIDE + RIGHT, TOP + SIDE + BOTTOM),
            *(key, key, key, title, key, description),
            Markup('').join(self.parts),
        )

    def note(self, words: str) -> None:
        """A remark in the middle of an empty chart."""
        self._text(LEFT + SIDE / 2, TOP + SIDE / 2 - 8, words, 'middle', 'axis-title')

    def _frame(self) -> None:
        bottom, right = TOP + SIDE, LEFT + SIDE
        for tick, name in self.x.names():
            x = self.place(tick, self.y.low)[0]
            self._rule(x, TOP, x, bottom)
            self._text(x, bottom + 16, name, 'middle')
        for tick, name in self.y.names():
            y = self.place(self.x.low, tick)[1]
            self._rule(LEFT, y, right, y)
            self._text(LEFT - 6, y + 4, name, 'end')
        self._text(LEFT + SIDE / 2, bottom + 36, self.x.title, 'middle', 'axis-title')
        middle = f'rotate(-90) translate({-(TOP + SIDE / 2):g} 12)'
        self.parts.append(
            Markup('<text class="axis-title" transform="{}" text-anchor="middle">{}</text>').format(
                middle, self.y.title
            )
        )

    def _rule(self, x1: float, y1: float, x2: float, y2: float) -> None:
        self.parts.append(
            Markup('<path class="grid" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(x1, y1, x2, y2)
        )

    def _text(self, x: float, y: float, words: str, anchor: str, style: str = 'tick') -> None:
        self.parts.append(
            Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
                style, x, y, anchor, words
            )
        )


def roc(label: Node) -> Markup:
    """The ROC curve, the operating point of the threshold, and radiologists' points."""
    values = raw(label)
    panel = Panel(Axis(*UNIT, '1 \N{MINUS SIGN} specificity'), Axis(*UNIT, 'Sensitivity'))
    panel.line((0, 1), (0, 1), 'chance')
    xs, ys = _series(values['roc'])
    panel.line(xs, ys, 'curve series-0')
    if not xs:
        panel.note(UNDEFINED)
    scores = values['scores']
    specificity, recall = (scores[name]['value'] for name in ('specificity', 'recall'))
    if specificity is not None:
        panel.marks([1 - specificity], [recall], 'operating', marker='cross')
    for i, reader in enumerate(values['radiologists']):
        style = 'reader ' + ('below' if reader['below'] else 'above')
        place = [1 - reader['specificity']], [reader['sensitivity']]
        panel.marks(*place, style, marker=MARKERS[i % len(MARKERS)])
    words = 'Sensitivity against 1 minus specificity; the numbers stand above and in the table.'
    return panel.svg(f'{identifier(label)}-roc', f'ROC curve: {values["label"]}', words)


def precision_recall(label: Node) -> Markup:
    """Precision over recall in steps, as average precision sums it, with the positive share."""
    values = raw(label)
    panel = Panel(Axis(*UNIT, 'Recall (sensitivity)'), Axis(*UNIT, 'Precision'))
    if values['n']:
        panel.line((0, 1), [values['positives'] / values['n']] * 2, 'chance')
    xs, ys = _series(values['precision_recall'])
    if xs and xs[0] > xs[-1]:
        xs, ys = xs[::-1], ys[::-1]
    if not xs:
        panel.note(UNDEFINED)
    # Between two recalls, the precision is that of the higher recall.
    panel.line(
        [x for x in xs for _ in 'ab'][:-1], [y for y in ys for _ in 'ab'][1:], 'curve series-0'
    )
    words = 'Precision against recall; the dashed line is the share of positives.'
    title = f'Precision-recall curve: {values["label"]}'
    return panel.svg(f'{identifier(label)}-pr', title, words)


def calibration(label: Node) -> Markup:
    """Share of positives over mean predicted probability, raw and after temperature scaling."""
    values = raw(label)
    curves = [_series(values['calibration'][name]) for name in ('raw', 'scaled')]
    known = [v for curve in curves for series in curve for v in series if v is not None]
    # With an axis up to 1, the points of a rare label would crowd in the corner.
    top = max(known, default=0.0)
    x = nice_axis([0.0, top if top > SMALLEST_RANGE else 1.0], 'Mean predicted probability')
    panel = Panel(x, replace(x, title='Share of positives'))
    panel.line((0, x.high), (0, x.high), 'chance')
    for i, (xs, ys) in enumerate(curves):
        panel.line(xs, ys, f'curve thin series-{i}')
        panel.marks(xs, ys, f'mark series-{i}', marker=MARKERS[i])
    words = 'Observed share of positives against predicted probability; the diagonal is perfect.'
    return panel.svg(f'{identifier(label)}-calibration', f'Calibration: {values["label"]}', words)


def training_panels(training: Node) -> list[tuple[str, list[Node], Markup]]:
    """Training curves: the losses share one panel, and every other curve has its own.

    Returns:
        (title, curves, chart) of each panel.
    """
    losses = [curve for curve in training['curves'] if 'loss' in raw(curve['name']).lower()]
    groups = [('Loss', losses)] if losses else []
    groups += [(raw(c['name']), [c]) for c in training['curves'] if c not in losses]
    return [(title, curves, _training(training, title, curves)) for title, curves in groups]


def _training(training: Node, title: str, curves: list[Node]) -> Markup:
    epochs = raw(training['epochs'])
    known = [v for curve in curves for v in raw(curve['values']) if v is not None]
    name = (
        title if len(title) <= LONGEST_TITLE else title[:LONGEST_TITLE] + '\N{HORIZONTAL ELLIPSIS}'
    )
    panel = Panel(nice_axis(epochs, 'Epoch', exact=True), nice_axis(known, name))
    for i, curve in enumerate(curves):
        values = raw(curve['values'])
        panel.line(epochs, values, f'curve thin series-{i % 3}')
        if len(epochs) <= FEW_POINTS:
            panel.marks(epochs, values, f'mark series-{i % 3}', marker=MARKERS[i % len(MARKERS)])
    return panel.svg(identifier(curves[0]), title, f'{title} by epoch.')


def forest_axis(scores: Iterable[Node], reference: float) -> Axis:
    """The common axis of a forest plot; it contains the reference value."""
    values = [v for score in scores for v in raw(score).values() if v is not None]
    return nice_axis([*values, reference])


def strip(score: Node, axis: Axis, reference: float, few: bool = False) -> Markup:
    """One row of a forest plot, as wide as its cell: the value, its interval, the reference.

    The other cells of the row contain the numbers, so it is hidden from screen readers.
    """
    parts = [_upright(axis, tick, 'grid') for tick in axis.ticks]
    parts.append(_upright(axis, reference, 'chance'))
    value, low, high = (raw(score)[key] for key in ('value', 'low', 'high'))
    if low is not None:
        parts.append(
            Markup('<line class="whisker{}" x1="{}" x2="{}" y1="50%" y2="50%"/>').format(
                ' few' if few else '', _percent(axis, low), _percent(axis, high)
            )
        )
    if value is not None:
        parts.append(
            Markup('<circle class="{}" cx="{}" cy="50%" r="4.5"/>').format(
                'dot few' if few else 'dot', _percent(axis, value)
            )
        )
    return _strip(parts, STRIP)


def strip_axis(axis: Axis) -> Markup:
    """The axis labels below the rows of a forest plot."""
    return _strip(
        [
            Markup('<text class="{}" x="{}" y="12" text-anchor="middle">{}</text>').format(
                'tick' if tick in (axis.low, axis.high) else 'tick between',
                _percent(axis, tick),
                name,
            )
            for tick, name in axis.names()
        ],
        16,
    )


def key_mark(marker: str, style: str, line: str = '') -> Markup:
    """A sample for a legend: a marker, a line, or both."""
    parts = [Markup('<path class="{}" d="M1 8L27 8"/>').format(line)] if line else []
    parts += [_mark(14, 8, marker, style)] if marker else []
    return Markup('<svg class="key" width="28" height="16" aria-hidden="true">{}</svg>').format(
        Markup('').join(parts)
    )


def _strip(parts: list[Markup], height: int) -> Markup:
    return Markup('<svg class="strip" height="{}" aria-hidden="true">{}</svg>').format(
        height, Markup('').join(parts)
    )


def _upright(axis: Axis, value: float, style: str) -> Markup:
    x = _percent(axis, value)
    return Markup('<line class="{}" x1="{}" x2="{}" y1="0" y2="100%"/>').format(style, x, x)


def _percent(axis: Axis, value: float) -> str:
    return f'{3 + 94 * axis.share(value):.2f}%'  # room for the dots at both ends


def _mark(x: float, y: float, marker: str, style: str) -> Markup:
    shapes = {
        'circle': f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.8"',
        'square': f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"',
        'triangle': f'<path d="M{x:.1f} {y - 4.6:.1f}l4.6 8h-9.2z"',
        'cross': f'<path d="M{x - 5:.1f} {y:.1f}h10M{x:.1f} {y - 5:.1f}v10"',
    }
    return Markup(shapes[marker] + ' class="{}"/>').format(style)


def _series(curve: dict | None) -> Series:
    return (curve['x'], curve['y']) if curve else ([], [])


def _corners(points: list[tuple[float, float] | None]) -> list[tuple[float, float] | None]:
    """Remove points inside vertical or horizontal runs, which do not change the line."""
    kept: list[tuple[float, float] | None] = []
    for point in points:
        if len(kept) > 1 and point and all(kept[-2:]):
            (x1, y1), (x2, y2) = kept[-2:]
            upright = x1 == x2 == point[0] and (y2 - y1) * (point[1] - y2) >= 0
            level = y1 == y2 == point[1] and (x2 - x1) * (point[0] - x2) >= 0
            if upright or level:
                kept.pop()
        kept.append(point)
    return kept

"""SVG charts of the report, and number formats for the templates.

Colours come from the style sheet of the page. Neighbouring series differ in dash or marker and not
only in colour.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

# Sizes in pixels. A panel is about 300 px wide, so that the text stays legible on a phone.
SIDE, LEFT, RIGHT, TOP, BOTTOM = 236, 48, 14, 10, 44
STRIP = 38  # height in pixels of a row in a forest plot
MARKERS = ('circle', 'square', 'triangle')
TICK_PX, GAP_PX = 7, 5  # largest width of a digit, and smallest gap next to a tick label
NUM_SERIES = 6  # number of line styles in the style sheet
FEW_POINTS = 30  # training curves with at most this number of points have markers
UNIT = (0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
CLASSES = ('negative', 'positive')
Values = Sequence[float | None]


def format_value(value: object) -> object:
    """Format a value for the page: three decimals for a float, and all digits of an integer.

    The exact value is an attribute of the element. The page sorts tables by this attribute.
    """
    if isinstance(value, float):
        return number(value, f'{value:.3f}'.replace('-', '\N{MINUS SIGN}'))
    if value is None or isinstance(value, int):
        return number(value, f'{value or 0:,}')
    return value


def number(value: float | None, shown: str) -> Markup:
    """Return an element with a number and the text that shows it; 'n/a' for None."""
    if value is None:
        return Markup('<data value="" class="na">n/a</data>')
    return Markup('<data value="{}">{}</data>').format(repr(value), shown)


def probability(value: float | None) -> object:
    """Format a probability with three decimals, or as a power of ten if it would be 0.000."""
    is_small = value and abs(value) < 0.0005
    return number(value, f'{value:.1e}') if is_small else format_value(value)


def p_value(value: float | None) -> object:
    """Format a p-value with three decimals, or as '< 0.001'."""
    is_small = value is not None and value < 0.001
    return number(value, '< 0.001') if is_small else format_value(value)


@dataclass(frozen=True)
class Axis:
    """Range and ticks of an axis."""

    low: float
    high: float
    ticks: tuple[float, ...]
    title: str = ''

    def share(self, value: float) -> float:
        """Return the relative position of a value, 0 at the low end and 1 at the high end."""
        return (value - self.low) / (self.high - self.low)

    def names(self) -> list[tuple[float, str]]:
        """Return the ticks and their text, with as many decimals as the step needs."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        style = 'g' if step >= 1e5 or decimals > 4 else f',.{decimals}f'
        return [(tick, f'{tick:{style}}'.replace('-', '\N{MINUS SIGN}')) for tick in self.ticks]


def nice_axis(values: Iterable[float], title: str = '', *, exact: bool = False) -> Axis:
    """Return an axis with round ticks that contains all values.

    With `exact`, the axis ends at the smallest and largest value instead of at the next ticks.
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
    """A chart with two axes that converts data coordinates to SVG."""

    def __init__(self, x: Axis, y: Axis) -> None:
        self.x, self.y = x, y
        self.parts: list[Markup] = []
        bottom, right = TOP + SIDE, LEFT + SIDE
        wide, high = (
            TICK_PX * max((len(name) for _, name in axis.names()), default=0) + GAP_PX
            for axis in (x, y)
        )
        # If long tick labels would overlap, only every second or third tick has a label.
        every = max(1, math.ceil(wide * (len(x.ticks) - 1) / SIDE))
        for i, (tick, name) in enumerate(x.names()):
            at = self.to_pixels(tick, y.low)[0]
            self.parts.append(
                element('path', class_='grid', d=f'M{at:.1f} {TOP}L{at:.1f} {bottom}')
            )
            if i % every == 0:
                self.text(at, bottom + 16, name, 'middle')
        for tick, name in y.names():
            at = self.to_pixels(x.low, tick)[1]
            self.parts.append(
                element('path', class_='grid', d=f'M{LEFT} {at:.1f}L{right} {at:.1f}')
            )
            self.text(LEFT - 6, at + 4, name, 'end')
        self.text(LEFT + SIDE / 2, bottom + 36, x.title, 'middle', 'axis-title')
        at = min(12, LEFT - 6 - high)  # the title is to the left of the longest tick label
        self.left = min(0, at - 12)
        turned = f'rotate(-90) translate({-(TOP + SIDE / 2):g} {at})'
        self.parts.append(
            element('text', y.title, class_='axis-title', transform=turned, text_anchor='middle')
        )

    def to_pixels(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel coordinates of a point."""
        return LEFT + SIDE * self.x.share(x), TOP + SIDE * (1 - self.y.share(y))

    def line(self, xs: Values, ys: Values, style: str) -> None:
        """Draw a line through the points with a gap at each missing value."""
        pieces, pen = [], 'M'
        for x, y in zip(xs, ys, strict=True):
            is_known = x is not None and y is not None
            if is_known:
                pieces.append('{}{:.1f} {:.1f}'.format(pen, *self.to_pixels(x, y)))
            pen = 'L' if is_known else 'M'
        self.parts.append(element('path', class_=style, d=''.join(pieces)))

    def marks(self, xs: Values, ys: Values, style: str, *, marker: str) -> None:
        """Draw a marker at each point that is not missing."""
        for x, y in zip(xs, ys, strict=True):
            if x is not None and y is not None:
                self.parts.append(mark(*self.to_pixels(x, y), marker, style))

    def text(self, x: float, y: float, words: str, anchor: str, style: str = 'tick') -> None:
        """Draw text at pixel coordinates. `anchor` is 'middle' or 'end'."""
        position = {'x': f'{x:.1f}', 'y': f'{y:.1f}'}
        self.parts.append(element('text', words, class_=style, **position, text_anchor=anchor))

    def svg(self, key: str, title: str, description: str) -> Markup:
        """Return the finished chart. `key` must be unique on the page."""
        named = [
            element('title', title, id=f'{key}-t'),
            element('desc', description, id=f'{key}-d'),
        ]
        return element(
            'svg',
            *named,
            *self.parts,
            class_='panel',
            viewBox=f'{self.left} 0 {LEFT + SIDE + RIGHT - self.left} {TOP + SIDE + BOTTOM}',
            role='img',
            aria_labelledby=f'{key}-t {key}-d',
        )


def roc(label: dict, key: str) -> Markup:
    """Draw the ROC curve of a label with the operating points of model and radiologists."""
    panel = Panel(Axis(*UNIT, '1 \N{MINUS SIGN} specificity'), Axis(*UNIT, 'Sensitivity'))
    panel.line((0, 1), (0, 1), 'chance')
    panel.line(*_series(label['roc']), 'curve series-0')
    specificity, recall = (label['scores'][name]['value'] for name in ('specificity', 'recall'))
    if specificity is not None:
        panel.marks([1 - specificity], [recall], 'operating', marker='cross')
    for i, reader in enumerate(label['radiologists']):
        style = 'reader ' + ('below' if reader['below'] else 'above')
        position = [1 - reader['specificity']], [reader['sensitivity']]
        panel.marks(*position, style, marker=MARKERS[i % len(MARKERS)])
    words = 'Sensitivity against 1 minus specificity. The numbers are above and in the table.'
    return panel.svg(f'{key}-roc', f'ROC curve: {label["label"]}', words)


def overlaid_roc(sets: Sequence[dict], label: str, key: str) -> Markup:
    """Draw the ROC curves of several models for one label; each set belongs to one model."""
    panel = Panel(Axis(*UNIT, '1 \N{MINUS SIGN} specificity'), Axis(*UNIT, 'Sensitivity'))
    panel.line((0, 1), (0, 1), 'chance')
    for i, scored in enumerate(sets):
        for part in scored['labels']:
            if part['label'] == label:
                panel.line(*_series(part['roc']), series(i))
    words = 'Sensitivity against 1 minus specificity of each model. The numbers are in the table.'
    return panel.svg(key, f'ROC curves: {label}', words)


def series(i: int) -> str:
    """Return the style of the i-th line of a chart."""
    return f'curve series-{i % NUM_SERIES}'


def histogram(label: dict, key: str) -> Markup:
    """Draw histograms of the probabilities of positives and negatives, and the threshold."""
    counts = label['histogram']
    low, high = counts['low'], counts['high']
    shares = [[n / (sum(counts[name]) or 1) for n in counts[name]] for name in CLASSES]
    highest = max(max(values) for values in shares)
    x = nice_axis([low, high], 'Probability')
    panel = Panel(x, nice_axis([0.0, highest], 'Share of the class'))
    for i, values in enumerate(shares):
        edges = [low + (high - low) * j / len(values) for j in range(len(values) + 1)]
        xs = [edge for edge in edges for _ in 'ab']
        panel.line(xs, [0, *(value for value in values for _ in 'ab'), 0], series(i))
    threshold = label['threshold']
    if threshold is not None and x.low <= threshold <= x.high:
        panel.line([threshold] * 2, [panel.y.low, panel.y.high], 'threshold')
    words = 'Shares of the positive and of the negative cases in bins of equal width.'
    return panel.svg(f'{key}-histogram', f'Probabilities: {label["label"]}', words)


def precision_recall(label: dict, key: str) -> Markup:
    """Draw the stepwise precision-recall curve and the share of positives."""
    panel = Panel(Axis(*UNIT, 'Recall (sensitivity)'), Axis(*UNIT, 'Precision'))
    panel.line((0, 1), [label['positives'] / label['n']] * 2, 'chance')
    xs, ys = _series(label['precision_recall'])
    # A precision at recall 0 is that of no case, or of negatives alone: a spike at the left edge.
    start = next((i for i, x in enumerate(xs) if x > 0), len(xs))
    xs, ys = [0] * (start < len(xs)) + xs[start:], ys[start : start + 1] + ys[start:]
    # Average precision uses the precision of the higher recall between two points.
    panel.line(
        [x for x in xs for _ in 'ab'][:-1], [y for y in ys for _ in 'ab'][1:], 'curve series-0'
    )
    words = 'Precision against recall. The dashed line is the share of positives.'
    return panel.svg(f'{key}-pr', f'Precision-recall curve: {label["label"]}', words)


def calibration(label: dict, key: str) -> Markup:
    """Draw the reliability curves before and after temperature scaling."""
    curves = [_series(label['calibration'][name]) for name in ('raw', 'scaled')]
    known = [v for curve in curves for series in curve for v in series if v is not None]
    # With an axis up to 1, the points of a rare label would all lie in the corner.
    x = nice_axis([0.0, max(known, default=0.0) or 1.0], 'Mean predicted probability')
    panel = Panel(x, replace(x, title='Share of positives'))
    panel.line((0, x.high), (0, x.high), 'chance')
    for i, (xs, ys) in enumerate(curves):
        panel.line(xs, ys, f'curve thin series-{i}')
        panel.marks(xs, ys, f'mark series-{i}', marker=MARKERS[i])
    words = 'Observed share of positives against predicted probability. The diagonal is ideal.'
    return panel.svg(f'{key}-calibration', f'Calibration: {label["label"]}', words)


def training_panels(training: dict) -> list[tuple[str, list[dict], Markup]]:
    """Return the title, the curves and the chart of each panel of training curves.

    All losses share one panel. Every other curve has a separate panel.
    """
    epochs, groups = training['epochs'], {}
    for curve in training['curves']:
        title = 'Loss' if 'loss' in curve['name'].lower() else curve['name']
        groups.setdefault(title, []).append(curve)
    panels = []
    for title, curves in groups.items():
        known = [v for curve in curves for v in curve['values'] if v is not None]
        panel = Panel(nice_axis(epochs, 'Epoch', exact=True), nice_axis(known, title))
        for i, curve in enumerate(curves):
            # Epochs without validation (EVAL.EVERY) have no value.
            points = [p for p in zip(epochs, curve['values'], strict=True) if p[1] is not None]
            xs, ys = [x for x, _ in points], [y for _, y in points]
            panel.line(xs, ys, f'curve thin series-{i % 3}')
            if len(epochs) <= FEW_POINTS:
                panel.marks(xs, ys, f'mark series-{i % 3}', marker=MARKERS[i % 3])
        key = f'training-{len(panels)}'
        panels.append((title, curves, panel.svg(key, title, f'{title} by epoch.')))
    return panels


def forest_axis(scores: Iterable[dict], reference: float) -> Axis:
    """Return the common axis of a forest plot, which includes the reference value."""
    values = [score[end] for score in scores for end in ('value', 'low', 'high')]
    return nice_axis([*(v for v in values if v is not None), reference])


def forest_row(score: dict, axis: Axis, reference: float, few: bool = False) -> Markup:
    """Draw a row of a forest plot with the value, the interval and the reference.

    Other cells of the row contain the numbers, so the drawing is hidden from screen readers.
    """
    upright = {'y1': '0', 'y2': '100%'}
    styles = [*((tick, 'grid') for tick in axis.ticks), (reference, 'chance')]
    parts = [
        element('line', class_=style, x1=_percent(axis, x), x2=_percent(axis, x), **upright)
        for x, style in styles
    ]
    value, low, high = (score[key] for key in ('value', 'low', 'high'))
    marked = ' few' if few else ''
    if low is not None:
        ends = {'x1': _percent(axis, low), 'x2': _percent(axis, high)}
        parts.append(element('line', class_=f'whisker{marked}', **ends, y1='50%', y2='50%'))
    if value is not None:
        position = {'cx': _percent(axis, value), 'cy': '50%'}
        parts.append(element('circle', class_=f'dot{marked}', **position, r='4.5'))
    return element('svg', *parts, class_='strip', height=STRIP, aria_hidden='true')


def forest_ticks(axis: Axis) -> Markup:
    """Draw the axis labels below a forest plot."""
    texts = []
    for tick, name in axis.names():
        style = 'tick' if tick in (axis.low, axis.high) else 'tick between'
        position = {'x': _percent(axis, tick), 'y': '12'}
        texts.append(element('text', name, class_=style, **position, text_anchor='middle'))
    return element('svg', *texts, class_='strip', height=16, aria_hidden='true')


def key_mark(marker: str, style: str, line: str = '') -> Markup:
    """Draw a legend entry with a marker, a line, or both."""
    parts = [element('path', class_=line, d='M1 8L27 8')] if line else []
    parts += [mark(14, 8, marker, style)] if marker else []
    return element('svg', *parts, class_='key', width=28, height=16, aria_hidden='true')


def mark(x: float, y: float, marker: str, style: str) -> Markup:
    """Draw a marker at pixel coordinates."""
    shapes = {
        'circle': ('circle', {'cx': f'{x:.1f}', 'cy': f'{y:.1f}', 'r': '3.8'}),
        'square': (
            'rect',
            {'x': f'{x - 3.5:.1f}', 'y': f'{y - 3.5:.1f}', 'width': '7', 'height': '7'},
        ),
        'triangle': ('path', {'d': f'M{x:.1f} {y - 4.6:.1f}l4.6 8h-9.2z'}),
        'cross': ('path', {'d': f'M{x - 5:.1f} {y:.1f}h10M{x:.1f} {y - 5:.1f}v10'}),
    }
    tag, position = shapes[marker]
    return element(tag, **position, class_=style)


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """Return an SVG element with escaped text. Underscores in attribute names become hyphens."""
    written = Markup('').join(
        Markup(' {}="{}"').format(name.rstrip('_').replace('_', '-'), value)
        for name, value in attributes.items()
    )
    return Markup('<{0}{1}>{2}</{0}>').format(tag, written, Markup('').join(children))


def _percent(axis: Axis, value: float) -> str:
    return f'{3 + 94 * axis.share(value):.2f}%'  # room for the dots at both ends


def _series(curve: dict | None) -> tuple[Values, Values]:
    return (curve['x'], curve['y']) if curve else ([], [])

"""Figures and tables for pages: their size, their files, their notes, and tables in LaTeX."""

import io
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Text block of an A4 page in inches. No figure is larger: what does not fit goes to another one.
WIDTH, TALLEST = 6.3, 9.0
FONT, SMALL = 9, 8
FONT_WIDTH = 12.5  # letters in an inch, for titles that are wrapped
STYLE = {'svg.fonttype': 'none', 'svg.hashsalt': 'figure'}  # selectable text, reproducible names
STYLE |= {'text.parse_math': False}  # of text that is made while a figure is drawn
NOT_FOR_CLINICAL_USE = 'Not for clinical use.'
SYNTHETIC = 'Synthetic X-rays.'
# Letters that LaTeX's default fonts lack or show as others, which pandas does not escape.
LATEX = {'<': r'\textless{}', '>': r'\textgreater{}', '|': r'\textbar{}'}
LATEX |= {'≤': r'$\leq$', '≥': r'$\geq$', '−': '$-$', '±': r'$\pm$'}
LATEX_TEXT = {
    **{ord(letter): f'\\{letter}' for letter in '&%$#_{}'},
    **{ord(letter): command for letter, command in LATEX.items()},
    ord('\\'): r'\textbackslash{}',
    ord('~'): r'\textasciitilde{}',
    ord('^'): r'\textasciicircum{}',
}
PACKAGES = (
    '% For a document with \\usepackage{adjustbox, booktabs} (TeX Live: texlive-latex-extra).\n'
)
MOST_ROWS = 40  # of a table on a page, whose letters would be too small with more
BOLD = ('\ue000', '\ue001')  # around text that is bold in Markdown and LaTeX; no name has them
MARKDOWN = {ord('<'): '&lt;', ord('|'): r'\|', ord('*'): r'\*', ord('\n'): ' '}
MARKDOWN |= dict.fromkeys(map(ord, BOLD), '**')
FITTED = r'\begin{adjustbox}{max width=\linewidth, max totalheight=0.85\textheight}'
FITTED += '\n\\setlength{\\tabcolsep}{3pt}'
HEAD = 12  # letters of a line of a column's name
MOST_LETTERS = 250  # of the names in a note
NOTE = 0.3  # height in inches of the note below a figure


def are_synthetic(paths: Iterable[str]) -> bool:
    """Return whether most paths name phantoms, as those of `scripts.phantom` do.

    Among real X-rays, single images may be of a physical phantom, which tests the X-ray machine.
    """
    named = ['phantom' in path.lower() for path in paths]
    return 2 * sum(named) > len(named)


def note_on_images(paths: Iterable[str]) -> str:
    """Say below a figure what images with these paths must not be used for."""
    return f'{SYNTHETIC} {NOT_FOR_CLINICAL_USE}' if are_synthetic(paths) else NOT_FOR_CLINICAL_USE


def listed(names: Sequence[str]) -> str:
    """Return names for a note below a figure, and the number of those without room."""
    lengths = itertools.accumulate(len(name) + 2 for name in names)
    count = max(1, sum(length <= MOST_LETTERS for length in lengths))
    rest = f' and {len(names) - count} more' if count < len(names) else ''
    return f'{", ".join(names[:count])}{rest}'


def shortened(name: str, letters: int) -> str:
    """Return a name, or the start and the end of one with more letters."""
    end = (letters - 3) // 3
    return name if len(name) <= letters else f'{name[: 2 * end]} … {name[-end:]}'


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Format rows of cells as a Markdown table."""
    lines = [list(rows[0]), ['---'] * len(rows[0]), *(list(row.values()) for row in rows)]
    cells = [[cell.translate(MARKDOWN) for cell in line] for line in lines]
    return ''.join(f'| {" | ".join(line)} |\n' for line in cells)


def latex_table(table: 'pd.DataFrame', notes: Iterable[str], **options: Any) -> str:
    """Return a table in LaTeX, with notes below it, in which all names and texts are escaped.

    It is made smaller if it does not fit on the page, and needs the PACKAGES. `options` are those
    of `DataFrame.to_latex`.
    """
    table = table.rename(columns=lambda name: textwrap.fill(name, HEAD, break_long_words=False))
    text = table.to_latex(escape=True, **options)
    for letter, command in LATEX.items():
        text = text.replace(letter, command)
    start, head, rows = re.split(r'(?<=\\toprule\n)|(?= \\\\\n\\midrule)', text, maxsplit=2)
    names = head.split(' & ')
    for place, name in enumerate(names):
        if '\n' in name:
            names[place] = rf'\shortstack[l]{{{name}}}'.replace('\n', r'\\')
    text = start + ' & '.join(names) + rows
    # LaTeX would read a bracket or star at the start of a row as an option of the row before.
    text = re.sub(r'^(?=[\[*])', '{}', text, flags=re.MULTILINE)
    text = text.replace(r'\begin{tabular}', f'{FITTED}\n\\begin{{tabular}}')
    lines = ''.join(f'{note.translate(LATEX_TEXT)}\\par\n' for note in notes)
    below = f'\\par\\medskip\n{{\\footnotesize\\raggedright\n{lines}}}\n' if lines else ''
    return text.replace('\\end{tabular}\n', f'\\end{{tabular}}\n\\end{{adjustbox}}\n{below}')


def encode_figure(figure: 'Figure') -> dict[str, bytes]:
    """Return the PNG and SVG file of a figure by suffix; equal figures give equal bytes."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # names may have dollar signs, which are no formulas
    files = {}
    metadata = {'.png': {'Software': None}, '.svg': {'Date': None}}
    with rc_context(STYLE):
        for suffix, about in metadata.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], dpi=200, metadata=about)
            files[suffix] = buffer.getvalue()
    return files


def new_figure(height: float, width: float = WIDTH) -> 'Figure':
    """Return an empty figure of `width` x `height` inches, which fits on a page."""
    from matplotlib.figure import Figure

    assert width <= WIDTH and height <= TALLEST, f'{width} x {height} inches exceed a page'
    return Figure(figsize=(width, height), layout='constrained')


def split_pages(items: Sequence, most: int) -> list[Sequence]:
    """Split items into the fewest pages of at most `most` items, with about as many on each."""
    assert most > 0, 'not even one item fits on a page'
    count = max(1, math.ceil(len(items) / most))
    bounds = [round(number * len(items) / count) for number in range(count + 1)]
    return [items[start:end] for start, end in itertools.pairwise(bounds)]


def page_names(name: str, count: int) -> list[str]:
    """Return the names of a figure: `name`, or with several pages name_1, name_2, ..."""
    return [name] if count == 1 else [f'{name}_{number}' for number in range(1, count + 1)]


def page_files(path: Path, count: int) -> list[Path]:
    """Return the files of a figure: `path`, or with several pages `path` with _1, _2, ..."""
    return [path.with_stem(name) for name in page_names(path.stem, count)]


def fill_pages(rows: Sequence[tuple[float, Callable]]) -> list[list[tuple[float, Callable]]]:
    """Put rows of (height in inches, function that draws it) on as few pages as they need."""
    pages: list[list[tuple[float, Callable]]] = [[]]
    used = NOTE
    for height, draw in rows:
        if pages[-1] and used + height > TALLEST:
            pages.append([])
            used = NOTE
        pages[-1].append((height, draw))
        used += height
    return pages


def figures_of_rows(
    name: str, rows: Sequence[tuple[float, Callable]], note: str
) -> dict[str, 'Figure']:
    """Draw rows one below the other on as few figures as they need.

    Args:
        name: Name of the figure.
        rows: Height in inches of each row, and a function that draws it on a subfigure.
        note: Text below each figure.

    Returns:
        Figures by name; with several pages name_1, name_2, ...
    """
    pages = fill_pages(rows)
    figures = {}
    for page_name, page in zip(page_names(name, len(pages)), pages, strict=True):
        heights = [height for height, _ in page]
        figure = new_figure(NOTE + sum(heights))
        parts = figure.subfigures(len(page), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (_, draw) in zip(parts, page, strict=True):
            draw(part)
        figure.supxlabel(note, fontsize=SMALL)
        figures[page_name] = figure
    return figures

"""Write a table as CSV, Markdown and LaTeX."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from system.files import replace_files
from system.pages import (
    BOLD,
    MARKDOWN,
    MOST_ROWS,
    PACKAGES,
    latex_table,
    markdown_table,
    page_files,
    split_pages,
)


def write_table(
    folder: Path,
    name: str,
    lines: Sequence[Mapping[str, Any]] | pd.DataFrame,
    cells: Sequence[Mapping[str, str]],
    notes: Iterable[str],
) -> Path:
    """Write a table as CSV (unrounded, empty if unknown), Markdown and LaTeX.

    The notes are below the table, except in the CSV file. A table in LaTeX with more rows than fit
    on a page becomes several files, with _1, _2 and so on.

    Returns:
        Path of the Markdown file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f'{name}.md'
    table = pd.DataFrame(lines, dtype=object)  # keeps whole numbers whole
    notes = [*notes]
    text = f'{markdown_table(cells)}\n' + ''.join(
        f'- {note.translate(MARKDOWN)}\n' for note in notes
    )
    parts = _pages(cells)
    files = page_files(page.with_suffix('.tex'), len(parts))
    latex = {}
    for file, part in zip(files, parts, strict=True):
        found = PACKAGES + latex_table(pd.DataFrame(part), notes, index=False)
        latex[file] = found.replace(BOLD[0], r'\textbf{').replace(BOLD[1], '}')
    # An earlier table with more or fewer pages would be taken for one of these.
    numbered = re.compile(rf'{re.escape(name)}(_\d+)?')
    earlier = {file for file in folder.glob('*.tex') if numbered.fullmatch(file.stem)} - {*latex}
    for old in earlier:
        if old.stem == name or not old.with_suffix('.csv').is_file():  # of label 'Grade 1'
            old.unlink(missing_ok=True)
    replace_files({page: text, page.with_suffix('.csv'): table.to_csv(index=False)} | latex)
    return page


def _pages(cells: Sequence[Mapping[str, str]]) -> list[Sequence[Mapping[str, str]]]:
    """Split the rows of a table into pages, which keep rows with the same labels together."""
    if len(cells) <= MOST_ROWS:
        return [cells]
    pages: list[list[Mapping[str, str]]] = [[]]
    for _, rows in itertools.groupby(cells, key=lambda cell: cell.get('labels', '')):
        for part in split_pages([*rows], MOST_ROWS):
            if len(pages[-1]) + len(part) > MOST_ROWS:
                pages.append([])
            pages[-1] += part
    return [page for page in pages if page]

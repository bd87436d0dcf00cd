"""What is wrong with a data set: a list that is written while it grows, counts, first examples."""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from data.tables import safe_cell

COLUMNS = ('severity', 'kind', 'csv', 'row', 'file', 'detail')
EXAMPLES = 3  # of each kind, in the summary
SHOWN_CHARACTERS = 300

# Error: the readers refuse it, or a score would be wrong.  Warning: it can be used, and is likely a
# mistake.  Note: for information.
SEVERITIES = {
    'error': (
        'missing file',
        'unreadable CSV',
        'empty CSV',
        'row of another width',
        'row not in UTF-8',
        'missing column',
        'value of a label',
        'value of the sex',
        'value of the age',
        'value of the view',
        'value of the projection',
        'value of the split',
        'form of an id',
        'ids that differ',
        'missing row',
        'form of a path',
        'path that leaves the folder',
        'duplicate row',
        'duplicate path',
        'duplicate id',
        'missing picture',
        'unreadable folder',
        'unreadable picture',
        'constant picture',
        'unusable size',
        'damaged store',
        'folder with scores',
        'link that leaves the folder',
        'patient in two splits',
        'picture in two splits',
        'same pixels in two splits',
    ),
    'warning': (
        'unlikely age',
        'view unlike the name',
        'labels of a study differ',
        'study without labels',
        'label without a positive',
        'label without a negative',
        'broken link',
        'left out of the store',
        'small picture',
        'large picture',
        'narrow picture',
        'few grey levels',
        'bit depth',
        'colour',
        'same pixels',
    ),
    'note': ('picture that no CSV names', 'split without pictures'),
}
KINDS = {kind: severity for severity, kinds in SEVERITIES.items() for kind in kinds}


class Findings:
    """Writes each finding as a row of a CSV; keeps the counts and the first few of each kind."""

    def __init__(self, out: TextIO) -> None:
        self._writer = csv.writer(out, lineterminator='\n')
        self._writer.writerow(COLUMNS)
        self.counts = Counter()  # by kind
        self._examples = defaultdict(list)

    def add(
        self, kind: str, detail: str, *, csv: str = '', row: int | None = None, file: str = ''
    ) -> None:
        """Add what was found.

        Args:
            kind: one of KINDS, which gives the severity.
            detail: what is wrong, in words.
            csv: the name of the CSV file that is concerned, if one is.
            row: its row; the header is row 1.
            file: the picture, or what else is concerned.
        """
        cells = [KINDS[kind], kind, csv, '' if row is None else row, file, detail]
        self._writer.writerow([safe_cell(cell) for cell in cells])
        self.counts[kind] += 1
        if len(self._examples[kind]) < EXAMPLES:
            place = f'{csv}, row {row}' if csv and row is not None else csv
            shown = _printable(': '.join(filter(None, (place, file, detail))))
            self._examples[kind].append(shown)

    def number(self, severity: str) -> int:
        """How many findings there are of a severity."""
        return sum(self.counts[kind] for kind in SEVERITIES[severity])

    def describe(self) -> str:
        """Counts by kind, and the first examples of each."""
        lines = []
        for kind, severity in KINDS.items():
            if self.counts[kind]:
                lines.append(f'{severity}: {kind}: {self.counts[kind]:,}')
                lines += [f'    {example}' for example in self._examples[kind]]
        totals = (f'{name}s {self.number(name):,}' for name in SEVERITIES)
        return '\n'.join([*lines, ', '.join(totals)])


@contextmanager
def written(path: Path) -> Iterator[Findings]:
    """Findings whose list gets its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.tmp')
    options = {'newline': '', 'encoding': 'utf-8', 'errors': 'backslashreplace'}
    try:
        with open(temporary, 'w', **options) as out:
            yield Findings(out)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _printable(text: str) -> str:
    """The text for a console: cut, and nothing in it that moves the cursor."""
    shown = text if len(text) <= SHOWN_CHARACTERS else f'{text[:SHOWN_CHARACTERS]}...'
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)

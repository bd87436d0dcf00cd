"""Write the tables and figures of docs/results.md from the JSON files beside it.

python scripts/results_page.py

The page's own text stays; what stands between '<!-- table NAME -->' and '<!-- end -->' is written
anew from docs/results/nih1000/NAME.json and the files of its rows, which
`scripts/ablate.py table --save docs/results/nih1000` wrote. So are, from all of them, the times
and the common notes.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sweeps.plan import SECTION_NAMES  # noqa: E402
from sweeps.plots import plot_sweep  # noqa: E402
from sweeps.results import read_rows  # noqa: E402
from sweeps.summary import Collected  # noqa: E402
from sweeps.tables import markdown_notes, markdown_table  # noqa: E402

PAGE = ROOT / 'docs' / 'results.md'
FOLDER = ROOT / 'docs' / 'results' / 'nih1000'
# Pneumonia has most positives; the other scores are in the JSON files.
SCORES = ('Pneumonia',)
PART = re.compile(r'<!-- table (\w+) -->\n.*?<!-- end -->\n', re.DOTALL)
TIMES = re.compile(r'<!-- times -->\n.*?<!-- end -->\n', re.DOTALL)
COMMON = re.compile(r'<!-- notes -->\n.*?<!-- end -->\n', re.DOTALL)


def parse_args() -> argparse.Namespace:
    return argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()


def page_text(text: str) -> str:
    """The page with its tables as the JSON files have them.

    Notes that all tables share stand once, where the page says `<!-- notes -->`.
    """
    sweeps = {name: read_rows(FOLDER, name) for name in PART.findall(text)}
    notes = {name: markdown_notes(collected) for name, collected in sweeps.items()}
    first = next(iter(notes.values()), [])
    common = [note for note in first if all(note in others for others in notes.values())]

    def table(match: re.Match) -> str:
        name = match[1]
        own = [note for note in notes[name] if note not in common]
        parts = [markdown_table(sweeps[name], SCORES), f'![{name}](results/nih1000/{name}.png)\n']
        parts += ['\n'.join(own) + '\n'] if own else []
        return f'<!-- table {name} -->\n' + '\n'.join(parts) + '<!-- end -->\n'

    text = PART.sub(table, text)
    text = TIMES.sub(lambda _: f'<!-- times -->\n{times(sweeps.values())}\n<!-- end -->\n', text)
    listed = '\n'.join(common)
    return COMMON.sub(lambda _: f'<!-- notes -->\n{listed}\n<!-- end -->\n', text)


def times(sweeps: Iterable[Collected]) -> str:
    """How long the finished runs took, each counted once."""
    entries = [entry for found in sweeps for row in found['rows'] for entry in row['seeds']]
    shown = []
    for section, name in SECTION_NAMES.items():
        runs = [entry[section] for entry in entries if entry[section]]
        records = [run['provenance'] for run in runs if run['state'] == 'finished']
        ended = {(record['finished'], record['seconds']) for record in records}
        minutes = sorted(seconds / 60 for _, seconds in ended)
        middle = statistics.median(minutes)
        shown.append(f'{name} {minutes[0]:.1f} to {minutes[-1]:.1f} (median {middle:.1f})')
    return f'Minutes from the start of training to the end of the run: {", ".join(shown)}.'


def main(args: argparse.Namespace) -> int:
    try:
        text = page_text(PAGE.read_text(encoding='utf-8'))
        for name in PART.findall(text):
            plot_sweep(FOLDER / f'{name}.png', read_rows(FOLDER, name), SCORES[0])
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    PAGE.write_text(text, encoding='utf-8')
    print(f'{PAGE}: {len(PART.findall(text))} tables')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))

"""Write docs/dependencies.md: what the project needs, in which versions, under which licences.

python scripts/licences.py            # of the packages that are installed here
"""

import argparse
import re
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    'requirements.txt': 'to run',
    'requirements-dev.txt': 'to test',
    'requirements-export.txt': 'to export',
}
LINE = re.compile(r'(?P<name>[A-Za-z0-9._-]+)(?P<versions>[^#\s]*)\s*(?:#\s*(?P<what>.*))?')
LONGEST = 40  # characters; beyond, a field holds the licence itself
HEADER = """# Dependencies

Made by `python scripts/licences.py` from the requirements files and from what the installed
packages say of themselves. Each range has a lower bound only; `pip-audit` in `.ci/run` looks up
what is known against the versions that are installed.

| package | versions | licence | for | needed |
| --- | --- | --- | --- | --- |
"""


class Requirement(NamedTuple):
    """A line of a requirements file."""

    name: str
    versions: str
    what: str
    needed: str


def read_requirements(folder: Path = ROOT) -> list[Requirement]:
    """The direct dependencies, in the order of the files."""
    found = []
    for file, needed in FILES.items():
        for line in (folder / file).read_text(encoding='utf-8').splitlines():
            match = LINE.match(line)
            if match and not line.startswith(('-', '#')):
                found.append(
                    Requirement(match['name'], match['versions'], match['what'] or '', needed)
                )
    return found


def licence(name: str) -> str:
    """What a package says of its licence: SPDX expression, classifiers, or a short field."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return 'not installed here'
    classifiers = [text for text in about.get_all('Classifier', []) if text.startswith('License')]
    names = [text.rpartition(' :: ')[2] for text in classifiers]
    field = (about.get('License') or '').strip()
    short = field if field and len(field) <= LONGEST else ''
    return about.get('License-Expression') or ', '.join(names) or short or 'unknown'


def table(requirements: list[Requirement]) -> str:
    """The page."""
    rows = [
        f'| {r.name} | {r.versions} | {licence(r.name)} | {r.what} | {r.needed} |'
        for r in requirements
    ]
    return HEADER + '\n'.join(rows) + '\n'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Write the table of dependencies.')
    parser.add_argument('--output', type=Path, default=ROOT / 'docs' / 'dependencies.md')
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    requirements = read_requirements()
    args.output.write_text(table(requirements), encoding='utf-8')
    print(f'{args.output}: {len(requirements)} packages')
    return 0


if __name__ == '__main__':
    raise SystemExit(main(parse_args()))

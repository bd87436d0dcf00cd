"""Print what pip has to install: the lines of requirements.txt and of extras of pyproject.toml.

python tools/requirements.py studies

`pip install '.[studies]'` also installs the project itself, as a package that does not follow
changes of this folder. scripts/setup.sh, .ci/run and the containers therefore install these lines.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def read_project() -> dict[str, Any]:
    return tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']


def requirement_lines(extras: Sequence[str]) -> list[str]:
    """Return the lines of requirements.txt, of these extras, and of the extras that they name."""
    project = read_project()
    text = (ROOT / 'requirements.txt').read_text(encoding='utf-8')
    waiting = [line.partition('#')[0].strip() for line in text.splitlines()]
    waiting += [f'{project["name"]}[{extra}]' for extra in extras]
    found: dict[str, None] = {}  # a set that keeps the order
    while waiting:
        line = waiting.pop(0)
        if named := re.fullmatch(rf'{project["name"]}\[([\w,-]+)\]', line):
            for extra in named[1].split(','):
                waiting += project['optional-dependencies'][extra]
        elif line:
            found[line] = None
    return [*found]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    extras = read_project()['optional-dependencies']
    parser.add_argument('extras', nargs='*', metavar='EXTRA', help=f'of {", ".join(extras)}')
    args = parser.parse_args()
    if unknown := sorted({*args.extras} - {*extras}):
        parser.error(f'pyproject.toml has no extra {unknown[0]}, only {", ".join(extras)}')
    return args


def main(args: argparse.Namespace) -> int:
    print('\n'.join(requirement_lines(args.extras)))
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
